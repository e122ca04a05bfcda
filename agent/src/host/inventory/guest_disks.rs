//! What is known of those of a VM's disks that lie behind the host's page cache, in the layer above it.

use crate::host::libvirt::GuestDiskCounters;
use serde::{Deserialize, Serialize};

/// A VM that has such disks is asked this often, in seconds: a question for each costs its QEMU half a millisecond and more.
pub(crate) const ASKED_EVERY_S: u64 = 10;

/// What QEMU answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDisksReading {
    /// When its process began, in clock ticks since the host booted: another process counts from zero.
    pub start_ticks: u64,
    /// When it had answered, in nanoseconds of `CLOCK_MONOTONIC`.
    pub taken_ns: u64,
    /// Its disks by target, in the order of the definition.
    pub disks: Vec<(String, GuestDiskCounters)>,
}
