//! Calls that may hang for ever: a libvirt daemon on a host that is gone, a file system on a network that is.
//!
//! Each is made on a thread of its own and waited for so long. What has not returned by then is left there, and for a while, or until it returns,
//! nothing else is asked of the same thing: who asks meanwhile is told at once. A call may never return although what it asks is back (a connection
//! whose other end was switched off), so it is tried again after minutes, and after twice as long each time: few threads hang in one thing.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Calls under way at once, those that hang included.
const CALLS_MAX: usize = 64;

/// Where a call is late for so long, the next one does not wait for its return. Doubled with each that hangs.
const GIVEN_UP_AFTER: Duration = Duration::from_mins(5);

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
    calls: Mutex<Calls<K>>,
    changed: Condvar,
    given_up_after: Duration,
}

#[derive(Debug)]
struct Calls<K> {
    /// The latest of each thing.
    under_way: BTreeMap<K, Call>,
    /// With those that were given up.
    threads: usize,
    /// So many were made.
    made: u64,
}

/// A call under way.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    late_since: Option<Instant>,
    /// Earlier ones of the same thing that were given up.
    given_up: u32,
}

impl<K> Default for HangingCalls<K> {
    fn default() -> Self {
        Self::giving_up_after(GIVEN_UP_AFTER)
    }
}

impl<K> HangingCalls<K> {
    fn giving_up_after(given_up_after: Duration) -> Self {
        let calls = Calls { under_way: BTreeMap::new(), threads: 0, made: 0 };
        Self(Arc::new(Shared { calls: Mutex::new(calls), changed: Condvar::new(), given_up_after }))
    }
}

impl<K: Clone + Ord + Send + 'static> HangingCalls<K> {
    /// Calls, and waits for the answer for `limit`; before that, for as long at most, for the end of another call of the same thing.
    pub fn ask<T: Send + 'static>(
        &self,
        of: &K,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let number = self.begin(of, limit)?;
        let (tell, answer) = channel();
        let (shared, key) = (self.clone(), of.clone());
        let run = move || {
            let _ended = Ended { calls: shared, key, number };
            // Whoever does not listen any more was told that there is no answer.
            let _ = tell.send(call());
        };
        if let Err(error) = std::thread::Builder::new().name("gnomon-ask".to_owned()).spawn(run) {
            self.end(of, number);
            return Err(NoAnswer::NoThread(error.to_string()));
        }
        match answer.recv_timeout(limit) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(call) = self.lock().under_way.get_mut(of).filter(|call| call.number == number) {
                    call.late_since = Some(Instant::now());
                }
                self.0.changed.notify_all();
                Err(NoAnswer::Late(limit))
            }
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::NoThread("it has ended".to_owned())),
        }
    }

    /// Waits until nothing else is asked of it. Returns the call's number.
    fn begin(&self, of: &K, limit: Duration) -> Result<u64, NoAnswer> {
        let until = Instant::now() + limit;
        let mut calls = self.lock();
        loop {
            let earlier = calls.under_way.get(of).copied();
            let hangs_for = earlier.and_then(|call| call.late_since).map(|since| since.elapsed());
            let given_up = match (earlier, hangs_for) {
                (Some(call), Some(late)) if late >= self.patience(call) => Some(call.given_up.saturating_add(1)),
                (Some(_), Some(_)) => return Err(NoAnswer::Hangs),
                (Some(_), None) => None,
                (None, _) => Some(0),
            };
            if let Some(given_up) = given_up {
                if calls.threads >= CALLS_MAX {
                    return Err(NoAnswer::TooMany);
                }
                calls.threads += 1;
                calls.made += 1;
                let number = calls.made;
                calls.under_way.insert(of.clone(), Call { number, late_since: None, given_up });
                return Ok(number);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoAnswer::Late(limit));
            }
            calls = self.0.changed.wait_timeout(calls, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How long a late call is waited for.
    fn patience(&self, call: Call) -> Duration {
        self.0.given_up_after.saturating_mul(1 << call.given_up.min(16))
    }

    fn end(&self, of: &K, number: u64) {
        let mut calls = self.lock();
        calls.threads = calls.threads.saturating_sub(1);
        if calls.under_way.get(of).is_some_and(|call| call.number == number) {
            calls.under_way.remove(of);
        }
        drop(calls);
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Calls<K>> {
        // A panic in between leaves at worst a thread too many in the count.
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a call, also one that panics.
struct Ended<K: Clone + Ord + Send + 'static> {
    calls: HangingCalls<K>,
    key: K,
    number: u64,
}

impl<K: Clone + Ord + Send + 'static> Drop for Ended<K> {
    fn drop(&mut self) {
        self.calls.end(&self.key, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
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
    fn what_hangs_for_ever_is_tried_again_and_less_and_less_often() {
        let patience = Duration::from_millis(200);
        let (calls, asked) = (HangingCalls::giving_up_after(patience), Arc::new(AtomicUsize::new(0)));
        let (first, answer) = hang(&calls, 1, &asked);
        assert_eq!((answer, calls.ask(&1, LONG, || 7)), (Err(NoAnswer::Late(SHORT)), Err(NoAnswer::Hangs)));
        std::thread::sleep(patience);
        let (_second, answer) = hang(&calls, 1, &asked);
        assert_eq!((answer, asked.load(Ordering::Relaxed)), (Err(NoAnswer::Late(SHORT)), 2));
        std::thread::sleep(patience);
        assert_eq!(calls.ask(&1, LONG, || 7), Err(NoAnswer::Hangs), "twice as long");
        // What returns at last is no answer of the one that hangs now.
        drop(first);
        std::thread::sleep(patience / 4);
        let threads = calls.lock().threads;
        assert_eq!((threads, calls.ask(&1, LONG, || 7)), (1, Err(NoAnswer::Hangs)));
        std::thread::sleep(patience);
        assert_eq!(calls.ask(&1, LONG, || 7), Ok(7), "what it asks is back");
        assert_eq!(hang(&calls, 1, &asked).1, Err(NoAnswer::Late(SHORT)));
        std::thread::sleep(patience);
        assert_eq!(calls.ask(&1, LONG, || 7), Ok(7), "after an answer it begins anew");
    }

    #[test]
    fn a_turn_that_comes_late_leaves_the_call_its_time() {
        let (calls, asked) = (HangingCalls::default(), Arc::new(AtomicUsize::new(0)));
        let limit = Duration::from_millis(400);
        let (begun, has_begun) = channel();
        let other = calls.clone();
        let first = std::thread::spawn(move || {
            other.ask(&1, limit, move || {
                begun.send(()).unwrap();
                std::thread::sleep(limit * 3 / 4);
            })
        });
        has_begun.recv().unwrap();
        let counted = Arc::clone(&asked);
        let answer = calls.ask(&1, limit, move || {
            std::thread::sleep(limit / 2);
            counted.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!((answer, first.join().unwrap(), asked.load(Ordering::Relaxed)), (Ok(()), Ok(()), 1));
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
