//! An upper limit on the traffic of each of a VM's network interfaces, by the host kernel's traffic control, which libvirt drives
//! with `tc`: that has to be installed, and the kernel to have its queueing disciplines (sch_htb, sch_ingress, act_police).

use super::each_device::{EachDevice, Limit};
use crate::host::libvirt::Bandwidth;
use gnomon_common::wire::{Means, Setting};

/// The actuator.
pub type NetworkLimits<C> = EachDevice<Bandwidth, C>;

impl Limit for Bandwidth {
    const MEANS: Means = Means::NetworkLimit;
    const DEVICES: &'static str = "network interface";

    fn wanted(setting: Setting) -> Option<Self> {
        match setting {
            Setting::NetworkLimit { in_bytes_per_s, out_bytes_per_s } => Some(Self { in_bytes_per_s, out_bytes_per_s }),
            _ => None,
        }
    }

    fn setting(self) -> Setting {
        Setting::NetworkLimit { in_bytes_per_s: self.in_bytes_per_s, out_bytes_per_s: self.out_bytes_per_s }
    }
}
