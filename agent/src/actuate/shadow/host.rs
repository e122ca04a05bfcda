//! The host as orders see it: libvirt on a connection of its own, the bridge of shadows, and memory.

use super::ShadowerConfig;
use crate::host::bridge::Bridge;
use crate::host::cgroup::CpuWeight;
use crate::host::libvirt::backup::BackupJob;
use crate::host::libvirt::{
    FoundShadow, HypervisorError, Reconnecting, SHADOW_BRIDGE, SHADOW_FILTER, ShadowDomain, ShadowLimits,
};
use crate::host::machine::Machine;
use crate::host::process::Proc;
use gnomon_common::wire::{Blueprint, Unshadowable, VmId};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A guest's driver is waited for so long until its balloon holds what was asked for, and looked at so often.
const BALLOON_MAX: Duration = Duration::from_secs(20);
const BALLOON_POLL: Duration = Duration::from_millis(200);

/// What orders need of a host. Calls may block.
pub(super) trait Here: Backups + Send {
    fn find(&mut self, vm: VmId) -> Result<FoundShadow, HypervisorError>;
    fn has_name(&mut self, name: &str) -> Result<bool, HypervisorError>;
    fn shadows(&mut self) -> Result<Vec<ShadowDomain>, HypervisorError>;
    fn define(&mut self, xml: &str) -> Result<(), HypervisorError>;
    fn start(&mut self, vm: VmId) -> Result<(), HypervisorError>;
    /// Changes what a shadow may use from the one to the other. Of what fails a part may be done.
    fn resize(
        &mut self,
        vm: VmId,
        is_active: bool,
        from: &ShadowLimits,
        to: &ShadowLimits,
    ) -> Result<(), HypervisorError>;
    /// What the balloon of a running shadow leaves to it as soon as that is this much, or else a while later, in bytes.
    fn ballooned(&mut self, vm: VmId, bytes: u64) -> Result<u64, HypervisorError>;
    /// Returns whether nothing of it is left: a domain that is no shadow stays.
    fn remove(&mut self, vm: VmId) -> Result<bool, HypervisorError>;
    /// Sees to it that there are the network of shadows and its filter; what is wrong with it, if anything is.
    fn network(&mut self) -> Result<Result<(), String>, HypervisorError>;
    fn remove_network(&mut self) -> Result<(), HypervisorError>;
    /// The bridge of that network.
    fn bridge(&mut self) -> std::io::Result<Bridge>;
    /// Memory that can be given away, in bytes.
    fn available_bytes(&mut self) -> u64;
    /// A weight in the numbers of this host's version of control groups.
    fn shares(&self, weight: u32) -> u64;
}

/// What copying disks needs of a host. Calls may block.
pub(super) trait Backups {
    /// What a shadow of a running VM is made from.
    fn describe(&mut self, vm: VmId) -> Result<Result<Blueprint, Unshadowable>, HypervisorError>;
    /// Which job a running VM has.
    fn backup_job(&mut self, vm: VmId) -> Result<BackupJob, HypervisorError>;
    fn begin_backup(&mut self, vm: VmId, disks: &[(String, PathBuf)]) -> Result<(), HypervisorError>;
    /// `false` where that disk is not being copied any more.
    fn set_backup_speed(&mut self, vm: VmId, device: &str, bytes_per_s: u64) -> Result<bool, HypervisorError>;
    /// How the last backup has ended.
    fn last_backup(&mut self, vm: VmId) -> Result<Result<(), String>, HypervisorError>;
    fn abort_job(&mut self, vm: VmId) -> Result<(), HypervisorError>;
}

/// Why the bridge of shadows is not cut off, if it is not: an address that the host answers at, or a port of something that is no shadow, or one
/// that others can be reached through. What a filter lets pass by mistake meets nobody on such a bridge but the host.
pub(super) fn is_isolated(bridge: &Bridge, shadows: &[ShadowDomain]) -> Result<(), String> {
    if bridge.has_address {
        return Err(format!("{SHADOW_BRIDGE} has an address"));
    }
    let taps: BTreeSet<&str> = shadows.iter().flat_map(|shadow| &shadow.taps).map(String::as_str).collect();
    let foreign = bridge.ports.iter().find(|port| !taps.contains(port.device.as_str()));
    if let Some(port) = foreign {
        return Err(format!("{SHADOW_BRIDGE} has the port {}, which is no shadow's", port.device));
    }
    match bridge.ports.iter().find(|port| !port.is_isolated) {
        Some(port) => Err(format!("the kernel does not isolate the port {} of {SHADOW_BRIDGE}", port.device)),
        None => Ok(()),
    }
}

/// The real one.
pub(super) struct LibvirtHere {
    link: Reconnecting,
    machine: Machine,
}

impl LibvirtHere {
    /// Does not connect yet.
    pub(super) fn new(config: &ShadowerConfig) -> Self {
        Self { link: Reconnecting::new(config.uri.clone()), machine: config.machine.clone() }
    }
}

