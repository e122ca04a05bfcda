//! What a VM will want, as its forecasts say.

use std::time::Duration;

use gnomon_common::time::Timestamp;

use super::Vm;
use crate::forecast::Forecaster;
use crate::forecast::engine::LEVELS;
use crate::pattern::Ahead;
use crate::plan::size::{Outlook, live_cores};
use crate::policy::Policy;

/// Steps beyond the horizon that an outlook may touch: the step that is still open, and the one that the lead time ends in.
const STEPS_PAST_HORIZON: u64 = 2;

impl Vm {
    /// What the forecasts say from `at` until a `lead` (and the step that this falls into) later. `None` where there are none, or where
    /// `at` is beyond their horizons: a VM that was not measured for so long. O(horizon).
    /// Only seasonal forecasts of at least `skill_min` count as such.
    pub(crate) fn outlook(
        &self,
        at: Timestamp,
        lead: Duration,
        policy: &Policy,
        skill_min: Option<f64>,
    ) -> Option<Outlook> {
        let cores_max = f64::from(self.allocation.vcpus);
        let near = self.ready().map_or_else(Vec::new, |forecaster| self.near_demand(forecaster, at, lead, policy));
        let [near_skill, far_skill] = self.skills();
        // What is promised was chosen with the day in view already.
        let far = if self.promised_cores.is_none() { self.far_demand(at, lead, policy) } else { Vec::new() };
        if near.is_empty() && far.is_empty() {
            return None;
        }
        let limit = self.allocation.cpu_limit_cores();
        let mut outlook = Outlook { seasonal_cores: 0.0, doubted_cores: 0.0, most_cores: 0.0, outgrown: None };
        for (demands, skill) in [(near, near_skill), (far, far_skill)] {
            let seasonal = skill.is_some() && !falls_short(skill, skill_min);
            for (start, demand) in demands {
                let demand = demand.min(cores_max);
                outlook.most_cores = outlook.most_cores.max(demand);
                if seasonal {
                    outlook.seasonal_cores = outlook.seasonal_cores.max(demand);
                } else if skill.is_some() {
                    outlook.doubted_cores = outlook.doubted_cores.max(demand);
                }
                let is_first = outlook.outgrown.is_none_or(|(outgrown, _)| start < outgrown);
                if is_first && demand * policy.cpu.headroom > limit {
                    outlook.outgrown = Some((start, demand));
                }
            }
        }
        Some(outlook)
    }

    /// The median of its demand from `from` on for so long, in cores: each step's begin and level, the first at `from`. Where nothing is
    /// forecast for that time, what it wants now; `None` where that is not known either.
    pub(crate) fn median_from(
        &self,
        from: Timestamp,
        length: Duration,
        policy: &Policy,
    ) -> Option<Vec<(Timestamp, f64)>> {
        let cores_max = f64::from(self.allocation.vcpus);
        let end = from + length;
        let resolution_ms = self.history.resolution_ms();
        let closed = self.history.closed_until();
        let step_of = |at: Timestamp| 1 + at.since(closed).as_millis() as u64 / resolution_ms;
        if let Some(forecaster) = self.ready().filter(|_| from >= closed)
            && step_of(end) <= policy.forecast.horizon_steps as u64
        {
            let level = |step: u64| {
                let start = closed + Duration::from_millis((step - 1) * resolution_ms);
                (start.max(from), forecaster.quantile(step as usize, 0.5, cores_max))
            };
            return Some((step_of(from)..=step_of(end)).map(level).collect());
        }
        // The far forecast's first level is its median.
        if let Some(Ahead { start, step, quantiles }) = self.pattern.ahead(from, length)
            && !quantiles.is_empty()
        {
            let levels = (0..).map(|index| (start + step * index).max(from));
            return Some(levels.zip(quantiles.into_iter().map(|of| of[0].min(cores_max))).collect());
        }
        let live = self.cpu.map(|cpu| live_cores(&cpu, &self.allocation))?;
        Some(vec![(from, live)])
    }

