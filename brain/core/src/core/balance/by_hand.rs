//! Moves that an operator asks for.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Allocation, CommandId, HostId, NumaNode, VmId, VmState};
use thiserror::Error;

use super::target::zone_in_words;
use crate::core::Core;
use crate::fleet::Host;
use crate::plan::{PlannedAction, Reason, mib};

/// Why an operator's move cannot be sent now.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum MoveRefusal {
    /// It is on no host.
    #[error("there is no such VM on any host")]
    UnknownVm,
    /// No such host.
    #[error("no host is named {0}")]
    UnknownHost(HostId),
    /// It is there.
    #[error("it is on host {0} already")]
    AlreadyThere(HostId),
    /// Only a running VM can be moved alive.
    #[error("the VM is {0:?}: only one that runs can be moved")]
    NotRunning(VmState),
    /// One of the two agents takes no part in migrations.
    #[error("the agent of host {0} is not configured for migrations; see the section [migration] of its configuration")]
    NotConfigured(HostId),
    /// The agent is away.
    #[error("the agent of host {0} is not connected; try again once it is")]
    Away(HostId),
    /// One command at a time.
    #[error("command {0} is on its way to this VM; try again once it is answered")]
    InFlight(CommandId),
    /// There is nothing to give up.
    #[error("no move of this VM is under way")]
    NotMoving,
    /// A rule is against it.
    #[error("{0}")]
    Rule(String),
}

/// That a VM as it is defined fits no single NUMA node of a host that has several: there its CPUs reach some of its memory the long way.
fn spread(vm: &Allocation, to: &Host) -> Option<String> {
    let nodes = &to.facts.numa;
    let holds = |node: &NumaNode| node.cpus >= vm.vcpus && node.memory_bytes >= vm.memory_bytes;
    let (cpus, bytes) = (nodes.iter().map(|node| node.cpus).max()?, nodes.iter().map(|node| node.memory_bytes).max()?);
    let is_spread = nodes.len() > 1 && !nodes.iter().any(holds);
    is_spread.then(|| {
        let has = format!("{} vCPUs and {}", vm.vcpus, mib(vm.memory_bytes));
        format!("it fits no single NUMA node there: it has {has}, and of {} nodes none has more than {cpus} CPUs, none more than {}", nodes.len(), mib(bytes))
    })
}

impl Core {
    /// Whether an operator's move can be sent now, and what would be sent. It keeps the rules that keep a plan safe, but neither waits
    /// nor asks whether it is worth while.
    pub fn may_migrate(&self, vm: VmId, to: &HostId) -> Result<PlannedAction, MoveRefusal> {
        let known = self.fleet.vms.get(&vm).ok_or(MoveRefusal::UnknownVm)?;
        let host = known.host.clone().ok_or(MoveRefusal::UnknownVm)?;
        let source = self.fleet.hosts.get(&host).ok_or(MoveRefusal::UnknownVm)?;
        let target = self.fleet.hosts.get(to).ok_or_else(|| MoveRefusal::UnknownHost(to.clone()))?;
        if host == *to {
            return Err(MoveRefusal::AlreadyThere(host));
        }
        if known.state != VmState::Running {
            return Err(MoveRefusal::NotRunning(known.state));
        }
        for (id, of) in [(&host, source), (to, target)] {
            if of.facts.migration.is_none() {
                return Err(MoveRefusal::NotConfigured(id.clone()));
            }
            if !of.connected {
                return Err(MoveRefusal::Away(id.clone()));
            }
        }
        if let Some(flight) = &known.flight {
            return Err(MoveRefusal::InFlight(flight.record.command.id));
        }
        let uri = target.facts.migration.as_ref().map(|facts| facts.uri.clone()).unwrap_or_default();
        let migration = self.migration(to.clone(), uri, &self.haul(known));
        let action = Action::Migrate(migration.clone());
        let action =
            PlannedAction { host, vm, action, before: None, reason: Reason::Operator, along: None, approved_by: None };
        let action = PlannedAction { along: self.along(self.now, &action), ..action };
        self.lint_move(&action, &migration).map_err(|bad| MoveRefusal::Rule(bad.to_string()))?;
        Ok(action)
    }

    /// What an operator should know of a move before it is sent, one line each.
    pub fn remarks_on_move(&self, action: &PlannedAction) -> Vec<String> {
        let Action::Migrate(migration) = &action.action else { return Vec::new() };
        let (from, to) = (self.fleet.hosts.get(&action.host), self.fleet.hosts.get(&migration.to));
        let zones = from.zip(to).filter(|(from, to)| from.facts.zone != to.facts.zone);
        let crosses = zones.map(|(from, to)| format!("it leaves {} for {}", zone_in_words(from), zone_in_words(to)));
        let stays = self.shadow_that_stays(action.vm, &migration.to, action.along.as_ref());
        let shadow = action.along.as_ref().map(ToString::to_string).or_else(|| {
            stays.map(|shadow| {
                let why = "it is held, or policy leaves shadows as they are";
                format!("its shadow {shadow} is on host {}, and stays: {why}", migration.to)
            })
        });
        let spread = self.fleet.vms.get(&action.vm).zip(to).and_then(|(vm, to)| spread(&vm.allocation, to));
        crosses.into_iter().chain(shadow).chain(spread).collect()
    }

    /// Whether an operator can have a VM's move given up now: by which command it began, and what would be sent.
    pub fn may_abort_migration(&self, vm: VmId) -> Result<(CommandId, PlannedAction), MoveRefusal> {
        let known = self.fleet.vms.get(&vm).ok_or(MoveRefusal::UnknownVm)?;
        // One that was not answered in time may go on all the same.
        let awaited = known.flight.iter().map(|flight| &flight.record).chain(&known.given_up);
        let mut moves = awaited.filter(|record| matches!(record.command.action, Action::Migrate(_)));
        let record = moves.next().ok_or(MoveRefusal::NotMoving)?;
        let host = known.host.clone().filter(|host| *host == record.host).ok_or(MoveRefusal::NotMoving)?;
        if !self.is_connected(&host) {
            return Err(MoveRefusal::Away(host));
        }
        if let Some(abort) = &known.abort {
            return Err(MoveRefusal::InFlight(abort.command.id));
        }
        let action = Action::AbortMigration;
        Ok((
            record.command.id,
            PlannedAction { host, vm, action, before: None, reason: Reason::Operator, along: None, approved_by: None },
        ))
    }

    pub(in crate::core) fn abort_migration(&mut self, now: Timestamp, actor: &str, vm: VmId) {
        let object = format!("vm {vm}");
        match self.may_abort_migration(vm) {
            Ok((migration, action)) => {
                self.audit(now, actor, "abort", object, format!("migration {migration}"));
                self.send(now, vec![action]);
            }
            Err(refusal) => self.audit(now, actor, "refused", object, format!("abort of a migration: {refusal}")),
        }
    }

    pub(in crate::core) fn migrate(&mut self, now: Timestamp, actor: &str, vm: VmId, to: &HostId) {
        let object = format!("vm {vm}");
        match self.may_migrate(vm, to) {
            Ok(action) => {
                self.audit(now, actor, "migrate", object, action.summary());
                self.send(now, vec![action]);
            }
            Err(refusal) => self.audit(now, actor, "refused", object, format!("migrate to host {to}: {refusal}")),
        }
    }
}
