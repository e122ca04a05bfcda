//! Shadows' lives: which VMs are to have one, what each needs next, and when it ends. [`crate::shadow`] has the states.
//!
//! A shadow is looked at when its production or its host reports, when an order of it is answered, and when its time has come. It has one
//! order on its way at most. [`life`] brings it from state to state, [`orders`] gives orders and takes answers, [`place`] finds hosts, [`profile`] says what a shadow is to do,
//! [`copies`] sees to disks that have to be copied, [`resize`] to a size that changes, [`together`] keeps it and its production from each other's hosts,
//! [`contention`] and [`response`] hear what it tells of its host.

mod by_hand;
mod contention;
mod copies;
mod life;
mod orders;
mod place;
mod profile;
mod resize;
mod response;
mod together;
mod trial;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    CommandId, HostId, Load, Report, ShadowOrder, ShadowSize, ShadowWindow, VmId, VmState, VmWindow,
};

use super::{ACTOR, Core};
use crate::draw::draw;
use crate::io::{CommandRecord, Record};
use crate::plan::contention::Calibrations;
use crate::policy::Mode;
use crate::shadow::response::Response;
use crate::shadow::size::Peaks;
use crate::shadow::{Shadow, ShadowCause, ShadowState};

/// A host that is not connected, or held, is waited for so long before it is looked at again.
const WAIT: Duration = Duration::from_secs(5);

/// A production that has not been seen running for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// One that this life of the brain has not seen at all has so long to be heard of.
const GONE_AFTER_RESTART: Duration = Duration::from_mins(5);

/// A shadow whose host has been away for so long is given up there, and made elsewhere under another identity.
const HOST_LOST_AFTER: Duration = Duration::from_mins(10);

/// An image without a pacer says nothing: a shadow that has run for so long has come up.
const QUIET_BOOT: Duration = Duration::from_secs(60);

/// So many windows after a change a report tells of the time after it.
const WINDOWS_SETTLED: u32 = 2;

/// A shadow that has to go is counted as gone for so long; after that it is seen not to go.
const LEAVES_WITHIN: Duration = Duration::from_mins(3);

/// A step that failed so often in a row is given up on that host.
const FAILURES_MAX: u32 = 4;

/// A host where it could not be made is left alone by it for so long.
const AVOIDED_FOR: Duration = Duration::from_hours(1);

/// A shadow nobody knows of is told to go no more often than this.
const STRAY_EVERY: Duration = Duration::from_secs(30);

/// What the core keeps about shadows.
#[derive(Clone, Debug, Default)]
pub(super) struct Shadows {
    /// Made in this term.
    made: u64,
    kept: BTreeMap<VmId, Kept>,
    /// The shadow of each production, but for those that are retiring.
    of: BTreeMap<VmId, VmId>,
    due: BTreeSet<(Timestamp, VmId)>,
    /// Whose orders are on their way.
    orders: BTreeMap<CommandId, VmId>,
    /// Productions that get no shadow, by an operator's word.
    kept_off: BTreeSet<VmId>,
    /// When the last shadow of a production was first wanted, as far as a restart told.
    last_wanted: BTreeMap<VmId, Timestamp>,
    /// Productions that have one by an operator's word, whatever their owner and policy say.
    asked_for: BTreeSet<VmId>,
    /// How what shadows tell of their hosts compares with what productions beside them do.
    pub(super) calibrations: Calibrations,
    /// Hosts that did not give a shadow what was coming, and until when that is held against them.
    starved: BTreeMap<HostId, Timestamp>,
    /// When what shadows taught of hosts was written last.
    contention_kept: Timestamp,
    /// When shadows that nobody knows of were told to go, and by which command.
    strays: BTreeMap<VmId, (Timestamp, CommandRecord)>,
}

