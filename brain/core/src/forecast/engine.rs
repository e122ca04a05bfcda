//! The forecast engine: one series, its own window, quantiles for each step ahead.
//!
//! 1. The window becomes a [`Series`]: gaps bridged, scaled, with profiles of its seasons. Before, [`Observed`] has put a value in
//!    place of each censored step.
//! 2. Its second half is the *hold-out*: from many origins there every model forecasts, trained on what was known at the time.
//! 3. For each block of steps ahead, models are combined by their mean absolute error in the hold-out.
//! 4. What came in the hold-out, compared with the combination, calibrates the quantiles.
//! 5. Models trained on the whole window, so weighted and calibrated, look ahead.
//!
//! The models: the last value, levels and profiles; season plus trend with medians or exponential smoothing on top;
//! ARIMA over Fourier terms; ridge regressions. Only the regressions, smoothing and ARIMA are fitted, at a few moments
//! of the hold-out each.
//!
//! Deterministic, pure, and linear in the window's length; the horizon adds little.

mod observed;

use std::ops::Range;
use std::sync::Arc;

use super::combine::weights;
use super::conformal::{Calibration, Residual, frames};
use super::features::Features;
use super::horizon::Blocks;
use super::models::arima::Arima;
use super::models::decomposition::{DecomposedMedian, Decomposition};
use super::models::ets::Ets;
use super::models::level::Level;
use super::models::naive::{Naive, SeasonalNaive};
use super::models::profile::{ProfileMedian, ShiftedProfile};
use super::models::regression::Regression;
use super::models::steady::{Median, Reverting};
use super::models::{Kind, PointModel};
use super::series::{Series, usable};
use super::spread::{Spread, Step};
use super::transform::Transform;
use observed::Intervals;
pub use observed::Observed;

/// The quantile levels of a forecast.
pub const LEVELS: [f64; 4] = [0.5, 0.9, 0.95, 0.99];

/// Learned models are trained anew at so many evenly spread moments of the hold-out.
const FOLDS: usize = 4;

/// About so many forecasts make the hold-out.
const HOLD_OUT_CASES: usize = 6000;

/// From one origin at most so many steps ahead are tried.
const AHEADS_PER_ORIGIN_MAX: usize = 24;

/// Blocks on either side whose errors join in a block's weights and calibration: the tails of one block alone are few.
const BLOCKS_POOLED: usize = 1;

/// How fast a model's weight falls with its loss: one 10 % worse than the best weighs less than a quarter of it.
const SHARPNESS: f64 = 15.0;

/// Fewer steps than this are no series: the forecast is the last value.
const WINDOW_STEPS_MIN: usize = 48;

/// Half-lives of a deviation from the profile, in steps.
const HALF_LIVES_STEPS: [f64; 2] = [6.0, 72.0];

/// What a forecast needs to know besides the values.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// Lengths of the seasons to expect, in steps, shortest first: a day, a week. May be empty.
    pub seasons_steps: Vec<usize>,
    /// How many steps ahead forecasts will be asked for.
    pub horizon_steps: usize,
}

/// A model's part in a forecast.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// The model.
    pub model: &'static str,
    /// Its weight, averaged over the blocks of steps ahead; all sum to 1.
    pub weight: f64,
    /// Its mean absolute error in the hold-out, in the series' unit.
    pub error: f64,
}

/// What will come, for each step ahead from 1, in the series' unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forecast {
    /// The point forecast: the combination's median, which minimises the absolute error.
    pub point: Vec<f64>,
    /// For each step the quantiles at [`LEVELS`], rising.
    pub quantiles: Vec<[f64; LEVELS.len()]>,
}

/// The engine. It has no state: a fit depends on its arguments alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Engine;

impl Engine {
    /// Fits the window (any unit; NaN where unknown), the latest value last. Never fails: what cannot be learnt is not used.
    pub fn fit(values: &[f64], expectation: &Expectation) -> Fitted {
        Self::fit_observed(&Observed { values, most: None }, expectation)
    }

    /// The same where some steps are censored. A forecast that falls into what is possible then counts as faultless,
    /// and a window without a censored step gives what [`Engine::fit`] gives, byte for byte.
    pub fn fit_observed(observed: &Observed<'_>, expectation: &Expectation) -> Fitted {
        let horizon = expectation.horizon_steps.max(1);
        let seasons = &expectation.seasons_steps;
        let mut intervals = observed.intervals();
        let values = observed.imputed(&intervals, usable(seasons, observed.values.len()).next());
        let series = Series::new(&values, seasons);
        let scale = series.scale();
        intervals.values_mut().for_each(|(least, most)| (*least, *most) = (*least / scale, *most / scale));
        let blocks = Blocks::new(horizon);
        if series.len() < WINDOW_STEPS_MIN {
            return Fitted::without_models(series, blocks);
        }
        let features = Arc::new(Features::new(&series, Transform::asinh(series.values())));
        Fitter { series, intervals, features, blocks, horizon }.fit()
    }
}

