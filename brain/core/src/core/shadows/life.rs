//! From state to state: why a shadow ends or has to leave its host, and what failures do.

use std::collections::BTreeSet;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, Report, ShadowOrder, VmId, VmState};

use super::{
    AVOIDED_FOR, FAILURES_MAX, GONE_AFTER, GONE_AFTER_RESTART, HOST_LOST_AFTER, Kept, LEAVES_WITHIN, WINDOWS_SETTLED,
};
use crate::core::{ACTOR, Core};
use crate::fleet::Vm;
use crate::io::Record;
use crate::plan::backoff;
use crate::plan::balance::{Claim, Load, Room};
use crate::plan::guard::Guard;
use crate::shadow::{ShadowCause, ShadowState};

impl Core {
    /// Why a shadow is to be taken away for good, if it is.
    pub(super) fn ends_because(&self, now: Timestamp, id: VmId) -> Option<ShadowCause> {
        let kept = self.shadows.kept.get(&id)?;
        if kept.shadow.state == ShadowState::Retiring {
            return None;
        }
        let production = self.fleet.vms.get(&kept.shadow.of);
        // As its host told last: a host that is silent says nothing of what has ended.
        let is_alive = |vm: &Vm| matches!(vm.state, VmState::Running | VmState::Paused | VmState::Arriving);
        if production.is_none_or(|vm| vm.host.is_none() || !is_alive(vm)) {
            let is_gone = match (kept.production_seen, kept.watched_since) {
                (Some(seen), _) => now.since(seen) >= GONE_AFTER,
                (None, Some(watched)) => now.since(watched) >= GONE_AFTER_RESTART,
                (None, None) => false,
            };
            return is_gone.then_some(ShadowCause::ProductionGone);
        }
        (!self.wants_shadow(kept.shadow.of)).then_some(ShadowCause::Unwanted)
    }

    /// Whether a host has told of itself a moment ago.
    pub(super) fn tells(&self, now: Timestamp, host: &HostId) -> bool {
        let host = self.fleet.hosts.get(host).filter(|host| host.connected);
        host.and_then(|host| host.prospect).is_some_and(|prospect| now <= prospect.fresh_until)
    }

    /// Whether its host, or one that has to delete copies before it is made, has been away for so long that its production gets another shadow: this
    /// one is taken away when the host is back.
    pub(super) fn is_abandoned(&self, now: Timestamp, id: VmId) -> bool {
        let Some(kept) = self.shadows.kept.get(&id) else { return false };
        let is_placed = kept.shadow.state.is_coming() || kept.shadow.state == ShadowState::Moving;
        let host = if is_placed { kept.shadow.host.as_ref() } else { self.waits_for_deletion(id) };
        let Some(host) = host else { return false };
        let is_seen = kept.production_seen.is_some_and(|at| now.since(at) < GONE_AFTER);
        let told = self.fleet.hosts.get(host).and_then(|host| host.last_window);
        // Before this life of the brain nobody listened.
        let since = told.max(kept.watched_since);
        is_seen && !self.is_connected(host) && since.is_some_and(|at| now.since(at) >= HOST_LOST_AFTER)
    }

    /// Whether what is being made of a shadow is not wanted any more, or not there.
    pub(super) fn is_in_vain(&self, now: Timestamp, id: VmId) -> bool {
        let ends = || self.ends_because(now, id).is_some() || self.is_abandoned(now, id);
        let goes = || self.leaves_because(id).is_some() || self.copies_have_to_go(id) || self.are_sent_in_vain(id);
        self.makes_shadows() && (ends() || goes())
    }

    /// Why a shadow has to leave its host, if it has.
    pub(super) fn leaves_because(&self, id: VmId) -> Option<ShadowCause> {
        let kept = self.shadows.kept.get(&id)?;
        let host = kept.shadow.host.as_ref().filter(|_| kept.shadow.state.is_coming())?;
        let of = kept.shadow.of;
        if self.moves.guards.plans(Guard::ShadowApart) && self.is_home(of, host) {
            let is_there = self.fleet.vms.get(&of).and_then(|vm| vm.host.as_ref()) == Some(host);
            return Some(if is_there { ShadowCause::Together } else { ShadowCause::ProductionComes });
        }
        if self.copies_have_to_go(id) {
            return Some(ShadowCause::CopiesGo);
        }
        self.moves.draining.contains_key(host).then_some(ShadowCause::Drained)
    }

