//! Rules that must hold whatever befalls a world, judged by the world's truth and by what the brain was told. Three are held against the brain's own
//! word, since only it has a forecast: for how many reports a host was full, what a move is expected to gain, and how good a forecast was.

mod places;
mod sizes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Command, CommandId, Fence, HostId, Means, Migration, Outcome, OutcomeResult, Report, ShadowOrder, VmId,
    VmState, Whereabouts,
};
use gnomon_core::{Core, Mode, OperatorRequest, Plan, PlannedAction, Policy, Reason, Record, Scope};

use crate::agent::Agent;
use crate::vm::SimVm;
use places::{judge_labels, places};
use sizes::{Swing, ToldMemory};

const HOUR: Duration = Duration::from_hours(1);

/// How long after its time to live and its time-out a command may still be answered, as the core has it.
const ANSWER_GRACE: Duration = Duration::from_secs(30);

/// Plans remembered until their commands are seen.
const PLANS_MAX: usize = 64;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// When.
    pub at: Timestamp,
    /// Which rule.
    pub rule: &'static str,
    /// How.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.how)
    }
}

/// What the checker may look at.
pub(crate) struct Scene<'a> {
    pub(crate) now: Timestamp,
    pub(crate) policy: &'a Policy,
    pub(crate) core: &'a Core,
    pub(crate) agents: &'a BTreeMap<HostId, Agent>,
}

/// What it remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checker {
    broken: Option<Broken>,
    ids: BTreeSet<CommandId>,
    fences: BTreeMap<VmId, Fence>,
    held: BTreeSet<Scope>,
    /// What operators let be done with plans.
    modes: BTreeMap<Scope, Mode>,
    /// Resizes that nobody asked for, of each VM.
    resizes: Vec<(Timestamp, VmId)>,
    draining: BTreeSet<HostId>,
    /// Mean demand of each VM, as its hosts told last, in cores.
    told_cores: BTreeMap<VmId, f64>,
    /// On their way as far as the brain can know: by which command, from where, to where, and when it gives up waiting.
    under_way: BTreeMap<VmId, (CommandId, HostId, HostId, Timestamp)>,
    begun: Vec<(Timestamp, VmId)>,
    /// Where each VM was told to run, and until when that window lasted.
    runs_on: BTreeMap<VmId, (HostId, Timestamp)>,
    /// Where the brain has sent VMs at any time.
    sent_to: BTreeSet<(VmId, HostId)>,
    stranger_at: Option<Timestamp>,
    plans: VecDeque<Plan>,
    /// VMs of which operators wanted shadows.
    shadowed: BTreeSet<VmId>,
    /// What operators have approved, until it is commanded.
    approved: Vec<(VmId, Action)>,
    /// All VMs that ever were.
    vms: BTreeSet<VmId>,
    /// The newest that each host has obeyed for each VM.
    obeyed: BTreeMap<(HostId, VmId), Fence>,
    /// Commands that change something and are not answered, and until when they are waited for.
    unanswered: BTreeMap<VmId, (CommandId, Timestamp)>,
    /// VMs that stand still between two hosts, as far as the brain can know.
    parked: BTreeSet<VmId>,
    told_memory: ToldMemory,
    swings: BTreeMap<(VmId, Means), Swing>,
}

impl Checker {
    pub(crate) fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    pub(crate) fn brain_starts(&mut self) {
        self.plans.clear();
    }

    pub(crate) fn record(&mut self, record: &Record) {
        if let Record::Plan(plan) = record {
            self.plans.push_back(plan.clone());
            if self.plans.len() > PLANS_MAX {
                self.plans.pop_front();
            }
        }
    }

    pub(crate) fn report(&mut self, now: Timestamp, report: &Report) {
        let end = report.start + Duration::from_millis(u64::from(report.window_ms));
        // A shadow that was made elsewhere has not been moved.
        let productions = report.vms.iter().filter(|window| window.shadow.is_none());
        for window in productions.filter(|window| window.state == VmState::Running) {
            let known = self.runs_on.get(&window.vm);
            if known.is_some_and(|(_, until)| end <= *until) {
                continue;
            }
            let moved = known.is_some_and(|(host, _)| *host != report.host);
            if moved && !self.sent_to.contains(&(window.vm, report.host.clone())) {
                self.stranger_at = Some(now);
            }
            self.runs_on.insert(window.vm, (report.host.clone(), end));
            if self.parked.remove(&window.vm) {
                self.under_way.remove(&window.vm);
                self.unanswered.remove(&window.vm);
            }
        }
        for window in &report.vms {
            if let Some(cpu) = window.cpu {
                self.told_cores.insert(window.vm, cpu.demand_low.mean.min(f64::from(window.allocation.vcpus)));
            }
            if let Some(memory) = window.memory {
                self.told_memory.insert(window.vm, memory);
            }
        }
    }

