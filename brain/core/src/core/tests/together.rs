//! A production and its shadow: neither goes to where the other is, or is going.

use gnomon_common::wire::{Action, HostId, LocalStorage, ShadowOrder};

use super::bench::{host, vm};
use super::town::{Town, shadowing};
use crate::Core;
use crate::io::{OperatorRequest, Scope};
use crate::policy::{Mode, Policy};
use crate::shadow::ShadowState;

fn moving(rounds: u32) -> Policy {
    let mut policy = shadowing();
    policy.shadow.every_vm = false;
    (policy.migrate.mode, policy.migrate.rounds) = (Mode::Auto, rounds);
    policy
}

/// VM 1 on host `a` has a shadow on host `b`, and host `c` has two small VMs: less room than `b`.
fn town(rounds: u32) -> Town {
    let mut town = Town::of(moving(rounds));
    town.demand.insert(1, 0.95);
    town.crowd("c", 30..32, 0.4);
    town.windows(3);
    town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
    town.windows(4);
    assert_eq!((town.shadow().host, town.state()), (Some(host("b")), Some(ShadowState::Pacing)), "{:#?}", town.audit);
    town
}

#[test]
fn a_shadow_goes_where_the_labels_are_that_its_productions_owner_asks_for() {
    for (labelled, place) in [(Some("c"), Some(host("c"))), (None, None)] {
        let mut town = Town::of(moving(2));
        town.crowd("c", 30..32, 0.4);
        town.terms.labels = "disk=nvme".parse().unwrap();
        if let Some(name) = labelled {
            town.facts.get_mut(&host(name)).unwrap().labels = town.terms.labels.clone();
            town.connect(&host(name));
        }
        town.windows(3);
        town.operator(OperatorRequest::MakeShadow { vm: vm(1) });
        town.windows(4);
        assert_eq!(town.shadow().host, place, "{:#?}", town.audit);
        if place.is_none() {
            assert_eq!(town.state(), Some(ShadowState::Parked));
            assert!(town.shadow().detail.contains("b: it lacks the label disk=nvme"), "{}", town.shadow().detail);
        }
    }
}

impl Town {
    fn crowd(&mut self, on: &str, numbers: std::ops::Range<u128>, cores: f64) {
        for number in numbers {
            self.productions.insert(number, host(on));
            self.demand.insert(number, cores);
        }
    }

    /// Where VM 1 was sent, and why.
    fn sent(&self) -> Option<(HostId, String)> {
        self.given.iter().find_map(|(_, command)| match &command.action {
            Action::Migrate(migration) if command.vm == vm(1) => Some((migration.to.clone(), command.reason.clone())),
            _ => None,
        })
    }

    /// Windows until VM 1 is sent somewhere.
    fn until_sent(&mut self) -> (HostId, String) {
        for _ in 0..20 {
            if let Some(sent) = self.sent() {
                return sent;
            }
            self.window();
        }
        panic!("it was not sent: {:#?}", self.audit)
    }

    fn said(&self, text: &str) -> bool {
        self.audit.iter().any(|line| line.contains(text))
    }
}

#[test]
fn a_production_is_sent_to_its_shadows_host_as_that_leaves_it_for_a_third_one() {
    let mut town = town(2);
    town.journey_windows = 8;
    town.crowd("a", 10..13, 0.95);
    let (to, why) = town.until_sent();
    assert_eq!(to, host("b"), "the best measured one");
    assert!(why.ends_with("; its shadow leaves host b for it"), "{why}");
    let place = |is: fn(&Action) -> bool| town.given.iter().position(|(_, command)| is(&command.action)).unwrap();
    let retires = place(|action| matches!(action, Action::Shadow(ShadowOrder::Retire)));
    assert!(retires < place(|action| matches!(action, Action::Migrate(_))), "it is told first");
    assert!(town.said("its production is on its way to the same host"), "{:#?}", town.audit);
    town.windows(5);
    assert_eq!(town.productions[&1], host("a"), "still on its way");
    assert_eq!((town.shadow().host, town.state()), (Some(host("c")), Some(ShadowState::Pacing)), "{:#?}", town.audit);
    town.windows(6);
    assert_eq!((town.productions[&1].clone(), town.shadow().host), (host("b"), Some(host("c"))));
    assert_eq!(town.shadows.len(), 1);
}

#[test]
fn a_brain_that_is_killed_meanwhile_makes_no_shadow_where_the_production_is_going() {
    let mut town = town(2);
    town.journey_windows = 12;
    // No host but the target has room for a shadow.
    town.facts.get_mut(&host("c")).unwrap().shadows = None;
    town.connect(&host("c"));
    town.window();
    town.crowd("a", 10..13, 0.95);
    assert_eq!(town.until_sent().0, host("b"));
    town.restart_brain();
    town.windows(8);
    assert_eq!(town.productions[&1], host("a"), "still on its way");
    assert!(town.shadows.is_empty(), "{:#?}", town.shadows);
    town.windows(20);
    assert_eq!(town.productions[&1], host("b"));
    assert_eq!((town.shadow().host, town.state()), (Some(host("a")), Some(ShadowState::Pacing)), "{:#?}", town.audit);
}

