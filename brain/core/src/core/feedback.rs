//! Looking back: what came of what actions were taken for. Each verdict is kept under its command's id, and goes to the audit log.

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, HostId, Outcome, OutcomeResult, Report, VmId, VmState, VmWindow};

use super::sizes::PROMISE_DWELL;
use super::{ACTOR, Core};
use crate::fleet::{believed_allocation, believed_cpu};
use crate::io::Record;
use crate::plan::PlannedAction;
use crate::plan::balance::{Claim, Load, Room};
use crate::plan::expectation::{Cost, Ending, Expectation, ExpectationState, Expected, SURGE_STEPS};
use crate::plan::memory::BalloonSizing;
use crate::plan::size::live_cores;

/// Expectations about a VM's sizes that are looked after at once; with one more, the oldest is judged by what was seen so far.
const SIZES_MAX: usize = 16;

/// What is expected at present.
#[derive(Clone, Debug, Default)]
pub(super) struct Feedback {
    /// Of VMs' sizes, the oldest first.
    sizes: BTreeMap<VmId, Vec<Expectation>>,
    /// Of VMs' last moves.
    moves: BTreeMap<VmId, Expectation>,
}

impl Feedback {
    /// Takes one in; returns the one that it drives out.
    fn add(&mut self, expectation: Expectation) -> Option<Expectation> {
        if matches!(expectation.of, Expected::Relief { .. }) {
            return self.moves.insert(expectation.vm, expectation);
        }
        let sizes = self.sizes.entry(expectation.vm).or_default();
        sizes.push(expectation);
        (sizes.len() > SIZES_MAX).then(|| sizes.remove(0))
    }

    fn of_vm(&mut self, vm: VmId) -> impl Iterator<Item = &mut Expectation> {
        self.sizes.get_mut(&vm).into_iter().flatten().chain(self.moves.get_mut(&vm))
    }

    /// Takes those of a VM out that `is_meant`.
    fn take(&mut self, vm: VmId, is_meant: impl Fn(&Expectation) -> bool) -> Vec<Expectation> {
        let mut taken: Vec<Expectation> = Vec::new();
        if let Some(sizes) = self.sizes.get_mut(&vm) {
            taken.extend(sizes.extract_if(.., |expectation| is_meant(expectation)));
            if sizes.is_empty() {
                self.sizes.remove(&vm);
            }
        }
        if self.moves.get(&vm).is_some_and(is_meant) {
            taken.extend(self.moves.remove(&vm));
        }
        taken
    }
}

impl Core {
    /// A command is made: what its action is taken for is expected from then on.
    pub(super) fn expect(&mut self, now: Timestamp, command: CommandId, action: &PlannedAction) {
        let near = Duration::from_millis(self.policy.forecast.resolution_ms);
        let Some(vm) = self.fleet.vms.get(&action.vm) else { return };
        let lasts = |of: &Expected| match of {
            Expected::Surge { .. } => {
                // Which of its forecasts saw the surge is not told: the coarser one is no better known than to its step.
                let far = vm.pattern.ahead(vm.window_end, Duration::ZERO);
                far.map_or(near, |far| near.max(far.step)) * SURGE_STEPS
            }
            Expected::Promise { .. } => PROMISE_DWELL,
            Expected::Anomaly { until, .. } => until.since(now),
            Expected::Memory { .. } => Duration::from_millis(self.policy.memory.shrink_dwell_ms),
            Expected::Relief { .. } => Duration::from_millis(self.policy.migrate.lead_ms),
        };
        let Some(expectation) = Expectation::new(command, action, lasts) else { return };
        self.keep_expectation(now, &expectation);
        if let Some(oldest) = self.feedback.add(expectation) {
            let ending = if oldest.is_awaited() { oldest.ending() } else { Ending::NotDone };
            self.end_expectation(now, oldest, ending);
        }
    }

    /// A command was answered: what it was for is awaited, if it was carried out.
    pub(super) fn await_expected(&mut self, now: Timestamp, outcome: &Outcome) {
        let (id, vm) = (outcome.id, outcome.vm);
        let cost = match &outcome.result {
            OutcomeResult::Applied { took_us, .. } => Cost { took_us: *took_us, downtime_us: None, sent_bytes: None },
            OutcomeResult::Moved(moved) => {
                Cost { took_us: moved.took_us, downtime_us: moved.downtime_us, sent_bytes: moved.sent_bytes }
            }
            _ => return self.expect_no_more(now, vm, id),
        };
        let known = self.fleet.vms.get(&vm);
        let length = known.and_then(|vm| Some(vm.window_end.since(vm.last_window?))).unwrap_or_default();
        let Some(expectation) = self.feedback.of_vm(vm).find(|expectation| expectation.command == id) else { return };
        // The window in which it was carried out tells of the time before as well.
        expectation.carried_out(outcome.at + length, cost);
        let more = expectation.clone();
        let is_first =
            |other: &&mut Expectation| other.command != id && other.is_awaited() && other.is_same_surge(&more);
        let Some(first) = self.feedback.of_vm(vm).find(is_first) else { return self.keep_expectation(now, &more) };
        first.widen(&more);
        let first = first.clone();
        self.keep_expectation(now, &first);
        for more in self.feedback.take(vm, |expectation| expectation.command == id) {
            self.end_expectation(now, more, Ending::PartOf(first.command));
        }
    }