#[derive(Clone, Debug)]
struct Kept {
    shadow: Shadow,
    flight: Option<Flight>,
    due: Timestamp,
    /// It runs, as its host told last, since then.
    runs_since: Option<Timestamp>,
    /// Since when this life of the brain has looked after it.
    watched_since: Option<Timestamp>,
    /// When its production was seen running last.
    production_seen: Option<Timestamp>,
    /// What it was last told to do.
    ordered: Option<Load>,
    /// Which level of a trial that was.
    played: Option<usize>,
    /// How long its host's windows are.
    window: Duration,
    /// When what it got of its host was written last.
    response_kept: Timestamp,
    /// What its production was like when it was described last.
    described: Option<resize::Described>,
    /// How large it should have been when that was looked at last.
    wants: Option<ShadowSize>,
}

#[derive(Clone, Debug)]
struct Flight {
    record: CommandRecord,
    deadline: Timestamp,
    /// The answers to orders that only refresh what is there are no news.
    is_refresh: bool,
}

impl Shadows {
    /// When the core has to look at a shadow next.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.due.first().map(|&(due, _)| due)
    }

    /// Whether an answer to this command is waited for.
    pub(super) fn awaits(&self, id: CommandId) -> bool {
        self.orders.contains_key(&id) || self.strays.values().any(|(_, record)| record.command.id == id)
    }

    fn wake(&mut self, id: VmId, at: Timestamp) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        self.due.remove(&(kept.due, id));
        kept.due = at;
        self.due.insert((at, id));
    }

    /// Looks after a shadow from now on, whose production was last seen running then.
    fn insert(&mut self, now: Timestamp, shadow: Shadow, production_seen: Option<Timestamp>) {
        let (id, of) = (shadow.id, shadow.of);
        if shadow.state != ShadowState::Retiring {
            self.of.insert(of, id);
        }
        let kept = Kept {
            shadow,
            flight: None,
            due: now,
            runs_since: None,
            watched_since: None,
            production_seen,
            ordered: None,
            played: None,
            window: Duration::ZERO,
            response_kept: now,
            described: None,
            wants: None,
        };
        self.due.insert((now, id));
        self.kept.insert(id, kept);
    }

    fn forget(&mut self, id: VmId) {
        let Some(kept) = self.kept.remove(&id) else { return };
        self.due.remove(&(kept.due, id));
        if let Some(flight) = kept.flight {
            self.orders.remove(&flight.record.command.id);
        }
        if self.of.get(&kept.shadow.of) == Some(&id) {
            self.of.remove(&kept.shadow.of);
        }
    }

    /// Bounds what a clock that was set back can do: nothing counts as younger than now, and everything is looked at.
    pub(super) fn clock_set_back(&mut self, now: Timestamp) {
        self.due.clear();
        for (&id, kept) in &mut self.kept {
            let shadow = &mut kept.shadow;
            shadow.since = shadow.since.min(now);
            shadow.moved = shadow.moved.map(|at| at.min(now));
            shadow.resizes_from = shadow.resizes_from.min(now + AVOIDED_FOR);
            shadow.avoids.iter_mut().for_each(|(_, until)| *until = (*until).min(now + AVOIDED_FOR));
            kept.runs_since = kept.runs_since.map(|at| at.min(now));
            kept.production_seen = kept.production_seen.map(|at| at.min(now));
            kept.watched_since = kept.watched_since.map(|at| at.min(now));
            kept.response_kept = kept.response_kept.min(now);
            if let Some(trial) = shadow.trial.as_mut().filter(|trial| trial.is_open()) {
                trial.interrupt(now, "the brain's clock was set back meanwhile");
            }
            if let Some(flight) = &mut kept.flight {
                flight.deadline = flight.deadline.min(orders::deadline_from(now, &flight.record));
            }
            kept.due = now;
            self.due.insert((now, id));
        }
        self.starved.values_mut().for_each(|until| *until = (*until).min(now + response::STARVED_FOR));
        self.contention_kept = self.contention_kept.min(now);
        self.strays.values_mut().for_each(|(at, _)| *at = (*at).min(now));
    }

    /// The shadow of a production, or the shadow with this identity.
    fn id_of(&self, vm: VmId) -> VmId {
        self.of.get(&vm).copied().unwrap_or(vm)
    }

    /// The shadows that are on a host, or are coming to it.
    pub(in crate::core) fn coming_to<'a>(&'a self, host: &'a HostId) -> impl Iterator<Item = &'a Shadow> {
        let shadows = self.kept.values().map(|kept| &kept.shadow);
        shadows.filter(move |shadow| shadow.state.is_placed() && shadow.host.as_ref() == Some(host))
    }
}

