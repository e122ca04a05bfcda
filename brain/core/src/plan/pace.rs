//! When a VM's CPU quota may be resized: growth at once, shrinking after dwell, backing off after refusals.

use std::time::Duration;

use gnomon_common::time::Timestamp;

use super::Reason;
use super::backoff::Backoff;
use super::dwell::{Dwell, Evidence, Rhythm};
use super::size::{Sizing, Surplus};
use crate::policy::CpuPolicy;

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
    pub(crate) dwell: Dwell<f64>,
    pub(crate) backoff: Backoff,
}

impl Pace {
    /// Takes the evidence of one report and decides.
    pub(crate) fn judge(
        &mut self,
        now: Timestamp,
        window: Duration,
        sizing: &Sizing,
        policy: &CpuPolicy,
        rhythm: Rhythm,
    ) -> Verdict {
        let (grown, enough) = sizing.quotas(policy.headroom);
        let demand = sizing.promised_cores.unwrap_or(sizing.possible_cores());
        self.dwell.witness(now, window, Evidence { enough, demand }, rhythm);
        let limit = sizing.limit_cores();
        let resize = if self.backoff.until(now).is_some() {
            None
        } else if grown > limit * (1.0 + policy.hysteresis) {
            Some((grown, growth_reason(sizing, limit, policy)))
        } else {
            self.shrink(now, sizing, policy, rhythm)
        };
        Verdict { wanted_cores: enough, resize }
    }

    fn shrink(&self, now: Timestamp, sizing: &Sizing, policy: &CpuPolicy, rhythm: Rhythm) -> Option<(f64, Reason)> {
        // Taking away what nobody has limited before needs a forecast, not only a quiet moment.
        if sizing.quota_cores.is_none() && sizing.outlook.is_none() {
            return None;
        }
        let Evidence { enough, demand } = self.dwell.shrinkable(now, rhythm)?;
        let worthwhile = enough < sizing.limit_cores() * (1.0 - policy.hysteresis);
        worthwhile.then_some((enough, Reason::Slack { demand_cores: demand }))
    }
}

