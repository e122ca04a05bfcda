//! Moves: when a host is emptied or will be too full, one of its VMs goes elsewhere.
//!
//! A host is looked at when it reports: what its VMs will want is summed up then, and kept. Only a host that something has to be done about
//! makes the core look at the others, so that a report of a calm host costs nothing beyond its own VMs.

mod by_hand;
mod dirty_rates;
mod lint;
mod outcomes;
mod relief;
mod stays;
mod storage;
mod target;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, CommandId, HostId, VmId, VmState};

use super::Core;
use crate::fleet::{Host, Vm};
use crate::io::{CommandRecord, Lesson, Record};
use crate::plan::balance::{Claim, Load, Prospect, Room};
use crate::plan::guard::{Guard, Guards};
use crate::plan::haul::{Haul, MovePace};

use dirty_rates::Measurements;
use relief::Strain;

pub use by_hand::MoveRefusal;
pub(in crate::core) use target::Search;

/// What a host told is believed for so many windows after the one that told it…
const WINDOWS_FRESH: u32 = 3;
/// …and this much for its way.
const FRESH_GRACE: Duration = Duration::from_secs(5);

/// Until when what a window that ended then told is believed, if nothing newer comes.
pub(super) fn fresh_until(end: Timestamp, length: Duration) -> Timestamp {
    end + length * WINDOWS_FRESH + FRESH_GRACE
}

/// So long at most the first report of a host that has just connected is waited for before anything is moved.
const SETTLING: Duration = Duration::from_mins(1);

/// Moves remembered at most: with them the budget and the cool-down would run out.
const BEGUN_MAX: usize = 1000;

const HOUR: Duration = Duration::from_hours(1);

/// What the core keeps about moves.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves {
    /// On their way.
    under_way: BTreeMap<VmId, Way>,
    /// Those that began lately, oldest first.
    begun: VecDeque<(Timestamp, VmId)>,
    /// When somebody else moved a VM last.
    stranger_at: Option<Timestamp>,
    /// Hosts that are being emptied.
    pub(super) draining: BTreeMap<HostId, Timestamp>,
    pub(super) guards: Guards,
    pub(super) pace: MovePace,
    pub(super) measurements: Measurements,
}

/// A VM's way: by which command, from where, to where.
#[derive(Clone, Debug)]
struct Way {
    by: CommandId,
    from: HostId,
    to: HostId,
}

impl Moves {
    /// Bounds what a clock that was set back can do: nothing counts as younger than now.
    pub(super) fn clock_set_back(&mut self, now: Timestamp) {
        self.begun.iter_mut().for_each(|(at, _)| *at = (*at).min(now));
        self.stranger_at = self.stranger_at.map(|at| at.min(now));
        self.measurements.clock_set_back(now);
    }

    fn begun_within(&self, now: Timestamp, time: Duration) -> usize {
        self.begun.iter().filter(|(at, _)| now.since(*at) < time).count()
    }
}

impl Core {
    /// Takes a guard away from the planner, or from the linter: what then goes wrong shows what the guard is for.
    #[doc(hidden)]
    pub fn without_guard(&mut self, planner: Option<Guard>, linter: Option<Guard>) {
        self.moves.guards = Guards { planner_lacks: planner, linter_lacks: linter };
    }

    /// Sums up what a host's VMs will want, and plans a move where something has to be done about it.
    pub(super) fn balance(&mut self, now: Timestamp, host: &HostId, end: Timestamp, length: Duration) {
        let Some(entry) = self.fleet.hosts.get(host) else { return };
        let load = self.load_of(entry, None, end, None, Duration::ZERO);
        let room = Room::of(&entry.facts, &self.policy.migrate);
        let before = entry.prospect;
        // What makes it too full must be live demand, or forecasts that may be acted on.
        let proven = match self.skill_min() {
            Some(skill_min) if !room.holds(&load) => self.load_of(entry, None, end, Some(skill_min), Duration::ZERO),
            _ => load,
        };
        let (is_full, is_doubted) = (!room.holds(&proven), room.holds(&proven) && !room.holds(&load));
        let full_rounds = if is_full { before.map_or(0, |before| before.full_rounds).saturating_add(1) } else { 0 };
        let is_drained = self.moves.draining.contains_key(host);
        let shrinks_since = before.and_then(|before| before.shrinks_since).filter(|_| is_full);
        let gives_back = if is_full && !is_drained && !room.holds_memory(&load) {
            self.gives_back(now, shrinks_since.unwrap_or(now), host, length)
        } else {
            BTreeMap::new()
        };
        let gives_back_bytes: u64 = gives_back.values().sum();
        let strain = Strain {
            load: load.less_memory(gives_back_bytes),
            proven: proven.less_memory(gives_back_bytes),
            room,
            gives_back,
        };
        let stays_full = !room.holds(&strain.proven);
        let is_told = (stays_full || is_drained) && before.is_some_and(|before| before.is_told);
        let stuck_since = before.and_then(|before| before.stuck_since).filter(|_| stays_full && !is_drained);
        let prospect = Prospect {
            load,
            fresh_until: fresh_until(now, length),
            full_rounds,
            is_doubted,
            gives_back_bytes,
            shrinks_since: shrinks_since.or(Some(now).filter(|_| gives_back_bytes > 0)),
            is_told,
            stuck_since,
            fits_another_zone: stuck_since.is_some() && before.is_some_and(|before| before.fits_another_zone),
        };
        if let Some(entry) = self.fleet.hosts.get_mut(host) {
            entry.prospect = Some(prospect);
            if !stays_full && !is_drained {
                entry.stuck = None;
            }
        }
        // What is not needed is taken back first, then shadows make room, and a VM is moved for what is left.
        if !(full_rounds > 0 && self.shadows_make_room(now, host, &strain.proven, &room)) {
            self.relieve(now, host, &strain, full_rounds);
        }
        if !is_full && !is_drained {
            self.weigh_ahead(now, host, end, length);
        }
        self.review_capacity(now, host);
    }

