//! ARIMA with a season of Fourier terms (dynamic harmonic regression; Hyndman and Athanasopoulos, 2021, section 10.5).
//!
//! Fitted on a short recent window, so that it is cheap and of today: harmonics by least squares, differencing by the
//! test of Kwiatkowski and others (1992), first coefficients by Hannan and Rissanen's regression (1982), the order by
//! Akaike's corrected criterion, and the last word by conditional least squares. Coefficients that are not stationary
//! or invertible are shrunk until they are. What it says of any step ahead is linear in the last few values and
//! surprises; those weights are worked out once.

use std::f64::consts::TAU;

use super::{Kind, PointModel, Series};
use crate::forecast::normal::NormalEquations;

/// It is fitted on so many steps before the end of what is known.
const FIT_STEPS_MAX: usize = 1200;

/// Less is not fitted: it stays where it is on average.
const FIT_STEPS_MIN: usize = 24;

/// Largest orders of autoregression and moving average.
const P: usize = 3;
const Q: usize = 2;

/// Harmonics of the season.
const HARMONICS: usize = 3;

/// Intercept, then sine and cosine of each harmonic.
const REGRESSORS: usize = 1 + 2 * HARMONICS;

/// Order of the long autoregression whose residuals stand in for the surprises.
const LONG_ORDER: usize = 12;

/// Improvements of the coefficients by Gauss and Newton's method.
const IMPROVEMENTS: usize = 6;

/// A partial autocorrelation beyond this is as good as a unit root.
const PARTIAL_MAX: f64 = 0.99;

/// The 5 % point of the test for a stationary level.
const KPSS_CRITICAL: f64 = 0.463;

/// Coefficients of an ARMA process; those beyond its order are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Arma {
    p: usize,
    q: usize,
    ar: [f64; P],
    ma: [f64; Q],
}

impl Arma {
    /// What each value has that the process does not explain; 0 for the first `p`, on which the rest is conditional.
    fn surprises(&self, values: &[f64]) -> Vec<f64> {
        let mut surprises = vec![0.0; values.len()];
        for t in self.p..values.len() {
            let ar: f64 = (0..self.p).map(|lag| self.ar[lag] * values[t - 1 - lag]).sum();
            let ma: f64 = (0..self.q.min(t)).map(|lag| self.ma[lag] * surprises[t - 1 - lag]).sum();
            surprises[t] = values[t] - ar - ma;
        }
        surprises
    }

    fn squares(&self, values: &[f64]) -> f64 {
        self.surprises(values)[P.min(values.len())..].iter().map(|surprise| surprise * surprise).sum()
    }

    fn settle(mut self) -> Self {
        settle(&mut self.ar[..self.p], 1.0);
        settle(&mut self.ma[..self.q], -1.0);
        self
    }

    fn moved(mut self, by: &[f64]) -> Self {
        let coefficients = self.ar[..self.p].iter_mut().chain(&mut self.ma[..self.q]);
        coefficients.zip(by).for_each(|(coefficient, by)| *coefficient += by);
        self
    }

    /// The process of least corrected AIC.
    fn fit(values: &[f64]) -> Self {
        let rissanen = Rissanen::new(values);
        let count = values.len() as f64;
        let criterion = |arma: &Self| {
            let parameters = (arma.p + arma.q + 1) as f64;
            count * (arma.squares(values) / count).max(f64::MIN_POSITIVE).ln()
                + 2.0 * parameters * count / (count - parameters - 1.0)
        };
        let orders = (0..=P).flat_map(|p| (0..=Q).map(move |q| (p, q)));
        let candidates = orders.map(|(p, q)| rissanen.solve(p, q)).map(|arma| (criterion(&arma), arma));
        let best = candidates.min_by(|a, b| a.0.total_cmp(&b.0)).map_or_else(Self::default, |best| best.1);
        best.improved(values)
    }

