//! Where readings of reclaim come from.

use super::source::SourceError;
use crate::probe::MemoryProbe;
use crate::reading::ReclaimReading;
use gnomon_common::wire::VmId;

/// A source of reclaim readings: the eBPF probe, or a script in a test.
pub trait ReclaimSource {
    /// Counts what these thread groups reclaim for a VM from now on. Called again when the set changes.
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError>;

    /// Forgets a VM and its counters.
    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError>;

    /// The counters of all tracked VMs, now.
    fn drain(&mut self) -> Result<ReclaimReading, SourceError>;
}

impl ReclaimSource for MemoryProbe {
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        Ok(Self::track(self, vm, tgids)?)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        Ok(Self::untrack(self, vm)?)
    }

    fn drain(&mut self) -> Result<ReclaimReading, SourceError> {
        Ok(Self::drain(self)?)
    }
}
