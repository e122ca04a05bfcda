//! How long a host takes to carry a resize out, by which plans begin earlier: a smoothed mean and four times the smoothed deviation from it,
//! as TCP estimates its round trips (RFC 6298, section 2).

use std::time::Duration;

/// Weight of the latest in the mean.
const MEAN_SHARE: f64 = 0.125;

/// Weight of the latest in the deviation.
const DEVIATION_SHARE: f64 = 0.25;

/// So many deviations are allowed for beyond the mean.
const DEVIATIONS: f64 = 4.0;

/// More than this is an agent that was away, not one that is slow.
const LONGEST: Duration = Duration::from_secs(30);

/// What a host's resizes have taken, from the decision to the answer. Learnt anew after a restart.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reaction {
    /// In seconds: mean and deviation.
    estimate: Option<(f64, f64)>,
}

impl Reaction {
    /// One was carried out.
    pub(crate) fn learn(&mut self, took: Duration) {
        let took_s = took.min(LONGEST).as_secs_f64();
        self.estimate = Some(self.estimate.map_or((took_s, took_s / 2.0), |(mean, deviation)| {
            let deviation = deviation + DEVIATION_SHARE * ((took_s - mean).abs() - deviation);
            (mean + MEAN_SHARE * (took_s - mean), deviation)
        }));
    }

    /// The next one will hardly take longer. Zero until one was measured.
    pub(crate) fn expected(&self) -> Duration {
        let (mean, deviation) = self.estimate.unwrap_or_default();
        Duration::try_from_secs_f64(mean + DEVIATIONS * deviation).unwrap_or(LONGEST).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(times_ms: &[u64]) -> u128 {
        let mut reaction = Reaction::default();
        times_ms.iter().for_each(|ms| reaction.learn(Duration::from_millis(*ms)));
        reaction.expected().as_millis()
    }

    #[test]
    fn a_steady_host_is_expected_to_stay_so_and_one_that_varies_gets_room() {
        assert_eq!(after(&[]), 0);
        assert_eq!(after(&[100]), 300);
        assert!((100..110).contains(&after(&[100; 40])), "{}", after(&[100; 40]));
        let varying: Vec<u64> = (0..40).map(|turn| if turn % 2 == 0 { 50 } else { 450 }).collect();
        assert!((900..1300).contains(&after(&varying)), "{}", after(&varying));
    }

    #[test]
    fn an_agent_that_was_away_for_an_hour_counts_as_slow_and_not_as_gone() {
        assert_eq!(after(&[3_600_000]), 30_000);
    }
}
