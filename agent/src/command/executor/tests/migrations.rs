//! Migrations: one intent from the command to the knowledge of where the VM is, whatever happens to the agent meanwhile.

use super::*;
use gnomon_common::wire::{Immovable, Migration, Moved, Whereabouts};

fn migration(to: &str) -> Migration {
    Migration {
        to: HostId::new(to).unwrap(),
        uri: "qemu+tls://h2/system".to_owned(),
        timeout_ms: 60_000,
        bandwidth_bytes_per_s: None,
        auto_converge: true,
        copy_storage: false,
    }
}

fn migrate(number: u64) -> Command {
    command(number, 1, Action::Migrate(migration("h2")))
}

fn news(executor: &mut Executor, world: &Shared, news: News) {
    world.lock().unwrap().news.push((vm(1), news));
    assert!(executor.take_news().unwrap());
}

fn not_moved(whereabouts: Whereabouts) -> OutcomeResult {
    OutcomeResult::NotMoved { error: "connection lost".to_owned(), whereabouts }
}

fn refused(why: RefusedCommand) -> OutcomeResult {
    OutcomeResult::Refused(why)
}

#[test]
fn while_a_vm_is_on_its_way_it_is_left_alone_and_what_was_set_goes_with_it() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    send(&mut executor, &world, &migrate(2));
    let undo = executor.ledger.undo(vm(1)).unwrap();
    let keepsake = undo.map(|undo| serde_json::to_string(&undo).unwrap());
    assert!(keepsake.is_some());
    let order = Order {
        vm: vm(1),
        migration: migration("h2"),
        keepsake,
        waited: Duration::ZERO,
        copies: None,
        ran_there: false,
        given_up: false,
        is_new: true,
    };
    assert_eq!(world.lock().unwrap().begun, [order]);
    send(&mut executor, &world, &set(3, 3.0));
    send(&mut executor, &world, &command(4, 1, Action::Release));
    send(&mut executor, &world, &command(5, 2, Action::Migrate(migration("h2"))));
    assert_eq!(
        results(&executor)[1..],
        [
            (3, refused(RefusedCommand::Migrating)),
            (4, refused(RefusedCommand::Migrating)),
            (5, refused(RefusedCommand::TooManyMigrations { most: 1 })),
        ]
    );
    let moved = Moved { took_us: 0, downtime_us: Some(80_000), sent_bytes: Some(9), copied: None };
    world.lock().unwrap().us += 2_000_000;
    news(&mut executor, &world, News::Ended(OutcomeResult::Moved(moved.clone())));
    assert_eq!(results(&executor)[4], (2, OutcomeResult::Moved(Moved { took_us: 2_000_000, ..moved })));
    assert_eq!((executor.ledger.undo_records().unwrap(), executor.ledger.intents().unwrap()), (vec![], vec![]));
}

#[test]
fn a_migration_is_given_up_on_command_and_its_own_answer_says_so() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    send(&mut executor, &world, &migrate(2));
    send(&mut executor, &world, &command(3, 1, Action::AbortMigration));
    assert_eq!(world.lock().unwrap().aborted, [vm(1)]);
    news(&mut executor, &world, News::Ended(not_moved(Whereabouts::Here)));
    assert_eq!(results(&executor)[1..], [(3, untouched()), (2, not_moved(Whereabouts::Here))]);
    assert_eq!(executor.ledger.undo_records().unwrap().len(), 1, "it is still here, and so is what was set");
    send(&mut executor, &world, &set(4, 2.5));
    assert_eq!(results(&executor)[3], (4, applied(Some(1.5), Some(2.5))));
}

#[test]
fn an_agent_that_was_killed_follows_the_migration_and_does_not_begin_it_again() {
    let (_folder, path, world) = host();
    let mut before = executor(&path, &world, false);
    send(&mut before, &world, &migrate(1));
    drop(before);
    world.lock().unwrap().us += 5_000_000;
    let mut after = executor(&path, &world, false);
    assert!(after.try_resolve(), "it is not resolved at once");
    after.try_resolve();
    let begun = world.lock().unwrap().begun.clone();
    let waited = Duration::from_secs(5);
    let again = Order { waited, is_new: false, ..begun[0].clone() };
    assert_eq!(begun[1..], [again]);
    // The brain asks again: it is under way still, and there is nothing to say.
    send(&mut after, &world, &migrate(1));
    assert_eq!(results(&after), []);
    news(&mut after, &world, News::Ended(not_moved(Whereabouts::Here)));
    assert_eq!(results(&after), [(1, not_moved(Whereabouts::Here))]);
}

#[test]
fn what_is_made_on_the_other_host_is_written_down_before_and_known_to_the_next_life() {
    let (_folder, path, world) = host();
    let mut before = executor(&path, &world, false);
    send(&mut before, &world, &migrate(1));
    let copies = CopyRecord { files: vec!["/srv/a".to_owned()], made: 0, is_layered: true, bytes: 9 };
    news(&mut before, &world, News::Copies(copies.clone()));
    assert_eq!(world.lock().unwrap().recorded, [vm(1)]);
    assert_eq!(before.ledger.intents().unwrap()[0].copies.as_ref(), Some(&copies));
    assert_eq!(results(&before), [], "it goes on");
    // It stands still, and the agent is killed: what was made is not forgotten.
    news(&mut before, &world, News::Parked(not_moved(Whereabouts::Parked)));
    drop(before);
    let mut after = executor(&path, &world, false);
    after.try_resolve();
    assert_eq!(world.lock().unwrap().begun[1].copies, Some(copies));
}

