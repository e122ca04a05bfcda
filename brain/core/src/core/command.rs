//! Commands in flight: one for each VM, answered or given up.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Command, CommandId, Fence, HostId, Origin, Outcome, OutcomeResult, RefusedCommand, Setting, Whereabouts,
};

use super::local::changes;
use super::{ACTOR, Core};
use crate::fleet::Flight;
use crate::io::{CommandRecord, Hold, Output, Record};
use crate::plan::{Plan, PlannedAction, Reason};
use crate::policy::Mode;
use crate::view::RecentAction;

/// After its time to live a command is not started any more; what was started may take this long, answer included.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

impl Core {
    /// Issues a command for an action of a checked plan: written first, then sent.
    pub(super) fn command(&mut self, now: Timestamp, action: PlannedAction, fence: Fence) {
        if !self.fleet.vms.contains_key(&action.vm) {
            return;
        }
        self.commands += 1;
        let id = CommandId { term: fence.term, number: self.commands };
        let command = Command {
            id,
            vm: action.vm,
            action: action.action.clone(),
            fence,
            time_to_live_ms: self.policy.cpu.command_ttl_ms,
            reason: match &action.approved_by {
                Some(by) => format!("{}; approved by {by}", action.why(now)),
                None => action.why(now),
            },
        };
        let host = action.host.clone();
        let record = CommandRecord {
            host: host.clone(),
            command: command.clone(),
            issued: now,
            outcome: None,
            unanswered: false,
            by_operator: action.reason == Reason::Operator,
            approved_by: action.approved_by.clone(),
        };
        self.expect(now, id, &action);
        let deadline = deadline(&record);
        if let Some(vm) = self.fleet.vms.get_mut(&action.vm) {
            if action.action == Action::AbortMigration {
                vm.abort = Some(record.clone());
            } else {
                vm.flight = Some(Flight { record: record.clone(), deadline });
            }
        }
        if let Action::Migrate(migration) = &action.action {
            self.set_out(now, id, action.vm, &host, &migration.to);
        }
        if action.action != Action::AbortMigration {
            self.deadlines.insert((deadline, action.vm));
        }
        let Some(vm) = self.fleet.vms.get_mut(&action.vm) else { return };
        match action.reason {
            Reason::Slack { .. } => vm.pace.dwell.shrinks(now),
            Reason::MemorySlack { .. } => vm.balloon_pace.dwell.shrinks(now),
            _ => {}
        }
        let detail = format!("{id} {}: {}", action.summary(), command.reason);
        vm.remember(RecentAction { at: now, id: Some(id), action, result: None, remark: None });
        self.count_resize(&record);
        self.persist(Record::Command(record));
        self.audit(now, ACTOR, "command", format!("vm {}", command.vm), detail);
        self.outputs.push_back(Output::Command { host, command });
    }

    /// Sends one command that is a plan of its own and leaves its VM free for others: written first, then sent. `is_refresh`: it only repeats what
    /// holds, which is no news to anybody.
    pub(super) fn issue(&mut self, now: Timestamp, planned: PlannedAction, is_refresh: bool) -> CommandRecord {
        self.fence.generation += 1;
        self.commands += 1;
        let id = CommandId { term: self.fence.term, number: self.commands };
        let command = Command {
            id,
            vm: planned.vm,
            action: planned.action.clone(),
            fence: self.fence,
            time_to_live_ms: self.policy.cpu.command_ttl_ms,
            reason: planned.reason.in_words(now),
        };
        let host = planned.host.clone();
        let record = CommandRecord {
            host: host.clone(),
            command: command.clone(),
            issued: now,
            outcome: None,
            unanswered: false,
            by_operator: false,
            approved_by: None,
        };
        if !is_refresh {
            let (object, detail) =
                (format!("vm {}", planned.vm), format!("{id} {}: {}", planned.summary(), planned.reason));
            self.persist(Record::Plan(Plan { at: now, fence: self.fence, actions: vec![planned] }));
            self.persist(Record::Command(record.clone()));
            self.audit(now, ACTOR, "command", object, detail);
        }
        self.outputs.push_back(Output::Command { host, command });
        record
    }

    /// Whether an unanswered command may be sent again to its host now. It was decided before, maybe in an earlier life: since then
    /// an operator may have taken the VM or the means out of Gnomon's hands, or the mode may have changed. Restoring baselines always
    /// may, and what an operator set unless the VM was released since.
    pub fn may_send_again(&self, record: &CommandRecord) -> bool {
        let (vm, hold) = (record.command.vm, self.holds.on_vm(record.command.vm, Some(&record.host)));
        let is_allowed = match self.mode_for(vm, &record.command.action) {
            Mode::Observe | Mode::Recommend => false,
            Mode::Approve => record.approved_by.is_some(),
            Mode::Auto => true,
        };
        match record.command.action {
            Action::Release | Action::AbortMigration => true,
            Action::Describe | Action::Image(_) | Action::Shadow(_) => self.shadows.awaits(record.command.id),
            Action::DirtyRate { .. } => self.moves.measurements.awaits(record.command.id),
            Action::Migrate(_) => hold.is_none() && (record.by_operator || is_allowed),
            Action::Set(_) if record.by_operator => hold != Some(Hold::Released),
            Action::Set(target) => {
                let stood_down = self.fleet.vms.get(&vm).is_some_and(|vm| vm.stood_down);
                let is_ours = hold.is_none() && !stood_down && !self.holds.on_means(vm, target.means());
                is_allowed && is_ours
            }
        }
    }

