//! The world: hosts, guests, links, and the brain, second by second.

mod hosts;
mod moves;

use std::collections::BTreeMap;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Command, HostId, Outcome, OutcomeResult, Report, ShadowOrder, VmId};
use gnomon_core::plan::guard::Guard;
use gnomon_core::view::{Forecast, VmView};
use gnomon_core::{Core, FitJob, Input, OperatorRequest, Output, Proposal, Record};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use crate::agent::Agent;
use crate::brain::Store;
use crate::check::{Broken, Checker, Scene};
use crate::copies::Lapse;
use crate::guest::Guest;
use crate::scenario::{Event, Scenario};
use crate::vm::SimVm;
use moves::Stage;

/// When a world begins: in the year 2026, far from zero so that "long ago" exists, and at no full second, so that windows straddle
/// the steps of history as they do in life.
pub(crate) const START: Timestamp = Timestamp::from_unix_ms(1_767_225_600_700);

/// The first VM's id; the others follow.
const FIRST_VM: u128 = 0x676e_6f6d_6f6e_4000_8000_0000_0000_0000;

const SECOND: Duration = Duration::from_secs(1);

/// What comes a second time is less than so late.
const LATE_S_MAX: u64 = 90;

/// What is on its way, or will happen.
#[derive(Clone, Debug)]
enum Message {
    Happens(Event),
    LinkUp {
        host: HostId,
        spool_lost: bool,
    },
    AgentUp(HostId),
    BrainUp,
    Report(Report),
    Command(HostId, Command),
    /// A command that was received at this time is done.
    Done(HostId, Command, Timestamp),
    Outcome(HostId, Outcome),
    /// A VM's move, commanded of this host and received at this time, comes to its next stage.
    Moves(Stage, HostId, Command, Timestamp),
    /// A host that died is up again.
    HostUp(HostId),
    /// Somebody starts the VMs of a host that died on another one.
    Restarts {
        from: HostId,
        to: HostId,
    },
    Fit(Box<FitJob>, u64),
}

/// A deterministic world.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    agents: BTreeMap<HostId, Agent>,
    store: Store,
    /// `None` while the brain is dead.
    core: Option<Core>,
    /// Lives of the brain: what belonged to an earlier one is lost.
    life: u64,
    messages: BTreeMap<(Timestamp, u64), Message>,
    sent: u64,
    second: u64,
    log: Vec<String>,
    rng: ChaCha8Rng,
    /// Rules that the planner and its linter lack, in every life of the brain.
    lacks: [Option<Guard>; 2],
    checker: Option<Checker>,
}

/// The world at one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Seconds since the start.
    pub second: u64,
    /// The same on the world's clock.
    pub at: Timestamp,
    /// Every VM, in the order of the scenario's hosts and VMs.
    pub vms: Vec<VmSnapshot>,
}

/// One VM at one instant.
#[derive(Clone, Debug)]
pub struct VmSnapshot {
    /// Id.
    pub vm: VmId,
    /// Name.
    pub name: String,
    /// Where it is.
    pub host: HostId,
    /// What it truly wanted in the last second, in cores. The brain never sees this.
    pub demand_cores: f64,
    /// What it got, in cores.
    pub ran_cores: f64,
    /// Its quota now, in cores; `None` is unlimited.
    pub quota_cores: Option<f64>,
    /// What it may use now, in cores.
    pub limit_cores: f64,
    /// What its guest truly wanted of memory in the last second and what its balloon leaves to it now, in bytes.
    pub memory_bytes: Option<(u64, u64)>,
    /// What the brain knows of it; `None` while the brain is dead or has not heard of it.
    pub known: Option<VmView>,
    /// The brain's forecast, where it has one.
    pub forecast: Option<Forecast>,
}

impl World {
    /// A world at its start. Panics on a scenario that contradicts itself (a VM on no host, a name that is no host id).
    pub fn new(scenario: Scenario) -> Self {
        Self::with(scenario, [None, None], None, false)
    }

    /// The same, checked at every step; its planner and its linter lack a guard, and its agents neglect a rule.
    pub(crate) fn checked(scenario: Scenario, lacks: [Option<Guard>; 2], lapse: Option<Lapse>) -> Self {
        Self::with(scenario, lacks, lapse, true)
    }

