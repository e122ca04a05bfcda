//! What a move takes, by how fast guests write to their memory: when that is asked for, and what is made of it.

use gnomon_common::wire::{Action, Command, Moved, OutcomeResult, VmId, VmTerms};

use super::bench::{Bench, host, policy, report_of, vm};
use super::{Input, at};
use crate::io::{OperatorRequest, Output, Record, Scope};
use crate::policy::{MigratePolicy, Mode, Policy};

/// Four VMs of nearly a core each on `a`, which has 3.6 for them. The first has 512 MiB, the others twice as much.
const FULL: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];

/// Bytes per second; a move is thought to have a link of 100 MB/s.
const MUCH: u64 = 80_000_000;
const TOO_MUCH: u64 = 200_000_000;
const LITTLE: u64 = 1_000_000;

fn moving(rounds: u32) -> Policy {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds, ..MigratePolicy::default() };
    Policy { migrate, ..policy(Mode::Auto) }
}

/// Windows of both hosts, that of `b` empty; the commands that follow.
fn windows(bench: &mut Bench, second: u64, terms: &[VmTerms]) -> Vec<Command> {
    bench.report_on("b", second, &[], Some(1.0));
    let mut report = report_of("a", second, &FULL, Some(1.0));
    report.vms[0].allocation.memory_bytes = 512 << 20;
    report.vms.iter_mut().zip(terms).for_each(|(window, terms)| window.terms = terms.clone());
    bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
    bench.commands_by_the_rules()
}

/// Whose memory is to be measured.
fn asked(commands: &[Command]) -> Vec<VmId> {
    let is_asked = |command: &&Command| matches!(command.action, Action::DirtyRate { .. });
    commands.iter().filter(is_asked).map(|command| command.vm).collect()
}

fn moves(commands: &[Command]) -> Vec<&Command> {
    commands.iter().filter(|command| matches!(command.action, Action::Migrate(_))).collect()
}

fn answer(bench: &mut Bench, second: u64, commands: &[Command], rates: &[u64]) {
    let asked = commands.iter().filter(|command| matches!(command.action, Action::DirtyRate { .. }));
    for (command, &bytes_per_s) in asked.zip(rates) {
        bench.outcome_of(command.vm, second, command.id, OutcomeResult::DirtyRate { bytes_per_s });
    }
}

#[test]
fn a_small_vm_that_writes_much_loses_to_a_larger_calm_one() {
    let mut bench = Bench::new(moving(2));
    let first = windows(&mut bench, 0, &[]);
    assert_eq!((asked(&first), moves(&first).len()), ((1..=4).map(vm).collect(), 0));
    assert_eq!(first[0].action, Action::DirtyRate { period_s: 1 });
    assert_eq!(first[0].reason, "what it would take to move it decides which VM leaves its host");
    answer(&mut bench, 12, &first, &[MUCH, MUCH, LITTLE]);
    assert_eq!(bench.core.vm(vm(1)).unwrap().dirty_bytes_per_s, Some(MUCH));
    assert_eq!(bench.core.vm(vm(4)).unwrap().dirty_bytes_per_s, None);
    answer(&mut bench, 13, &first[3..], &[MUCH]);
    bench.take();
    let second = windows(&mut bench, 10, &[]);
    assert_eq!((moves(&second).len(), moves(&second)[0].vm, asked(&second)), (1, vm(3), vec![]));
}

#[test]
fn of_many_alike_only_the_first_are_measured_and_one_of_them_goes() {
    let mut bench = Bench::new(moving(2));
    let many: Vec<(u128, f64, f64)> = (1..=8).map(|number| (number, 0.475, 0.475)).collect();
    let windows = |bench: &mut Bench, second: u64| {
        bench.report_on("b", second, &[], Some(1.0));
        bench.report_on("a", second, &many, Some(1.0));
        bench.commands_by_the_rules()
    };
    let first = windows(&mut bench, 0);
    assert_eq!(asked(&first).len(), 4);
    answer(&mut bench, 12, &first, &[LITTLE; 4]);
    bench.take();
    let second = windows(&mut bench, 10);
    assert_eq!((asked(&second), moves(&second).len()), (vec![], 1));
    assert!(asked(&first).contains(&moves(&second)[0].vm));
}

