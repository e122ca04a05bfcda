//! Longer and longer pauses where commands are refused or fail, so that an agent is not flooded with what it does not do.

use std::time::Duration;

use gnomon_common::time::Timestamp;

/// First pause after a refusal or failure.
const FIRST: Duration = Duration::from_secs(5);

/// Longest pause: an agent that was mended is tried again within this.
const LONGEST: Duration = Duration::from_mins(10);

/// How long is waited after so many failures before the last one.
pub(crate) fn pause(failures_before: u32) -> Duration {
    FIRST.saturating_mul(1 << failures_before.min(16)).min(LONGEST)
}

/// One for each means of a VM: what the balloon refuses is no reason not to grow the quota.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    refusals: u32,
    not_before: Option<Timestamp>,
}

impl Backoff {
    /// A command was refused, failed or stayed unanswered: wait longer each time.
    pub(crate) fn back_off(&mut self, now: Timestamp) {
        let pause = pause(self.refusals);
        self.refusals = self.refusals.saturating_add(1);
        self.not_before = Some(now + pause);
    }

    /// A command was carried out.
    pub(crate) fn succeed(&mut self) {
        *self = Self::default();
    }

    /// Until when nothing is tried, if that is after `now`.
    pub(crate) fn until(&self, now: Timestamp) -> Option<Timestamp> {
        self.not_before.filter(|&until| now < until)
    }

    /// Bounds what a clock that was set back can do: no pause is longer than the longest.
    pub(crate) fn clock_set_back(&mut self, now: Timestamp) {
        self.not_before = self.not_before.map(|until| until.min(now + LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_answered_with_longer_and_longer_pauses_up_to_a_bound() {
        let now = Timestamp::from_unix_ms(1_000_000);
        let mut backoff = Backoff::default();
        let mut pause = || {
            backoff.back_off(now);
            backoff.until(now).unwrap().since(now).as_secs()
        };
        let pauses: Vec<u64> = (0..9).map(|_| pause()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        backoff.succeed();
        assert_eq!(backoff.until(now), None);
    }
}
