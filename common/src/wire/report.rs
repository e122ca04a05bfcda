//! What a host measured: windows of one-second samples.

use super::{
    AgentEpoch, Culprits, DiskRest, DiskWindow, ExitShare, HostId, LatencyHistogram, LocalStorage, MigrationProgress,
    Sequence, Setting, ShadowWindow, VmId, VmTerms,
};
use crate::abi::sched::WAIT_BUCKETS;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::string::String;
use std::vec::Vec;

/// One window of one host. Identified by (host, epoch, sequence): a brain that has it ignores it when it comes again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who measured.
    pub host: HostId,
    /// In which life of the agent.
    pub epoch: AgentEpoch,
    /// Which report of that life.
    pub sequence: Sequence,
    /// When the window began, on the host's wall clock.
    pub start: Timestamp,
    /// How long it is, in milliseconds of the host's monotonic clock (10,000 by default).
    pub window_ms: u32,
    /// The host itself.
    pub host_window: HostWindow,
    /// Every VM libvirt knows there, sorted by id; a VM that is missing is no longer on this host.
    pub vms: Vec<VmWindow>,
    /// Whether `vms` is complete: `false` while libvirt does not answer, and then a missing VM means nothing.
    pub inventory_complete: bool,
    /// What was lost on the way, counted since the agent started.
    pub losses: Losses,
}

/// "This report, and every one sent before it on this stream, is synced to the store."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAck {
    /// Whose epoch.
    pub epoch: AgentEpoch,
    /// Which report of it.
    pub sequence: Sequence,
}

/// Mean and maximum over a window's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MeanMax {
    /// Time-weighted mean.
    pub mean: f64,
    /// Largest sample.
    pub max: f64,
}

/// Probes that can be shed.
const PROBES_MAX: usize = 16;

/// The host's own load in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostWindow {
    /// CPU in use within what the agent is responsible for, in cores.
    pub cpu_cores: MeanMax,
    /// Memory that could be given away without swapping, in bytes, at the window's end.
    pub memory_available_bytes: u64,
    /// What was read and written without being known to be a VM's; `None` where the block probe does not work.
    pub disk_rest: Option<DiskRest>,
    /// Probes that are given up at the window's end because the agent would cost more than its budget, by name (`queues`), first the one that
    /// goes first. What only they tell is absent.
    pub probes_shed: Vec<String>,
}

impl HostWindow {
    /// This, without names of probes that cannot be any.
    #[must_use]
    pub fn sane(mut self) -> Self {
        self.probes_shed.truncate(PROBES_MAX);
        self.probes_shed.retain(|name| name.len() <= REASON_BYTES_MAX);
        self
    }
}

/// One VM in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmWindow {
    /// Its libvirt UUID.
    pub vm: VmId,
    /// Its name now (a rename keeps the id).
    pub name: String,
    /// Its state at the window's end.
    pub state: VmState,
    /// CPU, where it was measured for at least one sample.
    pub cpu: Option<CpuWindow>,
    /// Who ran while it waited for a CPU, where that was seen.
    pub culprits: Option<Culprits>,
    /// Memory, where it was measured.
    pub memory: Option<MemoryWindow>,
    /// Its network interfaces that have a device on the host, by device, at most [`INTERFACES_MAX`]; those measured in this window.
    pub interfaces: Vec<InterfaceWindow>,
    /// Disks, where they were measured: only eBPF tells.
    pub disk: Option<DiskWindow>,
    /// Why its vCPUs left their guest, sorted by reason; `None` where that is not seen, or it does not run under KVM.
    pub exits: Option<Vec<ExitShare>>,
    /// What it may use, at the window's end.
    pub allocation: Allocation,
    /// What it had before Gnomon's first change, one for each means that was changed: what a release gives back.
    pub baselines: Vec<Setting>,
    /// The agent keeps its hands off this VM, because someone else changed its limits.
    pub stood_down: bool,
    /// What its owner and its definition allow.
    pub terms: VmTerms,
    /// What only this host has of its disks, while that is known; told by agents that copy disks.
    pub storage: Option<LocalStorage>,
    /// How far its migration away from this host has come, while there is one.
    pub migration: Option<MigrationProgress>,
    /// What it is besides, where it is a shadow.
    pub shadow: Option<ShadowWindow>,
}

