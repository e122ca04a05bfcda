//! The real host behind the two views: libvirt on a connection of its own, and the domain's cgroup where the inventory found it.

use super::{QuotaControl, QuotaWitness};
use crate::actuate::ActuateError;
use crate::host::inventory::Inventory;
use crate::host::libvirt::{HypervisorError, Reconnecting};
use gnomon_common::wire::{VmId, VmState};
use std::sync::Arc;
use tokio::sync::watch;

/// libvirt, reconnecting as needed. It is never shared with the inventory: a survey that hangs must not delay a change.
pub struct LibvirtControl(Reconnecting);

impl LibvirtControl {
    /// Does not connect yet.
    pub fn new(uri: &str) -> Self {
        Self(Reconnecting::new(uri))
    }
}

impl QuotaControl for LibvirtControl {
    fn quota(&mut self, vm: VmId) -> Result<Option<f64>, ActuateError> {
        Ok(self.0.get()?.cpu_quota(vm)?)
    }

    fn set_quota(&mut self, vm: VmId, cores: Option<f64>) -> Result<(), ActuateError> {
        Ok(self.0.get()?.set_cpu_quota(vm, cores)?)
    }
}

impl From<HypervisorError> for ActuateError {
    fn from(error: HypervisorError) -> Self {
        match error {
            HypervisorError::NoSuchDomain(vm) => Self::NoSuchVm(vm),
            error if error.is_retryable() => Self::Unavailable(error.to_string()),
            error => Self::Rejected(error.to_string()),
        }
    }
}

/// The kernel's side, through the last inventory.
pub struct CgroupWitness(watch::Receiver<Arc<Inventory>>);

impl CgroupWitness {
    /// Reads where this inventory says.
    pub fn new(inventory: watch::Receiver<Arc<Inventory>>) -> Self {
        Self(inventory)
    }
}

impl QuotaWitness for CgroupWitness {
    fn quota(&mut self, vm: VmId) -> Result<Option<f64>, ActuateError> {
        let inventory = Arc::clone(&self.0.borrow());
        let unwitnessed = |why: String| ActuateError::Unwitnessed(why);
        let facts = match inventory.vm(vm) {
            Some(facts) if facts.state == VmState::ShutOff => return Err(ActuateError::NoSuchVm(vm)),
            Some(facts) => facts,
            None if inventory.complete => return Err(ActuateError::NoSuchVm(vm)),
            None => return Err(unwitnessed("libvirt has not answered yet".to_owned())),
        };
        let cgroup = facts.cgroup.as_ref().ok_or_else(|| unwitnessed("it was not found".to_owned()))?;
        // Only the quota is used: no counter is compared with another, so the reading's time does not matter.
        Ok(cgroup.read(0).map_err(|error| unwitnessed(error.to_string()))?.quota_cores)
    }
}
