//! From a report to a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Fence, HostId, Means, Report, Setting, VmId, VmState, VmWindow};

use super::Core;
use crate::fleet::{Host, Vm};
use crate::io::Record;
use crate::plan::dwell::Rhythm;
use crate::plan::guard::Guard;
use crate::plan::lint::{self, VmFacts};
use crate::plan::memory::{BalloonSizing, Unsizable};
use crate::plan::size::{Bounds, Sizing, live_cores};
use crate::plan::{Plan, PlannedAction, Reason};
use crate::policy::{Mode, Policy};
use crate::view::RecentAction;

/// A change that a means of one VM is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) target: Setting,
    pub(super) reason: Reason,
}

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
        let mut spare_bytes = if self.policy.memory.manage { self.spare_for(&report.host) } else { 0 };
        self.review_budgets(now, vms.iter().copied());
        let mut by_mode: BTreeMap<Mode, Vec<PlannedAction>> = BTreeMap::new();
        for vm in vms {
            let action = self.judge(now, &report.host, vm, end, length, &mut spare_bytes);
            by_mode.entry(self.acting(self.mode_of(vm))).or_default().extend(action);
        }
        for (mode, actions) in by_mode {
            match mode {
                Mode::Observe => {}
                Mode::Recommend => self.recommend(now, actions),
                Mode::Approve => self.propose(now, actions),
                Mode::Auto => {
                    let affordable = self.afford(now, actions);
                    self.send(now, affordable);
                }
            }
        }
    }

    /// What the balloons of a host may grow by, as far as the planner keeps to that.
    fn spare_for(&self, host: &HostId) -> u64 {
        if self.moves.guards.plans(Guard::Spare) { self.spare_bytes(host) } else { u64::MAX }
    }

    /// What is done in a mode. Without its guard, nothing waits for an operator.
    pub(super) fn acting(&self, mode: Mode) -> Mode {
        let waits = mode != Mode::Approve || self.moves.guards.plans(Guard::Approval);
        if waits { mode } else { Mode::Auto }
    }

    /// Whether it is no time to shrink or move VMs, as far as the planner keeps to that.
    pub(super) fn is_closed(&self, now: Timestamp) -> bool {
        self.moves.guards.plans(Guard::Windows) && !self.windows.are_open(&self.calendar, now)
    }

    /// The skill that a forecast must have to be acted on, as far as the planner keeps to that.
    pub(super) fn skill_min(&self) -> Option<f64> {
        self.policy.forecast.skill_min.filter(|_| self.moves.guards.plans(Guard::Skill))
    }

    /// Sizes one VM and says what to do about it, if anything may be done: growth first, and CPU before memory.
    fn judge(
        &mut self,
        now: Timestamp,
        host: &HostId,
        id: VmId,
        end: Timestamp,
        length: Duration,
        spare_bytes: &mut u64,
    ) -> Option<PlannedAction> {
        let mode = self.acting(self.mode_of(id));
        if let Some(vm) = self.fleet.vms.get_mut(&id).filter(|_| mode != Mode::Recommend) {
            (vm.recommended, vm.recommended_bytes) = (None, None);
        }
        // Both are judged at every report: each has a dwell time to keep.
        let wishes =
            [self.judge_cpu(now, host, id, end, length), self.judge_memory(now, host, id, length, *spare_bytes)];
        let vm = self.fleet.vms.get(&id)?;
        if vm.flight.is_some() && self.moves.guards.plans(Guard::InFlight) {
            return None;
        }
        let is_held = self.is_held(id, vm, host);
        let is_closed = self.is_closed(now);
        let is_free = |wish: &Wish| {
            !(is_closed && wish.reason.keeps_to_windows() || self.is_size_held(id, vm, host, wish.target.means()))
        };
        let mut free: Vec<Wish> = wishes.into_iter().flatten().filter(is_free).collect();
        if mode == Mode::Approve {
            self.confirm_sizes(now, host, id, &free, is_held);
            free.retain(|wish| !self.is_proposed(now, id, wish));
        }
        // Of equals the first.
        let Wish { target, reason } = free.into_iter().min_by_key(|wish| wish.reason.is_slack())?;
        let before = self.fleet.vms.get(&id)?.in_force(target);
        if let (Setting::Memory { bytes }, Some(Setting::Memory { bytes: before })) = (target, before) {
            *spare_bytes = spare_bytes.saturating_sub(bytes.saturating_sub(before));
        }
        Some(PlannedAction {
            host: host.clone(),
            vm: id,
            action: Action::Set(target),
            before,
            reason,
            along: None,
            approved_by: None,
        })
    }

    /// Whether an operator, its host's agent or its owner keeps Gnomon's hands off a VM.
    fn is_held(&self, id: VmId, vm: &Vm, host: &HostId) -> bool {
        self.holds.on_vm(id, Some(host)).is_some() || vm.stood_down || vm.terms.hands_off()
    }

    /// The same of what it has by one means.
    pub(super) fn is_size_held(&self, id: VmId, vm: &Vm, host: &HostId, means: Means) -> bool {
        self.is_held(id, vm, host) || self.holds.on_means(id, means)
    }

    fn judge_cpu(&mut self, now: Timestamp, host: &HostId, id: VmId, end: Timestamp, length: Duration) -> Option<Wish> {
        let (skill_min, guards) = (self.skill_min(), self.moves.guards);
        let facts = self.fleet.hosts.get(host)?;
        let vm = self.fleet.vms.get_mut(&id).filter(|vm| vm.host.as_ref() == Some(host))?;
        let Some(mut sizing) = sizing(vm, facts, &self.policy, skill_min, end) else {
            vm.verdict = None;
            self.surpluses.end(id);
            return None;
        };
        sizing.bounds = sizing.bounds.kept_by(|guard| guards.plans(guard));
        self.set_aside(now, id, host, &mut sizing);
        let vm = self.fleet.vms.get_mut(&id)?;
        let policy = &self.policy.cpu;
        let rhythm =
            Rhythm::of_ms(policy.shrink_dwell_ms, policy.shrink_interval_ms).kept_by(|guard| guards.plans(guard));
        let verdict = vm.pace.judge(now, length, &sizing, policy, rhythm);
        vm.verdict = Some(verdict);
        let Some((cores, reason)) = verdict.resize else {
            vm.recommended = None;
            return None;
        };
        let already_recommended = vm
            .recommended
            .is_some_and(|recommended| (cores - recommended).abs() <= self.policy.cpu.hysteresis * recommended);
        (!already_recommended).then_some(Wish { target: Setting::CpuQuota { cores: Some(cores) }, reason })
    }

    fn judge_memory(
        &mut self,
        now: Timestamp,
        host: &HostId,
        id: VmId,
        length: Duration,
        spare_bytes: u64,
    ) -> Option<Wish> {
        let guards = self.moves.guards;
        let facts = self.fleet.hosts.get(host)?;
        let vm = self.fleet.vms.get_mut(&id).filter(|vm| vm.host.as_ref() == Some(host))?;
        let Some(Ok(sizing)) = balloon_sizing(vm, facts, &self.policy) else {
            vm.balloon_verdict = None;
            return None;
        };
        let sizing = sizing.kept_by(|guard| guards.plans(guard)).within(spare_bytes);
        let policy = &self.policy.memory;
        let rhythm =
            Rhythm::of_ms(policy.shrink_dwell_ms, policy.shrink_interval_ms).kept_by(|guard| guards.plans(guard));
        let verdict = vm.balloon_pace.judge(now, length, &sizing, policy, rhythm);
        vm.balloon_verdict = Some(verdict);
        let Some((bytes, reason)) = verdict.resize else {
            vm.recommended_bytes = None;
            return None;
        };
        let worth_saying = self.policy.memory.hysteresis * bytes as f64;
        let already_recommended =
            vm.recommended_bytes.is_some_and(|recommended| bytes.abs_diff(recommended) as f64 <= worth_saying);
        (!already_recommended).then_some(Wish { target: Setting::Memory { bytes }, reason })
    }

    /// Makes a plan of actions and carries it out.
    pub(super) fn send(&mut self, now: Timestamp, actions: Vec<PlannedAction>) {
        let Some(plan) = self.checked(now, actions, true) else { return };
        self.persist(Record::Plan(plan.clone()));
        for action in plan.actions {
            if let Some(along) = action.along.clone() {
                self.send_along(now, along);
            }
            self.command(now, action, plan.fence);
        }
    }

    /// Makes a plan of actions and shows it.
    pub(super) fn recommend(&mut self, now: Timestamp, actions: Vec<PlannedAction>) {
        let Some(plan) = self.checked(now, actions, false) else { return };
        self.persist(Record::Plan(plan.clone()));
        for action in plan.actions {
            let Some(vm) = self.fleet.vms.get_mut(&action.vm) else { continue };
            match action.action {
                Action::Set(Setting::CpuQuota { cores }) => vm.recommended = cores,
                Action::Set(Setting::Memory { bytes }) => vm.recommended_bytes = Some(bytes),
                Action::Migrate(_) => vm.travel.recommended = Some(now),
                Action::Set(_)
                | Action::Release
                | Action::AbortMigration
                | Action::Describe
                | Action::Image(_)
                | Action::DirtyRate { .. }
                | Action::Shadow(_) => {}
            }
            vm.remember(RecentAction { at: now, id: None, action, result: None, remark: None });
        }
    }

    /// A plan, numbered and checked; `None` when there is nothing to do, or the linter refuses. `leaves`: it is to be carried out.
    pub(super) fn checked(&mut self, now: Timestamp, actions: Vec<PlannedAction>, leaves: bool) -> Option<Plan> {
        if actions.is_empty() {
            return None;
        }
        let last = self.fence;
        self.fence.generation += 1;
        let with_shadow = |action: PlannedAction| PlannedAction { along: self.along(now, &action), ..action };
        let actions = actions.into_iter().map(with_shadow).collect();
        let plan = Plan { at: now, fence: self.fence, actions };
        match self.review(&plan, last, leaves) {
            Ok(()) => Some(plan),
            Err(violation) => {
                self.notice("plan_refused_by_linter", format!("plan {} was dropped: {violation}", plan.fence));
                None
            }
        }
    }

    /// What the linter says of an action now, but for whether it still waits for an operator.
    pub(super) fn verdict(&self, action: PlannedAction) -> Result<(), String> {
        let last = self.fence;
        let fence = Fence { generation: last.generation + 1, ..last };
        let action = PlannedAction { along: self.along(self.now, &action), ..action };
        self.review(&Plan { at: self.now, fence, actions: vec![action] }, last, false)
    }

    fn review(&self, plan: &Plan, last: Fence, leaves: bool) -> Result<(), String> {
        self.lint(plan, last, leaves).map_err(|violation| violation.to_string())?;
        plan.actions.iter().try_for_each(|action| match &action.action {
            Action::Migrate(migration) => self.lint_move(action, migration).map_err(|bad| bad.to_string()),
            _ => Ok(()),
        })
    }

    fn lint(&self, plan: &Plan, last: Fence, leaves: bool) -> Result<(), lint::Violation> {
        let guards = self.moves.guards;
        lint::check(plan, last, |action| {
            let vm = self.fleet.vms.get(&action.vm)?;
            let host = self.fleet.hosts.get(vm.host.as_ref()?)?;
            let set_by_hand = match action.action {
                Action::Set(target) => self.holds.on_means(action.vm, target.means()),
                Action::Release
                | Action::Migrate(_)
                | Action::AbortMigration
                | Action::Describe
                | Action::Image(_)
                | Action::DirtyRate { .. }
                | Action::Shadow(_) => false,
            };
            let is_held = set_by_hand || vm.stood_down || self.holds.on_vm(action.vm, vm.host.as_ref()).is_some();
            Some(VmFacts {
                host: vm.host.clone(),
                bounds: Bounds::new(&self.policy.cpu, &host.facts.cpu_bounds, vm.allocation.vcpus)
                    .map(|bounds| bounds.kept_by(|guard| guards.lints(guard))),
                limit_cores: vm.allocation.cpu_limit_cores(),
                live_cores: vm.cpu.map_or(0.0, |cpu| live_cores(&cpu, &vm.allocation)),
                balloon: balloon_sizing(vm, host, &self.policy)
                    .and_then(Result::ok)
                    .map(|sizing| sizing.kept_by(|guard| guards.lints(guard))),
                spare_bytes: match action.action {
                    Action::Set(Setting::Memory { .. }) if guards.lints(Guard::Spare) => self.spare_bytes(&action.host),
                    _ => u64::MAX,
                },
                command_in_flight: vm.flight.is_some() && guards.lints(Guard::InFlight),
                hands_off: (guards.lints(Guard::Terms) && vm.terms.hands_off())
                    || (guards.lints(Guard::Hold) && is_held),
                surplus: vm.host.as_ref().and_then(|host| self.surplus_of(plan.at, action.vm, vm, host)),
                ordinary_cores: vm.cpu.map_or(0.0, |cpu| live_cores(&cpu, &vm.allocation)) * self.policy.cpu.headroom,
                is_doubted: guards.lints(Guard::Skill) && vm.is_doubted(self.policy.forecast.skill_min),
                outside_windows: guards.lints(Guard::Windows) && !self.windows.are_open(&self.calendar, plan.at),
                mode: leaves.then(|| self.linted_mode_for(action.vm, &action.action)),
                asks: guards.lints(Guard::Approval),
            })
        })
    }
}

