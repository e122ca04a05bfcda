//! An upper limit on the traffic of each of a VM's disks, by QEMU's throttling.

use super::each_device::{EachDevice, Limit};
use crate::host::libvirt::DiskTune;
use gnomon_common::wire::{Means, Setting};

/// The actuator.
pub type DiskLimits<C> = EachDevice<DiskTune, C>;

impl Limit for DiskTune {
    const MEANS: Means = Means::DiskLimit;
    const DEVICES: &'static str = "disk";

    fn wanted(setting: Setting) -> Option<Self> {
        match setting {
            Setting::DiskLimit { bytes_per_s, operations_per_s } => Some(Self { bytes_per_s, operations_per_s }),
            _ => None,
        }
    }

    fn setting(self) -> Setting {
        Setting::DiskLimit { bytes_per_s: self.bytes_per_s, operations_per_s: self.operations_per_s }
    }
}
