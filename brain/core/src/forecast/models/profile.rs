//! The time-of-day profile, alone and moved to where the series is today.

use super::{Kind, PointModel, Series};

/// The median of what was near this time of day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProfileMedian;

impl PointModel for ProfileMedian {
    fn name(&self) -> &'static str {
        "time of day"
    }

    fn kind(&self) -> Kind {
        Kind::Seasonal
    }

    fn predict(&self, series: &Series, t: usize, ahead: usize) -> f64 {
        series.profile(t, ahead).map_or_else(|| series.mean(t, series.len()), |profile| profile.median)
    }
}

/// The profile's mean plus a part of how far the last hour lies from what the profile said of it. The part fades with the steps
/// ahead, as in an AR(1) of the deseasonalised series.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShiftedProfile {
    /// Steps after which half of the deviation is left.
    pub(crate) half_life_steps: f64,
}

/// Deviation is averaged over so many steps.
const DEVIATION_STEPS: usize = 3;

impl PointModel for ShiftedProfile {
    fn name(&self) -> &'static str {
        "shifted time of day"
    }

    fn kind(&self) -> Kind {
        Kind::Seasonal
    }

    fn predict(&self, series: &Series, t: usize, ahead: usize) -> f64 {
        let Some(there) = series.profile(t, ahead) else { return series.level(1, t) };
        let here = t.checked_sub(1).and_then(|before| series.profile(before, 1));
        let deviation = here.map_or(0.0, |here| series.mean(t, DEVIATION_STEPS) - here.mean);
        there.mean + deviation * (-(ahead as f64) / self.half_life_steps).exp2()
    }
}
