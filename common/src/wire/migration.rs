//! Moving a running VM from one host to another.

use super::HostId;
use core::fmt;
use serde::{Deserialize, Serialize};
use std::string::String;
use std::vec::Vec;

/// Where a VM is to go, and how. The agent of the host that it is on asks libvirt for a live migration, peer to peer: from then on the two
/// libvirt daemons do it, whatever becomes of the agents and the brain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// The host to go to; never the one that it is on.
    pub to: HostId,
    /// How the source's libvirt daemon reaches the target's: a libvirt URI such as `qemu+tls://h2/system`, as told in
    /// [`MigrationFacts::uri`].
    pub uri: String,
    /// Given up after this long, in milliseconds: the VM stays where it is.
    pub timeout_ms: u64,
    /// What the memory may take of the link, in bytes per second; `None` is what libvirt has as its default.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Whether QEMU may slow the guest down, in steps, where it writes to its memory faster than the link carries that away.
    pub auto_converge: bool,
    /// Whether disks that only the source has may be copied along. The source's agent has the last word ([`MigrationFacts::copy_bytes_max`]).
    pub copy_storage: bool,
}

/// What a host tells of the part it can take in migrations; in [`super::HostFacts`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationFacts {
    /// Where other hosts' libvirt daemons reach this one's.
    pub uri: String,
    /// The most that is copied of the disks of one VM that leaves this host, in bytes; 0 where none are.
    pub copy_bytes_max: u64,
}

/// What only this host has of a VM's disks, in bytes as allocated in its file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LocalStorage {
    /// In the VM's own files: that has to be copied wherever it goes.
    pub own_bytes: u64,
    /// In the images that these are layers on: copied as well to a host that lacks one of them.
    pub image_bytes: u64,
}

impl LocalStorage {
    /// What has to be copied to a host that has none of it, in bytes.
    pub fn all_bytes(&self) -> u64 {
        self.own_bytes.saturating_add(self.image_bytes)
    }
}

/// How a migration ended well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// From receipt of the command until the VM ran on the other host and was gone from this one, in microseconds.
    pub took_us: u64,
    /// How long the VM stood still, in microseconds, as QEMU tells it; `None` where it does not.
    pub downtime_us: Option<u64>,
    /// What went over the link, in bytes, disks included; `None` where libvirt does not tell.
    pub sent_bytes: Option<u64>,
    /// What was copied of its disks, where any were.
    pub copied: Option<Copied>,
}

/// Disks that went along with a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// What went over the link of them, in bytes, without what the guest wrote anew meanwhile; `None` where libvirt does not tell.
    pub bytes: Option<u64>,
    /// Whether only the VM's own layers were copied, onto images that the target had already.
    pub is_layered: bool,
    /// The files that have been left on the host that the VM has gone from, as they were at the switch. Nobody removes them.
    pub left: Vec<String>,
}

/// How far a migration has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MigrationProgress {
    /// Since it began, in milliseconds.
    pub elapsed_ms: u64,
    /// Sent so far, in bytes of memory and storage.
    pub sent_bytes: u64,
    /// Left to send as far as is known, in bytes.
    pub remaining_bytes: u64,
    /// What the guest writes to its memory, in bytes per second; `None` until QEMU has measured it.
    pub dirty_bytes_per_s: Option<u64>,
}

/// Why a VM stays where it is, found before anything was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Immovable {
    /// Its definition holds it here: a device of this host, memory or vCPUs bound to this host's.
    #[error("it is bound to this host by {0}")]
    Bound(String),
    /// A disk is on this host alone, and is not to be copied, or cannot be.
    #[error("its disk {0} is not shared with the target")]
    Storage(String),
    /// More of its disks is on this host alone than its agent copies.
    #[error("{bytes} bytes of its disks would have to be copied, and this host's agent copies {bytes_max} at most")]
    StorageTooLarge {
        /// What would have to be copied.
        bytes: u64,
        /// What may be.
        bytes_max: u64,
    },
    /// The target has no place for a copy of its disks.
    #[error("its disks cannot be copied to the target: {0}")]
    NoPlace(String),
    /// The target's libvirt daemon does not answer.
    #[error("the target's libvirt does not answer: {0}")]
    Unreachable(String),
    /// The target cannot give the guest the CPU that it sees.
    #[error("the target's CPU differs: {0}")]
    Cpu(String),
    /// The target has not enough memory to spare.
    #[error("the target has {available_bytes} bytes of memory free, it needs {needed_bytes}")]
    Memory {
        /// What it needs, the target's reserve included.
        needed_bytes: u64,
        /// What there is.
        available_bytes: u64,
    },
    /// A network or bridge that it is connected to is missing on the target.
    #[error("the target has no network or bridge {0}")]
    Network(String),
    /// The target has a VM of this identity or name already.
    #[error("the target has a VM of this identity or name already")]
    AlreadyThere,
    /// The target is the host that it is on.
    #[error("the target is this very host")]
    SameHost,
}

/// Where the copies of a VM are, after a migration that did not end well. At no time do two of them run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whereabouts {
    /// It runs here, as before.
    Here,
    /// It stands still here, since it could not be shown that the target does not run it. A person has to look, or the agent finds out as
    /// soon as the target's libvirt answers.
    Parked,
}

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to host {}", self.to)
    }
}

impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here => "it runs where it was",
            Self::Parked => "it stands still until it is known that the target does not run it",
        })
    }
}
