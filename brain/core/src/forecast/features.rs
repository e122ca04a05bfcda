//! What the learned models see of a series at an origin: where it is, where it was, and what earlier seasons say of the target.

use super::series::Series;
use super::transform::Transform;

/// Features that depend on the origin alone.
const OF_ORIGIN: usize = 18;

/// Features that depend on the target as well.
const OF_TARGET: usize = 10;

/// How many features there are.
pub(crate) const FEATURES: usize = OF_ORIGIN + OF_TARGET;

/// The features of a series, all transformed alike: each has the unit of the series. Those of the origin are kept, because many
/// steps ahead are looked at from the same one.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    transform: Transform,
    of_origin: Vec<[f64; OF_ORIGIN]>,
}

impl Features {
    /// Takes in a series. O(length).
    pub(crate) fn new(series: &Series, transform: Transform) -> Self {
        let of_origin =
            (0..series.len()).map(|t| of_origin(series, t).map(|feature| transform.forward(feature))).collect();
        Self { transform, of_origin }
    }

    /// How they are transformed.
    pub(crate) fn transform(&self) -> Transform {
        self.transform
    }

    /// The features of step `t + ahead` as seen at `t`, written to the front of `row`.
    pub(crate) fn write(&self, series: &Series, t: usize, ahead: usize, row: &mut [f64; FEATURES]) {
        let (front, back) = row.split_at_mut(OF_ORIGIN);
        front.copy_from_slice(&self.of_origin[t]);
        back.copy_from_slice(&of_target(series, t, ahead).map(|feature| self.transform.forward(feature)));
    }
}

fn of_origin(series: &Series, t: usize) -> [f64; OF_ORIGIN] {
    let season = series.season().unwrap_or(1);
    let season_ago = t.saturating_sub(series.season().unwrap_or(0));
    [
        series.lag(t, 0),
        series.lag(t, 1),
        series.lag(t, 2),
        series.lag(t, 3),
        series.lag(t, 5),
        series.lag(t, 11),
        series.lag(t, 23),
        series.mean(t, 6),
        series.mean(t, 12),
        series.mean(t, 36),
        series.mean(t, 96),
        series.mean(t, season),
        series.max(t, 12),
        series.max(t, 36),
        series.level(0, t),
        series.level(1, t),
        series.lag(season_ago, 0),
        series.mean(season_ago, 12),
    ]
}

fn of_target(series: &Series, t: usize, ahead: usize) -> [f64; OF_TARGET] {
    let slow = series.level(2, t);
    // Without a season there is nothing to repeat: the slow level stands in and adds nothing.
    let [ago, twice_ago, near, near_max, mean, median, high] = series.profile(t, ahead).map_or([slow; 7], |profile| {
        [profile.ago, profile.twice_ago, profile.near, profile.near_max, profile.mean, profile.median, profile.high]
    });
    // What the profile, as of then, said of now: how far off it is today.
    let here = t.checked_sub(ahead).and_then(|origin| series.profile(origin, ahead));
    let [now_mean, now_median] = here.map_or([slow; 2], |profile| [profile.mean, profile.median]);
    let long_ago = series.long_season_ago(t, ahead).unwrap_or(now_mean);
    [ago, twice_ago, near, near_max, mean, median, high, now_mean, now_median, long_ago]
}
