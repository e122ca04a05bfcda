//! Shadows of VMs whose disks have no base.

use std::time::Duration;

use gnomon_common::wire::{Base, DiskCopy, HostId, Imaged, OutcomeResult, RefusedCommand, Unshadowable, VmId};

use super::bench::{host, vm};
use super::town::{HOSTS, Town, blueprint, kind, shadowing};
use crate::io::{Input, OperatorRequest};
use crate::shadow::ShadowState;

/// A town whose productions' disks have no base, and may be copied.
pub(super) fn copying() -> Town {
    let mut policy = shadowing();
    policy.shadow.copy_disks = true;
    let mut town = Town::of(policy);
    town.copyable = true;
    town
}

pub(super) fn told(town: &Town, verb: &str) -> usize {
    town.audit.iter().filter(|line| line.contains(&format!(" {verb} "))).count()
}

/// What was ordered, but for what goes on and what is asked again.
pub(super) fn kinds(town: &Town) -> Vec<&'static str> {
    let mut kinds: Vec<_> =
        town.given.iter().map(|(_, command)| kind(&command.action)).filter(|kind| *kind != "pace").collect();
    kinds.dedup_by(|next, last| next == last && *next == "describe");
    kinds
}

pub(super) fn copies(town: &Town) -> Vec<(HostId, VmId)> {
    town.copies.keys().cloned().collect()
}

#[test]
fn its_disks_are_copied_once_the_shadow_stands_on_that_and_both_go_with_an_entry_in_the_audit_log() {
    let mut town = copying();
    town.windows(4);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
    assert_eq!(kinds(&town), ["describe", "image", "copy", "start"]);
    assert_eq!(copies(&town), [(host("a"), shadow.id)]);
    assert!(town.audit.iter().any(|line| line.contains("imaging")) && told(&town, "shadow_copied") == 1);
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    assert_eq!((town.state(), town.shadows.len(), town.copies.len()), (None, 0, 0), "{:#?}", town.audit);
    assert_eq!(told(&town, "shadow_copies_deleted"), 1, "{:#?}", town.audit);
    // First the shadow, on its host; then what it stood on.
    let retired: Vec<&HostId> =
        town.given.iter().filter(|(_, command)| kind(&command.action) == "retire").map(|(to, _)| to).collect();
    assert_eq!(retired, [&shadow.host.unwrap(), &host("a")]);
}

#[test]
fn without_a_word_for_it_it_has_no_base_as_before_and_its_owner_has_the_last_one() {
    for (by_policy, by_owner) in [(false, None), (true, Some(false)), (false, Some(true))] {
        let mut town = copying();
        town.policy.shadow.copy_disks = by_policy;
        town.terms.copy_disks = by_owner;
        town.restart_brain();
        town.windows(4);
        let may = by_owner.unwrap_or(by_policy);
        assert_eq!(town.state() == Some(ShadowState::Pacing), may, "{by_policy} {by_owner:?}: {:#?}", town.audit);
        assert_eq!(town.copies.len(), usize::from(may));
        let shadow = town.shadow();
        assert!(may || shadow.state == ShadowState::Parked && shadow.detail.contains("no layer"), "{}", shadow.detail);
    }
}

#[test]
fn a_word_that_is_given_later_counts_soon() {
    let mut town = copying();
    town.terms.copy_disks = Some(false);
    town.windows(4);
    assert_eq!(town.state(), Some(ShadowState::Parked));
    town.terms.copy_disks = None;
    town.windows(12);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
}

#[test]
fn a_word_that_is_taken_back_takes_the_copies_and_the_shadow_that_stands_on_them() {
    let mut town = copying();
    town.windows(4);
    town.terms.copy_disks = Some(false);
    town.windows(6);
    assert_eq!((town.shadows.len(), town.copies.len()), (0, 0), "{:#?}", town.audit);
    assert_eq!(town.state(), Some(ShadowState::Parked));
}

#[test]
fn a_shadow_that_moves_takes_its_copies_along_also_where_its_production_has_moved() {
    let mut town = copying();
    town.windows(4);
    let (before, first) = (copies(&town), town.shadow().host.unwrap());
    town.productions.insert(1, first.clone());
    town.windows(8);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Pacing, "{:#?}", town.audit);
    assert_ne!(shadow.host, Some(first));
    let is_on_copies = shadow.blueprint.is_none_or(|it| matches!(it.disks[0].base, Base::Copied(_)));
    assert!(is_on_copies && told(&town, "shadow_copied") >= 1);
    // It may have come to where its copies are, and taken them away with it when it left.
    assert!(town.copies.len() == 1 && before.len() == 1, "{:?}", town.copies);
}

