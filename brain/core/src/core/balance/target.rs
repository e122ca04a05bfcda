//! Where a VM goes: which hosts may have it, and which of them is the best.

use std::collections::BTreeMap;
use std::fmt;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostFacts, HostId, VmId};
use thiserror::Error;

use super::relief::Strain;
use crate::core::Core;
use crate::fleet::{Host, Vm};
use crate::plan::balance::{Claim, Room};
use crate::plan::guard::Guard;

/// Which hosts are looked at.
#[derive(Clone, Copy, Debug)]
pub(in crate::core) struct Search {
    /// For a host that is emptied: its VMs go even if that gains nothing, and one after the other.
    pub(in crate::core) is_drained: bool,
    /// Hosts of other zones as well.
    pub(in crate::core) crosses: bool,
    /// Hosts as well to which another VM is on its way: there is time.
    pub(in crate::core) waits: bool,
}

/// Why a host cannot have a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub(in crate::core) enum Closed {
    #[error("takes no part in migrations, or runs dry")]
    NotConfigured,
    #[error("is away, or told nothing lately")]
    Silent,
    #[error("is being emptied")]
    Draining,
    #[error("is held by an operator")]
    Held,
    #[error("has a more cautious mode")]
    Mode,
    #[error("is in another zone")]
    Zone,
    #[error("lacks a label that its owner asks for")]
    Labels,
    #[error("has too little CPU")]
    Cpu,
    #[error("has too little memory")]
    Memory,
    #[error("cannot give its shadows what is coming")]
    Starved,
    #[error("could not take it in within the last hour")]
    Avoided,
    #[error("would be hardly less full (policy.migrate.gain_min)")]
    Gain,
    #[error("has another VM coming")]
    Crowded,
    #[error("has one in its zone that it belongs apart from")]
    ZoneApart,
    #[error("has one that it belongs apart from")]
    Apart,
    #[error("would part it from one that it belongs with")]
    Together,
    #[error("has its shadow, which stays")]
    Shadow,
}

