//! Moves: when, which, where, and what comes of them.

use gnomon_common::wire::{Action, Command, Immovable, Moved, OutcomeResult, VmState, VmTerms, Whereabouts};

use super::bench::{Bench, facts, host, policy, report_of, vm};
use super::{Input, at};
use crate::MoveRefusal;
use crate::io::{CommandRecord, OperatorRequest, Output, Record, Restored, Scope};
use crate::policy::{MigratePolicy, Mode, Policy};

fn moving() -> Policy {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, ..MigratePolicy::default() };
    Policy { migrate, ..policy(Mode::Auto) }
}

/// Four VMs of nearly a core each on `a`, which has 4.0, and `b` empty.
const FULL: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];

/// Windows of both hosts; the moves that were commanded.
fn windows(bench: &mut Bench, second: u64, of_a: &[(u128, f64, f64)], of_b: &[(u128, f64, f64)]) -> Vec<Command> {
    bench.report_on("b", second, of_b, Some(1.0));
    bench.report_on("a", second, of_a, Some(1.0));
    let is_move = |command: &Command| matches!(command.action, Action::Migrate(_));
    bench.commands().into_iter().filter(is_move).collect()
}

fn target(command: &Command) -> &str {
    let Action::Migrate(migration) = &command.action else { panic!("{command:?}") };
    migration.to.as_str()
}

#[test]
fn a_host_that_is_full_for_a_while_sends_one_vm_away() {
    let mut bench = Bench::new(moving());
    assert_eq!(windows(&mut bench, 0, &FULL, &[]), []);
    let moves = windows(&mut bench, 10, &FULL, &[]);
    assert_eq!((moves.len(), target(&moves[0]), moves[0].vm), (1, "b", vm(1)));
    assert!(moves[0].reason.contains("will want 3.80 cores together, more than the 3.60"), "{}", moves[0].reason);
    assert_eq!(windows(&mut bench, 20, &FULL, &[]), [], "one at a time");

    bench.outcome_of(vm(1), 25, moves[0].id, OutcomeResult::Moved(Moved { took_us: 2_000_000, ..Moved::default() }));
    bench.take();
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
    // The window in which it went is told by the host that it left, and says nothing of now.
    assert_eq!(windows(&mut bench, 30, &FULL[1..], &FULL[..1]), []);
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
}

#[test]
fn the_host_that_a_vm_left_does_not_take_it_back_by_telling_of_it_a_little_longer() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL, &[]);
    let moves = windows(&mut bench, 10, &FULL, &[]);
    // Both tell of it while it arrives.
    windows(&mut bench, 20, &FULL, &FULL[..1]);
    bench.outcome_of(vm(1), 35, moves[0].id, OutcomeResult::Moved(Moved { took_us: 2_000_000, ..Moved::default() }));
    // Its old host's libvirt is slow to let go of it; the new one's agent tells in between, or not yet.
    bench.report_on("a", 40, &FULL, Some(1.0));
    bench.report_on("b", 40, &FULL[..1], Some(1.0));
    bench.report_on("a", 50, &FULL, Some(1.0));
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
    assert!(!bench.notices().contains(&"moved_by_somebody_else"));
    // Where the new one is silent for good, and the old one goes on, it is there.
    bench.report_on("a", 100, &FULL, Some(1.0));
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("a"));
}

#[test]
fn neither_a_moment_nor_another_mode_moves_anything() {
    let mut bench = Bench::new(moving());
    for second in [0, 20, 40, 60] {
        assert_eq!(windows(&mut bench, second, &FULL, &[]), []);
        assert_eq!(windows(&mut bench, second + 10, &FULL[1..], &[]), []);
    }
    for mode in [Mode::Observe, Mode::Recommend] {
        let mut policy = moving();
        policy.migrate.mode = mode;
        let mut bench = Bench::new(policy);
        let mut recommended = 0;
        for second in [0, 10, 20, 30] {
            bench.report_on("b", second, &[], Some(1.0));
            bench.report_on("a", second, &FULL, Some(1.0));
            for output in bench.take() {
                let Output::Persist(Record::Plan(plan)) = output else { continue };
                recommended += plan.actions.iter().filter(|action| matches!(action.action, Action::Migrate(_))).count();
            }
        }
        // Each VM once, until its cool-down is over.
        assert_eq!(recommended, if mode == Mode::Observe { 0 } else { 3 });
    }
}

