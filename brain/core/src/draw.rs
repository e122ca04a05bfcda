//! Numbers that look drawn and are not: the same arguments give the same bits, so that what is spread out or sampled stays deterministic.

/// The finaliser of SplitMix64 (Steele and others, 2014): spreads any bits over all bits.
pub(crate) fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Bits for the `number`th draw of a `seed`.
pub(crate) fn draw(seed: u64, number: u64) -> u64 {
    mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_add(0x2545_f491_4f6c_dd1d))
}
