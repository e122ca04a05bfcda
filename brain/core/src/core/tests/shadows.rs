//! Shadows' lives, whatever fails.

use std::collections::BTreeSet;

use gnomon_common::wire::{OutcomeResult, RefusedCommand, ShadowFacts, Unshadowable, VmId};
use proptest::prelude::*;

use super::bench::{host, vm};
use super::copies::copying;
use super::town::{HOSTS, There, Town, WINDOW_S, shadowing};
use crate::Core;
use crate::io::{Input, OperatorRequest, Scope};
use crate::policy::Mode;
use crate::shadow::{ShadowRefusal, ShadowState};

#[test]
fn a_production_gets_a_shadow_on_another_host_which_paces_its_load() {
    let mut town = Town::new();
    town.windows(4);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
    assert_eq!(town.shadows.len(), 1);
    assert_ne!(shadow.host, Some(host("a")));
    let size = shadow.size.unwrap();
    assert!((size.cpu_cores - 0.1).abs() < 1e-9 && size.memory_bytes == 128 << 20, "{size:?}");
    // Fidelity 0.5 by policy: a tenth of half a core.
    assert!((town.paced().unwrap().cpu_cores - 0.05).abs() < 1e-9);
    let orders = ["describe", "copy", "start"];
    let audit = town.audit.join("\n");
    assert!(audit.contains("its production is to have a shadow") && audit.contains("wanted -> placed"), "{audit}");
    assert!(orders.iter().all(|_| audit.contains("gnomon command vm")), "{audit}");
}

#[test]
fn nothing_is_made_where_policy_or_the_owner_says_no_and_something_where_the_owner_says_yes() {
    let mut policy = shadowing();
    policy.shadow.mode = Mode::Observe;
    let mut town = Town::of(policy);
    town.windows(4);
    assert_eq!(town.state(), None);
    assert_eq!(town.core.may_make_shadow(vm(1)), Err(ShadowRefusal::Off));
    let mut policy = shadowing();
    policy.shadow.every_vm = false;
    let mut town = Town::of(policy);
    town.windows(4);
    assert_eq!(town.state(), None);
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(3);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
    assert!(matches!(town.core.may_make_shadow(vm(1)), Err(ShadowRefusal::There { .. })));
    assert_eq!(town.core.may_make_shadow(vm(7)), Err(ShadowRefusal::UnknownVm(vm(7))));
}

#[test]
fn fidelity_changes_what_a_running_shadow_does_at_once() {
    let mut town = Town::new();
    town.windows(4);
    for (fidelity, cores) in [(Some(0.0), 0.0), (Some(0.125), 0.025), (Some(1.0), 0.05), (None, 0.05)] {
        town.operator(OperatorRequest::SetFidelity { vm: vm(1), fidelity });
        let paced = town.paced().unwrap().cpu_cores;
        assert!((paced - cores).abs() < 1e-9, "{fidelity:?}: {paced}");
    }
}

#[test]
fn a_fidelity_that_changes_while_a_profile_is_on_its_way_is_told_next() {
    let mut town = Town::new();
    town.windows(4);
    town.feed(Input::Operator {
        actor: "ann".to_owned(),
        request: OperatorRequest::SetFidelity { vm: vm(1), fidelity: Some(1.0) },
    });
    assert_eq!(town.commands.len(), 1, "on its way");
    town.operator(OperatorRequest::SetFidelity { vm: vm(1), fidelity: Some(0.0) });
    assert_eq!(town.paced().unwrap().cpu_cores, 0.0);
}

#[test]
fn a_shadow_leaves_the_host_that_its_production_comes_to() {
    let mut town = Town::new();
    town.windows(4);
    let (id, before) = (town.shadow().id, town.shadow().host.unwrap());
    town.productions.insert(1, before.clone());
    town.windows(6);
    let shadow = town.shadow();
    assert_eq!((shadow.state, shadow.id), (ShadowState::Pacing, id));
    assert_ne!(shadow.host, Some(before));
    assert_eq!(town.shadows.len(), 1);
}

