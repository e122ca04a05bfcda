//! The state machine, input by input.

mod approve;
mod balance;
mod bench;
mod budget;
mod capacity;
mod contention;
mod copies;
mod culprits;
mod dirty_rates;
mod disks;
mod exits;
mod feedback;
mod invariants;
mod local;
mod long_run;
mod memory;
mod modes;
mod relief;
mod sent;
mod set;
mod shadow_resizes;
mod shadow_sizes;
mod shadows;
mod skill;
mod storage;
mod together;
mod town;
mod trial;
mod windows;
mod zones;

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Fence, OutcomeResult, RefusedCommand, Report, Setting, VmState};

use crate::io::{Hold, Input, OperatorRequest, Output, Record, Restored, Scope};
use crate::plan::Reason;
use crate::policy::Mode;
use bench::{Bench, applied, at, host, policy, vm};

#[test]
fn a_command_is_written_before_it_is_sent() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let outputs = bench.take();
    let place = |wanted: fn(&Output) -> bool| outputs.iter().position(wanted).unwrap();
    let plan = place(|output| matches!(output, Output::Persist(Record::Plan(_))));
    let record = place(|output| matches!(output, Output::Persist(Record::Command(_))));
    let audit = place(|output| matches!(output, Output::Persist(Record::Audit(audit)) if audit.verb == "command"));
    let sent = place(|output| matches!(output, Output::Command { .. }));
    assert!(plan < record && record < audit && audit < sent);
}

#[test]
fn a_starved_vm_gets_room_at_once_and_only_one_command_at_a_time() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().pop().unwrap();
    assert_eq!(command.action, Action::Set(Setting::CpuQuota { cores: Some(0.99) }));
    bench.report(10, &[(1, 0.2, 0.9)], Some(0.2));
    assert_eq!(bench.commands(), []);
    assert_eq!(bench.core.vm(vm(1)).unwrap().in_flight, Some(command.id));
    bench.outcome(11, command.id, applied(0.2, 0.99));
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.99));
    bench.report(20, &[(1, 0.9, 0.9)], Some(0.99));
    assert_eq!(bench.commands(), []);
}

#[test]
fn a_host_that_takes_long_is_told_earlier() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let lead = |bench: &Bench| bench.core.fleet.hosts[&host("a")].lead(&bench.core.policy);
    let before = lead(&bench);
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().remove(0);
    // Decided when the report came, at second 10.
    bench.outcome(14, command.id, applied(0.2, 0.99));
    assert_eq!(lead(&bench) - before, Duration::from_secs(4 + 4 * 2));
}

#[test]
fn an_unanswered_command_is_given_up_and_its_late_answer_still_counts() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().pop().unwrap();
    let due = bench.core.poll_timeout().unwrap();
    assert_eq!(due, at(10 + 30 + 30));
    bench.core.handle_timeout(due);
    assert!(bench.core.vm(vm(1)).unwrap().in_flight.is_none());
    assert_eq!(bench.notices(), ["command_unanswered"]);
    bench.outcome(71, command.id, applied(0.2, 0.99));
    let outputs = bench.take();
    let answered = outputs.iter().any(|output| {
        matches!(output, Output::Persist(Record::Command(record)) if record.outcome.is_some() && !record.unanswered)
    });
    assert!(answered);
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.99));
}

#[test]
fn an_answer_that_awaits_none_changes_nothing() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().pop().unwrap();
    bench.outcome(11, command.id, applied(0.2, 0.99));
    bench.take();
    bench.outcome(12, command.id, applied(0.2, 0.5));
    assert_eq!(bench.notices(), ["outcome_without_command"]);
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.99));
}