#[test]
fn a_host_without_a_way_out_says_so_once() {
    let mut bench = Bench::new(moving());
    let mut told = 0;
    for second in [0, 10, 20, 30, 40] {
        bench.report_on("b", second, &[(5, 0.9, 0.9), (6, 0.9, 0.9), (7, 0.9, 0.9)], Some(1.0));
        bench.report_on("a", second, &FULL, Some(1.0));
        told += bench.notices().iter().filter(|kind| **kind == "no_room").count();
    }
    assert_eq!(told, 1);
}

#[test]
fn what_did_not_come_about_is_not_tried_with_the_same_host_again() {
    let results = [
        (OutcomeResult::Immovable(Immovable::Cpu("no AVX".to_owned())), "vm_immovable"),
        (OutcomeResult::NotMoved { error: "link".to_owned(), whereabouts: Whereabouts::Here }, "migration_failed"),
    ];
    for (result, kind) in results {
        let mut bench = Bench::new(moving());
        windows(&mut bench, 0, &FULL, &[]);
        let first = windows(&mut bench, 10, &FULL, &[]);
        bench.outcome_of(vm(1), 25, first[0].id, result);
        assert!(bench.notices().contains(&kind));
        let second = windows(&mut bench, 20, &FULL, &[]);
        assert_eq!((second.len(), second[0].vm), (1, vm(2)), "the next VM is tried, the first one left alone");
    }
}

#[test]
fn a_restart_forgets_neither_where_a_vm_could_not_go_nor_for_how_long() {
    let here = || OutcomeResult::NotMoved { error: "link".to_owned(), whereabouts: Whereabouts::Here };
    let bound = || OutcomeResult::Immovable(Immovable::Bound("hostdev pci".to_owned()));
    for result in [here(), bound()] {
        let mut bench = Bench::new(moving());
        windows(&mut bench, 0, &FULL, &[]);
        let first = windows(&mut bench, 10, &FULL, &[]);
        bench.outcome_of(vm(1), 25, first[0].id, result);
        let answered = bench.take().into_iter().find_map(|output| match output {
            Output::Persist(Record::Command(record)) if record.outcome.is_some() => Some(record),
            _ => None,
        });
        let answered = Box::new(answered.unwrap());
        for (second, goes) in [(30, vm(2)), (3700, vm(1))] {
            let mut core = crate::Core::new(moving(), 1, 2);
            core.restore(Restored::Host { host: host("a"), facts: facts() });
            core.restore(Restored::Report(Box::new(report_of("a", 10, &FULL, Some(1.0)))));
            core.restore(Restored::Tried(answered.clone()));
            let mut bench = Bench::of(core);
            windows(&mut bench, second, &FULL, &[]);
            let next = windows(&mut bench, second + 10, &FULL, &[]);
            assert_eq!(next.iter().map(|command| command.vm).collect::<Vec<_>>(), [goes], "at {second}");
        }
    }
}

/// The command's record as it was persisted last.
fn persisted(bench: &mut Bench) -> CommandRecord {
    let records = bench.take().into_iter().filter_map(|output| match output {
        Output::Persist(Record::Command(record)) => Some(record),
        _ => None,
    });
    records.last().expect("nothing was persisted")
}

/// A brain that is started again after the first window of VMs on `a`, and told of a move in one way or another.
fn restarted(told: Restored) -> Bench {
    let mut core = crate::Core::new(moving(), 2, 2);
    core.restore(Restored::Host { host: host("a"), facts: facts() });
    core.restore(Restored::Host { host: host("b"), facts: facts() });
    core.restore(Restored::Report(Box::new(report_of("a", 10, &FULL, Some(1.0)))));
    core.restore(told);
    Bench::of(core)
}

#[test]
fn a_vm_that_is_parked_is_so_after_a_restart() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL, &[]);
    let id = windows(&mut bench, 10, &FULL, &[])[0].id;
    let parked = || OutcomeResult::NotMoved { error: "link".to_owned(), whereabouts: Whereabouts::Parked };
    bench.outcome_of(vm(1), 25, id, parked());
    let record = persisted(&mut bench);
    assert!(!record.is_settled() && record.outcome.is_some());

    let mut bench = restarted(Restored::Command(record));
    // What is told again says nothing new.
    bench.outcome_of(vm(1), 26, id, parked());
    assert_eq!(bench.notices(), Vec::<&str>::new());
    for second in [30, 40, 50] {
        assert_eq!(windows(&mut bench, second, &FULL[1..], &[]), [], "its host lets another one go beside it");
    }
    bench.core.handle_timeout(at(5000));
    assert!(bench.core.vm(vm(1)).is_none_or(|vm| vm.in_flight == Some(id)), "it was given up");
    // It runs on the target, and what its agent has to say at last is heard.
    windows(&mut bench, 5010, &FULL[1..], &FULL[..1]);
    assert!(!bench.notices().contains(&"moved_by_somebody_else"));
    bench.outcome_of(vm(1), 5015, id, OutcomeResult::Moved(Moved { took_us: 1_000_000, ..Moved::default() }));
    assert!(!bench.notices().contains(&"outcome_without_command"));
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
}