    /// Coefficients of less conditional squares, from these on.
    fn improved(self, values: &[f64]) -> Self {
        const NUDGE: f64 = 1e-5;
        let (mut best, order) = (self, self.p + self.q);
        let mut squares = best.squares(values);
        for _ in 0..IMPROVEMENTS {
            let surprises = best.surprises(values);
            let slopes: Vec<Vec<f64>> = (0..order)
                .map(|which| {
                    let mut nudge = [0.0; P + Q];
                    nudge[which] = NUDGE;
                    let nudged = best.moved(&nudge).surprises(values);
                    nudged.iter().zip(&surprises).map(|(nudged, surprise)| (nudged - surprise) / NUDGE).collect()
                })
                .collect();
            let mut equations = Equations::default();
            for (t, surprise) in surprises.iter().enumerate().skip(P) {
                equations
                    .add(std::array::from_fn(|which| slopes.get(which).map_or(0.0, |slopes| slopes[t])), -surprise);
            }
            let all: Vec<usize> = (0..order).collect();
            let Some(step) = equations.solve(&all) else { break };
            let steps = [1.0, 0.5, 0.1].map(|part| best.moved(&step.map(|by| by * part)).settle());
            let Some((less, better)) = steps
                .into_iter()
                .map(|arma| (arma.squares(values), arma))
                .find(|(candidate, _)| *candidate < squares * (1.0 - 1e-9))
            else {
                break;
            };
            (squares, best) = (less, better);
        }
        best
    }
}

/// Shrinks the coefficients of a polynomial 1 - sign · Σ c zᵏ until it has no root near or inside the unit circle.
fn settle(coefficients: &mut [f64], sign: f64) {
    const SHRINK: f64 = 0.97;
    const TURNS_MAX: usize = 400;
    for _ in 0..TURNS_MAX {
        if is_stationary(coefficients, sign) {
            return;
        }
        let mut factor = 1.0;
        for coefficient in coefficients.iter_mut() {
            factor *= SHRINK;
            *coefficient *= factor;
        }
    }
    coefficients.fill(0.0);
}

/// By Levinson and Durbin's recursion backwards: all partial autocorrelations lie inside the unit circle.
fn is_stationary(coefficients: &[f64], sign: f64) -> bool {
    let mut rest: Vec<f64> = coefficients.iter().map(|coefficient| sign * coefficient).collect();
    while let Some(partial) = rest.pop() {
        if partial.is_nan() || partial.abs() > PARTIAL_MAX {
            return false;
        }
        let before = rest.clone();
        for (lag, coefficient) in rest.iter_mut().enumerate() {
            *coefficient = (before[lag] + partial * before[before.len() - 1 - lag]) / (1.0 - partial * partial);
        }
    }
    true
}

/// Least squares over a few columns, of which any subset can be solved for.
#[derive(Clone, Debug, Default)]
struct Equations {
    gram: [[f64; P + Q]; P + Q],
    moment: [f64; P + Q],
}

impl Equations {
    fn add(&mut self, row: [f64; P + Q], target: f64) {
        for (i, factor) in row.iter().enumerate() {
            self.moment[i] += factor * target;
            self.gram[i].iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
        }
    }

    /// The solution with these columns alone, in their order, zeros behind; by Gaussian elimination of a positive
    /// definite matrix.
    fn solve(&self, columns: &[usize]) -> Option<[f64; P + Q]> {
        let count = columns.len();
        let mut matrix = [[0.0; P + Q + 1]; P + Q];
        for (i, &row) in columns.iter().enumerate() {
            for (j, &column) in columns.iter().enumerate() {
                matrix[i][j] = self.gram[row][column];
            }
            matrix[i][i] *= 1.0 + 1e-9;
            matrix[i][P + Q] = self.moment[row];
        }
        for i in 0..count {
            let pivot = matrix[i];
            if pivot[i].is_nan() || pivot[i] <= 0.0 {
                return None;
            }
            for below in &mut matrix[i + 1..count] {
                let factor = below[i] / pivot[i];
                below.iter_mut().zip(pivot).for_each(|(value, pivot)| *value -= factor * pivot);
            }
        }
        let mut solution = [0.0; P + Q];
        for i in (0..count).rev() {
            let known: f64 = (i + 1..count).map(|j| matrix[i][j] * solution[j]).sum();
            solution[i] = (matrix[i][P + Q] - known) / matrix[i][i];
        }
        solution.iter().all(|value| value.is_finite()).then_some(solution)
    }
}

/// Hannan and Rissanen's regression on lagged values and the lagged residuals of a long autoregression, for all orders
/// at once.
struct Rissanen(Equations);

