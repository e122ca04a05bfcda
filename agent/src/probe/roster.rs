//! Which VM has which slot and which processes: pure book-keeping.

use gnomon_common::abi::sched::VM_SLOTS_MAX;
use gnomon_common::wire::VmId;
use std::collections::{BTreeMap, BTreeSet};

/// The VMs under measurement.
#[derive(Debug)]
pub(super) struct Roster {
    vms: BTreeMap<VmId, Tracked>,
    free: Vec<u32>,
    /// Slots of VMs no longer tracked, until the last of their threads' accounts is closed.
    closing: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
struct Tracked {
    slot: u32,
    tgids: BTreeSet<u32>,
}

/// What has to change in the kernel for a VM to be tracked with its present processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The VM's slot.
    pub slot: u32,
    /// Processes to add.
    pub added: BTreeSet<u32>,
    /// Processes to take out.
    pub removed: BTreeSet<u32>,
}

impl Change {
    /// Whether everything is as it should be already.
    pub(super) fn is_nothing(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

impl Roster {
    /// All slots free.
    pub(super) fn new() -> Self {
        Self { vms: BTreeMap::new(), free: (0..VM_SLOTS_MAX as u32).rev().collect(), closing: BTreeSet::new() }
    }

    /// What is to be done so that `vm` is tracked with exactly `tgids`; `None` if there is no slot left. Changes nothing.
    pub(super) fn plan(&self, vm: VmId, tgids: &[u32]) -> Option<Change> {
        let wanted: BTreeSet<u32> = tgids.iter().copied().collect();
        let Some(tracked) = self.vms.get(&vm) else {
            return Some(Change { slot: *self.free.last()?, added: wanted, removed: BTreeSet::new() });
        };
        let added = wanted.difference(&tracked.tgids).copied().collect();
        let removed = tracked.tgids.difference(&wanted).copied().collect();
        Some(Change { slot: tracked.slot, added, removed })
    }

    /// Notes that a plan was carried out.
    pub(super) fn commit(&mut self, vm: VmId, change: &Change) {
        let tracked = self.vms.entry(vm).or_insert_with(|| {
            self.free.retain(|&slot| slot != change.slot);
            Tracked { slot: change.slot, tgids: BTreeSet::new() }
        });
        tracked.tgids.extend(&change.added);
        tracked.tgids.retain(|tgid| !change.removed.contains(tgid));
    }

    /// Whether `vm` is tracked.
    pub(super) fn contains(&self, vm: VmId) -> bool {
        self.vms.contains_key(&vm)
    }

    /// Drops a VM; returns its processes, which are to be taken out.
    pub(super) fn remove(&mut self, vm: VmId) -> BTreeSet<u32> {
        let Some(tracked) = self.vms.remove(&vm) else {
            return BTreeSet::new();
        };
        self.closing.insert(tracked.slot);
        tracked.tgids
    }

    /// Frees the closing slots for which `is_closed` says so.
    pub(super) fn free_slots(&mut self, mut is_closed: impl FnMut(u32) -> bool) {
        let closed: Vec<u32> = self.closing.iter().copied().filter(|&slot| is_closed(slot)).collect();
        for slot in closed {
            self.closing.remove(&slot);
            self.free.push(slot);
        }
    }

    /// Every VM with its slot.
    pub(super) fn slots(&self) -> impl Iterator<Item = (VmId, u32)> {
        self.vms.iter().map(|(&vm, tracked)| (vm, tracked.slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn vm(number: u128) -> VmId {
        VmId(Uuid::from_u128(number))
    }

    fn track(roster: &mut Roster, vm: VmId, tgids: &[u32]) -> Change {
        let change = roster.plan(vm, tgids).unwrap();
        roster.commit(vm, &change);
        change
    }

    #[test]
    fn tracking_the_same_processes_again_changes_nothing() {
        let mut roster = Roster::new();
        track(&mut roster, vm(1), &[10, 11]);
        assert!(roster.plan(vm(1), &[11, 10, 10]).unwrap().is_nothing());
    }

    #[test]
    fn changed_processes_keep_the_slot() {
        let mut roster = Roster::new();
        let first = track(&mut roster, vm(1), &[10, 11]);
        let second = track(&mut roster, vm(1), &[11, 12]);
        assert_eq!(second, Change { slot: first.slot, added: [12].into(), removed: [10].into() });
        assert_eq!(roster.remove(vm(1)), [11, 12].into());
    }

    #[test]
    fn a_slot_is_given_to_another_vm_only_after_it_is_closed() {
        let mut roster = Roster::new();
        let slots: BTreeSet<u32> =
            (0..VM_SLOTS_MAX as u32).map(|n| track(&mut roster, vm(n.into()), &[n]).slot).collect();
        assert_eq!(slots.len(), VM_SLOTS_MAX);
        roster.remove(vm(5));
        assert_eq!(roster.plan(vm(9_999), &[1]), None);
        roster.free_slots(|_| false);
        assert_eq!(roster.plan(vm(9_999), &[1]), None);
        roster.free_slots(|_| true);
        assert!(roster.plan(vm(9_999), &[1]).is_some());
    }
}
