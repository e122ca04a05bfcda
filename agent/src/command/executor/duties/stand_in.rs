//! Standing in for a brain that is away: what starves grows, what has long been quiet goes back to its baseline in steps.

use std::time::Duration;

use gnomon_common::wire::{LocalCause, Means, Setting};

use super::{Round, Snag, Tending, quota};
use crate::actuate::same;
use crate::command::drift::{self, Drift};
use crate::command::executor::Executor;
use crate::command::ledger::{Change, UndoRecord};
use crate::command::reflex::{self, Reflex, Room};
use crate::sample::LiveLoad;

impl Executor {
    /// The brain is away: grow what starves, take what is quiet a step back.
    pub(super) fn stand_in(
        &mut self,
        tending: &mut Tending,
        record: &UndoRecord,
        live: &LiveLoad,
        away_for: Duration,
        round: &mut Round,
    ) -> Result<bool, Snag> {
        let Some(Setting::CpuQuota { cores: baseline_cores }) = record.baseline(Means::CpuQuota) else {
            return Ok(false);
        };
        let away = tending.duties.away;
        let pace = drift::Pace {
            quiet: Duration::from_secs(away.quiet_s),
            interval: Duration::from_secs(away.drift_interval_s),
            step: away.drift_step,
            headroom: away.headroom,
        };
        let room = Room {
            ceiling_cores: self.policy.bounds.ceiling_cores,
            capacity_cores: tending.duties.capacity_cores,
            limits_cores: round.limits_cores,
        };
        let tended = tending.vm(record.vm);
        tended.quiet.observe(live, round.elapsed, &pace);
        let reflex = match away.reflex {
            true => reflex::reflex(live, reflex::Pace { growth_max: away.growth_max, headroom: away.headroom }, room),
            false => Reflex::Content,
        };
        let (target_cores, cause, interval) = match reflex {
            Reflex::Grow(target_cores) => {
                tended.wall = None;
                (Some(target_cores), LocalCause::Reflex, Duration::from_secs_f64(live.covered_s))
            }
            Reflex::Stuck(wall) => {
                if tended.wall.replace(wall) != Some(wall) {
                    tracing::warn!(vm = %record.vm, name = record.name, %wall, "the brain is away and a VM starves, but cannot grow");
                }
                return Ok(false);
            }
            Reflex::Content => {
                tended.wall = None;
                match drift::drift(live, baseline_cores, &tended.quiet, &pace) {
                    Drift::Step { target_cores, .. } if away.drift => (target_cores, LocalCause::Drift, pace.interval),
                    _ => return Ok(false),
                }
            }
        };
        if !tended.may_act(round.now, interval) || !self.is_in_its_life(record) {
            return Ok(false);
        }
        let before = self.actuator.in_force(record.vm, Means::CpuQuota)?;
        if !same(before, quota(live.quota_cores)) {
            return Ok(false); // someone was faster; the next look will tell who
        }
        let target = quota(target_cores);
        let reason = match cause {
            LocalCause::Reflex => grown(live, away_for),
            _ => drifted(target, quota(baseline_cores), away_for, &pace),
        };
        if self.act(tending, record, Change { before, target }, cause, reason)? {
            let vcpus = f64::from(live.vcpus);
            round.limits_cores += target_cores.map_or(vcpus, |cores| cores.min(vcpus)) - live.limit_cores();
        }
        Ok(true)
    }
}

fn grown(live: &LiveLoad, away_for: Duration) -> String {
    format!(
        "the brain is away for {} s and the VM starves: {} held it back for {:.0} % of the last {:.0} s, in which it wanted up to {:.2} cores",
        away_for.as_secs(),
        quota(live.quota_cores),
        live.throttled.mean * 100.0,
        live.covered_s,
        live.demand_high_cores.max,
    )
}

fn drifted(target: Setting, baseline: Setting, away_for: Duration, pace: &drift::Pace) -> String {
    let (away_s, quiet_s) = (away_for.as_secs(), pace.quiet.as_secs());
    if target == baseline {
        format!("the brain is away for {away_s} s: the VM is back at {baseline}, as before Gnomon's first change")
    } else {
        format!(
            "the brain is away for {away_s} s and the VM has been quiet for {quiet_s} s: a step back towards {baseline}, as before Gnomon's first change"
        )
    }
}