/// What libvirt says a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Executing.
    Running,
    /// Suspended by someone; it wants nothing and must not be taught to the forecast as idle.
    Paused,
    /// Being received from another host, where it runs until it does so here. It is not here yet.
    Arriving,
    /// Defined, not running.
    ShutOff,
    /// The guest crashed and was kept.
    Crashed,
    /// Anything else (being shut down, suspended to memory, unknown).
    Other,
}

/// A VM's CPU in a window, in cores unless the name says otherwise.
///
/// Demand is an interval: the VM ran for `run` and was runnable but not running for `wait`, so it wanted at least `run` and at
/// most `run + wait`. `wait` already contains the time a quota held it back; adding `throttled` would count that twice. What was not
/// counted is `None`, never zero: which it is depends on the host's [`CpuSource`](super::CpuSource).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CpuWindow {
    /// How much of the window the samples cover, 0..=1 (less after a start, a pause or a lost sample).
    pub covered: f64,
    /// Lower end of the demand interval: time run by all threads of the VM (where only its cgroup tells: CPU time charged to that).
    pub demand_low: MeanMax,
    /// Upper end of the demand interval: time run or runnable. Where nothing tells what the VM waited, its number of vCPUs: demand is
    /// unknown above what it used.
    pub demand_high: MeanMax,
    /// CPU time charged to the VM's cgroup: an independent witness of `demand_low`.
    pub usage: MeanMax,
    /// Share of the time that the VM's quota held it back, 0..=1 (of its bandwidth periods' wall time).
    pub throttled: MeanMax,
    /// Wake-ups of its threads, per second.
    pub wakeups_per_s: Option<f64>,
    /// Involuntary preemptions of its threads, per second.
    pub preemptions_per_s: Option<f64>,
    /// How long its threads waited for a CPU.
    pub wait: Option<WaitHistogram>,
}

/// Run-queue waits by length: bucket `b` counts waits of `2^b ..= 2^(b+1)-1` ns; the last one also all longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WaitHistogram(pub [u32; WAIT_BUCKETS]);

/// A VM's memory in a window: what it has, what it uses, and whether it lacks some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MemoryWindow {
    /// Resident on the host (`VmRSS` of the QEMU process) at the window's end, in bytes.
    pub resident_bytes: u64,
    /// Of its memory what the host has swapped out (`VmSwap`) at the window's end, in bytes.
    pub swapped_bytes: u64,
    /// What the balloon leaves to the guest at the window's end, in bytes; `None` where there is no balloon that can be moved.
    pub balloon_bytes: Option<u64>,
    /// What the guest itself says; `None` where it has no driver or does not send statistics.
    pub guest: Option<GuestMemory>,
    /// What it wanted, as estimated; `None` where nothing tells.
    pub demand: Option<MemoryDemand>,
    /// Page faults of the QEMU process that needed no I/O, per second: it touched memory that it did not have yet, or not any more.
    pub host_minor_faults_per_s: f64,
    /// Page faults that needed I/O, per second: the host took memory from the VM. Of its control group where that counts them (cgroup v2), else of the
    /// QEMU process, without those that KVM's workers take for it.
    pub host_major_faults_per_s: f64,
    /// Share of the window in which some thread of the VM waited for memory, 0..=1 (`memory.pressure`, PSI); `None` without cgroup v2.
    pub pressure: Option<f64>,
    /// How its threads were held up to make room for what they asked for; `None` where the memory probe does not work.
    pub reclaim: Option<ReclaimStalls>,
}

impl MemoryWindow {
    /// What its guest wanted at most, in bytes of what its balloon leaves; `None` where its guest does not tell.
    pub fn guest_demand_bytes(&self) -> Option<u64> {
        self.demand.filter(|demand| demand.source == DemandSource::Guest).map(|demand| demand.high_bytes)
    }
}

