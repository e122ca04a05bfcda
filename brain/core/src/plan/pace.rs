//! When a VM may be resized: growth at once, shrinking after dwell, backing off after refusals.

use std::collections::VecDeque;
use std::time::Duration;

use gnomon_common::time::Timestamp;

use super::Reason;
use super::size::Sizing;
use crate::policy::CpuPolicy;

/// Windows remembered for the dwell time. More than a day's dwell of 10-second windows, and only falling maxima are kept.
const DWELL_WINDOWS_MAX: usize = 10_000;

/// Evidence counts as continuous while reports come at least every so many windows.
const GAP_WINDOWS_MAX: u32 = 3;

/// First pause after a refusal or failure.
const BACKOFF_FIRST: Duration = Duration::from_secs(5);

/// Longest pause: an agent that was mended is tried again within this.
const BACKOFF_MAX: Duration = Duration::from_mins(10);

/// What the planner makes of one VM at one report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// The quota that would be right now, in cores.
    pub(crate) wanted_cores: f64,
    /// The resize to plan now.
    pub(crate) resize: Option<(f64, Reason)>,
}

/// What is remembered of a VM between reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// Falling maxima of (when, quota that would have been enough, demand behind it).
    dwell: VecDeque<(Timestamp, f64, f64)>,
    /// Since when evidence is continuous.
    since: Option<Timestamp>,
    latest: Option<Timestamp>,
    shrunk: Option<Timestamp>,
    refusals: u32,
    not_before: Option<Timestamp>,
}

impl Pace {
    /// Takes the evidence of one report and decides.
    pub(crate) fn judge(&mut self, now: Timestamp, window: Duration, sizing: &Sizing, policy: &CpuPolicy) -> Verdict {
        let (pressing, possible) = (sizing.pressing_cores(), sizing.possible_cores());
        let grown = sizing.bounds.quota(pressing, policy.headroom);
        let enough = sizing.bounds.quota(possible, policy.headroom);
        self.witness(now, window, enough, possible, Duration::from_millis(policy.shrink_dwell_ms));
        let limit = sizing.limit_cores();
        let resize = if self.not_before.is_some_and(|until| now < until) {
            None
        } else if grown > limit * (1.0 + policy.hysteresis) {
            Some((grown, growth_reason(sizing, pressing, limit, policy)))
        } else {
            self.shrink(now, sizing, policy)
        };
        Verdict { wanted_cores: enough, resize }
    }

    fn witness(&mut self, now: Timestamp, window: Duration, enough: f64, demand: f64, dwell: Duration) {
        let gap = window * GAP_WINDOWS_MAX;
        if self.latest.is_none_or(|latest| now < latest || now.since(latest) > gap) {
            self.dwell.clear();
            self.since = Some(now);
        }
        self.latest = Some(now);
        while self.dwell.back().is_some_and(|&(_, earlier, _)| earlier <= enough) {
            self.dwell.pop_back();
        }
        // At the bound the two latest are merged into the larger of them, which only makes shrinking more careful.
        if self.dwell.len() < DWELL_WINDOWS_MAX {
            self.dwell.push_back((now, enough, demand));
        } else if let Some(last) = self.dwell.back_mut() {
            last.0 = now;
        }
        while self.dwell.len() > 1 && self.dwell.front().is_some_and(|&(at, ..)| now.since(at) > dwell) {
            self.dwell.pop_front();
        }
    }

    fn shrink(&self, now: Timestamp, sizing: &Sizing, policy: &CpuPolicy) -> Option<(f64, Reason)> {
        // Taking away what nobody has limited before needs a forecast, not only a quiet moment.
        if sizing.quota_cores.is_none() && sizing.outlook.is_none() {
            return None;
        }
        let (dwell, interval) =
            (Duration::from_millis(policy.shrink_dwell_ms), Duration::from_millis(policy.shrink_interval_ms));
        let dwelt = self.since.is_some_and(|since| now.since(since) >= dwell);
        // `now < shrunk`: the clock was set back, and the interval cannot be told.
        let rested = self.shrunk.is_none_or(|shrunk| now < shrunk || now.since(shrunk) >= interval);
        let &(_, target, demand_cores) = self.dwell.front()?;
        let worthwhile = target < sizing.limit_cores() * (1.0 - policy.hysteresis);
        (dwelt && rested && worthwhile).then_some((target, Reason::Slack { demand_cores }))
    }

    /// A shrink was sent: the next one waits.
    pub(crate) fn shrinks(&mut self, now: Timestamp) {
        self.shrunk = Some(now);
    }

    /// A command was refused, failed or stayed unanswered: wait longer each time.
    pub(crate) fn back_off(&mut self, now: Timestamp) {
        let pause = BACKOFF_FIRST.saturating_mul(1 << self.refusals.min(16)).min(BACKOFF_MAX);
        self.refusals = self.refusals.saturating_add(1);
        self.not_before = Some(now + pause);
    }

    /// A command was carried out.
    pub(crate) fn succeed(&mut self) {
        self.refusals = 0;
        self.not_before = None;
    }

