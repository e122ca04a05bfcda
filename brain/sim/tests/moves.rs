//! VMs between two hosts, and hosts that die: one copy runs at most, and no VM is lost.

use std::collections::BTreeMap;

use gnomon_common::wire::HostId;
use gnomon_core::{Mode, OperatorRequest};
use gnomon_sim::demo::demo_scenario;
use gnomon_sim::{Event, HostSpec, MoveSpec, Scenario, Timed, World};

/// Three hosts with room, and two VMs on the first.
fn scenario(duration_s: u64, events: Vec<(u64, Event)>) -> Scenario {
    let mut scenario = demo_scenario(1, duration_s);
    scenario.vms.truncate(2);
    let first = scenario.hosts[0].clone();
    scenario.hosts =
        ["host-a", "host-b", "host-c"].map(|name| HostSpec { name: name.to_owned(), ..first.clone() }).to_vec();
    scenario.vms.iter_mut().for_each(|vm| vm.host = "host-a".to_owned());
    scenario.policy.migrate.mode = Mode::Auto;
    scenario.policy.migrate.timeout_ms = 60_000;
    scenario.events = events.into_iter().map(|(at_s, event)| Timed { at_s, event }).collect();
    scenario
}

fn drain(host: &str) -> Event {
    Event::Operator { request: OperatorRequest::Drain { host: HostId::new(host).unwrap() } }
}

fn dies(host: &str, for_s: u64, restarted_on: Option<&str>) -> Event {
    Event::HostDies { host: host.to_owned(), for_s, restarted_on: restarted_on.map(str::to_owned) }
}

/// Where VMs are in the end, by name, and what was said of moves and hosts.
fn live(scenario: Scenario) -> (BTreeMap<String, String>, Vec<String>) {
    let duration_s = scenario.duration_s;
    let mut world = World::new(scenario);
    let mut last = None;
    for _ in 0..duration_s {
        last = Some(world.step());
    }
    let told = |line: &String| {
        ["move", "migrat", "dies", "is up again", "starts the VMs", "parked", " runs on ", "undrain"]
            .iter()
            .any(|word| line.contains(word))
    };
    let log = world.take_log().into_iter().filter(told).collect();
    (last.unwrap().vms.into_iter().map(|vm| (vm.name, vm.host.to_string())).collect(), log)
}

#[test]
fn a_vm_in_doubt_stands_still_until_it_is_found_out_and_nothing_is_done_to_it_meanwhile() {
    let mut parked = scenario(200, vec![(20, drain("host-a"))]);
    parked.moves = MoveSpec { parked_share: 1.0, ..MoveSpec::default() };
    let (_, log) = live(parked);
    insta::assert_snapshot!(log.join("\n"));
}

#[test]
fn a_host_that_dies_comes_back_with_its_vms_and_a_move_from_it_is_none() {
    let mut dying = scenario(240, vec![(20, drain("host-a")), (28, dies("host-a", 60, None))]);
    dying.moves.mib_per_s = 20;
    let (places, log) = live(dying);
    assert!(places.values().all(|host| host != "host-a"), "it is emptied once it is back: {places:?}");
    insta::assert_snapshot!(log.join("\n"));
}

#[test]
fn where_a_copy_was_left_no_vm_is_sent() {
    // Its VMs run elsewhere when it comes back, and so they stay though that one is to be emptied and has only these to go to.
    let mut left = scenario(300, vec![(20, dies("host-a", 60, Some("host-b"))), (150, drain("host-b"))]);
    left.hosts.truncate(2);
    left.policy.migrate.stand_down_ms = 10_000;
    let (places, log) = live(left);
    assert!(places.values().all(|host| host == "host-b"), "{places:?}");
    assert!(log.iter().any(|line| line.contains("has a VM of this identity")), "{log:#?}");
}
