//! The brain is away and a VM starves: how far its CPU quota grows at once. Pure.
//!
//! A VM starves when its quota holds it back and it wants more than it has. It gets what it may have wanted in the last seconds with some
//! headroom, one step at a time, within its ceiling, its vCPUs and the host. Growing needs no proof, so a step is never smaller than
//! it must be: too much is taken back by a drift, too little is a VM that waits.

use crate::sample::LiveLoad;

/// A quota that holds a VM back for less than this share of the time costs it nothing that one would notice.
const STARVED_SHARE: f64 = 0.15;

/// A step is at least this, so that a VM with a tenth of a core does not climb for minutes. In cores.
const STEP_MIN_CORES: f64 = 0.25;

/// Less than this is not worth a change. In cores.
const GAIN_MIN_CORES: f64 = 0.01;

/// How far grown quotas may exceed the host by rounding before the host counts as over-committed by its owner. In cores.
const OVERCOMMITTED_CORES: f64 = 0.05;

/// How fast to grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Largest growth of one step, as a factor.
    pub growth_max: f64,
    /// A quota is what was wanted times this.
    pub headroom: f64,
}

/// How far to grow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// The host's ceiling for a VM, in cores; its vCPUs bound it as well.
    pub ceiling_cores: f64,
    /// What VMs may share out, in cores.
    pub capacity_cores: f64,
    /// The limits of all running VMs together, this one's included, in cores.
    pub limits_cores: f64,
}

impl Room {
    /// How much all limits together may still grow, in cores. The host is not to be over-committed by a reflex; where it was already,
    /// that is its owner's choice, and says nothing about this VM.
    fn left_cores(&self) -> f64 {
        let left = self.capacity_cores - self.limits_cores;
        if left < -OVERCOMMITTED_CORES { f64::INFINITY } else { left.max(0.0) }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reflex {
    /// It has what it wants.
    Content,
    /// It starves and can have this, in cores.
    Grow(f64),
    /// It starves and cannot have more.
    Stuck(Wall),
}

/// What a starving VM has run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Wall {
    /// The host's ceiling for a VM, or its own vCPUs.
    #[error("it has all that its vCPUs and this host's ceiling for a VM (guard.cpu_ceiling_cores) allow")]
    Ceiling,
    /// The host is shared out.
    #[error("the limits of this host's VMs together are its capacity (host.capacity_cores)")]
    Host,
}

/// Decides for one VM.
pub fn reflex(live: &LiveLoad, pace: Pace, room: Room) -> Reflex {
    // Without a quota there is nothing that the agent could grow.
    let Some(quota_cores) = live.quota_cores else { return Reflex::Content };
    let wanted_cores = live.demand_high_cores.max * pace.headroom;
    if live.throttled.mean < STARVED_SHARE || wanted_cores < quota_cores + GAIN_MIN_CORES {
        return Reflex::Content;
    }
    let step_cores = (quota_cores * pace.growth_max).max(quota_cores + STEP_MIN_CORES);
    let ceiling_cores = room.ceiling_cores.min(f64::from(live.vcpus));
    let host_cores = quota_cores + room.left_cores();
    let target_cores = wanted_cores.min(step_cores).min(ceiling_cores).min(host_cores);
    if target_cores >= quota_cores + GAIN_MIN_CORES {
        Reflex::Grow(target_cores)
    } else {
        Reflex::Stuck(if ceiling_cores <= host_cores { Wall::Ceiling } else { Wall::Host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::MeanMax;
    use proptest::prelude::*;

    const PACE: Pace = Pace { growth_max: 1.5, headroom: 1.2 };
    const ROOM: Room = Room { ceiling_cores: 4.0, capacity_cores: 8.0, limits_cores: 2.0 };

    fn live(quota_cores: f64, demand_high_cores: f64, throttled: f64) -> LiveLoad {
        let flat = |value: f64| MeanMax { mean: value, max: value };
        LiveLoad {
            taken_ns: 0,
            covered_s: 3.0,
            run_cores: flat(demand_high_cores.min(quota_cores)),
            demand_high_cores: flat(demand_high_cores),
            throttled: flat(throttled),
            quota_cores: Some(quota_cores),
            vcpus: 2,
        }
    }

    #[test]
    fn a_starving_vm_gets_what_it_wanted_with_headroom() {
        assert_eq!(reflex(&live(1.0, 1.1, 0.8), PACE, ROOM), Reflex::Grow(1.1 * 1.2));
    }

    #[test]
    fn a_step_is_bounded_by_its_factor_and_never_tiny() {
        assert_eq!(reflex(&live(1.0, 2.0, 0.8), PACE, ROOM), Reflex::Grow(1.5));
        assert_eq!(reflex(&live(0.1, 2.0, 0.8), PACE, ROOM), Reflex::Grow(0.35));
    }

    #[test]
    fn waiting_for_a_cpu_without_being_held_back_is_not_starving_by_quota() {
        assert_eq!(reflex(&live(1.0, 2.0, 0.05), PACE, ROOM), Reflex::Content, "contention: a quota does not help");
        assert_eq!(reflex(&live(1.0, 0.5, 0.8), PACE, ROOM), Reflex::Content, "bursts within a period");
        assert_eq!(reflex(&LiveLoad { quota_cores: None, ..live(1.0, 3.0, 0.8) }, PACE, ROOM), Reflex::Content);
    }

    #[test]
    fn vcpus_and_the_hosts_ceiling_are_walls() {
        assert_eq!(reflex(&live(1.9, 3.0, 0.8), PACE, ROOM), Reflex::Grow(2.0));
        assert_eq!(reflex(&live(2.0, 3.0, 0.8), PACE, ROOM), Reflex::Stuck(Wall::Ceiling));
        assert_eq!(reflex(&live(1.0, 3.0, 0.8), PACE, Room { ceiling_cores: 1.2, ..ROOM }), Reflex::Grow(1.2));
    }

    #[test]
    fn the_host_is_a_wall_unless_its_owner_had_over_committed_it_already() {
        let full = |limits_cores| Room { capacity_cores: 4.0, limits_cores, ..ROOM };
        assert_eq!(reflex(&live(1.0, 2.0, 0.8), PACE, full(3.75)), Reflex::Grow(1.25));
        assert_eq!(reflex(&live(1.0, 2.0, 0.8), PACE, full(4.0)), Reflex::Stuck(Wall::Host));
        assert_eq!(reflex(&live(1.0, 2.0, 0.8), PACE, full(4.02)), Reflex::Stuck(Wall::Host), "rounding");
        assert_eq!(reflex(&live(1.0, 2.0, 0.8), PACE, full(9.0)), Reflex::Grow(1.5));
    }

    proptest! {
        #[test]
        fn a_reflex_only_ever_grows_and_stays_within_every_bound(
            quota in 0.01..8.0f64, demand in 0.0..20.0f64, throttled in 0.0..=1.0f64,
            ceiling_cores in 0.1..8.0f64, capacity_cores in 0.5..16.0f64, limits_cores in 0.0..16.0f64,
        ) {
            let room = Room { ceiling_cores, capacity_cores, limits_cores };
            if let Reflex::Grow(target) = reflex(&live(quota, demand, throttled), PACE, room) {
                prop_assert!(target > quota && target <= ceiling_cores.min(2.0));
                prop_assert!(target <= (quota * PACE.growth_max).max(quota + STEP_MIN_CORES));
                let together = limits_cores - quota + target;
                prop_assert!(together <= capacity_cores + 1e-9 || limits_cores > capacity_cores);
            }
        }
    }
}
