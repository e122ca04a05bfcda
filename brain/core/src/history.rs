//! Demand history: what a VM wanted, step by step, at the policy's resolution.
//!
//! Demand is an interval. A VM ran for `low` and was runnable for `high`; where it was held back, its demand is somewhere in
//! between. Both ends are kept: deciding what to believe is the forecast's work. A gap is a gap: a step that was measured for
//! less than half of its time is `None`, never zero. Windows that were spooled while the host was not connected come late, and fill the gap
//! that they left: a step that is known is never touched again.

use std::collections::VecDeque;
use std::time::Duration;

use gnomon_common::time::Timestamp;

/// A step counts as measured when at least this share of it was covered.
const COVERED_SHARE_MIN: f64 = 0.5;

/// So many windows in a row that are behind the history, but in order among themselves, mean that the host's clock was set
/// back; fewer mean that reports came out of order.
const CLOCK_STEP_WINDOWS: u32 = 5;

/// Steps kept are this many times the longest season looked for: enough to see a season recur, bounded for each VM.
const SEASONS_KEPT: usize = 4;

/// Room is made for at least so many steps at a time.
const GROWTH_STEPS_MIN: usize = 32;

/// What a VM wanted, in cores: at least `low`, at most `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    /// It ran for this.
    pub(crate) low: f64,
    /// It ran or was runnable for this.
    pub(crate) high: f64,
}

impl Interval {
    /// The value within the interval that is nearest to an expectation.
    ///
    /// This is what models learn from a step. Where both ends agree it is the measured demand. Where the VM was held back the
    /// measurement only says "in here", so an expectation inside is neither confirmed nor refuted, and one outside moves to
    /// the nearer end. Learning `low` instead would teach that a starved VM wants little, and starve it again.
    pub(crate) fn nearest(self, expectation: f64) -> f64 {
        expectation.max(self.low).min(self.high)
    }

    /// The middle: the expectation of those who have none.
    pub(crate) fn middle(self) -> f64 {
        f64::midpoint(self.low, self.high)
    }
}

/// One measured step. Single precision: a hundred-thousandth of a core is enough, and there are thousands of steps for each VM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step {
    low: f32,
    high: f32,
    peak: f32,
}

impl Step {
    /// Mean demand over the step, in cores.
    pub(crate) fn mean(self) -> Interval {
        Interval { low: f64::from(self.low), high: f64::from(self.high) }
    }

    /// Largest sample of the time run, in cores.
    pub(crate) fn peak(self) -> f64 {
        f64::from(self.peak)
    }
}

/// A step as it is kept, in 12 bytes instead of the 16 of an `Option`: no lower end is no number, but a gap's.
#[derive(Clone, Copy, Debug)]
struct Kept(Step);

impl Kept {
    const GAP: Self = Self(Step { low: f32::NAN, high: f32::NAN, peak: f32::NAN });

    fn of(step: Option<Step>) -> Self {
        step.map_or(Self::GAP, Self)
    }

    fn step(self) -> Option<Step> {
        (!self.0.low.is_nan()).then_some(self.0)
    }
}

/// One window's demand, already checked and bounded by the VM's vCPUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// When it began.
    pub(crate) start: Timestamp,
    /// How long it is.
    pub(crate) length: Duration,
    /// Share of it that was measured, 0..=1.
    pub(crate) covered: f64,
    /// Mean demand, in cores.
    pub(crate) mean: Interval,
    /// Largest sample of the time run, in cores.
    pub(crate) peak: f64,
}

/// What became of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// It continued the history.
    InOrder,
    /// The host's clock was set back: steps from there on were forgotten, the window starts anew.
    ClockSetBack,
    /// It is older than the end of the history and was left out: what it covers is known already, or too long ago.
    Behind,
    /// It filled a part of a gap.
    Filled,
}

#[derive(Clone, Copy, Debug, Default)]
struct Open {
    measured_ms: f64,
    low: f64,
    high: f64,
    peak: f64,
}

