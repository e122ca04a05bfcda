//! Mode `approve`: what is planned waits for an operator, and is judged again before it leaves.

use gnomon_common::wire::{Action, Command, Moved, OutcomeResult, Setting, VmState};

use super::bench::{Bench, applied, host, policy, report_with_memory, vm};
use super::{Input, at};
use crate::io::{OperatorRequest, Output, Record, Restored, Scope};
use crate::policy::{ApprovePolicy, MigratePolicy, Mode, Policy};
use crate::proposal::{Proposal, ProposalKey, ProposalRefusal, ProposalState};

fn asking() -> Policy {
    let approve = ApprovePolicy { timeout_ms: 600_000, cool_down_ms: 300_000, open_max: 2 };
    Policy { approve, ..policy(Mode::Approve) }
}

fn starved(bench: &mut Bench, second: u64) {
    bench.report(second, &[(1, 0.2, 0.9)], Some(0.2));
}

fn open(bench: &Bench) -> Vec<Proposal> {
    bench.core.proposals().into_iter().filter(|proposal| proposal.state.is_open()).collect()
}

fn decide(bench: &mut Bench, second: u64, key: ProposalKey, approves: bool) -> Vec<Command> {
    let request =
        if approves { OperatorRequest::ApproveProposal { key } } else { OperatorRequest::DenyProposal { key } };
    bench.operate(second, request);
    bench.commands_by_the_rules()
}

fn state(bench: &Bench, key: ProposalKey) -> ProposalState {
    bench.core.proposal(key).unwrap().state
}

#[test]
fn nothing_leaves_before_an_operator_has_approved_it_and_then_once() {
    let mut bench = Bench::new(asking());
    for second in [0, 10, 20] {
        starved(&mut bench, second);
    }
    let outputs = bench.take();
    let is_wrong = |output: &Output| match output {
        Output::Command { .. } => true,
        Output::Notice(notice) => notice.kind == "plan_refused_by_linter",
        _ => false,
    };
    assert!(!outputs.iter().any(is_wrong), "{outputs:?}");
    let made = outputs.iter().filter(|output| matches!(output, Output::Persist(Record::Proposal(_)))).count();
    assert_eq!(made, 1, "the same is proposed once");
    let [proposal] = &open(&bench)[..] else { panic!("one is open") };
    assert_eq!(proposal.key, ProposalKey { term: 1, number: 1 });
    assert_eq!((proposal.summary.as_str(), proposal.expires), ("CPU quota 0.20 cores -> 0.99 cores", at(10 + 600)));
    assert!(proposal.reason.contains("live demand"), "{}", proposal.reason);
    assert!(bench.core.explain(vm(1)).unwrap().lines.iter().any(|line| line.starts_with("Proposal 1-1 waits")));

    let commands = decide(&mut bench, 25, proposal.key, true);
    let [command] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(command.action, Action::Set(Setting::CpuQuota { cores: Some(0.99) }));
    assert!(command.reason.ends_with("; approved by alice"), "{}", command.reason);
    assert_eq!(decide(&mut bench, 26, proposal.key, true), [], "it is decided");
    bench.outcome(27, command.id, applied(0.2, 0.99));
    assert!(bench.core.vm(vm(1)).unwrap().held.is_empty(), "it stays Gnomon's to change");
}

#[test]
fn a_release_and_an_operators_own_setting_wait_for_nobody() {
    let mut bench = Bench::new(asking());
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.3));
    bench.operate(5, OperatorRequest::Set { vm: vm(1), setting: Setting::CpuQuota { cores: Some(0.5) } });
    let set = bench.commands().pop().unwrap();
    bench.outcome(6, set.id, applied(0.3, 0.5));
    bench.operate(7, OperatorRequest::Release { scope: Scope::Vm(vm(1)) });
    assert_eq!(bench.commands().pop().unwrap().action, Action::Release);
}

#[test]
fn a_plan_that_changes_replaces_its_proposal_and_one_that_is_not_wanted_is_withdrawn() {
    let mut bench = Bench::new(asking());
    starved(&mut bench, 0);
    let first = open(&bench)[0].key;
    bench.report(10, &[(1, 0.2, 0.88)], Some(0.2));
    assert_eq!(open(&bench)[0].key, first, "within the hysteresis it is the same");
    bench.report(20, &[(1, 0.2, 0.5)], Some(0.2));
    let second = open(&bench)[0].key;
    assert_eq!((state(&bench, first), open(&bench).len()), (ProposalState::Superseded, 1));
    let refused = bench.core.may_decide_proposal(first, true);
    assert_eq!(refused, Err(ProposalRefusal::Decided { key: first, state: ProposalState::Superseded }));
    // What is not believed tells nothing.
    bench.report(25, &[(1, 0.5, 0.1)], Some(0.2));
    assert_eq!(state(&bench, second), ProposalState::AwaitingApproval);
    assert_eq!(bench.core.may_decide_proposal(second, true), Err(ProposalRefusal::Silent(host("a"))));
    bench.report(35, &[(1, 0.15, 0.15)], Some(0.2));
    assert_eq!(state(&bench, second), ProposalState::Withdrawn);
}

