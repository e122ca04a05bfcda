//! Memory follows its guest: up at once, down in small steps, and never below what is used.

use gnomon_core::{OperatorRequest, Scope};
use gnomon_sim::demo::demo_scenario;
use gnomon_sim::world::vm_id;
use gnomon_sim::{Event, Load, MemorySpec, Scenario, Timed, World};

const MIB: u64 = 1 << 20;
/// When the guest begins to want more, and when it gives that back.
const RISE_S: u64 = 60;
const FALL_S: u64 = 120;

fn scenario(seed: u64) -> Scenario {
    let mut scenario = demo_scenario(seed, 300);
    scenario.hosts.truncate(1);
    scenario.vms.truncate(1);
    // Its CPU surges while its memory moves.
    scenario.vms[0].load =
        Load::Day { period_s: 47.0, phase_s: 10.0, base: 0.1, peak: 0.8, width_s: 12.0, shoulder_s: 1.0 };
    let wants_mib = vec![(0, 400), (RISE_S, 1400), (FALL_S, 500)];
    scenario.vms[0].memory = Some(MemorySpec { max_mib: 2048, balloon_mib: 512, wants_mib });
    scenario.policy.memory.manage = true;
    scenario.policy.memory.shrink_dwell_ms = 10_000;
    scenario.policy.memory.shrink_interval_ms = 2_000;
    scenario
}

/// What the guest wanted and had, in MiB, second by second, and the log.
fn play(scenario: Scenario) -> (Vec<(u64, u64)>, Vec<String>) {
    let duration_s = scenario.duration_s;
    let mut world = World::new(scenario);
    let seconds = (0..duration_s).map(|_| {
        let (demand, balloon) = world.step().vms[0].memory_bytes.unwrap();
        (demand / MIB, balloon / MIB)
    });
    let seconds = seconds.collect();
    (seconds, world.take_log())
}

#[test]
fn memory_grows_at_once_and_shrinks_by_a_twentieth_at_a_time() {
    for seed in 0..20 {
        let (seconds, log) = play(scenario(seed));
        let refused: Vec<&String> = log.iter().filter(|line| line.contains("refused")).collect();
        assert!(refused.is_empty(), "seed {seed}: {refused:?}");
        let grown = (RISE_S as usize..).find(|&second| seconds[second].1 >= 1400).unwrap();
        // A guest shows no more than it has, so it takes some steps of a quarter; each of a second or two.
        assert!(grown - (RISE_S as usize) <= 16, "seed {seed}: enough only after {} s", grown - RISE_S as usize);
        for pair in seconds.windows(2) {
            let ((_, before), (demand, after)) = (pair[0], pair[1]);
            if after < before {
                assert!(after * 100 >= before * 95, "seed {seed}: {before} -> {after} MiB in one step");
                assert!(after >= demand + 64, "seed {seed}: {after} MiB with a demand of {demand}");
            }
        }
        let (_, last) = seconds[seconds.len() - 1];
        assert!((600..=640).contains(&last), "seed {seed}: {last} MiB in the end, for a demand of 500");
        let held_s = FALL_S as usize..FALL_S as usize + 9;
        assert!(
            held_s.clone().all(|second| seconds[second].1 >= seconds[FALL_S as usize - 1].1),
            "seed {seed}: no dwell"
        );
    }
}

#[test]
fn a_surge_of_the_cpu_is_met_while_memory_shrinks() {
    let with = |manage| {
        let mut scenario = scenario(3);
        scenario.policy.memory.manage = manage;
        let run = gnomon_sim::run(scenario);
        let series = run.vm("shop");
        (FALL_S as usize..300).filter(|&second| series.demand[second] > series.limit[second] + 0.01).count()
    };
    let (without, with) = (with(false), with(true));
    // Each of the four surges may be met by one report later.
    assert!(with <= without + 4, "short for {with} s, {without} s without memory");
}

#[test]
fn a_release_gives_memory_back_and_the_same_seed_gives_the_same_bytes() {
    let release = || {
        let mut scenario = scenario(1);
        let request = OperatorRequest::Release { scope: Scope::Vm(vm_id(0)) };
        scenario.events = vec![Timed { at_s: 100, event: Event::Operator { request } }];
        scenario
    };
    let (seconds, log) = play(release());
    assert!(seconds[102..].iter().all(|(_, balloon)| *balloon == 512), "it had 512 MiB before Gnomon came");
    assert_eq!((seconds, log), play(release()));
}
