//! A change of scale under which bursts no longer drown the rest.

/// How values are seen by a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Transform {
    /// As they are.
    Identity,
    /// The inverse hyperbolic sine about a centre (Johnson, 1949): linear within a spread of it, logarithmic beyond.
    Asinh {
        /// Where it is linear.
        centre: f64,
        /// How far.
        spread: f64,
    },
}

/// Beyond this many logarithmic units nothing is told apart; it keeps `sinh` finite.
const ASINH_MAX: f64 = 30.0;

impl Transform {
    /// An inverse hyperbolic sine about the median of the values; the spread is their mean absolute deviation from it.
    pub(crate) fn asinh(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let centre = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let mut deviations: Vec<f64> = values.iter().map(|value| (value - centre).abs()).collect();
        let mean = deviations.iter().sum::<f64>() / deviations.len().max(1) as f64;
        deviations.sort_unstable_by(f64::total_cmp);
        let median = deviations.get(deviations.len() / 2).copied().unwrap_or(0.0);
        // A series that mostly stands still has no median deviation.
        let spread = median.max(mean / 10.0);
        if spread > 0.0 { Self::Asinh { centre, spread: spread.max(SPREAD_MIN) } } else { Self::Identity }
    }

    /// To the model's scale.
    pub(crate) fn forward(self, value: f64) -> f64 {
        match self {
            Self::Identity => value,
            Self::Asinh { centre, spread } => asinh((value - centre) / spread),
        }
    }

    /// Back to the series' scale.
    pub(crate) fn backward(self, value: f64) -> f64 {
        match self {
            Self::Identity => value,
            Self::Asinh { centre, spread } => centre + spread * value.clamp(-ASINH_MAX, ASINH_MAX).sinh(),
        }
    }
}

/// The inverse hyperbolic sine by its definition: several times faster than the standard library's, which guards digits of tiny
/// arguments that do not matter here.
pub(crate) fn asinh(value: f64) -> f64 {
    let size = value.abs();
    (size + (size * size + 1.0).sqrt()).ln().copysign(value)
}

/// The spread is at least this: squares of what is divided by it stay finite.
const SPREAD_MIN: f64 = 1e-12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backward_undoes_forward() {
        let transform = Transform::asinh(&[0.0, 0.1, 0.2, 0.1, 0.9]);
        for value in [-1.0, 0.0, 0.1, 0.5, 1.0] {
            assert!((transform.backward(transform.forward(value)) - value).abs() < 1e-9);
        }
    }

    #[test]
    fn a_constant_is_left_as_it_is() {
        assert_eq!(Transform::asinh(&[0.3; 5]), Transform::Identity);
    }
}
