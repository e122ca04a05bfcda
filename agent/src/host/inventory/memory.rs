//! What is known of each VM's memory: how far its balloon can be moved, and what its guest uses. Pure but for the thread in
//! [`surveyor`].
//!
//! A balloon can be moved only if there is a device *and* a driver in the guest that answers; a device alone takes any target and
//! moves nothing. That the driver lives is told by its statistics: it has answered at least once in this life of the VM.
//!
//! libvirt passes on the last statistics however old they are, so their own time decides ([`GuestReading::is_fresh`]); and it
//! tells the balloon's present size beside them, which may have changed since. What a guest uses ([`InUse`]) is therefore taken only
//! from statistics during which the balloon stood still.

pub(super) mod surveyor;

use crate::host::libvirt::MemoryStats;
use serde::{Deserialize, Serialize};

/// Statistics are stale when three of them are missing ...
const PERIODS_MISSED_MAX: u64 = 3;
/// ... but are given this much time, for a guest that is slow to answer and our own interval, in seconds ...
const STALE_AFTER_MIN_S: u64 = 15;
/// ... and no more than this, however seldom their owner wants them: a guest can fill its memory in less.
const STALE_AFTER_MAX_S: u64 = 60;

/// A VM is asked again no sooner than after this, in seconds ...
const NEXT_LOOK_MIN_S: u64 = 2;
/// ... and where it has nothing new to say, after this: each question costs its QEMU half a millisecond and more.
const NEXT_LOOK_IDLE_S: u64 = 5;
/// A guest's new statistics are there this long after they are due, in seconds: its answer, and that times are whole seconds.
const ANSWER_S: u64 = 1;

/// What is known of a VM's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFacts {
    /// Its balloon.
    pub balloon: Balloon,
    /// What its guest said last, fresh or not.
    pub guest: Option<GuestReading>,
    /// What it used when that could last be told.
    pub in_use: Option<InUse>,
}

/// Whether a VM's memory can be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balloon {
    /// Not asked yet, or the VM does not run.
    #[default]
    Unknown,
    /// The domain has no balloon device.
    Absent,
    /// It has one, but no driver in the guest has ever answered.
    Silent,
    /// It leaves this much to the guest, and a driver moves it.
    Movable {
        /// In bytes.
        bytes: u64,
    },
}

impl Balloon {
    /// What it leaves to the guest, in bytes, if it can be moved.
    pub fn movable_bytes(self) -> Option<u64> {
        match self {
            Self::Movable { bytes } => Some(bytes),
            Self::Unknown | Self::Absent | Self::Silent => None,
        }
    }

    /// A metric's label, and for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Absent => "absent",
            Self::Silent => "silent",
            Self::Movable { .. } => "movable",
        }
    }
}

/// What a guest's balloon driver said at one time. Counters are cumulative since the guest booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReading {
    /// When it said so, in seconds since the epoch by the host's clock.
    pub updated_unix_s: u64,
    /// From when on it is stale, in seconds after that.
    pub stale_after_s: u64,
    /// All the guest's kernel manages, in bytes.
    pub total_bytes: u64,
    /// Used for nothing at all, in bytes.
    pub unused_bytes: u64,
    /// What a new process could have without swapping, in bytes.
    pub usable_bytes: Option<u64>,
    /// Caches of files, in bytes.
    pub disk_caches_bytes: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// Read back from swap, in bytes.
    pub swap_in_bytes: u64,
    /// Written to swap, in bytes.
    pub swap_out_bytes: u64,
}

impl GuestReading {
    fn new(stats: &MemoryStats, period_s: u32) -> Option<Self> {
        let stale_after_s = u64::from(period_s) * PERIODS_MISSED_MAX;
        Some(Self {
            updated_unix_s: stats.updated_unix_s?,
            stale_after_s: stale_after_s.clamp(STALE_AFTER_MIN_S, STALE_AFTER_MAX_S),
            total_bytes: stats.total_bytes?,
            unused_bytes: stats.unused_bytes?,
            usable_bytes: stats.usable_bytes,
            disk_caches_bytes: stats.disk_caches_bytes,
            major_faults: stats.major_faults.unwrap_or(0),
            swap_in_bytes: stats.swap_in_bytes.unwrap_or(0),
            swap_out_bytes: stats.swap_out_bytes.unwrap_or(0),
        })
    }

    /// Whether it still says something about now. One from the future is of a clock that was set, and says nothing.
    pub fn is_fresh(&self, now_unix_s: u64) -> bool {
        is_fresh(self.updated_unix_s, self.stale_after_s, now_unix_s)
    }

