//! Modes by scope: the most cautious of those that apply counts.

use gnomon_common::wire::{Action, Command, VmTerms};

use super::bench::{Bench, facts, host, policy, report_of, vm};
use super::{Input, at};
use crate::io::{OperatorRequest, Output, Record, Restored, Scope};
use crate::plan::guard::Guard;
use crate::policy::{MigratePolicy, Mode, Policy};
use crate::view::{ModeSource, ModeView};

const MODES: [Mode; 4] = [Mode::Observe, Mode::Recommend, Mode::Approve, Mode::Auto];

fn set(bench: &mut Bench, scope: Scope, mode: Mode) {
    bench.operate(1, OperatorRequest::SetMode { scope, mode });
    bench.take();
}

/// Commands, proposals and recommendations that come of two VMs in want.
fn comes_of_want(bench: &mut Bench, second: u64) -> (usize, usize, usize) {
    bench.report(second, &[(1, 0.2, 0.9), (2, 0.2, 0.9)], Some(0.2));
    let (mut commands, mut proposals, mut planned) = (0, 0, 0);
    for output in bench.take() {
        match output {
            Output::Command { .. } => commands += 1,
            Output::Persist(Record::Proposal(_)) => proposals += 1,
            Output::Persist(Record::Plan(plan)) => planned += plan.actions.len(),
            Output::Notice(notice) => panic!("{notice:?}"),
            _ => {}
        }
    }
    (commands, proposals, planned - commands - proposals)
}

#[test]
fn of_all_that_is_said_the_most_cautious_counts_and_every_word_does_what_it_says() {
    for mode in MODES {
        let expected = match mode {
            Mode::Observe => (1, 0, 0),
            Mode::Recommend => (1, 0, 1),
            Mode::Approve => (1, 1, 0),
            Mode::Auto => (2, 0, 0),
        };
        let mut bench = Bench::new(policy(Mode::Auto));
        set(&mut bench, Scope::Vm(vm(2)), mode);
        assert_eq!(comes_of_want(&mut bench, 0), expected, "{mode}");
        for scope in [Scope::Fleet, Scope::Host(host("a"))] {
            let mut bench = Bench::new(policy(Mode::Auto));
            set(&mut bench, scope, mode);
            let twice = (2 * (expected.0 - 1), 2 * expected.1, 2 * expected.2);
            assert_eq!(comes_of_want(&mut bench, 0), twice, "{mode}");
        }
        let mut bench = Bench::new(policy(Mode::Observe));
        set(&mut bench, Scope::Vm(vm(2)), mode);
        assert_eq!(comes_of_want(&mut bench, 0), (0, 0, 0), "policy says what is done at most");
    }
}

#[test]
fn an_owner_has_the_same_four_words_and_it_is_told_whose_word_counts() {
    for mode in MODES {
        let mut bench = Bench::new(policy(Mode::Auto));
        set(&mut bench, Scope::Host(host("a")), Mode::Approve);
        let mut report = report_of("a", 0, &[(1, 0.2, 0.9)], Some(0.2));
        report.vms[0].terms = VmTerms { mode: Some(mode), ..VmTerms::default() };
        bench.core.handle(at(10), Input::Report(Box::new(report)));
        assert_eq!(bench.commands(), [], "{mode}");
        assert_eq!(bench.core.proposals().len(), usize::from(mode >= Mode::Approve), "{mode}");
        let by = if mode < Mode::Approve { ModeSource::Owner } else { ModeSource::Host };
        assert_eq!(bench.core.vm(vm(1)).unwrap().mode, ModeView { mode: mode.min(Mode::Approve), by });
    }
}