#[test]
fn a_shadow_leaves_a_full_host_before_any_production_and_is_parked_rather_than_chased() {
    let mut town = Town::new();
    town.windows(4);
    let first = town.shadow().host.unwrap();
    // The host's own VMs take all but what the shadow has.
    for number in 10..14 {
        town.productions.insert(number, first.clone());
        town.demand.insert(number, 0.9);
    }
    town.policy.shadow.every_vm = false;
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(5);
    let shadow = town.shadow();
    assert_ne!(shadow.host, Some(first), "{:#?}", town.audit);
    assert!(town.audit.iter().any(|line| line.contains("its host fills up, and shadows leave first")));
    assert!(!town.audit.iter().any(|line| line.contains("migrate")), "{:#?}", town.audit);
}

#[test]
fn a_shadow_is_retired_with_its_production_and_by_an_operator_who_can_have_it_back() {
    let mut town = Town::new();
    town.windows(4);
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    assert_eq!((town.state(), town.shadows.len()), (None, 0));
    town.restart_brain();
    town.windows(4);
    assert_eq!(town.state(), None, "an operator's word outlives the brain");
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(4);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
    town.productions.clear();
    town.windows(8);
    assert_eq!((town.state(), town.shadows.len()), (None, 0), "{:#?}", town.audit);
    assert!(town.audit.iter().any(|line| line.contains("its production is gone")));
}

#[test]
fn a_guest_that_does_not_come_up_is_tried_with_more_memory() {
    let mut town = Town::new();
    town.boots_from_bytes = 400 << 20;
    town.windows(60);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
    assert_eq!(shadow.size.unwrap().memory_bytes, 512 << 20);
}

#[test]
fn an_image_without_a_pacer_still_measures_its_host() {
    let mut town = Town::new();
    town.has_pacer = false;
    town.windows(12);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing);
    assert!(shadow.detail.contains("does not pace"), "{}", shadow.detail);
    assert_eq!(town.shadows.len(), 1);
}

#[test]
fn where_no_host_takes_it_a_shadow_is_parked_with_the_reasons_and_tried_again() {
    let mut town = Town::new();
    for facts in town.facts.values_mut() {
        facts.shadows = None;
    }
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.windows(3);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Parked);
    assert!(shadow.detail.contains("b: it takes no shadows; c: it takes no shadows"), "{}", shadow.detail);
    for facts in town.facts.values_mut() {
        facts.shadows = Some(ShadowFacts { shadows_max: 1, share_max: 0.25, receives: None });
    }
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.windows(12);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
}

#[test]
fn what_its_owner_or_definition_forbids_is_parked_and_not_asked_again_and_again() {
    let reasons = [
        OutcomeResult::Refused(RefusedCommand::OptedOut),
        OutcomeResult::Unshadowable(Unshadowable::Definition("Secure Boot".to_owned())),
    ];
    for why in reasons {
        let mut town = Town::new();
        town.refuses.insert("describe", why);
        town.windows(5);
        assert_eq!(town.state(), Some(ShadowState::Parked));
        let asked = town.audit.iter().filter(|line| line.contains("tell what a shadow of it is made from")).count();
        assert_eq!(asked, 1, "{:#?}", town.audit);
    }
}

#[test]
fn a_host_that_cannot_make_it_is_avoided_and_another_one_takes_it() {
    let mut town = Town::new();
    let missing = OutcomeResult::Unshadowable(Unshadowable::Missing("/images/base.qcow2".to_owned()));
    town.refuses.insert("copy", missing);
    town.windows(2);
    // Both refused: nothing is left anywhere.
    assert!(town.shadows.is_empty());
    let shadow = town.shadow();
    assert_eq!((shadow.state, shadow.avoids.len()), (ShadowState::Parked, 2), "{:#?}", town.audit);
}

#[test]
fn a_shadow_that_nobody_knows_of_is_sent_away() {
    let mut town = Town::new();
    town.windows(4);
    let stray = There { of: vm(1), memory_bytes: 1, size: None, runs: true, paced: None, unread: 1 };
    town.shadows.insert((host("c"), vm(77)), stray);
    town.windows(2);
    assert_eq!(town.shadows.len(), 1);
    assert!(town.notices.iter().any(|notice| notice.starts_with("shadow_stray")), "{:?}", town.notices);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
}