/// A fitted series, ready to look ahead.
pub struct Fitted {
    series: Series,
    blocks: Blocks,
    models: Vec<Box<dyn PointModel + Send>>,
    /// For each block the models' weights.
    weights: Vec<Vec<f64>>,
    /// For each block a calibration for each of [`LEVELS`].
    calibrations: Vec<[Calibration; LEVELS.len()]>,
    spread: Option<Spread>,
    shares: Vec<Share>,
    skill: f64,
    seasonal_gain: Option<f64>,
    width: f64,
}

impl Fitted {
    fn without_models(series: Series, blocks: Blocks) -> Self {
        let (weights, calibrations) = (vec![vec![1.0]; blocks.len()], Vec::new());
        let models: Vec<Box<dyn PointModel + Send>> = vec![Box::new(Naive)];
        let shares = vec![Share { model: Naive.name(), weight: 1.0, error: f64::NAN }];
        let (skill, seasonal_gain, width) = (0.0, None, 0.0);
        Self { series, blocks, models, weights, calibrations, spread: None, shares, skill, seasonal_gain, width }
    }

    /// The models, their weights and their errors in the hold-out.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// The share of seasonal-naive's absolute error in the hold-out that the combination avoids: 0 is as good, 1 faultless.
    pub fn skill(&self) -> f64 {
        self.skill
    }

    /// What the season is worth: the best seasonal model's mean absolute error in the hold-out over that of the best
    /// model of the level alone, up to a season ahead. Chance makes it a little less than 1 or more; only well below 1
    /// has the season been earned. `None` without a season, or a hold-out.
    pub fn seasonal_gain(&self) -> Option<f64> {
        self.seasonal_gain
    }

    /// Looks `horizon_steps` ahead, or as far as the expectation said, whichever is less.
    pub fn forecast(&self, horizon_steps: usize) -> Forecast {
        let mut forecast = Forecast::default();
        let (farthest, scale) = (self.blocks.farthest(), self.series.scale());
        let Some(t) = self.series.len().checked_sub(1) else {
            let steps = horizon_steps.min(farthest);
            return Forecast { point: vec![0.0; steps], quantiles: vec![[0.0; LEVELS.len()]; steps] };
        };
        let bounds = Bounds::of(self.series.values());
        for ahead in 1..=horizon_steps.min(farthest) {
            let block = self.blocks.of(ahead);
            let said = self.models.iter().map(|model| bounds.point(model.predict(&self.series, t, ahead)));
            let point: f64 = said.zip(&self.weights[block]).map(|(said, weight)| said * weight).sum();
            let spread =
                self.spread.as_ref().map_or(self.width, |spread| spread.at(&self.series, Step { t, ahead, point }));
            let frames = frames(&self.series, t, ahead, point, spread, self.width);
            let mut least = f64::NEG_INFINITY;
            let quantiles = self.calibrations.get(block).map_or([point; LEVELS.len()], |calibrations| {
                calibrations.each_ref().map(|calibration| {
                    least = bounds.quantile(calibration.quantile(&frames)).max(least);
                    least
                })
            });
            forecast.point.push(quantiles[0] * scale);
            forecast.quantiles.push(quantiles.map(|quantile| quantile * scale));
        }
        forecast
    }
}

/// What was seen bounds what is said: models that extrapolate cannot explode.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    least: f64,
    largest: f64,
}

/// A quantile may lie so far past what was seen, as a share of the range seen.
const QUANTILE_EXCESS: f64 = 0.25;

impl Bounds {
    fn of(values: &[f64]) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self { least, largest }
    }

    fn point(self, value: f64) -> f64 {
        if value.is_finite() { value.clamp(self.least, self.largest) } else { self.largest }
    }

    fn quantile(self, value: f64) -> f64 {
        let excess = (self.largest - self.least) * QUANTILE_EXCESS;
        if value.is_finite() { value.clamp(self.least, self.largest + excess) } else { self.largest }
    }
}

struct Fitter {
    series: Series,
    /// Of the censored steps, in the series' scaled unit.
    intervals: Intervals,
    /// Seen through an inverse hyperbolic sine.
    features: Arc<Features>,
    blocks: Blocks,
    horizon: usize,
}

/// One forecast of the hold-out.
struct Case {
    t: usize,
    ahead: usize,
    said: Vec<f64>,
}

