//! Several measurements of one quantity.

/// The one in the middle.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// The one below which lies this share of them.
pub(crate) fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    // Of an even number the upper one of both in the middle.
    sorted.get((last as f64 * share).round() as usize).copied()
}
