//! Slow leaks: whether means of blocks keep rising (Mann, "Nonparametric tests against trend", Econometrica 1945; Kendall's tau).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Values of a block.
const BLOCK_VALUES: u16 = 36;

/// Blocks looked at: four days of 5 min values, so that a day's rise alone is not taken for a leak.
const BLOCKS: usize = 32;

/// Tau of a rise that could still be something else: a level shift in mid-window gives 0.52, a daily cycle less.
const TAU_USUAL: f64 = 0.75;

/// Follows the means of blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Trend {
    sum: f64,
    values: u16,
    means: VecDeque<f64>,
}

impl Trend {
    /// Takes a value in; at the end of a block, how far beyond [`TAU_USUAL`] the rise is, 0 to 1, and the mean it started from.
    pub(super) fn add(&mut self, value: f64) -> Option<(f64, f64)> {
        self.sum += value / f64::from(BLOCK_VALUES);
        self.values += 1;
        if self.values < BLOCK_VALUES {
            return None;
        }
        if self.means.len() == BLOCKS {
            self.means.pop_front();
        }
        self.means.push_back(self.sum);
        self.sum = 0.0;
        self.values = 0;
        if self.means.len() < BLOCKS {
            return None;
        }
        Some((((self.tau() - TAU_USUAL) / (1.0 - TAU_USUAL)).max(0.0), self.means[0]))
    }

    /// Kendall's tau of the means against time: 1 when each is above all before it.
    fn tau(&self) -> f64 {
        let mut concordant = 0.0;
        let mut pairs = 0.0;
        for (place, later) in self.means.iter().enumerate() {
            for earlier in self.means.iter().take(place) {
                pairs += 1.0;
                concordant += match later.total_cmp(earlier) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.0,
                    std::cmp::Ordering::Less => -1.0,
                };
            }
        }
        concordant / pairs
    }

    /// Values the window spans.
    pub(super) fn span_values() -> u32 {
        u32::from(BLOCK_VALUES) * 32
    }
}
