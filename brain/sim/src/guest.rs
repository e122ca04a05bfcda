//! Guests: what they want, second by second.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::scenario::{Load, VmSpec};

/// A guest's load with the state of its draws.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    load: Load,
    noise_cores: f64,
    wait_cores: f64,
    vcpus: f64,
    rng: ChaCha8Rng,
    /// Where each walk within the load stands: (moves made, level).
    walk: Option<(u64, f64)>,
}

/// What a guest wants in one second, and how that is blurred.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) demand_cores: f64,
    pub(crate) wait_cores: f64,
}

impl Guest {
    pub(crate) fn new(spec: &VmSpec, seed: u64, index: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        Self {
            load: spec.load.clone(),
            noise_cores: spec.noise_cores,
            wait_cores: spec.wait_cores,
            vcpus: f64::from(spec.vcpus),
            rng,
            walk: None,
        }
    }

    /// A host's own tasks, which want CPU as a guest does.
    pub(crate) fn tasks(load: Load, cores_max: f64, rng: ChaCha8Rng) -> Self {
        Self { load, noise_cores: 0.0, wait_cores: 0.0, vcpus: cores_max, rng, walk: None }
    }

    /// The second that begins at `t_s`. To be called for each second in turn.
    pub(crate) fn want(&mut self, t_s: f64) -> Want {
        let level = level(&self.load, t_s, &mut self.walk, &mut self.rng);
        let demand = level + normal(&mut self.rng) * self.noise_cores;
        // Exponential: mostly short, sometimes long, as queueing is.
        let wait = -self.wait_cores * (1.0 - self.rng.random::<f64>()).ln();
        Want { demand_cores: demand.clamp(0.0, self.vcpus), wait_cores: wait }
    }
}

/// Without noise, in cores.
fn level(load: &Load, t_s: f64, walk: &mut Option<(u64, f64)>, rng: &mut ChaCha8Rng) -> f64 {
    match load {
        Load::Flat { cores } => *cores,
        Load::Day { period_s, phase_s, base, peak, width_s, shoulder_s } => {
            let into_s = (t_s - phase_s).rem_euclid(*period_s);
            let from_foot_s = into_s.min(width_s - into_s);
            let share = if from_foot_s <= 0.0 {
                0.0
            } else if from_foot_s >= *shoulder_s {
                1.0
            } else {
                0.5 - 0.5 * (std::f64::consts::PI * from_foot_s / shoulder_s).cos()
            };
            base + (peak - base) * share
        }
        Load::Walk { step_s, step, low, high } => {
            let due = (t_s / step_s).max(0.0) as u64;
            let (made, level) = walk.get_or_insert((0, f64::midpoint(*low, *high)));
            while *made < due {
                *made += 1;
                *level += step * (2.0 * rng.random::<f64>() - 1.0);
                let reflected = if *level > *high { 2.0 * high - *level } else { (2.0 * low - *level).max(*level) };
                *level = reflected.clamp(*low, *high);
            }
            *level
        }
        Load::Shift { at_s, before, .. } if t_s < *at_s => level(before, t_s, walk, rng),
        Load::Shift { at_s, after, .. } => {
            // The second load's walk, if any, starts in its own middle.
            if t_s - at_s < 1.0 {
                *walk = None;
            }
            level(after, t_s - at_s, walk, rng)
        }
        Load::Trace { step_s, cores } if cores.is_empty() || *step_s <= 0.0 => 0.0,
        Load::Trace { step_s, cores } => cores[(t_s / step_s).max(0.0) as usize % cores.len()],
    }
}

/// Standard normal by Box and Muller's method (1958).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (a, b): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::VmTerms;

    fn guest(load: Load) -> Guest {
        let (name, host) = (String::new(), String::new());
        let spec = VmSpec {
            name,
            host,
            vcpus: 1,
            quota_cores: None,
            load,
            noise_cores: 0.0,
            wait_cores: 0.0,
            memory: None,
            memory_mib: 0,
            terms: VmTerms::default(),
        };
        Guest::new(&spec, 1, 0)
    }

    #[test]
    fn a_day_rises_and_falls_where_it_says() {
        let mut guest =
            guest(Load::Day { period_s: 100.0, phase_s: 20.0, base: 0.1, peak: 0.9, width_s: 40.0, shoulder_s: 10.0 });
        let demand: Vec<f64> = (0..220).map(|second| guest.want(f64::from(second)).demand_cores).collect();
        for (second, level) in [(0, 0.1), (20, 0.1), (25, 0.5), (30, 0.9), (50, 0.9), (55, 0.5), (60, 0.1), (130, 0.9)]
        {
            assert!((demand[second] - level).abs() < 1e-9, "at {second} s: {}", demand[second]);
        }
    }

    #[test]
    fn a_walk_stays_within_its_bounds_and_moves() {
        let mut guest = guest(Load::Walk { step_s: 1.0, step: 0.5, low: 0.2, high: 0.6 });
        let demand: Vec<f64> = (0..500).map(|second| guest.want(f64::from(second)).demand_cores).collect();
        assert!(demand.iter().all(|level| (0.2..=0.6).contains(level)));
        assert!(demand.iter().any(|level| *level < 0.25) && demand.iter().any(|level| *level > 0.55));
    }
}
