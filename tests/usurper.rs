//! A brain that a test plays itself, with the real brain's certificate and address, so that it can say anything to a real agent.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gnomon_common::wire::frame::{self, PREFIX_BYTES};
use gnomon_common::wire::{
    ALPN, AgentMessage, BrainMessage, Command, Hello, Outcome, Report, ReportAck, Sequence, VERSIONS, Welcome,
};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use xtask::lab::{BRAIN_ADDRESS, Lab};

/// An agent that lost its brain comes back within its longest back-off.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 9470;

/// One agent's connection to the played brain.
#[derive(Debug)]
pub struct Usurper {
    endpoint: Endpoint,
    connection: Connection,
    out: SendStream,
    heard: RecvStream,
    reports: UnboundedReceiver<Report>,
    /// How the agent introduced itself.
    pub hello: Hello,
}

impl Usurper {
    /// Takes the brain's place and welcomes the first agent that comes, as a brain of `term`.
    pub async fn welcome(lab: &Lab, brain_dir: &Path, term: u64) -> Result<Self> {
        let address = SocketAddr::from((BRAIN_ADDRESS, PORT));
        let socket = lab.in_brain_net(|| UdpSocket::bind(address))?.context("taking the brain's address")?;
        let config = Some(quinn::ServerConfig::with_crypto(Arc::new(tls(brain_dir)?)));
        let endpoint = Endpoint::new(EndpointConfig::default(), config, socket, Arc::new(TokioRuntime))?;
        Self::accept(endpoint, term).await
    }

    /// Welcomes the next agent that comes, in place of the one before.
    pub async fn welcome_next(&mut self, term: u64) -> Result<()> {
        *self = Self::accept(self.endpoint.clone(), term).await?;
        Ok(())
    }

    async fn accept(endpoint: Endpoint, term: u64) -> Result<Self> {
        let connection = loop {
            let incoming = timeout(PATIENCE, endpoint.accept()).await.context("no agent came")?;
            match incoming.context("the endpoint is closed")?.await {
                Ok(connection) => break connection,
                // One whose agent was killed, or gave up waiting, before anybody looked.
                Err(quinn::ConnectionError::TimedOut | quinn::ConnectionError::ConnectionClosed(_)) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let (out, mut heard) = timeout(PATIENCE, connection.accept_bi()).await??;
        let AgentMessage::Hello(hello) = read(&mut heard).await? else { bail!("the first message is no hello") };
        let (tell, reports) = unbounded_channel();
        tokio::spawn(take_reports(connection.clone(), tell));
        let mut usurper = Self { endpoint, connection, out, heard, reports, hello };
        let acknowledged = Sequence(0);
        let welcome = Welcome { version: VERSIONS.max, term, heartbeat_ms: 1000, acknowledged };
        usurper.say(&BrainMessage::Welcome(welcome)).await?;
        Ok(usurper)
    }

    /// Gives a command and returns what the agent says became of it.
    pub async fn command(&mut self, command: &Command) -> Result<Outcome> {
        self.send(command).await?;
        self.outcome(|outcome| outcome.id == command.id).await
    }

    /// Gives a command and does not wait for its outcome.
    pub async fn send(&mut self, command: &Command) -> Result<()> {
        self.say(&BrainMessage::Command(command.clone())).await
    }

    /// Serves the agent for a while. Outcomes that come meanwhile are acknowledged and returned.
    pub async fn serve(&mut self, span: Duration) -> Result<Vec<Outcome>> {
        let (mut all, end) = (Vec::new(), tokio::time::Instant::now() + span);
        while let Ok(outcome) = tokio::time::timeout_at(end, self.outcome(|_| true)).await {
            all.push(outcome?);
        }
        Ok(all)
    }

    /// Serves the agent, and acknowledges what it tells, until it tells of an outcome like this.
    pub async fn outcome(&mut self, like: impl Fn(&Outcome) -> bool) -> Result<Outcome> {
        loop {
            match read(&mut self.heard).await? {
                AgentMessage::Heartbeat { at } => self.say(&BrainMessage::Heartbeat { at }).await?,
                AgentMessage::Outcome(outcome) => {
                    self.say(&BrainMessage::OutcomeAck { id: outcome.id }).await?;
                    if like(&outcome) {
                        return Ok(outcome);
                    }
                }
                // A usurper signs nothing; the agent asks its next brain.
                AgentMessage::Renew { .. } => {}
                AgentMessage::Hello(_) => bail!("a second hello"),
            }
        }
    }

    /// The next report like this; those before it are passed over.
    pub async fn report(&mut self, like: impl Fn(&Report) -> bool) -> Result<Report> {
        loop {
            let report = timeout(PATIENCE, self.reports.recv()).await.context("no such report")?;
            let report = report.context("the agent is gone")?;
            if like(&report) {
                return Ok(report);
            }
        }
    }

    /// Sends bytes that are no frame and returns the reason with which the agent closes the connection.
    pub async fn babble(&mut self, bytes: &[u8]) -> Result<String> {
        self.out.write_all(bytes).await?;
        match timeout(PATIENCE, self.connection.closed()).await? {
            quinn::ConnectionError::ApplicationClosed(close) => Ok(String::from_utf8_lossy(&close.reason).into_owned()),
            other => bail!("not closed by the agent: {other}"),
        }
    }

    async fn say(&mut self, message: &BrainMessage) -> Result<()> {
        self.out.write_all(&frame::encode(message)?).await.context("the agent is gone")
    }
}

async fn read(stream: &mut RecvStream) -> Result<AgentMessage> {
    timeout(PATIENCE, read_frame(stream)).await.context("the agent says nothing")?
}

/// Takes the streams on which reports come, and acknowledges each, until the connection ends.
async fn take_reports(connection: Connection, tell: UnboundedSender<Report>) {
    while let Ok((mut out, mut heard)) = connection.accept_bi().await {
        let tell = tell.clone();
        tokio::spawn(async move {
            while let Ok(report) = read_frame::<Report>(&mut heard).await {
                let ack = frame::encode(&ReportAck { epoch: report.epoch, sequence: report.sequence });
                let acknowledged = match ack {
                    Ok(ack) => out.write_all(&ack).await.is_ok(),
                    Err(_) => false,
                };
                if !acknowledged || tell.send(report).is_err() {
                    return;
                }
            }
        });
    }
}

async fn read_frame<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await?;
    let mut payload = vec![0; frame::payload_len(prefix)?];
    stream.read_exact(&mut payload).await?;
    Ok(frame::decode(&payload)?)
}

fn tls(brain_dir: &Path) -> Result<QuicServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(brain_dir.join("ca.pem"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let chain = CertificateDer::pem_file_iter(brain_dir.join("brain.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(brain_dir.join("brain.key"))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok(QuicServerConfig::try_from(tls)?)
}
