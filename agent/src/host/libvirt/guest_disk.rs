//! What a guest does on one of its disks: the layer above the host's page cache.

use super::{Hypervisor, HypervisorError};
use gnomon_common::wire::VmId;
use serde::{Deserialize, Serialize};
use virt::domain::BlockStats;

/// What a guest has done on a disk since its QEMU began, by QEMU's count of the guest's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDiskCounters {
    /// Reads.
    pub reads: u64,
    /// Read, in bytes.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Written, in bytes.
    pub written_bytes: u64,
}

impl GuestDiskCounters {
    /// `None` where the hypervisor does not count: libvirt then tells -1.
    fn from_stats(stats: &BlockStats) -> Option<Self> {
        let told = |count: i64| u64::try_from(count).ok();
        Some(Self {
            reads: told(stats.rd_req)?,
            read_bytes: told(stats.rd_bytes)?,
            writes: told(stats.wr_req)?,
            written_bytes: told(stats.wr_bytes)?,
        })
    }
}

impl Hypervisor {
    /// What a running guest has done on its disk of that target (`vda`). Blocks, on QEMU's monitor too.
    pub fn guest_disk(&self, vm: VmId, target: &str) -> Result<GuestDiskCounters, HypervisorError> {
        let stats = self.domain(vm)?.block_stats(target);
        let stats = stats.map_err(|e| HypervisorError::call("read a disk's statistics", &e))?;
        let uncounted = || HypervisorError::Unsupported(format!("libvirt does not count what is done on {target}"));
        GuestDiskCounters::from_stats(&stats).ok_or_else(uncounted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_is_not_told() {
        let stats = |wr_req| BlockStats { rd_req: 1, rd_bytes: 4096, wr_req, wr_bytes: 0, errs: -1 };
        let counters = GuestDiskCounters { reads: 1, read_bytes: 4096, writes: 2, written_bytes: 0 };
        assert_eq!(GuestDiskCounters::from_stats(&stats(2)), Some(counters));
        assert_eq!(GuestDiskCounters::from_stats(&stats(-1)), None);
    }
}
