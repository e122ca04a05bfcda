//! Copies of disks, of this host's VMs and of others'.

use super::*;
use crate::actuate::shadow::check::check;
use crate::actuate::shadow::send::Sending;
use crate::actuate::shadow::slow;
use gnomon_common::wire::{DiskCopy, Receiving};
use std::sync::OnceLock;

#[test]
fn a_disk_without_a_base_is_told_to_be_copyable_only_where_copies_are_made() {
    let mut bench = bench();
    for (base, makes) in [(Base::Copyable, true), (Base::None, false)] {
        if !makes {
            bench.orders.copies = None;
        }
        let OutcomeResult::Described(blueprint) = bench.orders.describe(id(1)) else { panic!("not described") };
        assert_eq!(blueprint.disks[0].base, base);
    }
}

#[test]
fn copies_are_not_checked_again_for_a_shadow_that_is_made() {
    let mut bench = bench();
    let mut blueprint = spec(0.1, MIB).blueprint;
    let (device, bus) = ("vda".to_owned(), "virtio".to_owned());
    let gone = DiskCopy { path: "/nonexistent/vda.qcow2".to_owned(), bytes: 1, sha256: String::new() };
    blueprint.disks = vec![DiskBlueprint { device, bus, size_bytes: MIB, base: Base::Copied(gone) }];
    let check = |bench: &Bench| {
        let mut here = Played(Arc::clone(&bench.world));
        check(&mut here, &bench.orders.files, id(9), &blueprint, &OnceLock::new())
    };
    assert!(matches!(check(&bench), Err(Snag::Unshadowable(Unshadowable::NoBase(_)))));
    bench.order(9, copy());
    check(&bench).unwrap();
}

#[test]
fn an_order_that_was_begun_in_time_is_carried_out_however_long_its_check_took() {
    let mut bench = bench();
    let (task, begun) = (task(9, copy(), Duration::from_millis(200)), Instant::now());
    bench.world().find_takes = Duration::from_millis(300);
    let mut here = Played(Arc::clone(&bench.world));
    let blueprint = spec(0.1, 64 * MIB).blueprint;
    let checked = slow::check(&mut here, &bench.orders.files, (id(9), &blueprint), begun, &OnceLock::new()).unwrap();
    bench.world().find_takes = Duration::ZERO;
    assert!(is_late(&bench.orders.carry_out(&task, begun)), "it would be too late by now");
    let copied = bench.orders.carry_out(&task, checked);
    assert!(is_copied(&copied), "{copied:?}");
}

#[test]
fn whoever_removes_files_leaves_those_of_what_is_done_beside_it() {
    let mut bench = bench();
    let copies = bench.orders.copies.clone().unwrap();
    copies.begin(id(9), id(1), &[]).unwrap();
    bench.orders.files.make(id(9), &spec(0.1, MIB).blueprint).unwrap();
    bench.orders.busy.set([id(9)]);
    assert_eq!((bench.orders.tidy(&BTreeSet::new()), bench.folders()), (0, 1), "it was begun after that was asked for");
    assert_eq!(bench.order(9, ShadowOrder::Retire), OutcomeResult::Shadow(ShadowDone::Retired));
    assert_eq!(copies.all().unwrap(), [id(9)]);
    bench.orders.busy.set([]);
    assert_eq!((bench.orders.tidy(&BTreeSet::new()), copies.all().unwrap()), (1, vec![]));
}

#[test]
fn copies_go_with_their_shadow_and_half_ones_that_nobody_makes_go_by_themselves() {
    let mut bench = bench();
    let copies = bench.orders.copies.clone().unwrap();
    let none = BTreeSet::new();
    copies.begin(id(9), id(1), &[]).unwrap();
    let note = copies.note(id(9)).unwrap().unwrap();
    bench.world().backup = Some(vec![copies.file(id(9), "vda")]);
    assert_eq!(bench.orders.tidy(&BTreeSet::from([id(9)])), 0, "it is being made");
    assert_eq!((bench.orders.tidy(&none), copies.all().unwrap()), (1, vec![]));
    assert_eq!(bench.world().backup, None, "what wrote to it was ended first");
    copies.begin(id(9), id(1), &[]).unwrap();
    copies.finish(id(9), note, Vec::new()).unwrap();
    assert_eq!((bench.orders.tidy(&none), copies.all().unwrap()), (0, vec![id(9)]), "its shadow is elsewhere");
    for _ in 0..2 {
        assert_eq!(bench.order(9, ShadowOrder::Retire), OutcomeResult::Shadow(ShadowDone::Retired));
        assert_eq!(copies.all().unwrap(), []);
    }
}

#[test]
fn copies_that_were_sent_here_are_for_their_shadow_alone_and_go_with_it() {
    let bench = bench();
    let folder = bench.folder.path().join("r");
    std::fs::create_dir(&folder).unwrap();
    let file = |of: u128| folder.join(format!("{}.vda.qcow2", id(of)));
    std::fs::write(file(8), [0]).unwrap();
    std::fs::write(file(9), [0]).unwrap();
    let standing_on = |of: u128| {
        let mut blueprint = spec(0.1, MIB).blueprint;
        let copy = DiskCopy { path: file(of).to_string_lossy().into_owned(), bytes: 1, sha256: String::new() };
        let (device, bus) = ("vda".to_owned(), "virtio".to_owned());
        blueprint.disks = vec![DiskBlueprint { device, bus, size_bytes: MIB, base: Base::Copied(copy) }];
        blueprint
    };
    let check = |of| bench.orders.files.check(id(9), &standing_on(of));
    assert_eq!((check(9), check(8)), (Ok(()), Err(Unshadowable::NoBase("vda".into()))));
    let mut bench = bench;
    for _ in 0..2 {
        assert_eq!(bench.order(9, ShadowOrder::Retire), OutcomeResult::Shadow(ShadowDone::Retired));
        assert_eq!((file(9).exists(), file(8).exists()), (false, true));
    }
}

#[test]
fn what_is_left_of_copies_that_were_sent_elsewhere_goes_once_nobody_waits_for_the_answer() {
    let mut bench = bench();
    let copies = bench.orders.copies.clone().unwrap();
    copies.begin(id(9), id(1), &[]).unwrap();
    let note = copies.note(id(9)).unwrap().unwrap();
    copies.finish(id(9), note, Vec::new()).unwrap();
    let to = Receiving { uri: String::new(), directory: String::new(), owner: 0, group: 0, bytes_max: 0 };
    let sending = |is_whole| Sending { to: to.clone(), made: 0, begun: 0, bytes: 0, is_whole };
    copies.note_sending(id(9), &sending(false)).unwrap();
    let none = BTreeSet::new();
    assert_eq!((bench.orders.tidy(&none), copies.all().unwrap()), (0, vec![id(9)]));
    copies.note_sending(id(9), &sending(true)).unwrap();
    bench.orders.tidy(&BTreeSet::from([id(9)]));
    assert_eq!(copies.all().unwrap(), [id(9)], "its order is under way");
    assert_eq!((bench.orders.tidy(&none), copies.all().unwrap()), (0, vec![]), "it is no orphan");
}
