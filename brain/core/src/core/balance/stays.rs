//! Why a VM cannot leave its host now.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, HostId, VmId, VmState};
use thiserror::Error;

use super::relief::Strain;
use super::storage::StorageStays;
use super::target::{NoTarget, Search};
use crate::core::Core;
use crate::fleet::Vm;
use crate::io::Hold;
use crate::plan::guard::Guard;
use crate::policy::Mode;
use crate::view::{StaysView, StuckView};

/// VMs of a host of which it is told one by one why they cannot go: more than a person would read.
const REFUSALS_MAX: usize = 20;

/// Why a VM stays.
#[derive(Clone, Debug, PartialEq, Error)]
pub(in crate::core) enum Stays {
    #[error("it is not known any more")]
    Unknown,
    #[error("it is {0:?}")]
    NotRunning(VmState),
    #[error("command {0} is on its way to it")]
    InFlight(CommandId),
    #[error("its mode is {0}")]
    Mode(Mode),
    #[error("it is {0} by an operator")]
    Held(Hold),
    #[error("its host's agent stands down for it")]
    StoodDown,
    #[error("{0}")]
    Terms(String),
    #[error(transparent)]
    Storage(#[from] StorageStays),
    #[error("something held it where it is when it was tried last")]
    Rooted,
    #[error("it was moved, or recommended to be, less than policy.migrate.cool_down_ms ago")]
    Rests,
    #[error("its last move did not come about, and it is tried again later")]
    BacksOff,
    #[error("an operator denied to move it")]
    Denied,
    #[error("its host's agent takes no part in migrations")]
    NotConfigured,
    #[error(transparent)]
    NoTarget(#[from] NoTarget),
}

impl Core {
    pub(in crate::core) fn may_leave(&self, now: Timestamp, host: &HostId, id: VmId, is_drained: bool) -> bool {
        self.stays(now, host, id, is_drained).is_none()
    }

    /// Why a VM may not leave its host, wherever it would go; `None` where it may.
    fn stays(&self, now: Timestamp, host: &HostId, id: VmId, is_drained: bool) -> Option<Stays> {
        let Some(vm) = self.fleet.vms.get(&id) else { return Some(Stays::Unknown) };
        let guards = self.moves.guards;
        if vm.state != VmState::Running {
            return Some(Stays::NotRunning(vm.state));
        }
        if let Some(flight) = vm.flight.as_ref().filter(|_| guards.plans(Guard::InFlight)) {
            return Some(Stays::InFlight(flight.record.command.id));
        }
        if let Some(why) = vm.terms.stays_because().filter(|_| guards.plans(Guard::Terms)) {
            return Some(Stays::Terms(why.to_owned()));
        }
        let mode = self.move_mode_of(id);
        if mode == Mode::Observe {
            return Some(Stays::Mode(mode));
        }
        if let Some(hold) = self.holds.on_vm(id, Some(host)).filter(|_| guards.plans(Guard::Hold)) {
            return Some(Stays::Held(hold));
        }
        if guards.plans(Guard::Hold) && vm.stood_down {
            return Some(Stays::StoodDown);
        }
        if let Some(why) = self.storage_stays(vm, host) {
            return Some(Stays::Storage(why));
        }
        if vm.travel.is_rooted(now) {
            return Some(Stays::Rooted);
        }
        if guards.plans(Guard::CoolDown) && self.rests(now, id, vm, is_drained) {
            return Some(Stays::Rests);
        }
        if vm.travel.backoff.until(now).is_some() {
            return Some(Stays::BacksOff);
        }
        self.is_move_denied(now, id).then_some(Stays::Denied)
    }

    /// Whether a VM was moved, or recommended to be, not long ago.
    fn rests(&self, now: Timestamp, id: VmId, vm: &Vm, is_drained: bool) -> bool {
        let cool_down = Duration::from_millis(self.policy.migrate.cool_down_ms);
        let lately = |at: Timestamp| now.since(at) < cool_down;
        let moved = || self.moves.begun.iter().any(|&(at, of)| of == id && lately(at));
        vm.travel.recommended.is_some_and(lately) || (!is_drained && moved())
    }

    /// Why none of a host's VMs goes, one by one.
    pub(super) fn why_stuck(&self, now: Timestamp, host: &HostId, strain: &Strain, search: Search) -> StuckView {
        let there = self.fleet.hosts.get(host);
        let productions =
            there.into_iter().flat_map(|host| &host.vms).filter_map(|id| Some((*id, self.fleet.vms.get(id)?)));
        let mut productions = productions.filter(|(_, vm)| vm.shadow.is_none());
        let share = strain.room.share(&strain.load);
        let why = |id| match self.stays(now, host, id, search.is_drained) {
            Some(why) => why,
            None if there.is_some_and(|there| there.facts.migration.is_none()) => Stays::NotConfigured,
            None => Stays::NoTarget(self.no_target(now, host, id, share, search)),
        };
        let told = productions.by_ref().take(REFUSALS_MAX);
        let vms =
            told.map(|(vm, known)| StaysView { vm, name: known.name.clone(), why: why(vm).to_string() }).collect();
        StuckView { at: now, vms, others: productions.count() }
    }
}
