//! Limits on the traffic of a running domain's disks and network interfaces.
//!
//! Only plain limits are taken as limits: bytes and operations a second of a disk, reads and writes together, and the average rate of
//! an interface. Where the domain's owner set something finer (reads and writes apart, bursts, a group of disks, a peak), changing
//! the plain limit would destroy what could not be brought back, so that such a device is refused.

use super::{Devices, Hypervisor, HypervisorError};
use crate::host::libvirt_raw::parameters::{self, Parameter, Value};
use gnomon_common::wire::VmId;
use std::ffi::{CStr, CString};
use virt::domain::Domain;
use virt::sys;

/// The unit of an interface's rates: libvirt hands them to `tc` as `kbps`, which are 1000 bytes a second.
pub const NETWORK_UNIT_BYTES_PER_S: u64 = 1_000;

/// How libvirt's words show that `tc` itself failed or is not there.
const TC_FAILURES: [&str; 3] = ["Child process (tc ", "Child process (/sbin/tc ", "Cannot find 'tc'"];

/// How a throttling group is called that QEMU or libvirt has named after the one disk in it.
const OWN_GROUPS: [&str; 2] = ["/machine/", "drive-"];

/// An upper limit on the traffic of a disk; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskTune {
    /// In bytes per second, reads and writes together.
    pub bytes_per_s: Option<u64>,
    /// In operations per second, reads and writes together.
    pub operations_per_s: Option<u64>,
}

/// An upper limit on the traffic of a network interface; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Into the domain, in bytes per second.
    pub in_bytes_per_s: Option<u64>,
    /// Out of the domain, in bytes per second.
    pub out_bytes_per_s: Option<u64>,
}

impl Hypervisor {
    /// What the definition in force says of a domain's devices. Blocks.
    pub fn devices(&self, vm: VmId) -> Result<Devices, HypervisorError> {
        let xml = self.domain(vm)?.xml_desc(0);
        xml.map(|xml| Devices::parse(&xml)).map_err(|e| HypervisorError::call("read the definition", &e))
    }

    /// The limits in force on one disk of a running domain, by QEMU's own account. Blocks.
    pub fn disk_tune(&self, vm: VmId, disk: &CStr) -> Result<DiskTune, HypervisorError> {
        let found = parameters::block_io_tune(&self.domain(vm)?, disk);
        let found = found.map_err(|e| HypervisorError::call("read a disk's limits", &e))?;
        disk_tune(&found).map_err(|set| finer(disk, &set))
    }

    /// Sets them. Blocks.
    pub fn set_disk_tune(&self, vm: VmId, disk: &CStr, tune: DiskTune) -> Result<(), HypervisorError> {
        let limits = [
            (sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC, tune.bytes_per_s.unwrap_or(0)),
            (sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC, tune.operations_per_s.unwrap_or(0)),
        ];
        parameters::set_block_io_tune(&self.domain(vm)?, disk, &limits, sys::VIR_DOMAIN_AFFECT_LIVE)
            .map_err(|e| HypervisorError::call("set a disk's limits", &e))
    }

    /// The limits in force on one interface of a running domain, by its host device. Blocks.
    pub fn bandwidth(&self, vm: VmId, device: &CStr) -> Result<Bandwidth, HypervisorError> {
        let found = parameters::interface_parameters(&self.domain(vm)?, device);
        let found = found.map_err(|e| HypervisorError::call("read an interface's limits", &e))?;
        bandwidth(&found).map_err(|set| finer(device, &set))
    }

    /// Sets them, in whole [`NETWORK_UNIT_BYTES_PER_S`]. Blocks while libvirt runs `tc`.
    pub fn set_bandwidth(&self, vm: VmId, device: &CStr, limits: Bandwidth) -> Result<(), HypervisorError> {
        let limits = [limits.in_bytes_per_s, limits.out_bytes_per_s].map(|limit| units(limit).into());
        set_average(&self.domain(vm)?, device, limits, sys::VIR_DOMAIN_AFFECT_LIVE)
    }
}

/// Sets an interface's average rates in and out, in [`NETWORK_UNIT_BYTES_PER_S`], 0 being none. Blocks while libvirt runs `tc`.
pub(super) fn set_average(
    domain: &Domain,
    device: &CStr,
    limits: [u64; 2],
    flags: sys::virDomainModificationImpact,
) -> Result<(), HypervisorError> {
    let [inward, outward] = limits.map(|units| u32::try_from(units).unwrap_or(u32::MAX));
    let limits = [(sys::VIR_DOMAIN_BANDWIDTH_IN_AVERAGE, inward), (sys::VIR_DOMAIN_BANDWIDTH_OUT_AVERAGE, outward)];
    parameters::set_interface_parameters(domain, device, &limits, flags).map_err(|e| {
        // libvirt reports the failure of the program it runs as an internal error, and the program's words with it.
        if TC_FAILURES.iter().any(|words| e.message().contains(words)) {
            let why = "tc is missing, or this kernel lacks a queueing discipline (htb, sfq, ingress)";
            return HypervisorError::Unsupported(format!("{why}: {}", e.message().trim_end()));
        }
        HypervisorError::call("set an interface's limits", &e)
    })
}

fn finer(device: &CStr, set: &str) -> HypervisorError {
    let device = device.to_string_lossy();
    HypervisorError::Unsupported(format!("the owner of {device} has set {set}, which could not be brought back"))
}

