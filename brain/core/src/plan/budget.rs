//! How often something was done within the last hour, for budgets of actions.

use std::collections::BTreeMap;

use gnomon_common::time::Timestamp;

/// Milliseconds of a minute: counts are kept by the minute, however many they are.
const MINUTE_MS: u64 = 60_000;

/// Minutes that count: those of an hour, and the one that the hour began in.
const MINUTES: u64 = 61;

/// Counts of the last hour. What is up to a minute older than that counts as well, so that it is never too few.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    minutes: BTreeMap<u64, usize>,
    /// It was said that the budget is used up.
    pub(crate) is_told: bool,
}

impl Tally {
    /// Counts one that was begun at `at`; those of a restart come in any order.
    pub(crate) fn add(&mut self, at: Timestamp) {
        *self.minutes.entry(minute(at)).or_insert(0) += 1;
        while self.minutes.len() as u64 > MINUTES {
            self.minutes.pop_first();
        }
    }

    /// How many there were.
    pub(crate) fn within_hour(&self, now: Timestamp) -> usize {
        self.minutes.range((minute(now) + 1).saturating_sub(MINUTES)..).map(|(_, count)| count).sum()
    }

    /// Bounds what a clock that was set back can do: nothing counts as younger than now.
    pub(crate) fn clock_set_back(&mut self, now: Timestamp) {
        let later: usize = self.minutes.split_off(&(minute(now) + 1)).into_values().sum();
        if later > 0 {
            *self.minutes.entry(minute(now)).or_insert(0) += later;
        }
    }
}

fn minute(at: Timestamp) -> u64 {
    at.unix_ms() / MINUTE_MS
}

/// How much of a budget there is: a quarter of it is kept for growth, so that a VM for which it runs out is left large rather than in want.
pub(crate) fn allowance(per_hour_max: usize, is_slack: bool) -> usize {
    if is_slack { per_hour_max - per_hour_max / 4 } else { per_hour_max }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000 + second * 1000)
    }

    #[test]
    fn a_quarter_of_a_budget_is_kept_for_growth() {
        assert_eq!([1, 3, 4, 300].map(|max| allowance(max, true)), [1, 3, 3, 225]);
        assert_eq!([1, 300].map(|max| allowance(max, false)), [1, 300]);
    }

    #[test]
    fn what_a_clock_that_was_set_back_knows_of_later_is_of_now() {
        let mut tally = Tally::default();
        [0, 7200, 7300].into_iter().for_each(|second| tally.add(at(second)));
        tally.clock_set_back(at(10));
        assert_eq!((tally.within_hour(at(10)), tally.within_hour(at(3670))), (3, 0));
    }

    proptest! {
        #[test]
        fn nothing_of_the_last_hour_is_missed_and_nothing_counts_that_is_a_minute_older(
            mut begun in proptest::collection::vec(0..20_000u64, 0..300), now in 10_000..20_000u64,
        ) {
            let mut tally = Tally::default();
            begun.sort_unstable();
            begun.retain(|second| *second <= now);
            begun.iter().for_each(|second| tally.add(at(*second)));
            let since = |age: u64| begun.iter().filter(|second| now - **second < age).count();
            prop_assert!((since(3600)..=since(3660 + 60)).contains(&tally.within_hour(at(now))));
            prop_assert!(tally.minutes.len() as u64 <= MINUTES);
        }
    }
}
