use gnomon_common::wire::{MemoryBounds, Migration};
use uuid::Uuid;

use super::*;

const STEP: Duration = Duration::from_secs(10);
const COST: Cost = Cost { took_us: 2_000_000, downtime_us: Some(100_000), sent_bytes: None };

fn at(second: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000 + second * 1000)
}

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn action(reason: Reason, target: Setting, before: Setting) -> PlannedAction {
    PlannedAction {
        host: host("a"),
        vm: VmId(Uuid::from_u128(1)),
        action: Action::Set(target),
        before: Some(before),
        reason,
        along: None,
        approved_by: None,
    }
}

fn quota(cores: f64) -> Setting {
    Setting::CpuQuota { cores: Some(cores) }
}

fn expects(number: u64, action: &PlannedAction, lasts: Duration) -> Option<Expectation> {
    let mut expectation = Expectation::new(CommandId { term: 1, number }, action, |_| lasts)?;
    expectation.carried_out(at(90), COST);
    Some(expectation)
}

/// Foreseen for a second, to be over thirty seconds later.
fn surge(number: u64, second: u64, demand_cores: f64) -> Expectation {
    let reason = Reason::ForecastSurge { at: at(second), demand_cores };
    expects(number, &action(reason, quota(0.9), quota(0.3)), STEP * SURGE_STEPS).unwrap()
}

fn aftermath_of(expectation: &Expectation) -> Option<Aftermath> {
    match expectation.ending() {
        Ending::Seen { aftermath, .. } => Some(aftermath),
        _ => None,
    }
}

fn over(mut expectation: Expectation) -> String {
    expectation.state = ExpectationState::Over(expectation.ending());
    expectation.to_string()
}

fn aftermath(windows: &[(u64, f64, f64)]) -> Option<Aftermath> {
    let mut surge = surge(7, 100, 0.8);
    windows.iter().for_each(|&(second, wanted, limit)| surge.see_cpu(at(second), wanted, limit, 1.1));
    aftermath_of(&surge)
}

#[test]
fn a_surge_is_judged_by_what_was_wanted_while_it_was_expected() {
    assert_eq!(aftermath(&[(110, 0.8, 0.9), (120, 0.7, 0.9)]), Some(Aftermath::Served));
    assert_eq!(aftermath(&[(110, 0.95, 0.9), (120, 0.7, 0.9)]), Some(Aftermath::Unserved));
    assert_eq!(aftermath(&[(110, 0.2, 0.9), (130, 0.25, 0.9)]), Some(Aftermath::Absent));
    assert_eq!(aftermath(&[(110, 0.28, 0.9)]), Some(Aftermath::Served), "with a headroom, 0.3 was too small for it");
    assert_eq!(aftermath(&[(100, 0.8, 0.9), (131, 0.8, 0.9)]), None, "before it and after it is not in it");
    assert_eq!(aftermath(&[]), None);
}

#[test]
fn a_second_step_up_belongs_to_the_same_surge() {
    let mut first = surge(7, 100, 0.8);
    let second = surge(8, 110, 1.2);
    assert!(first.is_same_surge(&second));
    first.widen(&second);
    assert!(!first.is_due(at(139)) && first.is_due(at(140)));
    first.see_cpu(at(135), 1.1, 1.3, 1.0);
    assert_eq!(first.command.number, 7);
    assert_eq!(over(first), "it came and was served: at most 1.10 cores were wanted, 1.20 were foreseen");
}

#[test]
fn only_what_rests_on_more_than_the_moment_is_expected() {
    let live = action(Reason::LiveDemand { demand_cores: 0.8 }, quota(0.9), quota(0.3));
    assert_eq!(expects(1, &live, STEP), None);
    let reason = Reason::ForecastSurge { at: at(100), demand_cores: 0.8 };
    let unlimited = action(reason, quota(0.9), Setting::CpuQuota { cores: None });
    assert_eq!(expects(1, &unlimited, STEP), None);
}

#[test]
fn a_size_for_the_promise_is_judged_without_headroom_from_when_it_is_in_force() {
    let promised = action(Reason::Promise { violation_rate: 0.005 }, quota(0.9), quota(0.3));
    let judged = |windows: &[(u64, f64)]| {
        let mut promise = expects(7, &promised, STEP).unwrap();
        windows.iter().for_each(|&(second, wanted)| promise.see_cpu(at(second), wanted, 0.9, 1.5));
        over(promise)
    };
    assert_eq!(
        judged(&[(90, 0.8), (100, 0.29), (101, 0.8)]),
        "it did not come: at most 0.29 cores were wanted, 0.30 were allowed before"
    );
    assert!(judged(&[(95, 0.4)]).starts_with("it came and was served"));
    assert!(judged(&[(95, 0.95)]).starts_with("it came, and the VM wanted more"));
}

