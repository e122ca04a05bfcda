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
//! One thread ([`executor`]) owns the ledger and the actuator; others reach it through a bounded queue ([`Commands`]) and read its answers
//! from a [`tokio::sync::watch`]. Nothing is changed before its intent is synced, and an outcome is kept until the brain has it.
//!
//! Architecture Invariant: this module opens no socket and makes no decision about sizes; it obeys or refuses.

pub mod clock;
pub mod directory;
pub mod executor;
pub mod judge;
pub mod ledger;
pub mod release;

use clock::BootInstant;
use gnomon_common::wire::{Command, CommandId, Fence, Outcome, VmId};
use judge::{Resources, Sighting};
use ledger::VmLife;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
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

/// Label of [`Metrics::commands`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

const APPLIED: ByResult = ByResult { result: "applied" };
const DRY_RUN: ByResult = ByResult { result: "dry_run" };
const REFUSED: ByResult = ByResult { result: "refused" };
const FAILED: ByResult = ByResult { result: "failed" };

/// What commands cost and how they end.
#[derive(Clone, Debug)]
pub struct Metrics {
    commands: Family<ByResult, Counter>,
    repeated: Counter,
    queue_full: Counter,
    ledger_errors: Counter,
    outcomes_forgotten: Counter,
    outcomes_pending: Gauge,
    actuation_seconds: Histogram,
}

impl Metrics {
    /// Makes and registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        // Milliseconds when all is well, up to the actuation's deadline of 10 s.
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];
        let new = Self {
            commands: Family::default(),
            repeated: Counter::default(),
            queue_full: Counter::default(),
            ledger_errors: Counter::default(),
            outcomes_forgotten: Counter::default(),
            outcomes_pending: Gauge::default(),
            actuation_seconds: Histogram::new(buckets),
        };
        for result in [APPLIED, DRY_RUN, REFUSED, FAILED] {
            drop(new.commands.get_or_create(&result)); // shown from the start, as 0
        }
        registry.register("gnomon_agent_commands", "Commands concluded, by result", new.commands.clone());
        registry.register(
            "gnomon_agent_commands_repeated",
            "Commands that had come before and were answered from the ledger",
            new.repeated.clone(),
        );
        registry.register(
            "gnomon_agent_commands_queue_full",
            "Commands refused because too many were waiting",
            new.queue_full.clone(),
        );
        registry.register(
            "gnomon_agent_ledger_errors",
            "Reads and writes of the command ledger that failed",
            new.ledger_errors.clone(),
        );
        registry.register(
            "gnomon_agent_outcomes_forgotten",
            "Outcomes forgotten before the brain had acknowledged them",
            new.outcomes_forgotten.clone(),
        );
        registry.register(
            "gnomon_agent_outcomes_pending",
            "Outcomes the brain has not acknowledged",
            new.outcomes_pending.clone(),
        );
        registry.register(
            "gnomon_agent_actuation_seconds",
            "From a command's receipt to its read-back",
            new.actuation_seconds.clone(),
        );
        new
    }

    /// Counts a command refused before it reached the executor.
    pub fn count_queue_full(&self) {
        self.queue_full.inc();
    }
}

/// Two instants' distance in whole microseconds, as outcomes tell it; zero across a reboot.
fn took_us(from: BootInstant, to: BootInstant) -> u64 {
    to.since(from).map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}
