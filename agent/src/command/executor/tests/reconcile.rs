//! What Gnomon set is undone or changed by someone else.

use super::away::{duties, pass};
use super::*;
use crate::config::{Away, OnForeignChange, Reconcile};
use gnomon_common::wire::{LocalCause, Origin};

/// Within so many seconds a difference must be answered.
const SEEN_S: u64 = 10;

/// A VM with a baseline of 2 cores, set to 0.5 by a brain that is still there.
fn held(reconcile: Reconcile) -> (tempfile::TempDir, Executor, Shared) {
    let (folder, path, world) = host();
    let mut executor = executor(&path, &world, false).with_duties(duties(Away::default(), reconcile));
    executor.presence.here();
    send(&mut executor, &world, &set(1, 0.5));
    executor.handle(Request::Acknowledged(set(1, 0.5).id)).unwrap();
    pass(&mut executor, &world, 5, 0.1);
    world.lock().unwrap().changes.clear();
    (folder, executor, world)
}

fn standing_down() -> Reconcile {
    Reconcile { on_foreign_change: OnForeignChange::StandDown, ..Reconcile::default() }
}

fn someone_sets(world: &Shared, cores: Option<f64>) {
    world.lock().unwrap().limits.insert(vm(1), cores);
}

fn limit(world: &Shared) -> Option<f64> {
    world.lock().unwrap().limits[&vm(1)]
}

fn last_local(executor: &Executor) -> (LocalCause, String, OutcomeResult) {
    let (_, outcome) = executor.answers().unwrap().pending.last().unwrap().clone();
    match outcome.origin {
        Origin::Local { cause, reason } => (cause, reason, outcome.result),
        Origin::Command => panic!("commanded"),
    }
}

fn is_stood_down(executor: &mut Executor) -> bool {
    executor.tending.as_mut().unwrap().duties().changed.get(vm(1)).is_some_and(|changed| changed.stood_down)
}

#[test]
fn a_limit_that_is_undone_is_applied_again() {
    for undone in [Some(2.0), None] {
        let (_folder, mut executor, world) = held(Reconcile::default());
        someone_sets(&world, undone);
        pass(&mut executor, &world, SEEN_S, 0.1);
        assert_eq!(limit(&world), Some(0.5));
        let (cause, reason, result) = last_local(&executor);
        assert_eq!((cause, result), (LocalCause::Reapply, applied(undone, Some(0.5))));
        assert!(reason.starts_with("someone undid what Gnomon had set"), "{reason}");
        assert_eq!(executor.ledger.undo(vm(1)).unwrap().unwrap().baselines, [quota(Some(2.0))]);
    }
}

#[test]
fn without_the_duty_it_stays_undone() {
    let (_folder, mut executor, world) = held(Reconcile::default());
    let tending = executor.tending.take();
    someone_sets(&world, None);
    world.lock().unwrap().us += 60_000_000;
    assert!(!executor.tend().unwrap());
    assert_eq!(limit(&world), None);
    executor.tending = tending;
    pass(&mut executor, &world, SEEN_S, 0.1);
    assert_eq!(limit(&world), Some(0.5));
}

#[test]
fn a_limit_that_someone_chose_is_what_a_release_gives_back() {
    let (_folder, mut executor, world) = held(Reconcile::default());
    someone_sets(&world, Some(1.2));
    pass(&mut executor, &world, SEEN_S, 0.1);
    assert_eq!(limit(&world), Some(0.5));
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(limit(&world), Some(1.2), "not the 2 cores of before");
}

