//! One tick: read everything once, add it up, and at a window's end hand over a report.

mod cost;
mod devices;
mod exits;
mod memory;

use super::super::disk::{DiskSeries, ProcessIoSeries, RestSeries};
use super::super::exits::ExitSeries;
use super::super::grid::{Grid, Now};
use super::super::interval::{self, Bounds, Rejection};
use super::super::live::{Moment, Moments};
use super::super::memory::MemorySeries;
use super::super::metrics::VmLabel;
use super::super::network::NetworkSeries;
use super::super::vm::{Observed, VmSeries};
use super::super::window::Weighted;
use super::super::{HostReport, SampleMetrics};
use super::{SamplerConfig, Sources};
use crate::host::disk;
use crate::host::inventory::{Inventory, VmFacts};
use crate::host::machine::Machine;
use crate::reading::SchedReading;
use gnomon_common::wire::{Allocation, HostWindow, Losses, VmId, VmWindow};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

pub(super) struct Sampler {
    config: SamplerConfig,
    inventory: watch::Receiver<Arc<Inventory>>,
    sources: Sources,
    disk_rest: RestSeries,
    /// [`SchedReading::turn`] of the last reading.
    turn: u32,
    out: mpsc::Sender<HostReport>,
    metrics: SampleMetrics,
    machine: Machine,
    bounds: Bounds,
    grid: Grid,
    ticked_ns: u64,
    vms: BTreeMap<VmId, Vm>,
    /// When the host's CPU time was read last, and what it was, both in nanoseconds.
    host_cpu: Option<(u64, u64)>,
    host_cores: Weighted,
    memory_available_bytes: u64,
    losses: Losses,
}

/// What the sampler keeps of a VM.
struct Vm {
    label: VmLabel,
    /// What the probe was told: process (id and start time) and thread groups.
    tracked: Option<Tracked>,
    series: VmSeries,
    quota_cores: Option<f64>,
    recent: Moments,
    memory: MemorySeries,
    network: NetworkSeries,
    disk: DiskSeries,
    process_io: ProcessIoSeries,
    exits: ExitSeries,
}

/// The instant a tick began, from which the instants of its readings are told: with the probe's on one clock, and in a test
/// on the test's.
#[derive(Clone, Copy)]
struct TickClock {
    monotonic_ns: u64,
    began: Instant,
}