#[test]
fn copies_that_are_lost_or_damaged_are_made_anew() {
    for damaged in [false, true] {
        let mut town = copying();
        town.windows(4);
        let id = town.shadow().id;
        match damaged {
            true => town.copies.values_mut().for_each(|whole| *whole = false),
            false => town.copies.clear(),
        }
        town.shadows.clear();
        town.windows(80);
        assert_eq!((town.state(), town.shadow().id), (Some(ShadowState::Pacing), id), "{:#?}", town.audit);
        assert_eq!(town.copies.values().collect::<Vec<_>>(), [&true], "damaged {damaged}: {:#?}", town.audit);
    }
}

#[test]
fn a_host_that_does_not_copy_or_fails_parks_it_and_one_that_is_not_ready_is_asked_again_before_that() {
    let reasons = [
        (OutcomeResult::Refused(RefusedCommand::CopiesNotAllowed), 1),
        (OutcomeResult::Unshadowable(Unshadowable::NoRoom("full".to_owned())), 1),
        (OutcomeResult::Failed { error: "its backup was cancelled".to_owned(), retryable: true }, 1),
        (OutcomeResult::Refused(RefusedCommand::UnknownVm), 4),
    ];
    for (why, times) in reasons {
        let mut town = copying();
        town.policy.shadow.cool_down_ms = 86_400_000;
        town.restart_brain();
        town.refuses.insert("image", why);
        town.windows(12);
        assert_eq!(town.state(), Some(ShadowState::Parked), "{:#?}", town.audit);
        assert_eq!(kinds(&town).iter().filter(|kind| **kind == "image").count(), times);
        assert!(town.shadows.is_empty());
    }
}

#[test]
fn a_copy_that_fails_again_and_again_is_begun_less_and_less_often_until_one_is_made() {
    let mut town = copying();
    town.failing_copies = 4;
    let mut begun: Vec<u64> = Vec::new();
    for _ in 0..100 {
        let before = kinds(&town).iter().filter(|kind| **kind == "image").count();
        town.window();
        if kinds(&town).iter().filter(|kind| **kind == "image").count() > before {
            begun.push(town.second);
        }
    }
    let pauses: Vec<u64> = begun.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(pauses, [60, 120, 240, 480], "{:#?}", town.audit);
    assert_eq!((town.state(), town.shadow().copy_failures), (Some(ShadowState::Pacing), 0));
    let mut shadow = town.shadow();
    shadow.copy_failures = u32::MAX;
    assert_eq!(town.core.parked_for(&shadow), Duration::from_hours(24));
}

#[test]
fn disks_that_cannot_be_copied_in_time_are_not_begun_with() {
    let mut town = copying();
    // A disk of 1 GiB takes 1024 s, and 54 s to be read for its checksum.
    for (speed, too_short, told) in [(1 << 20, 1_077_000, "takes 1078 s (1024 s"), (0, 53_000, "takes 54 s (0 s")] {
        (town.policy.shadow.copy_bytes_per_s_max, town.policy.shadow.copy_timeout_ms) = (speed, too_short);
        town.restart_brain();
        town.windows(12);
        let shadow = town.shadow();
        assert!(shadow.state == ShadowState::Parked && shadow.detail.contains(told), "{}", shadow.detail);
        assert!(!kinds(&town).contains(&"image"));
    }
    (town.policy.shadow.copy_bytes_per_s_max, town.policy.shadow.copy_timeout_ms) = (1 << 20, 1_078_000);
    town.restart_brain();
    town.windows(12);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
}

