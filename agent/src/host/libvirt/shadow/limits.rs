//! What a shadow may use, in the numbers of its definition, so that what was asked for and what is there can be compared; and how that is changed
//! while it runs. The persistent definition is changed along, since it is Gnomon's own: a shadow that ends comes up again as it was.

use super::super::blueprint::{bytes, child};
use super::super::devices::children;
use super::super::limits::{NETWORK_UNIT_BYTES_PER_S, set_average};
use super::super::{Hypervisor, HypervisorError};
use crate::host::libvirt_raw::parameters;
use gnomon_common::wire::{ShadowSize, VmId};
use roxmltree::Node;
use std::collections::BTreeMap;
use std::ffi::CString;
use virt::domain::{SchedBandwidth, SchedulerInfo};
use virt::sys;

/// CFS period of a shadow's quota, in microseconds: the default of kernel and libvirt.
pub const SHADOW_PERIOD_US: u32 = 100_000;

/// What a shadow may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShadowLimits {
    /// CPU time of the whole domain in each [`SHADOW_PERIOD_US`], in microseconds; 0 is unlimited.
    pub quota_us: u64,
    /// Its weight in the numbers of the host's version of control groups; 0 where none is set.
    pub shares: u64,
    /// What its balloon leaves to it, in bytes.
    pub memory_bytes: u64,
    /// Traffic of each disk, by target, in bytes per second; 0 is unlimited.
    pub disks: BTreeMap<String, u64>,
    /// Traffic of each interface, by address, in and out, in [`NETWORK_UNIT_BYTES_PER_S`]; 0 is unlimited.
    pub interfaces: BTreeMap<String, [u64; 2]>,
}

impl ShadowLimits {
    /// Reads a domain's definition.
    pub(super) fn parse(domain: Node<'_, '_>) -> Self {
        let number = |node: Option<Node<'_, '_>>| node?.text()?.trim().parse::<f64>().ok();
        let tuning = child(domain, "cputune");
        let tuned = |name: &'static str| number(tuning.and_then(|tuning| child(tuning, name)));
        let quota = tuned("global_quota").zip(tuned("global_period")).map(|(quota, period)| quota / period);
        let quota = quota.filter(|cores| cores.is_finite() && *cores > 0.0).unwrap_or(0.0);
        let memory = child(domain, "currentMemory").or(child(domain, "memory")).and_then(bytes);
        let devices = child(domain, "devices");
        let all = |name| devices.into_iter().flat_map(move |devices| children(devices, name));
        let disk = |disk| {
            let limit = child(disk, "iotune").and_then(|tune| number(child(tune, "total_bytes_sec")));
            Some((child(disk, "target")?.attribute("dev")?.to_owned(), limit.unwrap_or(0.0) as u64))
        };
        let interface = |interface| {
            let bandwidth = child(interface, "bandwidth");
            let average = |way| child(bandwidth?, way)?.attribute("average")?.parse().ok();
            let limits = ["inbound", "outbound"].map(|way| average(way).unwrap_or(0));
            Some((child(interface, "mac")?.attribute("address")?.to_owned(), limits))
        };
        Self {
            quota_us: (quota * f64::from(SHADOW_PERIOD_US)).round() as u64,
            shares: tuned("shares").unwrap_or(0.0) as u64,
            memory_bytes: memory.unwrap_or(0),
            disks: all("disk").filter_map(disk).collect(),
            interfaces: all("interface").filter_map(interface).collect(),
        }
    }

    /// Those of the same domain at another size, with this weight in the host's numbers.
    #[must_use]
    pub fn at(&self, size: &ShadowSize, shares: u64) -> Self {
        let disk = size.disk_bytes_per_s.unwrap_or(0);
        let network = size.network_bytes_per_s.map_or(0, |bytes| bytes.div_ceil(NETWORK_UNIT_BYTES_PER_S));
        Self {
            quota_us: quota_us(size.cpu_cores),
            shares,
            memory_bytes: size.memory_bytes,
            disks: self.disks.keys().map(|target| (target.clone(), disk)).collect(),
            interfaces: self.interfaces.keys().map(|address| (address.clone(), [network; 2])).collect(),
        }
    }

    /// The quota, in cores; `None` is unlimited.
    pub fn quota_cores(&self) -> Option<f64> {
        (self.quota_us > 0).then(|| self.quota_us as f64 / f64::from(SHADOW_PERIOD_US))
    }
}

/// The quota of a shadow of so many cores in each [`SHADOW_PERIOD_US`], in microseconds.
pub fn quota_us(cpu_cores: f64) -> u64 {
    (cpu_cores * f64::from(SHADOW_PERIOD_US)).round() as u64
}

