//! VMs on their way from one host to another.
//!
//! As libvirt does it, peer to peer: a copy is *prepared* on the target while the VM runs on; at the *switch* it stands still, then the target is
//! told to *resume* its copy, and when that runs the source *releases* its own. From the switch on two copies exist, of which one runs at most. Where
//! it cannot be told whether the target has resumed, the VM stays *parked* until that is found out.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Command, HostId, Immovable, Migration, Moved, Origin, Outcome, OutcomeResult, RefusedCommand, Whereabouts,
};
use rand::RngExt as _;

use super::{Message, World};
use crate::copies::Lapse;
use crate::vm::SimVm;

/// How long a VM stands still at the switch.
const DOWNTIME: Duration = Duration::from_millis(100);

/// It is looked so often whether a target that cannot be reached runs a VM.
const LOOKS: Duration = Duration::from_secs(20);

/// What comes next of a move.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// All memory is over: the VM stands still.
    Switch,
    /// The target runs its copy.
    Resume,
    /// The source lets go of its own.
    Release,
    /// It has taken too long.
    TimeOut,
    /// Whether the target runs its copy is found out.
    FindOut,
}

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
        let target = self.agents.get(&migration.to).filter(|target| target.alive);
        let target = target.map(|target| target.has_copy(command.vm));
        let Some(agent) = self.agents.get_mut(host).filter(|agent| agent.running) else { return };
        if let Some(outcome) = agent.answered(command) {
            agent.answer(outcome);
            return self.send_outcomes(now, host);
        }
        if !agent.vms.iter().any(|vm| vm.id == command.vm) {
            return self.conclude_move(now, host, command, OutcomeResult::Refused(RefusedCommand::UnknownVm));
        }
        if agent.vms.iter().any(|vm| vm.leaving == Some(command.id)) {
            return;
        }
        let immovable = match target {
            None => Some(Immovable::Unreachable(format!("no host {}", migration.to))),
            Some(true) if agent.lapse != Some(Lapse::AlreadyThere) => Some(Immovable::AlreadyThere),
            Some(_) => None,
        };
        if let Some(why) = immovable {
            return self.conclude_move(now, host, command, OutcomeResult::Immovable(why));
        }
        match agent.let_go(command, now.since(received).as_millis() as u64) {
            Err(result) => self.conclude_move(now, host, command, result),
            Ok(copy) => {
                if let Some(checker) = &mut self.checker {
                    checker.obeyed(now, host, command);
                }
                let per_s = (self.scenario.moves.mib_per_s << 20).max(1);
                let takes = Duration::from_millis(copy.allocation.memory_bytes.saturating_mul(1000) / per_s);
                let patience = Duration::from_millis(migration.timeout_ms);
                self.with_agent(&migration.to, |agent| drop(agent.arriving.insert(command.vm, (command.id, copy))));
                let mut next = |after, stage| {
                    self.post(now + after, Message::Moves(stage, host.clone(), command.clone(), received));
                };
                next(takes, Stage::Switch);
                if takes > patience {
                    next(patience, Stage::TimeOut);
                }
            }
        }
    }

    /// A move comes to its next stage, unless it was given up before.
    pub(super) fn go_on(
        &mut self,
        now: Timestamp,
        stage: Stage,
        host: &HostId,
        command: &Command,
        received: Timestamp,
    ) {
        let Action::Migrate(migration) = &command.action else { return };
        let to = &migration.to;
        let is_prepared = self.prepared(to, command).is_some();
        let is_here = self.source(host, command).is_some();
        let after = |delay, stage| (now + delay, Message::Moves(stage, host.clone(), command.clone(), received));
        match stage {
            // Nobody has the time in view while the agent is away.
            Stage::TimeOut if is_prepared && self.agents.get(host).is_some_and(|agent| agent.running) => {
                self.stay(now, host, command, "it took too long");
            }
            Stage::Switch if is_prepared => {
                let MoveFate { fails, parks, resumes } = self.draw_fate();
                if fails {
                    return self.stay(now, host, command, "the link failed");
                }
                // What runs at this moment is what goes on there.
                let latest = self.source(host, command).map(|vm| vm.copied());
                if let (Some(latest), Some(prepared)) = (latest, self.prepared(to, command)) {
                    *prepared = latest;
                }
                self.with_source(host, command, |vm| vm.stands = true);
                if !parks {
                    let (at, message) = after(DOWNTIME, Stage::Resume);
                    return self.post(at, message);
                }
                if resumes {
                    self.resume(now, to, command);
                }
                let neglects = self.agents.get(host).is_some_and(|agent| agent.lapse == Some(Lapse::StandsStill));
                if neglects {
                    self.with_source(host, command, |vm| (vm.stands, vm.leaving) = (false, None));
                }
                let whereabouts = if neglects { Whereabouts::Here } else { Whereabouts::Parked };
                let error = "the target does not answer".to_owned();
                self.conclude_move(now, host, command, OutcomeResult::NotMoved { error, whereabouts });
                let (at, message) = after(LOOKS, Stage::FindOut);
                self.post(at, message);
            }
            Stage::Resume if is_prepared => {
                self.resume(now, to, command);
                let (at, message) = after(Duration::from_millis(self.scenario.link_ms), Stage::Release);
                self.post(at, message);
            }
            Stage::Resume if is_here => self.stay(now, host, command, "the target died"),
            Stage::Release if is_here => self.release(now, host, command, received),
            Stage::FindOut if is_here => match self.agents.get(to) {
                Some(target) if target.runs(command.vm) => self.release(now, host, command, received),
                Some(target) if target.alive => self.stay(now, host, command, "the target does not run it"),
                _ => {
                    let (at, message) = after(LOOKS, Stage::FindOut);
                    self.post(at, message);
                }
            },
            _ => {}
        }
    }

    fn draw_fate(&mut self) -> MoveFate {
        let moves = self.scenario.moves;
        let fails = self.rng.random_bool(moves.failing_share.clamp(0.0, 1.0));
        let parks = moves.parked_share > 0.0 && self.rng.random_bool(moves.parked_share.min(1.0));
        MoveFate { fails, parks, resumes: parks && self.rng.random_bool(0.5) }
    }

    /// The copy of a VM that was prepared on the target of its move.
    fn prepared(&mut self, to: &HostId, command: &Command) -> Option<&mut SimVm> {
        let (by, copy) = self.agents.get_mut(to)?.arriving.get_mut(&command.vm)?;
        (*by == command.id).then_some(copy)
    }

    /// The VM on the host that it leaves by this command.
    fn source(&mut self, host: &HostId, command: &Command) -> Option<&mut SimVm> {
        let agent = self.agents.get_mut(host).filter(|agent| agent.alive)?;
        agent.vms.iter_mut().find(|vm| vm.leaving == Some(command.id))
    }

    fn with_source(&mut self, host: &HostId, command: &Command, change: impl FnOnce(&mut SimVm)) {
        if let Some(vm) = self.source(host, command) {
            change(vm);
        }
    }

    fn resume(&mut self, now: Timestamp, to: &HostId, command: &Command) {
        let Some((_, vm)) = self.agents.get_mut(to).and_then(|agent| agent.arriving.remove(&command.vm)) else {
            return;
        };
        self.note(now, &format!("{} runs on {to} now", vm.name));
        self.with_agent(to, |agent| agent.take_over(vm));
    }

    /// The source lets go of a VM that runs on the target.
    fn release(&mut self, now: Timestamp, host: &HostId, command: &Command, received: Timestamp) {
        self.with_agent(host, |agent| agent.vms.retain(|vm| vm.leaving != Some(command.id)));
        let moved = Moved {
            took_us: now.since(received).as_micros() as u64,
            downtime_us: Some(DOWNTIME.as_micros() as u64),
            sent_bytes: None,
            copied: None,
        };
        self.conclude_move(now, host, command, OutcomeResult::Moved(moved));
    }

    /// A move is given up: what was prepared goes, and the VM runs where it was.
    fn stay(&mut self, now: Timestamp, host: &HostId, command: &Command, why: &str) {
        let Action::Migrate(migration) = &command.action else { return };
        if self.prepared(&migration.to, command).is_some() {
            self.with_agent(&migration.to, |agent| drop(agent.arriving.remove(&command.vm)));
        }
        self.with_source(host, command, |vm| (vm.stands, vm.leaving) = (false, None));
        let (error, whereabouts) = (why.to_owned(), Whereabouts::Here);
        self.conclude_move(now, host, command, OutcomeResult::NotMoved { error, whereabouts });
    }

    /// An agent answers a command to move a VM.
    fn conclude_move(&mut self, now: Timestamp, host: &HostId, command: &Command, result: OutcomeResult) {
        let outcome = Outcome { id: command.id, vm: command.vm, at: now, origin: Origin::Command, result };
        self.conclude(now, host, outcome);
    }

    /// An agent answers; one that is dead does so when it lives again.
    pub(super) fn conclude(&mut self, now: Timestamp, host: &HostId, outcome: Outcome) {
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

/// What becomes of a move at the switch.
struct MoveFate {
    fails: bool,
    /// It cannot be told whether the target runs its copy…
    parks: bool,
    /// …and whether it does.
    resumes: bool,
}
