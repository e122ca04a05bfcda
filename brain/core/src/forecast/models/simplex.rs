//! Minimisation without derivatives (Nelder and Mead, 1965), for a handful of parameters.

/// Corners whose costs differ by less than this part are at the minimum.
const TOLERANCE: f64 = 1e-6;

/// From `start`, with a first simplex of edges `size`, at most `steps` steps towards a minimum of `cost` (NaN counts as
/// infinite). Returns the best point seen.
pub(crate) fn minimise<const N: usize>(
    start: [f64; N],
    size: [f64; N],
    steps: usize,
    cost: impl Fn([f64; N]) -> f64,
) -> [f64; N] {
    let cost = |at: [f64; N]| {
        let cost = cost(at);
        (if cost.is_nan() { f64::INFINITY } else { cost }, at)
    };
    let mut corners: Vec<(f64, [f64; N])> = vec![cost(start)];
    corners.extend((0..N).map(|axis| {
        let mut corner = start;
        corner[axis] += size[axis];
        cost(corner)
    }));
    for _ in 0..steps {
        corners.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (worst, best) = (corners[N], corners[0]);
        if worst.0 - best.0 <= TOLERANCE * best.0.abs() {
            break;
        }
        let centre: [f64; N] =
            std::array::from_fn(|axis| corners[..N].iter().map(|corner| corner.1[axis]).sum::<f64>() / N as f64);
        let towards =
            |factor: f64| cost(std::array::from_fn(|axis| centre[axis] + factor * (worst.1[axis] - centre[axis])));
        let reflected = towards(-1.0);
        if reflected.0 < best.0 {
            let expanded = towards(-2.0);
            corners[N] = if expanded.0 < reflected.0 { expanded } else { reflected };
        } else if reflected.0 < corners[N - 1].0 {
            corners[N] = reflected;
        } else {
            let contracted = towards(if reflected.0 < worst.0 { -0.5 } else { 0.5 });
            if contracted.0 < worst.0.min(reflected.0) {
                corners[N] = contracted;
            } else {
                for corner in &mut corners[1..] {
                    *corner = cost(std::array::from_fn(|axis| 0.5 * (corner.1[axis] + best.1[axis])));
                }
            }
        }
    }
    corners.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(start, |best| best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curved_valley_is_followed_to_its_end() {
        // Rosenbrock's function.
        let [x, y] = minimise([-1.2, 1.0], [0.5, 0.5], 120, |[x, y]| (1.0 - x).powi(2) + 100.0 * (y - x * x).powi(2));
        assert!((x - 1.0).abs() < 1e-3 && (y - 1.0).abs() < 1e-3, "{x}, {y}");
    }

    #[test]
    fn where_there_is_no_cost_nothing_is_found_but_the_start() {
        assert_eq!(minimise([0.3], [0.3], 30, |_| f64::NAN), [0.3]);
    }
}
