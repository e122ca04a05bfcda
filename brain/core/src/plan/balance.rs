//! When a host will be too full, which VM leaves it, and where that goes. Pure arithmetic over forecasts.
//!
//! In prose:
//! - **Too full** is a host whose VMs will want more than its room within the time that a move takes: the sum of their medians, and of their
//!   spreads above it as if they were independent (their variances add up). Memory is summed as it is handed out. CPU and memory are two
//!   questions, never added up: the fuller of the two counts.
//! - **Room** is capacity less a reserve, the same for leaving a host as for coming to it.
//! - **Which**: the cheapest VM whose going is enough; if none is, the one that frees most. Cost is what has to travel: see [`haul`](super::haul). One whose
//!   guest writes faster than the link carries comes after those that are enough as well.
//! - **Where**: of the hosts that have room, the one that is left with the most. Another zone only where policy lets VMs cross.

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostFacts, HostId};

use super::backoff::Backoff;
use super::haul::Haul;
use crate::policy::MigratePolicy;

/// How many standard deviations above the median the 95 % quantile of a normal distribution is.
const P95_DEVIATIONS: f64 = 1.645;

/// How long a target that could not take a VM is left alone by that VM.
const AVOID_MS: u64 = 3_600_000;

/// Targets that a VM avoids at most: beyond that the longest avoided is tried again.
const AVOIDED_MAX: usize = 16;

/// How long it is believed how fast a guest writes to its memory, and that it could not be measured.
const DIRTY_RATE_BELIEVED: Duration = Duration::from_mins(10);

/// What one VM will take of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Claim {
    /// Median of its demand where that is largest, in cores.
    pub(crate) median_cores: f64,
    /// 95 % quantile where that is largest, in cores.
    pub(crate) high_cores: f64,
    /// Memory that it has, in bytes.
    pub(crate) memory_bytes: u64,
}

/// What all VMs of a host will take together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    median_cores: f64,
    variance: f64,
    pub(crate) memory_bytes: u64,
}

impl Load {
    pub(crate) fn of(claims: impl Iterator<Item = Claim>) -> Self {
        claims.fold(Self::default(), Self::plus)
    }

    pub(crate) fn plus(self, claim: Claim) -> Self {
        Self {
            median_cores: self.median_cores + claim.median_cores,
            variance: self.variance + variance(claim),
            memory_bytes: self.memory_bytes.saturating_add(claim.memory_bytes),
        }
    }

    pub(crate) fn minus(self, claim: Claim) -> Self {
        Self {
            median_cores: (self.median_cores - claim.median_cores).max(0.0),
            variance: (self.variance - variance(claim)).max(0.0),
            memory_bytes: self.memory_bytes.saturating_sub(claim.memory_bytes),
        }
    }

    /// Once so much memory is given back.
    pub(crate) fn less_memory(self, bytes: u64) -> Self {
        Self { memory_bytes: self.memory_bytes.saturating_sub(bytes), ..self }
    }

    /// What they will hardly exceed together, in cores.
    pub(crate) fn high_cores(&self) -> f64 {
        self.median_cores + P95_DEVIATIONS * self.variance.sqrt()
    }
}

fn variance(claim: Claim) -> f64 {
    ((claim.high_cores - claim.median_cores).max(0.0) / P95_DEVIATIONS).powi(2)
}

/// What of a host VMs may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Room {
    pub(crate) cores: f64,
    pub(crate) memory_bytes: f64,
}

impl Room {
    pub(crate) fn of(facts: &HostFacts, policy: &MigratePolicy) -> Self {
        let usable = 1.0 - policy.reserve_share;
        Self { cores: facts.capacity_cores * usable, memory_bytes: facts.memory_bytes as f64 * usable }
    }

    pub(crate) fn holds_cpu(&self, load: &Load) -> bool {
        load.high_cores() <= self.cores
    }

    pub(crate) fn holds_memory(&self, load: &Load) -> bool {
        load.memory_bytes as f64 <= self.memory_bytes
    }

