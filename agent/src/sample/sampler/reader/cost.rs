//! What a tick does about the cost of measuring.

use super::Reader;
use crate::cost::Costed;

impl Reader {
    /// What is given up to stay within the budget: names of sources, in the order in which they go.
    pub(in super::super) fn probes_shed(&self) -> Vec<String> {
        self.sources.cost.shed().map(str::to_owned).collect()
    }

    /// Keeps the sources within the budget, by what CPU time the host has used. Their order here is the order in which they are given up: CPU
    /// at last, without which there is no demand.
    pub(in super::super) fn control_cost(&mut self, host_ns: u64) {
        let exits = self.sources.exits.as_mut().map(|exits| exits.as_mut() as &mut dyn Costed);
        let queues = self.sources.queues.as_mut().map(|queues| queues.as_mut() as &mut dyn Costed);
        let drops = self.sources.drops.as_mut().map(|drops| drops.as_mut() as &mut dyn Costed);
        let reclaim = self.sources.reclaim.as_mut().map(|reclaim| reclaim.as_mut() as &mut dyn Costed);
        let disks = self.sources.disks.as_mut().map(|disks| disks.as_mut() as &mut dyn Costed);
        let cpu = self.sources.cpu.as_mut() as &mut dyn Costed;
        let shed_first = queues.into_iter().chain(exits).chain(drops).chain(reclaim).chain(disks);
        let mut sources: Vec<&mut dyn Costed> = shed_first.chain([cpu]).collect();
        self.sources.cost.tick(&mut sources, host_ns);
    }
}
