//! What has to travel when a VM moves, and how long that takes. Pure arithmetic.
//!
//! Live migration copies all memory while the guest runs, then what the guest wrote to meanwhile, then what it wrote to during that, and so on,
//! until so little is left that it can be sent while the guest stands still (pre-copy: Clark et al., *Live Migration of Virtual Machines*,
//! NSDI 2005). Over a link that carries `B` bytes per second the memory `M` of a guest that writes to `D` of it per second takes rounds of
//! `M`, `M·D/B`, `M·(D/B)²`…: a geometric series, which ends where `D` is below `B`. Where it is not, it goes on until somebody gives it up.
//! Disks that are copied go before the memory, once; what is written to them meanwhile is not known and counts as nothing.

use std::fmt;
use std::time::Duration;

use gnomon_common::wire::Moved;
use serde::{Deserialize, Serialize};

use super::mib;
use crate::policy::MigratePolicy;

/// Rounds at most, as in Clark et al.: what is written to in more of them is not worth counting.
const ROUNDS_MAX: u32 = 30;

/// What may be left for a stand-still is what travels in this time: QEMU's default for its `downtime-limit`.
const STAND_STILL_S: f64 = 0.3;

/// Longer than this nothing is looked ahead for.
const TAKES_MAX: Duration = Duration::from_hours(1);

/// No move is waited for any longer, as [`MigratePolicy::timeout_ms`] is bounded.
const TIMEOUT_MAX_MS: u64 = 86_400_000;

/// What moves have cost so far: learnt, and kept across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovePace {
    /// How many were measured.
    pub moves: u64,
    /// What a move brings over, in bytes per second of its whole length; a mean in which the latest counts a quarter.
    pub bytes_per_s: f64,
    /// How long a VM stands still, in seconds; the same mean.
    pub downtime_s: f64,
    /// What was really sent, in bytes per second: memory that was never touched is brought over without. Of a faster move at once, of slower ones by the
    /// same mean, since a short move is mostly preparation. `None` while libvirt has told of none.
    #[serde(default)]
    pub sent_bytes_per_s: Option<f64>,
}

impl Default for MovePace {
    fn default() -> Self {
        // A gigabit, as long as nothing was measured.
        Self { moves: 0, bytes_per_s: 100e6, downtime_s: 0.3, sent_bytes_per_s: None }
    }
}

impl MovePace {
    /// Learns from a move of a VM with so much memory. Memory that was never touched is brought over without being sent, and what was written to
    /// again is sent more than once: the larger of the two is what the link had to do with.
    pub(crate) fn learn(&mut self, memory_bytes: u64, moved: &Moved) {
        let took_s = moved.took_us as f64 / 1e6;
        if took_s <= 0.0 {
            return;
        }
        let weight = if self.moves == 0 { 1.0 } else { 0.25 };
        let toward = |before: f64, now: f64| before + weight * (now - before);
        let bytes = memory_bytes.max(moved.sent_bytes.unwrap_or(0));
        self.bytes_per_s = toward(self.bytes_per_s, bytes as f64 / took_s).max(1.0);
        if let Some(sent) = moved.sent_bytes {
            let now = sent as f64 / took_s;
            self.sent_bytes_per_s =
                Some(self.sent_bytes_per_s.map_or(now, |before| now.max(toward(before, now))).max(1.0));
        }
        if let Some(downtime_us) = moved.downtime_us {
            self.downtime_s = toward(self.downtime_s, downtime_us as f64 / 1e6);
        }
        self.moves += 1;
    }

    /// What has to travel for a VM with so much memory, of which its guest writes to so much per second, as far as that is known.
    pub(crate) fn haul(&self, memory_bytes: u64, dirty_bytes_per_s: Option<u64>, policy: &MigratePolicy) -> Haul {
        let allowed = policy.bandwidth_bytes_per_s.map_or(f64::INFINITY, |bytes_per_s| bytes_per_s as f64);
        let brought_per_s = self.bytes_per_s.min(allowed).max(1.0);
        // What is written to anew has to be sent, whatever was never touched.
        let link_bytes_per_s = self.sent_bytes_per_s.unwrap_or(f64::INFINITY).min(brought_per_s).max(1.0);
        let first_s = memory_bytes as f64 / brought_per_s;
        let again = dirty_bytes_per_s
            .map_or(0.0, |dirty| sent_again(memory_bytes as f64, first_s, dirty as f64, link_bytes_per_s));
        Haul {
            bytes: memory_bytes.saturating_add(again as u64),
            takes_s: first_s + again / link_bytes_per_s,
            dirty_bytes_per_s,
            link_bytes_per_s,
            is_slowed: policy.auto_converge,
            storage_bytes: 0,
        }
    }
}

