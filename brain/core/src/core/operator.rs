//! Operators' requests: pause, resume, release, set.
//!
//! A release is a state, not an event: while it holds, every VM within it that has not confirmed its baseline is told to restore
//! it, again after each refusal, reconnection or restart. Restoring twice is restoring once.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, Means, VmId, VmState};

use super::Core;
use super::hold::HOLDS_MAX;
use crate::io::{Hold, OperatorRequest, Record, Scope};
use crate::plan::{PlannedAction, Reason};

impl Core {
    pub(super) fn operator(&mut self, now: Timestamp, actor: &str, request: OperatorRequest) {
        match request {
            OperatorRequest::Pause { scope } => self.hold(now, actor, "pause", scope, Hold::Paused),
            OperatorRequest::Release { scope } => self.hold(now, actor, "release", scope, Hold::Released),
            OperatorRequest::Resume { scope } => self.resume(now, actor, &scope),
            OperatorRequest::SetMode { scope, mode } => self.set_mode(now, actor, scope, mode),
            OperatorRequest::Set { vm, setting } => self.set(now, actor, vm, setting),
            OperatorRequest::Migrate { vm, to } => self.migrate(now, actor, vm, &to),
            OperatorRequest::AbortMigration { vm } => self.abort_migration(now, actor, vm),
            OperatorRequest::Drain { host } => self.drain(now, actor, host, true),
            OperatorRequest::Undrain { host } => self.drain(now, actor, host, false),
            OperatorRequest::ApproveCapacity { key } => self.decide_capacity(now, actor, key, true),
            OperatorRequest::DenyCapacity { key } => self.decide_capacity(now, actor, key, false),
            OperatorRequest::ApproveProposal { key } => self.decide_proposal(now, actor, key, true),
            OperatorRequest::DenyProposal { key } => self.decide_proposal(now, actor, key, false),
            OperatorRequest::MakeShadow { vm } => self.make_shadow(now, actor, vm),
            OperatorRequest::SetFidelity { vm, fidelity } => self.set_fidelity(now, actor, vm, fidelity),
            OperatorRequest::TryShadow { vm, proposed } => self.try_shadow(now, actor, vm, proposed),
            OperatorRequest::RetireShadow { vm } => self.retire_shadow(now, actor, vm),
        }
    }

    fn hold(&mut self, now: Timestamp, actor: &str, verb: &str, scope: Scope, hold: Hold) {
        let before = self.holds.get(&scope);
        if before.is_none() && self.holds.is_full() {
            let detail = format!("{verb}: {HOLDS_MAX} holds are in force already; resume some, or use a wider scope");
            self.audit(now, actor, "refused", scope.to_string(), detail);
            return;
        }
        // Pausing what was released changes nothing: it is left alone already, and its baselines must still be restored.
        let hold = if before == Some(Hold::Released) { Hold::Released } else { hold };
        let detail = before.map_or_else(String::new, |before| format!("was {before} before"));
        self.audit(now, actor, verb, scope.to_string(), detail);
        self.persist(Record::Scope { scope: scope.clone(), hold: Some(hold) });
        self.holds.set(scope.clone(), hold);
        if hold == Hold::Released {
            self.end_settings(&scope);
            let within = |vm: VmId, host: Option<&HostId>| match &scope {
                Scope::Fleet => true,
                Scope::Host(held) => host == Some(held),
                Scope::Vm(held) => vm == *held,
            };
            let mut vms = Vec::new();
            for (&id, vm) in &mut self.fleet.vms {
                if within(id, vm.host.as_ref()) {
                    vm.restored = false;
                    vms.push(id);
                }
            }
            self.restore_baselines(now, vms);
        }
    }

