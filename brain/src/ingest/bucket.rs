//! A token bucket: so many at once, so many over time. Pure: the time comes in.

use std::time::Duration;
use tokio::time::Instant;

/// What is left of an allowance that refills steadily.
#[derive(Debug)]
pub(super) struct Bucket {
    burst: f64,
    per_s: f64,
    level: f64,
    seen: Instant,
    refused: u64,
}

impl Bucket {
    /// A full one: `burst` at once, and one more every `interval`.
    pub(super) fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { burst, per_s: 1.0 / interval.as_secs_f64(), level: burst, seen: now, refused: 0 }
    }

    /// Takes one, if there is one; then tells how many were refused since the last that was taken.
    pub(super) fn take(&mut self, now: Instant) -> Option<u64> {
        let elapsed = now.saturating_duration_since(self.seen).as_secs_f64();
        self.level = (self.level + elapsed * self.per_s).min(self.burst);
        self.seen = self.seen.max(now);
        if self.level < 1.0 {
            self.refused += 1;
            return None;
        }
        self.level -= 1.0;
        Some(std::mem::take(&mut self.refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_then_one_per_interval_and_what_was_refused_is_told() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2, Duration::from_secs(10), start);
        let mut at = |s| bucket.take(start + Duration::from_secs(s));
        assert_eq!([at(0), at(0), at(0), at(9)], [Some(0), Some(0), None, None]);
        assert_eq!([at(10), at(10), at(20)], [Some(2), None, Some(1)]);
        assert_eq!([at(1000), at(1000), at(1000)], [Some(0), Some(0), None], "it never holds more than the burst");
    }

    proptest! {
        #[test]
        fn no_more_pass_than_the_burst_and_the_time_allow(gaps_ms in proptest::collection::vec(0u64..3000, 1..200)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(5, Duration::from_secs(1), start);
            let (mut now_ms, mut passed) = (0, 0u64);
            for gap_ms in gaps_ms {
                now_ms += gap_ms;
                passed += u64::from(bucket.take(start + Duration::from_millis(now_ms)).is_some());
                prop_assert!(passed <= 5 + now_ms / 1000);
            }
        }
    }
}
