//! Asking for capacity: which hosts are too full without a way out, when that is asked for, and what comes of it.
//!
//! A host counts as *stuck* from the report at which some of its VMs may leave and none finds a place, until it is no longer too full
//! or a move is found. Everything is written before it is sent, and a request keeps its key: a provider that is asked again after a crash
//! sees that it was asked before.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostFacts, HostId};

use super::{ACTOR, Core};
use crate::capacity::{CapacityAnswer, CapacityKey, CapacityRefusal, CapacityRequest, CapacityState, FullHost};
use crate::fleet::Host;
use crate::io::{Output, Record};
use crate::plan::backoff;
use crate::plan::balance::Room;
use crate::policy::{Approval, CapacityPolicy, Mode};

/// Whoever carries a request to the provider answers within its own time-out; after this the answer is lost.
const ANSWER_MAX: Duration = Duration::from_mins(10);

/// Full hosts that a request names: enough to see what it is about.
const HOSTS_NAMED_MAX: usize = 16;

/// Closed requests that are remembered, for the cool-down and for people.
const CLOSED_MAX: usize = 1000;

/// Longest text that is kept of what a provider says, in characters.
const SAID_MAX: usize = 300;

/// What the core keeps about capacity requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Capacity {
    /// Asked for in this term.
    asked: u64,
    open: BTreeMap<CapacityKey, Open>,
    /// The one that was closed last comes last.
    closed: VecDeque<CapacityRequest>,
}

/// A request that something may become of.
#[derive(Clone, Debug)]
struct Open {
    request: CapacityRequest,
    /// Since when its hosts are no longer too full.
    calm_since: Option<Timestamp>,
    /// It was sent in an earlier life, where its answer is lost.
    is_orphan: bool,
}

impl Open {
    /// When something happens to it by itself.
    fn due(&self, policy: &CapacityPolicy) -> Option<Timestamp> {
        let CapacityRequest { state, since, attempts, .. } = self.request;
        match state {
            CapacityState::AwaitingApproval => Some(since + Duration::from_millis(policy.approval_timeout_ms)),
            CapacityState::Approved | CapacityState::Sent if !policy.has_provider => None,
            CapacityState::Approved => Some(since + attempts.checked_sub(1).map_or(Duration::ZERO, backoff::pause)),
            CapacityState::Sent if self.is_orphan => Some(since),
            CapacityState::Sent => Some(since + ANSWER_MAX),
            CapacityState::Accepted => Some(since + Duration::from_millis(policy.arrival_timeout_ms)),
            _ => None,
        }
    }
}

impl Capacity {
    /// When the core has to look at requests next.
    pub(super) fn due(&self, policy: &CapacityPolicy) -> Option<Timestamp> {
        self.open.values().filter_map(|open| open.due(policy)).min()
    }

    /// Bounds what a clock that was set back can do: nothing counts as younger than now.
    pub(super) fn clock_set_back(&mut self, now: Timestamp) {
        for open in self.open.values_mut() {
            open.request.since = open.request.since.min(now);
            open.calm_since = open.calm_since.map(|at| at.min(now));
        }
        self.closed.iter_mut().for_each(|request| request.since = request.since.min(now));
    }

    fn close(&mut self, request: CapacityRequest) {
        self.closed.push_back(request);
        if self.closed.len() > CLOSED_MAX {
            self.closed.pop_front();
        }
    }

    /// Whether another request may be made for a zone now.
    fn may_ask(&self, now: Timestamp, zone: Option<&String>, policy: &CapacityPolicy) -> bool {
        let cool_down = Duration::from_millis(policy.cool_down_ms);
        let is_open = self.open.values().any(|open| open.request.zone.as_ref() == zone);
        let rests = |closed: &CapacityRequest| closed.zone.as_ref() == zone && now.since(closed.since) < cool_down;
        !is_open && self.open.len() < policy.open_max && !self.closed.iter().any(rests)
    }
}

