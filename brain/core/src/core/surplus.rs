//! What VMs are given on top of their demand while that is out of the ordinary: how much, of which budget, until when.

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, VmId};

use super::Core;
use crate::anomaly::{Incident, Kind};
use crate::archive::Kpi;
use crate::fleet::Vm;
use crate::plan::size::{QUOTA_STEP_CORES, Sizing, Surplus, live_cores};

/// VMs that are given something on top at once: all of them are summed up for each.
const GIVEN_MAX: usize = 1000;

/// What is set aside for VMs, each on the host where it is, in cores.
#[derive(Clone, Debug, Default)]
pub(super) struct Surpluses {
    given: BTreeMap<VmId, (HostId, f64)>,
}

impl Surpluses {
    /// What the others have, on a host and in the fleet, in cores.
    fn of_others(&self, vm: VmId, host: &HostId) -> (f64, f64) {
        let others = self.given.iter().filter(|(other, _)| **other != vm);
        others.fold((0.0, 0.0), |(here, all), (_, (on, cores))| {
            (if on == host { here + cores } else { here }, all + cores)
        })
    }

    pub(super) fn end(&mut self, vm: VmId) {
        self.given.remove(&vm);
    }
}

impl Core {
    /// Notes an incident of a VM, where more on top may be due: it wants more CPU than it ever did.
    pub(super) fn note_incident(&mut self, now: Timestamp, id: VmId, kpi: Kpi, incident: &Incident) {
        let is_more = incident.kind != Kind::FlatLine && incident.observed > incident.expected.high;
        if let (Kpi::Cpu, true, Some(vm)) = (kpi, is_more, self.fleet.vms.get_mut(&id)) {
            vm.incident_at = Some(now);
        }
    }

    /// What a VM may be given on top at most, as far as the budget reaches: its own share of that included.
    pub(super) fn surplus_of(&self, now: Timestamp, id: VmId, vm: &Vm, host: &HostId) -> Option<Surplus> {
        let policy = &self.policy.anomaly;
        let until = vm.incident_at? + Duration::from_millis(policy.lasts_ms);
        let live = live_cores(&vm.cpu?, &vm.allocation);
        let (here, all) = self.surpluses.of_others(id, host);
        let room = (policy.host_cores_max - here).min(policy.fleet_cores_max - all);
        let cores = (live * self.policy.cpu.headroom * policy.surplus_share).min(room);
        let has_place = self.surpluses.given.contains_key(&id) || self.surpluses.given.len() < GIVEN_MAX;
        (now < until && has_place && cores >= QUOTA_STEP_CORES).then_some(Surplus { cores, until })
    }

    /// Sets aside what a VM is given on top, in place of what it was given before.
    pub(super) fn set_aside(&mut self, now: Timestamp, id: VmId, host: &HostId, sizing: &mut Sizing) {
        let surplus = self.fleet.vms.get(&id).and_then(|vm| self.surplus_of(now, id, vm, host));
        match surplus {
            Some(surplus) => drop(self.surpluses.given.insert(id, (host.clone(), surplus.cores))),
            None => self.surpluses.end(id),
        }
        sizing.surplus = surplus;
    }

    /// What is due to a VM on top, for `explain`.
    pub(super) fn surplus_in_words(&self, id: VmId, vm: &Vm, host: &HostId) -> Option<String> {
        let policy = &self.policy.anomaly;
        let until = vm.incident_at? + Duration::from_millis(policy.lasts_ms);
        if policy.surplus_share <= 0.0 || self.now >= until {
            return None;
        }
        Some(match self.surplus_of(self.now, id, vm, host) {
            Some(surplus) => format!(
                "It wants more CPU than it ever did: {:.2} cores are given on top of its live demand, until {until}.",
                surplus.cores
            ),
            None => "It wants more CPU than it ever did, but nothing is left of what policy gives on top: other VMs have it."
                .to_owned(),
        })
    }
}