impl Open {
    fn add(&mut self, window: &Window, measured_ms: f64) {
        self.measured_ms += measured_ms;
        self.low += window.mean.low * measured_ms;
        self.high += window.mean.high * measured_ms;
        self.peak = self.peak.max(window.peak);
    }

    fn close(self, resolution_ms: u64) -> Option<Step> {
        (self.measured_ms >= COVERED_SHARE_MIN * resolution_ms as f64).then(|| {
            let low = self.low / self.measured_ms;
            let high = (self.high / self.measured_ms).max(low);
            Step { low: low as f32, high: high as f32, peak: self.peak as f32 }
        })
    }
}

/// A bounded ring of steps. Step `i` covers `i * resolution ..` since the epoch.
#[derive(Clone, Debug)]
pub(crate) struct History {
    resolution_ms: u64,
    capacity: usize,
    steps: VecDeque<Kept>,
    measured: usize,
    /// Index of the open step, the one after the last closed one.
    next: u64,
    open: Open,
    /// The closed step that late windows are filling, and what they told of it so far.
    filling: Option<(u64, Open)>,
    end: Option<Timestamp>,
    behind_in_a_row: u32,
    behind_start: Timestamp,
}

impl History {
    /// An empty history of steps of `resolution_ms`, keeping four times `season_steps_max`.
    pub(crate) fn new(resolution_ms: u64, season_steps_max: usize) -> Self {
        Self {
            resolution_ms: resolution_ms.max(1),
            capacity: season_steps_max.max(1).saturating_mul(SEASONS_KEPT),
            steps: VecDeque::new(),
            measured: 0,
            next: 0,
            open: Open::default(),
            filling: None,
            end: None,
            behind_in_a_row: 0,
            behind_start: Timestamp::default(),
        }
    }

    /// Adds a window. O(1) for windows not longer than a step; a gap costs O(gap), at most O(capacity).
    pub(crate) fn add(&mut self, window: &Window) -> Accepted {
        let mut accepted = Accepted::InOrder;
        // Starting up to half a window early is the jitter of a sampling loop, not disorder.
        if self.end.is_some_and(|end| window.start + window.length / 2 < end) {
            let in_order = self.behind_in_a_row == 0 || window.start >= self.behind_start;
            self.behind_in_a_row = if in_order { self.behind_in_a_row + 1 } else { 1 };
            self.behind_start = window.start;
            if self.behind_in_a_row < CLOCK_STEP_WINDOWS {
                return Accepted::Behind;
            }
            self.forget_from(window.start);
            accepted = Accepted::ClockSetBack;
        }
        self.behind_in_a_row = 0;
        let (start, end) = (window.start.unix_ms(), (window.start + window.length).unix_ms());
        if self.end.is_none() {
            self.next = start / self.resolution_ms;
        }
        self.close_before(start / self.resolution_ms);
        let mut at = start.max(self.next * self.resolution_ms);
        while at < end {
            let step_end = (self.next + 1) * self.resolution_ms;
            self.open.add(window, (end.min(step_end).saturating_sub(at)) as f64 * window.covered);
            at = step_end;
            if end >= step_end {
                self.close_before(self.next + 1);
            }
        }
        self.end = Some(window.start + window.length);
        accepted
    }

    /// Adds a window that its host has made before the newest one that was heard of. Late windows of an outage come in their order, so one
    /// step is filled at a time. O(1) for windows not longer than a step; reaching further back than the history costs O(gap), at most
    /// O(capacity) in all.
    pub(crate) fn fill(&mut self, window: &Window) -> Accepted {
        if self.end.is_none_or(|end| window.start + window.length / 2 >= end) {
            return self.add(window);
        }
        let (start, end) = (window.start.unix_ms(), (window.start + window.length).unix_ms());
        let mut accepted = Accepted::Behind;
        for index in start / self.resolution_ms..end.div_ceil(self.resolution_ms) {
            let step_start = index * self.resolution_ms;
            let part_ms = end.min(step_start + self.resolution_ms) - start.max(step_start);
            if self.fill_step(index, window, part_ms as f64 * window.covered) {
                accepted = Accepted::Filled;
            }
        }
        accepted
    }