impl Core {
    /// Requests for capacity that are open, and those closed last; the latest first.
    pub fn capacity(&self) -> Vec<CapacityRequest> {
        let open = self.capacity.open.values().map(|open| &open.request);
        let mut requests: Vec<CapacityRequest> = open.chain(&self.capacity.closed).cloned().collect();
        requests.sort_by_key(|request| std::cmp::Reverse(request.key));
        requests
    }

    /// How many requests of [`Core::capacity`] are in each state.
    pub fn capacity_states(&self) -> impl Iterator<Item = (CapacityState, usize)> {
        let open = self.capacity.open.values().map(|open| open.request.state);
        let states: Vec<CapacityState> = open.chain(self.capacity.closed.iter().map(|closed| closed.state)).collect();
        let count = move |state: CapacityState| states.iter().filter(|other| **other == state).count();
        CapacityState::ALL.into_iter().map(move |state| (state, count(state)))
    }

    /// Whether an operator can approve or deny a request now.
    pub fn may_decide_capacity(&self, key: CapacityKey, approves: bool) -> Result<(), CapacityRefusal> {
        let open = self.capacity.open.get(&key).map(|open| &open.request);
        let known = open.or_else(|| self.capacity.closed.iter().find(|closed| closed.key == key));
        match known.ok_or(CapacityRefusal::Unknown(key))?.state {
            CapacityState::AwaitingApproval if approves && !self.policy.capacity.has_provider => {
                Err(CapacityRefusal::NoProvider)
            }
            CapacityState::AwaitingApproval => Ok(()),
            state => Err(CapacityRefusal::Decided { key, state }),
        }
    }

    pub(super) fn decide_capacity(&mut self, now: Timestamp, actor: &str, key: CapacityKey, approves: bool) {
        if let Err(refusal) = self.may_decide_capacity(key, approves) {
            let verb = if approves { "approve" } else { "deny" };
            return self.audit(now, actor, "refused", format!("capacity {key}"), format!("{verb}: {refusal}"));
        }
        if !approves {
            return self.bring_to(now, actor, "deny", key, CapacityState::Denied, format!("{actor} denied it"));
        }
        if let Some(open) = self.capacity.open.get_mut(&key) {
            open.request.approved_by = Some(actor.to_owned());
        }
        self.bring_to(now, actor, "approve", key, CapacityState::Approved, format!("{actor} approved it"));
        self.send_for_capacity(now, key);
    }

    /// Notes that no move was found for a host that is too full. Where none of its VMs may leave at all, another host would not help.
    pub(super) fn note_stuck(&mut self, now: Timestamp, host: &HostId, fits_another_zone: bool) {
        let may_leave = |host_entry: &Host| host_entry.vms.iter().any(|id| self.may_leave(now, host, *id, false));
        let helps = self.fleet.hosts.get(host).is_some_and(|entry| entry.facts.migration.is_some() && may_leave(entry));
        if let Some(prospect) = self.fleet.hosts.get_mut(host).and_then(|entry| entry.prospect.as_mut())
            && helps
        {
            prospect.stuck_since.get_or_insert(now);
            prospect.fits_another_zone = fits_another_zone;
        }
    }

    /// A host has told its load: asks for capacity where that is due, and takes back what is wanted no more.
    pub(super) fn review_capacity(&mut self, now: Timestamp, host: &HostId) {
        if !self.policy.capacity.has_provider {
            return;
        }
        self.withdraw_for(now, host);
        let Some(entry) = self.fleet.hosts.get(host) else { return };
        let full_for = Duration::from_millis(self.policy.capacity.full_for_ms);
        let is_due =
            entry.prospect.and_then(|prospect| prospect.stuck_since).is_some_and(|at| now.since(at) >= full_for);
        if !is_due || self.move_mode_of_host(host) != Mode::Auto || self.holds.on_host(host).is_some() {
            return;
        }
        let zone = entry.facts.zone.clone();
        if self.capacity.may_ask(now, zone.as_ref(), &self.policy.capacity) {
            self.ask_for_capacity(now, zone);
        }
    }

