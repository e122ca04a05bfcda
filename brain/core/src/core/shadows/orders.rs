//! Orders about shadows: given one at a time, checked before they leave, repeated until they are answered.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, HostId, Outcome, OutcomeResult, RefusedCommand, ShadowDone, ShadowOrder, ShadowSpec, Unshadowable, VmId,
    VmState, VmWindow,
};

use super::copies::{may_take, takes_copies};
use super::{Flight, STRAY_EVERY, WAIT};
use crate::core::Core;
use crate::io::{CommandRecord, Record};
use crate::plan::guard::Guard;
use crate::plan::{PlannedAction, Reason};
use crate::shadow::response::Response;
use crate::shadow::size::growth;
use crate::shadow::{ShadowCause, ShadowState};

/// After its time to live an order is not begun any more. What was begun may take this long, answer included.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Making a copy of disks, and starting a guest on a busy host.
const COPY_MAX: Duration = Duration::from_mins(10);
const START_MAX: Duration = Duration::from_mins(2);

impl Flight {
    /// Whether something is made by it, which takes long.
    pub(super) fn makes(&self) -> bool {
        matches!(self.record.command.action, Action::Image(_) | Action::Shadow(ShadowOrder::Copy(_)))
    }

    /// What is made may not be wanted any more before it is answered.
    pub(super) fn looked_at_next(&self, now: Timestamp) -> Timestamp {
        if self.makes() { self.deadline.min(now + WAIT) } else { self.deadline }
    }
}

impl Core {
    /// Asks its production's host what a shadow is made from.
    pub(super) fn describe(&mut self, now: Timestamp, id: VmId) {
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        let of = kept.shadow.of;
        let host = self.fleet.vms.get(&of).filter(|vm| vm.state == VmState::Running).and_then(|vm| vm.host.clone());
        match host {
            Some(host) => self.give(now, id, of, host, Action::Describe, ShadowCause::Wanted, false),
            None => self.shadows.wake(id, now + WAIT),
        }
    }

    /// Tells its host to have a shadow.
    pub(super) fn order_copy(&mut self, now: Timestamp, id: VmId) {
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        let shadow = &kept.shadow;
        let (Some(blueprint), Some(size)) = (shadow.blueprint.clone(), shadow.size) else {
            return self.bring_shadow(now, id, ShadowState::Wanted, "it has to be described anew".to_owned());
        };
        let spec = ShadowSpec { of: shadow.of, blueprint, size };
        self.order(now, id, ShadowOrder::Copy(Box::new(spec)), ShadowCause::Wanted);
    }

    /// Tells its host what a shadow is to do.
    pub(super) fn order_pace(&mut self, now: Timestamp, id: VmId) {
        if let Some(kept) = self.shadows.kept.get_mut(&id) {
            let playing = kept.plays(now);
            if kept.played != playing {
                // Another level is news.
                (kept.played, kept.ordered) = (playing, None);
            }
        }
        match self.shadow_profile(now, id) {
            Some((profile, load)) => {
                let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
                let is_refresh = kept.ordered.is_some();
                if now.since(kept.shadow.since) >= Duration::from_millis(self.policy.shadow.boot_timeout_ms) {
                    (kept.shadow.ends, kept.shadow.failures, kept.shadow.copy_failures) = (0, 0, 0);
                }
                let host = kept.shadow.host.clone();
                let order = Action::Shadow(ShadowOrder::Pace(profile));
                if let Some(host) = host {
                    self.give(now, id, id, host, order, ShadowCause::Paces, is_refresh);
                }
                if let Some(kept) = self.shadows.kept.get_mut(&id).filter(|kept| kept.flight.is_some()) {
                    kept.ordered = Some(load);
                }
            }
            None => {
                let next = self.next_pace(now, id);
                self.shadows.wake(id, next);
            }
        }
    }

    /// Tells a shadow's host what is to be of it.
    pub(super) fn order(&mut self, now: Timestamp, id: VmId, order: ShadowOrder, cause: ShadowCause) {
        let Some(host) = self.shadows.kept.get(&id).and_then(|kept| kept.shadow.host.clone()) else {
            // It is nowhere: there is nothing to take away.
            return self.shadow_gone(now, id);
        };
        self.give(now, id, id, host, Action::Shadow(order), cause, false);
    }

