//! Which seasons a series has: the day's, the week's, the month's, and any other period, each tested for significance.
//!
//! A series without a cycle must not be given one: forecasts that repeat what was chance are worse than those that repeat nothing. Each kind
//! of season is tested at a quarter of [`FALSE_POSITIVES`], and must explain cycles that its profile was not taken from. Day and week are
//! those of the operator's calendar, daylight saving included. What is tested is whether lines stand out of the spectrum beside them, so
//! trends, random walks, persistent noise and changes of regime, whose spectra are smooth, are not mistaken for seasons.

mod local;
mod month;
mod spectrum;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

use crate::calendar::{Calendar, DAY_S};
use local::Local;
use spectrum::{combined_p_value, line_p_value, power};

/// How often, at most, a series without any season is given one.
pub const FALSE_POSITIVES: f64 = 0.01;

/// Each of the four kinds (day, week, month, other) has its share.
const SIGNIFICANCE: f64 = FALSE_POSITIVES / 4.0;

/// Harmonics looked at: a daily surge of two hours has power up to the twelfth.
const HARMONICS: usize = 12;

/// Ordinates to either side of a line that tell what is usual there.
const NEIGHBOURS: usize = 6;

/// So many cycles must have been seen: with fewer, lines have no neighbours between them.
const CYCLES_MIN: usize = 4;

/// Ordinates to either side of a line of unknown frequency: the nearest may hold a part of it.
const SCAN_NEIGHBOURS: std::ops::RangeInclusive<usize> = 2..=9;

/// Periods of other lengths that are told at most.
const OTHERS_MAX: usize = 3;

/// Share of the variance within cycles that the profile of the others must explain.
const EXPLAINED_MIN: f64 = 0.02;

/// Longest series that is looked at, in steps: the newest so many.
const STEPS_MAX: usize = 1 << 17;

/// A regular series with gaps.
#[derive(Clone, Copy, Debug)]
pub struct Regular<'a> {
    /// When the first step begins.
    pub start: Timestamp,
    /// Length of a step, in seconds.
    pub step_s: u32,
    /// One value for each step; what is not finite is a gap.
    pub values: &'a [f64],
}

/// How long a season is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Period {
    /// A day of the calendar, by the clock on the wall.
    Day,
    /// A week of the calendar.
    Week,
    /// A month of the calendar, whatever its length.
    Month,
    /// Some other time.
    Length(Duration),
}

impl Season {
    /// How long it is, a month by its mean.
    pub fn length(&self) -> Duration {
        match self.period {
            Period::Day => Duration::from_hours(24),
            Period::Week => Duration::from_hours(7 * 24),
            Period::Month => Duration::from_hours(730),
            Period::Length(length) => length,
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day => f.write_str("a day"),
            Self::Week => f.write_str("a week"),
            Self::Month => f.write_str("a month"),
            Self::Length(length) => write!(f, "{:.1} h", length.as_secs_f64() / 3600.0),
        }
    }
}

/// A season that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Season {
    /// How long it is.
    pub period: Period,
    /// Probability of so strong a season where there is none.
    pub p_value: f64,
    /// Share of the variance within cycles that a profile of other cycles explains; for the month, the correlation with the one before.
    pub explained: f64,
}

