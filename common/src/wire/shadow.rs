//! Shadows: small copies of production VMs on other hosts, under a synthetic load.
//!
//! A shadow is a VM of its own, with an identity of its own. Its host's agent makes it from a [`Blueprint`], which names what may be copied:
//! what a blueprint has no field for (a device passed through, a host's folder, a network, a second disk's lock) cannot get into a shadow.
//! A shadow's life is five [`ShadowOrder`]s, each of which says what is to be, so that doing it twice is doing it once. Where a disk of the
//! production has no base, [`Imaging`](super::Imaging) asks its host for a copy of it before.

use super::{CPU_WEIGHT_DEFAULT, DiskCopy, Receiving, VmId};
use core::fmt;
use serde::{Deserialize, Serialize};
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

/// Most disks of a blueprint.
pub const BLUEPRINT_DISKS_MAX: usize = 16;
/// Most network interfaces of a blueprint.
pub const BLUEPRINT_INTERFACES_MAX: usize = 8;
/// Most steps of a profile.
pub const PROFILE_STEPS_MAX: usize = 256;
/// Largest burst of network traffic in a profile: one second in a minute. A pacer refuses a profile with a larger one.
pub const NETWORK_BURST_MAX: f64 = 60.0;
/// Copies of disks are reckoned to be read at this, in bytes per second, while their checksums are made: less than the share of a core that agents
/// take for that should ever do.
pub const READING_BYTES_PER_S: u64 = 20_000_000;

/// Copies are not waited for longer than this while they are read, in milliseconds: a day.
const READING_MS_MAX: u64 = 86_400_000;

/// What of a production VM makes up its shadow: told by its host's agent, in answer to [`Action::Describe`](super::Action::Describe).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blueprint {
    /// The production's name.
    pub name: String,
    /// Whether it runs by KVM; else it is emulated, and so is its shadow.
    pub kvm: bool,
    /// The guest's architecture, such as `x86_64`.
    pub arch: String,
    /// The machine type, such as `pc-q35-7.2`.
    pub machine: String,
    /// The CPU model by name; `None` is what the hypervisor has as its default.
    pub cpu_model: Option<String>,
    /// What it boots.
    pub boot: Boot,
    /// vCPUs plugged in.
    pub vcpus: u32,
    /// Memory, in bytes: what its balloon leaves it.
    pub memory_bytes: u64,
    /// On the scale of cgroup v2's `cpu.weight`, by libvirt's word; [`CPU_WEIGHT_DEFAULT`] where nobody has set one.
    #[serde(default = "cpu_weight_default")]
    pub cpu_weight: u32,
    /// The highest limit on the traffic of one of its disks, in bytes per second, reads and writes together; `None` where one of them has none.
    #[serde(default)]
    pub disk_bytes_per_s_max: Option<u64>,
    /// The highest limit on the traffic of one of its network interfaces in one direction, in bytes per second; `None` where one of them has none.
    #[serde(default)]
    pub network_bytes_per_s_max: Option<u64>,
    /// Its disks, at most [`BLUEPRINT_DISKS_MAX`].
    pub disks: Vec<DiskBlueprint>,
    /// The models of its network interfaces, at most [`BLUEPRINT_INTERFACES_MAX`].
    pub interfaces: Vec<String>,
}

/// What a guest boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// What its disks begin with, by BIOS.
    Bios,
    /// What its disks begin with, by UEFI. The shadow begins with empty variables.
    Uefi {
        /// The firmware's code, a file on the host.
        loader: String,
        /// What its variables begin with, a file on the host.
        template: Option<String>,
    },
    /// A kernel that QEMU loads.
    Kernel {
        /// The kernel, a file on the host.
        kernel: String,
        /// Its first root, a file on the host.
        initrd: Option<String>,
        /// Its command line.
        command_line: String,
    },
}

/// One disk of a blueprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBlueprint {
    /// The guest's device, such as `vda`.
    pub device: String,
    /// Its bus, such as `virtio`.
    pub bus: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// What it was made from.
    pub base: Base,
}

/// What a disk was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// An image below the production's own layer, which nobody writes to: a shadow's layer goes on top of the same.
    Image {
        /// The file.
        path: String,
        /// Its format: `raw`, `qcow2`.
        format: String,
    },
    /// There is none below it, and its host's agent makes a copy of it if it is told to.
    Copyable,
    /// There was none below it: a copy of the disk as it was at one moment, which nobody writes to.
    Copied(DiskCopy),
    /// There is none below it: the production writes to the only layer there is, of which no copy is made.
    None,
}

