//! The memory of a guest: what it wants by its schedule, and what its balloon leaves to it.

use gnomon_common::wire::{GuestMemory, MemoryDemand, MemoryWindow};

use crate::scenario::MemorySpec;

/// A VM's memory, with a balloon that moves at once.
#[derive(Clone, Debug)]
pub(crate) struct SimMemory {
    pub(crate) spec: MemorySpec,
    pub(crate) balloon_bytes: u64,
    /// The latest second.
    pub(crate) demand_bytes: u64,
}

impl SimMemory {
    /// A guest shows no more than it has; what it lacks it reads back from swap.
    pub(crate) fn window(&self) -> MemoryWindow {
        let used = self.demand_bytes.min(self.balloon_bytes);
        let lacking = (self.demand_bytes - used) as f64;
        let guest = GuestMemory {
            total_bytes: self.balloon_bytes,
            unused_bytes: self.balloon_bytes - used,
            usable_bytes: Some(self.balloon_bytes - used),
            swap_in_bytes_per_s: lacking / 10.0,
            ..GuestMemory::default()
        };
        MemoryWindow {
            resident_bytes: used,
            balloon_bytes: Some(self.balloon_bytes),
            guest: Some(guest),
            demand: Some(MemoryDemand::known(used)),
            ..MemoryWindow::default()
        }
    }
}
