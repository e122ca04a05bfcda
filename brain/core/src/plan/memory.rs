//! How large a VM's balloon leaves its memory, and when that may change.
//!
//! In prose: provide for what the guest wants times a headroom, and never for less than that and the agent's reserve. Grow at once,
//! and by a quarter where the guest starves, because a guest that swaps cannot show what it wants. Shrink slowly: only after a
//! dwell time in which every window would have been content with less, only with statistics of the guest, at most a step's share
//! of the present size at a time. There is no forecast of memory: this follows live demand.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{GuestMemory, MemoryBounds, MemoryWindow};
use thiserror::Error;

use super::Reason;
use super::backoff::Backoff;
use super::dwell::{Dwell, Evidence, Rhythm};
use super::guard::Guard;
use crate::policy::MemoryPolicy;

/// Balloon targets are multiples of this, in bytes: finer steps would be resizes for nothing.
pub(crate) const BALLOON_STEP_BYTES: u64 = 1 << 20;

/// A guest that reads this much back from swap, in bytes per second, starves: what was swapped out once and is never read again
/// is no want, and a few pages now and then are no harm.
const SWAP_IN_STARVED_BYTES_PER_S: f64 = (1 << 20) as f64;

/// A guest with this many faults that needed I/O, per second, starves if it has nothing left to put the pages: programs that start
/// fault as well.
const MAJOR_FAULTS_STARVED_PER_S: f64 = 20.0;

/// How much more a guest that starves is given each time, as a share of what it has.
const STARVED_GROWTH: f64 = 0.25;

/// Steps of a shrink that are looked ahead at most: of a twentieth each, so many leave a hundredth.
const STEPS_FORESEEN_MAX: usize = 90;

/// Why a VM's memory has no size to plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unsizable {
    #[error("it is not measured")]
    Unmeasured,
    #[error("it has no balloon that can be moved")]
    NoBalloon,
    #[error("nothing tells what it wants: its guest has no balloon driver, or sends no statistics")]
    NoDemand,
}

/// Everything that decides the memory of one VM at one report, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BalloonSizing {
    pub(crate) floor: u64,
    pub(crate) ceiling: u64,
    pub(crate) balloon: u64,
    pub(crate) demand: u64,
    /// What must be left above the guest's live use.
    pub(crate) reserve: u64,
    /// Largest share of the balloon that one step takes away.
    pub(crate) step_max: f64,
    pub(crate) starved: bool,
}

/// What the planner makes of one VM's memory at one report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BalloonVerdict {
    /// What would be right now, in bytes.
    pub(crate) wanted_bytes: u64,
    /// The resize to plan now.
    pub(crate) resize: Option<(u64, Reason)>,
}

impl BalloonSizing {
    /// From the latest window of a VM that is defined with `bytes_max`.
    pub(crate) fn new(
        window: Option<&MemoryWindow>,
        bytes_max: u64,
        agent: &MemoryBounds,
        policy: &MemoryPolicy,
    ) -> Result<Self, Unsizable> {
        let window = window.ok_or(Unsizable::Unmeasured)?;
        let ceiling = bytes_max / BALLOON_STEP_BYTES * BALLOON_STEP_BYTES;
        let balloon = window.balloon_bytes.filter(|&bytes| bytes > 0).ok_or(Unsizable::NoBalloon)?.min(ceiling);
        let demand = window.guest_demand_bytes().ok_or(Unsizable::NoDemand)?;
        // A VM that is defined with less than the floor has nothing to give.
        let floor = round_up(policy.floor_bytes).min(ceiling);
        // An agent that lets nothing be taken away, or says nonsense, is taken at its word: no step at all.
        let step_max = agent.shrink_step_max.min(policy.shrink_step_max).max(0.0);
        let starved = window.guest.is_some_and(|guest| starves(&guest, agent.reserve_bytes));
        Ok(Self { floor, ceiling, balloon, demand, reserve: agent.reserve_bytes, step_max, starved })
    }

    /// As far as its guards are kept.
    pub(crate) fn kept_by(self, keeps: impl Fn(Guard) -> bool) -> Self {
        Self {
            floor: if keeps(Guard::Floor) { self.floor } else { 0 },
            reserve: if keeps(Guard::Reserve) { self.reserve } else { 0 },
            step_max: if keeps(Guard::Step) { self.step_max } else { 1.0 },
            ..self
        }
    }

    /// Where its host can spare so much: no larger than that allows, and no smaller than it is for want of it.
    pub(crate) fn within(self, spare_bytes: u64) -> Self {
        let most = self.balloon.saturating_add(spare_bytes) / BALLOON_STEP_BYTES * BALLOON_STEP_BYTES;
        let ceiling = self.ceiling.min(most.max(self.balloon));
        Self { ceiling, floor: self.floor.min(ceiling), ..self }
    }

