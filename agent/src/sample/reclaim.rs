//! Where readings of reclaim come from.

use super::source::SourceError;
use crate::cost::{Costed, Loadable, Standby};
use crate::probe::{MemoryProbe, ProbeError, ProgramCost};
use crate::reading::ReclaimReading;
use gnomon_common::wire::VmId;

/// A source of reclaim readings: the eBPF probe, or a script in a test.
pub trait ReclaimSource: Costed {
    /// Counts what these thread groups reclaim for a VM from now on. Called again when the set changes.
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError>;

    /// Forgets a VM and its counters.
    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError>;

    /// The counters of all tracked VMs, now; `None` while the source is shed. Those after that begin anew.
    fn drain(&mut self) -> Result<Option<ReclaimReading>, SourceError>;
}

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

impl ReclaimSource for Standby<MemoryProbe> {
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        Ok(Self::track(self, vm, tgids, &[])?)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        Ok(Self::untrack(self, vm)?)
    }

    fn drain(&mut self) -> Result<Option<ReclaimReading>, SourceError> {
        Ok(Self::drain(self)?)
    }
}