    pub(crate) fn outcome(&mut self, outcome: &Outcome) {
        if matches!(outcome.result, OutcomeResult::NotMoved { whereabouts: Whereabouts::Parked, .. }) {
            self.parked.insert(outcome.vm);
            return;
        }
        if self.unanswered.get(&outcome.vm).is_some_and(|(id, _)| *id == outcome.id) {
            self.unanswered.remove(&outcome.vm);
        }
        if self.under_way.get(&outcome.vm).is_some_and(|(id, ..)| *id == outcome.id) {
            self.under_way.remove(&outcome.vm);
            let was_begun = matches!(outcome.result, OutcomeResult::Moved(_) | OutcomeResult::NotMoved { .. });
            if !was_begun && let Some(place) = self.begun.iter().rposition(|(_, vm)| *vm == outcome.vm) {
                self.begun.remove(place);
            }
        }
    }

    pub(crate) fn operator(&mut self, request: &OperatorRequest) {
        match request {
            OperatorRequest::Pause { scope } | OperatorRequest::Release { scope } => {
                self.held.insert(scope.clone());
            }
            OperatorRequest::Resume { scope: Scope::Fleet } => self.held.clear(),
            OperatorRequest::Resume { scope } => {
                self.held.remove(scope);
            }
            OperatorRequest::SetMode { scope, mode } => {
                self.modes.insert(scope.clone(), *mode);
            }
            OperatorRequest::Drain { host } => {
                self.draining.insert(host.clone());
            }
            OperatorRequest::Undrain { host } => {
                self.draining.remove(host);
            }
            OperatorRequest::MakeShadow { vm } => {
                self.shadowed.insert(*vm);
            }
            OperatorRequest::Set { .. }
            | OperatorRequest::Migrate { .. }
            | OperatorRequest::AbortMigration { .. }
            | OperatorRequest::ApproveCapacity { .. }
            | OperatorRequest::DenyCapacity { .. }
            | OperatorRequest::ApproveProposal { .. }
            | OperatorRequest::DenyProposal { .. }
            | OperatorRequest::SetFidelity { .. }
            | OperatorRequest::TryShadow { .. }
            | OperatorRequest::RetireShadow { .. } => {}
        }
    }

    pub(crate) fn approve(&mut self, action: &PlannedAction) {
        self.approved.push((action.vm, action.action.clone()));
    }

    pub(crate) fn command(&mut self, scene: &Scene<'_>, host: &HostId, command: &Command) {
        if self.broken.is_some() {
            return;
        }
        if let Err((rule, how)) = self.judge(scene, host, command) {
            let how = format!("{}, {command:?}", how);
            self.broken = Some(Broken { at: scene.now, rule, how });
        }
        let answered_by =
            |takes_ms: u64| scene.now + Duration::from_millis(command.time_to_live_ms + takes_ms) + ANSWER_GRACE;
        if matches!(command.action, Action::Set(_) | Action::Release) {
            self.unanswered.insert(command.vm, (command.id, answered_by(0)));
        }
        if let Action::Migrate(migration) = &command.action {
            let until = answered_by(migration.timeout_ms);
            self.unanswered.insert(command.vm, (command.id, until));
            let way = (command.id, host.clone(), migration.to.clone(), until);
            self.under_way.insert(command.vm, way);
            self.begun.push((scene.now, command.vm));
            self.sent_to.insert((command.vm, migration.to.clone()));
        }
    }

