//! The host's ticks -> windows. Pure: the same ticks give the same windows, live and in a [replay](crate::recording).

mod devices;

use super::disk::{DiskSeries, ProcessIoSeries, RestSeries};
use super::drops::DropSeries;
use super::exits::ExitSeries;
use super::grid::{Grid, Now};
use super::guest_disks::GuestDiskSeries;
use super::interval::{self, Bounds, Rejection};
use super::live::{LiveLoads, Moment, Moments};
use super::memory::MemorySeries;
use super::metrics::VmLabel;
use super::network::NetworkSeries;
use super::queues::QueueSeries;
use super::tick::{HostReading, Start, Tick, WindowEnd};
use super::vm::{Life, Observed, VmSeries};
use super::window::Weighted;
use super::{HostReport, SampleMetrics};
use crate::host::cgroup::CgroupReading;
use crate::host::inventory::{Inventory, VmFacts};
use crate::reading::SchedReading;
use gnomon_common::wire::{Allocation, HostWindow, Losses, ShadowWindow, VmId, VmWindow};
use std::collections::BTreeMap;
use std::time::Duration;

/// What was read of the host and its VMs, and the windows being made of the differences.
pub(crate) struct HostSeries {
    sample_ms: u32,
    window_ms: u32,
    /// [`SchedReading::turn`] of the last reading.
    turn: u32,
    live: LiveLoads,
    metrics: SampleMetrics,
    bounds: Bounds,
    grid: Grid,
    ticked_ns: u64,
    vms: BTreeMap<VmId, Vm>,
    /// When the host's CPU time was read last, and what it was, both in nanoseconds.
    host_cpu: Option<(u64, u64)>,
    host_cores: Weighted,
    memory_available_bytes: u64,
    disk_rest: RestSeries,
    drops: DropSeries,
    queues: QueueSeries,
    losses: Losses,
}

/// What is kept of a VM.
struct Vm {
    label: VmLabel,
    series: VmSeries,
    quota_cores: Option<f64>,
    recent: Moments,
    memory: MemorySeries,
    network: NetworkSeries,
    disk: DiskSeries,
    process_io: ProcessIoSeries,
    guest_disks: GuestDiskSeries,
    exits: ExitSeries,
}

impl HostSeries {
    /// Begins; the last seconds of every VM are told to `live`.
    pub(crate) fn new(start: &Start, live: LiveLoads, metrics: SampleMetrics) -> Self {
        let &Start { now, sample_ms, window_ms, host } = start;
        let mut series = Self {
            sample_ms,
            window_ms,
            turn: 0,
            live,
            metrics,
            bounds: Bounds { cpus: u32::MAX, sample_ns: u64::from(sample_ms) * 1_000_000 },
            grid: grid(now, sample_ms, window_ms),
            ticked_ns: now.monotonic_ns,
            vms: BTreeMap::new(),
            host_cpu: None,
            host_cores: Weighted::default(),
            memory_available_bytes: 0,
            disk_rest: RestSeries::default(),
            drops: DropSeries::default(),
            queues: QueueSeries::default(),
            losses: Losses::default(),
        };
        series.observe_host(host);
        series
    }

    /// When the next tick is due, from `now` on.
    pub(crate) fn until_next_tick(&self, now: Now) -> Duration {
        let tick_ns = self.grid.next_tick_ns(self.ticked_ns.max(now.monotonic_ns));
        Duration::from_nanos(tick_ns.saturating_sub(now.monotonic_ns))
    }

    /// Whether a tick at `now` is the window's last.
    pub(crate) fn ends_window(&self, now: Now) -> bool {
        self.grid.ends_window(now.monotonic_ns)
    }

    /// A report that was made could not be handed over.
    pub(crate) fn lost_report(&mut self) {
        self.losses.reports_dropped += 1;
        self.metrics.reports_unsent.inc();
    }

    /// Takes a tick in; where it is a window's last, that is told.
    pub(crate) fn apply(&mut self, mut tick: Tick) -> Option<HostReport> {
        let now = tick.now;
        self.metrics.ticks.inc();
        let skipped = self.grid.skipped(self.ticked_ns, now.monotonic_ns);
        self.losses.samples_skipped += skipped;
        self.metrics.skipped.inc_by(skipped);
        self.ticked_ns = now.monotonic_ns;

        let inventory = &tick.inventory;
        if tick.inventory_changed {
            self.follow(inventory);
        }
        if let Some(reading) = &tick.sched {
            self.observe_source(reading);
        }
        for facts in &inventory.vms {
            self.observe_vm(facts, tick.sched.as_mut(), tick.cgroups.remove(&facts.id));
        }
        if let Some((taken_ns, counters)) = &tick.network {
            self.observe_network(inventory, counters, *taken_ns);
        }
        if let Some(reading) = &tick.disks {
            self.observe_disks(inventory, reading.as_ref());
        }
        self.publish_live(inventory, now.monotonic_ns);
        if let Some(after) = tick.host_cpu {
            self.observe_host_cpu(after);
        }
        let report = tick.window_end.take().map(|end| self.close_window(inventory, end, now));
        if report.is_some() {
            self.grid.advance(now.monotonic_ns);
        }
        if self.grid.has_stepped(now) {
            // What was collected belongs to neither time: the window is given up, and the next one begins in the new time.
            self.metrics.clock_steps.inc();
            tracing::warn!(wall = %now.wall, "the wall clock was set: windows are laid anew");
            self.grid = grid(now, self.sample_ms, self.window_ms);
            self.forget_window();
        }
        report
    }

