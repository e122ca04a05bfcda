//! The models whose forecasts the engine combines. Each says where the median of a step ahead lies, as seen from any origin.

pub(crate) mod arima;
pub(crate) mod decomposition;
pub(crate) mod ets;
pub(crate) mod level;
pub(crate) mod naive;
pub(crate) mod profile;
pub(crate) mod regression;
mod simplex;
pub(crate) mod steady;

use super::series::Series;

/// What a model rests on, as far as it tells what a season is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// On the level alone, recent or old.
    Steady,
    /// On a repetition of earlier seasons.
    Seasonal,
    /// On what was fitted, be it seasonal or not.
    Learned,
}

/// Says where the series will be.
pub(crate) trait PointModel {
    /// The field's name of it.
    fn name(&self) -> &'static str;

    /// What it rests on.
    fn kind(&self) -> Kind;

    /// The forecast for step `t + ahead` (`ahead` from 1) from what was known at `t`, in the series' scaled unit.
    fn predict(&self, series: &Series, t: usize, ahead: usize) -> f64;
}
