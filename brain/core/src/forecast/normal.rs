//! Penalised normal equations of a linear least-squares fit, gathered row by row and solved by Cholesky's factorisation.

/// Sums of products over rows of `N` columns, the first of which is the intercept's 1, with their targets.
#[derive(Clone, Debug)]
pub(crate) struct NormalEquations<const N: usize> {
    /// The lower triangle of the Gram matrix.
    gram: [[f64; N]; N],
    moment: [f64; N],
    rows: f64,
}

impl<const N: usize> NormalEquations<N> {
    /// Without any row.
    pub(crate) fn new() -> Self {
        Self { gram: [[0.0; N]; N], moment: [0.0; N], rows: 0.0 }
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, row: &[f64; N], target: f64) {
        for (i, (sums, moment)) in self.gram.iter_mut().zip(&mut self.moment).enumerate() {
            let factor = row[i];
            *moment += factor * target;
            for (sum, value) in sums[..=i].iter_mut().zip(row) {
                *sum += factor * value;
            }
        }
        self.rows += 1.0;
    }

    /// Adds all rows of another.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (sums, others) in self.gram.iter_mut().zip(&other.gram) {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        self.moment.iter_mut().zip(&other.moment).for_each(|(sum, other)| *sum += other);
        self.rows += other.rows;
    }

    /// The ridge solution; `penalty` is relative to each column's variance, and the intercept (column 0) goes free. All zeros
    /// where there is nothing to learn from.
    pub(crate) fn solve(&self, penalty: f64) -> [f64; N] {
        let mut lower = self.gram;
        for (i, sums) in lower.iter_mut().enumerate().skip(1) {
            let mean = sums[0] / self.rows;
            let variance = (sums[i] / self.rows - mean * mean).max(0.0);
            // The second part keeps a column that never moved from making the matrix singular.
            sums[i] += self.rows * (penalty * variance + 1e-9);
        }
        if self.rows > 0.0 && factor(&mut lower).is_some() { substitute(&lower, self.moment) } else { [0.0; N] }
    }
}

/// Cholesky's factorisation in place, of the lower triangle; `None` where the matrix is not positive definite.
fn factor<const N: usize>(lower: &mut [[f64; N]; N]) -> Option<()> {
    for i in 0..N {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
            let rest = lower[i][j] - sum;
            lower[i][j] = if i == j { Some(rest.sqrt()).filter(|root| *root > 0.0)? } else { rest / lower[j][j] };
        }
    }
    Some(())
}

/// Solves `L Lᵀ x = b`.
fn substitute<const N: usize>(lower: &[[f64; N]; N], mut x: [f64; N]) -> [f64; N] {
    for i in 0..N {
        let sum: f64 = (0..i).map(|k| lower[i][k] * x[k]).sum();
        x[i] = (x[i] - sum) / lower[i][i];
    }
    for i in (0..N).rev() {
        let sum: f64 = (i + 1..N).map(|k| lower[k][i] * x[k]).sum();
        x[i] = (x[i] - sum) / lower[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_noise_or_penalty_the_coefficients_are_found() {
        let mut equations = NormalEquations::<3>::new();
        for step in 0..50 {
            let (a, b) = (f64::from(step % 7), f64::from(step % 11));
            equations.add(&[1.0, a, b], 4.0 - 2.0 * a + 0.5 * b);
        }
        for (found, true_one) in equations.solve(0.0).into_iter().zip([4.0, -2.0, 0.5]) {
            assert!((found - true_one).abs() < 1e-6, "{found} for {true_one}");
        }
    }

    #[test]
    fn a_column_that_never_moved_gets_no_say() {
        let mut equations = NormalEquations::<3>::new();
        (0..50).for_each(|step| equations.add(&[1.0, 0.0, f64::from(step)], f64::from(step)));
        let [_, still, moving] = equations.solve(0.01);
        assert_eq!(still, 0.0);
        assert!((moving - 1.0).abs() < 0.02);
        assert_eq!(NormalEquations::<3>::new().solve(0.01), [0.0; 3]);
    }
}
