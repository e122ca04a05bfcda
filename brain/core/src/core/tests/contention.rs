//! What VMs wait for on hosts: where that sends shadows and productions, and what of it outlives the brain.

use gnomon_common::wire::{Action, HostId};

use super::bench::{at, host, vm};
use super::town::{HOSTS, Town, shadowing};
use crate::io::OperatorRequest;
use crate::plan::contention::Witness;
use crate::policy::Mode;
use crate::shadow::ShadowState;

/// A town in which only an operator's word makes shadows, with a VM on host `b` and a larger one on host `c`.
fn town() -> Town {
    let mut policy = shadowing();
    policy.shadow.every_vm = false;
    policy.migrate.mode = Mode::Auto;
    let mut town = Town::of(policy);
    town.productions.extend([(5, host("b")), (6, host("c"))]);
    town.demand.extend([(5, 0.3), (6, 0.5)]);
    town
}

#[test]
fn a_shadow_goes_to_where_requests_to_disks_take_less_even_if_more_is_taken_there() {
    let placed = |request_ms: f64| {
        let mut town = town();
        town.request_ms.insert(5, request_ms);
        town.windows(3);
        let told = town.core.host(&host("b")).unwrap().disk_wait.unwrap();
        assert!((told.request_ms - request_ms).abs() < 1e-9, "{told:?}");
        town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
        town.windows(3);
        town.shadow().host.unwrap()
    };
    assert_eq!((placed(1.0), placed(20.0)), (host("b"), host("c")));
}

#[test]
fn a_vm_that_has_to_move_goes_to_where_requests_to_disks_take_less_as_well() {
    let sent = |request_ms: f64| -> HostId {
        let mut town = town();
        town.request_ms.insert(5, request_ms);
        town.productions.extend((10..14).map(|number| (number, host("a"))));
        town.demand.extend((10..14).map(|number| (number, 0.95)));
        town.windows(12);
        let target = town.given.iter().find_map(|(_, command)| match &command.action {
            Action::Migrate(migration) => Some(migration.to.clone()),
            _ => None,
        });
        target.unwrap_or_else(|| panic!("nothing was sent: {:#?}", town.audit))
    };
    assert_eq!((sent(1.0), sent(20.0)), (host("b"), host("c")));
}

#[test]
fn what_shadows_words_are_worth_outlives_the_brain() {
    let mut town = Town::new();
    town.windows(4);
    let first = town.shadow().host.unwrap();
    town.productions.insert(5, first.clone());
    town.request_ms.insert(5, 40.0);
    town.shadows_request_ms.extend(HOSTS.map(|name| (host(name), 10.0)));
    // What the last ten minutes taught may be lost.
    town.windows(80);
    town.restart_brain();
    // It has to leave for a host of which nobody else tells.
    town.productions.insert(1, first.clone());
    town.windows(8);
    let second = town.shadow().host.unwrap();
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
    assert_ne!(second, first);
    let told = town.core.host(&second).unwrap().disk_wait.unwrap();
    assert_eq!(told.witness, Witness::Shadow);
    assert!((told.request_ms - 40.0).abs() < 1.0, "its own word is 10 ms: {told:?}");
}

#[test]
fn a_host_that_did_not_give_a_shadow_what_was_coming_takes_none_after_a_restart_either() {
    let mut town = Town::new();
    town.windows(4);
    let first = town.shadow().host.unwrap();
    town.serves.insert(first.clone(), 0.7);
    while !town.core.is_host_starved(town.now(), &first) {
        assert!(town.second < 600, "{:#?}", town.audit);
        town.window();
    }
    town.restart_brain();
    assert!(town.core.is_host_starved(town.now(), &first));
    assert!(!town.core.is_host_starved(at(town.second - 60), &first), "a clock that was ahead said that");
    town.windows(6);
    assert_ne!(town.shadow().host, Some(first.clone()));
    town.windows(60);
    assert!(!town.core.is_host_starved(town.now(), &first), "not for ever");
}
