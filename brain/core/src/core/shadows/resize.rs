//! Another size for a shadow that runs: its production was resized for good, or its share of that changed. What it is made from is described anew now and
//! then, and whenever its production's windows show another definition; what it should be by that is compared with what it has.
//!
//! The order to resize says what is to be, and is repeated until it is answered, by a brain or an agent that was killed as well. One that fails too often is
//! undone by the same order with the size that there was; and if that fails too, or its definition has no room for the new one, it is made anew.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Blueprint, HostId, Means, ShadowOrder, ShadowSize, VmId, VmState};

use super::{AVOIDED_FOR, Core, FAILURES_MAX};
use crate::plan::backoff;
use crate::shadow::response::Response;
use crate::shadow::size::{Change, change, difference, growth};
use crate::shadow::trial::Trial;
use crate::shadow::{ShadowCause, ShadowState};

/// What a shadow is made from is described anew this often: weight and limits of its production are told in no window.
const DESCRIBED_EVERY: Duration = Duration::from_mins(10);

/// When a production was described, and what its windows told of its definition then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Described {
    at: Timestamp,
    vcpus: u32,
    vcpus_max: u32,
    memory_bytes: u64,
}

impl Core {
    /// Does what a shadow needs next that runs and has no order on its way: another look at its production, another size, or its next profile.
    pub(super) fn tend_pacing(&mut self, now: Timestamp, id: VmId) {
        if !self.describe_anew(now, id) && !self.resize_shadow(now, id) {
            self.order_pace(now, id);
        }
    }

    /// What a production's windows tell of its definition now.
    fn description(&self, now: Timestamp, production: VmId) -> Option<Described> {
        let allocation = self.fleet.vms.get(&production)?.allocation;
        let (vcpus, vcpus_max, memory_bytes) = (allocation.vcpus, allocation.vcpus_max, allocation.memory_bytes);
        Some(Described { at: now, vcpus, vcpus_max, memory_bytes })
    }

    pub(super) fn note_described(&mut self, now: Timestamp, id: VmId) {
        let of = self.shadows.kept.get(&id).map(|kept| kept.shadow.of);
        let described = of.and_then(|of| self.description(now, of));
        if let Some(kept) = self.shadows.kept.get_mut(&id) {
            kept.described = described;
        }
    }

    /// Whether it is known what a shadow is made from, and asked for again only in case that changed.
    pub(super) fn is_described(&self, id: VmId) -> bool {
        self.shadows.kept.get(&id).is_some_and(|kept| kept.shadow.state != ShadowState::Wanted)
    }

    /// Has its production described anew where that is due and can be done now. Says whether it is.
    fn describe_anew(&mut self, now: Timestamp, id: VmId) -> bool {
        let Some(kept) = self.shadows.kept.get(&id) else { return false };
        let (of, before) = (kept.shadow.of, kept.described);
        let Some(present) = self.description(now, of) else { return false };
        let is_known = before.is_some_and(|before| {
            now.since(before.at) < DESCRIBED_EVERY && before == Described { at: before.at, ..present }
        });
        let running = self.fleet.vms.get(&of).filter(|vm| vm.state == VmState::Running);
        let home = running.and_then(|vm| vm.host.clone());
        let is_told = |home: &HostId| self.is_connected(home) && !self.is_shadow_held(of, id, home);
        let Some(home) = home.filter(|home| !is_known && is_told(home)) else { return false };
        self.note_described(now, id);
        self.give(now, id, of, home, Action::Describe, ShadowCause::Resized, true);
        self.shadows.kept.get(&id).is_some_and(|kept| kept.flight.is_some())
    }

    /// Memory that a production may be given at most, in bytes: all of its definition where its balloon is planned, else what that leaves to it.
    pub(super) fn most_memory_bytes(&self, production: VmId, blueprint: &Blueprint) -> u64 {
        let vm = self.fleet.vms.get(&production);
        let host = vm.and_then(|vm| self.fleet.hosts.get(vm.host.as_ref()?));
        let is_planned = self.policy.memory.manage
            && host.is_some_and(|host| host.facts.means.contains(&Means::Memory))
            && vm.is_some_and(|vm| !vm.terms.hands_off());
        let defined = vm.filter(|_| is_planned).map_or(0, |vm| vm.allocation.memory_bytes);
        defined.max(blueprint.memory_bytes)
    }

    /// What of a production may change while it runs. What its shadow stands on, and boots, does not.
    pub(super) fn refresh_blueprint(&mut self, id: VmId, told: &Blueprint) {
        let Some(of) = self.shadows.kept.get(&id).map(|kept| kept.shadow.of) else { return };
        let memory_bytes = self.most_memory_bytes(of, told);
        let kept = self.shadows.kept.get_mut(&id);
        let Some(blueprint) = kept.and_then(|kept| kept.shadow.blueprint.as_mut()) else { return };
        (blueprint.vcpus, blueprint.memory_bytes, blueprint.cpu_weight) = (told.vcpus, memory_bytes, told.cpu_weight);
        blueprint.disk_bytes_per_s_max = told.disk_bytes_per_s_max;
        blueprint.network_bytes_per_s_max = told.network_bytes_per_s_max;
    }

