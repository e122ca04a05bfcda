//! What became of a command.

use super::{CommandId, Fence, VmId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::string::String;

/// The answer to one command. An agent keeps it until the brain has acknowledged it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which command.
    pub id: CommandId,
    /// Whose VM.
    pub vm: VmId,
    /// When it was decided, on the agent's wall clock.
    pub at: Timestamp,
    /// What happened.
    pub result: OutcomeResult,
}

/// What happened to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeResult {
    /// Done, and read back from the system that was changed.
    Applied {
        /// CPU quota before, in cores; `None` is unlimited.
        before_cores: Option<f64>,
        /// CPU quota read back afterwards, in cores; `None` is unlimited.
        after_cores: Option<f64>,
        /// From receipt to read-back, in microseconds: what the planner's lead time is made of.
        took_us: u64,
    },
    /// Judged good, but the agent runs with `--dry-run`: nothing was changed.
    DryRun,
    /// Judged and not done: trying again would be refused again.
    Refused(RefusedCommand),
    /// Tried and not achieved. `retryable`: the same command may succeed later.
    Failed {
        /// What went wrong, for a person.
        error: String,
        /// Whether the same target may be reached later.
        retryable: bool,
    },
}

/// Why an agent does not carry out a command.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCommand {
    /// A newer fence was already obeyed for this VM, or a newer term on this host.
    #[error("stale: {seen} was already obeyed here")]
    StaleFence {
        /// The newest fence seen.
        seen: Fence,
    },
    /// Its time to live ran out before it could be started.
    #[error("expired {late_ms} ms ago")]
    Expired {
        /// By how much, in milliseconds.
        late_ms: u64,
    },
    /// The agent's floor forbids it.
    #[error("below this host's floor of {floor_cores} cores")]
    BelowFloor {
        /// The floor, in cores.
        floor_cores: f64,
    },
    /// The agent's ceiling, or the number of vCPUs, forbids it.
    #[error("above this VM's ceiling of {ceiling_cores} cores")]
    AboveCeiling {
        /// The ceiling, in cores.
        ceiling_cores: f64,
    },
    /// No such running VM here.
    #[error("no such running VM on this host")]
    UnknownVm,
    /// The target is not a number, or otherwise makes no sense.
    #[error("the target is not a finite positive number")]
    Nonsense,
    /// Too many commands were waiting already.
    #[error("the agent's command queue was full")]
    QueueFull,
}
