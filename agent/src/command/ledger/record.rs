//! What the ledger remembers, as JSON: a later release, or a person with a hex dump, must be able to read it.

use crate::command::clock::BootInstant;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Command, Means, Setting, VmId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One life of a VM: its QEMU process. Limits are set on the running domain only, so they end with it, and so does what undoes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmLife {
    /// The host's boot, `/proc/sys/kernel/random/boot_id`.
    pub boot: Uuid,
    /// QEMU's process id.
    pub pid: u32,
    /// When it started, in clock ticks since that boot.
    pub start_ticks: u64,
}

impl VmLife {
    /// Whether two sightings are of different lives for sure. Where one is not known nothing is: to restore an earlier life's limit is
    /// a lesser evil than to take a limit of Gnomon's for the owner's.
    pub fn ended(earlier: Option<Self>, now: Option<Self>) -> bool {
        matches!((earlier, now), (Some(earlier), Some(now)) if earlier != now)
    }
}

/// A command that was judged good: written before anything is changed, removed together with the writing of its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The command, whole.
    pub command: Command,
    /// When it was received: its time to live counts from here, across restarts of the agent.
    pub received: BootInstant,
    /// The same on the wall clock, for people and for lateness after a reboot.
    pub received_at: Timestamp,
    /// What is to be changed, one means each: one change for a command that sets something, one for each baseline for a release.
    pub changes: Vec<Change>,
    /// Which life of the VM it is meant for, if that could be told.
    pub life: Option<VmLife>,
}

/// One means: where it stood and where it is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// In force before.
    pub before: Setting,
    /// To be in force; for a release, the baseline.
    pub target: Setting,
}

/// How to undo everything Gnomon did to one VM: written before the first change by each means, forgotten by a release,
/// replaced at the first change in its next life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UndoRecord {
    /// Which VM.
    pub vm: VmId,
    /// Its name then, for people.
    pub name: String,
    /// Which life of the VM it belongs to, if that could be told: it says nothing about another one.
    pub life: Option<VmLife>,
    /// What was in force before the first change in this life, one for each means that was changed, in the order of their first
    /// changes.
    pub baselines: Vec<Setting>,
    /// When it was read.
    pub at: Timestamp,
}

impl UndoRecord {
    /// What was in force before the first change by this means, if there was one.
    pub fn baseline(&self, means: Means) -> Option<Setting> {
        self.baselines.iter().copied().find(|baseline| baseline.means() == means)
    }

    /// Adds the baselines of means that this record does not know yet.
    pub fn extend(&mut self, newer: &Self) {
        for baseline in &newer.baselines {
            if self.baseline(baseline.means()).is_none() {
                self.baselines.push(*baseline);
            }
        }
    }
}