    /// Until when nothing is tried, if that is after `now`.
    pub(crate) fn backing_off_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.not_before.filter(|&until| now < until)
    }

    /// Bounds what a clock that was set back can do: no pause is longer than the longest.
    pub(crate) fn clock_set_back(&mut self, now: Timestamp) {
        self.not_before = self.not_before.map(|until| until.min(now + BACKOFF_MAX));
    }
}

fn growth_reason(sizing: &Sizing, pressing: f64, limit: f64, policy: &CpuPolicy) -> Reason {
    let live = sizing.bounds.quota(sizing.live_cores, policy.headroom);
    let outgrown = sizing.outlook.and_then(|outlook| outlook.outgrown);
    match outgrown {
        Some((at, _)) if live <= limit * (1.0 + policy.hysteresis) => {
            Reason::ForecastSurge { at, demand_cores: pressing }
        }
        _ => Reason::LiveDemand { demand_cores: pressing },
    }
}

#[cfg(test)]
mod tests {
    use super::super::size::{Bounds, Outlook};
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_000_000 + second * 1000)
    }

    fn policy() -> CpuPolicy {
        CpuPolicy { shrink_dwell_ms: 60_000, shrink_interval_ms: 30_000, ..CpuPolicy::default() }
    }

    fn sizing(quota: Option<f64>, live: f64, outlook: Option<Outlook>) -> Sizing {
        let bounds = Bounds { floor: 0.1, ceiling: 2.0 };
        Sizing { bounds, quota_cores: quota, vcpus: 2, live_cores: live, peak_cores: live, outlook }
    }

    fn outlook(seasonal: bool, most_cores: f64) -> Option<Outlook> {
        Some(Outlook { seasonal, most_cores, outgrown: seasonal.then_some((at(99), most_cores)) })
    }

    #[test]
    fn live_demand_grows_the_quota_at_once() {
        let verdict = Pace::default().judge(at(0), WINDOW, &sizing(Some(0.2), 0.8, None), &policy());
        assert_eq!(verdict.resize, Some((0.88, Reason::LiveDemand { demand_cores: 0.8 })));
    }

    #[test]
    fn a_seasonal_forecast_grows_the_quota_before_demand_is_there() {
        let verdict = Pace::default().judge(at(0), WINDOW, &sizing(Some(0.2), 0.1, outlook(true, 0.8)), &policy());
        assert_eq!(verdict.resize, Some((0.88, Reason::ForecastSurge { at: at(99), demand_cores: 0.8 })));
    }

    #[test]
    fn a_forecast_without_season_holds_back_shrinking_and_grows_nothing() {
        let mut pace = Pace::default();
        for second in 0..200 {
            let verdict = pace.judge(at(second), WINDOW, &sizing(Some(0.2), 0.1, outlook(false, 0.8)), &policy());
            assert_eq!(verdict, Verdict { wanted_cores: 0.88, resize: None });
        }
    }

    #[test]
    fn a_quota_shrinks_after_the_dwell_time_to_the_most_that_was_wanted_in_it() {
        let mut pace = Pace::default();
        let mut judge = |second, live| pace.judge(at(second), WINDOW, &sizing(Some(1.0), live, None), &policy()).resize;
        assert_eq!(judge(0, 0.5), None);
        for second in (10..60).step_by(10) {
            assert_eq!(judge(second, 0.2), None);
        }
        assert_eq!(judge(60, 0.2), Some((0.55, Reason::Slack { demand_cores: 0.5 })));
        pace.shrinks(at(60));
        let mut judge = |second, live| pace.judge(at(second), WINDOW, &sizing(Some(1.0), live, None), &policy()).resize;
        // The first of these windows has left the dwell time, but the interval has not passed.
        assert_eq!(judge(80, 0.2), None);
        assert_eq!(judge(90, 0.2), Some((0.22, Reason::Slack { demand_cores: 0.2 })));
    }

    #[test]
    fn a_gap_in_the_evidence_restarts_the_dwell_time() {
        let mut pace = Pace::default();
        let mut judge = |second| pace.judge(at(second), WINDOW, &sizing(Some(1.0), 0.2, None), &policy()).resize;
        assert_eq!((judge(0), judge(31), judge(61), judge(90)), (None, None, None, None));
        assert!(judge(91).is_some());
    }

    #[test]
    fn an_unlimited_vm_gets_no_quota_before_it_has_a_forecast() {
        let judge = |outlook| {
            let mut pace = Pace::default();
            (0..30).find_map(|i| pace.judge(at(i * 10), WINDOW, &sizing(None, 0.2, outlook), &policy()).resize)
        };
        assert_eq!(judge(None), None);
        assert_eq!(judge(outlook(false, 0.3)), Some((0.33, Reason::Slack { demand_cores: 0.3 })));
    }

    #[test]
    fn refusals_are_answered_with_longer_and_longer_pauses_up_to_a_bound() {
        let mut pace = Pace::default();
        let pauses: Vec<u64> = (0..9)
            .map(|_| {
                pace.back_off(at(0));
                pace.backing_off_until(at(0)).unwrap().since(at(0)).as_secs()
            })
            .collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600]);
        let hungry = sizing(Some(0.2), 0.8, None);
        assert_eq!(pace.judge(at(1), WINDOW, &hungry, &policy()).resize, None);
        pace.succeed();
        assert!(pace.judge(at(2), WINDOW, &hungry, &policy()).resize.is_some());
    }
}
