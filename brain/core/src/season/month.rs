//! Does the calendar's month repeat?
//!
//! Months are of unequal length and few: two are all that 60 days have, so a spectrum says nothing. Days are compared with the days of the
//! month before that are as far from its end (invoices, payroll) or from its beginning. Daily means lose their weekday's median and a
//! running median, and are winsorised: one large day in each month that happen to agree are no evidence, a stretch of days is.

use super::local::Local;
use crate::calendar::{Calendar, Day};

/// Days of each month compared: every month has them.
const DAYS_COMPARED: i8 = 28;
/// Pairs of days that must be known.
const PAIRS_MIN: usize = 24;
/// Running median: a week to either side.
const MEDIAN_HALF_DAYS: usize = 7;
/// Winsorised at so many standard deviations, by the median of absolute deviations.
const DEVIATIONS_MAX: f64 = 4.0;
/// Lags in days that a month's must surpass.
const LAGS_SURPASSED: std::ops::RangeInclusive<usize> = 8..=26;

/// Correlation of months with the months before and its p-value, if the month stands out of other spans at all.
pub(super) fn test(local: &Local, calendar: &Calendar, weekly: bool) -> Option<(f64, f64)> {
    let days = local.days();
    let dates: Vec<Option<Day>> = days.iter().map(|&(day, _)| calendar.day(day)).collect();
    let mut values: Vec<Option<f64>> = days.iter().map(|&(_, value)| value).collect();
    if weekly {
        subtract_weekdays(&mut values, &dates);
    }
    subtract_running_median(&mut values);
    winsorise(&mut values)?;
    let at = |place: &dyn Fn(&Day) -> i8| {
        let mut pairs = Vec::new();
        for (later, date) in dates.iter().enumerate() {
            let Some(date) = date.as_ref().filter(|date| place(date) < DAYS_COMPARED) else { continue };
            let same =
                |day: &Option<Day>| day.is_some_and(|day| day.month + 1 == date.month && place(&day) == place(date));
            let earlier = (later.saturating_sub(32)..later).find(|&earlier| same(&dates[earlier]));
            if let Some((a, b)) = earlier.and_then(|earlier| Some((values[earlier]?, values[later]?))) {
                pairs.push((a, b));
            }
        }
        pairs
    };
    let ends = at(&|day| day.days_to_month_end);
    let starts = at(&|day| day.day_of_month - 1);
    let lagged = |lag: usize| -> Vec<(f64, f64)> {
        values.iter().zip(values.iter().skip(lag)).filter_map(|(a, b)| Some(((*a)?, (*b)?))).collect()
    };
    let persistence = correlation(&lagged(1))?.clamp(0.0, 0.95);
    let (pairs, best) = [ends, starts]
        .into_iter()
        .filter(|pairs| pairs.len() >= PAIRS_MIN)
        .filter_map(|pairs| correlation(&pairs).map(|best| (pairs.len(), best)))
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    let surpasses = LAGS_SURPASSED.filter_map(|lag| correlation(&lagged(lag))).all(|other| best > other);
    if !surpasses || best <= 0.0 {
        return None;
    }
    // Bartlett's effective number of pairs of series that persist; Fisher's transformation; the normal tail's upper bound. Twice, for having
    // looked at the month's end and beginning.
    let square = persistence * persistence;
    let effective = pairs as f64 * (1.0 - square) / (1.0 + square);
    let z = best.min(0.999_999).atanh() * (effective - 3.0).max(0.0).sqrt();
    Some((best, (2.0 * 0.5 * (-z * z / 2.0).exp()).min(1.0)))
}

fn subtract_weekdays(values: &mut [Option<f64>], dates: &[Option<Day>]) {
    for weekday in 0..7 {
        let is_it = |date: &Option<Day>| date.is_some_and(|date| date.weekday == weekday);
        let of_it = values.iter().zip(dates).filter(|(_, date)| is_it(date)).filter_map(|(value, _)| *value);
        let Some(usual) = median(of_it.collect()) else { continue };
        for (value, _) in values.iter_mut().zip(dates).filter(|(_, date)| is_it(date)) {
            *value = value.map(|value| value - usual);
        }
    }
}

fn subtract_running_median(values: &mut [Option<f64>]) {
    let usual = |index: usize| {
        let around = index.saturating_sub(MEDIAN_HALF_DAYS)..(index + MEDIAN_HALF_DAYS + 1).min(values.len());
        median(values[around].iter().flatten().copied().collect())
    };
    let medians: Vec<_> = (0..values.len()).map(usual).collect();
    for (value, usual) in values.iter_mut().zip(medians) {
        *value = value.zip(usual).map(|(value, usual)| value - usual);
    }
}

fn winsorise(values: &mut [Option<f64>]) -> Option<()> {
    let known = || values.iter().flatten().map(|value| value.abs());
    let mean = known().sum::<f64>() / known().count() as f64;
    // Of a series that is flat but for its peaks the median deviation is nothing: then it is the mean that says what is much.
    let bound = DEVIATIONS_MAX * (1.4826 * median(known().collect())?).max(mean);
    if bound.is_nan() || bound < 1e-9 {
        return None;
    }
    values.iter_mut().flatten().for_each(|value| *value = value.clamp(-bound, bound));
    Some(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let count = pairs.len() as f64;
    let (a, b) = pairs.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0 / count, sum.1 + pair.1 / count));
    let (aa, bb, ab) = pairs.iter().fold((0.0, 0.0, 0.0), |(aa, bb, ab), pair| {
        let (x, y) = (pair.0 - a, pair.1 - b);
        (aa + x * x, bb + y * y, ab + x * y)
    });
    let correlation = ab / (aa * bb).sqrt();
    correlation.is_finite().then_some(correlation)
}