#[test]
fn an_answer_that_cannot_be_of_these_disks_is_no_copy() {
    let copy = DiskCopy { path: "/copies/a".to_owned(), bytes: 1 << 20, sha256: "0a".repeat(32) };
    let bad = [
        (DiskCopy { path: "copies/a".to_owned(), ..copy.clone() }, "absolute"),
        (DiskCopy { bytes: u64::MAX, ..copy.clone() }, "18446744073709551615 bytes"),
        (DiskCopy { sha256: "0A".repeat(32), ..copy.clone() }, "64 lower-case"),
    ];
    for (bad, words) in bad {
        let mut town = copying();
        let disks = vec![("vda".to_owned(), bad), ("vdb".to_owned(), DiskCopy { bytes: u64::MAX, ..copy.clone() })];
        town.refuses.insert("image", OutcomeResult::Imaged(Box::new(Imaged { took_us: 0, disks })));
        town.window();
        assert!(town.shadow().detail.contains(words), "{}", town.shadow().detail);
        town.refuses.clear();
        town.windows(40);
        assert_eq!(town.state(), Some(ShadowState::Pacing), "it is copied anew: {:#?}", town.audit);
    }
}

#[test]
fn a_description_names_no_copies() {
    let mut town = copying();
    town.terms.copy_disks = Some(false);
    let path = "/etc/shadow".to_owned();
    let mut told = blueprint("vm1");
    told.disks[0].base = Base::Copied(DiskCopy { path, bytes: 1, sha256: "0a".repeat(32) });
    town.refuses.insert("describe", OutcomeResult::Described(Box::new(told)));
    town.windows(4);
    assert_eq!(town.state(), Some(ShadowState::Parked), "{:#?}", town.audit);
    assert!(town.shadows.is_empty() && town.shadow().detail.contains("no layer"), "{}", town.shadow().detail);
}

#[test]
fn a_shadow_that_ends_while_its_disks_are_copied_does_not_wait_for_that() {
    let mut town = copying();
    town.slow_copies = true;
    town.windows(6);
    assert_eq!(town.state(), Some(ShadowState::Imaging), "{:#?}", town.audit);
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    assert_eq!((town.state(), town.copies.len()), (None, 0), "{:#?}", town.audit);
    assert_eq!(kinds(&town).last(), Some(&"retire"));
}

#[test]
fn a_word_that_is_taken_back_while_its_disks_are_copied_stops_that_at_once() {
    let mut town = copying();
    town.slow_copies = true;
    town.windows(3);
    assert_eq!((town.state(), town.copies.len()), (Some(ShadowState::Imaging), 1), "{:#?}", town.audit);
    town.terms.copy_disks = Some(false);
    town.windows(3);
    assert!(town.copies.is_empty(), "{:#?}", town.audit);
    assert_eq!(kinds(&town).iter().filter(|kind| **kind == "image").count(), 1);
    let shadow = town.shadow();
    assert!(shadow.state == ShadowState::Parked && shadow.detail.contains("no layer"), "{}", shadow.detail);
}

#[test]
fn a_shadow_that_is_not_wanted_or_has_no_production_any_more_stops_the_copy_of_its_disks() {
    for is_gone in [false, true] {
        let mut town = copying();
        town.slow_copies = true;
        town.windows(3);
        assert_eq!(town.copies.len(), 1);
        match is_gone {
            true => town.productions.clear(),
            false => town.terms.shadow = Some(false),
        }
        town.windows(if is_gone { 8 } else { 2 });
        assert_eq!((town.state(), town.copies.len()), (None, 0), "gone {is_gone}: {:#?}", town.audit);
    }
}

#[test]
fn a_shadow_that_has_to_leave_before_it_is_made_does_not_wait_for_that() {
    let mut town = copying();
    town.slow_makes = true;
    town.windows(3);
    let shadow = town.shadow();
    assert_eq!(shadow.state, ShadowState::Placed, "{:#?}", town.audit);
    town.productions.insert(1, shadow.host.clone().unwrap());
    town.windows(2);
    assert_ne!(town.shadow().host, shadow.host, "{:#?}", town.audit);
    assert_eq!(town.copies.len(), 1);
    town.terms.copy_disks = Some(false);
    town.windows(2);
    assert!(town.copies.is_empty(), "{:#?}", town.audit);
}

#[test]
fn copies_that_nobody_knows_of_are_deleted_when_their_host_connects() {
    let mut town = copying();
    town.windows(4);
    let known = copies(&town);
    town.copies.insert((host("b"), vm(77)), true);
    town.connect(&host("b"));
    town.windows(1);
    assert_eq!(copies(&town), known, "{:#?}", town.audit);
    assert!(town.notices.iter().any(|notice| notice.contains("copies of disks")), "{:?}", town.notices);
}