    pub(crate) fn holds(&self, load: &Load) -> bool {
        self.holds_cpu(load) && self.holds_memory(load)
    }

    /// The fuller of CPU and memory, as a share of the room; above 1 it is too full.
    pub(crate) fn share(&self, load: &Load) -> f64 {
        let share = |of: f64, all: f64| if all > 0.0 { of / all } else { f64::INFINITY };
        share(load.high_cores(), self.cores).max(share(load.memory_bytes as f64, self.memory_bytes))
    }
}

/// What is known of a host's future.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prospect {
    pub(crate) load: Load,
    /// Until when that is fresh enough to send VMs there.
    pub(crate) fresh_until: Timestamp,
    /// Reports in a row in which it was too full.
    pub(crate) full_rounds: u32,
    /// It is too full only by forecasts with less skill than policy asks for: nothing is done about it.
    pub(crate) is_doubted: bool,
    /// Memory that its VMs are going to give back, in bytes: that comes before any of them is moved.
    pub(crate) gives_back_bytes: u64,
    /// Since when that was waited for, while it is too full.
    pub(crate) shrinks_since: Option<Timestamp>,
    /// It was said that nothing can be done about it.
    pub(crate) is_told: bool,
    /// Since when it is too full, VMs of it may leave, and no host has room for one.
    pub(crate) stuck_since: Option<Timestamp>,
    /// Hosts of another zone would have had room when a place was last looked for in vain.
    pub(crate) fits_another_zone: bool,
}

/// A VM that might leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<T> {
    pub(crate) vm: T,
    pub(crate) claim: Claim,
    pub(crate) haul: Haul,
}

/// Candidates in the order in which they are to be tried: first those whose going is enough, the cheapest first; then those that free
/// the most. Of either, those whose move is not known to come to its end last, and before those of which nothing is known those that were measured.
pub(crate) fn order<T: Copy + Ord>(mut candidates: Vec<Candidate<T>>, load: &Load, room: &Room) -> Vec<Candidate<T>> {
    let is_enough = |candidate: &Candidate<T>| room.holds(&load.minus(candidate.claim));
    candidates.sort_by(|one, other| {
        let by_cost = one.haul.bytes.cmp(&other.haul.bytes);
        let by_relief = room.share(&load.minus(one.claim)).total_cmp(&room.share(&load.minus(other.claim)));
        let within = if is_enough(one) { by_cost } else { by_relief };
        let by_end = other.haul.converges().cmp(&one.haul.converges());
        let by_word = other.haul.dirty_bytes_per_s.is_some().cmp(&one.haul.dirty_bytes_per_s.is_some());
        is_enough(other).cmp(&is_enough(one)).then(by_end).then(by_word).then(within).then(one.vm.cmp(&other.vm))
    });
    candidates
}

/// What is remembered of a VM's moves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Travel {
    pub(crate) backoff: Backoff,
    /// When it was last recommended to be moved.
    pub(crate) recommended: Option<Timestamp>,
    /// Until when it is not tried to be moved anywhere: something holds it where it is.
    rooted_until: Option<Timestamp>,
    /// Hosts that could not take it, and until when they are not asked again.
    avoids: BTreeMap<HostId, Timestamp>,
    /// When it was asked last how fast its guest writes to its memory, and the answer in bytes per second, or why there is none.
    dirtied: Option<(Timestamp, Result<u64, String>)>,
}

impl Travel {
    /// It was found how fast its guest writes to its memory, or not.
    pub(crate) fn dirtied(&mut self, now: Timestamp, answer: Result<u64, String>) {
        self.dirtied = Some((now, answer));
    }

    /// How fast its guest writes to its memory, in bytes per second, as far as that is believed; or why it is not known although it was asked for.
    pub(crate) fn dirty_rate(&self, now: Timestamp) -> Option<&Result<u64, String>> {
        self.dirtied.as_ref().filter(|(at, _)| now.since(*at) < DIRTY_RATE_BELIEVED).map(|(_, answer)| answer)
    }

