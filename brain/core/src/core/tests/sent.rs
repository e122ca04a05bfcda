//! Copies of disks that are sent to a host that does not see those of others.

use gnomon_common::wire::{Action, OutcomeResult, Unshadowable};

use super::bench::{at, host, vm};
use super::copies::{copies, copying, kinds, told};
use super::town::{HOSTS, Town, WINDOW_S, kind};
use crate::io::{Input, OperatorRequest};
use crate::shadow::ShadowState;

/// All hosts have copies sent.
fn sending() -> Town {
    let mut town = copying();
    HOSTS.iter().for_each(|name| town.let_receive(name));
    town
}

#[test]
fn its_disks_are_sent_to_its_host_which_alone_has_them_then_and_deletes_them() {
    let mut town = sending();
    town.windows(4);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
    assert_eq!(kinds(&town), ["describe", "image", "copy", "start"]);
    let on = shadow.host.unwrap();
    assert_eq!(copies(&town), [(on.clone(), shadow.id)]);
    let words =
        [format!("host {on}: /received/"), format!("host a has deleted its own copies, which host {on} has now")];
    for words in words {
        assert!(town.audit.iter().any(|line| line.contains(&words)), "{words}: {:#?}", town.audit);
    }
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    assert_eq!((town.state(), town.shadows.len(), town.copies.len()), (None, 0, 0), "{:#?}", town.audit);
    assert_eq!((told(&town, "shadow_copied"), told(&town, "shadow_copies_deleted")), (1, 2), "{:#?}", town.audit);
    // One order does both: the shadow and what it stood on are on one host.
    assert_eq!(kinds(&town).iter().filter(|kind| **kind == "retire").count(), 1);
}

#[test]
fn a_shadow_that_moves_has_its_disks_copied_and_sent_anew() {
    let mut town = sending();
    town.windows(4);
    let (id, first) = (town.shadow().id, town.shadow().host.unwrap());
    town.productions.insert(1, first.clone());
    town.windows(12);
    let shadow = town.shadow();
    assert_eq!((shadow.id, shadow.state), (id, ShadowState::Pacing), "{:#?}", town.audit);
    let second = shadow.host.unwrap();
    assert!(second != first && copies(&town) == [(second, id)], "{:?}", town.copies);
    assert_eq!(told(&town, "shadow_copied"), 2);
}

#[test]
fn one_host_sees_copies_and_another_has_them_sent() {
    let mut town = copying();
    town.let_receive("b");
    town.windows(4);
    let (id, first) = (town.shadow().id, town.shadow().host.unwrap());
    assert_eq!(first, host("b"), "the first by name");
    assert_eq!(copies(&town), [(host("b"), id)]);
    // It has to leave: the next one sees what its production's host has.
    town.operator(OperatorRequest::Drain { host: host("b") });
    town.windows(8);
    let shadow = town.shadow();
    assert_eq!((shadow.state, shadow.host), (ShadowState::Pacing, Some(host("c"))), "{:#?}", town.audit);
    assert_eq!(copies(&town), [(host("a"), id)]);
}

#[test]
fn a_sending_that_comes_to_nothing_leaves_nothing_anywhere_before_the_next() {
    let mut town = sending();
    town.failing_copies = 1;
    town.windows(2);
    let shadow = town.shadow();
    assert_eq!((shadow.state, shadow.copies), (ShadowState::Parked, None), "{:#?}", town.audit);
    assert!(town.copies.is_empty(), "{:?}", town.copies);
    town.windows(12);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
    assert_eq!(town.copies.len(), 1);
}

