//! What the forecast must and must not see, over many drawn series.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::VmId;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use super::season::detect;
use super::{Forecaster, Refit};
use crate::history::{History, Interval, Window};
use crate::policy::ForecastPolicy;

const POLICY: ForecastPolicy = ForecastPolicy {
    resolution_ms: 1000,
    horizon_steps: 30,
    season_steps_min: 40,
    season_steps_max: 150,
    time_zone: String::new(),
    holidays: Vec::new(),
    skill_min: None,
};

/// Series drawn for each claim.
const DRAWS: usize = 100;

/// Roughly normal: the sum of twelve uniform draws.
fn noise(rng: &mut ChaCha8Rng, deviation: f64) -> f64 {
    ((0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0) * deviation
}

struct Day {
    period: f64,
    phase: f64,
    width: f64,
    base: f64,
    peak: f64,
    noise: f64,
}

impl Day {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let period = rng.random_range(50.0..120.0);
        Self {
            period,
            phase: rng.random_range(0.0..period),
            width: rng.random_range(0.2..0.35),
            base: rng.random_range(0.05..0.2),
            peak: rng.random_range(0.7..1.0),
            noise: rng.random_range(0.02..0.05),
        }
    }

    fn steps(&self, rng: &mut ChaCha8Rng, days: f64) -> Vec<f64> {
        (0..(self.period * days) as usize)
            .map(|step| {
                let phase = (step as f64 + self.phase).rem_euclid(self.period) / self.period;
                let level = if phase < self.width { self.peak } else { self.base };
                (level + noise(rng, self.noise)).max(0.0)
            })
            .collect()
    }
}

/// A reflected random walk that moves every `every` steps by at most `size`, with a little noise.
fn walk(rng: &mut ChaCha8Rng, steps: usize, every: usize, size: f64) -> Vec<f64> {
    let mut level: f64 = 0.5;
    (0..steps)
        .map(|step| {
            if step % every == 0 {
                level += rng.random_range(-size..size);
                level = if level > 0.9 { 1.8 - level } else { (0.2 - level).max(level) };
            }
            level + noise(rng, 0.02)
        })
        .collect()
}

fn history(steps: impl IntoIterator<Item = Option<Interval>>) -> History {
    let mut history = History::new(POLICY.resolution_ms, POLICY.season_steps_max);
    for (second, step) in steps.into_iter().enumerate() {
        let Some(mean) = step else { continue };
        let start = Timestamp::from_unix_ms(1_000_000 + second as u64 * 1000);
        history.add(&Window { start, length: Duration::from_secs(1), covered: 1.0, mean, peak: mean.low });
    }
    history
}

fn fit(steps: impl IntoIterator<Item = Option<Interval>>) -> Forecaster {
    Refit::new(VmId(Uuid::nil()), 1, &POLICY, &history(steps)).run().forecaster
}

fn known(values: &[f64]) -> impl Iterator<Item = Option<Interval>> + '_ {
    values.iter().map(|&value| Some(Interval { low: value, high: value }))
}

#[test]
fn a_day_of_any_length_is_found_after_two_and_a_half_days() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..DRAWS {
        let day = Day::draw(&mut rng);
        let found = detect(&day.steps(&mut rng, 2.5), 40, 150).unwrap();
        assert!((found - day.period).abs() < 1.2, "{found} instead of {}", day.period);
    }
}

#[test]
fn the_fraction_of_a_step_in_a_period_is_found_and_multiples_are_not_taken_for_it() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..DRAWS {
        let day = Day::draw(&mut rng);
        let found = detect(&day.steps(&mut rng, 6.0), 40, 150).unwrap();
        assert!((found - day.period).abs() < 0.3, "{found} instead of {}", day.period);
    }
}

#[test]
fn a_day_with_two_unlike_surges_is_not_taken_for_two_days() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let level = |step: usize| match step % 100 {
        0..15 => 0.8,
        50..65 => 0.4,
        _ => 0.1,
    };
    let values: Vec<f64> = (0..400).map(|step| level(step) + noise(&mut rng, 0.03)).collect();
    let found = detect(&values, 40, 150).unwrap();
    assert!((found - 100.0).abs() < 0.5, "{found}");
}

#[test]
fn noise_constants_and_trends_have_no_season() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for steps in [120, 200, 400, 600] {
        assert_eq!(detect(&vec![0.3; steps], 40, 150), None);
        let trend: Vec<f64> = (0..steps).map(|step| step as f64 * 1e-3).collect();
        assert_eq!(detect(&trend, 40, 150), None);
        for _ in 0..DRAWS {
            let values: Vec<f64> = (0..steps).map(|_| 0.2 + noise(&mut rng, 0.03)).collect();
            assert_eq!(detect(&values, 40, 150), None);
        }
    }
}

