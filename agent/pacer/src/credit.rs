//! Bytes due: a rate over time, spent in whole units.

use std::time::Duration;

/// What was due and could not be spent is lost after so long, as requests of users who do not wait.
const KEPT: Duration = Duration::from_millis(500);

/// What is due by now.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    bytes: f64,
}

impl Credit {
    /// Time has passed at that rate. `unit` is what is spent at once: as much of it is always kept, however slow it comes.
    pub(crate) fn earn(&mut self, bytes_per_s: u64, passed: Duration, unit: u64) {
        let most = (bytes_per_s as f64 * KEPT.as_secs_f64()).max(2.0 * unit as f64);
        self.bytes = (self.bytes + bytes_per_s as f64 * passed.as_secs_f64()).min(most);
    }

    /// The next amount to spend: a multiple of `unit`, at most `most`; `None` where not one unit is due.
    pub(crate) fn spend(&mut self, unit: u64, most: u64) -> Option<u64> {
        let bytes = (self.bytes as u64).min(most) / unit * unit;
        self.bytes -= bytes as f64;
        (bytes > 0).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_spent_is_what_was_earned_but_for_a_unit(rate in 1u64..1 << 30, ticks in 1u32..200) {
            let (mut credit, mut spent) = (Credit::default(), 0);
            for _ in 0..ticks {
                credit.earn(rate, Duration::from_millis(50), 4096);
                while let Some(bytes) = credit.spend(4096, 1 << 18) {
                    prop_assert!(bytes % 4096 == 0 && bytes <= 1 << 18);
                    spent += bytes;
                }
            }
            let due = rate as f64 * 0.05 * f64::from(ticks);
            prop_assert!(spent as f64 <= due + 1.0 && spent as f64 > due - 4097.0, "{spent} of {due}");
        }
    }

    #[test]
    fn what_was_not_spent_in_time_is_lost() {
        let mut credit = Credit::default();
        credit.earn(1 << 20, Duration::from_secs(3600), 1);
        assert_eq!(credit.spend(1, u64::MAX), Some(1 << 19));
        assert_eq!(credit.spend(1, u64::MAX), None);
    }
}
