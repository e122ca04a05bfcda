//! The clock on the wall: steps of universal time laid out by local time, so that nine o'clock is nine o'clock on either side of a change
//! to daylight saving, and holidays are Sundays.

use std::time::Duration;

use gnomon_common::time::Timestamp;

use crate::calendar::{Calendar, DAY_S};

/// Which weekday a holiday counts as; 0 is Monday.
const HOLIDAY_WEEKDAY: i64 = 6;

/// Day 0 of the local count was a Thursday.
const FIRST_WEEKDAY: i64 = 3;

/// A history on the clock on the wall.
pub(super) struct Wall<'a> {
    calendar: &'a Calendar,
    step: Duration,
    step_s: i64,
    /// Local seconds at which the first place begins.
    start_s: i64,
    /// When the history ends.
    end: Timestamp,
    /// Means by local time, the latest last. What is skipped is NaN, and so is what was measured on a holiday: it is no example.
    pub(super) values: Vec<f64>,
}

impl<'a> Wall<'a> {
    /// Lays out the values of the steps from `start` on (NaN for gaps); `None` without any, or for steps of less than a second.
    pub(super) fn new(start: Timestamp, step: Duration, values: &[f64], calendar: &'a Calendar) -> Option<Self> {
        let step_s = i64::try_from(step.as_secs()).ok().filter(|&step_s| step_s > 0)?;
        let at = |index: usize| start + Duration::from_secs(step_s as u64 * index as u64);
        let last = at(values.len().checked_sub(1)?);
        let start_s = calendar.local_s(start).div_euclid(step_s) * step_s;
        let end = at(values.len());
        let mut wall = Self { calendar, step, step_s, start_s, end, values: Vec::new() };
        let mut sums = vec![(0u32, 0.0); usize::try_from(wall.place(last)).ok()? + 1];
        for (index, &value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let place = wall.place(at(index));
            let sum = usize::try_from(place).ok().and_then(|place| sums.get_mut(place));
            if let Some(sum) = sum.filter(|_| !wall.is_holiday(place)) {
                *sum = (sum.0 + 1, sum.1 + value);
            }
        }
        let mean = |(count, sum): (u32, f64)| if count == 0 { f64::NAN } else { sum / f64::from(count) };
        wall.values = sums.into_iter().map(mean).collect();
        Some(wall)
    }

    /// For each of the `count` steps after the history, how many local steps past its last one to look: at least 1. A holiday's steps
    /// are looked for on the Sunday before, or, where that is past already, on the one after.
    pub(super) fn ahead(&self, count: usize) -> Vec<usize> {
        let last = self.values.len() as i64 - 1;
        let day_steps = DAY_S / self.step_s;
        let ahead = |index: usize| {
            let place = self.place(self.end + self.step * u32::try_from(index).unwrap_or(u32::MAX));
            let mut ahead = place - last;
            if self.is_holiday(place) {
                let back = (self.day(place) + FIRST_WEEKDAY - HOLIDAY_WEEKDAY).rem_euclid(7) * day_steps;
                ahead += if ahead > back { -back } else { 7 * day_steps - back };
            }
            usize::try_from(ahead).unwrap_or(1).max(1)
        };
        (0..count).map(ahead).collect()
    }

    fn place(&self, at: Timestamp) -> i64 {
        (self.calendar.local_s(at) - self.start_s).div_euclid(self.step_s)
    }

    fn day(&self, place: i64) -> i64 {
        (self.start_s + place * self.step_s).div_euclid(DAY_S)
    }

    fn is_holiday(&self, place: i64) -> bool {
        self.calendar.is_holiday(self.day(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    const HOUR: Duration = Duration::from_hours(1);

    fn unix(s: u64) -> Timestamp {
        Timestamp::from_unix_ms(s * 1000)
    }

    /// The local hour of each step, by the calendar.
    fn hours(calendar: &Calendar, start: Timestamp, steps: usize) -> Vec<f64> {
        (0..steps).map(|i| (calendar.local_s(start + HOUR * i as u32) % DAY_S / 3600) as f64).collect()
    }

    #[test]
    fn an_hour_stays_that_hour_across_both_changes_of_the_clock() {
        let berlin = Calendar::new("Europe/Berlin", []).unwrap();
        // Ten days around 2024-03-31 and 2024-10-27.
        for start in [1_711_400_400, 1_729_548_000] {
            let values = hours(&berlin, unix(start), 240);
            let wall = Wall::new(unix(start), HOUR, &values, &berlin).unwrap();
            for (place, &value) in wall.values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
                assert_eq!(value, (wall.values[0] as usize + place) as f64 % 24.0, "place {place}");
            }
            assert_eq!(wall.values.len(), if start < 1_720_000_000 { 241 } else { 239 });
            assert_eq!(wall.ahead(3), [1, 2, 3]);
        }
    }

    #[test]
    fn a_change_of_the_clock_to_come_moves_what_lies_behind_it() {
        let berlin = Calendar::new("Europe/Berlin", []).unwrap();
        // Ends on 2024-03-31 at midnight UTC: two o'clock does not exist.
        let values = hours(&berlin, unix(1_711_843_200 - 240 * 3600), 240);
        let wall = Wall::new(unix(1_711_843_200 - 240 * 3600), HOUR, &values, &berlin).unwrap();
        assert_eq!(wall.ahead(3), [1, 3, 4]);
    }

    #[test]
    fn holidays_teach_nothing_and_are_forecast_as_sundays() {
        // A Wednesday and the Thursday after; the history of three weeks ends on the Tuesday before.
        let calendar = Calendar::new("UTC", [date(2024, 2, 14), date(2024, 2, 28), date(2024, 3, 8)]).unwrap();
        let start = unix(1_709_078_400 - 21 * 86_400);
        let wall = Wall::new(start, HOUR, &vec![1.0; 21 * 24], &calendar).unwrap();
        let unknown: Vec<usize> = (0..21 * 24).filter(|&place| wall.values[place].is_nan()).collect();
        assert_eq!(unknown, (7 * 24..8 * 24).collect::<Vec<_>>());
        let ahead = wall.ahead(10 * 24);
        // The Sunday before is past: the one after is four days later.
        assert_eq!(ahead[..2], [4 * 24 + 1, 4 * 24 + 2]);
        assert_eq!(ahead[24], 25);
        // The Friday of next week: the Sunday before it lies ahead.
        assert_eq!(ahead[9 * 24], 9 * 24 + 1 - 5 * 24);
    }
}
