//! What operators set by hand.

use gnomon_common::wire::{Action, Means, OutcomeResult, RefusedCommand, Setting, VmState};

use super::bench::{Bench, applied, at, host, policy, vm};
use crate::core::SetRefusal;
use crate::io::{Hold, Input, OperatorRequest, Output, Record, Restored, Scope};
use crate::plan::Reason;
use crate::policy::Mode;

const HALF: Setting = Setting::CpuQuota { cores: Some(0.5) };

fn ask(setting: Setting) -> OperatorRequest {
    OperatorRequest::Set { vm: vm(1), setting }
}

/// A bench on which VM 1 is held at half a core.
fn held() -> Bench {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.22));
    bench.operate(11, ask(HALF));
    let command = bench.commands().pop().unwrap();
    assert_eq!(command.action, Action::Set(HALF));
    bench.outcome(12, command.id, applied(0.22, 0.5));
    bench
}

#[test]
fn what_an_operator_set_is_left_alone_until_it_is_resumed() {
    let mut bench = held();
    let outputs = bench.take();
    let kept = Record::Setting { vm: vm(1), means: Means::CpuQuota, setting: Some(HALF) };
    assert!(outputs.iter().any(|output| matches!(output, Output::Persist(record) if *record == kept)));
    assert_eq!(bench.core.vm(vm(1)).unwrap().held, [HALF]);
    for second in (20..200).step_by(10) {
        bench.report(second, &[(1, 0.5, 0.9)], Some(0.5));
    }
    assert_eq!(bench.commands(), [], "it is starved, and held");
    let explained = bench.core.explain(vm(1)).unwrap();
    assert!(explained.lines.iter().any(|line| line.starts_with("An operator set the CPU quota to 0.50 cores")));
    assert_eq!(explained.recent[0].action.reason, Reason::Operator);

    bench.operate(201, OperatorRequest::Resume { scope: Scope::Host(host("a")) });
    let freed = Record::Setting { vm: vm(1), means: Means::CpuQuota, setting: None };
    assert!(bench.take().iter().any(|output| matches!(output, Output::Persist(record) if *record == freed)));
    bench.report(210, &[(1, 0.5, 0.9)], Some(0.5));
    assert_eq!(bench.commands().pop().unwrap().action, Action::Set(Setting::CpuQuota { cores: Some(0.99) }));
}

#[test]
fn a_release_ends_what_was_set() {
    let mut bench = held();
    bench.operate(20, OperatorRequest::Release { scope: Scope::Vm(vm(1)) });
    assert_eq!(bench.commands().pop().unwrap().action, Action::Release);
    assert_eq!(bench.core.vm(vm(1)).unwrap().held, []);
    assert_eq!(bench.core.may_set(vm(1), HALF).unwrap_err(), SetRefusal::Released);
}

#[test]
fn what_is_held_outlives_a_restart() {
    let mut bench = Bench::with_term(policy(Mode::Auto), 2);
    bench.core.restore(Restored::Setting { vm: vm(1), setting: HALF });
    bench.report(0, &[(1, 0.5, 0.9)], Some(0.5));
    assert_eq!(bench.commands(), []);
    assert_eq!(bench.core.vm(vm(1)).unwrap().held, [HALF]);
}

#[test]
fn an_answer_that_comes_after_a_restart_still_holds_what_was_set() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.22));
    bench.operate(11, ask(HALF));
    let record = bench.take().into_iter().find_map(|output| match output {
        Output::Persist(Record::Command(record)) => Some(record),
        _ => None,
    });
    let record = record.unwrap();
    let mut bench = Bench::with_term(policy(Mode::Observe), 2);
    bench.report(20, &[(1, 0.2, 0.2)], Some(0.22));
    bench.core.restore(Restored::Command(record.clone()));
    assert!(bench.core.may_send_again(&record), "in any mode");
    bench.outcome(31, record.command.id, applied(0.22, 0.5));
    assert_eq!(bench.core.vm(vm(1)).unwrap().held, [HALF]);
}

#[test]
fn what_an_agent_refuses_holds_nothing_and_slows_nothing() {
    let mut bench = Bench::new(policy(Mode::Auto));
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.22));
    bench.operate(11, ask(Setting::CpuQuota { cores: Some(7.0) }));
    let command = bench.commands().pop().unwrap();
    let why = RefusedCommand::AboveCeiling { ceiling: Setting::CpuQuota { cores: Some(1.0) } };
    bench.outcome(19, command.id, OutcomeResult::Refused(why));
    bench.take();
    assert_eq!(bench.core.vm(vm(1)).unwrap().held, []);
    bench.report(10, &[(1, 0.2, 0.9)], Some(0.22));
    assert_eq!(bench.commands().len(), 1, "the planner goes on at once");
}

#[test]
fn a_setting_goes_past_pause_and_mode_and_waits_for_nothing() {
    let mut bench = Bench::new(policy(Mode::Observe));
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.22));
    bench.operate(11, OperatorRequest::Pause { scope: Scope::Fleet });
    bench.operate(12, ask(HALF));
    let command = bench.commands().pop().unwrap();
    assert_eq!(bench.core.may_set(vm(1), HALF).unwrap_err(), SetRefusal::InFlight(command.id));
    bench.operate(13, ask(HALF));
    let audited = bench.audited();
    assert!(audited[0].0 == "refused" && audited[0].1.contains("on its way"), "{audited:?}");
    assert_eq!(bench.core.vm(vm(1)).unwrap().hold, Some(Hold::Paused));
}

#[test]
fn a_setting_that_cannot_be_is_refused_with_what_to_do() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let refused = |bench: &Bench, number, setting| bench.core.may_set(vm(number), setting).unwrap_err();
    bench.report(0, &[(1, 0.2, 0.2)], Some(0.22));
    assert_eq!(refused(&bench, 9, HALF), SetRefusal::UnknownVm);
    let (host_a, means) = (host("a"), Means::Vcpus);
    assert_eq!(refused(&bench, 1, Setting::Vcpus { count: 2 }), SetRefusal::NotAllowed { host: host_a.clone(), means });
    for nonsense in [
        Setting::CpuQuota { cores: Some(0.0) },
        Setting::CpuQuota { cores: Some(f64::NAN) },
        Setting::CpuWeight { weight: 0 },
        Setting::Memory { bytes: 0 },
        Setting::DiskLimit { bytes_per_s: None, operations_per_s: Some(0) },
    ] {
        assert!(matches!(refused(&bench, 1, nonsense), SetRefusal::Nonsense(_)), "{nonsense}");
    }
    bench.core.handle(at(20), Input::HostLost { host: host_a.clone() });
    assert_eq!(refused(&bench, 1, HALF), SetRefusal::Away { host: host_a });
    bench.report_state(20, 1, VmState::ShutOff);
    assert_eq!(refused(&bench, 1, HALF), SetRefusal::NotRunning { state: VmState::ShutOff });
}