    /// When that was found.
    pub(crate) fn dirtied_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.dirty_rate(now).and(self.dirtied.as_ref()).map(|(at, _)| *at)
    }

    /// The rate alone.
    pub(crate) fn dirty_bytes_per_s(&self, now: Timestamp) -> Option<u64> {
        self.dirty_rate(now)?.as_ref().ok().copied()
    }

    pub(crate) fn avoid(&mut self, host: HostId, now: Timestamp) {
        self.avoids.retain(|_, until| *until > now);
        if self.avoids.len() >= AVOIDED_MAX
            && let Some(soonest) = self.avoids.iter().min_by_key(|(_, until)| **until).map(|(host, _)| host.clone())
        {
            self.avoids.remove(&soonest);
        }
        self.avoids.insert(host, now + Duration::from_millis(AVOID_MS));
    }

    /// Something holds it where it is: nothing is tried for as long as a host is avoided.
    pub(crate) fn root(&mut self, now: Timestamp) {
        self.rooted_until = Some(now + Duration::from_millis(AVOID_MS));
    }

    pub(crate) fn is_rooted(&self, now: Timestamp) -> bool {
        self.rooted_until.is_some_and(|until| until > now)
    }

    pub(crate) fn avoids(&self, host: &HostId, now: Timestamp) -> bool {
        self.avoids.get(host).is_some_and(|until| *until > now)
    }

    /// Bounds what a clock that was set back can do.
    pub(crate) fn clock_set_back(&mut self, now: Timestamp) {
        self.backoff.clock_set_back(now);
        self.recommended = self.recommended.map(|at| at.min(now));
        let latest = now + Duration::from_millis(AVOID_MS);
        self.rooted_until = self.rooted_until.map(|until| until.min(latest));
        self.avoids.values_mut().for_each(|until| *until = (*until).min(latest));
        if let Some((at, _)) = &mut self.dirtied {
            *at = (*at).min(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::haul::MovePace;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn claim(median_cores: f64, high_cores: f64, gib: u64) -> Claim {
        Claim { median_cores, high_cores, memory_bytes: gib * GIB }
    }

    fn candidate(vm: usize, claim: Claim, dirty_bytes_per_s: Option<u64>) -> Candidate<usize> {
        let haul = MovePace::default().haul(claim.memory_bytes, dirty_bytes_per_s, &MigratePolicy::default());
        Candidate { vm, claim, haul }
    }

    const ROOM: Room = Room { cores: 4.0, memory_bytes: 8.0 * GIB as f64 };

    #[test]
    fn spreads_add_up_as_those_of_independent_vms() {
        let load = Load::of([claim(1.0, 1.3, 1), claim(1.0, 1.4, 1)].into_iter());
        assert!((load.high_cores() - 2.5).abs() < 1e-9, "{}", load.high_cores());
    }

    #[test]
    fn the_fuller_of_cpu_and_memory_counts() {
        assert!((ROOM.share(&Load::of([claim(1.0, 1.0, 6)].into_iter())) - 0.75).abs() < 1e-9);
        assert!((ROOM.share(&Load::of([claim(3.0, 3.0, 1)].into_iter())) - 0.75).abs() < 1e-9);
        assert!(!ROOM.holds(&Load::of([claim(0.0, 0.0, 9)].into_iter())));
        assert!(!ROOM.holds(&Load::of([claim(4.1, 4.1, 1)].into_iter())));
    }

    #[test]
    fn the_cheapest_vm_that_is_enough_goes_first_and_else_the_one_that_frees_most() {
        let vms = [claim(2.0, 2.0, 4), claim(1.5, 1.5, 1), claim(1.0, 1.0, 2)];
        let load = Load::of(vms.into_iter());
        let candidates = || vms.iter().enumerate().map(|(vm, &claim)| candidate(vm, claim, None)).collect::<Vec<_>>();
        let tried: Vec<usize> = order(candidates(), &load, &ROOM).iter().map(|candidate| candidate.vm).collect();
        assert_eq!(tried, [1, 2, 0]);
        let tight = Room { cores: 2.0, ..ROOM };
        let tried: Vec<usize> = order(candidates(), &load, &tight).iter().map(|candidate| candidate.vm).collect();
        assert_eq!(tried, [0, 1, 2]);
    }

    #[test]
    fn a_small_vm_that_writes_much_loses_to_a_larger_calm_one() {
        // Half of a gigabyte at 80 of the link's 100 MB/s is more than a gigabyte of which little is written to.
        let vms = [claim(1.5, 1.5, 1), claim(1.5, 1.5, 2), claim(3.0, 3.0, 1)];
        let load = Load::of(vms.into_iter());
        let tried = |rates: [Option<u64>; 3], room: &Room| -> Vec<usize> {
            let candidates = (0..3).map(|vm| candidate(vm, vms[vm], rates[vm])).collect();
            order(candidates, &load, room).iter().map(|candidate| candidate.vm).collect()
        };
        let room = Room { cores: 4.5, ..ROOM };
        assert_eq!(tried([None, None, None], &room), [0, 2, 1]);
        assert_eq!(tried([Some(80_000_000), Some(1_000_000), Some(0)], &room), [2, 1, 0]);
        // One of which nothing is known comes after those that were measured: of many alike only the first are.
        assert_eq!(tried([Some(80_000_000), Some(1_000_000), None], &room), [1, 0, 2]);
        // One that never ends is the last of those that are enough, and comes before those that are not.
        let tight = Room { cores: 3.0, ..ROOM };
        assert_eq!(tried([None, None, Some(200_000_000)], &tight), [2, 0, 1]);
        assert_eq!(tried([Some(200_000_000), Some(1_000_000), Some(200_000_000)], &room), [1, 0, 2]);
    }

    #[test]
    fn what_was_measured_is_believed_for_some_minutes() {
        let at = |minutes: u64| Timestamp::from_unix_ms(1_000_000 + minutes * 60_000);
        let mut travel = Travel::default();
        assert_eq!(travel.dirty_rate(at(0)), None);
        travel.dirtied(at(5), Ok(7));
        assert_eq!((travel.dirty_bytes_per_s(at(14)), travel.dirty_rate(at(15))), (Some(7), None));
        travel.dirtied(at(15), Err("QEMU is too old".to_owned()));
        assert!(travel.dirty_rate(at(16)).is_some() && travel.dirty_bytes_per_s(at(16)).is_none());
        travel.clock_set_back(at(1));
        assert!(travel.dirty_rate(at(12)).is_none(), "what a clock that was set back told lasts too long");
    }

    #[test]
    fn a_host_that_could_not_take_a_vm_is_left_alone_for_an_hour() {
        let at = |hours: u64| Timestamp::from_unix_ms(1_000_000 + hours * AVOID_MS);
        let host = |number: usize| HostId::new(format!("h{number}")).unwrap();
        let mut travel = Travel::default();
        travel.avoid(host(0), at(0));
        assert!(travel.avoids(&host(0), at(0)) && !travel.avoids(&host(0), at(1)) && !travel.avoids(&host(1), at(0)));
        (0..100).for_each(|number| travel.avoid(host(number), at(2)));
        assert_eq!(travel.avoids.len(), AVOIDED_MAX);
    }

    proptest! {
        #[test]
        fn what_came_and_went_leaves_the_load_as_it_was(
            claims in prop::collection::vec((0.0..8.0f64, 0.0..4.0f64, 0..64u64), 1..20), index in 0..20usize,
        ) {
            let claims: Vec<Claim> = claims.iter().map(|&(low, more, gib)| claim(low, low + more, gib)).collect();
            let gone = claims[index % claims.len()];
            let load = Load::of(claims.iter().copied());
            let others = load.minus(gone).plus(gone);
            prop_assert!((load.high_cores() - others.high_cores()).abs() < 1e-6);
            prop_assert_eq!(load.memory_bytes, others.memory_bytes);
            prop_assert!(load.minus(gone).high_cores() <= load.high_cores() + 1e-6);
        }
    }
}
