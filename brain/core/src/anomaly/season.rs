//! What is usual at an hour of the day.

use serde::{Deserialize, Serialize};

/// Hours of a day.
const HOURS: usize = 24;
/// Seconds of a day and of an hour.
const DAY_S: i64 = 86_400;
const HOUR_S: i64 = 3600;
/// Days an hour must have been seen on before anything is called unusual for it.
const DAYS_MIN: u16 = 2;
/// Weight of a new value in the hour's mean: at 12 values an hour, yesterday outweighs all days before it.
const WEIGHT: f64 = 0.15;

/// One hour's mean.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Hour {
    mean: f64,
    days: u16,
    last_day: i64,
}

/// Means by hour of the day (UTC: the zone does not matter to a cycle's residual).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Season {
    hours: Vec<Hour>,
}

impl Season {
    /// Nothing seen yet.
    pub(super) fn new() -> Self {
        Self { hours: vec![Hour::default(); HOURS] }
    }

    /// What is usual at that time, once that hour has been seen on enough days; then takes the value in.
    pub(super) fn add(&mut self, at_s: i64, value: f64) -> Option<f64> {
        let place = usize::try_from(at_s.rem_euclid(DAY_S) / HOUR_S).unwrap_or(0);
        let day = at_s.div_euclid(DAY_S);
        let hour = &mut self.hours[place];
        if hour.days == 0 || hour.last_day != day {
            hour.days = hour.days.saturating_add(1);
            hour.last_day = day;
            if hour.days == 1 {
                hour.mean = value;
            }
        }
        let usual = hour.mean;
        hour.mean += WEIGHT * (value - usual);
        (hour.days > DAYS_MIN).then_some(usual)
    }
}
