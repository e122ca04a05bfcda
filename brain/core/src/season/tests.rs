//! Series with known seasons and without any.

use std::f64::consts::TAU;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// 2024-02-05 00:00 UTC, a Monday; Berlin's clocks change on 31 March.
const START_S: u64 = 1_707_091_200;
const HOUR_S: u32 = 3600;

fn periods(values: &[f64], step_s: u32, zone: &str) -> Vec<Period> {
    let calendar = Calendar::new(zone, []).unwrap();
    let series = Regular { start: Timestamp::from_unix_ms(START_S * 1000), step_s, values };
    find(&series, &calendar).into_iter().map(|season| season.period).collect()
}

fn normal(random: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

/// A signal of local hour, weekday (0 is Monday) and date, with noise.
fn signal(
    days: usize,
    step_s: u32,
    zone: &str,
    seed: u64,
    of: impl Fn(f64, i8, crate::calendar::Day) -> f64,
) -> Vec<f64> {
    let calendar = Calendar::new(zone, []).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let steps = days as u64 * 86_400 / u64::from(step_s);
    (0..steps)
        .map(|step| {
            let local_s = calendar.local_s(Timestamp::from_unix_ms((START_S + step * u64::from(step_s)) * 1000));
            let day = calendar.day(local_s.div_euclid(DAY_S)).unwrap();
            of(local_s.rem_euclid(DAY_S) as f64 / 3600.0, day.weekday, day) + 0.3 * normal(&mut random)
        })
        .collect()
}

#[test]
fn the_periods_of_a_series_are_found() {
    let office = |hour: f64| if (9.0..17.0).contains(&hour) { 2.0 } else { 1.0 };
    for seed in 0..10 {
        let daily = signal(30, HOUR_S, "UTC", seed, |hour, _, _| 2.0 + (hour / 24.0 * TAU).sin());
        assert_eq!(periods(&daily, HOUR_S, "UTC"), [Period::Day], "{seed}");
        let both = signal(60, HOUR_S, "UTC", seed, |hour, weekday, _| if weekday < 5 { office(hour) } else { 1.0 });
        assert_eq!(periods(&both, HOUR_S, "UTC"), [Period::Day, Period::Week], "{seed}");
        let weekly = signal(60, HOUR_S, "UTC", seed, |_, weekday, _| if weekday < 5 { 2.0 } else { 1.0 });
        assert_eq!(periods(&weekly, HOUR_S, "UTC"), [Period::Week], "{seed}");
    }
}

#[test]
fn a_period_of_its_own_is_found_to_a_hundredth() {
    let is_found = |seed: &u64| {
        let job =
            signal(7, 300, "UTC", *seed, |hour, _, _| if (hour * 60.0).round() % 45.0 < 10.0 { 3.0 } else { 1.0 });
        let found = periods(&job, 300, "UTC");
        // The day, which it divides, may be told in its place by chance.
        matches!(found[..], [Period::Length(length)] if (length.as_secs_f64() / 2700.0 - 1.0).abs() < 0.01)
    };
    assert!((0..20).filter(is_found).count() >= 19);
}

#[test]
fn a_month_is_found_by_its_end_within_sixty_days() {
    for seed in 0..10 {
        let billing = signal(60, HOUR_S, "UTC", seed, |_, _, day| if day.days_to_month_end < 3 { 4.0 } else { 1.0 });
        assert_eq!(periods(&billing, HOUR_S, "UTC"), [Period::Month], "{seed}");
    }
}

#[test]
fn a_day_stays_a_day_when_the_clocks_change() {
    let narrow = |hour: f64, _, _| if (8.0..9.0).contains(&hour) { 4.0 } else { 1.0 };
    let series = signal(110, HOUR_S, "Europe/Berlin", 1, narrow);
    let start = Timestamp::from_unix_ms(START_S * 1000);
    let regular = Regular { start, step_s: HOUR_S, values: &series };
    let explained = |zone: &str| {
        let seasons = find(&regular, &Calendar::new(zone, []).unwrap());
        seasons.iter().find(|season| season.period == Period::Day).map_or(0.0, |season| season.explained)
    };
    assert_eq!(periods(&series, HOUR_S, "Europe/Berlin"), [Period::Day]);
    assert!(explained("Europe/Berlin") > explained("UTC") + 0.2, "the surge moves against UTC");
}

#[test]
fn holidays_are_left_out() {
    let series = signal(28, HOUR_S, "UTC", 1, |hour, _, _| 2.0 + (hour / 24.0 * TAU).sin());
    let all: Vec<_> = (0..28).map(|day| jiff::civil::date(2024, 2, 5) + jiff::Span::new().days(day)).collect();
    let regular = Regular { start: Timestamp::from_unix_ms(START_S * 1000), step_s: HOUR_S, values: &series };
    assert_eq!(find(&regular, &Calendar::new("UTC", all[..3].iter().copied()).unwrap()).len(), 1);
    assert!(find(&regular, &Calendar::new("UTC", all).unwrap()).is_empty());
}

/// How many of `count` series without a season are given one, by kind.
fn given(kind: &str, count: u64) -> usize {
    let series = |seed: u64| -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (mut state, mut burst) = (0.0, 0.0);
        let shift = random.random_range(200..1200);
        let step = |at: usize| match kind {
            "white noise" => normal(&mut random),
            "random walk" => {
                state += normal(&mut random);
                state
            }
            "persistent noise" => {
                state = 0.95 * state + normal(&mut random);
                state
            }
            "bursts" => {
                burst *= 0.5;
                if random.random::<f64>() < 0.02 {
                    burst += -20.0 * (1.0 - random.random::<f64>()).ln();
                }
                burst
            }
            _ => normal(&mut random) + if at > shift { 8.0 } else { 0.0 },
        };
        (0..60 * 24).map(step).collect()
    };
    (0..count).filter(|&seed| !periods(&series(seed), HOUR_S, "Europe/Berlin").is_empty()).count()
}

#[test]
fn of_a_thousand_series_without_a_cycle_at_most_ten_are_given_one() {
    for kind in ["white noise", "random walk", "persistent noise", "bursts", "change of regime"] {
        let given = given(kind, 1000);
        assert!(given <= 10, "{kind}: {given} of 1000");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_series_what_is_told_is_sound(
        values in proptest::collection::vec(
            prop_oneof![Just(f64::NAN), Just(0.0), Just(f64::INFINITY), -1e300..1e300f64, 0.0..1e-300f64, 0.0..1.0f64], 0..800),
        step_s in prop_oneof![Just(10u32), Just(300), Just(3600), 0u32..200_000],
    ) {
        let series = Regular { start: Timestamp::from_unix_ms(START_S * 1000), step_s, values: &values };
        for season in find(&series, &Calendar::utc()) {
            prop_assert!((0.0..=SIGNIFICANCE).contains(&season.p_value) && season.explained.is_finite());
        }
    }
}