    /// Gives an order: checked, written, then sent. `is_refresh`: it only repeats what holds, which is no news to anybody.
    #[allow(clippy::too_many_arguments, reason = "each says another thing of one order")]
    pub(super) fn give(
        &mut self,
        now: Timestamp,
        id: VmId,
        vm: VmId,
        host: HostId,
        action: Action,
        cause: ShadowCause,
        is_refresh: bool,
    ) {
        let Some(of) = self.shadows.kept.get(&id).map(|kept| kept.shadow.of) else { return };
        if self.is_shadow_held(of, id, &host) || !self.is_connected(&host) || !self.makes_shadows() {
            return self.shadows.wake(id, now + WAIT);
        }
        if let Err(why) = self.lint_shadow(now, id, &host, &action) {
            self.notice("plan_refused_by_linter", format!("shadow {id} of VM {of}: {why}"));
            return self.shadow_failed(now, id, &format!("the linter refused: {why}"));
        }
        let reason = Reason::Shadow { of, cause };
        let planned = PlannedAction { host, vm, action, before: None, reason, along: None, approved_by: None };
        let record = self.issue(now, planned, is_refresh);
        let deadline = deadline(&record);
        self.shadows.orders.insert(record.command.id, id);
        let flight = Flight { record, deadline, is_refresh };
        let next = flight.looked_at_next(now);
        if let Some(kept) = self.shadows.kept.get_mut(&id) {
            kept.flight = Some(flight);
        }
        self.shadows.wake(id, next);
    }

    /// The last look at an order before it leaves, by other means than those that made it.
    fn lint_shadow(&self, now: Timestamp, id: VmId, host: &HostId, action: &Action) -> Result<(), String> {
        let Some(kept) = self.shadows.kept.get(&id) else { return Err("it is not known".to_owned()) };
        let production = self.fleet.vms.get(&kept.shadow.of).and_then(|vm| vm.host.as_ref());
        let comes = self.destination_of(kept.shadow.of) == Some(host);
        let meets = (comes || production == Some(host)) && self.moves.guards.lints(Guard::ShadowApart);
        if self.fleet.vms.get(&id).is_some_and(|vm| vm.shadow.is_none()) {
            return Err("a VM of its identity is no shadow".to_owned());
        }
        match action {
            Action::Describe => match production == Some(host) {
                true => Ok(()),
                false => Err("its production is on another host".to_owned()),
            },
            Action::Image(imaging) => {
                if production != Some(host) || self.destination_of(kept.shadow.of).is_some() {
                    return Err("its production is on another host, or on its way there".to_owned());
                }
                match &imaging.send_to {
                    Some(to)
                        if !self.fleet.hosts.iter().any(|(id, other)| id != host && other.receives() == Some(to)) =>
                    {
                        Err(format!("no other host takes copies at {}", to.uri))
                    }
                    _ => Ok(()),
                }
            }
            Action::Shadow(ShadowOrder::Copy(spec)) => {
                let entry = self.fleet.hosts.get(host).ok_or("its host is not known")?;
                if meets {
                    return Err("its production is on the same host, or on its way there".to_owned());
                }
                let lacks = self.lacks_label(kept.shadow.of, entry).filter(|_| self.moves.guards.lints(Guard::Labels));
                if let Some(label) = lacks {
                    return Err(format!("its host lacks the label {label}, which its production's owner asks for"));
                }
                let (size, blueprint) = (&spec.size, &spec.blueprint);
                let is_small = size.cpu_cores > 0.0
                    && size.cpu_cores <= f64::from(blueprint.vcpus)
                    && (1..=blueprint.vcpus).contains(&size.vcpus)
                    && size.memory_bytes <= blueprint.memory_bytes.next_multiple_of(1 << 20);
                if !is_small {
                    return Err(format!("{size} is no size for a shadow of {} vCPUs", blueprint.vcpus));
                }
                self.shadow_room(now, host, entry, id, size).map(|_| ())
            }
            Action::Shadow(ShadowOrder::Resize(to)) => {
                let entry = self.fleet.hosts.get(host).ok_or("its host is not known")?;
                let (Some(has), Some(blueprint)) = (kept.shadow.size, &kept.shadow.blueprint) else {
                    return Err("it is not known how large it is".to_owned());
                };
                let is_within = to.cpu_cores > 0.0
                    && to.cpu_cores <= f64::from(blueprint.vcpus)
                    && to.vcpus == has.vcpus
                    && to.memory_bytes <= kept.shadow.defined_bytes();
                if !is_within && *to != has {
                    return Err(format!("{to} is no size that it can be given while it runs"));
                }
                match growth(&has, to) {
                    (0.0, 0) => Ok(()),
                    _ => self.shadow_room(now, host, entry, id, to).map(|_| ()),
                }
            }
            Action::Shadow(ShadowOrder::Start) if meets => {
                Err("its production is on the same host, or on its way there".to_owned())
            }
            Action::Shadow(ShadowOrder::Start | ShadowOrder::Pace(_) | ShadowOrder::Retire) => Ok(()),
            _ => Err("it is no order about a shadow".to_owned()),
        }
    }

