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

/// A day of 96 steps that rises to a peak at noon, with some noise, all of it known.
fn peaked(days: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..days * 96)
        .map(|step| {
            let day = (1.0 - ((step % 96) as f64 - 48.0).abs() / 16.0).max(0.0);
            2.0 + 6.0 * day + 0.3 * rng.random::<f64>()
        })
        .collect()
}

/// What is left of it under a quota of `quota`: the least and the most of each step.
fn throttled(values: &[f64], quota: f64) -> (Vec<f64>, Vec<f64>) {
    let least: Vec<f64> = values.iter().map(|value| value.min(quota)).collect();
    // What waits also waits for itself: the upper end is too high.
    let most = values.iter().map(|&value| if value > quota { quota + 1.5 * (value - quota) } else { value }).collect();
    (least, most)
}

#[test]
fn a_vm_throttled_at_every_peak_is_known_to_want_more() {
    let values = peaked(10, 7);
    let (least, most) = throttled(&values[..96 * 9], 5.0);
    let expectation = expectation(96, 96);
    let noon = |fitted: Fitted| fitted.forecast(96).quantiles[48];
    let censored = noon(Engine::fit_observed(&Observed { values: &least, most: Some(&most) }, &expectation));
    let taken_at_its_word = noon(Engine::fit(&least, &expectation));
    assert!(taken_at_its_word[0] < 5.1, "{taken_at_its_word:?}");
    assert!(censored[0] > 6.0, "half way up at least: {censored:?}");
    assert!(censored.iter().zip(taken_at_its_word).all(|(more, less)| *more > less), "{censored:?}");
    // And not for ever more: the truth is 8, what was possible 9.5.
    assert!(censored[2] < 10.0, "{censored:?}");
}

#[test]
fn bursts_that_no_model_foresees_reach_the_quantiles_beyond_the_quota() {
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    let burst = |burst: bool, size: f64| if burst { 8.0 + 2.0 * size } else { 2.0 + size };
    let values: Vec<f64> = (0..960).map(|_| burst(rng.random::<f64>() < 0.1, rng.random::<f64>())).collect();
    let (least, most) = throttled(&values, 5.0);
    let observed = Observed { values: &least, most: Some(&most) };
    for [middle, _, high, _] in Engine::fit_observed(&observed, &expectation(96, 12)).forecast(12).quantiles {
        assert!(middle < 4.0 && (7.0..13.0).contains(&high), "{middle} {high}");
    }
    for [_, _, high, _] in Engine::fit(&least, &expectation(96, 12)).forecast(12).quantiles {
        assert!(high < 6.0, "{high}");
    }
}

#[test]
fn a_window_without_a_censored_step_is_fitted_as_ever_byte_for_byte() {
    let mut values = breathing(8, 8);
    values[100..130].fill(f64::NAN);
    let bits = |fitted: Fitted| -> Vec<u64> {
        let forecast = fitted.forecast(24);
        forecast.quantiles.iter().flatten().chain(&forecast.point).map(|value| value.to_bits()).collect()
    };
    let plain = bits(Engine::fit(&values, &expectation(96, 24)));
    for most in [&values[..], &values[..300], &[]] {
        let observed = Observed { values: &values, most: Some(most) };
        assert_eq!(plain, bits(Engine::fit_observed(&observed, &expectation(96, 24))));
    }
    let mut most = values.clone();
    most[700] += 9.0;
    let observed = Observed { values: &values, most: Some(&most) };
    assert_ne!(plain, bits(Engine::fit_observed(&observed, &expectation(96, 24))));
}

#[test]
fn what_came_is_nowhere_but_within_its_interval() {
    let least = peaked(6, 9).iter().map(|value| value.min(4.0)).collect::<Vec<_>>();
    let mut most = least.clone();
    (0..least.len()).filter(|step| least[*step] >= 4.0).for_each(|step| most[step] = 5.0);
    let observed = Observed { values: &least, most: Some(&most) };
    let intervals = observed.intervals();
    assert!(intervals.len() > 50);
    let imputed = observed.imputed(&intervals, Some(96));
    for (step, value) in imputed.iter().enumerate() {
        assert!(least[step] <= *value && *value <= most[step], "{step}: {value}");
    }
    // Nothing later is looked at.
    let cut = Observed { values: &least[..300], most: Some(&most[..300]) };
    assert_eq!(cut.imputed(&cut.intervals(), Some(96)), imputed[..300]);
}

