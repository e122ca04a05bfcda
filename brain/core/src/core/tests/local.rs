//! What agents do of their own accord.

use gnomon_common::wire::{Action, AgentEpoch, CommandId, LocalCause, Origin, Outcome, OutcomeResult, Setting};

use super::bench::{Bench, applied, at, host, policy, report_of, vm};
use crate::core::SetRefusal;
use crate::io::{Input, OperatorRequest, Output, Record, Scope};
use crate::plan::Reason;
use crate::policy::Mode;

fn act(bench: &mut Bench, name: &str, second: u64, cause: LocalCause, result: OutcomeResult) {
    let id = CommandId::local(AgentEpoch(7), second as u32);
    let origin = Origin::Local { cause, reason: "a witness says so".to_owned() };
    let outcome = Outcome { id, vm: vm(1), at: at(second), origin, result };
    bench.core.handle(at(second), Input::Outcome { host: host(name), outcome });
}

fn report(bench: &mut Bench, second: u64, quota: f64, stood_down: bool) {
    let mut report = report_of("a", second, &[(1, quota.min(0.9), 0.9)], Some(quota));
    report.vms[0].stood_down = stood_down;
    bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
}

#[test]
fn an_agents_own_act_is_audited_read_back_explained_and_marked_as_taken_in() {
    let mut bench = Bench::new(policy(Mode::Observe));
    report(&mut bench, 0, 0.2, false);
    bench.take();
    act(&mut bench, "a", 11, LocalCause::Reflex, applied(0.2, 0.4));
    let outputs = bench.take();
    let audit = outputs.iter().find_map(|output| match output {
        Output::Persist(Record::Audit(audit)) => Some(audit.clone()),
        _ => None,
    });
    let audit = audit.unwrap();
    assert_eq!((audit.actor.as_str(), audit.verb.as_str(), audit.at), ("a", "reflex", at(11)));
    assert!(audit.detail.ends_with("0.20 cores -> 0.40 cores: a witness says so"), "{}", audit.detail);
    assert!(outputs.iter().any(|output| matches!(output, Output::Persist(Record::LocalAct { .. }))));
    let explained = bench.core.explain(vm(1)).unwrap();
    assert_eq!(explained.vm.allocation.quota_cores, Some(0.4));
    assert_eq!(explained.recent[0].action.reason, Reason::Local { cause: LocalCause::Reflex });
    assert_eq!(explained.recent[0].action.action, Action::Set(Setting::CpuQuota { cores: Some(0.4) }));
    assert_eq!(explained.recent[0].remark.as_deref(), Some("a witness says so"));
}

#[test]
fn only_the_host_that_a_vm_is_on_may_tell_of_an_act_on_it() {
    let mut bench = Bench::new(policy(Mode::Observe));
    report(&mut bench, 0, 0.2, false);
    bench.take();
    act(&mut bench, "b", 11, LocalCause::Reapply, applied(0.2, 0.4));
    let outputs = bench.take();
    assert!(
        matches!(&outputs[..], [Output::Notice(notice), Output::Persist(Record::LocalAct { .. })]
        if notice.kind == "local_act_on_foreign_vm"),
        "{outputs:?}"
    );
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.2));
}

#[test]
fn an_act_that_failed_is_audited_and_changes_nothing() {
    let mut bench = Bench::new(policy(Mode::Observe));
    report(&mut bench, 0, 0.2, false);
    bench.take();
    let failed = OutcomeResult::Failed { error: "libvirt is away".to_owned(), retryable: true };
    act(&mut bench, "a", 11, LocalCause::Reapply, failed);
    let [(verb, detail)] = &bench.audited()[..] else { panic!("one line") };
    assert!(verb == "reapply" && detail.contains("libvirt is away"), "{detail}");
    assert_eq!(bench.core.vm(vm(1)).unwrap().allocation.quota_cores, Some(0.2));
}