    /// A command was not carried out, or nobody knows.
    pub(super) fn expect_no_more(&mut self, now: Timestamp, vm: VmId, command: CommandId) {
        for expectation in self.feedback.take(vm, |expectation| expectation.command == command) {
            self.end_expectation(now, expectation, Ending::NotDone);
        }
    }

    /// A VM is seen no more, or by another clock: what is awaited of it ends as far as it was seen.
    pub(super) fn look_away(&mut self, now: Timestamp, vm: VmId) {
        for expectation in self.feedback.take(vm, Expectation::is_awaited) {
            let ending = expectation.ending();
            self.end_expectation(now, expectation, ending);
        }
    }

    /// Holds the windows of a report against what is expected of its VMs and its host.
    pub(super) fn see(&mut self, report: &Report, length: Duration) {
        let end = report.start + length;
        let Self { feedback, fleet, policy, .. } = self;
        let Some(host) = fleet.hosts.get(&report.host) else { return };
        for window in report.vms.iter().filter(|window| is_production(window)) {
            let Some(sizes) = feedback.sizes.get_mut(&window.vm) else { continue };
            // The host that it has left may tell of it for a while.
            if fleet.vms.get(&window.vm).and_then(|vm| vm.host.as_ref()) != Some(&report.host) {
                continue;
            }
            let allocation = believed_allocation(&window.allocation);
            let cpu = believed_cpu(window, report.start, length);
            let bounds = &host.facts.memory_bounds;
            let balloon = BalloonSizing::new(window.memory.as_ref(), allocation.memory_bytes, bounds, &policy.memory);
            for expectation in sizes {
                if let Some(cpu) = &cpu {
                    let (wanted, limit) = (live_cores(cpu, &allocation), allocation.cpu_limit_cores());
                    expectation.see_cpu(end, wanted, limit, policy.cpu.headroom);
                }
                if let Ok(balloon) = &balloon {
                    expectation.see_memory(end, balloon, policy.memory.headroom);
                }
            }
        }
        let room = Room::of(&host.facts, &policy.migrate);
        for expectation in feedback.moves.values_mut() {
            let Expected::Relief { leaves, goes_to, .. } = &expectation.of else { continue };
            let own = report.vms.iter().find(|window| window.vm == expectation.vm && is_production(window));
            if *goes_to == report.host
                && let Some(own) = own
            {
                let claim = claim(own, report.start, length);
                expectation.see_target(end, claim, &load(report, length, None), &room);
            } else if *leaves == report.host {
                expectation.see_source(end, &load(report, length, Some(expectation.vm)), &room);
            }
        }
    }

    /// Ends what was awaited of a host's VMs until a report's `end`.
    pub(super) fn look_back(&mut self, now: Timestamp, report: &Report, end: Timestamp) {
        for window in &report.vms {
            let is_here = |host: &HostId| *host == report.host;
            if !self.fleet.vms.get(&window.vm).and_then(|vm| vm.host.as_ref()).is_some_and(is_here) {
                continue;
            }
            for expectation in self.feedback.take(window.vm, |expectation| expectation.is_due(end)) {
                let ending = expectation.ending();
                self.end_expectation(now, expectation, ending);
            }
        }
    }

    fn end_expectation(&mut self, now: Timestamp, mut expectation: Expectation, ending: Ending) {
        expectation.state = ExpectationState::Over(ending);
        let (id, vm) = (expectation.command, expectation.vm);
        self.keep_expectation(now, &expectation);
        let Some((_, verb)) = expectation.verdict() else { return };
        let recent = self.fleet.vms.get_mut(&vm).into_iter().flat_map(|vm| &mut vm.recent);
        if let Some(recent) = recent.into_iter().find(|recent| recent.id == Some(id)) {
            recent.remark = Some(expectation.to_string());
        }
        self.audit(now, ACTOR, &verb, format!("vm {vm}"), format!("{id} {expectation}"));
    }

    fn keep_expectation(&mut self, now: Timestamp, expectation: &Expectation) {
        self.persist(Record::Expectation { expectation: Box::new(expectation.clone()), at: now });
    }

    /// A restart brings back one that is not over; what was seen of it the reports tell, which come after it.
    pub(super) fn restore_expectation(&mut self, expectation: Expectation) {
        if !expectation.is_over() {
            self.feedback.add(expectation);
        }
    }
}

fn is_production(window: &VmWindow) -> bool {
    window.state == VmState::Running && window.shadow.is_none()
}

/// What the VMs of a report took of their host together, but for one.
fn load(report: &Report, length: Duration, but: Option<VmId>) -> Load {
    let there = report.vms.iter().filter(|window| window.state == VmState::Running && Some(window.vm) != but);
    Load::of(there.map(|window| claim(window, report.start, length)))
}

/// What a VM took of its host in a window: what it wanted of the CPU as far as its quota lets it, and the memory that it had.
fn claim(window: &VmWindow, start: Timestamp, length: Duration) -> Claim {
    let allocation = believed_allocation(&window.allocation);
    let cores = believed_cpu(window, start, length).map_or(0.0, |cpu| live_cores(&cpu, &allocation));
    let memory_bytes = window.memory.and_then(|memory| memory.balloon_bytes).unwrap_or(allocation.memory_bytes);
    Claim { median_cores: cores, high_cores: cores, memory_bytes }
}
