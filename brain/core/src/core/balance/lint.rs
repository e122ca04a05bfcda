//! A second opinion on a plan's move, before it leaves.

use std::time::Duration;

use gnomon_common::wire::{HostId, Migration, VmId};
use thiserror::Error;

use super::storage::StorageStays;
use crate::core::Core;
use crate::fleet::{Host, Vm};
use crate::plan::balance::Room;
use crate::plan::guard::Guard;
use crate::plan::{PlannedAction, Reason};

/// Why a plan's move must not leave.
#[derive(Clone, Debug, PartialEq, Error)]
pub(in crate::core) enum BadMove {
    #[error("it would go to host {0}, which cannot receive now")]
    Target(HostId),
    #[error("it has to stay: {0}")]
    Stays(String),
    #[error("it has to stay: {0}")]
    Storage(StorageStays),
    #[error("{0} VMs are on their way already, or one to or from the same host")]
    Crowd(usize),
    #[error("host {0} would have too little CPU")]
    Cpu(HostId),
    #[error("host {0} would have too little memory")]
    Memory(HostId),
    #[error("host {0} would be too full only by forecasts with too little skill")]
    Doubted(HostId),
    #[error("it would meet a VM that it belongs apart from, or leave one that it belongs with")]
    Group,
    #[error("it would meet its shadow {0}, which does not leave")]
    BesideShadow(VmId),
    #[error("it would leave its zone, which policy does not allow")]
    LeavesZone,
    #[error("host {host} lacks the label {label}, which its owner asks for")]
    Labels { host: HostId, label: String },
    #[error("it would meet VM {0} in one zone, from which it belongs apart")]
    MeetsInZone(VmId),
}

impl Core {
    /// Checks a plan's move by the facts, not by what the planner made of them.
    pub(in crate::core) fn lint_move(&self, action: &PlannedAction, migration: &Migration) -> Result<(), BadMove> {
        let (id, to, guards) = (action.vm, &migration.to, self.moves.guards);
        let target = || BadMove::Target(to.clone());
        let vm = self.fleet.vms.get(&id).ok_or_else(target)?;
        let host: &Host = self.fleet.hosts.get(to).filter(|_| *to != action.host).ok_or_else(target)?;
        let is_closed = (guards.lints(Guard::Draining) && self.moves.draining.contains_key(to))
            || (guards.lints(Guard::Hold) && self.holds.on_host(to).is_some())
            || (guards.lints(Guard::Fresh) && !host.connected);
        if is_closed || host.facts.dry_run || host.facts.migration.as_ref().is_none_or(|to| to.uri != migration.uri) {
            return Err(target());
        }
        if action.reason != Reason::Operator && self.is_more_cautious(to, id) {
            return Err(target());
        }
        if guards.lints(Guard::Terms)
            && let Some(why) = vm.terms.stays_because()
        {
            return Err(BadMove::Stays(why.to_owned()));
        }
        if let Some(why) = self.storage_stays(vm, &action.host) {
            return Err(BadMove::Storage(why));
        }
        let under_way = self.moves.under_way.len();
        let leaves = self.moves.under_way.values().any(|way| way.from == action.host);
        let is_crowded = guards.lints(Guard::Inflow) && (leaves || self.is_on_its_way_to(to));
        if is_crowded || (guards.lints(Guard::AtOnce) && under_way >= self.policy.migrate.at_once_max) {
            return Err(BadMove::Crowd(under_way));
        }
        // Summed up anew: what the planner kept may have been wrong.
        let load = self.load_of(host, Some(id), vm.window_end, None, Duration::ZERO);
        let room = Room::of(&host.facts, &self.policy.migrate);
        if guards.lints(Guard::Cpu) && !room.holds_cpu(&load) {
            return Err(BadMove::Cpu(to.clone()));
        }
        if guards.lints(Guard::Memory) && !room.holds_memory(&load) {
            return Err(BadMove::Memory(to.clone()));
        }
        if guards.lints(Guard::Skill)
            && matches!(action.reason, Reason::HostFull { .. })
            && let Some(source) = self.fleet.hosts.get(&action.host)
        {
            let proven = self.load_of(source, None, vm.window_end, self.policy.forecast.skill_min, Duration::ZERO);
            if Room::of(&source.facts, &self.policy.migrate).holds_cpu(&proven) {
                return Err(BadMove::Doubted(action.host.clone()));
            }
        }
        if guards.lints(Guard::Labels)
            && let Some(label) = vm.terms.labels.lacking_in(&host.facts.labels)
        {
            return Err(BadMove::Labels { host: to.clone(), label });
        }
        let is_drained = self.moves.draining.contains_key(&action.host);
        let meets = guards.lints(Guard::Apart) && self.meets(id, vm, to);
        let parts = guards.lints(Guard::Together) && self.parts(id, vm, &action.host, to, is_drained);
        if meets || parts {
            return Err(BadMove::Group);
        }
        if guards.lints(Guard::ShadowApart)
            && action.reason != Reason::Operator
            && let Some(shadow) = self.shadow_that_stays(id, to, action.along.as_ref())
        {
            return Err(BadMove::BesideShadow(shadow));
        }
        if guards.lints(Guard::Zone) { self.lint_zone(action, vm, host) } else { Ok(()) }
    }

    /// Another zone is for operators, and where policy says so; and for nobody where one is that the VM belongs apart from. Within its zone a
    /// VM meets nobody anew.
    fn lint_zone(&self, action: &PlannedAction, vm: &Vm, target: &Host) -> Result<(), BadMove> {
        let zone_of = |host: &HostId| self.fleet.hosts.get(host).map(|host| &host.facts.zone);
        let zone = Some(&target.facts.zone);
        if zone_of(&action.host) == zone {
            return Ok(());
        }
        if !self.policy.migrate.across_zones && action.reason != Reason::Operator {
            return Err(BadMove::LeavesZone);
        }
        let Some(group) = &vm.terms.apart_zones else { return Ok(()) };
        let mut members = self
            .fleet
            .vms
            .iter()
            .filter(|(id, member)| **id != action.vm && member.terms.apart_zones.as_ref() == Some(group));
        let goes = |id: &VmId| self.moves.under_way.get(id).map(|way| &way.to);
        let is_there = |(id, member): &(&VmId, &Vm)| {
            [member.host.as_ref(), goes(id)].into_iter().flatten().any(|host| zone_of(host) == zone)
        };
        members.find(is_there).map_or(Ok(()), |(id, _)| Err(BadMove::MeetsInZone(*id)))
    }
}
