//! A series as season plus trend, after STL (Cleveland and others, 1990) with medians in place of robust local
//! regressions.
//!
//! The season of a step is the median, over the seasons before, of what that very step lay above its day's mean. Unlike
//! a profile it keeps what happens to the minute, and it moves with the level: yesterday's surge says nothing of
//! today's level.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Kind, PointModel, Series};

/// So many earlier seasons are looked at.
const SEASONS_MAX: usize = 14;

/// Without a season, the level is that of so many steps.
const LEVEL_STEPS: usize = 96;

/// Season and seasonally adjusted series, causal: what is asked for origin `t` was known at `t`.
#[derive(Clone, Debug)]
pub(crate) struct Decomposition {
    season: Option<usize>,
    /// The season at each step, as known then: its own trend ends there.
    fresh: Vec<f64>,
    /// The same as known half a season later, when its trend can be centred on it.
    settled: Vec<f64>,
    /// The series less the season as known one season before.
    adjusted: Vec<f64>,
    /// For each step the median of the adjusted series' last season.
    levels: Vec<f64>,
}

impl Decomposition {
    /// Takes a series apart. O(length × seasons).
    pub(crate) fn new(series: &Series) -> Self {
        let values = series.values();
        let season = series.season();
        let (mut fresh, mut settled) = (Vec::new(), Vec::new());
        if let Some(season) = season {
            // A window of one season at least, where the series begins.
            let mean_until = |end: usize| series.mean(end.max(season - 1).min(values.len() - 1), season);
            let centred: Vec<f64> =
                values.iter().enumerate().map(|(at, value)| value - mean_until(at + season / 2)).collect();
            let mut pool = Vec::with_capacity(SEASONS_MAX);
            for at in 0..values.len() {
                pool.clear();
                let before = (1..SEASONS_MAX).map_while(|back| at.checked_sub(back * season));
                pool.extend(before.map(|before| centred[before]));
                pool.sort_unstable_by(f64::total_cmp);
                fresh.push(median_with(&pool, values[at] - series.mean(at, season)));
                settled.push(median_with(&pool, centred[at]));
            }
        }
        let mut decomposition = Self { season, fresh, settled, adjusted: Vec::new(), levels: Vec::new() };
        decomposition.adjusted = values
            .iter()
            .enumerate()
            .map(|(at, value)| value - at.checked_sub(1).map_or(0.0, |before| decomposition.season(before, 1)))
            .collect();
        decomposition.levels = rolling_median(&decomposition.adjusted, season.unwrap_or(LEVEL_STEPS));
        decomposition
    }

    /// The season of step `t + ahead` as known at `t`; 0 without one, or before one has passed.
    pub(crate) fn season(&self, t: usize, ahead: usize) -> f64 {
        let Some(season) = self.season else { return 0.0 };
        let Some(at) = (t + ahead).checked_sub(season * ahead.div_ceil(season)) else { return 0.0 };
        if at + season / 2 <= t { self.settled[at] } else { self.fresh[at] }
    }

    /// The seasonally adjusted series.
    pub(crate) fn adjusted(&self) -> &[f64] {
        &self.adjusted
    }
}

/// The median of a value and others that are sorted.
fn median_with(sorted: &[f64], value: f64) -> f64 {
    let place = sorted.partition_point(|other| other.total_cmp(&value).is_lt());
    let at = |rank: usize| match rank.cmp(&place) {
        Ordering::Less => sorted[rank],
        Ordering::Equal => value,
        Ordering::Greater => sorted[rank - 1],
    };
    let middle = sorted.len().div_ceil(2);
    if sorted.len().is_multiple_of(2) { at(middle) } else { 0.5 * (at(middle - 1) + at(middle)) }
}

/// The median of a pool that is not empty, which is sorted on the way.
pub(crate) fn median(pool: &mut [f64]) -> f64 {
    let middle = pool.len() / 2;
    pool.sort_unstable_by(f64::total_cmp);
    if pool.len() % 2 == 1 { pool[middle] } else { 0.5 * (pool[middle - 1] + pool[middle]) }
}

