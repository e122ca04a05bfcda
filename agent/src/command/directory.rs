//! Finds a command's VM in the last inventory.

use super::clock::{Clock, wall_clock};
use super::judge::{MemoryResources, Resources, Sighting};
use super::ledger::VmLife;
use super::{Known, VmDirectory};
use crate::host::inventory::{Inventory, VmFacts};
use crate::host::machine::Machine;
use crate::host::process::Proc;
use gnomon_common::wire::{VmId, VmState, VmTerms};
use std::sync::Arc;
use tokio::sync::watch;
use uuid::Uuid;

/// The inventory's VMs, each with its present life.
#[derive(Clone, Debug)]
pub struct InventoryDirectory {
    inventory: watch::Receiver<Arc<Inventory>>,
    boot: Uuid,
    proc: Proc,
    machine: Machine,
}

impl InventoryDirectory {
    /// Looks VMs up in this inventory, and at their processes in the host's `/proc`.
    pub fn new(inventory: watch::Receiver<Arc<Inventory>>, clock: Clock) -> Self {
        Self { inventory, boot: clock.boot(), proc: Proc::default(), machine: Machine::default() }
    }

    /// The VM's life, unless its process has ended since the survey: then a new one may have begun already.
    fn life(&self, facts: &VmFacts) -> Option<VmLife> {
        let process = facts.process.as_ref()?;
        let start_ticks = self.proc.stat(process.pid).ok()?.start_ticks;
        let life = VmLife { boot: self.boot, pid: process.pid, start_ticks };
        (start_ticks == process.start_ticks).then_some(life)
    }
}

impl VmDirectory for InventoryDirectory {
    fn find(&self, vm: VmId) -> Known {
        let inventory = self.inventory.borrow();
        let facts = inventory.vm(vm);
        let sighting = match facts {
            Some(facts) if matches!(facts.state, VmState::ShutOff | VmState::Crashed | VmState::Arriving) => {
                Sighting::Absent
            }
            Some(facts) => Sighting::Active { vcpus: facts.vcpus },
            None if inventory.complete => Sighting::Absent,
            None => Sighting::Unknown,
        };
        let name = facts.map(|facts| facts.name.clone());
        Known { sighting, name, life: facts.and_then(|facts| self.life(facts)) }
    }

    fn resources(&self, vm: VmId) -> Resources {
        let inventory = Arc::clone(&self.inventory.borrow());
        let Some(facts) = inventory.vm(vm) else { return Resources::default() };
        // A host that does not tell what it has gives nothing.
        let host_available_bytes = self.machine.memory_available_bytes().unwrap_or(0);
        Resources {
            vcpus_max: facts.vcpus_max,
            memory: memory(facts, host_available_bytes, wall_clock().unix_ms() / 1_000),
        }
    }

    fn keepsakes(&self) -> Vec<(VmId, String)> {
        let inventory = self.inventory.borrow();
        let here = inventory.vms.iter().filter(|facts| facts.state == VmState::Running);
        here.filter_map(|facts| Some((facts.id, facts.keepsake.clone()?))).collect()
    }

    fn terms(&self, vm: VmId) -> Option<VmTerms> {
        self.inventory.borrow().vm(vm)?.terms.clone()
    }
}

/// What is known of a VM's memory at `now_unix_s`; stale statistics are not.
fn memory(facts: &VmFacts, host_available_bytes: u64, now_unix_s: u64) -> MemoryResources {
    let in_use = facts.memory.in_use.filter(|in_use| in_use.is_fresh(now_unix_s));
    MemoryResources {
        balloon: facts.memory.balloon,
        max_bytes: facts.memory_bytes,
        in_use_bytes: in_use.map(|in_use| in_use.bytes),
        host_available_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::memory::{Balloon, InUse, MemoryFacts};
    use crate::host::process::QemuProcess;
    use std::time::Instant;

    fn facts(id: u128, state: VmState) -> VmFacts {
        VmFacts {
            id: VmId(Uuid::from_u128(id)),
            name: format!("vm{id}"),
            state,
            process: None,
            cgroup: None,
            vcpus: 2,
            vcpus_max: 2,
            memory_bytes: 0,
            balloon_bytes: None,
            memory: MemoryFacts::default(),
            interfaces: Vec::new(),
            disks_unseen: false,
            guest_disks: None,
            terms: None,
            keepsake: None,
            shadow_of: None,
            execution_changes: 0,
        }
    }

    #[test]
    fn a_vm_is_absent_only_when_a_complete_inventory_says_so() {
        let vms = vec![facts(1, VmState::Running), facts(2, VmState::Paused), facts(3, VmState::ShutOff)];
        let inventory = Inventory { vms, complete: true, taken: Instant::now(), hypervisor: String::new() };
        let (publish, receiver) = watch::channel(Arc::new(inventory.clone()));
        let directory = InventoryDirectory::new(receiver, Clock::new().unwrap());
        let seen = |id| directory.find(VmId(Uuid::from_u128(id))).sighting;
        assert_eq!(
            [1, 2, 3, 4].map(seen),
            [Sighting::Active { vcpus: 2 }, Sighting::Active { vcpus: 2 }, Sighting::Absent, Sighting::Absent]
        );
        publish.send_replace(Arc::new(Inventory { complete: false, ..inventory }));
        assert_eq!([1, 4].map(seen), [Sighting::Active { vcpus: 2 }, Sighting::Unknown]);
    }

    #[test]
    fn what_a_guest_used_long_ago_is_not_what_it_uses() {
        let in_use = Some(InUse { updated_unix_s: 1_000, stale_after_s: 15, bytes: 7 });
        let known = MemoryFacts { balloon: Balloon::Movable { bytes: 9 }, in_use, guest: None };
        let facts = VmFacts { memory: known, memory_bytes: 11, ..facts(1, VmState::Running) };
        let fresh = memory(&facts, 3, 1_015);
        assert_eq!((fresh.in_use_bytes, fresh.max_bytes, fresh.host_available_bytes), (Some(7), 11, 3));
        let stale = memory(&facts, 3, 1_016);
        assert_eq!((stale.in_use_bytes, stale.balloon), (None, Balloon::Movable { bytes: 9 }));
    }

    #[test]
    fn a_life_is_told_only_while_its_process_runs() {
        let pid = std::process::id();
        let start_ticks = Proc::default().stat(pid).unwrap().start_ticks;
        let life_of = |start_ticks| {
            let process = Some(QemuProcess { pid, start_ticks, threads: Vec::new(), vhost_pids: Vec::new() });
            let vms = vec![VmFacts { process, ..facts(1, VmState::Running) }];
            let inventory = Inventory { vms, complete: true, taken: Instant::now(), hypervisor: String::new() };
            let clock = Clock::new().unwrap();
            let directory = InventoryDirectory::new(watch::channel(Arc::new(inventory)).1, clock);
            directory
                .find(VmId(Uuid::from_u128(1)))
                .life
                .map(|life| (life.boot == clock.boot(), life.pid, life.start_ticks))
        };
        assert_eq!(life_of(start_ticks), Some((true, pid, start_ticks)));
        assert_eq!(life_of(start_ticks.wrapping_sub(1)), None, "a process that had this id before");
    }
}
