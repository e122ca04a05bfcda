//! What the sampler needs of its sources.

use crate::cost::{Costed, Loadable, Standby};
use crate::host::kernel_file::ReadError;
use crate::probe::{ProbeError, ProgramCost, Scheduler};
use crate::reading::SchedReading;
use gnomon_common::wire::VmId;
use std::error::Error;

/// A source of scheduler readings: the eBPF probe, what stands in for it ([`crate::cpu_source`]), or a script in a test.
pub trait SchedSource: Costed {
    /// Whether it tells what VMs ran and waited. Where not, windows are made of what their control groups were charged with, and
    /// demand above that is unknown.
    fn tells_demand(&self) -> bool {
        true
    }

    /// Counts the threads of these thread groups for a VM from now on. Called again when the set changes; the new set
    /// replaces the old one, and what was counted stays.
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError>;

    /// Forgets a VM and its counters.
    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError>;

    /// The counters of all tracked VMs, now.
    fn drain(&mut self) -> Result<SchedReading, SourceError>;
}

/// A source that counts by VM and can be given up: an eBPF probe, or a script in a test.
pub trait VmSource<R>: Costed {
    /// Counts what these thread groups do, or what is charged to these control groups, for a VM from now on. Called again when the sets change.
    fn track(&mut self, vm: VmId, tgids: &[u32], cgroups: &[u64]) -> Result<(), SourceError>;

    /// Forgets a VM and its counters.
    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError>;

    /// The counters of all tracked VMs, now; `None` while the source is shed. Those after that begin anew.
    fn drain(&mut self) -> Result<Option<R>, SourceError>;
}

/// One of them, whatever it is.
pub type VmReadings<R> = Box<dyn VmSource<R> + Send>;

impl<P: Loadable> VmSource<P::Reading> for Standby<P> {
    fn track(&mut self, vm: VmId, tgids: &[u32], cgroups: &[u64]) -> Result<(), SourceError> {
        Ok(Self::track(self, vm, tgids, cgroups)?)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        Ok(Self::untrack(self, vm)?)
    }

    fn drain(&mut self) -> Result<Option<P::Reading>, SourceError> {
        Ok(Self::drain(self)?)
    }
}

/// The probe could not do it; it says itself why and what to do.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SourceError(#[from] pub Box<dyn Error + Send + Sync>);

impl From<ProbeError> for SourceError {
    fn from(error: ProbeError) -> Self {
        Self(error.into())
    }
}

impl From<ReadError> for SourceError {
    fn from(error: ReadError) -> Self {
        Self(error.into())
    }
}

impl Costed for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.cost()
    }
}

impl SchedSource for Scheduler {
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        Ok(Self::track(self, vm, tgids)?)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        Ok(Self::untrack(self, vm)?)
    }

    fn drain(&mut self) -> Result<SchedReading, SourceError> {
        Ok(Self::drain(self))
    }
}

#[cfg(test)]
impl From<&str> for SourceError {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}
