//! One agent's connection, from its hello to its end.

use super::close::{CloseCode, Ending};
use super::enrol::Enrolment;
use super::framing;
use super::hello::{Verdict, judge};
use super::metrics::IngestMetrics;
use super::registry::{Place, Registry};
use super::renew;
use super::reports;
use super::standing::{self, Revocations};
use crate::ca::Identity;
use crate::clock;
use crate::drive::{DriveHandle, Event, Issued};
use crate::service::Raising;
use crate::store::{self, Journal, Standing, Stopped, Store};
use gnomon_common::wire::{AgentEpoch, AgentMessage, BrainMessage, Fence, Hello, HostId, Outcome, Welcome};
use quinn::{Connection, RecvStream, SendStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long an authenticated peer may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the store may take to say what it has of a host; after that the agent is told to come again.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// Missed heart-beats that make a peer lost.
const HEARTBEATS_MISSED_MAX: u32 = 3;
/// Messages waiting for an agent to read them: a command for each VM of the largest host, and heart-beats.
const CONTROL_QUEUE_MAX: usize = 1088;
/// Outcomes (and renewals) of one agent between receipt and sync.
const OUTCOMES_IN_FLIGHT_MAX: usize = 64;
/// How long the last words may take to reach the peer.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// What every session of a lease term shares.
pub(super) struct SessionContext {
    pub(super) drive: DriveHandle,
    pub(super) journal: Journal,
    pub(super) store: Arc<dyn Store>,
    pub(super) registry: Arc<Registry>,
    pub(super) issued: Arc<Issued>,
    pub(super) enrolment: Arc<Enrolment>,
    pub(super) revocations: watch::Receiver<Revocations>,
    pub(super) heartbeat: Duration,
    pub(super) raising: Raising,
    pub(super) metrics: IngestMetrics,
    pub(super) regressed: mpsc::Sender<(String, Fence)>,
    pub(super) ending: CancellationToken,
}

impl SessionContext {
    /// Reserves a place in the core's queue. This is where a busy core makes an agent wait.
    pub(super) async fn place(&self) -> Result<OwnedPermit<Event>, Ending> {
        self.drive.events().clone().reserve_owned().await.map_err(|_| Self::stopping(Stopped))
    }

    pub(super) fn stopping(stopped: Stopped) -> Ending {
        Ending::new(CloseCode::Stopping, stopped.to_string())
    }
}

/// An agent that was let in.
struct Admitted {
    host: HostId,
    shown: Identity,
    standing: Standing,
    epoch: AgentEpoch,
    version: String,
    control: Control,
    recv: RecvStream,
    place: Place,
}

/// A peer that was not: the control stream, if it opened one, and why.
struct Refused {
    control: Option<SendStream>,
    ending: Ending,
}

/// Runs a session to its end. `handshake` is given back once the agent is welcome or refused.
/// `shown` is the certificate that TLS has verified.
pub(super) async fn run(
    connection: Connection,
    shown: Identity,
    context: Arc<SessionContext>,
    handshake: OwnedSemaphorePermit,
) {
    let peer = connection.remote_address();
    let admitted = tokio::select! {
        admitted = introduce(&connection, shown, &context) => admitted,
        () = context.ending.cancelled() => {
            Err(Refused { control: None, ending: SessionContext::stopping(Stopped) })
        }
        // Whoever hangs up while the brain is busy must not keep a stranger's place taken.
        gone = connection.closed() => {
            Err(Refused { control: None, ending: Ending::new(CloseCode::Done, gone.to_string()) })
        }
    };
    drop(handshake);
    match admitted {
        Ok(admitted) => serve(&connection, &context, admitted).await,
        Err(Refused { control, ending }) => {
            tracing::warn!(%peer, kind = ending.code.kind(), reason = ending.reason, "connection refused");
            context.metrics.refused(ending.code.kind());
            say_and_close(&connection, control.map(Control::with_last_words), &ending).await;
        }
    }
}

/// Turns away whoever connects as an agent, in the words of the control stream.
pub(super) async fn refuse(connection: &Connection, ending: &Ending) {
    // The stream comes with the hello; whatever that says, the answer is the same.
    let opened = timeout(HELLO_TIMEOUT, connection.accept_bi()).await;
    let control = opened.ok().and_then(Result::ok).map(|(stream, _)| Control::with_last_words(stream));
    say_and_close(connection, control, ending).await;
}

async fn introduce(connection: &Connection, shown: Identity, context: &SessionContext) -> Result<Admitted, Refused> {
    let late = || Ending::new(CloseCode::Malformed, format!("no hello within {HELLO_TIMEOUT:?}"));
    let opened = match timeout(HELLO_TIMEOUT, connection.accept_bi()).await {
        Ok(opened) => opened.map_err(|error| Ending::new(CloseCode::Done, error.to_string())),
        Err(_) => Err(late()),
    };
    let (send, mut recv) = opened.map_err(|ending| Refused { control: None, ending })?;
    let refused = |send, ending| Refused { control: Some(send), ending };

    let first = match timeout(HELLO_TIMEOUT, framing::read_payload(&mut recv)).await {
        Ok(Ok(Some(payload))) => framing::decode(&payload),
        Ok(Ok(None)) => Err(Ending::new(CloseCode::Malformed, "the control stream ended before a hello")),
        Ok(Err(ending)) => Err(ending),
        Err(_) => Err(late()),
    };
    let hello = match first {
        Ok(AgentMessage::Hello(hello)) => hello,
        Ok(_) => {
            return Err(refused(send, Ending::new(CloseCode::Malformed, "the first message is not a hello")));
        }
        Err(ending) => return Err(refused(send, ending)),
    };
    let (standing, welcome, core) = match admit(&shown, context, &hello).await {
        Ok(admitted) => admitted,
        Err(ending) => return Err(refused(send, ending)),
    };

    // The welcome is in the queue before the registry knows the queue: no command can overtake it.
    let (queue, messages) = mpsc::channel(CONTROL_QUEUE_MAX);
    let _ = queue.try_send(BrainMessage::Welcome(welcome));
    match context.registry.enter(&hello.host, hello.epoch, hello.facts, queue.clone(), core) {
        Ok(place) => Ok(Admitted {
            host: hello.host,
            shown,
            standing,
            epoch: hello.epoch,
            version: hello.agent_version,
            control: Control::start(send, queue, messages),
            recv,
            place,
        }),
        Err(ending) => Err(refused(send, ending)),
    }
}

/// Judges a hello; a good one gets its welcome and a place in the core's queue.
async fn admit(
    shown: &Identity,
    context: &SessionContext,
    hello: &Hello,
) -> Result<(Standing, Welcome, OwnedPermit<Event>), Ending> {
    let term = context.drive.term();
    let version = match judge(hello, &shown.dns_names, term, context.issued.newest(&hello.host))? {
        Verdict::Welcome(version) => version,
        Verdict::Regressed(fence) => return Err(regressed(context, hello, fence)),
    };
    let busy = |reason: &str| Ending::new(CloseCode::Busy, reason);
    let standing = timeout(STORE_TIMEOUT, standing::admit(context, &hello.host, shown))
        .await
        .map_err(|_| busy("the store does not answer; connect again"))??;
    let acknowledged = timeout(STORE_TIMEOUT, context.store.acknowledged(&hello.host, hello.epoch))
        .await
        .map_err(|_| busy("the store does not answer; connect again"))?
        .inspect_err(|error| tracing::error!(%error, "the store cannot be read"))
        .map_err(|_| busy("the store cannot be read; connect again"))?;
    let heartbeat_ms = u32::try_from(context.heartbeat.as_millis()).unwrap_or(u32::MAX);
    Ok((standing, Welcome { version, term, heartbeat_ms, acknowledged }, context.place().await?))
}

fn regressed(context: &SessionContext, hello: &Hello, fence: Fence) -> Ending {
    let wait = context.raising.from.saturating_duration_since(Instant::now());
    if wait.is_zero() {
        // Full means that another agent has said it already.
        let _ = context.regressed.try_send((hello.host.to_string(), fence));
        Ending::new(
            CloseCode::Busy,
            format!("fence {fence} is newer than this brain's: it takes a new term; connect again"),
        )
    } else if context.raising.is_spent {
        Ending::new(
            CloseCode::Busy,
            format!(
                "fence {fence} is newer than this brain's, which has taken too many new terms within a day: another brain commands this host by a \
                 store of its own; end one of the two, or have this one win with gnomon-brain take-over"
            ),
        )
    } else {
        Ending::new(
            CloseCode::Busy,
            format!(
                "fence {fence} is newer than this brain's, which took a new term just now; connect again in {wait:?}"
            ),
        )
    }
}

async fn serve(connection: &Connection, context: &Arc<SessionContext>, admitted: Admitted) {
    let Admitted { host, shown, standing, epoch, version, control, mut recv, place } = admitted;
    tracing::info!(%host, epoch = epoch.0, agent = version, peer = %connection.remote_address(), "agent connected");
    let ending = tokio::select! {
        ending = listen(&mut recv, context, &host, &shown, &control.queue) => ending,
        ending = reports::serve(connection, context, &host, epoch) => ending,
        ending = standing::lost(context, &host, &shown, standing) => ending,
        () = place.replaced.cancelled() => {
            Ending::new(CloseCode::Replaced, format!("a newer connection of host {host} took over"))
        }
        () = context.ending.cancelled() => SessionContext::stopping(Stopped),
    };
    tracing::info!(%host, kind = ending.code.kind(), reason = ending.reason, "agent disconnected");
    context.metrics.ended(ending.code.kind());
    // The core hears of the loss before the last words: they may take a moment.
    context.registry.leave(&place, context.place().await.ok());
    say_and_close(connection, Some(control), &ending).await;
}

/// The control stream's incoming half: heart-beats and outcomes, until the agent falls silent or errs.
async fn listen(
    recv: &mut RecvStream,
    context: &Arc<SessionContext>,
    host: &HostId,
    shown: &Identity,
    replies: &mpsc::Sender<BrainMessage>,
) -> Ending {
    let silence = context.heartbeat * HEARTBEATS_MISSED_MAX;
    let mut outcomes = JoinSet::new();
    loop {
        while outcomes.try_join_next().is_some() {}
        let payload = match timeout(silence, framing::read_payload(recv)).await {
            Ok(Ok(Some(payload))) => payload,
            Ok(Ok(None)) => return Ending::new(CloseCode::Done, "the agent ended the control stream"),
            Ok(Err(ending)) => return ending,
            Err(_) => {
                return Ending::new(CloseCode::Silent, format!("host {host} sent no heart-beat for {silence:?}"));
            }
        };
        match framing::decode(&payload) {
            Ok(AgentMessage::Heartbeat { .. }) => {
                // An agent that does not read its replies loses them, not the brain's memory.
                if replies.try_send(BrainMessage::Heartbeat { at: clock::now() }).is_err() {
                    context.metrics.reply_dropped();
                }
            }
            Ok(AgentMessage::Outcome(outcome)) => {
                context.metrics.outcome();
                if !store::fits(outcome.id) {
                    return Ending::new(CloseCode::Malformed, format!("command id {} is out of range", outcome.id));
                }
                if outcomes.len() >= OUTCOMES_IN_FLIGHT_MAX {
                    outcomes.join_next().await;
                }
                // Beside this loop: heart-beats go on while the store is slow.
                outcomes.spawn(take_outcome(context.clone(), host.clone(), outcome, replies.clone()));
            }
            Ok(AgentMessage::Renew { request }) => {
                if outcomes.len() >= OUTCOMES_IN_FLIGHT_MAX {
                    outcomes.join_next().await;
                }
                outcomes.spawn(take_renewal(context.clone(), host.clone(), shown.clone(), request, replies.clone()));
            }
            Ok(AgentMessage::Hello(_)) => return Ending::new(CloseCode::Malformed, "a second hello"),
            Err(ending) => return ending,
        }
    }
}

/// Stores an outcome, then acknowledges it. What fails here is repeated by the agent on its next connection.
async fn take_outcome(
    context: Arc<SessionContext>,
    host: HostId,
    outcome: Outcome,
    replies: mpsc::Sender<BrainMessage>,
) {
    let id = outcome.id;
    let Ok(place) = context.place().await else { return };
    let Ok(receipt) = context.journal.outcome(host, outcome, place).await else { return };
    if receipt.await.is_ok() && replies.send(BrainMessage::OutcomeAck { id }).await.is_err() {
        context.metrics.reply_dropped();
    }
}

/// Answers a signing request. What is lost here is asked for again.
async fn take_renewal(
    context: Arc<SessionContext>,
    host: HostId,
    shown: Identity,
    request: Vec<u8>,
    replies: mpsc::Sender<BrainMessage>,
) {
    let answer = renew::answer(&context, &host, &shown, &request).await;
    if replies.send(answer).await.is_err() {
        context.metrics.reply_dropped();
    }
}

/// The control stream's outgoing half: a queue and the task that empties it.
struct Control {
    queue: mpsc::Sender<BrainMessage>,
    writer: JoinHandle<()>,
}

impl Control {
    /// For one message.
    fn with_last_words(stream: SendStream) -> Self {
        let (queue, messages) = mpsc::channel(1);
        Self::start(stream, queue, messages)
    }

    fn start(
        mut stream: SendStream,
        queue: mpsc::Sender<BrainMessage>,
        mut messages: mpsc::Receiver<BrainMessage>,
    ) -> Self {
        let writer = tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                if framing::write(&mut stream, &message).await.is_err() {
                    return;
                }
            }
            // All senders are gone: make sure that the last words arrived before the connection closes over them.
            let _ = stream.finish();
            let _ = stream.stopped().await;
        });
        Self { queue, writer }
    }
}

/// Says why on the control stream, if there is a code for it, then closes the connection with the same words.
async fn say_and_close(connection: &Connection, control: Option<Control>, ending: &Ending) {
    if let Some(Control { queue, mut writer }) = control {
        if let Some(code) = ending.code.refusal() {
            let _ = queue.try_send(BrainMessage::Refused { code, reason: ending.reason.clone() });
        }
        drop(queue);
        if ending.code == CloseCode::Done || timeout(LAST_WORDS_TIMEOUT, &mut writer).await.is_err() {
            writer.abort();
        }
    }
    connection.close(ending.code.var_int(), ending.reason_bytes());
}
