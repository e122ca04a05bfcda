//! Comparing forecasters over the tasks of a suite.

use std::collections::BTreeMap;

use gnomon_backtest::score::TaskScore;
use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;

/// Means over tasks.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Total {
    pub(crate) mase: f64,
    pub(crate) scaled_pinball_95: f64,
    pub(crate) coverage_95: f64,
}

impl Total {
    pub(crate) fn of(scores: &[TaskScore]) -> Self {
        let mean = |of: fn(&TaskScore) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
        Self {
            mase: mean(|score| score.mase),
            scaled_pinball_95: mean(|score| score.scaled_pinball_95),
            coverage_95: mean(|score| score.coverage_95),
        }
    }
}

/// The 95 % interval of the mean difference between two forecasters' scores of the same tasks. Series are drawn, not tasks: tasks of one
/// series are alike.
pub(crate) fn difference(a: &[TaskScore], b: &[TaskScore], of: fn(&TaskScore) -> f64) -> (f64, f64) {
    let mut by_series: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (a, b) in a.iter().zip(b) {
        by_series.entry(&a.series).or_default().push(of(a) - of(b));
    }
    let groups: Vec<Vec<f64>> = by_series.into_values().collect();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..groups.len()).flat_map(|_| &groups[random.random_range(0..groups.len())]);
            let (sum, count) = drawn.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
            sum / count
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLES * 25 / 1000], means[RESAMPLES * 975 / 1000])
}
