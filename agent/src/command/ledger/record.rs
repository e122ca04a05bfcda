//! What the ledger remembers, as JSON: a later release, or a person with a hex dump, must be able to read it.

use crate::command::clock::BootInstant;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Command, VmId};
use serde::{Deserialize, Serialize};

/// A command that was judged good: written before anything is changed, removed together with the writing of its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The command, whole.
    pub command: Command,
    /// When it was received: its time to live counts from here, across restarts of the agent.
    pub received: BootInstant,
    /// The same on the wall clock, for people and for lateness after a reboot.
    pub received_at: Timestamp,
    /// What was in force before, in cores; `None` is unlimited.
    pub before_cores: Option<f64>,
    /// What is to be in force, in cores; `None` is unlimited. For a release, the baseline.
    pub target_cores: Option<f64>,
}

/// How to undo everything Gnomon did to one VM: written before its first change, forgotten by a release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UndoRecord {
    /// Which VM.
    pub vm: VmId,
    /// Its name then, for people.
    pub name: String,
    /// CPU quota before the first change, in cores; `None` is unlimited.
    pub baseline_cores: Option<f64>,
    /// When it was read.
    pub at: Timestamp,
}
