//! From a report to a plan.

use std::collections::BTreeSet;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Fence, Report, Setting, VmId, VmState, VmWindow};

use super::Core;
use crate::fleet::{Host, Vm};
use crate::io::Record;
use crate::plan::lint::{self, VmFacts};
use crate::plan::size::{Bounds, Sizing, live_cores};
use crate::plan::{Plan, PlannedAction};
use crate::policy::{Mode, Policy};
use crate::view::RecentAction;

impl Core {
    /// Plans for the VMs of a report that was just taken in; its window ended at `end`.
    pub(super) fn plan(&mut self, now: Timestamp, report: &Report, end: Timestamp) {
        let length = Duration::from_millis(u64::from(report.window_ms));
        if !Self::is_fresh(now, end, length) || !self.is_connected(&report.host) {
            return;
        }
        // Sorted, whatever the report's order; an agent that names a VM twice gets one action.
        let vms: BTreeSet<VmId> =
            report.vms.iter().filter(|window| is_evidence(window)).map(|window| window.vm).collect();
        let actions = vms.into_iter().filter_map(|vm| self.judge(now, report, vm, end, length)).collect();
        match self.policy.mode {
            Mode::Observe => {}
            Mode::Recommend => self.recommend(now, actions),
            Mode::Auto => self.send(now, actions),
        }
    }

    /// Sizes one VM and says what to do about it, if anything may be done.
    fn judge(
        &mut self,
        now: Timestamp,
        report: &Report,
        id: VmId,
        end: Timestamp,
        length: Duration,
    ) -> Option<PlannedAction> {
        let host = self.fleet.hosts.get(&report.host)?;
        let held = self.holds.on_vm(id, Some(&report.host)).is_some();
        let vm = self.fleet.vms.get_mut(&id).filter(|vm| vm.host.as_ref() == Some(&report.host))?;
        let Some(sizing) = sizing(vm, host, &self.policy, end) else {
            vm.verdict = None;
            return None;
        };
        let verdict = vm.pace.judge(now, length, &sizing, &self.policy.cpu);
        vm.verdict = Some(verdict);
        let Some((cores, reason)) = verdict.resize else {
            vm.recommended = None;
            return None;
        };
        let already_recommended = vm
            .recommended
            .is_some_and(|recommended| (cores - recommended).abs() <= self.policy.cpu.hysteresis * recommended);
        if held || vm.flight.is_some() || already_recommended {
            return None;
        }
        Some(PlannedAction {
            host: report.host.clone(),
            vm: id,
            action: Action::Set(Setting::CpuQuota { cores: Some(cores) }),
            before: Some(Setting::CpuQuota { cores: vm.allocation.quota_cores }),
            reason,
        })
    }

    /// Makes a plan of actions and carries it out.
    pub(super) fn send(&mut self, now: Timestamp, actions: Vec<PlannedAction>) {
        let Some(plan) = self.checked(now, actions) else { return };
        self.persist(Record::Plan(plan.clone()));
        for action in plan.actions {
            self.command(now, action, plan.fence);
        }
    }

    /// Makes a plan of actions and shows it.
    fn recommend(&mut self, now: Timestamp, actions: Vec<PlannedAction>) {
        let Some(plan) = self.checked(now, actions) else { return };
        self.persist(Record::Plan(plan.clone()));
        for action in plan.actions {
            let Some(vm) = self.fleet.vms.get_mut(&action.vm) else { continue };
            if let Action::Set(Setting::CpuQuota { cores }) = action.action {
                vm.recommended = cores;
            }
            vm.remember(RecentAction { at: now, id: None, action, result: None });
        }
    }

    /// A plan, numbered and checked; `None` when there is nothing to do, or the linter refuses.
    fn checked(&mut self, now: Timestamp, actions: Vec<PlannedAction>) -> Option<Plan> {
        if actions.is_empty() {
            return None;
        }
        let last = self.fence;
        self.fence.generation += 1;
        let plan = Plan { at: now, fence: self.fence, actions };
        match self.lint(&plan, last) {
            Ok(()) => Some(plan),
            Err(violation) => {
                self.notice("plan_refused_by_linter", format!("plan {} was dropped: {violation}", plan.fence));
                None
            }
        }
    }

    fn lint(&self, plan: &Plan, last: Fence) -> Result<(), lint::Violation> {
        lint::check(plan, last, |id| {
            let vm = self.fleet.vms.get(&id)?;
            let host = self.fleet.hosts.get(vm.host.as_ref()?)?;
            Some(VmFacts {
                host: vm.host.clone(),
                bounds: Bounds::new(&self.policy.cpu, &host.facts.cpu_bounds, vm.allocation.vcpus),
                limit_cores: vm.allocation.cpu_limit_cores(),
                live_cores: vm.cpu.map_or(0.0, |cpu| live_cores(&cpu, &vm.allocation)),
                command_in_flight: vm.flight.is_some(),
            })
        })
    }
}

fn is_evidence(window: &VmWindow) -> bool {
    window.state == VmState::Running && window.cpu.is_some()
}

/// What decides a VM's size now; `None` where nothing can be said, or no size is allowed.
pub(super) fn sizing(vm: &Vm, host: &Host, policy: &Policy, end: Timestamp) -> Option<Sizing> {
    let cpu = vm.cpu.filter(|_| vm.state == VmState::Running)?;
    let bounds = Bounds::new(&policy.cpu, &host.facts.cpu_bounds, vm.allocation.vcpus)?;
    Some(Sizing {
        bounds,
        quota_cores: vm.allocation.quota_cores,
        vcpus: vm.allocation.vcpus,
        live_cores: live_cores(&cpu, &vm.allocation),
        peak_cores: cpu.demand_low.max.min(f64::from(vm.allocation.vcpus)),
        outlook: vm.outlook(end, policy),
    })
}