    /// Adds a part of a late window to a step; says whether that is still to be known.
    fn fill_step(&mut self, index: u64, window: &Window, measured_ms: f64) -> bool {
        if index >= self.next {
            let room_ms = self.resolution_ms as f64 - self.open.measured_ms;
            if index == self.next && room_ms > 0.0 {
                self.open.add(window, measured_ms.min(room_ms));
                return true;
            }
            return false;
        }
        if self.next - index > self.capacity as u64 {
            return false;
        }
        while self.first() > index {
            self.make_room();
            self.steps.push_front(Kept::GAP);
        }
        let place = (index - self.first()) as usize;
        let known = match self.filling {
            Some((filling, open)) if filling == index => Some(open),
            _ => None,
        };
        if known.is_none() && self.steps[place].step().is_some() {
            return false;
        }
        let mut open = known.unwrap_or_default();
        let room_ms = self.resolution_ms as f64 - open.measured_ms;
        if room_ms <= 0.0 {
            return false;
        }
        open.add(window, measured_ms.min(room_ms));
        self.filling = Some((index, open));
        let step = open.close(self.resolution_ms);
        self.measured += usize::from(step.is_some() && self.steps[place].step().is_none());
        self.steps[place] = Kept::of(step.or(self.steps[place].step()));
        true
    }

    /// Closes every step before `index`.
    fn close_before(&mut self, index: u64) {
        if index <= self.next {
            return;
        }
        let gap = index - self.next;
        if gap > self.capacity as u64 {
            self.filling = None;
            self.steps.clear();
            self.measured = 0;
        } else {
            let open = std::mem::take(&mut self.open).close(self.resolution_ms);
            self.push(open);
            (1..gap).for_each(|_| self.push(None));
        }
        self.open = Open::default();
        self.next = index;
    }

    fn push(&mut self, step: Option<Step>) {
        if self.steps.len() == self.capacity && self.steps.pop_front().and_then(Kept::step).is_some() {
            self.measured -= 1;
        }
        self.measured += usize::from(step.is_some());
        self.make_room();
        self.steps.push_back(Kept::of(step));
    }

    /// Makes room for one step more. Growing by a quarter, and never beyond the capacity, wastes less than doubling does.
    fn make_room(&mut self) {
        let steps = self.steps.len();
        if steps == self.steps.capacity() {
            let missing = self.capacity.saturating_sub(steps).max(1);
            self.steps.reserve_exact((steps / 4).max(GROWTH_STEPS_MIN).min(missing));
        }
    }

    fn forget_from(&mut self, at: Timestamp) {
        let index = at.unix_ms() / self.resolution_ms;
        while self.next > index && self.steps.pop_back().is_some() {
            self.next -= 1;
        }
        self.next = index;
        self.measured = self.steps.iter().filter(|kept| kept.step().is_some()).count();
        self.open = Open::default();
        self.filling = None;
        self.end = Some(at);
    }

    /// Length of a step, in milliseconds.
    pub(crate) fn resolution_ms(&self) -> u64 {
        self.resolution_ms
    }