    /// An order stayed unanswered.
    pub(super) fn shadow_unanswered(&mut self, now: Timestamp, id: VmId) {
        let Some(flight) = self.shadows.kept.get_mut(&id).and_then(|kept| kept.flight.take()) else { return };
        let Flight { record, is_refresh, .. } = flight;
        self.shadows.orders.remove(&record.command.id);
        let (host, command, record_action) = (record.host.clone(), record.command.id, record.command.action.clone());
        self.notice("command_unanswered", format!("host {host}, shadow {id}: no answer to command {command}"));
        if !is_refresh {
            self.persist(Record::Command(CommandRecord { unanswered: true, ..record }));
        }
        if matches!(record_action, Action::Shadow(ShadowOrder::Pace(_))) {
            // It may well go on.
            self.note_shadow(id, &format!("it runs, but host {host} did not answer"));
            let next = self.next_pace(now, id);
            return self.shadows.wake(id, next);
        }
        if record_action == Action::Describe && self.is_described(id) {
            return self.shadows.wake(id, now);
        }
        match record_action {
            Action::Image(_) => self.copy_failed(now, id, &format!("host {host} did not answer")),
            _ => self.shadow_failed(now, id, &format!("host {host} did not answer")),
        }
    }

    /// An order was answered.
    pub(in crate::core) fn shadow_answered(&mut self, now: Timestamp, host: &HostId, outcome: Outcome) {
        let of_stray = self.shadows.strays.values().find(|(_, record)| record.command.id == outcome.id);
        if let Some((_, record)) = of_stray {
            let record = record.clone();
            return self.stray_answered(now, host, outcome, record);
        }
        let Some(&id) = self.shadows.orders.get(&outcome.id) else { return };
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        if kept.flight.as_ref().is_some_and(|flight| flight.record.host != *host) {
            let text = format!("host {host} answered {}, which was sent to another host", outcome.id);
            return self.notice("outcome_of_foreign_command", text);
        }
        let Some(Flight { record, is_refresh, .. }) = kept.flight.take() else { return };
        self.shadows.orders.remove(&record.command.id);
        let result = outcome.result.clone();
        if !is_refresh {
            let object = format!("vm {}", record.command.vm);
            self.audit(now, host.as_str(), "outcome", object, format!("{} {}", outcome.id, in_words(&result)));
            self.persist(Record::Command(CommandRecord {
                outcome: Some(outcome),
                unanswered: false,
                ..record.clone()
            }));
        }
        self.settle_shadow(now, id, host, &record.command.action, result);
    }

