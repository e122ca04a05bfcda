//! Is there a season, and how long is it?
//!
//! A season is believed when the series resembles itself one period ago *and so do its changes*. The second half matters: a
//! random walk resembles its own past at some lag by mere chance (the spurious regressions of Granger and Newbold, 1974), but
//! its increments are independent. The test therefore correlates smoothed differences at the candidate lag, and compares with
//! what white noise and random walks of that length would show (Bartlett's variance of a sample autocorrelation).

/// So many periods must have been seen. Fewer than two are no repetition.
const PERIODS_MIN: f64 = 2.25;

/// A candidate must rise this far above the lowest correlation at shorter lags: correlation that merely fades is no season.
const PROMINENCE_MIN: f64 = 0.25;

/// Least correlation of the series with itself one period ago.
const CORRELATION_MIN: f64 = 0.4;

/// Least correlation of the differences, however long the history.
const DIFFERENCE_CORRELATION_MIN: f64 = 0.35;

/// Standard errors above chance that the differences' correlation must reach. Several lags are looked at, again and again as
/// history grows, so the usual two would be too few.
const STANDARD_ERRORS_MIN: f64 = 3.0;

/// Differences are taken between means over this part of a period: short enough to keep a surge's edge, long enough to average
/// noise away.
const DIFFERENCE_SPANS_PER_PERIOD: usize = 12;

/// The shortest candidate that reaches this share of the best correlation is the fundamental; the others are its multiples.
const FUNDAMENTAL_SHARE: f64 = 0.9;

/// Finds the season of a series, in steps (not necessarily whole). `values` are in order of time, NaN where there is a gap.
/// O(length × `steps_max`).
pub(super) fn detect(values: &[f64], steps_min: usize, steps_max: usize) -> Option<f64> {
    let longest = ((values.len() as f64 / PERIODS_MIN) as usize).min(steps_max);
    let shortest = steps_min.max(3);
    if longest < shortest {
        return None;
    }
    let detrended = detrend(values)?;
    // One lag more at each end, so that a peak at the very bound has two neighbours.
    let lags: Vec<f64> = (0..=longest + 1).map(|lag| correlation(&detrended, lag).unwrap_or(0.0)).collect();
    let mut lowest = f64::INFINITY;
    let mut candidates = Vec::new();
    for lag in 1..=longest {
        lowest = lowest.min(lags[lag]);
        let is_peak = lags[lag] >= lags[lag - 1] && lags[lag] >= lags[lag + 1];
        if lag >= shortest && is_peak && lags[lag] >= CORRELATION_MIN && lags[lag] - lowest >= PROMINENCE_MIN {
            candidates.push(lag);
        }
    }
    candidates.retain(|&lag| changes_recur(values, lag));
    let best = candidates.iter().map(|&lag| lags[lag]).fold(0.0, f64::max);
    let fundamental = *candidates.iter().find(|&&lag| lags[lag] >= FUNDAMENTAL_SHARE * best)?;
    Some(refine(&detrended, fundamental))
}

/// Whether the smoothed differences recur after `lag` steps beyond chance.
fn changes_recur(values: &[f64], lag: usize) -> bool {
    let span = (lag / DIFFERENCE_SPANS_PER_PERIOD).max(1);
    let changes = differences(values, span);
    // Bartlett: for means over `span` steps, differenced, the squared autocorrelations of white noise and of a random walk
    // both add up to about `span`.
    (lag - 1..=lag + 1).any(|lag| {
        let Some((recurrence, pairs)) = correlation_of_pairs(&changes, lag) else { return false };
        let standard_error = (span as f64 / pairs as f64).sqrt();
        recurrence >= DIFFERENCE_CORRELATION_MIN.max(STANDARD_ERRORS_MIN * standard_error)
    })
}

