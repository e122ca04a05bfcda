//! Copies of disks that have no base: made by the production's host where policy or owner allow it, before a place for the shadow is taken; they
//! belong to the shadow, go with it wherever that goes, and are deleted where they were made when it ends. A host that does not see them has them sent:
//! then they are for it alone, it deletes them when the shadow leaves, and they are made anew for the next one.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Base, Blueprint, DiskBlueprint, HostId, Imaged, Imaging, READING_BYTES_PER_S, Receiving, RefusedCommand,
    ShadowOrder, Unshadowable, VmId, VmState,
};

use super::{Kept, WAIT};
use crate::core::{ACTOR, Core};
use crate::io::{CommandRecord, Record};
use crate::plan::guard::Guard;
use crate::shadow::{CopiesMade, Shadow, ShadowCause, ShadowState};

/// Whose disks could not be copied again and again is tried again after this at the latest.
const PARKED_MAX: Duration = Duration::from_hours(24);

impl Core {
    /// Whether the disks of a production may be copied, by its owner's word or else by policy's.
    fn may_copy(&self, production: VmId) -> bool {
        self.fleet
            .vms
            .get(&production)
            .is_some_and(|vm| vm.terms.copy_disks.unwrap_or(self.policy.shadow.copy_disks) && !vm.terms.hands_off())
    }

    /// Whether a shadow has copies that it must not have, or not any more. Of a production that nobody tells of that is not known.
    pub(super) fn copies_have_to_go(&self, id: VmId) -> bool {
        let Some(shadow) = self.shadows.kept.get(&id).map(|kept| &kept.shadow) else { return false };
        let Some(copies) = &shadow.copies else { return false };
        let is_forbidden = self.is_anywhere(shadow.of) && !self.may_copy(shadow.of);
        // Of some that were to be sent nobody knows how much is where.
        is_forbidden || copies.is_spoilt && copies.to.is_some()
    }

