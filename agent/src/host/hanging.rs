//! Calls that may hang for ever: a libvirt daemon on a host that is gone, a file system on a network that is.
//!
//! Each is made on a thread of its own and waited for so long. What has not returned by then is left there, and until it returns nothing
//! else is asked of the same thing: there is one thread at most for each, and who asks meanwhile is told at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Calls under way at once, those that hang included.
const CALLS_MAX: usize = 64;

/// Why a call has no answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NoAnswer {
    /// It has not returned in time.
    #[error("does not answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    /// An earlier one has not returned yet.
    #[error("does not answer, not even yet to what it was asked before")]
    Hangs,
    /// Too many hang, of others.
    #[error("is not asked: {CALLS_MAX} others are, or do not answer")]
    TooMany,
    /// There was no thread for it, or that has ended.
    #[error("cannot be asked, for want of a thread: {0}")]
    NoThread(String),
}

/// Calls by whom or what they ask. Clones share them.
#[derive(Clone, Debug)]
pub struct HangingCalls<K>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K> {
    /// Those under way, and whether they are late.
    under_way: Mutex<BTreeMap<K, Arc<AtomicBool>>>,
    changed: Condvar,
}

impl<K> Default for HangingCalls<K> {
    fn default() -> Self {
        Self(Arc::new(Shared { under_way: Mutex::default(), changed: Condvar::new() }))
    }
}

impl<K: Clone + Ord + Send + 'static> HangingCalls<K> {
    /// Calls, and waits for the answer until `limit`, for the end of another call of the same thing included.
    pub fn ask<T: Send + 'static>(
        &self,
        of: &K,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let until = Instant::now() + limit;
        let is_late = self.begin(of, limit, until)?;
        let (tell, answer) = channel();
        let (shared, key) = (self.clone(), of.clone());
        let run = move || {
            let _ended = Ended { calls: shared, key };
            // Whoever does not listen any more was told that there is no answer.
            let _ = tell.send(call());
        };
        if let Err(error) = std::thread::Builder::new().name("gnomon-ask".to_owned()).spawn(run) {
            self.end(of);
            return Err(NoAnswer::NoThread(error.to_string()));
        }
        match answer.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                is_late.store(true, Ordering::Relaxed);
                self.0.changed.notify_all();
                Err(NoAnswer::Late(limit))
            }
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::NoThread("it has ended".to_owned())),
        }
    }

    /// Waits until nothing else is asked of it. Returns where it is noted that the call is late.
    fn begin(&self, of: &K, limit: Duration, until: Instant) -> Result<Arc<AtomicBool>, NoAnswer> {
        let mut under_way = self.lock();
        loop {
            match under_way.get(of) {
                Some(is_late) if is_late.load(Ordering::Relaxed) => return Err(NoAnswer::Hangs),
                Some(_) => {}
                None if under_way.len() >= CALLS_MAX => return Err(NoAnswer::TooMany),
                None => {
                    let is_late = Arc::new(AtomicBool::new(false));
                    under_way.insert(of.clone(), Arc::clone(&is_late));
                    return Ok(is_late);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoAnswer::Late(limit));
            }
            under_way = self.0.changed.wait_timeout(under_way, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end(&self, of: &K) {
        self.lock().remove(of);
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Arc<AtomicBool>>> {
        // Each change of it is one insertion or removal.
        self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a call, also one that panics.
struct Ended<K: Clone + Ord + Send + 'static> {
    calls: HangingCalls<K>,
    key: K,
}

impl<K: Clone + Ord + Send + 'static> Drop for Ended<K> {
    fn drop(&mut self) {
        self.calls.end(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::Sender;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    /// Something that hangs until it is let go, and how often it was asked.
    fn hang(calls: &HangingCalls<u32>, of: u32, asked: &Arc<AtomicUsize>) -> (Sender<()>, Result<(), NoAnswer>) {
        let (release, held) = channel::<()>();
        let asked = Arc::clone(asked);
        let answer = calls.ask(&of, SHORT, move || {
            asked.fetch_add(1, Ordering::Relaxed);
            let _ = held.recv();
        });
        (release, answer)
    }

    #[test]
    fn what_hangs_is_asked_by_one_thread_and_others_are_told_at_once() {
        let (calls, asked) = (HangingCalls::default(), Arc::new(AtomicUsize::new(0)));
        let (release, answer) = hang(&calls, 1, &asked);
        assert_eq!(answer, Err(NoAnswer::Late(SHORT)));
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(calls.ask(&1, LONG, || ()), Err(NoAnswer::Hangs));
        }
        assert!(begun.elapsed() < LONG / 2 && asked.load(Ordering::Relaxed) == 1);
        assert_eq!(calls.ask(&2, LONG, || 7), Ok(7), "another one is asked all the same");
        // It is asked again once it has answered.
        drop(release);
        let patience = Instant::now() + LONG;
        while calls.ask(&1, LONG, || 7) != Ok(7) {
            assert!(Instant::now() < patience, "it was never asked again");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_asks_while_another_call_is_in_time_waits_for_its_end() {
        let calls = HangingCalls::default();
        let (begun, has_begun) = channel();
        let other = calls.clone();
        let first = std::thread::spawn(move || {
            other.ask(&1, LONG, move || {
                begun.send(()).unwrap();
                std::thread::sleep(SHORT);
                1
            })
        });
        has_begun.recv().unwrap();
        assert_eq!(calls.ask(&1, LONG, || 2), Ok(2));
        assert_eq!(first.join().unwrap(), Ok(1));
    }

    #[test]
    fn there_is_a_bound_to_what_hangs_and_a_call_that_panics_has_ended() {
        let (calls, asked) = (HangingCalls::default(), Arc::new(AtomicUsize::new(0)));
        let most = u32::try_from(CALLS_MAX).unwrap();
        let held: Vec<_> = (0..most).map(|of| hang(&calls, of, &asked)).collect();
        assert_eq!(calls.ask(&most, LONG, || ()), Err(NoAnswer::TooMany));
        drop(held);
        let calls = HangingCalls::default();
        let panicked: Result<(), NoAnswer> = calls.ask(&1, LONG, || panic!("a defect"));
        assert!(matches!(panicked, Err(NoAnswer::NoThread(_))), "{panicked:?}");
        assert_eq!(calls.ask(&1, LONG, || 1), Ok(1));
    }
}
