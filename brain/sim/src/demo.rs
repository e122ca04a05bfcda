//! The fleet of the demo: three hosts with a guest that has a day, one that is flat, and one that wanders.

use gnomon_common::wire::{Labels, VmTerms};
use gnomon_core::policy::{
    AnomalyPolicy, ApprovePolicy, CapacityPolicy, CpuPolicy, ForecastPolicy, MemoryPolicy, MigratePolicy, ResizePolicy,
    ShadowPolicy, WindowsPolicy,
};
use gnomon_core::{Mode, Policy};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::scenario::{HostSpec, Load, MoveSpec, Scenario, VmSpec};
use crate::world::World;

/// Names of the demo's VMs: with a day, flat, wandering.
pub const VMS: [&str; 3] = ["shop", "batch", "lab"];

/// The world of the demo, to be advanced with [`World::step`]. Length and phase of the day, levels and noise are drawn from the
/// seed; the brain is told none of them.
pub fn demo_fleet(seed: u64) -> World {
    World::new(demo_scenario(seed, 900))
}

/// The same as a scenario of that many seconds.
pub fn demo_scenario(seed: u64, duration_s: u64) -> Scenario {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let period_s: f64 = rng.random_range(50.0..120.0);
    let width_s = period_s * rng.random_range(0.2..0.3);
    let day = Load::Day {
        period_s,
        phase_s: rng.random_range(0.0..period_s),
        base: rng.random_range(0.08..0.15),
        peak: rng.random_range(0.7..0.9),
        width_s,
        shoulder_s: width_s * rng.random_range(0.0..0.25),
    };
    let walk = Load::Walk { step_s: 5.0, step: 0.1, low: 0.1, high: 0.9 };
    let loads = [day, Load::Flat { cores: 0.2 }, walk];
    let hosts = ["host-a", "host-b", "host-c"];
    Scenario {
        name: format!("demo {seed}"),
        seed,
        duration_s,
        policy: demo_policy(),
        window_s: 1,
        link_ms: 2,
        actuation_ms: 30,
        fit_ms: 20,
        moves: MoveSpec::default(),
        late_share: 0.0,
        contention: None,
        shuffles_shadows: false,
        hosts: hosts.into_iter().map(host).collect(),
        vms: VMS
            .into_iter()
            .zip(hosts)
            .zip(loads)
            .map(|((name, host), load)| VmSpec {
                name: name.to_owned(),
                host: host.to_owned(),
                vcpus: 1,
                quota_cores: None,
                load,
                noise_cores: rng.random_range(0.02..0.05),
                wait_cores: 0.01,
                memory: None,
                memory_mib: 1024,
                terms: VmTerms::default(),
            })
            .collect(),
        events: Vec::new(),
    }
}

/// A policy in which a day lasts a minute or two: one-second steps, eight seconds of lead.
pub fn demo_policy() -> Policy {
    Policy {
        mode: Mode::Auto,
        forecast: ForecastPolicy {
            resolution_ms: 1000,
            horizon_steps: 30,
            season_steps_min: 40,
            season_steps_max: 150,
            ..ForecastPolicy::default()
        },
        cpu: CpuPolicy {
            lead_ms: 8000,
            shrink_dwell_ms: 6000,
            shrink_interval_ms: 6000,
            command_ttl_ms: 3000,
            ..CpuPolicy::default()
        },
        memory: MemoryPolicy::default(),
        migrate: MigratePolicy { lead_ms: 8000, ..MigratePolicy::default() },
        capacity: CapacityPolicy::default(),
        // Its hours are minutes.
        resize: ResizePolicy { vm_per_hour_max: 10_000, ..ResizePolicy::default() },
        approve: ApprovePolicy::default(),
        windows: WindowsPolicy::default(),
        anomaly: AnomalyPolicy::default(),
        shadow: ShadowPolicy::default(),
    }
}

fn host(name: &str) -> HostSpec {
    let name = name.to_owned();
    HostSpec {
        name,
        capacity_cores: 2.0,
        floor_cores: 0.05,
        ceiling_cores: 2.0,
        dry_run: false,
        memory_mib: 8192,
        shadows_max: 0,
        tasks: None,
        zone: None,
        labels: Labels::default(),
    }
}
