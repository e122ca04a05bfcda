//! When shrinking is allowed: what was wanted during the dwell time, and how long ago the last shrink was.
//!
//! The same for every means that has a size: cores of a quota, bytes of a balloon.

use std::collections::VecDeque;
use std::time::Duration;

use gnomon_common::time::Timestamp;

use super::guard::Guard;

/// Windows remembered for the dwell time. More than a day's dwell of 10-second windows, and only falling maxima are kept.
const DWELL_WINDOWS_MAX: usize = 10_000;

/// Evidence counts as continuous while reports come at least every so many windows.
const GAP_WINDOWS_MAX: u32 = 3;

/// How slowly to shrink.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    /// The smaller size must have been enough for this long.
    pub(crate) dwell: Duration,
    /// Least time between two shrinks.
    pub(crate) interval: Duration,
}

impl Rhythm {
    pub(crate) fn of_ms(dwell_ms: u64, interval_ms: u64) -> Self {
        Self { dwell: Duration::from_millis(dwell_ms), interval: Duration::from_millis(interval_ms) }
    }

    /// As far as its guards are kept.
    pub(crate) fn kept_by(self, keeps: impl Fn(Guard) -> bool) -> Self {
        let kept = |guard, time| if keeps(guard) { time } else { Duration::ZERO };
        Self { dwell: kept(Guard::Dwell, self.dwell), interval: kept(Guard::Distance, self.interval) }
    }
}

/// What one window tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Evidence<T> {
    /// The size that would have been enough.
    pub(crate) enough: T,
    /// The demand behind it.
    pub(crate) demand: T,
}

/// The evidence of a dwell time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dwell<T> {
    /// Falling maxima, oldest first.
    maxima: VecDeque<(Timestamp, Evidence<T>)>,
    /// Since when evidence is continuous.
    since: Option<Timestamp>,
    latest: Option<Timestamp>,
    shrunk: Option<Timestamp>,
}

impl<T: Copy + PartialOrd> Dwell<T> {
    /// Takes the evidence of a window of this length that was reported now.
    pub(crate) fn witness(&mut self, now: Timestamp, window: Duration, evidence: Evidence<T>, rhythm: Rhythm) {
        let gap = window * GAP_WINDOWS_MAX;
        if self.latest.is_none_or(|latest| now < latest || now.since(latest) > gap) {
            self.maxima.clear();
            self.since = Some(now);
        }
        self.latest = Some(now);
        while self.maxima.back().is_some_and(|(_, earlier)| earlier.enough <= evidence.enough) {
            self.maxima.pop_back();
        }
        // At the bound the two latest are merged into the larger of them, which only makes shrinking more careful.
        if self.maxima.len() < DWELL_WINDOWS_MAX {
            self.maxima.push_back((now, evidence));
        } else if let Some(last) = self.maxima.back_mut() {
            last.0 = now;
        }
        while self.maxima.len() > 1 && self.maxima.front().is_some_and(|&(at, _)| now.since(at) > rhythm.dwell) {
            self.maxima.pop_front();
        }
    }

    /// The most that any window of a whole dwell time needed, if the last shrink is long enough ago.
    pub(crate) fn shrinkable(&self, now: Timestamp, rhythm: Rhythm) -> Option<Evidence<T>> {
        let dwelt = self.since.is_some_and(|since| now.since(since) >= rhythm.dwell);
        // `now < shrunk`: the clock was set back, and the interval cannot be told.
        let rested = self.shrunk.is_none_or(|shrunk| now < shrunk || now.since(shrunk) >= rhythm.interval);
        self.maxima.front().filter(|_| dwelt && rested).map(|&(_, evidence)| evidence)
    }

    /// From when on a whole dwell time will have needed no more than the evidence that comes with it, if demand stays as it is and that is not after
    /// `by`; never before `now`, nor before the interval is over.
    pub(crate) fn foreseen(&self, now: Timestamp, by: Timestamp, rhythm: Rhythm) -> Option<(Timestamp, Evidence<T>)> {
        let has_left = |at: Timestamp| by.since(at) > rhythm.dwell;
        let first =
            self.maxima.iter().take_while(|(at, _)| has_left(*at)).count().min(self.maxima.len().checked_sub(1)?);
        let larger = first.checked_sub(1).map(|index| self.maxima[index].0 + rhythm.dwell);
        let rested = self.shrunk.map(|shrunk| shrunk + rhythm.interval);
        let from = [Some(self.since? + rhythm.dwell), larger, rested].into_iter().flatten().fold(now, Timestamp::max);
        (from <= by).then(|| (from, self.maxima[first].1))
    }

    /// A shrink was sent: the next one waits.
    pub(crate) fn shrinks(&mut self, now: Timestamp) {
        self.shrunk = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_000_000 + second * 1000)
    }

    #[test]
    fn what_will_be_shrinkable_is_foreseen_for_when_the_larger_demand_has_left_the_dwell_time() {
        let rhythm = Rhythm::of_ms(60_000, 30_000);
        let mut dwell = Dwell::default();
        let witness = |dwell: &mut Dwell<u64>, second, size| {
            dwell.witness(at(second), WINDOW, Evidence { enough: size, demand: size }, rhythm);
        };
        assert_eq!(dwell.foreseen(at(0), at(600), rhythm), None);
        [(0, 90), (10, 90), (20, 40), (30, 40)]
            .into_iter()
            .for_each(|(second, size)| witness(&mut dwell, second, size));
        let foreseen =
            |dwell: &Dwell<u64>, by| dwell.foreseen(at(30), at(by), rhythm).map(|(from, it)| (from, it.enough));
        assert_eq!(foreseen(&dwell, 59), None, "no whole dwell time is over by then");
        assert_eq!(foreseen(&dwell, 69), Some((at(60), 90)));
        assert_eq!(foreseen(&dwell, 71), Some((at(70), 40)));
        dwell.shrinks(at(30));
        assert_eq!(foreseen(&dwell, 600), Some((at(70), 40)));
        dwell.shrinks(at(50));
        assert_eq!(foreseen(&dwell, 600), Some((at(80), 40)), "after the interval");
    }

    proptest! {
        #[test]
        fn what_is_shrinkable_to_is_the_most_of_the_dwell_time(sizes in proptest::collection::vec(0u64..100, 7..60)) {
            let rhythm = Rhythm::of_ms(60_000, 0);
            let mut dwell = Dwell::default();
            for (index, &size) in sizes.iter().enumerate() {
                let now = at(index as u64 * 10);
                dwell.witness(now, WINDOW, Evidence { enough: size, demand: size }, rhythm);
                let most = sizes[index.saturating_sub(6)..=index].iter().max();
                let told = dwell.shrinkable(now, rhythm).map(|evidence| evidence.enough);
                prop_assert_eq!(told.as_ref(), most.filter(|_| index >= 6));
            }
        }
    }
}
