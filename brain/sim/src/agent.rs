//! A host and its agent: gives CPU within quotas and capacity, measures, reports, judges and carries out commands.

use std::collections::{BTreeMap, VecDeque};

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, AgentEpoch, Command, CommandId, CpuBounds, CpuSource, Fence, HostFacts, HostId, HostWindow, KeptCopies,
    Losses, MeanMax, Means, MemoryBounds, MigrationFacts, Origin, Outcome, OutcomeResult, RefusedCommand, Report,
    Sequence, Setting, ShadowFacts, VmId, VmWindow,
};

use crate::contention::Crowd;
use crate::copies::Lapse;
use crate::guest::Want;
use crate::scenario::{HostSpec, Scenario};
use crate::shadows::SimShadow;
use crate::vm::{Sample, SimVm};

/// Reports kept while the brain is away; the oldest go first. As the real agent, but smaller.
const SPOOL_REPORTS_MAX: usize = 1000;

/// What of a host shadows may have together.
const SHADOW_SHARE_MAX: f64 = 0.25;

/// Memory that a core's work writes to, by the second.
const DIRTY_BYTES_PER_CORE_S: f64 = 20e6;

/// A host with its agent.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) host: HostId,
    pub(crate) facts: HostFacts,
    pub(crate) vms: Vec<SimVm>,
    /// The host itself is up, whatever its agent is.
    pub(crate) alive: bool,
    pub(crate) running: bool,
    pub(crate) linked: bool,
    /// What the agent neglects.
    pub(crate) lapse: Option<Lapse>,
    epoch: AgentEpoch,
    sequence: Sequence,
    window_start: Timestamp,
    spool: VecDeque<Report>,
    /// Outcomes that were not acknowledged: they survive a restart.
    pub(crate) outcomes: Vec<Outcome>,
    /// Copies of VMs on their way here, and by which commands.
    pub(crate) arriving: BTreeMap<VmId, (CommandId, SimVm)>,
    /// What has been left here of VMs that run elsewhere: it does not run.
    pub(crate) left: BTreeMap<VmId, SimVm>,
    pub(crate) shadows: BTreeMap<VmId, SimShadow>,
    answered: BTreeMap<VmId, Outcome>,
    pub(crate) fences: BTreeMap<VmId, Fence>,
    baselines: BTreeMap<(VmId, Means), Setting>,
    losses: Losses,
    crowd: Option<Crowd>,
}

impl Agent {
    /// The number tells the draws of its tasks from those of guests.
    pub(crate) fn new(spec: &HostSpec, scenario: &Scenario, number: u64, start: Timestamp) -> Self {
        let host = HostId::new(spec.name.clone()).unwrap_or_else(|error| panic!("scenario: {error}"));
        let facts = HostFacts {
            capacity_cores: spec.capacity_cores,
            memory_bytes: spec.memory_mib << 20,
            kernel: "simulated".to_owned(),
            hypervisor: "simulated".to_owned(),
            cpu_bounds: CpuBounds { floor_cores: spec.floor_cores, ceiling_cores: spec.ceiling_cores },
            memory_bounds: MemoryBounds::default(),
            means: vec![Means::CpuQuota, Means::Memory],
            migration: Some(MigrationFacts { uri: format!("simulated://{}/system", spec.name), copy_bytes_max: 0 }),
            zone: spec.zone.clone(),
            numa: Vec::new(),
            labels: spec.labels.clone(),
            shadows: (spec.shadows_max > 0).then_some(ShadowFacts {
                shadows_max: spec.shadows_max,
                share_max: SHADOW_SHARE_MAX,
                receives: None,
            }),
            copies: KeptCopies::default(),
            dry_run: spec.dry_run,
            cpu_source: CpuSource::TaskStorage,
        };
        Self {
            host,
            facts,
            vms: Vec::new(),
            alive: true,
            running: true,
            linked: true,
            lapse: None,
            epoch: AgentEpoch(1),
            sequence: Sequence(0),
            window_start: start,
            spool: VecDeque::new(),
            outcomes: Vec::new(),
            arriving: BTreeMap::new(),
            left: BTreeMap::new(),
            shadows: BTreeMap::new(),
            answered: BTreeMap::new(),
            fences: BTreeMap::new(),
            baselines: BTreeMap::new(),
            losses: Losses::default(),
            crowd: scenario.contention.map(|model| Crowd::new(model, spec, scenario.seed, number)),
        }
    }