impl Core {
    /// Whether shadows are made, moved and paced now, as far as the fleet is concerned.
    pub(super) fn makes_shadows(&self) -> bool {
        self.mode_of_fleet().mode == Mode::Auto && self.policy.shadow.mode == Mode::Auto
    }

    /// How often a shadow is told what to do.
    fn pace_every(&self) -> Duration {
        Duration::from_millis(self.policy.shadow.pace_ms)
    }

    /// Marks windows of shadows of which their agent has not read yet that they are some: it looks at definitions now and then.
    pub(super) fn mark_shadows(&self, report: &mut Report) {
        for window in report.vms.iter_mut().filter(|window| window.shadow.is_none()) {
            let of = self.shadows.kept.get(&window.vm).map(|kept| kept.shadow.of);
            window.shadow = of.map(|of| ShadowWindow { of, pacer: None });
        }
    }

    /// Takes in what a fresh report says of productions and shadows.
    pub(super) fn look_at_shadows(&mut self, now: Timestamp, report: &Report) {
        let length = Duration::from_millis(u64::from(report.window_ms));
        for window in &report.vms {
            let is_here = self.fleet.vms.get(&window.vm).is_some_and(|vm| vm.host.as_ref() == Some(&report.host));
            match window.shadow {
                Some(_) => self.see_shadow(now, &report.host, window, length),
                None if is_here => self.see_production(now, &report.host, window),
                None => {}
            }
        }
        self.learn_contention(now, report);
        self.send_stray_copies_away(now, &report.host);
        if report.inventory_complete && self.makes_shadows() {
            self.miss_shadows(now, report);
        }
    }

    /// A VM that is no shadow told of itself: it may be to have one, or to have none.
    fn see_production(&mut self, now: Timestamp, host: &HostId, window: &VmWindow) {
        if window.state != VmState::Running && window.state != VmState::Paused {
            return;
        }
        let wants = self.wants_shadow(window.vm);
        let Some(&id) = self.shadows.of.get(&window.vm) else {
            if wants && self.makes_shadows() && self.shadows.of.len() < self.policy.shadow.fleet_max {
                self.want_shadow(now, window.vm, &window.name, ACTOR);
            }
            return;
        };
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.production_seen = Some(now);
        kept.shadow.peaks = kept.shadow.peaks.max(Peaks::of(window.disk.as_ref(), &window.interfaces));
        let meets = kept.shadow.state.is_coming() && kept.shadow.host.as_ref() == Some(host);
        if meets || !wants {
            self.shadows.wake(id, now);
            self.tend_shadow(now, id);
        }
    }

    /// Whether a production is to have a shadow: an operator's word goes before its owner's, and that before policy's.
    fn wants_shadow(&self, vm: VmId) -> bool {
        // A shadow that nobody knows of tells what it is a window or two late.
        let Some(vm_entry) = self.fleet.vms.get(&vm).filter(|vm| vm.shadow.is_none()) else { return false };
        let terms = &vm_entry.terms;
        let by_owner = terms.shadow.unwrap_or(self.policy.shadow.every_vm && !terms.hands_off());
        let by_operator = self.shadows.asked_for.contains(&vm);
        (by_operator || by_owner && terms.misunderstood.is_none()) && !self.shadows.kept_off.contains(&vm)
    }