#[test]
fn that_a_vm_ran_on_the_other_host_is_known_to_the_next_life() {
    let (_folder, path, world) = host();
    let mut before = executor(&path, &world, false);
    send(&mut before, &world, &migrate(1));
    news(&mut before, &world, News::RanThere);
    news(&mut before, &world, News::Parked(not_moved(Whereabouts::Parked)));
    drop(before);
    let mut after = executor(&path, &world, false);
    after.try_resolve();
    assert!(world.lock().unwrap().begun[1].ran_there);
}

#[test]
fn one_that_was_given_up_is_given_up_by_the_next_life_as_well() {
    let (_folder, path, world) = host();
    let mut before = executor(&path, &world, false);
    send(&mut before, &world, &migrate(1));
    send(&mut before, &world, &command(2, 1, Action::AbortMigration));
    drop(before);
    let mut after = executor(&path, &world, false);
    after.try_resolve();
    assert!(world.lock().unwrap().begun[1].given_up);
}

#[test]
fn that_it_stands_still_is_told_once_and_what_becomes_of_it_takes_the_place_of_that() {
    let (_folder, path, world) = host();
    let mut before = executor(&path, &world, false);
    send(&mut before, &world, &migrate(1));
    news(&mut before, &world, News::Parked(not_moved(Whereabouts::Parked)));
    assert_eq!(results(&before), [(1, not_moved(Whereabouts::Parked))]);
    before.handle(Request::Acknowledged(migrate(1).id)).unwrap();
    drop(before);
    let mut after = executor(&path, &world, false);
    after.try_resolve();
    news(&mut after, &world, News::Parked(not_moved(Whereabouts::Parked)));
    assert_eq!(results(&after), [], "it was told in the life before");
    send(&mut after, &world, &set(2, 1.0));
    assert_eq!(results(&after), [(2, refused(RefusedCommand::Migrating))]);
    // What the brain asks for again is what it was told.
    send(&mut after, &world, &migrate(1));
    assert_eq!(results(&after)[1], (1, not_moved(Whereabouts::Parked)));
    news(&mut after, &world, News::Ended(not_moved(Whereabouts::Here)));
    assert_eq!(results(&after)[1..], [(1, not_moved(Whereabouts::Here))]);
    assert_eq!(after.ledger.intents().unwrap(), []);
}

#[test]
fn what_is_not_to_be_moved_is_not() {
    let (_folder, path, world) = host();
    let mut dry = executor(&path, &world, true);
    send(&mut dry, &world, &migrate(1));
    send(&mut dry, &world, &command(2, 1, Action::AbortMigration));
    assert_eq!(results(&dry), [(1, OutcomeResult::DryRun), (2, OutcomeResult::DryRun)]);
    drop(dry);
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &command(3, 1, Action::Migrate(migration("h1"))));
    assert_eq!(results(&executor)[2], (3, OutcomeResult::Immovable(Immovable::SameHost)));
    world.lock().unwrap().terms.mode = Some(Mode::Observe);
    send(&mut executor, &world, &migrate(4));
    send(&mut executor, &world, &set(5, 1.0));
    assert_eq!(results(&executor)[3..], [4, 5].map(|number| (number, refused(RefusedCommand::OptedOut))));
    let world = world.lock().unwrap();
    assert!(world.begun.is_empty() && world.aborted.is_empty() && world.changes.is_empty());
}

#[test]
fn a_release_by_hand_leaves_a_vm_on_its_way_alone() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    send(&mut executor, &world, &set(1, 1.5));
    send(&mut executor, &world, &migrate(2));
    let record = executor.ledger.undo(vm(1)).unwrap().unwrap();
    let refused =
        crate::command::release::restore(&executor.ledger, &mut Host(Arc::clone(&world)), &record, record.life);
    assert!(matches!(refused, Err(crate::command::release::ReleaseError::Migrating(_))), "{refused:?}");
    assert_eq!(executor.ledger.intents().unwrap().len(), 1);
}

#[test]
fn what_another_host_did_to_a_vm_can_be_undone_where_it_has_come_to() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    let elsewhere = Some(VmLife { boot: Uuid::from_u128(9), pid: 1, start_ticks: 1 });
    let record = UndoRecord::new(vm(1), "web".to_owned(), elsewhere, vec![quota(None)], Timestamp::from_unix_ms(1));
    let keepsake = serde_json::to_string(&record).unwrap();
    world.lock().unwrap().keepsakes = vec![(vm(1), keepsake), (vm(2), "{".to_owned())];
    executor.adopt().unwrap();
    let adopted = executor.ledger.undo(vm(1)).unwrap().unwrap();
    assert_eq!((adopted.baselines.clone(), adopted.life), (record.baselines, world.lock().unwrap().life(vm(1))));
    send(&mut executor, &world, &command(1, 1, Action::Release));
    assert_eq!(results(&executor), [(1, applied(Some(2.0), None))]);
    // It is told until the definition is read again, and taken over once.
    executor.adopt().unwrap();
    assert_eq!(executor.ledger.undo_records().unwrap(), []);
    assert_eq!(world.lock().unwrap().forgotten, [vm(1)]);
}