    /// Draws the consequences of an answer.
    fn settle_shadow(&mut self, now: Timestamp, id: VmId, host: &HostId, asked: &Action, result: OutcomeResult) {
        let is_no_copy = matches!(
            (asked, &result),
            (Action::Image(_), OutcomeResult::Failed { .. } | OutcomeResult::Unshadowable(_))
        );
        let was_to_be_sent = is_no_copy && self.avoid_receiver(now, id);
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let state = kept.shadow.state;
        match (asked, result) {
            (Action::Describe, result) if state != ShadowState::Wanted => {
                if let OutcomeResult::Described(blueprint) = result {
                    self.refresh_blueprint(id, &blueprint);
                }
                self.tend_shadow(now, id);
            }
            (Action::Describe, OutcomeResult::Described(blueprint)) if blueprint.is_bounded() => {
                self.take_blueprint(id, *blueprint);
                self.note_described(now, id);
                self.place_shadow(now, id);
            }
            (Action::Image(_), OutcomeResult::Imaged(imaged)) => self.imaged(now, id, host, *imaged),
            (Action::Image(_), result @ OutcomeResult::Failed { .. }) => {
                self.copy_failed(now, id, &format!("host {host}: {}", in_words(&result)));
            }
            // It may be for want of room there, and the disks may have been copied before that was known.
            (Action::Image(_), OutcomeResult::Unshadowable(why)) if was_to_be_sent => {
                self.copy_failed(now, id, &format!("host {host}: {why}"));
            }
            (Action::Image(_), OutcomeResult::Unshadowable(why)) => self.park_shadow(now, id, &why.to_string()),
            (
                Action::Image(_),
                OutcomeResult::Refused(why @ (RefusedCommand::OptedOut | RefusedCommand::CopiesNotAllowed)),
            ) => self.park_shadow(now, id, &why.to_string()),
            (Action::Shadow(ShadowOrder::Retire), OutcomeResult::Shadow(ShadowDone::Retired)) => {
                let was_there = kept.shadow.host.as_ref().is_none_or(|on| on == host);
                self.copies_gone(now, id, host);
                match state {
                    ShadowState::Moving | ShadowState::Retiring if was_there => self.shadow_gone(now, id),
                    _ => self.tend_shadow(now, id),
                }
            }
            (Action::Shadow(_), OutcomeResult::Shadow(done)) => {
                kept.shadow.failures = 0;
                match (state, done) {
                    (ShadowState::Placed, ShadowDone::Copied { took_us, .. }) => {
                        let took = format!("made on host {host} in {:.1} s", took_us as f64 / 1e6);
                        self.bring_shadow(now, id, ShadowState::Copied, took);
                        self.tend_shadow(now, id);
                    }
                    (ShadowState::Copied, ShadowDone::Started { took_us }) => {
                        let took = format!("started in {:.1} s", took_us as f64 / 1e6);
                        self.bring_shadow(now, id, ShadowState::Booting, took);
                        self.tend_shadow(now, id);
                    }
                    (ShadowState::Resizing, ShadowDone::Resized { .. }) => self.resized(now, id),
                    // Unless its fidelity has changed meanwhile.
                    (ShadowState::Pacing, ShadowDone::Paced)
                        if kept.ordered.is_some() && kept.played == kept.plays(now) =>
                    {
                        let next = self.next_pace(now, id);
                        self.shadows.wake(id, next);
                    }
                    // What was asked for before it had to leave.
                    _ => self.tend_shadow(now, id),
                }
            }
            (Action::Describe, OutcomeResult::Unshadowable(why)) => {
                self.bring_shadow(now, id, ShadowState::Parked, why.to_string());
            }
            (Action::Describe, OutcomeResult::Refused(why @ RefusedCommand::OptedOut)) => {
                self.bring_shadow(now, id, ShadowState::Parked, why.to_string());
            }
            (
                Action::Shadow(ShadowOrder::Start | ShadowOrder::Pace(_) | ShadowOrder::Resize(_)),
                OutcomeResult::Unshadowable(why @ Unshadowable::NoShadow),
            ) if state.is_coming() => self.make_anew(now, id, &format!("host {host}: {why}")),
            (
                Action::Shadow(ShadowOrder::Resize(_)),
                OutcomeResult::Unshadowable(why @ Unshadowable::Unresizable(_)),
            ) if state == ShadowState::Resizing => self.remake(now, id, &format!("host {host}: {why}")),
            (Action::Shadow(order), OutcomeResult::Unshadowable(why))
                if state.is_coming() && !matches!(order, ShadowOrder::Resize(_)) =>
            {
                // Where copies are not taken: another host may take them. Where there are none it is no host's doing, and may soon be allowed.
                let has_copies = kept.shadow.blueprint.iter().any(|blueprint| blueprint.copies().next().is_some());
                let lacks_base = matches!(why, Unshadowable::NoBase(_)) && !has_copies;
                kept.shadow.parks = lacks_base || matches!(why, Unshadowable::Definition(_));
                if !lacks_base {
                    // On that host it will not be different soon.
                    kept.avoid(now);
                }
                self.judge_copies(id, &why);
                let wait = self.lose_sent_copies(id);
                self.bring_shadow(now, id, ShadowState::Moving, format!("host {host}: {why}{wait}"));
                self.tend_shadow(now, id);
            }
            (Action::Shadow(ShadowOrder::Pace(_)), result) => {
                // It measures its host without a pacer as well.
                self.note_shadow(id, &format!("it runs, but does not pace: {}", in_words(&result)));
                let next = self.next_pace(now, id);
                self.shadows.wake(id, next);
            }
            (_, result) => self.shadow_failed(now, id, &format!("host {host}: {}", in_words(&result))),
        }
    }

