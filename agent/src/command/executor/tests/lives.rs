//! What is known of a VM ends with its life.

use super::*;

#[test]
fn a_release_in_a_later_life_changes_nothing() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    world.lock().unwrap().restart(vm(1), Some(3.0));
    send(&mut executor, &world, &command(2, 1, Action::Release));
    assert_eq!(results(&executor)[1], (2, untouched()));
    assert_eq!(world.lock().unwrap().limits[&vm(1)], Some(3.0), "not the 2 cores of the life before");
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
}

#[test]
fn the_first_change_of_a_later_life_takes_that_lifes_limit_as_the_baseline() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    world.lock().unwrap().restart(vm(1), None);
    send(&mut executor, &world, &set(2, 1.0));
    send(&mut executor, &world, &set(3, 1.25));
    send(&mut executor, &world, &command(4, 1, Action::Release));
    assert_eq!(world.lock().unwrap().limits[&vm(1)], None);
}

#[test]
fn an_intent_of_an_earlier_life_is_not_carried_out_in_a_later_one() {
    let restart = |world: &mut World| world.restart(vm(1), Some(3.0));
    for point in [Point::BeforeActuation, Point::AfterActuation] {
        let (_folder, executor, world) = killed_at(point, &set(1, 1.5), restart);
        assert!(matches!(results(&executor)[..], [(1, OutcomeResult::Failed { retryable: true, .. })]), "{point:?}");
        assert_eq!(world.lock().unwrap().changes, [], "{point:?}");
        let release = command(2, 1, Action::Release);
        let (_folder, executor, world) = killed_at_last(point, &[set(1, 1.5), release], restart);
        assert!(
            matches!(&results(&executor)[..], [_, (2, OutcomeResult::Applied { after, .. })] if after[..] == [quota(Some(3.0))])
        );
        assert_eq!(world.lock().unwrap().changes, [], "{point:?}");
    }
}

#[test]
fn an_intent_waits_until_it_is_known_whether_its_vm_was_restarted() {
    let (_folder, path, world) = host();
    let mut executor_1 = executor(&path, &world, false);
    world.lock().unwrap().crash = Some((Point::BeforeActuation, path));
    send(&mut executor_1, &world, &set(1, 1.5));
    let left = world.lock().unwrap().back_to_the_kill().unwrap();
    world.lock().unwrap().unsurveyed = true;
    let mut executor_2 = executor(&left, &world, false);
    assert!(executor_2.try_resolve());
    assert_eq!(world.lock().unwrap().changes, []);
    world.lock().unwrap().unsurveyed = false;
    assert!(!executor_2.try_resolve());
    assert_eq!(world.lock().unwrap().changes, [(vm(1), Some(1.5))]);
}
