//! What is done about a host that is too full, or emptied: what its VMs do not need is taken back, and one of them goes for what is left.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, Means, Migration, VmId};

use super::target::Search;
use crate::core::planning::balloon_sizing;
use crate::core::{ACTOR, Core};
use crate::plan::balance::{Candidate, Claim, Load, Room, order};
use crate::plan::guard::Guard;
use crate::plan::haul::Haul;
use crate::plan::{PlannedAction, Reason, Relief};
use crate::policy::Mode;

/// Candidates tried for one host at one report: the others are not cheaper, and there is a next report.
const CANDIDATES_MAX: usize = 64;

/// What a host's VMs will take and what it has for them, once they have given back what they are going to.
#[derive(Clone, Debug)]
pub(in crate::core) struct Strain {
    pub(in crate::core) load: Load,
    /// As far as it is live demand, or forecasts that may be acted on.
    pub(in crate::core) proven: Load,
    pub(in crate::core) room: Room,
    /// What each VM is going to give back of its memory, in bytes.
    pub(in crate::core) gives_back: BTreeMap<VmId, u64>,
}

impl Strain {
    /// Of a host whose VMs give nothing back.
    pub(in crate::core) fn of(load: Load, room: Room) -> Self {
        Self { load, proven: load, room, gives_back: BTreeMap::new() }
    }

    fn gives_back_bytes(&self) -> u64 {
        self.gives_back.values().sum()
    }

    /// What a VM's going takes off it.
    fn claim(&self, id: VmId, claim: Claim) -> Claim {
        let gives_back = self.gives_back.get(&id).copied().unwrap_or(0);
        Claim { memory_bytes: claim.memory_bytes.saturating_sub(gives_back), ..claim }
    }
}

impl Core {
    /// Plans a move from a host that is emptied, or has been too full for long enough.
    pub(super) fn relieve(&mut self, now: Timestamp, host: &HostId, strain: &Strain, full_rounds: u32) {
        let is_drained = self.moves.draining.contains_key(host);
        let mode = self.acting(self.move_mode_of_host(host));
        let is_proposed = self.confirm_move(now, host);
        if mode == Mode::Observe || (mode != Mode::Auto && is_proposed) || !(is_drained || full_rounds > 0) {
            return;
        }
        // Sizes come first.
        if !is_drained && strain.room.holds(&strain.proven) {
            return;
        }
        // By the time that something may be done, what it takes is known.
        let is_weighed = self.weigh(now, host, strain, is_drained, Duration::ZERO);
        let rounds = if self.moves.guards.plans(Guard::Rounds) { self.policy.migrate.rounds } else { 1 };
        let is_due = is_drained || (full_rounds >= rounds && !self.is_closed(now));
        if !is_due || !is_weighed || self.has_to_wait(now, host) {
            return;
        }
        let search = self.search(is_drained);
        match self.find_move(now, host, strain, search) {
            Some(action) => {
                if let Some(entry) = self.fleet.hosts.get_mut(host) {
                    entry.stuck = None;
                    entry.prospect.iter_mut().for_each(|prospect| prospect.stuck_since = None);
                }
                match self.acting(self.move_mode_of(action.vm)) {
                    Mode::Auto => self.send(now, vec![action]),
                    // Of one host one move waits for an operator.
                    _ if is_proposed => {}
                    Mode::Approve => self.propose(now, vec![action]),
                    _ => self.recommend(now, vec![action]),
                }
            }
            None if is_proposed => {}
            None => {
                let beyond = if search.crosses { None } else { self.zone_with_room(now, host, strain, search) };
                self.tell_stuck(now, host, strain, search, beyond.as_deref());
                if !is_drained {
                    self.note_stuck(now, host, beyond.is_some());
                }
            }
        }
    }

    /// What each of a host's VMs is going to give back of its memory, in bytes, by the time that the host is looked ahead for, counted from when that
    /// was waited for first: shrinking it has so long to make room. A CPU quota gives nothing back that counts, since what VMs want does.
    pub(super) fn gives_back(
        &self,
        now: Timestamp,
        since: Timestamp,
        host: &HostId,
        length: Duration,
    ) -> BTreeMap<VmId, u64> {
        let by = since + Duration::from_millis(self.policy.migrate.lead_ms);
        let Some(entry) = self.fleet.hosts.get(host).filter(|entry| !entry.facts.dry_run) else {
            return BTreeMap::new();
        };
        if by <= now || self.is_closed(now) {
            return BTreeMap::new();
        }
        let of_vm = |&id: &VmId| {
            let vm = self.fleet.vms.get(&id).filter(|vm| vm.shadow.is_none())?;
            let is_free = self.mode_of(id) == Mode::Auto && !self.is_size_held(id, vm, host, Means::Memory);
            let sizing = balloon_sizing(vm, entry, &self.policy).and_then(Result::ok).filter(|_| is_free)?;
            if vm.balloon_pace.backoff.until(now).is_some() {
                return None;
            }
            let bytes = vm.balloon_pace.foreseen_bytes(now, by, length, &sizing, &self.policy.memory);
            Some((id, sizing.balloon.saturating_sub(bytes))).filter(|(_, bytes)| *bytes > 0)
        };
        entry.vms.iter().filter_map(of_vm).collect()
    }

