//! Mode `approve`: what is planned is proposed, and an operator decides.
//!
//! Of one VM and means there is one proposal at a time. Each report confirms it, replaces it where the plan has changed by more than
//! the hysteresis, or withdraws it. What is approved is judged once more, by the present, before it leaves.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, Means, Setting, VmId, VmState};

use super::planning::Wish;
use super::{ACTOR, Core};
use crate::io::Record;
use crate::plan::guard::Guard;
use crate::plan::{PlannedAction, Reason};
use crate::policy::{ApprovePolicy, Mode};
use crate::proposal::{Proposal, ProposalKey, ProposalRefusal, ProposalState};

/// Decided proposals that are remembered, for people.
const CLOSED_MAX: usize = 200;

/// What of a VM a proposal is about: a means, or (`None`) its place.
type Subject = (VmId, Option<Means>);

fn subject(action: &PlannedAction) -> Subject {
    match action.action {
        Action::Set(setting) => (action.vm, Some(setting.means())),
        Action::Migrate(_)
        | Action::Release
        | Action::AbortMigration
        | Action::Describe
        | Action::Image(_)
        | Action::DirtyRate { .. }
        | Action::Shadow(_) => (action.vm, None),
    }
}

/// What the core keeps about proposals.
#[derive(Clone, Debug, Default)]
pub(super) struct Proposals {
    /// Made in this term.
    made: u64,
    open: BTreeMap<ProposalKey, Proposal>,
    by_subject: BTreeMap<Subject, ProposalKey>,
    /// The one that was closed last comes last.
    closed: VecDeque<Proposal>,
    /// When an operator denied to take something away there (`true`), or anything else (`false`): those of the cool-down, no others.
    denied: BTreeMap<(Subject, bool), Timestamp>,
    is_full_told: bool,
}

impl Proposals {
    /// Bounds what a clock that was set back can do: nothing counts as younger than now.
    pub(super) fn clock_set_back(&mut self, now: Timestamp, policy: &ApprovePolicy) {
        for proposal in self.open.values_mut() {
            proposal.since = proposal.since.min(now);
            proposal.expires = proposal.expires.min(now + Duration::from_millis(policy.timeout_ms));
        }
        self.denied.values_mut().for_each(|at| *at = (*at).min(now));
    }

    fn about(&self, subject: Subject) -> Option<&Proposal> {
        self.open.get(self.by_subject.get(&subject)?)
    }

    fn deny(&mut self, at: Timestamp, subject: Subject, is_slack: bool, policy: &ApprovePolicy) {
        let cool_down = Duration::from_millis(policy.cool_down_ms);
        self.denied.retain(|_, denied| at.since(*denied) < cool_down);
        self.denied.insert((subject, is_slack), at);
    }

    fn is_denied(&self, now: Timestamp, subject: Subject, is_slack: bool, policy: &ApprovePolicy) -> bool {
        let cool_down = Duration::from_millis(policy.cool_down_ms);
        self.denied.get(&(subject, is_slack)).is_some_and(|at| now.since(*at) < cool_down)
    }

    fn insert(&mut self, proposal: Proposal) {
        self.by_subject.insert(subject(&proposal.action), proposal.key);
        self.open.insert(proposal.key, proposal);
    }

    fn close(&mut self, proposal: Proposal) {
        self.closed.push_back(proposal);
        if self.closed.len() > CLOSED_MAX {
            self.closed.pop_front();
        }
    }
}

impl Core {
    /// Proposals that are open, and those decided last; the latest first.
    pub fn proposals(&self) -> Vec<Proposal> {
        let known = self.proposals.open.values().chain(&self.proposals.closed);
        let mut proposals: Vec<Proposal> = known.cloned().collect();
        proposals.sort_by_key(|proposal| std::cmp::Reverse(proposal.key));
        proposals
    }

    /// One proposal of [`Core::proposals`].
    pub fn proposal(&self, key: ProposalKey) -> Option<&Proposal> {
        let proposals = &self.proposals;
        proposals.open.get(&key).or_else(|| proposals.closed.iter().find(|closed| closed.key == key))
    }

    /// When the core has to look at proposals next.
    pub(super) fn proposals_due(&self) -> Option<Timestamp> {
        let due = |proposal: &Proposal| match self.mode_for(proposal.action.vm, &proposal.action.action) {
            Mode::Approve => proposal.expires,
            _ => proposal.since,
        };
        self.proposals.open.values().map(due).min()
    }

    /// How many proposals wait for an operator.
    pub fn proposals_open(&self) -> usize {
        self.proposals.open.len()
    }

