//! A series on the clock on the wall.

use super::Regular;
use crate::calendar::{Calendar, DAY_S};

/// Means by local time: an hour that daylight saving skips is a gap, one that comes twice is its mean. Holidays are gaps.
pub(super) struct Local {
    /// Local seconds at which the first step begins.
    pub(super) start_s: i64,
    pub(super) step_s: i64,
    /// Scaled to at most 1; NaN for a gap.
    pub(super) values: Vec<f64>,
}

impl Local {
    pub(super) fn new(series: &Regular<'_>, calendar: &Calendar) -> Option<Self> {
        let step_s = i64::from(series.step_s).max(1);
        let local_s = |index: usize| {
            calendar.local_s(series.start + std::time::Duration::from_secs(index as u64 * step_s as u64))
        };
        let start_s = local_s(0).div_euclid(step_s) * step_s;
        let largest = series
            .values
            .iter()
            .filter(|value| value.is_finite())
            .fold(0.0f64, |largest, value| largest.max(value.abs()));
        if largest <= 0.0 {
            return None;
        }
        // A change of the clock moves by hours, not by more than a day.
        let room = series.values.len() + (DAY_S / step_s) as usize + 1;
        let mut sums = vec![(0u32, 0.0); room];
        let mut end = 0;
        let mut holiday = (i64::MIN, false);
        for (index, value) in series.values.iter().enumerate() {
            let at_s = local_s(index);
            let Some(place) = usize::try_from((at_s - start_s).div_euclid(step_s)).ok().filter(|&place| place < room)
            else {
                continue;
            };
            end = end.max(place + 1);
            let day = at_s.div_euclid(DAY_S);
            if holiday.0 != day {
                holiday = (day, calendar.day(day).is_some_and(|day| day.is_holiday));
            }
            if value.is_finite() && !holiday.1 {
                sums[place].0 += 1;
                sums[place].1 += value / largest;
            }
        }
        sums.truncate(end);
        let values =
            sums.into_iter().map(|(count, sum)| if count == 0 { f64::NAN } else { sum / f64::from(count) }).collect();
        Some(Self { start_s, step_s, values })
    }

    /// Differences from step to step, gaps bridged by lines. `None` when most of it is unknown, or nothing varies.
    pub(super) fn differences(&self) -> Option<Vec<f64>> {
        let known = self.values.iter().filter(|value| value.is_finite()).count();
        if known * 2 < self.values.len() || known < 3 {
            return None;
        }
        let mut differences = Vec::with_capacity(self.values.len());
        let mut last: Option<(usize, f64)> = None;
        for (index, &value) in self.values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            match last {
                None => differences.resize(index, 0.0),
                Some((before, known)) => {
                    let slope = (value - known) / (index - before) as f64;
                    differences.resize(index, slope);
                }
            }
            last = Some((index, value));
        }
        differences.resize(self.values.len() - 1, 0.0);
        // Below this, what varies is rounding: values are scaled to 1.
        let square = differences.iter().map(|value| value * value).sum::<f64>() / differences.len() as f64;
        (square > 1e-20).then_some(differences)
    }

    /// Means of whole local days, each with its number; a day is known when half of it is.
    pub(super) fn days(&self) -> Vec<(i64, Option<f64>)> {
        let day = |index: usize| (self.start_s + index as i64 * self.step_s).div_euclid(DAY_S);
        let mut days: Vec<(i64, usize, f64)> = Vec::new();
        for (index, &value) in self.values.iter().enumerate() {
            let number = day(index);
            if days.last().is_none_or(|last| last.0 != number) {
                days.push((number, 0, 0.0));
            }
            if let Some(last) = days.last_mut().filter(|_| value.is_finite()) {
                *last = (number, last.1 + 1, last.2 + value);
            }
        }
        let half = (DAY_S / self.step_s / 2).max(1) as usize;
        days.into_iter().map(|(day, count, sum)| (day, (count >= half).then(|| sum / count as f64))).collect()
    }
}