    /// Withdraws what was not sent yet once the hosts that it is about have had room for as long as they had to be full.
    fn withdraw_for(&mut self, now: Timestamp, host: &HostId) {
        let fleet = &self.fleet;
        let draining = &self.moves.draining;
        let is_calm = |full: &FullHost| match fleet.hosts.get(&full.host) {
            Some(entry) => {
                draining.contains_key(&full.host) || entry.prospect.is_some_and(|prospect| prospect.full_rounds == 0)
            }
            None => true,
        };
        let full_for = Duration::from_millis(self.policy.capacity.full_for_ms);
        let mut gone = Vec::new();
        for (&key, open) in &mut self.capacity.open {
            if open.request.attempts > 0 || !open.request.hosts.iter().any(|full| full.host == *host) {
                continue;
            }
            if !open.request.hosts.iter().all(is_calm) {
                open.calm_since = None;
            } else if now.since(*open.calm_since.get_or_insert(now)) >= full_for {
                gone.push(key);
            }
        }
        for key in gone {
            let detail = "its hosts have room again".to_owned();
            self.bring_to(now, ACTOR, "withdraw", key, CapacityState::Withdrawn, detail);
        }
    }

    fn ask_for_capacity(&mut self, now: Timestamp, zone: Option<String>) {
        let full = self.full_hosts(now, zone.as_ref());
        let excess = |of: f64| if of.is_finite() { of.max(0.0) } else { 0.0 };
        let cores: f64 = full.iter().map(|full| excess(full.demand_cores - full.room_cores)).sum();
        // Upwards to a hundredth, but for what is noise: what is asked for is a size, not a measurement.
        let cores = (cores * 100.0 - 1e-6).ceil().max(0.0) / 100.0;
        let short_bytes = full.iter().map(|full| full.memory_bytes.saturating_sub(full.room_bytes));
        let memory_bytes = short_bytes.fold(0, u64::saturating_add);
        if cores <= 0.0 && memory_bytes == 0 {
            return;
        }
        self.capacity.asked += 1;
        let key = CapacityKey { term: self.fence.term, number: self.capacity.asked };
        let approved_by = (self.policy.capacity.approval == Approval::Automatic).then(|| "policy".to_owned());
        let state = if approved_by.is_some() { CapacityState::Approved } else { CapacityState::AwaitingApproval };
        let mut prospects = full.iter().filter_map(|full| self.fleet.hosts.get(&full.host)?.prospect);
        let beyond = prospects.any(|prospect| prospect.fits_another_zone);
        let reason = in_words(zone.as_deref(), &full, cores, memory_bytes, beyond);
        let hosts_full = full.len();
        let request = CapacityRequest {
            key,
            zone,
            cores,
            memory_bytes,
            reason: reason.clone(),
            ahead_ms: self.policy.migrate.lead_ms,
            hosts: full.into_iter().take(HOSTS_NAMED_MAX).collect(),
            hosts_full,
            asked: now,
            state,
            since: now,
            detail: reason.clone(),
            approved_by,
            attempts: 0,
            reference: None,
            fulfilled_by: None,
        };
        self.capacity.open.insert(key, Open { request, calm_since: None, is_orphan: false });
        self.notice("capacity_wanted", format!("request {key}: {reason}"));
        self.bring_to(now, ACTOR, "ask", key, state, reason);
        if state == CapacityState::Approved {
            self.send_for_capacity(now, key);
        }
    }

    /// A zone's hosts that are stuck by fresh reports and in nobody's hold, the fullest first.
    fn full_hosts(&self, now: Timestamp, zone: Option<&String>) -> Vec<FullHost> {
        let stuck = self.fleet.hosts.iter().filter_map(|(id, host)| {
            let prospect = host.prospect.filter(|prospect| host.connected && now <= prospect.fresh_until)?;
            let since = prospect.stuck_since.filter(|_| host.facts.zone.as_ref() == zone)?;
            let room = Room::of(&host.facts, &self.policy.migrate);
            let full = FullHost {
                host: id.clone(),
                demand_cores: prospect.load.high_cores(),
                room_cores: room.cores,
                memory_bytes: prospect.load.memory_bytes,
                room_bytes: room.memory_bytes as u64,
                since,
            };
            self.holds.on_host(id).is_none().then(|| (room.share(&prospect.load), full))
        });
        let mut stuck: Vec<(f64, FullHost)> = stuck.collect();
        stuck.sort_by(|(one, a), (other, b)| other.total_cmp(one).then_with(|| a.host.cmp(&b.host)));
        stuck.into_iter().map(|(_, full)| full).collect()
    }

