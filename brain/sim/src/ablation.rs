//! Do shadows help? The same drawn worlds with them, without, with what they tell mixed up, and with their share of the hosts given to productions.
//!
//! Each world has hosts full of productions that grow, and spare hosts on which none runs. Tasks of the hosts' own, which no forecast knows, crowd some
//! of both. VMs wait as [`Contention::LAB`] says. A host that gets too full sends VMs away: whether they land where they wait little is what shadows could
//! tell. What is judged is the world's truth, not what was measured of it.

use std::collections::BTreeMap;

use gnomon_common::wire::{HostId, Labels, VmId, VmTerms};
use gnomon_core::Mode;
use gnomon_core::policy::{CpuPolicy, ForecastPolicy, MigratePolicy, Policy, ShadowPolicy};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::contention::Contention;
use crate::scenario::{HostSpec, Load, MoveSpec, Scenario, VmSpec};
use crate::world::{START, World};

const DURATION_S: u64 = 2400;
/// Before it nothing is judged: forecasts and shadows come up.
const WARM_S: usize = 600;
const HOSTS_FULL: usize = 5;
const HOSTS_SPARE: usize = 3;
const VMS_PER_HOST: usize = 4;
const CAPACITY_CORES: f64 = 4.0;
const VCPUS: u32 = 2;
/// What shadows may have of a VM's size.
const SHADOW_SHARE: f64 = 0.08;
/// How much of the VMs has one.
const SHADOWED_SHARE: f64 = 0.4;
/// A VM that waits for longer than this for each second that it runs is slowed.
const SLOWED: f64 = 0.5;
/// For so long after a move its place is judged.
const LANDED_S: usize = 300;
/// Forecasts are judged so far ahead, and so often.
const AHEAD_S: usize = 60;

/// What is done with shadows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Nothing: there are none.
    Without,
    /// They are made, and heard.
    With,
    /// They are made, and each host's tell how it is on another host.
    Shuffled,
    /// There are none, and productions may fill what they would have had.
    Given,
}

impl Arm {
    /// All, the one that the others are compared with first.
    pub const ALL: [Self; 4] = [Self::Without, Self::With, Self::Shuffled, Self::Given];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::With => "with shadows",
            Self::Shuffled => "with what they tell shuffled",
            Self::Given => "their capacity given to productions",
        }
    }
}

/// What became of a world, by its truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Share of all seconds of VMs in which one waited for more than half of what it ran.
    pub slowed: f64,
    /// Share of all seconds of VMs in which one got less than 98 % of the CPU that it wanted, by a quota or by others.
    pub short: f64,
    /// Moves that came about.
    pub moves: usize,
    /// How much longer VMs waited where they were moved to than on the best of all other hosts: seconds for each second of run, a mean over
    /// moves. `None` where nothing moved.
    pub regret: Option<f64>,
    /// Mean absolute error of the median forecast a minute ahead, as a share of mean demand.
    pub forecast_error: f64,
    /// Shadows that were there, a mean.
    pub shadows: f64,
}

/// Lives through a world.
pub fn live(seed: u64, arm: Arm) -> Judged {
    let mut world = World::new(scenario(seed, arm));
    let mut truth = Truth::default();
    for second in 0..DURATION_S as usize {
        world.advance();
        truth.take(&world, second);
    }
    let (slowed, short, seconds) = (truth.slowed as f64, truth.short as f64, truth.seconds.max(1) as f64);
    let regrets: Vec<f64> = truth.moves.iter().filter_map(|landing| truth.regret(landing)).collect();
    Judged {
        slowed: slowed / seconds,
        short: short / seconds,
        moves: truth.moves.len(),
        regret: (!regrets.is_empty()).then(|| regrets.iter().sum::<f64>() / regrets.len() as f64),
        forecast_error: truth.forecast_error(),
        shadows: truth.shadow_seconds as f64 / (DURATION_S as usize - WARM_S) as f64,
    }
}

/// A VM's arrival on a host.
#[derive(Clone, Debug)]
struct Landing {
    second: usize,
    vm: VmId,
    from: HostId,
    to: HostId,
}

