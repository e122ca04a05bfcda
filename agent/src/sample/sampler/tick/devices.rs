//! What a tick reads of devices: network interfaces and disks.

use super::{ProcessIoSeries, Sampler, TickClock, Vm, reject};
use crate::host::disk;
use crate::host::inventory::{Inventory, VmFacts};
use crate::host::network;
use crate::host::process::Proc;
use crate::reading::BlockReading;
use gnomon_common::wire::{DiskWindow, Dropped, INTERFACES_MAX, VmState};
use std::collections::BTreeMap;

impl Sampler {
    /// Reads the counters of all network devices at once, if any VM has one.
    pub(super) fn sample_network(&mut self, inventory: &Inventory, clock: TickClock) {
        if inventory.vms.iter().all(|facts| facts.interfaces.is_empty()) {
            return;
        }
        let counters = match network::devices(&self.config.proc) {
            Ok(counters) => counters,
            Err(error) => {
                self.metrics.network_failures.inc();
                tracing::debug!(%error, "network devices not read");
                return;
            }
        };
        let taken_ns = clock.now_ns();
        for facts in &inventory.vms {
            let Some(vm) = self.vms.get_mut(&facts.id) else { continue };
            if facts.state != VmState::Running {
                // A paused VM is sent packets that it never sees, and that says nothing about what it wants.
                vm.network.interrupt();
                continue;
            }
            vm.network.observe(&facts.interfaces, &counters, taken_ns);
        }
    }

    /// Why packets were dropped in the window that ends, by device of a VM that runs. Devices are named anew at each window's end.
    pub(super) fn close_drops(&mut self, inventory: &Inventory, taken_ns: u64) -> BTreeMap<String, Vec<Dropped>> {
        let Some(drops) = &mut self.sources.drops else { return BTreeMap::new() };
        let running = inventory.vms.iter().filter(|facts| facts.state == VmState::Running);
        let devices = running.flat_map(|facts| facts.interfaces.iter().take(INTERFACES_MAX));
        let closed = drops.close(network::ifindexes(devices), taken_ns);
        match closed.and_then(|closed| Ok((closed, drops.missed()?))) {
            Ok((closed, missed)) => {
                self.metrics.network_drops(closed.values().flatten(), self.grid.window_s(), missed);
                closed
            }
            Err(error) => {
                self.metrics.network_failures.inc();
                tracing::warn!(%error, "why packets were dropped is not known for this window");
                BTreeMap::new()
            }
        }
    }

    /// Drains the block probe, where there is one.
    pub(super) fn sample_disks(&mut self, inventory: &Inventory) {
        let Some(reading) = self.drain_disks() else { return };
        let Some(reading) = reading else {
            // The probe is shed: when it comes back its counters begin anew.
            for vm in self.vms.values_mut() {
                vm.disk.interrupt();
                vm.process_io = ProcessIoSeries::default();
            }
            self.disk_rest.interrupt();
            return;
        };
        for facts in &inventory.vms {
            let Some(vm) = self.vms.get_mut(&facts.id) else { continue };
            match reading.vms.get(&facts.id).filter(|_| facts.state == VmState::Running) {
                Some(counters) => {
                    if let Err(reason) = vm.disk.observe(reading.taken_ns, counters, &self.bounds) {
                        reject(&mut self.losses, &self.metrics, reason);
                    }
                }
                None => vm.disk.interrupt(),
            }
        }
        if let Err(reason) = self.disk_rest.observe(&reading, &self.bounds) {
            reject(&mut self.losses, &self.metrics, reason);
        }
    }

    /// A reading; nothing in it while the probe is shed, and none at all where there is no probe or it fails.
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
}

impl Vm {
    /// Ends the window of its disks. What the process was charged with is read only where there is a window to tell it beside.
    pub(super) fn close_disks(&mut self, proc: &Proc, facts: &VmFacts, taken_ns: u64) -> Option<DiskWindow> {
        let mut window = self.disk.take_window(disk::name)?;
        if let Some(process) = &facts.process {
            window.process = self.process_io.close(proc.io(process.pid, taken_ns).ok(), process.start_ticks);
        }
        Some(window)
    }
}