/// What a VM wanted of memory: an interval, as with CPU. Where both ends agree, it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MemoryDemand {
    /// It wanted at least this, in bytes.
    pub low_bytes: u64,
    /// And at most this, in bytes.
    pub high_bytes: u64,
    /// By whose word.
    pub source: DemandSource,
}

impl MemoryDemand {
    /// Of a guest that tells what it uses and shows no lack of any.
    pub const fn known(bytes: u64) -> Self {
        Self { low_bytes: bytes, high_bytes: bytes, source: DemandSource::Guest }
    }
}

/// Who tells what a VM wants of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DemandSource {
    /// Its guest's balloon driver: what it uses, and what it shows to lack. In bytes of what the balloon leaves to it.
    Guest,
    /// The host alone: what its process ever touched, and has to fetch back. QEMU's own memory is in it.
    Host,
}

/// How a VM's threads were held up in a window because they had to reclaim memory for what they asked for (direct reclaim, or their control
/// group's limit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ReclaimStalls {
    /// Reclaims begun, per second.
    pub reclaims_per_s: f64,
    /// Threads that reclaimed, on average: seconds of all threads together, per second, of reclaims that ended in the window.
    pub stalled_threads: f64,
}

/// What a guest's balloon driver says of its memory (virtio 1.2, section 5.5.6.3), at a window's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct GuestMemory {
    /// All the guest's kernel manages, in bytes.
    pub total_bytes: u64,
    /// Used for nothing at all, in bytes.
    pub unused_bytes: u64,
    /// What could be given to a new process without swapping, caches included (`MemAvailable`), in bytes.
    pub usable_bytes: Option<u64>,
    /// Page faults in the guest that needed I/O, per second.
    pub major_faults_per_s: f64,
    /// Read back from swap, in bytes per second.
    pub swap_in_bytes_per_s: f64,
    /// Written to swap, in bytes per second.
    pub swap_out_bytes_per_s: f64,
}

/// Network interfaces of one VM that are told of.
pub const INTERFACES_MAX: usize = 16;

/// One network interface of a VM in a window, by the counters of its device on the host (a tap). Directions are the VM's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct InterfaceWindow {
    /// Its device on the host (`vnet0`).
    pub device: String,
    /// Into the VM.
    pub received: Traffic,
    /// Out of the VM.
    pub sent: Traffic,
    /// Why packets were dropped on the device, those with most first, at most [`DROP_REASONS_MAX`]; `None` where nothing tells.
    pub drops: Option<Vec<Dropped>>,
    /// How long packets into the VM waited at the device; `None` where nothing tells.
    pub queue: Option<QueueWindow>,
}

/// Reasons for drops that are told of one interface.
pub const DROP_REASONS_MAX: usize = 8;

/// Longest name of a reason, or of a probe, in bytes.
const REASON_BYTES_MAX: usize = 64;

/// Packets that the kernel dropped on a device for one reason. Not only those that the device counts itself
/// ([`Traffic::dropped_per_s`]): a packet for which nobody listens is dropped as well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Dropped {
    /// The kernel's name for it, `full_ring` for one: `include/net/dropreason-core.h`.
    pub reason: String,
    /// Packets, each second.
    pub packets_per_s: f64,
}

/// How long packets into the VM waited in its device's queue until the VM (QEMU, or its vhost thread) took them: a sample of them, at most 64
/// at once. What was dropped there is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct QueueWindow {
    /// Mean of those timed that were taken in the window, in milliseconds; `None` where none was.
    pub wait_ms: Option<f64>,
    /// They, by how long they waited.
    pub waits: LatencyHistogram,
}

impl QueueWindow {
    /// Mean of the packets timed at several devices, in milliseconds; `None` where none was.
    pub fn mean_wait_ms<'a>(queues: impl Iterator<Item = &'a Self>) -> Option<f64> {
        let (mut waited_ms, mut packets) = (0.0, 0.0);
        for queue in queues {
            let timed: f64 = queue.waits.0.iter().copied().map(f64::from).sum();
            waited_ms += queue.wait_ms.unwrap_or(0.0) * timed;
            packets += timed;
        }
        (packets > 0.0).then(|| waited_ms / packets)
    }
}

