//! Quantiles from residuals of the past: split-conformal prediction with several ideas of what drives the spread.
//!
//! Each [`Frame`] says where a step is expected and how wide things are around it. What came in the hold-out, seen from its frame,
//! gives empirical quantiles (normalised conformal prediction; Papadopoulos and others, 2008). Frames are combined by the pinball
//! loss they would have had at that level: where demand bursts at fixed times the profile's spread wins, where it clusters the
//! recent volatility does. A last shift of the combination restores the coverage that averaging costs.

use super::combine::{pinball, weights};
use super::series::Series;

/// Smallest width of a frame relative to the series' mean absolute change: no division by nothing on series that stood still.
const WIDTH_FLOOR_SHARE: f64 = 0.3;

/// Steps over which recent volatility is measured: one to a few hours of 5 min.
const VOLATILITY_STEPS: [usize; 2] = [12, 36];

/// How fast a frame's weight falls with its loss; pinball losses of far quantiles are noisy, so not as fast as a
/// model's.
const SHARPNESS: f64 = 11.0;

/// How many frames there are.
pub(crate) const FRAMES: usize = 7;

/// Where a step is expected and how wide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    centre: f64,
    width: f64,
}

/// The frames of step `t + ahead` as seen at `t`, when `point` is the forecast and `spread` how far off the regression
/// thinks it. `floor` is a typical width.
pub(crate) fn frames(series: &Series, t: usize, ahead: usize, point: f64, spread: f64, floor: f64) -> [Frame; FRAMES] {
    let floor = floor * WIDTH_FLOOR_SHARE;
    let recent = VOLATILITY_STEPS.map(|steps| series.deviation(t, steps));
    let highest = series.max(t, VOLATILITY_STEPS[1]);
    let (profile_width, profile_high, profile_max) =
        series.profile(t, ahead).map_or((floor, highest, highest), |profile| {
            (profile.mean - profile.median + profile.high - profile.median, profile.high, profile.max)
        });
    [
        Frame { centre: point, width: 1.0 },
        Frame { centre: point, width: recent[0] + floor },
        Frame { centre: point, width: recent[1].max(recent[0]) + profile_width.abs() + floor },
        Frame { centre: point, width: (profile_max - point).max(0.0) + floor },
        Frame { centre: 0.5 * (point + profile_high), width: profile_width.abs() + floor },
        Frame { centre: point, width: point.abs() + floor },
        Frame { centre: point, width: spread },
    ]
}

/// One step of the hold-out: its frames and what came.
#[derive(Clone, Debug)]
pub(crate) struct Residual {
    /// How it was framed.
    pub(crate) frames: [Frame; FRAMES],
    /// What came.
    pub(crate) value: f64,
}

/// How to say one quantile level in one block of steps ahead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calibration {
    /// For each frame its weight and the empirical quantile of what came, in widths from the centre.
    frames: Vec<(f64, f64)>,
    shift: f64,
}

impl Calibration {
    /// From the residuals of a block, one for each level.
    pub(crate) fn fit<const N: usize>(levels: [f64; N], residuals: &[Residual]) -> [Self; N] {
        let mut calibrations = [const { Self { frames: Vec::new(), shift: 0.0 } }; N];
        if residuals.is_empty() {
            return calibrations;
        }
        let mut losses: [Vec<f64>; N] = [const { Vec::new() }; N];
        for which in 0..FRAMES {
            let mut normalised: Vec<f64> = residuals
                .iter()
                .map(|residual| (residual.value - residual.frames[which].centre) / residual.frames[which].width)
                .collect();
            normalised.sort_unstable_by(f64::total_cmp);
            for ((&level, calibration), losses) in levels.iter().zip(&mut calibrations).zip(&mut losses) {
                let offset = quantile(&normalised, level);
                let loss = residuals.iter().map(|residual| {
                    let Frame { centre, width } = residual.frames[which];
                    pinball(level, residual.value, centre + offset * width)
                });
                losses.push(loss.sum());
                calibration.frames.push((0.0, offset));
            }
        }
        for ((&level, calibration), losses) in levels.iter().zip(&mut calibrations).zip(&losses) {
            for ((weight, _), new) in calibration.frames.iter_mut().zip(weights(losses, SHARPNESS)) {
                *weight = new;
            }
            let miss = |residual: &Residual| residual.value - calibration.quantile(&residual.frames);
            let mut misses: Vec<f64> = residuals.iter().map(miss).collect();
            misses.sort_unstable_by(f64::total_cmp);
            calibration.shift = quantile(&misses, level);
        }
        calibrations
    }

    /// The quantile for a step so framed.
    pub(crate) fn quantile(&self, frames: &[Frame; FRAMES]) -> f64 {
        let framed = self.frames.iter().zip(frames);
        framed.map(|(&(weight, offset), frame)| weight * (frame.centre + offset * frame.width)).sum::<f64>()
            + self.shift
    }
}

/// The empirical quantile with the finite-sample correction of conformal prediction, `⌈(n + 1) level⌉`th smallest, or the largest,
/// of sorted values.
fn quantile(values: &[f64], level: f64) -> f64 {
    let rank = ((values.len() + 1) as f64 * level).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calibrated_quantile_covers_its_share_of_what_it_was_calibrated_on() {
        let series = Series::new(&(0..200).map(|step| f64::from(step * 37 % 101)).collect::<Vec<_>>(), &[]);
        let residuals: Vec<Residual> = (40..199)
            .map(|t| Residual { frames: frames(&series, t, 1, 0.5, 0.2, 0.1), value: series.values()[t + 1] })
            .collect();
        let levels = [0.5, 0.9, 0.95];
        for (level, calibration) in levels.into_iter().zip(Calibration::fit(levels, &residuals)) {
            let covered =
                residuals.iter().filter(|residual| residual.value <= calibration.quantile(&residual.frames)).count();
            let share = covered as f64 / residuals.len() as f64;
            assert!((share - level).abs() < 0.02, "{level}: {share}");
        }
    }
}
