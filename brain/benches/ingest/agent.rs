//! An agent under load: `gnomon/1` over real QUIC with a certificate of its own, for a host that is not there.
//!
//! It connects, delivers the windows of the past on its backlog stream, as an agent does whose spool is full, and from then on
//! one window at a time, when it is due. Commands are obeyed and answered at once. The first failure ends it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gnomon_brain::ca::{BRAIN_NAME, Issued};
use gnomon_brain::clock;
use gnomon_common::wire::frame::{self, PREFIX_BYTES};
use gnomon_common::wire::{
    ALPN, Action, AgentMessage, BrainMessage, Command, Origin, Outcome, OutcomeResult, RefusedCommand, ReportAck,
    Sequence, Setting, VmId,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{interval, sleep_until};

use crate::figures::{Collector, Tag};
use crate::fleet::{Host, Window};

/// Agents that join and deliver their past at a time: what is measured comes afterwards, and more would starve handshakes of the CPU
/// that they share.
const JOINING_MAX: usize = 32;
/// Agents that share a socket: sockets cost memory, and the brain cannot tell.
pub(crate) const AGENTS_PER_SOCKET: usize = 64;
/// Answers to commands on their way out.
const OUTCOMES_MAX: usize = 1024;
/// Length of the windows of the past. The brain takes windows of up to an hour.
const PAST_WINDOW: Duration = Duration::from_secs(600);

/// What all agents share.
pub(crate) struct Load {
    pub(crate) brain: SocketAddr,
    pub(crate) window: Duration,
    pub(crate) history: Duration,
    pub(crate) surge_share: f64,
    /// When the first host's first window would have ended.
    pub(crate) begun: Instant,
    pub(crate) collector: Collector,
    pub(crate) joining: Semaphore,
}

impl Load {
    pub(crate) fn new(brain: SocketAddr, window: Duration, history: Duration, surge_share: f64) -> Self {
        let joining = Semaphore::new(JOINING_MAX);
        Self { brain, window, history, surge_share, begun: Instant::now(), collector: Collector::default(), joining }
    }
}

/// An agent's mutable part.
struct State {
    host: Host,
    /// Reports of the live stream that wait for their acknowledgement.
    sent: VecDeque<(Sequence, Tag, Instant)>,
    /// Surges that wait for a command.
    surges: BTreeMap<VmId, (Tag, Instant)>,
}

#[derive(Clone)]
struct Agent {
    load: Arc<Load>,
    state: Arc<Mutex<State>>,
}

/// Makes a socket for agents.
pub(crate) fn socket() -> Result<Endpoint> {
    Ok(Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?)
}

/// Runs an agent until it fails. Its windows end `phase` after a multiple of the window since the beginning; `ready` is told
/// once the past is delivered.
pub(crate) async fn run(
    endpoint: Endpoint,
    identity: Issued,
    host: Host,
    phase: Duration,
    load: Arc<Load>,
    ready: mpsc::Sender<()>,
) -> Result<()> {
    let id = host.id.clone();
    let agent =
        Agent { load, state: Arc::new(Mutex::new(State { host, sent: VecDeque::new(), surges: BTreeMap::new() })) };
    agent.run(&endpoint, &identity, phase, ready).await.with_context(|| format!("the agent of {id}"))
}

impl Agent {
    async fn run(
        &self,
        endpoint: &Endpoint,
        identity: &Issued,
        phase: Duration,
        ready: mpsc::Sender<()>,
    ) -> Result<()> {
        let permit = self.load.joining.acquire().await?;
        let connection = endpoint.connect_with(tls(identity)?, self.load.brain, BRAIN_NAME)?.await?;
        let (mut control_out, mut control_in) = connection.open_bi().await?;
        let hello = self.state().host.hello();
        write(&mut control_out, &AgentMessage::Hello(hello)).await?;
        let heartbeat = match read(&mut control_in).await? {
            BrainMessage::Welcome(welcome) => Duration::from_millis(welcome.heartbeat_ms.into()),
            other => bail!("not welcome: {other:?}"),
        };
        let (live_out, live_in) = connection.open_bi().await?;
        let (mut backlog_out, mut backlog_in) = connection.open_bi().await?;
        let (outcomes_in, outcomes) = mpsc::channel(OUTCOMES_MAX);
        let work = async {
            self.deliver_past(&mut backlog_out, &mut backlog_in).await?;
            drop(permit);
            drop(ready);
            tokio::try_join!(self.send_live(live_out, phase), self.take_acknowledgements(live_in))
        };
        let control = async {
            tokio::try_join!(self.speak(control_out, outcomes, heartbeat), self.listen(control_in, outcomes_in))
        };
        tokio::try_join!(work, control).map(|_| ())
    }

    /// Sends the windows of the past, oldest first, and waits until all are acknowledged.
    async fn deliver_past(&self, out: &mut SendStream, acknowledgements: &mut RecvStream) -> Result<()> {
        let count = self.load.history.as_secs() / PAST_WINDOW.as_secs();
        let end = clock::now() - 2 * self.load.window;
        let send = async {
            for window in 0..count {
                let start = end - PAST_WINDOW * u32::try_from(count - window)?;
                let Window { report, .. } = self.state().host.window(start, PAST_WINDOW, 0.0);
                write(out, &report).await?;
            }
            Ok(())
        };
        let receive = async {
            for _ in 0..count {
                read::<ReportAck>(acknowledgements).await?;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(send, receive).map(|_| ())
    }

    async fn send_live(&self, mut out: SendStream, phase: Duration) -> Result<()> {
        let Load { window, begun, surge_share, ref collector, .. } = *self.load;
        let mut due = begun + phase;
        while due < Instant::now() {
            due += window;
        }
        loop {
            sleep_until(due.into()).await;
            let bytes = {
                let mut state = self.state();
                let Window { report, surging } = state.host.window(clock::now() - window, window, surge_share);
                let bytes = frame::encode(&report)?;
                let now = Instant::now();
                let tag = collector.sent(bytes.len(), surging.len(), now - due);
                state.sent.push_back((report.sequence, tag, now));
                state.surges.extend(surging.into_iter().map(|vm| (vm, (tag, now))));
                bytes
            };
            out.write_all(&bytes).await?;
            due += window;
        }
    }

    async fn take_acknowledgements(&self, mut stream: RecvStream) -> Result<()> {
        loop {
            let ack: ReportAck = read(&mut stream).await?;
            let (sequence, tag, sent) = self.state().sent.pop_front().context("an acknowledgement of nothing")?;
            ensure!(sequence == ack.sequence, "{:?} acknowledged instead of {sequence:?}", ack.sequence);
            self.load.collector.acknowledged(tag, sent);
        }
    }

    async fn speak(
        &self,
        mut out: SendStream,
        mut outcomes: mpsc::Receiver<Outcome>,
        heartbeat: Duration,
    ) -> Result<()> {
        let mut beat = interval(heartbeat);
        loop {
            let message = tokio::select! {
                Some(outcome) = outcomes.recv() => AgentMessage::Outcome(outcome),
                _ = beat.tick() => AgentMessage::Heartbeat { at: clock::now() },
            };
            write(&mut out, &message).await?;
        }
    }

    async fn listen(&self, mut stream: RecvStream, outcomes: mpsc::Sender<Outcome>) -> Result<()> {
        loop {
            match read(&mut stream).await? {
                BrainMessage::Command(command) => outcomes.send(self.obey(&command)).await?,
                BrainMessage::Heartbeat { .. } | BrainMessage::OutcomeAck { .. } => {}
                other => bail!("unexpected: {other:?}"),
            }
        }
    }

    fn obey(&self, command: &Command) -> Outcome {
        let mut state = self.state();
        match state.surges.remove(&command.vm) {
            Some((tag, sent)) => self.load.collector.commanded(tag, sent),
            None => self.load.collector.commanded_otherwise(),
        }
        let result = match command.action {
            Action::Set(Setting::CpuQuota { cores: Some(cores) }) => match state.host.set_quota(command.vm, cores) {
                Some(before) => OutcomeResult::Applied {
                    before: vec![Setting::CpuQuota { cores: Some(before) }],
                    after: vec![Setting::CpuQuota { cores: Some(cores) }],
                    took_us: 300,
                },
                None => OutcomeResult::Refused(RefusedCommand::UnknownVm),
            },
            _ => OutcomeResult::Refused(RefusedCommand::Nonsense),
        };
        Outcome { id: command.id, vm: command.vm, at: clock::now(), origin: Origin::Command, result }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tls(identity: &Issued) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(identity.ca.as_bytes())?)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?,
        )?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
}

async fn write<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<()> {
    Ok(stream.write_all(&frame::encode(message)?).await?)
}

async fn read<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await?;
    let mut payload = vec![0; frame::payload_len(prefix)?];
    stream.read_exact(&mut payload).await?;
    Ok(frame::decode(&payload)?)
}
