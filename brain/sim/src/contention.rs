//! How long VMs wait for a CPU beside others: a curve for productions and one for their shadows, as a laboratory's guests waited.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::guest::{Guest, normal};
use crate::scenario::HostSpec;

/// A wait for each second of run is `a * u^b`, where `u` is what everybody else wants as a share of the host's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// The ratio where others want all there is.
    pub a: f64,
    /// How fast it rises.
    pub b: f64,
    /// Standard deviation of the ratio's natural logarithm about the curve, from window to window.
    pub spread: f64,
}

impl Curve {
    /// Seconds waited for each second of run.
    pub fn wait_for_run(&self, others: f64) -> f64 {
        self.a * others.max(0.0).powf(self.b)
    }
}

/// How VMs of both kinds wait.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contention {
    /// Productions, which a quota holds back but does not make small.
    pub production: Curve,
    /// Shadows of a tenth of the size.
    pub shadow: Curve,
}

impl Contention {
    /// As `cargo xtask bench contention` fitted it to guests on a machine of two CPUs (docs/shadows.md has the table).
    pub const LAB: Self = Self {
        production: Curve { a: 0.5585, b: 1.521, spread: 0.35 },
        shadow: Curve { a: 1.1264, b: 0.733, spread: 0.174 },
    };
}

/// What a host's VMs wait for.
#[derive(Clone, Debug)]
pub(crate) struct Crowd {
    model: Contention,
    tasks: Option<Guest>,
    /// What they and the VMs want of the host's CPU, as a share of it, in the latest second.
    latest: f64,
    /// The sum of it over the window so far, and of how many seconds.
    window: (f64, u32),
    rng: ChaCha8Rng,
}

impl Crowd {
    /// The number tells its draws from those of other hosts and of guests.
    pub(crate) fn new(model: Contention, spec: &HostSpec, seed: u64, number: u64) -> Self {
        let stream = |of: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(u64::MAX - 2 * number - of);
            rng
        };
        let tasks = spec.tasks.clone().map(|load| Guest::tasks(load, spec.capacity_cores, stream(0)));
        Self { model, tasks, latest: 0.0, window: (0.0, 0), rng: stream(1) }
    }

    /// Lets a second pass in which VMs want so much.
    pub(crate) fn pass(&mut self, t_s: f64, vms_cores: f64, capacity_cores: f64) {
        let tasks_cores = self.tasks.as_mut().map_or(0.0, |tasks| tasks.want(t_s).demand_cores);
        self.latest = (vms_cores + tasks_cores) / capacity_cores;
        self.window.0 += self.latest;
        self.window.1 += 1;
    }

    /// Seconds that a VM waits for each that it runs, which itself wants so much of the host.
    pub(crate) fn wait_for_run(&self, own_share: f64) -> f64 {
        self.model.production.wait_for_run(self.latest - own_share)
    }

    /// The same for a shadow, of whose host others want so much.
    pub(crate) fn shadow_waits(&mut self, others_share: f64) -> f64 {
        let curve = self.model.shadow;
        curve.wait_for_run(others_share) * (curve.spread * normal(&mut self.rng)).exp()
    }

    /// By what factor a production waits longer than others.
    pub(crate) fn luck(&mut self) -> f64 {
        (self.model.production.spread * normal(&mut self.rng)).exp()
    }

    /// What everybody wants of the host's CPU, as a share of it: in the latest second, and as the mean of the window so far.
    pub(crate) fn wanted_shares(&self) -> (f64, f64) {
        (self.latest, self.window.0 / f64::from(self.window.1.max(1)))
    }

    /// Begins the next window.
    pub(crate) fn end_window(&mut self) {
        self.window = (0.0, 0);
    }
}
