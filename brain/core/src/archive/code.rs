//! How a value is kept: sixteen bits on a logarithmic scale.
//!
//! A code is the upper half of a non-negative single-precision number: eight bits of exponent and eight of mantissa (one more than
//! bfloat16 has, in place of the sign that demand never has), rounded to the nearest. Codes order as values do, so that a codec for
//! integers sees neighbours as neighbours, and the error is relative: what a VM uses is told as finely whether it is a hundredth of a
//! core or a gigabyte each second.

/// Bits of a single-precision number that are rounded away.
const DROPPED_BITS: u32 = 15;

/// No code is larger: the largest finite value.
const LARGEST: u16 = 0xFEFF;

/// Bound of the relative error of one value, for those above [`SMALLEST_EXACT`]: half a unit of the eighth bit of the mantissa.
pub const RELATIVE_ERROR_MAX: f64 = 1.0 / 512.0;

/// Bits of a code that are rounded away of what is an estimate.
const COARSE_BITS: u32 = 5;

/// The same bound for an estimate.
pub const ESTIMATE_ERROR_MAX: f64 = RELATIVE_ERROR_MAX * (1 << COARSE_BITS) as f64;

/// Below this (the smallest normal number of single precision) the error is absolute, and as small: at most this / 512.
pub const SMALLEST_EXACT: f64 = f32::MIN_POSITIVE as f64;

/// One value, or a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Code(pub(super) u16);

impl Code {
    /// Nothing is known.
    pub(super) const GAP: Self = Self(u16::MAX);

    /// The code nearest to `value`. What is negative or no number counts as zero, what is too large as the largest.
    pub(crate) fn of(value: f64) -> Self {
        let bits = (value as f32).max(0.0).to_bits();
        let rounded = (bits + (1 << (DROPPED_BITS - 1))) >> DROPPED_BITS;
        Self(u16::try_from(rounded).unwrap_or(LARGEST).min(LARGEST))
    }

    /// The nearest one that an estimate is kept as: far fewer different ones, which compress as well.
    pub(super) fn coarse(self) -> Self {
        if self == Self::GAP {
            return self;
        }
        let rounded = (u32::from(self.0) + (1 << (COARSE_BITS - 1))) >> COARSE_BITS << COARSE_BITS;
        Self(u16::try_from(rounded).unwrap_or(LARGEST).min(LARGEST))
    }

    /// The value, unless it is a gap.
    pub(crate) fn value(self) -> Option<f64> {
        (self.0 <= LARGEST).then(|| f64::from(f32::from_bits(u32::from(self.0) << DROPPED_BITS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_demand_has_a_code_all_the_same() {
        for (value, kept) in [(-1.0, 0.0), (f64::NAN, 0.0), (0.0, 0.0), (1.0, 1.0), (1.5, 1.5)] {
            assert_eq!(Code::of(value).value(), Some(kept), "{value}");
        }
        for value in [f64::INFINITY, f64::MAX, f64::from(f32::MAX)] {
            assert_eq!(Code::of(value), Code(LARGEST), "{value}");
        }
        assert_eq!((Code::GAP.value(), Code::GAP.coarse()), (None, Code::GAP));
        assert_eq!(Code(LARGEST).coarse().value(), Some(Code(LARGEST).value().unwrap()));
    }

    proptest! {
        #[test]
        fn the_error_is_within_its_bound(value in prop_oneof![0.0..1e-30f64, 0.0..1.0f64, 0.0..1e15f64, 1e30..3e38f64]) {
            let kept = Code::of(value).value().unwrap();
            // The conversion to single precision rounds too, by a thirty-thousandth of the bound.
            let bound = value.max(SMALLEST_EXACT) * RELATIVE_ERROR_MAX * (1.0 + 1e-4);
            prop_assert!((kept - value).abs() <= bound, "{value} is kept as {kept}");
            let estimate = Code::of(value).coarse().value().unwrap();
            // Both roundings err, the coarse one less than by its bound.
            let bound = value.max(SMALLEST_EXACT) * (ESTIMATE_ERROR_MAX + RELATIVE_ERROR_MAX) * (1.0 + 1e-4);
            prop_assert!((estimate - value).abs() <= bound, "{value} is estimated as {estimate}");
        }

        #[test]
        fn codes_order_as_values_do(a in 0.0..1e12f64, b in 0.0..1e12f64) {
            prop_assert!((a <= b) == (Code::of(a) <= Code::of(b)) || Code::of(a) == Code::of(b));
        }
    }
}
