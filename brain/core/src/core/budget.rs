//! The budget of resizes: how many the planner sends in an hour, of one VM and in the fleet. Moves have one of their own.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, VmId};

use super::{ACTOR, Core};
use crate::fleet::Vm;
use crate::io::CommandRecord;
use crate::plan::PlannedAction;
use crate::plan::budget::{Tally, allowance};
use crate::plan::guard::Guard;

impl Core {
    /// Leaves out what is beyond the budget, and says so once until there is room in it again.
    pub(super) fn afford(&mut self, now: Timestamp, mut actions: Vec<PlannedAction>) -> Vec<PlannedAction> {
        if !self.moves.guards.plans(Guard::Resizes) {
            return actions;
        }
        let (mut sent, mut refused) = (0, Vec::new());
        actions.retain(|action| {
            let vm = self.fleet.vms.get(&action.vm);
            let why = vm.and_then(|vm| self.beyond(now, vm, sent, action.reason.is_slack()));
            let fits = why.is_none();
            sent += usize::from(fits);
            refused.extend(why.map(|why| (action.vm, why)));
            fits
        });
        for (vm, Beyond { of_fleet, text }) in refused {
            let tally = match of_fleet {
                true => Some(&mut self.resizes),
                false => self.fleet.vms.get_mut(&vm).map(|vm| &mut vm.resizes),
            };
            if tally.is_some_and(|tally| !std::mem::replace(&mut tally.is_told, true)) {
                self.audit(now, ACTOR, "refused", format!("vm {vm}"), format!("resize: {text}"));
                self.notice("resizes_used_up", format!("VM {vm}: {text}"));
            }
        }
        actions
    }

    /// Why a VM is not resized once more, after so many others of the same plan.
    fn beyond(&self, now: Timestamp, vm: &Vm, sent: usize, is_slack: bool) -> Option<Beyond> {
        let policy = &self.policy.resize;
        let left_to_growth = if is_slack { "; the last quarter of that is kept for growth" } else { "" };
        let count = vm.resizes.within_hour(now);
        if count >= allowance(policy.vm_per_hour_max, is_slack) {
            let max = policy.vm_per_hour_max;
            let text = format!(
                "it was resized {count} times within an hour, and policy.resize.vm_per_hour_max is {max}{left_to_growth}"
            );
            return Some(Beyond { of_fleet: false, text });
        }
        let count = self.resizes.within_hour(now) + sent;
        (count >= allowance(policy.fleet_per_hour_max, is_slack)).then(|| {
            let max = policy.fleet_per_hour_max;
            let text = format!("{count} resizes were made within an hour, and policy.resize.fleet_per_hour_max is {max}{left_to_growth}");
            Beyond { of_fleet: true, text }
        })
    }

    /// Counts a resize that the planner sent, in this life or in one before it.
    pub(super) fn count_resize(&mut self, record: &CommandRecord) {
        if !matches!(record.command.action, Action::Set(_)) || record.by_operator {
            return;
        }
        let of_vm = self.fleet.vms.get_mut(&record.command.vm).map(|vm| &mut vm.resizes);
        for tally in of_vm.into_iter().chain([&mut self.resizes]) {
            tally.add(record.issued);
        }
    }

    /// There may be room in the budgets again: then it is news when one is used up the next time.
    pub(super) fn review_budgets(&mut self, now: Timestamp, vms: impl Iterator<Item = VmId>) {
        let policy = &self.policy.resize;
        let review = |tally: &mut Tally, max: usize| {
            tally.is_told = tally.is_told && tally.within_hour(now) >= allowance(max, true);
        };
        review(&mut self.resizes, policy.fleet_per_hour_max);
        for vm in vms {
            if let Some(vm) = self.fleet.vms.get_mut(&vm) {
                review(&mut vm.resizes, policy.vm_per_hour_max);
            }
        }
    }

    /// What is left of the budget for a VM, for `explain`, where that is nothing.
    pub(super) fn budget_in_words(&self, vm: &Vm) -> Option<String> {
        let growth = self.beyond(self.now, vm, 0, false);
        let what = if growth.is_some() { "is left as it is" } else { "is not shrunk" };
        let Beyond { of_fleet, text } = growth.or_else(|| self.beyond(self.now, vm, 0, true))?;
        let whose = if of_fleet { "the fleet's" } else { "its own" };
        Some(format!("The budget of resizes is used up, {whose}: {text}. It {what} until there is room again."))
    }
}

/// A budget is used up.
struct Beyond {
    /// The fleet's, or the VM's own.
    of_fleet: bool,
    text: String,
}