    /// Whether a host can have a shadow on the copies that there are, or are to be.
    ///
    /// # Errors
    /// Why it cannot, for a person.
    pub(super) fn takes_copies_of(&self, shadow: &Shadow, id: &HostId) -> Result<(), String> {
        if shadow.blueprint.as_ref().is_none_or(|blueprint| blueprint.copies().next().is_none()) {
            return Ok(());
        }
        match &shadow.copies {
            Some(copies) if copies.is_sent() && copies.on != *id => {
                Err(format!("the copies of its production's disks were sent to {}", copies.on))
            }
            Some(copies) if !copies.is_sent() && self.receiving(id).is_some() => {
                Err("it takes no copies but those that are sent to it".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Whether a host's agent makes copies, and deletes them.
    fn makes_copies(&self, host: &HostId) -> bool {
        self.fleet.hosts.get(host).is_some_and(|host| host.facts.copies.made.is_some())
    }

    /// Where a host takes copies that are sent to it, if it does.
    fn receiving(&self, host: &HostId) -> Option<&Receiving> {
        self.fleet.hosts.get(host)?.receives()
    }

    /// Whether copies are on their way to a host where the shadow could not stay.
    pub(super) fn are_sent_in_vain(&self, id: VmId) -> bool {
        let Some(shadow) = self.shadows.kept.get(&id).map(|kept| &kept.shadow) else { return false };
        let to = shadow.copies.as_ref().and_then(|copies| copies.to.as_ref());
        let Some(to) = to.filter(|_| shadow.state == ShadowState::Imaging) else { return false };
        let meets = self.is_home(shadow.of, to) && self.moves.guards.plans(Guard::ShadowApart);
        meets || self.moves.draining.contains_key(to)
    }

    /// Which host has to delete copies before a shadow is made, if it waits for that.
    pub(super) fn waits_for_deletion(&self, id: VmId) -> Option<&HostId> {
        let shadow = &self.shadows.kept.get(&id)?.shadow;
        let copies = shadow.copies.as_ref()?;
        let home = self.fleet.vms.get(&shadow.of).and_then(|vm| vm.host.as_ref());
        let waits = match shadow.state {
            ShadowState::Imaging => copies.is_spoilt || home != Some(&copies.on) || self.copies_have_to_go(id),
            ShadowState::Wanted | ShadowState::Parked => self.copies_have_to_go(id),
            _ => false,
        };
        waits.then_some(&copies.on)
    }

    /// What a shadow is made from was told: disks that have no base keep the copies that were made where the production was before, are to be
    /// copied, or may not be.
    pub(super) fn take_blueprint(&mut self, id: VmId, mut blueprint: Blueprint) {
        let Some(shadow) = self.shadows.kept.get(&id).map(|kept| &kept.shadow) else { return };
        blueprint.memory_bytes = self.most_memory_bytes(shadow.of, &blueprint);
        let may_copy = self.may_copy(shadow.of);
        let home = self.fleet.vms.get(&shadow.of).and_then(|vm| vm.host.as_ref());
        // Whether those that were made where it still is are whole its host is asked.
        let is_elsewhere = shadow.copies.as_ref().is_some_and(|copies| !copies.is_spoilt && Some(&copies.on) != home);
        let earlier = shadow.blueprint.as_ref().filter(|_| is_elsewhere);
        for disk in &mut blueprint.disks {
            if matches!(disk.base, Base::Copied(_)) {
                // Which copies there are is told when they were made, and by nobody else.
                disk.base = Base::None;
            }
            if disk.base != Base::Copyable {
                continue;
            }
            let is_same = |other: &&DiskBlueprint| other.device == disk.device && other.size_bytes == disk.size_bytes;
            let copied = earlier.and_then(|earlier| earlier.disks.iter().find(is_same)).map(|other| &other.base);
            match copied {
                _ if !may_copy => disk.base = Base::None,
                Some(base @ Base::Copied(_)) => disk.base = base.clone(),
                _ => {}
            }
        }
        if let Some(kept) = self.shadows.kept.get_mut(&id) {
            kept.shadow.blueprint = Some(blueprint);
        }
    }

    /// Has the production's host copy its disks, and send them to its shadow's where that takes them so: one VM's at a time on each host, and none of a
    /// VM that is to be moved.
    pub(super) fn order_image(&mut self, now: Timestamp, id: VmId) {
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        let of = kept.shadow.of;
        let running = self.fleet.vms.get(&of).filter(|vm| vm.state == VmState::Running);
        let Some(home) = running.and_then(|vm| vm.host.clone()) else { return self.shadows.wake(id, now + WAIT) };
        if !self.may_copy(of) {
            self.bring_shadow(now, id, ShadowState::Wanted, "its production's disks may not be copied".to_owned());
            return self.tend_shadow(now, id);
        }
        let is_copying = |other: &Kept| {
            other.flight.as_ref().is_some_and(|flight| {
                flight.record.host == home && matches!(flight.record.command.action, Action::Image(_))
            })
        };
        if self.shadows.kept.values().any(is_copying) || self.destination_of(of).is_some() {
            return self.shadows.wake(id, now + WAIT);
        }
        if kept.shadow.copies.as_ref().is_some_and(|copies| copies.is_spoilt || copies.on != home) {
            return self.discard_copies(now, id);
        }
        // Where they are on their way already they are gone on with.
        let begun = kept.shadow.copies.as_ref().and_then(|copies| copies.to.clone());
        let place = match begun.filter(|to| self.has_place_on(now, id, to)) {
            Some(to) => to,
            None => match self.place_for(now, id) {
                Some(Ok((host, _))) => host,
                Some(Err(_)) if self.is_settling(now) => return self.shadows.wake(id, now + WAIT),
                Some(Err(why)) => return self.park_shadow(now, id, &why),
                None => return,
            },
        };
        let send_to = self.receiving(&place).cloned();
        let to = send_to.as_ref().map(|_| place);
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        if let Some(why) = self.takes_too_long(&kept.shadow, send_to.is_some()) {
            return self.park_shadow(now, id, &why);
        }
        match &kept.shadow.copies {
            Some(copies) if copies.to != to => return self.discard_copies(now, id),
            Some(_) => {}
            // What it does not make it cannot delete.
            None if !self.makes_copies(&home) => {
                return self.park_shadow(now, id, &RefusedCommand::CopiesNotAllowed.to_string());
            }
            None => self.note_copies(id, Some(CopiesMade { on: home.clone(), to, is_spoilt: false })),
        }
        let policy = &self.policy.shadow;
        let imaging = Imaging {
            shadow: id,
            bandwidth_bytes_per_s: Some(policy.copy_bytes_per_s_max).filter(|most| *most > 0),
            timeout_ms: policy.copy_timeout_ms,
            send_to,
        };
        self.give(now, id, of, home, Action::Image(imaging), ShadowCause::Wanted, false);
    }

    /// The host that a shadow's copies were to be sent to, if they were, is not tried again soon: whether it is to blame the sender cannot tell. Returns
    /// whether there is one.
    pub(super) fn avoid_receiver(&mut self, now: Timestamp, id: VmId) -> bool {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return false };
        let to = kept.shadow.copies.as_ref().and_then(|copies| copies.to.clone());
        to.map(|to| kept.avoid_host(now, to)).is_some()
    }

    /// A copy of its disks came to nothing. Its production's disks may have been read for that: they are not again soon.
    pub(super) fn copy_failed(&mut self, now: Timestamp, id: VmId, why: &str) {
        if self.shadows.kept.get(&id).and_then(|kept| kept.shadow.copies.as_ref()).is_some_and(|it| it.to.is_some()) {
            self.spoil_copies(id);
        }
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.shadow.copy_failures = kept.shadow.copy_failures.saturating_add(1);
        match kept.shadow.state {
            ShadowState::Imaging => self.park_shadow(now, id, why),
            _ => self.shadow_failed(now, id, why),
        }
    }

    /// A shadow was not made, or did not run, on copies that were sent to its host, which go with it from there: its production's disks would be read
    /// anew for the next try, so that waits as after a copy that failed. Says so, to be put behind why it leaves; of other shadows nothing.
    pub(super) fn lose_sent_copies(&mut self, id: VmId) -> String {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return String::new() };
        if !kept.shadow.copies.as_ref().is_some_and(CopiesMade::is_sent) {
            return String::new();
        }
        kept.shadow.copy_failures = kept.shadow.copy_failures.saturating_add(1);
        kept.shadow.parks = true;
        let parked = self.shadows.kept.get(&id).map_or(Duration::ZERO, |kept| self.parked_for(&kept.shadow));
        format!("; its production's disks have to be read anew for that, in {} s at the earliest", parked.as_secs())
    }

    /// How long a shadow is parked: twice as long with each copy in a row that failed, or was sent in vain.
    pub(in crate::core) fn parked_for(&self, shadow: &Shadow) -> Duration {
        let cool_down = Duration::from_millis(self.policy.shadow.cool_down_ms);
        cool_down.saturating_mul(1 << shadow.copy_failures.saturating_sub(1).min(31)).min(PARKED_MAX.max(cool_down))
    }

    /// Why a shadow's disks cannot be copied as fast as policy has them read, and the copies read once for their checksums and sent, all in time, if they
    /// cannot.
    fn takes_too_long(&self, shadow: &Shadow, are_sent: bool) -> Option<String> {
        let (speed, timeout_s) = (self.policy.shadow.copy_bytes_per_s_max, self.policy.shadow.copy_timeout_ms / 1000);
        let disks = shadow.blueprint.iter().flat_map(|blueprint| &blueprint.disks);
        let bytes = disks
            .filter(|disk| disk.base == Base::Copyable)
            .fold(0, |sum: u64, disk| sum.saturating_add(disk.size_bytes));
        // How long it takes without a limit nobody knows.
        let once_s = if speed > 0 { bytes.div_ceil(speed) } else { 0 };
        let copying_s = once_s.saturating_mul(if are_sent { 2 } else { 1 });
        let reading_s = bytes.div_ceil(READING_BYTES_PER_S);
        let takes_s = copying_s.saturating_add(reading_s);
        let what = if are_sent { "copy its disks and send them" } else { "copy its disks" };
        (takes_s > timeout_s).then(|| {
            format!(
                "to {what}, {bytes} bytes, takes {takes_s} s ({copying_s} s at policy.shadow.copy_bytes_per_s_max, and up to {reading_s} s to read the copies \
                for their checksums), and policy.shadow.copy_timeout_ms gives {timeout_s} s"
            )
        })
    }

    /// Has the host that made a shadow's copies delete them. The shadow is nowhere by now.
    pub(super) fn discard_copies(&mut self, now: Timestamp, id: VmId) {
        let copies = self.shadows.kept.get(&id).and_then(|kept| kept.shadow.copies.clone());
        if let Some(CopiesMade { on, to, .. }) = copies {
            // Where their maker is away, what it has sent by now goes all the same.
            if let Some(to) =
                to.filter(|to| !self.is_connected(&on) && self.can_delete_sent(to) && self.is_connected(to))
            {
                return self.give(now, id, id, to, Action::Shadow(ShadowOrder::Retire), ShadowCause::CopiesGo, false);
            }
            if self.is_connected(&on) && !self.can_delete_copies(id) {
                self.note_shadow(
                    id,
                    &format!("copies of its production's disks on host {on} are not deleted: its agent's configuration names no place for them any more"),
                );
                return self.shadows.wake(id, now + WAIT);
            }
            if self.waits_for_deletion(id).is_some() && !self.is_connected(&on) {
                self.note_shadow(
                    id,
                    &format!("host {on}, which is away, has to delete copies of its production's disks"),
                );
            }
            self.give(now, id, id, on, Action::Shadow(ShadowOrder::Retire), ShadowCause::CopiesGo, false);
        }
    }

    /// Whether the agent of the host that has a shadow's copies knows where they are. One whose configuration names no place for them any more deletes
    /// nothing, whatever it answers.
    fn can_delete_copies(&self, id: VmId) -> bool {
        let copies = self.shadows.kept.get(&id).and_then(|kept| kept.shadow.copies.as_ref());
        copies.is_some_and(|copies| match copies.is_sent() {
            true => self.can_delete_sent(&copies.on),
            false => self.makes_copies(&copies.on),
        })
    }

    fn can_delete_sent(&self, to: &HostId) -> bool {
        self.fleet.hosts.get(to).is_some_and(|host| host.facts.copies.received.is_some())
    }

    /// An order to copy its disks or to make it is not waited for any more: it is told to go. Returns whether one was on its way.
    pub(super) fn forget_making(&mut self, id: VmId) -> bool {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return false };
        let Some(flight) = kept.flight.take_if(|flight| flight.makes()) else { return false };
        self.shadows.orders.remove(&flight.record.command.id);
        self.persist(Record::Command(CommandRecord { unanswered: true, ..flight.record }));
        true
    }

    /// The production's disks are copied.
    pub(super) fn imaged(&mut self, now: Timestamp, id: VmId, host: &HostId, imaged: Imaged) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let disks = kept.shadow.blueprint.as_ref().map_or(&[][..], |blueprint| &blueprint.disks);
        if let Err(why) = imaged.check(disks) {
            self.spoil_copies(id);
            return self.copy_failed(now, id, &format!("host {host}: {why}"));
        }
        kept.shadow.failures = 0;
        let (of, state) = (kept.shadow.of, kept.shadow.state);
        let to = kept.shadow.copies.as_ref().and_then(|copies| copies.to.clone());
        let place = to.as_ref().map_or_else(String::new, |to| format!("host {to}: "));
        let mut told = Vec::new();
        for disk in kept.shadow.blueprint.iter_mut().flat_map(|blueprint| &mut blueprint.disks) {
            let copy = imaged.disks.iter().find(|(device, _)| *device == disk.device).map(|(_, copy)| copy);
            if let (Base::Copyable, Some(copy)) = (&disk.base, copy) {
                told.push(format!(
                    "{} to {place}{}, {} bytes, SHA-256 {}",
                    disk.device, copy.path, copy.bytes, copy.sha256
                ));
                disk.base = Base::Copied(copy.clone());
            }
        }
        let is_all = !takes_copies(kept.shadow.blueprint.as_ref());
        self.audit(
            now,
            host.as_str(),
            "shadow_copied",
            format!("vm {of}"),
            format!("shadow {id}: {}", told.join("; ")),
        );
        if !is_all {
            self.spoil_copies(id);
            return self.copy_failed(now, id, "it has other disks than were copied");
        }
        // Of what was sent that is known once a shadow runs on it.
        if to.is_none()
            && let Some(kept) = self.shadows.kept.get_mut(&id)
        {
            kept.shadow.copy_failures = 0;
        }
        if let Some(to) = to {
            let text = format!("shadow {id}: host {host} has deleted its own copies, which host {to} has now");
            self.note_copies(id, Some(CopiesMade { on: to.clone(), to: Some(to), is_spoilt: false }));
            self.audit(now, host.as_str(), "shadow_copies_deleted", format!("vm {of}"), text);
        }
        match state {
            ShadowState::Imaging => self.place_shadow(now, id),
            _ => self.tend_shadow(now, id),
        }
    }

