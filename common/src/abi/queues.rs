//! Records of the queue probe (`agent-ebpf/src/queues.rs`).

use super::block::LATENCY_BUCKETS;

/// Packets that are timed at once, on all devices together. A power of two.
pub const TIMED_MAX: usize = 1 << 13;

/// Of these at most so many on one device: a guest that takes nothing must not keep the others' places.
pub const TIMED_PER_TAP_MAX: u64 = 64;

/// A packet that is being timed. Element of the map `TIMED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimedPacket {
    /// Its address in the kernel; 0 where the place is free.
    pub packet: u64,
    /// When it was queued, on `CLOCK_MONOTONIC`.
    pub queued_ns: u64,
    /// Number of the device that it waits at.
    pub ifindex: u32,
    /// Fills the record.
    pub reserved: u32,
}

/// How long packets waited at one device. Value of the map `TAPS`, keyed by the device's number in its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub struct TapQueue {
    /// Packets of the device that are being timed now.
    pub timed: u64,
    /// What those timed have waited together until they were taken, in nanoseconds.
    pub waited_ns: u64,
    /// Packets timed and taken, by [`latency_bucket`](super::block::latency_bucket) of how long they waited.
    pub waits_log2: [u64; LATENCY_BUCKETS],
}

const _: () = assert!(size_of::<TimedPacket>() == 24 && size_of::<TapQueue>() == (2 + LATENCY_BUCKETS) * 8);

/// The place in the map `TIMED` for a packet at that address: two packets of one place are not timed at once. By the upper bits of a product
/// (Knuth, The Art of Computer Programming, vol. 3, 6.4: multiplicative hashing): addresses have zeros in their lower ones.
#[inline(always)]
pub const fn place_of(packet: u64) -> u32 {
    (packet.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TIMED_MAX.trailing_zeros())) as u32
}

#[cfg(all(test, feature = "wire"))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn packets_of_one_slab_have_places_of_their_own() {
        let places: BTreeSet<u32> = (0..1_000).map(|number| place_of(0xffff_8881_0000_0000 + number * 256)).collect();
        assert!(places.iter().all(|&place| (place as usize) < TIMED_MAX));
        assert!(places.len() > 900, "{} places for 1,000 packets", places.len());
    }
}