/// For each step the median of the last `steps` values; fewer where the series begins. O(length × steps), by insertion.
pub(crate) fn rolling_median(values: &[f64], steps: usize) -> Vec<f64> {
    let mut sorted: Vec<f64> = Vec::with_capacity(steps + 1);
    let place = |sorted: &[f64], value: f64| sorted.partition_point(|other| other.total_cmp(&value).is_lt());
    values
        .iter()
        .enumerate()
        .map(|(at, &value)| {
            if let Some(gone) = at.checked_sub(steps) {
                sorted.remove(place(&sorted, values[gone]));
            }
            sorted.insert(place(&sorted, value), value);
            sorted[sorted.len() / 2]
        })
        .collect()
}

/// The season on top of the median of the adjusted series' last season: what no single extraordinary day moves.
#[derive(Clone, Debug)]
pub(crate) struct DecomposedMedian(pub(crate) Arc<Decomposition>);

impl PointModel for DecomposedMedian {
    fn name(&self) -> &'static str {
        "season + median"
    }

    fn kind(&self) -> Kind {
        Kind::Seasonal
    }

    fn predict(&self, _series: &Series, t: usize, ahead: usize) -> f64 {
        self.0.levels[t] + self.0.season(t, ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(step: usize) -> f64 {
        f64::from((step % 24) as u32 * 7 % 24)
    }

    #[test]
    fn a_season_on_a_level_that_jumps_is_told_from_the_jump() {
        let values: Vec<f64> = (0..480).map(|step| wave(step) + if step < 400 { 0.0 } else { 50.0 }).collect();
        let series = Series::new(&values, &[24]);
        let said = |ahead| DecomposedMedian(Arc::new(Decomposition::new(&series))).predict(&series, 479, ahead);
        for ahead in 1..=48 {
            let error = said(ahead) * series.scale() - wave(479 + ahead) - 50.0;
            assert!(error.abs() < 1.0, "{ahead} ahead {error}");
        }
    }

    #[test]
    fn one_extraordinary_day_is_no_season() {
        let values: Vec<f64> =
            (0..240).map(|step| wave(step) + if (200..206).contains(&step) { 500.0 } else { 0.0 }).collect();
        let series = Series::new(&values, &[24]);
        let decomposition = Arc::new(Decomposition::new(&series));
        let mean = (0..24).map(wave).sum::<f64>() / 24.0;
        for ahead in 1..=24 {
            let error = decomposition.season(239, ahead) * series.scale() - (wave(239 + ahead) - mean);
            assert!(error.abs() < 1.0, "{ahead} ahead {error}");
        }
    }

    #[test]
    fn nothing_is_read_after_its_origin() {
        let mut values: Vec<f64> = (0..240).map(|step| f64::from(step * 31 % 17)).collect();
        values[0] = 100.0;
        for t in [30, 100, 150] {
            let said = |values: &[f64]| {
                let decomposition = Decomposition::new(&Series::new(values, &[24]));
                let ahead = [1, 5, 12, 13, 24, 25, 48].map(|ahead| decomposition.season(t, ahead));
                (ahead, decomposition.levels[t], decomposition.adjusted[t])
            };
            let known = values.clone();
            let before = said(&known);
            values[t + 1..].fill(99.0);
            assert_eq!(said(&values), before, "{t}");
            values = known;
        }
    }

    #[test]
    fn a_median_with_one_more_is_that_of_all() {
        for sorted in [&[][..], &[1.0], &[1.0, 4.0], &[1.0, 2.0, 4.0]] {
            for value in [0.0, 1.0, 1.5, 3.0, 9.0] {
                let mut all = sorted.to_vec();
                all.push(value);
                assert_eq!(median_with(sorted, value), median(&mut all), "{value} among {sorted:?}");
            }
        }
    }

    #[test]
    fn a_rolling_median_forgets_what_is_gone() {
        assert_eq!(rolling_median(&[1.0, 9.0, 2.0, 3.0, 3.0], 3), [1.0, 9.0, 2.0, 3.0, 3.0]);
    }
}
