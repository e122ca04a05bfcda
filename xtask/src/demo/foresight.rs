//! What was forecast for a second, a lead time before it came: the only forecast that could have helped.

use gnomon_common::time::Timestamp;
use gnomon_core::Reason;
use gnomon_core::view::{Explanation, Forecast};
use std::collections::BTreeMap;

/// Forecasts remembered for seconds that have not come yet; older ones are dropped.
const REMEMBERED_MAX: usize = 120;

/// A growth counts as just decided for so long, in milliseconds: its command and the next window take a second or two.
const JUST_MS: u64 = 3000;

/// The live demand for which a VM was grown just before `now`, if that was the reason, in cores.
pub(super) fn grown_for(explanation: &Explanation, now: Timestamp) -> Option<f64> {
    let latest =
        explanation.recent.first().filter(|latest| now.unix_ms().saturating_sub(latest.at.unix_ms()) <= JUST_MS)?;
    match latest.action.reason {
        Reason::LiveDemand { demand_cores } => Some(demand_cores),
        _ => None,
    }
}

/// Forecasts by the start of the step they are for, in milliseconds since the epoch: median and 95 % quantile, in cores.
#[derive(Debug, Default)]
pub(super) struct Foresight(BTreeMap<u64, (f64, f64)>);

impl Foresight {
    /// Keeps what `forecast` says about the step a lead time ahead, and returns all of it from now on.
    pub(super) fn remember(&mut self, forecast: &Forecast, lead_ms: u64) -> Vec<(f64, f64)> {
        let lead_steps = usize::try_from(lead_ms / forecast.resolution_ms.max(1)).unwrap_or(0);
        if let Some(step) = forecast.steps.get(lead_steps) {
            let at_ms = forecast.made.unix_ms() + lead_steps as u64 * forecast.resolution_ms;
            self.0.insert(at_ms, (step.p50, step.p95));
        }
        while self.0.len() > REMEMBERED_MAX {
            self.0.pop_first();
        }
        forecast.steps.iter().map(|step| (step.p50, step.p95)).collect()
    }

    /// What was forecast for the step that began at or before `at_ms`, at most one and a half seconds before.
    pub(super) fn recall(&self, at_ms: u64) -> Option<(f64, f64)> {
        self.0.range(at_ms.saturating_sub(1500)..=at_ms).next_back().map(|(_, quantiles)| *quantiles)
    }
}
