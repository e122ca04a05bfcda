//! Direct ridge regression (Hoerl and Kennard, 1970): one set of coefficients for each block of steps ahead, by the normal
//! equations.
//!
//! The Gram matrix only ever grows along the series, so the coefficients known at several moments of the past, needed for honest
//! residuals, cost one small factorisation each.

use std::sync::Arc;

use super::{Kind, PointModel, Series};
use crate::forecast::features::{FEATURES, Features};
use crate::forecast::horizon::Blocks;
use crate::forecast::normal::NormalEquations;

/// Penalty on a standardised coefficient as a share of the rows: enough to settle features that say the same.
const PENALTY: f64 = 0.01;

/// At most so many rows train a block. More of such like rows cost time and add little.
const ROWS_MAX: usize = 1000;

/// Unknowns: an intercept, then the features.
const WIDTH: usize = FEATURES + 1;

/// A fitted direct regression.
#[derive(Clone, Debug)]
pub(crate) struct Regression {
    name: &'static str,
    features: Arc<Features>,
    blocks: Blocks,
    /// For each block the coefficients, intercept first.
    coefficients: Vec<[f64; WIDTH]>,
}

impl Regression {
    /// One regression for each of `ends` (rising): fitted on targets before that step alone, of origins from `first` on.
    pub(crate) fn fit(
        name: &'static str,
        series: &Series,
        blocks: &Blocks,
        features: &Arc<Features>,
        first: usize,
        ends: &[usize],
    ) -> Vec<Self> {
        let mut fitted = vec![
            Self {
                name,
                features: features.clone(),
                blocks: blocks.clone(),
                coefficients: Vec::with_capacity(blocks.len())
            };
            ends.len()
        ];
        let stride = (series.len().saturating_sub(first) / ROWS_MAX).max(1);
        for block in 0..blocks.len() {
            let (nearest, farthest) = blocks.steps(block);
            let mut equations = NormalEquations::<WIDTH>::new();
            let mut origins = (first..series.len()).step_by(stride).enumerate().peekable();
            for (regression, &end) in fitted.iter_mut().zip(ends) {
                // Origins take turns in which step of the block they stand for.
                while let Some((t, ahead)) = origins
                    .peek()
                    .map(|&(turn, t)| (t, nearest + turn * 7 % (farthest - nearest + 1)))
                    .filter(|(t, ahead)| t + ahead < end)
                {
                    origins.next();
                    let row = row(series, t, ahead, features);
                    equations.add(&row, features.transform().forward(series.values()[t + ahead]));
                }
                regression.coefficients.push(equations.solve(PENALTY));
            }
        }
        fitted
    }
}

/// The intercept's 1, then the transformed features.
fn row(series: &Series, t: usize, ahead: usize, features: &Features) -> [f64; WIDTH] {
    let mut row = [1.0; WIDTH];
    if let Some(rest) = row.last_chunk_mut::<FEATURES>() {
        features.write(series, t, ahead, rest);
    }
    row
}

impl PointModel for Regression {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> Kind {
        Kind::Learned
    }

    fn predict(&self, series: &Series, t: usize, ahead: usize) -> f64 {
        let row = row(series, t, ahead, &self.features);
        let products = self.coefficients[self.blocks.of(ahead)].iter().zip(row).map(|(slope, value)| slope * value);
        self.features.transform().backward(products.sum())
    }
}
