//! How long a brain may act as leader, by its own clock.
//!
//! The lease in the store ends by the store's clock. Here it ends sooner: its length is counted from the moment at which it was asked for,
//! and what two clocks may differ by in that time is taken off. The clock is the one that goes on while a machine is suspended.

use crate::store::{Candidate, Store, StoreError};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Renewals within one lease's length.
const RENEWALS: u32 = 3;
/// What part of a lease is not used: an hour's drift of a bad clock, and more than a command takes from here to the wire.
const MARGIN_PARTS: u32 = 9;
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_millis(200);

/// Why a brain leads no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// Somebody else does.
    #[error(transparent)]
    Deposed(StoreError),
    /// The store has not answered in time.
    #[error("the store did not renew this brain's lease in time; another brain may lead from now on")]
    Ended,
}

/// Whether this brain leads, and for how long yet. Clones share it.
#[derive(Clone)]
pub(super) struct Tenure {
    lease: Duration,
    until: Arc<Mutex<Until>>,
    leading: Gauge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// It does not lead.
    Never,
    /// A lease that does not end.
    Always,
    /// The time since the machine started.
    Boot(Duration),
}

impl Tenure {
    /// Of a brain that does not lead yet, and whose leases will be this long.
    pub(super) fn new(lease: Duration, leading: Gauge) -> Self {
        Self { lease, until: Arc::new(Mutex::new(Until::Never)), leading }
    }

    /// The brain leads, by a lease that it `asked` for at that time since the machine started.
    pub(super) fn begin(&self, asked: Duration, ends: bool) {
        *self.until() = if ends { Until::Boot(asked + self.usable()) } else { Until::Always };
        self.leading.set(1);
    }

    /// It does not any more.
    pub(super) fn end(&self) {
        *self.until() = Until::Never;
        self.leading.set(0);
    }

    /// Whether it may act.
    pub(super) fn is_held(&self) -> bool {
        match *self.until() {
            Until::Never => false,
            Until::Always => true,
            Until::Boot(until) => since_boot() < until,
        }
    }

    /// What is left of a lease that ends.
    fn left(&self) -> Option<Duration> {
        match *self.until() {
            Until::Never | Until::Always => None,
            Until::Boot(until) => Some(until.saturating_sub(since_boot())),
        }
    }

    fn usable(&self) -> Duration {
        self.lease - self.lease / MARGIN_PARTS
    }

    fn until(&self) -> MutexGuard<'_, Until> {
        // One value, always whole.
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the lease for as long as there is one; returns when it is lost.
    pub(super) async fn keep(&self, store: &dyn Store, candidate: &Candidate) -> Lost {
        let interval = self.lease / RENEWALS;
        loop {
            let Some(left) = self.left() else {
                sleep(interval).await;
                continue;
            };
            if left.is_zero() {
                self.end();
                return Lost::Ended;
            }
            let asked = since_boot();
            let pause = match timeout(left.min(interval), store.renew_lease(candidate)).await {
                Ok(Ok(())) => {
                    self.begin(asked, true);
                    interval
                }
                Ok(Err(deposed @ StoreError::Deposed { .. })) => {
                    self.end();
                    return Lost::Deposed(deposed);
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, ?left, "the lease was not renewed");
                    RETRY
                }
                Err(_) => {
                    tracing::warn!(?left, "the lease was not renewed: the store does not answer");
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }
}

/// Registers whether this brain leads.
pub(crate) fn register(registry: &mut Registry) -> Gauge {
    let leading = Gauge::default();
    registry.register(
        "gnomon_brain_leader",
        "1 while this brain leads its fleet, 0 while it stands by",
        leading.clone(),
    );
    leading
}

/// Time since the machine started, suspension included.
pub(super) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_here_before_its_length_is_over_and_counts_from_when_it_was_asked_for() {
        let length = Duration::from_secs(9);
        let tenure = Tenure::new(length, Gauge::default());
        assert!(!tenure.is_held(), "nobody leads before it is told");
        let now = since_boot();
        for (asked_ago_ms, held) in [(0, true), (7900, true), (8000, false), (9000, false)] {
            tenure.begin(now.saturating_sub(Duration::from_millis(asked_ago_ms)), true);
            assert_eq!(tenure.is_held(), held, "asked for {asked_ago_ms} ms ago");
        }
        tenure.begin(Duration::ZERO, false);
        assert!(tenure.is_held() && tenure.left().is_none(), "a lease that does not end");
        tenure.end();
        assert!(!tenure.is_held());
    }
}
