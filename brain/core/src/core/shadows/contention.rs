//! How much VMs of both kinds wait on hosts: heard, weighed and kept. [`crate::plan::contention`] says how it is judged.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, Report, VmId, VmState};

use super::Core;
use super::response::KEPT_EVERY;
use crate::fleet::Host;
use crate::io::{Lesson, Record};
use crate::plan::contention::{Calibrations, Waits};

impl Core {
    /// What VMs of both kinds waited for their host's CPUs and disks.
    pub(super) fn learn_contention(&mut self, now: Timestamp, report: &Report) {
        let (mut productions, mut shadows) = (Waits::default(), Waits::default());
        for window in report.vms.iter().filter(|window| window.state == VmState::Running) {
            let waits = if window.shadow.is_some() { &mut shadows } else { &mut productions };
            if let Some(cpu) = &window.cpu {
                waits.add_cpu(cpu);
            }
            if let Some(disk) = &window.disk {
                waits.add_disks(disk, self.disk_limit_bytes_per_s(window.vm));
            }
        }
        let Some(host) = self.fleet.hosts.get_mut(&report.host) else { return };
        let is_taught = host.contention.learn(now, productions, shadows, &mut self.shadows.calibrations);
        if is_taught && now.since(self.shadows.contention_kept) >= KEPT_EVERY {
            self.keep_contention(now);
        }
    }

    /// What a VM may read and write on one of its disks at most, in bytes per second: known of shadows and of those that have one.
    fn disk_limit_bytes_per_s(&self, vm: VmId) -> Option<u64> {
        let shadow = &self.shadows.kept.get(&self.shadows.id_of(vm))?.shadow;
        match shadow.id == vm {
            true => shadow.size?.disk_bytes_per_s,
            false => shadow.blueprint.as_ref()?.disk_bytes_per_s_max,
        }
    }

    /// How much waiting speaks against a host, for a VM or a shadow that looks for one.
    pub(in crate::core) fn contention_of(&self, now: Timestamp, host: &Host) -> f64 {
        host.contention.against(now, &self.shadows.calibrations)
    }

    /// Keeps what a restart has to know of hosts by shadows' word.
    pub(super) fn keep_contention(&mut self, now: Timestamp) {
        self.shadows.contention_kept = now;
        let starved = self.shadows.starved.iter().map(|(host, until)| (host.clone(), *until)).collect();
        let lesson = Lesson::Contention { calibrations: self.shadows.calibrations, starved };
        self.persist(Record::Lesson { lesson, at: now });
    }

    pub(in crate::core) fn restore_contention(
        &mut self,
        calibrations: Calibrations,
        starved: Vec<(HostId, Timestamp)>,
    ) {
        self.shadows.calibrations = calibrations;
        self.shadows.starved = starved.into_iter().collect();
    }
}
