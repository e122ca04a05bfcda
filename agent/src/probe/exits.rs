//! The exits probe as the sampler sees it.

use super::accounting::{map_error, now_ns};
use super::keys::{Members, remove};
use super::load::{object_error, program, program_error, take_map};
use super::{ProbeError, ProgramCost, Tracefs, cost};
use crate::reading::{ExitCounters, ExitReading};
use aya::maps::{HashMap, MapData};
use aya::programs::{RawTracePoint, TracePoint};
use aya::{Ebpf, EbpfLoader};
use gnomon_common::abi::exits::{EXIT_REASONS, VcpuAccount};
use gnomon_common::wire::VmId;

/// The tracepoint that tells the reason: its category and name.
const EXIT: (&str, &str) = ("kvm", "kvm_exit");
const ENTRY: &str = "kvm_entry";

/// Globals of the object, and the field of [`EXIT`] whose offset each wants.
const FIELDS: [(&str, &str); 2] = [("EXIT_REASON_OFFSET", "exit_reason"), ("EXIT_ISA_OFFSET", "isa")];

const LEFT: &str = "guest_left";
const ENTERED: &str = "guest_entered";

/// [`VcpuAccount`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodAccount(VcpuAccount);

// SAFETY: `u64` and `u32` without padding, by the size that is asserted where the record is defined.
unsafe impl aya::Pod for PodAccount {}

/// The exits probe, attached while this lives.
///
/// The agent must run in the host's PID namespace: process and thread ids are those of the kernel.
pub struct ExitProbe {
    ebpf: Ebpf,
    members: Members,
    vcpus: HashMap<MapData, u32, PodAccount>,
}

impl ExitProbe {
    /// Loads and attaches the probe.
    ///
    /// # Errors
    /// Says what this host lacks and what can be done about it: the tracepoints are there once KVM is loaded.
    pub fn load() -> Result<Self, ProbeError> {
        let tracefs = Tracefs::find()?;
        let mut offsets = Vec::with_capacity(FIELDS.len());
        for (_, field) in FIELDS {
            offsets.push(tracefs.field_offset(EXIT.0, EXIT.1, field)?);
        }
        let mut loader = EbpfLoader::new();
        // Nothing of the kernel's own types is used.
        loader.btf(None);
        for ((global, _), offset) in FIELDS.iter().zip(&offsets) {
            loader.override_global(global, offset, true);
        }
        let mut ebpf =
            loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/exits"))).map_err(object_error)?;
        drop(loader);
        program::<TracePoint>(&mut ebpf, LEFT)?.load().map_err(|e| program_error(LEFT, e))?;
        program::<RawTracePoint>(&mut ebpf, ENTERED)?.load().map_err(|e| program_error(ENTERED, e))?;
        // The end goes first: what begins is then seen to end.
        program::<RawTracePoint>(&mut ebpf, ENTERED)?.attach(ENTRY).map_err(|e| program_error(ENTERED, e))?;
        program::<TracePoint>(&mut ebpf, LEFT)?.attach(EXIT.0, EXIT.1).map_err(|e| program_error(LEFT, e))?;
        Ok(Self { members: Members::of(&mut ebpf, 0)?, vcpus: take_map(&mut ebpf, "VCPUS")?, ebpf })
    }

    /// Counts what the threads of these processes do as `vm`'s. To be called again whenever they may have changed; what was counted stays with the VM.
    ///
    /// # Errors
    /// If the kernel refuses: mostly because a map is full. Then the VM is not tracked: what is counted in part is not told.
    pub fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), ProbeError> {
        let done = self.members.follow(vm, tgids);
        if done.is_err() {
            // What of it fails fails on the way to an error that is reported anyway.
            let _ = self.untrack(vm);
        }
        done
    }

    /// Stops counting for a VM; its vCPUs' accounts go with the next reading. Unknown VMs are none.
    ///
    /// # Errors
    /// If the kernel refuses; the VM is forgotten all the same.
    pub fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        self.members.forget(vm).map_or(Ok(()), |(_, emptied)| emptied)
    }

    /// The counters of all tracked VMs whose vCPUs have left their guests since: two system calls for each vCPU. Times that have not ended are included.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn drain(&mut self) -> Result<ExitReading, ProbeError> {
        let by_number = self.members.by_number();
        let (mut reading, mut orphans) = (ExitReading::new(), Vec::new());
        for entry in self.vcpus.iter() {
            let (tid, PodAccount(account)) = entry.map_err(map_error("VCPUS"))?;
            match by_number.get(&account.vm) {
                Some(&vm) => add(reading.entry(vm).or_default(), &account, now_ns()),
                None => orphans.push(tid),
            }
        }
        for tid in orphans {
            remove(&mut self.vcpus, "VCPUS", &tid)?;
        }
        Ok(reading)
    }

    /// What the attached programs have cost since they were loaded. All zero while nobody holds a
    /// [`StatsEnabled`](super::StatsEnabled).
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        cost::of_programs(&self.ebpf, &[LEFT, ENTERED])
    }
}

fn add(sum: &mut ExitCounters, account: &VcpuAccount, now_ns: u64) {
    sum.vcpus += 1;
    for index in 0..EXIT_REASONS {
        sum.exits[index] += account.exits[index];
        sum.away_ns[index] += account.away_ns[index];
    }
    if account.left_ns != 0
        && let Some(away_ns) = sum.away_ns.get_mut(account.reason as usize)
    {
        *away_ns += now_ns.saturating_sub(account.left_ns);
    }
}