    /// Shadows that should be on a host, of which its complete inventory does not tell, are made there again.
    pub(super) fn miss_shadows(&mut self, now: Timestamp, report: &Report) {
        let told: BTreeSet<VmId> = report.vms.iter().map(|window| window.vm).collect();
        let settled = Duration::from_millis(u64::from(report.window_ms)) * WINDOWS_SETTLED;
        let missing = self.shadows.coming_to(&report.host).filter(|shadow| {
            (shadow.state == ShadowState::Copied || shadow.state.is_up())
                && now.since(shadow.since) > settled
                && !told.contains(&shadow.id)
        });
        let missing: Vec<VmId> = missing.map(|shadow| shadow.id).collect();
        for id in missing {
            if self.shadows.kept.get(&id).is_some_and(|kept| kept.flight.is_none()) {
                self.make_anew(now, id, "its host has it no more");
            }
        }
    }

    /// Whether an operator keeps Gnomon's hands off a shadow, its production or its host, or lets nothing be carried out there unasked.
    pub(super) fn is_shadow_held(&self, of: VmId, id: VmId, host: &HostId) -> bool {
        let is_held = self.holds.on_vm(of, Some(host)).is_some() || self.holds.on_vm(id, Some(host)).is_some();
        is_held || !self.tends_shadows_of(of, host)
    }

    /// A shadow that has to leave a full host makes room before any production moves. Says whether their going is enough.
    pub(in crate::core) fn shadows_make_room(
        &mut self,
        now: Timestamp,
        host: &HostId,
        load: &Load,
        room: &Room,
    ) -> bool {
        if !self.makes_shadows() {
            return false;
        }
        let mut load = *load;
        let mut leaving: Vec<(Claim, VmId, bool)> = Vec::new();
        for shadow in self.shadows.coming_to(host) {
            let Some(vm) = self.fleet.vms.get(&shadow.id) else { continue };
            // One that does not go is no room.
            let is_stuck = !shadow.state.is_coming() && now.since(shadow.since) > LEAVES_WITHIN;
            if is_stuck || self.is_shadow_held(shadow.of, shadow.id, host) {
                continue;
            }
            leaving.push((self.claim(vm, vm.window_end, None), shadow.id, shadow.state.is_coming()));
        }
        // The largest first: as few as possible go.
        leaving.sort_by_key(|(claim, id, _)| (std::cmp::Reverse(claim.memory_bytes), *id));
        for (claim, id, is_coming) in leaving {
            if room.holds(&load) {
                break;
            }
            load = load.minus(claim);
            if is_coming {
                self.move_shadow(now, id, ShadowCause::HostFull, self.is_chased(now, id));
            }
        }
        room.holds(&load)
    }

    /// Whether a shadow had to leave a host not long ago: if it has to again it is parked.
    pub(super) fn is_chased(&self, now: Timestamp, id: VmId) -> bool {
        let cool_down = Duration::from_millis(self.policy.shadow.cool_down_ms);
        let moved = self.shadows.kept.get(&id).and_then(|kept| kept.shadow.moved);
        moved.is_some_and(|at| now.since(at) < cool_down)
    }