/// Mean of the next `span` values less the mean of the last `span`; NaN where either touches a gap.
fn differences(values: &[f64], span: usize) -> Vec<f64> {
    let means: Vec<f64> = values.windows(span).map(|window| window.iter().sum::<f64>() / span as f64).collect();
    means.iter().zip(means.iter().skip(span)).map(|(before, after)| after - before).collect()
}

/// Subtracts the least-squares line. `None` for a series without variation, which cannot have a season.
fn detrend(values: &[f64]) -> Option<Vec<f64>> {
    let known =
        || values.iter().enumerate().filter(|(_, value)| value.is_finite()).map(|(i, &value)| (i as f64, value));
    let count = known().count() as f64;
    let (sum_i, sum_v) = known().fold((0.0, 0.0), |(i, v), (index, value)| (i + index, v + value));
    let (mean_i, mean_v) = (sum_i / count, sum_v / count);
    let (mut covariance, mut variance_i, mut variance_v) = (0.0, 0.0, 0.0);
    for (index, value) in known() {
        covariance += (index - mean_i) * (value - mean_v);
        variance_i += (index - mean_i).powi(2);
        variance_v += (value - mean_v).powi(2);
    }
    // Below a thousandth of a core, what varies is rounding.
    if count < 3.0 || variance_v / count < 1e-6 {
        return None;
    }
    let slope = covariance / variance_i;
    Some(values.iter().enumerate().map(|(i, value)| value - mean_v - slope * (i as f64 - mean_i)).collect())
}

/// Pearson's correlation of a series with itself `lag` steps ago; `None` without enough pairs or variation.
fn correlation(values: &[f64], lag: usize) -> Option<f64> {
    correlation_of_pairs(values, lag).map(|(correlation, _)| correlation)
}

fn correlation_of_pairs(values: &[f64], lag: usize) -> Option<(f64, usize)> {
    let later = values.get(lag..)?;
    let (mut pairs, mut x, mut y, mut xx, mut yy, mut xy) = (0usize, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (&a, &b) in values.iter().zip(later) {
        if a.is_finite() && b.is_finite() {
            pairs += 1;
            x += a;
            y += b;
            xx += a * a;
            yy += b * b;
            xy += a * b;
        }
    }
    let n = pairs as f64;
    let (variance_x, variance_y) = (xx - x * x / n, yy - y * y / n);
    if pairs < 3 || variance_x <= f64::EPSILON || variance_y <= f64::EPSILON {
        return None;
    }
    let correlation = (xy - x * y / n) / (variance_x * variance_y).sqrt();
    correlation.is_finite().then_some((correlation, pairs))
}

/// A period to a fraction of a step: the peak near a multiple of it, divided by the multiple. An error of half a step in a
/// period of 60 would put the forecast's surge a step further off each two days.
fn refine(values: &[f64], lag: usize) -> f64 {
    let mut period = peak_near(values, lag).unwrap_or(lag as f64);
    for multiple in 2.. {
        let target = (period * f64::from(multiple)).round() as usize;
        // At least three quarters of a period must overlap, or the peak is one of few points.
        if target + 2 + lag * 3 / 4 > values.len() {
            break;
        }
        match peak_near(values, target) {
            Some(peak) => period = peak / f64::from(multiple),
            None => break,
        }
    }
    period
}

/// The vertex of the parabola through the highest correlation within two lags of `lag` and its neighbours.
fn peak_near(values: &[f64], lag: usize) -> Option<f64> {
    let at = |lag: usize| correlation(values, lag).unwrap_or(-1.0);
    let highest = (lag.saturating_sub(2)..=lag + 2).max_by(|&a, &b| at(a).total_cmp(&at(b)))?;
    if highest + 2 == lag || highest == lag + 2 {
        return None; // Still rising at the edge: no peak here.
    }
    let (left, middle, right) = (at(highest - 1), at(highest), at(highest + 1));
    let curvature = left - 2.0 * middle + right;
    let shift = if curvature < 0.0 { 0.5 * (left - right) / curvature } else { 0.0 };
    Some(highest as f64 + shift.clamp(-0.5, 0.5))
}
