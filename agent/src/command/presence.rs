//! Whether there is a brain: told by the uplink, asked by the executor.

use super::clock::BootInstant;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct BrainPresence(Arc<Mutex<Option<BootInstant>>>);

impl BrainPresence {
    /// No brain yet: away counts from now.
    pub fn gone_since(now: BootInstant) -> Self {
        Self(Arc::new(Mutex::new(Some(now))))
    }

    /// A brain has welcomed us.
    pub fn here(&self) {
        self.set(|_| None);
    }

    /// A connection has ended or was not made. Away counts from the first of them.
    pub fn gone(&self, now: BootInstant) {
        self.set(|since| since.or(Some(now)));
    }

    /// For how long there has been no brain; `None` while there is one.
    pub fn away_for(&self, now: BootInstant) -> Option<Duration> {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| now.since(since).unwrap_or_default())
    }

    fn set(&self, change: impl FnOnce(Option<BootInstant>) -> Option<BootInstant>) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = change(*since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn attempts_that_fail_do_not_make_the_absence_younger() {
        let at = |s: u64| BootInstant { boot: Uuid::nil(), us: s * 1_000_000 };
        let presence = BrainPresence::gone_since(at(1));
        presence.gone(at(5));
        assert_eq!(presence.away_for(at(11)), Some(Duration::from_secs(10)));
        presence.here();
        assert_eq!(presence.away_for(at(12)), None);
        presence.gone(at(20));
        presence.gone(at(25));
        assert_eq!(presence.away_for(at(30)), Some(Duration::from_secs(10)));
    }
}
