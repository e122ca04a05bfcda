//! Quantiles that keep their promise: levels corrected by what came.
//!
//! Adaptive conformal inference (Gibbs and Candès, "Adaptive Conformal Inference Under Distribution Shift", NeurIPS 2021, eq. 2): the
//! level that is looked up rises with each miss and falls with each hit, so that in the long run the quantiles cover their share
//! whatever the demand does. A forecast has four quantiles; levels between and a little beyond them are interpolated on the logistic scale,
//! and end at [`LEVEL_MAX`], which bounds the width.

use serde::{Deserialize, Serialize};

use crate::forecast::engine::LEVELS;

/// How far one step moves a level, as a share of the step's error (Gibbs and Candès use 0.005).
const GAIN: f64 = 0.005;

/// No level that is looked up is higher.
const LEVEL_MAX: f64 = 0.999;

/// A level falls so far at most that its chance of a miss is this many times the promised one.
const MISS_FACTOR_MAX: f64 = 3.0;

/// Corrected levels for forecasts a certain time ahead.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Calibration {
    /// The level that is looked up in place of each of [`LEVELS`].
    levels: [f64; LEVELS.len()],
}

/// The corrections of a VM's quantiles: of those near, and of those far ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Corrections {
    pub(super) near: Calibration,
    pub(super) far: Calibration,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { levels: LEVELS }
    }
}

impl Calibration {
    /// The corrected quantiles of a step whose forecast has these; rising.
    pub(super) fn correct(&self, quantiles: [f64; LEVELS.len()]) -> [f64; LEVELS.len()] {
        let mut least = 0.0f64;
        self.levels.map(|level| {
            least = least.max(at(quantiles, level));
            least
        })
    }

    /// The same within its bounds: what was stored may be damaged.
    pub(super) fn bounded(self) -> Self {
        let mut calibration = self;
        for (level, promised) in calibration.levels.iter_mut().zip(LEVELS) {
            *level = if level.is_finite() { level.clamp(least(promised), LEVEL_MAX) } else { promised };
        }
        calibration
    }

    /// Learns what came of a step whose forecast had these quantiles, uncorrected.
    pub(super) fn learn(&mut self, quantiles: [f64; LEVELS.len()], came: f64) {
        let served = self.correct(quantiles);
        for ((level, served), promised) in self.levels.iter_mut().zip(served).zip(LEVELS) {
            let missed = f64::from(u8::from(came > served));
            *level = (*level + GAIN * (missed - (1.0 - promised))).clamp(least(promised), LEVEL_MAX);
        }
    }
}

/// The lowest level that is looked up in place of a promised one.
fn least(promised: f64) -> f64 {
    (1.0 - MISS_FACTOR_MAX * (1.0 - promised)).max(0.25)
}

/// The quantile at any level, by lines between the four on the logistic scale, the outer ones going on.
fn at(quantiles: [f64; LEVELS.len()], level: f64) -> f64 {
    let logit = |level: f64| (level / (1.0 - level)).ln();
    let right = LEVELS.partition_point(|&known| known < level).clamp(1, LEVELS.len() - 1);
    let (from, to) = (logit(LEVELS[right - 1]), logit(LEVELS[right]));
    let share = (logit(level) - from) / (to - from);
    quantiles[right - 1] + share * (quantiles[right] - quantiles[right - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::draw;
    use proptest::prelude::*;

    /// Uniform over 0..1, the same for the same step.
    fn uniform(step: u64) -> f64 {
        draw(7, step) as f64 / u64::MAX as f64
    }

    #[test]
    fn what_was_calibrated_already_stays() {
        let mut calibration = Calibration::default();
        (0..20_000).for_each(|step| calibration.learn(LEVELS, uniform(step)));
        for (level, promised) in calibration.levels.into_iter().zip(LEVELS) {
            assert!((level - promised).abs() < 0.05 * (1.0 - promised) + 0.02, "{level} for {promised}");
        }
        assert_eq!(
            Calibration::default().correct([0.1, 0.2, 0.3, 0.4]).map(|q| (q * 1e9).round() / 1e9),
            [0.1, 0.2, 0.3, 0.4]
        );
    }

    #[test]
    fn quantiles_that_are_too_low_are_raised_until_they_cover_their_share() {
        // The forecast knows half of the spread.
        let forecast = LEVELS.map(|level| 0.5 * level);
        let mut calibration = Calibration::default();
        let (mut covered, steps) = (0.0, 20_000);
        for step in 0..steps {
            let came = 0.52 * uniform(step);
            covered += f64::from(u8::from(came <= calibration.correct(forecast)[2])) / steps as f64;
            calibration.learn(forecast, came);
        }
        assert!((covered - 0.95).abs() < 0.01, "{covered}");
        let uncorrected = (0..steps).filter(|&step| 0.52 * uniform(step) <= forecast[2]).count() as f64 / steps as f64;
        assert!(uncorrected < 0.93, "{uncorrected}");
    }

    proptest! {
        #[test]
        fn whatever_comes_quantiles_rise_and_stay_within_reach(
            came in proptest::collection::vec(prop_oneof![0.0..1e6f64, Just(0.0), Just(1e300)], 0..600), steps in proptest::array::uniform4(0.0..10.0f64),
        ) {
            let mut sum = 0.0;
            let quantiles = steps.map(|step| { sum += step; sum });
            let mut calibration = Calibration::default();
            for came in came {
                calibration.learn(quantiles, came);
                let served = calibration.correct(quantiles);
                prop_assert!(served.is_sorted() && served[0] >= 0.0);
                // From 99 % to 99.9 % is one and a half times as far as from 95 % to 99 % on the logistic scale.
                prop_assert!(served[3] <= quantiles[3] + 1.5 * (quantiles[3] - quantiles[2]) + 1e-9);
            }
        }
    }
}