    fn with(scenario: Scenario, lacks: [Option<Guard>; 2], lapse: Option<Lapse>, checked: bool) -> Self {
        let scenario_seed = scenario.seed;
        let mut agents: BTreeMap<HostId, Agent> = scenario
            .hosts
            .iter()
            .zip(0..)
            .map(|(spec, number)| Agent::new(spec, &scenario, number, START))
            .map(|agent| (agent.host.clone(), agent))
            .collect();
        agents.values_mut().for_each(|agent| agent.lapse = lapse);
        for (index, spec) in scenario.vms.iter().enumerate() {
            let vm = SimVm::new(spec, vm_id(index), Guest::new(spec, scenario.seed, index as u64));
            let home = agents.get_mut(&host_id(&spec.host));
            home.unwrap_or_else(|| panic!("scenario: VM {} is on unknown host {}", spec.name, spec.host)).vms.push(vm);
        }
        let mut world = Self {
            scenario,
            agents,
            store: Store::default(),
            core: None,
            life: 0,
            messages: BTreeMap::new(),
            sent: 0,
            second: 0,
            log: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(!scenario_seed),
            lacks,
            checker: checked.then(Checker::default),
        };
        for timed in world.scenario.events.clone() {
            world.post(START + SECOND * u32::try_from(timed.at_s).unwrap_or(u32::MAX), Message::Happens(timed.event));
        }
        world.start_brain(START);
        world
    }

    /// The brain, unless it is dead.
    pub fn core(&self) -> Option<&Core> {
        self.core.as_ref()
    }

    pub(crate) fn agents(&self) -> &BTreeMap<HostId, Agent> {
        &self.agents
    }

    /// What it was made of.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// What happened since the last call, one line each.
    pub fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// An operator asks for something now.
    pub fn operate(&mut self, request: OperatorRequest) {
        self.happen(self.now(), Event::Operator { request });
    }

    fn now(&self) -> Timestamp {
        START + SECOND * u32::try_from(self.second).unwrap_or(u32::MAX)
    }

    /// Advances by one second.
    pub fn step(&mut self) -> Snapshot {
        self.advance();
        self.snapshot()
    }

    /// Advances by one second without looking.
    pub(crate) fn advance(&mut self) {
        let end = self.now() + SECOND;
        while let Some(entry) = self.messages.first_entry()
            && entry.key().0 < end
        {
            let ((at, _), message) = entry.remove_entry();
            self.time_out(at);
            self.deliver(at, message);
        }
        let t_s = self.second as f64;
        self.second += 1;
        let window_over = self.second.is_multiple_of(self.scenario.window_s.max(1));
        let mut reports = Vec::new();
        self.agents.values_mut().for_each(|agent| agent.second(t_s));
        if window_over {
            let mut told: Vec<f64> = self.agents.values().map(|agent| agent.wanted_shares().1).collect();
            if self.scenario.shuffles_shadows {
                // Each host's word is another's, always the same one's.
                let (hosts, seed) = (told.len(), self.scenario.seed as usize);
                told.rotate_left((1 + seed % (hosts.max(2) - 1)) % hosts.max(1));
            }
            for (agent, told) in self.agents.values_mut().zip(told) {
                agent.end_window(end, told);
                reports.extend(agent.take_reports());
            }
        }
        let arrives = end + Duration::from_millis(self.scenario.link_ms);
        for report in reports {
            self.post(arrives, Message::Report(report));
        }
        self.time_out(end);
        if let Some(checker) = &mut self.checker {
            checker.look(end, &self.agents);
        }
    }

    /// How everything is now.
    pub fn snapshot(&self) -> Snapshot {
        let vms = self.agents.values().flat_map(|agent| {
            agent.vms.iter().map(|vm| VmSnapshot {
                vm: vm.id,
                name: vm.name.clone(),
                host: agent.host.clone(),
                demand_cores: vm.demand_cores,
                ran_cores: vm.ran_cores,
                quota_cores: vm.allocation.quota_cores,
                limit_cores: vm.allocation.cpu_limit_cores(),
                memory_bytes: vm.memory_bytes(),
                known: self.core.as_ref().and_then(|core| core.vm(vm.id)),
                forecast: self.core.as_ref().and_then(|core| core.forecast(vm.id)),
            })
        });
        Snapshot { second: self.second, at: self.now(), vms: vms.collect() }
    }

    fn post(&mut self, at: Timestamp, message: Message) {
        self.sent += 1;
        self.messages.insert((at, self.sent), message);
    }

    fn note(&mut self, at: Timestamp, text: &str) {
        let second = at.since(START).as_millis() as f64 / 1000.0;
        self.log.push(format!("{second:>9.3} {text}"));
    }

    fn time_out(&mut self, now: Timestamp) {
        while let Some(core) = &mut self.core
            && core.poll_timeout().is_some_and(|due| due <= now)
        {
            core.handle_timeout(now);
            self.drain(now);
        }
    }

    fn feed(&mut self, now: Timestamp, input: Input) {
        if let Some(core) = &mut self.core {
            core.handle(now, input);
            self.drain(now);
        }
    }

