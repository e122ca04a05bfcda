//! When samples are taken and windows end. Pure: the caller brings both clocks.
//!
//! Windows begin at multiples of their length of the *wall* clock, so that those of different hosts line up, but are timed on the
//! *monotonic* clock, so that a wall clock that steps cannot make a window long, short or negative. When the two have drifted
//! apart by more than half a second (someone set the clock), the grid is laid anew.

use gnomon_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A wall clock that is off by more than this against the monotonic one was set, not slewed (NTP slews both alike).
const STEP_MAX: Duration = Duration::from_millis(500);

/// An instant on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic_ns: u64,
    /// The wall clock.
    pub wall: Timestamp,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let since_boot = Duration::try_from(monotonic).unwrap_or_default();
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            monotonic_ns: u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX),
            wall: Timestamp::from_unix_ms(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// The current window and the ticks within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    sample_ns: u64,
    window_ns: u64,
    /// The current window's beginning on the monotonic clock; negative when that was before it started.
    start_ns: i64,
    start: Timestamp,
}

impl Grid {
    /// The grid whose current window contains `now`. Both lengths are at least 1 ms.
    pub fn align(now: Now, sample: Duration, window: Duration) -> Self {
        let ns = |length: Duration| u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).max(1_000_000);
        let start = now.wall.floor(window);
        let into_ns = signed(u64::try_from(now.wall.since(start).as_nanos()).unwrap_or(u64::MAX));
        let start_ns = signed(now.monotonic_ns).saturating_sub(into_ns);
        Self { sample_ns: ns(sample), window_ns: ns(window), start_ns, start }
    }

    /// Beginning of the current window on the wall clock.
    pub fn window_start(&self) -> Timestamp {
        self.start
    }

    /// Length of a window, in seconds.
    pub fn window_s(&self) -> f64 {
        self.window_ns as f64 / 1e9
    }

    /// Length of a window, in milliseconds.
    pub fn window_ms(&self) -> u32 {
        u32::try_from(self.window_ns / 1_000_000).unwrap_or(u32::MAX)
    }

    /// The first tick after `now_ns`, on the monotonic clock.
    pub fn next_tick_ns(&self, now_ns: u64) -> u64 {
        let sample_ns = signed(self.sample_ns);
        let ticks = (signed(now_ns) - self.start_ns).div_euclid(sample_ns) + 1;
        u64::try_from(self.start_ns + ticks * sample_ns).unwrap_or(0)
    }

    /// How many ticks lie between two instants at which the sampler ticked, beyond the one that was due.
    pub fn skipped(&self, before_ns: u64, now_ns: u64) -> u64 {
        // Half a sample of lateness is jitter: the tick still is the one that was due.
        let elapsed = now_ns.saturating_sub(before_ns).saturating_add(self.sample_ns / 2);
        (elapsed / self.sample_ns).saturating_sub(1)
    }

    /// Whether a sample that ends at `now_ns` is the current window's last: the next one's middle would lie in the next window.
    pub fn ends_window(&self, now_ns: u64) -> bool {
        self.windows_ended(now_ns) > 0
    }

    /// Goes on to the window that the next sample belongs to. Windows that nobody sampled are passed over.
    pub fn advance(&mut self, now_ns: u64) {
        let windows = self.windows_ended(now_ns);
        self.start_ns = self.start_ns.saturating_add(signed(windows * self.window_ns));
        self.start = self.start + Duration::from_nanos(windows * self.window_ns);
    }

    /// How many windows have ended when a sample ends at `now_ns`.
    fn windows_ended(&self, now_ns: u64) -> u64 {
        let into_ns = signed(now_ns.saturating_add(self.sample_ns / 2)).saturating_sub(self.start_ns);
        u64::try_from(into_ns).unwrap_or(0) / self.window_ns
    }

    /// Whether the wall clock was set since the grid was laid.
    pub fn has_stepped(&self, now: Now) -> bool {
        let elapsed_ns = i128::from(signed(now.monotonic_ns)) - i128::from(self.start_ns);
        let elapsed_wall_ms = i128::from(now.wall.unix_ms()) - i128::from(self.start.unix_ms());
        (elapsed_wall_ms * 1_000_000 - elapsed_ns).unsigned_abs() > STEP_MAX.as_nanos()
    }
}

