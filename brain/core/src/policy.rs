//! The operator's policy: every number that decides how Gnomon behaves. Read from the `[policy]` part of the brain's configuration.

use serde::{Deserialize, Serialize};

/// All settings of the core. Every one has a default; unknown keys are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// What to do with plans.
    pub mode: Mode,
    /// How demand is forecast.
    pub forecast: ForecastPolicy,
    /// How a VM's CPU quota is sized.
    pub cpu: CpuPolicy,
}

/// What Gnomon does with a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Measure and forecast; make no plan.
    #[default]
    Observe,
    /// Make and show plans; send nothing.
    Recommend,
    /// Make plans and carry them out.
    Auto,
}

/// How demand is forecast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForecastPolicy {
    /// Length of one step of history and forecast, in milliseconds. At least the agents' window.
    pub resolution_ms: u64,
    /// How far ahead to forecast, in steps.
    pub horizon_steps: usize,
    /// Shortest season looked for, in steps.
    pub season_steps_min: usize,
    /// Longest season looked for, in steps. History keeps several of these.
    pub season_steps_max: usize,
}

/// How a VM's CPU quota is sized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuPolicy {
    /// Which forecast quantile to provide for: 0.5, 0.9, 0.95 or 0.99.
    pub quantile: f64,
    /// Multiplies what is provided for (1.1 leaves a tenth to spare).
    pub headroom: f64,
    /// Grow this long before the forecast demand arrives, in milliseconds.
    pub lead_ms: u64,
    /// Smallest quota, in cores; an agent's own floor counts as well.
    pub floor_cores: f64,
    /// Shrink only after the smaller size would have been enough for this long, in milliseconds.
    pub shrink_dwell_ms: u64,
    /// Least time between two shrinks of a VM, in milliseconds. Growth never waits.
    pub shrink_interval_ms: u64,
    /// Changes smaller than this share of the present quota are not worth a resize.
    pub hysteresis: f64,
    /// A command not started within this time is void, in milliseconds.
    pub command_ttl_ms: u64,
}

impl Default for ForecastPolicy {
    fn default() -> Self {
        // One-minute steps, an hour ahead, seasons from an hour to a day.
        Self { resolution_ms: 60_000, horizon_steps: 60, season_steps_min: 60, season_steps_max: 1440 }
    }
}

impl Default for CpuPolicy {
    fn default() -> Self {
        Self {
            quantile: 0.95,
            headroom: 1.1,
            lead_ms: 120_000,
            floor_cores: 0.1,
            shrink_dwell_ms: 300_000,
            shrink_interval_ms: 300_000,
            hysteresis: 0.05,
            command_ttl_ms: 30_000,
        }
    }
}