#[test]
fn an_answer_by_another_host_changes_nothing_whether_the_command_is_in_flight_or_given_up() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().pop().unwrap();
    bench.outcome_by("b", 11, command.id, applied(0.2, 0.5));
    let [Output::Notice(notice)] = &bench.take()[..] else { panic!("nothing but a notice comes of it") };
    assert_eq!(notice.kind, "outcome_of_foreign_command");
    assert_eq!(bench.core.vm(vm(1)).unwrap().in_flight, Some(command.id));

    bench.core.handle_timeout(at(70));
    assert_eq!(bench.notices(), ["command_unanswered"]);
    bench.outcome_by("b", 71, command.id, applied(0.2, 0.5));
    assert!(matches!(&bench.take()[..], [Output::Notice(_)]));
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.2));

    // The host that was commanded is still heard.
    bench.outcome(72, command.id, applied(0.2, 0.99));
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.99));
}

#[test]
fn modes_that_do_not_act_send_nothing() {
    for (mode, plans) in [(Mode::Observe, 0), (Mode::Recommend, 1)] {
        let mut bench = Bench::new(policy(mode));
        for second in [0, 10, 20, 30] {
            bench.report(second, &[(1, 0.2, 0.9)], Some(0.2));
        }
        let outputs = bench.take();
        let count = |wanted: fn(&Output) -> bool| outputs.iter().filter(|output| wanted(output)).count();
        assert_eq!(count(|output| matches!(output, Output::Command { .. })), 0);
        // The same recommendation is made once.
        assert_eq!(count(|output| matches!(output, Output::Persist(Record::Plan(_)))), plans, "{mode:?}");
    }
}

#[test]
fn a_vm_that_does_not_run_teaches_nothing() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.5, 0.5)], Some(1.0));
    for state in [VmState::Paused, VmState::ShutOff, VmState::Crashed] {
        bench.report_state(10, 1, state);
        bench.report_state(20, 1, state);
    }
    bench.report(90, &[(1, 0.5, 0.5)], Some(1.0));
    let history = bench.core.history(vm(1), Timestamp::default());
    assert_eq!(history.len(), 2);
    assert!(history.iter().all(|step| (step.low - 0.5).abs() < 1e-6));
}

#[test]
fn windows_that_are_not_believed_shrink_nothing() {
    let run = |doubtful: &dyn Fn(&mut Report, u64)| {
        let mut bench = Bench::new(policy(Mode::Auto));
        for second in (0..200).step_by(10) {
            let mut report = bench::report_of("a", second, &[(1, 0.2, 0.2)], Some(1.0));
            if second > 0 {
                doubtful(&mut report, second);
            }
            bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
        }
        bench.commands().len()
    };
    assert_eq!(run(&|_, _| ()), 1, "what is believed shrinks it");
    let absurd = |report: &mut Report, _| report.vms[0].cpu.as_mut().unwrap().covered = f64::NAN;
    assert_eq!(run(&absurd), 0);
    let every_second = |report: &mut Report, second: u64| {
        if second.is_multiple_of(20) {
            absurd(report, second);
        }
    };
    assert_eq!(run(&every_second), 1, "every second window is evidence enough");
}

#[test]
fn a_window_that_is_not_believed_leaves_no_demand_to_go_by() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.2)], Some(1.0));
    assert!(bench.core.vm(vm(1)).unwrap().cpu.is_some());
    bench.report(10, &[(1, 0.5, 0.1)], Some(1.0));
    assert!(bench.core.vm(vm(1)).unwrap().cpu.is_none(), "not believed");
    bench.report(20, &[(1, 0.2, 0.2)], Some(1.0));
    // The host's next report, but of a time that is over.
    let mut behind = bench::report_of("a", 0, &[(1, 0.2, 0.2)], Some(1.0));
    behind.sequence.0 = 100;
    bench.core.handle(at(31), Input::Report(Box::new(behind)));
    assert!(bench.core.vm(vm(1)).unwrap().cpu.is_none(), "out of order");
}

