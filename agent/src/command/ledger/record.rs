//! What the ledger remembers, as JSON: a later release, or a person with a hex dump, must be able to read it.

use crate::actuate::migrate::CopyRecord;
use crate::command::clock::BootInstant;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Command, LocalCause, Means, Origin, Setting, VmId};
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
    /// Why the agent gave itself this command; `None` for one of the brain's.
    #[serde(default)]
    pub cause: Option<LocalCause>,
    /// Of a migration: the brain has been told that the VM stands still, and it is still to be found out where it is. Of an order about a
    /// shadow: that it takes longer than it should.
    #[serde(default)]
    pub parked: bool,
    /// Of a migration: what it makes on the other host, and removes there if the VM stays.
    #[serde(default)]
    pub copies: Option<CopyRecord>,
    /// Of a migration: the VM was seen to run, or to have run, on the other host. What is here is older than its disks since.
    #[serde(default)]
    pub ran_there: bool,
    /// Of a migration: a command said that it is to be given up.
    #[serde(default)]
    pub given_up: bool,
}

impl Intent {
    /// Of a command that was received then, as far as that tells.
    pub fn new(command: Command, received: BootInstant, received_at: Timestamp) -> Self {
        Self {
            command,
            received,
            received_at,
            changes: Vec::new(),
            life: None,
            cause: None,
            parked: false,
            copies: None,
            ran_there: false,
            given_up: false,
        }
    }

    /// Whether it moves a VM to another host.
    pub fn is_migration(&self) -> bool {
        matches!(self.command.action, Action::Migrate(_))
    }

    /// Whether it is about a shadow.
    pub fn is_shadow(&self) -> bool {
        matches!(self.command.action, Action::Shadow(_) | Action::Image(_))
    }

    /// What made the agent act.
    pub fn origin(&self) -> Origin {
        origin(&self.command, self.cause)
    }
}

/// What made the agent act: the command itself, or the duty for which it gave itself this command.
pub fn origin(command: &Command, cause: Option<LocalCause>) -> Origin {
    cause.map_or(Origin::Command, |cause| Origin::Local { cause, reason: command.reason.clone() })
}

/// One means: where it stood and where it is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// In force before.
    pub before: Setting,
    /// To be in force; for a release, the baseline.
    pub target: Setting,
}

/// How to undo everything Gnomon did to one VM, and what it holds there: written before the first change by each means, forgotten by a
/// release, replaced at the first change in its next life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UndoRecord {
    /// Which VM.
    pub vm: VmId,
    /// Its name then, for people.
    pub name: String,
    /// Which life of the VM it belongs to, if that could be told: it says nothing about another one.
    pub life: Option<VmLife>,
    /// What was in force before the first change in this life, one for each means that was changed, in the order of their first
    /// changes. What the owner has set since takes its place.
    pub baselines: Vec<Setting>,
    /// What Gnomon set last and read back, at most one for each means.
    #[serde(default)]
    pub applied: Vec<Setting>,
    /// What Gnomon tried to set last, at most one for each means: a call without an answer may still take effect.
    #[serde(default)]
    pub attempted: Vec<Setting>,
    /// Gnomon keeps its hands off this VM until it is released, in its next lives too.
    #[serde(default)]
    pub stood_down: Option<StoodDown>,
    /// When it was read.
    pub at: Timestamp,
}

/// Why Gnomon keeps its hands off a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoodDown {
    /// Since when.
    pub at: Timestamp,
    /// What someone else had set.
    pub found: Setting,
    /// In words for a person.
    pub reason: String,
}

impl UndoRecord {
    /// A record of baselines, read just now, before the first change by their means.
    pub fn new(vm: VmId, name: String, life: Option<VmLife>, baselines: Vec<Setting>, at: Timestamp) -> Self {
        Self { vm, name, life, baselines, applied: Vec::new(), attempted: Vec::new(), stood_down: None, at }
    }

    /// What was in force before the first change by this means, if there was one.
    pub fn baseline(&self, means: Means) -> Option<Setting> {
        among(&self.baselines, means)
    }

    /// What Gnomon set last by this means.
    pub fn applied(&self, means: Means) -> Option<Setting> {
        among(&self.applied, means)
    }

    /// What Gnomon tried to set last by this means.
    pub fn attempted(&self, means: Means) -> Option<Setting> {
        among(&self.attempted, means)
    }

    /// Adds the baselines of means that this record does not know yet.
    pub fn extend(&mut self, newer: &Self) {
        for baseline in &newer.baselines {
            if self.baseline(baseline.means()).is_none() {
                self.baselines.push(*baseline);
            }
        }
    }

    /// An intent is about to be carried out.
    pub(super) fn note_attempt(&mut self, intent: &Intent) {
        if matches!(intent.command.action, Action::Set(_)) {
            intent.changes.iter().for_each(|change| replace(&mut self.attempted, change.target));
        }
    }

    /// This was read back.
    pub fn note_applied(&mut self, after: Setting) {
        replace(&mut self.applied, after);
    }

    /// The owner has set this: it is what a release gives back.
    pub fn rebase(&mut self, found: Setting) {
        replace(&mut self.baselines, found);
    }

    /// What is in force by this means is none of Gnomon's any more: there is nothing to undo.
    pub fn disown(&mut self, means: Means) {
        for settings in [&mut self.baselines, &mut self.applied, &mut self.attempted] {
            settings.retain(|setting| setting.means() != means);
        }
    }
}

fn among(settings: &[Setting], means: Means) -> Option<Setting> {
    settings.iter().copied().find(|setting| setting.means() == means)
}

fn replace(settings: &mut Vec<Setting>, setting: Setting) {
    match settings.iter_mut().find(|known| known.means() == setting.means()) {
        Some(known) => *known = setting,
        None => settings.push(setting),
    }
}