#[test]
fn without_the_measurements_the_smallest_would_go_and_where_they_say_nothing_it_does() {
    for rates in [&[][..], &[LITTLE; 4]] {
        let mut bench = Bench::new(moving(2));
        let first = windows(&mut bench, 0, &[]);
        answer(&mut bench, 12, &first, rates);
        bench.take();
        let second = windows(&mut bench, 10, &[]);
        assert_eq!((moves(&second).len(), moves(&second)[0].vm, asked(&second)), (1, vm(1), vec![]));
        let said = "; its guest writes to 1.0 MiB of its memory a second, so that 517 MiB have to travel";
        assert_eq!(moves(&second)[0].reason.ends_with(said), !rates.is_empty(), "{}", moves(&second)[0].reason);
    }
}

#[test]
fn one_that_writes_faster_than_the_link_goes_only_where_no_other_is_enough_and_the_reason_says_so() {
    let stays = VmTerms { stays: true, ..VmTerms::default() };
    let mut bench = Bench::new(moving(2));
    let terms = [VmTerms::default(), VmTerms::default(), stays.clone(), stays.clone()];
    let first = windows(&mut bench, 0, &terms);
    assert_eq!(asked(&first), [vm(1), vm(2)], "those that may leave");
    answer(&mut bench, 12, &first, &[TOO_MUCH, MUCH]);
    bench.take();
    let second = windows(&mut bench, 10, &terms);
    assert_eq!((moves(&second).len(), moves(&second)[0].vm), (1, vm(2)));

    let mut bench = Bench::new(moving(2));
    let terms = [VmTerms::default(), stays.clone(), stays.clone(), stays];
    let first = windows(&mut bench, 0, &terms);
    answer(&mut bench, 12, &first, &[TOO_MUCH]);
    bench.take();
    let second = windows(&mut bench, 10, &terms);
    let reason = &moves(&second)[0].reason;
    let said = "its guest writes to 190.7 MiB of its memory a second, more than the 95.4 that the link carries: the move may have to be given up";
    assert!(reason.ends_with(said), "{reason}");
    let lines = bench.core.explain(vm(1)).unwrap().lines;
    assert!(lines.iter().any(|line| line.contains(said)), "{lines:?}");
}

#[test]
fn a_move_waits_for_the_answers_but_not_for_long() {
    let mut bench = Bench::new(moving(1));
    let first = windows(&mut bench, 0, &[]);
    assert_eq!((asked(&first).len(), moves(&first).len()), (4, 0));
    let second = windows(&mut bench, 10, &[]);
    assert_eq!((asked(&second).len(), moves(&second).len()), (0, 1), "nobody answers");

    // A host that is emptied has them measured at once.
    let mut bench = Bench::new(moving(9));
    windows(&mut bench, 0, &[]);
    bench.core.handle_timeout(at(1000));
    bench.take();
    bench.operate(1001, OperatorRequest::Drain { host: host("a") });
    let commands = bench.commands();
    assert_eq!(asked(&commands).len(), 0, "that they did not answer is believed for a while");
    let mut bench =
        Bench::new(Policy { migrate: MigratePolicy { reserve_share: 0.0, ..moving(9).migrate }, ..moving(9) });
    windows(&mut bench, 0, &[]);
    bench.operate(18, OperatorRequest::Drain { host: host("a") });
    let commands = bench.commands();
    assert_eq!(asked(&commands).len(), 4);
    assert_eq!(moves(&windows(&mut bench, 10, &[])).len(), 0, "two seconds are no time");
    answer(&mut bench, 20, &commands, &[LITTLE; 2]);
    bench.report_at(at(21), "a", 11, &FULL, Some(1.0));
    assert_eq!(moves(&bench.commands()).len(), 0, "not all have answered");
    answer(&mut bench, 21, &commands[2..], &[LITTLE; 2]);
    bench.take();
    let next = windows(&mut bench, 20, &[]);
    assert!(moves(&next)[0].reason.starts_with("its host is being emptied; its guest writes to"), "{next:?}");
}