#[test]
fn a_forecast_says_nothing_beyond_its_horizon() {
    let mut bench = Bench::new(policy(Mode::Observe));
    let has_outlook = |bench: &mut Bench, second| {
        while let Some(output) = bench.core.poll_output() {
            if let Output::Fit(job) = output {
                bench.core.handle(at(second), Input::FitDone(Box::new(job.run())));
            }
        }
        let explained = bench.core.explain(vm(1)).unwrap().lines;
        explained.iter().any(|line| line.starts_with("Within the lead time"))
    };
    for second in (0..1000).step_by(10) {
        bench.report(second, &[(1, 0.2, 0.2)], Some(1.0));
        has_outlook(&mut bench, second + 10);
    }
    assert!(has_outlook(&mut bench, 1000));
    // 20 steps of 10 s and two more; paused, it teaches nothing.
    bench.report_state(1180, 1, VmState::Paused);
    assert!(has_outlook(&mut bench, 1190));
    bench.report_state(1220, 1, VmState::Paused);
    assert!(!has_outlook(&mut bench, 1230));
}

#[test]
fn a_vm_vanishes_only_from_a_complete_report_and_keeps_its_history_for_its_return() {
    let mut bench = Bench::new(policy(Mode::Auto));
    for second in [0, 10, 20] {
        bench.report(second, &[(1, 0.5, 0.5)], Some(1.0));
    }
    bench.incomplete_report(30);
    assert!(bench.core.vm(vm(1)).is_some());
    bench.report(40, &[], None);
    assert!(bench.core.vm(vm(1)).is_none());
    assert_eq!(bench.core.hosts()[0].vms, 0);
    assert_eq!(bench.core.find_vm("vm1"), None);
    bench.report_on("b", 50, &[(1, 0.5, 0.5)], Some(1.0));
    assert_eq!(bench.core.vm(vm(1)).unwrap().host, host("b"));
    assert_eq!(bench.core.history(vm(1), Timestamp::default()).len(), 4);
}

#[test]
fn a_migrating_vm_is_where_it_runs() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let place = |bench: &Bench| bench.core.vm(vm(1)).unwrap().host;
    bench.report(0, &[(1, 0.5, 0.5)], Some(1.0));
    bench.report_state_on("b", 3, 1, VmState::Paused);
    assert_eq!(place(&bench), host("a"));
    bench.report_on("b", 13, &[(1, 0.5, 0.5)], Some(1.0));
    assert_eq!(place(&bench), host("b"));
    // The old host's window of before the move comes late.
    bench.report(10, &[(1, 0.5, 0.5)], Some(1.0));
    assert_eq!(place(&bench), host("b"));
    bench.report(20, &[], None);
    assert_eq!(place(&bench), host("b"));
}

#[test]
fn a_pause_holds_every_scope_and_a_resume_ends_those_within() {
    for scope in [Scope::Fleet, Scope::Host(host("a")), Scope::Vm(vm(1))] {
        let mut bench = Bench::new(policy(Mode::Auto));
        bench.report(0, &[(1, 0.2, 0.2)], Some(0.3));
        bench.operate(1, OperatorRequest::Pause { scope: scope.clone() });
        bench.report(10, &[(1, 0.2, 0.9)], Some(0.2));
        assert_eq!(bench.commands(), [], "{scope}");
        assert_eq!(bench.core.vm(vm(1)).unwrap().hold, Some(Hold::Paused));
        bench.operate(12, OperatorRequest::Resume { scope: Scope::Fleet });
        bench.report(20, &[(1, 0.2, 0.9)], Some(0.2));
        assert_eq!(bench.commands().len(), 1, "{scope}");
    }
}

#[test]
fn resuming_a_vm_within_a_paused_fleet_says_that_it_is_still_held() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.3));
    bench.operate(1, OperatorRequest::Pause { scope: Scope::Fleet });
    bench.operate(2, OperatorRequest::Resume { scope: Scope::Vm(vm(1)) });
    assert!(bench.notices().contains(&"still_held"));
    assert_eq!(bench.core.vm(vm(1)).unwrap().hold, Some(Hold::Paused));
}

