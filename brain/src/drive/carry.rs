//! Carrying outputs out, in order: records are synced, then commands are sent.

use super::{DriveMetrics, Event};
use crate::capacity::Provider;
use crate::clock;
use crate::store::{Journal, Stopped};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Command, CommandId, Fence, HostId};
use gnomon_core::{CapacityRequest, Input, Record};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Effects handed over at a time: their records make one transaction, while the next ones gather.
const EFFECTS_MAX: usize = 1024;

/// Something to carry out.
pub(super) enum Effect {
    Persist(Record),
    Command {
        host: HostId,
        command: Command,
        issued: Timestamp,
    },
    /// Ask the provider for this.
    Capacity(Box<CapacityRequest>),
    /// Everything before this is done.
    Synced {
        /// Who waits for it: is told which commands came of it.
        told: oneshot::Sender<Vec<CommandId>>,
        commands: Vec<CommandId>,
    },
}

/// Where commands leave.
pub trait Dispatch: Send + Sync + 'static {
    /// Sends a command to a host's agent; `false` if it is not connected or cannot take more. Never waits.
    fn dispatch(&self, host: &HostId, command: Command) -> bool;
}

/// How the provider is asked, and where its answers go.
pub(super) struct Asking {
    pub(super) provider: Option<Arc<dyn Provider>>,
    pub(super) answers: mpsc::Sender<Event>,
}

impl Asking {
    /// Asks on a thread of its own, which a brain that stops does not wait for: what it left unanswered is asked again, under the same key.
    fn ask(&self, request: Box<CapacityRequest>) {
        let Some(provider) = self.provider.clone() else { return };
        let (key, answers) = (request.key, self.answers.clone());
        let asking = move || {
            let answer = provider.ask(&request);
            tracing::info!(%key, ?answer, "the provider was asked for capacity");
            let _ = answers.blocking_send(Event::Input(Input::CapacityAnswered { key, answer }));
        };
        if let Err(error) = std::thread::Builder::new().name("capacity".into()).spawn(asking) {
            tracing::error!(%key, %error, "the provider cannot be asked for capacity now");
        }
    }
}

/// The newest fence sent to each host in this term: an agent that has obeyed a newer one has seen a brain that we have
/// forgotten.
#[derive(Debug, Default)]
pub struct Issued(Mutex<BTreeMap<HostId, Fence>>);

impl Issued {
    /// The newest fence sent to `host`, if any.
    pub fn newest(&self, host: &HostId) -> Option<Fence> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied()
    }

    fn note(&self, host: &HostId, fence: Fence) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = newest.entry(host.clone()).or_insert(fence);
        *known = fence.max(*known);
    }
}

pub(super) fn start(
    journal: Journal,
    dispatch: Arc<dyn Dispatch>,
    asking: Asking,
    issued: Arc<Issued>,
    metrics: DriveMetrics,
) -> (mpsc::Sender<Effect>, JoinHandle<Result<(), Stopped>>) {
    let (queue, effects) = mpsc::channel(EFFECTS_MAX);
    (queue, tokio::spawn(carry(effects, journal, dispatch, asking, issued, metrics)))
}

async fn carry(
    mut effects: mpsc::Receiver<Effect>,
    journal: Journal,
    dispatch: Arc<dyn Dispatch>,
    asking: Asking,
    issued: Arc<Issued>,
    metrics: DriveMetrics,
) -> Result<(), Stopped> {
    let mut batch = Vec::with_capacity(EFFECTS_MAX);
    while effects.recv_many(&mut batch, EFFECTS_MAX).await > 0 {
        let mut records = Vec::new();
        let mut rest = Vec::new();
        for effect in batch.drain(..) {
            match effect {
                Effect::Persist(record) => records.push(record),
                other => rest.push(other),
            }
        }
        // All records of the batch first: some came after a command, which makes the promise only stronger.
        if !records.is_empty() {
            journal.records(records).await?.await.map_err(|_| Stopped)?;
        }
        for effect in rest {
            match effect {
                Effect::Command { host, command, issued: at } => {
                    send(dispatch.as_ref(), &issued, &metrics, &host, command, at);
                }
                Effect::Capacity(request) => asking.ask(request),
                // The operator may have hung up.
                Effect::Synced { told, commands } => drop(told.send(commands)),
                Effect::Persist(_) => unreachable!("records were taken out above"),
            }
        }
    }
    Ok(())
}

/// Sends a command with the time it has left: the store may have been slow, or this is a repetition.
fn send(
    dispatch: &dyn Dispatch,
    issued: &Issued,
    metrics: &DriveMetrics,
    host: &HostId,
    mut command: Command,
    at: Timestamp,
) {
    let elapsed_ms = u64::try_from(clock::now().since(at).as_millis()).unwrap_or(u64::MAX);
    let left_ms = command.time_to_live_ms.saturating_sub(elapsed_ms);
    if left_ms == 0 {
        return metrics.not_sent("expired");
    }
    command.time_to_live_ms = left_ms;
    issued.note(host, command.fence);
    let action = command.action.clone();
    let id = command.id;
    if dispatch.dispatch(host, command) {
        metrics.sent(&action);
        tracing::info!(%host, %id, ?action, "command sent");
    } else {
        // It stays unanswered: it is sent again if the host comes back in time, and expires otherwise.
        metrics.not_sent("not_connected");
    }
}