    /// Carries out what the core wants, in order.
    fn drain(&mut self, now: Timestamp) {
        while let Some(output) = self.core.as_mut().and_then(Core::poll_output) {
            match output {
                Output::Persist(record) => {
                    if let Record::Audit(audit) = &record {
                        self.note(now, &format!("{} {} {}: {}", audit.actor, audit.verb, audit.object, audit.detail));
                    }
                    if let Some(checker) = &mut self.checker {
                        checker.record(&record);
                    }
                    self.store.persist(record);
                }
                Output::Command { host, command } => {
                    // What a shadow is told again and again is not written each time, nor that it is looked at anew what it is made from.
                    let is_refresh = matches!(command.action, Action::Shadow(ShadowOrder::Pace(_)) | Action::Describe);
                    let is_written = self.store.has(&command) || is_refresh;
                    assert!(is_written, "command {} was sent before it was written", command.id);
                    self.check(now, |checker, scene| checker.command(scene, &host, &command));
                    self.send(now, host, command);
                }
                Output::Notice(notice) => self.note(now, &format!("notice {}: {}", notice.kind, notice.text)),
                // This world has no provider.
                Output::Capacity(_) => {}
                Output::Fit(job) => {
                    let done = now + Duration::from_millis(self.scenario.fit_ms);
                    self.post(done, Message::Fit(job, self.life));
                }
            }
        }
    }

    /// Lets the checker look, where there is one.
    fn check(&mut self, now: Timestamp, look: impl FnOnce(&mut Checker, &Scene<'_>)) {
        let Some(mut checker) = self.checker.take() else { return };
        if let Some(core) = &self.core {
            look(&mut checker, &Scene { now, policy: &self.scenario.policy, core, agents: &self.agents });
        }
        self.checker = Some(checker);
    }

    /// The first rule that was broken, and when.
    pub(crate) fn broken(&self) -> Option<&Broken> {
        self.checker.as_ref()?.broken()
    }

    fn send(&mut self, now: Timestamp, host: HostId, command: Command) {
        if self.agents.get(&host).is_some_and(|agent| agent.running && agent.linked) {
            let arrives = now + Duration::from_millis(self.scenario.link_ms);
            let late_share = self.scenario.late_share;
            if late_share > 0.0 && self.rng.random_bool(late_share.min(1.0)) {
                let late = Duration::from_secs(self.rng.random_range(1..LATE_S_MAX));
                self.post(arrives + late, Message::Command(host.clone(), command.clone()));
            }
            self.post(arrives, Message::Command(host, command));
        }
    }

    fn deliver(&mut self, now: Timestamp, message: Message) {
        match message {
            Message::Happens(event) => self.happen(now, event),
            Message::LinkUp { host, spool_lost } => {
                self.with_agent(&host, |agent| {
                    agent.linked = agent.alive;
                    if spool_lost {
                        agent.lose_spool();
                    }
                });
                self.connect(now, &host);
            }
            Message::AgentUp(host) => {
                self.with_agent(&host, |agent| {
                    if agent.alive {
                        agent.restart(now);
                    }
                });
                self.connect(now, &host);
            }
            Message::HostUp(host) => self.host_up(now, &host),
            Message::Restarts { from, to } => self.restart_elsewhere(now, &from, &to),
            Message::BrainUp => self.start_brain(now),
            Message::Report(report) => {
                // A brain that is dead acknowledges nothing: the agent keeps the report. Here it is simply late.
                if self.core.is_none() {
                    return self.post(now + SECOND, Message::Report(report));
                }
                self.store.keep_report(&report);
                self.check(now, |checker, _| checker.report(now, &report));
                self.feed(now, Input::Report(Box::new(report)));
            }
            Message::Command(host, command) => {
                let done = now + Duration::from_millis(self.scenario.actuation_ms);
                self.post(done, Message::Done(host, command, now));
            }
            Message::Done(host, command, received) => match &command.action {
                Action::Migrate(migration) => self.depart(now, &host, &command, migration, received),
                _ => self.done(now, &host, &command, received),
            },
            Message::Moves(stage, host, command, received) => self.go_on(now, stage, &host, &command, received),
            Message::Outcome(host, outcome) => {
                if self.core.is_some() {
                    self.check(now, |checker, _| checker.outcome(&outcome));
                    self.with_agent(&host, |agent| agent.outcomes.retain(|waiting| *waiting != outcome));
                    self.feed(now, Input::Outcome { host, outcome });
                }
            }
            Message::Fit(job, life) if life == self.life => self.feed(now, Input::FitDone(Box::new(job.run()))),
            Message::Fit(..) => {}
        }
    }

    fn done(&mut self, now: Timestamp, host: &HostId, command: &Command, received: Timestamp) {
        let Some(agent) = self.agents.get_mut(host).filter(|agent| agent.running) else { return };
        let waited_ms = now.since(received).as_millis() as u64;
        let is_repeated = agent.answered(command).is_some();
        let outcome = agent.obey(now, command, waited_ms);
        if let (OutcomeResult::Applied { .. }, false, Some(checker)) = (&outcome.result, is_repeated, &mut self.checker)
        {
            checker.obeyed(now, host, command);
        }
        agent.outcomes.push(outcome.clone());
        if agent.linked {
            self.post(now + Duration::from_millis(self.scenario.link_ms), Message::Outcome(host.clone(), outcome));
        }
    }

    fn happen(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::LinkDown { host, for_s, spool_lost } => {
                self.note(now, &format!("link of {host} down for {for_s} s"));
                let host = host_id(&host);
                self.with_agent(&host, |agent| agent.linked = false);
                self.feed(now, Input::HostLost { host: host.clone() });
                self.post(now + Duration::from_secs(for_s), Message::LinkUp { host, spool_lost });
            }
            Event::AgentRestart { host, for_s } => {
                self.note(now, &format!("agent of {host} restarts, away for {for_s} s"));
                let host = host_id(&host);
                self.with_agent(&host, |agent| {
                    agent.lose_spool();
                    agent.running = false;
                });
                self.feed(now, Input::HostLost { host: host.clone() });
                self.post(now + Duration::from_secs(for_s), Message::AgentUp(host));
            }
            Event::BrainRestart { for_s } => {
                self.note(now, &format!("brain killed, away for {for_s} s"));
                self.core = None;
                self.post(now + Duration::from_secs(for_s), Message::BrainUp);
            }
            Event::Operator { request } => {
                if self.core.is_some() {
                    self.check(now, |checker, _| checker.operator(&request));
                }
                self.feed(now, Input::Operator { actor: "operator".to_owned(), request });
            }
            Event::Decide { approves } => {
                let proposals = self.core.as_ref().map(Core::proposals).unwrap_or_default();
                for Proposal { key, action, .. } in proposals.into_iter().filter(|proposal| proposal.state.is_open()) {
                    let request = if approves {
                        self.check(now, |checker, _| checker.approve(&action));
                        OperatorRequest::ApproveProposal { key }
                    } else {
                        OperatorRequest::DenyProposal { key }
                    };
                    self.feed(now, Input::Operator { actor: "operator".to_owned(), request });
                }
            }
            Event::Move { vm, host } => self.move_vm(now, &vm, &host),
            Event::HostDies { host, for_s, restarted_on } => {
                self.host_dies(now, &host_id(&host), for_s, restarted_on.as_deref());
            }
            Event::SetQuota { vm, cores } => {
                self.note(now, &format!("someone sets the quota of {vm} to {cores:?} cores by hand"));
                let vms = self.agents.values_mut().flat_map(|agent| &mut agent.vms);
                vms.filter(|other| other.name == vm).for_each(|vm| vm.allocation.quota_cores = cores);
            }
        }
    }