/// All bytes of the rounds after the first, which takes `first_s`. What is written to in one round is no more than the memory.
fn sent_again(memory: f64, first_s: f64, dirty_per_s: f64, link_per_s: f64) -> f64 {
    let (mut sum, mut takes_s) = (0.0, first_s);
    for _ in 0..ROUNDS_MAX {
        let round = (takes_s * dirty_per_s).min(memory);
        takes_s = round / link_per_s;
        sum += round;
        if round <= STAND_STILL_S * link_per_s {
            break;
        }
    }
    sum
}

/// What has to travel when a VM moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Haul {
    /// Memory, and what is written to meanwhile, in bytes.
    pub bytes: u64,
    /// What its guest writes to, in bytes per second; `None` where that was not measured lately: then it counts as nothing.
    pub dirty_bytes_per_s: Option<u64>,
    /// How long that takes, in seconds.
    pub takes_s: f64,
    /// What the link carries, as past moves have taught and policy allows, in bytes per second.
    pub link_bytes_per_s: f64,
    /// Whether by policy the guest is slowed down where it writes faster than that.
    pub is_slowed: bool,
    /// How much of `bytes` is copied of its disks.
    #[serde(default)]
    pub storage_bytes: u64,
}

impl Haul {
    /// Whether less is written to than the link carries away, as far as is known: else it goes on until it is given up, or the guest slowed down.
    pub fn converges(&self) -> bool {
        self.dirty_bytes_per_s.is_none_or(|dirty| (dirty as f64) < self.link_bytes_per_s)
    }

    /// The same with disks that are copied as well.
    pub(crate) fn with_storage(self, storage_bytes: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_add(storage_bytes),
            takes_s: self.takes_s + storage_bytes as f64 / self.link_bytes_per_s,
            storage_bytes: self.storage_bytes.saturating_add(storage_bytes),
            ..self
        }
    }

    /// When a move is given up, in milliseconds: as policy says, and twice the time longer that its disks take; a day at most.
    pub(crate) fn timeout_ms(&self, policy: &MigratePolicy) -> u64 {
        let storage_ms = self.storage_bytes as f64 / self.link_bytes_per_s * 1000.0;
        policy.timeout_ms.saturating_add((2.0 * storage_ms) as u64).min(TIMEOUT_MAX_MS)
    }

    /// How long that takes, an hour at most.
    pub(crate) fn takes(&self) -> Duration {
        let takes = Duration::try_from_secs_f64(self.takes_s);
        takes.unwrap_or(TAKES_MAX).min(TAKES_MAX)
    }
}