#[test]
fn a_restart_right_after_a_move_does_not_make_a_stranger_of_gnomon() {
    let moved = || OutcomeResult::Moved(Moved { took_us: 2_000_000, ..Moved::default() });
    for is_answered in [true, false] {
        let mut bench = Bench::new(moving());
        windows(&mut bench, 0, &FULL, &[]);
        let id = windows(&mut bench, 10, &FULL, &[])[0].id;
        if is_answered {
            bench.outcome_of(vm(1), 25, id, moved());
        } else {
            bench.core.handle_timeout(at(5000));
        }
        let record = persisted(&mut bench);
        assert!(record.is_settled() && record.outcome.is_some() == is_answered);
        let mut bench = restarted(Restored::Tried(Box::new(record)));
        windows(&mut bench, 30, &FULL[1..], &FULL[..1]);
        assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
        assert!(!bench.notices().contains(&"moved_by_somebody_else"), "answered: {is_answered}");
    }
}

#[test]
fn a_vm_that_is_parked_keeps_its_place_on_both_hosts_until_it_runs() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL, &[]);
    let id = windows(&mut bench, 10, &FULL, &[])[0].id;
    let parked = OutcomeResult::NotMoved { error: "link".to_owned(), whereabouts: Whereabouts::Parked };
    bench.outcome_of(vm(1), 25, id, parked);
    assert_eq!(bench.notices(), ["vm_parked"]);
    assert_eq!(windows(&mut bench, 20, &FULL[1..], &[]), [], "its host lets another one go beside it");
    bench.core.handle_timeout(at(5000));
    assert!(bench.core.vm(vm(1)).is_none_or(|vm| vm.in_flight == Some(id)), "it was given up");
    // In the end it runs on the target, and the last word never comes.
    assert_eq!(windows(&mut bench, 5010, &FULL[1..], &FULL[..1]), []);
    let view = bench.core.vm(vm(1)).unwrap();
    assert_eq!((view.host, view.in_flight), (host("b"), None));
    assert!(!bench.notices().contains(&"moved_by_somebody_else"));
}

#[test]
fn a_vm_that_stands_still_between_two_hosts_claims_what_it_may_use_on_the_one_that_it_left() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL, &[]);
    let id = windows(&mut bench, 10, &FULL, &[])[0].id;
    let parked = OutcomeResult::NotMoved { error: "link".to_owned(), whereabouts: Whereabouts::Parked };
    bench.outcome_of(vm(1), 25, id, parked);
    bench.report_state_on("a", 20, 1, VmState::Paused);
    let outlook = bench.core.host(&host("a")).unwrap().outlook.unwrap();
    assert!((outlook.demand_cores - 1.0).abs() < 1e-9, "{} of its quota", outlook.demand_cores);
}

#[test]
fn what_a_move_comes_to_later_does_not_take_a_vm_back() {
    let mut bench = Bench::new(moving());
    bench.core.handle(at(0), Input::HostUp { host: host("c"), facts: facts() });
    bench.report_on("c", 0, &[], None);
    windows(&mut bench, 0, &FULL, &[]);
    let id = windows(&mut bench, 10, &FULL, &[])[0].id;
    let went_to = bench.core.vm(vm(1)).unwrap().host;
    assert_eq!(went_to, host("a"));
    // Nobody answers; it went to `b` and was sent on to `c` by hand.
    bench.report_on("c", 30, &FULL[..1], Some(1.0));
    bench.outcome_of(vm(1), 45, id, OutcomeResult::Moved(Moved { took_us: 1_000_000, ..Moved::default() }));
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("c"));
}

#[test]
fn a_host_is_not_sent_another_vm_while_one_arrives() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL, &[]);
    bench.report_state_on("b", 10, 9, VmState::Arriving);
    bench.report_on("a", 10, &FULL, Some(1.0));
    assert!(!bench.commands().iter().any(|command| matches!(command.action, Action::Migrate(_))));
}

