//! Copies of disks that have no base, for a shadow to stand on.

use super::{BLUEPRINT_DISKS_MAX, DiskBlueprint, VmId};
use core::fmt;
use serde::{Deserialize, Serialize};
use std::format;
use std::string::String;
use std::vec::Vec;

/// Most shadows for which one host keeps copies of disks.
pub const COPIES_MAX: usize = 256;
/// Longest path of a copy of a disk, in bytes.
pub const COPY_PATH_BYTES_MAX: usize = 4096;
/// Longest address of a libvirt that takes copies, in bytes.
pub const RECEIVING_URI_BYTES_MAX: usize = 512;
/// Longest folder in which copies are taken, in bytes.
pub const RECEIVING_DIRECTORY_BYTES_MAX: usize = 1024;

/// A copy of a disk: one qcow2 file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    /// The file: on the shadow's host where it was sent there, else on storage that both hosts see under the same path.
    pub path: String,
    /// Its length, in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, in 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// Copies of a production's disks that are to be: of all that have no base, as they are at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imaging {
    /// For which shadow. They are named by it, and go when it is retired on the host that has them.
    pub shadow: VmId,
    /// Read from the production's disks, and sent, at most so fast, all together, in bytes per second; `None` is unlimited.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Given up after so long from receipt, in milliseconds.
    pub timeout_ms: u64,
    /// Where they are sent once they are made, and not kept here; `None` leaves them on storage that both hosts see.
    pub send_to: Option<Receiving>,
}

/// Shadows for which a host keeps copies of disks, whole or in the making, at most [`COPIES_MAX`] of either kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCopies {
    /// Made there; `None` where its agent knows no place for them, and so neither makes nor deletes any.
    pub made: Option<Vec<VmId>>,
    /// Sent there; `None` likewise.
    pub received: Option<Vec<VmId>>,
}

/// Where a host takes copies of disks that other hosts send: a folder of its own, written to by way of its libvirt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// Where other hosts' agents reach its libvirt.
    pub uri: String,
    /// The folder, over which a storage pool of that libvirt is active.
    pub directory: String,
    /// The user whose the files are to be: its agent's, which checks them.
    pub owner: u32,
    /// The group whose they are to be.
    pub group: u32,
    /// All that is there is together at most so long, in bytes.
    pub bytes_max: u64,
}

/// Copies that are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imaged {
    /// From receipt until then, in microseconds.
    pub took_us: u64,
    /// By the guest's device, such as `vda`, at most [`BLUEPRINT_DISKS_MAX`].
    pub disks: Vec<(String, DiskCopy)>,
}

/// Why copies cannot be those of a production's disks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCopies {
    /// There are more than a VM has disks.
    #[error("copies of {0} disks, and at most {BLUEPRINT_DISKS_MAX} are made")]
    Many(usize),
    /// A file has no path that can be one.
    #[error("the path of the copy of {0:.32} is not absolute, or longer than {COPY_PATH_BYTES_MAX} bytes")]
    Path(String),
    /// What should be a digest is none.
    #[error("the SHA-256 of the copy of {0:.32} is not 64 lower-case hexadecimal digits")]
    Digest(String),
    /// It is longer than a qcow2 file of all that the disk can hold.
    #[error("the copy of {device} has {bytes} bytes, and at most {bytes_max} can be of that disk")]
    Long {
        /// The guest's device.
        device: String,
        /// The file's length, in bytes.
        bytes: u64,
        /// What it can be.
        bytes_max: u64,
    },
}

impl KeptCopies {
    /// Whether it is within its bounds.
    pub fn is_bounded(&self) -> bool {
        [&self.made, &self.received].into_iter().flatten().all(|kept| kept.len() <= COPIES_MAX)
    }

    /// All of them; one that has both is told twice.
    pub fn all(&self) -> impl Iterator<Item = VmId> {
        [&self.made, &self.received].into_iter().flatten().flatten().copied()
    }

    /// Nothing of a shadow is kept any more.
    pub fn forget(&mut self, shadow: VmId) {
        for kept in [&mut self.made, &mut self.received].into_iter().flatten() {
            kept.retain(|other| *other != shadow);
        }
    }
}

impl Receiving {
    /// Whether it is within its bounds.
    pub fn is_bounded(&self) -> bool {
        let plain = |text: &str, bytes_max: usize| !text.is_empty() && text.len() <= bytes_max;
        plain(&self.uri, RECEIVING_URI_BYTES_MAX)
            && plain(&self.directory, RECEIVING_DIRECTORY_BYTES_MAX)
            && self.directory.starts_with('/')
    }

