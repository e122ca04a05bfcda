//! The operator's calendar: what day and hour it is where the users of the VMs live.
//!
//! Load follows the clock on the wall, which jumps with daylight saving. The time zone database is the one compiled in, so no file is read.

use std::collections::BTreeSet;

use gnomon_common::time::Timestamp;
use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};

/// Seconds of a day of the calendar, leaps of daylight saving left out.
pub const DAY_S: i64 = 86_400;

/// Why there is no such calendar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// No such zone is known.
    #[error("{zone:?} is no time zone of the IANA database: name one such as \"Europe/Berlin\"")]
    Zone {
        /// What was asked for.
        zone: String,
    },
}

/// A time zone, and days on which nobody works.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    zone: TimeZone,
    holidays: BTreeSet<Date>,
}

/// A date in the calendar, as seasons see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day {
    /// Months since year 0.
    pub month: i32,
    /// 1..=31.
    pub day_of_month: i8,
    /// Days until the last one of the month, which has 0.
    pub days_to_month_end: i8,
    /// 0 is Monday.
    pub weekday: i8,
    /// It is one of the holidays.
    pub is_holiday: bool,
}

impl Calendar {
    /// The calendar of a zone of the IANA database.
    ///
    /// # Errors
    /// A name that it does not have.
    pub fn new(zone: &str, holidays: impl IntoIterator<Item = Date>) -> Result<Self, CalendarError> {
        let unknown = |_| CalendarError::Zone { zone: zone.to_owned() };
        let zone = TimeZoneDatabase::bundled().get(zone).map_err(unknown)?;
        Ok(Self { zone, holidays: holidays.into_iter().collect() })
    }

    /// UTC, without holidays.
    pub fn utc() -> Self {
        Self { zone: TimeZone::UTC, holidays: BTreeSet::new() }
    }

    /// Seconds on the wall's clock since 1970-01-01 00:00 on that clock.
    pub fn local_s(&self, at: Timestamp) -> i64 {
        let unix_s = i64::try_from(at.unix_ms() / 1000).unwrap_or(i64::MAX);
        // Past the calendar's end (the year 9999) there is no daylight saving to be known.
        let offset_s = jiff::Timestamp::from_second(unix_s).map_or(0, |at| self.zone.to_offset(at).seconds());
        unix_s.saturating_add(i64::from(offset_s))
    }

    /// Whether a local day, counted from 1970-01-01, is one of the holidays.
    pub fn is_holiday(&self, day: i64) -> bool {
        !self.holidays.is_empty() && self.day(day).is_some_and(|day| day.is_holiday)
    }

    /// The date of a local day, counted from 1970-01-01; `None` past the calendar's end.
    pub fn day(&self, day: i64) -> Option<Day> {
        let at = jiff::Timestamp::from_second(day.checked_mul(DAY_S)?).ok()?;
        let date = TimeZone::UTC.to_datetime(at).date();
        Some(Day {
            month: i32::from(date.year()) * 12 + i32::from(date.month()) - 1,
            day_of_month: date.day(),
            days_to_month_end: date.days_in_month() - date.day(),
            weekday: date.weekday().to_monday_zero_offset(),
            is_holiday: self.holidays.contains(&date),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    fn unix(s: u64) -> Timestamp {
        Timestamp::from_unix_ms(s * 1000)
    }

    #[test]
    fn the_clock_on_the_wall_jumps_with_daylight_saving() {
        let berlin = Calendar::new("Europe/Berlin", []).unwrap();
        // 2024-03-31 01:00 UTC: two o'clock becomes three.
        assert_eq!(berlin.local_s(unix(1_711_846_799)) % DAY_S, 2 * 3600 - 1);
        assert_eq!(berlin.local_s(unix(1_711_846_800)) % DAY_S, 3 * 3600);
        assert_eq!(Calendar::utc().local_s(unix(7)), 7);
        assert!(Calendar::utc().local_s(Timestamp::from_unix_ms(u64::MAX)) > 0);
    }

    #[test]
    fn days_know_their_month_and_whether_anyone_works() {
        let calendar = Calendar::new("UTC", [date(2024, 2, 28)]).unwrap();
        // 2024-02-28, a Wednesday of a leap year.
        let day = calendar.day(19_781).unwrap();
        assert_eq!((day.month, day.day_of_month, day.days_to_month_end, day.weekday), (2024 * 12 + 1, 28, 1, 2));
        assert!(day.is_holiday && !calendar.day(19_782).unwrap().is_holiday);
        assert_eq!(calendar.day(i64::MAX), None);
    }

    #[test]
    fn a_zone_that_does_not_exist_is_refused_by_name() {
        let error = Calendar::new("Mars/Olympus", []).unwrap_err();
        assert!(error.to_string().contains("Mars/Olympus"));
    }
}