impl Fitter {
    fn fit(self) -> Fitted {
        let length = self.series.len();
        let start = length / 2;
        let ends: Vec<usize> = (0..FOLDS).map(|fold| start + (length - start) * fold / FOLDS).chain([length]).collect();
        let mut folds = self.train(&ends);
        let Some(models) = folds.pop() else { return Fitted::without_models(self.series, self.blocks) };
        let bounds = Bounds::of(self.series.values());
        let cases = self.cases(start);
        let mut by_block: Vec<Vec<Case>> = (0..self.blocks.len()).map(|_| Vec::new()).collect();
        for (t, ahead) in cases {
            let fold = ends.partition_point(|&end| end <= t + 1).saturating_sub(1).min(FOLDS - 1);
            let said = folds[fold].iter().map(|model| bounds.point(model.predict(&self.series, t, ahead))).collect();
            by_block[self.blocks.of(ahead)].push(Case { t, ahead, said });
        }
        self.combine(models, &by_block)
    }

    /// For each of the ends, all models as trained on what was before.
    fn train(&self, ends: &[usize]) -> Vec<Vec<Box<dyn PointModel + Send>>> {
        let season = self.series.season().unwrap_or(0);
        let first = (season + season / 16).max(24).min(self.series.len() / 3);
        let decomposition = Arc::new(Decomposition::new(&self.series));
        let fit =
            |name, features: &Arc<Features>| Regression::fit(name, &self.series, &self.blocks, features, first, ends);
        let identity = Arc::new(Features::new(&self.series, Transform::Identity));
        let plain = fit("ridge", &identity);
        let asinh = fit("ridge, asinh", &self.features);
        let ets = Ets::fit(&decomposition, ends);
        let arima = Arima::fit(&self.series, ends, self.horizon);
        plain
            .into_iter()
            .zip(asinh)
            .zip(ets)
            .zip(arima)
            .map(|(((plain, asinh), ets), arima)| {
                let mut models: Vec<Box<dyn PointModel + Send>> =
                    vec![Box::new(SeasonalNaive), Box::new(Naive), Box::new(ProfileMedian)];
                models.extend(Level::all().map(|level| Box::new(level) as _));
                models
                    .extend(HALF_LIVES_STEPS.map(|half_life_steps| Box::new(ShiftedProfile { half_life_steps }) as _));
                models.extend([Box::new(plain) as _, Box::new(asinh) as _]);
                models.push(Box::new(DecomposedMedian(decomposition.clone())));
                models.extend([Box::new(ets) as _, Box::new(arima) as _]);
                models
            })
            .collect()
    }

    /// Origins and steps ahead of the hold-out, evenly spread.
    fn cases(&self, start: usize) -> Vec<(usize, usize)> {
        let length = self.series.len();
        let aheads = self.horizon.min(AHEADS_PER_ORIGIN_MAX);
        let stride = ((length - start) * aheads / HOLD_OUT_CASES).max(1);
        let mut cases = Vec::new();
        for (turn, t) in (start..length - 1).step_by(stride).enumerate() {
            for place in 0..aheads {
                // Each origin tries other steps, so that all are tried.
                let ahead = 1 + (place * self.horizon + turn * self.horizon / 7 % self.horizon) / aheads % self.horizon;
                if t + ahead < length {
                    cases.push((t, ahead));
                }
            }
        }
        cases
    }

    /// What came, as near to `said` as it can have been.
    fn nearest(&self, step: usize, said: f64) -> f64 {
        self.intervals.get(&step).map_or(self.series.values()[step], |&(least, most)| said.clamp(least, most))
    }

    /// The same, but in the middle of what is possible where more came than was said: that it was only just more is unlikely.
    fn likely(&self, step: usize, said: f64) -> f64 {
        match self.intervals.get(&step) {
            Some(&(least, most)) if said < least && most.is_finite() => 0.5 * (least + most),
            _ => self.nearest(step, said),
        }
    }