#[test]
fn a_host_that_takes_no_copies_although_it_says_so_is_left_alone_for_another() {
    let mut town = sending();
    town.windows(4);
    let first = town.shadow().host.unwrap();
    for fails in [false, true] {
        let mut town = sending();
        (town.full_receiver, town.failing_copies) = if fails { (None, 1) } else { (Some(first.clone()), 0) };
        town.windows(2);
        let shadow = town.shadow();
        assert_eq!(
            (shadow.state, shadow.copies, shadow.copy_failures),
            (ShadowState::Parked, None, 1),
            "{:#?}",
            town.audit
        );
        town.windows(12);
        let shadow = town.shadow();
        assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
        assert_ne!(shadow.host.as_ref(), Some(&first), "{:#?}", town.audit);
        assert_eq!(kinds(&town).iter().filter(|kind| **kind == "image").count(), 2);
    }
}

#[test]
fn what_was_sent_goes_although_its_sender_is_gone_for_good() {
    let mut town = sending();
    town.slow_copies = true;
    town.windows(2);
    let to = town.shadow().copies.unwrap().to.unwrap();
    town.up.insert(host("a"), false);
    town.feed(Input::HostLost { host: host("a") });
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    town.windows(4);
    assert!(!town.copies.keys().any(|(on, _)| *on == to), "{:?} {:#?}", town.copies, town.audit);
    assert_eq!(told(&town, "shadow_copies_deleted"), 1, "{:#?}", town.audit);
    let asked = kinds(&town).iter().filter(|kind| **kind == "retire").count();
    town.windows(8);
    assert_eq!(kinds(&town).iter().filter(|kind| **kind == "retire").count(), asked, "{:#?}", town.audit);
    // Should it come back, it deletes its own.
    town.up.insert(host("a"), true);
    town.connect(&host("a"));
    town.windows(4);
    assert_eq!((town.state(), town.copies.len()), (None, 0), "{:?} {:#?}", town.copies, town.audit);
}

#[test]
fn whatever_ends_a_sending_both_hosts_delete_what_they_have() {
    for why in ["retire", "word", "drain", "restart"] {
        let mut town = sending();
        town.slow_copies = true;
        town.windows(2);
        assert_eq!((town.state(), town.copies.len()), (Some(ShadowState::Imaging), 2), "{:#?}", town.audit);
        let to = town.shadow().copies.unwrap().to.unwrap();
        match why {
            "retire" => town.operator(OperatorRequest::RetireShadow { vm: vm(1) }),
            "word" => town.terms.copy_disks = Some(false),
            "drain" => town.operator(OperatorRequest::Drain { host: to.clone() }),
            _ => {
                town.restart_brain();
                town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
            }
        }
        town.windows(3);
        let left: Vec<_> = town.copies.keys().filter(|(on, _)| why != "drain" || *on == to).collect();
        assert!(left.is_empty(), "{why}: {left:?} {:#?}", town.audit);
    }
}

#[test]
fn a_host_that_tells_of_what_is_being_sent_to_it_is_not_told_to_delete_that() {
    let mut town = sending();
    town.slow_copies = true;
    town.windows(2);
    let to = town.shadow().copies.unwrap().to.unwrap();
    town.connect(&to);
    town.windows(3);
    assert_eq!((town.state(), town.copies.len()), (Some(ShadowState::Imaging), 2), "{:#?}", town.audit);
    assert!(!kinds(&town).contains(&"retire"));
}

#[test]
fn copies_on_a_host_that_has_no_room_any_more_are_made_anew_for_another() {
    let mut town = sending();
    town.slow_copies = true;
    town.windows(2);
    let (id, first) = (town.shadow().id, town.shadow().copies.unwrap().to.unwrap());
    town.facts.get_mut(&first).unwrap().shadows.as_mut().unwrap().shadows_max = 0;
    town.connect(&first);
    town.slow_copies = false;
    town.copies.clear();
    let (home, image) = town.given.iter().rfind(|(_, command)| kind(&command.action) == "image").cloned().unwrap();
    town.obey(&home, &image);
    town.windows(8);
    let shadow = town.shadow();
    assert_eq!((shadow.id, shadow.state), (id, ShadowState::Pacing), "{:#?}", town.audit);
    let second = shadow.host.unwrap();
    assert!(second != first && copies(&town) == [(second, id)], "{:?} {:#?}", town.copies, town.audit);
    let words = "its copies are made anew for another host: no host has room";
    assert!(town.audit.iter().any(|line| line.contains(words)), "{:#?}", town.audit);
}

