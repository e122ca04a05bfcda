//! The one state machine: inputs in, outputs out.

mod balance;
mod budget;
mod capacity;
mod command;
mod explain;
mod feedback;
mod fit;
mod hold;
mod incidents;
mod local;
mod modes;
mod operator;
mod pattern;
mod planning;
mod proposals;
mod report;
mod restore;
mod set;
mod shadows;
mod sizes;
mod spare;
mod surplus;
#[cfg(test)]
mod tests;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Fence, HostFacts, HostId, VmId};

use crate::calendar::Calendar;
use crate::fleet::{Fleet, Host};
use crate::io::{Audit, Input, Notice, Output, Record};
use crate::pattern::Pattern;
use crate::plan::budget::Tally;
use crate::policy::Policy;
use crate::windows::Windows;
use hold::Holds;
use incidents::Incidents;

pub use balance::MoveRefusal;
pub use set::SetRefusal;
use sizes::Sizes;
pub(crate) use sizes::{Learnt, Lecture};

/// Who does what Gnomon decides by itself, in the audit log.
const ACTOR: &str = "gnomon";

/// The whole of the brain's knowledge and judgement.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
    seed: u64,
    fence: Fence,
    commands: u64,
    now: Timestamp,
    fleet: Fleet,
    holds: Holds,
    modes: modes::Modes,
    resizes: Tally,
    /// When commands in flight are given up.
    deadlines: BTreeSet<(Timestamp, VmId)>,
    fits: BTreeMap<VmId, fit::Pending>,
    looks: BTreeMap<VmId, fit::Pending>,
    tickets: u64,
    calendar: Arc<Calendar>,
    windows: Windows,
    incidents: Incidents,
    sizes: Sizes,
    moves: balance::Moves,
    capacity: capacity::Capacity,
    proposals: proposals::Proposals,
    surpluses: surplus::Surpluses,
    feedback: feedback::Feedback,
    shadows: shadows::Shadows,
    /// What the store gave back of VMs that were not seen yet.
    stored: BTreeMap<VmId, Pattern>,
    outputs: VecDeque<Output>,
}

impl Core {
    /// A core without knowledge. `term` is the brain's lease term, part of every command's id and fence; `seed` spreads fits in
    /// time. A policy that does not pass [`Policy::validate`] is noticed and replaced by the default, which only observes.
    pub fn new(policy: Policy, seed: u64, term: u64) -> Self {
        let mut core = Self {
            policy: Policy::default(),
            seed,
            fence: Fence { term, generation: 0 },
            commands: 0,
            now: Timestamp::default(),
            fleet: Fleet::default(),
            holds: Holds::default(),
            modes: modes::Modes::default(),
            resizes: Tally::default(),
            deadlines: BTreeSet::new(),
            fits: BTreeMap::new(),
            looks: BTreeMap::new(),
            tickets: 0,
            calendar: Arc::new(Calendar::utc()),
            windows: Windows::default(),
            incidents: Incidents::default(),
            sizes: Sizes::new(Policy::default().cpu.violation_rate, seed),
            moves: balance::Moves::default(),
            capacity: capacity::Capacity::default(),
            proposals: proposals::Proposals::default(),
            surpluses: surplus::Surpluses::default(),
            feedback: feedback::Feedback::default(),
            shadows: shadows::Shadows::default(),
            stored: BTreeMap::new(),
            outputs: VecDeque::new(),
        };
        core.set_policy(policy);
        core
    }