    /// What provides for the demand.
    pub(crate) fn enough(&self, headroom: f64) -> u64 {
        let comfortable = (self.demand as f64 * headroom).ceil() as u64;
        round_up(comfortable.max(self.least())).clamp(self.floor, self.ceiling)
    }

    /// Live use and the reserve: nothing is taken away below that.
    pub(crate) fn least(&self) -> u64 {
        self.demand.saturating_add(self.reserve)
    }

    /// What one step leaves at least.
    pub(crate) fn step_floor(&self) -> u64 {
        self.balloon - (self.balloon as f64 * self.step_max) as u64
    }

    /// What one step towards a smaller size leaves; `None` where that is not worth a resize.
    fn step(&self, enough: u64, hysteresis: f64) -> Option<u64> {
        let worthwhile = (enough as f64) < self.balloon as f64 * (1.0 - hysteresis);
        let target = enough.max(round_up(self.step_floor()));
        (worthwhile && target < self.balloon).then_some(target)
    }

    fn pressing(&self, headroom: f64) -> u64 {
        let starved = if self.starved { (self.balloon as f64 * (1.0 + STARVED_GROWTH)) as u64 } else { 0 };
        self.enough(headroom).max(round_up(starved).min(self.ceiling))
    }
}

fn starves(guest: &GuestMemory, reserve: u64) -> bool {
    let full = guest.usable_bytes.unwrap_or(guest.unused_bytes) < reserve;
    guest.swap_in_bytes_per_s >= SWAP_IN_STARVED_BYTES_PER_S
        || full && guest.major_faults_per_s >= MAJOR_FAULTS_STARVED_PER_S
}

fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(BALLOON_STEP_BYTES).saturating_mul(BALLOON_STEP_BYTES)
}

/// What is remembered of a VM's memory between reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct BalloonPace {
    pub(crate) dwell: Dwell<u64>,
    pub(crate) backoff: Backoff,
}

impl BalloonPace {
    /// Takes the evidence of one report and decides.
    pub(crate) fn judge(
        &mut self,
        now: Timestamp,
        window: Duration,
        sizing: &BalloonSizing,
        policy: &MemoryPolicy,
        rhythm: Rhythm,
    ) -> BalloonVerdict {
        let BalloonSizing { balloon, demand, starved, .. } = *sizing;
        let (enough, grown) = (sizing.enough(policy.headroom), sizing.pressing(policy.headroom));
        // While it starves, what it seems to want is not what it wants: such a window vouches for nothing less than what it is given for that.
        let enough_for_sure = if starved { grown.max(balloon) } else { enough };
        self.dwell.witness(now, window, Evidence { enough: enough_for_sure, demand }, rhythm);
        let worth_growing = starved || grown as f64 > balloon as f64 * (1.0 + policy.hysteresis);
        let resize = if self.backoff.until(now).is_some() {
            None
        } else if grown > balloon && worth_growing {
            let starves = starved && enough < grown;
            let reason = if starves {
                Reason::GuestStarves { demand_bytes: demand }
            } else {
                Reason::LiveMemory { demand_bytes: demand }
            };
            Some((grown, reason))
        } else {
            self.shrink(now, sizing, policy, rhythm)
        };
        BalloonVerdict { wanted_bytes: enough, resize }
    }

    fn shrink(
        &self,
        now: Timestamp,
        sizing: &BalloonSizing,
        policy: &MemoryPolicy,
        rhythm: Rhythm,
    ) -> Option<(u64, Reason)> {
        let most = self.dwell.shrinkable(now, rhythm)?;
        let target = sizing.step(most.enough, policy.hysteresis)?;
        Some((target, Reason::MemorySlack { demand_bytes: most.demand }))
    }

