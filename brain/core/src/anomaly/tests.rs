//! One test for each kind of anomaly, and what holds for any series.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const STEP_S: i64 = 300;
const DAY_VALUES: usize = 288;

/// Noise of uniform width around a level.
fn noise(values: usize, level: f64, width: f64) -> Vec<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    (0..values).map(|_| level + width * (random.random::<f64>() - 0.5)).collect()
}

/// A busy working day and a quiet night, with noise.
fn office(days: usize) -> Vec<f64> {
    let mut values = noise(days * DAY_VALUES, 10.0, 2.0);
    for (place, value) in values.iter_mut().enumerate() {
        if (8 * 12..18 * 12).contains(&(place % DAY_VALUES)) {
            *value += 40.0;
        }
    }
    values
}

fn replay(values: &[f64]) -> Vec<Verdict> {
    let mut detector = Detector::new();
    (0..).zip(values).map(|(place, &value)| detector.push(place * STEP_S, value)).collect()
}

fn incidents(values: &[f64]) -> Vec<Incident> {
    replay(values).into_iter().filter_map(|verdict| verdict.alert).collect()
}

fn at_s(place: usize) -> i64 {
    i64::try_from(place).unwrap() * STEP_S
}

#[test]
fn noise_and_a_daily_cycle_are_no_anomaly() {
    assert_eq!(incidents(&noise(4000, 10.0, 10.0)), []);
    let cycle: Vec<Incident> =
        incidents(&office(14)).into_iter().filter(|incident| incident.at_s > at_s(3 * DAY_VALUES)).collect();
    assert_eq!(cycle, []);
}

#[test]
fn a_spike_is_a_point_anomaly_found_at_once() {
    let mut values = noise(2000, 10.0, 10.0);
    values[1500] = 25.0;
    let incidents = incidents(&values);
    assert_eq!(incidents.len(), 1);
    let incident = &incidents[0];
    assert_eq!((incident.kind, incident.at_s, incident.since_s), (Kind::Point, at_s(1500), at_s(1500)));
    assert!(incident.observed > incident.expected.high && incident.expected.high < 15.0);
    assert!(incident.to_string().starts_with("value never seen: expected a value between 5.0"), "{incident}");
}

#[test]
fn a_usual_value_at_an_unusual_hour_is_contextual() {
    let mut values = office(10);
    let night = 8 * DAY_VALUES + 3 * 12;
    values[night] = 50.0;
    let found: Vec<Incident> =
        incidents(&values).into_iter().filter(|incident| incident.at_s > at_s(3 * DAY_VALUES)).collect();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].at_s), (Kind::Contextual, at_s(night)));
    assert!(found[0].expected.high < 15.0, "at night little is expected: {:?}", found[0].expected);
}

#[test]
fn a_mean_that_moves_within_the_values_range_is_a_level_shift() {
    let mut values = noise(2000, 10.0, 10.0);
    values.truncate(1500);
    values.extend(noise(500, 13.0, 3.0));
    let found = incidents(&values);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, Kind::LevelShift);
    assert!(found[0].at_s > at_s(1500) && found[0].at_s <= at_s(1500 + WINDOW_VALUES));
    assert!(found[0].observed > found[0].expected.high);
}

#[test]
fn a_series_that_stands_still_is_a_flat_line() {
    let mut values = noise(1500, 10.0, 10.0);
    values.extend([10.0; 300]);
    let found = incidents(&values);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, Kind::FlatLine);
    assert!(found[0].at_s <= at_s(1500 + WINDOW_VALUES));
}

#[test]
fn a_mean_that_keeps_rising_is_a_slow_leak() {
    // The load swings by 20 around its mean; under it, a seventh an hour leaks.
    let mut values = noise(3400, 100.0, 10.0);
    for (value, place) in values.iter_mut().zip(0..) {
        *value += if place % 36 < 18 { 10.0 } else { -10.0 } + 0.012 * f64::from((place - 1000).max(0));
    }
    let found = incidents(&values);
    let leak = found.iter().find(|incident| incident.kind == Kind::SlowLeak).unwrap_or_else(|| panic!("{found:?}"));
    assert!(leak.at_s - leak.since_s >= at_s(4 * DAY_VALUES - 1));
    assert!(leak.observed > leak.expected.high);
}

