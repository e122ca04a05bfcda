//! Shadows that run and come to another size, whatever fails meanwhile.

use gnomon_common::wire::{HostId, OutcomeResult, ShadowOrder, ShadowSize, Unshadowable};

use super::bench::host;
use super::town::{Town, WINDOW_S, kind};
use crate::io::Input;
use crate::shadow::ShadowState;

const MIB: u64 = 1 << 20;

/// A production of one vCPU and 1 GiB with a shadow that paces.
fn pacing() -> Town {
    let mut town = Town::new();
    town.windows(6);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
    town.given.clear();
    town
}

/// The sizes that were ordered, in their order.
fn resizes(town: &Town) -> Vec<ShadowSize> {
    let size = |action: &_| match action {
        gnomon_common::wire::Action::Shadow(ShadowOrder::Resize(size)) => Some(*size),
        _ => None,
    };
    town.given.iter().filter_map(|(_, command)| size(&command.action)).collect()
}

fn given(town: &Town, order: &str) -> usize {
    town.given.iter().filter(|(_, command)| kind(&command.action) == order).count()
}

/// What the shadow may use on its host, which is what the brain says that it has.
fn size(town: &Town) -> ShadowSize {
    let (on, there) = town.shadows.iter().next().unwrap();
    let shadow = town.shadow();
    assert_eq!((Some(&on.0), shadow.size), (shadow.host.as_ref(), there.size), "{:#?}", town.audit);
    shadow.size.unwrap()
}

fn fails() -> OutcomeResult {
    OutcomeResult::Failed { error: "libvirt does not answer".to_owned(), retryable: true }
}

#[test]
fn a_shadow_follows_its_production_s_size_while_it_runs() {
    let mut town = pacing();
    let before = size(&town);
    town.definition.vcpus = 4;
    town.windows(8);
    let after = ShadowSize { cpu_cores: 0.4, cpu_weight: 25, ..before };
    assert_eq!((town.state(), size(&town)), (Some(ShadowState::Pacing), after), "{:#?}", town.audit);
    assert_eq!(resizes(&town), [after]);
    assert_eq!((given(&town, "retire"), given(&town, "copy")), (0, 0));
    let audit = town.audit.join("\n");
    assert!(audit.contains("pacing -> resizing: 0.10 cores -> 0.40 cores"), "{audit}");
    assert!(audit.contains("resizing -> pacing: it was resized"), "{audit}");
    // What it is to do is held by the new quota.
    assert!(town.paced().is_some());
    town.definition.vcpus = 1;
    town.windows(8);
    assert_eq!(size(&town), before);
}

#[test]
fn a_share_that_policy_changes_and_what_no_window_tells_reach_a_shadow_that_runs() {
    let mut town = pacing();
    town.policy.shadow.cpu_share = 0.2;
    town.restart_brain();
    town.windows(8);
    let shared = size(&town);
    assert!((shared.cpu_cores - 0.2).abs() < 1e-9 && shared.cpu_weight == 100, "{shared:?}");
    let audited = town.audit.len();
    (town.definition.cpu_weight, town.definition.disk_bytes_per_s_max) = (300, Some(400 * MIB));
    // It is looked at every ten minutes.
    town.windows(70);
    assert_eq!(size(&town), ShadowSize { cpu_weight: 300, disk_bytes_per_s: Some(40 * MIB), ..shared });
    assert_eq!(resizes(&town).len(), 2, "{:#?}", town.audit);
    let looks = |line: &String| line.contains("tell what a shadow of it is made from");
    assert!(given(&town, "describe") >= 2 && town.audit.iter().any(looks));
    assert!(!town.audit[audited..].iter().any(looks), "another look is no news: {:#?}", town.audit);
}

#[test]
fn memory_grows_beyond_its_definition_by_making_it_anew_and_shrinks_in_place() {
    let mut town = pacing();
    town.definition.memory_bytes = 4096 * MIB;
    town.windows(12);
    let large = size(&town);
    assert_eq!((town.state(), large.memory_bytes), (Some(ShadowState::Pacing), 410 * MIB), "{:#?}", town.audit);
    assert_eq!((given(&town, "resize"), given(&town, "retire"), given(&town, "copy")), (0, 1, 1));
    assert!(town.audit.iter().any(|line| line.contains("it is made anew, since it is not defined for that")));
    town.definition.memory_bytes = 2048 * MIB;
    town.windows(8);
    let small = ShadowSize { memory_bytes: 205 * MIB, ..large };
    assert_eq!((size(&town), resizes(&town)), (small, vec![small]), "{:#?}", town.audit);
    // And back within what it is defined with.
    town.definition.memory_bytes = 4096 * MIB;
    town.windows(8);
    assert_eq!((size(&town), given(&town, "copy")), (large, 1));
}

