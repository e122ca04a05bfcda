//! Demand forecasts: quantiles over a horizon, from what a VM wanted before.
//!
//! There are two, for two distances:
//! - **Near**, at the policy's resolution: a [`Refit`] looks for a season in a VM's recent history and replays that through fresh models; it
//!   takes milliseconds and runs on a worker. Between refits each closed step is learnt in O(1). Two models run side by side: one that says
//!   demand stays where it is, one that says it does what it did a season ago. The second speaks only while it errs clearly less, and only
//!   a season lets the planner act before demand is there. Quantiles come from each model's own recent errors.
//! - **Far**, in steps of 5 minutes and of an hour: the [`engine`] combines many models over weeks of history. What it says of the day and the
//!   month ahead is kept as a table; see [`crate::pattern`].

mod combine;
mod conformal;
pub mod engine;
mod errors;
mod features;
mod forecaster;
mod horizon;
mod level;
mod models;
mod normal;
mod profile;
mod season;
mod seasonal;
mod series;
mod spread;
#[cfg(test)]
mod tests;
mod transform;

use gnomon_common::wire::VmId;

use crate::history::{History, Step};
use crate::policy::ForecastPolicy;
pub(crate) use forecaster::Forecaster;

/// The first fit waits for this many measured steps: fewer make no quantile.
pub(crate) const FIT_STEPS_MIN: usize = 24;

/// Between fits the history grows by this part of its measured steps…
const FIT_GROWTH_DIVISOR: usize = 10;

/// …but by at least this many steps.
const FIT_INTERVAL_STEPS_MIN: u64 = 8;

/// Steps until the next fit, when `measured` are known now. Young histories are looked at often, because that is when a season
/// shows; old ones rarely.
pub(crate) fn fit_interval_steps(measured: usize) -> u64 {
    FIT_INTERVAL_STEPS_MIN.max((measured / FIT_GROWTH_DIVISOR) as u64)
}

/// The models of the near forecast, to be made anew.
#[derive(Clone, Debug)]
pub(crate) struct Refit {
    vm: VmId,
    ticket: u64,
    policy: ForecastPolicy,
    first: u64,
    steps: Vec<Option<Step>>,
}

/// What a [`Refit`] found.
#[derive(Clone, Debug)]
pub(crate) struct Refitted {
    pub(crate) vm: VmId,
    pub(crate) ticket: u64,
    pub(crate) forecaster: Forecaster,
}

impl Refit {
    pub(crate) fn new(vm: VmId, ticket: u64, policy: &ForecastPolicy, history: &History) -> Self {
        let steps = history.since(0).map(|(_, step)| step).collect();
        Self { vm, ticket, policy: policy.clone(), first: history.first(), steps }
    }

    /// Does the work. Deterministic. O(steps × longest season).
    pub(crate) fn run(self) -> Refitted {
        let Self { vm, ticket, policy, first, steps } = self;
        // For a start, a censored step is what the step before was, as far as it may be.
        let mut last = None;
        let values: Vec<f64> = steps
            .iter()
            .map(|step| {
                let Some(step) = step.map(Step::mean) else { return f64::NAN };
                let value = step.nearest(last.unwrap_or(step.middle()));
                last = Some(value);
                value
            })
            .collect();
        let season_steps = season::detect(&values, policy.season_steps_min, policy.season_steps_max);
        let mut forecaster = Forecaster::new(first, policy.horizon_steps, season_steps);
        steps.into_iter().for_each(|step| forecaster.learn(step));
        Refitted { vm, ticket, forecaster }
    }
}