    /// Whether an operator can approve or deny a proposal now. What is approved may still be refused, if it no longer holds.
    pub fn may_decide_proposal(&self, key: ProposalKey, approves: bool) -> Result<(), ProposalRefusal> {
        let proposal = self.proposal(key).ok_or(ProposalRefusal::Unknown(key))?;
        if !proposal.state.is_open() {
            return Err(ProposalRefusal::Decided { key, state: proposal.state });
        }
        let PlannedAction { host, vm, action, .. } = &proposal.action;
        let known = self.fleet.vms.get(vm).filter(|known| known.host.as_ref() == Some(host));
        // One that is elsewhere cannot be waited for: it is refused.
        let (true, Some(known)) = (approves, known) else { return Ok(()) };
        if let Some(flight) = &known.flight {
            return Err(ProposalRefusal::InFlight(flight.record.command.id));
        }
        let prospect = self.fleet.hosts.get(host).filter(|host| host.connected).and_then(|host| host.prospect);
        let is_told = match action {
            Action::Set(Setting::CpuQuota { .. }) => known.cpu.is_some(),
            Action::Set(Setting::Memory { .. }) => known.memory.is_some(),
            _ => true,
        };
        let is_running = known.state == VmState::Running;
        if (is_running && !is_told) || prospect.is_none_or(|prospect| self.now > prospect.fresh_until) {
            return Err(ProposalRefusal::Silent(host.clone()));
        }
        if matches!(action, Action::Migrate(_)) && self.has_to_wait(self.now, host) {
            return Err(ProposalRefusal::MovesWait(host.clone()));
        }
        Ok(())
    }

    pub(super) fn decide_proposal(&mut self, now: Timestamp, actor: &str, key: ProposalKey, approves: bool) {
        if let Err(refusal) = self.may_decide_proposal(key, approves) {
            let verb = if approves { "approve" } else { "deny" };
            return self.audit(now, actor, "refused", format!("proposal {key}"), format!("{verb}: {refusal}"));
        }
        let Some(proposal) = self.proposals.open.get_mut(&key) else { return };
        proposal.decided_by = Some(actor.to_owned());
        let action = PlannedAction { approved_by: Some(actor.to_owned()), ..proposal.action.clone() };
        if !approves {
            let is_slack = action.reason.is_slack();
            self.proposals.deny(now, subject(&action), is_slack, &self.policy.approve);
            return self.end(now, actor, "deny", key, ProposalState::Denied, format!("{actor} denied it"));
        }
        match self.still_holds(now, &action) {
            Ok(()) => {
                self.end(now, actor, "approve", key, ProposalState::Approved, format!("{actor} approved it"));
                self.send(now, vec![action]);
            }
            Err(why) => {
                let detail = format!("{actor} approved it, but it no longer holds: {why}");
                self.end(now, actor, "refused", key, ProposalState::Refused, detail);
            }
        }
    }

    /// Judges an approved action by the present.
    fn still_holds(&self, now: Timestamp, action: &PlannedAction) -> Result<(), String> {
        let mode = self.mode_for(action.vm, &action.action);
        if mode != Mode::Approve {
            return Err(format!("the mode is {} now", mode.name()));
        }
        let vm = self.fleet.vms.get(&action.vm).filter(|vm| vm.host.is_some()).ok_or("the VM is gone")?;
        if vm.host.as_ref() != Some(&action.host) {
            return Err(format!("the VM is no longer on host {}", action.host));
        }
        if vm.state != VmState::Running {
            return Err(format!("the VM is {:?}", vm.state));
        }
        if matches!(action.action, Action::Migrate(_)) {
            self.move_still_holds(now, action)?;
        }
        self.verdict(action.clone())
    }

    fn move_still_holds(&self, now: Timestamp, action: &PlannedAction) -> Result<(), String> {
        let host = &action.host;
        let is_drained = self.moves.draining.contains_key(host);
        let rounds = if self.moves.guards.plans(Guard::Rounds) { self.policy.migrate.rounds.max(1) } else { 1 };
        let full_rounds = self.fleet.hosts.get(host).and_then(|host| host.prospect).map_or(0, |host| host.full_rounds);
        // For the reason that an operator was told, or not at all.
        match action.reason {
            Reason::Drained { .. } if !is_drained => return Err(format!("host {host} is not emptied any more")),
            Reason::Drained { .. } => {}
            _ if full_rounds == 0 => return Err(format!("host {host} has room again")),
            _ if full_rounds < rounds => return Err(format!("host {host} had room again for a while")),
            _ => {}
        }
        if !self.may_leave(now, host, action.vm, is_drained) {
            return Err("the VM is to stay where it is for now".to_owned());
        }
        Ok(())
    }