    fn judge(&mut self, scene: &Scene<'_>, host: &HostId, command: &Command) -> Result<(), (&'static str, String)> {
        ensure(self.ids.insert(command.id), "an id is used once", || "it was sent before".to_owned())?;
        let last = self.fences.insert(command.vm, command.fence);
        ensure(last.is_none_or(|last| last < command.fence), "every command is fenced", || format!("after {last:?}"))?;
        // That what a shadow does goes on is no plan of its own.
        if matches!(command.action, Action::Shadow(ShadowOrder::Pace(_))) {
            return Ok(());
        }
        // Nor is another look at what one that runs is made from, which changes nothing.
        let is_anew = scene.core.shadow(command.vm).is_some_and(|view| view.shadow.state.is_up());
        if command.action == Action::Describe && is_anew {
            return Ok(());
        }
        let of_plan = |plan: &&Plan| plan.fence == command.fence;
        let planned = self.plans.iter().find(of_plan).and_then(|plan| plan.actions.iter().find(|a| a.vm == command.vm));
        let planned = planned.cloned();
        ensure(planned.is_some(), "every command has a plan", || "no plan has its fence".to_owned())?;
        let Some(planned) = planned else { return Ok(()) };
        if let Action::Shadow(order) = &command.action {
            return self.judge_order(scene, host, command, order);
        }
        let copies = places(scene.agents, command.vm);
        // A host that begins to be emptied is asked at once, about what it told last: one may have ended since.
        let has_ended = copies == 0 && matches!(command.action, Action::DirtyRate { .. });
        ensure(copies == 1 || has_ended, "a VM is in one place", || format!("it is in {copies}"))?;
        if matches!(command.action, Action::Set(_) | Action::Release | Action::Migrate(_)) {
            let waits = self.unanswered.get(&command.vm).filter(|(_, until)| *until > scene.now);
            ensure(waits.is_none(), "a VM gets one command at a time", || format!("{waits:?}"))?;
        }
        if planned.reason == Reason::Operator {
            return Ok(());
        }
        // Looking at a VM is not doing anything to it.
        let is_look = matches!(command.action, Action::Describe | Action::DirtyRate { .. });
        if !is_look {
            self.judge_modes(scene, host, command, &planned)?;
        }
        if let (Action::Set(_), None) = (&command.action, &planned.approved_by) {
            self.judge_budget(scene, command.vm)?;
        }
        if matches!(command.action, Action::Set(_)) {
            self.resizes.push((scene.now, command.vm));
        }
        if scene.policy.mode_for(&command.action) == Mode::Approve {
            let word = self.approved.iter().position(|(vm, action)| *vm == command.vm && *action == command.action);
            ensure(word.is_some(), "nothing is done that nobody approved", || planned.summary())?;
            word.map(|place| self.approved.remove(place));
        }
        let scopes = [Scope::Fleet, Scope::Host(host.clone()), Scope::Vm(command.vm)];
        let held = scopes.iter().find(|scope| self.held.contains(*scope));
        ensure(held.is_none(), "nothing is done to what is held", || format!("{held:?}"))?;
        if let (Some(skill_min), Reason::ForecastSurge { .. }) = (scene.policy.forecast.skill_min, planned.reason) {
            let near = scene.core.forecast(command.vm).filter(|forecast| forecast.season_ms.is_some());
            // Nothing to err about is no skill.
            let skill = near.map(|forecast| 1.0 - forecast.relative_error.unwrap_or(1.0));
            let is_good = skill.is_some_and(|skill| skill >= skill_min);
            ensure(is_good, "no poor forecast is acted on", || format!("{skill:?} of {skill_min}"))?;
        }
        let takes = matches!(planned.reason, Reason::Slack { .. } | Reason::MemorySlack { .. });
        if takes || matches!(planned.reason, Reason::HostFull { .. } | Reason::HostMemoryFull { .. }) {
            let windows = &scene.policy.windows;
            let is_in = |windows: &[String]| windows.iter().any(|window| is_within(scene.now, window));
            let is_open = (windows.allow.is_empty() || is_in(&windows.allow)) && !is_in(&windows.freeze);
            ensure(is_open, "nothing is shrunk or moved at the wrong time", || format!("{windows:?}"))?;
        }
        let vm = scene.agents.get(host).and_then(|agent| agent.vms.iter().find(|vm| vm.id == command.vm));
        if let Some(vm) = vm.filter(|_| !is_look) {
            ensure(!vm.terms.hands_off(), "an owner's word is kept", || format!("{:?}", vm.terms))?;
        }
        match &command.action {
            Action::Set(target) => self.judge_size(scene, host, vm, &planned, *target),
            Action::Migrate(migration) => self.judge_move(scene, host, vm, &planned, migration),
            Action::Release | Action::AbortMigration => Err(("a planner neither releases nor aborts", String::new())),
            Action::Describe | Action::Image(_) | Action::DirtyRate { .. } | Action::Shadow(_) => Ok(()),
        }
    }

