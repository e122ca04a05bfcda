//! From demand to the size of a CPU quota. Pure arithmetic, no state.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Allocation, CpuBounds, CpuWindow};

use super::guard::Guard;
use crate::policy::CpuPolicy;

/// Quotas are multiples of this, in cores: finer steps would be resizes for nothing.
pub(crate) const QUOTA_STEP_CORES: f64 = 0.01;

/// From this share of the quota on, it counts as what holds the VM back even where no throttling is reported.
const QUOTA_USED_SHARE: f64 = 0.97;

/// Sizes a VM may have, in cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    pub(crate) floor: f64,
    pub(crate) ceiling: f64,
}

impl Bounds {
    /// What policy, agent and vCPUs allow together; `None` where they contradict each other.
    pub(crate) fn new(policy: &CpuPolicy, agent: &CpuBounds, vcpus: u32) -> Option<Self> {
        let floor = policy.floor_cores.max(agent.floor_cores).max(QUOTA_STEP_CORES);
        let ceiling = f64::from(vcpus).min(agent.ceiling_cores);
        // Inward, so that rounding never leads outside.
        let (floor, ceiling) = (round_up(floor), round_down(ceiling));
        (floor.is_finite() && ceiling.is_finite() && floor <= ceiling).then_some(Self { floor, ceiling })
    }

    /// As far as their guards are kept.
    pub(crate) fn kept_by(self, keeps: impl Fn(Guard) -> bool) -> Self {
        Self {
            floor: if keeps(Guard::Floor) { self.floor } else { QUOTA_STEP_CORES },
            ceiling: if keeps(Guard::Ceiling) { self.ceiling } else { f64::INFINITY },
        }
    }

    /// The quota that provides for a demand, headroom included.
    pub(crate) fn quota(&self, demand_cores: f64, headroom: f64) -> f64 {
        round_up(demand_cores * headroom).max(self.floor).min(self.ceiling)
    }
}

/// Steps in a core; dividing by it, unlike multiplying by 0.01, gives the nearest number to the decimal one.
const STEPS_PER_CORE: f64 = 1.0 / QUOTA_STEP_CORES;

fn round_up(cores: f64) -> f64 {
    // A thousandth of a step forgives what binary fractions do to decimal ones.
    (cores * STEPS_PER_CORE - 1e-3).ceil() / STEPS_PER_CORE
}

fn round_down(cores: f64) -> f64 {
    (cores * STEPS_PER_CORE + 1e-3).floor() / STEPS_PER_CORE
}

/// What a VM wants now, in cores, as far as its quota can give it: the time it ran and, of the time it waited, what the quota
/// made it wait. Waiting for a busy host is no reason for a larger quota.
pub(crate) fn live_cores(cpu: &CpuWindow, allocation: &Allocation) -> f64 {
    let vcpus = f64::from(allocation.vcpus);
    let (low, high) = (cpu.demand_low.mean, cpu.demand_high.mean.max(cpu.demand_low.mean));
    let quota_is_used_up = allocation.quota_cores.is_some_and(|quota| low >= QUOTA_USED_SHARE * quota);
    let throttling_is_unknown = cpu.throttled.mean <= 0.0;
    let held_back = if quota_is_used_up && throttling_is_unknown {
        high - low
    } else {
        (high - low).min(cpu.throttled.mean.max(0.0) * vcpus)
    };
    (low + held_back).min(vcpus)
}

/// What the forecast says about the time until a resize planned now has to have worked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outlook {
    /// The largest quantile of forecasts that rest on a season which has earned its say, in cores; 0 where none does.
    pub(crate) seasonal_cores: f64,
    /// The same of those that have earned it, but have less skill than policy asks for; 0 where none has.
    pub(crate) doubted_cores: f64,
    /// The largest quantile of all forecasts, in cores.
    pub(crate) most_cores: f64,
    /// The first step that the present quota would not provide for, and its quantile.
    pub(crate) outgrown: Option<(Timestamp, f64)>,
}

/// Everything that decides the size of one VM at one report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizing {
    pub(crate) bounds: Bounds,
    /// The present quota; `None` is unlimited.
    pub(crate) quota_cores: Option<f64>,
    pub(crate) vcpus: u32,
    /// Mean demand in the latest window.
    pub(crate) live_cores: f64,
    /// Largest sample of the latest window.
    pub(crate) peak_cores: f64,
    /// `None` while there is too little history.
    pub(crate) outlook: Option<Outlook>,
    /// The size that keeps the fleet's promise, in cores; `None` while nothing is promised, or not enough is known to.
    pub(crate) promised_cores: Option<f64>,
    /// What is given on top of live demand and its headroom; `None` while demand is ordinary, or the budget is used up.
    pub(crate) surplus: Option<Surplus>,
}