    /// Begins with VMs that are new, and forgets those that are gone.
    fn follow(&mut self, inventory: &Inventory) {
        let metrics = &self.metrics;
        self.vms.retain(|&id, vm| {
            let stays = inventory.vm(id).is_some();
            if !stays {
                metrics.vm_idle(&vm.label);
            }
            stays
        });
        for facts in &inventory.vms {
            let label = VmLabel::new(facts.id, &facts.name);
            let vm = self.vms.entry(facts.id).or_insert_with(|| Vm::new(label.clone()));
            if vm.label != label {
                self.metrics.vm_idle(&vm.label);
                vm.label = label;
            }
        }
    }

    /// Counters of two sources are no pair.
    fn observe_source(&mut self, reading: &SchedReading) {
        self.losses.threads_unmeasured = reading.threads_unmeasured;
        if std::mem::replace(&mut self.turn, reading.turn) != reading.turn {
            self.vms.values_mut().for_each(|vm| vm.series.interrupt_sched());
        }
    }

    fn observe_vm(&mut self, facts: &VmFacts, mut reading: Option<&mut SchedReading>, cgroup: Option<CgroupReading>) {
        let Some(vm) = self.vms.get_mut(&facts.id) else { return };
        let causes = reading.as_mut().and_then(|reading| reading.culprits.remove(&facts.id));
        let sched = reading.and_then(|reading| Some((reading.taken_ns, *reading.vms.get(&facts.id)?)));
        vm.quota_cores = cgroup.as_ref().and_then(|reading| reading.quota_cores);
        let observed = vm.series.observe(facts, sched, causes, cgroup, &self.bounds);
        match moment(&observed, facts.vcpus) {
            Some(moment) => vm.recent.add(moment),
            None => vm.recent.clear(),
        }
        match observed.sched {
            Some(Ok(s)) => self.metrics.vm_demand(&vm.label, s.run_cores, s.run_cores + s.wait_cores),
            Some(Err(reason)) => reject(&mut self.losses, &self.metrics, reason),
            None => {}
        }
        if let Some(waits) = &observed.waits {
            self.metrics.vm_waits(&vm.label, waits);
        }
        match observed.cgroup {
            Some(Ok(sample)) => self.metrics.vm_cgroup(&vm.label, sample.usage_cores, sample.throttled),
            Some(Err(reason)) => reject(&mut self.losses, &self.metrics, reason),
            None => {}
        }
        if observed.sched.is_none() && observed.cgroup.is_none() {
            self.metrics.vm_idle(&vm.label);
        } else {
            self.metrics.vm_quota(&vm.label, vm.quota_cores);
        }
    }

    /// Tells the last seconds of the VMs that run.
    fn publish_live(&self, inventory: &Inventory, taken_ns: u64) {
        let load = |facts: &VmFacts| {
            let vm = self.vms.get(&facts.id)?;
            Some((facts.id, vm.recent.load(taken_ns, vm.quota_cores, facts.vcpus)?))
        };
        self.live.publish(inventory.vms.iter().filter_map(load).collect());
    }

    fn observe_host_cpu(&mut self, after: (u64, u64)) {
        let before = self.host_cpu.replace(after);
        match before.map(|before| interval::host(before, after, &self.bounds)) {
            Some(Ok((cores, elapsed_s))) => {
                self.host_cores.add(cores, elapsed_s);
                self.metrics.host_cpu_cores.set(cores);
            }
            Some(Err(reason)) => reject(&mut self.losses, &self.metrics, reason),
            None => {}
        }
    }

    fn observe_host(&mut self, host: HostReading) {
        self.bounds.cpus = host.cpus.unwrap_or(self.bounds.cpus);
        self.memory_available_bytes = host.memory_available_bytes.unwrap_or(self.memory_available_bytes);
    }