impl Rissanen {
    fn new(values: &[f64]) -> Self {
        let long = LONG_ORDER.min(values.len() / 4);
        let ar = yule_walker(values, long);
        let residuals: Vec<f64> = (0..values.len())
            .map(|t| values[t] - ar.iter().take(t).enumerate().map(|(lag, ar)| ar * values[t - 1 - lag]).sum::<f64>())
            .collect();
        let mut equations = Equations::default();
        for t in long + P..values.len() {
            let lagged = |lag: usize| if lag < P { values[t - 1 - lag] } else { residuals[t - 1 - (lag - P)] };
            equations.add(std::array::from_fn(lagged), values[t]);
        }
        Self(equations)
    }

    fn solve(&self, p: usize, q: usize) -> Arma {
        let columns: Vec<usize> = (0..p).chain(P..P + q).collect();
        let Some(solution) = self.0.solve(&columns) else { return Arma::default() };
        Arma { p, q, ar: [0.0; P], ma: [0.0; Q] }.moved(&solution).settle()
    }
}

/// The autoregression of this order with the values' own autocovariances, by Levinson and Durbin's recursion.
fn yule_walker(values: &[f64], order: usize) -> Vec<f64> {
    let covariance = |lag: usize| values.iter().zip(&values[lag.min(values.len())..]).map(|(a, b)| a * b).sum::<f64>();
    let mut left = covariance(0);
    let covariances: Vec<f64> = (0..=order).map(covariance).collect();
    let mut ar: Vec<f64> = Vec::with_capacity(order);
    for k in 1..=order {
        if left.is_nan() || left <= 0.0 {
            break;
        }
        let explained: f64 = ar.iter().enumerate().map(|(lag, ar)| ar * covariances[k - 1 - lag]).sum();
        let partial = (covariances[k] - explained) / left;
        let before = ar.clone();
        for (lag, ar) in ar.iter_mut().enumerate() {
            *ar -= partial * before[before.len() - 1 - lag];
        }
        ar.push(partial);
        left *= 1.0 - partial * partial;
    }
    ar
}

/// Whether the level wanders: the statistic of Kwiatkowski and others (1992) with Bartlett's weights, about as many
/// lags as R takes.
fn wanders(values: &[f64]) -> bool {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
    let lags = (3.0 * count.sqrt() / 13.0) as usize;
    let covariance = |lag: usize| centred.iter().zip(&centred[lag..]).map(|(a, b)| a * b).sum::<f64>() / count;
    let weighted = |lag: usize| 2.0 * (1.0 - lag as f64 / (lags + 1) as f64) * covariance(lag);
    let variance = covariance(0) + (1..=lags).map(weighted).sum::<f64>();
    let mut sum = 0.0;
    let squares: f64 = centred
        .iter()
        .map(|value| {
            sum += value;
            sum * sum
        })
        .sum();
    squares / (count * count) > KPSS_CRITICAL * variance
}

/// How many past values and surprises matter to the future.
const LAGS: usize = P + 1;

/// A fitted ARIMA with what is left of the series by it.
#[derive(Clone, Debug)]
pub(crate) struct Arima {
    /// The part of the season's terms at each phase; one phase without a season.
    season: Vec<f64>,
    /// The series less that part.
    adjusted: Vec<f64>,
    surprises: Vec<f64>,
    /// For each step ahead the weights of the last values and surprises, latest first.
    ahead: Vec<([f64; LAGS], [f64; Q])>,
    /// Differences taken, and the process of what they leave.
    #[cfg(test)]
    found: (bool, Arma),
}

impl Arima {
    /// One for each of `ends`: fitted on what was before that step alone; to be asked up to `horizon` steps ahead.
    pub(crate) fn fit(series: &Series, ends: &[usize], horizon: usize) -> Vec<Self> {
        ends.iter().map(|&end| Self::fit_one(series, end, horizon)).collect()
    }

