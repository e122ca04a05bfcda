//! Memory that hosts have to spare for balloons that grow.

use std::collections::BTreeSet;

use gnomon_common::wire::{Action, HostId, Setting, VmId, VmState};

use super::Core;
use crate::fleet::Vm;

impl Core {
    /// What the balloons of a host may grow by together, in bytes: what it has, less what its VMs have or are about to get, and what those
    /// that come to it are defined with.
    pub(super) fn spare_bytes(&self, host: &HostId) -> u64 {
        let Some(entry) = self.fleet.hosts.get(host) else { return 0 };
        let known = |id: &VmId| self.fleet.vms.get(id);
        let there = entry.vms.iter().filter_map(known).map(bears_bytes);
        let coming: BTreeSet<&VmId> = entry.arriving.iter().chain(self.sent_to(host)).collect();
        let coming = coming.into_iter().filter(|id| !entry.vms.contains(id)).filter_map(known);
        let coming = coming.map(|vm| vm.allocation.memory_bytes);
        // What guests tell of themselves may be anything.
        entry.facts.memory_bytes.saturating_sub(there.chain(coming).fold(0, u64::saturating_add))
    }
}

/// The memory that a VM has, or will have by the command that is on its way to it, where that is more.
fn bears_bytes(vm: &Vm) -> u64 {
    if matches!(vm.state, VmState::ShutOff | VmState::Crashed | VmState::Arriving) {
        return 0;
    }
    let asked = vm.flight.as_ref().and_then(|flight| match flight.record.command.action {
        Action::Set(Setting::Memory { bytes }) => Some(bytes),
        _ => None,
    });
    vm.has_bytes().max(asked.unwrap_or(0))
}
