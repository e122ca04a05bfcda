//! The steps ahead, cut into blocks that share coefficients, weights and residuals.

/// Up to so many steps each is a block of its own.
const SINGLE_STEPS_MAX: usize = 12;

/// Beyond, each block is longer than all before it by this part: what holds 100 steps ahead holds 115 steps ahead.
const GROWTH: f64 = 1.5;

/// Blocks of steps ahead, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Blocks {
    /// The last step of each block, rising.
    last: Vec<usize>,
}

impl Blocks {
    /// For forecasts of up to `horizon` steps.
    pub(crate) fn new(horizon: usize) -> Self {
        let mut last = Vec::new();
        let mut end = 0;
        while end < horizon {
            end = if horizon <= SINGLE_STEPS_MAX { end + 1 } else { (end as f64 * GROWTH).ceil().max(3.0) as usize };
            last.push(end.min(horizon));
        }
        Self { last }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.last.len()
    }

    /// The block of a step ahead (from 1); the last one beyond the horizon.
    pub(crate) fn of(&self, ahead: usize) -> usize {
        self.last.partition_point(|&last| last < ahead).min(self.last.len().saturating_sub(1))
    }

    /// The last step of the last block.
    pub(crate) fn farthest(&self) -> usize {
        self.last.last().copied().unwrap_or(0)
    }

    /// First and last step of a block.
    pub(crate) fn steps(&self, block: usize) -> (usize, usize) {
        (block.checked_sub(1).map_or(1, |before| self.last[before] + 1), self.last[block])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_lies_in_the_block_that_says_so() {
        for horizon in [1, 2, 12, 13, 24, 288, 8640] {
            let blocks = Blocks::new(horizon);
            for ahead in 1..=horizon {
                let (first, last) = blocks.steps(blocks.of(ahead));
                assert!(first <= ahead && ahead <= last, "{ahead} of {horizon}");
            }
            assert!(blocks.len() <= 22, "{horizon} makes {}", blocks.len());
        }
    }
}
