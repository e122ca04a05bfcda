//! Plans: immutable lists of actions, each with its reason.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Fence, HostId, VmId};
use serde::{Deserialize, Serialize};

/// What to do now, all VMs together. Nothing is decided later, when it is carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// When it was made.
    pub at: Timestamp,
    /// Its place among all plans.
    pub fence: Fence,
    /// What to do, sorted by VM.
    pub actions: Vec<PlannedAction>,
}

/// One action of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedAction {
    /// Where.
    pub host: HostId,
    /// Whose VM.
    pub vm: VmId,
    /// What.
    pub action: Action,
    /// CPU limit before, in cores; `None` is unlimited. Going back to it is the undo of this one step.
    pub before_cores: Option<f64>,
    /// Why.
    pub reason: Reason,
}

/// Why a resize is planned. `Display` tells a person.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    /// Demand is forecast to outgrow the quota within the lead time, although it does not yet.
    ForecastSurge {
        /// When the demand is expected.
        at: Timestamp,
        /// The forecast quantile it rests on, in cores.
        demand_cores: f64,
    },
    /// Demand outgrows the quota now.
    LiveDemand {
        /// What is wanted now, in cores.
        demand_cores: f64,
    },
    /// Neither live nor forecast demand has needed the quota for the dwell time.
    Slack {
        /// The most that was wanted or is forecast, in cores.
        demand_cores: f64,
    },
    /// An operator asked for it.
    Operator,
}
