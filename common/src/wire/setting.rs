//! What can be changed about a VM: one means each, always as the absolute state that is to hold or does hold.

use core::fmt;
use serde::{Deserialize, Serialize};

/// The cgroup v2 `cpu.weight` of a group that nobody has weighted (Documentation/admin-guide/cgroup-v2.rst).
pub const CPU_WEIGHT_DEFAULT: u32 = 100;

/// A means of changing a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// An upper limit on CPU time.
    CpuQuota,
    /// The share of CPU time under contention.
    CpuWeight,
    /// The balloon's target.
    Memory,
    /// vCPUs plugged in.
    Vcpus,
    /// An upper limit on disk traffic.
    DiskLimit,
    /// An upper limit on network traffic.
    NetworkLimit,
}

impl Means {
    /// All of them, in their order.
    pub const ALL: [Self; 6] =
        [Self::CpuQuota, Self::CpuWeight, Self::Memory, Self::Vcpus, Self::DiskLimit, Self::NetworkLimit];
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CpuQuota => "CPU quota",
            Self::CpuWeight => "CPU weight",
            Self::Memory => "memory",
            Self::Vcpus => "vCPUs",
            Self::DiskLimit => "disk limit",
            Self::NetworkLimit => "network limit",
        })
    }
}

/// One means and the state it is in, or is to be brought to. Absolute: setting it twice is setting it once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// CPU time of the whole domain (all vCPU, iothread and emulator threads together).
    CpuQuota {
        /// In cores: 1.5 is one and a half CPUs' worth of time; `None` is unlimited.
        cores: Option<f64>,
    },
    /// CPU time relative to other VMs while there is not enough for all.
    CpuWeight {
        /// On the scale of cgroup v2's `cpu.weight`: 1..=10000, [`CPU_WEIGHT_DEFAULT`] where nobody has set one.
        weight: u32,
    },
    /// Memory that the balloon leaves to the guest.
    Memory {
        /// In bytes.
        bytes: u64,
    },
    /// vCPUs plugged in.
    Vcpus {
        /// How many.
        count: u32,
    },
    /// Traffic of each of the VM's disks, reads and writes together.
    DiskLimit {
        /// In bytes per second; `None` is unlimited.
        bytes_per_s: Option<u64>,
        /// In operations per second; `None` is unlimited.
        operations_per_s: Option<u64>,
    },
    /// Traffic of each of the VM's network interfaces.
    NetworkLimit {
        /// Into the VM, in bytes per second; `None` is unlimited.
        in_bytes_per_s: Option<u64>,
        /// Out of the VM, in bytes per second; `None` is unlimited.
        out_bytes_per_s: Option<u64>,
    },
}

impl Setting {
    /// By which means.
    pub fn means(&self) -> Means {
        match self {
            Self::CpuQuota { .. } => Means::CpuQuota,
            Self::CpuWeight { .. } => Means::CpuWeight,
            Self::Memory { .. } => Means::Memory,
            Self::Vcpus { .. } => Means::Vcpus,
            Self::DiskLimit { .. } => Means::DiskLimit,
            Self::NetworkLimit { .. } => Means::NetworkLimit,
        }
    }

    /// The CPU quota among settings, if they name one: `Some(None)` is "unlimited".
    pub fn quota_among(settings: &[Self]) -> Option<Option<f64>> {
        settings.iter().find_map(|setting| match setting {
            Self::CpuQuota { cores } => Some(*cores),
            _ => None,
        })
    }

    /// The balloon's target among settings, if they name one.
    pub fn memory_among(settings: &[Self]) -> Option<u64> {
        settings.iter().find_map(|setting| match setting {
            Self::Memory { bytes } => Some(*bytes),
            _ => None,
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = |limit: &Option<u64>| limit.map_or_else(|| "unlimited".into(), |limit| std::format!("{limit}"));
        match self {
            Self::CpuQuota { cores: Some(cores) } => write!(f, "{cores:.2} cores"),
            Self::CpuQuota { cores: None } => f.write_str("unlimited cores"),
            Self::CpuWeight { weight } => write!(f, "CPU weight {weight}"),
            Self::Memory { bytes } => write!(f, "{:.0} MiB of memory", *bytes as f64 / f64::from(1 << 20)),
            Self::Vcpus { count: 1 } => f.write_str("1 vCPU"),
            Self::Vcpus { count } => write!(f, "{count} vCPUs"),
            Self::DiskLimit { bytes_per_s, operations_per_s } => {
                write!(f, "disk {} bytes/s, {} operations/s", limit(bytes_per_s), limit(operations_per_s))
            }
            Self::NetworkLimit { in_bytes_per_s, out_bytes_per_s } => {
                write!(f, "network in {} bytes/s, out {} bytes/s", limit(in_bytes_per_s), limit(out_bytes_per_s))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn settings_are_told_in_words_with_their_units() {
        assert_eq!(Setting::CpuQuota { cores: Some(1.5) }.to_string(), "1.50 cores");
        assert_eq!(Setting::CpuQuota { cores: None }.to_string(), "unlimited cores");
        assert_eq!(Setting::Memory { bytes: 256 << 20 }.to_string(), "256 MiB of memory");
        let disk = Setting::DiskLimit { bytes_per_s: Some(1_000), operations_per_s: None };
        assert_eq!(disk.to_string(), "disk 1000 bytes/s, unlimited operations/s");
    }

    #[test]
    fn the_quota_is_found_among_settings() {
        let settings = [Setting::Memory { bytes: 7 }, Setting::CpuQuota { cores: None }];
        assert_eq!(Setting::quota_among(&settings), Some(None));
        assert_eq!(Setting::memory_among(&settings), Some(7));
        assert_eq!(Setting::quota_among(&settings[..1]), None);
    }
}