    /// Whether something is proposed already, near enough, or was denied not long ago.
    pub(super) fn is_proposed(&self, now: Timestamp, vm: VmId, wish: &Wish) -> bool {
        let subject = (vm, Some(wish.target.means()));
        let is_slack = wish.reason.is_slack();
        let is_near = |proposal: &Proposal| {
            proposal.action.reason.is_slack() == is_slack
                && matches!(proposal.action.action, Action::Set(target) if self.is_near(target, wish.target))
        };
        self.proposals.is_denied(now, subject, is_slack, &self.policy.approve)
            || self.proposals.about(subject).is_some_and(is_near)
    }

    /// Whether an operator denied to move a VM not long ago.
    pub(super) fn is_move_denied(&self, now: Timestamp, vm: VmId) -> bool {
        self.move_mode_of(vm) == Mode::Approve && self.proposals.is_denied(now, (vm, None), false, &self.policy.approve)
    }

    fn is_near(&self, one: Setting, other: Setting) -> bool {
        match (one, other) {
            (Setting::CpuQuota { cores: Some(one) }, Setting::CpuQuota { cores: Some(other) }) => {
                (one - other).abs() <= self.policy.cpu.hysteresis * one
            }
            (Setting::Memory { bytes: one }, Setting::Memory { bytes: other }) => {
                one.abs_diff(other) as f64 <= self.policy.memory.hysteresis * one as f64
            }
            _ => one == other,
        }
    }

    /// Withdraws what is proposed for a VM's size and no longer wanted: `wishes` are those of its latest report on `host` that may
    /// be carried out. Where that told nothing, and nobody holds the VM, the proposal waits for the next one.
    pub(super) fn confirm_sizes(&mut self, now: Timestamp, host: &HostId, vm: VmId, wishes: &[Wish], is_held: bool) {
        let Some(known) = self.fleet.vms.get(&vm) else { return };
        let told = [(Means::CpuQuota, known.verdict.is_some()), (Means::Memory, known.balloon_verdict.is_some())];
        for (means, is_told) in told {
            let Some(proposal) = self.proposals.about((vm, Some(means))) else { continue };
            let is_wanted = wishes.iter().any(|wish| wish.target.means() == means) || !(is_told || is_held);
            if proposal.action.host != *host || !is_wanted {
                self.withdraw(now, proposal.key, "it is not wanted any more");
            }
        }
    }

    /// Withdraws the move that is proposed from a host, unless it holds as before; says whether one stays open.
    pub(super) fn confirm_move(&mut self, now: Timestamp, host: &HostId) -> bool {
        let is_from = |proposal: &&Proposal| {
            proposal.action.host == *host && matches!(proposal.action.action, Action::Migrate(_))
        };
        let Some(proposal) = self.proposals.open.values().find(is_from) else { return false };
        let (key, action) = (proposal.key, proposal.action.clone());
        // A command that is on its way to the VM is no reason to forget the move.
        if self.fleet.vms.get(&action.vm).is_some_and(|vm| vm.host.as_ref() == Some(host) && vm.flight.is_some()) {
            return true;
        }
        match self.still_holds(now, &action) {
            Ok(()) => true,
            Err(why) => {
                self.withdraw(now, key, &why);
                false
            }
        }
    }

    /// Withdraws all that is proposed for a VM that is gone.
    pub(super) fn withdraw_all_of(&mut self, vm: VmId) {
        for means in [None, Some(Means::CpuQuota), Some(Means::Memory)] {
            if let Some(&key) = self.proposals.by_subject.get(&(vm, means)) {
                self.withdraw(self.now, key, "the VM is gone");
            }
        }
    }

    fn withdraw(&mut self, now: Timestamp, key: ProposalKey, why: &str) {
        self.end(now, ACTOR, "withdraw", key, ProposalState::Withdrawn, why.to_owned());
    }

    /// Makes a plan of actions and puts it before an operator.
    pub(super) fn propose(&mut self, now: Timestamp, mut actions: Vec<PlannedAction>) {
        let mut room = self.policy.approve.open_max.saturating_sub(self.proposals.open.len());
        let wanted = actions.len();
        actions.retain(|action| {
            let replaces = self.proposals.by_subject.contains_key(&subject(action));
            let fits = replaces || room > 0;
            room = room.saturating_sub(usize::from(fits && !replaces));
            fits
        });
        let is_full = actions.len() < wanted;
        if is_full && !std::mem::replace(&mut self.proposals.is_full_told, is_full) {
            let text = format!("{} proposals wait for an operator: no more are made", self.proposals.open.len());
            self.notice("proposals_full", text);
        }
        let Some(plan) = self.checked(now, actions, false) else { return };
        self.persist(Record::Plan(plan.clone()));
        for action in plan.actions {
            self.put_forward(now, action);
        }
    }

