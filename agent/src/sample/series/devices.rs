//! What a tick tells of devices: network interfaces and disks.

use super::{HostSeries, ProcessIoSeries, Vm, reject};
use crate::host::inventory::{Inventory, VmFacts};
use crate::host::network::DeviceCounters;
use crate::reading::BlockReading;
use crate::sample::tick::WindowEnd;
use gnomon_common::wire::{DiskWindow, Dropped, VmState};
use std::collections::BTreeMap;

impl HostSeries {
    /// Takes in the counters of network devices.
    pub(super) fn observe_network(
        &mut self,
        inventory: &Inventory,
        counters: &BTreeMap<String, DeviceCounters>,
        taken_ns: u64,
    ) {
        for facts in &inventory.vms {
            let Some(vm) = self.vms.get_mut(&facts.id) else { continue };
            if facts.state != VmState::Running {
                // A paused VM is sent packets that it never sees, and that says nothing about what it wants.
                vm.network.interrupt();
                continue;
            }
            vm.network.observe(&facts.interfaces, counters, taken_ns);
        }
    }

    /// Why packets were dropped in the window that ends, by device of a VM that runs.
    pub(super) fn close_drops(&mut self, end: &WindowEnd, taken_ns: u64) -> BTreeMap<String, Vec<Dropped>> {
        let closed = self.drops.close(end.drops.as_ref(), taken_ns);
        if let Some(reading) = &end.drops {
            self.metrics.network_drops(closed.values().flatten(), self.grid.window_s(), reading.missed);
        }
        closed
    }

    /// Takes in a reading of the block probe; `None` while that is shed.
    pub(super) fn observe_disks(&mut self, inventory: &Inventory, reading: Option<&BlockReading>) {
        let Some(reading) = reading else {
            // When it comes back its counters begin anew.
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
        self.metrics.disks.missed(reading.requests_missed);
        if let Err(reason) = self.disk_rest.observe(reading, &self.bounds) {
            reject(&mut self.losses, &self.metrics, reason);
        }
    }
}

impl Vm {
    /// Ends the window of its disks; `None` where nothing was measured, or nothing could have been seen.
    pub(super) fn close_disks(&mut self, facts: &VmFacts, end: &WindowEnd, now_ns: u64) -> Option<DiskWindow> {
        let name = |disk| end.disk_names.get(&disk).cloned().unwrap_or_else(|| disk.to_string());
        let mut window = self.disk.take_window(name).filter(|_| !facts.disks_unseen)?;
        if let Some(process) = &facts.process {
            window.process = self.process_io.close(end.process_io.get(&facts.id).copied(), process.start_ticks);
        }
        window.guest = self.guest_disks.close(facts, now_ns);
        Some(window)
    }
}
