//! The agents' side of the brain: QUIC with mutual TLS.
//!
//! ```text
//! incoming -> TLS (client certificate from our CA, ALPN) -> hello (deadline, version, identity, fence) -> welcome
//!          -> control stream: heart-beats, outcomes in, commands out | report stream: reports in, acknowledgements out
//!          -> end: replaced, lost, refused, closed, brain stopping
//! ```
//! A [`serve`] serves one lease term. What a peer does wrong ends its own connection, with a reason told to it, logged
//! and counted; no peer can make another wait, beyond the store they share.

mod close;
mod framing;
mod hello;
mod metrics;
mod registry;
mod reports;
mod session;
mod tls;

pub use close::CloseCode;
pub use metrics::IngestMetrics;
pub use registry::Registry;
pub use tls::{TlsError, TlsFiles, server_config};

use crate::drive::{DriveHandle, Issued};
use crate::store::{Journal, Store};
use gnomon_common::wire::Fence;
use quinn::Endpoint;
use session::SessionContext;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
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
    /// How often each side sends a heart-beat.
    pub heartbeat: Duration,
    /// From when on a newer fence may make the brain take a new term; until then such an agent is told to come again.
    pub may_raise_from: tokio::time::Instant,
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
        heartbeat: ingest.heartbeat,
        may_raise_from: ingest.may_raise_from,
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
                    match handshake(incoming).await {
                        Ok(connection) => session::run(connection, context, permit).await,
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

async fn handshake(incoming: quinn::Incoming) -> Result<quinn::Connection, (&'static str, String)> {
    let connecting = incoming.accept().map_err(|error| (close::handshake_kind(&error), error.to_string()))?;
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err((close::handshake_kind(&error), error.to_string())),
        Err(_) => Err(("handshake_timeout", format!("no handshake within {HANDSHAKE_TIMEOUT:?}"))),
    }
}
