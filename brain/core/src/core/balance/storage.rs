//! Disks that only a VM's host has: whether they may go along, and what that costs.

use gnomon_common::wire::{HostId, VmId};
use thiserror::Error;

use crate::core::Core;
use crate::fleet::Vm;
use crate::plan::mib;
use crate::shadow::ShadowState;

/// Why a VM stays whose disks only its host has.
#[derive(Clone, Debug, PartialEq, Error)]
pub(in crate::core) enum StorageStays {
    #[error("only its host has its disks, and policy.migrate.copy_storage is false")]
    Policy,
    #[error("{bytes} of its disks are on its host alone, and that one's agent copies {bytes_max} at most (migration.copy_bytes_max)", bytes = mib(*bytes), bytes_max = mib(*bytes_max))]
    Agent { bytes: u64, bytes_max: u64 },
}

impl Core {
    /// What is to be copied of a VM's disks to a host of which nothing is known, in bytes.
    pub(super) fn to_copy(&self, vm: &Vm) -> u64 {
        vm.storage.filter(|_| self.policy.migrate.copy_storage).map_or(0, |storage| storage.all_bytes())
    }

    /// What it counts against a target, as a share of its room, that it is not known to have the images below a VM's disks: less than that is not worth
    /// a move, nor copying them. A host has them on which its shadow was made, whose disks are layers on the same.
    pub(in crate::core) fn copying_costs(&self, id: VmId, vm: &Vm, host: &HostId) -> f64 {
        let has_images = vm.storage.is_some_and(|storage| storage.image_bytes > 0);
        if !(has_images && self.policy.migrate.copy_storage) {
            return 0.0;
        }
        let is_made = |state| !matches!(state, ShadowState::Wanted | ShadowState::Placed | ShadowState::Parked);
        let is_known = self.shadows.coming_to(host).any(|shadow| shadow.of == id && is_made(shadow.state));
        if is_known { 0.0 } else { self.policy.migrate.gain_min }
    }

    /// Why its disks keep a VM on its host, if they do. What its own files hold has to be copied in any case; for the rest its agent has the last word.
    pub(in crate::core) fn storage_stays(&self, vm: &Vm, host: &HostId) -> Option<StorageStays> {
        let bytes = vm.storage?.own_bytes;
        if !self.policy.migrate.copy_storage {
            return Some(StorageStays::Policy);
        }
        let facts = self.fleet.hosts.get(host)?.facts.migration.as_ref()?;
        let bytes_max = facts.copy_bytes_max;
        (bytes > bytes_max).then_some(StorageStays::Agent { bytes, bytes_max })
    }
}
