//! The forecasts that everything else has to beat.

use super::{Kind, PointModel, Series};

/// It stays where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naive;

impl PointModel for Naive {
    fn name(&self) -> &'static str {
        "naive"
    }

    fn kind(&self) -> Kind {
        Kind::Steady
    }

    fn predict(&self, series: &Series, t: usize, _ahead: usize) -> f64 {
        series.lag(t, 0)
    }
}

/// It does what it did one season ago; without a season, it stays where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeasonalNaive;

impl PointModel for SeasonalNaive {
    fn name(&self) -> &'static str {
        "seasonal-naive"
    }

    fn kind(&self) -> Kind {
        Kind::Seasonal
    }

    fn predict(&self, series: &Series, t: usize, ahead: usize) -> f64 {
        let Some(season) = series.season() else { return series.lag(t, 0) };
        let back = season * ahead.div_ceil(season);
        (t + ahead).checked_sub(back).map_or_else(|| series.lag(t, 0), |at| series.values()[at])
    }
}