#[test]
fn a_paused_fleet_gets_no_orders() {
    let mut town = Town::new();
    town.operator(OperatorRequest::Pause { scope: Scope::Fleet });
    town.windows(6);
    assert!(town.shadows.is_empty());
    town.operator(OperatorRequest::Resume { scope: Scope::Fleet });
    town.windows(4);
    assert_eq!(town.state(), Some(ShadowState::Pacing));
}

#[test]
fn another_zone_is_preferred_to_an_emptier_host() {
    let mut town = Town::new();
    for (name, zone) in [("a", "one"), ("b", "one"), ("c", "two")] {
        town.facts.get_mut(&host(name)).unwrap().zone = Some(zone.to_owned());
    }
    town.productions.insert(5, host("c"));
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.windows(4);
    assert_eq!(town.shadow().host, Some(host("c")), "{:#?}", town.audit);
}

#[test]
fn a_shadow_goes_to_where_vms_wait_less_even_if_more_is_taken_there() {
    let placed = |waits: f64| {
        let mut town = Town::new();
        town.policy.shadow.every_vm = false;
        town.core = Core::new(town.policy.clone(), 1, 1);
        HOSTS.iter().for_each(|name| town.connect(&host(name)));
        town.productions.extend([(5, host("b")), (6, host("c"))]);
        town.demand.extend([(5, 0.3), (6, 0.5)]);
        town.waits.insert(5, waits);
        town.windows(3);
        let told = town.core.host(&host("b")).unwrap().contention.unwrap();
        town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
        town.windows(3);
        (town.shadow().host.unwrap(), told.share)
    };
    assert_eq!(placed(0.0), (host("b"), 0.0));
    let (there, share) = placed(0.2);
    assert!(there == host("c") && (share - 0.4).abs() < 1e-9, "{there}: {share}");
}

#[test]
fn a_brain_that_was_away_for_long_takes_every_shadow_up_where_it_was() {
    let mut town = Town::new();
    town.windows(6);
    let before = town.shadow();
    // Reports come in again after the brain has had time to look.
    town.second += 3600;
    town.up.values_mut().for_each(|up| *up = false);
    town.restart_brain();
    for _ in 0..4 {
        town.second += 5;
        town.core.handle_timeout(town.now());
        town.drain();
    }
    for name in HOSTS {
        town.up.insert(host(name), true);
        town.connect(&host(name));
    }
    town.windows(6);
    let after = town.shadow();
    assert_eq!((after.id, after.state, after.host), (before.id, ShadowState::Pacing, before.host), "{:#?}", town.audit);
}

#[test]
fn a_clock_that_steps_or_a_brain_that_stood_still_ends_no_shadow() {
    let mut town = Town::new();
    town.windows(6);
    let before = town.shadow().id;
    town.second += 600;
    town.core.handle_timeout(town.now());
    town.drain();
    town.settle();
    town.windows(6);
    assert_eq!((town.shadow().id, town.state()), (before, Some(ShadowState::Pacing)), "{:#?}", town.audit);
}

#[test]
fn an_operators_last_word_survives_whatever_became_of_earlier_shadows() {
    let mut policy = shadowing();
    policy.shadow.every_vm = false;
    let mut town = Town::of(policy);
    town.windows(3);
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(4);
    let away = town.shadow().host.unwrap();
    // Retired while its host is away, and wanted again meanwhile.
    town.up.insert(away.clone(), false);
    town.feed(Input::HostLost { host: away.clone() });
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    town.windows(1);
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(6);
    town.up.insert(away.clone(), true);
    town.connect(&away);
    town.windows(4);
    let id = town.shadow().id;
    town.restart_brain();
    town.windows(8);
    assert_eq!((town.shadow().id, town.state()), (id, Some(ShadowState::Pacing)), "{:#?}", town.audit);
    assert_eq!(town.shadows.len(), 1);
}