#[test]
fn nobody_is_asked_about_what_is_paused_or_would_not_be_moved() {
    for mode in [Mode::Observe, Mode::Recommend, Mode::Approve] {
        let mut policy = moving(2);
        policy.migrate.mode = mode;
        assert_eq!(asked(&windows(&mut Bench::new(policy), 0, &[])), [] as [VmId; 0], "{mode:?}");
    }
    let mut bench = Bench::new(moving(2));
    bench.operate(1, OperatorRequest::Pause { scope: Scope::Vm(vm(2)) });
    assert_eq!(asked(&windows(&mut bench, 0, &[])), [vm(1), vm(3), vm(4)]);
    let mut bench = Bench::new(moving(2));
    let observed = VmTerms { mode: Some(Mode::Observe), ..VmTerms::default() };
    assert_eq!(asked(&windows(&mut bench, 0, &[observed])), [vm(2), vm(3), vm(4)]);
    // A calm host's VMs are nobody's business.
    let mut bench = Bench::new(moving(2));
    bench.report_on("b", 0, &[], None);
    bench.report(0, &FULL[..2], Some(1.0));
    assert_eq!(asked(&bench.commands()), []);
}

/// Seven VMs surge together, a minute in every five: 4.5 cores of the 3.6 that `a` has for them.
fn surging(second: u64) -> Vec<(u128, f64, f64)> {
    let wander = ((second * 7919) % 101) as f64 / 10_000.0;
    let cores = if (100..160).contains(&(second % 300)) { 0.64 + wander } else { 0.1 + wander };
    (1..=7).map(|number| (number, cores, cores)).collect()
}

/// Windows of both hosts while the seven live, with each forecast made at once; the commands that follow.
fn lives(bench: &mut Bench, second: u64) -> Vec<Command> {
    bench.report_on("b", second, &[], Some(1.0));
    bench.report(second, &surging(second), Some(1.0));
    let mut commands = Vec::new();
    while let Some(output) = bench.core.poll_output() {
        match output {
            Output::Fit(job) => bench.core.handle(at(second + 10), Input::FitDone(Box::new(job.run()))),
            Output::Command { command, .. } => commands.push(command),
            _ => {}
        }
    }
    commands
}

/// The seven have lived to the calm after the twelfth surge, and from now on VMs may be moved.
fn before_a_surge() -> Bench {
    let mut observing = moving(1);
    observing.migrate.mode = Mode::Observe;
    // No VM's size is changed: this is about moves.
    observing.cpu.floor_cores = 1.0;
    let mut bench = Bench::new(observing.clone());
    for second in (0..3500).step_by(10) {
        assert_eq!(asked(&lives(&mut bench, second)), [], "nothing is moved, and nobody asked");
    }
    let auto = Policy { migrate: MigratePolicy { mode: Mode::Auto, ..observing.migrate.clone() }, ..observing };
    bench.core.handle(at(3505), Input::Policy(Box::new(auto)));
    bench
}

#[test]
fn nobody_is_asked_ahead_of_a_surge_where_no_host_has_room() {
    let mut bench = before_a_surge();
    bench.operate(3506, OperatorRequest::Pause { scope: Scope::Host(host("b")) });
    let is_calm = |bench: &Bench| bench.core.hosts()[0].outlook.unwrap().full_rounds == 0;
    for second in (3500..3700).step_by(10) {
        let commands = lives(&mut bench, second);
        if !is_calm(&bench) {
            return;
        }
        assert_eq!(asked(&commands), [], "at {second}");
    }
    panic!("the surge was not foreseen");
}

