//! The archive: what a VM used, KPI by KPI, at three resolutions, for up to 400 days.
//!
//! Each measurement goes into three rings ([`Tier`]: 10 s for 6 h, 5 min for 5 weeks, 1 h for 400 days), as a mean and a maximum. A step
//! that was measured for less than half of its time is a gap, never zero. Values are sixteen-bit logarithmic codes
//! ([`RELATIVE_ERROR_MAX`]); the newest block of each ring is open, older ones are sealed by a numeric codec (pco).
//!
//! It does no I/O. [`Archive::changes`] hands out blocks to persist and keys to forget; [`Archive::restore`] takes blocks back, after a
//! restart or to look at what was sent away. An archive knows no VM: its owner keys it, and its blocks, by the VM's UUID, so it follows
//! that wherever it runs.
//!
//! Bounds: [`KPI_BYTES_MAX`] for each KPI with all of its blocks in memory, the oldest blocks giving way; with CPU alone in memory the
//! other seven keep their open blocks, about 3 KiB each.

mod block;
mod code;
mod kpi;
mod read;
mod ring;
#[cfg(test)]
mod tests;

use std::time::Duration;

use gnomon_common::time::Timestamp;

pub use block::{BLOCK_VERSION, BlockError, BlockKey, SealedBlock};
pub(crate) use code::Code;
pub use code::{ESTIMATE_ERROR_MAX, RELATIVE_ERROR_MAX, SMALLEST_EXACT};
pub use kpi::{Kpi, Tier};
pub use read::{ReadError, Step, Steps};
use ring::Ring;

/// So many measurements in a row that are behind, but in order among themselves, mean that the host's clock was set back; fewer mean that
/// reports came out of order.
const CLOCK_STEP_MEASUREMENTS: u32 = 5;

/// Sealed blocks of one KPI in memory: an eighth of 512 KiB less the open blocks and the map. What no codec can compress (noise of all
/// sixteen bits) would take more: its oldest blocks are forgotten.
const SEALED_BYTES_MAX: usize = 54 * 1024;

/// Bound of what one KPI takes in memory: an eighth of 512 KiB.
pub const KPI_BYTES_MAX: usize = 64 * 1024;

/// One measurement: a window of a host's report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measurement {
    /// When it began.
    pub start: Timestamp,
    /// How long it is.
    pub length: Duration,
    /// Share of it that was measured, 0..=1.
    pub covered: f64,
    /// Mean, in the KPI's unit.
    pub mean: f64,
    /// Largest sample.
    pub max: f64,
}

impl Measurement {
    fn span_ms(&self) -> (u64, u64) {
        (self.start.unix_ms(), (self.start + self.length).unix_ms())
    }

    /// What can be made of it: shares within their range, values finite and not negative. `None` when it says nothing.
    fn checked(self) -> Option<Self> {
        let known = self.mean.is_finite() && self.covered > 0.0 && !self.length.is_zero();
        let end_ms = self.start.unix_ms().checked_add(u64::try_from(self.length.as_millis()).ok()?)?;
        // Room for the end of the step that it ends in.
        (known && end_ms <= u64::MAX / 2).then(|| {
            let mean = self.mean.max(0.0);
            let max = if self.max.is_finite() { self.max.max(mean) } else { mean };
            Self { covered: self.covered.min(1.0), mean, max, ..self }
        })
    }
}

/// What became of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It continued the series.
    InOrder,
    /// The host's clock was set back: steps from there on were forgotten, and it starts anew.
    ClockSetBack,
    /// It was left out: what it covers is known already, or too long ago.
    Behind,
    /// It filled a part of a gap.
    Filled,
    /// It was left out: it measured nothing.
    Nothing,
}

/// Something for the owner's store to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Keep this block, in place of one of the same key.
    Persist(SealedBlock),
    /// Drop this block: too old, or of a time that the clock was set back from.
    Forget(BlockKey),
}

/// Where a KPI's sealed blocks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// In memory and in the store.
    Memory,
    /// In the store alone, once they are persisted and cannot be filled any more.
    Store,
}

/// One KPI.
#[derive(Clone, Debug)]
struct Series {
    rings: [Ring; 3],
    residence: Residence,
    end: Option<Timestamp>,
    behind_in_a_row: u32,
    behind_start: Timestamp,
}

impl Series {
    fn new(kpi: Kpi, residence: Residence) -> Self {
        Self {
            rings: Tier::ALL.map(|tier| Ring::new(kpi, tier)),
            residence,
            end: None,
            behind_in_a_row: 0,
            behind_start: Timestamp::default(),
        }
    }

    fn add(&mut self, measurement: &Measurement) -> Accepted {
        let mut accepted = Accepted::InOrder;
        if self.is_behind(measurement) {
            let in_order = self.behind_in_a_row == 0 || measurement.start >= self.behind_start;
            self.behind_in_a_row = if in_order { self.behind_in_a_row + 1 } else { 1 };
            self.behind_start = measurement.start;
            if self.behind_in_a_row < CLOCK_STEP_MEASUREMENTS {
                return Accepted::Behind;
            }
            self.rings.iter_mut().for_each(|ring| ring.forget_from(measurement.start.unix_ms()));
            accepted = Accepted::ClockSetBack;
        }
        self.behind_in_a_row = 0;
        self.rings.iter_mut().for_each(|ring| ring.add(measurement));
        self.end = Some(measurement.start + measurement.length);
        self.bound();
        accepted
    }

    fn fill(&mut self, measurement: &Measurement) -> Accepted {
        if !self.is_behind(measurement) {
            return self.add(measurement);
        }
        let filled = self.rings.iter_mut().fold(false, |filled, ring| ring.fill(measurement) | filled);
        if filled { Accepted::Filled } else { Accepted::Behind }
    }

