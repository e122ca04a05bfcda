//! VMs on their way from one host to another.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Command, HostId, Immovable, Migration, Moved, Origin, Outcome, OutcomeResult, RefusedCommand, Whereabouts,
};
use rand::RngExt as _;

use super::{Message, World};

impl World {
    /// A VM sets out, unless its agent has something against it. From then on the two hosts' libvirt does it, whatever becomes of the agent.
    pub(super) fn depart(
        &mut self,
        now: Timestamp,
        host: &HostId,
        command: &Command,
        migration: &Migration,
        received: Timestamp,
    ) {
        let there = self.agents.get(&migration.to).map(|agent| agent.facts.memory_bytes);
        let Some(agent) = self.agents.get_mut(host).filter(|agent| agent.running) else { return };
        if let Some(outcome) = agent.answered(command) {
            agent.answer(outcome);
            return self.send_outcomes(now, host);
        }
        let Some(name) = agent.vms.iter().find(|vm| vm.id == command.vm).map(|vm| vm.name.clone()) else {
            return self.conclude(now, host, command, OutcomeResult::Refused(RefusedCommand::UnknownVm));
        };
        if agent.vms.iter().any(|vm| vm.leaving == Some(command.id)) {
            return;
        }
        if there.is_none() {
            let why = Immovable::Unreachable(format!("no host {}", migration.to));
            return self.conclude(now, host, command, OutcomeResult::Immovable(why));
        }
        match agent.let_go(command, now.since(received).as_millis() as u64) {
            Err(result) => self.conclude(now, host, command, result),
            Ok(bytes) => {
                let per_s = (self.scenario.moves.mib_per_s << 20).max(1);
                self.with_agent(&migration.to, |agent| drop(agent.arriving.insert(command.vm, name)));
                let takes = Duration::from_millis(bytes.saturating_mul(1000) / per_s);
                self.post(now + takes, Message::Arrives(host.clone(), command.clone(), received));
            }
        }
    }

    pub(super) fn arrive(&mut self, now: Timestamp, host: &HostId, command: &Command, received: Timestamp) {
        let Action::Migrate(migration) = &command.action else { return };
        self.with_agent(&migration.to, |agent| drop(agent.arriving.remove(&command.vm)));
        let fails = self.rng.random_bool(self.scenario.moves.failing_share.clamp(0.0, 1.0));
        let Some(agent) = self.agents.get_mut(host) else { return };
        let Some(place) = agent.vms.iter().position(|vm| vm.leaving == Some(command.id)) else { return };
        agent.vms[place].leaving = None;
        if fails {
            let error = "the link failed".to_owned();
            return self.conclude(
                now,
                host,
                command,
                OutcomeResult::NotMoved { error, whereabouts: Whereabouts::Here },
            );
        }
        let vm = agent.vms.remove(place);
        self.note(now, &format!("{} runs on {} now", vm.name, migration.to));
        self.with_agent(&migration.to, |agent| agent.vms.push(vm));
        let moved = Moved {
            took_us: now.since(received).as_micros() as u64,
            downtime_us: Some(100_000),
            sent_bytes: None,
            copied: None,
        };
        self.conclude(now, host, command, OutcomeResult::Moved(moved));
    }

    /// An agent answers; one that is dead does so when it lives again.
    fn conclude(&mut self, now: Timestamp, host: &HostId, command: &Command, result: OutcomeResult) {
        let outcome = Outcome { id: command.id, vm: command.vm, at: now, origin: Origin::Command, result };
        self.with_agent(host, |agent| agent.answer(outcome));
        self.send_outcomes(now, host);
    }

    fn send_outcomes(&mut self, now: Timestamp, host: &HostId) {
        let Some(agent) = self.agents.get(host).filter(|agent| agent.running && agent.linked) else { return };
        let arrives = now + Duration::from_millis(self.scenario.link_ms);
        for outcome in agent.outcomes.clone() {
            self.post(arrives, Message::Outcome(host.clone(), outcome));
        }
    }
}