    /// What a host's VMs will take together: those that are there, those that arrive, and one more. With `skill_min`, a forecast with less
    /// skill counts for no more than what the VM wants now. `beyond`: looked so much further ahead than a move needs.
    fn load_of(
        &self,
        host: &Host,
        more: Option<VmId>,
        at: Timestamp,
        skill_min: Option<f64>,
        beyond: Duration,
    ) -> Load {
        let known = host.vms.iter().chain(&host.arriving).filter_map(|id| self.fleet.vms.get(id));
        let there = known.map(|vm| self.claim_within(vm, at, skill_min, beyond));
        let more = more.and_then(|id| self.fleet.vms.get(&id)).map(|vm| self.landing(vm, at));
        Load::of(there.chain(more))
    }

    /// What a VM will take where it arrives: that has to have room for all the memory that it is defined with.
    fn landing(&self, vm: &Vm, at: Timestamp) -> Claim {
        Claim { memory_bytes: vm.allocation.memory_bytes, ..self.claim(vm, at, None) }
    }

    /// What a VM will take within the time that looking ahead for a move covers.
    pub(super) fn claim(&self, vm: &Vm, at: Timestamp, skill_min: Option<f64>) -> Claim {
        self.claim_within(vm, at, skill_min, Duration::ZERO)
    }

    /// The same, looked so much `beyond` that.
    fn claim_within(&self, vm: &Vm, at: Timestamp, skill_min: Option<f64>, beyond: Duration) -> Claim {
        let memory_bytes = match vm.state {
            VmState::ShutOff | VmState::Crashed | VmState::Arriving => return Claim::default(),
            _ => vm.has_bytes(),
        };
        if vm.state != VmState::Running {
            return Claim { memory_bytes, ..Claim::default() };
        }
        if vm.shadow.is_some() {
            // Its quota is a small share of the host: one that has told nothing yet is no reason to leave.
            let cores = vm.cpu.map_or(0.0, |cpu| cpu.demand_low.max.min(vm.allocation.cpu_limit_cores()));
            return Claim { median_cores: cores, high_cores: cores, memory_bytes };
        }
        let policy = &self.policy.migrate;
        let haul = self.haul(vm);
        // What takes longer is given up.
        let takes = haul.takes().min(Duration::from_millis(haul.timeout_ms(policy)));
        let ahead = Duration::from_millis(policy.lead_ms) + takes + beyond;
        let (median_cores, high_cores) = vm.demand_ahead(at, ahead, &self.policy, skill_min);
        Claim { median_cores, high_cores, memory_bytes }
    }

    /// What has to travel when a VM moves.
    pub(in crate::core) fn haul(&self, vm: &Vm) -> Haul {
        let dirty = vm.travel.dirty_bytes_per_s(self.now);
        self.moves.pace.haul(vm.has_bytes(), dirty, &self.policy.migrate).with_storage(self.to_copy(vm))
    }

    /// Whether moves are at their limits now.
    pub(super) fn has_to_wait(&self, now: Timestamp, host: &HostId) -> bool {
        let guards = self.moves.guards;
        let policy = &self.policy.migrate;
        let leaving = self.moves.under_way.values().any(|way| way.from == *host);
        let stand_down = Duration::from_millis(policy.stand_down_ms);
        let beside_another = self.moves.stranger_at.is_some_and(|at| now.since(at) < stand_down);
        (guards.plans(Guard::Stranger) && beside_another)
            || (guards.plans(Guard::Fresh) && self.is_settling(now))
            || (guards.plans(Guard::Inflow) && leaving)
            || (guards.plans(Guard::AtOnce) && self.moves.under_way.len() >= policy.at_once_max)
            || (guards.plans(Guard::Budget) && self.moves.begun_within(now, HOUR) >= policy.per_hour_max)
    }

