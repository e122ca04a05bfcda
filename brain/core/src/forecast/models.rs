//! The models whose forecasts the engine combines. Each says where the median of a step ahead lies, as seen from any origin.

pub(crate) mod decomposition;
pub(crate) mod ets;
pub(crate) mod level;
pub(crate) mod naive;
pub(crate) mod profile;
pub(crate) mod regression;
mod simplex;

use super::series::Series;

/// Says where the series will be.
pub(crate) trait PointModel {
    /// The field's name of it.
    fn name(&self) -> &'static str;

    /// The forecast for step `t + ahead` (`ahead` from 1) from what was known at `t`, in the series' scaled unit.
    fn predict(&self, series: &Series, t: usize, ahead: usize) -> f64;
}