    fn resume(&mut self, now: Timestamp, actor: &str, scope: &Scope) {
        let fleet = &self.fleet;
        let is_on = |vm: VmId, host: &HostId| fleet.vms.get(&vm).is_some_and(|vm| vm.host.as_ref() == Some(host));
        let ended = self.holds.end(scope, is_on);
        let held = ended.len() + self.end_settings(scope).len() + self.stood_down_within(scope).len();
        let detail = if held == 0 { "nothing was held within it" } else { "" };
        self.audit(now, actor, "resume", scope.to_string(), detail.to_owned());
        for scope in ended {
            self.persist(Record::Scope { scope, hold: None });
        }
        self.hand_back(now, scope);
        let wider = match scope {
            Scope::Fleet => None,
            Scope::Host(host) => self.holds.on_host(host),
            Scope::Vm(vm) => self.holds.on_vm(*vm, self.fleet.vms.get(vm).and_then(|vm| vm.host.as_ref())),
        };
        if let Some(hold) = wider {
            self.notice("still_held", format!("{scope} was resumed, but is {hold} by a wider scope"));
        }
    }

    /// Ends what operators set within a scope; returns what that was.
    fn end_settings(&mut self, scope: &Scope) -> Vec<(VmId, Means)> {
        let fleet = &self.fleet;
        let is_on = |vm: VmId, host: &HostId| fleet.vms.get(&vm).is_some_and(|vm| vm.host.as_ref() == Some(host));
        let ended = self.holds.end_settings(scope, is_on);
        for &(vm, means) in &ended {
            self.persist(Record::Setting { vm, means, setting: None });
        }
        ended
    }

    /// The VMs within a scope that their agents stand down for.
    fn stood_down_within(&self, scope: &Scope) -> Vec<(VmId, HostId)> {
        let within = |vm: VmId, host: &HostId| match scope {
            Scope::Fleet => true,
            Scope::Host(held) => host == held,
            Scope::Vm(held) => vm == *held,
        };
        let stood_down = self.fleet.present().filter(|(id, vm, host)| vm.stood_down && within(*id, host));
        stood_down.map(|(id, _, host)| (id, host.clone())).collect()
    }

    /// Tells the agents that stand down for VMs within a scope to go on: by a release, which makes them forget what was changed.
    fn hand_back(&mut self, now: Timestamp, scope: &Scope) {
        let mut actions = Vec::new();
        for (vm, host) in self.stood_down_within(scope) {
            let in_flight = self.fleet.vms.get(&vm).is_some_and(|vm| vm.flight.is_some());
            if in_flight || !self.is_connected(&host) {
                let text = format!("VM {vm}: host {host} cannot be told now to go on with it; resume it again");
                self.notice("still_stood_down", text);
                continue;
            }
            actions.push(PlannedAction {
                host,
                vm,
                action: Action::Release,
                before: None,
                reason: Reason::Operator,
                along: None,
                approved_by: None,
            });
        }
        self.send(now, actions);
    }

    /// Tells those of a host's VMs to restore their baselines that still have to.
    pub(super) fn restore_baselines_on(&mut self, now: Timestamp, host: &HostId) {
        let vms = self.fleet.hosts.get(host).map(|host| host.vms.iter().copied().collect()).unwrap_or_default();
        self.restore_baselines(now, vms);
    }

    pub(super) fn restore_baselines(&mut self, now: Timestamp, vms: Vec<VmId>) {
        let actions = vms.into_iter().filter_map(|vm| self.restoring(now, vm)).collect();
        self.send(now, actions);
    }

    /// The action that restores a VM's baseline, where a release holds it and that is still to be done.
    fn restoring(&self, now: Timestamp, id: VmId) -> Option<PlannedAction> {
        let vm = self.fleet.vms.get(&id)?;
        let host = vm.host.as_ref()?;
        let alive = matches!(vm.state, VmState::Running | VmState::Paused);
        let due = !vm.restored && vm.flight.is_none() && vm.pace.backoff.until(now).is_none();
        let reachable = self.fleet.hosts.get(host).is_some_and(|host| host.connected);
        let released = self.holds.on_vm(id, Some(host)) == Some(Hold::Released);
        (alive && due && reachable && released).then(|| PlannedAction {
            host: host.clone(),
            vm: id,
            action: Action::Release,
            before: None,
            reason: Reason::Operator,
            along: None,
            approved_by: None,
        })
    }
}
