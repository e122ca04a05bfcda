//! CPU time: a worker for each vCPU, fed by slices so that the whole process uses what is wanted.

use std::hint::black_box;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Multiplications between two looks at the clocks: about 10 us, and 100 us under emulation.
const SPIN_BATCH: u32 = 20_000;
/// What was not used is made up for within so much of a second's target, or lost: what the host took away is no debt.
const DEBT_S: f64 = 0.3;

/// What each worker is to do next.
#[derive(Clone, Copy, Debug)]
struct Slice {
    number: u64,
    budget: Duration,
    end: Instant,
}

/// The workers, and the feedback on what the process used.
#[derive(Debug)]
pub(crate) struct Cpu {
    desk: Arc<(Mutex<Slice>, Condvar)>,
    workers: u32,
    /// Used less than wanted so far, in seconds of CPU.
    debt_s: f64,
    used_before: Duration,
}

impl Cpu {
    pub(crate) fn new(now: Instant) -> Self {
        let slice = Slice { number: 0, budget: Duration::ZERO, end: now };
        Cpu { desk: Arc::new((Mutex::new(slice), Condvar::new())), workers: 0, debt_s: 0.0, used_before: used() }
    }

    /// As many workers as there are vCPUs by now. A vCPU that is plugged in gets one; a worker is never ended.
    pub(crate) fn staff(&mut self) -> std::io::Result<()> {
        let vcpus = thread::available_parallelism().map_or(1, |count| count.get() as u32);
        while self.workers < vcpus {
            let desk = Arc::clone(&self.desk);
            thread::Builder::new().name(format!("cpu{}", self.workers)).spawn(move || work(&desk))?;
            self.workers += 1;
        }
        Ok(())
    }

    /// Settles the slice of `passed` that is over, in which `was_cores` were wanted, and hands out the next one.
    pub(crate) fn slice(&mut self, was_cores: f64, passed: Duration, cores: f64, next: Duration) {
        let used_now = used();
        let used = used_now.saturating_sub(self.used_before).as_secs_f64();
        self.used_before = used_now;
        self.debt_s = settle(self.debt_s, was_cores * passed.as_secs_f64(), used, was_cores.max(cores) * DEBT_S);
        if cores <= 0.0 {
            self.debt_s = 0.0;
            return;
        }
        let budget_s = (cores * next.as_secs_f64() + self.debt_s).max(0.0) / f64::from(self.workers.max(1));
        let (slice, given) = &*self.desk;
        let mut slice = slice.lock().unwrap_or_else(PoisonError::into_inner);
        slice.number += 1;
        slice.budget = Duration::from_secs_f64(budget_s);
        slice.end = Instant::now() + next;
        given.notify_all();
    }
}

/// What is owed after a slice: what was owed and wanted less what was used, within `bound_s` both ways.
fn settle(debt_s: f64, wanted_s: f64, used_s: f64, bound_s: f64) -> f64 {
    (debt_s + wanted_s - used_s).clamp(-bound_s, bound_s)
}

/// CPU time of the whole process: its other threads' is part of the load, too.
pub(crate) fn used() -> Duration {
    of_clock(ClockId::ProcessCPUTime)
}

fn of_clock(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn work((desk, given): &(Mutex<Slice>, Condvar)) {
    let mut done = 0;
    loop {
        let lock = desk.lock().unwrap_or_else(PoisonError::into_inner);
        let slice = *given.wait_while(lock, |slice| slice.number == done).unwrap_or_else(PoisonError::into_inner);
        done = slice.number;
        let until = of_clock(ClockId::ThreadCPUTime) + slice.budget;
        while of_clock(ClockId::ThreadCPUTime) < until && Instant::now() < slice.end {
            spin();
        }
    }
}

fn spin() {
    let mut value = 1u64;
    for _ in 0..SPIN_BATCH {
        value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_threads_use_is_left_out_of_the_next_slices() {
        // Workers use their budget, other threads 0.02 s a slice, of 0.05 s wanted.
        let (mut debt_s, mut used_s) = (0.0, 0.0);
        for _ in 0..100 {
            let used = (0.05f64 + debt_s).max(0.0) + 0.02;
            debt_s = settle(debt_s, 0.05, used, 0.15);
            used_s += used;
        }
        assert!((used_s / 100.0 - 0.05f64).abs() < 0.001, "{used_s}");
    }

    #[test]
    fn what_the_host_took_away_is_soon_forgotten() {
        let debt_s = (0..100).fold(0.0, |debt_s, _| settle(debt_s, 0.1, 0.0, 0.3));
        assert_eq!(debt_s, 0.3);
    }
}
