//! What is known of a series when some of it is known only as an interval.
//!
//! A VM that was held back ran for some time and waited for more: what it wanted lies between. Such a step is given the
//! value of its interval that lies nearest to what was to be expected then: the season so far on top of an
//! exponentially smoothed level with a damped trend, in which earlier steps count as they were filled in. Nothing later
//! is looked at.

use std::collections::BTreeMap;

use crate::forecast::models::decomposition::median;
use crate::forecast::models::ets::{Smoothing, State};
use crate::forecast::series::power_of_two_below;

/// How the expectation follows the series: a few steps of a rise are enough to expect more of it.
const EXPECTATION: Smoothing = Smoothing { level: 0.4, slope: 0.15, damping: 0.9 };

/// So many earlier seasons are looked at.
const SEASONS_MAX: usize = 14;

/// A window of values, the latest last, in any unit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observed<'a> {
    /// What was seen, or the least it can have been; not finite where nothing is known.
    pub values: &'a [f64],
    /// The most it can have been, step by step; not finite where that is not known. A step is censored where this lies
    /// above its value; elsewhere, and past this slice's end, the value is exact.
    pub most: Option<&'a [f64]>,
}

/// The intervals of the steps that are censored, by step.
pub(super) type Intervals = BTreeMap<usize, (f64, f64)>;

impl Observed<'_> {
    /// The censored steps.
    pub(super) fn intervals(&self) -> Intervals {
        let pairs = self.values.iter().zip(self.most.unwrap_or_default()).enumerate();
        pairs
            .filter_map(|(at, (&least, &most))| {
                let most = if most.is_finite() { most } else { f64::INFINITY };
                (least.is_finite() && most > least).then_some((at, (least, most)))
            })
            .collect()
    }

    /// The values, with what was most likely in place of censored ones. `season` in steps, if any. O(length × seasons),
    /// or O(length) where nothing is censored: then nothing is touched.
    pub(super) fn imputed(&self, intervals: &Intervals, season: Option<usize>) -> Vec<f64> {
        if intervals.is_empty() {
            return self.values.to_vec();
        }
        let ends = intervals.values().map(|&(_, most)| most);
        let finite = self.values.iter().copied().chain(ends).filter(|value| value.is_finite());
        let largest = finite.fold(0.0_f64, |largest, value| largest.max(value.abs()));
        // Sums of what is divided by this stay finite, and it is undone without rounding.
        let scale = power_of_two_below(largest).unwrap_or(1.0);
        let mut past = Past { season, values: Vec::new(), sums: vec![0.0], state: State { level: 0.0, slope: 0.0 } };
        let mut values = self.values.to_vec();
        for (at, value) in values.iter_mut().enumerate() {
            let (seasonal, expected) = past.expects();
            let filled = match intervals.get(&at) {
                // With nothing before it, the least is all there is to go by.
                Some(&(least, most)) => {
                    if at == 0 {
                        least
                    } else {
                        (expected * scale).clamp(least, most.min(largest))
                    }
                }
                None if value.is_finite() => *value,
                None => {
                    past.push(expected, seasonal);
                    continue;
                }
            };
            *value = filled;
            past.push(filled / scale, seasonal);
        }
        values
    }
}

/// What was before a step, scaled.
struct Past {
    season: Option<usize>,
    values: Vec<f64>,
    /// `sums[t]` is the sum of the first `t` values.
    sums: Vec<f64>,
    state: State,
}

impl Past {
    /// The season of the next step, and the value to be expected of it.
    fn expects(&self) -> (f64, f64) {
        let at = self.values.len();
        let seasonal = self.season.map_or(0.0, |season| {
            let mut deviations: Vec<f64> = (1..=SEASONS_MAX)
                .map_while(|back| at.checked_sub(back * season))
                .map(|before| {
                    // A window of one season about it, as far as that is known.
                    let end = (before + season / 2).min(at - 1) + 1;
                    let from = end.saturating_sub(season);
                    self.values[before] - (self.sums[end] - self.sums[from]) / (end - from) as f64
                })
                .collect();
            if deviations.is_empty() { 0.0 } else { median(&mut deviations) }
        });
        (seasonal, seasonal + EXPECTATION.next(self.state))
    }

    fn push(&mut self, value: f64, seasonal: f64) {
        self.state = if self.values.is_empty() {
            State { level: value - seasonal, slope: 0.0 }
        } else {
            EXPECTATION.update(self.state, value - seasonal)
        };
        self.sums.push(self.sums[self.sums.len() - 1] + value);
        self.values.push(value);
    }
}