#[test]
fn what_is_given_on_top_is_judged_by_whether_any_of_it_was_wanted() {
    let anomaly = |surplus_cores| Reason::Anomaly { demand_cores: 0.8, surplus_cores, until: at(600) };
    let judged = |surplus_cores, wanted| {
        let mut given = expects(7, &action(anomaly(surplus_cores), quota(1.32), quota(0.5)), STEP).unwrap();
        given.see_cpu(at(95), wanted, 1.32, 1.1);
        over(given)
    };
    assert_eq!(
        judged(0.44, 0.86),
        "it did not come: at most 0.86 cores were wanted, 0.88 were there without what was on top"
    );
    assert!(judged(0.44, 0.9).starts_with("it came and was served"));
    assert!(judged(0.44, 1.4).starts_with("it came, and the VM wanted more"));
    assert!(judged(9.0, 0.81).starts_with("it came and was served"), "its ceiling left less on top");
}

#[test]
fn memory_is_judged_by_what_the_guest_goes_on_wanting() {
    const MIB: u64 = 1 << 20;
    let memory = |bytes| Setting::Memory { bytes };
    let grown = action(Reason::LiveMemory { demand_bytes: 600 * MIB }, memory(720 * MIB), memory(512 * MIB));
    let judged = |demand_mib: u64, starved: bool| {
        let mut expectation = expects(7, &grown, STEP).unwrap();
        let sizing = BalloonSizing {
            floor: 0,
            ceiling: 2048 * MIB,
            balloon: 720 * MIB,
            demand: demand_mib * MIB,
            reserve: MemoryBounds::default().reserve_bytes,
            step_max: 0.05,
            starved,
        };
        expectation.see_cpu(at(100), 9.0, 0.1, 1.0);
        expectation.see_memory(at(100), &sizing, 1.2);
        over(expectation)
    };
    assert_eq!(judged(600, false), "it came and was served: at most 600 MiB were wanted, it had 512 MiB before");
    assert!(judged(300, false).starts_with("it did not come"));
    assert!(judged(715, false).starts_with("it came, and the VM wanted more"), "the reserve is not left");
    assert!(judged(600, true).starts_with("it came, and the VM wanted more"), "it swaps");
}

#[test]
fn a_move_is_judged_by_both_hosts_and_tells_what_it_cost() {
    let expected = Relief { from_before: 1.05, from_after: 0.8, to_after: 0.3 };
    let reason = Reason::HostFull { demand_cores: 3.8, room_cores: 3.6, expected, haul: None };
    let migration = Migration {
        to: host("b"),
        uri: String::new(),
        timeout_ms: 0,
        bandwidth_bytes_per_s: None,
        auto_converge: false,
        copy_storage: false,
    };
    let sent =
        PlannedAction { action: Action::Migrate(migration), before: None, ..action(reason, quota(1.0), quota(1.0)) };
    let claim = |cores| Claim { median_cores: cores, high_cores: cores, memory_bytes: 0 };
    let room = Room { cores: 3.6, memory_bytes: 1e9 };
    let judged = |vm: f64, source: f64, target: f64| {
        let mut relief = expects(7, &sent, STEP).unwrap();
        relief.see_source(at(95), &Load::of([claim(9.0)].into_iter()), &room);
        relief.see_target(at(96), claim(vm), &Load::of([claim(target)].into_iter()), &room);
        relief.see_source(at(97), &Load::of([claim(source)].into_iter()), &room);
        over(relief)
    };
    assert_eq!(
        judged(0.9, 2.88, 1.0),
        "it came and was served: with it host a would have been 105 % full, 105 % were foreseen; the move took 2.0 s, \
         0.100 s of it at a stand"
    );
    assert!(judged(0.9, 2.0, 1.0).starts_with("it did not come"));
    for (source, target) in [(3.7, 1.0), (2.88, 3.7)] {
        assert!(judged(0.9, source, target).starts_with("it came, and one of the two hosts was too full"));
    }
}
