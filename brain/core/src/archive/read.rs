//! Reading steps at the resolution that a forecast wants.

use std::time::Duration;

use gnomon_common::time::Timestamp;

use super::kpi::Tier;
use super::ring::Ring;

/// A step counts as measured when at least this share of the finer steps in it was.
const MEASURED_SHARE_MIN: f64 = 0.5;

/// Why nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No tier divides it.
    #[error("{resolution:?} is no multiple of 10 s: ask for one that is")]
    Resolution {
        /// What was asked for.
        resolution: Duration,
    },
}

/// A measured step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Mean, in the KPI's unit.
    pub mean: f64,
    /// Largest sample.
    pub max: f64,
}

/// Steps in order of time, without holes: what is not known is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// When the first begins: a multiple of the resolution since the epoch.
    pub start: Timestamp,
    /// Length of each.
    pub resolution: Duration,
    /// The steps.
    pub steps: Vec<Option<Step>>,
}

/// The coarsest tier whose steps divide a resolution.
pub(super) fn tier_of(resolution: Duration) -> Result<Tier, ReadError> {
    let divides = |tier: &Tier| {
        let step = tier.step().as_nanos();
        !resolution.is_zero() && resolution.as_nanos().is_multiple_of(step)
    };
    Tier::ALL.into_iter().rev().find(divides).ok_or(ReadError::Resolution { resolution })
}

/// Reads closed steps of a tier, several into one where the resolution is a multiple of the tier's.
pub(super) fn read(ring: Option<&Ring>, tier: Tier, from: Timestamp, to: Timestamp, resolution: Duration) -> Steps {
    let resolution_ms = u64::try_from(resolution.as_millis()).unwrap_or(u64::MAX);
    let fine = resolution_ms / tier.step_ms();
    let span = ring.and_then(Ring::span).map_or((0, 0), |(first, next)| (first / fine, next / fine));
    let first = (from.unix_ms() / resolution_ms).max(span.0);
    let end = to.unix_ms().div_ceil(resolution_ms).min(span.1);
    let start = Timestamp::from_unix_ms(first.saturating_mul(resolution_ms));
    let mut sums = vec![(0u64, 0.0, 0.0f64); usize::try_from(end.saturating_sub(first)).unwrap_or(0)];
    if let Some(ring) = ring.filter(|_| !sums.is_empty()) {
        ring.measured(first * fine, end * fine, |index, pair| {
            if let (Some(mean), Some(max)) = (pair.mean.value(), pair.max.value()) {
                let sum = &mut sums[(index / fine - first) as usize];
                *sum = (sum.0 + 1, sum.1 + mean, sum.2.max(max));
            }
        });
    }
    let step = |(count, sum, max): (u64, f64, f64)| {
        (count > 0 && count as f64 >= MEASURED_SHARE_MIN * fine as f64).then(|| Step { mean: sum / count as f64, max })
    };
    Steps { start, resolution, steps: sums.into_iter().map(step).collect() }
}
