//! What the learned models see of a series at an origin: where it is, where it was, and what earlier seasons say of the target.

use super::series::Series;

/// How many features there are.
pub(crate) const FEATURES: usize = 27;

/// The features of step `t + ahead` as seen at `t`, in the series' scaled unit. All but none have the unit of the series, so that
/// one transform fits all. O(1) but for two short maxima.
pub(crate) fn features(series: &Series, t: usize, ahead: usize) -> [f64; FEATURES] {
    let slow = series.level(2, t);
    let season = series.season().unwrap_or(1);
    // Without a season there is nothing to repeat: the slow level stands in and adds nothing.
    let [ago, twice_ago, near, near_max, mean, median, high] = series.profile(t, ahead).map_or([slow; 7], |profile| {
        [profile.ago, profile.twice_ago, profile.near, profile.near_max, profile.mean, profile.median, profile.high]
    });
    // What the same profile said of now: how far off it is today.
    let [now_mean, now_median] = t
        .checked_sub(ahead)
        .and_then(|origin| series.profile(origin, ahead))
        .map_or([slow; 2], |profile| [profile.mean, profile.median]);
    let yesterday = t.saturating_sub(if series.season().is_some() { season } else { 0 });
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
        series.lag(yesterday, 0),
        series.mean(yesterday, 12),
        ago,
        twice_ago,
        near,
        near_max,
        mean,
        median,
        high,
        now_mean - now_median + slow,
        series.long_season_ago(t, ahead).unwrap_or(now_mean),
    ]
}
