//! Where a VM goes: which hosts may have it, and which of them is the best.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostFacts, HostId, VmId};

use crate::core::Core;
use crate::fleet::{Host, Vm};
use crate::plan::balance::{Candidate, Load, Room};
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

impl Core {
    /// What a plan looks at.
    pub(in crate::core) fn search(&self, is_drained: bool) -> Search {
        let crosses = self.policy.migrate.across_zones || !self.moves.guards.plans(Guard::Zone);
        Search { is_drained, crosses, waits: false }
    }

    /// The host that is left with the most after taking a VM in, and on which VMs wait the least for a CPU by their own word; rather one that is
    /// known to have the images that the VM's disks are layers on, where these would have to be copied.
    pub(in crate::core) fn find_target(
        &self,
        now: Timestamp,
        from: &HostId,
        candidate: &Candidate<VmId>,
        share_before: f64,
        Search { is_drained, crosses, waits }: Search,
    ) -> Option<(f64, &HostId, &HostFacts)> {
        let guards = self.moves.guards;
        let vm = self.fleet.vms.get(&candidate.vm)?;
        let possible = self.fleet.hosts.iter().filter_map(|(id, host)| {
            let prospect = host.prospect?;
            let room = Room::of(&host.facts, &self.policy.migrate);
            let after = prospect.load.plus(self.landing(vm, vm.window_end));
            let is_open = id != from && host.facts.migration.is_some() && !host.facts.dry_run;
            let is_fresh = !guards.plans(Guard::Fresh) || (host.connected && now <= prospect.fresh_until);
            let is_drained_too = guards.plans(Guard::Draining) && self.moves.draining.contains_key(id);
            let is_held = guards.plans(Guard::Hold) && self.holds.on_host(id).is_some();
            let has_cpu = !guards.plans(Guard::Cpu) || room.holds_cpu(&after);
            let has_memory = !guards.plans(Guard::Memory) || room.holds_memory(&after);
            // A host that cannot give its shadows what is coming has no room for a production; an operator who empties one decides.
            let is_vetoed = !is_drained && self.is_host_starved(now, id);
            let is_good = !is_vetoed && is_open && is_fresh && !is_drained_too && !is_held && has_cpu && has_memory;
            (is_good && !vm.travel.avoids(id, now)).then(|| (room.share(&after), id, host))
        });
        let crowded = |id: &HostId| !waits && guards.plans(Guard::Inflow) && self.is_on_its_way_to(id);
        let worthwhile = |share: f64| {
            is_drained || !guards.plans(Guard::Gain) || share_before - share >= self.policy.migrate.gain_min
        };
        let of_groups = |id: &HostId| {
            (!guards.plans(Guard::Apart) || !self.meets(candidate.vm, vm, id))
                && (!guards.plans(Guard::Together) || !self.parts(candidate.vm, vm, from, id, is_drained))
        };
        let home = self.fleet.hosts.get(from).and_then(|host| host.facts.zone.as_deref());
        let of_zone = |host: &Host| {
            let zone = host.facts.zone.as_deref();
            let meets = || guards.plans(Guard::Zone) && self.meets_in_zone(candidate.vm, vm, zone);
            zone == home || (crosses && !meets())
        };
        let taken = if guards.plans(Guard::ShadowApart) { self.kept_by_shadow(now, candidate.vm) } else { Vec::new() };
        possible
            .filter(|(share, id, host)| worthwhile(*share) && of_zone(host) && !crowded(id) && of_groups(id))
            .filter(|(_, id, _)| !taken.contains(id))
            .min_by(|one, other| {
                let cost = |(share, id, host): &(f64, &HostId, &Host)| {
                    share + self.contention_of(now, host) + self.copying_costs(candidate.vm, vm, id)
                };
                let [one_costs, other_costs] = [one, other].map(cost);
                one_costs.total_cmp(&other_costs).then(one.1.cmp(other.1))
            })
            .map(|(share, id, host)| (share, id, &host.facts))
    }

    /// A zone, in words, that would have had room for a VM of a host for which its own has none.
    pub(super) fn zone_with_room(
        &self,
        now: Timestamp,
        host: &HostId,
        loads: [&Load; 2],
        room: &Room,
        search: Search,
    ) -> Option<String> {
        let zone = &self.fleet.hosts.get(host)?.facts.zone;
        // Most fleets have one.
        self.fleet.hosts.values().find(|other| other.facts.zone != *zone)?;
        let action = self.find_move(now, host, loads, room, Search { crosses: true, ..search })?;
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
