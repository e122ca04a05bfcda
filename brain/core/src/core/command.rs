//! Commands in flight: one for each VM, answered or given up.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Command, CommandId, Fence, HostId, Outcome, OutcomeResult, RefusedCommand, Setting, VmId,
};

use super::{ACTOR, Core};
use crate::fleet::Flight;
use crate::io::{CommandRecord, Hold, Output, Record};
use crate::plan::{PlannedAction, Reason};
use crate::policy::Mode;
use crate::view::RecentAction;

/// After its time to live a command is not started any more; what was started may take this long, answer included.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

impl Core {
    /// Issues a command for an action of a checked plan: written first, then sent.
    pub(super) fn command(&mut self, now: Timestamp, action: PlannedAction, fence: Fence) {
        let Some(vm) = self.fleet.vms.get_mut(&action.vm) else { return };
        self.commands += 1;
        let id = CommandId { term: fence.term, number: self.commands };
        let command = Command {
            id,
            vm: action.vm,
            action: action.action,
            fence,
            time_to_live_ms: self.policy.cpu.command_ttl_ms,
            reason: action.reason.in_words(now),
        };
        let host = action.host.clone();
        let record = CommandRecord {
            host: host.clone(),
            command: command.clone(),
            issued: now,
            outcome: None,
            unanswered: false,
        };
        let deadline = deadline(&record);
        vm.flight = Some(Flight { record: record.clone(), deadline });
        self.deadlines.insert((deadline, action.vm));
        if matches!(action.reason, Reason::Slack { .. }) {
            vm.pace.shrinks(now);
        }
        let detail = format!("{id} {}: {}", action.summary(), command.reason);
        vm.remember(RecentAction { at: now, id: Some(id), action, result: None });
        self.persist(Record::Command(record));
        self.audit(now, ACTOR, "command", format!("vm {}", command.vm), detail);
        self.outputs.push_back(Output::Command { host, command });
    }

    /// Whether an unanswered command may be sent again to its host now. It was decided before, maybe in an earlier life: since then
    /// an operator may have taken the VM out of Gnomon's hands, or the mode may have changed. Restoring baselines always may.
    pub fn may_send_again(&self, host: &HostId, command: &Command) -> bool {
        let acts = self.policy.mode == Mode::Auto && self.holds.on_vm(command.vm, Some(host)).is_none();
        command.action == Action::Release || acts
    }

    pub(super) fn outcome(&mut self, now: Timestamp, host: &HostId, outcome: Outcome) {
        let (id, vm_id) = (outcome.id, outcome.vm);
        let Some(vm) = self.fleet.vms.get_mut(&vm_id) else {
            return self.notice("outcome_of_unknown_vm", format!("host {host} answered {id} for unknown VM {vm_id}"));
        };
        // An agent speaks for its own host only: what it says of another's command is not that command's answer.
        let mut awaited = vm.flight.iter().map(|flight| &flight.record).chain(&vm.given_up);
        if let Some(record) = awaited.find(|record| record.command.id == id && record.host != *host) {
            let text = format!("host {host} answered {id}, which was sent to host {}", record.host);
            return self.notice("outcome_of_foreign_command", text);
        }
        let record = match vm.flight.take_if(|flight| flight.record.command.id == id) {
            Some(flight) => {
                self.deadlines.remove(&(flight.deadline, vm_id));
                flight.record
            }
            None => match vm.given_up.take_if(|record| record.command.id == id) {
                Some(record) => {
                    self.notice("outcome_late", format!("host {host} answered {id} after it was given up"));
                    record
                }
                None => {
                    let text = format!("host {host} answered {id}, which awaits no answer");
                    return self.notice("outcome_without_command", text);
                }
            },
        };
        self.settle(now, host, &outcome, record.command.action);
        self.persist(Record::Command(CommandRecord { outcome: Some(outcome), unanswered: false, ..record }));
        // A release may have waited for this one.
        self.restore_baselines(now, vec![vm_id]);
    }