    pub(super) fn outcome(&mut self, now: Timestamp, host: &HostId, outcome: Outcome) {
        let (id, vm_id) = (outcome.id, outcome.vm);
        if self.shadows.awaits(id) {
            return self.shadow_answered(now, host, outcome);
        }
        if self.moves.measurements.awaits(id) {
            return self.measured(now, host, outcome);
        }
        if let Origin::Local { cause, reason } = &outcome.origin
            && id.is_local()
        {
            let (cause, reason) = (*cause, reason.clone());
            return self.local_act(now, host, outcome, cause, &reason);
        }
        let Some(vm) = self.fleet.vms.get_mut(&vm_id) else {
            return self.notice("outcome_of_unknown_vm", format!("host {host} answered {id} for unknown VM {vm_id}"));
        };
        // An agent speaks for its own host only: what it says of another's command is not that command's answer.
        let mut awaited = vm.flight.iter().map(|flight| &flight.record).chain(&vm.given_up).chain(&vm.abort);
        if let Some(record) = awaited.find(|record| record.command.id == id && record.host != *host) {
            let text = format!("host {host} answered {id}, which was sent to host {}", record.host);
            return self.notice("outcome_of_foreign_command", text);
        }
        if let OutcomeResult::NotMoved { error, whereabouts: Whereabouts::Parked } = &outcome.result
            && let Some(flight) = vm.flight.as_ref().filter(|flight| flight.record.command.id == id)
        {
            if vm.is_parked {
                return;
            }
            let (record, error) = (flight.record.clone(), error.clone());
            self.parked(now, &record, &outcome, &error);
            return self.persist(Record::Command(CommandRecord {
                outcome: Some(outcome),
                unanswered: false,
                ..record
            }));
        }
        if let Some(record) = vm.abort.take_if(|abort| abort.command.id == id) {
            return self.abort_answered(now, outcome, record);
        }
        let record = match vm.flight.take_if(|flight| flight.record.command.id == id) {
            Some(flight) => {
                vm.is_parked = false;
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
        self.set_down(vm_id, id);
        self.end_abort(vm_id);
        self.settle(now, host, &outcome, &record);
        self.persist(Record::Command(CommandRecord { outcome: Some(outcome), unanswered: false, ..record }));
        // A release may have waited for this one.
        self.restore_baselines(now, vec![vm_id]);
    }

    /// Draws the consequences of an answer.
    fn settle(&mut self, now: Timestamp, host: &HostId, outcome: &Outcome, record: &CommandRecord) {
        let (id, vm_id, action) = (outcome.id, outcome.vm, &record.command.action);
        self.await_expected(now, outcome);
        let Some(vm) = self.fleet.vms.get_mut(&vm_id) else { return };
        vm.note_result(id, &outcome.result);
        let detail = match &outcome.result {
            OutcomeResult::Applied { before, after, took_us } => {
                vm.backoff(action).succeed();
                let released = self.holds.on_vm(vm_id, vm.host.as_ref()) == Some(Hold::Released);
                vm.restored |= *action == Action::Release && released;
                self.take_read_back(vm_id, after, outcome.at, now);
                if let (Action::Set(Setting::CpuQuota { .. }), Some(host)) = (action, self.fleet.hosts.get_mut(host)) {
                    host.reaction.learn(now.since(record.issued));
                }
                // Released meanwhile: it is restored next, and not held.
                if let Action::Set(asked) = *action
                    && record.by_operator
                    && !released
                {
                    self.hold_setting(vm_id, asked, after);
                }
                format!("applied: {} in {took_us} us", changes(before, after))
            }
            OutcomeResult::Moved(moved) => self.moved(now, record, moved, outcome.at),
            OutcomeResult::NotMoved { error, whereabouts } => self.not_moved(now, record, error, *whereabouts),
            OutcomeResult::Immovable(why) => self.immovable(now, record, why),
            OutcomeResult::Described(_)
            | OutcomeResult::Imaged(_)
            | OutcomeResult::DirtyRate { .. }
            | OutcomeResult::Shadow(_)
            | OutcomeResult::Unshadowable(_) => "not asked for".to_owned(),
            OutcomeResult::DryRun => {
                self.spare(now, record);
                self.back_off(now, record);
                "dry run: nothing was changed".to_owned()
            }
            OutcomeResult::Refused(why) => {
                self.spare(now, record);
                self.refused(now, record, *why);
                format!("refused: {why}")
            }
            OutcomeResult::Failed { error, retryable } => {
                self.back_off(now, record);
                let text = format!("host {host}, VM {vm_id}, command {id}: {error}");
                self.notice("command_failed", text);
                format!("failed ({}): {error}", if *retryable { "retryable" } else { "final" })
            }
        };
        self.audit(now, host.as_str(), "outcome", format!("vm {vm_id}"), format!("{id} {detail}"));
    }

    /// Waits before the next command of this kind, unless an operator asked for this one: that says nothing of what the planner may do.
    /// A release is repeated until it is done, and must not be so without pause.
    pub(super) fn back_off(&mut self, now: Timestamp, record: &CommandRecord) {
        let action = &record.command.action;
        if record.by_operator && *action != Action::Release {
            return;
        }
        if let Some(vm) = self.fleet.vms.get_mut(&record.command.vm) {
            vm.backoff(action).back_off(now);
        }
    }

    fn refused(&mut self, now: Timestamp, record: &CommandRecord, why: RefusedCommand) {
        let (id, vm_id) = (record.command.id, record.command.vm);
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
        self.back_off(now, record);
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
            let Some(vm) = self.fleet.vms.get_mut(&vm_id) else {
                self.lose_sight(vm_id);
                continue;
            };
            let Some(flight) = vm.flight.take_if(|flight| flight.deadline == deadline) else { continue };
            let record = CommandRecord { unanswered: true, ..flight.record };
            vm.given_up = Some(record.clone());
            self.set_down(vm_id, record.command.id);
            self.expect_no_more(now, vm_id, record.command.id);
            self.end_abort(vm_id);
            self.back_off(now, &record);
            let text = format!("host {}, VM {vm_id}: no answer to command {}", record.host, record.command.id);
            self.notice("command_unanswered", text);
            self.persist(Record::Command(record));
        }
    }

    /// Takes up a command that an earlier life of the brain left unanswered.
    pub(super) fn resume_flight(&mut self, record: CommandRecord) {
        if record.is_settled() {
            return;
        }
        // An order about a shadow is given anew, under another id, and so is what only asks.
        if matches!(
            record.command.action,
            Action::Describe | Action::Image(_) | Action::DirtyRate { .. } | Action::Shadow(_)
        ) {
            return;
        }
        let vm_id = record.command.vm;
        if let Action::Migrate(migration) = &record.command.action
            && self.fleet.vms.contains_key(&vm_id)
        {
            self.resume_move(record.command.id, vm_id, &record.host, &migration.to);
        }
        let Some(vm) = self.fleet.vms.get_mut(&vm_id) else { return };
        if record.command.action == Action::AbortMigration {
            vm.abort = Some(record);
            return;
        }
        let deadline = deadline(&record);
        vm.is_parked = record.is_parked();
        let is_waited_for = !vm.is_parked;
        if let Some(earlier) = vm.flight.replace(Flight { record, deadline }) {
            self.deadlines.remove(&(earlier.deadline, vm_id));
        }
        if is_waited_for {
            self.deadlines.insert((deadline, vm_id));
        }
    }

    /// Keeps deadlines where they can be met after the brain's clock was set back.
    pub(super) fn clock_set_back(&mut self, now: Timestamp) {
        for (_, vm_id) in std::mem::take(&mut self.deadlines) {
            let Some(flight) = self.fleet.vms.get_mut(&vm_id).and_then(|vm| vm.flight.as_mut()) else { continue };
            flight.deadline = flight.deadline.min(deadline(&CommandRecord { issued: now, ..flight.record.clone() }));
            self.deadlines.insert((flight.deadline, vm_id));
        }
        for vm in self.fleet.vms.values_mut() {
            vm.pace.backoff.clock_set_back(now);
            vm.travel.clock_set_back(now);
            vm.resizes.clock_set_back(now);
            vm.incident_at = vm.incident_at.map(|at| at.min(now));
            vm.balloon_pace.backoff.clock_set_back(now);
        }
        self.moves.clock_set_back(now);
        self.resizes.clock_set_back(now);
        self.capacity.clock_set_back(now);
        self.shadows.clock_set_back(now);
        self.proposals.clock_set_back(now, &self.policy.approve);
        for host in self.fleet.hosts.values_mut() {
            host.up_since = host.up_since.min(now);
            // What was told by another clock is not fresh by this one: the next report is.
            if let Some(prospect) = &mut host.prospect {
                prospect.fresh_until = prospect.fresh_until.min(now);
                prospect.stuck_since = prospect.stuck_since.map(|at| at.min(now));
                prospect.shrinks_since = prospect.shrinks_since.map(|at| at.min(now));
            }
        }
        self.fits.clear();
    }
}

pub(super) fn deadline(record: &CommandRecord) -> Timestamp {
    let may_take_ms = match &record.command.action {
        Action::Migrate(migration) => migration.timeout_ms,
        Action::DirtyRate { period_s } => u64::from(*period_s) * 1000,
        _ => 0,
    };
    record.issued + Duration::from_millis(record.command.time_to_live_ms.saturating_add(may_take_ms)) + ANSWER_GRACE
}
