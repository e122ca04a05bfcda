//! Where readings of reclaim come from.

use crate::cost::Loadable;
use crate::probe::{MemoryProbe, ProbeError, ProgramCost};
use crate::reading::ReclaimReading;
use gnomon_common::wire::VmId;

impl Loadable for MemoryProbe {
    const NAME: &'static str = "memory";
    type Reading = ReclaimReading;

    fn load() -> Result<Self, ProbeError> {
        Self::load()
    }

    /// Control groups have no part in it: whoever reclaims is the running thread.
    fn track(&mut self, vm: VmId, tgids: &[u32], _cgroups: &[u64]) -> Result<(), ProbeError> {
        Self::track(self, vm, tgids)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        Self::untrack(self, vm)
    }

    fn drain(&mut self) -> Result<ReclaimReading, ProbeError> {
        Self::drain(self)
    }

    fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        Self::cost(self)
    }
}
