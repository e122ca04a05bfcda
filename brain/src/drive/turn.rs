//! One turn of the loop: an input goes into the core, its outputs come out and are sorted. No I/O.

use super::carry::Effect;
use super::{Desk, DriveMetrics, Event};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, HostId};
use gnomon_core::{CommandRecord, Core, FitJob, FitResult, Input, Notice, Output, Record, Restored};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Outputs waiting to be carried out, above which no input is taken. One input may go over it by what it causes itself.
const EFFECTS_PENDING_MAX: usize = 4096;
/// The longest sleep: should the wall clock step forward, a deadline is noticed this much late at most.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// The shortest sleep, so that a deadline in the past cannot spin the loop.
const SLEEP_MIN: Duration = Duration::from_millis(1);

pub(super) struct Turn {
    desk: Desk,
    metrics: DriveMetrics,
    effects: VecDeque<Effect>,
    /// Commands without an answer: sent again when their hosts connect.
    unanswered: BTreeMap<CommandId, CommandRecord>,
    fits_waiting: VecDeque<FitJob>,
    fits_running: JoinSet<FitResult>,
    fits_running_max: usize,
}

impl Turn {
    pub(super) fn new(desk: Desk, metrics: DriveMetrics) -> Self {
        // One core stays free for the loop, the journal and the agents.
        let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1));
        Self {
            desk,
            metrics,
            effects: VecDeque::new(),
            unanswered: BTreeMap::new(),
            fits_waiting: VecDeque::new(),
            fits_running: JoinSet::new(),
            fits_running_max: workers,
        }
    }

    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }

    pub(super) fn metrics(&self) -> &DriveMetrics {
        &self.metrics
    }

    pub(super) fn restore(&mut self, restored: Restored) {
        match &restored {
            Restored::Report(report) => self.desk.take(report),
            Restored::Command(record) => drop(self.unanswered.insert(record.command.id, record.clone())),
            Restored::Host { .. }
            | Restored::History { .. }
            | Restored::Lesson(_)
            | Restored::Expectation(_)
            | Restored::Hold { .. }
            | Restored::Mode { .. }
            | Restored::Drain { .. }
            | Restored::Capacity(_)
            | Restored::Proposal(_)
            | Restored::Shadow(_)
            | Restored::Tried(_)
            | Restored::Setting { .. } => {}
        }
        let is_capacity = matches!(restored, Restored::Capacity(_));
        let is_proposal = matches!(restored, Restored::Proposal(_));
        let is_shadow = matches!(restored, Restored::Shadow(_));
        self.desk.core.restore(restored);
        if is_capacity {
            self.metrics.asked(self.desk.core.capacity_states());
        }
        if is_shadow {
            self.metrics.shadowed(self.desk.core.shadow_states());
        }
        if is_proposal {
            self.metrics.proposed(self.desk.core.proposals_open());
        }
    }

    pub(super) fn event(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Input(input) => self.input(now, input),
            Event::Operator { actor, request, synced } => {
                let before = self.effects.len();
                self.input(now, Input::Operator { actor, request });
                let commands = self.effects.range(before..).filter_map(|effect| match effect {
                    Effect::Command { command, .. } => Some(command.id),
                    Effect::Persist(_) | Effect::Capacity(_) | Effect::Synced { .. } => None,
                });
                let commands = commands.collect();
                self.effects.push_back(Effect::Synced { told: synced, commands });
            }
        }
    }

    pub(super) fn input(&mut self, now: Timestamp, input: Input) {
        match &input {
            // What the core does not believe is not shown either.
            Input::Report(report) if !Core::is_from_the_future(report, now) => self.desk.take(report),
            Input::HostUp { host, .. } => self.repeat(now, host),
            _ => {}
        }
        let started = Instant::now();
        self.desk.core.handle(now, input);
        self.metrics.handled(started.elapsed());
        self.sort_outputs(now);
    }

    /// Before anything new: what this host may not have heard, or has answered into the void. What has expired is left
    /// to the core, which gives it up, and to the agent, which repeats its answers by itself.
    fn repeat(&mut self, now: Timestamp, host: &HostId) {
        self.unanswered
            .retain(|_, waiting| now.since(waiting.issued) < Duration::from_millis(waiting.command.time_to_live_ms));
        let core = &self.desk.core;
        let repeated = self.unanswered.values().filter(|waiting| waiting.host == *host && core.may_send_again(waiting));
        self.effects.extend(repeated.map(|waiting| Effect::Command {
            host: waiting.host.clone(),
            command: waiting.command.clone(),
            issued: waiting.issued,
        }));
    }

    /// Tells the core the time if it wanted to be told by now.
    pub(super) fn timeout(&mut self, now: Timestamp) {
        if self.has_room() && self.desk.core.poll_timeout().is_some_and(|due| due <= now) {
            let started = Instant::now();
            self.desk.core.handle_timeout(now);
            self.metrics.handled(started.elapsed());
            self.sort_outputs(now);
        }
    }

    /// How long the loop may sleep.
    pub(super) fn due_in(&self, now: Timestamp) -> Duration {
        self.desk.core.poll_timeout().map_or(SLEEP_MAX, |due| due.since(now).clamp(SLEEP_MIN, SLEEP_MAX))
    }

    pub(super) fn has_room(&self) -> bool {
        self.effects.len() < EFFECTS_PENDING_MAX
    }

    pub(super) fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Moves waiting effects into `place` and whatever further places are free.
    pub(super) fn hand_over(&mut self, place: mpsc::Permit<'_, Effect>, queue: &mpsc::Sender<Effect>) {
        let mut place = Some(place);
        while let Some(effect) = self.effects.pop_front() {
            match place.take().or_else(|| queue.try_reserve().ok()) {
                Some(place) => place.send(effect),
                None => return self.effects.push_front(effect),
            }
        }
    }

    /// The next fit that ended; `None` at once when none runs. A fit that panicked is counted and gone: the core keeps
    /// its last model.
    pub(super) async fn fitted(&mut self) -> Option<Option<FitResult>> {
        let ended = self.fits_running.join_next().await?;
        Some(ended.inspect_err(|error| tracing::error!(%error, "a fit failed")).ok())
    }

    pub(super) fn fit_done(&mut self, now: Timestamp, fitted: Option<FitResult>) {
        match fitted {
            Some(result) => self.input(now, Input::FitDone(Box::new(result))),
            None => self.metrics.fit_failed(),
        }
        self.start_fits();
    }

    fn sort_outputs(&mut self, now: Timestamp) {
        while let Some(output) = self.desk.core.poll_output() {
            match output {
                Output::Persist(record) => {
                    self.note(&record);
                    self.effects.push_back(Effect::Persist(record));
                }
                Output::Command { host, command } => {
                    self.effects.push_back(Effect::Command { host, command, issued: now });
                }
                Output::Notice(notice) => self.notice(&notice),
                Output::Fit(job) => self.fits_waiting.push_back(*job),
                Output::Capacity(request) => self.effects.push_back(Effect::Capacity(request)),
            }
        }
        self.start_fits();
        self.metrics.waiting(self.effects.len(), self.fits_waiting.len() + self.fits_running.len());
    }

    fn note(&mut self, record: &Record) {
        match record {
            Record::Command(record) if record.outcome.is_some() || record.unanswered => {
                self.unanswered.remove(&record.command.id);
                self.metrics.settled(record);
            }
            Record::Command(record) => drop(self.unanswered.insert(record.command.id, record.clone())),
            Record::LocalAct { outcome, .. } => self.metrics.acted(outcome),
            Record::Expectation { expectation, .. } => self.metrics.looked_back(expectation),
            Record::Capacity(_) => self.metrics.asked(self.desk.core.capacity_states()),
            Record::Shadow(_) => self.metrics.shadowed(self.desk.core.shadow_states()),
            Record::Proposal(_) => self.metrics.proposed(self.desk.core.proposals_open()),
            _ => {}
        }
    }

    fn notice(&self, notice: &Notice) {
        tracing::info!(kind = notice.kind, "{}", notice.text);
        self.metrics.noticed(notice.kind);
    }

    fn start_fits(&mut self) {
        while self.fits_running.len() < self.fits_running_max
            && let Some(job) = self.fits_waiting.pop_front()
        {
            self.fits_running.spawn_blocking(move || job.run());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Recent;
    use super::*;
    use gnomon_common::wire::{
        Action, Command, CpuBounds, CpuSource, Fence, HostFacts, KeptCopies, Labels, Means, MemoryBounds, Setting, VmId,
    };
    use gnomon_core::{Hold, Mode, Policy, Scope};
    use prometheus_client::registry::Registry;
    use uuid::Uuid;

    /// Which commands are sent again when the host of an unanswered resize and an unanswered release comes back.
    fn sent_again(mode: Mode, hold: Option<Hold>) -> Vec<Action> {
        let (now, host) = (Timestamp::from_unix_ms(1_700_000_000_000), HostId::new("a").unwrap());
        let core = Core::new(Policy { mode, ..Policy::default() }, 1, 2);
        let mut turn =
            Turn::new(Desk { core, recent: Recent::default() }, DriveMetrics::register(&mut Registry::default()));
        if let Some(hold) = hold {
            turn.restore(Restored::Hold { scope: Scope::Host(host.clone()), hold });
        }
        for (number, action) in [(1, Action::Set(Setting::CpuQuota { cores: Some(0.5) })), (2, Action::Release)] {
            let command = Command {
                id: CommandId { term: 1, number },
                vm: VmId(Uuid::from_u128(number.into())),
                action,
                fence: Fence { term: 1, generation: number },
                time_to_live_ms: 30_000,
                reason: String::new(),
            };
            let record = CommandRecord {
                host: host.clone(),
                command,
                issued: now,
                outcome: None,
                unanswered: false,
                by_operator: false,
                approved_by: None,
            };
            turn.restore(Restored::Command(record));
        }
        let facts = HostFacts {
            capacity_cores: 1.0,
            memory_bytes: 1 << 30,
            kernel: String::new(),
            hypervisor: String::new(),
            cpu_bounds: CpuBounds { floor_cores: 0.1, ceiling_cores: 1.0 },
            memory_bounds: MemoryBounds::default(),
            means: vec![Means::CpuQuota],
            migration: None,
            zone: None,
            numa: Vec::new(),
            labels: Labels::default(),
            shadows: None,
            copies: KeptCopies::default(),
            dry_run: false,
            cpu_source: CpuSource::TaskStorage,
        };
        turn.input(now, Input::HostUp { host, facts });
        let commands = turn.effects.into_iter().filter_map(|effect| match effect {
            Effect::Command { command, .. } => Some(command.action),
            _ => None,
        });
        commands.collect()
    }

    #[test]
    fn what_an_operator_holds_or_the_mode_forbids_is_not_sent_again_but_releases_are() {
        let resize = Action::Set(Setting::CpuQuota { cores: Some(0.5) });
        assert_eq!(sent_again(Mode::Auto, None), [resize, Action::Release]);
        assert_eq!(sent_again(Mode::Auto, Some(Hold::Paused)), [Action::Release]);
        assert_eq!(sent_again(Mode::Auto, Some(Hold::Released)), [Action::Release]);
        assert_eq!(sent_again(Mode::Recommend, None), [Action::Release]);
        assert_eq!(sent_again(Mode::Observe, None), [Action::Release]);
    }

    #[test]
    fn what_the_core_refuses_as_from_the_future_is_not_shown_either() {
        let now = Timestamp::from_unix_ms(1_700_000_000_000);
        let core = Core::new(Policy::default(), 1, 2);
        let mut turn =
            Turn::new(Desk { core, recent: Recent::default() }, DriveMetrics::register(&mut Registry::default()));
        let vm = VmId(Uuid::from_u128(1));
        for (sequence, ahead_s, shown) in [(1, 3600, false), (2, 1, true)] {
            let report = super::super::recent::report(now.unix_ms() + ahead_s * 1000, sequence, vm);
            turn.input(now, Input::Report(Box::new(report)));
            assert_eq!(turn.desk.recent.since(vm, Timestamp::default()).is_some(), shown);
        }
    }
}