    fn start_brain(&mut self, now: Timestamp) {
        self.life += 1;
        let mut core = self.store.start(&self.scenario.policy, self.scenario.seed);
        let [planner, linter] = self.lacks;
        core.without_guard(planner, linter);
        self.core = Some(core);
        if let Some(checker) = &mut self.checker {
            checker.brain_starts();
        }
        for host in self.agents.keys().cloned().collect::<Vec<_>>() {
            self.connect(now, &host);
        }
    }

    /// An agent and the brain meet: hello, what is left unanswered, what waits.
    fn connect(&mut self, now: Timestamp, host: &HostId) {
        let Some(agent) = self.agents.get_mut(host).filter(|agent| agent.running && agent.linked) else { return };
        let Some(core) = &self.core else { return };
        let repeated = self.store.resend(core, host, now);
        let (facts, reports, outcomes) = (agent.facts.clone(), agent.take_reports(), agent.outcomes.clone());
        for command in repeated {
            self.send(now, host.clone(), command);
        }
        self.feed(now, Input::HostUp { host: host.clone(), facts });
        let arrives = now + Duration::from_millis(self.scenario.link_ms);
        for outcome in outcomes {
            self.post(arrives, Message::Outcome(host.clone(), outcome));
        }
        for report in reports {
            self.post(arrives, Message::Report(report));
        }
    }

    fn with_agent(&mut self, host: &HostId, change: impl FnOnce(&mut Agent)) {
        if let Some(agent) = self.agents.get_mut(host) {
            change(agent);
        }
    }
}

/// The id of a scenario's VM.
pub fn vm_id(index: usize) -> VmId {
    VmId(Uuid::from_u128(FIRST_VM + index as u128))
}

fn host_id(name: &str) -> HostId {
    HostId::new(name).unwrap_or_else(|error| panic!("scenario: {error}"))
}
