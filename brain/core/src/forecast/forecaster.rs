//! The models of one VM, and which of them may speak.

use std::collections::VecDeque;

use super::errors::{Errors, Prediction};
use super::level::Level;
use super::seasonal::Seasonal;
use crate::history::{Interval, Step};
use crate::view::Quantiles;

/// The season must have erred less than this share of the level's errors to be used: a forecast that is hardly better than none
/// does not justify acting before the demand is there.
const SEASON_ERROR_SHARE_MAX: f64 = 0.7;

/// Both are compared this part of a period ahead. A whole period would be the one distance at which "as now" is a seasonal forecast,
/// too; a few steps would be won by whoever follows the last step best.
const SCORE_AHEAD_PERIODS: f64 = 0.25;

/// Part of a period that must have been scored before the season may speak.
const SCORED_PERIODS_MIN: f64 = 0.75;

/// Periods over which scores are remembered.
const SCORE_PERIODS: f64 = 2.0;

/// A level's scale is one core: its residuals are in cores.
const LEVEL_SCALE: f64 = 1.0;

/// Learns a VM's demand step by step, O(1) each.
#[derive(Clone, Debug)]
pub(crate) struct Forecaster {
    /// Index of the step to be learnt next.
    next: u64,
    level: Level,
    level_errors: Errors,
    season: Option<Season>,
    /// Mean absolute one-step errors of the level and of "the same as the last step", decayed alike.
    one_step: (f64, f64),
    last: Option<f64>,
}

#[derive(Clone, Debug)]
struct Season {
    model: Seasonal,
    errors: Errors,
    /// What season and level expected of the steps to come, oldest first.
    ahead: VecDeque<Option<(f64, f64)>>,
    /// The values of one period: what "the same as a season ago" expects.
    ago: VecDeque<Option<f64>>,
    score: Score,
}

/// Decayed sums of absolute errors.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    steps: f64,
    season: f64,
    level: f64,
    naive: f64,
}

impl Forecaster {
    /// Nothing learnt yet; the first step will be `next`.
    pub(super) fn new(next: u64, horizon_steps: usize, season_steps: Option<f64>) -> Self {
        let season = season_steps.map(|steps| Season {
            model: Seasonal::new(steps),
            errors: Errors::new(horizon_steps),
            ahead: VecDeque::new(),
            ago: VecDeque::new(),
            score: Score::default(),
        });
        let (level, level_errors) = (Level::new(), Errors::new(horizon_steps));
        Self { next, level, level_errors, season, one_step: (0.0, 0.0), last: None }
    }

    /// Index of the step to be learnt next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Learns the next step; `None` for a gap.
    pub(crate) fn learn(&mut self, step: Option<Step>) {
        let step = step.map(Step::mean);
        self.level_errors.score(step);
        if let Some(season) = &mut self.season {
            season.score(step);
        }
        let value = step.map(|step| step.nearest(self.expectation().unwrap_or(step.middle())));
        match value {
            Some(value) => {
                self.score_one_step(value);
                self.level.update(value);
                if let Some(season) = &mut self.season {
                    season.model.update(self.next, value);
                }
            }
            None => {
                if let Some(season) = &mut self.season {
                    season.model.skip();
                }
            }
        }
        self.last = value.or(self.last);
        self.next += 1;
        let (next, level) = (self.next, self.level.value());
        self.level_errors.predict(|_| level.map(|value| Prediction { value, scale: LEVEL_SCALE }));
        if let Some(season) = &mut self.season {
            season.expect(next, level, value);
        }
    }

    fn score_one_step(&mut self, value: f64) {
        if let (Some(level), Some(last)) = (self.level.value(), self.last) {
            const GAIN: f64 = 0.02;
            self.one_step.0 += GAIN * ((value - level).abs() - self.one_step.0);
            self.one_step.1 += GAIN * ((value - last).abs() - self.one_step.1);
        }
    }

    /// What the model in charge expects of the next step.
    fn expectation(&self) -> Option<f64> {
        let season = self.earned().and_then(|season| season.model.predict(self.next, 1));
        season.map(|prediction| prediction.value).or_else(|| self.level.value())
    }

    /// The season, if it has earned its say.
    fn earned(&self) -> Option<&Season> {
        self.season.as_ref().filter(|season| season.is_earned())
    }

