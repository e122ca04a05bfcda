//! The brain is away and a VM is quiet: its CPU quota goes back towards what it was before Gnomon's first change. Pure.
//!
//! What the brain knew when it set a quota grows old while it is away; what the owner had set does not. So a VM that has been quiet for
//! long goes there in small steps, up or down, and never below what it used, or waited to use, in all that time with some headroom.

use crate::sample::LiveLoad;
use std::time::Duration;

/// A quota that holds a VM back for more than this share of the time leaves it no quiet.
const QUIET_SHARE: f64 = 0.02;

/// A step is at least this, or small quotas would creep. In cores.
const STEP_MIN_CORES: f64 = 0.05;

/// How to go back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// A VM is quiet when its quota has left it headroom for so long.
    pub quiet: Duration,
    /// Time between two steps.
    pub interval: Duration,
    /// Largest step, as a share of the quota.
    pub step: f64,
    /// A quota is at least what was used times this.
    pub headroom: f64,
}

/// For how long a VM has been quiet, and what it used meanwhile.
///
/// The peak is that of the last one to two `quiet` times: long enough to be evidence, and not for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quiet {
    lasted: Duration,
    in_bucket: Duration,
    peak_now_cores: f64,
    peak_before_cores: f64,
}

impl Quiet {
    /// Adds the last seconds, `elapsed` after they were added last.
    pub fn observe(&mut self, live: &LiveLoad, elapsed: Duration, pace: &Pace) {
        // What it ran at its busiest; and what it may have wanted while it waited for a CPU, whoever kept it waiting.
        let used_cores = live.run_cores.max.max(live.demand_high_cores.mean);
        if live.throttled.mean > QUIET_SHARE || used_cores * pace.headroom > live.limit_cores() {
            *self = Self::default();
            return;
        }
        self.lasted += elapsed;
        self.in_bucket += elapsed;
        if self.in_bucket > pace.quiet {
            (self.peak_before_cores, self.peak_now_cores) = (self.peak_now_cores, 0.0);
            self.in_bucket = Duration::ZERO;
        }
        self.peak_now_cores = self.peak_now_cores.max(used_cores);
    }