    /// Lets the second that begins `t_s` after the start pass.
    pub(crate) fn second(&mut self, t_s: f64) {
        let wants: Vec<Want> = self.vms.iter_mut().map(|vm| vm.guest.want(t_s)).collect();
        let alive = self.alive;
        let within_quota = |vm: &SimVm, want: &Want| {
            if alive && !vm.stands { want.demand_cores.min(vm.allocation.cpu_limit_cores()) } else { 0.0 }
        };
        let asked: f64 = self.vms.iter().zip(&wants).map(|(vm, want)| within_quota(vm, want)).sum();
        let capacity = self.facts.capacity_cores;
        let paced: f64 = self.shadows.values().map(SimShadow::runs_cores).sum();
        let crowd = self.crowd.as_mut().map(|crowd| {
            crowd.pass(t_s, asked + paced, capacity);
            &*crowd
        });
        let share = (capacity / asked.max(1e-9)).min(1.0);
        for (vm, want) in self.vms.iter_mut().zip(&wants) {
            let vcpus = f64::from(vm.allocation.vcpus);
            let limit = within_quota(vm, want);
            let held_back = want.demand_cores - limit;
            let (low, waited) = match crowd {
                None => (limit * share, limit * (1.0 - share)),
                Some(crowd) => {
                    vm.wait_for_run = crowd.wait_for_run(limit / capacity) * vm.luck;
                    // It cannot run and wait for longer than all the time of its vCPUs.
                    let low = limit.min(vcpus / (1.0 + vm.wait_for_run));
                    (low, low * vm.wait_for_run + limit - low)
                }
            };
            let high = (low + held_back + waited + want.wait_cores).min(vcpus);
            vm.demand_cores = want.demand_cores;
            vm.ran_cores = low;
            if let Some(memory) = &mut vm.memory {
                memory.demand_bytes = memory.spec.want_bytes(t_s);
            }
            if self.running {
                vm.samples.push(Sample { low, high, throttled: (held_back / vcpus).min(1.0) });
            }
        }
    }

    /// Draws anew how much longer than others each VM waits, and tells it for shadows that hear of such a crowd.
    fn draw_luck(&mut self, told_share: f64) -> Vec<f64> {
        let Some(crowd) = &mut self.crowd else { return vec![0.0; self.shadows.len()] };
        self.vms.iter_mut().for_each(|vm| vm.luck = crowd.luck());
        crowd.end_window();
        self.shadows.iter().map(|_| crowd.shadow_waits(told_share)).collect()
    }

    /// What everybody on this host wants of its CPU, as a share of it: in the latest second, and in the window so far.
    pub(crate) fn wanted_shares(&self) -> (f64, f64) {
        self.crowd.as_ref().map_or((0.0, 0.0), Crowd::wanted_shares)
    }

    /// Ends the window at `end` and spools its report. Its shadows tell how long one waits beside others that want `told_share` of a host.
    pub(crate) fn end_window(&mut self, end: Timestamp, told_share: f64) {
        let start = std::mem::replace(&mut self.window_start, end);
        let waits = self.draw_luck(told_share);
        if !self.running {
            self.vms.iter_mut().for_each(|vm| vm.samples.clear());
            return;
        }
        let window_ms = end.since(start).as_millis() as u32;
        let seconds = (f64::from(window_ms) / 1000.0).max(1.0);
        let mut vms: Vec<VmWindow> = self.vms.iter_mut().map(|vm| vm.window(seconds)).collect();
        vms.extend(self.copy_windows());
        vms.extend(self.shadow_windows(&waits));
        vms.sort_by_key(|window| window.vm);
        self.sequence.0 += 1;
        let used = vms.iter().filter_map(|vm| vm.cpu).map(|cpu| cpu.demand_low.mean).sum();
        let host_window = HostWindow {
            cpu_cores: MeanMax { mean: used, max: used },
            memory_available_bytes: 4 << 30,
            ..HostWindow::default()
        };
        self.spool.push_back(Report {
            host: self.host.clone(),
            epoch: self.epoch,
            sequence: self.sequence,
            start,
            window_ms,
            host_window,
            vms,
            inventory_complete: true,
            losses: self.losses,
        });
        if self.spool.len() > SPOOL_REPORTS_MAX {
            self.spool.pop_front();
            self.losses.reports_dropped += 1;
        }
    }

