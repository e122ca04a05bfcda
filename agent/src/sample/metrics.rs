//! What the sampler tells about itself and about the VMs it measures.

mod disks;
mod labels;

pub(super) use labels::VmLabel;

use super::interval::{Rejection, WaitSample};
use crate::reading::Culprit;
use disks::DiskMetrics;
use gnomon_common::wire::{Dropped, ExitReason, ExitShare, InterfaceWindow, MemoryWindow, QueueWindow, Traffic};
use labels::{DirectionLabel, DropLabel, ExitLabel, ReasonLabel, WaitLabel};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;

type GaugeF64 = Gauge<f64, AtomicU64>;

/// The sampler's metrics; clones share their values.
#[derive(Clone, Debug)]
pub struct SampleMetrics {
    pub(super) ticks: Counter,
    pub(super) skipped: Counter,
    pub(super) windows: Counter,
    pub(super) reports_unsent: Counter,
    pub(super) clock_steps: Counter,
    pub(super) drain_failures: Counter,
    pub(super) track_failures: Counter,
    pub(super) cgroup_failures: Counter,
    pub(super) network_failures: Counter,
    pub(super) drain_seconds: Histogram,
    pub(super) tick_seconds: Histogram,
    pub(super) inventory_age_seconds: GaugeF64,
    pub(super) host_cpu_cores: GaugeF64,
    vm_samples: Counter,
    absurd: Family<ReasonLabel, Counter>,
    demand_low: Family<VmLabel, GaugeF64>,
    demand_high: Family<VmLabel, GaugeF64>,
    usage: Family<VmLabel, GaugeF64>,
    throttled: Family<VmLabel, GaugeF64>,
    quota: Family<VmLabel, GaugeF64>,
    wait: Family<WaitLabel, GaugeF64>,
    memory_resident: Family<VmLabel, Gauge>,
    memory_swapped: Family<VmLabel, Gauge>,
    memory_balloon: Family<VmLabel, Gauge>,
    memory_demand_low: Family<VmLabel, Gauge>,
    memory_demand_high: Family<VmLabel, Gauge>,
    memory_minor_faults: Family<VmLabel, GaugeF64>,
    memory_major_faults: Family<VmLabel, GaugeF64>,
    memory_reclaims: Family<VmLabel, GaugeF64>,
    memory_stalled: Family<VmLabel, GaugeF64>,
    pub(super) reclaim_failures: Counter,
    pub(super) disk_failures: Counter,
    pub(super) disks: DiskMetrics,
    network_bytes: Family<DirectionLabel, GaugeF64>,
    network_packets: Family<DirectionLabel, GaugeF64>,
    network_dropped: Family<DirectionLabel, GaugeF64>,
    network_wait: Family<VmLabel, GaugeF64>,
    dropped_by_reason: Family<DropLabel, Counter<f64, AtomicU64>>,
    drops_missed: Gauge,
    pub(super) exit_failures: Counter,
    exits: Family<ExitLabel, GaugeF64>,
    away: Family<ExitLabel, GaugeF64>,
}

impl Default for SampleMetrics {
    fn default() -> Self {
        // 50 us (a handful of VMs) to 0.4 s (a tick that is in danger of missing the next).
        let seconds = || Histogram::new(exponential_buckets(50e-6, 2.0, 14));
        Self {
            drain_seconds: seconds(),
            tick_seconds: seconds(),
            ticks: Counter::default(),
            skipped: Counter::default(),
            windows: Counter::default(),
            reports_unsent: Counter::default(),
            clock_steps: Counter::default(),
            drain_failures: Counter::default(),
            track_failures: Counter::default(),
            cgroup_failures: Counter::default(),
            network_failures: Counter::default(),
            inventory_age_seconds: GaugeF64::default(),
            host_cpu_cores: GaugeF64::default(),
            vm_samples: Counter::default(),
            absurd: Family::default(),
            demand_low: Family::default(),
            demand_high: Family::default(),
            usage: Family::default(),
            throttled: Family::default(),
            quota: Family::default(),
            wait: Family::default(),
            memory_resident: Family::default(),
            memory_swapped: Family::default(),
            memory_balloon: Family::default(),
            memory_demand_low: Family::default(),
            memory_demand_high: Family::default(),
            memory_minor_faults: Family::default(),
            memory_major_faults: Family::default(),
            memory_reclaims: Family::default(),
            memory_stalled: Family::default(),
            reclaim_failures: Counter::default(),
            network_bytes: Family::default(),
            network_packets: Family::default(),
            network_dropped: Family::default(),
            network_wait: Family::default(),
            dropped_by_reason: Family::default(),
            drops_missed: Gauge::default(),
            exit_failures: Counter::default(),
            exits: Family::default(),
            away: Family::default(),
            disk_failures: Counter::default(),
            disks: DiskMetrics::default(),
        }
    }
}