#[test]
fn a_random_walk_hardly_ever_earns_a_season() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for (every, size) in [(1, 0.05), (2, 0.1), (5, 0.1), (5, 0.2), (10, 0.3)] {
        for steps in [120, 180, 250, 350, 600] {
            let earned =
                (0..DRAWS).filter(|_| fit(known(&walk(&mut rng, steps, every, size))).season_steps().is_some()).count();
            assert!(earned * 100 <= 2 * DRAWS, "{earned} of {DRAWS} walks of {steps} steps, {size} every {every}");
        }
    }
}

#[test]
fn the_95_percent_quantile_is_kept_about_as_often_as_it_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (mut kept, mut all) = (0, 0);
    for _ in 0..DRAWS {
        let day = Day::draw(&mut rng);
        let steps = day.steps(&mut rng, 7.0);
        let (past, future) = steps.split_at((day.period * 6.0) as usize);
        let forecaster = fit(known(past));
        assert!(forecaster.season_steps().is_some());
        for (ahead, demand) in future.iter().take(30).enumerate() {
            // The latest step is still open: the forecast starts with it.
            all += 1;
            kept += usize::from(*demand <= forecaster.quantile(ahead + 2, 0.95, 2.0));
        }
    }
    let share = kept as f64 / f64::from(all);
    assert!((0.92..=0.98).contains(&share), "{share}");
}

#[test]
fn a_starved_day_does_not_unlearn_the_surge() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let day = Day { period: 61.4, phase: 0.0, width: 0.25, base: 0.1, peak: 0.8, noise: 0.03 };
    let steps = day.steps(&mut rng, 6.0);
    let fed_until = (day.period * 4.0) as usize;
    let starved = steps.iter().enumerate().map(|(step, &demand)| {
        let low = if step < fed_until { demand } else { demand.min(0.2) };
        Some(Interval { low, high: if low < demand { 1.0 } else { demand } })
    });
    let forecaster = fit(starved);
    let surge = (2..12).map(|ahead| forecaster.quantile(ahead, 0.5, 1.0)).fold(0.0, f64::max);
    assert!(surge > 0.6, "the surge at the seventh day's start is forecast as {surge}");
}

#[test]
fn a_season_that_ends_loses_its_say() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let day = Day { period: 60.0, phase: 0.0, width: 0.25, base: 0.1, peak: 0.8, noise: 0.03 };
    let steps = day.steps(&mut rng, 5.0);
    let mut forecaster = fit(known(&steps));
    assert!(forecaster.season_steps().is_some());
    let flat: Vec<f64> = (0..180).map(|_| 0.1 + noise(&mut rng, 0.03)).collect();
    let both: Vec<f64> = steps.iter().chain(&flat).copied().collect();
    let whole = history(known(&both));
    whole.since(forecaster.next()).for_each(|(_, step)| forecaster.learn(step));
    assert_eq!(forecaster.season_steps(), None);
}

/// Anything that a history may hold: constants, gaps, steps as wide as can be, tiny and huge values.
fn adversarial() -> impl Strategy<Value = Vec<Option<Interval>>> {
    let value = prop_oneof![Just(0.0), Just(1e-300), Just(64.0), 0.0..64.0f64, Just(f64::from(f32::MIN_POSITIVE))];
    let step = prop_oneof![
        1 => Just(None),
        4 => (value.clone(), value).prop_map(|(a, b)| Some(Interval { low: a.min(b), high: a.max(b) })),
    ];
    prop_oneof![
        proptest::collection::vec(step.clone(), 0..300),
        // A block repeated: seasons of every kind.
        (proptest::collection::vec(step, 1..120), 1usize..6).prop_map(|(block, times)| block.repeat(times)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn quantiles_are_finite_within_the_vcpus_and_never_cross(steps in adversarial(), cores_max in 0.0..64.0f64) {
        let forecaster = fit(steps);
        for ahead in [0, 1, 2, 7, 16, 30, 1000] {
            let q = forecaster.quantiles(ahead, cores_max);
            let levels = [0.0, q.p50, q.p90, q.p95, q.p99, cores_max];
            prop_assert!(levels.iter().all(|level| level.is_finite()), "{q:?}");
            prop_assert!(levels.is_sorted(), "{q:?}");
        }
        prop_assert!(forecaster.relative_error().is_none_or(f64::is_finite));
        prop_assert!(forecaster.season_steps().is_none_or(|steps| (39.0..=151.0).contains(&steps)));
    }
}
