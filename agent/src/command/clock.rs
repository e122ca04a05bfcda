//! Time as commands need it: a wall clock for people, and `CLOCK_BOOTTIME` for times to live.
//!
//! `CLOCK_BOOTTIME` counts suspended time and never steps, but starts at zero at each boot; paired with the boot's id it can be written
//! to disk and compared after a restart of the agent.

use gnomon_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// An instant of `CLOCK_BOOTTIME`, in microseconds, of one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootInstant {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: Uuid,
    /// Since that boot.
    pub us: u64,
}

impl BootInstant {
    /// Time from `earlier`; `None` where that was before the last reboot.
    pub fn since(self, earlier: Self) -> Option<Duration> {
        (self.boot == earlier.boot).then(|| Duration::from_micros(self.us.saturating_sub(earlier.us)))
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For people and for the brain.
    pub wall: Timestamp,
    /// For deadlines.
    pub boot: BootInstant,
}

/// The real clocks. Copied freely; reading takes no lock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    boot: Uuid,
}

impl Clock {
    /// Reads the boot's id once.
    pub fn new() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = text.trim().parse().map_err(std::io::Error::other)?;
        Ok(Self { boot })
    }

    /// The boot's id.
    pub fn boot(&self) -> Uuid {
        self.boot
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let us = time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000;
        Now { wall: wall_clock(), boot: BootInstant { boot: self.boot, us } }
    }
}

/// The wall clock; the epoch itself where the clock stands before it.
pub fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_of_different_boots_are_not_compared() {
        let a = BootInstant { boot: Uuid::from_u128(1), us: 5 };
        let b = BootInstant { boot: Uuid::from_u128(2), us: 9 };
        assert_eq!(b.since(a), None);
        assert_eq!(BootInstant { us: 9, ..a }.since(a), Some(Duration::from_micros(4)));
    }

    #[test]
    fn the_boot_clock_advances() {
        let clock = Clock::new().unwrap();
        let first = clock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.now().boot.since(first.boot).unwrap() >= Duration::from_millis(2));
    }
}