#[test]
fn what_holds_a_vm_where_it_is_is_asked_once() {
    let mut bench = Bench::new(moving());
    bench.core.handle(at(0), Input::HostUp { host: host("c"), facts: facts() });
    bench.report_on("c", 0, &[], None);
    windows(&mut bench, 0, &FULL, &[]);
    let first = windows(&mut bench, 10, &FULL, &[]);
    bench.outcome_of(vm(1), 25, first[0].id, OutcomeResult::Immovable(Immovable::Storage("vda".to_owned())));
    bench.report_on("c", 20, &[], None);
    let second = windows(&mut bench, 20, &FULL, &[]);
    assert_eq!((second.len(), second[0].vm), (1, vm(2)));
}

#[test]
fn a_host_that_is_emptied_sends_its_vms_away_and_gets_none() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL[..2], &[]);
    bench.operate(15, OperatorRequest::Drain { host: host("a") });
    let moves = windows(&mut bench, 10, &FULL[..2], &[]);
    assert_eq!((moves.len(), target(&moves[0])), (1, "b"));
    bench.outcome_of(vm(1), 25, moves[0].id, OutcomeResult::Moved(Moved { took_us: 1_000_000, ..Moved::default() }));
    let moves = windows(&mut bench, 20, &FULL[1..2], &FULL[..1]);
    assert_eq!((moves.len(), moves[0].vm), (1, vm(2)));

    let mut bench = Bench::new(moving());
    bench.operate(0, OperatorRequest::Drain { host: host("b") });
    windows(&mut bench, 0, &FULL, &[]);
    assert_eq!(windows(&mut bench, 10, &FULL, &[]), []);
    bench.operate(25, OperatorRequest::Undrain { host: host("b") });
    assert_eq!(windows(&mut bench, 20, &FULL, &[]).len(), 1);
}

#[test]
fn a_pause_holds_at_once_and_an_owners_word_always() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL, &[]);
    bench.operate(15, OperatorRequest::Pause { scope: Scope::Fleet });
    assert_eq!(windows(&mut bench, 10, &FULL, &[]), []);

    let mut bench = Bench::new(moving());
    let mut moves = Vec::new();
    for second in [0, 10, 20] {
        let mut report = report_of("a", second, &FULL, Some(1.0));
        let terms = [
            VmTerms { stays: true, ..VmTerms::default() },
            VmTerms { mode: Some(Mode::Observe), ..VmTerms::default() },
            VmTerms { bound: Some("a GPU".to_owned()), ..VmTerms::default() },
            VmTerms { misunderstood: Some("mode=x".to_owned()), ..VmTerms::default() },
        ];
        report.vms.iter_mut().zip(terms).for_each(|(window, terms)| window.terms = terms);
        bench.report_on("b", second, &[], Some(1.0));
        bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
        moves.extend(bench.commands().into_iter().filter(|command| matches!(command.action, Action::Migrate(_))));
    }
    assert_eq!(moves, []);
}

#[test]
fn an_owner_who_wants_it_observed_is_obeyed_in_sizes_too() {
    let mut bench = Bench::new(policy(Mode::Auto));
    for (second, mode, commands) in [(0, Some(Mode::Observe), 0), (10, None, 1)] {
        let mut report = report_of("a", second, &[(1, 0.5, 0.9)], Some(0.5));
        report.vms[0].terms.mode = mode;
        bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
        assert_eq!(bench.commands().len(), commands);
    }
}

#[test]
fn an_operators_own_move_keeps_the_rules_and_needs_no_mode() {
    let mut bench = Bench::new(policy(Mode::Observe));
    windows(&mut bench, 0, &FULL[..1], &[]);
    assert!(bench.core.may_migrate(vm(1), &host("a")).is_err());
    assert!(bench.core.may_migrate(vm(1), &host("c")).is_err());
    assert!(bench.core.may_migrate(vm(9), &host("b")).is_err());
    bench.operate(11, OperatorRequest::Migrate { vm: vm(1), to: host("b") });
    let commands = bench.commands();
    assert_eq!((commands.len(), target(&commands[0])), (1, "b"));
    assert!(bench.core.may_migrate(vm(1), &host("b")).is_err(), "it is on its way");

    // There is no room for it beside what is there.
    let crowd: Vec<(u128, f64, f64)> = (10..14).map(|number| (number, 0.85, 0.85)).collect();
    let mut bench = Bench::new(policy(Mode::Observe));
    windows(&mut bench, 0, &FULL[..1], &crowd);
    let refusal = bench.core.may_migrate(vm(1), &host("b")).unwrap_err();
    assert!(refusal.to_string().contains("too little CPU"), "{refusal}");
}