/// The monotonic clock's nanoseconds fit into 63 bits for 292 years after boot.
fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn at(monotonic_ns: u64, unix_ms: u64) -> Now {
        Now { monotonic_ns, wall: Timestamp::from_unix_ms(unix_ms) }
    }

    fn ten_seconds(now: Now) -> Grid {
        Grid::align(now, Duration::from_secs(1), Duration::from_secs(10))
    }

    #[test]
    fn windows_begin_at_multiples_of_their_length() {
        let mut grid = ten_seconds(at(100 * S, 1_000_003_400));
        assert_eq!(grid.window_start().unix_ms(), 1_000_000_000);
        assert_eq!(grid.next_tick_ns(100 * S), 100 * S + S * 6 / 10);
        assert!(!grid.ends_window(105 * S));
        assert!(grid.ends_window(106 * S + S * 6 / 10));
        grid.advance(106 * S + S * 6 / 10);
        assert_eq!(grid.window_start().unix_ms(), 1_000_010_000);
    }

    #[test]
    fn a_tick_that_comes_a_little_early_or_late_still_ends_its_window() {
        for jitter_ns in [-400_000_000_i64, -1, 0, 1, 400_000_000] {
            let mut grid = ten_seconds(at(50 * S, 0));
            let now_ns = (60 * S).saturating_add_signed(jitter_ns);
            assert!(grid.ends_window(now_ns));
            grid.advance(now_ns);
            assert_eq!(grid.window_start().unix_ms(), 10_000);
            assert!(!grid.ends_window(now_ns));
        }
    }

    #[test]
    fn a_long_stall_passes_whole_windows_over_and_is_counted() {
        let mut grid = ten_seconds(at(50 * S, 0));
        assert_eq!(grid.skipped(51 * S, 52 * S), 0);
        assert_eq!(grid.skipped(51 * S, 52 * S + S * 4 / 10), 0);
        assert_eq!(grid.skipped(51 * S, 85 * S), 33);
        grid.advance(85 * S);
        assert_eq!(grid.window_start().unix_ms(), 30_000);
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_and_one_that_jitters_is_not() {
        let grid = ten_seconds(at(50 * S, 0));
        assert!(!grid.has_stepped(at(55 * S, 5_400)));
        assert!(grid.has_stepped(at(55 * S, 5_600)));
        assert!(grid.has_stepped(at(55 * S, 4_400)));
    }

    #[test]
    fn a_window_may_have_begun_before_the_machine_did() {
        let mut grid = ten_seconds(at(2 * S, 1_000_007_000));
        assert!(!grid.has_stepped(at(3 * S, 1_000_008_000)));
        assert_eq!(grid.next_tick_ns(2 * S), 3 * S);
        assert!(grid.ends_window(5 * S));
        grid.advance(5 * S);
        assert_eq!(grid.window_start().unix_ms(), 1_000_010_000);
    }

    proptest! {
        #[test]
        fn every_tick_is_in_the_future_and_within_one_sample(
            monotonic_ns in 0..1u64 << 60, unix_ms in 0..1u64 << 50, later_ns in 0..1u64 << 40,
            sample_ms in 10u64..5_000, samples in 1u64..100,
        ) {
            let (sample, window) = (Duration::from_millis(sample_ms), Duration::from_millis(sample_ms * samples));
            let mut grid = Grid::align(at(monotonic_ns, unix_ms), sample, window);
            let now_ns = monotonic_ns + later_ns;
            let tick_ns = grid.next_tick_ns(now_ns);
            prop_assert!(tick_ns > now_ns && tick_ns - now_ns <= sample_ms * 1_000_000);
            grid.advance(now_ns);
            prop_assert!(!grid.ends_window(now_ns));
            prop_assert!(!grid.has_stepped(at(now_ns, unix_ms + later_ns / 1_000_000)));
            prop_assert_eq!(grid.window_start().unix_ms() % u64::try_from(window.as_millis()).unwrap(), 0);
        }
    }
}