fn growth_reason(sizing: &Sizing, limit: f64, policy: &CpuPolicy) -> Reason {
    let (ordinary, _) = sizing.ordinary_quotas(policy.headroom);
    if let Some(surplus) = sizing.surplus
        && sizing.generous_quota(policy.headroom).is_some_and(|generous| generous > ordinary)
    {
        let Surplus { cores: surplus_cores, until } = surplus;
        return Reason::Anomaly { demand_cores: sizing.live_cores, surplus_cores, until };
    }
    let pressing = sizing.pressing_cores();
    if sizing.promised_cores.is_some_and(|promised| pressing <= promised) {
        return Reason::Promise { violation_rate: policy.violation_rate };
    }
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
        CpuPolicy::default()
    }

    const RHYTHM: Rhythm = Rhythm { dwell: Duration::from_secs(60), interval: Duration::from_secs(30) };

    fn sizing(quota: Option<f64>, live: f64, outlook: Option<Outlook>) -> Sizing {
        let bounds = Bounds { floor: 0.1, ceiling: 2.0 };
        Sizing {
            bounds,
            quota_cores: quota,
            vcpus: 2,
            live_cores: live,
            peak_cores: live,
            outlook,
            promised_cores: None,
            surplus: None,
        }
    }

    fn outlook(seasonal: bool, most_cores: f64) -> Option<Outlook> {
        let seasonal_cores = if seasonal { most_cores } else { 0.0 };
        Some(Outlook {
            seasonal_cores,
            doubted_cores: 0.0,
            most_cores,
            outgrown: seasonal.then_some((at(99), most_cores)),
        })
    }

    #[test]
    fn live_demand_grows_the_quota_at_once() {
        let verdict = Pace::default().judge(at(0), WINDOW, &sizing(Some(0.2), 0.8, None), &policy(), RHYTHM);
        assert_eq!(verdict.resize, Some((0.88, Reason::LiveDemand { demand_cores: 0.8 })));
    }

    #[test]
    fn a_seasonal_forecast_grows_the_quota_before_demand_is_there() {
        let verdict =
            Pace::default().judge(at(0), WINDOW, &sizing(Some(0.2), 0.1, outlook(true, 0.8)), &policy(), RHYTHM);
        assert_eq!(verdict.resize, Some((0.88, Reason::ForecastSurge { at: at(99), demand_cores: 0.8 })));
    }

    #[test]
    fn a_forecast_without_season_holds_back_shrinking_and_grows_nothing() {
        let mut pace = Pace::default();
        for second in 0..200 {
            let verdict =
                pace.judge(at(second), WINDOW, &sizing(Some(0.2), 0.1, outlook(false, 0.8)), &policy(), RHYTHM);
            assert_eq!(verdict, Verdict { wanted_cores: 0.88, resize: None });
        }
    }

    #[test]
    fn a_quota_shrinks_after_the_dwell_time_to_the_most_that_was_wanted_in_it() {
        let mut pace = Pace::default();
        let mut judge =
            |second, live| pace.judge(at(second), WINDOW, &sizing(Some(1.0), live, None), &policy(), RHYTHM).resize;
        assert_eq!(judge(0, 0.5), None);
        for second in (10..60).step_by(10) {
            assert_eq!(judge(second, 0.2), None);
        }
        assert_eq!(judge(60, 0.2), Some((0.55, Reason::Slack { demand_cores: 0.5 })));
        pace.dwell.shrinks(at(60));
        let mut judge =
            |second, live| pace.judge(at(second), WINDOW, &sizing(Some(1.0), live, None), &policy(), RHYTHM).resize;
        // The first of these windows has left the dwell time, but the interval has not passed.
        assert_eq!(judge(80, 0.2), None);
        assert_eq!(judge(90, 0.2), Some((0.22, Reason::Slack { demand_cores: 0.2 })));
    }

    #[test]
    fn a_promised_size_is_taken_as_it_is_until_live_demand_outgrows_it() {
        let promised = |quota, live, size| Sizing { promised_cores: Some(size), ..sizing(Some(quota), live, None) };
        let judge = |sizing: &Sizing| Pace::default().judge(at(0), WINDOW, sizing, &policy(), RHYTHM);
        let kept = Reason::Promise { violation_rate: CpuPolicy::default().violation_rate };
        assert_eq!(judge(&promised(0.2, 0.1, 0.6)).resize, Some((0.6, kept)));
        assert_eq!(judge(&promised(0.6, 0.58, 0.6)).resize, None);
        assert_eq!(judge(&promised(0.6, 0.8, 0.6)).resize, Some((0.88, Reason::LiveDemand { demand_cores: 0.8 })));
        let mut pace = Pace::default();
        let shrinks =
            (0..20).find_map(|i| pace.judge(at(i * 10), WINDOW, &promised(1.0, 0.1, 0.6), &policy(), RHYTHM).resize);
        assert_eq!(shrinks, Some((0.6, Reason::Slack { demand_cores: 0.6 })));
    }

    #[test]
    fn a_gap_in_the_evidence_restarts_the_dwell_time() {
        let mut pace = Pace::default();
        let mut judge =
            |second| pace.judge(at(second), WINDOW, &sizing(Some(1.0), 0.2, None), &policy(), RHYTHM).resize;
        assert_eq!((judge(0), judge(31), judge(61), judge(90)), (None, None, None, None));
        assert!(judge(91).is_some());
    }

    #[test]
    fn an_unlimited_vm_gets_no_quota_before_it_has_a_forecast() {
        let judge = |outlook| {
            let mut pace = Pace::default();
            (0..30).find_map(|i| pace.judge(at(i * 10), WINDOW, &sizing(None, 0.2, outlook), &policy(), RHYTHM).resize)
        };
        assert_eq!(judge(None), None);
        assert_eq!(judge(outlook(false, 0.3)), Some((0.33, Reason::Slack { demand_cores: 0.3 })));
    }

    #[test]
    fn demand_that_is_out_of_the_ordinary_is_given_more_and_keeps_it_until_it_is_over() {
        let surplus = |cores| Some(Surplus { cores, until: at(600) });
        let mut pace = Pace::default();
        let anomaly = |surplus_cores| Reason::Anomaly { demand_cores: 0.8, surplus_cores, until: at(600) };
        let leaps = Sizing { surplus: surplus(0.44), ..sizing(Some(0.5), 0.8, None) };
        let verdict = pace.judge(at(0), WINDOW, &leaps, &policy(), RHYTHM);
        assert_eq!(verdict.resize, Some((1.32, anomaly(0.44))));
        let beyond = Sizing { surplus: surplus(9.0), ..sizing(Some(0.5), 0.8, None) };
        let verdict = pace.judge(at(5), WINDOW, &beyond, &policy(), RHYTHM);
        assert_eq!(verdict.resize, Some((2.0, anomaly(9.0))), "within its bounds");
        let mut pace = Pace::default();
        for second in (0..200).step_by(10) {
            let holds = Sizing { surplus: surplus(0.44), ..sizing(Some(1.32), 0.8, None) };
            assert_eq!(pace.judge(at(second), WINDOW, &holds, &policy(), RHYTHM).resize, None);
        }
        let over = |second| (at(second), sizing(Some(1.32), 0.8, None));
        let shrunk = (200..400).step_by(10).find_map(|second| {
            let (now, sizing) = over(second);
            pace.judge(now, WINDOW, &sizing, &policy(), RHYTHM).resize.map(|resize| (second, resize))
        });
        assert_eq!(shrunk, Some((260, (0.88, Reason::Slack { demand_cores: 0.8 }))));
    }

    #[test]
    fn nothing_is_planned_while_it_backs_off() {
        let mut pace = Pace::default();
        pace.backoff.back_off(at(0));
        let hungry = sizing(Some(0.2), 0.8, None);
        assert_eq!(pace.judge(at(1), WINDOW, &hungry, &policy(), RHYTHM).resize, None);
        pace.backoff.succeed();
        assert!(pace.judge(at(2), WINDOW, &hungry, &policy(), RHYTHM).resize.is_some());
    }
}
