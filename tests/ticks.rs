//! What a guest says of its own life on its console: a tick each second of its clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::lab::Guest;

/// How often the guest's console is looked at.
const CONSOLE_INTERVAL: Duration = Duration::from_millis(5);

/// Fails if a guest lived a second twice: a second copy of it would count the same seconds on the same console.
pub fn lived_once(guest: &Guest) -> Result<()> {
    let seconds: Vec<u64> = guest.reports()?.iter().map(|report| report.t_s as u64).collect();
    let twice = seconds.windows(2).find(|pair| pair[0] >= pair[1]);
    ensure!(twice.is_none(), "the guest lived a second twice: {twice:?}");
    Ok(())
}

/// Watches the ticks of a guest on its console: one a second.
pub struct Ticks {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Duration>>,
}

impl Ticks {
    /// Begins to watch.
    pub fn start(guest: &Guest) -> Self {
        let (stop, guest) = (Arc::new(AtomicBool::new(false)), guest.clone());
        let asked = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut longest, mut count, mut last) = (Duration::ZERO, guest.reports()?.len(), None::<Instant>);
            while !asked.load(Ordering::Relaxed) {
                thread::sleep(CONSOLE_INTERVAL);
                let now = guest.reports()?.len();
                if now > count {
                    count = now;
                    longest = longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()));
                    last = Some(Instant::now());
                }
            }
            Ok(longest)
        });
        Self { stop, thread }
    }

    /// The longest time between two of them, by this machine's clock.
    pub fn longest_gap(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watcher does not panic")
    }
}
