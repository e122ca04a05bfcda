//! What the brain tells one agent to do.

use super::{CommandId, Imaging, Migration, Setting, ShadowOrder, VmId};
use core::fmt;
use serde::{Deserialize, Serialize};
use std::string::String;

/// One change to one VM on one host: an absolute target, idempotent by [`Command::id`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Unique for ever; a command that arrives twice is applied once and answered twice.
    pub id: CommandId,
    /// Whose VM.
    pub vm: VmId,
    /// What to do.
    pub action: Action,
    /// Decides which of two brains, or of two plans, is the newer.
    pub fence: Fence,
    /// Not to be started later than this after it was received, in milliseconds of the agent's `CLOCK_BOOTTIME`.
    pub time_to_live_ms: u64,
    /// Why, in words for a person: shown by `gnomon explain`, logged by the agent.
    pub reason: String,
}

/// What can be done to a VM. Targets are absolute, so that doing it twice is doing it once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Bring one means to this state.
    Set(Setting),
    /// Restore what was there before Gnomon's first change, by whatever means, and forget the VM's undo record.
    Release,
    /// Move it to another host while it runs. Sent to the host that it is on, which carries it out.
    Migrate(Migration),
    /// Give up the migration of it that is under way, if there is one: it stays where it is.
    AbortMigration,
    /// Tell what a shadow of it is made from. Changes nothing.
    Describe,
    /// Copy its disks that have no base, for a shadow of it. Nothing is written to them.
    Image(Imaging),
    /// Measure how fast its guest writes to its memory. Changes nothing.
    DirtyRate {
        /// For how long, in seconds, 1 to 60: QEMU looks at both ends.
        period_s: u8,
    },
    /// Bring a shadow to this state. The VM of the command is the shadow itself, which need not exist yet.
    Shadow(ShadowOrder),
}

/// A command is obeyed only if its fence is newer than any that its VM has seen: first by lease term, then by plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The brain's lease term, raised at each start and at each change of leader.
    pub term: u64,
    /// The number of the plan within the term.
    pub generation: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {} generation {}", self.term, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_term_beats_any_generation_of_an_earlier_one() {
        assert!(Fence { term: 2, generation: 0 } > Fence { term: 1, generation: u64::MAX });
        assert!(Fence { term: 2, generation: 2 } > Fence { term: 2, generation: 1 });
    }
}