#[test]
fn an_operator_gives_a_move_up_and_hears_where_the_vm_is() {
    let mut bench = Bench::new(policy(Mode::Observe));
    windows(&mut bench, 0, &FULL[..1], &[]);
    let abort = OperatorRequest::AbortMigration { vm: vm(1) };
    assert_eq!(bench.core.may_abort_migration(vm(1)).unwrap_err(), MoveRefusal::NotMoving);
    bench.operate(5, abort.clone());
    assert_eq!(bench.commands(), [], "there is nothing to give up");
    bench.operate(11, OperatorRequest::Migrate { vm: vm(1), to: host("b") });
    let migration = bench.commands().remove(0);
    assert_eq!(bench.core.may_abort_migration(vm(1)).unwrap().0, migration.id);
    bench.operate(12, abort.clone());
    let command = bench.commands().remove(0);
    assert_eq!((&command.action, command.vm), (&Action::AbortMigration, vm(1)));
    assert!(command.fence > migration.fence, "else the agent refuses it");
    bench.operate(13, abort);
    assert_eq!(bench.commands(), [], "it was told to already");

    let taken = OutcomeResult::Applied { before: vec![], after: vec![], took_us: 1 };
    bench.outcome_of(vm(1), 14, command.id, taken);
    assert!(bench.core.may_migrate(vm(1), &host("b")).is_err(), "the move itself is not answered yet");
    let here = OutcomeResult::NotMoved { error: "given up".to_owned(), whereabouts: Whereabouts::Here };
    bench.outcome_of(vm(1), 15, migration.id, here);
    let recent = bench.core.explain(vm(1)).unwrap().recent;
    assert!(recent.iter().filter(|action| action.result.is_some()).count() == 2, "{recent:?}");
    assert!(!bench.notices().contains(&"outcome_without_command"));
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("a"));
    assert!(bench.core.may_migrate(vm(1), &host("b")).is_ok(), "it may go later");
}

#[test]
fn a_word_to_give_up_that_stays_unanswered_is_forgotten_with_the_move_and_survives_a_restart() {
    let mut bench = Bench::new(policy(Mode::Observe));
    windows(&mut bench, 0, &FULL[..1], &[]);
    bench.operate(11, OperatorRequest::Migrate { vm: vm(1), to: host("b") });
    bench.operate(12, OperatorRequest::AbortMigration { vm: vm(1) });
    let records = bench.take().into_iter().filter_map(|output| match output {
        Output::Persist(Record::Command(record)) => Some(record),
        _ => None,
    });
    let records: Vec<_> = records.collect();
    let [migration, command] = [&records[0].command, &records[1].command];
    // A restart takes up both: neither takes the other's place.
    let mut core = crate::Core::new(policy(Mode::Observe), 1, 2);
    core.restore(Restored::Host { host: host("a"), facts: facts() });
    core.restore(Restored::Report(Box::new(report_of("a", 0, &FULL[..1], Some(1.0)))));
    records.iter().for_each(|record| core.restore(Restored::Command(record.clone())));
    let mut bench = Bench::of(core);
    windows(&mut bench, 20, &FULL[..1], &[]);
    assert!(matches!(bench.core.may_abort_migration(vm(1)), Err(MoveRefusal::InFlight(id)) if id == command.id));
    bench.outcome_of(vm(1), 25, migration.id, OutcomeResult::Moved(Moved { took_us: 1_000_000, ..Moved::default() }));
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
    assert_eq!(bench.core.may_abort_migration(vm(1)).unwrap_err(), MoveRefusal::NotMoving);
    let unanswered = |output: &Output| matches!(output, Output::Persist(Record::Command(record)) if record.unanswered && record.command.id == command.id);
    assert!(bench.take().iter().any(unanswered));
}

#[test]
fn a_vm_that_arrives_is_where_it_runs() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL[..1], &[]);
    bench.report_state_on("b", 10, 1, VmState::Arriving);
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("a"));
    assert_eq!(bench.notices(), [] as [&str; 0]);
}

#[test]
fn a_host_that_has_not_told_yet_is_waited_for() {
    let mut bench = Bench::new(moving());
    windows(&mut bench, 0, &FULL, &[]);
    bench.core.handle(at(11), Input::HostUp { host: host("c"), facts: facts() });
    assert_eq!(windows(&mut bench, 10, &FULL, &[]), []);
    bench.report_on("c", 10, &[], None);
    assert_eq!(windows(&mut bench, 20, &FULL, &[]).len(), 1);
}
