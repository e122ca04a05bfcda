//! What a guest says of its own life on its console: a tick each second of its clock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::lab::Guest;

/// How often the guest's console is looked at.
const CONSOLE_INTERVAL: Duration = Duration::from_millis(5);

/// A watcher that sleeps for so much longer than it wanted has been kept from its CPU.
const STALL_MIN: Duration = Duration::from_millis(50);

/// Fails if a guest lived a second twice: a second copy of it would count the same seconds on the same console.
pub fn lived_once(guest: &Guest) -> Result<()> {
    let seconds: Vec<u64> = guest.reports()?.iter().map(|report| report.t_s as u64).collect();
    let twice = seconds.windows(2).find(|pair| pair[0] >= pair[1]);
    ensure!(twice.is_none(), "the guest lived a second twice: {twice:?}");
    Ok(())
}

/// A guest that serves on ticks at least this often, also while it is moved.
pub const TICKS_GAP_MAX: Duration = Duration::from_secs(2);

/// The longest time without a tick, by this machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gap {
    /// From one tick to the next.
    pub without_tick: Duration,
    /// For how much of that the watcher itself got no CPU: what stops this whole machine stops the guest as well.
    pub machine_stalled: Duration,
}

impl Gap {
    /// Whether it was no longer than `most` while this machine ran.
    pub fn is_within(self, most: Duration) -> bool {
        self.own() <= most
    }

    fn own(self) -> Duration {
        self.without_tick.saturating_sub(self.machine_stalled)
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { without_tick, machine_stalled } = self;
        write!(
            f,
            "longest gap between two ticks {without_tick:.3?}, for {machine_stalled:.3?} of which the machine stalled"
        )
    }
}

/// Watches the ticks of a guest on its console: one a second.
pub struct Ticks {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Gap>>,
}

impl Ticks {
    /// Begins to watch.
    pub fn start(guest: &Guest) -> Self {
        let (stop, guest) = (Arc::new(AtomicBool::new(false)), guest.clone());
        let asked = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut longest, mut count, mut last) = (Gap::default(), guest.reports()?.len(), None::<Instant>);
            let mut stalled = Duration::ZERO;
            while !asked.load(Ordering::Relaxed) {
                let slept = Instant::now();
                thread::sleep(CONSOLE_INTERVAL);
                // A little late is every sleeper.
                let late = slept.elapsed().saturating_sub(CONSOLE_INTERVAL);
                stalled += if late > STALL_MIN { late } else { Duration::ZERO };
                let now = guest.reports()?.len();
                if now > count {
                    count = now;
                    let gap = Gap {
                        without_tick: last.map_or(Duration::ZERO, |last| last.elapsed()),
                        machine_stalled: stalled,
                    };
                    longest = if gap.own() > longest.own() { gap } else { longest };
                    (last, stalled) = (Some(Instant::now()), Duration::ZERO);
                }
            }
            Ok(longest)
        });
        Self { stop, thread }
    }

    /// The longest of all gaps so far.
    pub fn longest_gap(self) -> Result<Gap> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watcher does not panic")
    }
}
