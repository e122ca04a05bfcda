use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn expectation(season: usize, horizon_steps: usize) -> Expectation {
    Expectation { seasons_steps: vec![season, season * 7], horizon_steps }
}

/// A daily cycle with noise that is wide by day and narrow by night.
fn breathing(days: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..days * 96)
        .map(|step| {
            let day = (step as f64 * std::f64::consts::TAU / 96.0).sin().max(0.0);
            10.0 + 20.0 * day + (rng.random::<f64>() - 0.5) * (1.0 + 9.0 * day)
        })
        .collect()
}

#[test]
fn a_cycle_is_forecast_far_better_than_by_repeating_it() {
    let fitted = Engine::fit(&breathing(10, 1), &expectation(96, 24));
    // Repeating adds the noise of yesterday to that of today: the best possible skill is about 1 - 1/√2 ≈ 0.3.
    assert!(fitted.skill() > 0.2, "skill {}", fitted.skill());
    let total: f64 = fitted.shares().iter().map(|share| share.weight).sum();
    assert!((total - 1.0).abs() < 1e-9);
}

#[test]
fn quantiles_cover_their_share_of_what_comes() {
    let (mut covered, mut count) = ([0_usize; LEVELS.len()], 0_usize);
    for seed in 0..12 {
        let values = breathing(12, seed);
        let origin = 96 * 10 + 7 * seed as usize;
        let forecast = Engine::fit(&values[..origin], &expectation(96, 96)).forecast(96);
        for (quantiles, value) in forecast.quantiles.iter().zip(&values[origin..]) {
            count += 1;
            for (covered, quantile) in covered.iter_mut().zip(quantiles) {
                *covered += usize::from(value <= quantile);
            }
        }
    }
    for (level, covered) in LEVELS.into_iter().zip(covered) {
        let share = covered as f64 / count as f64;
        // 1 % says too little about 0.99; the others must be within a few standard errors of correlated steps.
        assert!((share - level).abs() < 0.04, "{level}: {share}");
    }
}

#[test]
fn the_spread_follows_the_time_of_day() {
    let fitted = Engine::fit(&breathing(10, 3), &expectation(96, 96));
    let forecast = fitted.forecast(96);
    let width = |step: usize| forecast.quantiles[step - 1][2] - forecast.quantiles[step - 1][0];
    assert!(width(24) > 2.0 * width(72), "noon {} and night {}", width(24), width(72));
}

#[test]
fn the_unit_does_not_matter() {
    let values = breathing(8, 4);
    let plain = Engine::fit(&values, &expectation(96, 12)).forecast(12);
    let mega: Vec<f64> = values.iter().map(|value| value * 1e6).collect();
    let mega = Engine::fit(&mega, &expectation(96, 12)).forecast(12);
    for (plain, mega) in plain.quantiles.iter().flatten().zip(mega.quantiles.iter().flatten()) {
        assert!((mega / 1e6 - plain).abs() < 1e-6 * plain.abs(), "{mega} for {plain}");
    }
}

#[test]
fn a_constant_stays_constant() {
    let forecast = Engine::fit(&[7.0; 500], &expectation(96, 12)).forecast(12);
    assert!(forecast.quantiles.iter().flatten().all(|quantile| (quantile - 7.0).abs() < 1e-6), "{forecast:?}");
}

#[test]
fn nothing_known_is_forecast_as_nothing_wanted() {
    for window in [&[][..], &[f64::NAN; 300]] {
        let forecast = Engine::fit(window, &expectation(24, 6)).forecast(6);
        assert_eq!(forecast, Forecast { point: vec![0.0; 6], quantiles: vec![[0.0; LEVELS.len()]; 6] });
    }
}

#[test]
fn a_horizon_beyond_the_calendars_is_cut() {
    let fitted = Engine::fit(&breathing(4, 5), &expectation(96, 12));
    assert_eq!(fitted.forecast(100).point.len(), 12);
    assert_eq!(fitted.forecast(3).point.len(), 3);
}

/// Values of all sizes, with gaps, runs and jumps.
fn adversarial() -> impl Strategy<Value = Vec<f64>> {
    let value = prop_oneof![
        4 => 0.0..100.0,
        1 => Just(0.0),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => (-300.0..300.0_f64).prop_map(|exponent| 10_f64.powf(exponent)),
        1 => -1e3..0.0,
    ];
    prop::collection::vec((value, 1..20_usize), 0..30)
        .prop_map(|runs| runs.into_iter().flat_map(|(value, length)| vec![value; length]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_series_gets_finite_rising_quantiles_near_what_was_seen(
        values in adversarial(), season in 0..60_usize, horizon in 1..80_usize
    ) {
        let expectation = Expectation { seasons_steps: vec![season, season * 2], horizon_steps: horizon };
        let forecast = Engine::fit(&values, &expectation).forecast(horizon);
        prop_assert_eq!(forecast.point.len(), horizon);
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let least = finite().fold(0.0, f64::min);
        let largest = finite().fold(0.0, f64::max);
        for (point, quantiles) in forecast.point.iter().zip(&forecast.quantiles) {
            prop_assert!(point.is_finite());
            prop_assert!(quantiles.is_sorted(), "{:?}", quantiles);
            for quantile in quantiles {
                prop_assert!(quantile.is_finite());
                prop_assert!(*quantile >= least && quantile - largest <= 0.3 * (largest - least), "{} of {}", quantile, largest);
            }
        }
    }
}