/// What is to be of a shadow on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShadowOrder {
    /// It is defined here, with disks of its own, and does not run yet.
    Copy(Box<ShadowSpec>),
    /// It runs here.
    Start,
    /// Its pacer follows this profile, from now on.
    Pace(Profile),
    /// Nothing is left of it here: no domain, no file, no copy of a disk.
    Retire,
    /// It runs here, and may use this much from now on: within what it is defined with, since neither vCPUs nor memory beyond that can be given to
    /// it while it runs.
    Resize(ShadowSize),
}

/// A shadow that is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShadowSpec {
    /// Of which production VM.
    pub of: VmId,
    /// What it is made from.
    pub blueprint: Blueprint,
    /// Its size.
    pub size: ShadowSize,
}

/// The size of a shadow. Bandwidths are of each disk and each interface; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShadowSize {
    /// CPU quota of the whole domain, in cores.
    pub cpu_cores: f64,
    /// vCPUs.
    pub vcpus: u32,
    /// On the scale of cgroup v2's `cpu.weight`.
    pub cpu_weight: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Disk traffic, in bytes per second.
    pub disk_bytes_per_s: Option<u64>,
    /// Network traffic in each direction, in bytes per second.
    pub network_bytes_per_s: Option<u64>,
}

/// What a pacer is to make its guest want, from its receipt on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// After this long without another profile it idles, in milliseconds: a brain that is gone leaves no load behind.
    pub valid_ms: u64,
    /// At most [`PROFILE_STEPS_MAX`], by time; the last one holds until the profile ends. Before the first it idles.
    pub steps: Vec<ProfileStep>,
}

/// A load from some time on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfileStep {
    /// After receipt, in milliseconds.
    pub after_ms: u64,
    /// What is wanted.
    pub load: Load,
    /// Highest second of network traffic over its mean, 1..=[`NETWORK_BURST_MAX`] (0 is taken for 1): 1 is even, 10 is a second in ten that carries it all.
    pub network_burst: f64,
}

/// What a guest wants or did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Load {
    /// In cores.
    pub cpu_cores: f64,
    /// Memory that is touched again and again, in bytes.
    pub memory_bytes: u64,
    /// Read from its disks, in bytes per second.
    pub disk_read_bytes_per_s: u64,
    /// Written to its disks, in bytes per second.
    pub disk_write_bytes_per_s: u64,
    /// Sent on its network, in bytes per second.
    pub network_bytes_per_s: u64,
}

/// What an order came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShadowDone {
    /// It is defined.
    Copied {
        /// From receipt until then, in microseconds.
        took_us: u64,
        /// Copied from other disks, in bytes; nothing where its disks are layers.
        copied_bytes: u64,
    },
    /// It runs.
    Started {
        /// From receipt until then, in microseconds.
        took_us: u64,
    },
    /// Its pacer has the profile.
    Paced,
    /// Nothing is left of it.
    Retired,
    /// It may use what was asked for, and does not hold more memory than that.
    Resized {
        /// From receipt until then, in microseconds.
        took_us: u64,
    },
}

/// Why a VM has no shadow, or not there, found before anything was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Unshadowable {
    /// It takes a part that this host has not: an image, a firmware.
    #[error("this host has no {0}")]
    Missing(String),
    /// The copy of a disk is not what was made.
    #[error("the copy {0} is not what was made")]
    Damaged(String),
    /// It has a disk without a base, and copies of disks are not allowed.
    #[error("its disk {0} is no layer on an image, and copies of disks are not allowed here")]
    NoBase(String),
    /// Its definition is nothing that a shadow can be made from.
    #[error("its definition: {0}")]
    Definition(String),
    /// The host has as many shadows as it takes, or no room for this one.
    #[error("no room: {0}")]
    NoRoom(String),
    /// Its identity or name is taken here by a VM that is no shadow of this production.
    #[error("its identity or name is taken here by another VM")]
    Taken,
    /// The order is for a VM that is no shadow.
    #[error("it is no shadow")]
    NoShadow,
    /// The network of shadows is not cut off from everything else.
    #[error("the shadows' network is not isolated: {0}")]
    NotIsolated(String),
    /// It cannot be of that size while it runs: it has to be made anew.
    #[error("it cannot be resized: {0}")]
    Unresizable(String),
}

