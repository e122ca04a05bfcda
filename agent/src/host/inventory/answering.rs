//! What it costs libvirtd and the QEMUs to answer the agent.
//!
//! A process's CPU time is read before and after it is asked something. What it used in between, less what it uses in the same time while it
//! is not asked, is what the question caused: others ask it, too, and a guest has it work. What it puts off until after its answer is not
//! seen.

use super::InventoryMetrics;
use crate::host::process::Proc;
use rustix::time::{ClockId, clock_gettime};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A mean is shown over so long, in nanoseconds: a question costs about a millisecond and comes every few seconds.
const SHOWN_EVERY_NS: u64 = 60_000_000_000;

/// CPU time that a process has used, at an instant of `CLOCK_MONOTONIC`; both in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    taken_ns: u64,
    cpu_ns: u64,
}

impl Used {
    /// Of all threads of a process; `None` where it is gone or the kernel does not count.
    pub(super) fn by_process(proc: &Proc, pid: u32) -> Option<Self> {
        Some(Self { taken_ns: now_ns(), cpu_ns: proc.run_ns(pid).ok()? })
    }

    /// Of a QEMU's main thread, which makes its answers, and of the one that reads and writes them, where it has one.
    pub(super) fn by_monitor(proc: &Proc, pid: u32, monitor: Option<u32>) -> Option<Self> {
        let taken_ns = now_ns();
        let run_ns = |tid| proc.thread_run_ns(pid, tid).ok();
        Some(Self { taken_ns, cpu_ns: run_ns(pid)? + monitor.map_or(Some(0), run_ns)? })
    }
}

/// Of `CLOCK_MONOTONIC`.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Time that has passed and CPU time used in it, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    elapsed_ns: u64,
    cpu_ns: u64,
}

impl Span {
    fn add(&mut self, from: Used, to: Used) {
        self.elapsed_ns = self.elapsed_ns.saturating_add(to.taken_ns.saturating_sub(from.taken_ns));
        self.cpu_ns = self.cpu_ns.saturating_add(to.cpu_ns.saturating_sub(from.cpu_ns));
    }
}

/// One process, while it is asked and while it is not. Pure.
#[derive(Debug, Default)]
pub(super) struct Answering {
    /// As of the end of its last answer.
    last: Option<Used>,
    asked: Span,
    unasked: Span,
}

impl Answering {
    /// It was asked at `before` and had answered at `after`.
    pub(super) fn answered(&mut self, before: Used, after: Used) {
        if let Some(last) = self.last.replace(after) {
            self.unasked.add(last, before);
            self.asked.add(before, after);
        }
    }

    /// CPU time, in seconds, that it used because it was asked, since this was called last. Negative where it happened to use less than
    /// when it is not asked: only the mean over many answers is to be believed.
    pub(super) fn take_caused_s(&mut self) -> f64 {
        let (asked, unasked) = (std::mem::take(&mut self.asked), std::mem::take(&mut self.unasked));
        if unasked.elapsed_ns == 0 {
            return 0.0;
        }
        let rate = unasked.cpu_ns as f64 / unasked.elapsed_ns as f64;
        (asked.cpu_ns as f64 - rate * asked.elapsed_ns as f64) / 1e9
    }
}

/// When a mean is due, and over how long it is.
#[derive(Debug, Default)]
pub(super) struct Showing(Option<u64>);

impl Showing {
    /// The seconds since it was due last, if it is.
    pub(super) fn due_s(&mut self) -> Option<f64> {
        let now_ns = now_ns();
        let elapsed_ns = now_ns.saturating_sub(*self.0.get_or_insert(now_ns));
        (elapsed_ns >= SHOWN_EVERY_NS).then(|| {
            self.0 = Some(now_ns);
            elapsed_ns as f64 / 1e9
        })
    }
}

/// libvirt's daemon, which several threads ask at once: cheap to clone, all clones share one state.
#[derive(Clone, Debug)]
pub struct Daemon(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    proc: Proc,
    pid: Option<u32>,
    answering: Answering,
    /// Questions under way, and what was used when the first of them was asked.
    under_way: u32,
    before: Option<Used>,
    showing: Showing,
    metrics: InventoryMetrics,
}

impl Daemon {
    pub(super) fn new(proc: Proc, metrics: InventoryMetrics) -> Self {
        Self(Arc::new(Mutex::new(State {
            proc,
            pid: None,
            answering: Answering::default(),
            under_way: 0,
            before: None,
            showing: Showing::default(),
            metrics,
        })))
    }

