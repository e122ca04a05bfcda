//! Finds a command's VM in the last inventory.

use super::VmDirectory;
use super::judge::Sighting;
use crate::host::inventory::Inventory;
use gnomon_common::wire::{VmId, VmState};
use std::sync::Arc;
use tokio::sync::watch;

impl VmDirectory for watch::Receiver<Arc<Inventory>> {
    fn find(&self, vm: VmId) -> (Sighting, Option<String>) {
        let inventory = self.borrow();
        match inventory.vm(vm) {
            Some(facts) if matches!(facts.state, VmState::ShutOff | VmState::Crashed) => {
                (Sighting::Absent, Some(facts.name.clone()))
            }
            Some(facts) => (Sighting::Active { vcpus: facts.vcpus }, Some(facts.name.clone())),
            None if inventory.complete => (Sighting::Absent, None),
            None => (Sighting::Unknown, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::VmFacts;
    use std::time::Instant;
    use uuid::Uuid;

    fn facts(id: u128, state: VmState) -> VmFacts {
        VmFacts {
            id: VmId(Uuid::from_u128(id)),
            name: format!("vm{id}"),
            state,
            process: None,
            cgroup: None,
            vcpus: 2,
            memory_bytes: 0,
            balloon_bytes: None,
            execution_changes: 0,
        }
    }

    #[test]
    fn a_vm_is_absent_only_when_a_complete_inventory_says_so() {
        let vms = vec![facts(1, VmState::Running), facts(2, VmState::Paused), facts(3, VmState::ShutOff)];
        let inventory = Inventory { vms, complete: true, taken: Instant::now(), hypervisor: String::new() };
        let (publish, directory) = watch::channel(Arc::new(inventory.clone()));
        let seen = |id| directory.find(VmId(Uuid::from_u128(id))).0;
        assert_eq!(
            [1, 2, 3, 4].map(seen),
            [Sighting::Active { vcpus: 2 }, Sighting::Active { vcpus: 2 }, Sighting::Absent, Sighting::Absent]
        );
        publish.send_replace(Arc::new(Inventory { complete: false, ..inventory }));
        assert_eq!([1, 4].map(seen), [Sighting::Active { vcpus: 2 }, Sighting::Unknown]);
    }
}
