//! Where VMs truly are, and what agents truly obey.

use std::collections::BTreeMap;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Command, HostId, VmId, VmTerms};

use super::{Broken, Checker, Scene, ensure};
use crate::agent::Agent;

impl Checker {
    /// Looks at all hosts: no VM runs in two places, and each is somewhere, be it on a host that is down.
    pub(crate) fn look(&mut self, now: Timestamp, agents: &BTreeMap<HostId, Agent>) {
        let mut running: BTreeMap<VmId, Vec<&HostId>> = BTreeMap::new();
        for (host, agent) in agents {
            for vm in &agent.vms {
                let places = running.entry(vm.id).or_default();
                places.extend((agent.alive && !vm.stands).then_some(host));
            }
        }
        self.vms.extend(running.keys());
        if let Some((vm, places)) = running.iter().find(|(_, places)| places.len() > 1) {
            self.breaks(now, "a VM runs in one place", format!("VM {vm} runs on {places:?}"));
        }
        if let Some(vm) = self.vms.iter().find(|vm| !running.contains_key(vm)) {
            self.breaks(now, "no VM is lost", format!("VM {vm} is nowhere"));
        }
    }

    /// An agent has begun to carry a command out.
    pub(crate) fn obeyed(&mut self, now: Timestamp, host: &HostId, command: &Command) {
        let last = self.obeyed.insert((host.clone(), command.vm), command.fence);
        if last.is_some_and(|last| last >= command.fence) {
            self.breaks(now, "nothing old is obeyed", format!("host {host} obeyed {command:?} after {last:?}"));
        }
    }

    fn breaks(&mut self, at: Timestamp, rule: &'static str, how: String) {
        self.broken.get_or_insert(Broken { at, rule, how });
    }
}

/// A VM, and its shadow, are where its owner's labels are.
pub(super) fn judge_labels(scene: &Scene<'_>, to: &HostId, terms: &VmTerms) -> Result<(), (&'static str, String)> {
    let lacks = scene.agents.get(to).and_then(|target| terms.labels.lacking_in(&target.facts.labels));
    ensure(lacks.is_none(), "a host has the labels that an owner asks for", || format!("{to} lacks {lacks:?}"))
}

/// In how many places a VM is: where it runs, or stands still, or will run when its host is up again.
pub(super) fn places(agents: &BTreeMap<HostId, Agent>, vm: VmId) -> usize {
    let copies = || agents.values().flat_map(|agent| &agent.vms).filter(|copy| copy.id == vm);
    let standing = usize::from(copies().any(|copy| copy.stands));
    copies().filter(|copy| !copy.stands).count().max(standing)
}