    /// Begins to resize a shadow that should have another size, and could. Says whether it has something else to do now than to pace.
    fn resize_shadow(&mut self, now: Timestamp, id: VmId) -> bool {
        if !self.is_steady(id) {
            return false;
        }
        let Some(shadow) = self.shadows.kept.get(&id).map(|kept| &kept.shadow) else { return false };
        let is_trying = shadow.trial.as_ref().is_some_and(Trial::is_open);
        let (Some(has), Some(wants), Some(host)) = (shadow.size, self.size_of(shadow), shadow.host.clone()) else {
            return false;
        };
        // Whether its production is planned for is its host's word.
        let is_home = self.fleet.vms.get(&shadow.of).is_some_and(|vm| vm.host.is_some());
        if is_trying || !is_home || now < shadow.resizes_from {
            return false;
        }
        let what = difference(&has, &wants);
        match change(&has, shadow.defined_bytes(), &wants) {
            None => false,
            Some(Change::InPlace(to)) => match self.has_room_to_grow(now, id, &host, (&has, &to)) {
                Ok(()) => {
                    let Some(kept) = self.shadows.kept.get_mut(&id) else { return false };
                    (kept.shadow.resizes_to, kept.shadow.failures) = (Some(to), 0);
                    self.bring_shadow(now, id, ShadowState::Resizing, difference(&has, &to));
                    self.order_resize(now, id);
                    true
                }
                Err(why) => self.postpone_resize(now, id, &format!("it stays as it is ({what}): {why}")),
            },
            Some(Change::Anew) => match self.place_for(now, id) {
                Some(Ok(_)) => {
                    self.remake(now, id, &format!("it is made anew, since it is not defined for that: {what}"));
                    true
                }
                Some(Err(why)) => self.postpone_resize(now, id, &format!("it stays as it is ({what}): {why}")),
                None => false,
            },
        }
    }

    /// Whether a shadow should still be as large as when that was looked at last: what only one window told is not for good.
    fn is_steady(&mut self, id: VmId) -> bool {
        let wants = self.shadows.kept.get(&id).and_then(|kept| self.size_of(&kept.shadow));
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return false };
        let before = std::mem::replace(&mut kept.wants, wants);
        before.zip(wants).is_some_and(|(before, wants)| change(&before, u64::MAX, &wants).is_none())
    }

    fn has_room_to_grow(
        &self,
        now: Timestamp,
        id: VmId,
        host: &HostId,
        (has, to): (&ShadowSize, &ShadowSize),
    ) -> Result<(), String> {
        if growth(has, to) == (0.0, 0) {
            return Ok(());
        }
        let entry = self.fleet.hosts.get(host).ok_or("its host is not known")?;
        self.shadow_room(now, host, entry, id, to).map(|_| ())
    }

    /// It goes on as it is for a while.
    fn postpone_resize(&mut self, now: Timestamp, id: VmId, why: &str) -> bool {
        if let Some(kept) = self.shadows.kept.get_mut(&id) {
            kept.shadow.resizes_from = now + DESCRIBED_EVERY;
        }
        self.note_shadow(id, why);
        false
    }

    /// Tells its host how large a shadow is to be.
    pub(super) fn order_resize(&mut self, now: Timestamp, id: VmId) {
        match self.shadows.kept.get(&id).and_then(|kept| kept.shadow.resizes_to) {
            Some(to) => self.order(now, id, ShadowOrder::Resize(to), ShadowCause::Resized),
            None => self.bring_shadow(now, id, ShadowState::Pacing, "it has the size that it had".to_owned()),
        }
    }

    /// A shadow has the size that it was to have, or has that back which it had.
    pub(super) fn resized(&mut self, now: Timestamp, id: VmId) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let (Some(to), Some(has)) = (kept.shadow.resizes_to, kept.shadow.size) else { return };
        if to.cpu_cores != has.cpu_cores {
            // What it got of its host is kept in quarters of its quota.
            kept.shadow.response = Response::default();
        }
        kept.shadow.size = Some(to);
        let detail = match to == has {
            true => kept.shadow.detail.clone(),
            false => format!("it was resized: {}", difference(&has, &to)),
        };
        self.bring_shadow(now, id, ShadowState::Pacing, detail);
        self.tend_shadow(now, id);
    }

    /// It was not resized: it is tried again after a pause; too often in a row, and it gets back what it had; and if that cannot be done it is made anew.
    pub(super) fn resize_failed(&mut self, now: Timestamp, id: VmId, why: &str) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let shadow = &mut kept.shadow;
        let (failures, is_undone) = (shadow.failures, shadow.resizes_to == shadow.size);
        shadow.failures = failures.saturating_add(1);
        if shadow.failures < FAILURES_MAX {
            let undone = if is_undone { "it is to be given back what it had: " } else { "" };
            self.note_shadow(id, &format!("{undone}{why}"));
            return self.shadows.wake(id, now + backoff::pause(failures));
        }
        if is_undone {
            return self.remake(now, id, &format!("it is not known how large it is, and it is made anew: {why}"));
        }
        (shadow.resizes_to, shadow.failures) = (shadow.size, 0);
        shadow.resizes_from = now + AVOIDED_FOR;
        self.note_shadow(id, &format!("it is to be given back what it had: {why}"));
        self.shadows.wake(id, now);
    }

    /// Takes a shadow away from its host, to be made again as it should be, there or elsewhere.
    pub(super) fn remake(&mut self, now: Timestamp, id: VmId, why: &str) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        (kept.shadow.parks, kept.shadow.failures) = (false, 0);
        let wait = self.lose_sent_copies(id);
        self.bring_shadow(now, id, ShadowState::Moving, format!("{why}{wait}"));
        self.order(now, id, ShadowOrder::Retire, ShadowCause::Resized);
    }
}