impl TickClock {
    fn now_ns(self) -> u64 {
        self.monotonic_ns.saturating_add(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tracked {
    process: (u32, u64),
    thread_groups: Vec<u32>,
    block_groups: Vec<u64>,
}

impl Sampler {
    pub(super) fn new(
        config: SamplerConfig,
        inventory: watch::Receiver<Arc<Inventory>>,
        sources: Sources,
        out: mpsc::Sender<HostReport>,
        metrics: SampleMetrics,
        now: Now,
    ) -> Self {
        let machine = Machine::new(config.proc.clone(), config.cgroup_root.clone());
        let mut sampler = Self {
            bounds: Bounds { cpus: u32::MAX, sample_ns: u64::from(config.sample_ms) * 1_000_000 },
            grid: config.grid(now),
            ticked_ns: now.monotonic_ns,
            machine,
            config,
            inventory,
            sources,
            disk_rest: RestSeries::default(),
            turn: 0,
            out,
            metrics,
            vms: BTreeMap::new(),
            host_cpu: None,
            host_cores: Weighted::default(),
            memory_available_bytes: 0,
            losses: Losses::default(),
        };
        sampler.inventory.mark_changed();
        sampler.read_slow_facts();
        sampler
    }

    pub(super) fn until_next_tick(&self, now: Now) -> Duration {
        let tick_ns = self.grid.next_tick_ns(self.ticked_ns.max(now.monotonic_ns));
        Duration::from_nanos(tick_ns.saturating_sub(now.monotonic_ns))
    }

    /// Takes one sample of everything; `false` means that nobody receives reports any more.
    pub(super) fn tick(&mut self, now: Now) -> bool {
        let clock = TickClock { monotonic_ns: now.monotonic_ns, began: Instant::now() };
        self.metrics.ticks.inc();
        let skipped = self.grid.skipped(self.ticked_ns, now.monotonic_ns);
        self.losses.samples_skipped += skipped;
        self.metrics.skipped.inc_by(skipped);
        self.ticked_ns = now.monotonic_ns;

        let changed = self.inventory.has_changed().unwrap_or(false);
        let inventory = self.inventory.borrow_and_update().clone();
        self.metrics.inventory_age_seconds.set(inventory.taken.elapsed().as_secs_f64());
        if changed {
            self.follow(&inventory);
        }
        let mut reading = self.drain();
        for facts in &inventory.vms {
            self.sample_vm(facts, reading.as_mut(), clock);
        }
        self.sample_network(&inventory, clock);
        self.sample_disks(&inventory);
        self.publish_live(&inventory, now.monotonic_ns);
        self.sample_host(clock);
        self.control_cost();

        let mut connected = true;
        if self.grid.ends_window(now.monotonic_ns) {
            connected = self.close_window(&inventory, now);
            self.grid.advance(now.monotonic_ns);
        }
        if self.grid.has_stepped(now) {
            // What was collected belongs to neither time: the window is given up, and the next one begins in the new time.
            self.metrics.clock_steps.inc();
            tracing::warn!(wall = %now.wall, "the wall clock was set: windows are laid anew");
            self.grid = self.config.grid(now);
            self.forget_window();
        }
        self.metrics.tick_seconds.observe(clock.began.elapsed().as_secs_f64());
        connected
    }

    /// Tells the probe which processes are VMs now, and forgets those that are gone.
    fn follow(&mut self, inventory: &Inventory) {
        let gone: Vec<VmId> = self.vms.keys().copied().filter(|&id| inventory.vm(id).is_none()).collect();
        for id in gone {
            if let Some(vm) = self.vms.remove(&id) {
                self.metrics.vm_idle(&vm.label);
                if vm.tracked.is_some() {
                    self.untrack(id);
                }
            }
        }
        for facts in &inventory.vms {
            self.follow_vm(facts);
        }
    }

    fn follow_vm(&mut self, facts: &VmFacts) {
        let label = VmLabel::new(facts.id, &facts.name);
        let wanted = facts.process.as_ref().map(|process| Tracked {
            process: (process.pid, process.start_ticks),
            thread_groups: process.thread_groups(),
            block_groups: facts.cgroup.as_ref().map(|cgroup| cgroup.block_ids().to_vec()).unwrap_or_default(),
        });
        let vm = self.vms.entry(facts.id).or_insert_with(|| Vm {
            label: label.clone(),
            tracked: None,
            series: VmSeries::default(),
            quota_cores: None,
            recent: Moments::default(),
            memory: MemorySeries::default(),
            network: NetworkSeries::default(),
            disk: DiskSeries::default(),
            process_io: ProcessIoSeries::default(),
            exits: ExitSeries::default(),
        });
        if vm.label != label {
            self.metrics.vm_idle(&vm.label);
            vm.label = label;
        }
        if vm.tracked == wanted {
            return;
        }
        let same_process = matches!((&vm.tracked, &wanted), (Some(now), Some(then)) if now.process == then.process);
        let was_tracked = vm.tracked.take().is_some();
        if was_tracked && !same_process {
            self.untrack(facts.id);
        }
        let Some(wanted) = wanted else { return };
        if let Some(disks) = &mut self.sources.disks
            && let Err(error) = disks.track(facts.id, &wanted.thread_groups, &wanted.block_groups)
        {
            self.metrics.disk_failures.inc();
            tracing::warn!(vm = %facts.id, name = facts.name, %error, "the VM's disks are not measured");
        }
        if let Some(reclaim) = &mut self.sources.reclaim
            && let Err(error) = reclaim.track(facts.id, &wanted.thread_groups)
        {
            self.metrics.reclaim_failures.inc();
            tracing::warn!(vm = %facts.id, name = facts.name, %error, "how the VM is held up for memory is not measured");
        }
        if let Some(exits) = &mut self.sources.exits
            && let Err(error) = exits.track(facts.id, &wanted.thread_groups)
        {
            self.metrics.exit_failures.inc();
            tracing::warn!(vm = %facts.id, name = facts.name, %error, "why the VM's vCPUs leave their guest is not measured");
        }
        match self.sources.cpu.track(facts.id, &wanted.thread_groups) {
            // Not tracked is tried again with the next inventory.
            Err(error) => {
                self.metrics.track_failures.inc();
                tracing::warn!(vm = %facts.id, name = facts.name, %error, "VM is not measured");
            }
            Ok(()) => {
                if let Some(vm) = self.vms.get_mut(&facts.id) {
                    vm.tracked = Some(wanted);
                }
            }
        }
    }

    fn untrack(&mut self, id: VmId) {
        if let Err(error) = self.sources.cpu.untrack(id) {
            tracing::warn!(vm = %id, %error, "the probe could not forget a VM");
        }
        if let Some(Err(error)) = self.sources.disks.as_mut().map(|disks| disks.untrack(id)) {
            tracing::warn!(vm = %id, %error, "the block probe could not forget a VM");
        }
        if let Some(Err(error)) = self.sources.reclaim.as_mut().map(|reclaim| reclaim.untrack(id)) {
            tracing::warn!(vm = %id, %error, "the memory probe could not forget a VM");
        }
        if let Some(Err(error)) = self.sources.exits.as_mut().map(|exits| exits.untrack(id)) {
            tracing::warn!(vm = %id, %error, "the exits probe could not forget a VM");
        }
    }

    fn drain(&mut self) -> Option<SchedReading> {
        let began = Instant::now();
        match self.sources.cpu.drain() {
            Ok(reading) => {
                self.metrics.drain_seconds.observe(began.elapsed().as_secs_f64());
                self.losses.threads_unmeasured = reading.threads_unmeasured;
                if std::mem::replace(&mut self.turn, reading.turn) != reading.turn {
                    self.vms.values_mut().for_each(|vm| vm.series.interrupt_sched());
                }
                Some(reading)
            }
            Err(error) => {
                self.metrics.drain_failures.inc();
                tracing::warn!(%error, "no scheduler reading in this interval");
                None
            }
        }
    }

    fn sample_vm(&mut self, facts: &VmFacts, mut reading: Option<&mut SchedReading>, clock: TickClock) {
        let Some(vm) = self.vms.get_mut(&facts.id) else { return };
        let causes = reading.as_mut().and_then(|reading| reading.culprits.remove(&facts.id));
        let sched = reading.and_then(|reading| Some((reading.taken_ns, *reading.vms.get(&facts.id)?)));
        let cgroup = facts.cgroup.as_ref().map(|cgroup| cgroup.read(clock.now_ns()));
        let cgroup = match cgroup.transpose() {
            Ok(reading) => reading,
            // A VM that ends takes its group with it; the next inventory will know.
            Err(error) if error.is_gone() => None,
            Err(error) => {
                self.metrics.cgroup_failures.inc();
                tracing::debug!(vm = %facts.id, %error, "control group not read");
                None
            }
        };
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
        self.config.live.publish(inventory.vms.iter().filter_map(load).collect());
    }

    fn sample_host(&mut self, clock: TickClock) {
        let now_ns = clock.now_ns();
        let cpu_ns = match self.machine.cpu_ns() {
            Ok(cpu_ns) => cpu_ns,
            Err(error) => {
                tracing::warn!(%error, "the host's CPU time cannot be read");
                return;
            }
        };
        let before = self.host_cpu.replace((now_ns, cpu_ns));
        match before.map(|before| interval::host(before, (now_ns, cpu_ns), &self.bounds)) {
            Some(Ok((cores, elapsed_s))) => {
                self.host_cores.add(cores, elapsed_s);
                self.metrics.host_cpu_cores.set(cores);
            }
            Some(Err(reason)) => reject(&mut self.losses, &self.metrics, reason),
            None => {}
        }
    }

    /// What changes rarely or costs more to read: once per window.
    fn read_slow_facts(&mut self) {
        match self.machine.cpus() {
            Ok(cpus) => self.bounds.cpus = cpus,
            Err(error) => tracing::warn!(%error, "the number of CPUs cannot be read"),
        }
        match self.machine.memory_available_bytes() {
            Ok(bytes) => self.memory_available_bytes = bytes,
            Err(error) => tracing::warn!(%error, "the host's free memory cannot be read"),
        }
    }

    fn close_window(&mut self, inventory: &Inventory, now: Now) -> bool {
        self.read_slow_facts();
        let (reclaim, exits) = (self.drain_reclaim(), self.drain_exits());
        let (window_s, tells_demand) = (self.grid.window_s(), self.sources.cpu.tells_demand());
        let mut report = HostReport {
            start: self.grid.window_start(),
            window_ms: self.grid.window_ms(),
            host_window: HostWindow {
                cpu_cores: std::mem::take(&mut self.host_cores).finish(),
                memory_available_bytes: self.memory_available_bytes,
                disk_rest: self.disk_rest.take_window(),
            },
            vms: Vec::with_capacity(inventory.vms.len()),
            inventory_complete: inventory.complete,
            losses: self.losses,
        };
        let mut drops = self.close_drops(inventory, now.monotonic_ns);
        for facts in &inventory.vms {
            let mut vm = self.vms.get_mut(&facts.id);
            let reclaim = reclaim.get(&facts.id).copied();
            let reading = memory::read(&self.config.proc, facts, reclaim, now.monotonic_ns);
            let memory = vm.as_mut().zip(reading).map(|(vm, reading)| {
                let memory = vm.memory.close(facts, reading, now.wall.unix_ms() / 1_000);
                self.metrics.vm_memory(&vm.label, &memory);
                memory
            });
            let interfaces = vm.as_mut().map_or_else(Vec::new, |vm| {
                let mut interfaces = vm.network.take_window();
                interfaces.iter_mut().for_each(|interface| interface.drops = drops.remove(&interface.device));
                self.metrics.vm_network(&vm.label, &interfaces);
                interfaces
            });
            let disk = vm.as_mut().and_then(|vm| {
                let disk = vm.close_disks(&self.config.proc, facts, now.monotonic_ns);
                self.metrics.vm_disk(&vm.label, disk.as_ref());
                disk
            });
            let exits = vm.as_mut().and_then(|vm| {
                let process = facts.process.as_ref().map(|process| (process.pid, process.start_ticks));
                let told = vm.exits.close(process, exits.get(&facts.id).copied(), now.monotonic_ns);
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
                    if tells_demand { window.finish(window_s) } else { window.finish_from_usage(window_s, facts.vcpus) }
                }),
                memory,
                interfaces,
                disk,
                exits,
                stood_down: self.config.stood_down.contains(facts.id),
            });
        }
        self.metrics.windows.inc();
        match self.out.try_send(report) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.losses.reports_dropped += 1;
                self.metrics.reports_unsent.inc();
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    fn forget_window(&mut self) {
        self.host_cores = Weighted::default();
        for vm in self.vms.values_mut() {
            vm.series.take_window();
            vm.network.take_window();
            vm.series.take_waits();
            vm.disk.take_window(disk::name);
        }
        self.disk_rest.take_window();
    }
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