    /// The move that helps a host most: of VMs whose mode lets most be done.
    pub(super) fn find_move(
        &self,
        now: Timestamp,
        host: &HostId,
        strain: &Strain,
        search: Search,
    ) -> Option<PlannedAction> {
        let source = self.fleet.hosts.get(host)?;
        source.facts.migration.as_ref()?;
        let Strain { load, proven, room, .. } = strain;
        let mut candidates = self.candidates(now, host, strain, search.is_drained, Duration::ZERO);
        candidates.sort_by_key(|candidate| Reverse(self.move_mode_of(candidate.vm)));
        candidates.into_iter().take(CANDIDATES_MAX).find_map(|candidate| {
            let (to_after, to, facts) = self.find_target(now, host, candidate.vm, room.share(load), search)?;
            let from_after = room.share(&load.minus(candidate.claim));
            let expected = Relief { from_before: room.share(load), from_after, to_after };
            let is_known = |haul: &Haul| haul.dirty_bytes_per_s.is_some() || haul.storage_bytes > 0;
            let haul = Some(candidate.haul).filter(is_known);
            let reason = if search.is_drained {
                Reason::Drained { haul }
            } else if room.holds_cpu(proven) {
                let gives_back_bytes = strain.gives_back_bytes();
                let bytes = load.memory_bytes.saturating_add(gives_back_bytes);
                Reason::HostMemoryFull { bytes, room_bytes: room.memory_bytes as u64, gives_back_bytes, expected, haul }
            } else {
                Reason::HostFull { demand_cores: proven.high_cores(), room_cores: room.cores, expected, haul }
            };
            let migration = self.migration(to.clone(), facts.migration.as_ref()?.uri.clone(), &candidate.haul);
            let (vm, host) = (candidate.vm, host.clone());
            Some(PlannedAction {
                host,
                vm,
                action: Action::Migrate(migration),
                before: None,
                reason,
                along: None,
                approved_by: None,
            })
        })
    }

    /// Those of a host that may leave it, in the order in which they are to be tried; `beyond` as its load was looked for.
    pub(super) fn candidates(
        &self,
        now: Timestamp,
        host: &HostId,
        strain: &Strain,
        is_drained: bool,
        beyond: Duration,
    ) -> Vec<Candidate<VmId>> {
        let there = self.fleet.hosts.get(host).into_iter().flat_map(|host| &host.vms);
        let free = there.filter(|id| self.may_leave(now, host, **id, is_drained));
        let candidates = free.filter_map(|&id| {
            let vm = self.fleet.vms.get(&id)?;
            let claim = strain.claim(id, self.claim_within(vm, vm.window_end, None, beyond));
            Some(Candidate { vm: id, claim, haul: self.haul(vm) })
        });
        order(candidates.collect(), &strain.load, &strain.room)
    }

    /// Says once that nothing can go, and why not, VM by VM.
    fn tell_stuck(&mut self, now: Timestamp, host: &HostId, strain: &Strain, search: Search, beyond: Option<&str>) {
        let Some(entry) = self.fleet.hosts.get(host) else { return };
        let in_flight = |id: &VmId| self.fleet.vms.get(id).is_some_and(|vm| vm.flight.is_some());
        if entry.vms.is_empty() || entry.vms.iter().any(in_flight) {
            return;
        }
        let stuck = self.why_stuck(now, host, strain, search);
        let refusals = stuck.to_string();
        let Some(entry) = self.fleet.hosts.get_mut(host) else { return };
        entry.stuck = Some(stuck);
        let Some(prospect) = &mut entry.prospect else { return };
        if std::mem::replace(&mut prospect.is_told, true) {
            return;
        }
        let beyond = beyond.map_or_else(String::new, |zone| {
            format!("; {zone} would have room, and policy.migrate.across_zones keeps VMs in their zone")
        });
        let Strain { load, room, .. } = strain;
        let text = if search.is_drained {
            format!(
                "host {host} is to be emptied, but none of its VMs may go, or there is no room for them elsewhere{beyond}"
            )
        } else {
            format!(
                "host {host}: {:.2} cores and {} MiB will be wanted, of {:.2} and {:.0} MiB that it has for VMs, and none of them may go, \
                 or there is no room for them elsewhere{beyond}",
                load.high_cores(),
                load.memory_bytes >> 20,
                room.cores,
                room.memory_bytes / f64::from(1 << 20)
            )
        };
        self.audit(now, ACTOR, "no_room", format!("host {host}"), refusals);
        self.notice("no_room", text);
    }

    /// A move as policy has it.
    pub(super) fn migration(&self, to: HostId, uri: String, haul: &Haul) -> Migration {
        let policy = &self.policy.migrate;
        Migration {
            to,
            uri,
            timeout_ms: haul.timeout_ms(policy),
            bandwidth_bytes_per_s: policy.bandwidth_bytes_per_s,
            auto_converge: policy.auto_converge,
            copy_storage: policy.copy_storage,
        }
    }
}
