//! The real host behind the actuators: libvirt on a connection of its own, and the domain's cgroup where the inventory found it.

use super::ActuateError;
use super::cpu_quota::{QuotaControl, QuotaWitness};
use super::cpu_weight::{WeightControl, WeightWitness};
use super::each_device::DeviceControl;
use super::memory::BalloonControl;
use super::vcpus::VcpuControl;
use crate::host::cgroup::{CpuWeight, DomainCgroup};
use crate::host::inventory::Inventory;
use crate::host::libvirt::{Bandwidth, DiskTune, Hypervisor, HypervisorError, Reconnecting, limited_devices};
use gnomon_common::wire::{Means, VmId, VmState};
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// libvirt, reconnecting as needed; clones share one connection. It is never shared with the inventory: a survey that hangs must not
/// delay a change.
#[derive(Clone)]
pub struct LibvirtControl {
    /// Never waited for: all actuators live on one thread.
    link: Arc<Mutex<Reconnecting>>,
    inventory: watch::Receiver<Arc<Inventory>>,
}

impl LibvirtControl {
    /// Does not connect yet. The inventory tells VMs' lives apart.
    pub fn new(uri: &str, inventory: watch::Receiver<Arc<Inventory>>) -> Self {
        Self { link: Arc::new(Mutex::new(Reconnecting::new(uri))), inventory }
    }

    fn call<T>(
        &self,
        means: Means,
        call: impl FnOnce(&Hypervisor) -> Result<T, HypervisorError>,
    ) -> Result<T, ActuateError> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.get().and_then(call).map_err(|error| ActuateError::of_libvirt(means, error))
    }
}

impl QuotaControl for LibvirtControl {
    fn quota(&mut self, vm: VmId) -> Result<Option<f64>, ActuateError> {
        self.call(Means::CpuQuota, |libvirt| libvirt.cpu_quota(vm))
    }

    fn set_quota(&mut self, vm: VmId, cores: Option<f64>) -> Result<(), ActuateError> {
        self.call(Means::CpuQuota, |libvirt| libvirt.set_cpu_quota(vm, cores))
    }
}

impl WeightControl for LibvirtControl {
    fn shares(&mut self, vm: VmId) -> Result<u64, ActuateError> {
        self.call(Means::CpuWeight, |libvirt| libvirt.cpu_shares(vm))
    }

    fn set_shares(&mut self, vm: VmId, shares: u64) -> Result<(), ActuateError> {
        self.call(Means::CpuWeight, |libvirt| libvirt.set_cpu_shares(vm, shares))
    }
}

impl BalloonControl for LibvirtControl {
    fn bytes(&mut self, vm: VmId) -> Result<u64, ActuateError> {
        let stats = self.call(Means::Memory, |libvirt| libvirt.memory_stats(vm))?;
        let none = || ActuateError::Unsupported { means: Means::Memory, why: "it has no balloon device".to_owned() };
        stats.balloon_bytes.ok_or_else(none)
    }

    fn set_bytes(&mut self, vm: VmId, bytes: u64) -> Result<(), ActuateError> {
        self.call(Means::Memory, |libvirt| libvirt.set_balloon(vm, bytes))
    }
}

impl VcpuControl for LibvirtControl {
    fn online(&mut self, vm: VmId) -> Result<u32, ActuateError> {
        self.call(Means::Vcpus, |libvirt| libvirt.vcpus(vm)).map(|(online, _)| online)
    }

    fn set_online(&mut self, vm: VmId, count: u32) -> Result<(), ActuateError> {
        self.call(Means::Vcpus, |libvirt| libvirt.set_vcpus(vm, count))
    }

    fn life(&self, vm: VmId) -> Option<(u32, u64)> {
        let inventory = self.inventory.borrow();
        inventory.vm(vm)?.process.as_ref().map(|process| (process.pid, process.start_ticks))
    }
}

impl DeviceControl<DiskTune> for LibvirtControl {
    fn devices(&mut self, vm: VmId) -> Result<Vec<CString>, ActuateError> {
        self.call(Means::DiskLimit, |libvirt| libvirt.devices(vm)).map(|devices| devices.disks)
    }

    fn limit(&mut self, vm: VmId, disk: &CStr) -> Result<DiskTune, ActuateError> {
        self.call(Means::DiskLimit, |libvirt| libvirt.disk_tune(vm, disk))
    }

    fn set_limit(&mut self, vm: VmId, disk: &CStr, tune: DiskTune) -> Result<(), ActuateError> {
        self.call(Means::DiskLimit, |libvirt| libvirt.set_disk_tune(vm, disk, tune))
    }
}

impl DeviceControl<Bandwidth> for LibvirtControl {
    fn devices(&mut self, vm: VmId) -> Result<Vec<CString>, ActuateError> {
        let devices = self.call(Means::NetworkLimit, |libvirt| libvirt.devices(vm))?;
        limited_devices(&devices).map_err(|why| ActuateError::Unsupported { means: Means::NetworkLimit, why })
    }

    fn limit(&mut self, vm: VmId, device: &CStr) -> Result<Bandwidth, ActuateError> {
        self.call(Means::NetworkLimit, |libvirt| libvirt.bandwidth(vm, device))
    }

    fn set_limit(&mut self, vm: VmId, device: &CStr, bandwidth: Bandwidth) -> Result<(), ActuateError> {
        self.call(Means::NetworkLimit, |libvirt| libvirt.set_bandwidth(vm, device, bandwidth))
    }
}

/// The kernel's side, through the last inventory.
#[derive(Clone)]
pub struct CgroupWitness(watch::Receiver<Arc<Inventory>>);

impl CgroupWitness {
    /// Reads where this inventory says.
    pub fn new(inventory: watch::Receiver<Arc<Inventory>>) -> Self {
        Self(inventory)
    }

    fn cgroup(&self, vm: VmId) -> Result<DomainCgroup, ActuateError> {
        let inventory = Arc::clone(&self.0.borrow());
        let facts = match inventory.vm(vm) {
            Some(facts) if facts.state == VmState::ShutOff => return Err(ActuateError::NoSuchVm(vm)),
            Some(facts) => facts,
            None if inventory.complete => return Err(ActuateError::NoSuchVm(vm)),
            None => return Err(ActuateError::Unwitnessed("libvirt has not answered yet".to_owned())),
        };
        facts.cgroup.clone().ok_or_else(|| ActuateError::Unwitnessed("it was not found".to_owned()))
    }
}

impl QuotaWitness for CgroupWitness {
    fn quota(&mut self, vm: VmId) -> Result<Option<f64>, ActuateError> {
        // Only the quota is used: no counter is compared with another, so the reading's time does not matter.
        let reading = self.cgroup(vm)?.read(0).map_err(|error| ActuateError::Unwitnessed(error.to_string()))?;
        Ok(reading.quota_cores)
    }
}

impl WeightWitness for CgroupWitness {
    fn weight(&mut self, vm: VmId) -> Result<CpuWeight, ActuateError> {
        let weight = self.cgroup(vm)?.cpu_weight().map_err(|error| ActuateError::Unwitnessed(error.to_string()))?;
        let why = || "its control group has neither cpu.weight nor cpu.shares".to_owned();
        weight.ok_or_else(|| ActuateError::Unsupported { means: Means::CpuWeight, why: why() })
    }
}
