//! Simple exponential smoothing with a fixed factor (Brown, 1959).

use super::{Kind, PointModel, Series};
use crate::forecast::series::LEVEL_ALPHAS;

/// The level with one of the smoothing factors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level(pub(crate) usize);

impl Level {
    /// One for each factor.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..LEVEL_ALPHAS.len()).map(Self)
    }
}

impl PointModel for Level {
    fn name(&self) -> &'static str {
        ["level, fast", "level", "level, slow"][self.0]
    }

    fn kind(&self) -> Kind {
        Kind::Steady
    }

    fn predict(&self, series: &Series, t: usize, _ahead: usize) -> f64 {
        series.level(self.0, t)
    }
}
