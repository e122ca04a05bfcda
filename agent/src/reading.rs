//! `Reading`: cumulative counters of every VM at one instant, as a source hands them to [`crate::sample`].

use gnomon_common::abi::block::DiskAccount;
use gnomon_common::abi::sched::{Command, WAIT_BUCKETS};
use gnomon_common::wire::{EXIT_REASONS, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The scheduler's counters of all tracked VMs, drained in one pass.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SchedReading {
    /// When it was taken: `CLOCK_MONOTONIC`, in nanoseconds (the clock of `bpf_ktime_get_ns`).
    pub taken_ns: u64,
    /// Counters since tracking began, per VM.
    pub vms: BTreeMap<VmId, SchedCounters>,
    /// Threads of tracked VMs that got no accumulator because the table was full, since load.
    pub threads_unmeasured: u64,
    /// Which in a row of sources counted, from 0: counters of two of them are no pair.
    pub turn: u32,
    /// Who ran while they waited, per VM; empty where the source does not tell.
    pub culprits: BTreeMap<VmId, WaitCauses>,
}

/// Cumulative counters of one VM: the sum over its threads, those that have exited included. They never decrease while the VM
/// stays tracked. Stretches in progress at `taken_ns` are included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedCounters {
    /// Time on a CPU, in nanoseconds.
    pub run_ns: u64,
    /// Time runnable but not on a CPU, whatever the reason (contention or quota), in nanoseconds.
    pub wait_ns: u64,
    /// What only eBPF counts; `None` where the source does not.
    pub events: Option<SchedEvents>,
    /// Threads alive and measured now.
    pub threads: u32,
}

/// The scheduler's events of one VM's threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedEvents {
    /// Wake-ups.
    pub wakeups: u64,
    /// Involuntary preemptions.
    pub preemptions: u64,
    /// Ended waits by length; bucket `b` counts `2^b ..= 2^(b+1)-1` ns.
    pub wait_log2: [u64; WAIT_BUCKETS],
}

/// What the threads of one VM waited, by who ran meanwhile: cumulative, in nanoseconds, of waits that have ended.
///
/// The parts sum to less than [`SchedCounters::wait_ns`]: what was waited in front of an idle CPU is charged to nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitCauses {
    /// Held back by its own quota; `None` where the kernel does not tell.
    pub own_quota_ns: Option<u64>,
    /// Other threads of the same VM ran.
    pub own_ns: u64,
    /// Someone else ran, sorted by who; nobody twice.
    pub culprits: Vec<(Culprit, u64)>,
    /// Host tasks ran whose commands are too many to be told apart.
    pub other_tasks_ns: u64,
}

/// Who ran while a VM waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Culprit {
    /// Another VM.
    Vm(VmId),
    /// A host's task, by the command of its thread group.
    Task(Command),
}

/// A whole disk's device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DiskId {
    /// The driver's part.
    pub major: u32,
    /// The disk's.
    pub minor: u32,
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Cumulative counters by disk; a disk that is absent was not used.
pub type DiskCounters = BTreeMap<DiskId, DiskAccount>;

/// The block probe's counters, all VMs and the rest of the host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BlockReading {
    /// When it was taken: `CLOCK_MONOTONIC`, in nanoseconds.
    pub taken_ns: u64,
    /// Counters since tracking began, of every tracked VM.
    pub vms: BTreeMap<VmId, DiskCounters>,
    /// What is not known to be a VM's, since load.
    pub rest: DiskCounters,
    /// Requests whose maker or times are not known, since load.
    pub requests_missed: u64,
}

/// What the threads of a VM did to get memory: cumulative, and never decreasing while the VM stays tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReclaimCounters {
    /// Times a thread had to make room first.
    pub reclaims: u64,
    /// How long that took, in nanoseconds, all threads together; what has not ended yet is not in it.
    pub stalled_ns: u64,
}

/// Why the vCPUs of one VM left their guest: cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounters {
    /// vCPUs that have left it ever.
    pub vcpus: u32,
    /// Exits, by [`ExitReason`](gnomon_common::wire::ExitReason).
    pub exits: [u64; EXIT_REASONS],
    /// Time from them to the next entry, in nanoseconds, what has not ended included.
    pub away_ns: [u64; EXIT_REASONS],
}

/// The exits probe's counters, of every tracked VM that runs under KVM.
pub type ExitReading = BTreeMap<VmId, ExitCounters>;

/// The memory probe's counters, of every tracked VM.
pub type ReclaimReading = BTreeMap<VmId, ReclaimCounters>;
