//! What a tick reads of devices: network interfaces and disks.

use super::{Sampler, TickClock, Vm, reject};
use crate::host::disk;
use crate::host::inventory::{Inventory, VmFacts};
use crate::host::network;
use crate::host::process::Proc;
use crate::reading::BlockReading;
use gnomon_common::wire::{DiskWindow, VmState};

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

    /// Drains the block probe, where there is one.
    pub(super) fn sample_disks(&mut self, inventory: &Inventory) {
        let Some(reading) = self.drain_disks() else { return };
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

    fn drain_disks(&mut self) -> Option<BlockReading> {
        match self.probes.disks.as_mut()?.drain() {
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