    /// Hands a request to whoever asks the provider: first it is written that it is on its way.
    fn send_for_capacity(&mut self, now: Timestamp, key: CapacityKey) {
        let Some(open) = self.capacity.open.get_mut(&key) else { return };
        open.is_orphan = false;
        open.request.attempts = open.request.attempts.saturating_add(1);
        let detail = format!("attempt {}", open.request.attempts);
        self.bring_to(now, ACTOR, "send", key, CapacityState::Sent, detail);
        if let Some(open) = self.capacity.open.get(&key) {
            self.outputs.push_back(Output::Capacity(Box::new(open.request.clone())));
        }
    }

    /// The provider has answered, or whoever asks it gave up.
    pub(super) fn capacity_answered(&mut self, now: Timestamp, key: CapacityKey, answer: CapacityAnswer) {
        let Some(open) = self.capacity.open.get_mut(&key).filter(|open| open.request.attempts > 0) else {
            return self.notice("capacity_answer_late", format!("request {key} awaits no answer: {answer:?}"));
        };
        let (state, attempts) = (open.request.state, open.request.attempts);
        match answer {
            CapacityAnswer::Accepted(reference) if state != CapacityState::Accepted => {
                let reference = Some(cut(&reference)).filter(|reference| !reference.is_empty());
                let detail = format!(
                    "the provider accepted it{}",
                    reference.iter().map(|name| format!(" as {name}")).collect::<String>()
                );
                open.request.reference = reference;
                self.bring_to(now, ACTOR, "accept", key, CapacityState::Accepted, detail);
            }
            CapacityAnswer::Refused(why) if state != CapacityState::Accepted => {
                self.fail_capacity(now, key, format!("the provider refused it: {}", cut(&why)));
            }
            CapacityAnswer::Unreachable(why) if state == CapacityState::Sent => {
                self.retry_capacity(now, key, attempts, &cut(&why));
            }
            // An answer to an earlier attempt, which changes nothing any more.
            _ => {}
        }
    }

    fn retry_capacity(&mut self, now: Timestamp, key: CapacityKey, attempts: u32, why: &str) {
        if attempts >= self.policy.capacity.attempts_max {
            return self.fail_capacity(now, key, format!("given up after {attempts} attempts: {why}"));
        }
        let pause = backoff::pause(attempts.saturating_sub(1));
        let detail = format!("attempt {attempts} failed: {why}; the next one follows in {pause:?}");
        self.bring_to(now, ACTOR, "retry", key, CapacityState::Approved, detail);
    }

    fn fail_capacity(&mut self, now: Timestamp, key: CapacityKey, detail: String) {
        self.notice("capacity_failed", format!("request {key}: {detail}"));
        self.bring_to(now, ACTOR, "fail", key, CapacityState::Failed, detail);
    }

    /// A host that was never seen before connects: it is what was asked for, if anything was. Called before the host is written, so that a
    /// crash in between leaves it new.
    pub(super) fn capacity_came(&mut self, now: Timestamp, host: &HostId, facts: &HostFacts) {
        if facts.dry_run || facts.capacity_cores <= 0.0 || facts.memory_bytes == 0 {
            return;
        }
        // What was asked for its zone comes before what was asked for hosts without one, and the oldest first.
        let fits = |open: &&Open| {
            let CapacityRequest { attempts, zone, .. } = &open.request;
            *attempts > 0 && (zone.is_none() || *zone == facts.zone)
        };
        let oldest = self.capacity.open.values().filter(fits);
        let Some(key) =
            oldest.min_by_key(|open| (open.request.zone.is_none(), open.request.key)).map(|open| open.request.key)
        else {
            return;
        };
        if let Some(open) = self.capacity.open.get_mut(&key) {
            open.request.fulfilled_by = Some(host.clone());
        }
        let detail =
            format!("host {host} came, with {:.2} cores and {} MiB", facts.capacity_cores, facts.memory_bytes >> 20);
        self.bring_to(now, ACTOR, "fulfil", key, CapacityState::Fulfilled, detail);
    }

