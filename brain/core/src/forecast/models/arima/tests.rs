//! Expectations marked as statsforecast's were computed by its `AutoARIMA(season_length=1)`, version 2.1.1, on the same
//! series.

use proptest::prelude::*;

use super::*;

/// Nearly normal noise that any language can repeat: sums of twelve uniform numbers from Knuth's linear congruential
/// generator.
fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / 2_f64.powi(53)
    };
    (0..count).map(|_| (0..12).fold(0.0, |sum, _| sum + uniform()) - 6.0).collect()
}

/// 600 values of an ARMA process about `mean`, summed up once if `differenced`; 200 values before them are thrown away.
fn process(ar: &[f64], ma: &[f64], differenced: bool, mean: f64, seed: u64) -> Vec<f64> {
    let noise = noise(800, seed);
    let mut values: Vec<f64> = Vec::new();
    for t in 0..noise.len() {
        let lagged = |coefficients: &[f64], past: &[f64]| -> f64 {
            coefficients.iter().enumerate().take(t).map(|(lag, coefficient)| coefficient * past[t - 1 - lag]).sum()
        };
        values.push(noise[t] + lagged(ar, &values) + lagged(ma, &noise));
    }
    let mut sum = 0.0;
    let summed = |value: &f64| {
        sum = if differenced { sum + value } else { *value };
        sum + mean
    };
    values[200..].iter().map(summed).collect()
}

/// What statsforecast found: whether it differenced, its coefficients, and its forecasts 1, 2, 5 and 12 steps ahead.
struct Peer {
    differenced: bool,
    ar: &'static [f64],
    ma: &'static [f64],
    forecasts: [f64; 4],
}

fn agrees(values: &[f64], peer: &Peer) {
    let series = Series::new(values, &[]);
    let arima = Arima::fit_one(&series, values.len(), 12);
    let (differenced, arma) = arima.found;
    assert_eq!((differenced, arma.p, arma.q), (peer.differenced, peer.ar.len(), peer.ma.len()), "{arma:?}");
    for (own, theirs) in arma.ar.iter().zip(peer.ar).chain(arma.ma.iter().zip(peer.ma)) {
        assert!((own - theirs).abs() < 0.03, "{own} for {theirs} in {arma:?}");
    }
    // The noise has a standard deviation of 1.
    for (ahead, theirs) in [1, 2, 5, 12].into_iter().zip(peer.forecasts) {
        let own = arima.predict(&series, values.len() - 1, ahead) * series.scale();
        assert!((own - theirs).abs() < 0.1, "{ahead} ahead {own} for {theirs}");
    }
}

/// AR(2). The expectations are statsforecast's.
#[test]
fn an_autoregression_is_found_and_forecast_as_statsforecast_does() {
    let values = process(&[1.2, -0.5], &[], false, 10.0, 1);
    assert!((values[599] - 10.8586).abs() < 1e-4, "another series than the peer's");
    let forecasts = [9.476, 8.9465, 9.6516, 10.0548];
    agrees(&values, &Peer { differenced: false, ar: &[1.2207, -0.4951], ma: &[], forecasts });
}

/// ARMA(1, 1). The expectations are statsforecast's.
#[test]
fn a_mixed_process_is_found_and_forecast_as_statsforecast_does() {
    let values = process(&[0.7], &[0.4], false, 5.0, 2);
    let forecasts = [3.0644, 3.5593, 4.3519, 4.7706];
    agrees(&values, &Peer { differenced: false, ar: &[0.7175], ma: &[0.4023], forecasts });
}

/// ARIMA(0, 1, 1), which is exponential smoothing. The expectations are statsforecast's.
#[test]
fn a_wandering_level_is_differenced_as_statsforecast_does() {
    let values = process(&[], &[-0.6], true, 50.0, 4);
    agrees(&values, &Peer { differenced: true, ar: &[], ma: &[-0.6259], forecasts: [43.6084; 4] });
}

/// MA(2). The expectations are statsforecast's.
#[test]
fn a_moving_average_is_found_and_forecast_as_statsforecast_does() {
    let values = process(&[], &[0.8, 0.3], false, 3.0, 5);
    let forecasts = [1.6901, 2.3834, 3.0374, 3.0374];
    agrees(&values, &Peer { differenced: false, ar: &[], ma: &[0.8252, 0.3159], forecasts });
}

/// A round cycle costs no order: harmonics take it.
#[test]
fn a_cycle_under_noise_is_carried_on() {
    let cycle = |step: usize| 20.0 + 8.0 * (step as f64 * TAU / 48.0).sin();
    let values: Vec<f64> = noise(480, 6).iter().enumerate().map(|(step, noise)| cycle(step) + noise).collect();
    let series = Series::new(&values, &[48]);
    let arima = Arima::fit_one(&series, 480, 48);
    for ahead in 1..=48 {
        let said = arima.predict(&series, 479, ahead) * series.scale();
        assert!((said - cycle(479 + ahead)).abs() < 0.6, "{ahead} ahead {said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn settled_coefficients_are_stationary(mut coefficients in prop::collection::vec(-5.0..5.0_f64, 1..4)) {
        settle(&mut coefficients, 1.0);
        prop_assert!(is_stationary(&coefficients, 1.0), "{coefficients:?}");
    }

    #[test]
    fn any_series_is_carried_on_by_numbers(
        values in prop::collection::vec(prop_oneof![Just(0.0), Just(1.0), -1e6..1e6_f64], 1..200), season in 0..40_usize
    ) {
        let series = Series::new(&values, &[season]);
        let arima = Arima::fit_one(&series, values.len(), 300);
        for ahead in [1, 2, 40, 300] {
            prop_assert!(arima.predict(&series, values.len() - 1, ahead).is_finite());
        }
    }
}
