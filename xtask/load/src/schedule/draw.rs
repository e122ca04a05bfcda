//! Draws: a compressed day whose length and phase nobody outside the lab knows in advance.

use super::random::SplitMix64;
use super::{Periodic, Schedule};

/// Bounds of a draw. Nothing inside the product may depend on them: a run that learnt the period by heart would
/// prove nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DayRange {
    /// Shortest and longest day, in seconds.
    pub period_s: (f64, f64),
    /// Lowest and highest level outside the peak, in cores.
    pub base: (f64, f64),
    /// Lowest and highest plateau, in cores.
    pub peak: (f64, f64),
    /// Shortest and longest peak, as a share of the period.
    pub width: (f64, f64),
}

impl Schedule {
    /// A day drawn from `range` by `seed`; the phase is drawn over the whole period. Times are rounded to a tenth of a
    /// second and levels to a hundredth of a core, so that the text on a command line stays short.
    pub fn draw_day(seed: u64, range: &DayRange) -> Schedule {
        let mut random = SplitMix64::new(seed);
        let mut tenths = |(low, high): (f64, f64)| (random.between(low, high) * 10.0).round() / 10.0;
        let period_s = tenths(range.period_s);
        let phase_s = tenths((0.0, period_s));
        let width_s = tenths((range.width.0 * period_s, range.width.1 * period_s)).clamp(0.1, period_s);
        let shoulder_s = (width_s * 2.5).floor() / 10.0;
        let mut hundredths = |(low, high): (f64, f64)| (random.between(low, high) * 100.0).round() / 100.0;
        let base = hundredths(range.base);
        let peak = hundredths(range.peak);
        Schedule::Periodic(Periodic { period_s, phase_s, base, peak, width_s, shoulder_s })
    }
}
