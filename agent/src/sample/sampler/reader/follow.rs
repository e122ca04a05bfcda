//! Which processes are VMs, and what the sources are told of it.

use super::Reader;
use crate::host::inventory::{Inventory, VmFacts};
use gnomon_common::wire::VmId;

/// A VM that is refused again and again is tried with every so many inventories.
const PAUSE_MAX: u32 = 64;

/// What all sources were told of a VM, also those that refused it.
#[derive(Debug)]
pub(super) struct Told {
    who: Who,
    /// If any of them refused it, when last told.
    refused: Option<Refused>,
}

/// What a VM is to a source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Who {
    /// Id and start time.
    process: (u32, u64),
    thread_groups: Vec<u32>,
    block_groups: Vec<u64>,
}

/// When a VM is tried again: with the next inventory, then with the second, the fourth, ... after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    /// Of so many inventories.
    pause: u32,
    /// So many of them are still to come.
    left: u32,
}

impl Refused {
    fn after(last: Option<Self>) -> Self {
        let pause = last.map_or(1, |last| (last.pause * 2).min(PAUSE_MAX));
        Self { pause, left: pause }
    }

    /// Counts an inventory; says whether it is time.
    fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}

impl Reader {
    /// Tells the sources which processes are VMs now, and lets them forget those that are gone.
    pub(super) fn follow(&mut self, inventory: &Inventory) {
        let gone: Vec<VmId> = self.told.keys().copied().filter(|&id| inventory.vm(id).is_none()).collect();
        for id in gone {
            self.told.remove(&id);
            self.untrack(id);
        }
        for facts in &inventory.vms {
            self.follow_vm(facts);
        }
    }

    fn follow_vm(&mut self, facts: &VmFacts) {
        let who = facts.process.as_ref().map(|process| Who {
            process: (process.pid, process.start_ticks),
            thread_groups: process.thread_groups(),
            block_groups: facts.cgroup.as_ref().map(|cgroup| cgroup.block_ids().to_vec()).unwrap_or_default(),
        });
        let told = self.told.get_mut(&facts.id);
        let is_known = told.as_ref().map(|told| &told.who) == who.as_ref();
        if is_known && told.and_then(|told| told.refused.as_mut()).is_none_or(|refused| !refused.is_due()) {
            return;
        }
        let before = self.told.remove(&facts.id);
        let same_process = matches!((&before, &who), (Some(before), Some(now)) if before.who.process == now.process);
        if before.is_some() && !same_process {
            self.untrack(facts.id);
        }
        let Some(who) = who else { return };
        let refused = (!self.track(facts, &who)).then(|| {
            let last = before.filter(|_| is_known).and_then(|before| before.refused);
            Refused::after(last)
        });
        self.told.insert(facts.id, Told { who, refused });
    }

    /// Tells all sources of a VM; says whether all of them took it. To those that have it already it is no news.
    fn track(&mut self, facts: &VmFacts, who: &Who) -> bool {
        let (id, name) = (facts.id, &facts.name);
        let mut all = true;
        if let Some(disks) = &mut self.sources.disks
            && let Err(error) = disks.track(id, &who.thread_groups, &who.block_groups)
        {
            all = false;
            self.metrics.disk_failures.inc();
            tracing::warn!(vm = %id, name, %error, "the VM's disks are not measured");
        }
        if let Some(reclaim) = &mut self.sources.reclaim
            && let Err(error) = reclaim.track(id, &who.thread_groups, &who.block_groups)
        {
            all = false;
            self.metrics.reclaim_failures.inc();
            tracing::warn!(vm = %id, name, %error, "how the VM is held up for memory is not measured");
        }
        if let Some(exits) = &mut self.sources.exits
            && let Err(error) = exits.track(id, &who.thread_groups, &who.block_groups)
        {
            all = false;
            self.metrics.exit_failures.inc();
            tracing::warn!(vm = %id, name, %error, "why the VM's vCPUs leave their guest is not measured");
        }
        if let Err(error) = self.sources.cpu.track(id, &who.thread_groups) {
            all = false;
            self.metrics.track_failures.inc();
            tracing::warn!(vm = %id, name, %error, "VM is not measured");
        }
        all
    }

    fn untrack(&mut self, id: VmId) {
        if let Err(error) = self.sources.cpu.untrack(id) {
            tracing::warn!(vm = %id, %error, "the probe could not forget a VM");
        }
        if let Some(Err(error)) = self.sources.disks.as_mut().map(|disks| disks.untrack(id)) {
            tracing::warn!(vm = %id, %error, "the block probe could not forget a VM");
        }
        if let Some(Err(error)) = self.sources.reclaim.as_mut().map(|reclaim| reclaim.untrack(id)) {
            tracing::warn!(vm = %id, %error, "the memory probe could not forget a VM");
        }
        if let Some(Err(error)) = self.sources.exits.as_mut().map(|exits| exits.untrack(id)) {
            tracing::warn!(vm = %id, %error, "the exits probe could not forget a VM");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_refused_is_tried_again_ever_less_often_and_for_ever() {
        let mut refused = Refused::after(None);
        let mut tried = Vec::new();
        for inventory in 1..=300 {
            if refused.is_due() {
                tried.push(inventory);
                refused = Refused::after(Some(refused));
            }
        }
        assert_eq!(tried, [1, 3, 7, 15, 31, 63, 127, 191, 255]);
    }
}
