//! What an operator took out of Gnomon's hands.

use std::collections::BTreeMap;
use std::fmt;

use gnomon_common::wire::{HostId, VmId};

use crate::io::{Hold, Scope};

/// Holds in force at most: more than a fleet's hosts and VMs that a person would name one by one.
pub(super) const HOLDS_MAX: usize = 10_000;

#[derive(Clone, Debug, Default)]
pub(super) struct Holds(BTreeMap<Scope, Hold>);

impl Holds {
    /// What holds a VM, whatever the scope. A release outweighs a pause: its commands are an operator's, and still to be sent.
    pub(super) fn on_vm(&self, vm: VmId, host: Option<&HostId>) -> Option<Hold> {
        if self.0.is_empty() {
            return None;
        }
        let host = host.map(|host| Scope::Host(host.clone()));
        let scopes = [Some(Scope::Fleet), host, Some(Scope::Vm(vm))];
        let mut holds = scopes.iter().flatten().filter_map(|scope| self.0.get(scope));
        holds.clone().find(|hold| **hold == Hold::Released).or_else(|| holds.next()).copied()
    }

    /// What holds a host: its own hold, else the fleet's.
    pub(super) fn on_host(&self, host: &HostId) -> Option<Hold> {
        self.0.get(&Scope::Host(host.clone())).or_else(|| self.0.get(&Scope::Fleet)).copied()
    }

    pub(super) fn set(&mut self, scope: Scope, hold: Hold) {
        self.0.insert(scope, hold);
    }

    pub(super) fn get(&self, scope: &Scope) -> Option<Hold> {
        self.0.get(scope).copied()
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= HOLDS_MAX
    }

    /// Ends every hold within a scope: its own and those of everything in it. Returns the scopes that were held.
    pub(super) fn end(&mut self, scope: &Scope, is_on: impl Fn(VmId, &HostId) -> bool) -> Vec<Scope> {
        let within = |held: &Scope| match (scope, held) {
            (Scope::Fleet, _) => true,
            (Scope::Host(host), Scope::Vm(vm)) => is_on(*vm, host),
            (scope, held) => scope == held,
        };
        let ended: Vec<Scope> = self.0.keys().filter(|held| within(held)).cloned().collect();
        ended.iter().for_each(|scope| {
            self.0.remove(scope);
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
