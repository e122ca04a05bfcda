//! What an operator took out of Gnomon's hands: whole scopes, and single means of a VM that were set by hand.

use std::collections::BTreeMap;
use std::fmt;

use gnomon_common::wire::{HostId, Means, Setting, VmId};

use crate::io::{Hold, Scope};

/// Holds in force at most, those of single means included: more than a person would ask for one by one.
pub(super) const HOLDS_MAX: usize = 10_000;

#[derive(Clone, Debug, Default)]
pub(super) struct Holds {
    scopes: BTreeMap<Scope, Hold>,
    settings: BTreeMap<(VmId, Means), Setting>,
}

impl Holds {
    /// What holds a VM, whatever the scope. A release outweighs a pause: its commands are an operator's, and still to be sent.
    pub(super) fn on_vm(&self, vm: VmId, host: Option<&HostId>) -> Option<Hold> {
        if self.scopes.is_empty() {
            return None;
        }
        let host = host.map(|host| Scope::Host(host.clone()));
        let scopes = [Some(Scope::Fleet), host, Some(Scope::Vm(vm))];
        let mut holds = scopes.iter().flatten().filter_map(|scope| self.scopes.get(scope));
        holds.clone().find(|hold| **hold == Hold::Released).or_else(|| holds.next()).copied()
    }

    /// What holds a host: its own hold, else the fleet's.
    pub(super) fn on_host(&self, host: &HostId) -> Option<Hold> {
        self.scopes.get(&Scope::Host(host.clone())).or_else(|| self.scopes.get(&Scope::Fleet)).copied()
    }

    /// Whether a means of a VM is where an operator wants it.
    pub(super) fn on_means(&self, vm: VmId, means: Means) -> bool {
        self.settings.contains_key(&(vm, means))
    }

    /// What operators set of a VM.
    pub(super) fn settings_of(&self, vm: VmId) -> impl Iterator<Item = Setting> {
        Means::ALL.into_iter().filter_map(move |means| self.settings.get(&(vm, means)).copied())
    }

    pub(super) fn set(&mut self, scope: Scope, hold: Hold) {
        self.scopes.insert(scope, hold);
    }

    pub(super) fn hold_means(&mut self, vm: VmId, setting: Setting) {
        self.settings.insert((vm, setting.means()), setting);
    }

    pub(super) fn get(&self, scope: &Scope) -> Option<Hold> {
        self.scopes.get(scope).copied()
    }

    pub(super) fn is_full(&self) -> bool {
        self.scopes.len() + self.settings.len() >= HOLDS_MAX
    }

    /// Ends every hold within a scope: its own and those of everything in it. Returns the scopes that were held.
    pub(super) fn end(&mut self, scope: &Scope, is_on: impl Fn(VmId, &HostId) -> bool) -> Vec<Scope> {
        let within = |held: &Scope| match (scope, held) {
            (Scope::Fleet, _) => true,
            (Scope::Host(host), Scope::Vm(vm)) => is_on(*vm, host),
            (scope, held) => scope == held,
        };
        let ended: Vec<Scope> = self.scopes.keys().filter(|held| within(held)).cloned().collect();
        ended.iter().for_each(|scope| {
            self.scopes.remove(scope);
        });
        ended
    }

    /// Ends what operators set within a scope. Returns what was held.
    pub(super) fn end_settings(&mut self, scope: &Scope, is_on: impl Fn(VmId, &HostId) -> bool) -> Vec<(VmId, Means)> {
        let within = |vm: VmId| match scope {
            Scope::Fleet => true,
            Scope::Host(host) => is_on(vm, host),
            Scope::Vm(held) => vm == *held,
        };
        let ended: Vec<(VmId, Means)> = self.settings.keys().filter(|(vm, _)| within(*vm)).copied().collect();
        ended.iter().for_each(|held| {
            self.settings.remove(held);
        });
        ended
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::Host(host) => write!(f, "host {host}"),
            Self::Vm(vm) => write!(f, "vm {vm}"),
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused => "paused",
            Self::Released => "released",
        })
    }
}
