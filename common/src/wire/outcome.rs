//! What became of a command.

use super::{
    Blueprint, CommandId, Fence, Imaged, Immovable, Means, Moved, Setting, ShadowDone, Unshadowable, VmId, Whereabouts,
};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

/// The answer to one command, or what an agent did of its own accord. An agent keeps it until the brain has acknowledged it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which command; one of [`CommandId::LOCAL_TERM`] where there was none.
    pub id: CommandId,
    /// Whose VM.
    pub vm: VmId,
    /// When it was decided, on the agent's wall clock.
    pub at: Timestamp,
    /// What made the agent act.
    pub origin: Origin,
    /// What happened.
    pub result: OutcomeResult,
}

/// What made an agent act.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The command that the outcome answers.
    Command,
    /// The agent itself, within the bounds of its configuration.
    Local {
        /// Which of its duties.
        cause: LocalCause,
        /// Why, in words for a person.
        reason: String,
    },
}

/// The duties that make an agent act without a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalCause {
    /// The brain is away and a VM starves: grow.
    Reflex,
    /// The brain is away and all is quiet: back towards the baseline.
    Drift,
    /// Someone undid or changed a limit: it was applied again.
    Reapply,
    /// Someone changed a limit, and by policy Gnomon keeps its hands off that VM until it is released or resumed.
    StandDown,
}

/// What happened to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeResult {
    /// Done, and read back from the system that was changed.
    Applied {
        /// What was in force before: one setting for each means that was touched (a release may touch several).
        before: Vec<Setting>,
        /// What was read back afterwards, in the same order.
        after: Vec<Setting>,
        /// From receipt to read-back, in microseconds: what the planner's lead time is made of.
        took_us: u64,
    },
    /// Judged good, but the agent runs with `--dry-run`: nothing was changed.
    DryRun,
    /// It runs on the other host now.
    Moved(Moved),
    /// Its migration was tried and did not come about.
    NotMoved {
        /// What went wrong, for a person.
        error: String,
        /// What that means for the VM.
        whereabouts: Whereabouts,
    },
    /// Looked at, and not even tried to migrate.
    Immovable(Immovable),
    /// What a shadow of it is made from.
    Described(Box<Blueprint>),
    /// Its disks are copied.
    Imaged(Box<Imaged>),
    /// How fast its guest writes to its memory.
    DirtyRate {
        /// Memory that was written to within the period, by the second, in bytes; what is written to twice counts once.
        bytes_per_s: u64,
    },
    /// The shadow is as it was ordered.
    Shadow(ShadowDone),
    /// Looked at, and no shadow was made or changed.
    Unshadowable(Unshadowable),
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
    #[error("below this host's floor: {floor}")]
    BelowFloor {
        /// The least that is allowed.
        floor: Setting,
    },
    /// The agent's ceiling, or what the VM is defined with, forbids it.
    #[error("above this VM's ceiling: {ceiling}")]
    AboveCeiling {
        /// The most that is allowed.
        ceiling: Setting,
    },
    /// It would leave the VM less than it uses now and the reserve beside that.
    #[error("below live use and reserve: {least}")]
    BelowLiveUse {
        /// The least that is allowed now.
        least: Setting,
    },
    /// It shrinks by more than one step at a time.
    #[error("too large a step: not below {least} at once")]
    StepTooLarge {
        /// The least that is allowed in one step.
        least: Setting,
    },
    /// The host's configuration does not allow this means.
    #[error("this host's agent is not configured to change the {means}")]
    NotAllowed {
        /// Which means.
        means: Means,
    },
    /// The VM or its hypervisor lacks what this takes: a balloon driver, statistics, a network interface, free vCPU slots.
    #[error("this VM has no way to change its {means}")]
    Unsupported {
        /// Which means.
        means: Means,
    },
    /// Someone else changed the VM's limits, and by policy Gnomon keeps its hands off until it is released or resumed.
    #[error("the agent stands down for this VM: someone else changed its limits")]
    StoodDown,
    /// No such running VM here.
    #[error("no such running VM on this host")]
    UnknownVm,
    /// The target is not a number, or otherwise makes no sense.
    #[error("the target is not a finite positive number")]
    Nonsense,
    /// It is being migrated: until that has ended nothing else is done to it.
    #[error("it is being migrated")]
    Migrating,
    /// The agent is not configured to migrate VMs.
    #[error("this host's agent is not configured to migrate VMs")]
    MigrationNotAllowed,
    /// As many VMs are on their way from here as the agent allows at once.
    #[error("{most} migrations are under way from here, the most that are allowed at once")]
    TooManyMigrations {
        /// The most at once.
        most: u32,
    },
    /// Its owner has opted it out, in its metadata.
    #[error("its owner keeps Gnomon's hands off it, in its metadata")]
    OptedOut,
    /// The agent is not configured to take shadows.
    #[error("this host's agent is not configured to take shadows")]
    ShadowsNotAllowed,
    /// The agent is not configured to copy disks.
    #[error("this host's agent is not configured to copy disks")]
    CopiesNotAllowed,
    /// Too many commands were waiting already.
    #[error("the agent's command queue was full")]
    QueueFull,
}