    /// What the guest could give up, in bytes: as it says; of a driver too old to say so, what is unused and what caches files.
    pub fn could_give_up_bytes(&self) -> u64 {
        let by_parts = || self.unused_bytes.saturating_add(self.disk_caches_bytes.unwrap_or(0));
        self.usable_bytes.unwrap_or_else(by_parts).min(self.total_bytes)
    }
}

/// How much of its memory a guest used at one time: the balloon's size less what it could give up. It contains what the guest's
/// kernel keeps for itself before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUse {
    /// When, in seconds since the epoch by the host's clock.
    pub updated_unix_s: u64,
    /// From when on it is stale, in seconds after that.
    pub stale_after_s: u64,
    /// How much, in bytes.
    pub bytes: u64,
}

impl InUse {
    /// Whether it still says something about now.
    pub fn is_fresh(&self, now_unix_s: u64) -> bool {
        is_fresh(self.updated_unix_s, self.stale_after_s, now_unix_s)
    }
}

fn is_fresh(updated_unix_s: u64, stale_after_s: u64, now_unix_s: u64) -> bool {
    // A second of difference is rounding.
    now_unix_s + 1 >= updated_unix_s && now_unix_s.saturating_sub(updated_unix_s) <= stale_after_s
}

/// One VM's memory from look to look, within one life of the VM.
#[derive(Clone, Copy, Debug, Default)]
struct MemoryWatch {
    /// The balloon's size at the last look, and since when it has been that, in seconds since the epoch.
    standing: Option<(u64, u64)>,
    facts: MemoryFacts,
}

impl MemoryWatch {
    /// Takes a look's statistics in.
    fn observe(&mut self, stats: &MemoryStats, period_s: u32, now_unix_s: u64) -> MemoryFacts {
        let Some(bytes) = stats.balloon_bytes else {
            *self = Self { facts: MemoryFacts { balloon: Balloon::Absent, ..MemoryFacts::default() }, standing: None };
            return self.facts;
        };
        let since = match self.standing {
            Some((before, since)) if before == bytes => since,
            _ => now_unix_s,
        };
        self.standing = Some((bytes, since));
        let guest = GuestReading::new(stats, period_s);
        self.facts.balloon = if guest.is_some() { Balloon::Movable { bytes } } else { Balloon::Silent };
        self.facts.guest = guest;
        // Later than the second in which it was first seen at this size: the balloon stood still when the guest spoke.
        if let Some(guest) = guest.filter(|guest| guest.updated_unix_s > since) {
            self.facts.in_use = Some(InUse {
                updated_unix_s: guest.updated_unix_s,
                stale_after_s: guest.stale_after_s,
                bytes: bytes.saturating_sub(guest.could_give_up_bytes()),
            });
        }
        self.facts
    }