fn is_evidence(window: &VmWindow) -> bool {
    window.state == VmState::Running && window.shadow.is_none() && (window.cpu.is_some() || window.memory.is_some())
}

/// What decides a VM's memory now; `None` where memory is not managed: by policy, or because its host's agent may not.
pub(super) fn balloon_sizing(vm: &Vm, host: &Host, policy: &Policy) -> Option<Result<BalloonSizing, Unsizable>> {
    let managed = policy.memory.manage && vm.state == VmState::Running && host.facts.means.contains(&Means::Memory);
    let bounds = &host.facts.memory_bounds;
    managed.then(|| BalloonSizing::new(vm.memory.as_ref(), vm.allocation.memory_bytes, bounds, &policy.memory))
}

/// What decides a VM's CPU now; `None` where nothing can be said, no size is allowed, or its host's agent may not change it.
pub(super) fn sizing(vm: &Vm, host: &Host, policy: &Policy, skill_min: Option<f64>, end: Timestamp) -> Option<Sizing> {
    let managed = vm.state == VmState::Running && host.facts.means.contains(&Means::CpuQuota);
    let cpu = vm.cpu.filter(|_| managed)?;
    let bounds = Bounds::new(&policy.cpu, &host.facts.cpu_bounds, vm.allocation.vcpus)?;
    Some(Sizing {
        bounds,
        quota_cores: vm.allocation.quota_cores,
        vcpus: vm.allocation.vcpus,
        live_cores: live_cores(&cpu, &vm.allocation),
        peak_cores: cpu.demand_low.max.min(f64::from(vm.allocation.vcpus)),
        outlook: vm.outlook(end, host.lead(policy), policy, skill_min),
        promised_cores: vm.promised_cores,
        surplus: None,
    })
}
