//! Joining a brain with a token: the one conversation that needs no certificate.
//!
//! The brain is believed because its CA is the one that the token pins, before the token's secret leaves this host; the agent is believed
//! because of the secret. The key is made here and stays here.

mod pin;

use super::failure::Failure;
use super::framing;
use super::identity::{self, Fresh, IdentityError};
use super::session;
use gnomon_common::wire::{ENROL_ALPN, EnrolRefusal, EnrolReply, EnrolRequest, HostId, Token};
use pin::PinnedCa;
use quinn::{Connection, ConnectionError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// For resolving, connecting and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to its answer; the brain may have to ask its store first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Pauses before a brain that is busy is asked again: a rack that joins at once is through within a minute.
const BUSY_PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// The brain's close code for "busy".
const CLOSE_BUSY: u32 = 4;
/// How the alert `unknown_ca` (RFC 8446, section 6.2) of our own TLS appears in QUIC.
const ALERT_UNKNOWN_CA: u64 = 0x100 + 48;

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The brain said no; what it says tells what to do.
    #[error("the brain refuses this token ({}): {reason}", .code.word())]
    Refused {
        /// Why, for programs.
        code: EnrolRefusal,
        /// Why, for people.
        reason: String,
    },
    /// The brain's CA is not the token's.
    #[error(
        "the brain at {brain} is not the one that made this token (foreign): its CA is another one; check the address, or make a token there"
    )]
    OtherBrain {
        /// Its address.
        brain: String,
    },
    /// No conversation came about.
    #[error("cannot join at {brain}: {reason}")]
    Connection {
        /// The brain's address.
        brain: String,
        /// What happened.
        reason: String,
    },
    /// The answer is not what was asked for.
    #[error("the brain's answer is not usable: {0}")]
    Answer(String),
    /// There is no key, or the identity cannot be put in place.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No key can be made.
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// Where to join, and as whom.
pub struct Joining<'a> {
    /// The brain's `HOST:PORT`.
    pub brain: &'a str,
    /// The name its certificate must have.
    pub server_name: &'a str,
    /// The invitation.
    pub token: &'a Token,
    /// This host, by its own configuration.
    pub host: &'a HostId,
}

/// What a host that has joined gets.
pub struct Joined {
    /// Its new key.
    pub fresh: Fresh,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The CA's certificate, PEM: the one that the token pins.
    pub ca: String,
}

/// Joins. A brain that is busy is asked again a few times; every other refusal is final.
pub async fn join(joining: &Joining<'_>) -> Result<Joined, EnrolError> {
    let fresh = Fresh::make(joining.host)?;
    let mut pauses = BUSY_PAUSES.into_iter();
    loop {
        match ask(joining, &fresh).await {
            Ok((certificate, ca)) => return Ok(Joined { fresh, certificate, ca }),
            Err(EnrolError::Refused { code: EnrolRefusal::Busy, reason }) => {
                let Some(pause) = pauses.next() else {
                    return Err(EnrolError::Refused { code: EnrolRefusal::Busy, reason });
                };
                tracing::info!(reason, pause_s = pause.as_secs(), "the brain is busy; asking again");
                sleep(pause).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn ask(joining: &Joining<'_>, fresh: &Fresh) -> Result<(String, String), EnrolError> {
    let Joining { brain, server_name, token, host } = *joining;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = identity::tls_builder(Path::new("the token"))?
        .dangerous()
        // Stricter than the usual verifier, not laxer: see the module.
        .with_custom_certificate_verifier(Arc::new(PinnedCa::new(token.ca, provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ENROL_ALPN.to_vec()];
    let tls = identity::quic(tls)?;
    let failed = |reason: String| EnrolError::Connection { brain: brain.to_owned(), reason };
    let late = |limit: Duration| failed(format!("no answer within {} s", limit.as_secs()));
    let (endpoint, connection) = timeout(CONNECT_TIMEOUT, session::connect(brain, server_name, &tls))
        .await
        .map_err(|_| late(CONNECT_TIMEOUT))?
        .map_err(|failure| match failure {
            Failure::Connection(ConnectionError::TransportError(error))
                if u64::from(error.code) == ALERT_UNKNOWN_CA =>
            {
                EnrolError::OtherBrain { brain: brain.to_owned() }
            }
            failure => failed(failure.to_string()),
        })?;
    let request =
        EnrolRequest { token: token.id, secret: token.secret, host: host.clone(), request: fresh.request.clone() };
    let reply = timeout(ANSWER_TIMEOUT, converse(&connection, &request)).await;
    connection.close(0_u32.into(), b"");
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    match reply.map_err(|_| late(ANSWER_TIMEOUT))? {
        Ok(EnrolReply::Issued { certificate, ca }) => check(token, certificate, ca),
        Ok(EnrolReply::Refused { code, reason }) => Err(EnrolError::Refused { code, reason }),
        Err(Failure::Connection(ConnectionError::ApplicationClosed(close)))
            if close.error_code == CLOSE_BUSY.into() =>
        {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            Err(EnrolError::Refused { code: EnrolRefusal::Busy, reason })
        }
        Err(failure) => Err(failed(failure.to_string())),
    }
}

async fn converse(connection: &Connection, request: &EnrolRequest) -> Result<EnrolReply, Failure> {
    let on_stream = |error| Failure::of_stream("enrolment", error);
    let (mut out, mut heard) = connection.open_bi().await?;
    framing::write(&mut out, request).await.map_err(on_stream)?;
    let _ = out.finish();
    framing::read(&mut heard).await.map_err(on_stream)
}

/// The CA that is trusted from now on is the pinned one, and nothing but it.
fn check(token: &Token, certificate: String, ca: String) -> Result<(String, String), EnrolError> {
    let authorities = CertificateDer::pem_slice_iter(ca.as_bytes()).collect::<Result<Vec<_>, _>>();
    match authorities.map_err(|error| EnrolError::Answer(error.to_string()))?.as_slice() {
        [authority] if pin::pin_of(authority) == token.ca => Ok((certificate, ca)),
        _ => Err(EnrolError::Answer("it names another CA than the token".to_owned())),
    }
}
