//! Reads everything once, and tells the probes which processes are VMs.

mod cost;
mod exits;
mod follow;
mod memory;

use super::super::SampleMetrics;
use super::super::drops::DropReading;
use super::super::grid::Now;
use super::super::queues::QueueReading;
use super::super::tick::{HostReading, Start, Tick, WindowEnd};
use super::{SamplerConfig, Sources};
use crate::host::cgroup::CgroupReading;
use crate::host::disk;
use crate::host::inventory::{Inventory, VmFacts};
use crate::host::machine::Machine;
use crate::host::network::{self, DeviceCounters};
use crate::host::process::ProcessIoReading;
use crate::reading::{BlockReading, DiskId, SchedReading};
use crate::sample::SourceError;
use follow::Told;
use gnomon_common::wire::{INTERFACES_MAX, VmId, VmState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

pub(super) struct Reader {
    config: SamplerConfig,
    inventory: watch::Receiver<Arc<Inventory>>,
    sources: Sources,
    metrics: SampleMetrics,
    machine: Machine,
    /// What the sources were told of each VM.
    told: BTreeMap<VmId, Told>,
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

impl Reader {
    pub(super) fn new(
        config: SamplerConfig,
        mut inventory: watch::Receiver<Arc<Inventory>>,
        sources: Sources,
        metrics: SampleMetrics,
    ) -> Self {
        inventory.mark_changed();
        let machine = Machine::new(config.proc.clone(), config.cgroup_root.clone());
        Self { config, inventory, sources, metrics, machine, told: BTreeMap::new() }
    }

    pub(super) fn start(&self, now: Now) -> Start {
        let SamplerConfig { sample_ms, window_ms, .. } = self.config;
        Start { now, sample_ms, window_ms, host: self.read_host() }
    }

    pub(super) fn read(&mut self, now: Now, ends_window: bool) -> Tick {
        let clock = TickClock { monotonic_ns: now.monotonic_ns, began: Instant::now() };
        let inventory_changed = self.inventory.has_changed().unwrap_or(false);
        let inventory = self.inventory.borrow_and_update().clone();
        self.metrics.inventory_age_seconds.set(inventory.taken.elapsed().as_secs_f64());
        if inventory_changed {
            self.follow(&inventory);
        }
        let sched = self.drain();
        let cgroups = inventory.vms.iter().filter_map(|facts| Some((facts.id, self.read_cgroup(facts, clock)?)));
        let cgroups = cgroups.collect();
        let network = self.read_network(&inventory, clock);
        let disks = self.drain_disks();
        let host_cpu = self.read_host_cpu(clock);
        let used = disks.as_ref().and_then(Option::as_ref);
        let window_end = ends_window.then(|| self.read_window_end(&inventory, used, now.monotonic_ns));
        Tick { now, inventory, inventory_changed, host_cpu, cgroups, network, disks, sched, window_end }
    }

    fn drain(&mut self) -> Option<SchedReading> {
        let began = Instant::now();
        match self.sources.cpu.drain() {
            Ok(reading) => {
                self.metrics.drain_seconds.observe(began.elapsed().as_secs_f64());
                Some(reading)
            }
            Err(error) => {
                self.metrics.drain_failures.inc();
                tracing::warn!(%error, "no scheduler reading in this interval");
                None
            }
        }
    }

    fn read_cgroup(&self, facts: &VmFacts, clock: TickClock) -> Option<CgroupReading> {
        match facts.cgroup.as_ref()?.read(clock.now_ns()) {
            Ok(reading) => Some(reading),
            // A VM that ends takes its group with it; the next inventory will know.
            Err(error) if error.is_gone() => None,
            Err(error) => {
                self.metrics.cgroup_failures.inc();
                tracing::debug!(vm = %facts.id, %error, "control group not read");
                None
            }
        }
    }

    /// The counters of all network devices at once, if any VM has one.
    fn read_network(&self, inventory: &Inventory, clock: TickClock) -> Option<(u64, BTreeMap<String, DeviceCounters>)> {
        if inventory.vms.iter().all(|facts| facts.interfaces.is_empty()) {
            return None;
        }
        match network::devices(&self.config.proc) {
            Ok(counters) => Some((clock.now_ns(), counters)),
            Err(error) => {
                self.metrics.network_failures.inc();
                tracing::debug!(%error, "network devices not read");
                None
            }
        }
    }

    fn drain_disks(&mut self) -> Option<Option<BlockReading>> {
        match self.sources.disks.as_mut()?.drain() {
            Ok(reading) => Some(reading),
            Err(error) => {
                self.metrics.disk_failures.inc();
                tracing::warn!(%error, "no block reading in this interval");
                None
            }
        }
    }

    fn read_host_cpu(&self, clock: TickClock) -> Option<(u64, u64)> {
        let now_ns = clock.now_ns();
        match self.machine.cpu_ns() {
            Ok(cpu_ns) => Some((now_ns, cpu_ns)),
            Err(error) => {
                tracing::warn!(%error, "the host's CPU time cannot be read");
                None
            }
        }
    }

    fn read_host(&self) -> HostReading {
        let cpus = self.machine.cpus().inspect_err(|error| tracing::warn!(%error, "the number of CPUs cannot be read"));
        let memory = self.machine.memory_available_bytes();
        let memory = memory.inspect_err(|error| tracing::warn!(%error, "the host's free memory cannot be read"));
        HostReading { cpus: cpus.ok(), memory_available_bytes: memory.ok() }
    }

    fn read_window_end(&mut self, inventory: &Inventory, disks: Option<&BlockReading>, taken_ns: u64) -> WindowEnd {
        let vms = || inventory.vms.iter();
        let devices = running_devices(inventory);
        let (mut stood_down, mut baselines) = (BTreeSet::new(), BTreeMap::new());
        for (vm, changed) in vms().filter_map(|facts| Some((facts.id, self.config.changed.get(facts.id)?))) {
            if changed.stood_down {
                stood_down.insert(vm);
            }
            baselines.insert(vm, changed.baselines);
        }
        WindowEnd {
            host: self.read_host(),
            tells_demand: self.sources.cpu.tells_demand(),
            stood_down,
            baselines,
            migrations: self.config.migrations.all(),
            pacers: self.config.pacers.windows(),
            storage: self.config.storage.all(),
            memory: self.read_memory(inventory, taken_ns),
            process_io: vms().filter_map(|facts| Some((facts.id, self.read_process_io(facts, taken_ns)?))).collect(),
            disk_names: disks.map(disk_names).unwrap_or_default(),
            exits: self.drain_exits(),
            drops: self.read_drops(&devices),
            queues: self.read_queues(&taps(inventory, &devices)),
            probes_shed: self.probes_shed(),
        }
    }

    /// Read only where there are disks to tell it beside, and if the VM's process is still the one the inventory knows.
    fn read_process_io(&self, facts: &VmFacts, taken_ns: u64) -> Option<ProcessIoReading> {
        self.sources.disks.as_ref()?;
        let process = facts.process.as_ref()?;
        let io = self.config.proc.io(process.pid, taken_ns).ok()?;
        // Read after it: if the pid belongs to another process by now, this tells.
        self.config.proc.stat(process.pid).ok().filter(|stat| stat.start_ticks == process.start_ticks)?;
        Some(io)
    }

    /// What was dropped on the devices of VMs that run; nothing is in it while the probe is shed.
    fn read_drops(&mut self, devices: &BTreeMap<String, u32>) -> Option<DropReading> {
        let read = self.sources.drops.as_mut()?.read(devices.clone());
        let read = read.map_err(|error| self.network_failed(&error, "why packets were dropped is")).ok()?;
        Some(read.unwrap_or_default())
    }

    /// How long packets waited at taps.
    fn read_queues(&mut self, devices: &BTreeMap<String, u32>) -> Option<QueueReading> {
        let read = self.sources.queues.as_mut()?.read(devices.clone());
        read.map_err(|error| self.network_failed(&error, "how long packets waited is")).ok().flatten()
    }

    fn network_failed(&self, error: &SourceError, what: &str) {
        self.metrics.network_failures.inc();
        tracing::warn!(%error, "{what} not known for this window");
    }
}

/// The devices of VMs that run, with their numbers. Devices are named anew at each window's end.
pub(super) fn running_devices(inventory: &Inventory) -> BTreeMap<String, u32> {
    let running = inventory.vms.iter().filter(|facts| facts.state == VmState::Running);
    let devices = running.flat_map(|facts| facts.interfaces.iter().take(INTERFACES_MAX));
    network::ifindexes(devices.map(|device| &device.name))
}

/// Those of them that have a queue from which their VM takes. A macvtap's VM takes from its file, which no program sees: what passes the device's
/// queue is what the VM sends.
pub(super) fn taps(inventory: &Inventory, devices: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let macvtaps = inventory.vms.iter().flat_map(|facts| &facts.interfaces).filter(|device| device.is_macvtap);
    let macvtaps: BTreeSet<&String> = macvtaps.map(|device| &device.name).collect();
    let taps = devices.iter().filter(|(name, _)| !macvtaps.contains(name));
    taps.map(|(name, &ifindex)| (name.clone(), ifindex)).collect()
}

fn disk_names(reading: &BlockReading) -> BTreeMap<DiskId, String> {
    let used: BTreeSet<DiskId> = reading.vms.values().flat_map(BTreeMap::keys).copied().collect();
    used.into_iter().map(|disk| (disk, disk::name(disk))).collect()
}
