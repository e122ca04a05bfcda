//! The one loop that owns the core.
//!
//! Inputs come by one bounded queue and are handled in their order; outputs leave through [`carry`](self), which syncs
//! every record before it sends a command that came after it. The loop itself never waits for a disk, a network or a
//! fit: while outputs pile up it takes no more inputs (and so pushes back on the agents), but it still answers
//! questions and notices the time.
//!
//! One lease term is one [`Drive`]: a new core, told what the store remembers, with a term above every earlier one.

mod carry;
mod metrics;
mod recent;
mod turn;

use carry::Asking;
pub use carry::{Dispatch, Issued};
pub use metrics::DriveMetrics;
pub use recent::{HistoryPoint, Recent};

use crate::capacity::Provider;
use crate::clock;
use crate::store::{Journal, Stopped, Store, StoreError};
use gnomon_common::wire::{CommandId, Report};
use gnomon_core::{Core, Input, OperatorRequest, Policy, Restored};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use turn::Turn;

/// Inputs waiting for the core: a full queue makes sessions wait, and QUIC's flow control their agents.
const EVENTS_MAX: usize = 1024;
/// Questions waiting: the API answers 503 beyond it.
const QUESTIONS_MAX: usize = 64;

/// What the loop takes in.
#[expect(clippy::large_enum_variant, reason = "a full queue of them is less than a megabyte")]
pub enum Event {
    /// Something for the core.
    Input(Input),
    /// An operator's request; `synced` resolves, with the commands that came of it, once all that follows from it is in
    /// the store and its commands are sent.
    Operator {
        /// Who asks: the token's name.
        actor: String,
        /// What.
        request: OperatorRequest,
        /// Told when it is done.
        synced: oneshot::Sender<Vec<CommandId>>,
    },
}

/// What the loop owns and questions may look at.
pub struct Desk {
    /// The fleet, its forecasts and plans.
    pub core: Core,
    /// The latest windows of each VM, for plots.
    pub recent: Recent,
}

impl Desk {
    /// Takes a report's windows in, for plots.
    fn take(&mut self, report: &Report) {
        let Self { core, recent } = self;
        recent.take(report, |vm| core.knows(vm));
    }
}

type Question = Box<dyn FnOnce(&Desk) + Send>;

/// The way to a running loop.
#[derive(Clone)]
pub struct DriveHandle {
    term: u64,
    events: mpsc::Sender<Event>,
    questions: mpsc::Sender<Question>,
}

/// Why a question was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Too many questions are waiting.
    #[error("the brain is answering too many questions; try again")]
    Busy,
    /// The loop has ended, or has not begun.
    #[error("the brain is starting or stopping; try again")]
    Away,
}

impl DriveHandle {
    /// The lease term of this loop's commands.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Where inputs go in.
    pub fn events(&self) -> &mpsc::Sender<Event> {
        &self.events
    }

    /// Runs `look` in the loop, between two inputs, and returns what it saw. It must be quick: everything waits for it.
    pub async fn ask<R: Send + 'static>(&self, look: impl FnOnce(&Desk) -> R + Send + 'static) -> Result<R, AskError> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |desk| drop(answer.send(look(desk))));
        self.questions.try_send(question).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AskError::Busy,
            mpsc::error::TrySendError::Closed(_) => AskError::Away,
        })?;
        answered.await.map_err(|_| AskError::Away)
    }
}

/// A loop that is about to run.
pub struct Drive {
    turn: Turn,
    events: mpsc::Receiver<Event>,
    questions: mpsc::Receiver<Question>,
    handle: DriveHandle,
}

impl Drive {
    /// Makes the core of `term` and tells it what the store remembers; reports older than `retention` are left out.
    pub async fn restore(
        policy: Policy,
        term: u64,
        retention: Duration,
        store: &Arc<dyn Store>,
        metrics: DriveMetrics,
    ) -> Result<Self, StoreError> {
        // The term as seed: fits are spread differently in each life, and a life can be replayed.
        let mut turn = Turn::new(Desk { core: Core::new(policy, term, term), recent: Recent::default() }, metrics);
        let (mut reports, mut blocks) = (0u64, 0u64);
        let answered = store
            .restore(clock::now() - retention, &mut |restored| {
                reports += u64::from(matches!(restored, Restored::Report(_)));
                blocks += u64::from(matches!(restored, Restored::History { .. }));
                turn.restore(restored);
            })
            .await?;
        for (host, outcome) in answered {
            turn.input(clock::now(), Input::Outcome { host, outcome });
        }
        tracing::info!(term, reports, blocks, hosts = turn.desk().core.hosts().len(), "restored from the store");
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let (questions_in, questions) = mpsc::channel(QUESTIONS_MAX);
        let handle = DriveHandle { term, events: events_in, questions: questions_in };
        Ok(Self { turn, events, questions, handle })
    }

    /// The way to this loop.
    pub fn handle(&self) -> DriveHandle {
        self.handle.clone()
    }

    /// Runs until `stop`. The task ends when the last output that was taken before is carried out, or with the journal.
    pub fn run(
        self,
        journal: Journal,
        dispatch: Arc<dyn Dispatch>,
        provider: Option<Arc<dyn Provider>>,
        issued: Arc<Issued>,
        stop: CancellationToken,
    ) -> JoinHandle<Result<(), Stopped>> {
        let Self { mut turn, mut events, mut questions, handle } = self;
        // The loop ends when it is told, not when the last handle is gone.
        let asking = Asking { provider, answers: handle.events };
        let (effects, carried) = carry::start(journal, dispatch, asking, issued, turn.metrics().clone());
        tokio::spawn(async move {
            loop {
                let due = turn.due_in(clock::now());
                tokio::select! {
                    // In this order, so that neither questions nor stopping wait behind a flood of reports.
                    biased;
                    () = stop.cancelled() => break,
                    // Whoever carries effects out is gone: nothing that is decided from here on would happen.
                    () = effects.closed() => break,
                    Some(question) = questions.recv() => question(turn.desk()),
                    Some(fitted) = turn.fitted() => turn.fit_done(clock::now(), fitted),
                    place = effects.reserve(), if turn.has_effects() => match place {
                        Ok(place) => turn.hand_over(place, &effects),
                        Err(_) => break,
                    },
                    Some(event) = events.recv(), if turn.has_room() => turn.event(clock::now(), event),
                    () = tokio::time::sleep(due) => {}
                }
                turn.timeout(clock::now());
            }
            // What was decided is still carried out; what was not yet taken in is in the store, or nobody was told that
            // it is.
            while turn.has_effects() {
                let Ok(place) = effects.reserve().await else { break };
                turn.hand_over(place, &effects);
            }
            drop(effects);
            carried.await.unwrap_or(Err(Stopped))
        })
    }
}