impl InterfaceWindow {
    /// Whether every value can be one: a number, not below zero, and no more reasons than are told.
    pub fn is_sane(&self) -> bool {
        let drops = self.drops.as_deref().unwrap_or_default();
        let is_drop = |drop: &Dropped| is_quantity(drop.packets_per_s) && drop.reason.len() <= REASON_BYTES_MAX;
        [&self.received, &self.sent].into_iter().all(|Traffic { bytes_per_s, packets_per_s, dropped_per_s }| {
            [bytes_per_s.mean, bytes_per_s.max, *packets_per_s, *dropped_per_s].into_iter().all(is_quantity)
        }) && drops.len() <= DROP_REASONS_MAX
            && drops.iter().all(is_drop)
            && self.queue.and_then(|queue| queue.wait_ms).is_none_or(is_quantity)
    }
}

/// Whether a value counts or measures something: a number, not below zero.
pub(super) fn is_quantity(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

/// Traffic in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Traffic {
    /// Bytes that went through, each second, link-level headers included.
    pub bytes_per_s: MeanMax,
    /// Packets that went through, each second. A packet that was segmented for the wire by offloading may count as one.
    pub packets_per_s: f64,
    /// Packets that were dropped at the device, each second: into the VM, because it does not take them fast enough.
    pub dropped_per_s: f64,
}

/// What a VM may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Allocation {
    /// CPU quota of the whole domain, in cores; `None` is unlimited.
    pub quota_cores: Option<f64>,
    /// vCPUs online.
    pub vcpus: u32,
    /// vCPUs it is defined with: up to here they can be plugged in.
    pub vcpus_max: u32,
    /// Memory the domain is defined with, in bytes: up to here the balloon can give.
    pub memory_bytes: u64,
}

impl Allocation {
    /// The CPU the VM can use at most, in cores: its quota or, where smaller, its vCPUs.
    pub fn cpu_limit_cores(&self) -> f64 {
        let vcpus = f64::from(self.vcpus);
        self.quota_cores.map_or(vcpus, |quota| quota.min(vcpus))
    }
}

/// What an agent lost since it started. Nothing is dropped without being counted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Threads that could not be measured: the table of accumulators was full.
    pub threads_unmeasured: u64,
    /// One-second samples skipped: the sampling loop was late.
    pub samples_skipped: u64,
    /// Samples thrown away because a counter went backwards or a clock stepped.
    pub samples_absurd: u64,
    /// Reports dropped, oldest first, because the brain was away for too long.
    pub reports_dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    #[test]
    fn names_of_probes_that_cannot_be_any_are_left_out() {
        let long = "x".repeat(REASON_BYTES_MAX + 1);
        let window = HostWindow { probes_shed: vec!["queues".to_string(), long], ..HostWindow::default() };
        assert_eq!(window.sane().probes_shed, ["queues"]);
        let many = HostWindow { probes_shed: vec!["p".to_string(); 1_000], ..HostWindow::default() };
        assert_eq!(many.sane().probes_shed.len(), PROBES_MAX);
    }

    #[test]
    fn the_mean_wait_of_several_devices_is_by_packet() {
        let queue = |wait_ms, packets: u32| {
            let mut queue = QueueWindow { wait_ms, ..QueueWindow::default() };
            queue.waits.0[3] = packets;
            queue
        };
        let mean = |queues: &[QueueWindow]| QueueWindow::mean_wait_ms(queues.iter());
        assert_eq!(mean(&[queue(Some(1.0), 30), queue(Some(5.0), 10), queue(None, 0)]), Some(2.0));
        assert_eq!((mean(&[queue(None, 0)]), mean(&[])), (None, None));
    }

    #[test]
    fn a_wait_that_can_be_none_is_not_believed() {
        for (wait_ms, sane) in [(Some(0.5), true), (None, true), (Some(-1.0), false), (Some(f64::NAN), false)] {
            let queue = Some(QueueWindow { wait_ms, ..QueueWindow::default() });
            assert_eq!(InterfaceWindow { queue, ..InterfaceWindow::default() }.is_sane(), sane, "{wait_ms:?}");
        }
    }
}