#[test]
fn a_foreseen_move_finds_the_answers_there_when_it_is_due() {
    let mut bench = before_a_surge();
    let (mut asked_at, mut moved_at) = (Vec::new(), None);
    for second in (3500..3700).step_by(10) {
        let commands = lives(&mut bench, second);
        asked_at.extend(asked(&commands).iter().map(|_| second));
        answer(&mut bench, second + 12, &commands, &[LITTLE; 4]);
        let outlook = bench.core.hosts()[0].outlook.unwrap();
        if let Some(command) = moves(&commands).first() {
            assert!(command.reason.contains("its guest writes to 1.0 MiB"), "{}", command.reason);
            moved_at = Some(second);
            break;
        }
        assert_eq!(outlook.full_rounds, 0, "it is due at {second}, and waits for {asked_at:?}");
    }
    let moved_at = moved_at.expect("nothing was moved");
    assert!(moved_at < 3690, "before the surge: {moved_at}");
    assert_eq!(asked_at.len(), 4, "of seven alike, a few, once: {asked_at:?}");
    assert!(asked_at.iter().all(|asked| (10..=30).contains(&(moved_at - asked))), "{asked_at:?} for {moved_at}");
}

#[test]
fn what_stays_unanswered_or_fails_is_said_and_not_asked_again_for_a_while() {
    let mut bench = Bench::new(moving(9));
    let first = windows(&mut bench, 0, &[]);
    let old = OutcomeResult::Failed { error: "QEMU is too old".to_owned(), retryable: false };
    bench.outcome_by("b", 11, first[0].id, old.clone());
    assert_eq!(bench.notices(), ["outcome_of_foreign_command"]);
    bench.outcome_of(vm(1), 12, first[0].id, old);
    let audited = bench.audited();
    assert!(audited.iter().any(|(verb, detail)| verb == "outcome" && detail.ends_with("failed: QEMU is too old")));
    bench.core.handle_timeout(at(100));
    let outputs = bench.take();
    let unanswered = |output: &&Output| matches!(output, Output::Persist(Record::Command(record)) if record.unanswered);
    assert_eq!(outputs.iter().filter(unanswered).count(), 3);
    for second in [100, 110] {
        assert_eq!(asked(&windows(&mut bench, second, &[])), []);
    }
    let lines = bench.core.explain(vm(1)).unwrap().lines;
    let said = "How fast its guest writes to its memory could not be measured: QEMU is too old.";
    assert!(lines.iter().any(|line| line == said), "{lines:?}");
    assert_eq!(asked(&windows(&mut bench, 700, &[])).len(), 4, "later it may be different");
}

#[test]
fn a_measurement_that_a_restart_forgot_is_neither_sent_again_nor_in_the_way() {
    let mut bench = Bench::new(moving(2));
    bench.report_on("b", 0, &[], None);
    bench.report(0, &FULL, Some(1.0));
    let records: Vec<_> = bench
        .take()
        .into_iter()
        .filter_map(|output| match output {
            Output::Persist(Record::Command(record)) => Some(record),
            _ => None,
        })
        .collect();
    assert_eq!(records.len(), 4);
    assert!(bench.core.may_send_again(&records[0]), "its host may not have heard");
    let mut core = crate::Core::new(moving(2), 1, 2);
    records.iter().for_each(|record| core.restore(crate::io::Restored::Command(record.clone())));
    assert!(!core.may_send_again(&records[0]));
    let mut bench = Bench::of(core);
    assert_eq!(asked(&windows(&mut bench, 20, &[])).len(), 4, "they are asked for anew");
    let second = windows(&mut bench, 30, &[]);
    assert_eq!(moves(&second).len(), 1);
    let moved = OutcomeResult::Moved(Moved { took_us: 1_000_000, ..Moved::default() });
    bench.outcome_of(vm(1), 41, moves(&second)[0].id, moved);
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
}
