//! Disks that only a VM's host has: whether they may go along, and what that costs.

use gnomon_common::wire::HostId;
use thiserror::Error;

use crate::core::Core;
use crate::fleet::Vm;
use crate::plan::mib;

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
