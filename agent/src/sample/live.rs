//! The last seconds of every VM, for those who cannot wait for a window's end: the agent's own duties in [`crate::command`].
//!
//! The sampler writes at each tick, others read when they like; both hold the lock for one map operation.

use super::window::Weighted;
use gnomon_common::wire::{MeanMax, MigrationProgress, Setting, VmId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What "the last seconds" are: long enough for some tens of bandwidth periods, short enough to be now.
const SPAN_S: f64 = 3.0;

/// What is older says nothing about now: the sampler hangs. Longer than the longest sample interval.
const STALE_AFTER: Duration = Duration::from_secs(15);

/// Samples kept of a VM: the span at the shortest sample interval, and one more.
const MOMENTS_MAX: usize = 32;

/// A running VM's CPU in the last seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveLoad {
    /// When it was taken: `CLOCK_MONOTONIC`, in nanoseconds.
    pub taken_ns: u64,
    /// How many seconds the values below are made of: up to about three, or one sample where that is longer.
    pub covered_s: f64,
    /// Time run, in cores: what it certainly wanted.
    pub run_cores: MeanMax,
    /// Time run or runnable, in cores: what it wanted at most.
    pub demand_high_cores: MeanMax,
    /// Share of the time that its quota held it back, 0..=1.
    pub throttled: MeanMax,
    /// The quota that its control group enforces, in cores; `None` is unlimited.
    pub quota_cores: Option<f64>,
    /// vCPUs online.
    pub vcpus: u32,
}

impl LiveLoad {
    /// The CPU the VM can use at most, in cores: its quota or, where smaller, its vCPUs.
    pub fn limit_cores(&self) -> f64 {
        let vcpus = f64::from(self.vcpus);
        self.quota_cores.map_or(vcpus, |quota| quota.min(vcpus))
    }
}

/// The last seconds of all running VMs: cheap to clone, all clones share one state.
#[derive(Clone, Debug, Default)]
pub struct LiveLoads(Arc<Mutex<Option<Published>>>);

#[derive(Debug)]
struct Published {
    at: Instant,
    loads: BTreeMap<VmId, LiveLoad>,
}

impl LiveLoads {
    /// Everything, as of the last tick; nothing if that was long ago.
    pub fn all(&self) -> BTreeMap<VmId, LiveLoad> {
        let published = self.lock();
        let fresh = published.as_ref().filter(|published| published.at.elapsed() <= STALE_AFTER);
        fresh.map(|published| published.loads.clone()).unwrap_or_default()
    }