    fn put_forward(&mut self, now: Timestamp, action: PlannedAction) {
        self.proposals.made += 1;
        let key = ProposalKey { term: self.fence.term, number: self.proposals.made };
        if let Some(&old) = self.proposals.by_subject.get(&subject(&action)) {
            let detail = format!("proposal {key} took its place");
            self.end(now, ACTOR, "supersede", old, ProposalState::Superseded, detail);
        }
        let (summary, reason) = (action.summary(), action.why(now));
        let detail = format!("{summary}: {reason}");
        let proposal = Proposal {
            key,
            name: self.fleet.vms.get(&action.vm).map_or_else(String::new, |vm| vm.name.clone()),
            effect: action.effect(),
            action,
            summary,
            reason,
            proposed: now,
            expires: now + Duration::from_millis(self.policy.approve.timeout_ms),
            state: ProposalState::AwaitingApproval,
            since: now,
            detail: detail.clone(),
            decided_by: None,
        };
        self.audit(now, ACTOR, "propose", format!("vm {}", proposal.action.vm), format!("proposal {key}: {detail}"));
        self.persist(Record::Proposal(Box::new(proposal.clone())));
        self.proposals.insert(proposal);
    }

    /// Does what is due by the time alone: what nobody decided expires, and what another mode made pointless is withdrawn.
    pub(super) fn tend_proposals(&mut self, now: Timestamp) {
        let due = self.proposals.open.values().filter_map(|proposal| {
            let mode = self.mode_for(proposal.action.vm, &proposal.action.action);
            (mode != Mode::Approve || proposal.expires <= now).then_some((proposal.key, mode))
        });
        for (key, mode) in due.collect::<Vec<_>>() {
            if mode == Mode::Approve {
                let detail = "nobody approved or denied it in time".to_owned();
                self.end(now, ACTOR, "expire", key, ProposalState::Expired, detail);
            } else {
                self.withdraw(now, key, &format!("the mode is {} now", mode.name()));
            }
        }
    }

    /// A restart brings one back.
    pub(super) fn restore_proposal(&mut self, proposal: Proposal) {
        if proposal.state.is_open() {
            return self.proposals.insert(proposal);
        }
        if proposal.state == ProposalState::Denied {
            let (about, is_slack) = (subject(&proposal.action), proposal.action.reason.is_slack());
            self.proposals.deny(proposal.since, about, is_slack, &self.policy.approve);
        }
        self.proposals.close(proposal);
    }

    /// What waits for an operator, or was denied, of one VM: for `explain`.
    pub(super) fn proposals_in_words(&self, vm: VmId) -> Vec<String> {
        let mut lines = Vec::new();
        for means in [Some(Means::CpuQuota), Some(Means::Memory), None] {
            if let Some(proposal) = self.proposals.about((vm, means)) {
                let left_s = proposal.expires.since(self.now).as_secs();
                lines.push(format!(
                    "Proposal {} waits for an operator for another {left_s} s: {}, because {}.",
                    proposal.key, proposal.summary, proposal.reason
                ));
            }
            let what = means.map_or_else(|| "a move".to_owned(), |means| format!("the {means}"));
            for (is_slack, direction) in [(true, " less of"), (false, "")] {
                if self.proposals.is_denied(self.now, (vm, means), is_slack, &self.policy.approve) {
                    lines
                        .push(format!("An operator denied{direction} {what}: that is not proposed again for a while."));
                }
            }
        }
        lines
    }

    /// Brings a proposal to its end, says so, and keeps it.
    fn end(&mut self, now: Timestamp, actor: &str, verb: &str, key: ProposalKey, state: ProposalState, detail: String) {
        let Some(proposal) = self.proposals.open.remove(&key) else { return };
        self.proposals.by_subject.remove(&subject(&proposal.action));
        self.proposals.is_full_told = false;
        let line = format!("proposal {key} ({}): {detail}", proposal.summary);
        let proposal = Proposal { state, since: now, detail, ..proposal };
        self.audit(now, actor, verb, format!("vm {}", proposal.action.vm), line);
        self.persist(Record::Proposal(Box::new(proposal.clone())));
        self.proposals.close(proposal);
    }
}
