//! The rules that everyone sizes by.

/// How sizes come into force, in percent of a VM's capacity and in rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Rows before sizing begins.
    pub(super) warmup: usize,
    /// Rows from a decision until it is in force; 1 is the next row.
    pub(super) lag: usize,
    /// Rows in a day.
    pub(super) day: usize,
    /// Sizes are multiples of this, and at least this.
    pub(super) quantum: f64,
    /// The largest size.
    pub(super) size_max: f64,
    /// Shrinking saves at least this share…
    pub(super) saving_min: f64,
    /// …and comes so many rows after the last resize.
    pub(super) dwell: usize,
}

impl Rules {
    /// The smallest size that is enough.
    pub(super) fn round(&self, size: f64) -> f64 {
        ((size / self.quantum - 1e-9).ceil() * self.quantum).clamp(self.quantum, self.size_max)
    }
}
