//! The range a statistic has kept to: the extremes of blocks of values, in constant memory.

use serde::{Deserialize, Serialize};

/// Values of a block; each block gives one maximum and one minimum. Neighbouring values depend on each other: without blocks, one
/// excursion would count as several extremes.
const BLOCK_VALUES: u16 = 48;

/// Blocks of an epoch. The last whole epoch and the running one are remembered: two to four weeks of 5 min values, so that
/// what was normal long ago, or one disaster, does not set the range for ever.
const EPOCH_BLOCKS: u16 = 84;

/// Extremes kept of each epoch and side.
const KEPT: usize = 3;

/// The narrowest a range counts for, as a share of its larger end: a change that small is no news even to a constant series.
const RANGE_MIN_RELATIVE: f64 = 1e-3;

/// The narrowest a range around zero counts for.
const RANGE_MIN: f64 = 1e-9;

/// The largest numbers of those added, descending.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Largest(Vec<f64>);

impl Largest {
    fn add(&mut self, value: f64) {
        let place = self.0.partition_point(|&kept| kept >= value);
        if place < KEPT {
            self.0.truncate(KEPT - 1);
            self.0.insert(place, value);
        }
    }

    /// The number of that rank among both; the last there is, if they are fewer.
    fn ranked(&self, other: &Self, rank: usize) -> Option<f64> {
        let mut both: Vec<f64> = self.0.iter().chain(&other.0).copied().collect();
        both.sort_by(|one, other| other.total_cmp(one));
        both.get(rank).or(both.last()).copied()
    }
}

/// The extremes of one epoch; lows are negated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Epoch {
    highs: Largest,
    lows: Largest,
    blocks: u16,
}

/// From where to where something ranges.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Lower end, in the values' unit.
    pub low: f64,
    /// Upper end, in the values' unit.
    pub high: f64,
}

impl Range {
    /// How far outside a value is, in widths of the range; 0 inside.
    pub(super) fn excess(&self, value: f64, sides: Sides) -> f64 {
        let width = (self.high - self.low).max(RANGE_MIN_RELATIVE * self.high.abs().max(self.low.abs())).max(RANGE_MIN);
        let outside = match sides {
            Sides::Both => (value - self.high).max(self.low - value),
            Sides::Below => self.low - value,
        };
        (outside / width).max(0.0)
    }
}

/// Which sides of a range are out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Sides {
    /// Too high and too low.
    Both,
    /// Too low alone.
    Below,
}

/// Follows the range of a statistic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Extremes {
    /// Blocks still to come before there is a range.
    learning_blocks: u16,
    /// Extreme blocks left out at each end: with 2, an excursion seen in one or two blocks has not yet become normal.
    rank: usize,
    open: Option<Range>,
    open_values: u16,
    current: Epoch,
    previous: Epoch,
    closed: Option<Range>,
}

impl Extremes {
    /// Nothing seen yet. There is no range before `learning_blocks` blocks; `rank` extreme blocks at each end are left out of it.
    pub(super) fn new(learning_blocks: u16, rank: usize) -> Self {
        debug_assert!(rank < KEPT, "of each epoch only {KEPT} extremes are kept");
        Self {
            learning_blocks,
            rank,
            open: None,
            open_values: 0,
            current: Epoch::default(),
            previous: Epoch::default(),
            closed: None,
        }
    }

    /// The range so far; `None` while it is learnt.
    ///
    /// The open block is no part of it: a statistic that leaves its range step by step would otherwise take the range along.
    pub(super) fn range(&self) -> Option<Range> {
        self.closed
    }

    /// Takes a finite value in.
    pub(super) fn add(&mut self, value: f64) {
        let open = self.open.get_or_insert(Range { low: value, high: value });
        open.low = open.low.min(value);
        open.high = open.high.max(value);
        self.open_values += 1;
        if self.open_values == BLOCK_VALUES {
            self.current.highs.add(open.high);
            self.current.lows.add(-open.low);
            self.current.blocks += 1;
            self.open = None;
            self.open_values = 0;
            if self.current.blocks == EPOCH_BLOCKS {
                self.previous = std::mem::take(&mut self.current);
            }
            self.learning_blocks = self.learning_blocks.saturating_sub(1);
            if self.learning_blocks == 0 {
                let high = self.current.highs.ranked(&self.previous.highs, self.rank);
                let low = self.current.lows.ranked(&self.previous.lows, self.rank);
                self.closed = high.zip(low).map(|(high, low)| Range { low: (-low).min(high), high });
            }
        }
    }
}