/// What truly was, second by second.
#[derive(Default)]
struct Truth {
    slowed: usize,
    short: usize,
    seconds: usize,
    shadow_seconds: usize,
    /// By host: what everybody there wants of its CPU, as a share.
    wanted: BTreeMap<HostId, Vec<f64>>,
    /// By VM: what it wants, in cores.
    demand: BTreeMap<VmId, Vec<f64>>,
    home: BTreeMap<VmId, HostId>,
    moves: Vec<Landing>,
    /// The second that it is about, and what was said, in cores.
    forecasts: Vec<(VmId, usize, f64)>,
}

impl Truth {
    fn take(&mut self, world: &World, second: usize) {
        for (host, agent) in world.agents() {
            self.shadow_seconds += if second < WARM_S { 0 } else { agent.shadows.len() };
            self.wanted.entry(host.clone()).or_default().push(agent.wanted_shares().0);
            for vm in &agent.vms {
                let before = self.home.insert(vm.id, host.clone()).filter(|before| before != host);
                if let Some(from) = before {
                    self.moves.push(Landing { second, vm: vm.id, from, to: host.clone() });
                }
                self.demand.entry(vm.id).or_default().push(vm.demand_cores);
                if second < WARM_S {
                    continue;
                }
                self.seconds += 1;
                self.slowed += usize::from(vm.wait_for_run > SLOWED);
                self.short += usize::from(vm.ran_cores < 0.98 * vm.demand_cores);
                if second.is_multiple_of(AHEAD_S)
                    && let Some(forecast) = world.core().and_then(|core| core.forecast(vm.id))
                {
                    let (made_s, step_s) =
                        (forecast.made.since(START).as_secs() as usize, forecast.resolution_ms as usize / 1000);
                    let index = (second + AHEAD_S).saturating_sub(made_s) / step_s.max(1);
                    let ahead = forecast.steps.get(index).map(|step| (vm.id, made_s + index * step_s, step.p50));
                    self.forecasts.extend(ahead);
                }
            }
        }
    }

    /// How much longer a VM waits where it landed than on the best other host, over some minutes.
    fn regret(&self, landing: &Landing) -> Option<f64> {
        let curve = Contention::LAB.production;
        let demand = self.demand.get(&landing.vm)?;
        let until = (landing.second + LANDED_S).min(DURATION_S as usize);
        let waits = |host: &HostId| {
            let wanted = self.wanted.get(host)?;
            let sum: f64 = (landing.second..until)
                .map(|second| {
                    // Where it is, its own demand is none of the others'.
                    let own = if *host == landing.to { demand[second] / CAPACITY_CORES } else { 0.0 };
                    curve.wait_for_run(wanted[second] - own)
                })
                .sum();
            Some(sum / (until - landing.second).max(1) as f64)
        };
        let best =
            self.wanted.keys().filter(|host| **host != landing.from).filter_map(waits).fold(f64::INFINITY, f64::min);
        Some(waits(&landing.to)? - best)
    }

    fn forecast_error(&self) -> f64 {
        let (mut error, mut demand, mut count) = (0.0, 0.0, 0.0);
        for (vm, second, said) in &self.forecasts {
            let Some(wanted) = self.demand.get(vm) else { continue };
            // A step of ten seconds.
            let Some(step) = wanted.get(*second..*second + 10) else { continue };
            let truth = step.iter().sum::<f64>() / step.len() as f64;
            error += (said - truth).abs();
            demand += truth;
            count += 1.0;
        }
        if count > 0.0 && demand > 0.0 { error / demand } else { 0.0 }
    }
}