    /// What the season is worth. `losses` are the sums of each model's absolute errors in each block.
    fn seasonal_gain(
        &self,
        models: &[Box<dyn PointModel + Send>],
        by_block: &[Vec<Case>],
        losses: &[Vec<f64>],
    ) -> Option<f64> {
        let within = ..=self.blocks.of(self.series.season()?);
        let of_kind = |kind: Kind| {
            let of_kind = (0..models.len()).filter(move |&model| models[model].kind() == kind);
            of_kind.map(|model| losses[within].iter().map(|losses| losses[model]).sum::<f64>())
        };
        let loss = |model: &dyn PointModel| {
            let error = |case: &Case| {
                let said = model.predict(&self.series, case.t, case.ahead);
                (self.nearest(case.t + case.ahead, said) - said).abs()
            };
            by_block[within].iter().flatten().map(error).sum::<f64>()
        };
        // These have no part in the forecast, which they would dilute.
        let medians = Median::both(&self.series).map(|median| loss(&median));
        let reverting = HALF_LIVES_STEPS.map(|half_life_steps| loss(&Reverting { half_life_steps }));
        let least = |losses: &mut dyn Iterator<Item = f64>| losses.fold(f64::INFINITY, f64::min);
        let seasonal = least(&mut of_kind(Kind::Seasonal));
        let steady = least(&mut of_kind(Kind::Steady).chain(medians).chain(reverting));
        // Where the level alone is faultless, there is nothing for a season to gain.
        Some(if steady > 0.0 { seasonal / steady } else { 1.0 })
    }

    fn combine(self, models: Vec<Box<dyn PointModel + Send>>, by_block: &[Vec<Case>]) -> Fitted {
        let width = (1..self.series.len()).map(|t| (self.series.lag(t, 0) - self.series.lag(t, 1)).abs()).sum::<f64>()
            / self.series.len() as f64
            + 1e-9;
        let mut block_weights = Vec::new();
        let mut steps = Vec::new();
        let mut errors = vec![0.0; models.len()];
        let mut shares = vec![0.0; models.len()];
        let mut combined = 0.0;
        let count = by_block.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        let losses: Vec<Vec<f64>> = by_block
            .iter()
            .map(|cases| {
                let error = |case: &Case, said: f64| (self.nearest(case.t + case.ahead, said) - said).abs();
                let loss = |model: usize| cases.iter().map(|case| error(case, case.said[model])).sum::<f64>();
                (0..models.len()).map(loss).collect()
            })
            .collect();
        for (block, cases) in by_block.iter().enumerate() {
            let near = near(by_block, block);
            let pooled: Vec<f64> =
                (0..models.len()).map(|model| losses[near.clone()].iter().map(|losses| losses[model]).sum()).collect();
            let weights = weights(&pooled, SHARPNESS);
            for case in cases {
                let point: f64 = case.said.iter().zip(&weights).map(|(said, weight)| said * weight).sum();
                let residual = (self.nearest(case.t + case.ahead, point) - point).abs();
                combined += residual / count;
                steps.push((Step { t: case.t, ahead: case.ahead, point }, residual));
            }
            for (model, loss) in losses[block].iter().enumerate() {
                errors[model] += loss / count;
                shares[model] += weights[model] / by_block.len() as f64;
            }
            block_weights.push(weights);
        }
        let (spread, spreads) = Spread::fit(&self.series, &self.features, &steps, width, self.series.len() * 3 / 4);
        let mut residuals: Vec<Vec<Residual>> = vec![Vec::new(); by_block.len()];
        for (&(Step { t, ahead, point }, _), spread) in steps.iter().zip(spreads) {
            let frames = frames(&self.series, t, ahead, point, spread, width);
            residuals[self.blocks.of(ahead)].push(Residual { frames, value: self.likely(t + ahead, point) });
        }
        let calibrations = (0..residuals.len())
            .map(|block| Calibration::fit(LEVELS, &residuals[near(&residuals, block)].concat()))
            .collect();
        let scale = self.series.scale();
        let naive = errors.first().copied().unwrap_or(0.0);
        let shares = models
            .iter()
            .zip(shares.iter().zip(&errors))
            .map(|(model, (&weight, error))| Share { model: model.name(), weight, error: error * scale })
            .collect();
        let skill = if naive > 0.0 { 1.0 - combined / naive } else { 0.0 };
        let seasonal_gain = self.seasonal_gain(&models, by_block, &losses);
        let Self { series, blocks, .. } = self;
        Fitted {
            series,
            blocks,
            models,
            weights: block_weights,
            calibrations,
            spread: Some(spread),
            shares,
            skill,
            seasonal_gain,
            width,
        }
    }
}

/// A block and its neighbours; more of them where these hold nothing, as at the far end of a short series.
fn near<T>(by_block: &[Vec<T>], block: usize) -> Range<usize> {
    let reach = |pooled: usize| block.saturating_sub(pooled)..(block + pooled + 1).min(by_block.len());
    let filled = |near: &Range<usize>| by_block[near.clone()].iter().any(|cases| !cases.is_empty());
    (BLOCKS_POOLED..by_block.len()).map(reach).find(filled).unwrap_or_else(|| reach(BLOCKS_POOLED))
}

#[cfg(test)]
mod tests;
