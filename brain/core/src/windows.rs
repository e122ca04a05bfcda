//! Maintenance windows: the times, by the clock on the users' wall, in which plans may take something away or move VMs.

use std::str::FromStr;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use thiserror::Error;

use crate::calendar::{Calendar, DAY_S};

/// Days of the week as they are written, Monday first.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// 1970-01-01 was a Thursday.
const WEEKDAY_OF_DAY_0: i64 = 3;

/// How far ahead a change is looked for: every window comes once a week.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// A time of the week that comes again: on some days, from a minute to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The days on which it begins.
    days: [bool; 7],
    /// When, in seconds from midnight.
    from_s: i64,
    /// When it ends: on the next day where that is not after `from_s`.
    to_s: i64,
}

/// Text that is no window.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no window: write days and times, as \"Mon-Fri 22:00-06:00\", \"Sat,Sun 00:00-24:00\" or \"daily 01:30-05:00\""
)]
pub struct NoWindow(String);

impl FromStr for Window {
    type Err = NoWindow;

    fn from_str(text: &str) -> Result<Self, NoWindow> {
        let parse = || {
            let (days, times) = text.split_once(' ')?;
            let (from, to) = times.split_once('-')?;
            let (from_s, to_s) = (time_of_day(from)?, time_of_day(to)?);
            let is_empty = from_s == to_s || from_s == DAY_S;
            Some(Self { days: days_of(days)?, from_s, to_s }).filter(|_| !is_empty)
        };
        parse().ok_or_else(|| NoWindow(text.to_owned()))
    }
}

fn time_of_day(text: &str) -> Option<i64> {
    let (hour, minute) = text.split_once(':')?;
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(hour) || !is_number(minute) {
        return None;
    }
    let (hour, minute) = (hour.parse::<i64>().ok()?, minute.parse::<i64>().ok()?);
    let second = hour * 3600 + minute * 60;
    (minute < 60 && second <= DAY_S).then_some(second)
}

fn days_of(text: &str) -> Option<[bool; 7]> {
    if text == "daily" {
        return Some([true; 7]);
    }
    let place = |name: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(name));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (place(first)?, place(last)?);
        // From Saturday to Monday it goes over the end of the week.
        (0..=(last + 7 - first) % 7).for_each(|after| days[(first + after) % 7] = true);
    }
    Some(days)
}

impl Window {
    /// Whether a moment, in seconds on the wall's clock since 1970-01-01, is within it.
    fn contains(&self, local_s: i64) -> bool {
        let (day, second) = (local_s.div_euclid(DAY_S), local_s.rem_euclid(DAY_S));
        let begins_on = |day: i64| self.days[(day + WEEKDAY_OF_DAY_0).rem_euclid(7) as usize];
        if self.from_s < self.to_s {
            return begins_on(day) && (self.from_s..self.to_s).contains(&second);
        }
        (begins_on(day) && second >= self.from_s) || (begins_on(day - 1) && second < self.to_s)
    }
}

/// When plans may take something away or move VMs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Windows {
    /// Only then; empty: at any time.
    pub(crate) allow: Vec<Window>,
    /// Not then, whatever else is said.
    pub(crate) freeze: Vec<Window>,
}

impl Windows {
    /// Whether they may now. Where the wall's clock skips an hour, what lies in it does not come; where it goes through one
    /// twice, both count.
    pub(crate) fn are_open(&self, calendar: &Calendar, now: Timestamp) -> bool {
        let local_s = calendar.local_s(now);
        let within = |windows: &[Window]| windows.iter().any(|window| window.contains(local_s));
        (self.allow.is_empty() || within(&self.allow)) && !within(&self.freeze)
    }