#[test]
fn one_that_cannot_be_resized_gets_back_what_it_had_and_is_tried_again_much_later() {
    let mut town = pacing();
    let before = size(&town);
    town.definition.vcpus = 4;
    town.refuses.insert("resize", fails());
    for _ in 0..60 {
        town.window();
        if town.shadow().detail.contains("given back") {
            break;
        }
    }
    assert_eq!(town.state(), Some(ShadowState::Resizing), "{:#?}", town.audit);
    town.refuses.clear();
    town.windows(6);
    assert_eq!((town.state(), size(&town)), (Some(ShadowState::Pacing), before), "{:#?}", town.audit);
    let ordered = resizes(&town);
    let (forth, back) = ordered.split_at(4);
    assert!(forth.iter().all(|to| to.cpu_cores == 0.4), "{ordered:?}");
    assert!(!back.is_empty() && back.iter().all(|to| *to == before), "{ordered:?}");
    town.windows(300);
    assert_eq!(resizes(&town).len(), ordered.len(), "not within the hour");
    town.windows(80);
    assert!((size(&town).cpu_cores - 0.4).abs() < 1e-9);
}

#[test]
fn one_of_which_nobody_knows_how_large_it_is_is_made_anew() {
    let mut town = pacing();
    town.definition.vcpus = 4;
    town.refuses.insert("resize", fails());
    town.windows(120);
    assert_eq!((given(&town, "resize"), given(&town, "retire"), given(&town, "copy")), (8, 1, 1));
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
    assert!((size(&town).cpu_cores - 0.4).abs() < 1e-9);
    // Nor is one whose guest does not follow its balloon resized in place.
    let rigid = OutcomeResult::Unshadowable(Unshadowable::Unresizable("its balloon does not follow".to_owned()));
    town.refuses.insert("resize", rigid);
    town.definition.vcpus = 2;
    town.windows(400);
    assert_eq!((given(&town, "resize"), given(&town, "retire"), given(&town, "copy")), (9, 2, 2), "{:#?}", town.audit);
    assert!((size(&town).cpu_cores - 0.2).abs() < 1e-9);
}

#[test]
fn a_brain_that_is_killed_while_it_resizes_goes_on_with_it() {
    let mut town = pacing();
    let on = town.shadow().host.unwrap();
    town.definition.vcpus = 4;
    town.refuses.insert("resize", fails());
    for _ in 0..20 {
        town.window();
        if town.state() == Some(ShadowState::Resizing) {
            break;
        }
    }
    town.restart_brain();
    assert_eq!(town.state(), Some(ShadowState::Resizing));
    town.refuses.clear();
    town.windows(6);
    assert_eq!(town.state(), Some(ShadowState::Pacing), "{:#?}", town.audit);
    assert!((size(&town).cpu_cores - 0.4).abs() < 1e-9);
    assert_eq!((town.shadow().host, given(&town, "retire")), (Some(on), 0));
}

#[test]
fn an_agent_that_is_away_while_its_shadow_is_resized_is_told_when_it_is_back() {
    let mut town = pacing();
    let on = town.shadow().host.unwrap();
    town.definition.vcpus = 4;
    town.refuses.insert("resize", fails());
    for _ in 0..20 {
        town.window();
        if town.state() == Some(ShadowState::Resizing) {
            break;
        }
    }
    let ordered = given(&town, "resize");
    town.up.insert(on.clone(), false);
    town.feed(Input::HostLost { host: on.clone() });
    town.windows(12);
    assert_eq!((town.state(), given(&town, "resize")), (Some(ShadowState::Resizing), ordered), "{:#?}", town.audit);
    town.refuses.clear();
    town.up.insert(on.clone(), true);
    town.connect(&on);
    town.windows(12);
    assert_eq!((town.state(), town.shadow().host), (Some(ShadowState::Pacing), Some(on)), "{:#?}", town.audit);
    assert!((size(&town).cpu_cores - 0.4).abs() < 1e-9);
}

#[test]
fn where_its_host_has_no_room_for_more_it_stays_as_it_is_until_there_is_some() {
    let mut town = pacing();
    let before = size(&town);
    let on: HostId = town.shadow().host.unwrap();
    let set_share = |town: &mut Town, share_max: f64| {
        town.facts.get_mut(&on).unwrap().shadows.as_mut().unwrap().share_max = share_max;
        town.connect(&on);
    };
    set_share(&mut town, 0.05);
    town.definition.vcpus = 4;
    town.windows(10);
    assert_eq!((town.state(), size(&town)), (Some(ShadowState::Pacing), before), "{:#?}", town.audit);
    let detail = town.shadow().detail;
    let why = "it stays as it is (0.10 cores -> 0.40 cores, weight 100 -> weight 25): shadows would have more than 5 %";
    assert!(detail.contains(why), "{detail}");
    set_share(&mut town, 0.25);
    town.windows(usize::try_from(600 / WINDOW_S).unwrap() + 10);
    assert!((size(&town).cpu_cores - 0.4).abs() < 1e-9, "{:#?}", town.audit);
    assert_ne!(on, host("a"));
}