    /// Of all that is said of the fleet, the hosts concerned and the VM the most cautious counts.
    fn judge_modes(
        &self,
        scene: &Scene<'_>,
        host: &HostId,
        command: &Command,
        planned: &PlannedAction,
    ) -> Result<(), (&'static str, String)> {
        let to = match &command.action {
            Action::Migrate(migration) => Some(&migration.to),
            _ => None,
        };
        let hosts = [Some(host), to].into_iter().flatten().map(|host| Scope::Host(host.clone()));
        let scopes = hosts.chain([Scope::Fleet, Scope::Vm(command.vm)]);
        let by_operators = scopes.filter_map(|scope| self.modes.get(&scope).copied()).min().unwrap_or(Mode::Auto);
        let vm = scene.agents.get(host).and_then(|agent| agent.vms.iter().find(|vm| vm.id == command.vm));
        // Its owner's word on a VM is none on its shadow.
        let is_for_shadow = matches!(command.action, Action::Image(_));
        let by_owner = vm.filter(|_| !is_for_shadow).and_then(|vm| vm.terms.mode).unwrap_or(Mode::Auto);
        let mode = by_operators.min(by_owner);
        let is_kept = mode == Mode::Auto || (mode == Mode::Approve && planned.approved_by.is_some());
        ensure(is_kept, "no more is done than the narrowest mode allows", || format!("{mode}"))
    }

    /// So many resizes are made in an hour.
    fn judge_budget(&self, scene: &Scene<'_>, vm: VmId) -> Result<(), (&'static str, String)> {
        let of_hour = || self.resizes.iter().filter(|(at, _)| scene.now.since(*at) < HOUR);
        let (fleet, own) = (of_hour().count(), of_hour().filter(|(_, of)| *of == vm).count());
        let policy = &scene.policy.resize;
        let is_kept = fleet < policy.fleet_per_hour_max && own < policy.vm_per_hour_max;
        ensure(is_kept, "so many resizes are made in an hour", || format!("{own} of it, {fleet} in all"))
    }

    /// What is true of shadows at any time: where the brain knew, none is made beside its production, none runs twice, and no host has more
    /// than it takes.
    fn judge_order(
        &self,
        scene: &Scene<'_>,
        host: &HostId,
        command: &Command,
        order: &ShadowOrder,
    ) -> Result<(), (&'static str, String)> {
        ensure(scene.policy.shadow.mode == Mode::Auto, "shadows are made where policy says so", || order.to_string())?;
        let scopes = [Scope::Fleet, Scope::Host(host.clone()), Scope::Vm(command.vm)];
        let held = scopes.iter().find(|scope| self.held.contains(*scope));
        ensure(held.is_none(), "nothing is done to what is held", || format!("{held:?}"))?;
        let is_cautious = [Scope::Fleet, Scope::Host(host.clone())]
            .iter()
            .any(|scope| self.modes.get(scope).is_some_and(|mode| *mode != Mode::Auto));
        ensure(!is_cautious, "no more is done than the narrowest mode allows", || order.to_string())?;
        let is_production = scene.agents.values().flat_map(|agent| &agent.vms).any(|vm| vm.id == command.vm);
        ensure(!is_production, "no production is taken for a shadow", || command.vm.to_string())?;
        let made = scene.agents.get(host).and_then(|agent| agent.shadows.get(&command.vm));
        if let (ShadowOrder::Start, Some(shadow)) = (order, made) {
            self.judge_way(scene, shadow.of, host)?;
        }
        if let ShadowOrder::Copy(spec) = order {
            let told = self.runs_on.get(&spec.of).map(|(on, _)| on);
            ensure(told != Some(host), "no shadow is made beside its production", || format!("{told:?}"))?;
            self.judge_way(scene, spec.of, host)?;
            let elsewhere =
                scene.agents.iter().find(|(on, agent)| *on != host && agent.shadows.contains_key(&command.vm));
            ensure(elsewhere.is_none(), "no shadow is in two places", || format!("{:?}", elsewhere.map(|(on, _)| on)))?;
            let mut productions = scene.agents.values().flat_map(|agent| &agent.vms);
            let owner = productions.find(|vm| vm.id == spec.of).map(|vm| &vm.terms);
            let is_free = owner.is_none_or(|terms| !terms.hands_off()) || self.shadowed.contains(&spec.of);
            ensure(is_free, "an owner's word is kept", || format!("{owner:?}"))?;
            owner.map_or(Ok(()), |terms| judge_labels(scene, host, terms))?;
            let draining = self.draining.contains(host);
            ensure(!draining, "no VM goes to a host that is being emptied", || host.to_string())?;
        }
        Ok(())
    }

