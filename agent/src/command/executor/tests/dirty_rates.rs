//! How fast a guest writes to its memory: measured beside the executor, without a trace in the ledger but the answer.

use super::*;

fn ask(number: u64, period_s: u8) -> Command {
    command(number, 1, Action::DirtyRate { period_s })
}

#[test]
fn a_dirty_rate_is_measured_in_a_dry_run_too_and_answered_once() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, true);
    send(&mut executor, &world, &ask(1, 2));
    send(&mut executor, &world, &ask(1, 2));
    assert_eq!(world.lock().unwrap().measured, [(ask(1, 2).id, 2)], "the one under way answers");
    assert!(!executor.beside.is_idle());
    assert_eq!((executor.ledger.intents().unwrap(), executor.ledger.fence(vm(1)).unwrap()), (vec![], None));
    assert!(!executor.take_all_news().unwrap());
    let measured = OutcomeResult::DirtyRate { bytes_per_s: 50_000_000 };
    world.lock().unwrap().measurements.push((ask(1, 2), measured.clone()));
    assert!(executor.take_all_news().unwrap());
    assert_eq!(results(&executor), [(1, measured.clone())]);
    send(&mut executor, &world, &ask(1, 2));
    assert_eq!((results(&executor), world.lock().unwrap().measured.len()), (vec![(1, measured)], 1));
}

#[test]
fn what_is_no_period_an_owners_word_and_a_full_house_are_answered_at_once() {
    let (_folder, path, world) = host();
    let mut executor = executor(&path, &world, false);
    (1..=2).for_each(|number| send(&mut executor, &world, &ask(number, 1)));
    send(&mut executor, &world, &ask(3, 0));
    send(&mut executor, &world, &ask(4, 61));
    send(&mut executor, &world, &ask(5, 60));
    send(&mut executor, &world, &command(6, 5, Action::DirtyRate { period_s: 1 }));
    world.lock().unwrap().terms.mode = Some(Mode::Observe);
    send(&mut executor, &world, &ask(7, 1));
    let nonsense = OutcomeResult::Refused(RefusedCommand::Nonsense);
    let full = OutcomeResult::Failed { error: "its memory is not measured: too many".to_owned(), retryable: true };
    let unknown = OutcomeResult::Refused(RefusedCommand::UnknownVm);
    let opted_out = OutcomeResult::Refused(RefusedCommand::OptedOut);
    assert_eq!(results(&executor), [(3, nonsense.clone()), (4, nonsense), (5, full), (6, unknown), (7, opted_out)]);
    assert_eq!(world.lock().unwrap().measured.len(), 2);
}