/// The world of a seed. What befalls it does not depend on the arm.
pub fn scenario(seed: u64, arm: Arm) -> Scenario {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let hosts: Vec<HostSpec> = (0..HOSTS_FULL + HOSTS_SPARE).map(|number| host(&mut rng, number)).collect();
    let vms = (0..HOSTS_FULL * VMS_PER_HOST).map(|number| vm(&mut rng, number)).collect();
    Scenario {
        name: format!("ablation {seed} {}", arm.title()),
        seed,
        duration_s: DURATION_S,
        policy: policy(arm),
        window_s: 10,
        link_ms: 5,
        actuation_ms: 100,
        fit_ms: 20,
        moves: MoveSpec::default(),
        late_share: 0.0,
        contention: Some(Contention::LAB),
        shuffles_shadows: arm == Arm::Shuffled,
        hosts,
        vms,
        events: Vec::new(),
    }
}

fn policy(arm: Arm) -> Policy {
    let shadows = matches!(arm, Arm::With | Arm::Shuffled);
    let migrate = MigratePolicy::default();
    // What shadows may use of the fleet, as a share of it.
    let theirs = SHADOW_SHARE * SHADOWED_SHARE * (HOSTS_FULL * VMS_PER_HOST) as f64 * f64::from(VCPUS)
        / ((HOSTS_FULL + HOSTS_SPARE) as f64 * CAPACITY_CORES);
    Policy {
        mode: Mode::Auto,
        forecast: ForecastPolicy {
            resolution_ms: 10_000,
            horizon_steps: 20,
            season_steps_min: 10,
            season_steps_max: 60,
            ..ForecastPolicy::default()
        },
        cpu: CpuPolicy { lead_ms: 30_000, shrink_dwell_ms: 60_000, shrink_interval_ms: 60_000, ..CpuPolicy::default() },
        migrate: MigratePolicy {
            mode: Mode::Auto,
            reserve_share: if arm == Arm::Given { migrate.reserve_share - theirs } else { migrate.reserve_share },
            lead_ms: 60_000,
            per_hour_max: 60,
            at_once_max: 4,
            cool_down_ms: 600_000,
            ..migrate
        },
        shadow: ShadowPolicy {
            mode: if shadows { Mode::Auto } else { Mode::Observe },
            cpu_share: SHADOW_SHARE,
            fidelity: 0.25,
            lead_ms: 60_000,
            pace_ms: 30_000,
            boot_timeout_ms: 120_000,
            ..ShadowPolicy::default()
        },
        ..Policy::default()
    }
}

fn host(rng: &mut ChaCha8Rng, number: usize) -> HostSpec {
    let (low, high) = if rng.random_bool(0.5) { (0.0, 0.4) } else { (0.8, 2.0) };
    HostSpec {
        name: format!("host-{number}"),
        capacity_cores: CAPACITY_CORES,
        floor_cores: 0.05,
        ceiling_cores: CAPACITY_CORES,
        dry_run: false,
        memory_mib: 64 << 10,
        shadows_max: 8,
        zone: None,
        labels: Labels::default(),
        tasks: Some(Load::Walk { step_s: 60.0, step: 0.3, low, high }),
    }
}

fn vm(rng: &mut ChaCha8Rng, number: usize) -> VmSpec {
    let most = f64::from(VCPUS);
    let calm = rng.random_range(0.1..0.3) * most;
    let busy = rng.random_range(0.5..0.8) * most;
    let load = if rng.random_bool(0.5) {
        Load::Day {
            period_s: rng.random_range(200.0..500.0),
            phase_s: rng.random_range(0.0..200.0),
            base: calm,
            peak: busy,
            width_s: rng.random_range(60.0..150.0),
            shoulder_s: 20.0,
        }
    } else {
        let grows_s = rng.random_range(WARM_S as f64..0.8 * DURATION_S as f64);
        let flat = |cores| Box::new(Load::Flat { cores });
        Load::Shift { at_s: grows_s, before: flat(calm), after: flat(busy) }
    };
    VmSpec {
        name: format!("vm-{number}"),
        host: format!("host-{}", number % HOSTS_FULL),
        vcpus: VCPUS,
        quota_cores: None,
        load,
        noise_cores: 0.03,
        wait_cores: 0.0,
        memory: None,
        memory_mib: 1024,
        terms: VmTerms { shadow: Some(rng.random_bool(SHADOWED_SHARE)), ..VmTerms::default() },
    }
}
