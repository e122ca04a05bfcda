//! Who both sides are: mutual TLS 1.3 from three PEM files, as a configuration for QUIC.
//!
//! The files are read anew for every connection, so that a renewed certificate, or one that an operator put there, is used by the next
//! one. Only the configured authority is trusted, never the system's. Neither 0-RTT nor resumption is used: a replayed command stream must
//! be impossible by construction, and a connection lasts for days.

mod install;

pub use install::Fresh;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::ALPN;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// QUIC's own idle time-out: well above three heart-beats of any sensible interval, it only ends connections that never got that far.
const IDLE_TIMEOUT_MS: u32 = 60_000;

/// Largest certificate or key file read: a chain is a few kilobytes.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}{}", if_missing(.source))]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written or replaced.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate that is none.
    #[error("{path} holds a certificate that does not parse: {reason}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The private key can be read by everyone on this host.
    #[error("the private key {path} is open to others (mode {mode:03o}): chmod 600 {path}")]
    KeyExposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds no PEM of the expected kind.
    #[error("{path} holds no {expected} in PEM: {source}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// What was found instead.
        source: pem::Error,
    },
    /// Certificates and key do not make an identity.
    #[error("{path} cannot be used: {source}")]
    Tls {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The TLS provider lacks what QUIC needs.
    #[error("the TLS provider has no cipher suite for QUIC")]
    Provider(#[from] NoInitialCipherSuite),
}

fn if_missing(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => "; a host gets its files with: gnomon-agent join BRAIN TOKEN",
        _ => "",
    }
}

/// Where an agent's identity is, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The authority that the brain's certificate must come from.
    pub ca: PathBuf,
    /// This host's certificate (and intermediates).
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// An identity, ready to connect with.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For QUIC.
    pub tls: quinn::ClientConfig,
    /// The certificate is valid from.
    pub valid_from: Timestamp,
    /// The certificate is valid to.
    pub valid_to: Timestamp,
}

impl Files {
    /// Reads the authority, this host's chain and its key. An agent that was killed while it replaced key and certificate finishes that.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        self.assemble().or_else(|error| match error {
            IdentityError::Tls { .. } => self.finish_replacing().ok_or(error),
            error => Err(error),
        })
    }

    fn assemble(&self) -> Result<Identity, IdentityError> {
        let chain = certificates(&self.certificate)?;
        let (valid_from, valid_to) = validity(&chain[0])
            .map_err(|reason| IdentityError::Certificate { path: self.certificate.clone(), reason })?;
        let tls = self.client_config(chain, private_key(&self.key)?)?;
        Ok(Identity { tls, valid_from, valid_to })
    }

    fn client_config(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<quinn::ClientConfig, IdentityError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.ca)? {
            roots.add(authority).map_err(|source| IdentityError::Tls { path: self.ca.clone(), source })?;
        }
        let mut tls = tls_builder(&self.ca)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|source| IdentityError::Tls { path: self.certificate.clone(), source })?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        quic(tls)
    }
}

/// TLS 1.3, as everything between agent and brain; `path` names in an error what it was for.
pub(super) fn tls_builder(
    path: &Path,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, IdentityError> {
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| IdentityError::Tls { path: path.to_owned(), source })
}

/// The configuration for QUIC around one for TLS.
pub(super) fn quic(mut tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, IdentityError> {
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))));
    // The brain opens no streams and sends no datagrams.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.datagram_receive_buffer_size(None);
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// From when to when a certificate is valid.
fn validity(der: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
    // Times before 1970 are as good as 1970.
    let at =
        |time: ASN1Time| Timestamp::from_unix_ms(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000));
    Ok((at(certificate.validity().not_before), at(certificate.validity().not_after)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let (text, _) = read(path)?;
    let failed = |source| IdentityError::Pem { path: path.to_owned(), expected: "certificate", source };
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if all.is_empty() { Err(failed(pem::Error::NoItemsFound)) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let (text, mode) = read(path)?;
    if mode & 0o007 != 0 {
        return Err(IdentityError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|source| {
        // The source says at most which PEM section was found, never its content.
        IdentityError::Pem { path: path.to_owned(), expected: "private key", source }
    })
}

/// Content and permission bits of the very file that was read.
fn read(path: &Path) -> Result<(Vec<u8>, u32), IdentityError> {
    let read = || {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let mut text = Vec::new();
        file.take(PEM_BYTES_MAX).read_to_end(&mut text)?;
        Ok((text, mode))
    };
    read().map_err(|source| IdentityError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::fs;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec!["h1".to_owned()]).unwrap().self_signed(&key).unwrap();
            files.write("cert.pem", &certificate.pem(), 0o644);
            files.write("key.pem", &key.serialize_pem(), 0o600);
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str, mode: u32) {
            fs::write(self.path(name), text).unwrap();
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn load(&self) -> Result<Identity, IdentityError> {
            let certificate = self.path("cert.pem");
            super::Files { ca: certificate.clone(), certificate, key: self.path("key.pem") }.load()
        }
    }

    #[test]
    fn a_matching_pair_makes_an_identity() {
        Files::new().load().unwrap();
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let files = Files::new();
        fs::set_permissions(files.path("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        let error = files.load().unwrap_err();
        assert!(matches!(error, IdentityError::KeyExposed { mode: 0o644, .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_wrong_content_is_named_and_not_quoted() {
        let files = Files::new();
        files.write("key.pem", "secret", 0o600);
        let error = files.load().unwrap_err().to_string();
        assert!(error.contains("key.pem holds no private key") && !error.contains("secret"), "{error}");
        files.write("key.pem", &KeyPair::generate().unwrap().serialize_pem(), 0o600);
        assert!(files.load().is_err(), "a key of another certificate was accepted");
    }

    #[test]
    fn a_missing_file_is_named() {
        let files = Files::new();
        fs::remove_file(files.path("cert.pem")).unwrap();
        let error = files.load().unwrap_err().to_string();
        assert!(error.contains("cert.pem") && error.contains("gnomon-agent join"), "{error}");
    }
}
