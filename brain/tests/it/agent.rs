//! An agent as the brain sees one: speaks `gnomon/1` over real QUIC, measures nothing.

use gnomon_brain::ca::Issued;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::frame::{self, PREFIX_BYTES};
use gnomon_common::wire::{
    ALPN, AgentEpoch, AgentMessage, Allocation, BrainMessage, Command, CpuBounds, CpuSource, CpuWindow, Hello,
    HostFacts, HostId, HostWindow, KeptCopies, Labels, Losses, MeanMax, Means, MemoryBounds, Origin, Outcome,
    OutcomeResult, Report, ReportAck, Sequence, VERSIONS, VmId, VmState, VmTerms, VmWindow,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use uuid::Uuid;

/// Nothing on loopback takes this long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

pub(crate) fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

pub(crate) fn hello(name: &str, epoch: u64) -> Hello {
    Hello {
        versions: VERSIONS,
        host: host(name),
        epoch: AgentEpoch(epoch),
        fence_highest: None,
        agent_version: "test".into(),
        facts: HostFacts {
            capacity_cores: 2.0,
            memory_bytes: 4 << 30,
            kernel: "6.1.0".into(),
            hypervisor: "QEMU".into(),
            cpu_bounds: CpuBounds { floor_cores: 0.1, ceiling_cores: 2.0 },
            memory_bounds: MemoryBounds::default(),
            means: vec![Means::CpuQuota],
            migration: None,
            zone: None,
            numa: Vec::new(),
            labels: Labels::default(),
            shadows: None,
            copies: KeptCopies::default(),
            dry_run: false,
            cpu_source: CpuSource::TaskStorage,
        },
    }
}

/// A window in which one VM, `vm`, wanted `cores`.
pub(crate) fn report(name: &str, epoch: u64, sequence: u64, start_ms: u64, vm: VmId, cores: f64) -> Report {
    let demand = MeanMax { mean: cores, max: cores };
    let cpu =
        CpuWindow { covered: 1.0, demand_low: demand, demand_high: demand, usage: demand, ..CpuWindow::default() };
    Report {
        host: host(name),
        epoch: AgentEpoch(epoch),
        sequence: Sequence(sequence),
        start: Timestamp::from_unix_ms(start_ms),
        window_ms: 1000,
        host_window: HostWindow::default(),
        vms: vec![VmWindow {
            vm,
            name: format!("vm-of-{name}"),
            state: VmState::Running,
            cpu: Some(cpu),
            memory: None,
            interfaces: Vec::new(),
            disk: None,
            allocation: Allocation { quota_cores: Some(0.5), vcpus: 2, vcpus_max: 2, memory_bytes: 1 << 30 },
            baselines: Vec::new(),
            stood_down: false,
            terms: VmTerms::default(),
            storage: None,
            migration: None,
            shadow: None,
            culprits: None,
            exits: None,
        }],
        inventory_complete: true,
        losses: Losses::default(),
    }
}

/// A client endpoint that shows `identity` and trusts `ca`.
pub(crate) fn endpoint(ca_pem: &str, identity: Option<&Issued>, alpn: &[u8]) -> Endpoint {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some(issued) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap())));
    endpoint
}

/// A connection with its control stream open.
pub(crate) struct Agent {
    _endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) control: SendStream,
    pub(crate) heard: UnboundedReceiver<BrainMessage>,
    pub(crate) reports: Option<(SendStream, UnboundedReceiver<ReportAck>)>,
}

impl Agent {
    /// Connects without a word.
    pub(crate) async fn dial(brain: SocketAddr, identity: &Issued) -> Result<Self, ConnectionError> {
        let endpoint = endpoint(&identity.ca, Some(identity), ALPN);
        let connection = endpoint.connect(brain, "gnomon-brain").unwrap().await?;
        let (control, incoming) = connection.open_bi().await?;
        Ok(Self { _endpoint: endpoint, connection, control, heard: frames(incoming), reports: None })
    }

    /// Connects, says `hello` and returns the answer.
    pub(crate) async fn introduce(brain: SocketAddr, identity: &Issued, hello: Hello) -> (Self, BrainMessage) {
        let mut agent = Self::dial(brain, identity).await.unwrap();
        agent.say(&AgentMessage::Hello(hello)).await;
        let answer = agent.hear().await;
        (agent, answer)
    }

