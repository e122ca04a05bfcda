//! One connection, from its first packet to its end.
//!
//! Six futures run side by side, so that no stream ever waits for another: control in and out, and for live reports and for the backlog of
//! earlier connections each reports out and acknowledgements in.
//! The first to fail ends the session; every read and write belongs to exactly one of them, so that none is cancelled within a frame.

use super::failure::{Failure, close_done};
use super::identity::Identity;
use super::outbox::Stream;
use super::renew::{self, Answer};
use super::{Uplink, framing};
use crate::command::clock::wall_clock;
use crate::command::{Commands, NotTaken};
use gnomon_common::wire::{
    AgentMessage, BrainMessage, Command, Hello, Origin, Outcome, OutcomeResult, RefusedCommand, ReportAck, VERSIONS,
    Welcome,
};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// For resolving, connecting and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// From hello to welcome. The brain may have to ask its store first.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// Missed heart-beats that make the brain lost: the wire contract's number.
const HEARTBEATS_MISSED_MAX: u32 = 3;

/// Shortest heart-beat believed: a brain that asks for more would make the agent spin.
const HEARTBEAT_MIN: Duration = Duration::from_millis(20);

/// The backlog's stream: what is above it (QUIC streams begin at 0) is sent first, so that live reports and heart-beats never wait for it.
const BACKLOG_PRIORITY: i32 = -1;

/// How long the close may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers "queue full" waiting to be sent. They are not in the ledger: what does not fit is dropped, and its command expires.
const OVERFLOWS_MAX: usize = 256;

/// Renewals under way: one request, one answer.
const RENEWALS_MAX: usize = 1;

/// How a session ended that did not fail.
pub(super) enum End {
    /// The agent was told to stop.
    Stopped,
    /// A new certificate is there: the next session, at once, shows it.
    Renewed,
}

/// Connects to `brain`, introduces the agent and serves the connection until it ends. `welcomed` is called once the brain has
/// accepted the hello.
pub(super) async fn run(
    uplink: &Uplink,
    brain: &str,
    stop: &CancellationToken,
    welcomed: impl FnOnce(),
) -> Result<End, Failure> {
    let identity = uplink.identity.load()?;
    let (endpoint, connection) =
        within(CONNECT_TIMEOUT, "connecting", connect(brain, &uplink.server_name, &identity.tls)).await?;
    let ended = tokio::select! {
        ended = serve(uplink, brain, &identity, &connection, welcomed) => ended,
        () = stop.cancelled() => Ok(End::Stopped),
    };
    match &ended {
        Ok(End::Stopped) => connection.close(close_done(), b"the agent stops"),
        Ok(End::Renewed) => connection.close(close_done(), b"the agent connects again with its new certificate"),
        Err(failure) => {
            let (code, reason) = failure.close();
            connection.close(code, reason.as_bytes());
        }
    }
    // Lets the close frame leave; a peer that is gone is not waited for.
    let _ = timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
    ended
}

