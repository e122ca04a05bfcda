//! Disks by name.

use crate::reading::DiskId;
use std::fs;

/// The disk's name as in `/sys/block`; `MAJOR:MINOR` where it is no longer there.
pub fn name(disk: DiskId) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{disk}"));
    link.ok().and_then(|link| Some(link.file_name()?.to_str()?.to_owned())).unwrap_or_else(|| disk.to_string())
}