    /// A production gets a shadow, which has yet to be made.
    fn want_shadow(&mut self, now: Timestamp, of: VmId, name: &str, actor: &str) {
        self.shadows.made += 1;
        let (high, low) = of.0.as_u64_pair();
        let number = self.shadows.made ^ (self.fence.term << 32);
        let id = VmId::made_of(draw(high ^ self.seed, number), draw(low ^ now.unix_ms(), number));
        let peaks = self.fleet.vms.get(&of).map(|vm| Peaks::of(vm.disk.as_ref(), &vm.interfaces));
        let shadow = Shadow {
            id,
            of,
            name: name.to_owned(),
            state: ShadowState::Wanted,
            since: now,
            detail: ShadowCause::Wanted.to_string(),
            host: None,
            blueprint: None,
            size: None,
            defined_bytes: 0,
            resizes_to: None,
            resizes_from: Timestamp::default(),
            peaks: peaks.unwrap_or_default(),
            fidelity: None,
            memory_floor_bytes: 0,
            failures: 0,
            ends: 0,
            wanted: now,
            moved: None,
            parks: false,
            asked_for: self.shadows.asked_for.contains(&of),
            kept_off: false,
            response: Response::default(),
            trial: None,
            avoids: Vec::new(),
            copies: None,
            copy_failures: 0,
        };
        self.persist(Record::Shadow(Box::new(shadow.clone())));
        self.audit(now, actor, "shadow_wanted", format!("vm {of}"), format!("shadow {id}"));
        self.shadows.insert(now, shadow, Some(now));
        self.tend_shadow(now, id);
    }

    /// A shadow told of itself.
    fn see_shadow(&mut self, now: Timestamp, host: &HostId, window: &VmWindow, length: Duration) {
        let id = window.vm;
        let is_running = window.state == VmState::Running;
        let is_known = self
            .shadows
            .kept
            .get(&id)
            .is_some_and(|kept| kept.shadow.state.is_placed() && kept.shadow.host.as_ref() == Some(host));
        if !is_known {
            return self.send_stray_away(now, host, window);
        }
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.window = length;
        kept.runs_since = is_running.then(|| kept.runs_since.unwrap_or(now));
        let has_pacer = window.shadow.is_some_and(|shadow| shadow.pacer.is_some());
        let is_up = kept.runs_since.is_some_and(|since| has_pacer || now.since(since) >= QUIET_BOOT);
        // A window may tell of the time before.
        let is_settled = now.since(kept.shadow.since) > length * WINDOWS_SETTLED && kept.flight.is_none();
        let is_down = is_settled && matches!(window.state, VmState::ShutOff | VmState::Crashed);
        match kept.shadow.state {
            ShadowState::Booting if is_up => {
                let pacer =
                    if has_pacer { "its pacer answers" } else { "no pacer answers: it measures its host alone" };
                self.bring_shadow(now, id, ShadowState::Pacing, format!("it runs; {pacer}"));
                self.tend_shadow(now, id);
            }
            state if state.is_up() && is_down => {
                kept.shadow.ends += 1;
                // The second time it is for want of memory.
                if kept.shadow.ends > 1 {
                    self.boot_failed(now, id);
                } else {
                    self.make_anew(now, id, "its guest has ended by itself");
                }
            }
            ShadowState::Pacing => {
                self.see_response(now, id, window);
                self.see_trial(now, id, window);
            }
            _ => {}
        }
    }

    /// Looks at the shadows whose time has come.
    pub(super) fn tend_shadows(&mut self, now: Timestamp) {
        while let Some(&(due, id)) = self.shadows.due.first()
            && due <= now
        {
            // Whatever comes of it, it is not looked at again in this round.
            self.shadows.wake(id, now + WAIT);
            self.tend_shadow(now, id);
        }
    }