    /// Draws the consequences of an answer.
    fn settle(&mut self, now: Timestamp, host: &HostId, outcome: &Outcome, action: Action) {
        let (id, vm_id) = (outcome.id, outcome.vm);
        let Some(vm) = self.fleet.vms.get_mut(&vm_id) else { return };
        vm.note_result(id, &outcome.result);
        let detail = match &outcome.result {
            OutcomeResult::Applied { before, after, took_us } => {
                vm.pace.succeed();
                let released = self.holds.on_vm(vm_id, vm.host.as_ref()) == Some(Hold::Released);
                vm.restored |= action == Action::Release && released;
                if let Some(quota_cores) = Setting::quota_among(after)
                    && vm.read_back(quota_cores, outcome.at, now)
                {
                    let record = Record::Allocation { vm: vm_id, allocation: vm.allocation, at: outcome.at };
                    self.persist(record);
                }
                let changes = before.iter().zip(after).map(|(before, after)| format!("{before} -> {after}"));
                format!("applied: {} in {took_us} us", changes.collect::<Vec<_>>().join(", "))
            }
            OutcomeResult::DryRun => {
                vm.pace.back_off(now);
                "dry run: nothing was changed".to_owned()
            }
            OutcomeResult::Refused(why) => {
                self.refused(now, id, vm_id, *why);
                format!("refused: {why}")
            }
            OutcomeResult::Failed { error, retryable } => {
                vm.pace.back_off(now);
                let text = format!("host {host}, VM {vm_id}, command {id}: {error}");
                self.notice("command_failed", text);
                format!("failed ({}): {error}", if *retryable { "retryable" } else { "final" })
            }
        };
        self.audit(now, host.as_str(), "outcome", format!("vm {vm_id}"), format!("{id} {detail}"));
    }

    fn refused(&mut self, now: Timestamp, id: CommandId, vm_id: VmId, why: RefusedCommand) {
        // That a command of an earlier life of the brain is stale by now is as it should be.
        if id.term < self.fence.term {
            return;
        }
        if let RefusedCommand::StaleFence { seen } = why
            && seen.term == self.fence.term
        {
            // A brain restored from a copy of itself would have to count up to there.
            self.fence.generation = self.fence.generation.max(seen.generation);
        }
        if let Some(vm) = self.fleet.vms.get_mut(&vm_id) {
            vm.pace.back_off(now);
        }
        let kind = match why {
            RefusedCommand::StaleFence { .. } => "command_stale",
            RefusedCommand::Expired { .. } => "command_expired",
            _ => "command_refused",
        };
        self.notice(kind, format!("VM {vm_id}, command {id}: {why}"));
    }

    /// Gives up the commands whose time to live and grace are over.
    pub(super) fn give_up_commands(&mut self, now: Timestamp) {
        while let Some(&(deadline, vm_id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let Some(vm) = self.fleet.vms.get_mut(&vm_id) else { continue };
            let Some(flight) = vm.flight.take() else { continue };
            vm.pace.back_off(now);
            let record = CommandRecord { unanswered: true, ..flight.record };
            vm.given_up = Some(record.clone());
            let text = format!("host {}, VM {vm_id}: no answer to command {}", record.host, record.command.id);
            self.notice("command_unanswered", text);
            self.persist(Record::Command(record));
        }
    }

    /// Takes up a command that an earlier life of the brain left unanswered.
    pub(super) fn resume_flight(&mut self, record: CommandRecord) {
        if record.outcome.is_some() || record.unanswered {
            return;
        }
        let vm_id = record.command.vm;
        let Some(vm) = self.fleet.vms.get_mut(&vm_id) else { return };
        let deadline = deadline(&record);
        if let Some(earlier) = vm.flight.replace(Flight { record, deadline }) {
            self.deadlines.remove(&(earlier.deadline, vm_id));
        }
        self.deadlines.insert((deadline, vm_id));
    }

    /// Keeps deadlines where they can be met after the brain's clock was set back.
    pub(super) fn clock_set_back(&mut self, now: Timestamp) {
        for (_, vm_id) in std::mem::take(&mut self.deadlines) {
            let Some(flight) = self.fleet.vms.get_mut(&vm_id).and_then(|vm| vm.flight.as_mut()) else { continue };
            let ttl = Duration::from_millis(flight.record.command.time_to_live_ms);
            flight.deadline = flight.deadline.min(now + ttl + ANSWER_GRACE);
            self.deadlines.insert((flight.deadline, vm_id));
        }
        self.fleet.vms.values_mut().for_each(|vm| vm.pace.clock_set_back(now));
        self.fits.clear();
    }
}

fn deadline(record: &CommandRecord) -> Timestamp {
    record.issued + Duration::from_millis(record.command.time_to_live_ms) + ANSWER_GRACE
}