/// A rate in libvirt's unit: at least one, because 0 means unlimited.
fn units(bytes_per_s: Option<u64>) -> u32 {
    let units = |bytes: u64| (bytes + NETWORK_UNIT_BYTES_PER_S / 2) / NETWORK_UNIT_BYTES_PER_S;
    bytes_per_s.map_or(0, |bytes| u32::try_from(units(bytes).max(1)).unwrap_or(u32::MAX))
}

/// A disk's limits, or the name of what is set beside them.
fn disk_tune(found: &[Parameter]) -> Result<DiskTune, String> {
    let known = [sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC, sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC];
    let [bytes_per_s, operations_per_s] = plain(found, &known)?;
    Ok(DiskTune { bytes_per_s, operations_per_s })
}

/// An interface's limits, or the name of what is set beside them.
fn bandwidth(found: &[Parameter]) -> Result<Bandwidth, String> {
    let known = [sys::VIR_DOMAIN_BANDWIDTH_IN_AVERAGE, sys::VIR_DOMAIN_BANDWIDTH_OUT_AVERAGE];
    let limits = plain(found, &known)?;
    let [in_bytes_per_s, out_bytes_per_s] =
        limits.map(|limit| limit.map(|units| units.saturating_mul(NETWORK_UNIT_BYTES_PER_S)));
    Ok(Bandwidth { in_bytes_per_s, out_bytes_per_s })
}

/// The values of the parameters of these names, 0 being none; an error if any other parameter is set.
fn plain<const N: usize>(found: &[Parameter], names: &[&CStr; N]) -> Result<[Option<u64>; N], String> {
    let mut values = [None; N];
    for Parameter { name, value } in found {
        let known = names.iter().position(|known| known.to_bytes() == name.as_bytes());
        match (known, value) {
            (_, Value::Number(0)) => {}
            (_, Value::Text(text)) if text.is_empty() => {}
            // QEMU throttles in groups: a disk that is limited alone has one of its own.
            (None, Value::Text(group)) if OWN_GROUPS.iter().any(|prefix| group.starts_with(prefix)) => {}
            // How long a burst may last says nothing while no burst is allowed; QEMU tells its default of one second.
            (None, _) if name.ends_with("_max_length") => {}
            (Some(index), Value::Number(value)) => values[index] = Some(*value),
            _ => return Err(name.clone()),
        }
    }
    Ok(values)
}

/// The host devices of a domain's interfaces, or the reason why one of them cannot be limited.
pub fn limited_devices(devices: &Devices) -> Result<Vec<CString>, String> {
    let device = |interface: &super::Interface| {
        let lacks =
            || format!("its interface of type '{}' has no host device on which to limit traffic", interface.kind);
        interface.device.clone().ok_or_else(lacks)
    };
    let found: Vec<CString> = devices.interfaces.iter().map(device).collect::<Result<_, _>>()?;
    if found.is_empty() { Err("it has no network interface".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(name: &CStr, value: u64) -> Parameter {
        Parameter { name: name.to_string_lossy().into_owned(), value: Value::Number(value) }
    }

    #[test]
    fn zero_is_unlimited_and_what_is_set_is_read() {
        let tune = disk_tune(&[
            number(sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC, 5_000_000),
            number(sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC, 0),
            number(sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_BYTES_SEC, 0),
            number(sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC_MAX_LENGTH, 1),
            Parameter { name: "group_name".into(), value: Value::Text("/machine/peripheral/virtio-disk0/x".into()) },
        ]);
        assert_eq!(tune, Ok(DiskTune { bytes_per_s: Some(5_000_000), operations_per_s: None }));
        let limits = bandwidth(&[number(sys::VIR_DOMAIN_BANDWIDTH_IN_AVERAGE, 125)]);
        assert_eq!(limits, Ok(Bandwidth { in_bytes_per_s: Some(125_000), out_bytes_per_s: None }));
    }

    #[test]
    fn what_an_owner_set_finer_than_a_limit_is_named_and_not_touched() {
        let read = number(sys::VIR_DOMAIN_BLOCK_IOTUNE_READ_BYTES_SEC, 1);
        assert_eq!(disk_tune(&[read]), Err("read_bytes_sec".to_owned()));
        let group = Parameter { name: "group_name".into(), value: Value::Text("shared".into()) };
        assert_eq!(disk_tune(&[group]), Err("group_name".to_owned()));
        assert_eq!(bandwidth(&[number(sys::VIR_DOMAIN_BANDWIDTH_IN_PEAK, 9)]), Err("inbound.peak".to_owned()));
    }

    #[test]
    fn an_interface_without_a_host_device_is_named() {
        let interface = |kind: &str, device: Option<&CStr>| super::super::Interface {
            kind: kind.into(),
            device: device.map(ToOwned::to_owned),
        };
        let devices = |interfaces: Vec<_>| Devices { interfaces, ..Devices::default() };
        let tap = || interface("ethernet", Some(c"vnet0"));
        assert_eq!(limited_devices(&devices(vec![tap()])), Ok(vec![c"vnet0".to_owned()]));
        assert!(limited_devices(&devices(vec![tap(), interface("user", None)])).unwrap_err().contains("'user'"));
        assert!(limited_devices(&devices(vec![])).unwrap_err().contains("no network interface"));
    }

    proptest! {
        #[test]
        fn a_rate_is_kept_within_one_unit_and_never_becomes_unlimited(bytes in 1..4_000_000_000_000_u64) {
            let told = number(sys::VIR_DOMAIN_BANDWIDTH_IN_AVERAGE, units(Some(bytes)).into());
            let read = bandwidth(&[told]).unwrap().in_bytes_per_s.unwrap();
            prop_assert!(read.abs_diff(bytes) < NETWORK_UNIT_BYTES_PER_S, "{bytes} became {read}");
        }
    }
}