    fn fit_one(series: &Series, end: usize, horizon: usize) -> Self {
        let values = series.values();
        let from = end.saturating_sub(FIT_STEPS_MAX);
        let season = harmonics(&values[from..end], from, series.season().filter(|season| 2 * season <= end - from));
        let adjusted: Vec<f64> =
            values.iter().enumerate().map(|(at, value)| value - season[at % season.len()]).collect();
        let window = &adjusted[from..end];
        let (differenced, arma) = if window.len() < FIT_STEPS_MIN {
            (false, Arma::default())
        } else if wanders(window) {
            let differences: Vec<f64> = window.windows(2).map(|pair| pair[1] - pair[0]).collect();
            (true, Arma::fit(&differences))
        } else {
            (false, Arma::fit(window))
        };
        let mut ar = [0.0; LAGS];
        ar[..P].copy_from_slice(&arma.ar);
        if differenced {
            // (1 - Σ φ Bᵏ)(1 - B), written out.
            for lag in (0..P).rev() {
                ar[lag + 1] -= ar[lag];
            }
            ar[0] += 1.0;
        }
        let surprises = surprises(&adjusted, &ar, &arma.ma);
        Self {
            season,
            adjusted,
            surprises,
            ahead: weights(&ar, &arma.ma, horizon),
            #[cfg(test)]
            found: (differenced, arma),
        }
    }
}

fn surprises(values: &[f64], ar: &[f64; LAGS], ma: &[f64; Q]) -> Vec<f64> {
    let mut surprises = vec![0.0; values.len()];
    for t in LAGS..values.len() {
        let expected: f64 = ar.iter().enumerate().map(|(lag, ar)| ar * values[t - 1 - lag]).sum::<f64>()
            + ma.iter().enumerate().map(|(lag, ma)| ma * surprises[t - 1 - lag]).sum::<f64>();
        surprises[t] = values[t] - expected;
    }
    surprises
}

/// What each step ahead is made of: a forecast takes earlier forecasts for values, and no surprise is expected.
fn weights(ar: &[f64; LAGS], ma: &[f64; Q], horizon: usize) -> Vec<([f64; LAGS], [f64; Q])> {
    let mut ahead: Vec<([f64; LAGS], [f64; Q])> = Vec::with_capacity(horizon);
    for step in 0..horizon {
        let (mut of_values, mut of_surprises) = ([0.0; LAGS], [0.0; Q]);
        for (lag, ar) in ar.iter().enumerate() {
            if let Some(past) = lag.checked_sub(step) {
                of_values[past] += ar;
            } else {
                let (values, surprises) = ahead[step - 1 - lag];
                of_values.iter_mut().zip(values).for_each(|(sum, weight)| *sum += ar * weight);
                of_surprises.iter_mut().zip(surprises).for_each(|(sum, weight)| *sum += ar * weight);
            }
        }
        for (lag, ma) in ma.iter().enumerate().skip(step) {
            of_surprises[lag - step] += ma;
        }
        ahead.push((of_values, of_surprises));
    }
    ahead
}

/// The part of the season's harmonics, and of the mean, at each phase, by least squares on these values, the first of
/// which has index `from`.
fn harmonics(values: &[f64], from: usize, season: Option<usize>) -> Vec<f64> {
    let season = season.unwrap_or(1);
    let used = HARMONICS.min((season - 1) / 2);
    let rows: Vec<[f64; REGRESSORS]> = (0..season)
        .map(|phase| {
            std::array::from_fn(|column| {
                let angle = TAU * phase as f64 / season as f64 * column.div_ceil(2) as f64;
                match column {
                    0 => 1.0,
                    _ if column.div_ceil(2) > used => 0.0,
                    _ if column % 2 == 1 => angle.sin(),
                    _ => angle.cos(),
                }
            })
        })
        .collect();
    let mut equations = NormalEquations::<REGRESSORS>::new();
    for (at, &value) in values.iter().enumerate() {
        equations.add(&rows[(from + at) % season], value);
    }
    let coefficients = equations.solve(0.0);
    rows.iter().map(|row| row.iter().zip(coefficients).map(|(value, coefficient)| value * coefficient).sum()).collect()
}

impl PointModel for Arima {
    fn name(&self) -> &'static str {
        "ARIMA"
    }

    fn kind(&self) -> Kind {
        Kind::Learned
    }

    fn predict(&self, _series: &Series, t: usize, ahead: usize) -> f64 {
        let (of_values, of_surprises) = &self.ahead[ahead.min(self.ahead.len()) - 1];
        let lagged = |values: &[f64], lag: usize| values[t.saturating_sub(lag)];
        let values = of_values.iter().enumerate().map(|(lag, weight)| weight * lagged(&self.adjusted, lag));
        let surprises = of_surprises.iter().enumerate().map(|(lag, weight)| weight * lagged(&self.surprises, lag));
        self.season[(t + ahead) % self.season.len()] + values.sum::<f64>() + surprises.sum::<f64>()
    }
}

#[cfg(test)]
mod tests;
