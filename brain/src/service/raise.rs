//! A new term because an agent shows a newer fence than this brain ever sent: how often that may be.
//!
//! It is meant for a store that was restored from a back-up. Where two brains with stores of their own command the same hosts, each would
//! take a term above the other's, for ever, and none would lead for long. So it is bounded; beyond that the brain turns such agents away,
//! serves the others, and an operator has to say which of the two brains it is to be: `gnomon-brain take-over`, which begins the count anew.

use crate::clock;
use crate::store::{RAISE_VERB, Store};
use gnomon_common::wire::Fence;
use gnomon_core::Audit;
use std::time::Duration;
use tokio::time::Instant;

/// Least time between two: an agent that lies about its fence cannot keep the others disconnected.
pub(super) const INTERVAL: Duration = Duration::from_secs(30);

/// So many within [`WINDOW`], whatever restarts in between: each agent of a restored fleet may show a higher fence than the one before.
const RAISES_MAX: usize = 10;
const WINDOW: Duration = Duration::from_secs(86_400);

/// Whether an agent may make the brain take a new term.
#[derive(Clone, Copy, Debug)]
pub struct Raising {
    /// From then on.
    pub from: Instant,
    /// There were as many as may be: an operator has to say which brain leads.
    pub is_spent: bool,
}

impl Raising {
    /// By what the store knows of earlier ones, and not before `quiet_until`.
    pub(super) async fn now(store: &dyn Store, quiet_until: Instant) -> Self {
        let now = clock::now();
        let raises = store.raises(now - WINDOW).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "how often this brain took a new term cannot be read");
            Vec::new()
        });
        let Some(first) = raises.len().checked_sub(RAISES_MAX).and_then(|place| raises.get(place)) else {
            return Self { from: quiet_until, is_spent: false };
        };
        let wait = (*first + WINDOW).since(now);
        tracing::error!(
            raises = RAISES_MAX,
            ?wait,
            "agents have shown newer fences too often: another brain commands them by a store of its own; end one of the two, or gnomon-brain take-over"
        );
        Self { from: quiet_until.max(Instant::now() + wait), is_spent: true }
    }
}

/// What the audit log says of it.
pub(super) fn line(host: &str, fence: Fence) -> Audit {
    Audit {
        at: clock::now(),
        actor: "gnomon".into(),
        verb: RAISE_VERB.into(),
        object: format!("host {host}"),
        detail: format!(
            "it has obeyed fence {fence}, which this store does not know: the store was restored from a back-up, or another brain has one of its own"
        ),
    }
}
