//! What agents do of their own accord: told like outcomes, kept like commands.
//!
//! Each is told until it is acknowledged, and stored once; the store tells which ones a crash kept from being taken in.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, LocalCause, Outcome, OutcomeResult, Setting, VmId};

use super::Core;
use crate::io::Record;
use crate::plan::{PlannedAction, Reason, local_cause, mib};
use crate::view::RecentAction;

impl Core {
    /// Takes in an agent's own act. Only the host that a VM is on may tell of it; of a VM that is on no host, anyone may.
    pub(super) fn local_act(
        &mut self,
        now: Timestamp,
        host: &HostId,
        outcome: Outcome,
        cause: LocalCause,
        reason: &str,
    ) {
        let (id, vm_id) = (outcome.id, outcome.vm);
        let elsewhere = self.fleet.vms.get(&vm_id).and_then(|vm| vm.host.as_ref()).filter(|home| *home != host);
        if let Some(home) = elsewhere {
            let text = format!("host {host} told of its own act {id} on VM {vm_id}, which is on host {home}");
            self.notice("local_act_on_foreign_vm", text);
        } else {
            let detail = match &outcome.result {
                OutcomeResult::Applied { before, after, .. } => {
                    self.acted(now, host, &outcome, (cause, reason), (before, after));
                    changes(before, after)
                }
                OutcomeResult::DryRun => "dry run: nothing was changed".to_owned(),
                OutcomeResult::Moved(_) => "it runs on another host now".to_owned(),
                OutcomeResult::NotMoved { error, whereabouts } => format!("{whereabouts}: {error}"),
                OutcomeResult::Immovable(why) => format!("not done: {why}"),
                OutcomeResult::Described(_) => "described".to_owned(),
                OutcomeResult::Imaged(_) => "disks copied".to_owned(),
                OutcomeResult::DirtyRate { bytes_per_s } => format!("writes to {} a second", mib(*bytes_per_s)),
                OutcomeResult::Shadow(done) => format!("shadow: {done:?}"),
                OutcomeResult::Unshadowable(why) => format!("no shadow: {why}"),
                OutcomeResult::Refused(why) => format!("not done: {why}"),
                OutcomeResult::Failed { error, .. } => format!("failed: {error}"),
            };
            let verb = local_cause(cause);
            self.audit(outcome.at, host.as_str(), verb, format!("vm {vm_id}"), format!("{id} {detail}: {reason}"));
            self.notice("local_act", format!("host {host}, VM {vm_id}: {verb}, {detail}: {reason}"));
        }
        self.persist(Record::LocalAct { host: host.clone(), outcome });
    }

    fn acted(
        &mut self,
        now: Timestamp,
        host: &HostId,
        outcome: &Outcome,
        (cause, remark): (LocalCause, &str),
        (before, after): (&[Setting], &[Setting]),
    ) {
        let id = outcome.vm;
        let Some(vm) = self.fleet.vms.get_mut(&id) else { return };
        vm.stood_down |= cause == LocalCause::StandDown;
        for (index, &target) in after.iter().enumerate() {
            let before = before.get(index).copied();
            let action = PlannedAction {
                host: host.clone(),
                vm: id,
                action: Action::Set(target),
                before,
                reason: Reason::Local { cause },
                along: None,
                approved_by: None,
            };
            let (result, remark) = (Some(outcome.result.clone()), Some(remark.to_owned()));
            vm.remember(RecentAction { at: outcome.at, id: Some(outcome.id), action, result, remark });
        }
        self.take_read_back(id, after, outcome.at, now);
    }

    /// Takes what an agent read back after a change.
    pub(super) fn take_read_back(&mut self, id: VmId, settings: &[Setting], at: Timestamp, now: Timestamp) {
        let Some(vm) = self.fleet.vms.get_mut(&id) else { return };
        if vm.read_back(settings, at, now) {
            let (allocation, baselines) = (vm.allocation, vm.baselines.clone());
            self.persist(Record::Allocation { vm: id, allocation, baselines, at });
        }
    }
}

/// What was changed, for a person.
pub(super) fn changes(before: &[Setting], after: &[Setting]) -> String {
    let changes = before.iter().zip(after).map(|(before, after)| format!("{before} -> {after}"));
    let changes: Vec<String> = changes.collect();
    if changes.is_empty() { "nothing was changed".to_owned() } else { changes.join(", ") }
}
