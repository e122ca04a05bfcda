//! The memory probe as the sampler sees it.

use super::accounting::{is_not_found, map_error};
use super::keys::{Members, remove};
use super::load::{BTF_PATH, object_error, program, program_error, take_map};
use super::{ProbeError, ProgramCost, cost};
use crate::reading::{ReclaimCounters, ReclaimReading};
use aya::maps::{HashMap, MapData};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfLoader};
use gnomon_common::abi::memory::MemoryAccount;
use gnomon_common::wire::VmId;

/// A program and its tracepoint.
type Tracing = (&'static str, &'static str);

/// Reclaim because the host is short of memory. The end goes first: what begins is then seen to end.
const DIRECT: [Tracing; 2] = [
    ("direct_reclaim_ended", "mm_vmscan_direct_reclaim_end"),
    ("direct_reclaim_begun", "mm_vmscan_direct_reclaim_begin"),
];

/// Reclaim because a control group is at its limit.
const GROUP: [Tracing; 2] =
    [("group_reclaim_ended", "mm_vmscan_memcg_reclaim_end"), ("group_reclaim_begun", "mm_vmscan_memcg_reclaim_begin")];

/// [`MemoryAccount`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodAccount(MemoryAccount);

// SAFETY: two `u64`.
unsafe impl aya::Pod for PodAccount {}

/// The memory probe, attached while this lives.
///
/// The agent must run in the host's PID namespace: process ids are those of the kernel.
pub struct MemoryProbe {
    ebpf: Ebpf,
    members: Members,
    accounts: HashMap<MapData, u32, PodAccount>,
    sees_limits: bool,
}

impl MemoryProbe {
    /// Loads and attaches the probe.
    ///
    /// # Errors
    /// Says what this host lacks and what can be done about it.
    pub fn load() -> Result<Self, ProbeError> {
        let btf = Btf::from_sys_fs().map_err(|error| match error {
            BtfError::FileError { error, .. } => ProbeError::NoBtf { path: BTF_PATH, source: error },
            source => ProbeError::AttachPoint { what: "the kernel", source },
        })?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&btf));
        let mut ebpf =
            loader.load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/memory"))).map_err(object_error)?;
        drop(loader);
        for (name, tracepoint) in DIRECT {
            let program = program::<BtfTracePoint>(&mut ebpf, name)?;
            program.load(tracepoint, &btf).map_err(|e| program_error(name, e))?;
        }
        let mut sees_limits = true;
        for (name, tracepoint) in GROUP {
            match program::<BtfTracePoint>(&mut ebpf, name)?.load(tracepoint, &btf) {
                // A kernel without control groups for memory.
                Err(ProgramError::Btf(_)) => sees_limits = false,
                result => result.map_err(|e| program_error(name, e))?,
            }
        }
        let attached = DIRECT.iter().chain(GROUP.iter().filter(|_| sees_limits));
        for &(name, _) in attached {
            program::<BtfTracePoint>(&mut ebpf, name)?.attach().map_err(|e| program_error(name, e))?;
        }
        Ok(Self {
            members: Members::of(&mut ebpf, 0)?,
            accounts: take_map(&mut ebpf, "MEMORY_ACCOUNTS")?,
            ebpf,
            sees_limits,
        })
    }

    /// Whether reclaim because of a control group's limit is seen, and not only what the host is short of.
    pub fn sees_limits(&self) -> bool {
        self.sees_limits
    }

    /// Counts what the threads of these processes reclaim as `vm`'s. To be called again whenever they may have changed; what was counted
    /// stays with the VM.
    ///
    /// # Errors
    /// If the kernel refuses: mostly because a map is full. Then the VM is not tracked: what is counted in part is not told.
    pub fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), ProbeError> {
        let is_new = self.members.number(vm).is_none();
        let number = self.members.admit(vm);
        let mut done = Ok(());
        if is_new {
            let empty = PodAccount(MemoryAccount::default());
            done = self.accounts.insert(number, empty, 0).map_err(map_error("MEMORY_ACCOUNTS"));
        }
        let done = done.and_then(|()| self.members.follow(vm, tgids));
        if done.is_err() {
            // What of it fails fails on the way to an error that is reported anyway.
            let _ = self.untrack(vm);
        }
        done
    }

    /// Stops counting for a VM and forgets its counters. Unknown VMs are none.
    ///
    /// # Errors
    /// If the kernel refuses; the VM is forgotten all the same.
    pub fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        let Some((number, emptied)) = self.members.forget(vm) else { return Ok(()) };
        remove(&mut self.accounts, "MEMORY_ACCOUNTS", &number).and(emptied)
    }

    /// The counters of all tracked VMs: a system call for each.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn drain(&mut self) -> Result<ReclaimReading, ProbeError> {
        let mut reading = ReclaimReading::new();
        for (vm, number) in self.members.iter() {
            match self.accounts.get(&number, 0) {
                Ok(PodAccount(MemoryAccount { reclaims, stalled_ns })) => {
                    reading.insert(vm, ReclaimCounters { reclaims, stalled_ns });
                }
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(map_error("MEMORY_ACCOUNTS")(error)),
            }
        }
        Ok(reading)
    }

    /// What the attached programs have cost since they were loaded. All zero while nobody holds a
    /// [`StatsEnabled`](super::StatsEnabled).
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        let programs = [DIRECT, GROUP].concat();
        cost::of_programs(&self.ebpf, &programs.iter().map(|&(name, _)| name).collect::<Vec<_>>())
    }
}
