//! Combination by recent loss: exponentiated negative loss relative to the best (the weights of Vovk's aggregating algorithm, with
//! losses normalised so that they do not depend on the unit).

/// Weights, summing to 1, for members of these mean losses (not negative). Without any finite loss, all weigh the same.
/// `sharpness` says how fast weight falls with loss: at 11, a member 10 % worse than the best weighs a third of it.
pub(crate) fn weights(losses: &[f64], sharpness: f64) -> Vec<f64> {
    let best = losses.iter().copied().filter(|loss| loss.is_finite()).fold(f64::INFINITY, f64::min);
    let raw: Vec<f64> = losses
        .iter()
        .map(|&loss| {
            if !best.is_finite() || loss == best {
                1.0
            } else if loss.is_finite() && best > 0.0 {
                (-sharpness * (loss / best - 1.0)).exp()
            } else {
                0.0
            }
        })
        .collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|weight| weight / sum).collect()
}

/// Pinball loss of saying `quantile` for level `level` when `value` came (Koenker and Bassett, 1978).
pub(crate) fn pinball(level: f64, value: f64, quantile: f64) -> f64 {
    let miss = value - quantile;
    (level * miss).max((level - 1.0) * miss)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_faultless_member_takes_all() {
        assert_eq!(weights(&[0.5, 0.0, 0.1], 11.0), [0.0, 1.0, 0.0]);
    }

    proptest! {
        #[test]
        fn weights_are_a_distribution_that_falls_with_loss(losses in prop::collection::vec(0.0..1e9_f64, 1..8)) {
            let weights = weights(&losses, 11.0);
            prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (a, b) in losses.iter().zip(&weights) {
                for (c, d) in losses.iter().zip(&weights) {
                    prop_assert!(a > c || b >= d);
                }
            }
        }
    }
}