    /// Replaces everything.
    pub fn publish(&self, loads: BTreeMap<VmId, LiveLoad>) {
        *self.lock() = Some(Published { at: Instant::now(), loads });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Published>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What reports say of a VM that Gnomon has changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChangedVm {
    /// What it had before, one for each means that was changed.
    pub baselines: Vec<Setting>,
    /// Gnomon keeps its hands off it.
    pub stood_down: bool,
}

/// The VMs that Gnomon has changed, told by [`crate::command`] and shown in reports: cheap to clone, all clones share one state.
#[derive(Clone, Debug, Default)]
pub struct ChangedVms(Arc<Mutex<BTreeMap<VmId, ChangedVm>>>);

impl ChangedVms {
    /// One of them.
    pub fn get(&self, vm: VmId) -> Option<ChangedVm> {
        self.lock().get(&vm).cloned()
    }

    /// Replaces them all.
    pub fn publish(&self, vms: BTreeMap<VmId, ChangedVm>) {
        *self.lock() = vms;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, ChangedVm>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far migrations away from this host have come, told by [`crate::actuate::migrate`] and shown in reports: cheap to clone, all clones share
/// one state.
#[derive(Clone, Debug, Default)]
pub struct MigrationBook(Arc<Mutex<BTreeMap<VmId, MigrationProgress>>>);

impl MigrationBook {
    /// All of them.
    pub fn all(&self) -> BTreeMap<VmId, MigrationProgress> {
        self.lock().clone()
    }

    /// One has come so far.
    pub fn note(&self, vm: VmId, progress: MigrationProgress) {
        self.lock().insert(vm, progress);
    }

    /// One has ended, well or not.
    pub fn forget(&self, vm: VmId) {
        self.lock().remove(&vm);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, MigrationProgress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One sample, as far as the last seconds need it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) elapsed_s: f64,
    pub(super) run_cores: f64,
    pub(super) demand_high_cores: f64,
    pub(super) throttled: f64,
}

/// The last seconds of one VM in the making. Pure.
#[derive(Debug, Default)]
pub(super) struct Moments(VecDeque<Moment>);

impl Moments {
    /// Adds a sample.
    pub(super) fn add(&mut self, moment: Moment) {
        self.0.push_back(moment);
        let covered = |moments: &VecDeque<Moment>| moments.iter().skip(1).map(|moment| moment.elapsed_s).sum::<f64>();
        // A hundredth of slack: three samples of a second take a little less than three seconds, or a little more.
        while self.0.len() > 1 && (covered(&self.0) >= SPAN_S * 0.99 || self.0.len() > MOMENTS_MAX) {
            self.0.pop_front();
        }
    }

    /// Forgets everything: what comes next has nothing to do with it.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What they amount to; `None` where there are none.
    pub(super) fn load(&self, taken_ns: u64, quota_cores: Option<f64>, vcpus: u32) -> Option<LiveLoad> {
        let of = |value: fn(&Moment) -> f64| {
            let mut weighted = Weighted::default();
            self.0.iter().for_each(|moment| weighted.add(value(moment), moment.elapsed_s));
            weighted.finish()
        };
        (!self.0.is_empty()).then(|| LiveLoad {
            taken_ns,
            covered_s: self.0.iter().map(|moment| moment.elapsed_s).sum(),
            run_cores: of(|moment| moment.run_cores),
            demand_high_cores: of(|moment| moment.demand_high_cores),
            throttled: of(|moment| moment.throttled),
            quota_cores,
            vcpus,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moment(elapsed_s: f64, run_cores: f64) -> Moment {
        Moment { elapsed_s, run_cores, demand_high_cores: run_cores + 0.5, throttled: run_cores / 2.0 }
    }

    fn load(moments: &Moments) -> LiveLoad {
        moments.load(1, Some(0.5), 2).unwrap()
    }

    #[test]
    fn the_last_three_seconds_count_and_those_before_do_not() {
        let mut moments = Moments::default();
        assert_eq!(moments.load(1, None, 1), None);
        for run_cores in [2.0, 2.0, 0.1, 0.2, 0.3] {
            moments.add(moment(1.0, run_cores));
        }
        let load = load(&moments);
        assert_eq!((load.covered_s, load.run_cores.max), (3.0, 0.3));
        assert!((load.run_cores.mean - 0.2).abs() < 1e-9 && (load.demand_high_cores.mean - 0.7).abs() < 1e-9);
        assert!((load.throttled.mean - 0.1).abs() < 1e-9);
        assert_eq!(load.limit_cores(), 0.5);
    }

    #[test]
    fn a_long_sample_stands_alone() {
        let mut moments = Moments::default();
        moments.add(moment(10.0, 1.0));
        moments.add(moment(10.0, 0.5));
        assert_eq!((load(&moments).covered_s, load(&moments).run_cores.max), (10.0, 0.5));
    }

    proptest! {
        #[test]
        fn moments_are_bounded_and_means_lie_below_maxima(samples in prop::collection::vec((0.01..6.0f64, 0.0..4.0f64), 1..200)) {
            let mut moments = Moments::default();
            for (elapsed_s, run_cores) in samples {
                moments.add(moment(elapsed_s, run_cores));
                prop_assert!(moments.0.len() <= MOMENTS_MAX);
                let load = load(&moments);
                prop_assert!(load.run_cores.mean <= load.run_cores.max);
            }
        }
    }
}