impl fmt::Display for Haul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_s = |bytes: f64| bytes / f64::from(1 << 20);
        if let Some(dirty) = self.dirty_bytes_per_s {
            write!(f, "its guest writes to {:.1} MiB of its memory a second, ", per_s(dirty as f64))?;
        }
        match (self.dirty_bytes_per_s, self.converges(), self.is_slowed) {
            (None, ..) => write!(f, "{} have to travel", mib(self.bytes))?,
            (_, true, _) => write!(f, "so that {} have to travel", mib(self.bytes))?,
            (_, false, is_slowed) => {
                let link = per_s(self.link_bytes_per_s);
                let then = if is_slowed { "it is slowed down for that" } else { "the move may have to be given up" };
                write!(f, "more than the {link:.1} that the link carries: {then}")?;
            }
        }
        if self.storage_bytes > 0 { write!(f, ", {} of them from its disks", mib(self.storage_bytes)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    /// A link of 100 MB/s.
    fn haul(memory_bytes: u64, dirty_bytes_per_s: Option<u64>) -> Haul {
        MovePace::default().haul(memory_bytes, dirty_bytes_per_s, &MigratePolicy::default())
    }

    #[test]
    fn what_is_written_to_meanwhile_travels_again_in_ever_shorter_rounds() {
        assert_eq!((haul(GIB, None).bytes, haul(GIB, Some(0)).bytes), (GIB, GIB));
        // Rounds of 1000, 500, 250, 125, 62.5 and 31.25 MB: a link of 100 MB/s carries no more than 30 MB in the stand-still, so one more.
        let half = haul(1_000_000_000, Some(50_000_000));
        assert_eq!(half.bytes, 1_984_375_000);
        assert!((half.takes().as_secs_f64() - 19.84).abs() < 0.01 && half.converges());
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_does_not_converge_and_is_bounded_all_the_same() {
        let hog = haul(GIB, Some(200_000_000));
        assert!(!hog.converges() && !haul(GIB, Some(100_000_000)).converges());
        assert_eq!((hog.bytes, hog.takes() < TAKES_MAX), (31 * GIB, true));
        assert_eq!(haul(u64::MAX, Some(u64::MAX)).takes(), TAKES_MAX);
        let slow = MigratePolicy { bandwidth_bytes_per_s: Some(10_000_000), ..MigratePolicy::default() };
        let capped = MovePace::default().haul(GIB, Some(20_000_000), &slow);
        assert!(!capped.converges() && capped.to_string().contains("may have to be given up"), "{capped}");
        let slowed = MigratePolicy { auto_converge: true, ..slow };
        let slowed = MovePace::default().haul(GIB, Some(20_000_000), &slowed);
        assert_eq!(
            slowed.to_string(),
            "its guest writes to 19.1 MiB of its memory a second, more than the 9.5 that the link carries: it is slowed down for that"
        );
    }

    #[test]
    fn disks_that_are_copied_cost_bytes_and_time_and_lengthen_what_a_move_may_take() {
        let policy = MigratePolicy::default();
        let (plain, with) = (haul(GIB, None), haul(GIB, None).with_storage(10_000_000_000));
        assert_eq!((with.bytes, with.storage_bytes), (GIB + 10_000_000_000, 10_000_000_000));
        assert!((with.takes_s - plain.takes_s - 100.0).abs() < 1e-6, "{with:?}");
        assert_eq!(
            (plain.timeout_ms(&policy), with.timeout_ms(&policy)),
            (policy.timeout_ms, policy.timeout_ms + 200_000)
        );
        assert_eq!(plain.with_storage(u64::MAX).timeout_ms(&policy), TIMEOUT_MAX_MS);
        assert_eq!(with.to_string(), "10561 MiB have to travel, 9537 MiB of them from its disks");
        let written = haul(GIB, Some(0)).with_storage(GIB).to_string();
        assert!(written.ends_with("so that 2048 MiB have to travel, 1024 MiB of them from its disks"), "{written}");
    }

    #[test]
    fn the_link_is_learnt_from_what_travelled() {
        let mut pace = MovePace::default();
        let moved = |sent_bytes| Moved { took_us: 10_000_000, downtime_us: Some(500_000), sent_bytes, copied: None };
        pace.learn(GIB, &moved(Some(3 * GIB)));
        assert_eq!((pace.moves, pace.bytes_per_s, pace.downtime_s), (1, 3.0 * GIB as f64 / 10.0, 0.5));
        pace.learn(GIB, &moved(Some(1)));
        assert!((pace.bytes_per_s - 2.5 * GIB as f64 / 10.0).abs() < 1.0, "{pace:?}");
        pace.learn(GIB, &Moved::default());
        assert_eq!(pace.moves, 2);
    }

    #[test]
    fn memory_that_was_never_touched_makes_no_link_fast() {
        let mut pace = MovePace::default();
        let moved = |took_us, sent| Moved { took_us, sent_bytes: Some(sent), ..Moved::default() };
        // 16 GiB, of which 1 GiB was sent in ten seconds.
        pace.learn(16 * GIB, &moved(10_000_000, GIB));
        let haul = pace.haul(16 * GIB, Some(200_000_000), &MigratePolicy::default());
        assert!(!haul.converges(), "{haul:?}");
        let calm = pace.haul(16 * GIB, Some(0), &MigratePolicy::default());
        assert!((calm.takes().as_secs_f64() - 10.0).abs() < 0.01 && calm.converges(), "{calm:?}");
        // A short move, mostly preparation, does not make it slow at once.
        pace.learn(GIB, &moved(1_000_000, GIB / 100));
        assert!(pace.sent_bytes_per_s.unwrap() > 0.7 * GIB as f64 / 10.0, "{pace:?}");
    }

    proptest! {
        #[test]
        fn more_travels_the_faster_is_written(memory in 0..1u64 << 42, dirty in 0..1u64 << 34, more in 0..1u64 << 34) {
            let [less, more] = [haul(memory, Some(dirty)), haul(memory, Some(dirty + more))];
            prop_assert!(less.bytes.saturating_add(1) >= memory && more.bytes.saturating_add(1) >= less.bytes);
            prop_assert!(more.takes() <= TAKES_MAX);
        }
    }
}
