//! A running domain's vCPUs and its share of CPU time.

use super::{Hypervisor, HypervisorError};
use gnomon_common::wire::VmId;
use virt::domain::SchedulerInfo;
use virt::sys;

impl Hypervisor {
    /// vCPUs plugged in, and up to how many the domain is defined. Blocks.
    pub fn vcpus(&self, vm: VmId) -> Result<(u32, u32), HypervisorError> {
        let domain = self.domain(vm)?;
        let count = |flags| domain.vcpus_flags(flags).map_err(|e| HypervisorError::call("count the vCPUs", &e));
        Ok((count(sys::VIR_DOMAIN_VCPU_LIVE)?, count(sys::VIR_DOMAIN_VCPU_LIVE | sys::VIR_DOMAIN_VCPU_MAXIMUM)?))
    }

    /// Plugs vCPUs in or out. Plugging out takes the guest's consent, for which libvirt waits some seconds. Blocks.
    pub fn set_vcpus(&self, vm: VmId, count: u32) -> Result<(), HypervisorError> {
        self.domain(vm)?
            .set_vcpus_flags(count, sys::VIR_DOMAIN_VCPU_LIVE)
            .map_err(|e| HypervisorError::call("set the number of vCPUs", &e))
    }

    /// The `cpu_shares` of a running domain, on the scale of its control group's version: `cpu.shares` of version 1, `cpu.weight`
    /// of version 2 (libvirt passes the number through). Blocks.
    pub fn cpu_shares(&self, vm: VmId) -> Result<u64, HypervisorError> {
        let parameters = self.domain(vm)?.scheduler_parameters_flags(sys::VIR_DOMAIN_AFFECT_LIVE);
        let parameters = parameters.map_err(|e| HypervisorError::call("read the CPU shares", &e))?;
        parameters.cpu_shares.ok_or_else(|| {
            HypervisorError::Unsupported(
                "the hypervisor driver knows no cpu_shares: is it QEMU with the cpu cgroup?".into(),
            )
        })
    }

    /// Sets them. Blocks.
    pub fn set_cpu_shares(&self, vm: VmId, shares: u64) -> Result<(), HypervisorError> {
        let change = SchedulerInfo { cpu_shares: Some(shares), ..SchedulerInfo::default() };
        self.domain(vm)?
            .set_scheduler_parameters_flags(&change, sys::VIR_DOMAIN_AFFECT_LIVE)
            .map_err(|e| HypervisorError::call("set the CPU shares", &e))
    }
}