    /// The season it rests on, in steps; `None` when the level speaks.
    pub(crate) fn season_steps(&self) -> Option<f64> {
        self.earned().map(|season| season.model.period_steps())
    }

    /// A season that was found but forecasts no better than the level.
    pub(crate) fn season_unearned_steps(&self) -> Option<f64> {
        self.season.as_ref().filter(|season| !season.is_earned()).map(|season| season.model.period_steps())
    }

    /// Whether it can tell quantiles yet.
    pub(crate) fn is_ready(&self) -> bool {
        self.level.value().is_some() && self.level_errors.are_known()
    }

    /// Demand `ahead` steps after the latest learnt step (1 is the next), within 0..=`cores_max`.
    pub(crate) fn quantiles(&self, ahead: usize, cores_max: f64) -> Quantiles {
        let at = |level| self.quantile(ahead, level, cores_max);
        Quantiles { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99) }
    }

    /// One quantile of that demand. Monotone in `level`.
    pub(crate) fn quantile(&self, ahead: usize, level: f64, cores_max: f64) -> f64 {
        let ahead = ahead.max(1);
        let seasonal = self.earned().filter(|season| season.errors.are_known()).and_then(|season| {
            let prediction = season.model.predict(self.next - 1 + ahead as u64, ahead)?;
            Some((prediction, &season.errors))
        });
        let (prediction, errors) = seasonal.unwrap_or_else(|| {
            let value = self.level.value().unwrap_or(0.0);
            (Prediction { value, scale: LEVEL_SCALE }, &self.level_errors)
        });
        let demand = prediction.value + prediction.scale * errors.quantile(ahead, level);
        demand.max(0.0).min(cores_max.max(0.0))
    }

    /// Mean absolute error over that of the naive forecast ("as a season ago" with a season, else "as the last step"); below 1 is
    /// skill. `None` while there is nothing to compare.
    pub(crate) fn relative_error(&self) -> Option<f64> {
        let (error, naive) = match self.earned() {
            Some(season) => (season.score.season, season.score.naive),
            None => self.one_step,
        };
        (naive > f64::EPSILON).then(|| error / naive)
    }

    /// The share of the error of "the same as a season ago" that its season avoids, where one has earned its say; 0 where there is no such
    /// error to avoid.
    pub(crate) fn skill(&self) -> Option<f64> {
        self.earned().map(|_| 1.0 - self.relative_error().unwrap_or(1.0))
    }
}

impl Season {
    /// Compares what was expected of a step with what it brought.
    fn score(&mut self, step: Option<Interval>) {
        self.errors.score(step);
        let ahead = if self.ahead.len() < self.ahead_steps() { None } else { self.ahead.pop_front().flatten() };
        let ago = if self.ago.len() < self.period_steps() { None } else { self.ago.pop_front().flatten() };
        let (Some((season, level)), Some(naive), Some(step)) = (ahead, ago, step) else { return };
        let error = |expected: f64| (step.nearest(expected) - expected).abs();
        let keep = 1.0 - 1.0 / (SCORE_PERIODS * self.model.period_steps()).max(1.0);
        let score = &mut self.score;
        score.steps += 1.0;
        score.season = score.season * keep + error(season);
        score.level = score.level * keep + error(level);
        score.naive = score.naive * keep + error(naive);
    }

    /// Notes what is expected after the step before `next`, which brought `value`.
    fn expect(&mut self, next: u64, level: Option<f64>, value: Option<f64>) {
        let model = &self.model;
        let scaled = model.is_calibrated();
        self.errors.predict(|ahead| model.predict(next - 1 + ahead as u64, ahead).filter(|_| scaled));
        let steps = self.ahead_steps();
        let season = self.model.predict(next - 1 + steps as u64, steps);
        self.ahead.push_back(season.map(|season| season.value).zip(level));
        self.ago.push_back(value);
    }

    fn period_steps(&self) -> usize {
        self.model.period_steps().round() as usize
    }

    fn ahead_steps(&self) -> usize {
        ((self.model.period_steps() * SCORE_AHEAD_PERIODS) as usize).max(1)
    }

    fn is_earned(&self) -> bool {
        self.score.steps >= SCORED_PERIODS_MIN * self.model.period_steps()
            && self.score.season < SEASON_ERROR_SHARE_MAX * self.score.level
    }
}
