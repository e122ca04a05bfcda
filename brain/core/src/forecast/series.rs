//! One series as the engine sees it: without gaps, scaled, with running sums and the profile of its seasons.
//!
//! Everything indexed by a step is *causal*: what is asked for origin `t` was known at `t`. The same functions therefore serve
//! the present forecast and the rolling origins of the past on which models are trained and judged, and no residual is ever
//! better than it was in truth.

use super::profile::{Profile, Profiles};

/// Gaps up to so many steps are bridged by a straight line; longer ones repeat the season before.
const BRIDGE_STEPS_MAX: usize = 12;

/// Smoothing factors of the running levels: from "the last value" to "the last few hours".
pub(crate) const LEVEL_ALPHAS: [f64; 3] = [0.6, 0.3, 0.05];

/// A gap-free, scaled series with what the models need of it.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Scaled values, all finite.
    values: Vec<f64>,
    /// `sums[t]` is the sum of the first `t` values.
    sums: Vec<f64>,
    /// For each of [`LEVEL_ALPHAS`], the exponentially weighted mean up to and including each step.
    levels: Vec<Vec<f64>>,
    profiles: Profiles,
    scale: f64,
}

impl Series {
    /// Takes in a window of values (any unit, NaN or infinite where unknown) and its seasons in steps, shortest first; seasons
    /// shorter than 2 steps, or of which the window does not hold two, are left out.
    pub(crate) fn new(window: &[f64], seasons: &[usize]) -> Self {
        let mut values = window.to_vec();
        let seasons: Vec<usize> = usable(seasons, values.len()).collect();
        bridge_gaps(&mut values, seasons.first().copied());
        let largest = values.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        // Dividing first keeps sums of squares finite for any input; by a power of two, it is undone without rounding.
        let scale = power_of_two_below(largest).unwrap_or(1.0);
        values.iter_mut().for_each(|value| *value /= scale);
        let mut sums = Vec::with_capacity(values.len() + 1);
        sums.push(0.0);
        for value in &values {
            sums.push(sums[sums.len() - 1] + value);
        }
        let levels = LEVEL_ALPHAS.iter().map(|&alpha| level(&values, alpha)).collect();
        let profiles = Profiles::new(&values, &seasons);
        Self { values, sums, levels, profiles, scale }
    }

    /// How many steps it has.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// What one scaled unit is in the unit of the window.
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// All scaled values.
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    /// The value `back` steps before `t`, or the first one.
    pub(crate) fn lag(&self, t: usize, back: usize) -> f64 {
        self.values[t.saturating_sub(back)]
    }

    /// Mean of the last `steps` values up to and including `t`; fewer where the series begins.
    pub(crate) fn mean(&self, t: usize, steps: usize) -> f64 {
        let from = (t + 1).saturating_sub(steps);
        (self.sums[t + 1] - self.sums[from]) / (t + 1 - from) as f64
    }