/// The seasons of a series: day, week, month, then others, the longest first. O(n log n).
pub fn find(series: &Regular<'_>, calendar: &Calendar) -> Vec<Season> {
    let skipped = series.values.len().saturating_sub(STEPS_MAX);
    let start = series.start + Duration::from_secs(skipped as u64 * u64::from(series.step_s));
    let series = Regular { start, step_s: series.step_s, values: &series.values[skipped..] };
    let Some(local) = Local::new(&series, calendar) else { return Vec::new() };
    let Some(differences) = local.differences() else { return Vec::new() };
    let steps = |length_s: i64| length_s as f64 / local.step_s as f64;
    let (day, week) = (steps(DAY_S), steps(7 * DAY_S));
    let mut seasons = Vec::new();
    let weekly =
        harmonics(&differences, week, |harmonic| harmonic % 7 != 0, 1).filter(|lines| lines.p_value <= SIGNIFICANCE);
    let mut daily = harmonics(&differences, day, |_| true, 1).filter(|lines| lines.p_value <= SIGNIFICANCE);
    if weekly.is_some() {
        // What comes once a week has power at the day's harmonics too: a day's must stand out of the week's.
        let cycles = (differences.len() as f64 / week) as usize;
        let among = harmonics(&differences, day, |_| true, cycles.max(1));
        daily = daily.filter(|_| among.is_some_and(|lines| lines.p_value <= SIGNIFICANCE));
    }
    let mut add = |lines: Option<Lines>, period: Period, steps: f64| {
        let Some(lines) = lines else { return false };
        let explained = explained(&local.values, steps / lines.common as f64);
        let is_season = explained >= EXPLAINED_MIN;
        if is_season {
            let length_s = steps * local.step_s as f64 / lines.common as f64;
            let period = if lines.common == 1 { period } else { Period::Length(Duration::from_secs_f64(length_s)) };
            seasons.push(Season { period, p_value: lines.p_value, explained });
        }
        is_season
    };
    let has_day = add(daily, Period::Day, day);
    let has_week = add(weekly, Period::Week, week);
    if let Some((correlation, p_value)) =
        month::test(&local, calendar, has_week).filter(|&(_, p_value)| p_value <= SIGNIFICANCE)
    {
        seasons.push(Season { period: Period::Month, p_value, explained: correlation });
    }
    let known = [(has_day, day), (has_week, week)].into_iter().filter_map(|(has, steps)| has.then_some(steps));
    seasons.extend(others(&local, &differences, &known.collect::<Vec<_>>()));
    seasons
}

struct Lines {
    p_value: f64,
    /// The largest number that divides every harmonic that stands out: the period is that much shorter.
    common: usize,
}

