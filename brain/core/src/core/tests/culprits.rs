//! Who starved a VM, as it is shown.

use gnomon_common::wire::{CulpritShare, Culprits, Who};

use super::bench::{Bench, at, policy, report_of, vm};
use crate::io::Input;
use crate::policy::Mode;

fn culprits() -> Culprits {
    let share = |who, cores| CulpritShare { who, cores };
    Culprits {
        own_quota_cores: Some(0.01),
        own_cores: 0.0,
        named: vec![
            share(Who::Vm(vm(2)), 0.38),
            share(Who::Task("kworker".into()), 0.02),
            share(Who::Vm(vm(9)), 0.006),
        ],
        others_cores: 0.004,
    }
}

fn report(bench: &mut Bench, second: u64, culprits: Option<Culprits>) {
    let mut report = report_of("a", second, &[(1, 0.2, 0.62), (2, 0.5, 0.5)], None);
    report.vms[0].culprits = culprits;
    bench.core.handle(at(second + 10), Input::Report(Box::new(report)));
}

#[test]
fn culprits_are_named_largest_first_and_only_while_they_are_news() {
    let mut bench = Bench::new(policy(Mode::Observe));
    report(&mut bench, 0, Some(culprits()));
    let explained = bench.core.explain(vm(1)).unwrap();
    let waited = explained.vm.waited.unwrap();
    let named: Vec<_> =
        waited.culprits.iter().map(|culprit| (culprit.vm, culprit.name.as_str(), culprit.cores)).collect();
    let unknown = vm(9).to_string();
    assert_eq!(named, [(Some(vm(2)), "vm2", 0.38), (None, "kworker", 0.02), (Some(vm(9)), unknown.as_str(), 0.006)]);
    let line = format!(
        "It waited for 0.42 cores: 0.38 for the VM vm2, 0.02 for the host's kworker, 0.01 for its own quota, 0.01 for the VM {unknown}."
    );
    assert!(explained.lines.contains(&line), "{:?}", explained.lines);

    report(&mut bench, 10, None);
    let explained = bench.core.explain(vm(1)).unwrap();
    assert_eq!(explained.vm.waited, None);
    assert!(!explained.lines.iter().any(|line| line.starts_with("It waited")), "{:?}", explained.lines);
}

#[test]
fn where_a_host_does_not_tell_of_quotas_that_is_said() {
    let mut bench = Bench::new(policy(Mode::Observe));
    report(&mut bench, 0, Some(Culprits { own_quota_cores: None, ..culprits() }));
    let lines = bench.core.explain(vm(1)).unwrap().lines.join(" ");
    assert!(lines.contains("does not tell what its quota has to do with it"), "{lines}");
}

#[test]
fn culprits_out_of_bounds_are_left_out() {
    let many = vec![CulpritShare { who: Who::Vm(vm(2)), cores: 0.1 }; 9];
    let long = vec![CulpritShare { who: Who::Task("x".repeat(1_000)), cores: 0.1 }];
    for absurd in [
        Culprits { own_cores: f32::NAN, ..culprits() },
        Culprits { others_cores: -1.0, ..culprits() },
        Culprits { own_quota_cores: Some(f32::INFINITY), ..culprits() },
        Culprits { named: many, ..culprits() },
        Culprits { named: long, ..culprits() },
    ] {
        let mut bench = Bench::new(policy(Mode::Observe));
        report(&mut bench, 0, Some(absurd));
        let view = bench.core.explain(vm(1)).unwrap().vm;
        assert!(view.waited.is_none() && view.cpu.is_some());
    }
}