impl Hypervisor {
    /// Changes what a shadow may use from the one to the other, as far as they differ, in its definition and where it runs. The guest's driver moves the
    /// balloon over seconds, as far as it can. Blocks while libvirt runs `tc`.
    ///
    /// # Errors
    /// libvirt's. What was changed before stays changed; memory comes last.
    pub fn resize_shadow(
        &self,
        vm: VmId,
        is_active: bool,
        from: &ShadowLimits,
        to: &ShadowLimits,
    ) -> Result<(), HypervisorError> {
        let domain = self.domain(vm)?;
        let flags = sys::VIR_DOMAIN_AFFECT_CONFIG | if is_active { sys::VIR_DOMAIN_AFFECT_LIVE } else { 0 };
        if (from.quota_us, from.shares) != (to.quota_us, to.shares) {
            let quota = i64::try_from(to.quota_us).ok().filter(|quota| *quota > 0).unwrap_or(-1);
            let change = SchedulerInfo {
                cpu_shares: Some(to.shares).filter(|shares| *shares > 0),
                global_bw: SchedBandwidth { period: Some(SHADOW_PERIOD_US.into()), quota: Some(quota) },
                ..SchedulerInfo::default()
            };
            let done = domain.set_scheduler_parameters_flags(&change, flags);
            done.map_err(|e| HypervisorError::call("set a shadow's quota and weight", &e))?;
        }
        for (target, bytes_per_s) in to.disks.iter().filter(|(target, limit)| from.disks.get(*target) != Some(*limit)) {
            let limit = [(sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC, *bytes_per_s)];
            let done = parameters::set_block_io_tune(&domain, &name(target)?, &limit, flags);
            done.map_err(|e| HypervisorError::call("set a disk's limits", &e))?;
        }
        for (address, limits) in &to.interfaces {
            if from.interfaces.get(address) != Some(limits) {
                set_average(&domain, &name(address)?, *limits, flags)?;
            }
        }
        if from.memory_bytes != to.memory_bytes {
            let done = domain.set_memory_flags(to.memory_bytes.div_ceil(1024), flags);
            done.map_err(|e| HypervisorError::call("set the balloon's target", &e))?;
        }
        Ok(())
    }
}

fn name(text: &str) -> Result<CString, HypervisorError> {
    CString::new(text).map_err(|_| HypervisorError::Unsupported(format!("a device is named {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use roxmltree::Document;

    const DEFINED: &str = "<domain><memory unit='KiB'>131072</memory><currentMemory unit='KiB'>65536</currentMemory>\
        <cputune><shares>13</shares><global_period>50000</global_period><global_quota>10000</global_quota></cputune>\
        <devices><disk><target dev='vda'/><iotune><total_bytes_sec>4096</total_bytes_sec></iotune></disk><disk><target dev='vdb'/></disk>\
        <interface><mac address='06:00:00:00:00:01'/><bandwidth><inbound average='7'/><outbound average='9'/></bandwidth></interface>\
        <interface><mac address='06:00:00:00:00:02'/></interface></devices></domain>";

    fn parse(xml: &str) -> ShadowLimits {
        ShadowLimits::parse(Document::parse(xml).unwrap().root_element())
    }

    #[test]
    fn what_a_definition_allows_is_read_device_by_device() {
        let limits = parse(DEFINED);
        assert_eq!((limits.quota_us, limits.shares, limits.memory_bytes), (20_000, 13, 64 << 20));
        assert_eq!(limits.disks, [("vda".to_owned(), 4096), ("vdb".to_owned(), 0)].into());
        let interfaces = [("06:00:00:00:00:01".to_owned(), [7, 9]), ("06:00:00:00:00:02".to_owned(), [0, 0])];
        assert_eq!(limits.interfaces, interfaces.into());
        assert_eq!(limits.quota_cores(), Some(0.2));
        assert_eq!(parse("<domain/>"), ShadowLimits::default());
        assert_eq!(parse(&DEFINED.replace("10000", "-1")).quota_cores(), None);
    }

    #[test]
    fn at_another_size_each_device_has_the_same_limit_and_nothing_else_is_named() {
        let size = ShadowSize {
            cpu_cores: 0.35,
            vcpus: 1,
            cpu_weight: 20,
            memory_bytes: 96 << 20,
            disk_bytes_per_s: Some(8192),
            network_bytes_per_s: Some(1_001),
        };
        let at = parse(DEFINED).at(&size, 20);
        assert_eq!((at.quota_us, at.shares, at.memory_bytes), (35_000, 20, 96 << 20));
        assert!(at.disks.values().eq(&[8192, 8192]) && at.interfaces.values().eq(&[[2, 2], [2, 2]]), "{at:?}");
        let free = parse(DEFINED).at(&ShadowSize { disk_bytes_per_s: None, network_bytes_per_s: None, ..size }, 20);
        assert!(free.disks.values().eq(&[0, 0]) && free.interfaces.values().eq(&[[0, 0], [0, 0]]), "{free:?}");
    }
}