/// What a VM is given on top for a while, because its demand is out of the ordinary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Surplus {
    pub(crate) cores: f64,
    pub(crate) until: Timestamp,
}

impl Sizing {
    /// The CPU it can use at present.
    pub(crate) fn limit_cores(&self) -> f64 {
        let vcpus = f64::from(self.vcpus);
        self.quota_cores.map_or(vcpus, |quota| quota.min(vcpus))
    }

    /// The demand that is worth growing for.
    pub(crate) fn pressing_cores(&self) -> f64 {
        let forecast = self.outlook.map_or(0.0, |outlook| outlook.seasonal_cores);
        self.live_cores.max(forecast)
    }

    /// The quota that is needed now, and the one that would be comfortable: shrinking goes no further.
    pub(crate) fn quotas(&self, headroom: f64) -> (f64, f64) {
        let (needed, comfortable) = self.ordinary_quotas(headroom);
        let generous = self.generous_quota(headroom).unwrap_or(0.0);
        (needed.max(generous), comfortable.max(generous))
    }

    /// The quota that gives something on top of live demand, where that is due.
    pub(crate) fn generous_quota(&self, headroom: f64) -> Option<f64> {
        self.surplus.map(|surplus| self.bounds.quota(self.live_cores * headroom + surplus.cores, 1.0))
    }

    /// The two without anything on top.
    pub(crate) fn ordinary_quotas(&self, headroom: f64) -> (f64, f64) {
        let grown = self.bounds.quota(self.pressing_cores(), headroom);
        let Some(promised) = self.promised_cores else {
            return (grown, self.bounds.quota(self.possible_cores(), headroom));
        };
        // The promise has its own margins; what it did not foresee is provided for as without it.
        let promised = self.bounds.quota(promised, 1.0);
        let wanted = if self.pressing_cores() > promised { grown } else { promised };
        (wanted, wanted)
    }

    /// The demand that must fit before shrinking: bursts within the window and every forecast count as well.
    pub(crate) fn possible_cores(&self) -> f64 {
        let forecast = self.outlook.map_or(0.0, |outlook| outlook.most_cores);
        self.live_cores.max(self.peak_cores).max(forecast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::MeanMax;

    fn cpu(low: f64, high: f64, throttled: f64) -> CpuWindow {
        let same = |value| MeanMax { mean: value, max: value };
        CpuWindow {
            covered: 1.0,
            demand_low: same(low),
            demand_high: same(high),
            throttled: same(throttled),
            ..CpuWindow::default()
        }
    }

    fn allocation(quota: Option<f64>) -> Allocation {
        Allocation { quota_cores: quota, vcpus: 2, vcpus_max: 2, memory_bytes: 0 }
    }

    #[test]
    fn waiting_for_the_quota_is_demand_and_waiting_for_a_busy_host_is_not() {
        let live = |low, high, throttled, quota| live_cores(&cpu(low, high, throttled), &allocation(quota));
        assert_eq!(live(0.5, 0.9, 0.0, Some(1.0)), 0.5);
        assert!((live(0.5, 0.9, 0.1, Some(1.0)) - 0.7).abs() < 1e-9);
        assert!((live(0.2, 0.9, 0.0, Some(0.2)) - 0.9).abs() < 1e-9);
        assert!((live(0.2, 0.9, 0.1, Some(0.2)) - 0.4).abs() < 1e-9);
        assert_eq!(live(0.2, 9.0, 1.0, Some(0.2)), 2.0);
    }

    #[test]
    fn quotas_are_whole_steps_within_the_bounds() {
        let agent = CpuBounds { floor_cores: 0.055, ceiling_cores: 1.999 };
        let bounds = Bounds::new(&CpuPolicy { floor_cores: 0.01, ..CpuPolicy::default() }, &agent, 4).unwrap();
        assert_eq!(bounds, Bounds { floor: 0.06, ceiling: 1.99 });
        assert_eq!([0.0, 0.2, 0.201, 7.0].map(|demand| bounds.quota(demand, 1.1)), [0.06, 0.22, 0.23, 1.99]);
    }

    #[test]
    fn bounds_that_contradict_each_other_allow_nothing() {
        let agent = CpuBounds { floor_cores: 2.0, ceiling_cores: 1.0 };
        assert_eq!(Bounds::new(&CpuPolicy::default(), &agent, 4), None);
        assert_eq!(Bounds::new(&CpuPolicy::default(), &CpuBounds { floor_cores: 0.1, ceiling_cores: 4.0 }, 0), None);
    }
}
