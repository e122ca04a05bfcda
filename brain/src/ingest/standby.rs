//! The agents' side of a brain that stands by: everybody is told to go elsewhere, and nothing is taken in.

use super::close::{self, CloseCode, Ending};
use super::metrics::IngestMetrics;
use super::peer::Peer;
use super::session;
use super::{HANDSHAKE_TIMEOUT, HANDSHAKES_MAX};
use crate::role::Role;
use quinn::{Endpoint, Incoming};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Refuses whoever connects, for as long as it is polled; ends with the endpoint.
pub async fn stand_by(endpoint: &Endpoint, role: watch::Receiver<Role>, metrics: IngestMetrics) {
    let mut refusals = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = refusals.join_next(), if !refusals.is_empty() => {}
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                if refusals.len() >= HANDSHAKES_MAX {
                    incoming.refuse();
                    continue;
                }
                metrics.refused("standing_by");
                let reason = role.borrow().excuse();
                refusals.spawn(refuse(incoming, Ending::new(CloseCode::Busy, reason)));
            }
        }
    }
}

async fn refuse(incoming: Incoming, ending: Ending) {
    let peer = incoming.remote_address();
    let shaken = timeout(HANDSHAKE_TIMEOUT, async { incoming.accept()?.await }).await;
    let connection = match shaken {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%peer, kind = close::handshake_kind(&error), %error, "no handshake");
            return;
        }
        Err(_) => return,
    };
    tracing::debug!(%peer, "sent to the leader");
    match Peer::of(&connection) {
        Ok(Peer::Agent(_)) => session::refuse(&connection, &ending).await,
        // Joining has no word for it, but the close's reason is shown.
        Ok(Peer::Joining) | Err(_) => connection.close(ending.code.var_int(), ending.reason_bytes()),
    }
}
