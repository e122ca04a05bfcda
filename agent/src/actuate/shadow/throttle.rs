//! Reading what is long leaves the host's CPUs to its VMs.

use crate::cost::Aside;
use std::time::{Duration, Instant};

/// What may be taken of a core while copies are read and their checksums are made.
pub(super) const READING_CORES: f64 = 0.25;

/// Has its thread use no more than a share of a core, from pause to pause.
pub(super) struct Throttle {
    cores: f64,
    aside: Aside,
    /// What was used until the last pause ended, and when that was.
    used: Duration,
    since: Instant,
}

impl Throttle {
    pub(super) fn new(cores: f64) -> Self {
        Self { cores, aside: Aside::begin(), used: Duration::ZERO, since: Instant::now() }
    }

    /// Sleeps for as long as what was used since the last time asks for. Time in which a disk was waited for counts, and is not saved up.
    pub(super) fn pause(&mut self) {
        let used = self.aside.count();
        let due = used.saturating_sub(self.used).div_f64(self.cores);
        std::thread::sleep(due.saturating_sub(self.since.elapsed()));
        (self.used, self.since) = (used, Instant::now());
    }
}