    /// Where a production is going, no shadow of it is made or started.
    fn judge_way(&self, scene: &Scene<'_>, of: VmId, host: &HostId) -> Result<(), (&'static str, String)> {
        let way = self.under_way.get(&of).filter(|(_, _, to, until)| to == host && *until > scene.now);
        ensure(way.is_none(), "no shadow is made where its production is going", || format!("{way:?}"))
    }

    /// Whether the brain can know that a VM is on a host: that told so, or it was sent there. Where somebody else has moved it a moment ago
    /// the brain cannot.
    fn is_known_on(&self, vm: VmId, host: &HostId) -> bool {
        self.runs_on.get(&vm).is_some_and(|(on, _)| on == host) || self.sent_to.contains(&(vm, host.clone()))
    }

    fn judge_move(
        &self,
        scene: &Scene<'_>,
        from: &HostId,
        vm: Option<&SimVm>,
        planned: &PlannedAction,
        migration: &Migration,
    ) -> Result<(), (&'static str, String)> {
        let (now, to, policy) = (scene.now, &migration.to, &scene.policy.migrate);
        let Some(target) = scene.agents.get(to).filter(|_| to != from) else {
            return Err(("a move leads to another host", to.to_string()));
        };
        ensure(target.running && target.linked, "a target is reachable", || to.to_string())?;
        ensure(!self.draining.contains(to), "no VM goes to a host that is emptied", || to.to_string())?;
        ensure(!self.held.contains(&Scope::Host(to.clone())), "nothing is done to what is held", || to.to_string())?;
        let others: Vec<_> = self.under_way.values().filter(|(.., until)| *until > now).collect();
        let meets = others.iter().any(|(_, leaves, comes, _)| leaves == from || comes == to);
        ensure(!meets, "one VM at a time leaves or comes", || format!("{others:?}"))?;
        ensure(others.len() < policy.at_once_max, "so many are on their way at once", || format!("{others:?}"))?;
        let within_hour = self.begun.iter().filter(|(begun, _)| now.since(*begun) < HOUR).count();
        ensure(within_hour < policy.per_hour_max, "so many moves are made in an hour", || within_hour.to_string())?;
        let stand_down = Duration::from_millis(policy.stand_down_ms);
        let beside_another = self.stranger_at.is_some_and(|at| now.since(at) < stand_down);
        ensure(!beside_another, "two balancers do not chase each other", || format!("{:?}", self.stranger_at))?;
        let is_drained = matches!(planned.reason, Reason::Drained { .. });
        ensure(!is_drained || self.draining.contains(from), "a reason is true", || "it is not emptied".to_owned())?;
        if !is_drained {
            let cool_down = Duration::from_millis(policy.cool_down_ms);
            let lately = self.begun.iter().any(|(at, vm)| *vm == planned.vm && now.since(*at) < cool_down);
            ensure(!lately, "a VM that was moved stays for a while", String::new)?;
            let rounds = scene.core.host(from).and_then(|host| host.outlook).map_or(0, |outlook| outlook.full_rounds);
            ensure(rounds >= policy.rounds, "a host is full for a while", || format!("{rounds} rounds"))?;
        }
        if let Reason::HostFull { expected, .. } | Reason::HostMemoryFull { expected, .. } = planned.reason {
            let gain = expected.from_before - expected.to_after;
            ensure(gain >= policy.gain_min - 1e-9, "a move is worth it", || format!("{gain}"))?;
        }
        let mut shadows = scene.core.shadows().into_iter().map(|view| view.shadow);
        let beside = shadows
            .find(|shadow| shadow.of == planned.vm && shadow.host.as_ref() == Some(to) && shadow.state.is_coming());
        ensure(beside.is_none(), "no VM is sent to where its shadow stays", || format!("{beside:?}"))?;
        let Some(vm) = vm else { return Ok(()) };
        ensure(vm.terms.stays_because().is_none(), "an owner's word is kept", || format!("{:?}", vm.terms))?;
        let usable = 1.0 - policy.reserve_share;
        let there = || target.vms.iter().filter(|vm| self.is_known_on(vm.id, to)).chain([vm]);
        let memory: u64 = there().map(SimVm::has_bytes).sum();
        let room = target.facts.memory_bytes as f64 * usable;
        ensure(memory as f64 <= room, "no host gets more memory to bear than it has", || {
            format!("{memory} of {room}")
        })?;
        let cores: f64 = there().filter_map(|vm| self.told_cores.get(&vm.id)).sum();
        let room = target.facts.capacity_cores * usable;
        ensure(cores <= room + 1e-9, "no host gets more CPU to bear than it has", || format!("{cores} of {room}"))?;
        if let Some(group) = &vm.terms.apart {
            let met = there().any(|other| other.id != vm.id && other.terms.apart.as_ref() == Some(group));
            ensure(!met, "VMs that belong apart do not meet", || group.clone())?;
        }
        if let Some(group) = &vm.terms.together {
            let elsewhere = scene.agents.iter().filter(|(host, _)| *host != to && !(is_drained && *host == from));
            let mut elsewhere =
                elsewhere.flat_map(|(host, agent)| agent.vms.iter().filter(|other| self.is_known_on(other.id, host)));
            let left = elsewhere.any(|other| other.id != vm.id && other.terms.together.as_ref() == Some(group));
            ensure(!left, "VMs that belong together are not parted", || group.clone())?;
        }
        judge_labels(scene, to, &vm.terms)?;
        self.judge_zones(scene, from, vm, to)
    }

