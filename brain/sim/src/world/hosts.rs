//! Hosts that stop, and start again.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, HostId, Moved, Origin, Outcome, OutcomeResult, VmId, Whereabouts};
use gnomon_core::Input;

use super::{Message, World, host_id};
use crate::agent::Agent;
use crate::vm::SimVm;

/// Somebody who starts the VMs of a dead host elsewhere takes so long to see that it is dead.
const NOTICED: Duration = Duration::from_secs(20);

impl World {
    /// A host stops, and all that runs on it. What was on its way from it or to it, and has not switched, stays where it was.
    pub(super) fn host_dies(&mut self, now: Timestamp, host: &HostId, for_s: u64, restarted_on: Option<&str>) {
        let Some(agent) = self.agents.get_mut(host).filter(|agent| agent.alive) else { return };
        (agent.alive, agent.running, agent.linked) = (false, false, false);
        agent.lose_spool();
        agent.shadows.clear();
        let arriving = std::mem::take(&mut agent.arriving);
        let leaving: Vec<(VmId, CommandId)> = agent.vms.iter().filter_map(|vm| Some((vm.id, vm.leaving?))).collect();
        self.note(now, &format!("host {host} dies, away for {for_s} s"));
        self.feed(now, Input::HostLost { host: host.clone() });
        for (vm, (by, _)) in arriving {
            self.lose_target(now, vm, by);
        }
        for (vm, by) in leaving {
            self.lose_source(now, host, vm, by);
        }
        let up = now + Duration::from_secs(for_s);
        self.post(up, Message::HostUp(host.clone()));
        if let Some(to) = restarted_on {
            self.post(now + NOTICED, Message::Restarts { from: host.clone(), to: host_id(to) });
        }
    }

    /// The host that a VM was to go to is dead: it goes on where it is, unless it stands still already, which its agent finds out about.
    fn lose_target(&mut self, now: Timestamp, vm: VmId, by: CommandId) {
        let is_it = |there: &&mut SimVm| there.leaving == Some(by) && !there.stands;
        let source = self.agents.values_mut().find_map(|agent| {
            let there = agent.vms.iter_mut().find(is_it)?;
            there.leaving = None;
            Some(agent.host.clone())
        });
        if let Some(source) = source {
            self.answer(now, &source, vm, by, here("the target died"));
        }
    }

    /// The host that a VM was leaving is dead: the other one runs it, or it starts where it was, when its host does.
    fn lose_source(&mut self, now: Timestamp, host: &HostId, vm: VmId, by: CommandId) {
        let is_gone = self.agents.values().any(|agent| agent.host != *host && agent.runs(vm));
        for agent in self.agents.values_mut().filter(|agent| agent.arriving.get(&vm).is_some_and(|(id, _)| *id == by)) {
            agent.arriving.remove(&vm);
        }
        self.with_agent(host, |agent| {
            if is_gone {
                agent.leave_behind(vm);
            } else if let Some(there) = agent.vms.iter_mut().find(|there| there.id == vm) {
                (there.leaving, there.stands) = (None, false);
            }
        });
        let result = if is_gone { OutcomeResult::Moved(Moved::default()) } else { here("this host died") };
        self.answer(now, host, vm, by, result);
    }

    fn answer(&mut self, now: Timestamp, host: &HostId, vm: VmId, id: CommandId, result: OutcomeResult) {
        self.conclude(now, host, Outcome { id, vm, at: now, origin: Origin::Command, result });
    }

    /// A host that died is up again, with its VMs and its agent.
    pub(super) fn host_up(&mut self, now: Timestamp, host: &HostId) {
        self.note(now, &format!("host {host} is up again"));
        self.with_agent(host, |agent| {
            (agent.alive, agent.linked) = (true, true);
            agent.restart(now);
        });
        self.connect(now, host);
    }

    /// Somebody starts the VMs of a dead host on another one.
    pub(super) fn restart_elsewhere(&mut self, now: Timestamp, from: &HostId, to: &HostId) {
        let is_alive = |host: &HostId| self.agents.get(host).is_some_and(|agent| agent.alive);
        if is_alive(from) || !is_alive(to) {
            return;
        }
        self.note(now, &format!("somebody starts the VMs of host {from} on host {to}"));
        let ids = self.agents.get(from).map(|agent| agent.vms.iter().map(|vm| vm.id).collect::<Vec<_>>());
        for id in ids.unwrap_or_default() {
            let vm = self.agents.get_mut(from).and_then(|agent| agent.leave_behind(id));
            if let Some(vm) = vm {
                self.settle(to, vm);
            }
        }
    }

    /// Somebody moves a VM, unless one of the two hosts is dead or it is on its way already.
    pub(super) fn move_vm(&mut self, now: Timestamp, name: &str, host: &str) {
        self.note(now, &format!("{name} moves to {host}"));
        let to = host_id(host);
        if !self.agents.get(&to).is_some_and(|agent| agent.alive) {
            return;
        }
        let taken = self.agents.values_mut().filter(|agent| agent.alive).find_map(|agent| {
            let place = agent.vms.iter().position(|vm| vm.name == name && vm.leaving.is_none())?;
            Some(agent.vms.remove(place))
        });
        if let Some(vm) = taken {
            self.settle(&to, vm);
        }
    }

    /// Somebody runs a VM on a host, in place of whatever was left of it there.
    pub(super) fn settle(&mut self, host: &HostId, vm: SimVm) {
        self.with_agent(host, |agent| {
            agent.left.remove(&vm.id);
            agent.take_over(vm);
        });
    }
}

impl Agent {
    /// A VM runs elsewhere: its copy here does not run. Returns the VM as it goes on.
    fn leave_behind(&mut self, vm: VmId) -> Option<SimVm> {
        let place = self.vms.iter().position(|there| there.id == vm)?;
        let copy = self.vms.remove(place).copied();
        self.left.insert(vm, copy.clone());
        Some(copy)
    }
}

fn here(why: &str) -> OutcomeResult {
    OutcomeResult::NotMoved { error: why.to_owned(), whereabouts: Whereabouts::Here }
}
