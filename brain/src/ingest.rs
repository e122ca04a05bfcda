//! The agents' side of the brain: QUIC with mutual TLS.
//!
//! ```text
//! incoming -> TLS (client certificate from our CA, ALPN) -> hello (deadline, version, identity, not revoked, fence) -> welcome
//!          -> control stream: heart-beats, outcomes in, commands out | report stream: reports in, acknowledgements out
//!          -> end: replaced, lost, refused, closed, revoked, certificate ended, brain stopping
//! incoming -> TLS (no client certificate, the other ALPN) -> one request to join -> certificate or refusal -> end
//! ```
//! A [`serve`] serves one lease term. What a peer does wrong ends its own connection, with a reason told to it, logged
//! and counted; no peer can make another wait, beyond the store they share.

mod bucket;
mod close;
mod enrol;
mod framing;
mod hello;
mod metrics;
mod peer;
mod registry;
mod renew;
mod reports;
mod session;
mod standby;
mod standing;
mod tls;

pub use close::CloseCode;
pub use enrol::{Authority, Enrolment};
pub use metrics::IngestMetrics;
pub use registry::Registry;
pub use standby::stand_by;
pub use standing::{Revocations, watch_revocations};
pub use tls::{OwnCertificate, TlsError, TlsFiles, server_config};

use crate::drive::{DriveHandle, Issued};
use crate::service::Raising;
use crate::store::{Journal, Store};
use gnomon_common::wire::{ENROL_ALPN, Fence};
use peer::Peer;
use quinn::Endpoint;
use session::SessionContext;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections between their first packet and their welcome. Only these can come from strangers; more are refused at
/// once.
const HANDSHAKES_MAX: usize = 256;
/// How long the TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long stopping waits for sessions to say good-bye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// What one term's ingest needs.
pub struct Ingest {
    /// The socket.
    pub endpoint: Endpoint,
    /// The loop that inputs go to.
    pub drive: DriveHandle,
    /// The writer that reports and outcomes go through first.
    pub journal: Journal,
    /// Where a hello's acknowledged sequence is read.
    pub store: Arc<dyn Store>,
    /// Which agents are connected; the drive dispatches commands through it.
    pub registry: Arc<Registry>,
    /// The newest fence sent to each host.
    pub issued: Arc<Issued>,
    /// Where hosts without a certificate join.
    pub enrolment: Arc<Enrolment>,
    /// Which hosts were revoked; kept up to date by [`watch_revocations`].
    pub revocations: watch::Receiver<Revocations>,
    /// How often each side sends a heart-beat.
    pub heartbeat: Duration,
    /// From when on a newer fence may make the brain take a new term; until then such an agent is told to come again.
    pub raising: Raising,
    /// What is measured.
    pub metrics: IngestMetrics,
}

/// Why serving ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// It was told to stop.
    Stopped,
    /// An agent has obeyed a newer fence than this brain ever sent it: the store is older than the brain that sent it
    /// (a restored back-up). A term above that fence's is needed before any command can be obeyed there.
    Regressed {
        /// Who showed it.
        host: String,
        /// The fence.
        fence: Fence,
    },
}

/// Serves agents until `stop`, or until one shows that the brain has regressed. On return no session runs any more.
pub async fn serve(ingest: Ingest, stop: CancellationToken) -> Served {
    let (regressed_in, mut regressed) = mpsc::channel(1);
    let ending = CancellationToken::new();
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let context = Arc::new(SessionContext {
        drive: ingest.drive,
        journal: ingest.journal,
        store: ingest.store,
        registry: ingest.registry,
        issued: ingest.issued,
        enrolment: ingest.enrolment,
        revocations: ingest.revocations,
        heartbeat: ingest.heartbeat,
        raising: ingest.raising,
        metrics: ingest.metrics,
        regressed: regressed_in,
        ending: ending.clone(),
    });
    let mut sessions = JoinSet::new();
    let served = loop {
        tokio::select! {
            () = stop.cancelled() => break Served::Stopped,
            Some((host, fence)) = regressed.recv() => break Served::Regressed { host, fence },
            Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a session failed; its agent will connect again");
                    context.metrics.refused("internal");
                }
            }
            incoming = ingest.endpoint.accept() => {
                let Some(incoming) = incoming else { break Served::Stopped };
                let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                    context.metrics.refused("busy");
                    incoming.refuse();
                    continue;
                };
                let context = context.clone();
                sessions.spawn(async move {
                    let peer = incoming.remote_address();
                    match handshake(incoming, &context.enrolment).await {
                        Ok(connection) => greet(connection, context, permit).await,
                        Err((kind, reason)) => {
                            tracing::warn!(%peer, kind, reason, "connection refused in the handshake");
                            context.metrics.refused(kind);
                        }
                    }
                });
            }
        }
    };
    ending.cancel();
    let goodbye = async { while sessions.join_next().await.is_some() {} };
    if timeout(GOODBYE_TIMEOUT, goodbye).await.is_err() {
        sessions.shutdown().await;
    }
    served
}

async fn handshake(
    incoming: quinn::Incoming,
    enrolment: &Enrolment,
) -> Result<quinn::Connection, (&'static str, String)> {
    let peer = incoming.remote_address();
    let mut connecting = incoming.accept().map_err(|error| (close::handshake_kind(&error), error.to_string()))?;
    let mut joining = false;
    let done = async {
        joining = peer::speaks(&*connecting.handshake_data().await?, ENROL_ALPN);
        connecting.await
    };
    match timeout(HANDSHAKE_TIMEOUT, done).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => {
            if joining {
                enrolment.failed(peer, &error).await;
            }
            Err((close::handshake_kind(&error), error.to_string()))
        }
        Err(_) => Err(("handshake_timeout", format!("no handshake within {HANDSHAKE_TIMEOUT:?}"))),
    }
}

async fn greet(connection: quinn::Connection, context: Arc<SessionContext>, handshake: OwnedSemaphorePermit) {
    match Peer::of(&connection) {
        Ok(Peer::Agent(identity)) => session::run(connection, identity, context, handshake).await,
        Ok(Peer::Joining) => {
            let ending = context.ending.clone();
            let enrolled = ending.run_until_cancelled(context.enrolment.serve(connection.clone())).await;
            if enrolled.is_none() {
                connection.close(CloseCode::Stopping.var_int(), b"the brain stops; try again");
            }
        }
        Err(ending) => {
            tracing::warn!(peer = %connection.remote_address(), reason = ending.reason, "connection refused");
            context.metrics.refused("certificate");
            connection.close(ending.code.var_int(), ending.reason_bytes());
        }
    }
}