#[test]
fn a_vm_that_is_stood_down_for_is_left_alone_and_audited_once_at_each_end() {
    let mut bench = Bench::new(policy(Mode::Auto));
    report(&mut bench, 0, 0.95, false);
    bench.take();
    act(&mut bench, "a", 5, LocalCause::StandDown, applied(0.95, 0.3));
    report(&mut bench, 10, 0.3, true);
    report(&mut bench, 20, 0.3, true);
    let verbs: Vec<String> = bench.audited().into_iter().map(|(verb, _)| verb).collect();
    assert_eq!(verbs, ["stand_down"], "one line, no command");
    let explained = bench.core.explain(vm(1)).unwrap();
    assert!(explained.vm.stood_down && explained.lines.join(" ").contains("stands down"), "{:?}", explained.lines);
    assert_eq!(
        bench.core.may_set(vm(1), Setting::CpuQuota { cores: Some(0.5) }).unwrap_err(),
        SetRefusal::StoodDown { host: host("a") }
    );

    // Resuming it is told to the agent.
    bench.operate(31, OperatorRequest::Resume { scope: Scope::Fleet });
    let command = bench.commands().pop().unwrap();
    assert_eq!(command.action, Action::Release);
    bench.outcome(32, command.id, applied(0.3, 0.95));
    bench.take();
    report(&mut bench, 40, 0.3, false);
    let outputs = bench.take();
    let ended =
        |output: &Output| matches!(output, Output::Persist(Record::Audit(audit)) if audit.verb == "stand_down_ended");
    assert!(outputs.iter().any(ended));
    assert!(outputs.iter().any(|output| matches!(output, Output::Command { .. })), "it is planned for again");
}

#[test]
fn standing_down_that_only_a_report_tells_of_is_audited_too_and_a_restart_says_nothing_again() {
    let mut bench = Bench::new(policy(Mode::Auto));
    report(&mut bench, 0, 0.3, true);
    let audited = bench.audited();
    assert!(audited.iter().any(|(verb, _)| verb == "stand_down"), "{audited:?}");
    let mut core = crate::Core::new(policy(Mode::Auto), 1, 2);
    core.restore(crate::Restored::Host { host: host("a"), facts: super::bench::facts() });
    let mut stored = report_of("a", 0, &[(1, 0.3, 0.9)], Some(0.3));
    stored.vms[0].stood_down = true;
    core.restore(crate::Restored::Report(Box::new(stored)));
    let mut bench = Bench::of(core);
    report(&mut bench, 10, 0.3, true);
    assert_eq!(bench.audited(), []);
}

#[test]
fn what_a_vm_had_before_the_first_change_is_kept_with_what_it_has_until_it_is_released() {
    let mut bench = Bench::new(policy(Mode::Observe));
    let kept = |bench: &mut Bench| -> Vec<Vec<Setting>> {
        let outputs = bench.take().into_iter();
        outputs
            .filter_map(|output| match output {
                Output::Persist(Record::Allocation { baselines, .. }) => Some(baselines),
                _ => None,
            })
            .collect()
    };
    let tell = |bench: &mut Bench, second, baselines: &[Setting]| {
        let mut report = report_of("a", second, &[(1, 0.3, 0.3)], Some(0.5));
        report.vms[0].baselines = baselines.to_vec();
        bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
    };
    let nothing = Vec::<Setting>::new();
    tell(&mut bench, 0, &nothing);
    assert_eq!(kept(&mut bench), std::slice::from_ref(&nothing), "what it has is news");
    let had = [Setting::CpuQuota { cores: None }, Setting::Memory { bytes: 512 << 20 }];
    // No number is nothing that could be given back.
    let told = [had[0], Setting::CpuQuota { cores: Some(f64::NAN) }, had[1]];
    tell(&mut bench, 10, &told);
    tell(&mut bench, 20, &told);
    assert_eq!(kept(&mut bench), [had], "once");
    bench.core.handle(at(31), Input::HostLost { host: host("a") });
    let explained = bench.core.explain(vm(1)).unwrap();
    assert_eq!(explained.vm.baselines, had);
    let line = "Before Gnomon's first change it had unlimited cores, 512 MiB of memory: a release gives that back.";
    assert!(explained.lines.iter().any(|told| told == line), "{:?}", explained.lines);
    bench.take();
    tell(&mut bench, 40, &[]);
    assert_eq!(kept(&mut bench), [nothing]);
    assert!(!bench.core.explain(vm(1)).unwrap().lines.join(" ").contains("Before Gnomon's first change"));
}