#[test]
fn disks_are_read_less_and_less_often_for_a_shadow_that_does_not_run_on_copies_that_were_sent() {
    // Its guest does not boot, with whatever memory; or its host does not make it, for a reason of its own; or fails to, again and again.
    let fails = || OutcomeResult::Failed { error: "qemu-img is missing".to_owned(), retryable: true };
    let refuses = || OutcomeResult::Unshadowable(Unshadowable::NoRoom("full".to_owned()));
    for answer in [None, Some(refuses()), Some(fails())] {
        let mut town = sending();
        match answer.clone() {
            None => town.boots_from_bytes = u64::MAX,
            Some(answer) => drop(town.refuses.insert("copy", answer)),
        }
        // From when it leaves a host until its production's disks are read again.
        let (mut left, mut pauses, mut told) = (None, Vec::new(), Vec::new());
        for _ in 0..100 {
            let images = town.given.iter().filter(|(_, command)| kind(&command.action) == "image").count();
            town.window();
            if town.given.iter().filter(|(_, command)| kind(&command.action) == "image").count() > images {
                pauses.extend(left.take().map(|left| town.second - left));
            }
            if town.state() == Some(ShadowState::Parked) && left.is_none() {
                left = Some(town.shadow().since.unix_ms() / 1_000 - at(0).unix_ms() / 1_000);
                told.push(town.shadow().detail);
            }
        }
        println!("{answer:?}: {pauses:?} {told:?}");
        for ((pause, told), parked) in pauses.iter().zip(&told).zip([60, 120, 240]) {
            assert!((parked..parked + 2 * WINDOW_S).contains(pause), "{parked}: {pauses:?} {:#?}", town.audit);
            assert!(told.ends_with(&format!("read anew for that, in {parked} s at the earliest")), "{told}");
        }
        // A host that does not make it is left alone for an hour, and there are two.
        let (tries, failures) = (if answer.is_none() { 4 } else { 2 }, town.shadow().copy_failures);
        assert!(pauses.len() >= tries - 1 && failures as usize >= tries, "{pauses:?} {:#?}", town.audit);

        // Once one runs on them for as long as a boot may take, that is forgotten.
        (town.boots_from_bytes, town.policy.shadow.cool_down_ms) = (0, 10_000);
        town.refuses.clear();
        town.restart_brain();
        let mut windows = 0;
        while town.state() != Some(ShadowState::Pacing) {
            town.window();
            windows += 1;
            assert!(windows < 1_000, "{:#?}", town.audit);
        }
        assert_eq!(town.shadow().copy_failures, failures);
        town.windows(16);
        assert_eq!((town.state(), town.shadow().copy_failures), (Some(ShadowState::Pacing), 0), "{:#?}", town.audit);
    }
}

#[test]
fn to_copy_disks_and_send_them_takes_twice_as_long_and_they_are_read_once() {
    let mut town = sending();
    (town.policy.shadow.copy_bytes_per_s_max, town.policy.shadow.copy_timeout_ms) = (1 << 20, 2_101_000);
    town.restart_brain();
    town.windows(3);
    let shadow = town.shadow();
    assert!(shadow.state == ShadowState::Parked && shadow.detail.contains("send them, 1073741824 bytes, takes 2102 s"));
    town.policy.shadow.copy_timeout_ms = 2_102_000;
    town.restart_brain();
    town.windows(12);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
    let speeds = town.given.iter().filter_map(|(_, command)| match &command.action {
        Action::Image(imaging) => Some(imaging.bandwidth_bytes_per_s),
        _ => None,
    });
    assert_eq!(speeds.collect::<Vec<_>>(), [Some(1 << 20)]);
}
