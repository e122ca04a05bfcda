//! The certificate authority: one self-signed CA that vouches for the brain and for every agent.
//!
//! A directory holds `ca.pem` and `ca.key` (mode 0600). The brain's certificate is for servers, an agent's for clients:
//! one cannot pose as the other. An agent's certificate names its host in the subject alternative name, and that name
//! is the only host it can speak for. Keys are ECDSA P-256, made and used by ring.
//!
//! Agents make their own keys: a running brain takes the public key out of a signing request and certifies it for the
//! host that it knows the agent to be, whatever the request says. Keys are made here only for the brain itself, and for
//! installations without a network (`gnomon-brain ca issue-agent`).

mod issue;
mod request;
mod serial;
mod show;

pub use issue::{Ca, Issued, Lifetime, Signed};
pub use request::REQUEST_BYTES_MAX;
pub use serial::Serial;
pub use show::{CertificateFacts, Identity, describe, identity};

use crate::secret::SecretError;
use gnomon_common::wire::InvalidHostId;
use std::path::PathBuf;

/// File name of the CA's certificate.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// File name of the CA's private key.
pub const CA_KEY: &str = "ca.key";
/// Server name that agents expect of a brain unless told otherwise.
pub const BRAIN_NAME: &str = "gnomon-brain";

/// Why a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is a CA already.
    #[error("{0} exists: this directory has a CA already, and overwriting it would orphan every certificate it issued")]
    Exists(PathBuf),
    /// There is no CA.
    #[error("no CA in {0}; make one with: gnomon-brain ca init --dir {0}")]
    Missing(PathBuf),
    /// A file with a secret cannot be read or written.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The certificate or key does not parse.
    #[error("{path} is not a PEM certificate: {reason}")]
    Unreadable {
        /// Which file, or `certificate` for one that came by the network.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The CA's certificate and key are not a pair.
    #[error("{key} is not the key of {certificate}: nothing it signs would be believed")]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// What an agent wants signed is not acceptable.
    #[error("the signing request is not acceptable: {0}")]
    Request(String),
    /// The library could not make it.
    #[error("cannot make the certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The host's name cannot stand in a certificate.
    #[error(transparent)]
    Name(#[from] InvalidHostId),
}