    /// Index of the step that is still open.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// When the last closed step ended.
    pub(crate) fn closed_until(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.next * self.resolution_ms)
    }

    /// How many steps are kept and measured.
    pub(crate) fn measured(&self) -> usize {
        self.measured
    }

    /// Index of the oldest step kept.
    pub(crate) fn first(&self) -> u64 {
        self.next - self.steps.len() as u64
    }

    /// Closed steps from `index` on (or from the oldest kept), oldest first; gaps are `None`.
    pub(crate) fn since(&self, index: u64) -> impl Iterator<Item = (u64, Option<Step>)> + '_ {
        let first = self.first();
        let skipped = usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX).min(self.steps.len());
        (first + skipped as u64..).zip(self.steps.range(skipped..).map(|kept| kept.step()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(start_ms: u64, length_ms: u64, demand: f64) -> Window {
        Window {
            start: Timestamp::from_unix_ms(start_ms),
            length: Duration::from_millis(length_ms),
            covered: 1.0,
            mean: Interval { low: demand, high: demand },
            peak: demand,
        }
    }

    fn means(history: &History) -> Vec<Option<f64>> {
        history.since(0).map(|(_, step)| step.map(|step| (step.mean().low * 100.0).round() / 100.0)).collect()
    }

    #[test]
    fn windows_that_straddle_a_step_are_shared_out() {
        let mut history = History::new(1000, 10);
        for (start, demand) in [(10_500, 0.2), (11_500, 0.4), (12_500, 0.8)] {
            assert_eq!(history.add(&window(start, 1000, demand)), Accepted::InOrder);
        }
        assert_eq!(means(&history), [Some(0.2), Some(0.3), Some(0.6)]);
        assert_eq!(history.next(), 13);
    }

    #[test]
    fn a_gap_is_a_gap_and_not_zero() {
        let mut history = History::new(1000, 10);
        for start in [0, 1000, 5000] {
            history.add(&window(start, 1000, 0.5));
        }
        assert_eq!(means(&history), [Some(0.5), Some(0.5), None, None, None, Some(0.5)]);
        assert_eq!(history.measured(), 3);
    }

    #[test]
    fn a_late_window_is_left_out_and_a_clock_set_back_starts_anew() {
        let mut history = History::new(1000, 10);
        for start in 0..10 {
            history.add(&window(start * 1000, 1000, 0.5));
        }
        assert_eq!(history.add(&window(3000, 1000, 0.9)), Accepted::Behind);
        assert_eq!(history.add(&window(10_000, 1000, 0.5)), Accepted::InOrder);
        let back: Vec<_> = (0..6).map(|i| history.add(&window(4000 + i * 1000, 1000, 0.9))).collect();
        assert_eq!(back[..4], [Accepted::Behind; 4]);
        assert_eq!(back[4..], [Accepted::ClockSetBack, Accepted::InOrder]);
        assert_eq!(history.next(), 10);
        assert_eq!(means(&history)[7..], [Some(0.5), Some(0.9), Some(0.9)]);
    }

    #[test]
    fn a_leap_of_years_costs_no_more_than_the_ring() {
        let mut history = History::new(1000, 10);
        history.add(&window(0, 1000, 0.5));
        history.add(&window(1_000_000_000_000_000, 1000, 0.5));
        assert_eq!(history.measured(), 1);
    }

    #[test]
    fn late_windows_fill_the_gap_that_an_outage_left_and_nothing_else() {
        let mut history = History::new(10_000, 10);
        let second = |second: u64, demand| window(second * 1000, 1000, demand);
        for s in 0..13 {
            history.add(&second(s, 0.5));
        }
        // The host was away from 13 s to 42 s; it is back, and its backlog follows beside what is live.
        history.add(&second(42, 0.5));
        assert_eq!(means(&history), [Some(0.5), None, None, None]);
        for s in 13..42 {
            // The step that the outage ended in is known by what is live.
            let expected = if s < 40 { Accepted::Filled } else { Accepted::Behind };
            assert_eq!(history.fill(&second(s, 0.9)), expected, "{s}");
            assert_eq!(history.add(&second(s + 30, 0.5)), Accepted::InOrder);
        }
        // Of the step that the outage began in only the later part is told: the earlier, too little for a step, was given up.
        assert_eq!(means(&history)[..5], [Some(0.5), Some(0.9), Some(0.9), Some(0.9), Some(0.5)]);
        assert_eq!(history.measured(), 7);
        // Again, or older than all of it, it changes nothing.
        assert_eq!(history.fill(&second(20, 0.1)), Accepted::Behind);
        assert_eq!(means(&history)[2], Some(0.9));
    }

    #[test]
    fn a_backlog_that_is_older_than_all_history_reaches_back_as_far_as_is_kept() {
        let mut history = History::new(1000, 10);
        history.add(&window(100_000, 1000, 0.5));
        assert_eq!(history.fill(&window(10_000, 1000, 0.9)), Accepted::Behind, "too long ago");
        assert_eq!(history.fill(&window(90_000, 1000, 0.9)), Accepted::Filled);
        assert_eq!((history.first(), history.measured()), (90, 2));
        assert_eq!(means(&history)[..2], [Some(0.9), None]);
        history.add(&window(500_000, 1000, 0.5));
        assert_eq!(history.measured(), 1, "the ring went on");
    }

    #[test]
    fn many_late_windows_in_a_row_are_no_clock_that_was_set_back() {
        let mut history = History::new(1000, 10);
        history.add(&window(0, 1000, 0.5));
        history.add(&window(30_000, 1000, 0.5));
        for s in 1..30 {
            assert_eq!(history.fill(&window(s * 1000, 1000, 0.7)), Accepted::Filled);
        }
        assert_eq!((history.measured(), history.next()), (31, 31));
    }

    proptest! {
        #[test]
        fn an_outage_leaves_no_hole_however_long_windows_and_steps_are(
            length in 100u64..3000, outage in 1usize..60, resolution in 500u64..3000, live in 0usize..3,
        ) {
            // Windows that follow each other without a gap, an outage in the middle, and the backlog between live windows.
            let all: Vec<Window> = (0..120).map(|i| window(i * length, length, i as f64 / 100.0)).collect();
            let mut whole = History::new(resolution, 1000);
            let add = |history: &mut History, window: &Window| assert_eq!(history.add(window), Accepted::InOrder);
            all.iter().for_each(|window| add(&mut whole, window));
            let (before, after) = (30, 30 + outage);
            let mut holed = History::new(resolution, 1000);
            all[..before].iter().chain(&all[after..=after]).for_each(|window| add(&mut holed, window));
            let mut newest = all[after + 1..].iter();
            for late in &all[before..after] {
                holed.fill(late);
                newest.by_ref().take(live).for_each(|window| add(&mut holed, window));
            }
            newest.for_each(|window| add(&mut holed, window));
            let steps = |history: &History| -> Vec<_> { history.since(0).map(|(index, step)| (index, step.is_some())).collect() };
            prop_assert_eq!(holed.next(), whole.next());
            // The steps at the edges may lack the part that was thrown away when they were closed.
            let edge = |index: u64| [before, after].iter().any(|edge| (*edge as u64 * length).abs_diff(index * resolution) <= resolution);
            for ((index, filled), (_, known)) in steps(&holed).into_iter().zip(steps(&whole)) {
                prop_assert!(filled == known || edge(index), "step {index} of {resolution} ms: {filled}, not {known}");
            }
        }

        #[test]
        fn the_ring_is_bounded_and_its_counts_are_right(
            windows in proptest::collection::vec((0u64..100_000, 1u64..20_000, 0.0..2.0f64, any::<bool>()), 0..200),
        ) {
            let mut history = History::new(1000, 5);
            for (start, length, demand, late) in windows {
                let window = window(start, length, demand);
                if late { history.fill(&window) } else { history.add(&window) };
                let steps: Vec<_> = history.since(0).collect();
                prop_assert!(steps.len() <= 20);
                prop_assert_eq!(steps.iter().filter(|(_, step)| step.is_some()).count(), history.measured());
                prop_assert!(steps.last().is_none_or(|(index, _)| index + 1 == history.next()));
            }
        }
    }
}
