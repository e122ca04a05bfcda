//! What stands around the core in the brain: a store that survives its death, and what a restart reads from it.

use std::collections::BTreeMap;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Command, CommandId, HostFacts, HostId, Means, Report, Setting, VmId};
use gnomon_core::archive::{BlockKey, Change, SealedBlock};
use gnomon_core::{
    CommandRecord, Core, Expectation, Hold, Lesson, Mode, Policy, Proposal, ProposalKey, Record, Restored, Scope,
    Shadow,
};

/// Reports kept for a restart. The real store keeps them for a time; this many are hours of a small world.
const REPORTS_MAX: usize = 50_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    term: u64,
    hosts: BTreeMap<HostId, HostFacts>,
    history: BTreeMap<(VmId, BlockKey), Box<[u8]>>,
    reports: Vec<Report>,
    holds: BTreeMap<Scope, Hold>,
    modes: BTreeMap<Scope, Mode>,
    settings: BTreeMap<(VmId, Means), Setting>,
    lessons: BTreeMap<String, Lesson>,
    draining: BTreeMap<HostId, Timestamp>,
    proposals: BTreeMap<ProposalKey, Proposal>,
    shadows: BTreeMap<VmId, Shadow>,
    expectations: BTreeMap<CommandId, Expectation>,
    commands: BTreeMap<CommandId, CommandRecord>,
}

impl Store {
    /// Starts a brain on what is stored: the next term.
    pub(crate) fn start(&mut self, policy: &Policy, seed: u64) -> Core {
        self.term += 1;
        let mut core = Core::new(policy.clone(), seed, self.term);
        for (host, facts) in &self.hosts {
            core.restore(Restored::Host { host: host.clone(), facts: facts.clone() });
        }
        for (&(vm, key), bytes) in &self.history {
            core.restore(Restored::History { vm, block: SealedBlock { key, bytes: bytes.clone() } });
        }
        for lesson in self.lessons.values() {
            core.restore(Restored::Lesson(lesson.clone()));
        }
        for expectation in self.expectations.values() {
            core.restore(Restored::Expectation(Box::new(expectation.clone())));
        }
        for report in &self.reports {
            core.restore(Restored::Report(Box::new(report.clone())));
        }
        for (scope, &hold) in &self.holds {
            core.restore(Restored::Hold { scope: scope.clone(), hold });
        }
        for (scope, &mode) in &self.modes {
            core.restore(Restored::Mode { scope: scope.clone(), mode });
        }
        for (host, &since) in &self.draining {
            core.restore(Restored::Drain { host: host.clone(), since });
        }
        for (&(vm, _), &setting) in &self.settings {
            core.restore(Restored::Setting { vm, setting });
        }
        for proposal in self.proposals.values() {
            core.restore(Restored::Proposal(Box::new(proposal.clone())));
        }
        for shadow in self.shadows.values() {
            core.restore(Restored::Shadow(Box::new(shadow.clone())));
        }
        for record in self.commands.values().filter(|record| record.is_settled()) {
            core.restore(Restored::Tried(Box::new(record.clone())));
        }
        for record in self.unanswered() {
            core.restore(Restored::Command(record.clone()));
        }
        core
    }

    /// Synced before the core sees it.
    pub(crate) fn keep_report(&mut self, report: &Report) {
        if self.reports.len() == REPORTS_MAX {
            self.reports.drain(..REPORTS_MAX / 10);
        }
        self.reports.push(report.clone());
    }

    pub(crate) fn persist(&mut self, record: Record) {
        match record {
            Record::Host { host, facts, .. } => {
                self.hosts.insert(host, facts);
            }
            Record::Command(record) => {
                self.commands.insert(record.command.id, record);
            }
            Record::Scope { scope, hold: Some(hold) } => {
                self.holds.insert(scope, hold);
            }
            Record::Scope { scope, hold: None } => {
                self.holds.remove(&scope);
            }
            Record::Mode { scope, mode: Some(mode) } => {
                self.modes.insert(scope, mode);
            }
            Record::Mode { scope, mode: None } => {
                self.modes.remove(&scope);
            }
            Record::Setting { vm, means, setting: Some(setting) } => {
                self.settings.insert((vm, means), setting);
            }
            Record::Setting { vm, means, setting: None } => {
                self.settings.remove(&(vm, means));
            }
            Record::History { vm, change: Change::Persist(block) } => {
                self.history.insert((vm, block.key), block.bytes);
            }
            Record::History { vm, change: Change::Forget(key) } => {
                self.history.remove(&(vm, key));
            }
            Record::Lesson { lesson, .. } => {
                self.lessons.insert(lesson.subject(), lesson);
            }
            Record::Drain { host, since: Some(since) } => {
                self.draining.insert(host, since);
            }
            Record::Drain { host, since: None } => {
                self.draining.remove(&host);
            }
            // Agents of this world do nothing of their own accord.
            Record::LocalAct { .. } => {}
            // This world has no provider.
            Record::Capacity(_) => {}
            Record::Proposal(proposal) => {
                self.proposals.insert(proposal.key, *proposal);
            }
            Record::Shadow(shadow) => {
                self.shadows.insert(shadow.id, *shadow);
            }
            Record::Expectation { expectation, .. } if expectation.is_over() => {
                self.expectations.remove(&expectation.command);
            }
            Record::Expectation { expectation, .. } => {
                self.expectations.insert(expectation.command, *expectation);
            }
            Record::Vm { .. } | Record::Allocation { .. } | Record::Plan(_) | Record::Audit(_) => {}
        }
    }

    /// Whether a command was written: it may not be sent before.
    pub(crate) fn has(&self, command: &Command) -> bool {
        self.commands.contains_key(&command.id)
    }

    /// Commands to be sent again to a host that connected, those that `core` still wants, with what is left of their time to live.
    pub(crate) fn resend(&self, core: &Core, host: &HostId, now: Timestamp) -> Vec<Command> {
        let mine = self.unanswered().filter(|record| record.host == *host && core.may_send_again(record));
        mine.filter_map(|record| {
            let waited_ms = now.since(record.issued).as_millis() as u64;
            let time_to_live_ms = record.command.time_to_live_ms.checked_sub(waited_ms)?;
            Some(Command { time_to_live_ms, ..record.command.clone() })
        })
        .collect()
    }

    fn unanswered(&self) -> impl Iterator<Item = &CommandRecord> {
        self.commands.values().filter(|record| !record.is_settled())
    }
}
