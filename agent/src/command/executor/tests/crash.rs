//! A kill -9 at any point, and what the next start makes of it.

use super::*;

#[test]
fn a_kill_at_any_point_neither_loses_a_command_nor_applies_it_twice() {
    for point in [Point::BeforeIntent, Point::BeforeActuation, Point::AfterActuation, Point::AfterOutcome] {
        let (_folder, mut executor, world) = killed_at(point, &set(1, 1.5), |world| world.us += 300_000);
        // The brain has no outcome: it sends the command again.
        send(&mut executor, &world, &set(1, 1.5));
        let results = results(&executor);
        assert!(
            matches!(
                &results[..],
                [(1, OutcomeResult::Applied { before, after, .. })]
                    if before[..] == [quota(Some(2.0))] && after[..] == [quota(Some(1.5))]
            ),
            "{point:?}: {results:?}"
        );
        let world = world.lock().unwrap();
        assert_eq!(world.limits[&vm(1)], Some(1.5), "{point:?}");
        let expected = usize::from(matches!(point, Point::BeforeIntent | Point::BeforeActuation));
        assert_eq!(world.changes.len(), expected, "{point:?}: changes made after the restart");
        assert_eq!(executor.ledger.undo(vm(1)).unwrap().unwrap().baselines, [quota(Some(2.0))], "{point:?}");
        assert_eq!(executor.ledger.intents().unwrap(), [], "{point:?}");
    }
}

#[test]
fn a_kill_during_a_release_finishes_the_release() {
    for point in [Point::BeforeActuation, Point::AfterActuation] {
        let (_folder, path, world) = host();
        let mut executor_1 = executor(&path, &world, false);
        send(&mut executor_1, &world, &set(1, 1.5));
        executor_1.handle(Request::Acknowledged(set(1, 1.5).id)).unwrap();
        world.lock().unwrap().crash = Some((point, path));
        send(&mut executor_1, &world, &command(2, 1, Action::Release));
        let left = world.lock().unwrap().back_to_the_kill().unwrap();
        let mut executor_2 = executor(&left, &world, false);
        assert_eq!(executor_2.ledger.undo_records().unwrap().len(), 1, "kept until the baseline is confirmed");
        assert!(!executor_2.try_resolve());
        assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(2.0), "{point:?}");
        assert_eq!(executor_2.ledger.undo_records().unwrap(), [], "{point:?}");
        let results = results(&executor_2);
        assert!(
            matches!(&results[..], [(2, OutcomeResult::Applied { after, .. })] if after[..] == [quota(Some(2.0))]),
            "{results:?}"
        );
    }
}

#[test]
fn after_a_restart_an_expired_intent_is_carried_out_only_if_it_already_was() {
    let late = |world: &mut World| world.us += 1_500_000;
    let (_folder, executor, world) = killed_at(Point::BeforeActuation, &set(1, 1.5), late);
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::Expired { late_ms: 500 }))]);
    assert_eq!(world.lock().unwrap().changes, []);
    let (_folder, executor, _) = killed_at(Point::AfterActuation, &set(1, 1.5), late);
    assert!(matches!(results(&executor)[..], [(1, OutcomeResult::Applied { .. })]));
}

#[test]
fn a_reboot_expires_an_intent_however_short_it_was() {
    let reboot = |world: &mut World| (world.boot, world.us) = (2, 0);
    let (_folder, executor, world) = killed_at(Point::BeforeActuation, &set(1, 1.5), reboot);
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::Expired { late_ms: 0 }))]);
    assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(2.0));
}

#[test]
fn an_intent_of_a_vm_that_is_gone_is_refused() {
    let (_folder, executor, _) = killed_at(Point::BeforeActuation, &set(1, 1.5), |world| world.limits.clear());
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::UnknownVm))]);
}

#[test]
fn an_unresolved_intent_is_never_carried_out_after_a_newer_command() {
    let (_folder, path, world) = host();
    let mut executor_1 = executor(&path, &world, false);
    world.lock().unwrap().crash = Some((Point::BeforeActuation, path));
    send(&mut executor_1, &world, &set(1, 1.5));
    let left = world.lock().unwrap().back_to_the_kill().unwrap();
    world.lock().unwrap().failing = Some(ActuateError::Unavailable("down".to_owned()));
    let mut executor_2 = executor(&left, &world, false);
    assert!(executor_2.try_resolve(), "libvirt is down: left unresolved");
    send(&mut executor_2, &world, &set(2, 3.0));
    assert!(matches!(results(&executor_2)[..], [(2, OutcomeResult::Failed { retryable: true, .. })]));
    world.lock().unwrap().failing = None;
    send(&mut executor_2, &world, &set(3, 3.5));
    let changes: Vec<_> = world.lock().unwrap().changes.iter().map(|(_, limit)| limit.unwrap()).collect();
    assert_eq!(changes, [1.5, 3.5], "in the order of their fences");
}
