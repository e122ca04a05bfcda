//! Slow leaks: whether means of blocks keep rising (Mann, "Nonparametric tests against trend", Econometrica 1945; Kendall's tau).

use std::cmp::Ordering;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Range;

/// Values of a block.
const BLOCK_VALUES: u16 = 36;

/// Blocks looked at: four days of 5 min values, so that a day's rise alone is not taken for a leak.
const BLOCKS: usize = 32;

/// Blocks at the start of the window that tell what was expected: a day of 5 min values.
const FIRST_BLOCKS: usize = 8;

/// Tau of a rise that could still be something else: a level shift in mid-window gives 0.52 by itself, noise and cycles add to it.
const TAU_USUAL: f64 = 0.9;

/// A rise that went on over the whole window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rise {
    /// How far it is beyond [`TAU_USUAL`], up to 1 for means that rise without exception; 0 when it is not.
    pub(super) score: f64,
    /// Start of the window, in Unix seconds.
    pub(super) since_s: i64,
    /// The range of the first day's means.
    pub(super) expected: Range,
    /// The last mean.
    pub(super) observed: f64,
}

/// Follows the means of blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Trend {
    since_s: i64,
    sum: f64,
    values: u16,
    means: VecDeque<(i64, f64)>,
}

impl Trend {
    /// Takes a value in; at the end of a block that fills the window, how the means rose.
    pub(super) fn add(&mut self, at_s: i64, value: f64) -> Option<Rise> {
        if self.values == 0 {
            self.since_s = at_s;
        }
        self.sum += value / f64::from(BLOCK_VALUES);
        self.values += 1;
        if self.values < BLOCK_VALUES {
            return None;
        }
        if self.means.len() == BLOCKS {
            self.means.pop_front();
        }
        let observed = self.sum;
        self.means.push_back((self.since_s, observed));
        self.sum = 0.0;
        self.values = 0;
        if self.means.len() < BLOCKS {
            return None;
        }
        let (since_s, first) = self.means[0];
        let mut expected = Range { low: first, high: first };
        for &(_, mean) in self.means.iter().take(FIRST_BLOCKS) {
            expected = Range { low: expected.low.min(mean), high: expected.high.max(mean) };
        }
        let score = ((self.tau() - TAU_USUAL) / (1.0 - TAU_USUAL)).max(0.0);
        Some(Rise { score, since_s, expected, observed })
    }

    /// Kendall's tau of the means against time: 1 when each is above all before it.
    fn tau(&self) -> f64 {
        let (mut concordant, mut pairs) = (0.0, 0.0);
        for (place, (_, later)) in self.means.iter().enumerate() {
            for (_, earlier) in self.means.iter().take(place) {
                pairs += 1.0;
                concordant += match later.total_cmp(earlier) {
                    Ordering::Greater => 1.0,
                    Ordering::Equal => 0.0,
                    Ordering::Less => -1.0,
                };
            }
        }
        concordant / pairs
    }
}