#[test]
fn one_that_cannot_go_is_no_room_for_the_vms_of_a_full_host() {
    let mut town = Town::new();
    town.policy.migrate.mode = Mode::Auto;
    town.core = Core::new(town.policy.clone(), 1, 1);
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.windows(4);
    let full = town.shadow().host.unwrap();
    town.operator(OperatorRequest::Pause { scope: Scope::Vm(vm(1)) });
    for number in 10..14 {
        town.productions.insert(number, full.clone());
        town.demand.insert(number, 0.9);
    }
    town.windows(8);
    assert_eq!(town.shadow().host, Some(full), "it is held");
    assert!(town.audit.iter().any(|line| line.contains("migrate from host")), "{:#?}", town.audit);
}

#[test]
fn a_host_that_dies_while_a_shadow_boots_or_leaves_costs_no_production_its_shadow() {
    let mut town = Town::new();
    town.boots_from_bytes = u64::MAX;
    town.windows(2);
    let (first, dead) = (town.shadow().id, town.shadow().host.unwrap());
    town.up.insert(dead.clone(), false);
    town.feed(Input::HostLost { host: dead.clone() });
    town.boots_from_bytes = 0;
    town.windows(80);
    let second = town.shadow();
    assert!(
        second.id != first && second.state == ShadowState::Pacing && second.host != Some(dead),
        "{:#?}",
        town.audit
    );
}