    /// Reports to be sent now: all that wait, oldest first.
    pub(crate) fn take_reports(&mut self) -> Vec<Report> {
        if self.running && self.linked { self.spool.drain(..).collect() } else { Vec::new() }
    }

    pub(crate) fn lose_spool(&mut self) {
        self.losses.reports_dropped += self.spool.len() as u64;
        self.spool.clear();
    }

    /// Starts again, as another life.
    pub(crate) fn restart(&mut self, now: Timestamp) {
        self.epoch.0 += 1;
        self.sequence = Sequence(0);
        self.window_start = now;
        self.running = true;
        self.losses = Losses::default();
    }

    /// Judges a command that arrived `waited_ms` ago and carries it out.
    pub(crate) fn obey(&mut self, now: Timestamp, command: &Command, waited_ms: u64) -> Outcome {
        if let Action::DirtyRate { .. } = command.action {
            // It changes nothing, and no answer that is waited for is forgotten for it.
            let result = self.dirty_rate(command, waited_ms);
            return Outcome { id: command.id, vm: command.vm, at: now, origin: Origin::Command, result };
        }
        if let Some(outcome) = self.answered.get(&command.vm).filter(|outcome| outcome.id == command.id) {
            return outcome.clone();
        }
        let result = match self.judge(command, waited_ms) {
            Err(refused) => OutcomeResult::Refused(refused),
            Ok(()) if self.facts.dry_run => OutcomeResult::DryRun,
            Ok(()) => self.apply(command, waited_ms),
        };
        let outcome = Outcome { id: command.id, vm: command.vm, at: now, origin: Origin::Command, result };
        self.remember(&outcome);
        outcome
    }

    /// Remembers an answer, but what is stale not in place of what made it so.
    fn remember(&mut self, outcome: &Outcome) {
        if !matches!(outcome.result, OutcomeResult::Refused(RefusedCommand::StaleFence { .. })) {
            self.answered.insert(outcome.vm, outcome.clone());
        }
    }

    fn dirty_rate(&self, command: &Command, waited_ms: u64) -> OutcomeResult {
        if let Err(refused) = self.judge(command, waited_ms) {
            return OutcomeResult::Refused(refused);
        }
        let ran_cores = self.vms.iter().find(|vm| vm.id == command.vm).map_or(0.0, |vm| vm.ran_cores);
        OutcomeResult::DirtyRate { bytes_per_s: (ran_cores * DIRTY_BYTES_PER_CORE_S) as u64 }
    }

    pub(crate) fn judge(&self, command: &Command, waited_ms: u64) -> Result<(), RefusedCommand> {
        if matches!(command.action, Action::Describe | Action::Shadow(_)) {
            return self.judge_order(command, waited_ms);
        }
        let vm = self.vms.iter().find(|vm| vm.id == command.vm).ok_or(RefusedCommand::UnknownVm)?;
        if vm.leaving.is_some() {
            return Err(RefusedCommand::Migrating);
        }
        self.judge_fence(command)?;
        if waited_ms > command.time_to_live_ms {
            return Err(RefusedCommand::Expired { late_ms: waited_ms - command.time_to_live_ms });
        }
        match command.action {
            Action::Set(Setting::CpuQuota { cores: Some(cores) }) => self.judge_quota(vm, cores),
            Action::Set(Setting::Memory { bytes }) => self.judge_memory(vm, bytes),
            Action::Set(target) => Err(RefusedCommand::NotAllowed { means: target.means() }),
            Action::Release | Action::Migrate(_) | Action::AbortMigration => Ok(()),
            Action::Describe | Action::Image(_) | Action::DirtyRate { .. } | Action::Shadow(_) => Ok(()),
        }
    }

    fn judge_fence(&self, command: &Command) -> Result<(), RefusedCommand> {
        let seen = self.fences.get(&command.vm).filter(|seen| **seen >= command.fence);
        let seen = seen.filter(|_| self.lapse != Some(Lapse::Fence));
        seen.map_or(Ok(()), |&seen| Err(RefusedCommand::StaleFence { seen }))
    }