#[test]
fn a_release_does_not_touch_what_someone_chose_a_moment_ago() {
    let (_folder, mut executor, world) = held(Reconcile::default());
    someone_sets(&world, Some(1.2));
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(limit(&world), Some(1.2));
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn who_insists_is_given_way_to() {
    let (_folder, mut executor, world) = held(Reconcile::default());
    for _ in 0..3 {
        someone_sets(&world, Some(1.2));
        pass(&mut executor, &world, SEEN_S, 0.1);
        assert_eq!(limit(&world), Some(0.5));
    }
    someone_sets(&world, Some(1.2));
    pass(&mut executor, &world, SEEN_S, 0.1);
    assert_eq!(limit(&world), Some(1.2));
    assert!(is_stood_down(&mut executor));
    let (cause, reason, result) = last_local(&executor);
    assert_eq!(cause, LocalCause::StandDown);
    assert!(
        reason.ends_with("after 3 re-applications within 600 s someone insists, and Gnomon stands down"),
        "{reason}"
    );
    assert!(
        matches!(result, OutcomeResult::Applied { before, after, .. } if before == [quota(Some(0.5))] && after == [quota(Some(1.2))])
    );
}

#[test]
fn once_in_a_while_is_not_insisting() {
    let (_folder, mut executor, world) = held(Reconcile { reapply_window_s: 60, ..Reconcile::default() });
    for _ in 0..8 {
        someone_sets(&world, None);
        pass(&mut executor, &world, 30, 0.1);
        assert_eq!(limit(&world), Some(0.5));
    }
}

#[test]
fn standing_down_refuses_settings_survives_restarts_and_ends_with_a_release() {
    let (_folder, mut executor_1, world) = held(standing_down());
    someone_sets(&world, Some(1.2));
    pass(&mut executor_1, &world, SEEN_S, 0.1);
    assert!(is_stood_down(&mut executor_1));
    assert_eq!(world.lock().unwrap().changes, []);
    let path = _folder.path().join("commands.redb");
    drop(executor_1);
    // The agent starts anew, and so does the VM.
    let mut executor_2 = executor(&path, &world, false).with_duties(duties(Away::default(), standing_down()));
    world.lock().unwrap().restart(vm(1), Some(3.0));
    send(&mut executor_2, &world, &set(2, 0.7));
    assert_eq!(results(&executor_2).last().unwrap().1, OutcomeResult::Refused(RefusedCommand::StoodDown));
    pass(&mut executor_2, &world, 600, 3.0);
    assert!(is_stood_down(&mut executor_2));
    assert_eq!(world.lock().unwrap().changes, [], "neither away nor reconcile touch it");
    send(&mut executor_2, &world, &command(3, 1, Action::Release));
    pass(&mut executor_2, &world, 1, 0.1);
    assert!(!is_stood_down(&mut executor_2));
    assert_eq!(limit(&world), Some(3.0));
    send(&mut executor_2, &world, &set(4, 0.7));
    assert_eq!(limit(&world), Some(0.7));
}

#[test]
fn a_release_after_standing_down_leaves_what_is_in_force() {
    let (_folder, mut executor, world) = held(standing_down());
    someone_sets(&world, Some(1.2));
    pass(&mut executor, &world, SEEN_S, 0.1);
    someone_sets(&world, None);
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(limit(&world), None, "the owner's last word, not any earlier one");
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn a_command_that_comes_before_the_next_look_does_not_overlook_a_change() {
    let (_folder, mut executor, world) = held(standing_down());
    someone_sets(&world, Some(1.2));
    send(&mut executor, &world, &set(2, 0.7));
    assert_eq!(limit(&world), Some(1.2));
    assert_eq!(results(&executor).last().unwrap().1, OutcomeResult::Refused(RefusedCommand::StoodDown));
    let (_folder, mut executor, world) = held(Reconcile::default());
    someone_sets(&world, Some(1.2));
    send(&mut executor, &world, &set(2, 0.7));
    assert_eq!(limit(&world), Some(0.7));
    assert_eq!(executor.ledger.undo(vm(1)).unwrap().unwrap().baselines, [quota(Some(1.2))]);
}

#[test]
fn a_call_that_took_effect_late_is_no_foreign_change() {
    let (_folder, mut executor, world) = held(standing_down());
    let mut record = executor.ledger.undo(vm(1)).unwrap().unwrap();
    record.attempted = vec![quota(Some(0.8))];
    executor.ledger.amend_undo(&record).unwrap();
    someone_sets(&world, Some(0.8));
    pass(&mut executor, &world, SEEN_S, 0.1);
    assert!(!is_stood_down(&mut executor));
    assert_eq!(executor.ledger.undo(vm(1)).unwrap().unwrap().applied, [quota(Some(0.8))]);
}

#[test]
fn a_vm_that_was_restarted_keeps_its_owners_limits() {
    let (_folder, mut executor, world) = held(Reconcile::default());
    world.lock().unwrap().restart(vm(1), None);
    pass(&mut executor, &world, 60, 0.1);
    assert_eq!(world.lock().unwrap().changes, []);
}

#[test]
fn a_difference_that_cannot_be_repaired_now_is_repaired_when_it_can() {
    let (_folder, mut executor, world) = held(Reconcile::default());
    someone_sets(&world, None);
    world.lock().unwrap().failing = Some(ActuateError::Unavailable("restarting".to_owned()));
    pass(&mut executor, &world, 30, 0.1);
    assert_eq!(limit(&world), None);
    world.lock().unwrap().failing = None;
    pass(&mut executor, &world, SEEN_S, 0.1);
    assert_eq!(limit(&world), Some(0.5));
}

#[test]
fn what_a_vm_had_is_told_until_it_is_released_or_restarted() {
    let told = |executor: &mut Executor| executor.tending.as_mut().unwrap().duties().changed.get(vm(1));
    let ends: [fn(&mut Executor, &Shared); 2] = [
        |executor, world| send(executor, world, &command(2, 1, Action::Release)),
        |_, world| world.lock().unwrap().restart(vm(1), Some(3.0)),
    ];
    for end in ends {
        let (_folder, mut executor, world) = held(Reconcile::default());
        assert_eq!(told(&mut executor).map(|changed| changed.baselines), Some(vec![quota(Some(2.0))]));
        end(&mut executor, &world);
        pass(&mut executor, &world, 1, 0.1);
        assert_eq!(told(&mut executor).map(|changed| changed.baselines).unwrap_or_default(), []);
    }
}
