//! What came of what actions were taken for, with restarts in between.

use std::collections::BTreeMap;

use gnomon_common::wire::{Action, Command, CommandId, Moved, OutcomeResult, RefusedCommand, Report, Setting};

use super::bench::{Bench, applied, facts, host, policy, report_of, report_with_memory, vm};
use crate::Core;
use crate::io::{CommandRecord, Input, Output, Record, Restored};
use crate::plan::expectation::{Ending, Expectation, ExpectationState};
use crate::policy::{MigratePolicy, Mode, Policy};

/// A brain and what its store keeps.
struct Kept {
    policy: Policy,
    bench: Bench,
    expectations: BTreeMap<CommandId, Expectation>,
    commands: BTreeMap<CommandId, CommandRecord>,
    reports: Vec<Report>,
    /// Verbs and details of verdicts.
    verdicts: Vec<(String, String)>,
}

impl Kept {
    fn new(policy: Policy) -> Self {
        Self {
            bench: Bench::new(policy.clone()),
            policy,
            expectations: BTreeMap::new(),
            commands: BTreeMap::new(),
            reports: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// Another brain on the same store.
    fn restart(&mut self) {
        let mut core = Core::new(self.policy.clone(), 1, 2);
        for name in ["a", "b"] {
            core.restore(Restored::Host { host: host(name), facts: facts() });
        }
        for expectation in self.expectations.values().filter(|expectation| !expectation.is_over()) {
            // As it comes back from text: what was seen is not in it.
            let text = serde_json::to_string(expectation).unwrap();
            core.restore(Restored::Expectation(Box::new(serde_json::from_str(&text).unwrap())));
        }
        self.reports.iter().for_each(|report| core.restore(Restored::Report(Box::new(report.clone()))));
        for record in self.commands.values().filter(|record| !record.is_settled()) {
            core.restore(Restored::Command(record.clone()));
        }
        self.bench = Bench::of(core);
    }

    fn report(&mut self, report: Report) -> Vec<Command> {
        self.reports.push(report.clone());
        let now = report.start + std::time::Duration::from_secs(10);
        self.bench.core.handle(now, Input::Report(Box::new(report)));
        self.take()
    }

    fn take(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        for output in self.bench.take() {
            match output {
                Output::Command { command, .. } => commands.push(command),
                Output::Persist(Record::Command(record)) => drop(self.commands.insert(record.command.id, record)),
                Output::Persist(Record::Expectation { expectation, .. }) => {
                    self.expectations.insert(expectation.command, *expectation);
                }
                Output::Persist(Record::Audit(audit)) => {
                    let is_verdict = ["_served", "_unserved", "_absent"].iter().any(|end| audit.verb.ends_with(end));
                    self.verdicts.extend(is_verdict.then_some((audit.verb, audit.detail)));
                }
                _ => {}
            }
        }
        commands
    }

    fn outcome(&mut self, second: u64, id: CommandId, result: OutcomeResult) {
        self.bench.outcome(second, id, result);
        self.take();
    }

    fn verbs(&self) -> Vec<&str> {
        self.verdicts.iter().map(|(verb, _)| verb.as_str()).collect()
    }
}

/// VM 1 is given 0.6 cores in place of 0.3 for the fleet's promise, from second 11 on.
fn promised() -> (Kept, CommandId) {
    let mut kept = Kept::new(policy(Mode::Auto));
    kept.report(report_of("a", 0, &[(1, 0.2, 0.2)], Some(0.3)));
    kept.bench.core.fleet.vms.get_mut(&vm(1)).unwrap().promised_cores = Some(0.6);
    let grown = kept.report(report_of("a", 10, &[(1, 0.2, 0.2)], Some(0.3))).pop().unwrap();
    assert_eq!(grown.action, Action::Set(Setting::CpuQuota { cores: Some(0.6) }));
    kept.outcome(21, grown.id, applied(0.3, 0.6));
    (kept, grown.id)
}

#[test]
fn a_size_for_the_promise_gets_its_verdict_from_before_and_after_a_restart() {
    for (wanted, verb) in [(0.5, "promise_served"), (0.25, "promise_absent")] {
        let (mut kept, id) = promised();
        for second in (20..2000).step_by(10) {
            if second == 900 {
                kept.restart();
            }
            let cores = if second == 300 { wanted } else { 0.1 };
            kept.report(report_of("a", second, &[(1, cores, cores)], Some(0.6)));
            // The half hour of the promise begins with the first window after the answer.
            assert_eq!(kept.verbs().contains(&verb), second >= 1830, "at {second}");
        }
        let about: Vec<_> = kept.verdicts.iter().filter(|(_, detail)| detail.starts_with(&id.to_string())).collect();
        assert_eq!(about.len(), 1, "{:?}", kept.verdicts);
        assert!(about[0].1.contains(&format!("at most {wanted:.2} cores were wanted, 0.30 were allowed")), "{about:?}");
        assert!(matches!(kept.expectations[&id].state, ExpectationState::Over(Ending::Seen { .. })));
    }
}

#[test]
fn more_memory_gets_its_verdict_though_the_answer_comes_after_a_restart() {
    for (demand_mib, verb) in [(600, "memory_served"), (300, "memory_absent")] {
        let mut kept = Kept::new(policy(Mode::Auto));
        let grown = kept.report(report_with_memory(0, 0.3, 0.27, 512, 600)).pop().unwrap();
        kept.restart();
        let memory = |mib: u64| vec![Setting::Memory { bytes: mib << 20 }];
        let result = OutcomeResult::Applied { before: memory(512), after: memory(720), took_us: 1_500_000 };
        kept.outcome(11, grown.id, result);
        for second in (10..100).step_by(10) {
            kept.report(report_with_memory(second, 0.3, 0.27, 720, demand_mib));
        }
        assert_eq!(kept.verbs(), [verb]);
        let cost = kept.expectations[&grown.id].cost.unwrap();
        assert_eq!((cost.took_us, cost.downtime_us), (1_500_000, None));
    }
}

#[test]
fn a_move_gets_its_verdict_by_how_full_both_hosts_are() {
    let migrate = MigratePolicy { mode: Mode::Auto, lead_ms: 60_000, rounds: 2, ..MigratePolicy::default() };
    // Three stay on the host that has room for 3.6 cores.
    for (stay_cores, verb) in [(0.95, "relief_served"), (0.5, "relief_absent")] {
        let mut kept = Kept::new(Policy { migrate: migrate.clone(), ..policy(Mode::Auto) });
        let full = [(1, 0.95, 0.95), (2, 0.95, 0.95), (3, 0.95, 0.95), (4, 0.95, 0.95)];
        let mut sent = Vec::new();
        for second in [0, 10] {
            kept.report(report_of("b", second, &[], Some(1.0)));
            sent = kept.report(report_of("a", second, &full, Some(1.0)));
        }
        sent.retain(|command| matches!(command.action, Action::Migrate(_)));
        assert_eq!(sent[0].vm, vm(1));
        let moved = Moved { took_us: 2_000_000, downtime_us: Some(80_000), ..Moved::default() };
        kept.outcome(22, sent[0].id, OutcomeResult::Moved(moved));
        let stay: Vec<_> = (2..5).map(|number| (number, stay_cores, stay_cores)).collect();
        for second in (20..110).step_by(10) {
            if second == 50 {
                kept.restart();
            }
            kept.report(report_of("b", second, &full[..1], Some(1.0)));
            kept.report(report_of("a", second, &stay, Some(1.0)));
        }
        assert_eq!(kept.verbs(), [verb], "{:?}", kept.verdicts);
        assert!(kept.verdicts[0].1.ends_with("; the move took 2.0 s, 0.080 s of it at a stand"), "{:?}", kept.verdicts);
    }
}

#[test]
fn what_was_not_done_or_not_seen_has_no_verdict() {
    let (mut kept, id) = promised();
    // Gone before the first window after the answer.
    kept.report(report_of("a", 20, &[], None));
    assert_eq!(kept.expectations[&id].state, ExpectationState::Over(Ending::Unseen));

    let mut kept = Kept::new(policy(Mode::Auto));
    let grown = kept.report(report_with_memory(0, 0.3, 0.27, 512, 600)).pop().unwrap();
    assert_eq!(kept.expectations[&grown.id].state, ExpectationState::Sent);
    kept.outcome(11, grown.id, OutcomeResult::Refused(RefusedCommand::StoodDown));
    assert_eq!(kept.expectations[&grown.id].state, ExpectationState::Over(Ending::NotDone));
    assert!(kept.verdicts.is_empty());
}
