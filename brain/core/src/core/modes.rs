//! What is done with plans, by scope. Policy says what is done at most; operators can say less of the fleet, of a host and of a VM, and a VM's owner
//! of it. The most cautious word counts.

use std::collections::BTreeMap;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, VmId};

use super::Core;
use super::hold::HOLDS_MAX;
use crate::io::{Record, Scope};
use crate::plan::guard::Guard;
use crate::policy::Mode;
use crate::view::{ModeSource, ModeView, ScopedMode};

/// What operators said; [`Mode::Auto`] is not kept, since it forbids nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Modes(BTreeMap<Scope, Mode>);

impl Modes {
    fn of(&self, scope: &Scope) -> Option<Mode> {
        self.0.get(scope).copied()
    }

    pub(super) fn set(&mut self, scope: Scope, mode: Mode) {
        match mode {
            Mode::Auto => drop(self.0.remove(&scope)),
            less => drop(self.0.insert(scope, less)),
        }
    }
}

impl Core {
    /// What operators let be done with plans, scope by scope.
    pub fn modes(&self) -> Vec<ScopedMode> {
        self.modes.0.iter().map(|(scope, &mode)| ScopedMode { scope: scope.clone(), mode }).collect()
    }

    /// What is done with plans at most, wherever.
    pub fn mode_of_fleet(&self) -> ModeView {
        self.told_mode(None, None)
    }

    /// What is done with plans for VMs on a host, at most.
    pub(super) fn told_mode_of_host(&self, host: &HostId) -> ModeView {
        self.told_mode(None, Some(host))
    }

    /// What is done with plans for a VM where it is.
    pub(super) fn told_mode_of(&self, id: VmId) -> ModeView {
        self.told_mode(Some(id), self.fleet.vms.get(&id).and_then(|vm| vm.host.as_ref()))
    }

    /// The most cautious of those that apply; of equals the widest one.
    fn told_mode(&self, vm: Option<VmId>, host: Option<&HostId>) -> ModeView {
        let policy = ModeView { mode: self.policy.mode, by: ModeSource::Policy };
        let by_operator = |scope: Scope, by| self.modes.of(&scope).map(|mode| ModeView { mode, by });
        let owner = vm.and_then(|id| self.fleet.vms.get(&id)).map(|vm| vm.terms.mode_max());
        let by_owner = owner.map(|mode| ModeView { mode, by: ModeSource::Owner });
        // Most fleets have none.
        let by_operators = match self.modes.0.is_empty() {
            true => [None; 3],
            false => [
                by_operator(Scope::Fleet, ModeSource::Fleet),
                host.and_then(|host| by_operator(Scope::Host(host.clone()), ModeSource::Host)),
                vm.and_then(|vm| by_operator(Scope::Vm(vm), ModeSource::Vm)),
            ],
        };
        let narrower = by_operators.into_iter().flatten().chain(by_owner);
        narrower.fold(policy, |least, said| if said.mode < least.mode { said } else { least })
    }

    /// What the planner does with plans for a VM.
    pub(super) fn mode_of(&self, id: VmId) -> Mode {
        self.planned_by(self.told_mode_of(id))
    }

    /// What the planner does with plans for VMs on a host, at most.
    pub(super) fn mode_of_host(&self, host: &HostId) -> Mode {
        self.planned_by(self.told_mode_of_host(host))
    }

    fn planned_by(&self, told: ModeView) -> Mode {
        if self.moves.guards.plans(Guard::Modes) { told.mode } else { self.policy.mode }
    }

    /// What the planner does with a plan to move a VM.
    pub(super) fn move_mode_of(&self, id: VmId) -> Mode {
        self.mode_of(id).min(self.policy.migrate.mode)
    }

    /// What the planner does with plans to move VMs from a host, at most.
    pub(super) fn move_mode_of_host(&self, host: &HostId) -> Mode {
        self.mode_of_host(host).min(self.policy.migrate.mode)
    }

    /// What the planner does with an action for a VM.
    pub(super) fn mode_for(&self, id: VmId, action: &Action) -> Mode {
        self.mode_of(id).min(self.policy.mode_for(action))
    }

    /// The same by the linter's own look.
    pub(super) fn linted_mode_for(&self, id: VmId, action: &Action) -> Mode {
        let by_policy = self.policy.mode_for(action);
        if self.moves.guards.lints(Guard::Modes) { self.told_mode_of(id).mode.min(by_policy) } else { by_policy }
    }

    /// Whether a VM would come to a host whose mode is more cautious than its own, by the linter's own look: nothing is done there that would be done here.
    pub(super) fn is_more_cautious(&self, host: &HostId, vm: VmId) -> bool {
        self.moves.guards.lints(Guard::Modes) && self.told_mode_of_host(host).mode < self.told_mode_of(vm).mode
    }

    /// Whether shadows of a production are tended on a host. Its owner's word on its own size and place is none on that: `shadow="no"` is.
    pub(super) fn tends_shadows_of(&self, production: VmId, host: &HostId) -> bool {
        let by_operator = self.modes.of(&Scope::Vm(production)).unwrap_or(Mode::Auto);
        self.told_mode_of_host(host).mode.min(by_operator) == Mode::Auto
    }

    /// An operator says what is done with plans within a scope.
    pub(super) fn set_mode(&mut self, now: Timestamp, actor: &str, scope: Scope, mode: Mode) {
        let before = self.modes.of(&scope);
        if before.is_none() && mode != Mode::Auto && self.modes.0.len() >= HOLDS_MAX {
            let detail = format!("mode {mode}: {HOLDS_MAX} scopes have one already; use a wider scope");
            return self.audit(now, actor, "refused", scope.to_string(), detail);
        }
        let detail = format!("{mode}; was {} before", before.unwrap_or(Mode::Auto));
        self.audit(now, actor, "mode", scope.to_string(), detail);
        self.persist(Record::Mode { scope: scope.clone(), mode: Some(mode).filter(|mode| *mode != Mode::Auto) });
        self.modes.set(scope, mode);
    }
}