/// What can happen to the small world.
#[derive(Clone, Debug)]
enum Turn {
    Window,
    KillBrain,
    /// The brain dies while so many orders are on their way; the agents get those, and their answers find nobody.
    KillBrainAmid,
    LoseCommands,
    LoseAnswers,
    LinkDown(usize),
    LinkUp(usize),
    Move(usize),
    /// An operator sends the production elsewhere.
    Migrate(usize),
    /// A shadow's guest ends by itself.
    Crash,
    /// A shadow is undefined by hand.
    Vanish,
    /// Copies of disks are deleted by hand, or changed.
    LoseCopies,
    DamageCopies,
    /// The next copy of disks comes to nothing.
    FailCopy,
    /// Productions have so many vCPUs from now on, and as many GiB.
    Redefine(u32),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        6 => Just(Turn::Window),
        1 => Just(Turn::KillBrain),
        1 => Just(Turn::KillBrainAmid),
        1 => Just(Turn::LoseCommands),
        1 => Just(Turn::LoseAnswers),
        1 => (0..3usize).prop_map(Turn::LinkDown),
        2 => (0..3usize).prop_map(Turn::LinkUp),
        1 => (0..3usize).prop_map(Turn::Move),
        3 => (0..3usize).prop_map(Turn::Migrate),
        1 => Just(Turn::Crash),
        1 => Just(Turn::Vanish),
        1 => Just(Turn::LoseCopies),
        1 => Just(Turn::DamageCopies),
        1 => Just(Turn::FailCopy),
        1 => (1..=4u32).prop_map(Turn::Redefine),
    ];
    prop::collection::vec(turn, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever dies or is lost in whatever state: no shadow is made or started where its production is, or is going ([`Town`] sees to that),
    /// and once all is well there is one shadow, where it may be, and nothing besides.
    #[test]
    fn neither_orphans_nor_duplicates_are_left(turns in turns(), has_no_base in any::<bool>(), receives in any::<[bool; 3]>()) {
        let mut town = if has_no_base { copying() } else { Town::new() };
        // Hosts see each other's copies, or have them sent.
        HOSTS.iter().zip(receives).filter(|(_, receives)| *receives).for_each(|(name, _)| town.let_receive(name));
        for turn in turns {
            match turn {
                Turn::Window => town.window(),
                Turn::KillBrain => town.restart_brain(),
                Turn::KillBrainAmid => {
                    HOSTS.iter().for_each(|name| town.report(&host(name)));
                    while let Some((to, command)) = town.commands.pop_front() {
                        if town.up[&to] {
                            town.obey(&to, &command);
                        }
                    }
                    town.outcomes.clear();
                    town.second += WINDOW_S;
                    town.restart_brain();
                }
                Turn::LoseCommands => {
                    HOSTS.iter().for_each(|name| town.report(&host(name)));
                    town.commands.clear();
                    town.second += WINDOW_S;
                }
                Turn::LoseAnswers => {
                    HOSTS.iter().for_each(|name| town.report(&host(name)));
                    while let Some((to, command)) = town.commands.pop_front() {
                        if town.up[&to] {
                            town.obey(&to, &command);
                        }
                    }
                    town.outcomes.clear();
                    town.second += WINDOW_S;
                }
                Turn::LinkDown(which) => {
                    town.up.insert(host(HOSTS[which]), false);
                    town.feed(Input::HostLost { host: host(HOSTS[which]) });
                }
                Turn::LinkUp(which) => {
                    if !town.up.insert(host(HOSTS[which]), true).unwrap_or(true) {
                        town.connect(&host(HOSTS[which]));
                    }
                }
                Turn::Move(which) => {
                    town.productions.insert(1, host(HOSTS[which]));
                }
                Turn::Migrate(which) => {
                    town.operator(OperatorRequest::Migrate { vm: vm(1), to: host(HOSTS[which]) });
                }
                Turn::Crash => town.shadows.values_mut().for_each(|there| there.runs = false),
                Turn::Vanish => town.shadows.clear(),
                Turn::LoseCopies => town.copies.clear(),
                Turn::DamageCopies => town.copies.values_mut().for_each(|whole| *whole = false),
                Turn::FailCopy => town.failing_copies += 1,
                Turn::Redefine(size) => {
                    (town.definition.vcpus, town.definition.memory_bytes) = (size, u64::from(size) << 30);
                }
            }
            let running: BTreeSet<VmId> =
                town.shadows.iter().filter(|(_, there)| there.runs).map(|((_, id), _)| *id).collect();
            let copies = town.shadows.values().filter(|there| there.runs).count();
            prop_assert_eq!(running.len(), copies, "one shadow twice: {:#?}", town.audit);
        }
        for name in HOSTS {
            if !town.up.insert(host(name), true).unwrap_or(true) {
                town.connect(&host(name));
            }
        }
        town.failing_copies = 0;
        // Failures leave pauses and hosts that are avoided; all of them end.
        let mut quiet = 0;
        for _ in 0..600 {
            town.window();
            let well = town.state() == Some(ShadowState::Pacing) && town.shadows.len() == 1;
            quiet = if well { quiet + 1 } else { 0 };
            if quiet == 12 {
                break;
            }
        }
        let ((on, id), there) = town.shadows.clone().into_iter().next().expect("a shadow");
        prop_assert!(quiet == 12, "{:?} {:?}: {:#?}", town.state(), town.shadows, town.audit);
        prop_assert!(there.runs && id == town.shadow().id);
        prop_assert_eq!(there.size, town.shadow().size, "{:#?}", town.audit);
        // Of copies there are none but those that the shadow stands on, and these the brain knows: what was left is told of at each connection. Those that
        // were changed or deleted under a running shadow are seen when it is made anew.
        HOSTS.iter().for_each(|name| town.connect(&host(name)));
        town.windows(4);
        let known: Vec<_> = town.kept.iter().rev().find(|kept| kept.id == id).and_then(|kept| kept.copies.clone()).into_iter().collect();
        let is_sent_here = known.iter().all(|copies| if copies.is_sent() { copies.on == on } else { copies.to.is_none() });
        prop_assert!(is_sent_here, "{:?} on {}: {:#?}", known, on, town.audit);
        let known: Vec<_> = known.into_iter().map(|copies| (copies.on, id)).collect();
        prop_assert!(known.len() == usize::from(has_no_base), "{:?}", known);
        prop_assert!(town.copies.keys().all(|copies| known.contains(copies)), "{:?} {:?}: {:#?}", town.copies, known, town.audit);
        prop_assert_ne!(&on, &town.productions[&1]);
    }
}
