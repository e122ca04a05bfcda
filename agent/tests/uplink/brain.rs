//! The other side: certificates, and a brain reduced to what it says on the wire, so that a test can say anything.

use gnomon_common::wire::frame::{self, PREFIX_BYTES};
use gnomon_common::wire::{ALPN, AgentMessage, BrainMessage, Hello, Report, ReportAck, Sequence, VERSIONS, Welcome};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Nothing in these tests should take a second; this is for a machine that is busy with something else.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// An authority and the certificates it signs.
pub(super) struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes what an agent needs: an identity signed by this authority, and `trusted` as the authority it trusts.
    pub(super) fn write_agent(&self, folder: &Path, trusted: &Authority) -> [PathBuf; 3] {
        let (certificate, key) = self.sign("host-1");
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        [
            write("ca.pem", trusted.certificate.pem()),
            write("agent.pem", certificate.pem()),
            write("agent.key", key.serialize_pem()),
        ]
    }
}

/// Listens on loopback with a certificate for `gnomon-brain`, and demands one of the same authority.
pub(super) struct Brain {
    endpoint: Endpoint,
}

impl Brain {
    pub(super) fn listen(authority: &Authority) -> Self {
        let (certificate, key) = authority.sign("gnomon-brain");
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self { endpoint }
    }

    pub(super) fn address(&self) -> String {
        self.endpoint.local_addr().unwrap().to_string()
    }

    /// The next connection attempt, through TLS.
    pub(super) async fn connection(&self) -> Result<Connection, ConnectionError> {
        soon(self.endpoint.accept()).await.unwrap().await
    }

    /// The next connection, up to its hello.
    pub(super) async fn greeted(&self) -> Greeted {
        let connection = self.connection().await.unwrap();
        let (control_out, mut control_in) = soon(connection.accept_bi()).await.unwrap();
        let AgentMessage::Hello(hello) = read(&mut control_in).await else { panic!("the first message is no hello") };
        Greeted { connection, control_out, control_in, hello }
    }
}

/// A connection that has said hello and waits for its answer.
pub(super) struct Greeted {
    pub(super) connection: Connection,
    pub(super) control_out: SendStream,
    pub(super) control_in: RecvStream,
    pub(super) hello: Hello,
}

impl Greeted {
    pub(super) async fn say(&mut self, message: BrainMessage) {
        write(&mut self.control_out, &message).await;
    }

    /// Welcomes the agent, with heart-beats so rare that a test need not answer them.
    pub(super) async fn welcome(&mut self, term: u64, acknowledged: u64) {
        self.welcome_with_heartbeat(term, acknowledged, 10_000).await;
    }

    pub(super) async fn welcome_with_heartbeat(&mut self, term: u64, acknowledged: u64, heartbeat_ms: u32) {
        let version = VERSIONS.max;
        let acknowledged = Sequence(acknowledged);
        self.say(BrainMessage::Welcome(Welcome { version, term, heartbeat_ms, acknowledged })).await;
    }

    /// The next message that is not a heart-beat; heart-beats are answered.
    pub(super) async fn hear(&mut self) -> AgentMessage {
        loop {
            match read(&mut self.control_in).await {
                AgentMessage::Heartbeat { at } => self.say(BrainMessage::Heartbeat { at }).await,
                other => return other,
            }
        }
    }

    /// The next report stream: first the live one, then the backlog's.
    pub(super) async fn reports(&self) -> Reports {
        let (acks, reports) = soon(self.connection.accept_bi()).await.unwrap();
        Reports { acks, reports }
    }

    /// How the agent closes this connection: its code and its reason.
    pub(super) async fn closed(&self) -> (u64, String) {
        match soon(self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
            }
            other => panic!("not closed by the agent: {other}"),
        }
    }
}

/// A report stream.
pub(super) struct Reports {
    pub(super) acks: SendStream,
    reports: RecvStream,
}

impl Reports {
    pub(super) async fn next(&mut self) -> Report {
        read(&mut self.reports).await
    }

    pub(super) async fn acknowledge(&mut self, report: &Report) {
        write(&mut self.acks, &ReportAck { epoch: report.epoch, sequence: report.sequence }).await;
    }
}

pub(super) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("nothing happened for too long")
}

pub(super) async fn write<T: Serialize>(stream: &mut SendStream, message: &T) {
    soon(stream.write_all(&frame::encode(message).unwrap())).await.unwrap();
}

async fn read<T: DeserializeOwned>(stream: &mut RecvStream) -> T {
    let mut prefix = [0; PREFIX_BYTES];
    soon(stream.read_exact(&mut prefix)).await.unwrap();
    let mut payload = vec![0; frame::payload_len(prefix).unwrap()];
    soon(stream.read_exact(&mut payload)).await.unwrap();
    frame::decode(&payload).unwrap()
}