    /// A shadow that was described gets a place, or is parked.
    pub(super) fn place_shadow(&mut self, now: Timestamp, id: VmId) {
        let Some(place) = self.place_for(now, id) else { return };
        let is_settling = self.is_settling(now);
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        match place {
            // Nothing is copied for a shadow that has no place.
            Ok(_) if takes_copies(kept.shadow.blueprint.as_ref()) => {
                self.bring_shadow(now, id, ShadowState::Imaging, "its production's disks are copied first".to_owned());
                self.tend_shadow(now, id);
            }
            Ok((host, size)) => {
                kept.shadow.size = Some(size);
                kept.shadow.host = Some(host);
                self.bring_shadow(now, id, ShadowState::Placed, format!("{size}"));
                self.tend_shadow(now, id);
            }
            // Who has room is not known before everyone has told.
            Err(_) if is_settling => self.shadows.wake(id, now + WAIT),
            Err(why) if self.has_place_without_copies(now, id) => {
                self.spoil_copies(id);
                self.bring_shadow(
                    now,
                    id,
                    ShadowState::Imaging,
                    format!("its copies are made anew for another host: {why}"),
                );
                self.tend_shadow(now, id);
            }
            Err(why) => self.bring_shadow(now, id, ShadowState::Parked, why),
        }
    }