    /// What its guest will have by then, in bytes, if its demand stays as it is: so many steps are taken as dwell time, intervals and the windows
    /// of reports let.
    pub(crate) fn foreseen_bytes(
        &self,
        now: Timestamp,
        by: Timestamp,
        window: Duration,
        sizing: &BalloonSizing,
        policy: &MemoryPolicy,
    ) -> u64 {
        let rhythm = Rhythm::of_ms(policy.shrink_dwell_ms, policy.shrink_interval_ms);
        let mut at = self.dwell.foreseen(now, by, rhythm);
        let mut foreseen = *sizing;
        for _ in 0..STEPS_FORESEEN_MAX {
            let Some((from, evidence)) = at.filter(|(from, _)| *from <= by) else { break };
            let Some(bytes) = foreseen.step(evidence.enough, policy.hysteresis) else { break };
            foreseen.balloon = bytes;
            at = Some((from + rhythm.interval.max(window), evidence));
        }
        foreseen.balloon
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::{DemandSource, MemoryDemand};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const WINDOW: Duration = Duration::from_secs(10);
    const RHYTHM: Rhythm = Rhythm { dwell: Duration::from_secs(60), interval: Duration::from_secs(30) };
    const AGENT: MemoryBounds = MemoryBounds { reserve_bytes: 64 * MIB, shrink_step_max: 0.05 };

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_000_000 + second * 1000)
    }

    fn policy() -> MemoryPolicy {
        MemoryPolicy {
            manage: true,
            headroom: 1.2,
            floor_bytes: 256 * MIB,
            shrink_dwell_ms: 60_000,
            shrink_interval_ms: 30_000,
            ..MemoryPolicy::default()
        }
    }

    fn window(balloon_mib: u64, demand_mib: u64) -> MemoryWindow {
        MemoryWindow {
            balloon_bytes: Some(balloon_mib * MIB),
            demand: Some(MemoryDemand::known(demand_mib * MIB)),
            guest: Some(GuestMemory { usable_bytes: Some(0), ..GuestMemory::default() }),
            ..MemoryWindow::default()
        }
    }

    fn sizing(window: &MemoryWindow) -> BalloonSizing {
        BalloonSizing::new(Some(window), 2048 * MIB, &AGENT, &policy()).unwrap()
    }

    fn judge(pace: &mut BalloonPace, second: u64, window: &MemoryWindow) -> Option<(u64, Reason)> {
        pace.judge(at(second), WINDOW, &sizing(window), &policy(), RHYTHM)
            .resize
            .map(|(bytes, reason)| (bytes / MIB, reason))
    }

    #[test]
    fn demand_with_its_headroom_and_the_reserve_fit_at_once() {
        let mut pace = BalloonPace::default();
        let reason = |mib| Reason::LiveMemory { demand_bytes: mib * MIB };
        assert_eq!(judge(&mut pace, 0, &window(512, 1000)), Some((1200, reason(1000))));
        assert_eq!(
            judge(&mut pace, 10, &window(256, 240)),
            Some((304, reason(240))),
            "a fifth is less than the reserve"
        );
        assert_eq!(
            judge(&mut pace, 20, &window(512, 5000)),
            Some((2048, reason(5000))),
            "no more than it is defined with"
        );
        assert_eq!(judge(&mut pace, 30, &window(1170, 1000)), None, "not worth it");
    }

    #[test]
    fn a_guest_that_swaps_is_given_a_quarter_more_and_what_it_seems_to_want_shrinks_nothing() {
        let mut starved = window(1000, 300);
        starved.guest = Some(GuestMemory { swap_in_bytes_per_s: 5e6, ..GuestMemory::default() });
        let mut pace = BalloonPace::default();
        assert_eq!(judge(&mut pace, 0, &starved), Some((1250, Reason::GuestStarves { demand_bytes: 300 * MIB })));
        for second in (10..70).step_by(10) {
            assert_eq!(judge(&mut pace, second, &window(1250, 300)), None);
        }
        assert_eq!(judge(&mut pace, 70, &window(1250, 300)).map(|(mib, _)| mib), Some(1188));
        // Nor is it taken back at once where it was quiet for long before.
        let mut pace = BalloonPace::default();
        assert!((0..200).step_by(10).all(|second| judge(&mut pace, second, &window(1000, 800)).is_none()));
        assert_eq!(judge(&mut pace, 200, &starved).map(|(mib, _)| mib), Some(1250));
        for second in (210..270).step_by(10) {
            assert_eq!(judge(&mut pace, second, &window(1250, 300)), None, "at {second}");
        }
        let mut pace = BalloonPace::default();
        let mut faulting = window(1000, 990);
        faulting.guest =
            Some(GuestMemory { major_faults_per_s: 100.0, usable_bytes: Some(300 * MIB), ..GuestMemory::default() });
        assert!(!sizing(&faulting).starved, "programs that start fault as well");
        faulting.guest =
            Some(GuestMemory { major_faults_per_s: 100.0, usable_bytes: Some(MIB), ..GuestMemory::default() });
        assert_eq!(judge(&mut pace, 0, &faulting).map(|(mib, _)| mib), Some(1250));
    }

    #[test]
    fn memory_that_was_not_needed_for_the_dwell_time_goes_in_steps_of_a_twentieth() {
        let mut pace = BalloonPace::default();
        let (mut balloon, mut steps) = (1000, Vec::new());
        for second in (0..2000).step_by(10) {
            if let Some((mib, reason)) = judge(&mut pace, second, &window(balloon, 600)) {
                assert_eq!(reason, Reason::MemorySlack { demand_bytes: 600 * MIB });
                assert!(mib as f64 >= balloon as f64 * 0.95, "{balloon} -> {mib}");
                pace.dwell.shrinks(at(second));
                balloon = mib;
                steps.push((second, mib));
            }
        }
        // The last size that is not worth another step: 720 would do.
        assert_eq!(steps, [(60, 950), (90, 903), (120, 858), (150, 816), (180, 776), (210, 738)]);
    }

    #[test]
    fn a_balloon_grows_by_what_its_host_can_spare_and_shrinks_all_the_same() {
        let judged = |demand_mib, spare_mib: u64| {
            let mut pace = BalloonPace::default();
            let sizing = sizing(&window(1000, demand_mib)).within(spare_mib * MIB);
            let verdicts = (0..70).step_by(10).map(|second| pace.judge(at(second), WINDOW, &sizing, &policy(), RHYTHM));
            verdicts.filter_map(|verdict| verdict.resize).map(|(bytes, _)| bytes / MIB).next()
        };
        assert_eq!([judged(1000, 500), judged(1000, 120), judged(1000, 0)], [Some(1200), Some(1120), None]);
        assert_eq!(judged(600, 0), Some(950));
    }

    #[test]
    fn what_shrinking_will_have_left_by_a_time_is_foreseen_step_by_step() {
        let mut pace = BalloonPace::default();
        for second in (0..=60).step_by(10) {
            judge(&mut pace, second, &window(1000, 600));
        }
        let foreseen = |pace: &BalloonPace, by| {
            pace.foreseen_bytes(at(60), at(by), WINDOW, &sizing(&window(1000, 600)), &policy()) / MIB
        };
        // The steps that are taken one by one above.
        assert_eq!([60, 89, 90, 150, 210, 900].map(|by| foreseen(&pace, by)), [950, 950, 903, 816, 738, 738]);
        pace.dwell.shrinks(at(60));
        assert_eq!([60, 89, 90].map(|by| foreseen(&pace, by)), [1000, 1000, 950]);
        let mut starved = window(1000, 600);
        starved.guest = Some(GuestMemory { swap_in_bytes_per_s: 5e6, ..GuestMemory::default() });
        judge(&mut pace, 70, &starved);
        assert_eq!(
            foreseen(&pace, 120),
            1000,
            "a guest that starved vouches for nothing until that has left the dwell time"
        );
    }

    #[test]
    fn what_cannot_be_sized_says_why() {
        let size = |window: Option<&MemoryWindow>| BalloonSizing::new(window, 2048 * MIB, &AGENT, &policy());
        let no_balloon = MemoryWindow { balloon_bytes: None, ..window(1, 1) };
        let touched = MemoryDemand { source: DemandSource::Host, ..MemoryDemand::known(MIB) };
        assert_eq!(size(None), Err(Unsizable::Unmeasured));
        assert_eq!(size(Some(&no_balloon)), Err(Unsizable::NoBalloon));
        for demand in [None, Some(touched)] {
            assert_eq!(size(Some(&MemoryWindow { demand, ..window(1, 1) })), Err(Unsizable::NoDemand));
        }
    }

    proptest! {
        #[test]
        fn no_step_leaves_less_than_live_use_and_reserve_or_takes_more_than_its_share(
            balloon in 1u64..4096, demands in proptest::collection::vec(0u64..4096, 8..40), step_max in 0.0..0.5f64,
        ) {
            let mut pace = BalloonPace::default();
            for (index, demand) in demands.into_iter().enumerate() {
                let agent = MemoryBounds { shrink_step_max: step_max, ..AGENT };
                let window = window(balloon, demand);
                let sizing = BalloonSizing::new(Some(&window), 2048 * MIB, &agent, &policy()).unwrap();
                let verdict = pace.judge(at(index as u64 * 10), WINDOW, &sizing, &policy(), RHYTHM);
                let Some((target, _)) = verdict.resize else { continue };
                prop_assert!((sizing.floor..=sizing.ceiling).contains(&target));
                prop_assert_eq!(target % BALLOON_STEP_BYTES, 0);
                if target < sizing.balloon {
                    prop_assert!(target >= sizing.least().min(sizing.ceiling));
                    prop_assert!(target as f64 >= sizing.balloon as f64 * (1.0 - step_max.min(0.05)) - 1.0);
                }
            }
        }
    }
}