    /// Its demand within the time from `at` on that is looked ahead for moves, in cores: median and 95 % quantile, each where it is largest.
    /// Never below what it wants now. A forecast with less skill than `skill_min` says nothing. A running VM that tells nothing may want all that it is allowed.
    pub(crate) fn demand_ahead(
        &self,
        at: Timestamp,
        ahead: Duration,
        policy: &Policy,
        skill_min: Option<f64>,
    ) -> (f64, f64) {
        let limit = self.allocation.cpu_limit_cores();
        let Some(live) = self.cpu.map(|cpu| live_cores(&cpu, &self.allocation)) else { return (limit, limit) };
        let cores_max = f64::from(self.allocation.vcpus);
        let (mut median, mut high) = (live, live);
        let [near_skill, far_skill] = self.skills();
        if let Some(forecaster) = self.ready().filter(|_| !falls_short(near_skill, skill_min)) {
            let resolution_ms = self.history.resolution_ms();
            let since_ms = at.since(self.history.closed_until()).as_millis() as u64;
            let reach = policy.forecast.horizon_steps as u64;
            let last = reach.min(1 + (since_ms + ahead.as_millis() as u64) / resolution_ms);
            for step in (1 + since_ms / resolution_ms)..=last {
                let step = step as usize;
                median = median.max(forecaster.quantile(step, 0.5, cores_max));
                high = high.max(forecaster.quantile(step, 0.95, cores_max));
            }
        }
        // Days and weeks are the far forecast's: the near one has seasons of some hours.
        if far_skill.is_some()
            && !falls_short(far_skill, skill_min)
            && let Some(Ahead { quantiles, .. }) = self.pattern.ahead(at, ahead)
        {
            for of in quantiles {
                median = median.max(of[place_of(0.5)]);
                high = high.max(of[place_of(0.95)]);
            }
        }
        (median.min(cores_max), high.max(median).min(cores_max))
    }

    /// The skill of the near and of the far forecast, each where its season has earned its say.
    pub(crate) fn skills(&self) -> [Option<f64>; 2] {
        let far = self.pattern.models().filter(|_| self.pattern.is_earned()).map(|(_, skill)| skill);
        [self.ready().and_then(Forecaster::skill), far]
    }

    /// Whether no seasonal forecast of it has the skill that policy asks for.
    pub(crate) fn is_doubted(&self, skill_min: Option<f64>) -> bool {
        self.skills().iter().all(|&skill| skill.is_none() || falls_short(skill, skill_min))
    }

    /// The near forecast's steps within the lead time: when each begins, and its quantile.
    fn near_demand(
        &self,
        forecaster: &Forecaster,
        at: Timestamp,
        lead: Duration,
        policy: &Policy,
    ) -> Vec<(Timestamp, f64)> {
        let resolution_ms = self.history.resolution_ms();
        let since_ms = at.since(self.history.closed_until()).as_millis() as u64;
        let first = 1 + since_ms / resolution_ms;
        let reach = policy.forecast.horizon_steps as u64 + STEPS_PAST_HORIZON;
        let last = reach.min(1 + (since_ms + lead.as_millis() as u64 + resolution_ms) / resolution_ms);
        let cores_max = f64::from(self.allocation.vcpus);
        let demand = |ahead: u64| {
            let start = self.history.closed_until() + Duration::from_millis((ahead - 1) * resolution_ms);
            (start.max(at), forecaster.quantile(ahead as usize, policy.cpu.quantile, cores_max))
        };
        (first..=last).map(demand).collect()
    }

    /// The same of the far forecast.
    fn far_demand(&self, at: Timestamp, lead: Duration, policy: &Policy) -> Vec<(Timestamp, f64)> {
        let place = place_of(policy.cpu.quantile);
        let ahead = self.pattern.ahead(at, lead);
        let Some(Ahead { start, step, quantiles }) = ahead else { return Vec::new() };
        (0..).map(|index| (start + step * index).max(at)).zip(quantiles).map(|(at, of)| (at, of[place])).collect()
    }
}

/// Which of [`LEVELS`] is the lowest that is no less than a quantile; the highest beyond them.
fn place_of(quantile: f64) -> usize {
    LEVELS.partition_point(|&level| level < quantile).min(LEVELS.len() - 1)
}

/// Whether a forecast has a skill, and not enough of it.
fn falls_short(skill: Option<f64>, skill_min: Option<f64>) -> bool {
    skill.zip(skill_min).is_some_and(|(skill, min)| skill < min)
}