    /// Largest of the last `steps` values up to and including `t`.
    pub(crate) fn max(&self, t: usize, steps: usize) -> f64 {
        let from = (t + 1).saturating_sub(steps);
        self.values[from..=t].iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Mean absolute deviation of the last `steps` values up to and including `t` from their mean.
    pub(crate) fn deviation(&self, t: usize, steps: usize) -> f64 {
        let (from, mean) = ((t + 1).saturating_sub(steps), self.mean(t, steps));
        self.values[from..=t].iter().map(|value| (value - mean).abs()).sum::<f64>() / (t + 1 - from) as f64
    }

    /// Exponentially weighted mean at `t` with the `which`th of [`LEVEL_ALPHAS`].
    pub(crate) fn level(&self, which: usize, t: usize) -> f64 {
        self.levels[which][t]
    }

    /// What the seasons before say of step `t + ahead` at `t`; `None` without a season, or before one has passed.
    pub(crate) fn profile(&self, t: usize, ahead: usize) -> Option<Profile> {
        self.profiles.at(t, ahead)
    }

    /// The shortest season, in steps.
    pub(crate) fn season(&self) -> Option<usize> {
        self.profiles.season()
    }

    /// The value one *longest* season before `t + ahead`, where there is more than one season and it is known at `t`.
    pub(crate) fn long_season_ago(&self, t: usize, ahead: usize) -> Option<f64> {
        let long = self.profiles.long_season()?;
        let back = long * ahead.div_ceil(long);
        (t + ahead).checked_sub(back).map(|at| self.values[at])
    }
}

/// The seasons of which a window of this length holds two, in the order given.
pub(crate) fn usable(seasons: &[usize], length: usize) -> impl Iterator<Item = usize> {
    seasons.iter().copied().filter(move |&season| season >= 2 && season <= length / 2)
}

/// The largest power of two that is not above a value; `None` for zero and for what is too small to have all its digits.
pub(crate) fn power_of_two_below(value: f64) -> Option<f64> {
    /// Sign and exponent of an IEEE 754 double.
    const WITHOUT_MANTISSA: u64 = 0xfff0_0000_0000_0000;
    value.is_normal().then(|| f64::from_bits(value.to_bits() & WITHOUT_MANTISSA))
}

fn level(values: &[f64], alpha: f64) -> Vec<f64> {
    let mut level = values.first().copied().unwrap_or(0.0);
    values
        .iter()
        .map(|value| {
            level += alpha * (value - level);
            level
        })
        .collect()
}

/// Puts a number in place of every gap: short gaps by a line, long ones by what was a season before, else by the last value.
fn bridge_gaps(values: &mut [f64], season: Option<usize>) {
    let mut at = 0;
    while at < values.len() {
        if values[at].is_finite() {
            at += 1;
            continue;
        }
        let end = values[at..].iter().position(|value| value.is_finite()).map(|offset| at + offset);
        let before = at.checked_sub(1).map(|last| values[last]);
        let after = end.map(|end| values[end]);
        let end = end.unwrap_or(values.len());
        let steps = end - at;
        for offset in 0..steps {
            let here = at + offset;
            values[here] = match (before, after, season.and_then(|season| here.checked_sub(season))) {
                (Some(before), Some(after), _) if steps <= BRIDGE_STEPS_MAX => {
                    let share = (offset + 1) as f64 / (steps + 1) as f64;
                    // Two products: their difference could overflow.
                    before * (1.0 - share) + after * share
                }
                (Some(_), _, Some(ago)) => values[ago],
                (Some(before), _, None) => before,
                (None, Some(after), _) => after,
                (None, None, _) => 0.0,
            };
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_gap_becomes_a_line_and_a_long_one_repeats_the_season() {
        let mut values: Vec<f64> = (0..60).map(|step| f64::from(step % 20)).collect();
        values[5] = f64::NAN;
        values[6] = f64::NAN;
        values[30..50].fill(f64::INFINITY);
        bridge_gaps(&mut values, Some(20));
        for (step, value) in values.iter().enumerate() {
            assert!((value - (step % 20) as f64).abs() < 1e-9, "step {step}: {value}");
        }
    }

    #[test]
    fn gaps_at_either_end_take_the_nearest_value() {
        let mut values = [f64::NAN, 3.0, f64::NAN];
        bridge_gaps(&mut values, None);
        assert_eq!(values, [3.0; 3]);
    }

    #[test]
    fn scaling_is_undone_without_rounding() {
        let window = [1.937093638859624e71, 0.1, -979.6990010260619];
        let series = Series::new(&window, &[]);
        let back: Vec<f64> = series.values().iter().map(|value| value * series.scale()).collect();
        assert_eq!(back, window);
        assert_eq!(power_of_two_below(7.9), Some(4.0));
        assert_eq!(power_of_two_below(0.0), None);
    }

    #[test]
    fn running_means_and_maxima_end_at_the_origin() {
        let series = Series::new(&[4.0, 2.0, 1.0, 3.0], &[]);
        assert!((series.mean(2, 2) * series.scale() - 1.5).abs() < 1e-12);
        assert!((series.mean(2, 9) * series.scale() - 7.0 / 3.0).abs() < 1e-12);
        assert!((series.max(2, 2) * series.scale() - 2.0).abs() < 1e-12);
    }
}
