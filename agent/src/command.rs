//! Commands: receive, judge against the host's own guard rails, remember, carry out, answer.
//!
//! ```text
//!  Command -> id known? --yes--> the recorded outcome is pending again
//!                |no
//!              judge ---------refused----------------------------+
//!                |obey                                           |
//!        read what is in force                                   |
//!                |                                               |
//!   ledger: intent, fence, undo record   <- a crash after this   |
//!                |                          is resolved at the   |
//!             actuate, read back            next start by        |
//!                |                          reading back         v
//!   ledger: outcome, intent removed <-----------------------  outcome
//! ```
//!
//! A migration takes longer: its intent is written, it goes on beside this on a [thread of its own](crate::actuate::migrate), and it is
//! concluded when it is known where the VM is, in a later life of the agent if need be.
//!
//! One thread ([`executor`]) owns the ledger and the actuator; others reach it through a bounded queue ([`Commands`]) and read its answers
//! from a [`tokio::sync::watch`]. Nothing is changed before its intent is synced, and an outcome is kept until the brain has it.
//!
//! Beside commands the same thread has two duties, whose acts go the same way, under ids of the agent's own:
//! * *away*: while there is no brain it holds what is set, but for VMs that Gnomon has resized: a starving one grows ([`reflex`]), a quiet
//!   one goes back towards its baseline ([`drift`]). A VM that Gnomon has not changed is none of its business.
//! * *reconcile*: what Gnomon set is compared with what is in force every few seconds; who else changed it is answered by [`reconcile`].
//!
//! Architecture Invariant: this module opens no socket. While there is a brain it makes no decision about sizes: it obeys or refuses.

pub mod clock;
pub mod directory;
pub mod drift;
pub mod executor;
pub mod judge;
pub mod ledger;
mod metrics;
pub mod presence;
pub mod reconcile;
pub mod reflex;
pub mod release;

pub use metrics::Metrics;

use clock::BootInstant;
use gnomon_common::wire::{Command, CommandId, Fence, Outcome, VmId, VmTerms};
use judge::{Resources, Sighting};
use ledger::VmLife;
use presence::BrainPresence;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use tokio::sync::watch;

/// Commands that may wait for the executor. One takes milliseconds, and a brain sends few at a time: a longer queue would only hold
/// commands until they expire.
pub const COMMANDS_WAITING_MAX: usize = 64;

/// Room beyond waiting commands, for acknowledgements and terms, which are never refused in favour of a command.
const NOTICES_WAITING_MAX: usize = 1_024;

/// What is known of a VM without asking libvirt.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Whether it is here.
    pub sighting: Sighting,
    /// Its name.
    pub name: Option<String>,
    /// Its present life, if that can be told.
    pub life: Option<VmLife>,
}

/// Tells about VMs: the last inventory, never a call to libvirt.
pub trait VmDirectory: Send {
    /// What is known of a VM.
    fn find(&self, vm: VmId) -> Known;

    /// What is known of what it has and could be given, beside CPU; nothing, unless said otherwise.
    fn resources(&self, _vm: VmId) -> Resources {
        Resources::default()
    }

    /// The VMs that have come from another host, with what came with them, as far as that was read.
    fn keepsakes(&self) -> Vec<(VmId, String)> {
        Vec::new()
    }

    /// What its owner and its definition allow, once that was read.
    fn terms(&self, _vm: VmId) -> Option<VmTerms> {
        Some(VmTerms::default())
    }
}

/// What the executor has to say: the latest of it is always complete.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Outcomes that wait for the brain's acknowledgement, oldest first, with their running numbers (never used twice).
    pub pending: Arc<[(u64, Outcome)]>,
    /// The highest fence obeyed.
    pub fence_highest: Option<Fence>,
}

/// What is asked of the executor.
#[derive(Debug)]
pub enum Request {
    /// Judge, carry out, answer.
    Command {
        /// What.
        command: Box<Command>,
        /// When it arrived.
        received: clock::Now,
    },
    /// The brain has this outcome.
    Acknowledged(CommandId),
    /// A brain of this term has welcomed us.
    Term(u64),
}

/// The queue is full, or the executor has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Too much is waiting.
    #[error("the command queue is full")]
    Full,
    /// The executor has ended.
    #[error("the command thread has ended")]
    Ended,
}

/// The way to the executor: cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: SyncSender<Request>,
    waiting: Arc<AtomicUsize>,
    answers: watch::Receiver<Answers>,
    presence: BrainPresence,
}

impl Commands {
    /// Hands a command over; its outcome will be among the [`Answers`].
    pub fn submit(&self, command: Command, received: clock::Now) -> Result<(), NotTaken> {
        // Counted before it is sent, so that the executor never sees more than it was told.
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= COMMANDS_WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(NotTaken::Full);
        }
        self.send(Request::Command { command: Box::new(command), received }).inspect_err(|_| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Passes an acknowledgement on. If it cannot be taken the outcome stays pending and is sent again on the next connection.
    pub fn acknowledge(&self, id: CommandId) -> Result<(), NotTaken> {
        self.send(Request::Acknowledged(id))
    }

    /// Passes a brain's lease term on.
    pub fn see_term(&self, term: u64) -> Result<(), NotTaken> {
        self.send(Request::Term(term))
    }

    /// Where the uplink tells whether there is a brain.
    pub fn presence(&self) -> &BrainPresence {
        &self.presence
    }

    /// The executor's answers, present and future.
    pub fn answers(&self) -> watch::Receiver<Answers> {
        self.answers.clone()
    }

    fn send(&self, request: Request) -> Result<(), NotTaken> {
        self.queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => NotTaken::Full,
            TrySendError::Disconnected(_) => NotTaken::Ended,
        })
    }
}

/// Two instants' distance in whole microseconds, as outcomes tell it; zero across a reboot.
fn took_us(from: BootInstant, to: BootInstant) -> u64 {
    to.since(from).map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}
