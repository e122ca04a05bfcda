//! A domain's memory: what its balloon holds, what its guest says, and the balloon's target.

use super::{Hypervisor, HypervisorError};
use gnomon_common::wire::VmId;
use virt::domain::MemoryStat;
use virt::sys;

/// What libvirt tells of a running domain's memory; everything but the balloon's size comes from the guest's driver.
///
/// Counters are cumulative since the guest booted. libvirt passes the last answer of the driver on, however old it is:
/// [`Self::updated_unix_s`] tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// What the balloon leaves to the guest, by QEMU's own account; `None` without a balloon device.
    pub balloon_bytes: Option<u64>,
    /// All the guest's kernel manages (libvirt's "available", virtio's `VIRTIO_BALLOON_S_MEMTOT`), in bytes.
    pub total_bytes: Option<u64>,
    /// Used for nothing at all (`S_MEMFREE`), in bytes.
    pub unused_bytes: Option<u64>,
    /// What a new process could have without swapping (`S_AVAIL`; drivers before Linux 4.6 do not send it), in bytes.
    pub usable_bytes: Option<u64>,
    /// Caches of files, which the guest can give up (`S_CACHES`), in bytes.
    pub disk_caches_bytes: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Read back from swap, in bytes.
    pub swap_in_bytes: Option<u64>,
    /// Written to swap, in bytes.
    pub swap_out_bytes: Option<u64>,
    /// When the driver answered last, in seconds since the epoch by the host's clock; `None` if it never has.
    pub updated_unix_s: Option<u64>,
}

impl MemoryStats {
    fn from_tags(stats: &[MemoryStat]) -> Self {
        let mut found = Self::default();
        for stat in stats {
            let bytes = Some(stat.val.saturating_mul(1024));
            match stat.tag {
                sys::VIR_DOMAIN_MEMORY_STAT_ACTUAL_BALLOON => found.balloon_bytes = bytes,
                sys::VIR_DOMAIN_MEMORY_STAT_AVAILABLE => found.total_bytes = bytes,
                sys::VIR_DOMAIN_MEMORY_STAT_UNUSED => found.unused_bytes = bytes,
                sys::VIR_DOMAIN_MEMORY_STAT_USABLE => found.usable_bytes = bytes,
                sys::VIR_DOMAIN_MEMORY_STAT_DISK_CACHES => found.disk_caches_bytes = bytes,
                sys::VIR_DOMAIN_MEMORY_STAT_MAJOR_FAULT => found.major_faults = Some(stat.val),
                sys::VIR_DOMAIN_MEMORY_STAT_SWAP_IN => found.swap_in_bytes = bytes,
                sys::VIR_DOMAIN_MEMORY_STAT_SWAP_OUT => found.swap_out_bytes = bytes,
                sys::VIR_DOMAIN_MEMORY_STAT_LAST_UPDATE => {
                    found.updated_unix_s = Some(stat.val).filter(|&second| second > 0);
                }
                _ => {}
            }
        }
        found
    }
}

impl Hypervisor {
    /// What libvirt tells of a running domain's memory. Blocks, on QEMU's monitor too.
    pub fn memory_stats(&self, vm: VmId) -> Result<MemoryStats, HypervisorError> {
        let stats = self.domain(vm)?.memory_stats(0);
        stats
            .map(|stats| MemoryStats::from_tags(&stats))
            .map_err(|e| HypervisorError::call("read the memory statistics", &e))
    }

    /// Has the guest's balloon driver asked for statistics every so many seconds, for as long as this domain runs. Blocks.
    pub fn set_memory_stats_period(&self, vm: VmId, period_s: u32) -> Result<(), HypervisorError> {
        let period_s = i32::try_from(period_s).unwrap_or(i32::MAX);
        self.domain(vm)?
            .set_memory_stats_period(period_s, sys::VIR_DOMAIN_MEM_LIVE)
            .map_err(|e| HypervisorError::call("set the period of the memory statistics", &e))
    }

    /// Sets the target of a running domain's balloon. The guest's driver moves it over seconds, as far as it can. Blocks.
    pub fn set_balloon(&self, vm: VmId, bytes: u64) -> Result<(), HypervisorError> {
        self.domain(vm)?
            .set_memory_flags(bytes.div_ceil(1024), sys::VIR_DOMAIN_MEM_LIVE)
            .map_err(|e| HypervisorError::call("set the balloon's target", &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kibibytes_become_bytes_counts_stay_counts_and_what_is_not_told_is_absent() {
        let tag = |tag, val| MemoryStat { tag, val };
        let stats = MemoryStats::from_tags(&[
            tag(sys::VIR_DOMAIN_MEMORY_STAT_ACTUAL_BALLOON, 131_072),
            tag(sys::VIR_DOMAIN_MEMORY_STAT_USABLE, 7),
            tag(sys::VIR_DOMAIN_MEMORY_STAT_MAJOR_FAULT, 9),
            tag(sys::VIR_DOMAIN_MEMORY_STAT_LAST_UPDATE, 0),
            tag(sys::VIR_DOMAIN_MEMORY_STAT_RSS, 1),
        ]);
        let expected = MemoryStats {
            balloon_bytes: Some(128 << 20),
            usable_bytes: Some(7 << 10),
            major_faults: Some(9),
            ..MemoryStats::default()
        };
        assert_eq!(stats, expected, "a last update at 0 means that there was none");
    }
}
