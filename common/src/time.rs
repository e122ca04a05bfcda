//! Wall-clock instants as they travel on the wire and through the pure core.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// An instant in milliseconds since the Unix epoch (UTC).
///
/// It is data, not a clock: nothing in this crate or in `gnomon-core` can ask for the current one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant `ms` milliseconds after the Unix epoch.
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_ms(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero where `earlier` is later (a clock that stepped back).
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The latest multiple of `step` (counted from the epoch) that is not after `self`. A zero `step` returns `self`.
    pub const fn floor(self, step: Duration) -> Self {
        let step_ms = step.as_millis() as u64;
        if step_ms == 0 { self } else { Self(self.0 - self.0 % step_ms) }
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let t = Timestamp::from_unix_ms(5);
        assert_eq!(t - Duration::from_secs(1), Timestamp::from_unix_ms(0));
        assert_eq!(Timestamp::from_unix_ms(u64::MAX) + Duration::from_secs(1), Timestamp::from_unix_ms(u64::MAX));
        assert_eq!(t.since(t + Duration::from_secs(9)), Duration::ZERO);
    }

    #[test]
    fn floor_aligns_to_the_epoch() {
        assert_eq!(Timestamp::from_unix_ms(12_345).floor(Duration::from_secs(10)).unix_ms(), 10_000);
        assert_eq!(Timestamp::from_unix_ms(12_345).floor(Duration::ZERO).unix_ms(), 12_345);
    }
}