    /// Takes a shadow away from its host, to be made elsewhere, or parked.
    pub(super) fn move_shadow(&mut self, now: Timestamp, id: VmId, cause: ShadowCause, parks: bool) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.shadow.moved = Some(now);
        kept.shadow.parks = parks;
        kept.shadow.failures = 0;
        self.forget_making(id);
        self.bring_shadow(now, id, ShadowState::Moving, cause.to_string());
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        if kept.flight.is_none() {
            self.order(now, id, ShadowOrder::Retire, cause);
        }
    }

    /// Takes a shadow away for good.
    pub(super) fn end_shadow(&mut self, now: Timestamp, id: VmId, cause: ShadowCause) {
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        let (of, is_there) = (kept.shadow.of, kept.shadow.state.is_placed() || kept.shadow.copies.is_some());
        self.forget_making(id);
        if self.shadows.of.get(&of) == Some(&id) {
            self.shadows.of.remove(&of);
        }
        if is_there {
            self.bring_shadow(now, id, ShadowState::Retiring, cause.to_string());
            if self.shadows.kept.get(&id).is_some_and(|kept| kept.flight.is_none()) {
                self.order(now, id, ShadowOrder::Retire, cause);
            }
        } else {
            self.bring_shadow(now, id, ShadowState::Retired, cause.to_string());
            self.shadows.forget(id);
        }
    }

    /// One that did not come up gets twice as much memory, up to what its production has: where a guest boots is found by trying. Where all of that did not
    /// help it was not for want of memory, and what was tried is forgotten.
    pub(super) fn boot_failed(&mut self, now: Timestamp, id: VmId) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let shadow = &mut kept.shadow;
        let had = shadow.size.map_or(0, |size| size.memory_bytes);
        let most = shadow.blueprint.as_ref().map_or(0, |blueprint| blueprint.memory_bytes);
        let (detail, parks) = if had < most {
            shadow.memory_floor_bytes = had.saturating_mul(2).min(most);
            (format!("it did not run with {had} bytes of memory: next with {}", shadow.memory_floor_bytes), false)
        } else {
            shadow.memory_floor_bytes = 0;
            (format!("it did not run with all the memory that its production has, {had} bytes"), true)
        };
        shadow.parks = parks;
        (shadow.failures, shadow.ends) = (0, 0);
        let wait = self.lose_sent_copies(id);
        self.bring_shadow(now, id, ShadowState::Moving, detail + &wait);
        self.order(now, id, ShadowOrder::Retire, ShadowCause::Failed);
    }

    /// A step was not done: it is done again after a pause; too often in a row, and the shadow leaves that host.
    pub(super) fn shadow_failed(&mut self, now: Timestamp, id: VmId, why: &str) {
        self.fail(now, id, why, None);
    }

    /// It is not there as it should be: whatever is left, the order to make it brings it to be.
    pub(super) fn make_anew(&mut self, now: Timestamp, id: VmId, why: &str) {
        self.fail(now, id, why, Some(ShadowState::Placed));
    }

    fn fail(&mut self, now: Timestamp, id: VmId, why: &str, next: Option<ShadowState>) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let (failures, state) = (kept.shadow.failures, kept.shadow.state);
        if state == ShadowState::Resizing && next.is_none() {
            return self.resize_failed(now, id, why);
        }
        kept.shadow.failures = failures.saturating_add(1);
        let is_hopeless = failures + 1 >= FAILURES_MAX;
        if kept.shadow.state.is_coming() && is_hopeless {
            kept.avoid(now);
        }
        match next.filter(|_| !is_hopeless).or(is_hopeless.then_some(ShadowState::Moving)) {
            Some(next) if kept.shadow.state.is_coming() => {
                let wait = if is_hopeless { self.lose_sent_copies(id) } else { String::new() };
                self.bring_shadow(now, id, next, format!("{why}{wait}"));
            }
            _ if is_hopeless && state == ShadowState::Imaging => return self.park_shadow(now, id, why),
            _ => self.note_shadow(id, why),
        }
        self.shadows.wake(id, now + backoff::pause(failures));
    }

    /// A shadow that nothing is made of for now.
    pub(super) fn park_shadow(&mut self, now: Timestamp, id: VmId, why: &str) {
        if let Some(kept) = self.shadows.kept.get_mut(&id) {
            kept.shadow.failures = 0;
        }
        self.bring_shadow(now, id, ShadowState::Parked, why.to_owned());
    }

    /// Brings a shadow to a state: written, audited, and looked at soon.
    pub(super) fn bring_shadow(&mut self, now: Timestamp, id: VmId, state: ShadowState, detail: String) {
        if state != ShadowState::Pacing {
            self.interrupt_trial(now, id, &detail);
        }
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let before = kept.shadow.state;
        kept.shadow.state = state;
        kept.shadow.since = now;
        kept.shadow.detail.clone_from(&detail);
        if !state.is_up() {
            (kept.runs_since, kept.ordered) = (None, None);
        }
        if state != ShadowState::Resizing {
            kept.shadow.resizes_to = None;
        }
        if state == ShadowState::Placed {
            // What is made there, also anew, is defined with that.
            kept.shadow.defined_bytes = kept.shadow.size.map_or(0, |size| size.memory_bytes);
        }
        let shadow = kept.shadow.clone();
        let place = shadow.host.as_ref().map_or_else(String::new, |host| format!(" on host {host}"));
        let text = format!("shadow {id}{place}: {} -> {}: {detail}", before.name(), state.name());
        self.audit(now, ACTOR, "shadow", format!("vm {}", shadow.of), text);
        self.persist(Record::Shadow(Box::new(shadow)));
        self.shadows.wake(id, now);
    }

    /// Says of a shadow that stays where it is what came between.
    pub(super) fn note_shadow(&mut self, id: VmId, detail: &str) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        if kept.shadow.detail != detail {
            detail.clone_into(&mut kept.shadow.detail);
            let record = Record::Shadow(Box::new(kept.shadow.clone()));
            self.persist(record);
        }
    }
}

impl Kept {
    /// Which level of a trial it is to play now.
    pub(super) fn plays(&self, now: Timestamp) -> Option<usize> {
        self.shadow.trial.as_ref().and_then(|trial| trial.playing(now))
    }

    /// Leaves its host alone for a while.
    pub(super) fn avoid(&mut self, now: Timestamp) {
        if let Some(host) = self.shadow.host.clone() {
            self.avoid_host(now, host);
        }
    }

    /// Leaves a host alone for a while.
    pub(super) fn avoid_host(&mut self, now: Timestamp, host: HostId) {
        self.shadow.avoids.retain(|(other, until)| *other != host && *until > now);
        self.shadow.avoids.push((host, now + AVOIDED_FOR));
    }
}