#[test]
fn a_release_is_repeated_until_the_baseline_is_restored_even_across_a_restart() {
    let mut bench = Bench::new(policy(Mode::Observe));
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.3));
    bench.operate(5, OperatorRequest::Release { scope: Scope::Host(host("a")) });
    let first = bench.commands().pop().unwrap();
    assert_eq!(first.action, Action::Release);
    bench.outcome(6, first.id, OutcomeResult::Failed { error: "busy".to_owned(), retryable: true });
    bench.report(20, &[(1, 0.2, 0.2)], Some(0.3));
    let second = bench.commands().pop().unwrap();
    assert!(second.action == Action::Release && second.fence > first.fence);

    let mut bench = Bench::with_term(policy(Mode::Auto), 2);
    bench.core.restore(Restored::Hold { scope: Scope::Host(host("a")), hold: Hold::Released });
    bench.report(40, &[(1, 0.2, 0.9)], Some(0.2));
    let third = bench.commands().pop().unwrap();
    assert_eq!(third.action, Action::Release);
    bench.outcome(51, third.id, applied(0.2, 1.0));
    bench.report(60, &[(1, 0.2, 0.9)], Some(0.2));
    assert_eq!(bench.commands(), [], "what is released is left alone");
    bench.operate(61, OperatorRequest::Resume { scope: Scope::Host(host("a")) });
    bench.report(70, &[(1, 0.2, 0.9)], Some(0.2));
    assert!(matches!(bench.commands()[..], [ref command] if command.action != Action::Release));
}

#[test]
fn a_release_waits_for_the_command_that_is_on_its_way() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let resize = bench.commands().pop().unwrap();
    bench.operate(11, OperatorRequest::Release { scope: Scope::Vm(vm(1)) });
    assert_eq!(bench.commands(), []);
    bench.outcome(12, resize.id, applied(0.2, 0.99));
    assert_eq!(bench.commands().pop().unwrap().action, Action::Release);
}

#[test]
fn a_dry_run_is_asked_again_only_after_longer_and_longer_pauses() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let mut asked = 0;
    for second in (0..600).step_by(10) {
        bench.report(second, &[(1, 0.2, 0.9)], Some(0.2));
        for command in bench.commands() {
            asked += 1;
            bench.outcome(second + 10, command.id, OutcomeResult::DryRun);
        }
    }
    assert!((4..=8).contains(&asked), "{asked} commands in ten minutes");
}

#[test]
fn a_stale_fence_of_our_own_term_is_overtaken() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().pop().unwrap();
    let seen = Fence { term: 1, generation: 500 };
    bench.outcome(11, command.id, OutcomeResult::Refused(RefusedCommand::StaleFence { seen }));
    assert!(bench.notices().contains(&"command_stale"));
    bench.report(20, &[(1, 0.2, 0.9)], Some(0.2));
    assert!(bench.commands().pop().unwrap().fence > seen);
}

#[test]
fn old_evidence_fills_history_and_plans_nothing() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report_at(at(3600), "a", 0, &[(1, 0.2, 0.9)], Some(0.2));
    assert_eq!(bench.commands(), []);
    assert_eq!(bench.core.history(vm(1), Timestamp::default()).len(), 1);
}

#[test]
fn a_backlog_that_comes_beside_live_reports_leaves_no_hole_and_plans_nothing() {
    let mut bench = Bench::new(policy(Mode::Auto));
    (0..5).for_each(|step| bench.report(step * 10, &[(1, 0.5, 0.5)], Some(0.6)));
    // Away for 50 steps; then a live report for each late one. Starved then, well now.
    for step in 0..50 {
        bench.report(550 + step * 10, &[(1, 0.5, 0.5)], Some(0.6));
        let late = bench::report_of("a", 50 + step * 10, &[(1, 0.2, 0.9)], Some(0.2));
        bench.core.handle(at(560 + step * 10), Input::Report(Box::new(late)));
        let vm = bench.core.vm(vm(1)).unwrap();
        assert_eq!(
            (vm.cpu.unwrap().demand_high.mean, vm.allocation.quota_cores),
            (0.5, Some(0.6)),
            "it is of long ago"
        );
    }
    assert_eq!(bench.notices(), [] as [&str; 0]);
    let history = bench.core.history(vm(1), Timestamp::default());
    assert_eq!(history.len(), 105);
    let starved = history.iter().filter(|step| (step.high - 0.9).abs() < 1e-6).count();
    assert_eq!(starved, 50);
}

