//! What a tick does about the cost of measuring.

use super::Sampler;
use crate::cost::Costed;

impl Sampler {
    /// Keeps the sources within the budget. Their order here is the order in which they are given up: drops, disks, and CPU at last, without which there
    /// is no demand.
    pub(super) fn control_cost(&mut self) {
        let Some((_, host_ns)) = self.host_cpu else { return };
        let drops = self.drops.as_mut().map(|drops| drops as &mut dyn Costed);
        let disks = self.disks.as_mut().map(|disks| disks.as_mut() as &mut dyn Costed);
        let cpu = self.probe.as_mut() as &mut dyn Costed;
        let mut sources: Vec<&mut dyn Costed> = drops.into_iter().chain(disks).chain([cpu]).collect();
        self.cost.tick(&mut sources, host_ns);
    }
}
