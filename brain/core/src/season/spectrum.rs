//! Does a frequency stand out of its surroundings?
//!
//! Ordinates of a periodogram at Fourier frequencies are, for any process with a smooth spectrum, nearly independent and exponential about
//! that spectrum (Brockwell and Davis, 1991, theorem 10.3.2). A season is a line: its ordinate is large beside its neighbours, whatever the
//! process beneath looks like. Series are differenced first, so that random walks and shifts of level have a smooth spectrum too.

use std::f64::consts::TAU;

/// The power of a series at `cycles` cycles (not necessarily whole) over its length, by Goertzel's recurrence.
pub(super) fn power(series: &[f64], cycles: f64) -> f64 {
    let turn = TAU * cycles / series.len() as f64;
    let coefficient = 2.0 * turn.cos();
    let (mut last, mut before) = (0.0, 0.0);
    for &value in series {
        (last, before) = (value + coefficient * last - before, last);
    }
    (last * last + before * before - coefficient * last * before).max(0.0)
}

/// Probability that a line is no less than this many times the mean of `neighbours` ordinates, when there is none: the ratio has an F
/// distribution with 2 and 2 × `neighbours` degrees of freedom, whose tail is this.
pub(super) fn line_p_value(power: f64, neighbours_mean: f64, neighbours: usize) -> f64 {
    if neighbours == 0 || !power.is_finite() || power <= 0.0 {
        return 1.0;
    }
    if neighbours_mean <= 0.0 {
        return 0.0;
    }
    let count = neighbours as f64;
    (1.0 + power / neighbours_mean / count).powf(-count)
}

/// One p-value of several independent ones: Fisher's sum of logarithms, which finds many weak lines, or Bonferroni's least, which finds one
/// strong line; twice the smaller, for having looked at both.
pub(super) fn combined_p_value(p_values: &[f64]) -> f64 {
    let count = p_values.len();
    if count == 0 {
        return 1.0;
    }
    let least = p_values.iter().copied().fold(1.0, f64::min) * count as f64;
    // The chi-square tail with an even number of degrees of freedom is a sum of Poisson probabilities.
    let half: f64 = p_values.iter().map(|p| -p.max(f64::MIN_POSITIVE).ln()).sum();
    let mut term = (-half).exp();
    let mut fisher = term;
    for i in 1..count {
        term *= half / i as f64;
        fisher += term;
    }
    (2.0 * least.min(fisher)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_that_of_the_fourier_transform() {
        let series: Vec<f64> = (0..48).map(|i| 3.0 * (TAU * f64::from(i) * 4.0 / 48.0).cos()).collect();
        assert!((power(&series, 4.0) - (3.0f64 * 24.0).powi(2)).abs() < 1e-6);
        assert!(power(&series, 7.0) < 1e-6);
    }

    #[test]
    fn tails_are_those_of_the_tables() {
        // F(2, 12) at 5 %: 3.885; chi-square with 4 degrees of freedom at 5 %: 9.488, here from two equal p-values.
        assert!((line_p_value(3.885, 1.0, 6) - 0.05).abs() < 1e-4);
        let each = (-9.488f64 / 4.0).exp();
        assert!((combined_p_value(&[each, each]) - 0.1).abs() < 1e-3);
        assert_eq!(combined_p_value(&[]), 1.0);
        assert_eq!(line_p_value(0.0, 0.0, 6), 1.0);
    }
}