#[test]
fn a_mode_moves_with_its_vm_ends_with_auto_is_audited_and_survives_a_restart() {
    let mut bench = Bench::new(policy(Mode::Auto));
    comes_of_want(&mut bench, 0);
    bench.operate(11, OperatorRequest::SetMode { scope: Scope::Vm(vm(2)), mode: Mode::Recommend });
    let outputs = bench.take();
    let kept = outputs.iter().find_map(|output| match output {
        Output::Persist(Record::Mode { scope, mode }) => Some((scope.clone(), *mode)),
        _ => None,
    });
    assert_eq!(kept, Some((Scope::Vm(vm(2)), Some(Mode::Recommend))));
    let told = outputs.iter().find_map(|output| match output {
        Output::Persist(Record::Audit(audit)) => {
            Some((audit.actor.as_str(), audit.verb.as_str(), audit.detail.as_str()))
        }
        _ => None,
    });
    assert_eq!(told, Some(("alice", "mode", "recommend; was auto before")));
    let explained = bench.core.explain(vm(2)).unwrap().lines.join("\n");
    assert!(explained.contains("Its mode is recommend, by the word of an operator about it"), "{explained}");

    let mut core = crate::Core::new(policy(Mode::Auto), 1, 2);
    core.restore(Restored::Mode { scope: Scope::Vm(vm(2)), mode: Mode::Recommend });
    let mut bench = Bench::of(core);
    assert_eq!(comes_of_want(&mut bench, 0), (1, 0, 1));
    bench.report_on("b", 20, &[(2, 0.2, 0.9)], Some(0.2));
    assert_eq!(bench.core.vm(vm(2)).unwrap().mode.mode, Mode::Recommend);
    set(&mut bench, Scope::Vm(vm(2)), Mode::Auto);
    assert_eq!(bench.core.modes(), []);
}

#[test]
fn what_waits_for_an_operator_is_withdrawn_where_the_mode_becomes_another() {
    let mut bench = Bench::new(policy(Mode::Auto));
    set(&mut bench, Scope::Host(host("a")), Mode::Approve);
    assert_eq!(comes_of_want(&mut bench, 0), (0, 2, 0));
    bench.operate(12, OperatorRequest::SetMode { scope: Scope::Vm(vm(2)), mode: Mode::Observe });
    let due = bench.core.poll_timeout().unwrap();
    bench.core.handle_timeout(due.max(at(12)));
    let [first, second] =
        [vm(1), vm(2)].map(|id| bench.core.proposals().into_iter().find(|proposal| proposal.action.vm == id).unwrap());
    assert!(first.state.is_open() && !second.state.is_open());
    assert_eq!(second.detail, "the mode is observe now");
}

/// Four VMs of nearly a core each on `a`, which has 4.0, and `b` empty.
const FULL: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];

fn moves(bench: &mut Bench, seconds: &[u64]) -> Vec<Command> {
    let mut moves = Vec::new();
    for &second in seconds {
        bench.report_on("b", second, &[], Some(1.0));
        bench.report_on("a", second, &FULL, Some(1.0));
        let is_move = |command: &Command| matches!(command.action, Action::Migrate(_));
        moves.extend(bench.commands_by_the_rules().into_iter().filter(is_move));
    }
    moves
}

fn moving() -> Policy {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, ..MigratePolicy::default() };
    Policy { migrate, ..policy(Mode::Auto) }
}

#[test]
fn of_a_full_host_a_vm_goes_whose_mode_lets_most_be_done_and_to_a_host_that_lets_as_much() {
    let mut bench = Bench::new(moving());
    set(&mut bench, Scope::Vm(vm(1)), Mode::Observe);
    set(&mut bench, Scope::Vm(vm(2)), Mode::Approve);
    let went = moves(&mut bench, &[0, 10]);
    assert_eq!(went.iter().map(|command| command.vm).collect::<Vec<_>>(), [vm(3)], "neither is asked for nor told");
    assert!(bench.core.proposals().is_empty());

    let mut bench = Bench::new(moving());
    (1..=4).for_each(|number| set(&mut bench, Scope::Vm(vm(number)), Mode::Approve));
    assert_eq!(moves(&mut bench, &[0, 10, 20]), []);
    assert_eq!(bench.core.proposals().len(), 1, "where none goes by itself one is asked for");

    let mut bench = Bench::new(moving());
    set(&mut bench, Scope::Host(host("b")), Mode::Recommend);
    assert_eq!(moves(&mut bench, &[0, 10, 20]), []);
    bench.core.handle(at(30), Input::HostUp { host: host("c"), facts: facts() });
    bench.report_on("c", 20, &[], Some(1.0));
    let went = moves(&mut bench, &[30]);
    assert!(matches!(&went[..], [Command { action: Action::Migrate(to), .. }] if to.to == host("c")), "{went:?}");
}

#[test]
fn what_the_planner_forgets_of_modes_the_linter_knows() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.core.without_guard(Some(Guard::Modes), None);
    set(&mut bench, Scope::Vm(vm(2)), Mode::Recommend);
    bench.report(0, &[(2, 0.2, 0.9)], Some(0.2));
    let outputs = bench.take();
    let refused = outputs.iter().any(
        |output| matches!(output, Output::Notice(notice) if notice.text.contains("would be changed in mode recommend")),
    );
    assert!(refused && !outputs.iter().any(|output| matches!(output, Output::Command { .. })), "{outputs:?}");
}