    /// Starting up to half a window early is the jitter of a sampling loop, not disorder.
    fn is_behind(&self, measurement: &Measurement) -> bool {
        self.end.is_some_and(|end| measurement.start + measurement.length / 2 < end)
    }

    /// Lets the oldest blocks of the largest ring go while all together are too large.
    fn bound(&mut self) {
        while self.rings.iter().map(Ring::sealed_bytes).sum::<usize>() > SEALED_BYTES_MAX {
            let largest = self.rings.iter_mut().max_by_key(|ring| ring.sealed_bytes());
            if !largest.is_some_and(Ring::forget_oldest) {
                break;
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.rings.iter().map(Ring::memory_bytes).sum::<usize>()
    }
}

/// The history of one VM.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    /// By the KPI's number; empty for what was never measured.
    series: [Option<Box<Series>>; Kpi::ALL.len()],
}

impl Archive {
    /// Adds what was just measured. O(1) amortised.
    pub fn add(&mut self, kpi: Kpi, measurement: &Measurement) -> Accepted {
        measurement.checked().map_or(Accepted::Nothing, |measurement| self.series_mut(kpi).add(&measurement))
    }

    /// Adds what a host measured before the newest that it sent: the backlog of an outage. It fills gaps, a step that is known is never
    /// touched again. O(1) amortised as long as measurements come in their order.
    pub fn fill(&mut self, kpi: Kpi, measurement: &Measurement) -> Accepted {
        measurement.checked().map_or(Accepted::Nothing, |measurement| self.series_mut(kpi).fill(&measurement))
    }

    /// Says where a KPI's sealed blocks are to be. CPU's are in memory, the others' in the store, unless told.
    pub fn set_residence(&mut self, kpi: Kpi, residence: Residence) {
        self.series_mut(kpi).residence = residence;
    }

    /// What is to be persisted or forgotten since the last time. Open blocks are among it, so that a restart loses no more than what was
    /// measured since; ask as often as that may cost.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for series in self.series.iter_mut().flatten() {
            let away = series.residence == Residence::Store;
            series.rings.iter_mut().for_each(|ring| ring.changes(away, &mut changes));
        }
        changes
    }

    /// Blocks that are in the store alone and that [`Archive::read`] would need for this span at this resolution. Restore them first, and
    /// [`Archive::release`] them after.
    pub fn away(&self, kpi: Kpi, from: Timestamp, to: Timestamp, resolution: Duration) -> Vec<BlockKey> {
        let (Some(series), Ok(tier)) = (&self.series[kpi as usize], read::tier_of(resolution)) else {
            return Vec::new();
        };
        let ring = &series.rings[tier as usize];
        ring.away(from.unix_ms() / tier.step_ms(), to.unix_ms().div_ceil(tier.step_ms())).collect()
    }

    /// Takes a block back, after a restart or because it is to be read. In any order; a restart begins with an archive that has measured
    /// nothing.
    ///
    /// # Errors
    /// Blocks that were damaged, that another version wrote, or whose time was measured anew are refused. Nothing is changed then.
    pub fn restore(&mut self, block: SealedBlock) -> Result<(), BlockError> {
        let (kpi, tier) = (block.key.kpi, block.key.tier);
        let mut restored = self.series[kpi as usize].take().unwrap_or_else(|| Box::new(Self::empty(kpi)));
        let outcome = restored.rings[tier as usize].restore(block);
        if outcome.is_ok() {
            let ends = restored
                .rings
                .iter()
                .filter_map(Ring::span)
                .zip(Tier::ALL)
                .map(|((_, next), tier)| next * tier.step_ms());
            restored.end = restored.end.max(ends.max().map(Timestamp::from_unix_ms));
            restored.bound();
        }
        self.series[kpi as usize] = Some(restored);
        outcome
    }

    /// Sends away again what was restored to be read.
    pub fn release(&mut self, kpi: Kpi) {
        if let Some(series) = self.series[kpi as usize].as_mut().filter(|series| series.residence == Residence::Store) {
            series.rings.iter_mut().for_each(Ring::send_away);
        }
    }

    /// The steps from `from` to before `to`, gaps among them, at a multiple of 10 s, from the coarsest tier that divides it.
    ///
    /// The span is cut to what is kept; steps that lie in blocks which were sent away are gaps.
    ///
    /// # Errors
    /// A resolution that is no multiple of 10 s.
    pub fn read(&self, kpi: Kpi, from: Timestamp, to: Timestamp, resolution: Duration) -> Result<Steps, ReadError> {
        let tier = read::tier_of(resolution)?;
        let ring = self.series[kpi as usize].as_ref().map(|series| &series.rings[tier as usize]);
        Ok(read::read(ring, tier, from, to, resolution))
    }

    /// Indices, counted from the epoch, of the oldest step that is kept and of the one that is still open; `None` before the first
    /// measurement.
    pub fn span(&self, kpi: Kpi, tier: Tier) -> Option<(u64, u64)> {
        self.series[kpi as usize].as_ref()?.rings[tier as usize].span()
    }

    /// Index of the oldest step that was measured, to a block; `None` before the first measurement.
    pub fn measured_since(&self, kpi: Kpi, tier: Tier) -> Option<u64> {
        self.series[kpi as usize].as_ref()?.rings[tier as usize].measured_since()
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.series.iter().flatten().map(|series| series.memory_bytes()).sum::<usize>()
    }

    fn series_mut(&mut self, kpi: Kpi) -> &mut Series {
        self.series[kpi as usize].get_or_insert_with(|| Box::new(Self::empty(kpi)))
    }

    fn empty(kpi: Kpi) -> Series {
        let residence = if kpi.is_resident() { Residence::Memory } else { Residence::Store };
        Series::new(kpi, residence)
    }
}