    /// Zones are left where policy says so, and VMs that belong in different ones do not meet by a move from one to the other.
    fn judge_zones(
        &self,
        scene: &Scene<'_>,
        from: &HostId,
        vm: &SimVm,
        to: &HostId,
    ) -> Result<(), (&'static str, String)> {
        let zone_of = |host: &HostId| scene.agents.get(host).and_then(|agent| agent.facts.zone.clone());
        let zone = zone_of(to);
        if zone_of(from) == zone {
            return Ok(());
        }
        ensure(scene.policy.migrate.across_zones, "a VM stays in its zone", || format!("{zone:?}"))?;
        let Some(group) = &vm.terms.apart_zones else { return Ok(()) };
        let all = scene.agents.iter().flat_map(|(host, agent)| agent.vms.iter().map(move |vm| (host, vm)));
        let met = all.filter(|(_, other)| other.id != vm.id && other.terms.apart_zones.as_ref() == Some(group)).find(
            |(host, other)| {
                let goes = self.under_way.get(&other.id).filter(|(.., until)| *until > scene.now);
                let is_known_here = zone_of(host) == zone && self.is_known_on(other.id, host);
                is_known_here || goes.is_some_and(|(_, _, comes, _)| zone_of(comes) == zone)
            },
        );
        ensure(met.is_none(), "VMs that belong in different zones do not meet", || group.clone())
    }
}

/// Whether it is within a window of a drawn world, which lasts for some minutes of one Thursday in UTC: `Thu 00:05-00:09` is a part of it, one
/// of Wednesday reaches into it if it ends after midnight, and no other concerns it.
fn is_within(now: Timestamp, window: &str) -> bool {
    let number = |text: &str| text.parse().unwrap_or(0_u64);
    let minute = |time: &str| time.split_once(':').map_or(0, |(hour, minute)| number(hour) * 60 + number(minute));
    let (day, times) = window.split_once(' ').unwrap_or_default();
    let (from, to) = times.split_once('-').map_or((0, 0), |(from, to)| (minute(from), minute(to)));
    let at = now.unix_ms() / 60_000 % (24 * 60);
    match day {
        "Thu" => (from..to).contains(&at),
        "Wed" => to < from && at < to,
        _ => false,
    }
}

fn ensure(holds: bool, rule: &'static str, how: impl FnOnce() -> String) -> Result<(), (&'static str, String)> {
    if holds { Ok(()) } else { Err((rule, how())) }
}
