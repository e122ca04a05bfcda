//! What is wanted now, for all threads to see, and what they have made.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How often a thread that makes disk or network traffic looks at what is due.
pub(crate) const TICK: std::time::Duration = std::time::Duration::from_millis(50);

/// What the threads beside the CPU's are to make now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    pub(crate) memory_bytes: u64,
    pub(crate) read_bytes_per_s: u64,
    pub(crate) write_bytes_per_s: u64,
    /// At this instant: within a burst more than its mean, else nothing.
    pub(crate) send_bytes_per_s: u64,
}

/// Shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct Board {
    targets: Mutex<Targets>,
    changed: Condvar,
    /// Counters since the start, in bytes: touched (whole pages), read, written, sent.
    pub(crate) touched: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) sent: AtomicU64,
}

impl Board {
    /// What is wanted from now on.
    pub(crate) fn set(&self, targets: Targets) {
        let mut now = self.lock();
        if *now != targets {
            *now = targets;
            self.changed.notify_all();
        }
    }

    /// What is wanted now.
    pub(crate) fn targets(&self) -> Targets {
        *self.lock()
    }

    /// Sleeps until something is wanted of this thread: at idle nobody wakes up for nothing.
    pub(crate) fn wait_until(&self, wanted: impl Fn(&Targets) -> bool) {
        let waited = self.changed.wait_while(self.lock(), |targets| !wanted(targets));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts bytes.
    pub(crate) fn count(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