    fn judge_order(&self, command: &Command, waited_ms: u64) -> Result<(), RefusedCommand> {
        self.judge_fence(command)?;
        if waited_ms > command.time_to_live_ms {
            return Err(RefusedCommand::Expired { late_ms: waited_ms - command.time_to_live_ms });
        }
        let is_allowed = self.facts.shadows.is_some() || command.action == Action::Describe;
        if is_allowed { Ok(()) } else { Err(RefusedCommand::ShadowsNotAllowed) }
    }

    /// What it answered to a command that comes again.
    pub(crate) fn answered(&self, command: &Command) -> Option<Outcome> {
        self.answered.get(&command.vm).filter(|outcome| outcome.id == command.id).cloned()
    }

    /// Keeps an answer.
    pub(crate) fn answer(&mut self, outcome: Outcome) {
        self.remember(&outcome);
        self.outcomes.push(outcome);
    }

    fn judge_quota(&self, vm: &SimVm, cores: f64) -> Result<(), RefusedCommand> {
        let CpuBounds { floor_cores, ceiling_cores } = self.facts.cpu_bounds;
        let ceiling_cores = ceiling_cores.min(f64::from(vm.allocation.vcpus));
        match cores {
            cores if !(cores.is_finite() && cores > 0.0) => Err(RefusedCommand::Nonsense),
            cores if cores < floor_cores => {
                Err(RefusedCommand::BelowFloor { floor: Setting::CpuQuota { cores: Some(floor_cores) } })
            }
            cores if cores > ceiling_cores => {
                Err(RefusedCommand::AboveCeiling { ceiling: Setting::CpuQuota { cores: Some(ceiling_cores) } })
            }
            _ => Ok(()),
        }
    }

    fn judge_memory(&self, vm: &SimVm, bytes: u64) -> Result<(), RefusedCommand> {
        let memory = vm.memory.as_ref().ok_or(RefusedCommand::Unsupported { means: Means::Memory })?;
        let MemoryBounds { reserve_bytes, shrink_step_max } = self.facts.memory_bounds;
        let bounded =
            |least: u64| (bytes < memory.balloon_bytes && bytes < least).then_some(Setting::Memory { bytes: least });
        let step = memory.balloon_bytes - (memory.balloon_bytes as f64 * shrink_step_max) as u64;
        if bytes > vm.allocation.memory_bytes {
            let ceiling = Setting::Memory { bytes: vm.allocation.memory_bytes };
            return Err(RefusedCommand::AboveCeiling { ceiling });
        }
        if let Some(least) = bounded(memory.demand_bytes + reserve_bytes) {
            return Err(RefusedCommand::BelowLiveUse { least });
        }
        match bounded(step) {
            Some(least) => Err(RefusedCommand::StepTooLarge { least }),
            None => Ok(()),
        }
    }

    fn apply(&mut self, command: &Command, waited_ms: u64) -> OutcomeResult {
        self.fences.insert(command.vm, command.fence);
        if matches!(command.action, Action::Describe | Action::Shadow(_)) {
            return self.order(command, waited_ms * 1000);
        }
        let Some(vm) = self.vms.iter_mut().find(|vm| vm.id == command.vm) else {
            return OutcomeResult::Refused(RefusedCommand::UnknownVm);
        };
        let targets = match command.action {
            Action::Set(target) => {
                let key = (command.vm, target.means());
                self.baselines.entry(key).or_insert(vm.in_force(target));
                vec![target]
            }
            Action::Migrate(_)
            | Action::AbortMigration
            | Action::Describe
            | Action::Image(_)
            | Action::DirtyRate { .. }
            | Action::Shadow(_) => Vec::new(),
            Action::Release => {
                Means::ALL.into_iter().filter_map(|means| self.baselines.remove(&(command.vm, means))).collect()
            }
        };
        let before = targets.iter().map(|&target| vm.in_force(target)).collect();
        targets.iter().for_each(|&target| vm.set(target));
        OutcomeResult::Applied { before, after: targets, took_us: waited_ms * 1000 }
    }
}
