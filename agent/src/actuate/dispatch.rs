//! All means of changing a VM as one actuator: each request goes to the file of its means.

use super::cpu_quota::CpuQuota;
use super::cpu_weight::CpuWeights;
use super::disk_limit::DiskLimits;
use super::host::{CgroupWitness, LibvirtControl};
use super::memory::Balloons;
use super::network_limit::NetworkLimits;
use super::vcpus::Vcpus;
use super::{ActuateError, Actuator};
use crate::host::inventory::Inventory;
use gnomon_common::wire::{Means, Setting, VmId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What an actuator says that is asked for another means than its own.
pub(super) const NOT_BY_THIS: &str = "this actuator does not change it";

/// One actuator for each means.
pub struct ByMeans(BTreeMap<Means, Box<dyn Actuator>>);

impl ByMeans {
    /// Those of this host, all on one connection to libvirt. It does not connect yet.
    pub fn of_host(uri: &str, inventory: watch::Receiver<Arc<Inventory>>) -> Self {
        let libvirt = LibvirtControl::new(uri, inventory.clone());
        let cgroup = CgroupWitness::new(inventory);
        let actuator = |means| -> Box<dyn Actuator> {
            let libvirt = libvirt.clone();
            match means {
                Means::CpuQuota => Box::new(CpuQuota::new(libvirt, cgroup.clone())),
                Means::CpuWeight => Box::new(CpuWeights::new(libvirt, cgroup.clone())),
                Means::Memory => Box::new(Balloons::new(libvirt)),
                Means::Vcpus => Box::new(Vcpus::new(libvirt)),
                Means::DiskLimit => Box::new(DiskLimits::new(libvirt)),
                Means::NetworkLimit => Box::new(NetworkLimits::new(libvirt)),
            }
        };
        Self(Means::ALL.into_iter().map(|means| (means, actuator(means))).collect())
    }

    fn of(&mut self, means: Means) -> Result<&mut (dyn Actuator + 'static), ActuateError> {
        let missing = || ActuateError::Unsupported { means, why: "this release of the agent cannot do it".to_owned() };
        self.0.get_mut(&means).map(Box::as_mut).ok_or_else(missing)
    }
}

impl Actuator for ByMeans {
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError> {
        self.of(means)?.in_force(vm, means)
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError> {
        self.of(target.means())?.apply(vm, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    /// Knows one setting.
    struct Fixed(Setting);

    impl Actuator for Fixed {
        fn in_force(&mut self, _: VmId, means: Means) -> Result<Setting, ActuateError> {
            assert_eq!(means, self.0.means());
            Ok(self.0)
        }

        fn apply(&mut self, _: VmId, target: Setting) -> Result<Setting, ActuateError> {
            assert_eq!(target.means(), self.0.means());
            self.0 = target;
            Ok(target)
        }
    }

    #[test]
    fn each_request_goes_to_the_actuator_of_its_means_and_to_no_other() {
        let vm = VmId(Uuid::nil());
        let (memory, vcpus) = (Setting::Memory { bytes: 1 }, Setting::Vcpus { count: 1 });
        let fixed = [memory, vcpus].map(|setting| (setting.means(), Box::new(Fixed(setting)) as Box<dyn Actuator>));
        let mut all = ByMeans(BTreeMap::from(fixed));
        assert_eq!(all.apply(vm, Setting::Vcpus { count: 2 }), Ok(Setting::Vcpus { count: 2 }));
        assert_eq!(all.in_force(vm, Means::Memory), Ok(memory));
        assert_eq!(all.in_force(vm, Means::Vcpus), Ok(Setting::Vcpus { count: 2 }));
        assert!(matches!(all.in_force(vm, Means::DiskLimit), Err(ActuateError::Unsupported { .. })));
    }

    #[test]
    fn this_hosts_actuator_has_every_means() {
        let inventory =
            Inventory { vms: Vec::new(), complete: true, taken: std::time::Instant::now(), hypervisor: String::new() };
        let host = ByMeans::of_host("test:///default", watch::channel(Arc::new(inventory)).1);
        assert_eq!(host.0.into_keys().collect::<Vec<_>>(), Means::ALL);
    }
}