#[test]
fn where_both_hosts_fill_up_both_leave_and_neither_to_the_others_target() {
    let mut town = town(3);
    town.journey_windows = 4;
    // The shadow is held while its host fills up, or it would have left at once.
    let shadow = town.shadow().id;
    town.operator(OperatorRequest::Pause { scope: Scope::Vm(shadow) });
    town.crowd("b", 20..24, 0.95);
    (20..24).for_each(|number| town.operator(OperatorRequest::Pause { scope: Scope::Vm(vm(number)) }));
    town.windows(2);
    town.crowd("a", 10..13, 0.95);
    town.windows(2);
    assert_eq!((town.sent(), town.shadow().host), (None, Some(host("b"))));
    town.operator(OperatorRequest::Resume { scope: Scope::Vm(shadow) });
    let (to, why) = town.until_sent();
    assert_eq!(to, host("c"), "{:#?}", town.audit);
    let expected = "; its shadow leaves host b with it, for a third one: that fills up as well";
    assert!(why.ends_with(expected), "{why}: {:#?}", town.audit);
    assert!(town.said("its host fills up, and so does its production's: both leave"), "{:#?}", town.audit);
    // `a` is its production's until that has arrived, `c` from then on.
    town.windows(16);
    assert_eq!(town.productions[&1], host("c"));
    assert_eq!((town.shadow().host, town.state()), (Some(host("a")), Some(ShadowState::Pacing)), "{:#?}", town.audit);
}

#[test]
fn a_shadow_that_has_to_leave_leaves_the_best_host_to_its_production() {
    let mut town = town(100);
    town.crowd("a", 10..13, 0.95);
    town.windows(2);
    town.crowd("b", 20..24, 0.95);
    town.windows(3);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Parked, "{:#?}", town.audit);
    assert!(shadow.detail.contains("c: its production may have to go there"), "{}", shadow.detail);
    town.productions.insert(13, host("a"));
    // Nobody has to go any more.
    (10..14).for_each(|number| drop(town.productions.remove(&number)));
    town.windows(12);
    assert_eq!((town.shadow().host, town.state()), (Some(host("c")), Some(ShadowState::Pacing)), "{:#?}", town.audit);
}

#[test]
fn no_plan_sends_a_production_to_a_shadow_that_is_held_and_an_operator_is_told() {
    let mut town = town(2);
    let to_b = |core: &Core| core.remarks_on_move(&core.may_migrate(vm(1), &host("b")).unwrap());
    assert_eq!(to_b(&town.core), ["its shadow leaves host b for it"]);
    let shadow = town.shadow().id;
    town.operator(OperatorRequest::Pause { scope: Scope::Vm(shadow) });
    assert!(to_b(&town.core)[0].contains("stays: it is held"), "{:?}", to_b(&town.core));
    town.crowd("a", 10..13, 0.95);
    let (to, why) = town.until_sent();
    assert_eq!(to, host("c"), "not the best one, but no shadow is there");
    assert!(!why.contains("shadow"), "{why}");
    assert!(!town.notices.iter().any(|notice| notice.starts_with("plan_refused")), "{:#?}", town.notices);
}

#[test]
fn an_explanation_shows_the_shadow_and_what_it_tells() {
    let town = town(2);
    let lines = town.core.explain(vm(1)).unwrap().lines;
    let line = lines.iter().find(|line| line.starts_with("Its shadow is pacing on host b, with ")).unwrap();
    let paced = town.paced().unwrap().cpu_cores;
    assert!(line.contains(&format!("In its latest window it ran for {paced:.3} cores, waited for 0.000")), "{line}");
    assert!(line.contains("wait for 0.0 % of the CPU that they want, by shadows' word"), "{line}");
    let of_shadow = town.core.explain(town.shadow().id).unwrap().lines;
    assert!(of_shadow.contains(&format!("It is the shadow of VM {}.", vm(1))), "{of_shadow:?}");
}

#[test]
fn the_host_of_its_shadow_has_the_images_that_would_have_to_be_copied_elsewhere() {
    let mut town = town(2);
    let costs = |town: &Town, name: &str| {
        let vm_1 = &town.core.fleet.vms[&vm(1)];
        town.core.copying_costs(vm(1), vm_1, &host(name))
    };
    let gain_min = town.core.policy.migrate.gain_min;
    assert!(gain_min > 0.0);
    for (copy_storage, image_bytes, elsewhere) in [(false, 1, 0.0), (true, 0, 0.0), (true, 1, gain_min)] {
        town.core.policy.migrate.copy_storage = copy_storage;
        town.core.fleet.vms.get_mut(&vm(1)).unwrap().storage = Some(LocalStorage { own_bytes: 1, image_bytes });
        assert_eq!((costs(&town, "b"), costs(&town, "c")), (0.0, elsewhere), "{copy_storage} {image_bytes}");
    }
}
