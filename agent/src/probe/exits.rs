//! The exits probe as the sampler sees it.

use super::accounting::{map_error, now_ns};
use super::keys::{Members, remove};
use super::load::{object_error, program, program_error, take_map};
use super::{ProbeError, ProgramCost, Tracefs, cost};
use crate::host::process::Proc;
use crate::reading::{ExitCounters, ExitReading};
use aya::maps::{HashMap, MapData};
use aya::programs::{RawTracePoint, TracePoint};
use aya::{Ebpf, EbpfLoader};
use gnomon_common::abi::exits::{EXIT_REASONS, VcpuAccount};
use gnomon_common::wire::VmId;
use std::collections::BTreeMap;

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
    sums: Sums,
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
        Ok(Self {
            members: Members::of(&mut ebpf, 0)?,
            vcpus: take_map(&mut ebpf, "VCPUS")?,
            sums: Sums::default(),
            ebpf,
        })
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
        let Some((number, emptied)) = self.members.forget(vm) else { return Ok(()) };
        self.sums.ended.remove(&number);
        emptied
    }

    /// The counters of all tracked VMs whose vCPUs have left their guests since: three system calls for each vCPU. Times that have not ended are included, but for
    /// those of threads that have.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn drain(&mut self) -> Result<ExitReading, ProbeError> {
        let by_number = self.members.by_number();
        let (mut present, mut gone) = (Vec::new(), Vec::new());
        for entry in self.vcpus.iter() {
            let (tid, PodAccount(account)) = entry.map_err(map_error("VCPUS"))?;
            if by_number.contains_key(&account.vm) && is_thread(account.tgid, tid) {
                present.push(account);
            } else {
                gone.push((tid, account));
            }
        }
        for (tid, account) in gone {
            remove(&mut self.vcpus, "VCPUS", &tid)?;
            if by_number.contains_key(&account.vm) {
                self.sums.end(&account);
            }
        }
        let sums = self.sums.read(&present, now_ns());
        Ok(sums.into_iter().filter_map(|(number, sum)| Some((*by_number.get(&number)?, sum))).collect())
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

/// Whether a process has this thread; where that cannot be told, it has.
fn is_thread(tgid: u32, tid: u32) -> bool {
    Proc::default().path(format!("{tgid}/task/{tid}")).try_exists().unwrap_or(true)
}

/// From the accounts of vCPUs to the counters of VMs, by their numbers. Pure.
#[derive(Debug, Default)]
struct Sums {
    /// What vCPUs did whose threads have ended: a VM's counters never decrease.
    ended: BTreeMap<u32, ExitCounters>,
    /// When the accounts were read last.
    read_ns: u64,
}

impl Sums {
    /// Takes in an account for the last time: its thread has ended, outside of the guest. When is not known, but not before the last reading, which
    /// has told it as away until then.
    fn end(&mut self, account: &VcpuAccount) {
        add(self.ended.entry(account.vm).or_default(), account, self.read_ns);
    }

    /// The counters at `now_ns`, with these accounts of threads that live.
    fn read(&mut self, present: &[VcpuAccount], now_ns: u64) -> BTreeMap<u32, ExitCounters> {
        self.read_ns = now_ns;
        let mut sums = self.ended.clone();
        for account in present {
            let sum = sums.entry(account.vm).or_default();
            sum.vcpus += 1;
            add(sum, account, now_ns);
        }
        sums
    }
}

/// Adds an account, with the time that it is away until `now_ns`.
fn add(sum: &mut ExitCounters, account: &VcpuAccount, now_ns: u64) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::abi::exits::{EXIT_REASONS_ROOM, ExitReason};

    const HALT: usize = ExitReason::Halt as usize;

    /// A vCPU of VM 1 that halted so often, for so long, and then at `left_ns` once more.
    fn halted(halts: u64, away_ns: u64, left_ns: u64) -> VcpuAccount {
        let mut account = VcpuAccount {
            exits: [0; EXIT_REASONS_ROOM],
            away_ns: [0; EXIT_REASONS_ROOM],
            vm: 1,
            tgid: 7,
            reason: HALT as u32,
            reserved: 0,
            left_ns,
        };
        (account.exits[HALT], account.away_ns[HALT]) = (halts, away_ns);
        account
    }

    #[test]
    fn a_vcpu_that_was_unplugged_is_away_no_longer_and_what_it_did_stays() {
        let mut sums = Sums::default();
        let (stays, unplugged) = (halted(5, 40, 0), halted(9, 100, 1_000));
        let told = |sums: &BTreeMap<u32, ExitCounters>| (sums[&1].vcpus, sums[&1].exits[HALT], sums[&1].away_ns[HALT]);
        assert_eq!(told(&sums.read(&[stays, unplugged], 1_500)), (2, 14, 640));
        sums.end(&unplugged);
        for now_ns in [2_000, 9_000] {
            assert_eq!(told(&sums.read(&[stays], now_ns)), (1, 14, 640), "at {now_ns}");
        }
        // One that halted for the last time, and ended, between two readings.
        sums.end(&halted(1, 10, 9_500));
        assert_eq!(told(&sums.read(&[stays], 10_000)), (1, 15, 650));
    }

    #[test]
    fn a_thread_that_has_ended_is_its_processs_no_longer() {
        let own = std::process::id();
        let tid = std::thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().get()).join().unwrap();
        // A thread that was joined is gone from the list a moment later.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_thread(own, tid.unsigned_abs()) {
            assert!(std::time::Instant::now() < patience, "thread {tid} stays");
            std::thread::yield_now();
        }
        assert!(is_thread(own, own) && !is_thread(own, 1));
    }
}