    /// Nothing is left of a shadow where it was.
    fn shadow_gone(&mut self, now: Timestamp, id: VmId) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let is_retiring = kept.shadow.state == ShadowState::Retiring;
        if is_retiring && kept.shadow.copies.is_some() && kept.shadow.host.is_none() {
            return self.discard_copies(now, id);
        }
        kept.shadow.host = None;
        kept.shadow.size = None;
        kept.shadow.response = Response::default();
        kept.shadow.failures = 0;
        let detail = kept.shadow.detail.clone();
        if is_retiring && kept.shadow.copies.is_some() {
            // What it stood on goes after it.
            let record = Record::Shadow(Box::new(kept.shadow.clone()));
            self.persist(record);
            return self.discard_copies(now, id);
        }
        if is_retiring {
            self.bring_shadow(now, id, ShadowState::Retired, detail);
            return self.shadows.forget(id);
        }
        let next = if std::mem::take(&mut kept.shadow.parks) { ShadowState::Parked } else { ShadowState::Wanted };
        self.bring_shadow(now, id, next, detail);
        self.tend_shadow(now, id);
    }

    /// A shadow that nobody knows of, or that should be elsewhere, is told to go.
    pub(super) fn send_stray_away(&mut self, now: Timestamp, host: &HostId, window: &VmWindow) {
        let of = window.shadow.map_or(window.vm, |shadow| shadow.of);
        self.send_away(now, host, window.vm, of, "a shadow");
    }

    /// What belongs to a shadow that nobody knows of is taken away on a host.
    pub(super) fn send_away(&mut self, now: Timestamp, host: &HostId, id: VmId, of: VmId, what: &str) {
        let was_told = self.shadows.strays.get(&id).is_some_and(|(at, _)| now.since(*at) < STRAY_EVERY);
        if was_told || self.is_shadow_held(of, id, host) || !self.makes_shadows() || !self.is_connected(host) {
            return;
        }
        self.shadows.strays.retain(|_, (at, _)| now.since(*at) < STRAY_EVERY * 10);
        self.notice("shadow_stray", format!("host {host} has {what} {id} that should not be there"));
        let order = Action::Shadow(ShadowOrder::Retire);
        let reason = Reason::Shadow { of, cause: ShadowCause::Stray };
        let host = host.clone();
        let planned =
            PlannedAction { host, vm: id, action: order, before: None, reason, along: None, approved_by: None };
        let record = self.issue(now, planned, false);
        self.shadows.strays.insert(id, (now, record));
    }

    fn stray_answered(&mut self, now: Timestamp, host: &HostId, outcome: Outcome, record: CommandRecord) {
        let object = format!("vm {}", record.command.vm);
        self.audit(now, host.as_str(), "outcome", object, format!("{} {}", outcome.id, in_words(&outcome.result)));
        if outcome.result == OutcomeResult::Shadow(ShadowDone::Retired) {
            self.note_no_copies(record.command.vm, host);
        }
        self.persist(Record::Command(CommandRecord { outcome: Some(outcome), unanswered: false, ..record }));
    }
}

fn deadline(record: &CommandRecord) -> Timestamp {
    deadline_from(record.issued, record)
}

/// When an order is given up that was issued then.
pub(super) fn deadline_from(issued: Timestamp, record: &CommandRecord) -> Timestamp {
    let may_take = match &record.command.action {
        Action::Shadow(ShadowOrder::Copy(_)) => COPY_MAX,
        Action::Shadow(ShadowOrder::Start | ShadowOrder::Retire | ShadowOrder::Resize(_)) => START_MAX,
        _ => Duration::ZERO,
    };
    let may_take = may_take + self::may_take(&record.command.action);
    issued + Duration::from_millis(record.command.time_to_live_ms) + may_take + ANSWER_MAX
}

/// An answer for a person.
fn in_words(result: &OutcomeResult) -> String {
    match result {
        OutcomeResult::Described(_) => "described".to_owned(),
        OutcomeResult::Imaged(imaged) => {
            let (count, bytes) = (imaged.disks.len(), imaged.bytes());
            format!("{count} disks copied in {:.1} s, {bytes} bytes", imaged.took_us as f64 / 1e6)
        }
        OutcomeResult::DirtyRate { .. } => "measured".to_owned(),
        OutcomeResult::Shadow(ShadowDone::Copied { took_us, copied_bytes }) => {
            format!("made in {:.1} s, {copied_bytes} bytes copied", *took_us as f64 / 1e6)
        }
        OutcomeResult::Shadow(ShadowDone::Started { took_us }) => format!("started in {:.1} s", *took_us as f64 / 1e6),
        OutcomeResult::Shadow(ShadowDone::Resized { took_us }) => format!("resized in {:.1} s", *took_us as f64 / 1e6),
        OutcomeResult::Shadow(ShadowDone::Paced) => "its pacer has the profile".to_owned(),
        OutcomeResult::Shadow(ShadowDone::Retired) => "nothing is left of it".to_owned(),
        OutcomeResult::Unshadowable(why) => why.to_string(),
        OutcomeResult::Refused(why) => format!("refused: {why}"),
        OutcomeResult::Failed { error, .. } => error.clone(),
        OutcomeResult::DryRun => "dry run: nothing was changed".to_owned(),
        OutcomeResult::Applied { .. }
        | OutcomeResult::Moved(_)
        | OutcomeResult::NotMoved { .. }
        | OutcomeResult::Immovable(_) => "it answered something else".to_owned(),
    }
}