    /// Names the process; `None` where it is not on this host.
    pub(super) fn is(&self, pid: Option<u32>) {
        let mut state = self.lock();
        if state.pid != pid {
            (state.pid, state.before, state.answering) = (pid, None, Answering::default());
        }
    }

    /// Asks it something. May block.
    pub fn ask<T>(&self, question: impl FnOnce() -> T) -> T {
        self.lock().begin();
        let answer = question();
        self.lock().end();
        answer
    }

    /// One whose process is this very one.
    #[cfg(test)]
    pub(in crate::host) fn of_this_process() -> Self {
        let daemon = Self::new(Proc::default(), InventoryMetrics::default());
        daemon.is(Some(std::process::id()));
        daemon
    }

    /// Whether it was asked anything, and what that cost was read.
    #[cfg(test)]
    pub(in crate::host) fn was_asked(&self) -> bool {
        self.lock().answering.last.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self) {
        if self.under_way == 0 {
            self.before = self.used();
        }
        self.under_way += 1;
    }

    fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way > 0 {
            return;
        }
        if let (Some(before), Some(after)) = (self.before.take(), self.used()) {
            self.answering.answered(before, after);
        }
        if let Some(elapsed_s) = self.showing.due_s() {
            let caused_s = self.answering.take_caused_s();
            self.metrics.answering("libvirtd", self.pid.map(|_| caused_s / elapsed_s));
        }
    }

    fn used(&self) -> Option<Used> {
        Used::by_process(&self.proc, self.pid?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const MS: u64 = 1_000_000;

    fn used(taken_ms: u64, cpu_ms: u64) -> Used {
        Used { taken_ns: taken_ms * MS, cpu_ns: cpu_ms * MS }
    }

    #[test]
    fn what_a_process_does_anyway_is_not_caused_by_questions() {
        let mut answering = Answering::default();
        answering.answered(used(0, 0), used(10, 500));
        assert_eq!(answering.take_caused_s(), 0.0, "nothing is known of when it is not asked");
        // A tenth of a core all the time, and 5 ms a question of 10 ms.
        answering.answered(used(1_010, 600), used(1_020, 606));
        answering.answered(used(2_020, 706), used(2_030, 712));
        assert!((answering.take_caused_s() - 0.010).abs() < 1e-9);
        answering.answered(used(3_030, 812), used(3_040, 813));
        assert!(answering.take_caused_s().abs() < 1e-9, "a question that cost nothing");
    }

    /// The question is asked of this very process, by two threads at once: its own spinning is counted once.
    #[test]
    fn questions_of_several_threads_are_one_while_they_overlap() {
        let proc = Proc::default();
        if proc.run_ns(std::process::id()).is_err() {
            return println!("skipped: this kernel keeps no schedstat");
        }
        let spun_ms = || {
            let spun = clock_gettime(ClockId::ThreadCPUTime);
            spun.tv_sec * 1_000 + spun.tv_nsec / 1_000_000
        };
        let daemon = Daemon::of_this_process();
        daemon.ask(|| ());
        std::thread::sleep(Duration::from_millis(50));
        std::thread::scope(|scope| {
            scope.spawn(|| daemon.ask(|| std::thread::sleep(Duration::from_millis(120))));
            std::thread::sleep(Duration::from_millis(20));
            daemon.ask(|| {
                let start_ms = spun_ms();
                while spun_ms() < start_ms + 60 {
                    std::hint::spin_loop();
                }
            });
        });
        let mut state = daemon.lock();
        assert_eq!((state.under_way, state.before), (0, None));
        let caused_s = state.answering.take_caused_s();
        assert!((0.04..0.1).contains(&caused_s), "{caused_s} s");
    }

    proptest! {
        #[test]
        fn no_readings_make_a_cost_that_is_no_number(readings in prop::collection::vec((any::<[u64; 2]>(), any::<[u64; 2]>()), 0..20)) {
            let mut answering = Answering::default();
            let used = |[taken_ns, cpu_ns]: [u64; 2]| Used { taken_ns, cpu_ns };
            for (before, after) in readings {
                answering.answered(used(before), used(after));
            }
            prop_assert!(answering.take_caused_s().is_finite());
        }
    }
}