    /// Where a VM is on its way to, by a command of Gnomon's.
    pub(super) fn destination_of(&self, vm: VmId) -> Option<&HostId> {
        self.moves.under_way.get(&vm).map(|way| &way.to)
    }

    /// Notes a move that is about to be commanded.
    pub(super) fn set_out(&mut self, now: Timestamp, by: CommandId, vm: VmId, from: &HostId, to: &HostId) {
        self.resume_move(by, vm, from, to);
        let remembered = HOUR.max(Duration::from_millis(self.policy.migrate.cool_down_ms));
        let begun = &mut self.moves.begun;
        begun.push_back((now, vm));
        while begun.len() > BEGUN_MAX || begun.front().is_some_and(|(begun, _)| now.since(*begun) >= remembered) {
            begun.pop_front();
        }
        self.keep_moves(now);
    }

    /// A restart brings back one that is on its way.
    pub(super) fn resume_move(&mut self, by: CommandId, vm: VmId, from: &HostId, to: &HostId) {
        self.moves.under_way.insert(vm, Way { by, from: from.clone(), to: to.clone() });
    }

    /// Keeps what a restart has to know.
    fn keep_moves(&mut self, now: Timestamp) {
        let begun = self.moves.begun.iter().copied().collect();
        let lesson = Lesson::Moves { pace: self.moves.pace, begun, stranger_at: self.moves.stranger_at };
        self.persist(Record::Lesson { lesson, at: now });
    }

    pub(super) fn restore_moves(
        &mut self,
        pace: MovePace,
        begun: Vec<(Timestamp, VmId)>,
        stranger_at: Option<Timestamp>,
    ) {
        self.moves.stranger_at = stranger_at;
        self.moves.pace = pace;
        self.moves.begun = begun.into();
    }

    /// A VM is on another host than before: says whether Gnomon moved it, and stands down for a while if it was somebody else.
    pub(super) fn note_move(&mut self, now: Timestamp, id: VmId, to: &HostId) {
        let Some(vm) = self.fleet.vms.get(&id) else { return };
        let Some(from) = vm.host.clone().or_else(|| vm.left.clone()).filter(|from| from != to) else { return };
        let is_ours = |record: &CommandRecord| matches!(&record.command.action, Action::Migrate(migration) if migration.to == *to);
        let by_us = vm.flight.as_ref().map(|flight| &flight.record).into_iter().chain(&vm.given_up).any(is_ours);
        if by_us {
            return;
        }
        self.moves.stranger_at = Some(now);
        self.keep_moves(now);
        let text =
            format!("VM {id} went from host {from} to host {to}, and not by Gnomon, which moves none for a while");
        self.notice("moved_by_somebody_else", text);
    }

    /// A move is over, one way or another, if it was by this command.
    pub(super) fn set_down(&mut self, vm: VmId, by: CommandId) {
        if self.moves.under_way.get(&vm).is_some_and(|way| way.by == by) {
            self.moves.under_way.remove(&vm);
        }
    }

    /// A VM is known no more.
    pub(super) fn lose_sight(&mut self, vm: VmId) {
        self.moves.under_way.remove(&vm);
    }

    /// What was refused was not begun.
    pub(super) fn spare(&mut self, now: Timestamp, record: &CommandRecord) {
        if matches!(record.command.action, Action::Migrate(_)) {
            self.not_begun(now, record.command.vm);
        }
    }

    /// A move that was not even begun is none of the hour's.
    fn not_begun(&mut self, now: Timestamp, vm: VmId) {
        if let Some(place) = self.moves.begun.iter().rposition(|(_, of)| *of == vm) {
            self.moves.begun.remove(place);
            self.keep_moves(now);
        }
    }

    /// Whether a host is being emptied.
    pub fn is_draining(&self, host: &HostId) -> bool {
        self.moves.draining.contains_key(host)
    }

    /// Empties a host, or ends that.
    pub(super) fn drain(&mut self, now: Timestamp, actor: &str, host: HostId, on: bool) {
        let (verb, was) = (if on { "drain" } else { "undrain" }, self.moves.draining.contains_key(&host));
        if on {
            self.moves.draining.entry(host.clone()).or_insert(now);
        } else {
            self.moves.draining.remove(&host);
        }
        let detail = match (on, was) {
            (true, true) => "it was being emptied already",
            (false, false) => "it was not being emptied",
            _ => "",
        };
        self.audit(now, actor, verb, format!("host {host}"), detail.to_owned());
        self.persist(Record::Drain { host: host.clone(), since: on.then_some(now) });
        if on {
            self.weigh_drained(now, &host);
        }
    }
}
