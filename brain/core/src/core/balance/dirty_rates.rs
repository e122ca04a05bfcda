//! How fast those that may leave a host write to their memory: asked for when a host is about to be too full, is so at once, or begins to be
//! emptied. It decides what a move takes, hence which VM goes. Nothing is done to a VM by that, and it stays free for other commands meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, CommandId, HostId, Outcome, OutcomeResult, VmId};

use super::relief::Strain;
use crate::core::Core;
use crate::core::command::deadline;
use crate::io::{CommandRecord, Record};
use crate::plan::balance::Room;
use crate::plan::{PlannedAction, Reason};
use crate::policy::Mode;

/// How long QEMU looks, in seconds: about as long as a round of a move's copying takes.
const PERIOD_S: u8 = 1;

/// Of so many VMs of a host, those that are to be tried first, at a time.
const CANDIDATES_MAX: usize = 4;

/// A move waits so long at most for the first answers.
const PATIENCE: Duration = Duration::from_secs(4);

/// Reports of a host from the one at which it is asked to the one at which a move may be due: one that the answers come before, and one that is late.
const REPORTS_AHEAD: u32 = 2;

/// Measurements that were asked for and are not answered.
#[derive(Clone, Debug, Default)]
pub(in crate::core) struct Measurements {
    asked: BTreeMap<CommandId, CommandRecord>,
}

impl Measurements {
    /// Whether an answer to this command is waited for.
    pub(in crate::core) fn awaits(&self, id: CommandId) -> bool {
        self.asked.contains_key(&id)
    }

    /// Bounds what a clock that was set back can do.
    pub(super) fn clock_set_back(&mut self, now: Timestamp) {
        self.asked.values_mut().for_each(|record| record.issued = record.issued.min(now));
    }

    fn of_host<'a>(&'a self, host: &'a HostId) -> impl Iterator<Item = &'a CommandRecord> {
        self.asked.values().filter(move |record| record.host == *host)
    }
}

impl Core {
    /// Asks for what is not known of the first of those that may leave a host. Returns whether a move need not wait: something was known of
    /// them before the latest were asked for, or these have been waited for long enough.
    /// `beyond` as its load was looked for.
    pub(super) fn weigh(
        &mut self,
        now: Timestamp,
        host: &HostId,
        strain: &Strain,
        is_drained: bool,
        beyond: Duration,
    ) -> bool {
        self.give_up_measurements(now);
        let Some(entry) = self.fleet.hosts.get(host) else { return true };
        // Where nobody has room for one of them it does not matter which it is. Nothing is sent where plans are only shown, or wait for an operator.
        let is_stuck = entry.prospect.is_some_and(|prospect| prospect.stuck_since.is_some());
        if is_stuck || self.move_mode_of_host(host) != Mode::Auto || !entry.connected || entry.facts.migration.is_none()
        {
            return true;
        }
        let candidates = self.candidates(now, host, strain, is_drained, beyond);
        let first: Vec<VmId> = candidates.iter().take(CANDIDATES_MAX).map(|it| it.vm).collect();
        for &vm in &first {
            let under_way = self.moves.measurements.of_host(host).count();
            if under_way < CANDIDATES_MAX && self.is_unweighed(now, host, vm) {
                let action = Action::DirtyRate { period_s: PERIOD_S };
                let host = host.clone();
                let planned = PlannedAction {
                    host,
                    vm,
                    action,
                    before: None,
                    reason: Reason::Weighed,
                    along: None,
                    approved_by: None,
                };
                let record = self.issue(now, planned, false);
                self.moves.measurements.asked.insert(record.command.id, record);
            }
        }
        let known_at = |id: &VmId| self.fleet.vms.get(id).and_then(|vm| vm.travel.dirtied_at(now));
        let was_known = |at: Timestamp| first.iter().filter_map(known_at).any(|known| known < at);
        let comes = |record: &CommandRecord| now.since(record.issued) < PATIENCE && !was_known(record.issued);
        !self.moves.measurements.of_host(host).any(comes)
    }