#[test]
fn copies_that_nobody_knows_of_are_deleted_also_where_the_first_order_comes_to_nothing() {
    let mut town = copying();
    town.windows(4);
    let known = copies(&town);
    town.copies.insert((host("b"), vm(77)), true);
    let busy = OutcomeResult::Failed { error: "libvirt does not answer".to_owned(), retryable: true };
    town.refuses.insert("retire", busy);
    town.connect(&host("b"));
    town.settle();
    let asked = |town: &Town| kinds(town).iter().filter(|kind| **kind == "retire").count();
    town.windows(7);
    assert!((2..=3).contains(&asked(&town)), "each half a minute: {:#?}", town.audit);
    town.refuses.clear();
    town.windows(4);
    assert_eq!(copies(&town), known, "{:#?}", town.audit);
    let before = asked(&town);
    town.windows(8);
    assert_eq!(asked(&town), before, "it is gone: {:#?}", town.audit);
}

fn lose(town: &mut Town, name: &str) {
    town.up.insert(host(name), false);
    town.feed(Input::HostLost { host: host(name) });
}

#[test]
fn a_host_that_is_gone_with_copies_that_do_not_fit_costs_no_production_its_shadow() {
    let mut town = copying();
    town.windows(4);
    let (first, home) = (town.shadow().id, town.shadow().host.unwrap());
    // It has a larger disk, and comes to where its shadow is: that leaves, and is made anew.
    let mut told = blueprint("vm1");
    (told.disks[0].size_bytes, told.disks[0].base) = (2 << 30, Base::Copyable);
    town.refuses.insert("describe", OutcomeResult::Described(Box::new(told)));
    lose(&mut town, "a");
    town.productions.insert(1, home.clone());
    town.windows(20);
    let shadow = town.shadow();
    assert!(shadow.id == first && shadow.detail.contains("has to delete copies"), "{shadow:?} {:#?}", town.audit);
    town.windows(80);
    let second = town.shadow();
    assert!(second.id != first && second.state == ShadowState::Pacing, "{:#?}", town.audit);
    assert!(town.audit.iter().any(|line| line.contains("has been away for too long")), "{:#?}", town.audit);
    town.up.insert(host("a"), true);
    town.connect(&host("a"));
    town.windows(4);
    assert_eq!(copies(&town), [(home, second.id)], "{:#?}", town.audit);
}

#[test]
fn a_shadow_that_waits_for_copies_to_be_deleted_is_not_written_again_and_again() {
    let mut town = copying();
    town.windows(4);
    lose(&mut town, "a");
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    town.windows(2);
    let written = town.kept.len();
    assert_eq!(town.kept.last().map(|shadow| shadow.state), Some(ShadowState::Retiring));
    town.windows(30);
    assert_eq!(town.kept.len(), written, "{:?}", town.kept.last());
    town.up.insert(host("a"), true);
    town.connect(&host("a"));
    town.windows(2);
    assert_eq!((town.copies.len(), town.kept.last().map(|it| it.state)), (0, Some(ShadowState::Retired)));
}

#[test]
fn copies_whose_place_is_not_configured_any_more_are_not_said_to_be_deleted() {
    let mut town = copying();
    town.windows(4);
    town.keeps = false;
    HOSTS.iter().for_each(|name| town.connect(&host(name)));
    town.operator(OperatorRequest::RetireShadow { vm: vm(1) });
    town.windows(4);
    assert_eq!((town.shadows.len(), town.copies.len(), told(&town, "shadow_copies_deleted")), (0, 1, 0));
    let last = town.kept.last().unwrap();
    assert_eq!(last.state, ShadowState::Retiring);
    assert!(last.detail.contains("on host a are not deleted"), "{}", last.detail);
    let retirements = |town: &Town| kinds(town).iter().filter(|kind| **kind == "retire").count();
    let before = retirements(&town);
    town.windows(12);
    assert_eq!(retirements(&town), before, "it is not asked for what it does not do");
    town.keeps = true;
    town.connect(&host("a"));
    town.windows(2);
    assert_eq!((town.copies.len(), told(&town, "shadow_copies_deleted")), (0, 1), "{:#?}", town.audit);
    assert_eq!(town.kept.last().map(|it| it.state), Some(ShadowState::Retired));
}