pub(super) async fn connect(
    brain: &str,
    server_name: &str,
    tls: &quinn::ClientConfig,
) -> Result<(Endpoint, Connection), Failure> {
    let resolve = |source| Failure::Resolve { address: brain.to_owned(), source };
    let candidates = tokio::net::lookup_host(brain).await.map_err(resolve)?;
    let mut failure = resolve(std::io::Error::other("the name has no address"));
    for address in candidates {
        // A socket per attempt: routes and address families may have changed since the last one.
        let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let endpoint = Endpoint::client(SocketAddr::new(any, 0))?;
        match endpoint.connect_with(tls.clone(), address, server_name)?.await {
            Ok(connection) => return Ok((endpoint, connection)),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

async fn serve(
    uplink: &Uplink,
    brain: &str,
    identity: &Identity,
    connection: &Connection,
    welcomed: impl FnOnce(),
) -> Result<End, Failure> {
    let (mut control_out, mut control_in) = connection.open_bi().await?;
    let hello = AgentMessage::Hello(Hello {
        versions: VERSIONS,
        host: uplink.host.clone(),
        epoch: uplink.epoch,
        fence_highest: uplink.commands.answers().borrow().fence_highest,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        facts: (uplink.facts)(),
    });
    let on_control = |error| Failure::of_stream("control", error);
    framing::write(&mut control_out, &hello).await.map_err(on_control)?;
    let answer = async { framing::read(&mut control_in).await.map_err(on_control) };
    let welcome = match within(WELCOME_TIMEOUT, "introducing the agent", answer).await? {
        BrainMessage::Welcome(welcome) => welcome,
        BrainMessage::Refused { code, reason } => return Err(Failure::Refused { code, reason }),
        _ => return Err(Failure::Protocol("the answer to the hello is neither welcome nor refusal")),
    };
    let heartbeat = accept(uplink, brain, &welcome)?;
    welcomed();
    let _connected = uplink.spool.connect();
    let (live_out, live_in) = connection.open_bi().await?;
    let (backlog_out, backlog_in) = connection.open_bi().await?;
    // Fails only on a stream that has ended, which the first report notices.
    let _ = backlog_out.set_priority(BACKLOG_PRIORITY);
    let (overflow, overflows) = mpsc::channel(OVERFLOWS_MAX);
    let (ask, requests) = mpsc::channel(RENEWALS_MAX);
    let (answer, answers) = mpsc::channel(RENEWALS_MAX);
    let streams = async {
        tokio::try_join!(
            // In this order: a refusal that came before the connection closed is the better reason.
            biased;
            control_in_loop(control_in, uplink, &overflow, &answer, heartbeat * HEARTBEATS_MISSED_MAX),
            acks_loop(live_in, uplink, Stream::Live),
            acks_loop(backlog_in, uplink, Stream::Backlog),
            control_out_loop(control_out, &uplink.commands, overflows, requests, heartbeat),
            reports_loop(live_out, uplink, Stream::Live),
            reports_loop(backlog_out, uplink, Stream::Backlog),
            stalled(uplink),
        )
    };
    tokio::select! {
        biased;
        // None of them ends but by a failure.
        ended = streams => ended.map(|_| End::Stopped),
        renewed = renew::renewed(uplink, identity, ask, answers) => renewed.map(|()| End::Renewed),
    }
}

/// Takes the welcome's terms in and returns the heart-beat's interval.
fn accept(uplink: &Uplink, brain: &str, welcome: &Welcome) -> Result<Duration, Failure> {
    if !(VERSIONS.min..=VERSIONS.max).contains(&welcome.version) {
        return Err(Failure::Version(welcome.version));
    }
    // Before the first command: those of lower terms are stale from now on.
    uplink.commands.see_term(welcome.term)?;
    tracing::info!(
        brain,
        version = welcome.version,
        term = welcome.term,
        heartbeat_ms = welcome.heartbeat_ms,
        reports_to_send = uplink.spool.waiting(),
        "connected to the brain"
    );
    Ok(Duration::from_millis(welcome.heartbeat_ms.into()).max(HEARTBEAT_MIN))
}

async fn control_in_loop(
    mut stream: RecvStream,
    uplink: &Uplink,
    overflow: &mpsc::Sender<Outcome>,
    renewal: &mpsc::Sender<Answer>,
    silence_max: Duration,
) -> Result<(), Failure> {
    let Uplink { commands, metrics, .. } = uplink;
    loop {
        let message = timeout(silence_max, framing::read(&mut stream)).await.map_err(|_| Failure::Silent)?;
        match message.map_err(|error| Failure::of_stream("control", error))? {
            BrainMessage::Heartbeat { at } => {
                let ahead_ms = at.unix_ms() as f64 - wall_clock().unix_ms() as f64;
                metrics.clock_ahead_seconds.set(ahead_ms / 1e3);
            }
            BrainMessage::Command(command) => take_command(uplink, overflow, command)?,
            // An acknowledgement that finds no room is repeated: the outcome stays pending and is sent again.
            BrainMessage::OutcomeAck { id } => match commands.acknowledge(id) {
                Ok(()) => {}
                Err(NotTaken::Full) => drop(metrics.acknowledgements_unheard.inc()),
                Err(ended) => return Err(ended.into()),
            },
            // An answer that nobody waits for any more is of no use.
            BrainMessage::Renewed { certificate } => drop(renewal.try_send(Answer::Renewed(certificate))),
            BrainMessage::RenewalRefused { reason } => drop(renewal.try_send(Answer::Refused(reason))),
            BrainMessage::Refused { code, reason } => return Err(Failure::Refused { code, reason }),
            BrainMessage::Welcome(_) => return Err(Failure::Protocol("a second welcome")),
        }
    }
}

fn take_command(uplink: &Uplink, overflow: &mpsc::Sender<Outcome>, command: Command) -> Result<(), Failure> {
    let (id, vm) = (command.id, command.vm);
    let received = uplink.clock.now();
    match uplink.commands.submit(command, received) {
        Ok(()) => Ok(()),
        Err(NotTaken::Full) => {
            uplink.command_metrics.count_queue_full();
            tracing::warn!(%id, %vm, "command refused: the queue is full");
            let result = OutcomeResult::Refused(RefusedCommand::QueueFull);
            let _ = overflow.try_send(Outcome { id, vm, at: received.wall, origin: Origin::Command, result });
            Ok(())
        }
        Err(ended) => Err(ended.into()),
    }
}

async fn control_out_loop(
    mut stream: SendStream,
    commands: &Commands,
    mut overflows: mpsc::Receiver<Outcome>,
    mut renewals: mpsc::Receiver<AgentMessage>,
    heartbeat: Duration,
) -> Result<(), Failure> {
    let mut answers = commands.answers();
    let mut beat = interval(heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0;
    loop {
        let pending = answers.borrow_and_update().pending.clone();
        let first_new = pending.partition_point(|(number, _)| *number <= sent);
        for (number, outcome) in &pending[first_new..] {
            say(&mut stream, AgentMessage::Outcome(outcome.clone())).await?;
            sent = *number;
        }
        tokio::select! {
            _ = beat.tick() => say(&mut stream, AgentMessage::Heartbeat { at: wall_clock() }).await?,
            Some(outcome) = overflows.recv() => say(&mut stream, AgentMessage::Outcome(outcome)).await?,
            Some(renewal) = renewals.recv() => say(&mut stream, renewal).await?,
            changed = answers.changed() => changed.map_err(|_| NotTaken::Ended)?,
        }
    }
}

async fn say(stream: &mut SendStream, message: AgentMessage) -> Result<(), Failure> {
    framing::write(stream, &message).await.map_err(|error| Failure::of_stream("control", error))
}

async fn reports_loop(mut out: SendStream, uplink: &Uplink, stream: Stream) -> Result<(), Failure> {
    loop {
        let Some(frame) = uplink.spool.with(|outbox| outbox.next_frame(stream)) else {
            uplink.spool.changed(stream).await;
            continue;
        };
        out.write_all(&frame).await.map_err(|error| Failure::of_stream("report", error.into()))?;
        uplink.metrics.reports_sent.inc();
    }
}

async fn acks_loop(mut acks: RecvStream, uplink: &Uplink, stream: Stream) -> Result<(), Failure> {
    loop {
        let ack: ReportAck = framing::read(&mut acks).await.map_err(|error| Failure::of_stream("report", error))?;
        let acknowledged = uplink.spool.with(|outbox| outbox.acknowledge(stream, ack))?;
        uplink.metrics.reports_acknowledged.inc_by(acknowledged);
        uplink.spool.acknowledged(stream);
    }
}

async fn stalled(uplink: &Uplink) -> Result<(), Failure> {
    uplink.spool.stalled().await;
    Err(Failure::Stalled)
}

async fn within<T>(
    limit: Duration,
    during: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(limit, work).await.unwrap_or(Err(Failure::Timeout { during, limit }))
}
