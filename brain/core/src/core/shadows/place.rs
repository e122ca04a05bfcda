//! Where a shadow goes: never to its production's host, nor to where that is going, or would go; rather to another zone, and to where the most
//! is to spare and VMs wait least.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, Means, ShadowSize, VmId};

use super::Core;
use crate::fleet::{Host, Vm};
use crate::plan::balance::{Claim, Room};
use crate::plan::guard::Guard;
use crate::policy::Mode;
use crate::shadow::Shadow;
use crate::shadow::size::{growth, size};

impl Core {
    /// The best host for a shadow, and its size there, or why there is none; `None` where it is not known what it is made from.
    pub(super) fn place_for(&self, now: Timestamp, id: VmId) -> Option<Result<(HostId, ShadowSize), String>> {
        self.place_of(now, &self.shadows.kept.get(&id)?.shadow, None)
    }

    /// Whether it has a place on one host.
    pub(super) fn has_place_on(&self, now: Timestamp, id: VmId, host: &HostId) -> bool {
        let shadow = self.shadows.kept.get(&id).map(|kept| &kept.shadow);
        shadow.and_then(|shadow| self.place_of(now, shadow, Some(host))).is_some_and(|place| place.is_ok())
    }

    /// Whether it would have a place if it did not stand on the copies that there are.
    pub(super) fn has_place_without_copies(&self, now: Timestamp, id: VmId) -> bool {
        let Some(shadow) = self.shadows.kept.get(&id).map(|kept| &kept.shadow) else { return false };
        let is_free = || self.place_of(now, &Shadow { copies: None, ..shadow.clone() }, None);
        shadow.copies.is_some() && is_free().is_some_and(|place| place.is_ok())
    }

    fn place_of(
        &self,
        now: Timestamp,
        shadow: &Shadow,
        only: Option<&HostId>,
    ) -> Option<Result<(HostId, ShadowSize), String>> {
        let size = self.size_of(shadow)?;
        Some(self.find_shadow_place(now, shadow, &size, only).map(|host| (host, size)))
    }

    /// How large a shadow is to be; `None` where it is not known what it is made from.
    pub(super) fn size_of(&self, shadow: &Shadow) -> Option<ShadowSize> {
        let most_cores = self.fleet.vms.get(&shadow.of).and_then(|vm| self.most_cores(vm));
        let blueprint = shadow.blueprint.as_ref()?;
        let size = size(blueprint, most_cores, shadow.peaks, shadow.memory_floor_bytes, &self.policy.shadow);
        Some(size)
    }

    /// CPU that a production may be given at most, whatever its vCPUs, in cores: what its host allows where its quota is planned, else the quota that it
    /// has. `None` where nothing limits it.
    fn most_cores(&self, production: &Vm) -> Option<f64> {
        let host = production.host.as_ref().and_then(|host| self.fleet.hosts.get(host));
        let is_planned = |host: &&Host| host.facts.means.contains(&Means::CpuQuota) && !production.terms.hands_off();
        match host.filter(is_planned) {
            Some(host) => Some(host.facts.cpu_bounds.ceiling_cores),
            None => production.allocation.quota_cores,
        }
    }

    /// The best host for a shadow of a size, where only one counts if that is so.
    ///
    /// # Errors
    /// Why there is none, for a person.
    fn find_shadow_place(
        &self,
        now: Timestamp,
        shadow: &Shadow,
        size: &ShadowSize,
        only: Option<&HostId>,
    ) -> Result<HostId, String> {
        let production = self.fleet.vms.get(&shadow.of).and_then(|vm| vm.host.clone());
        let home = production.ok_or("it is not known where its production is")?;
        let zone_of = |host: &HostId| self.fleet.hosts.get(host).and_then(|host| host.facts.zone.as_ref());
        let zones = [Some(&home), self.destination_of(shadow.of)].map(|host| host.and_then(zone_of));
        let mut refusals: Vec<String> = Vec::new();
        let mut best: Option<(bool, f64, &HostId)> = None;
        let is_apart = |id: &HostId| !self.is_home(shadow.of, id) || !self.moves.guards.plans(Guard::ShadowApart);
        let promised = self.would_go_to(now, shadow.of);
        let counts = |id: &HostId| is_apart(id) && only.is_none_or(|only| only == id);
        for (id, host) in self.fleet.hosts.iter().filter(|(id, _)| counts(id)) {
            let is_avoided = shadow.avoids.iter().any(|(avoided, until)| avoided == id && *until > now);
            let share = if is_avoided {
                Err("it could not be made there lately".to_owned())
            } else if promised == Some(id) {
                Err("its production may have to go there".to_owned())
            } else if let Some(label) =
                self.lacks_label(shadow.of, host).filter(|_| self.moves.guards.plans(Guard::Labels))
            {
                Err(format!("it lacks the label {label}"))
            } else {
                self.takes_copies_of(shadow, id).and_then(|()| self.shadow_room(now, id, host, shadow.id, size))
            };
            match share {
                Ok(share) => {
                    // Another zone first, then the emptier one, then the first by name.
                    let zone = host.facts.zone.as_ref();
                    let is_near = zone.is_some() && zones.contains(&zone);
                    let is_better = best.is_none_or(|(near, other, _)| {
                        (is_near, share).partial_cmp(&(near, other)) == Some(std::cmp::Ordering::Less)
                    });
                    if is_better {
                        best = Some((is_near, share, id));
                    }
                }
                Err(why) => refusals.push(format!("{id}: {why}")),
            }
        }
        refusals.truncate(REFUSALS_TOLD);
        best.map(|(_, _, host)| host.clone()).ok_or_else(|| match refusals.is_empty() {
            true => "there is no other host".to_owned(),
            false => format!("no host has room ({})", refusals.join("; ")),
        })
    }

