//! A production and its shadow: neither is sent to where the other is, or is going. Where a production is sent to its shadow's host, which may
//! well be the best measured one, the shadow leaves in the same step; and where the hosts of both fill up, both leave in one.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, VmId};

use super::{Kept, LEAVES_WITHIN};
use crate::core::Core;
use crate::core::balance::Search;
use crate::plan::balance::{Load, Room};
use crate::plan::{Along, PlannedAction, Reason};
use crate::policy::Mode;
use crate::shadow::{ShadowCause, ShadowState};

impl Core {
    /// Whether a production is on a host, or on its way there, whoever sent it.
    pub(super) fn is_home(&self, production: VmId, host: &HostId) -> bool {
        let is_there = self.fleet.vms.get(&production).is_some_and(|vm| vm.host.as_ref() == Some(host));
        let arrives = || self.fleet.hosts.get(host).is_some_and(|host| host.arriving.contains(&production));
        is_there || self.destination_of(production) == Some(host) || arrives()
    }

    /// Whether it is known on which host a production is.
    pub(super) fn is_anywhere(&self, production: VmId) -> bool {
        self.fleet.vms.get(&production).is_some_and(|vm| vm.host.is_some())
    }

    /// Hosts that a production is not sent to, because its shadow is there, or is being made, and cannot be told to leave.
    pub(in crate::core) fn kept_by_shadow(&self, now: Timestamp, production: VmId) -> Vec<&HostId> {
        let stays = |kept: &&Kept| {
            let shadow = &kept.shadow;
            shadow.of == production && shadow.state.is_placed() && !self.leaves_when_told(now, kept)
        };
        self.shadows.kept.values().filter(stays).filter_map(|kept| kept.shadow.host.as_ref()).collect()
    }

    /// Whether a shadow leaves its host if it is told to now, or was told to not long ago.
    fn leaves_when_told(&self, now: Timestamp, kept: &Kept) -> bool {
        let shadow = &kept.shadow;
        let Some(host) = &shadow.host else { return true };
        let is_free =
            self.makes_shadows() && self.is_connected(host) && !self.is_shadow_held(shadow.of, shadow.id, host);
        is_free && (shadow.state.is_coming() || now.since(shadow.since) <= LEAVES_WITHIN)
    }

    /// The shadow that has to leave its host if this action is carried out, since its production comes there, or since both hosts fill up.
    pub(in crate::core) fn along(&self, now: Timestamp, action: &PlannedAction) -> Option<Along> {
        let Action::Migrate(migration) = &action.action else { return None };
        let kept = self.shadows.of.get(&action.vm).and_then(|id| self.shadows.kept.get(id))?;
        let host = kept.shadow.host.as_ref().filter(|_| kept.shadow.state.is_coming())?;
        if !self.leaves_when_told(now, kept) {
            return None;
        }
        let gives_way = matches!(action.reason, Reason::HostFull { .. } | Reason::HostMemoryFull { .. });
        let cause = match *host == migration.to {
            true => ShadowCause::ProductionComes,
            false if gives_way && self.stays_full(now, host) => ShadowCause::BothFull,
            false => return None,
        };
        Some(Along { shadow: kept.shadow.id, host: host.clone(), cause })
    }

    /// Whether a host is too full even once the shadows are gone that have been told to go.
    fn stays_full(&self, now: Timestamp, host: &HostId) -> bool {
        let Some(entry) = self.fleet.hosts.get(host) else { return false };
        let fresh = entry.prospect.filter(|prospect| prospect.full_rounds > 0 && now <= prospect.fresh_until);
        let leaving = self.shadows.coming_to(host).filter(|shadow| !shadow.state.is_coming());
        let claims = leaving.filter_map(|shadow| self.fleet.vms.get(&shadow.id)).map(|vm| self.claim(vm, now, None));
        let rest = fresh.map(|prospect| claims.fold(prospect.load, Load::minus));
        rest.is_some_and(|rest| !Room::of(&entry.facts, &self.policy.migrate).holds(&rest))
    }

    /// Where a production would be sent if its host let it go now, which is emptied or too full: the best measured host is for it, and its
    /// shadow leaves it to it.
    pub(super) fn would_go_to(&self, now: Timestamp, production: VmId) -> Option<&HostId> {
        let from = self.fleet.vms.get(&production)?.host.as_ref()?;
        let source = self.fleet.hosts.get(from).filter(|source| source.facts.migration.is_some())?;
        let (prospect, is_drained) = (source.prospect?, self.is_draining(from));
        let acts = matches!(self.move_mode_of(production), Mode::Approve | Mode::Auto);
        let has_to_go = is_drained || prospect.full_rounds > 0;
        if !(acts && has_to_go && self.may_leave(now, from, production, is_drained)) {
            return None;
        }
        let share = Room::of(&source.facts, &self.policy.migrate).share(&prospect.load);
        let search = Search { waits: true, ..self.search(is_drained) };
        self.find_target(now, from, production, share, search).map(|(_, to, _)| to)
    }

    /// The shadow that a production would find on a host: of one that is to leave along with the move it is not said.
    pub(in crate::core) fn shadow_that_stays(
        &self,
        production: VmId,
        host: &HostId,
        along: Option<&Along>,
    ) -> Option<VmId> {
        let mut there = self.shadows.coming_to(host).filter(|shadow| {
            shadow.of == production && !matches!(shadow.state, ShadowState::Moving | ShadowState::Retiring)
        });
        there.find(|shadow| along.is_none_or(|along| along.shadow != shadow.id)).map(|shadow| shadow.id)
    }

    /// Has a shadow leave as its production sets out.
    pub(in crate::core) fn send_along(&mut self, now: Timestamp, along: Along) {
        let parks = along.cause == ShadowCause::BothFull && self.is_chased(now, along.shadow);
        self.move_shadow(now, along.shadow, along.cause, parks);
    }
}
