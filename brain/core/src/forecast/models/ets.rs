//! Exponential smoothing with additive errors on the seasonally adjusted series: ETS(A,N,N) or, where Akaike's
//! corrected criterion asks for it, ETS(A,Ad,N) with a damped trend (Hyndman and others, 2008). With the season it is
//! what MSTL with ETS does.
//!
//! A library's ETS forecasts from the end of what it was fitted on. Here one fit has to speak at every origin of the
//! hold-out, so the recursion is written out and its states are kept.

use std::sync::Arc;

use super::decomposition::Decomposition;
use super::simplex::minimise;
use super::{Kind, PointModel, Series};

/// Smoothing is fitted on so many steps before the end of what is known.
const FIT_STEPS_MAX: usize = 700;

/// Nelder-Mead steps for each form.
const STEPS_MAX: usize = 48;

/// Bounds of the level's factor.
const LEVEL_MIN: f64 = 1e-3;
const LEVEL_MAX: f64 = 0.999;

/// Bounds of the damping, as in R's and statsforecast's ETS.
const DAMPING_MIN: f64 = 0.8;
const DAMPING_MAX: f64 = 0.98;

/// How a level and a slope follow the series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Smoothing {
    /// Part of a surprise that the level takes in.
    pub(crate) level: f64,
    /// Part of a surprise that the slope takes in; not above `level`.
    pub(crate) slope: f64,
    /// What is left of the slope a step later.
    pub(crate) damping: f64,
}

/// A level and a slope per step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct State {
    /// Where it is.
    pub(crate) level: f64,
    /// How fast it rises, a step.
    pub(crate) slope: f64,
}

impl Smoothing {
    /// What the next value would be.
    pub(crate) fn next(self, state: State) -> f64 {
        state.level + self.damping * state.slope
    }

    /// The state after this value (Hyndman and others, 2008, equation 3.15).
    pub(crate) fn update(self, state: State, value: f64) -> State {
        let expected = self.next(state);
        let surprise = value - expected;
        State { level: expected + self.level * surprise, slope: self.damping * state.slope + self.slope * surprise }
    }

    /// The sum of squared surprises, from the first value as the level.
    fn squares(self, values: &[f64]) -> f64 {
        let mut state = State { level: values.first().copied().unwrap_or(0.0), slope: 0.0 };
        let mut sum = 0.0;
        for &value in values {
            sum += (value - self.next(state)).powi(2);
            state = self.update(state, value);
        }
        sum
    }

    /// The form and factors of least corrected AIC on these values.
    fn fit(values: &[f64]) -> Self {
        let simple = |[level]: [f64; 1]| Self { level: level.clamp(LEVEL_MIN, LEVEL_MAX), slope: 0.0, damping: 0.0 };
        let damped = |[level, share, damping]: [f64; 3]| {
            let level = level.clamp(LEVEL_MIN, LEVEL_MAX);
            Self { level, slope: level * share.clamp(1e-4, 1.0), damping: damping.clamp(DAMPING_MIN, DAMPING_MAX) }
        };
        let without = simple(minimise([0.3], [0.3], STEPS_MAX / 2, |at| simple(at).squares(values)));
        let with =
            damped(minimise([without.level, 0.1, 0.9], [0.2, 0.2, -0.05], STEPS_MAX, |at| damped(at).squares(values)));
        let criterion = |smoothing: Self, parameters: f64| {
            let count = values.len() as f64;
            count * (smoothing.squares(values) / count).max(f64::MIN_POSITIVE).ln()
                + 2.0 * parameters * count / (count - parameters - 1.0).max(1.0)
        };
        // The variance is a parameter as well, and so are the first states.
        if criterion(with, 6.0) < criterion(without, 3.0) { with } else { without }
    }
}

/// A fitted smoothing with its states at all steps.
#[derive(Clone, Debug)]
pub(crate) struct Ets {
    decomposition: Arc<Decomposition>,
    smoothing: Smoothing,
    states: Vec<State>,
}

impl Ets {
    /// One for each of `ends`: fitted on what was before that step alone.
    pub(crate) fn fit(decomposition: &Arc<Decomposition>, ends: &[usize]) -> Vec<Self> {
        let values = decomposition.adjusted();
        let fit = |&end: &usize| {
            let smoothing = Smoothing::fit(&values[end.saturating_sub(FIT_STEPS_MAX)..end]);
            let mut state = State { level: values.first().copied().unwrap_or(0.0), slope: 0.0 };
            let states = values
                .iter()
                .map(|&value| {
                    state = smoothing.update(state, value);
                    state
                })
                .collect();
            Self { decomposition: decomposition.clone(), smoothing, states }
        };
        ends.iter().map(fit).collect()
    }
}

impl PointModel for Ets {
    fn name(&self) -> &'static str {
        "season + ETS"
    }

    fn kind(&self) -> Kind {
        Kind::Learned
    }

    fn predict(&self, _series: &Series, t: usize, ahead: usize) -> f64 {
        let (State { level, slope }, damping) = (self.states[t], self.smoothing.damping);
        // Slopes of a geometric series.
        let slopes = damping * (1.0 - damping.powi(ahead as i32)) / (1.0 - damping);
        level + slope * slopes + self.decomposition.season(t, ahead)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_rise_is_carried_on_but_fades() {
        let values: Vec<f64> = (0..300).map(|step| 10.0 + f64::from(step) + f64::from(step * 31 % 7) * 0.1).collect();
        let series = Series::new(&values, &[]);
        let ets = Ets::fit(&Arc::new(Decomposition::new(&series)), &[300]).remove(0);
        let said = |ahead| ets.predict(&series, 299, ahead) * series.scale();
        let rise = said(10) - said(1);
        assert!((6.0..9.0).contains(&rise), "{rise}");
        assert!(said(300) - said(290) < 0.5 * rise, "{}", said(300));
    }

    #[test]
    fn noise_about_a_level_gets_little_smoothing_and_no_slope() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let values: Vec<f64> = (0..400).map(|_| rng.random::<f64>()).collect();
        let smoothing = Smoothing::fit(&values);
        assert!(smoothing.level < 0.1 && smoothing.slope == 0.0, "{smoothing:?}");
    }

    #[test]
    fn a_level_that_wanders_is_followed() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut level = 0.0;
        let values: Vec<f64> = (0..400)
            .map(|_| {
                level += rng.random::<f64>() - 0.5;
                level
            })
            .collect();
        assert!(Smoothing::fit(&values).level > 0.8);
    }
}
