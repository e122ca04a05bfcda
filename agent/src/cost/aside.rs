//! CPU time of the agent that is no part of what measuring costs: it has a bound of its own, and no probe's absence would change it.

use rustix::time::{ClockId, clock_gettime};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// All that was set aside since the agent began, in nanoseconds.
static ASIDE_NS: AtomicU64 = AtomicU64::new(0);

/// Sets aside what its thread uses for as long as this lives.
pub struct Aside {
    begun: Duration,
    /// Of what was used since then.
    counted: Duration,
    /// Another thread's time would be counted.
    _stays: PhantomData<*const ()>,
}

impl Aside {
    /// From now on.
    pub fn begin() -> Self {
        Self { begun: thread_time(), counted: Duration::ZERO, _stays: PhantomData }
    }

    /// Counts what was used by now, and returns what was used from the beginning on.
    pub fn count(&mut self) -> Duration {
        let used = thread_time().saturating_sub(self.begun);
        let more = used.saturating_sub(self.counted);
        ASIDE_NS.fetch_add(u64::try_from(more.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.counted = used;
        used
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.count();
    }
}

/// All that was set aside by now.
pub(super) fn total() -> Duration {
    Duration::from_nanos(ASIDE_NS.load(Ordering::Relaxed))
}

fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_uses_is_counted_once() {
        let before = total();
        let mut aside = Aside::begin();
        while aside.count() < Duration::from_millis(20) {}
        let counted = total() - before;
        assert!(counted >= Duration::from_millis(20), "{counted:?}");
        let used = aside.count();
        drop(aside);
        // Nothing else of this process sets anything aside meanwhile, where each test has its own.
        assert!(total() - before < used * 2, "{:?} of {used:?}", total() - before);
    }
}
