//! Mutual TLS 1.3: who may connect at all.

mod naming;
mod own;

pub use own::OwnCertificate;

use crate::ca::CaError;
use crate::secret::SecretError;
use gnomon_common::wire::{ALPN, ENROL_ALPN};
use naming::Naming;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, pem};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The control stream and two report streams: what is live, and what was spooled.
const BIDI_STREAMS_MAX: u32 = 3;
/// What one stream may have in flight: one largest frame.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// What one agent may have in flight: a largest report on each report stream, so that neither can starve the other, and some control
/// messages.
const CONNECTION_WINDOW_BYTES: u32 = 2 * STREAM_WINDOW_BYTES + (1 << 20);
/// QUIC's own idle timeout is only the net below the heart-beat: this many of the three that make an agent lost, times
/// two.
const IDLE_HEARTBEATS: u32 = 6;

/// The files that say who the brain is and whom it trusts; all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The CA that agents' certificates must come from.
    pub ca: PathBuf,
    /// The brain's certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{path}: {source}; expected a PEM file, as `gnomon-brain ca issue-brain` writes it")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// The key cannot be read or replaced safely.
    #[error(transparent)]
    Key(#[from] SecretError),
    /// The CA does not work, or the certificate is not readable.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// Certificate and key do not make a server.
    #[error("the certificate and key do not work together: {0}")]
    Rustls(#[from] rustls::Error),
    /// The CA cannot verify clients.
    #[error("the CA file cannot verify agents: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The provider lacks what QUIC needs.
    #[error("the TLS provider has no cipher suite for QUIC: {0}")]
    Cipher(#[from] NoInitialCipherSuite),
}

/// QUIC's server side: TLS 1.3 only, no resumption (it would skip the certificate check) and so no 0-RTT.
///
/// A client's certificate is asked for and must be of our CA. A client without one passes TLS, because a host that wants to
/// join has none yet; it can do nothing but join (`ingest/peer.rs`).
pub fn server_config(ca: &Path, own: Arc<OwnCertificate>, heartbeat: Duration) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Naming(verifier)))
        .with_cert_resolver(own);
    tls.alpn_protocols = vec![ALPN.to_vec(), ENROL_ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

    let idle_ms = u32::try_from((heartbeat * IDLE_HEARTBEATS).as_millis()).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))));
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(Arc::new(transport));
    Ok(server)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |source| TlsError::Pem { path: path.to_owned(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    if found.is_empty() { Err(fail(pem::Error::NoItemsFound)) } else { Ok(found) }
}
