//! Records of the block probe (`agent-ebpf/src/block.rs`).
//!
//! The kernel is the only writer of [`DiskAccount`], on any CPU and from interrupts, by atomic additions. Each count is exact by itself; two
//! counts of one account may be read a request apart.

/// How many processes one host can have under measurement.
pub const BLOCK_TGIDS_MAX: usize = super::sched::TGIDS_MAX;

/// How many control groups one host can have under measurement: under systemd a VM has a scope and the group below it.
pub const BLOCK_CGROUPS_MAX: usize = super::sched::VM_SLOTS_MAX * 4;

/// How many requests can be under way at once, the whole host's. More than the tags of a few NVMe devices with a queue per CPU; a
/// request that finds no room is counted when it completes, but its submitter and its times are not known.
pub const REQUESTS_MAX: usize = 32_768;

/// How many pairs of VM and disk can be measured at once.
pub const DISK_ACCOUNTS_MAX: usize = super::sched::VM_SLOTS_MAX * 4;

/// Buckets of a latency histogram: bucket `b` counts requests that took `2^b ..= 2^(b+1)-1` µs, the last one all longer (8 s and more).
pub const LATENCY_BUCKETS: usize = 24;

/// The bucket that counts a latency of `latency_ns`; less than 2 µs is bucket 0.
#[inline(always)]
pub const fn latency_bucket(latency_ns: u64) -> usize {
    // 2^10 ns stand for a microsecond: a shift, and 2.4 % short.
    let log2 = (63 - ((latency_ns >> 10) | 1).leading_zeros()) as usize;
    if log2 < LATENCY_BUCKETS { log2 } else { LATENCY_BUCKETS - 1 }
}

/// [`DiskKey::vm`] of what is no VM's, or of a VM's that nothing tells: write-back of the page cache on hosts with cgroup version 1, above all.
pub const VM_NONE: u32 = 0;

/// Whose requests to which disk. Key of the map `DISK_ACCOUNTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskKey {
    /// The number that the agent gave the VM, never given twice; [`VM_NONE`] for the rest of the host.
    pub vm: u32,
    /// The whole disk's major number.
    pub major: u32,
    /// The whole disk's minor number.
    pub minor: u32,
}

/// A request under way. Value of the map `REQUESTS`, keyed by the request's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// When it was made, on `CLOCK_MONOTONIC`.
    pub made_ns: u64,
    /// When the driver got it; 0 before.
    pub issued_ns: u64,
    /// The number of the VM that made it, or [`VM_NONE`].
    pub vm: u32,
    /// Fills the record: the kernel refuses one with bytes that are not set.
    pub reserved: u32,
}

/// Completed requests of one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub struct Direction {
    /// Requests completed, failed ones included.
    pub operations: u64,
    /// Bytes transferred.
    pub bytes: u64,
    /// From the driver to completion, summed, in nanoseconds.
    pub device_ns: u64,
    /// From being made to the driver, summed, in nanoseconds: time in the host's own queues.
    pub queued_ns: u64,
    /// Requests whose times are known, by [`latency_bucket`] of the time at the device.
    pub device_log2: [u64; LATENCY_BUCKETS],
}

/// What one VM did with one disk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub struct DiskAccount {
    /// Reads.
    pub read: Direction,
    /// Writes; neither flushes nor discards, which transfer nothing.
    pub write: Direction,
}

const _: () = assert!(size_of::<Direction>() == (4 + LATENCY_BUCKETS) * 8);

#[cfg(all(test, feature = "wire"))]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_counted_in_the_bucket_of_its_power_of_two() {
        assert_eq!((latency_bucket(0), latency_bucket(2_047)), (0, 0));
        for bucket in 1..LATENCY_BUCKETS {
            assert_eq!(latency_bucket(1024 << bucket), bucket);
            assert_eq!(latency_bucket((2048 << bucket) - 1), bucket);
        }
        assert_eq!(latency_bucket(u64::MAX), LATENCY_BUCKETS - 1);
    }
}
