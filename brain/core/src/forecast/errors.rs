//! How wrong a model was, by how far ahead it looked: the source of every quantile.

use std::collections::VecDeque;

use crate::history::Interval;

/// Distances (in steps) at which errors are measured; between them they are interpolated. Each costs a bounded window of
/// residuals for each model of each VM.
const HORIZONS: [usize; 4] = [1, 4, 16, 64];

/// Residuals kept for each distance: enough for a 99 % quantile that is not the maximum.
const RESIDUALS_MAX: usize = 256;

/// Fewer residuals than this say nothing about a tail.
const RESIDUALS_MIN: usize = 12;

/// What a model said about a step to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prediction {
    /// Expected demand, in cores.
    pub(super) value: f64,
    /// How far off it usually is at this place of the season, in cores; above zero.
    pub(super) scale: f64,
}

/// Predictions that wait for their step, and the residuals of those that met it, in units of their scale.
#[derive(Clone, Debug)]
pub(super) struct Errors {
    buckets: Vec<Bucket>,
}

#[derive(Clone, Debug)]
struct Bucket {
    steps: usize,
    pending: VecDeque<Option<Prediction>>,
    residuals: Residuals,
}

impl Errors {
    /// For forecasts up to `horizon_steps` ahead.
    pub(super) fn new(horizon_steps: usize) -> Self {
        let wanted = |&steps: &usize| steps == 1 || steps <= horizon_steps;
        let bucket = |steps| Bucket { steps, pending: VecDeque::new(), residuals: Residuals::default() };
        Self { buckets: HORIZONS.into_iter().filter(wanted).map(bucket).collect() }
    }

    /// Compares what was predicted for this step with what it brought. A prediction within a censored step was not wrong.
    pub(super) fn score(&mut self, step: Option<Interval>) {
        for bucket in &mut self.buckets {
            if bucket.pending.len() < bucket.steps {
                continue;
            }
            if let (Some(Some(prediction)), Some(step)) = (bucket.pending.pop_front(), step) {
                let error = step.nearest(prediction.value) - prediction.value;
                bucket.residuals.push((error / prediction.scale) as f32);
            }
        }
    }

    /// Notes what is predicted for each distance; call it once for each step, after [`Errors::score`].
    pub(super) fn predict(&mut self, predict: impl Fn(usize) -> Option<Prediction>) {
        for bucket in &mut self.buckets {
            bucket.pending.push_back(predict(bucket.steps));
        }
    }

    /// Quantile of the residuals of forecasts `ahead` steps ahead, in scales. Monotone in `level`.
    pub(super) fn quantile(&self, ahead: usize, level: f64) -> f64 {
        let known = |bucket: &&Bucket| bucket.residuals.len() >= RESIDUALS_MIN;
        let before = self.buckets.iter().filter(known).rfind(|bucket| bucket.steps <= ahead);
        let after = self.buckets.iter().filter(known).find(|bucket| bucket.steps >= ahead);
        match (before, after) {
            (Some(before), Some(after)) if before.steps < after.steps => {
                let share = (ahead - before.steps) as f64 / (after.steps - before.steps) as f64;
                before.residuals.quantile(level) * (1.0 - share) + after.residuals.quantile(level) * share
            }
            (Some(bucket), _) | (None, Some(bucket)) => bucket.residuals.quantile(level),
            (None, None) => self.buckets[0].residuals.quantile(level),
        }
    }

    /// Whether a tail can be told at all.
    pub(super) fn are_known(&self) -> bool {
        self.buckets[0].residuals.len() >= RESIDUALS_MIN
    }
}

/// The latest residuals, sorted and in order of arrival.
#[derive(Clone, Debug, Default)]
struct Residuals {
    arrived: VecDeque<f32>,
    sorted: Vec<f32>,
}

impl Residuals {
    fn push(&mut self, residual: f32) {
        if !residual.is_finite() {
            return;
        }
        if self.arrived.len() == RESIDUALS_MAX
            && let Some(oldest) = self.arrived.pop_front()
            && let Ok(place) = self.sorted.binary_search_by(|r| r.total_cmp(&oldest))
        {
            self.sorted.remove(place);
        }
        self.arrived.push_back(residual);
        let place = self.sorted.partition_point(|r| r.total_cmp(&residual).is_lt());
        self.sorted.insert(place, residual);
    }

    fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest residual that at least `level` of one more draw would not exceed (split conformal prediction: Lei and
    /// others, 2018, eq. 6), or the largest where there are too few for that; 0 where there are none.
    fn quantile(&self, level: f64) -> f64 {
        let rank = (level * (self.sorted.len() + 1) as f64).ceil() as usize;
        let place = rank.max(1).min(self.sorted.len());
        place.checked_sub(1).map_or(0.0, |place| f64::from(self.sorted[place]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_further_ahead_are_told_apart() {
        let mut errors = Errors::new(16);
        // Demand rises by one each step and the model says "as now": wrong by exactly the distance.
        for step in 0..100 {
            let now = f64::from(step);
            errors.score(Some(Interval { low: now, high: now }));
            errors.predict(|_| Some(Prediction { value: now, scale: 1.0 }));
        }
        assert_eq!([1, 4, 10, 16, 50].map(|ahead| errors.quantile(ahead, 0.9)), [1.0, 4.0, 10.0, 16.0, 16.0]);
    }

    #[test]
    fn a_prediction_within_a_censored_step_was_not_wrong() {
        let mut errors = Errors::new(1);
        errors.predict(|_| Some(Prediction { value: 0.7, scale: 1.0 }));
        errors.score(Some(Interval { low: 0.2, high: 1.0 }));
        assert_eq!(errors.quantile(1, 0.99), 0.0);
    }

    proptest! {
        #[test]
        fn the_window_stays_sorted_bounded_and_equal_to_its_arrivals(
            residuals in proptest::collection::vec(-1e6f32..1e6, 0..600),
        ) {
            let mut window = Residuals::default();
            residuals.iter().for_each(|&residual| window.push(residual));
            let mut latest = residuals[residuals.len().saturating_sub(RESIDUALS_MAX)..].to_vec();
            latest.sort_by(f32::total_cmp);
            prop_assert_eq!(&window.sorted, &latest);
            let quantiles = [0.5, 0.9, 0.95, 0.99].map(|level| window.quantile(level));
            prop_assert!(quantiles.is_sorted());
        }
    }
}