impl Here for LibvirtHere {
    fn find(&mut self, vm: VmId) -> Result<FoundShadow, HypervisorError> {
        self.link.get()?.find_shadow(vm)
    }

    fn has_name(&mut self, name: &str) -> Result<bool, HypervisorError> {
        self.link.get()?.has_name(name)
    }

    fn shadows(&mut self) -> Result<Vec<ShadowDomain>, HypervisorError> {
        self.link.get()?.shadows()
    }

    fn define(&mut self, xml: &str) -> Result<(), HypervisorError> {
        self.link.get()?.define(xml)
    }

    fn start(&mut self, vm: VmId) -> Result<(), HypervisorError> {
        self.link.get()?.start(vm)
    }

    fn resize(
        &mut self,
        vm: VmId,
        is_active: bool,
        from: &ShadowLimits,
        to: &ShadowLimits,
    ) -> Result<(), HypervisorError> {
        self.link.get()?.resize_shadow(vm, is_active, from, to)
    }

    fn ballooned(&mut self, vm: VmId, bytes: u64) -> Result<u64, HypervisorError> {
        let begun = Instant::now();
        loop {
            let left = self.link.get()?.memory_stats(vm)?.balloon_bytes.unwrap_or(0);
            if left == bytes || begun.elapsed() >= BALLOON_MAX {
                return Ok(left);
            }
            std::thread::sleep(BALLOON_POLL);
        }
    }

    fn remove(&mut self, vm: VmId) -> Result<bool, HypervisorError> {
        self.link.get()?.remove_shadow(vm)
    }

    fn network(&mut self) -> Result<Result<(), String>, HypervisorError> {
        let libvirt = self.link.get()?;
        if !libvirt.shadow_filter()? {
            return Ok(Err(format!("the filter {SHADOW_FILTER} lets something pass")));
        }
        libvirt.shadow_network()
    }

    fn remove_network(&mut self) -> Result<(), HypervisorError> {
        self.link.get()?.remove_shadow_network()
    }

    fn bridge(&mut self) -> std::io::Result<Bridge> {
        Bridge::read(SHADOW_BRIDGE, Path::new("/sys/class/net"), &Proc::at("/proc/self"))
    }

    fn available_bytes(&mut self) -> u64 {
        // A host that does not tell what it has gives nothing.
        self.machine.memory_available_bytes().unwrap_or(0)
    }

    fn shares(&self, weight: u32) -> u64 {
        CpuWeight::of_this_host(0).raw_for(weight).max(1)
    }
}

impl Backups for LibvirtHere {
    fn describe(&mut self, vm: VmId) -> Result<Result<Blueprint, Unshadowable>, HypervisorError> {
        self.link.get()?.blueprint(vm)
    }

    fn backup_job(&mut self, vm: VmId) -> Result<BackupJob, HypervisorError> {
        self.link.get()?.backup_job(vm)
    }

    fn begin_backup(&mut self, vm: VmId, disks: &[(String, PathBuf)]) -> Result<(), HypervisorError> {
        self.link.get()?.begin_backup(vm, disks)
    }

    fn set_backup_speed(&mut self, vm: VmId, device: &str, bytes_per_s: u64) -> Result<bool, HypervisorError> {
        self.link.get()?.set_backup_speed(vm, device, bytes_per_s)
    }

    fn last_backup(&mut self, vm: VmId) -> Result<Result<(), String>, HypervisorError> {
        self.link.get()?.last_backup(vm)
    }

    fn abort_job(&mut self, vm: VmId) -> Result<(), HypervisorError> {
        self.link.get()?.abort_job(vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bridge::Port;
    use uuid::Uuid;

    #[test]
    fn a_bridge_is_cut_off_only_without_address_and_with_isolated_ports_of_shadows_alone() {
        let id = |number| VmId(Uuid::from_u128(number));
        let taps = vec!["vnet1".to_owned(), "vnet2".to_owned()];
        let limits = ShadowLimits::default();
        let shadow = ShadowDomain { vm: id(1), of: id(2), vcpus: 1, memory_bytes: 0, limits, taps };
        let port = |device: &str, is_isolated| Port { device: device.to_owned(), is_isolated };
        let bridge = |ports: Vec<Port>, has_address| Bridge { ports, has_address };
        let wrong = |bridge: &Bridge| is_isolated(bridge, std::slice::from_ref(&shadow)).unwrap_err();
        assert_eq!(is_isolated(&bridge(vec![port("vnet2", true)], false), std::slice::from_ref(&shadow)), Ok(()));
        assert!(wrong(&bridge(vec![], true)).contains("has an address"));
        assert!(wrong(&bridge(vec![port("vnet1", true), port("eth0", true)], false)).contains("eth0"));
        assert!(wrong(&bridge(vec![port("vnet1", false)], false)).contains("does not isolate"));
    }
}