    /// The file of the copy of a disk there, by the guest's device.
    pub fn file(&self, shadow: VmId, device: &str) -> String {
        format!("{}/{}{device}.qcow2", self.directory, received_prefix(shadow))
    }
}

/// How the names of a shadow's copies begin in the folder where they are taken.
pub fn received_prefix(shadow: VmId) -> String {
    format!("{}.", shadow.0.hyphenated())
}

impl Imaged {
    /// Looks whether they can be copies of these disks. What else was copied is nobody's, but has to be in order, too.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self, disks: &[DiskBlueprint]) -> Result<(), BadCopies> {
        if self.disks.len() > BLUEPRINT_DISKS_MAX {
            return Err(BadCopies::Many(self.disks.len()));
        }
        for (device, copy) in &self.disks {
            if copy.path.len() > COPY_PATH_BYTES_MAX || !copy.path.starts_with('/') {
                return Err(BadCopies::Path(device.clone()));
            }
            if copy.sha256.len() != 64 || !copy.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(BadCopies::Digest(device.clone()));
            }
            let disk = disks.iter().find(|disk| disk.device == *device);
            if let Some(bytes_max) = disk.map(DiskBlueprint::copy_bytes_max).filter(|most| copy.bytes > *most) {
                return Err(BadCopies::Long { device: device.clone(), bytes: copy.bytes, bytes_max });
            }
        }
        Ok(())
    }

    /// The length of all files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.disks.iter().fold(0, |sum: u64, (_, copy)| sum.saturating_add(copy.bytes))
    }
}

impl fmt::Display for Imaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy its disks for its shadow {}", self.shadow)?;
        self.send_to.as_ref().map_or(Ok(()), |to| write!(f, ", then send them to {}", to.uri))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Base;
    use super::*;
    use uuid::Uuid;

    fn disk(size_bytes: u64) -> DiskBlueprint {
        DiskBlueprint { device: "vda".into(), bus: "virtio".into(), size_bytes, base: Base::Copyable }
    }

    fn copy() -> DiskCopy {
        DiskCopy { path: "/copies/vda.qcow2".into(), bytes: 1 << 20, sha256: "0a".repeat(32) }
    }

    fn check(copy: DiskCopy) -> Result<(), BadCopies> {
        Imaged { took_us: 0, disks: [("vda".into(), copy)].into() }.check(&[disk(1 << 30)])
    }

    #[test]
    fn copies_that_cannot_be_of_these_disks_are_refused() {
        assert_eq!(check(copy()), Ok(()));
        let most = (1 << 30) + (1 << 26) + (1 << 24);
        assert_eq!(check(DiskCopy { bytes: most, ..copy() }), Ok(()));
        let long = BadCopies::Long { device: "vda".into(), bytes: most + 1, bytes_max: most };
        assert_eq!(check(DiskCopy { bytes: most + 1, ..copy() }), Err(long));
        for path in ["", "copies/vda", &"/".repeat(COPY_PATH_BYTES_MAX + 1)] {
            assert_eq!(check(DiskCopy { path: path.into(), ..copy() }), Err(BadCopies::Path("vda".into())));
        }
        for digits in ["", &"0A".repeat(32), &"0g".repeat(32), &"0a".repeat(33)] {
            assert_eq!(check(DiskCopy { sha256: digits.into(), ..copy() }), Err(BadCopies::Digest("vda".into())));
        }
        let many = [const { String::new() }; BLUEPRINT_DISKS_MAX + 1].map(|device| (device, copy())).into();
        assert_eq!(Imaged { took_us: 0, disks: many }.check(&[]), Err(BadCopies::Many(BLUEPRINT_DISKS_MAX + 1)));
    }

    #[test]
    fn where_copies_are_taken_is_bounded_and_each_shadow_has_names_of_its_own() {
        let uri = String::from("qemu+tls://h2/system");
        let good = Receiving { uri, directory: "/srv/received".into(), owner: 1, group: 1, bytes_max: 1 };
        assert!(good.is_bounded());
        for directory in ["", "srv", &"/".repeat(RECEIVING_DIRECTORY_BYTES_MAX + 1)] {
            assert!(!Receiving { directory: directory.into(), ..good.clone() }.is_bounded(), "{directory}");
        }
        for uri in [String::new(), "q".repeat(RECEIVING_URI_BYTES_MAX + 1)] {
            assert!(!Receiving { uri, ..good.clone() }.is_bounded());
        }
        let shadow = VmId(Uuid::from_u128(9));
        assert_eq!(good.file(shadow, "vda"), "/srv/received/00000000-0000-0000-0000-000000000009.vda.qcow2");
        assert!(COPY_PATH_BYTES_MAX > RECEIVING_DIRECTORY_BYTES_MAX + received_prefix(shadow).len() + 64);
    }
}