    /// Takes one input. O(1) per VM in a report; never longer than a few microseconds per VM.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        self.tell_time(now);
        match input {
            Input::HostUp { host, facts } => self.host_up(now, host, facts),
            Input::HostLost { host } => self.host_lost(now, &host),
            Input::Report(mut report) => {
                self.mark_shadows(&mut report);
                self.report(now, &report);
            }
            Input::Outcome { host, outcome } => self.outcome(now, &host, outcome),
            Input::Operator { actor, request } => self.operator(now, &actor, request),
            Input::Policy(policy) => self.set_policy(*policy),
            Input::FitDone(result) => self.fit_done(*result),
            Input::CapacityAnswered { key, answer } => self.capacity_answered(now, key, answer),
        }
    }

    /// Lets due time-outs happen (commands that stayed unanswered, requests for capacity to be sent or given up, proposals that expire, shadows that need something); call it when
    /// [`Core::poll_timeout`] is due. Nothing is planned here: growing and shrinking alike rest on a report.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.tell_time(now);
        self.give_up_commands(now);
        self.give_up_measurements(now);
        self.tend_capacity(now);
        self.tend_proposals(now);
        self.tend_shadows(now);
    }

    /// When [`Core::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let deadline = self.deadlines.first().map(|&(deadline, _)| deadline);
        let waiting = self.capacity.due(&self.policy.capacity).into_iter().chain(self.proposals_due());
        deadline.into_iter().chain(waiting).chain(self.shadows.due()).min()
    }

    /// The next thing to do; call until `None` after every `handle*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The policy in force.
    pub fn policy(&self) -> Policy {
        self.policy.clone()
    }

    fn tell_time(&mut self, now: Timestamp) {
        if now < self.now {
            self.notice("clock_set_back", format!("the brain's clock went back by {:?}", self.now.since(now)));
            self.clock_set_back(now);
        }
        self.now = now;
    }

    fn host_up(&mut self, now: Timestamp, host: HostId, facts: HostFacts) {
        if !self.fleet.hosts.contains_key(&host) {
            self.capacity_came(now, &host, &facts);
        }
        let entry = self.fleet.hosts.entry(host.clone()).or_insert_with(|| Host::new(facts.clone()));
        entry.facts = facts.clone();
        entry.connected = true;
        entry.up_since = now;
        self.persist(Record::Host { host: host.clone(), facts, connected: true, at: now });
        self.send_stray_copies_away(now, &host);
        self.bound_stored();
        self.restore_baselines_on(now, &host);
    }

    fn host_lost(&mut self, now: Timestamp, host: &HostId) {
        let Some(entry) = self.fleet.hosts.get_mut(host) else { return };
        if std::mem::replace(&mut entry.connected, false) {
            let facts = entry.facts.clone();
            self.persist(Record::Host { host: host.clone(), facts, connected: false, at: now });
        }
    }

    fn set_policy(&mut self, policy: Policy) {
        if let Err(error) = policy.validate() {
            self.notice("policy_refused", format!("{error}; the policy in force stays"));
            return;
        }
        match policy.forecast.calendar().and_then(|calendar| Ok((calendar, policy.windows.windows()?))) {
            Ok((calendar, windows)) => {
                self.set_calendar(calendar);
                self.windows = windows;
            }
            Err(error) => return self.notice("policy_refused", format!("{error}; the policy in force stays")),
        }
        let before = std::mem::replace(&mut self.policy, policy);
        if before.cpu.violation_rate != self.policy.cpu.violation_rate {
            self.promise_anew();
        }
        if before.forecast != self.policy.forecast {
            self.fits.clear();
            let other_steps = before.forecast.resolution_ms != self.policy.forecast.resolution_ms
                || before.forecast.season_steps_max != self.policy.forecast.season_steps_max;
            for vm in self.fleet.vms.values_mut() {
                vm.fit_due = 0;
                if other_steps {
                    vm.forget_history(&self.policy);
                }
            }
        }
    }

    fn set_calendar(&mut self, calendar: Calendar) {
        if *self.calendar != calendar {
            self.calendar = Arc::new(calendar);
            self.looks.clear();
            self.fleet.vms.values_mut().for_each(|vm| vm.pattern.look_anew());
        }
    }

    fn persist(&mut self, record: Record) {
        self.outputs.push_back(Output::Persist(record));
    }

    fn notice(&mut self, kind: &'static str, text: String) {
        self.outputs.push_back(Output::Notice(Notice { kind, text }));
    }

    fn audit(&mut self, at: Timestamp, actor: &str, verb: &str, object: String, detail: String) {
        let audit = Audit { at, actor: actor.to_owned(), verb: verb.to_owned(), object, detail };
        self.persist(Record::Audit(audit));
    }
}