#[test]
fn what_was_denied_is_not_proposed_again_for_a_while_even_after_a_restart() {
    let mut bench = Bench::new(asking());
    starved(&mut bench, 0);
    let key = open(&bench)[0].key;
    assert_eq!(decide(&mut bench, 15, key, false), []);
    let denied = bench.core.proposal(key).unwrap().clone();
    assert_eq!((denied.state, denied.decided_by.as_deref()), (ProposalState::Denied, Some("alice")));

    let mut again = Bench::with_term(asking(), 2);
    again.core.restore(Restored::Proposal(Box::new(denied)));
    for bench in [&mut bench, &mut again] {
        for second in (20..300).step_by(10) {
            starved(bench, second);
            assert_eq!(open(bench), [], "{second}");
        }
        starved(bench, 310);
        assert_eq!(open(bench).len(), 1);
    }
}

#[test]
fn one_that_nobody_decides_expires_and_an_open_one_survives_a_restart() {
    let mut bench = Bench::new(asking());
    starved(&mut bench, 0);
    let proposal = open(&bench)[0].clone();
    let mut again = Bench::with_term(asking(), 2);
    again.core.restore(Restored::Proposal(Box::new(proposal.clone())));
    for bench in [&mut bench, &mut again] {
        assert_eq!(bench.core.poll_timeout(), Some(at(610)));
        bench.core.handle_timeout(at(609));
        assert_eq!(state(bench, proposal.key), ProposalState::AwaitingApproval);
        bench.core.handle_timeout(at(610));
        assert_eq!(state(bench, proposal.key), ProposalState::Expired);
        assert!(bench.audited().iter().any(|(verb, _)| verb == "expire"));
        assert_eq!(bench.core.poll_timeout(), None);
    }
}

#[test]
fn after_a_restart_one_is_approved_only_once_its_host_has_told_of_now() {
    let mut bench = Bench::new(asking());
    starved(&mut bench, 0);
    let proposal = open(&bench)[0].clone();
    let mut again = Bench::with_term(asking(), 2);
    again.core.restore(Restored::Report(Box::new(super::bench::report_of("a", 0, &[(1, 0.2, 0.9)], Some(0.2)))));
    again.core.restore(Restored::Proposal(Box::new(proposal.clone())));
    assert_eq!(again.core.may_decide_proposal(proposal.key, true), Err(ProposalRefusal::Silent(host("a"))));
    starved(&mut again, 30);
    assert_eq!(open(&again)[0].key, proposal.key, "it is confirmed, not made anew");
    assert_eq!(decide(&mut again, 41, proposal.key, true).len(), 1);
}

