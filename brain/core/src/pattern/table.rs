//! A forecast as it is kept: quantiles for each step ahead, sixteen bits each.

use std::time::Duration;

use gnomon_common::time::Timestamp;

use crate::archive::Code;
use crate::forecast::engine::LEVELS;

/// Quantiles of the steps from `start` on.
#[derive(Clone, Debug)]
pub(super) struct Table {
    start: Timestamp,
    step: Duration,
    rows: Box<[[Code; LEVELS.len()]]>,
}

impl Table {
    /// `quantiles[i]` is about the step that begins at `start + i * step`.
    pub(super) fn new(start: Timestamp, step: Duration, quantiles: impl Iterator<Item = [f64; LEVELS.len()]>) -> Self {
        Self { start, step, rows: quantiles.map(|row| row.map(Code::of)).collect() }
    }

    /// When its first step begins.
    pub(super) fn start(&self) -> Timestamp {
        self.start
    }

    /// Length of a step.
    pub(super) fn step(&self) -> Duration {
        self.step
    }

    /// When its last step ends.
    pub(super) fn end(&self) -> Timestamp {
        self.start + self.step * u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// Which step a time falls into; `None` outside.
    pub(super) fn step_at(&self, at: Timestamp) -> Option<usize> {
        let since = at.unix_ms().checked_sub(self.start.unix_ms())?;
        usize::try_from(u128::from(since) / self.step.as_millis().max(1)).ok().filter(|&step| step < self.rows.len())
    }

    /// When a step begins.
    pub(super) fn starts(&self, step: usize) -> Timestamp {
        self.start + self.step * u32::try_from(step).unwrap_or(u32::MAX)
    }

    /// The quantiles of a step; `None` past the end.
    pub(super) fn quantiles(&self, step: usize) -> Option<[f64; LEVELS.len()]> {
        Some(self.rows.get(step)?.map(|code| code.value().unwrap_or(0.0)))
    }

    /// How many steps it has.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes in memory beside itself.
    #[cfg(test)]
    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.rows)
    }
}