    /// Nothing is left of a shadow on a host, copies included.
    pub(super) fn copies_gone(&mut self, now: Timestamp, id: VmId, host: &HostId) {
        self.note_no_copies(id, host);
        let Some(kept) = self.shadows.kept.get(&id) else { return };
        let Some(copies) = kept.shadow.copies.clone() else { return };
        if copies.on != *host {
            if copies.to.as_ref() == Some(host) && self.can_delete_sent(host) {
                let of = kept.shadow.of;
                self.note_copies(id, Some(CopiesMade { to: None, is_spoilt: true, ..copies }));
                self.audit_deletion(now, id, of, host);
            }
            return;
        }
        if !self.can_delete_copies(id) {
            return;
        }
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        for disk in kept.shadow.blueprint.iter_mut().flat_map(|blueprint| &mut blueprint.disks) {
            if matches!(disk.base, Base::Copied(_)) {
                disk.base = Base::Copyable;
            }
        }
        let of = kept.shadow.of;
        // What was begun there where they were to be sent goes next.
        let rest = kept.shadow.copies.take().and_then(|copies| copies.to).filter(|to| to != host);
        self.note_copies(id, rest.map(|to| CopiesMade { on: to.clone(), to: Some(to), is_spoilt: true }));
        self.audit_deletion(now, id, of, host);
    }