    /// When that changes next, to the minute; `None` where it does not within a week.
    pub(crate) fn change(&self, calendar: &Calendar, now: Timestamp) -> Option<Timestamp> {
        const MINUTE_MS: u64 = 60_000;
        let is_open = self.are_open(calendar, now);
        let first = now.unix_ms() / MINUTE_MS + 1;
        let minutes = first..=first + WEEK.as_secs() / 60;
        minutes
            .map(|minute| Timestamp::from_unix_ms(minute * MINUTE_MS))
            .find(|&at| self.are_open(calendar, at) != is_open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(allow: &[&str], freeze: &[&str]) -> Windows {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Windows { allow: parse(allow), freeze: parse(freeze) }
    }

    fn at(text: &str) -> Timestamp {
        let at: jiff::Timestamp = text.parse().unwrap();
        Timestamp::from_unix_ms(at.as_millisecond() as u64)
    }

    fn open(windows: &Windows, zone: &str, moments: &[&str]) -> Vec<bool> {
        let calendar = Calendar::new(zone, []).unwrap();
        moments.iter().map(|moment| windows.are_open(&calendar, at(moment))).collect()
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        // 2026-11-27 is a Friday.
        let nights = windows(&["Mon-Fri 22:00-06:00"], &[]);
        let moments = [
            "2026-11-27T21:59:59Z",
            "2026-11-27T22:00:00Z",
            "2026-11-28T05:59:59Z",
            "2026-11-28T06:00:00Z",
            "2026-11-28T23:00:00Z",
            "2026-11-30T05:00:00Z",
        ];
        assert_eq!(open(&nights, "UTC", &moments), [false, true, true, false, false, false]);
        let weekend = windows(&["Sat-Sun 00:00-24:00"], &["Sun 12:00-24:00"]);
        let moments = ["2026-11-28T23:59:59Z", "2026-11-29T00:00:00Z", "2026-11-29T12:00:00Z", "2026-11-30T00:00:00Z"];
        assert_eq!(open(&weekend, "UTC", &moments), [true, true, false, false], "a freeze outweighs");
        assert_eq!(open(&windows(&[], &[]), "UTC", &moments), [true; 4]);
        let over_the_weeks_end = windows(&["Sun-Mon 00:00-24:00"], &[]);
        assert_eq!(open(&over_the_weeks_end, "UTC", &moments), [false, true, true, true]);
    }

    #[test]
    fn it_goes_by_the_clock_on_the_wall_through_daylight_saving() {
        // Berlin: 02:00 is skipped on 2026-03-29, and 02:00 to 03:00 comes twice on 2026-10-25.
        let morning = windows(&["daily 02:00-03:00"], &[]);
        let spring = ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"];
        assert_eq!(open(&morning, "Europe/Berlin", &spring), [false, false, true, true]);
        let autumn = ["2026-10-24T23:59:59Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"];
        assert_eq!(open(&morning, "Europe/Berlin", &autumn), [false, true, true, false]);
    }

    #[test]
    fn the_next_change_is_told_to_the_minute() {
        let calendar = Calendar::new("Europe/Berlin", []).unwrap();
        let nights = windows(&["Mon-Fri 22:00-06:00"], &[]);
        let change = |moment| nights.change(&calendar, at(moment));
        assert_eq!(change("2026-11-28T12:00:30Z"), Some(at("2026-11-30T21:00:00Z")));
        assert_eq!(change("2026-11-30T21:00:00Z"), Some(at("2026-12-01T05:00:00Z")));
        assert_eq!(windows(&[], &[]).change(&calendar, at("2026-11-28T12:00:30Z")), None);
    }

    #[test]
    fn what_is_no_window_is_refused_with_an_example() {
        for text in [
            "",
            "Mon",
            "Mon 22:00",
            "Mon 22-06",
            "Mon 24:00-06:00",
            "Mon 22:00-22:00",
            "Mon 22:60-23:00",
            "Mon 22:00-25:00",
            "Mo 22:00-23:00",
            "Mon, Tue 22:00-23:00",
            "Mon 2:00-3:00",
            "Mon +1:00-03:00",
        ] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains("Mon-Fri 22:00-06:00"), "{text}: {error}");
        }
    }
}