#[test]
fn only_a_season_that_is_there_is_worth_anything() {
    let gain = |values: &[f64]| Engine::fit(values, &expectation(96, 96)).seasonal_gain().unwrap();
    assert!(gain(&breathing(10, 10)) < 0.5, "{}", gain(&breathing(10, 10)));
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for persistence in [0.0, 0.8, 0.97] {
        let mut state = 0.0;
        let wandering: Vec<f64> = (0..96 * 14)
            .map(|_| {
                state = persistence * state + rng.random::<f64>() - 0.5;
                // Bursts, so that means and medians part.
                20.0 + state + if rng.random::<f64>() < 0.05 { 5.0 } else { 0.0 }
            })
            .collect();
        let gain = gain(&wandering);
        assert!((0.95..1.5).contains(&gain), "{persistence}: {gain}");
    }
    assert_eq!(gain(&[3.0; 500]), 1.0);
    assert_eq!(
        Engine::fit(&breathing(2, 12), &Expectation { seasons_steps: vec![], horizon_steps: 9 }).seasonal_gain(),
        None
    );
}

#[test]
fn a_month_ahead_hour_by_hour_is_rising_finite_and_bounded() {
    for days in [60, 400] {
        let mut rng = ChaCha8Rng::seed_from_u64(days);
        let hour = |step: u64| 30.0 + 10.0 * (step as f64 * std::f64::consts::TAU / 24.0).sin() + step as f64 * 1e-3;
        let values: Vec<f64> = (0..days * 24).map(|step| hour(step) + 4.0 * rng.random::<f64>()).collect();
        let expectation = Expectation { seasons_steps: vec![24, 168], horizon_steps: 720 };
        let forecast = Engine::fit(&values, &expectation).forecast(720);
        assert_eq!(forecast.quantiles.len(), 720);
        let mut error = 0.0;
        for (ahead, quantiles) in (1..).zip(&forecast.quantiles) {
            assert!(quantiles.is_sorted() && quantiles.iter().all(|quantile| quantile.is_finite()), "{quantiles:?}");
            assert!((0.0..15.0).contains(&(quantiles[3] - quantiles[0])), "{days} days, {ahead} ahead: {quantiles:?}");
            error += (quantiles[0] - hour(days * 24 + ahead - 1) - 2.0).abs() / 720.0;
        }
        assert!(error < 1.5, "{days} days: {error}");
    }
}

#[test]
fn a_horizon_longer_than_what_is_known_is_no_sudden_zero() {
    let forecast = Engine::fit(&breathing(2, 13), &expectation(96, 400)).forecast(400);
    assert!(forecast.quantiles.iter().all(|quantiles| quantiles[0] > 5.0 && quantiles[3] < 50.0), "{forecast:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_intervals_give_finite_rising_quantiles(
        values in adversarial(), above in prop::collection::vec(prop_oneof![
            3 => Just(0.0), 1 => Just(f64::NAN), 1 => Just(f64::INFINITY), 2 => 0.0..1e3, 1 => Just(-5.0),
            1 => Just(1e300)
        ], 0..600), season in 0..60_usize
    ) {
        let most: Vec<f64> = values.iter().zip(&above).map(|(value, above)| value + above).collect();
        let expectation = Expectation { seasons_steps: vec![season], horizon_steps: 20 };
        let fitted = Engine::fit_observed(&Observed { values: &values, most: Some(&most) }, &expectation);
        for quantiles in fitted.forecast(20).quantiles {
            let finite = quantiles.iter().all(|quantile| quantile.is_finite());
            prop_assert!(finite && quantiles.is_sorted(), "{:?}", quantiles);
        }
        prop_assert!(fitted.seasonal_gain().is_none_or(|gain| gain >= 0.0));
    }
}