    fn audit_deletion(&mut self, now: Timestamp, id: VmId, of: VmId, host: &HostId) {
        let text = format!("shadow {id}: host {host} has none of the copies of its production's disks any more");
        self.audit(now, ACTOR, "shadow_copies_deleted", format!("vm {of}"), text);
    }

    /// A host refused to make a shadow: its copies may be what is wrong. Whether those that were made where the production is are there its host is
    /// asked before it is made elsewhere.
    pub(super) fn judge_copies(&mut self, id: VmId, why: &Unshadowable) {
        let Some(shadow) = self.shadows.kept.get(&id).map(|kept| &kept.shadow) else { return };
        let home = self.fleet.vms.get(&shadow.of).and_then(|vm| vm.host.as_ref());
        let is_elsewhere = shadow.copies.as_ref().is_some_and(|copies| Some(&copies.on) != home);
        let is_copy =
            |path: &String| shadow.blueprint.iter().flat_map(Blueprint::copies).any(|copy| copy.path == *path);
        match why {
            Unshadowable::Damaged(_) => self.spoil_copies(id),
            Unshadowable::Missing(path) if is_elsewhere && is_copy(path) => self.spoil_copies(id),
            _ => {}
        }
    }

    pub(super) fn spoil_copies(&mut self, id: VmId) {
        let copies = self.shadows.kept.get(&id).and_then(|kept| kept.shadow.copies.clone());
        if let Some(copies) = copies {
            self.note_copies(id, Some(CopiesMade { is_spoilt: true, ..copies }));
        }
    }