#[test]
fn a_worse_anomaly_scores_higher_without_end() {
    let score = |spike: f64| {
        let mut values = noise(1000, 10.0, 10.0);
        values[900] = spike;
        replay(&values)[900].score
    };
    assert!(
        score(20.0) < score(30.0) && score(30.0) < score(3e3) && score(3e3) < score(3e9) && score(3e9) < score(3e90)
    );
}

#[test]
fn an_incident_is_told_once_and_the_next_one_again() {
    let mut values = noise(3000, 10.0, 10.0);
    values[1000..1020].fill(40.0);
    values[2000] = 80.0;
    let found: Vec<i64> = incidents(&values).iter().map(|incident| incident.at_s).collect();
    assert_eq!(found, [at_s(1000), at_s(2000)]);
}

#[test]
fn a_gap_scores_nothing_and_teaches_nothing() {
    let values = noise(1000, 10.0, 10.0);
    let mut gappy = values.clone();
    gappy.splice(500..500, [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
    let mut detector = Detector::new();
    let plain: Vec<f64> = values.iter().map(|&value| detector.push(0, value).score).collect();
    let mut detector = Detector::new();
    let mut scores: Vec<f64> = gappy.iter().map(|&value| detector.push(0, value).score).collect();
    assert_eq!(scores[500..503], [0.0; 3]);
    scores.drain(500..503);
    assert_eq!(scores, plain);
}

/// Values of all sorts, in runs, so that constant stretches are met.
fn any_series() -> impl Strategy<Value = Vec<f64>> {
    let value = prop_oneof![
        any::<f64>(),
        -10.0..10.0f64,
        Just(0.0),
        Just(f64::MAX),
        Just(f64::MIN),
        Just(f64::MIN_POSITIVE),
        Just(f64::NAN)
    ];
    prop::collection::vec((value, 1..60usize), 0..40)
        .prop_map(|runs| runs.into_iter().flat_map(|(value, length)| vec![value; length]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_series_scores_finite_numbers_and_no_alert_is_below_the_threshold(values in any_series(), start_s in -1_000_000_000..4_000_000_000_i64) {
        let mut detector = Detector::new();
        for (place, &value) in (0..).zip(&values) {
            let verdict = detector.push(start_s + place * STEP_S, value);
            prop_assert!(verdict.score.is_finite() && verdict.score >= 0.0, "{}", verdict.score);
            if let Some(alert) = verdict.alert {
                prop_assert!(alert.score >= ALERT_SCORE && alert.since_s <= alert.at_s);
                prop_assert!(alert.expected.low.is_finite() && alert.expected.low <= alert.expected.high);
            }
        }
    }

    #[test]
    fn later_values_change_no_earlier_score(values in any_series(), other in any_series(), cut in 0.0..1.0f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share of a short series")]
        let cut = (values.len() as f64 * cut) as usize;
        let mut overwritten = values[..cut].to_vec();
        overwritten.extend(other);
        let bits = |values: &[f64]| replay(values).iter().take(cut).map(|verdict| verdict.score.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&values), bits(&overwritten));
    }

    #[test]
    fn a_constant_series_is_never_an_anomaly(value in any::<f64>(), length in 0..2000usize) {
        prop_assert!(replay(&vec![value; length]).iter().all(|verdict| verdict.score == 0.0));
    }

    #[test]
    fn the_unit_does_not_matter(seed_level in 1.0..1e6f64, power in -20..20i32) {
        let values = noise(600, seed_level, 1.0 + seed_level / 2.0);
        let scaled: Vec<f64> = values.iter().map(|value| value * 2f64.powi(power)).collect();
        let scores = |values: &[f64]| replay(values).iter().map(|verdict| verdict.score).collect::<Vec<_>>();
        for (one, other) in scores(&values).iter().zip(scores(&scaled)) {
            prop_assert!((one - other).abs() <= 1e-6 * (1.0 + one.abs()), "{one} {other}");
        }
    }
}