#[test]
fn a_report_from_the_future_is_left_out() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report_at(at(10), "a", 7200, &[(1, 0.2, 0.9)], Some(0.2));
    assert!(bench.core.vm(vm(1)).is_none());
    assert_eq!(bench.notices(), ["report_from_the_future"]);
}

#[test]
fn what_was_read_back_outweighs_a_window_that_ended_before() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().pop().unwrap();
    bench.outcome(25, command.id, applied(0.2, 0.99));
    // Its window ended at 20 s, five seconds before the quota was set.
    bench.report_at(at(26), "a", 10, &[(1, 0.2, 0.9)], Some(0.2));
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.99));
    assert_eq!(bench.commands(), []);
    // Someone set it by hand since: what is reported is the truth again.
    bench.report(30, &[(1, 0.5, 0.5)], Some(0.7));
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.7));
}

#[test]
fn a_restart_says_nothing_remembers_history_and_keeps_what_is_in_flight() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    let record = bench
        .take()
        .into_iter()
        .find_map(|output| match output {
            Output::Persist(Record::Command(record)) => Some(record),
            _ => None,
        })
        .unwrap();

    let mut core = crate::Core::new(policy(Mode::Auto), 1, 2);
    core.restore(Restored::Host { host: host("a"), facts: bench::facts() });
    for second in [0, 10, 20] {
        core.restore(Restored::Report(Box::new(bench::report_of("a", second, &[(1, 0.2, 0.9)], Some(0.2)))));
    }
    core.restore(Restored::Command(record.clone()));
    assert!(core.poll_output().is_none());
    assert_eq!(core.history(vm(1), Timestamp::default()).len(), 3);
    let mut bench = Bench::of(core);
    bench.report(30, &[(1, 0.2, 0.9)], Some(0.2));
    assert_eq!(bench.commands(), [], "one is in flight");
    bench.outcome(41, record.command.id, OutcomeResult::Refused(RefusedCommand::StaleFence { seen: Fence::default() }));
    bench.report(50, &[(1, 0.2, 0.9)], Some(0.2));
    let command = bench.commands().pop().unwrap();
    assert_eq!((command.id.term, command.fence.term), (2, 2));
}

#[test]
fn a_policy_that_makes_no_sense_is_refused_and_the_old_one_stays() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let mut bad = policy(Mode::Auto);
    bad.cpu.headroom = f64::NAN;
    bench.core.handle(at(0), Input::Policy(Box::new(bad)));
    assert_eq!(bench.notices(), ["policy_refused"]);
    assert_eq!(bench.core.policy(), policy(Mode::Auto));
}

#[test]
fn an_explanation_says_what_was_seen_and_what_holds_it_back() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    bench.operate(11, OperatorRequest::Pause { scope: Scope::Fleet });
    let explanation = bench.core.explain(vm(1)).unwrap();
    insta::assert_snapshot!(explanation.lines.join("\n"), @"
    In the latest window it ran for 0.20 cores and wanted at most 0.90; its quota held it back for 70 % of the time. That counts as a live demand of 0.90 cores.
    There is no forecast yet: 1 steps of history are known, 24 are the least. Its size follows live demand.
    With a headroom of 1.1 and within 0.10 to 1.00 cores, 0.99 are needed now and 0.99 would be comfortable; its quota is 0.20 cores.
    Its memory is left as it is: it is not measured.
    An operator paused it: no command is sent.
    Command 1-1 is on its way.
    ");
    assert!(matches!(explanation.recent[0].action.reason, Reason::LiveDemand { .. }));
}