/// Tests the harmonics of a period, each against its neighbours `apart` ordinates from each other.
fn harmonics(series: &[f64], period: f64, counts: impl Fn(usize) -> bool, apart: usize) -> Option<Lines> {
    let cycles = (series.len() as f64 / period) as usize;
    let neighbours = NEIGHBOURS.min(cycles.saturating_sub(1) / 2 / apart).min(if apart > 1 { 3 } else { NEIGHBOURS });
    if cycles < CYCLES_MIN || period < 4.0 || neighbours == 0 {
        return None;
    }
    let whole = &series[series.len() - (cycles as f64 * period).round() as usize..];
    let shortest = (period / 2.0).ceil() as usize;
    let tested: Vec<usize> = (1..=HARMONICS).filter(|&harmonic| harmonic < shortest && counts(harmonic)).collect();
    let p_value = |&harmonic: &usize| {
        let at = (harmonic * cycles) as f64;
        let around = (1..=neighbours).flat_map(|by| [at - (by * apart) as f64, at + (by * apart) as f64]);
        let mean = around.map(|at| power(whole, at)).sum::<f64>() / (2 * neighbours) as f64;
        line_p_value(power(whole, at), mean, 2 * neighbours)
    };
    let p_values: Vec<f64> = tested.iter().map(p_value).collect();
    let standing = tested
        .iter()
        .zip(&p_values)
        .filter(|&(_, &p)| p * tested.len() as f64 <= SIGNIFICANCE)
        .map(|(&harmonic, _)| harmonic);
    let common = standing.fold(0, greatest_common_divisor).max(1);
    Some(Lines { p_value: combined_p_value(&p_values), common })
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Looks at every frequency; those of known seasons and multiples of what was found already are left out.
fn others(local: &Local, differences: &[f64], known: &[f64]) -> Vec<Season> {
    let length = differences.len();
    let mut transform: Vec<Complex<f64>> = differences.iter().map(|&value| Complex::new(value, 0.0)).collect();
    FftPlanner::new().plan_fft_forward(length).process(&mut transform);
    let powers: Vec<f64> = transform[..length / 2].iter().map(Complex::norm_sqr).collect();
    let edge = *SCAN_NEIGHBOURS.end();
    let tested = powers.len().saturating_sub(2 * edge);
    let is_multiple = |at: usize, period: f64| {
        let multiple = at as f64 * period / length as f64;
        // Within one and a half ordinates of a harmonic.
        multiple > 0.5 && (multiple - multiple.round()).abs() * length as f64 / period <= 1.5
    };
    let mut found: Vec<(f64, Season)> = Vec::new();
    for at in edge..powers.len().saturating_sub(edge) {
        let is_peak = powers[at] >= powers[at - 1] && powers[at] > powers[at + 1];
        if !is_peak || known.iter().chain(found.iter().map(|(period, _)| period)).any(|&period| is_multiple(at, period))
        {
            continue;
        }
        let around = || SCAN_NEIGHBOURS.flat_map(|by| [powers[at - by], powers[at + by]]);
        let count = around().count();
        let p_value = line_p_value(powers[at], around().sum::<f64>() / count as f64, count) * tested as f64;
        if p_value > SIGNIFICANCE {
            continue;
        }
        let period = length as f64 / peak(&powers, at);
        let explained = explained(&local.values, period);
        if explained >= EXPLAINED_MIN {
            let length = Duration::from_secs_f64(period * local.step_s as f64);
            found.push((period, Season { period: Period::Length(length), p_value, explained }));
        }
        if found.len() == OTHERS_MAX {
            break;
        }
    }
    found.into_iter().map(|(_, season)| season).collect()
}

/// A line's frequency between ordinates: where it lies between the larger neighbour and the peak, by their amplitudes.
fn peak(powers: &[f64], at: usize) -> f64 {
    let (left, middle, right) = (powers[at - 1].sqrt(), powers[at].sqrt(), powers[at + 1].sqrt());
    if right > left { at as f64 + right / (middle + right) } else { at as f64 - left / (middle + left) }
}

/// Share of the variance within odd cycles that the profile of the even ones explains, and the other way round.
fn explained(values: &[f64], period: f64) -> f64 {
    let phases = (period.round() as usize).clamp(2, 24);
    let cycles = (values.len() as f64 / period) as usize;
    let mut means = vec![vec![(0u32, 0.0); phases]; cycles];
    for (index, &value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        // A hair more than the index, or rounding puts it into the phase before.
        let cycle = (index as f64 + 1e-6) / period;
        if let Some(phase) = means
            .get_mut(cycle as usize)
            .and_then(|phases_of| phases_of.get_mut((cycle.fract() * phases as f64) as usize))
        {
            *phase = (phase.0 + 1, phase.1 + value);
        }
    }
    let shapes: Vec<Vec<Option<f64>>> = means.iter().map(|cycle| shape(cycle)).collect();
    let profile = |parity: usize| -> Vec<f64> {
        let of = |phase: usize| {
            let known = shapes.iter().skip(parity).step_by(2).filter_map(|shape| shape[phase]);
            let (count, sum) = known.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
            if count == 0 { 0.0 } else { sum / f64::from(count) }
        };
        (0..phases).map(of).collect()
    };
    let profiles = [profile(0), profile(1)];
    let (mut total, mut left) = (0.0, 0.0);
    for (cycle, shape) in shapes.iter().enumerate() {
        for (value, expected) in shape.iter().zip(&profiles[(cycle + 1) % 2]) {
            if let Some(value) = value {
                total += value * value;
                left += (value - expected).powi(2);
            }
        }
    }
    if total > 0.0 { 1.0 - left / total } else { 0.0 }
}

/// A cycle about its own mean.
fn shape(phases: &[(u32, f64)]) -> Vec<Option<f64>> {
    let means: Vec<Option<f64>> =
        phases.iter().map(|&(count, sum)| (count > 0).then(|| sum / f64::from(count))).collect();
    let known = means.iter().flatten().count().max(1) as f64;
    let mean = means.iter().flatten().sum::<f64>() / known;
    means.into_iter().map(|value| value.map(|value| value - mean)).collect()
}
