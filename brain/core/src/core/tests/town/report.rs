//! What the hosts of the small world tell of themselves.

use gnomon_common::wire::{Allocation, DiskFlow, DiskWindow, HostId, Load, PacerWindow, ShadowWindow, VmState};

use super::super::bench::{report_of, vm};
use super::{QUOTA_CORES, Town, WINDOW_S};
use crate::io::Input;

/// Requests to a disk that take so long.
fn requests(took_ms: f64) -> DiskWindow {
    let write = DiskFlow { operations_per_s: 20.0, device_ms: Some(took_ms), ..DiskFlow::default() };
    DiskWindow { write, ..DiskWindow::default() }
}

impl Town {
    pub(in crate::core::tests) fn report(&mut self, name: &HostId) {
        if !self.up[name] {
            return;
        }
        let here = self.productions.iter().filter(|(_, home)| *home == name);
        let demands: Vec<(u128, f64, f64)> = here
            .map(|(&number, _)| {
                let wants = self.demand.get(&number).copied().unwrap_or(0.5);
                (number, wants, wants)
            })
            .collect();
        let second = self.second.saturating_sub(WINDOW_S);
        let mut report = report_of(name.as_str(), second, &demands, Some(self.quota_cores));
        for window in &mut report.vms {
            let (vcpus, memory_bytes) = (self.definition.vcpus, self.definition.memory_bytes);
            window.allocation = Allocation { vcpus, vcpus_max: vcpus, memory_bytes, ..window.allocation };
            window.terms = self.terms.clone();
            let waits =
                self.waits.iter().find(|(number, _)| vm(**number) == window.vm).map_or(0.0, |(_, waits)| *waits);
            if let Some(cpu) = &mut window.cpu {
                cpu.demand_high.mean += waits;
            }
            let named = self.request_ms.iter().find(|(number, _)| vm(**number) == window.vm);
            window.disk = named.map(|(_, took_ms)| requests(*took_ms));
        }
        for ((_, id), there) in self.shadows.iter_mut().filter(|((on, _), _)| on == name) {
            let wanted = there.paced.unwrap_or_default();
            let quota_cores = there.size.map_or(QUOTA_CORES, |size| size.cpu_cores);
            let served = self.serves.get(name).copied().unwrap_or(1.0);
            let made = Load { cpu_cores: (wanted.cpu_cores * served).min(quota_cores), ..wanted };
            let ran = if wanted.cpu_cores > 0.0 { made.cpu_cores } else { 0.05 };
            let mut window = report_of(name.as_str(), second, &[(9, ran, ran)], Some(quota_cores)).vms.remove(0);
            if let Some(cpu) = window.cpu.as_mut().filter(|_| wanted.cpu_cores > quota_cores) {
                cpu.throttled.mean = 0.3;
            }
            window.disk = self.shadows_request_ms.get(name).map(|took_ms| requests(*took_ms));
            let pacer = there.runs.then_some(PacerWindow { wanted, made });
            window.vm = *id;
            window.state = if there.runs { VmState::Running } else { VmState::ShutOff };
            window.allocation.memory_bytes = there.memory_bytes;
            if there.paced.is_none() {
                // Its quota and its load are not read yet.
                (window.cpu, window.allocation.quota_cores, window.allocation.vcpus) = (None, None, 4);
            }
            window.shadow = Some(ShadowWindow { of: there.of, pacer: pacer.filter(|_| self.has_pacer) });
            if there.unread > 0 {
                there.unread -= 1;
                window.shadow = None;
            }
            report.vms.push(window);
        }
        self.reports.insert(name.clone(), report.clone());
        self.feed(Input::Report(Box::new(report)));
    }
}
