//! Whether a connected agent may stay: not once its host is revoked, and not beyond its certificate's end.

use super::close::{CloseCode, Ending};
use super::session::SessionContext;
use crate::ca::Identity;
use crate::clock;
use crate::store::{Standing, Store, StoreError};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::HostId;
use gnomon_core::Audit;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How often the store is looked at for revocations, which another process writes: a revoked host is out within a second.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How long noting that a host was turned away may hold its refusal up.
const NOTE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a session looks whether its certificate has ended: a wall clock that was set is noticed.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// The hosts that were revoked, and when.
pub type Revocations = Arc<BTreeMap<HostId, Timestamp>>;

/// Keeps `revocations` up to date, for ever. While the store fails, what is known stays known.
pub async fn watch_revocations(store: Arc<dyn Store>, revocations: watch::Sender<Revocations>) {
    let mut failing = false;
    loop {
        match store.revocations().await {
            Ok(found) => {
                failing = false;
                revocations.send_if_modified(|known| {
                    let changed = **known != found;
                    if changed {
                        *known = Arc::new(found);
                    }
                    changed
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "revocations cannot be read: hosts revoked from now on stay connected");
                }
            }
        }
        sleep(WATCH_INTERVAL).await;
    }
}

/// Looks an agent's certificate up before it is let in.
pub(super) async fn admit(context: &SessionContext, host: &HostId, shown: &Identity) -> Result<Standing, Ending> {
    let busy = |error: StoreError| {
        tracing::error!(%error, "the store cannot be read");
        Ending::new(CloseCode::Busy, "the store cannot be read; connect again")
    };
    let standing = context.store.standing(host, &shown.serial).await.map_err(busy)?;
    match standing.void_since() {
        Some(since) => Err(turned_away(context, host, shown, since).await),
        None => Ok(standing),
    }
}

/// Resolves when the agent may not stay.
pub(super) async fn lost(context: &SessionContext, host: &HostId, shown: &Identity, admitted: Standing) -> Ending {
    let mut revocations = context.revocations.clone();
    loop {
        let revoked = revocations.borrow_and_update().get(host).copied();
        if let Some(since) = (Standing { revoked, ..admitted }).void_since() {
            return turned_away(context, host, shown, since).await;
        }
        if clock::now() >= shown.valid_to {
            let reason = format!(
                "the certificate of host {host} has ended; if it does not renew itself, join again: gnomon-brain token create --host {host}"
            );
            return Ending::new(CloseCode::Expired, reason);
        }
        tokio::select! {
            () = sleep(EXPIRY_INTERVAL) => {}
            // The watcher lives as long as the brain; should it be gone, the timer above still looks.
            Ok(()) = revocations.changed() => {}
        }
    }
}

/// The end of a revoked host's connection. The first one since the revocation goes into the audit log.
async fn turned_away(context: &SessionContext, host: &HostId, shown: &Identity, since: Timestamp) -> Ending {
    let when = jiff::Timestamp::from_millisecond(i64::try_from(since.unix_ms()).unwrap_or(i64::MAX));
    let when = when.map_or_else(|_| since.to_string(), |when| when.to_string());
    let reason = format!(
        "host {host} was revoked at {when}; only a new token lets it in again: gnomon-brain token create --host {host}, then gnomon-agent join"
    );
    let line = Audit {
        at: clock::now(),
        actor: format!("host {host}"),
        verb: "refuse_host".to_owned(),
        object: format!("host {host}"),
        detail: format!("revoked: certificate {} does not count any more", shown.serial),
    };
    match timeout(NOTE_TIMEOUT, context.store.turn_away(host, &line)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::error!(%error, %host, "the audit log does not take that a revoked host was turned away");
        }
        Err(_) => {
            tracing::error!(%host, "the store is slow: the audit log may lack that a revoked host was turned away");
        }
    }
    Ending::new(CloseCode::Revoked, reason)
}