/// What shadows a host takes; in [`super::HostFacts`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShadowFacts {
    /// At most so many.
    pub shadows_max: u32,
    /// Together at most this share of its CPU and of its memory, 0..=1.
    pub share_max: f64,
    /// Where copies of disks are sent that its shadows are to stand on; `None` where it sees those of other hosts, or takes none.
    pub receives: Option<Box<Receiving>>,
}

/// What a window tells of a shadow beside what it tells of any VM.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShadowWindow {
    /// Of which production VM.
    pub of: VmId,
    /// What its pacer last said; `None` where none has spoken in this window: an image without one still measures its host.
    pub pacer: Option<PacerWindow>,
}

/// What a pacer says, as means over its last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PacerWindow {
    /// What it was to make.
    pub wanted: Load,
    /// What it made, by its own measure.
    pub made: Load,
}

impl Blueprint {
    /// Whether it is within its bounds.
    pub fn is_bounded(&self) -> bool {
        self.disks.len() <= BLUEPRINT_DISKS_MAX && self.interfaces.len() <= BLUEPRINT_INTERFACES_MAX
    }

    /// The copies that it stands on.
    pub fn copies(&self) -> impl Iterator<Item = &DiskCopy> {
        self.disks.iter().filter_map(|disk| match &disk.base {
            Base::Copied(copy) => Some(copy),
            _ => None,
        })
    }

    /// Longest time that may pass while the copies that it stands on are read once, in milliseconds: at [`READING_BYTES_PER_S`], and a day at most.
    pub fn reading_ms(&self) -> u64 {
        let bytes = self.copies().fold(0, |sum: u64, copy| sum.saturating_add(copy.bytes));
        (bytes / (READING_BYTES_PER_S / 1000)).min(READING_MS_MAX)
    }
}

impl DiskBlueprint {
    /// The longest that a copy of it can be, in bytes: all that it holds, and a sixteenth and 16 MiB for what qcow2 says of that.
    pub fn copy_bytes_max(&self) -> u64 {
        self.size_bytes.saturating_add(self.size_bytes / 16).saturating_add(16 << 20)
    }
}

impl fmt::Display for ShadowOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy(spec) => write!(f, "copy VM {} as its shadow, {}", spec.of, spec.size),
            Self::Start => f.write_str("start the shadow"),
            Self::Pace(profile) => write!(f, "pace the shadow by {} steps", profile.steps.len()),
            Self::Retire => f.write_str("retire the shadow"),
            Self::Resize(size) => write!(f, "resize the shadow to {size}"),
        }
    }
}

impl fmt::Display for ShadowSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} cores, {:.0} MiB", self.cpu_cores, self.memory_bytes as f64 / f64::from(1 << 20))
    }
}

/// The weight of a blueprint that was stored before there was one in it.
fn cpu_weight_default() -> u32 {
    CPU_WEIGHT_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(size_bytes: u64) -> DiskBlueprint {
        DiskBlueprint { device: "vda".into(), bus: "virtio".into(), size_bytes, base: Base::Copyable }
    }

    #[test]
    fn what_all_copies_take_is_bounded_whatever_was_told() {
        let huge = DiskCopy { path: "/copies/vda.qcow2".into(), bytes: u64::MAX, sha256: "0a".repeat(32) };
        let disk = DiskBlueprint { base: Base::Copied(huge.clone()), ..disk(u64::MAX) };
        assert_eq!(disk.copy_bytes_max(), u64::MAX);
        let blueprint = Blueprint {
            name: String::new(),
            kvm: true,
            arch: String::new(),
            machine: String::new(),
            cpu_model: None,
            boot: Boot::Bios,
            vcpus: 1,
            memory_bytes: 0,
            cpu_weight: CPU_WEIGHT_DEFAULT,
            disk_bytes_per_s_max: None,
            network_bytes_per_s_max: None,
            disks: [disk.clone(), disk].into(),
            interfaces: Vec::new(),
        };
        assert_eq!(blueprint.reading_ms(), READING_MS_MAX);
        let disks = [("vda".into(), huge.clone()), ("vdb".into(), huge)].into();
        assert_eq!(super::super::Imaged { took_us: 0, disks }.bytes(), u64::MAX);
    }
}
