//! Memory beside CPU.

use gnomon_common::wire::{Action, Command, GuestMemory, Means, OutcomeResult, RefusedCommand, Report, Setting};

use super::bench::{Bench, applied, at, facts, host, policy, report_with_memory, vm};
use crate::io::Input;
use crate::policy::Mode;

fn take(bench: &mut Bench, report: Report) -> Vec<Command> {
    let end = at((report.start.unix_ms() - at(0).unix_ms()) / 1000 + 10);
    bench.core.handle(end, Input::Report(Box::new(report)));
    bench.commands()
}

fn mib(command: &Command) -> Option<u64> {
    match command.action {
        Action::Set(Setting::Memory { bytes }) => Some(bytes >> 20),
        _ => None,
    }
}

fn resized(before_mib: u64, after_mib: u64) -> OutcomeResult {
    let memory = |mib| vec![Setting::Memory { bytes: mib << 20 }];
    OutcomeResult::Applied { before: memory(before_mib), after: memory(after_mib), took_us: 1000 }
}

#[test]
fn memory_grows_at_once_and_shrinks_in_steps_after_the_dwell_time() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let grown = take(&mut bench, report_with_memory(0, 0.3, 0.27, 512, 600)).pop().unwrap();
    assert_eq!(mib(&grown), Some(720));
    bench.outcome(11, grown.id, resized(512, 720));
    assert_eq!(bench.core.vm(vm(1)).unwrap().memory.unwrap().balloon_bytes, Some(720 << 20));
    let (mut balloon, mut steps) = (720, Vec::new());
    for second in (10..200).step_by(10) {
        for command in take(&mut bench, report_with_memory(second, 0.3, 0.27, balloon, 300)) {
            let target = mib(&command).unwrap();
            bench.outcome(second + 11, command.id, resized(balloon, target));
            steps.push((second, target));
            balloon = target;
        }
    }
    // While the 600 MiB of the first window are within the dwell time nothing shrinks; then a twentieth every ten seconds.
    assert_eq!(steps.first(), Some(&(70, 684)));
    assert!(steps.windows(2).all(|pair| pair[1].1 * 100 >= pair[0].1 * 95 && pair[1].0 - pair[0].0 == 10), "{steps:?}");
    assert_eq!(steps.last().map(|step| step.1), Some(375), "364 would do: {steps:?}");
}

#[test]
fn memory_is_left_alone_by_default_without_statistics_and_where_the_agent_may_not() {
    let hungry = || report_with_memory(0, 0.3, 0.27, 512, 600);
    let mut bench = Bench::new(policy(Mode::Auto));
    let mut silent = hungry();
    silent.vms[0].memory.as_mut().unwrap().demand = None;
    assert_eq!(take(&mut bench, silent), []);
    let explained = bench.core.explain(vm(1)).unwrap().lines.join("\n");
    assert!(explained.contains("Its memory is left as it is: nothing tells what it wants"), "{explained}");

    let mut unmanaged = policy(Mode::Auto);
    unmanaged.memory.manage = false;
    assert_eq!(take(&mut Bench::new(unmanaged), hungry()), []);

    let mut bench = Bench::new(policy(Mode::Auto));
    let mut facts = facts();
    facts.means = vec![Means::CpuQuota];
    bench.core.handle(at(0), Input::HostUp { host: host("a"), facts });
    assert_eq!(take(&mut bench, hungry()), []);
    assert_eq!(bench.core.explain(vm(1)).unwrap().wanted_bytes, None);
}

#[test]
fn a_memory_command_delays_the_growth_of_the_quota_by_one_report_at_most() {
    let mut bench = Bench::new(policy(Mode::Auto));
    // Both want to grow: CPU goes first.
    let first = take(&mut bench, report_with_memory(0, 0.2, 0.9, 512, 600)).pop().unwrap();
    assert_eq!(mib(&first), None);
    bench.outcome(11, first.id, applied(0.2, 0.99));
    let second = take(&mut bench, report_with_memory(10, 0.99, 0.9, 512, 600)).pop().unwrap();
    assert_eq!(mib(&second), Some(720));
    // The surge comes while the memory command is on its way; it is next.
    assert_eq!(take(&mut bench, report_with_memory(20, 0.5, 0.9, 512, 600)), []);
    bench.outcome(31, second.id, resized(512, 720));
    let third = take(&mut bench, report_with_memory(30, 0.5, 0.9, 720, 700)).pop().unwrap();
    assert_eq!(third.action, Action::Set(Setting::CpuQuota { cores: Some(0.99) }));
}

#[test]
fn what_the_balloon_refuses_is_no_reason_not_to_grow_the_quota() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let refused = take(&mut bench, report_with_memory(0, 0.3, 0.27, 512, 600)).pop().unwrap();
    let why = RefusedCommand::Unsupported { means: Means::Memory };
    bench.outcome(19, refused.id, OutcomeResult::Refused(why));
    bench.take();
    let next = take(&mut bench, report_with_memory(10, 0.3, 0.9, 512, 600)).pop().unwrap();
    assert_eq!(mib(&next), None, "memory waits, the quota does not");
}

#[test]
fn a_recommended_size_of_memory_is_said_once() {
    let mut bench = Bench::new(policy(Mode::Recommend));
    for second in [0, 10, 20] {
        assert_eq!(take(&mut bench, report_with_memory(second, 0.3, 0.27, 512, 600)), []);
    }
    let recent = bench.core.explain(vm(1)).unwrap().recent;
    let summaries: Vec<String> = recent.iter().map(|action| action.action.summary()).collect();
    assert_eq!(summaries, ["memory 512 MiB of memory -> 720 MiB of memory"]);
}

#[test]
fn an_explanation_tells_of_memory() {
    let mut bench = Bench::new(policy(Mode::Auto));
    let mut report = report_with_memory(0, 0.3, 0.27, 512, 400);
    let guest = GuestMemory { swap_in_bytes_per_s: 5e6, ..GuestMemory::default() };
    report.vms[0].memory.as_mut().unwrap().guest = Some(guest);
    let command = take(&mut bench, report).pop().unwrap();
    assert_eq!(mib(&command), Some(640), "a quarter more");
    let explanation = bench.core.explain(vm(1)).unwrap();
    insta::assert_snapshot!(
        explanation.lines[3],
        @"Its guest has 512 MiB of memory and wants 400 MiB. It starves: what it wants cannot be seen. With a headroom of 1.2, a reserve of 64 MiB and within 256 MiB to 1024 MiB, 480 MiB are wanted. Its host has 7552 MiB to spare for balloons that grow."
    );
    assert_eq!(explanation.wanted_bytes, Some(480 << 20));
}
