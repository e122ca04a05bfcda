//! A host that is too full gets its own VMs' spare memory back before one of them has to go.

use gnomon_common::wire::{Mode, VmTerms};
use gnomon_core::Policy;
use gnomon_core::policy::{CpuPolicy, ForecastPolicy, MemoryPolicy, MigratePolicy};
use gnomon_sim::demo::demo_scenario;
use gnomon_sim::{Load, MemorySpec, Scenario, VmSpec, World};

const MIB: u64 = 1 << 20;

/// What a host of 4096 MiB leaves to VMs.
const ROOM_MIB: u64 = 3686;

/// When one guest wants a fifth of what it did, and when another wants twice as much.
const FALL_S: u64 = 170;
const RISE_S: u64 = 150;

fn guest(name: &str, host: &str, wants_mib: Vec<(u64, u64)>, balloon_mib: u64) -> VmSpec {
    VmSpec {
        name: name.to_owned(),
        host: host.to_owned(),
        vcpus: 1,
        quota_cores: Some(0.4),
        load: Load::Flat { cores: 0.2 },
        noise_cores: 0.01,
        wait_cores: 0.0,
        memory: Some(MemorySpec { max_mib: 3072, balloon_mib, wants_mib }),
        memory_mib: 3072,
        terms: VmTerms::default(),
    }
}

/// Two guests on one host, another host empty: 1440 MiB of the first guest's 1800 are not needed any more when the second one's growth makes 3840 of both.
fn scenario(seed: u64, mode: Option<Mode>) -> Scenario {
    let mut scenario = demo_scenario(seed, 600);
    scenario.window_s = 10;
    scenario.hosts.truncate(2);
    scenario.hosts.iter_mut().for_each(|host| host.memory_mib = 4096);
    let wants_less = guest("wide", "host-a", vec![(0, 1500), (FALL_S, 300)], 1800);
    let wants_more = guest("grows", "host-a", vec![(0, 800), (RISE_S, 1700)], 960);
    scenario.vms = vec![VmSpec { terms: VmTerms { mode, ..VmTerms::default() }, ..wants_less }, wants_more];
    scenario.policy = Policy {
        mode: Mode::Auto,
        forecast: ForecastPolicy { resolution_ms: 10_000, horizon_steps: 20, ..ForecastPolicy::default() },
        cpu: CpuPolicy { lead_ms: 30_000, ..CpuPolicy::default() },
        memory: MemoryPolicy {
            manage: true,
            shrink_dwell_ms: 60_000,
            shrink_interval_ms: 10_000,
            ..MemoryPolicy::default()
        },
        migrate: MigratePolicy { mode: Mode::Auto, lead_ms: 120_000, rounds: 2, ..MigratePolicy::default() },
        ..Policy::default()
    };
    scenario
}

/// Moves, the most memory that both had together after the rise, and what they have in the end, in MiB.
fn play(scenario: Scenario) -> (usize, u64, u64) {
    let duration_s = scenario.duration_s;
    let mut world = World::new(scenario);
    let mut together = Vec::new();
    for _ in 0..duration_s {
        let balloons = world.step().vms.iter().filter_map(|vm| vm.memory_bytes).map(|(_, balloon)| balloon / MIB).sum();
        together.push(balloons);
    }
    let log = world.take_log();
    let moves = log.iter().filter(|line| line.contains(" moved to host ")).count();
    (moves, together[RISE_S as usize..].iter().copied().max().unwrap_or(0), together[duration_s as usize - 1])
}

#[test]
fn memory_that_one_guest_does_not_need_any_more_makes_room_for_another_without_a_move() {
    for seed in 0..20 {
        let (moves, most_mib, last_mib) = play(scenario(seed, None));
        assert_eq!(moves, 0, "seed {seed}");
        assert!(most_mib > ROOM_MIB, "seed {seed}: {most_mib} MiB were no reason to do anything");
        assert!(last_mib <= ROOM_MIB, "seed {seed}: {last_mib} MiB in the end");
    }
}

#[test]
fn where_it_may_not_be_taken_back_a_guest_goes() {
    for seed in 0..20 {
        // Its owner wants to be asked; nobody answers.
        let (moves, ..) = play(scenario(seed, Some(Mode::Approve)));
        assert_eq!(moves, 1, "seed {seed}");
    }
}
