//! What is said without a season by models as good as the seasonal ones otherwise are: medians, and a return to the
//! mean. Only against these does a season have to earn its place; a profile of many seasons is a fine long average
//! where there is no season at all.

use super::decomposition::rolling_median;
use super::{Kind, PointModel, Series};

/// "Long" is so many seasons.
const SEASONS: usize = 14;

/// Without a season, one is taken to be so many steps.
const SEASON_STEPS: usize = 96;

/// Deviation is averaged over so many steps.
const DEVIATION_STEPS: usize = 3;

/// A median is that of about so many values, evenly spread.
const MEDIAN_VALUES: usize = 400;

fn season_steps(series: &Series) -> usize {
    series.season().unwrap_or(SEASON_STEPS)
}

/// The median of the last values.
#[derive(Clone, Debug)]
pub(crate) struct Median {
    stride: usize,
    /// Of every `stride`th value and those before it.
    medians: Vec<f64>,
}

impl Median {
    /// That of the last season and that of many. O(length).
    pub(crate) fn both(series: &Series) -> [Self; 2] {
        [1, SEASONS].map(|seasons| {
            let steps = seasons * season_steps(series);
            let stride = (steps / MEDIAN_VALUES).max(1);
            let values: Vec<f64> = series.values().iter().copied().step_by(stride).collect();
            Self { stride, medians: rolling_median(&values, steps / stride) }
        })
    }
}

impl PointModel for Median {
    fn name(&self) -> &'static str {
        "median"
    }

    fn kind(&self) -> Kind {
        Kind::Steady
    }

    fn predict(&self, _series: &Series, t: usize, _ahead: usize) -> f64 {
        self.medians[t / self.stride]
    }
}

/// Back to the mean of many seasons, of which it is some way off now: an AR(1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reverting {
    /// Steps after which half of the deviation is left.
    pub(crate) half_life_steps: f64,
}

impl PointModel for Reverting {
    fn name(&self) -> &'static str {
        "back to the mean"
    }

    fn kind(&self) -> Kind {
        Kind::Steady
    }

    fn predict(&self, series: &Series, t: usize, ahead: usize) -> f64 {
        let mean = series.mean(t, SEASONS * season_steps(series));
        mean + (series.mean(t, DEVIATION_STEPS) - mean) * (-(ahead as f64) / self.half_life_steps).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_that_of_what_was_there() {
        let values: Vec<f64> =
            (0..3000).map(|step| if step < 1500 { 1.0 } else { f64::from(step % 2) * 4.0 + 2.0 }).collect();
        let series = Series::new(&values, &[500]);
        let [short, long] = Median::both(&series)
            .map(|median| [1499, 2100, 2999].map(|t| median.predict(&series, t, 1) * series.scale()));
        assert_eq!(short[0], 1.0);
        assert!(short[1] >= 2.0 && short[2] >= 2.0, "{short:?}");
        assert_eq!(long[..2], [1.0, 1.0]);
    }

    #[test]
    fn what_is_far_off_comes_back_halfway_in_a_half_life() {
        let values: Vec<f64> = (0..1000).map(|step| if step < 990 { 0.0 } else { 1.0 }).collect();
        let series = Series::new(&values, &[]);
        let said = Reverting { half_life_steps: 10.0 }.predict(&series, 999, 10);
        assert!((said - 0.505).abs() < 1e-3, "{said}");
    }
}
