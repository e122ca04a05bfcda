//! Maintenance windows: what waits for them, and what does not.

use gnomon_common::wire::{Action, Command, Setting};

use super::bench::{Bench, policy, vm};
use super::{Input, at};
use crate::io::OperatorRequest;
use crate::policy::{MigratePolicy, Mode, Policy, WindowsPolicy};

/// The bench begins on a Tuesday, 2023-11-14 22:13:20 UTC: frozen until 22:20.
fn frozen(policy: Policy) -> Policy {
    let freeze = vec!["Tue 21:00-22:20".to_owned()];
    Policy { windows: WindowsPolicy { freeze, ..WindowsPolicy::default() }, ..policy }
}

const OPENS_S: u64 = 400;

fn quota(command: &Command) -> f64 {
    let Action::Set(Setting::CpuQuota { cores: Some(cores) }) = command.action else { panic!("{command:?}") };
    cores
}

#[test]
fn nothing_is_shrunk_before_the_window_opens_and_growth_does_not_wait() {
    let mut bench = Bench::new(frozen(policy(Mode::Auto)));
    let mut shrunk = Vec::new();
    for second in (0..500).step_by(10) {
        bench.report(second, &[(1, 0.2, 0.2)], Some(1.0));
        shrunk.extend(bench.commands_by_the_rules().iter().map(|command| (second + 10, quota(command) < 1.0)));
        if second == 100 {
            let lines = bench.core.explain(vm(1)).unwrap().lines;
            assert!(lines.iter().any(|line| line.contains("neither shrink nor move")), "{lines:?}");
        }
    }
    assert_eq!(shrunk, [(OPENS_S, true)]);

    let mut bench = Bench::new(frozen(policy(Mode::Auto)));
    bench.report(0, &[(1, 0.2, 0.9)], Some(0.2));
    assert_eq!(quota(&bench.commands_by_the_rules()[0]), 0.99);
}

#[test]
fn nothing_is_moved_before_the_window_opens_but_for_a_host_that_is_emptied_and_by_hand() {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, ..MigratePolicy::default() };
    let moving = || Bench::new(frozen(Policy { migrate: migrate.clone(), ..policy(Mode::Auto) }));
    let full: [(u128, f64, f64); 4] = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];
    let windows = |bench: &mut Bench, second: u64| {
        bench.report_on("b", second, &[], Some(1.0));
        bench.report_on("a", second, &full, Some(1.0));
        let is_move = |command: &Command| matches!(command.action, Action::Migrate(_));
        bench.commands_by_the_rules().into_iter().filter(is_move).count()
    };
    let mut bench = moving();
    let moved: Vec<u64> = (0..420).step_by(10).filter(|&second| windows(&mut bench, second) > 0).collect();
    assert_eq!(moved.first(), Some(&(OPENS_S - 10)));

    let mut bench = moving();
    windows(&mut bench, 0);
    bench.operate(11, OperatorRequest::Drain { host: super::host("a") });
    assert_eq!(windows(&mut bench, 10), 1);

    let mut bench = moving();
    windows(&mut bench, 0);
    bench.operate(11, OperatorRequest::Migrate { vm: vm(1), to: super::host("b") });
    assert_eq!(bench.commands_by_the_rules().len(), 1);
}

#[test]
fn windows_that_are_reloaded_count_at_once() {
    let mut bench = Bench::new(frozen(policy(Mode::Auto)));
    for second in (0..100).step_by(10) {
        bench.report(second, &[(1, 0.2, 0.2)], Some(1.0));
    }
    assert_eq!(bench.commands_by_the_rules(), []);
    bench.core.handle(at(105), Input::Policy(Box::new(policy(Mode::Auto))));
    bench.report(100, &[(1, 0.2, 0.2)], Some(1.0));
    assert_eq!(bench.commands_by_the_rules().len(), 1);
}