    fn close_window(&mut self, inventory: &Inventory, end: WindowEnd, now: Now) -> HostReport {
        self.observe_host(end.host);
        let window_s = self.grid.window_s();
        let disk_rest = self.disk_rest.take_window();
        self.metrics.disks.rest(disk_rest.as_ref());
        let mut report = HostReport {
            start: self.grid.window_start(),
            window_ms: self.grid.window_ms(),
            host_window: HostWindow {
                cpu_cores: std::mem::take(&mut self.host_cores).finish(),
                memory_available_bytes: self.memory_available_bytes,
                disk_rest,
                probes_shed: end.probes_shed.clone(),
            },
            vms: Vec::with_capacity(inventory.vms.len()),
            inventory_complete: inventory.complete,
            losses: self.losses,
        };
        let mut drops = self.close_drops(&end, now.monotonic_ns);
        let mut queues = self.queues.close(end.queues.as_ref(), now.monotonic_ns);
        for facts in &inventory.vms {
            let mut vm = self.vms.get_mut(&facts.id);
            let memory = vm.as_mut().zip(end.memory.get(&facts.id)).map(|(vm, reading)| {
                let memory = vm.memory.close(facts, *reading, now.wall.unix_ms() / 1_000);
                self.metrics.vm_memory(&vm.label, &memory);
                memory
            });
            let interfaces = vm.as_mut().map_or_else(Vec::new, |vm| {
                let mut interfaces = vm.network.take_window();
                for interface in &mut interfaces {
                    interface.drops = drops.remove(&interface.device);
                    interface.queue = queues.remove(&interface.device);
                }
                self.metrics.vm_network(&vm.label, &interfaces);
                interfaces
            });
            let disk = vm.as_mut().and_then(|vm| {
                let disk = vm.close_disks(facts, &end, now.monotonic_ns);
                self.metrics.disks.vm(&vm.label, disk.as_ref());
                disk
            });
            let exits = vm.as_mut().and_then(|vm| {
                let told = vm.exits.close(Life::of(facts), end.exits.get(&facts.id).copied(), now.monotonic_ns);
                self.metrics.vm_exits(&vm.label, told.as_deref());
                told
            });
            report.vms.push(VmWindow {
                vm: facts.id,
                name: facts.name.clone(),
                state: facts.state,
                allocation: Allocation {
                    quota_cores: vm.as_ref().and_then(|vm| vm.quota_cores),
                    vcpus: facts.vcpus,
                    vcpus_max: facts.vcpus_max,
                    memory_bytes: facts.memory_bytes,
                },
                culprits: vm.as_mut().and_then(|vm| vm.series.take_waits().finish()),
                cpu: vm.and_then(|vm| {
                    let window = vm.series.take_window();
                    if end.tells_demand {
                        window.finish(window_s)
                    } else {
                        window.finish_from_usage(window_s, facts.vcpus)
                    }
                }),
                memory,
                interfaces,
                disk,
                exits,
                baselines: end.baselines.get(&facts.id).cloned().unwrap_or_default(),
                stood_down: end.stood_down.contains(&facts.id),
                terms: facts.terms.clone().unwrap_or_default(),
                storage: end.storage.get(&facts.id).copied(),
                migration: end.migrations.get(&facts.id).copied(),
                shadow: facts.shadow_of.map(|of| ShadowWindow { of, pacer: end.pacers.get(&facts.id).copied() }),
            });
        }
        self.metrics.windows.inc();
        report
    }

    fn forget_window(&mut self) {
        self.host_cores = Weighted::default();
        for vm in self.vms.values_mut() {
            vm.series.take_window();
            vm.network.take_window();
            vm.series.take_waits();
            vm.disk.take_window(|_| String::new());
        }
        self.disk_rest.take_window();
    }
}

impl Vm {
    fn new(label: VmLabel) -> Self {
        Self {
            label,
            series: VmSeries::default(),
            quota_cores: None,
            recent: Moments::default(),
            memory: MemorySeries::default(),
            network: NetworkSeries::default(),
            disk: DiskSeries::default(),
            process_io: ProcessIoSeries::default(),
            guest_disks: GuestDiskSeries::default(),
            exits: ExitSeries::default(),
        }
    }
}

/// The grid whose current window contains `now`.
pub(super) fn grid(now: Now, sample_ms: u32, window_ms: u32) -> Grid {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    Grid::align(now, ms(sample_ms), ms(window_ms))
}

/// What a tick tells of a VM's last seconds; `None` where it tells nothing, and then what was before says nothing either. Where the scheduler was
/// not seen, what the control group was charged with is what it ran, and while it was held back it may have wanted all its vCPUs.
fn moment(observed: &Observed, vcpus: u32) -> Option<Moment> {
    let cgroup = observed.cgroup.as_ref().and_then(|sample| sample.as_ref().ok());
    let throttled = cgroup.map_or(0.0, |sample| sample.throttled);
    if let Some(Ok(sched)) = &observed.sched {
        let (run_cores, demand_high_cores) = (sched.run_cores, sched.run_cores + sched.wait_cores);
        return Some(Moment { elapsed_s: sched.elapsed_s, run_cores, demand_high_cores, throttled });
    }
    let cgroup = cgroup?;
    let run_cores = cgroup.usage_cores?;
    let demand_high_cores = if throttled > 0.0 { run_cores.max(vcpus.into()) } else { run_cores };
    Some(Moment { elapsed_s: cgroup.elapsed_s, run_cores, demand_high_cores, throttled })
}

fn reject(losses: &mut Losses, metrics: &SampleMetrics, reason: Rejection) {
    metrics.rejected(reason);
    // A late loop is already counted as skipped samples.
    if reason != Rejection::TooLong {
        losses.samples_absurd += 1;
    }
}