    /// The same of a host that is not too full yet, but will be so soon that a move that is due then would have to wait for the answers. `end`
    /// and `length` are those of its window.
    pub(super) fn weigh_ahead(&mut self, now: Timestamp, host: &HostId, end: Timestamp, length: Duration) {
        if self.acting(self.move_mode_of_host(host)) != Mode::Auto || self.is_closed(now) {
            return;
        }
        let Some(entry) = self.fleet.hosts.get(host) else { return };
        let beyond = PATIENCE + length * REPORTS_AHEAD;
        let room = Room::of(&entry.facts, &self.policy.migrate);
        let load = self.load_of(entry, None, end, self.skill_min(), beyond);
        if room.holds(&load) {
            return;
        }
        // Where nobody has room for one of them there is no need to know; and what is known already is not worth looking for a place.
        let (share, search) = (room.share(&load), self.search(false));
        let strain = Strain::of(load, room);
        let candidates = self.candidates(now, host, &strain, false, beyond);
        let has_place = candidates.iter().take(CANDIDATES_MAX).any(|candidate| {
            self.is_unweighed(now, host, candidate.vm)
                && self.find_target(now, host, candidate.vm, share, search).is_some()
        });
        if has_place {
            self.weigh(now, host, &strain, false, beyond);
        }
    }

    /// The same at once for a host that begins to be emptied.
    pub(super) fn weigh_drained(&mut self, now: Timestamp, host: &HostId) {
        let Some(entry) = self.fleet.hosts.get(host) else { return };
        let Some(prospect) = entry.prospect else { return };
        let room = Room::of(&entry.facts, &self.policy.migrate);
        self.weigh(now, host, &Strain::of(prospect.load, room), true, Duration::ZERO);
    }

    /// Whether how fast it writes is not known, and may be asked for: not where an operator or the owner keeps Gnomon's hands off, or lets plans only be
    /// shown or asked about.
    fn is_unweighed(&self, now: Timestamp, host: &HostId, id: VmId) -> bool {
        let Some(vm) = self.fleet.vms.get(&id) else { return false };
        let is_asked = self.moves.measurements.of_host(host).any(|record| record.command.vm == id);
        let is_held = self.holds.on_vm(id, Some(host)).is_some() || vm.terms.hands_off();
        let is_free = !is_held && self.move_mode_of(id) == Mode::Auto;
        is_free && !is_asked && vm.travel.dirty_rate(now).is_none()
    }

    /// It was measured, or not.
    pub(in crate::core) fn measured(&mut self, now: Timestamp, host: &HostId, outcome: Outcome) {
        let is_foreign = |record: &CommandRecord| record.host != *host;
        if let Some(record) = self.moves.measurements.asked.get(&outcome.id).filter(|record| is_foreign(record)) {
            let text = format!("host {host} answered {}, which was sent to host {}", outcome.id, record.host);
            return self.notice("outcome_of_foreign_command", text);
        }
        let Some(record) = self.moves.measurements.asked.remove(&outcome.id) else { return };
        let (answer, detail) = match &outcome.result {
            OutcomeResult::DirtyRate { bytes_per_s } => {
                (Ok(*bytes_per_s), format!("it writes to {bytes_per_s} bytes of its memory a second"))
            }
            OutcomeResult::Refused(why) => (Err(why.to_string()), format!("refused: {why}")),
            OutcomeResult::Failed { error, .. } => (Err(error.clone()), format!("failed: {error}")),
            _ => (Err("its agent answered something else".to_owned()), "not asked for".to_owned()),
        };
        if let Some(vm) = self.fleet.vms.get_mut(&record.command.vm) {
            vm.travel.dirtied(now, answer);
        }
        let object = format!("vm {}", record.command.vm);
        self.audit(now, host.as_str(), "outcome", object, format!("{} {detail}", outcome.id));
        self.persist(Record::Command(CommandRecord { outcome: Some(outcome), unanswered: false, ..record }));
    }

    /// Gives up those that stay unanswered. Nothing waits for that: it is done when the next ones are asked for, or when something else is due.
    pub(in crate::core) fn give_up_measurements(&mut self, now: Timestamp) {
        let late = |record: &CommandRecord| deadline(record) <= now;
        let late: Vec<CommandId> =
            self.moves.measurements.asked.iter().filter(|(_, record)| late(record)).map(|(&id, _)| id).collect();
        for record in late.into_iter().filter_map(|id| self.moves.measurements.asked.remove(&id)).collect::<Vec<_>>() {
            let (host, vm, id) = (&record.host, record.command.vm, record.command.id);
            let text = format!("host {host}, VM {vm}: no answer to command {id}");
            if let Some(vm) = self.fleet.vms.get_mut(&vm) {
                vm.travel.dirtied(now, Err(format!("host {host} did not answer")));
            }
            self.notice("command_unanswered", text);
            self.persist(Record::Command(CommandRecord { unanswered: true, ..record }));
        }
    }
}
