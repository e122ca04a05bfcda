//! A probe that can be given up and loaded again, with all that it was told to track meanwhile.

use super::Costed;
use crate::probe::{ProbeError, ProgramCost};
use crate::sample::SourceError;
use gnomon_common::wire::VmId;
use std::collections::BTreeMap;

/// A probe: an object of eBPF programs of its own, attached while this lives.
pub trait Loadable: Sized {
    /// In the log and the metrics.
    const NAME: &'static str;
    /// What it hands over.
    type Reading;

    /// Loads and attaches it.
    fn load() -> Result<Self, ProbeError>;

    /// Counts what these thread groups do, or what is charged to these control groups, for a VM; replaces what was named before.
    fn track(&mut self, vm: VmId, tgids: &[u32], cgroups: &[u64]) -> Result<(), ProbeError>;

    /// Forgets a VM and its counters.
    fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError>;

    /// The counters of all tracked VMs, now.
    fn drain(&mut self) -> Result<Self::Reading, ProbeError>;

    /// What the attached programs have cost since they were loaded.
    fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError>;
}

/// A probe, or its place while it is given up.
pub struct Standby<P> {
    probe: Option<P>,
    tracked: BTreeMap<VmId, (Vec<u32>, Vec<u64>)>,
}

impl<P: Loadable> Standby<P> {
    /// Takes a probe that tracks no VM.
    pub fn of(probe: P) -> Self {
        Self { probe: Some(probe), tracked: BTreeMap::new() }
    }

    /// See [`Loadable::track`]. While the probe is given up it is only remembered.
    pub fn track(&mut self, vm: VmId, tgids: &[u32], cgroups: &[u64]) -> Result<(), ProbeError> {
        self.tracked.insert(vm, (tgids.to_vec(), cgroups.to_vec()));
        self.probe.as_mut().map_or(Ok(()), |probe| probe.track(vm, tgids, cgroups))
    }

    /// See [`Loadable::untrack`].
    pub fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        self.tracked.remove(&vm);
        self.probe.as_mut().map_or(Ok(()), |probe| probe.untrack(vm))
    }

    /// See [`Loadable::drain`]; `None` while the probe is given up.
    pub fn drain(&mut self) -> Result<Option<P::Reading>, ProbeError> {
        self.probe.as_mut().map(P::drain).transpose()
    }
}

impl<P: Loadable> Costed for Standby<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.probe.as_ref().map_or(Ok(Vec::new()), P::cost)
    }

    fn can_shed(&self) -> bool {
        self.probe.is_some()
    }

    fn shed(&mut self) -> Result<(), SourceError> {
        self.probe = None;
        Ok(())
    }

    fn restore(&mut self) -> Result<(), SourceError> {
        let mut probe = P::load()?;
        for (&vm, (tgids, cgroups)) in &self.tracked {
            // As when it was tracked first: this one is absent, the others are not.
            if let Err(error) = probe.track(vm, tgids, cgroups) {
                tracing::warn!(%vm, probe = P::NAME, %error, "the VM is not measured by this probe");
            }
        }
        self.probe = Some(probe);
        Ok(())
    }
}