    fn peak_cores(&self) -> f64 {
        self.peak_now_cores.max(self.peak_before_cores)
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Drift {
    /// Nothing: not quiet for long enough, at the baseline, or held above it by use.
    Stay,
    /// A step: this quota in cores (`None` is unlimited), and whether that is the baseline.
    Step {
        /// What to set.
        target_cores: Option<f64>,
        /// Whether the way ends there.
        arrives: bool,
    },
}

/// Decides for one VM whose quota was `baseline_cores` before Gnomon's first change (`None`: unlimited). The interval between two steps is
/// the caller's to keep.
pub fn drift(live: &LiveLoad, baseline_cores: Option<f64>, quiet: &Quiet, pace: &Pace) -> Drift {
    if quiet.lasted < pace.quiet || crate::actuate::same_limit(live.quota_cores, baseline_cores) {
        return Drift::Stay;
    }
    let vcpus = f64::from(live.vcpus);
    let now_cores = live.limit_cores();
    let step_cores = (now_cores * pace.step).max(STEP_MIN_CORES);
    // A quota of all vCPUs or more limits nothing: from there it is no further step to a larger one.
    let goal_cores = baseline_cores.map_or(vcpus, |baseline| baseline.min(vcpus));
    let arrive = Drift::Step { target_cores: baseline_cores, arrives: true };
    if goal_cores >= now_cores {
        return match now_cores + step_cores {
            next if next < goal_cores => Drift::Step { target_cores: Some(next), arrives: false },
            _ => arrive,
        };
    }
    let least_cores = goal_cores.max(quiet.peak_cores() * pace.headroom);
    match (now_cores - step_cores).max(least_cores) {
        next if next <= goal_cores => arrive,
        next if next < now_cores - crate::actuate::ROUNDING_CORES => {
            Drift::Step { target_cores: Some(next), arrives: false }
        }
        _ => Drift::Stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::MeanMax;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);
    const PACE: Pace = Pace { quiet: Duration::from_secs(10), interval: S, step: 0.1, headroom: 1.2 };

    fn live(quota_cores: Option<f64>, run_cores: f64) -> LiveLoad {
        let flat = |value: f64| MeanMax { mean: value, max: value };
        LiveLoad {
            taken_ns: 0,
            covered_s: 3.0,
            run_cores: flat(run_cores),
            demand_high_cores: flat(run_cores),
            throttled: flat(0.0),
            quota_cores,
            vcpus: 2,
        }
    }

    fn quiet_for(seconds: u32, live: &LiveLoad) -> Quiet {
        let mut quiet = Quiet::default();
        (0..seconds).for_each(|_| quiet.observe(live, S, &PACE));
        quiet
    }

    fn step(target_cores: f64) -> Drift {
        Drift::Step { target_cores: Some(target_cores), arrives: false }
    }

    #[test]
    fn only_long_quiet_makes_a_step() {
        let live = live(Some(1.5), 0.1);
        assert_eq!(drift(&live, Some(0.5), &quiet_for(9, &live), &PACE), Drift::Stay);
        assert_eq!(drift(&live, Some(0.5), &quiet_for(10, &live), &PACE), step(1.35));
    }

    #[test]
    fn use_near_the_quota_and_throttling_end_the_quiet() {
        let calm = live(Some(1.5), 0.1);
        for noisy in [live(Some(1.5), 1.3), LiveLoad { throttled: MeanMax { mean: 0.1, max: 1.0 }, ..calm }] {
            let mut quiet = quiet_for(10, &calm);
            quiet.observe(&noisy, S, &PACE);
            assert_eq!(drift(&calm, Some(0.5), &quiet, &PACE), Drift::Stay);
        }
    }

    #[test]
    fn a_vm_that_neighbours_keep_from_running_is_not_quiet() {
        let calm = live(Some(0.5), 0.3);
        let contended = LiveLoad { demand_high_cores: MeanMax { mean: 0.7, max: 0.9 }, ..calm };
        assert_eq!(drift(&contended, Some(0.2), &quiet_for(20, &contended), &PACE), Drift::Stay);
        assert_ne!(drift(&calm, Some(0.2), &quiet_for(20, &calm), &PACE), Drift::Stay);
    }

    #[test]
    fn a_quota_is_never_lowered_below_what_was_used_and_headroom() {
        let live = live(Some(0.9), 0.7);
        let quiet = quiet_for(12, &live);
        assert_eq!(drift(&live, Some(0.5), &quiet, &PACE), step(0.7 * 1.2));
        let there = LiveLoad { quota_cores: Some(0.7 * 1.2), ..live };
        assert_eq!(drift(&there, Some(0.5), &quiet, &PACE), Drift::Stay);
    }

    #[test]
    fn a_peak_is_forgotten_after_two_quiet_times_at_most() {
        let mut quiet = quiet_for(1, &live(Some(1.5), 1.0));
        let calm = live(Some(1.5), 0.1);
        (0..10).for_each(|_| quiet.observe(&calm, S, &PACE));
        assert_eq!(quiet.peak_cores(), 1.0);
        (0..12).for_each(|_| quiet.observe(&calm, S, &PACE));
        assert_eq!(quiet.peak_cores(), 0.1);
    }

    #[test]
    fn the_baseline_is_reached_exactly_from_both_sides() {
        let arrive = |target_cores| Drift::Step { target_cores, arrives: true };
        let from = |quota_cores, baseline_cores| {
            let live = live(quota_cores, 0.1);
            drift(&live, baseline_cores, &quiet_for(10, &live), &PACE)
        };
        assert_eq!(from(Some(0.52), Some(0.5)), arrive(Some(0.5)));
        assert_eq!(from(Some(0.48), Some(0.5)), arrive(Some(0.5)));
        assert_eq!(from(Some(1.9), None), arrive(None), "all vCPUs is as good as unlimited");
        assert_eq!(from(Some(1.9), Some(3.0)), arrive(Some(3.0)));
        assert_eq!(from(Some(1.0), None), step(1.1));
        assert_eq!(from(None, Some(1.0)), step(1.8));
        assert_eq!(from(Some(0.5), Some(0.5)), Drift::Stay);
        assert_eq!(from(None, None), Drift::Stay);
    }

    proptest! {
        #[test]
        fn a_drift_comes_to_rest_and_never_lower_than_use_and_baseline(
            start in 0.1..2.0f64, baseline in prop::option::of(0.05..2.5f64), used in 0.01..1.0f64,
        ) {
            let mut now = Some(start);
            let quiet = quiet_for(10, &live(None, used));
            for steps in 0.. {
                let Drift::Step { target_cores, arrives } = drift(&live(now, used), baseline, &quiet, &PACE) else { break };
                let goal = baseline.unwrap_or(2.0);
                let (before, after) = (now.unwrap_or(2.0), target_cores.unwrap_or(2.0));
                prop_assert!(after >= goal.min(before) - 1e-9);
                prop_assert!(after >= before.min(2.0) - 1e-9 || after >= used * PACE.headroom - 1e-9 || after == goal);
                prop_assert_eq!(arrives, target_cores == baseline);
                now = target_cores;
                prop_assert!(steps < 200, "no rest");
            }
        }
    }
}