    /// Does what is due by the time alone: sends, sends again, gives up.
    pub(super) fn tend_capacity(&mut self, now: Timestamp) {
        let policy = &self.policy.capacity;
        let is_due = |open: &&Open| open.due(policy).is_some_and(|due| due <= now);
        let due: Vec<(CapacityKey, CapacityState, bool, u32)> = self
            .capacity
            .open
            .values()
            .filter(is_due)
            .map(|open| (open.request.key, open.request.state, open.is_orphan, open.request.attempts))
            .collect();
        for (key, state, is_orphan, attempts) in due {
            match state {
                CapacityState::Sent if !is_orphan => {
                    self.retry_capacity(now, key, attempts, &format!("no answer within {ANSWER_MAX:?}"));
                }
                CapacityState::Approved | CapacityState::Sent => self.send_for_capacity(now, key),
                CapacityState::AwaitingApproval => {
                    let detail = "nobody approved or denied it in time".to_owned();
                    self.bring_to(now, ACTOR, "expire", key, CapacityState::Expired, detail);
                }
                CapacityState::Accepted => {
                    let detail = "no host came in time".to_owned();
                    self.bring_to(now, ACTOR, "expire", key, CapacityState::Expired, detail);
                }
                _ => {}
            }
        }
    }

    /// A restart brings one back. What was sent and not answered is sent again, under the same key.
    pub(super) fn restore_capacity(&mut self, request: CapacityRequest) {
        if request.state.is_open() {
            let is_orphan = request.state == CapacityState::Sent;
            self.capacity.open.insert(request.key, Open { request, calm_since: None, is_orphan });
        } else {
            self.capacity.close(request);
        }
    }

    /// Brings a request to a state, says so, and keeps it.
    fn bring_to(
        &mut self,
        now: Timestamp,
        actor: &str,
        verb: &str,
        key: CapacityKey,
        state: CapacityState,
        detail: String,
    ) {
        let Some(open) = self.capacity.open.get_mut(&key) else { return };
        open.request.state = state;
        open.request.since = now;
        open.request.detail.clone_from(&detail);
        let request = open.request.clone();
        self.audit(now, actor, verb, format!("capacity {key}"), detail);
        self.persist(Record::Capacity(Box::new(request.clone())));
        if !state.is_open() {
            self.capacity.open.remove(&key);
            self.capacity.close(request);
        }
    }
}

/// Why capacity is asked for.
fn in_words(zone: Option<&str>, full: &[FullHost], cores: f64, memory_bytes: u64, fits_another_zone: bool) -> String {
    let hosts = match full {
        [one] => format!("host {}", one.host),
        [one, other] => format!("hosts {} and {}", one.host, other.host),
        [one, rest @ ..] => format!("host {} and {} others", one.host, rest.len()),
        [] => String::new(),
    };
    let place = zone.map_or_else(String::new, |zone| format!(" of zone {zone}"));
    let cpu = (cores > 0.0).then(|| format!("{cores:.2} cores"));
    let memory = (memory_bytes > 0).then(|| format!("{} MiB of memory", memory_bytes.div_ceil(1 << 20)));
    let missing: Vec<String> = cpu.into_iter().chain(memory).collect();
    let helps = if fits_another_zone {
        "no move within their zone helps; another zone would have room"
    } else {
        "no move helps"
    };
    format!("{hosts}{place} will be {} short for what the VMs there want, and {helps}", missing.join(" and "))
}

fn cut(said: &str) -> String {
    said.chars().take(SAID_MAX).collect()
}
