//! How far off the forecast will be: the absolute residual regressed on what is known at the origin (Glejser's regression, 1969).
//!
//! Residuals come from the hold-out, so they are honest. What the regression says of a step of the hold-out is learnt from the
//! other half of it alone (cross-fitting), so that the quantiles calibrated on it stay honest too.

use std::sync::Arc;

use super::features::{FEATURES, Features};
use super::normal::NormalEquations;
use super::series::Series;
use super::transform::asinh;

/// Penalty relative to each column's variance. More than for levels: spreads are noisier.
const PENALTY: f64 = 0.05;

/// What drives the spread besides the features: steps ahead (twice), the forecast, the recent and the seasonal spread.
const DRIVERS: usize = 7;

const WIDTH: usize = 1 + FEATURES + DRIVERS;

/// Residuals are regressed in units of the typical width, through the inverse hyperbolic sine.
const LOGARITHM_MAX: f64 = 12.0;

/// One step of the hold-out or the future.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// As seen from here.
    pub(crate) t: usize,
    /// So many steps ahead.
    pub(crate) ahead: usize,
    /// What is forecast for it.
    pub(crate) point: f64,
}

/// A fitted regression of the spread.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    features: Arc<Features>,
    typical: f64,
    coefficients: [f64; WIDTH],
}

impl Spread {
    /// From the steps of the hold-out and their absolute residuals, in any order; those at or after `middle` are the second half.
    /// Returns the regression for the future and what it says, cross-fitted, of each step given.
    pub(crate) fn fit(
        series: &Series,
        features: &Arc<Features>,
        steps: &[(Step, f64)],
        typical: f64,
        middle: usize,
    ) -> (Self, Vec<f64>) {
        let mut halves = [NormalEquations::<WIDTH>::new(), NormalEquations::new()];
        let rows: Vec<[f64; WIDTH]> = steps.iter().map(|(step, _)| row(series, *step, features, typical)).collect();
        for ((step, residual), row) in steps.iter().zip(&rows) {
            halves[usize::from(step.t >= middle)].add(row, asinh(residual / typical));
        }
        let with = |equations: &NormalEquations<WIDTH>| Self {
            features: features.clone(),
            typical,
            coefficients: equations.solve(PENALTY),
        };
        let crossed = [with(&halves[1]), with(&halves[0])];
        let said = steps.iter().zip(&rows).map(|((step, _), row)| crossed[usize::from(step.t >= middle)].width(row));
        let said = said.collect();
        let [mut all, second] = halves;
        all.merge(&second);
        (with(&all), said)
    }

    /// How far off the forecast of this step is likely to be, in the series' scaled unit; above 0.
    pub(crate) fn at(&self, series: &Series, step: Step) -> f64 {
        self.width(&row(series, step, &self.features, self.typical))
    }

    fn width(&self, row: &[f64; WIDTH]) -> f64 {
        let logarithm: f64 = self.coefficients.iter().zip(row).map(|(slope, value)| slope * value).sum();
        self.typical * (FLOOR + logarithm.clamp(0.0, LOGARITHM_MAX).sinh())
    }
}

/// Least width, in typical ones.
const FLOOR: f64 = 0.1;

fn row(series: &Series, step: Step, features: &Features, typical: f64) -> [f64; WIDTH] {
    let Step { t, ahead, point } = step;
    let mut row = [1.0; WIDTH];
    if let Some(front) = row[1..].first_chunk_mut::<FEATURES>() {
        features.write(series, t, ahead, front);
    }
    let ahead_log = (ahead as f64).ln();
    let width = |width: f64| asinh(width.abs() / typical);
    let (seasonal, above) = series
        .profile(t, ahead)
        .map_or((0.0, 0.0), |profile| (width(profile.high - profile.median), width((profile.max - point).max(0.0))));
    row[1 + FEATURES..].copy_from_slice(&[
        ahead_log,
        ahead_log * ahead_log,
        features.transform().forward(point),
        width(series.deviation(t, 12)),
        width(series.deviation(t, 36)),
        seasonal,
        above,
    ]);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::transform::Transform;

    #[test]
    fn a_spread_that_follows_the_level_is_found() {
        let values: Vec<f64> = (0..600).map(|step| if step / 50 % 2 == 0 { 1.0 } else { 10.0 }).collect();
        let series = Series::new(&values, &[]);
        let typical = 0.1;
        let steps: Vec<(Step, f64)> = (100..599)
            .map(|t| {
                let point = series.lag(t, 0);
                (Step { t, ahead: 1, point }, point * 0.5)
            })
            .collect();
        let (spread, said) =
            Spread::fit(&series, &Arc::new(Features::new(&series, Transform::Identity)), &steps, typical, 350);
        let at = |t| spread.at(&series, Step { t, ahead: 1, point: series.lag(t, 0) });
        assert!(at(590) > 4.0 * at(540), "{} {}", at(590), at(540));
        assert_eq!(said.len(), steps.len());
    }
}