    /// How long to wait before the next look, in seconds: until the guest's next statistics are there. While the balloon moves, or what is used
    /// could not be told yet, soon.
    fn next_look_s(&self, period_s: u32, now_unix_s: u64) -> u64 {
        let Some(guest) = self.facts.guest else { return NEXT_LOOK_IDLE_S };
        if self.facts.in_use.is_none_or(|in_use| in_use.updated_unix_s != guest.updated_unix_s) {
            return NEXT_LOOK_MIN_S;
        }
        let period_s = u64::from(period_s).clamp(NEXT_LOOK_IDLE_S, STALE_AFTER_MAX_S);
        let answers_in_s = (guest.updated_unix_s + period_s + ANSWER_S).saturating_sub(now_unix_s);
        // None is due any more of a guest that has missed its time, nor by a clock that was set.
        if answers_in_s > 0 { answers_in_s.clamp(NEXT_LOOK_MIN_S, period_s + ANSWER_S) } else { NEXT_LOOK_IDLE_S }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn stats(balloon_mib: u64, usable_mib: u64, updated_unix_s: u64) -> MemoryStats {
        MemoryStats {
            balloon_bytes: Some(balloon_mib * MIB),
            total_bytes: Some((balloon_mib - 20) * MIB),
            unused_bytes: Some(usable_mib * MIB / 2),
            usable_bytes: Some(usable_mib * MIB),
            updated_unix_s: Some(updated_unix_s),
            ..MemoryStats::default()
        }
    }

    #[test]
    fn use_is_told_only_by_statistics_during_which_the_balloon_stood_still() {
        let mut watch = MemoryWatch::default();
        let in_use_mib = |facts: MemoryFacts| facts.in_use.map(|in_use| (in_use.bytes / MIB, in_use.updated_unix_s));
        assert_eq!(in_use_mib(watch.observe(&stats(128, 60, 100), 1, 100)), None, "it may have moved just before");
        assert_eq!(in_use_mib(watch.observe(&stats(128, 60, 102), 1, 102)), Some((68, 102)));
        // Grown to 192; the guest's answer is from before, and would make 132 of 68.
        assert_eq!(in_use_mib(watch.observe(&stats(192, 60, 103), 1, 104)), Some((68, 102)));
        assert_eq!(in_use_mib(watch.observe(&stats(192, 124, 106), 1, 106)), Some((68, 106)));
    }

    #[test]
    fn a_device_without_a_driver_and_a_domain_without_a_device_are_told_apart() {
        let mut watch = MemoryWatch::default();
        let silent = MemoryStats { balloon_bytes: Some(MIB), ..MemoryStats::default() };
        assert_eq!(watch.observe(&silent, 1, 9).balloon, Balloon::Silent);
        assert_eq!(watch.observe(&stats(128, 60, 10), 1, 10).balloon, Balloon::Movable { bytes: 128 * MIB });
        assert_eq!(
            watch.observe(&MemoryStats::default(), 1, 11),
            MemoryFacts { balloon: Balloon::Absent, ..MemoryFacts::default() }
        );
    }

    #[test]
    fn what_the_guest_said_long_ago_or_in_the_future_says_nothing_about_now() {
        let fresh = |period_s, age_s: i64| {
            GuestReading::new(&stats(128, 60, 1_000), period_s)
                .unwrap()
                .is_fresh(1_000_u64.saturating_add_signed(age_s))
        };
        assert!(fresh(1, 15) && !fresh(1, 16));
        assert!(fresh(10, 30) && !fresh(10, 31));
        assert!(fresh(600, 60) && !fresh(600, 61));
        assert!(fresh(1, -1) && !fresh(1, -2));
    }

    #[test]
    fn an_old_driver_could_give_up_what_is_unused_and_its_caches() {
        let old = MemoryStats { usable_bytes: None, disk_caches_bytes: Some(5 * MIB), ..stats(128, 60, 9) };
        assert_eq!(GuestReading::new(&old, 1).unwrap().could_give_up_bytes(), 35 * MIB);
    }

    #[test]
    fn a_guest_is_asked_when_it_has_something_new_to_say() {
        let mut watch = MemoryWatch::default();
        let mut next_s = |stats: MemoryStats, period_s, now| {
            watch.observe(&stats, period_s, now);
            watch.next_look_s(period_s, now)
        };
        assert_eq!(next_s(MemoryStats::default(), 0, 90), NEXT_LOOK_IDLE_S, "no balloon");
        assert_eq!(next_s(MemoryStats { balloon_bytes: Some(MIB), ..MemoryStats::default() }, 5, 95), NEXT_LOOK_IDLE_S);
        assert_eq!(next_s(stats(128, 60, 99), 5, 100), NEXT_LOOK_MIN_S, "what it uses is not known yet");
        assert_eq!(next_s(stats(128, 60, 104), 5, 104), 6);
        assert_eq!(next_s(stats(128, 60, 104), 5, 106), 4);
        assert_eq!(next_s(stats(128, 60, 104), 5, 109), NEXT_LOOK_MIN_S);
        assert_eq!(next_s(stats(128, 60, 104), 5, 110), NEXT_LOOK_IDLE_S, "it has missed its time");
        assert_eq!(next_s(stats(192, 60, 114), 5, 114), NEXT_LOOK_MIN_S, "the balloon moves");
        assert_eq!(next_s(stats(192, 60, 119), 30, 120), 30);
        assert_eq!(next_s(stats(192, 60, 119), 600, 120), STALE_AFTER_MAX_S, "however seldom its owner wants them");
        assert_eq!(next_s(stats(192, 60, 119), 5, 50), 6, "the clock was set back");
    }

    proptest! {
        #[test]
        fn use_is_never_more_than_the_balloon_leaves(
            looks in proptest::collection::vec((0..1_000_u64, any::<u64>(), any::<u64>(), 0..5_u64), 1..20),
        ) {
            let (mut watch, mut now) = (MemoryWatch::default(), 1_000);
            let mut largest = 0;
            for (balloon, usable, total, wait_s) in looks {
                now += wait_s;
                largest = largest.max(balloon);
                let stats = MemoryStats {
                    balloon_bytes: Some(balloon),
                    total_bytes: Some(total),
                    unused_bytes: Some(0),
                    usable_bytes: Some(usable),
                    updated_unix_s: Some(now),
                    ..MemoryStats::default()
                };
                let facts = watch.observe(&stats, 1, now);
                prop_assert!(facts.in_use.is_none_or(|in_use| in_use.bytes <= largest));
            }
        }
    }
}
