//! A set of block numbers that mostly follow each other: a few words where a set of each number would take more than the blocks' own keys.

use std::collections::BTreeMap;
use std::ops::Range;

/// Numbers, as runs without a gap.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    /// From a run's first number to one past its last. No two runs touch.
    ends: BTreeMap<u64, u64>,
}

impl Runs {
    pub(super) fn insert(&mut self, number: u64) {
        if self.contains(number) {
            return;
        }
        let before = self.ends.range(..number).next_back().filter(|&(_, &end)| end == number);
        let start = before.map_or(number, |(&start, _)| start);
        let end = self.ends.remove(&(number + 1)).unwrap_or(number + 1);
        self.ends.insert(start, end);
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some((&start, &end)) = self.ends.range(..=number).next_back().filter(|&(_, &end)| number < end) else {
            return;
        };
        self.ends.remove(&start);
        for (start, end) in [(start, number), (number + 1, end)] {
            if start < end {
                self.ends.insert(start, end);
            }
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.ends.range(..=number).next_back().is_some_and(|(_, &end)| number < end)
    }

    /// The lowest number.
    pub(super) fn first(&self) -> Option<u64> {
        self.ends.first_key_value().map(|(&start, _)| start)
    }

    /// The numbers within a range, rising.
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let overlapping = self.ends.range(..range.end).rev().take_while(move |&(_, &end)| end > range.start);
        let mut runs: Vec<Range<u64>> =
            overlapping.map(|(&start, &end)| start.max(range.start)..end.min(range.end)).collect();
        runs.reverse();
        runs.into_iter().flatten()
    }

    /// Bytes in memory beside itself, by estimate: a map's nodes are two thirds full.
    pub(super) fn memory_bytes(&self) -> usize {
        self.ends.len() * size_of::<[u64; 2]>() * 3 / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_set_holds(
            steps in proptest::collection::vec((0u64..40, any::<bool>()), 0..200), from in 0u64..40, length in 0u64..40,
        ) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (number, is_there) in steps {
                if is_there {
                    runs.insert(number);
                    set.insert(number);
                } else {
                    runs.remove(number);
                    set.remove(&number);
                }
            }
            let within = |range: Range<u64>| (runs.within(range.clone()).collect::<Vec<_>>(), set.range(range).copied().collect::<Vec<_>>());
            for range in [0..50, from..from + length] {
                let (runs, set) = within(range);
                prop_assert_eq!(runs, set);
            }
            prop_assert_eq!(runs.first(), set.first().copied());
            prop_assert!((0..50).all(|number| runs.contains(number) == set.contains(&number)));
            let gaps = set.iter().filter(|&&number| !set.contains(&(number + 1))).count();
            prop_assert_eq!(runs.ends.len(), gaps, "as few runs as can be");
        }
    }
}
