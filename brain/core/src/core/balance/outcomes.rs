//! What came of a move, and what follows from it.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, Immovable, Moved, Outcome, OutcomeResult, VmId, Whereabouts};

use super::SETTLING;
use crate::core::Core;
use crate::fleet::Host;
use crate::io::{CommandRecord, Record};

impl Core {
    /// Whether a host that has just connected has not told yet who is there.
    pub(in crate::core) fn is_settling(&self, now: Timestamp) -> bool {
        let is_silent = |host: &Host| host.connected && host.prospect.is_none() && now.since(host.up_since) < SETTLING;
        self.fleet.hosts.values().any(is_silent)
    }

    pub(in crate::core) fn moved(
        &mut self,
        now: Timestamp,
        record: &CommandRecord,
        moved: &Moved,
        at: Timestamp,
    ) -> String {
        let id = record.command.vm;
        let Action::Migrate(migration) = &record.command.action else { return "moved".to_owned() };
        let to = migration.to.clone();
        let Some(vm) = self.fleet.vms.get_mut(&id) else { return format!("moved to host {to}") };
        vm.travel.backoff.succeed();
        // It may have gone on since, and that be known already.
        let is_news = vm.host.as_ref().is_none_or(|host| *host == record.host);
        // Windows that its old host made before this tell of the time before.
        if is_news {
            vm.window_end = vm.window_end.max(at);
        }
        let memory_bytes = vm.has_bytes();
        let (name, state) = (vm.name.clone(), vm.state);
        if is_news {
            self.fleet.place(id, &to);
            self.persist(Record::Vm { vm: id, name, host: Some(to.clone()), state, at });
            let landed = self.fleet.vms.get(&id).map(|vm| self.landing(vm, vm.window_end));
            if let (Some(prospect), Some(claim)) =
                (self.fleet.hosts.get_mut(&to).and_then(|host| host.prospect.as_mut()), landed)
            {
                prospect.load = prospect.load.plus(claim);
            }
        }
        let copied_bytes = moved.copied.as_ref().and_then(|copied| copied.bytes).unwrap_or(0);
        self.moves.pace.learn(memory_bytes.saturating_add(copied_bytes), moved);
        self.keep_moves(now);
        let still =
            moved.downtime_us.map_or_else(String::new, |us| format!(", {:.3} s of it at a stand", us as f64 / 1e6));
        let left = moved.copied.as_ref().map_or_else(String::new, |copied| {
            let (how, files) = (if copied.is_layered { "layers" } else { "whole" }, copied.left.join(", "));
            let text = format!("its disks were copied ({how}); on host {} are left {files}", record.host);
            self.notice("disks_left", format!("VM {id} has moved to host {to}, {text}: nobody removes them"));
            format!("; {text}")
        });
        format!("moved to host {to} in {:.1} s{still}{left}", moved.took_us as f64 / 1e6)
    }

    /// A VM that stood still between two hosts runs again, on one of them: the move is over, whether its answer comes or not.
    pub(in crate::core) fn unpark(&mut self, now: Timestamp, id: VmId, host: &HostId) {
        let Some(vm) = self.fleet.vms.get_mut(&id).filter(|vm| vm.is_parked) else { return };
        vm.is_parked = false;
        // Its last word may still come.
        let record = vm.flight.take().map(|flight| CommandRecord { unanswered: true, ..flight.record });
        vm.given_up = record.clone().or(vm.given_up.take());
        self.end_abort(id);
        if let Some(record) = record {
            self.set_down(id, record.command.id);
            let detail = format!("{} it runs on host {host}", record.command.id);
            self.audit(now, host.as_str(), "unparked", format!("vm {id}"), detail);
            self.persist(Record::Command(record));
        }
    }

    /// A VM stands still between two hosts: nothing else may be done to it, and both keep its room, until it runs again.
    pub(in crate::core) fn parked(&mut self, now: Timestamp, record: &CommandRecord, outcome: &Outcome, error: &str) {
        let id = record.command.vm;
        let Some(vm) = self.fleet.vms.get_mut(&id) else { return };
        vm.is_parked = true;
        vm.note_result(outcome.id, &outcome.result);
        if let Some(flight) = &vm.flight {
            self.deadlines.remove(&(flight.deadline, id));
        }
        self.notice("vm_parked", format!("host {}, VM {id}: {error}; {}", record.host, Whereabouts::Parked));
        let detail = format!("{} not moved: {error}; {}", outcome.id, Whereabouts::Parked);
        self.audit(now, record.host.as_str(), "outcome", format!("vm {id}"), detail);
    }