/// What may have come between a proposal and its approval, and a part of what is then said.
type Change = (fn(&mut Bench), &'static str);

#[test]
fn what_no_longer_holds_is_refused_with_the_reason() {
    let changes: [Change; 4] = [
        (|bench| bench.operate(12, OperatorRequest::Pause { scope: Scope::Fleet }), "not Gnomon's to change"),
        (|bench| bench.report_state(10, 1, VmState::Paused), "the VM is Paused"),
        (|bench| bench.report_on("b", 10, &[(1, 0.2, 0.9)], Some(0.2)), "no longer on host a"),
        (
            |bench| {
                let mut policy = asking();
                policy.mode = Mode::Observe;
                bench.core.handle(at(12), Input::Policy(Box::new(policy)));
            },
            "the mode is observe now",
        ),
    ];
    for (change, expected) in changes {
        let mut bench = Bench::new(asking());
        starved(&mut bench, 0);
        let key = open(&bench)[0].key;
        change(&mut bench);
        // The report that would withdraw it has not come.
        if bench.core.proposal(key).unwrap().state.is_open() {
            assert_eq!(decide(&mut bench, 21, key, true), []);
            assert_eq!(state(&bench, key), ProposalState::Refused, "{expected}");
        }
        let proposal = bench.core.proposal(key).unwrap();
        let gone = proposal.state == ProposalState::Withdrawn || proposal.detail.contains(expected);
        assert!(gone, "{expected}: {}", proposal.detail);
    }
}

#[test]
fn another_mode_withdraws_what_waits() {
    let mut bench = Bench::new(asking());
    starved(&mut bench, 0);
    let key = open(&bench)[0].key;
    bench.core.handle(at(12), Input::Policy(Box::new(policy(Mode::Recommend))));
    assert!(bench.core.poll_timeout().is_some_and(|due| due <= at(12)));
    bench.core.handle_timeout(at(12));
    assert_eq!(state(&bench, key), ProposalState::Withdrawn);
}

#[test]
fn each_means_has_its_own_and_so_many_wait_at_most() {
    let mut bench = Bench::new(asking());
    bench.core.handle(at(10), Input::Report(Box::new(report_with_memory(0, 0.2, 0.9, 256, 500))));
    bench.core.handle(at(20), Input::Report(Box::new(report_with_memory(10, 0.2, 0.9, 256, 500))));
    assert_eq!(open(&bench).len(), 2, "CPU, then memory");
    bench.take();
    let mut full = 0;
    for second in [20, 30] {
        let mut report = report_with_memory(second, 0.2, 0.9, 256, 500);
        report.vms.push(super::bench::report_of("a", second, &[(2, 0.2, 0.9)], Some(0.2)).vms.remove(0));
        bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
        full += bench.notices().iter().filter(|kind| **kind == "proposals_full").count();
    }
    assert_eq!((open(&bench).len(), full), (2, 1), "said once");
}

#[test]
fn a_move_waits_as_well_and_only_one_of_a_host_is_proposed() {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, ..MigratePolicy::default() };
    let full: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];
    let windows = |bench: &mut Bench, second: u64, of_a: &[(u128, f64, f64)]| {
        bench.report_on("b", second, &[], Some(1.0));
        bench.report_on("a", second, of_a, Some(1.0));
    };
    let mut bench = Bench::new(Policy { migrate, ..asking() });
    for second in [0, 10, 20, 30] {
        windows(&mut bench, second, &full);
    }
    assert_eq!(bench.commands(), []);
    let [proposal] = &open(&bench)[..] else { panic!("{:?}", open(&bench)) };
    assert!(proposal.effect.contains("the other host"), "{}", proposal.effect);
    decide(&mut bench, 41, proposal.key, false);
    windows(&mut bench, 40, &full);
    let next = open(&bench)[0].clone();
    assert_ne!(next.action.vm, proposal.action.vm, "the denied VM stays");
    let commands = decide(&mut bench, 51, next.key, true);
    assert!(matches!(commands[..], [Command { action: Action::Migrate(_), .. }]), "{commands:?}");
    let moved = OutcomeResult::Moved(Moved { took_us: 2_000_000, ..Moved::default() });
    bench.outcome_of(next.action.vm, 55, commands[0].id, moved);
    assert_eq!(bench.core.vm(next.action.vm).unwrap().host, host("b"));

    // A host that has room again wants no move.
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, ..MigratePolicy::default() };
    let mut bench = Bench::new(Policy { migrate, ..asking() });
    windows(&mut bench, 0, &full);
    windows(&mut bench, 10, &full);
    let key = open(&bench)[0].key;
    windows(&mut bench, 20, &full[1..]);
    assert!(!state(&bench, key).is_open());
}

#[test]
fn a_host_that_is_emptied_proposes_its_moves_one_by_one_until_it_may_have_vms_again() {
    let migrate = MigratePolicy { mode: Mode::Approve, lead_ms: 60_000, ..MigratePolicy::default() };
    // Sizes are Gnomon's own to change, moves are not.
    let mut bench = Bench::new(Policy { migrate, mode: Mode::Auto, ..asking() });
    let calm = [(1, 0.9, 0.9), (2, 0.9, 0.9)];
    let windows = |bench: &mut Bench, second: u64| {
        bench.report_on("b", second, &[], Some(1.0));
        bench.report_on("a", second, &calm, Some(1.0));
    };
    windows(&mut bench, 0);
    bench.operate(11, OperatorRequest::Drain { host: host("a") });
    windows(&mut bench, 10);
    windows(&mut bench, 20);
    assert!(bench.commands_by_the_rules().iter().all(|command| !matches!(command.action, Action::Migrate(_))));
    let [proposal] = &open(&bench)[..] else { panic!("{:?}", open(&bench)) };
    assert!(proposal.reason.contains("is being emptied"), "{}", proposal.reason);
    bench.operate(31, OperatorRequest::Undrain { host: host("a") });
    windows(&mut bench, 30);
    assert_eq!(state(&bench, proposal.key), ProposalState::Withdrawn);
    bench.operate(41, OperatorRequest::Drain { host: host("a") });
    windows(&mut bench, 40);
    let again = open(&bench)[0].key;
    assert!(matches!(decide(&mut bench, 51, again, true)[..], [Command { action: Action::Migrate(_), .. }]));
}

#[test]
fn a_move_is_approved_for_the_reason_that_was_told_or_not_at_all() {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 5, ..MigratePolicy::default() };
    let full: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];
    let mut bench = Bench::new(Policy { migrate, ..asking() });
    for second in [0, 10] {
        bench.report_on("b", second, &[], Some(1.0));
        bench.report_on("a", second, &full, Some(1.0));
        bench.operate(second + 11, OperatorRequest::Drain { host: host("a") });
    }
    bench.report_on("b", 20, &[], Some(1.0));
    bench.report_on("a", 20, &full, Some(1.0));
    let key = open(&bench)[0].key;
    assert!(open(&bench)[0].reason.contains("is being emptied"));
    // It is full as well, but not for as long as policy asks for.
    bench.operate(31, OperatorRequest::Undrain { host: host("a") });
    assert_eq!(decide(&mut bench, 32, key, true), []);
    assert_eq!(state(&bench, key), ProposalState::Refused);
}
