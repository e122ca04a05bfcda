//! Judging, applying, answering, releasing.

use super::*;

#[test]
fn a_command_is_applied_and_remembered_with_how_to_undo_it() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    send(&mut executor, &world, &set(2, 3.0));
    assert_eq!(results(&executor), [(1, applied(Some(2.0), Some(1.5))), (2, applied(Some(1.5), Some(3.0)))]);
    let undo = executor.ledger.undo(vm(1)).unwrap().unwrap();
    assert_eq!((undo.baselines, undo.name.as_str()), (vec![quota(Some(2.0))], "web"));
    assert_eq!(executor.answers().unwrap().fence_highest, Some(Fence { term: 1, generation: 2 }));
}

#[test]
fn a_command_that_comes_twice_is_applied_once_and_answered_twice() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    executor.handle(Request::Acknowledged(set(1, 1.5).id)).unwrap();
    assert_eq!(results(&executor), []);
    send(&mut executor, &world, &set(1, 1.5));
    assert_eq!(results(&executor), [(1, applied(Some(2.0), Some(1.5)))]);
    assert_eq!(world.lock().unwrap().changes.len(), 1);
}

#[test]
fn a_release_restores_the_baseline_and_forgets_the_undo_record() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(2.0));
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
    send(&mut executor, &world, &command(3, 1, Action::Release));
    assert_eq!(results(&executor)[2], (3, untouched()), "releasing the untouched is no failure");
}

#[test]
fn releasing_a_vm_that_is_gone_forgets_its_undo_record() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    world.lock().unwrap().limits.clear();
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(results(&executor)[1], (2, OutcomeResult::Refused(RefusedCommand::UnknownVm)));
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn a_brain_of_a_higher_term_makes_the_commands_of_lower_terms_stale() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    executor.handle(Request::Term(2)).unwrap();
    send(&mut executor, &world, &set(1, 1.5));
    let seen = Fence { term: 2, generation: 0 };
    assert_eq!(results(&executor), [(1, OutcomeResult::Refused(RefusedCommand::StaleFence { seen }))]);
    assert_eq!(world.lock().unwrap().changes, []);
}

#[test]
fn a_dry_run_changes_nothing_and_leaves_nothing_to_undo() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, true);
    send(&mut executor, &world, &set(2, 1.5));
    send(&mut executor, &world, &set(1, 1.0));
    let seen = Fence { term: 1, generation: 2 };
    let stale = OutcomeResult::Refused(RefusedCommand::StaleFence { seen });
    assert_eq!(results(&executor), [(2, OutcomeResult::DryRun), (1, stale)], "it judges as a real run does");
    assert_eq!(world.lock().unwrap().changes, []);
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn a_failure_is_answered_with_whether_it_may_succeed_later() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    for (number, error) in [(1, ActuateError::Stuck), (2, ActuateError::Rejected("no".to_owned()))] {
        world.lock().unwrap().failing = Some(error.clone());
        send(&mut executor, &world, &set(number, 1.5));
        let result = results(&executor).pop().unwrap().1;
        assert_eq!(result, OutcomeResult::Failed { error: error.to_string(), retryable: error.retryable() });
    }
}