/// How many hosts cannot have a VM, by the reason. `Display` tells a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Error)]
pub(in crate::core) struct NoTarget(BTreeMap<Closed, usize>);

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there is no other host");
        }
        f.write_str("no other host can have it")?;
        let mut separator = ": ";
        for (why, hosts) in &self.0 {
            write!(f, "{separator}{hosts} {why}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// A VM that looks for a host.
struct Traveller<'a> {
    id: VmId,
    vm: &'a Vm,
    from: &'a HostId,
    /// What it takes where it arrives.
    claim: Claim,
    /// How full its host is with it.
    share_before: f64,
    /// The zone of its host.
    home: Option<&'a str>,
    /// Hosts that its shadow keeps it from.
    taken: Vec<&'a HostId>,
    search: Search,
}

impl Core {
    /// What a plan looks at.
    pub(in crate::core) fn search(&self, is_drained: bool) -> Search {
        let crosses = self.policy.migrate.across_zones || !self.moves.guards.plans(Guard::Zone);
        Search { is_drained, crosses, waits: false }
    }

    /// The host that is left with the most after taking a VM in, and on which VMs wait the least for CPU and disks by their own word; rather one that is
    /// known to have the images that the VM's disks are layers on, where these would have to be copied.
    pub(in crate::core) fn find_target(
        &self,
        now: Timestamp,
        from: &HostId,
        id: VmId,
        share_before: f64,
        search: Search,
    ) -> Option<(f64, &HostId, &HostFacts)> {
        let traveller = self.traveller(now, from, id, share_before, search)?;
        let others = self.fleet.hosts.iter().filter(|(id, _)| *id != from);
        let possible = others.filter_map(|(id, host)| Some((self.takes(now, &traveller, id, host).ok()?, id, host)));
        possible
            .min_by(|one, other| {
                let cost = |(share, host_id, host): &(f64, &HostId, &Host)| {
                    share + self.contention_of(now, host) + self.copying_costs(id, traveller.vm, host_id)
                };
                let [one_costs, other_costs] = [one, other].map(cost);
                one_costs.total_cmp(&other_costs).then(one.1.cmp(other.1))
            })
            .map(|(share, id, host)| (share, id, &host.facts))
    }

    /// Why no other host can have a VM.
    pub(super) fn no_target(
        &self,
        now: Timestamp,
        from: &HostId,
        id: VmId,
        share_before: f64,
        search: Search,
    ) -> NoTarget {
        let mut closed = BTreeMap::new();
        let Some(traveller) = self.traveller(now, from, id, share_before, search) else { return NoTarget(closed) };
        for (id, host) in self.fleet.hosts.iter().filter(|(id, _)| *id != from) {
            if let Err(why) = self.takes(now, &traveller, id, host) {
                *closed.entry(why).or_insert(0) += 1;
            }
        }
        NoTarget(closed)
    }

    fn traveller<'a>(
        &'a self,
        now: Timestamp,
        from: &'a HostId,
        id: VmId,
        share_before: f64,
        search: Search,
    ) -> Option<Traveller<'a>> {
        let vm = self.fleet.vms.get(&id)?;
        let is_kept = self.moves.guards.plans(Guard::ShadowApart);
        let taken = if is_kept { self.kept_by_shadow(now, id) } else { Vec::new() };
        let home = self.fleet.hosts.get(from).and_then(|host| host.facts.zone.as_deref());
        let claim = self.landing(vm, vm.window_end);
        Some(Traveller { id, vm, from, claim, share_before, home, taken, search })
    }

    /// Whether a host can have a VM, and how full it would be then.
    fn takes(&self, now: Timestamp, of: &Traveller<'_>, id: &HostId, host: &Host) -> Result<f64, Closed> {
        let guards = self.moves.guards;
        let Traveller { vm, search: Search { is_drained, crosses, waits }, .. } = *of;
        let check = |is_good: bool, why| if is_good { Ok(()) } else { Err(why) };
        check(host.facts.migration.is_some() && !host.facts.dry_run, Closed::NotConfigured)?;
        let prospect = host.prospect.ok_or(Closed::Silent)?;
        let is_fresh = host.connected && now <= prospect.fresh_until;
        check(is_fresh || !guards.plans(Guard::Fresh), Closed::Silent)?;
        check(!guards.plans(Guard::Draining) || !self.moves.draining.contains_key(id), Closed::Draining)?;
        check(!guards.plans(Guard::Hold) || self.holds.on_host(id).is_none(), Closed::Held)?;
        check(self.mode_of_host(id) >= self.mode_of(of.id), Closed::Mode)?;
        let zone = host.facts.zone.as_deref();
        check(zone == of.home || crosses, Closed::Zone)?;
        let lacks = || vm.terms.labels.lacking_in(&host.facts.labels);
        check(!guards.plans(Guard::Labels) || lacks().is_none(), Closed::Labels)?;
        let (room, after) = (Room::of(&host.facts, &self.policy.migrate), prospect.load.plus(of.claim));
        check(!guards.plans(Guard::Cpu) || room.holds_cpu(&after), Closed::Cpu)?;
        check(!guards.plans(Guard::Memory) || room.holds_memory(&after), Closed::Memory)?;
        // A host that cannot give its shadows what is coming has no room for a production; an operator who empties one decides.
        check(is_drained || !self.is_host_starved(now, id), Closed::Starved)?;
        check(!vm.travel.avoids(id, now), Closed::Avoided)?;
        let share = room.share(&after);
        let gains = of.share_before - share >= self.policy.migrate.gain_min;
        check(is_drained || !guards.plans(Guard::Gain) || gains, Closed::Gain)?;
        check(waits || !guards.plans(Guard::Inflow) || !self.is_on_its_way_to(id), Closed::Crowded)?;
        let meets_in_zone = || guards.plans(Guard::Zone) && self.meets_in_zone(of.id, vm, zone);
        check(zone == of.home || !meets_in_zone(), Closed::ZoneApart)?;
        check(!guards.plans(Guard::Apart) || !self.meets(of.id, vm, id), Closed::Apart)?;
        let parts = || self.parts(of.id, vm, of.from, id, is_drained);
        check(!guards.plans(Guard::Together) || !parts(), Closed::Together)?;
        check(!of.taken.contains(&id), Closed::Shadow)?;
        Ok(share)
    }

    /// A zone, in words, that would have had room for a VM of a host for which its own has none.
    pub(super) fn zone_with_room(
        &self,
        now: Timestamp,
        host: &HostId,
        strain: &Strain,
        search: Search,
    ) -> Option<String> {
        let zone = &self.fleet.hosts.get(host)?.facts.zone;
        // Most fleets have one.
        self.fleet.hosts.values().find(|other| other.facts.zone != *zone)?;
        let action = self.find_move(now, host, strain, Search { crosses: true, ..search })?;
        let Action::Migrate(migration) = &action.action else { return None };
        Some(zone_in_words(self.fleet.hosts.get(&migration.to)?))
    }

    pub(super) fn is_on_its_way_to(&self, host: &HostId) -> bool {
        let arrives = self.fleet.hosts.get(host).is_some_and(|host| !host.arriving.is_empty());
        arrives || self.moves.under_way.values().any(|way| way.to == *host)
    }

    /// Whether a VM would meet one that it belongs apart from.
    pub(super) fn meets(&self, id: VmId, vm: &Vm, on: &HostId) -> bool {
        let Some(group) = &vm.terms.apart else { return false };
        let there = self.fleet.hosts.get(on).into_iter().flat_map(|host| &host.vms);
        let coming = self.moves.under_way.iter().filter(|(_, way)| way.to == *on).map(|(vm, _)| vm);
        there.chain(coming).any(|&other| {
            other != id && self.fleet.vms.get(&other).is_some_and(|other| other.terms.apart.as_ref() == Some(group))
        })
    }

    /// Whether a VM would meet one in a zone that it belongs in another zone than.
    fn meets_in_zone(&self, id: VmId, vm: &Vm, zone: Option<&str>) -> bool {
        let Some(group) = &vm.terms.apart_zones else { return false };
        let mut hosts = self.fleet.hosts.iter().filter(|(_, host)| host.facts.zone.as_deref() == zone);
        hosts.any(|(on, host)| {
            let coming = self.moves.under_way.iter().filter(|(_, way)| way.to == *on).map(|(vm, _)| vm);
            let mut all = host.vms.iter().chain(&host.arriving).chain(coming);
            all.any(|other| {
                let terms = self.fleet.vms.get(other).map(|other| &other.terms);
                *other != id && terms.is_some_and(|terms| terms.apart_zones.as_ref() == Some(group))
            })
        })
    }

    /// Whether a VM would leave one that it belongs with. From a host that is emptied they may follow each other.
    pub(super) fn parts(&self, id: VmId, vm: &Vm, from: &HostId, to: &HostId, is_drained: bool) -> bool {
        let Some(group) = &vm.terms.together else { return false };
        self.fleet.present().any(|(other, member, at)| {
            let stays_with_it = at == to || (is_drained && at == from);
            other != id && member.terms.together.as_ref() == Some(group) && !stays_with_it
        })
    }
}

/// A host's zone, for a person.
pub(super) fn zone_in_words(host: &Host) -> String {
    host.facts
        .zone
        .as_ref()
        .map_or_else(|| "the zone of hosts that name none".to_owned(), |zone| format!("zone {zone}"))
}
