//! The budget of resizes.

use gnomon_common::wire::{Command, Setting};

use super::bench::{Bench, applied, policy, vm};
use crate::io::{OperatorRequest, Output, Record, Restored};
use crate::plan::guard::Guard;
use crate::policy::{Mode, Policy, ResizePolicy};

fn bounded(vm_per_hour_max: usize, fleet_per_hour_max: usize) -> Policy {
    let resize = ResizePolicy { vm_per_hour_max, fleet_per_hour_max };
    Policy { resize, ..policy(Mode::Auto) }
}

/// VM 1's quota is cut by somebody else every ten seconds, and grown again as often as the planner may; the seconds at which it does, and the commands.
fn grows(bench: &mut Bench, seconds: impl Iterator<Item = u64>) -> Vec<(u64, Command)> {
    let mut sent = Vec::new();
    for second in seconds {
        bench.report(second, &[(1, 0.2, 0.9)], Some(0.2));
        for command in bench.commands() {
            bench.outcome(second + 11, command.id, applied(0.2, 0.99));
            sent.push((second, command));
        }
        bench.take();
    }
    sent
}

#[test]
fn a_vm_is_resized_so_often_in_an_hour_and_no_more_and_that_is_said_once() {
    let mut bench = Bench::new(bounded(3, 100));
    assert_eq!(grows(&mut bench, (0..30).step_by(10)).len(), 3);
    let (mut audited, mut noticed) = (Vec::new(), 0);
    for second in (30..90).step_by(10) {
        bench.report(second, &[(1, 0.2, 0.9)], Some(0.2));
        for output in bench.take() {
            match output {
                Output::Persist(Record::Audit(audit)) => audited.push((audit.verb, audit.detail)),
                Output::Notice(notice) => noticed += usize::from(notice.kind == "resizes_used_up"),
                Output::Command { command, .. } => panic!("{command:?}"),
                _ => {}
            }
        }
    }
    let detail = "resize: it was resized 3 times within an hour, and policy.resize.vm_per_hour_max is 3".to_owned();
    assert_eq!((audited, noticed), (vec![("refused".to_owned(), detail)], 1));
    let explained = bench.core.explain(vm(1)).unwrap().lines.join("\n");
    assert!(explained.contains("The budget of resizes is used up, its own: it was resized 3 times"), "{explained}");
    // What an operator asks for is no plan's.
    bench.operate(95, OperatorRequest::Set { vm: vm(1), setting: Setting::CpuQuota { cores: Some(0.5) } });
    assert_eq!(bench.commands().len(), 1);
}

#[test]
fn after_an_hour_there_is_room_again_and_a_restart_forgets_nothing() {
    let mut bench = Bench::new(bounded(3, 100));
    let sent = grows(&mut bench, (0..100).step_by(10));
    assert_eq!(sent.len(), 3);
    let again = grows(&mut bench, (3500..3800).step_by(10));
    assert!((3600..=3680).contains(&again[0].0), "{again:?}");

    let mut records = Vec::new();
    let mut bench = Bench::new(bounded(3, 100));
    for second in [0, 10, 20] {
        bench.report(second, &[(1, 0.2, 0.9)], Some(0.2));
        for output in bench.take() {
            if let Output::Persist(Record::Command(record)) = output {
                bench.outcome(second + 11, record.command.id, applied(0.2, 0.99));
                records.push(record);
            }
        }
    }
    let mut core = crate::Core::new(bounded(3, 100), 1, 2);
    core.restore(Restored::Host { host: super::host("a"), facts: super::bench::facts() });
    let report = super::bench::report_of("a", 20, &[(1, 0.2, 0.9)], Some(0.2));
    core.restore(Restored::Report(Box::new(report)));
    records.into_iter().for_each(|record| core.restore(Restored::Tried(Box::new(record))));
    let mut bench = Bench::of(core);
    assert_eq!(grows(&mut bench, (40..100).step_by(10)), []);
}

#[test]
fn the_fleet_s_budget_is_shared_also_by_the_vms_of_one_plan() {
    let want: Vec<(u128, f64, f64)> = (1..=6).map(|number| (number, 0.2, 0.9)).collect();
    let sent = |bench: &mut Bench| {
        bench.report(0, &want, Some(0.2));
        bench.commands_by_the_rules().len()
    };
    assert_eq!(sent(&mut Bench::new(bounded(3, 4))), 4);
    let mut bench = Bench::new(bounded(3, 4));
    bench.core.without_guard(Some(Guard::Resizes), None);
    assert_eq!(sent(&mut bench), 6);
}

#[test]
fn the_last_quarter_is_kept_for_growth() {
    let mut bench = Bench::new(bounded(4, 100));
    assert_eq!(grows(&mut bench, (0..30).step_by(10)).len(), 3);
    let mut shrunk = 0;
    for second in (30..200).step_by(10) {
        bench.report(second, &[(1, 0.2, 0.2)], Some(0.99));
        shrunk += bench.commands().len();
    }
    assert_eq!(shrunk, 0);
    assert_eq!(grows(&mut bench, [200].into_iter()).len(), 1);
}