    /// Connects as a welcome agent; returns the highest sequence that the brain has.
    pub(crate) async fn join(brain: SocketAddr, identity: &Issued, hello: Hello) -> (Self, u64) {
        let (agent, answer) = Self::introduce(brain, identity, hello).await;
        match answer {
            BrainMessage::Welcome(welcome) => (agent, welcome.acknowledged.0),
            other => panic!("not welcome: {other:?}"),
        }
    }

    pub(crate) async fn say(&mut self, message: &AgentMessage) {
        self.try_say(message).await.unwrap();
    }

    pub(crate) async fn try_say(&mut self, message: &AgentMessage) -> Result<(), quinn::WriteError> {
        write(&mut self.control, message).await
    }

    pub(crate) async fn hear(&mut self) -> BrainMessage {
        self.try_hear().await.expect("the control stream ended")
    }

    /// The next message; `None` once the stream or the connection has ended.
    pub(crate) async fn try_hear(&mut self) -> Option<BrainMessage> {
        timeout(PATIENCE, self.heard.recv()).await.expect("the brain says nothing")
    }

    /// The next command, past heart-beats.
    pub(crate) async fn command(&mut self) -> Command {
        loop {
            match self.hear().await {
                BrainMessage::Command(command) => return command,
                BrainMessage::Heartbeat { .. } => {}
                other => panic!("{other:?} instead of a command"),
            }
        }
    }

    /// Answers a command and waits until the brain has stored the answer.
    pub(crate) async fn answer(&mut self, command: &Command, result: OutcomeResult) {
        let at = gnomon_brain::clock::now();
        self.say(&AgentMessage::Outcome(Outcome {
            id: command.id,
            vm: command.vm,
            at,
            origin: Origin::Command,
            result,
        }))
        .await;
        loop {
            match self.hear().await {
                BrainMessage::OutcomeAck { id } if id == command.id => return,
                BrainMessage::Heartbeat { .. } => {}
                other => panic!("{other:?} instead of an acknowledgement"),
            }
        }
    }

    /// Sends a report without waiting for its acknowledgement.
    pub(crate) async fn send(&mut self, report: &Report) -> Result<(), quinn::WriteError> {
        if self.reports.is_none() {
            let (send, incoming) = self.connection.open_bi().await.map_err(quinn::WriteError::ConnectionLost)?;
            self.reports = Some((send, frames(incoming)));
        }
        write(&mut self.reports.as_mut().unwrap().0, report).await
    }

    /// The next acknowledgement; `None` once the stream or the connection has ended, or where no report was sent.
    pub(crate) async fn acknowledged(&mut self) -> Option<ReportAck> {
        let acks = &mut self.reports.as_mut()?.1;
        timeout(PATIENCE, acks.recv()).await.expect("the brain says nothing")
    }

    /// Sends a report and waits for its acknowledgement.
    pub(crate) async fn deliver(&mut self, report: &Report) {
        self.send(report).await.unwrap();
        let ack = self.acknowledged().await.expect("the report stream ended");
        assert_eq!(ack, ReportAck { epoch: report.epoch, sequence: report.sequence });
    }

    /// How the brain closes the connection: code and reason.
    pub(crate) async fn closed(&self) -> (u64, String) {
        match timeout(PATIENCE, self.connection.closed()).await.expect("the brain keeps the connection open") {
            ConnectionError::ApplicationClosed(close) => {
                (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
            }
            other => panic!("not closed by the brain: {other}"),
        }
    }
}

async fn write<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), quinn::WriteError> {
    stream.write_all(&frame::encode(message).unwrap()).await
}

/// Reads frames in a task of its own, so that a test may stop waiting for one without cutting it in two.
fn frames<T: DeserializeOwned + Send + 'static>(mut stream: RecvStream) -> UnboundedReceiver<T> {
    let (frames_in, frames) = unbounded_channel();
    tokio::spawn(async move {
        let mut prefix = [0; PREFIX_BYTES];
        while stream.read_exact(&mut prefix).await.is_ok() {
            let mut payload = vec![0; frame::payload_len(prefix).unwrap()];
            if stream.read_exact(&mut payload).await.is_err()
                || frames_in.send(frame::decode(&payload).unwrap()).is_err()
            {
                return;
            }
        }
    });
    frames
}