    /// A label that a production's owner asks of its host, and so of its shadow's: what is labelled may be where its data may be.
    pub(super) fn lacks_label(&self, production: VmId, host: &Host) -> Option<String> {
        self.fleet.vms.get(&production)?.terms.labels.lacking_in(&host.facts.labels)
    }

    /// How full a host would be with a shadow more, the fuller of CPU and memory, and how much VMs wait there: the less the better.
    ///
    /// # Errors
    /// Why it cannot have it, for a person.
    pub(super) fn shadow_room(
        &self,
        now: Timestamp,
        id: &HostId,
        host: &Host,
        shadow: VmId,
        size: &ShadowSize,
    ) -> Result<f64, String> {
        let facts = host.facts.shadows.as_ref().ok_or("it takes no shadows")?;
        let prospect = host.prospect.filter(|prospect| host.connected && now <= prospect.fresh_until);
        let prospect = prospect.ok_or("it has told nothing lately")?;
        if host.facts.dry_run {
            return Err("its agent runs dry".to_owned());
        }
        if self.moves.draining.contains_key(id) {
            return Err("it is being emptied".to_owned());
        }
        if self.holds.on_host(id).is_some() {
            return Err("it is held by an operator".to_owned());
        }
        let mode = self.told_mode_of_host(id).mode;
        if mode != Mode::Auto {
            return Err(format!("its mode is {mode}"));
        }
        if self.is_host_starved(now, id) {
            return Err("a shadow did not get there what is coming".to_owned());
        }
        let others = self.shadows.coming_to(id).filter(|other| other.id != shadow);
        let (mut count, mut cores, mut bytes) = (1, size.cpu_cores, size.memory_bytes);
        // What is there already is in the host's load, but for what it is to grow; what is still to come is not.
        let is_there = host.vms.contains(&shadow);
        let has = self.shadows.kept.get(&shadow).and_then(|kept| kept.shadow.size).filter(|_| is_there);
        let mut load = prospect.load.plus(claim(size, has.as_ref()));
        for other in others {
            count += 1;
            let size = other.size.unwrap_or(*size);
            cores += size.cpu_cores;
            bytes = bytes.saturating_add(size.memory_bytes);
            if !host.vms.contains(&other.id) {
                load = load.plus(claim(&size, None));
            }
        }
        if count > facts.shadows_max {
            return Err(format!("it takes {} shadows", facts.shadows_max));
        }
        let is_beyond = cores > host.facts.capacity_cores * facts.share_max
            || bytes as f64 > host.facts.memory_bytes as f64 * facts.share_max;
        if is_beyond {
            return Err(format!("shadows would have more than {:.0} % of it", facts.share_max * 100.0));
        }
        let room = Room::of(&host.facts, &self.policy.migrate);
        if !room.holds(&load) {
            return Err("its VMs need it".to_owned());
        }
        Ok(room.share(&load) + self.contention_of(now, host))
    }
}

/// Hosts whose refusals a person is told.
const REFUSALS_TOLD: usize = 8;

/// What a shadow takes at most, beyond what it has.
fn claim(size: &ShadowSize, has: Option<&ShadowSize>) -> Claim {
    let (cores, memory_bytes) = has.map_or((size.cpu_cores, size.memory_bytes), |has| growth(has, size));
    Claim { median_cores: cores, high_cores: cores, memory_bytes }
}