    /// An agent has taken the word that a move be given up. Where the VM is then is told by the answer to the move itself.
    pub(in crate::core) fn abort_answered(&mut self, now: Timestamp, outcome: Outcome, record: CommandRecord) {
        let id = outcome.vm;
        if let Some(vm) = self.fleet.vms.get_mut(&id) {
            vm.note_result(outcome.id, &outcome.result);
        }
        let detail = match &outcome.result {
            OutcomeResult::Applied { .. } => "the move is being given up".to_owned(),
            OutcomeResult::Refused(why) => format!("refused: {why}"),
            OutcomeResult::Failed { error, .. } => format!("failed: {error}"),
            _ => "the move goes on".to_owned(),
        };
        self.audit(now, record.host.as_str(), "outcome", format!("vm {id}"), format!("{} {detail}", outcome.id));
        self.persist(Record::Command(CommandRecord { outcome: Some(outcome), unanswered: false, ..record }));
    }

    /// The move is over: no answer to the word that it be given up is waited for.
    pub(in crate::core) fn end_abort(&mut self, id: VmId) {
        let abort = self.fleet.vms.get_mut(&id).and_then(|vm| vm.abort.take());
        if let Some(record) = abort {
            self.persist(Record::Command(CommandRecord { unanswered: true, ..record }));
        }
    }

    pub(in crate::core) fn not_moved(
        &mut self,
        now: Timestamp,
        record: &CommandRecord,
        error: &str,
        at: Whereabouts,
    ) -> String {
        self.turn_away(now, record, false);
        let id = record.command.vm;
        self.notice("migration_failed", format!("host {}, VM {id}: {error}; {at}", record.host));
        format!("not moved: {error}; {at}")
    }

    pub(in crate::core) fn immovable(&mut self, now: Timestamp, record: &CommandRecord, why: &Immovable) -> String {
        self.turn_away(now, record, holds_anywhere(why));
        let id = record.command.vm;
        self.not_begun(now, id);
        self.notice("vm_immovable", format!("host {}, VM {id}: {why}", record.host));
        format!("not moved: {why}")
    }

    /// A move came to nothing: nothing is tried with its VM for some seconds, and nothing with that host, or with any, for an hour.
    fn turn_away(&mut self, at: Timestamp, record: &CommandRecord, is_rooted: bool) {
        self.back_off(at, record);
        let Action::Migrate(migration) = &record.command.action else { return };
        let Some(vm) = self.fleet.vms.get_mut(&record.command.vm) else { return };
        vm.travel.avoid(migration.to.clone(), at);
        if is_rooted {
            vm.travel.root(at);
        }
    }

    /// A restart brings back what came of a move, as far as that says what is tried next.
    pub(in crate::core) fn restore_tried(&mut self, record: &CommandRecord) {
        let Action::Migrate(migration) = &record.command.action else { return };
        let Some(outcome) = &record.outcome else {
            // Its answer may still come, and its VM be seen elsewhere.
            if let Some(vm) = self.fleet.vms.get_mut(&record.command.vm).filter(|_| record.unanswered) {
                vm.given_up = Some(record.clone());
            }
            return;
        };
        // The host's clock says when, but not what the brain's cannot have said.
        let latest = record.issued + Duration::from_millis(migration.timeout_ms);
        let at = outcome.at.clamp(record.issued, latest);
        match &outcome.result {
            OutcomeResult::NotMoved { .. } => self.turn_away(at, record, false),
            OutcomeResult::Immovable(why) => self.turn_away(at, record, holds_anywhere(why)),
            OutcomeResult::Moved(_) => {
                let (id, to) = (record.command.vm, migration.to.clone());
                let Some(vm) = self.fleet.vms.get_mut(&id) else { return };
                vm.travel.backoff.succeed();
                // Where no later window has told of it yet: by Gnomon it is where it is seen next.
                if vm.host.as_ref() == Some(&record.host) && outcome.at > vm.window_end {
                    vm.window_end = outcome.at;
                    self.fleet.place(id, &to);
                }
            }
            _ => {}
        }
    }
}

/// Whether no other host would change what holds a VM.
fn holds_anywhere(why: &Immovable) -> bool {
    matches!(why, Immovable::Bound(_) | Immovable::Storage(_))
}