impl SampleMetrics {
    /// Registers them, with their full names.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register("gnomon_agent_sample_ticks", "Ticks of the sampling loop", self.ticks.clone());
        r.register("gnomon_agent_samples_skipped", "Ticks missed because the loop was late", self.skipped.clone());
        r.register("gnomon_agent_vm_samples", "Samples taken, all VMs together", self.vm_samples.clone());
        r.register("gnomon_agent_samples_absurd", "Pairs of readings thrown away, by reason", self.absurd.clone());
        r.register("gnomon_agent_sample_windows", "Windows closed", self.windows.clone());
        r.register(
            "gnomon_agent_reports_unsent",
            "Windows dropped because the uplink's queue was full",
            self.reports_unsent.clone(),
        );
        r.register("gnomon_agent_clock_steps", "Times the wall clock was found set", self.clock_steps.clone());
        r.register("gnomon_agent_probe_drain_failures", "Failed drains of the probe", self.drain_failures.clone());
        r.register("gnomon_agent_probe_track_failures", "VMs the probe could not track", self.track_failures.clone());
        r.register(
            "gnomon_agent_cgroup_read_failures",
            "Control groups of live VMs that could not be read",
            self.cgroup_failures.clone(),
        );
        r.register(
            "gnomon_agent_network_read_failures",
            "Failed readings of the network devices' counters",
            self.network_failures.clone(),
        );
        r.register(
            "gnomon_agent_vm_network_bytes_per_second",
            "Traffic of the VM's interfaces in the last window, by the VM's direction",
            self.network_bytes.clone(),
        );
        r.register(
            "gnomon_agent_vm_network_packets_per_second",
            "Packets of the VM's interfaces in the last window, by the VM's direction",
            self.network_packets.clone(),
        );
        r.register(
            "gnomon_agent_network_drops",
            "Packets dropped on the devices of VMs, all together, by the kernel's reason",
            self.dropped_by_reason.clone(),
        );
        r.register(
            "gnomon_agent_network_drops_missed",
            "Packets dropped whose reason was not counted for want of room, since the probe was loaded",
            self.drops_missed.clone(),
        );
        r.register(
            "gnomon_agent_vm_network_dropped_per_second",
            "Packets dropped at the VM's interfaces in the last window, by the VM's direction",
            self.network_dropped.clone(),
        );
        r.register(
            "gnomon_agent_vm_network_wait_seconds",
            "How long packets waited until the VM took them, mean of those timed in the last window; absent where none was",
            self.network_wait.clone(),
        );
        r.register("gnomon_agent_probe_drain_seconds", "Time to drain the probe", self.drain_seconds.clone());
        r.register("gnomon_agent_sample_tick_seconds", "Time a tick takes in all", self.tick_seconds.clone());
        r.register(
            "gnomon_agent_inventory_age_seconds",
            "Time since libvirt's domains were last surveyed",
            self.inventory_age_seconds.clone(),
        );
        r.register(
            "gnomon_agent_host_cpu_cores",
            "CPU in use on this host in the last interval",
            self.host_cpu_cores.clone(),
        );
        r.register("gnomon_agent_vm_demand_low_cores", "Time run in the last interval", self.demand_low.clone());
        r.register(
            "gnomon_agent_vm_demand_high_cores",
            "Time run or waiting for a CPU in the last interval",
            self.demand_high.clone(),
        );
        r.register("gnomon_agent_vm_usage_cores", "CPU charged to the VM's control group", self.usage.clone());
        r.register(
            "gnomon_agent_vm_throttled_ratio",
            "Share of the last interval in which a quota held the VM back",
            self.throttled.clone(),
        );
        r.register("gnomon_agent_vm_quota_cores", "CPU quota of the VM; absent is unlimited", self.quota.clone());
        r.register(
            "gnomon_agent_vm_wait_cores",
            "Waited for a CPU in the last interval, by what had it: the VM's quota, its own threads, other VMs, tasks of the host",
            self.wait.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_resident_bytes",
            "Memory that the VM's process holds at the end of the last window",
            self.memory_resident.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_swapped_bytes",
            "Memory of the VM's process that the host has swapped out, at the end of the last window",
            self.memory_swapped.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_balloon_bytes",
            "What the balloon leaves to the guest; absent where it cannot be moved",
            self.memory_balloon.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_demand_low_bytes",
            "Memory that the VM is estimated to want at least",
            self.memory_demand_low.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_demand_high_bytes",
            "Memory that the VM is estimated to want at most",
            self.memory_demand_high.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_minor_faults_per_second",
            "Page faults of the VM's process in the last window that needed no I/O",
            self.memory_minor_faults.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_major_faults_per_second",
            "Page faults of the VM's process in the last window that needed I/O: the host took memory from it",
            self.memory_major_faults.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_reclaims_per_second",
            "Times in the last window that a thread of the VM had to reclaim memory first; absent without the memory probe",
            self.memory_reclaims.clone(),
        );
        r.register(
            "gnomon_agent_vm_memory_reclaim_stalled_threads",
            "Threads of the VM that reclaimed memory, on average over the last window; absent without the memory probe",
            self.memory_stalled.clone(),
        );
        r.register(
            "gnomon_agent_memory_probe_failures",
            "Times the memory probe could not track a VM or be drained",
            self.reclaim_failures.clone(),
        );
        r.register(
            "gnomon_agent_block_probe_failures",
            "Times the block probe could not track a VM or be drained",
            self.disk_failures.clone(),
        );
        r.register(
            "gnomon_agent_vm_exits_per_second",
            "Times that the VM's vCPUs left their guest in the last window, by reason; absent without KVM",
            self.exits.clone(),
        );
        r.register(
            "gnomon_agent_vm_away_vcpus",
            "vCPUs that were away from their guest, on average over the last window, by reason; of `halt`, those that had nothing to do",
            self.away.clone(),
        );
        r.register(
            "gnomon_agent_exits_probe_failures",
            "Times the exits probe could not track a VM or be drained",
            self.exit_failures.clone(),
        );
        self.disks.register(r);
        for reason in Rejection::ALL {
            drop(self.absurd.get_or_create(&ReasonLabel { reason: reason.name() }));
        }
    }

    pub(super) fn rejected(&self, reason: Rejection) {
        self.absurd.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
    }

    pub(super) fn vm_demand(&self, vm: &VmLabel, low_cores: f64, high_cores: f64) {
        self.vm_samples.inc();
        self.demand_low.get_or_create(vm).set(low_cores);
        self.demand_high.get_or_create(vm).set(high_cores);
    }

    pub(super) fn vm_waits(&self, vm: &VmLabel, waits: &WaitSample) {
        let of = |is_vm: bool| -> f64 {
            let culprits = waits.culprits.iter().filter(|(who, _)| matches!(who, Culprit::Vm(_)) == is_vm);
            culprits.map(|(_, waited_s)| waited_s).sum()
        };
        let seconds = [waits.own_quota_s, Some(waits.own_s), Some(of(true)), Some(of(false) + waits.other_tasks_s)];
        for (cause, waited_s) in WaitLabel::CAUSES.into_iter().zip(seconds) {
            if let Some(waited_s) = waited_s {
                self.wait.get_or_create(&WaitLabel::new(vm, cause)).set(waited_s / waits.elapsed_s);
            }
        }
    }

    pub(super) fn vm_cgroup(&self, vm: &VmLabel, usage_cores: Option<f64>, throttled: f64) {
        if let Some(cores) = usage_cores {
            self.usage.get_or_create(vm).set(cores);
        }
        self.throttled.get_or_create(vm).set(throttled);
    }

    pub(super) fn vm_quota(&self, vm: &VmLabel, cores: Option<f64>) {
        show(&self.quota, vm, cores);
    }

    pub(super) fn vm_memory(&self, vm: &VmLabel, memory: &MemoryWindow) {
        self.vm_stalls(vm, Some(memory));
        let values = [
            (&self.memory_resident, Some(memory.resident_bytes)),
            (&self.memory_swapped, Some(memory.swapped_bytes)),
            (&self.memory_balloon, memory.balloon_bytes),
            (&self.memory_demand_low, memory.demand.map(|demand| demand.low_bytes)),
            (&self.memory_demand_high, memory.demand.map(|demand| demand.high_bytes)),
        ];
        for (family, bytes) in values {
            match bytes {
                Some(bytes) => {
                    family.get_or_create(vm).set(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
                None => {
                    family.remove(vm);
                }
            }
        }
    }

    /// How the VM was held up for memory.
    fn vm_stalls(&self, vm: &VmLabel, memory: Option<&MemoryWindow>) {
        let reclaim = memory.and_then(|memory| memory.reclaim);
        show(&self.memory_minor_faults, vm, memory.map(|memory| memory.host_minor_faults_per_s));
        show(&self.memory_major_faults, vm, memory.map(|memory| memory.host_major_faults_per_s));
        show(&self.memory_reclaims, vm, reclaim.map(|stalls| stalls.reclaims_per_s));
        show(&self.memory_stalled, vm, reclaim.map(|stalls| stalls.stalled_threads));
    }

    pub(super) fn vm_network(&self, vm: &VmLabel, interfaces: &[InterfaceWindow]) {
        let queues = interfaces.iter().filter_map(|interface| interface.queue.as_ref());
        show(&self.network_wait, vm, QueueWindow::mean_wait_ms(queues).map(|ms| ms / 1e3));
        let received: Vec<&Traffic> = interfaces.iter().map(|interface| &interface.received).collect();
        let sent: Vec<&Traffic> = interfaces.iter().map(|interface| &interface.sent).collect();
        for (direction, traffic) in [("received", received), ("sent", sent)] {
            let sum = |value: fn(&Traffic) -> f64| {
                let sum = traffic.iter().map(|traffic| value(traffic)).sum::<f64>();
                (!traffic.is_empty()).then_some(sum)
            };
            let label = DirectionLabel { vm: vm.vm.clone(), name: vm.name.clone(), direction };
            for (family, value) in [
                (&self.network_bytes, sum(|traffic| traffic.bytes_per_s.mean)),
                (&self.network_packets, sum(|traffic| traffic.packets_per_s)),
                (&self.network_dropped, sum(|traffic| traffic.dropped_per_s)),
            ] {
                show(family, &label, value);
            }
        }
    }

    /// What was dropped in a window of that length, and what was not counted so far; that is `None` while nothing counts.
    pub(super) fn network_drops<'a>(
        &self,
        drops: impl Iterator<Item = &'a Dropped>,
        window_s: f64,
        missed: Option<u64>,
    ) {
        self.drops_missed.set(missed.map_or(0, |missed| i64::try_from(missed).unwrap_or(i64::MAX)));
        for Dropped { reason, packets_per_s } in drops {
            let label = DropLabel { reason: reason.clone() };
            self.dropped_by_reason.get_or_create(&label).inc_by(packets_per_s * window_s);
        }
    }

    /// Reasons that did not occur are zero where others are told.
    pub(super) fn vm_exits(&self, vm: &VmLabel, shares: Option<&[ExitShare]>) {
        for reason in ExitReason::ALL {
            let label = ExitLabel { vm: vm.vm.clone(), name: vm.name.clone(), reason: reason.name() };
            let share = shares.map(|shares| shares.iter().find(|share| share.reason == reason));
            show(&self.exits, &label, share.map(|share| share.map_or(0.0, |share| share.exits_per_s)));
            show(&self.away, &label, share.map(|share| share.map_or(0.0, |share| share.away_vcpus)));
        }
    }

    /// The VM is not measured now: its last values must not stand as if they were current.
    pub(super) fn vm_idle(&self, vm: &VmLabel) {
        self.vm_network(vm, &[]);
        self.disks.vm(vm, None);
        self.vm_exits(vm, None);
        self.vm_stalls(vm, None);
        for family in [&self.demand_low, &self.demand_high, &self.usage, &self.throttled, &self.quota] {
            family.remove(vm);
        }
        for cause in WaitLabel::CAUSES {
            self.wait.remove(&WaitLabel::new(vm, cause));
        }
        for family in [
            &self.memory_resident,
            &self.memory_swapped,
            &self.memory_balloon,
            &self.memory_demand_low,
            &self.memory_demand_high,
        ] {
            family.remove(vm);
        }
    }
}

/// Sets a gauge, or takes it away where there is nothing to show.
fn show<L: Clone + Eq + Hash>(family: &Family<L, GaugeF64>, label: &L, value: Option<f64>) {
    match value {
        Some(value) => {
            family.get_or_create(label).set(value);
        }
        None => {
            family.remove(label);
        }
    }
}
