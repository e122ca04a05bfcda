//! Why a VM's vCPUs left their guest, as it is shown.

use gnomon_common::wire::{ExitReason, ExitShare};

use super::bench::{Bench, at, policy, report_of, vm};
use crate::io::Input;
use crate::policy::Mode;

fn share(reason: ExitReason, exits_per_s: f64, away_vcpus: f64) -> ExitShare {
    ExitShare { reason, exits_per_s, away_vcpus }
}

fn report(bench: &mut Bench, second: u64, exits: Option<Vec<ExitShare>>) {
    let mut report = report_of("a", second, &[(1, 0.2, 0.2)], None);
    report.vms[0].exits = exits;
    bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
}

fn told(bench: &Bench) -> Option<String> {
    bench.core.explain(vm(1)).unwrap().lines.into_iter().find(|line| line.starts_with("Its vCPUs left"))
}

#[test]
fn idle_time_and_what_costs_most_are_told_and_only_while_they_are_news() {
    let mut bench = Bench::new(policy(Mode::Observe));
    let shares = vec![
        share(ExitReason::Halt, 500.0, 0.7),
        share(ExitReason::Io, 200.0, 0.02),
        share(ExitReason::PageFault, 300.0, 0.05),
        share(ExitReason::Cpuid, 1.0, 0.0001),
    ];
    report(&mut bench, 0, Some(shares.clone()));
    assert_eq!(bench.core.explain(vm(1)).unwrap().vm.exits, Some(shares));
    let line = "Its vCPUs left their guest 1001 times a second; 0.70 of them had nothing to do, and were away from it \
                otherwise: 0.05 for page_fault, 0.02 for io.";
    assert_eq!(told(&bench).as_deref(), Some(line));
    report(&mut bench, 10, None);
    assert_eq!(told(&bench), None);
}

#[test]
fn exits_that_cannot_be_are_left_out() {
    let mut bench = Bench::new(policy(Mode::Observe));
    let twice = vec![share(ExitReason::Io, 1.0, 0.1); 2];
    for (round, absurd) in [vec![share(ExitReason::Io, f64::INFINITY, 0.1)], twice].into_iter().enumerate() {
        report(&mut bench, 10 * round as u64, Some(absurd));
        assert_eq!((told(&bench), bench.core.explain(vm(1)).unwrap().vm.exits), (None, None));
    }
}