    fn note_copies(&mut self, id: VmId, copies: Option<CopiesMade>) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.shadow.copies = copies;
        let record = Record::Shadow(Box::new(kept.shadow.clone()));
        self.persist(record);
    }

    /// A host told when it connected that it keeps copies for shadows that nobody knows of, or that have theirs elsewhere: it is told to delete
    /// them, until it has.
    pub(in crate::core) fn send_stray_copies_away(&mut self, now: Timestamp, host: &HostId) {
        let Some(entry) = self.fleet.hosts.get(host) else { return };
        let is_known = |id: &VmId| {
            self.shadows.kept.get(id).map(|kept| &kept.shadow).is_some_and(|shadow| {
                let copies = shadow.copies.iter().flat_map(|copies| [Some(&copies.on), copies.to.as_ref()]);
                copies.chain([shadow.host.as_ref()]).flatten().any(|on| on == host)
            })
        };
        let strays: Vec<VmId> = entry.facts.copies.all().filter(|id| !is_known(id)).collect();
        for id in strays {
            self.send_away(now, host, id, id, "copies of disks for a shadow");
        }
    }

    /// A host has nothing of a shadow any more, whatever it told when it connected.
    pub(super) fn note_no_copies(&mut self, id: VmId, host: &HostId) {
        if let Some(host) = self.fleet.hosts.get_mut(host) {
            host.facts.copies.forget(id);
        }
    }
}

/// Whether disks have to be copied before it can be made.
pub(super) fn takes_copies(blueprint: Option<&Blueprint>) -> bool {
    blueprint.is_some_and(|blueprint| blueprint.disks.iter().any(|disk| disk.base == Base::Copyable))
}

/// How long an order may take beyond its time to live.
pub(super) fn may_take(action: &Action) -> Duration {
    match action {
        Action::Image(imaging) => Duration::from_millis(imaging.timeout_ms),
        Action::Shadow(ShadowOrder::Copy(spec)) => Duration::from_millis(spec.blueprint.reading_ms()),
        _ => Duration::ZERO,
    }
}