    /// Does what a shadow needs next.
    fn tend_shadow(&mut self, now: Timestamp, id: VmId) {
        if self.shadows.kept.get(&id).is_some_and(|kept| kept.watched_since.is_none()) {
            self.interrupt_trial(now, id, "the brain was started anew meanwhile");
        }
        self.end_trial(now, id);
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let watched_since = *kept.watched_since.get_or_insert(now);
        if let Some(flight) = &kept.flight {
            let (is_late, next) = (now >= flight.deadline, flight.looked_at_next(now));
            if is_late {
                return self.shadow_unanswered(now, id);
            }
            if !self.is_in_vain(now, id) || !self.forget_making(id) {
                return self.shadows.wake(id, next);
            }
        }
        if !self.makes_shadows() {
            return self.shadows.wake(id, now + WAIT);
        }
        if let Some(cause) = self.ends_because(now, id) {
            return self.end_shadow(now, id, cause);
        }
        if self.is_abandoned(now, id) {
            return self.end_shadow(now, id, ShadowCause::HostLost);
        }
        if let Some(cause) = self.leaves_because(id) {
            return self.move_shadow(now, id, cause, false);
        }
        if self.is_starved(now, id) {
            return self.leave_starved(now, id);
        }
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        let shadow = &kept.shadow;
        let boot_timeout = Duration::from_millis(self.policy.shadow.boot_timeout_ms);
        match shadow.state {
            ShadowState::Wanted | ShadowState::Imaging | ShadowState::Parked if self.copies_have_to_go(id) => {
                self.discard_copies(now, id);
            }
            ShadowState::Wanted => self.describe(now, id),
            ShadowState::Imaging => self.order_image(now, id),
            // It might be on the same host by now.
            ShadowState::Placed | ShadowState::Copied if !self.is_anywhere(shadow.of) => {
                self.shadows.wake(id, now + WAIT);
            }
            ShadowState::Placed => self.order_copy(now, id),
            ShadowState::Copied => self.order(now, id, ShadowOrder::Start, ShadowCause::Wanted),
            ShadowState::Booting => {
                // What happened while nobody could tell is not held against it.
                let until = shadow.since.max(watched_since) + boot_timeout;
                let is_told = shadow.host.as_ref().is_some_and(|host| self.tells(now, host));
                match now >= until {
                    true if is_told => self.boot_failed(now, id),
                    true => self.shadows.wake(id, now + WAIT),
                    false => self.shadows.wake(id, until),
                }
            }
            ShadowState::Pacing => self.tend_pacing(now, id),
            ShadowState::Resizing => self.order_resize(now, id),
            ShadowState::Moving => self.order(now, id, ShadowOrder::Retire, ShadowCause::Failed),
            ShadowState::Retiring => self.order(now, id, ShadowOrder::Retire, ShadowCause::Unwanted),
            ShadowState::Parked => {
                let until = shadow.since + self.parked_for(shadow);
                if now >= until {
                    self.bring_shadow(now, id, ShadowState::Wanted, "it is tried again".to_owned());
                    self.tend_shadow(now, id);
                } else {
                    self.shadows.wake(id, until);
                }
            }
            ShadowState::Retired => self.shadows.forget(id),
        }
    }

    /// Takes up what an earlier life of the brain knew of a shadow.
    pub(super) fn restore_shadow(&mut self, shadow: Shadow) {
        if self.shadows.last_wanted.get(&shadow.of).is_none_or(|last| *last <= shadow.wanted) {
            self.shadows.last_wanted.insert(shadow.of, shadow.wanted);
            let mut says = |set: fn(&mut Shadows) -> &mut BTreeSet<VmId>, word: bool| {
                let set = set(&mut self.shadows);
                let _ = if word { set.insert(shadow.of) } else { set.remove(&shadow.of) };
            };
            says(|shadows| &mut shadows.kept_off, shadow.kept_off);
            says(|shadows| &mut shadows.asked_for, shadow.asked_for && !shadow.kept_off);
        }
        // Its agent may not have read yet that it is one when it told of it last.
        if let Some(vm) = self.fleet.vms.get_mut(&shadow.id) {
            vm.shadow.get_or_insert(ShadowWindow { of: shadow.of, pacer: None });
        }
        if shadow.state == ShadowState::Retired {
            return;
        }
        self.shadows.insert(self.now, shadow, None);
    }
}
