//! The one thread that carries commands out: it owns the ledger and the actuator.
//!
//! [`Executor`] does one request at a time and can be driven directly by tests; [`spawn`] gives it a thread, a queue, a tick on which
//! intents left by a crash are tried again until libvirt answers, and one on which it [tends](duties) to its own duties.

mod conclude;
mod dirty_rates;
mod duties;
mod migrations;
mod shadows;

pub use duties::Duties;

use super::clock::{Clock, Now};
use super::judge::{self, Allowed, Circumstances, Sighting, Verdict};
use super::ledger::{Change, Intent, Ledger, LedgerError, UndoRecord, VmLife};
use super::presence::BrainPresence;
use super::reconcile;
use super::{
    Answers, COMMANDS_WAITING_MAX, Commands, Known, Metrics, NOTICES_WAITING_MAX, Request, VmDirectory, took_us,
};
use crate::actuate::dirty_rate::DirtyRateMeter;
use crate::actuate::migrate::Mover;
use crate::actuate::shadow::Shadower;
use crate::actuate::{ActuateError, Actuator, same};
use duties::Tending;
use gnomon_common::wire::{Action, Command, CpuBounds, HostId, OutcomeResult, RefusedCommand, Setting, VmId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often unresolved intents are tried again.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5);

/// How often the agent looks whether it has something to do of its own accord: as often as it samples by default.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is seen whether shadows have left something behind.
const TIDY_INTERVAL: Duration = Duration::from_secs(60);

/// How often what goes on beside this thread is asked what has become of it.
const NEWS_INTERVAL: Duration = Duration::from_millis(100);

/// What the host allows, whatever a command says.
#[derive(Clone, Debug)]
pub struct Policy {
    /// This host: nothing is migrated to it from it.
    pub host: HostId,
    /// Migrations away from here at once; 0 where none may be.
    pub migrations_most: u32,
    /// Shadows of other hosts' VMs that may be here; 0 where none may.
    pub shadows_max: u32,
    /// Whether disks of VMs here may be copied for their shadows.
    pub copies: bool,
    /// Floor and ceiling of a VM's CPU.
    pub bounds: CpuBounds,
    /// The means and the bounds of the others.
    pub allowed: Allowed,
    /// Judge, log and answer, but change nothing.
    pub dry_run: bool,
}

/// What takes longer than this thread waits for: done on threads beside it.
pub struct Beside {
    /// Moves VMs.
    pub mover: Box<dyn Mover>,
    /// Makes, starts and retires shadows.
    pub shadower: Box<dyn Shadower>,
    /// Measures how fast guests write to their memory.
    pub meter: Box<dyn DirtyRateMeter>,
}

/// Everything that carrying out a command takes.
pub struct Executor {
    ledger: Ledger,
    actuator: Box<dyn Actuator>,
    beside: Beside,
    vms: Box<dyn VmDirectory>,
    policy: Policy,
    clock: Box<dyn Fn() -> Now + Send>,
    metrics: Metrics,
    presence: BrainPresence,
    /// The lives of VMs whose undo records from other hosts have been taken over, while their definitions still show them.
    adopted: BTreeMap<VmId, VmLife>,
    /// `None`: it obeys, and does nothing of its own accord.
    tending: Option<Tending>,
}

/// Starts the executor's thread. It ends when every [`Commands`] is gone, after the request under way.
pub fn spawn(mut executor: Executor) -> std::io::Result<(Commands, JoinHandle<()>)> {
    let (queue, requests) = sync_channel(COMMANDS_WAITING_MAX + NOTICES_WAITING_MAX);
    let (publish, answers) = watch::channel(executor.answers().unwrap_or_default());
    let waiting = Arc::new(AtomicUsize::new(0));
    let commands = Commands { queue, waiting: Arc::clone(&waiting), answers, presence: executor.presence.clone() };
    let run = move || executor.run(&requests, &waiting, &publish);
    let thread = std::thread::Builder::new().name("gnomon-command".to_owned()).spawn(run)?;
    Ok((commands, thread))
}

impl Executor {
    /// Puts the parts together.
    pub fn new(
        ledger: Ledger,
        actuator: Box<dyn Actuator>,
        beside: Beside,
        vms: Box<dyn VmDirectory>,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let presence = BrainPresence::gone_since(clock.now().boot);
        let clock = Box::new(move || clock.now());
        Self {
            ledger,
            actuator,
            beside,
            vms,
            policy,
            clock,
            metrics,
            presence,
            adopted: BTreeMap::new(),
            tending: None,
        }
    }

    /// Gives it duties of its own. In a dry run it has none: nothing that it holds could be defended.
    pub fn with_duties(self, duties: Duties) -> Self {
        let tending = (!self.policy.dry_run).then(|| Tending::new(duties));
        Self { tending, ..self }
    }

    fn run(&mut self, requests: &Receiver<Request>, waiting: &AtomicUsize, publish: &watch::Sender<Answers>) {
        self.run_every(RESOLVE_INTERVAL, requests, waiting, publish);
    }

    fn run_every(
        &mut self,
        resolve_interval: Duration,
        requests: &Receiver<Request>,
        waiting: &AtomicUsize,
        publish: &watch::Sender<Answers>,
    ) {
        let mut unresolved = self.try_resolve();
        let mut next_try = Instant::now() + resolve_interval;
        let mut next_tend = Instant::now() + TEND_INTERVAL;
        // What a crash left under way was begun again just now: what nobody knows of is found after that.
        let mut next_tidy = Instant::now();
        self.publish(publish);
        loop {
            let mut news = true;
            if Instant::now() >= next_tidy {
                self.tidy_shadows();
                next_tidy = Instant::now() + TIDY_INTERVAL;
            }
            let idle = next_try.min(next_tend).saturating_duration_since(Instant::now());
            let most = if self.beside.is_idle() { Duration::MAX } else { NEWS_INTERVAL };
            match requests.recv_timeout(idle.min(most)) {
                Ok(request) => {
                    let was_command = matches!(request, Request::Command { .. });
                    if let Err(error) = self.handle(request) {
                        self.metrics.ledger_errors.inc();
                        tracing::error!(%error, "the ledger does not work: commands are not carried out");
                        unresolved = true; // an outcome may not have been written
                    }
                    if was_command {
                        waiting.fetch_sub(1, Ordering::Relaxed);
                    }
                }
                Err(RecvTimeoutError::Timeout) => news = false,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            match self.take_all_news() {
                Ok(acted) => news |= acted,
                Err(error) => {
                    self.metrics.ledger_errors.inc();
                    tracing::error!(%error, "the ledger does not work: what became of a migration or a shadow is found out again");
                    unresolved = true;
                }
            }
            // After a request too: steady traffic must not put the next try off for ever.
            if Instant::now() >= next_try {
                news |= unresolved;
                // A migration whose thread has ended without a word is followed anew.
                unresolved = (unresolved || !self.beside.is_idle()) && self.try_resolve();
                next_try = Instant::now() + resolve_interval;
            }
            if Instant::now() >= next_tend {
                let adopted = if self.policy.dry_run { Ok(()) } else { self.adopt() };
                match adopted.and_then(|()| self.tend()) {
                    Ok(acted) => news |= acted,
                    Err(error) => {
                        self.metrics.ledger_errors.inc();
                        tracing::error!(%error, "the ledger does not work: the agent does nothing of its own accord");
                        (unresolved, news) = (true, true); // an outcome may not have been written
                    }
                }
                next_tend = Instant::now() + TEND_INTERVAL;
            }
            if news {
                self.publish(publish);
            }
        }
    }

    fn publish(&self, publish: &watch::Sender<Answers>) {
        match self.answers() {
            Ok(answers) => {
                self.metrics.outcomes_pending.set(i64::try_from(answers.pending.len()).unwrap_or(i64::MAX));
                publish.send_replace(answers);
            }
            Err(error) => {
                self.metrics.ledger_errors.inc();
                tracing::error!(%error, "cannot read pending outcomes");
            }
        }
    }

    /// What waits for the brain.
    pub fn answers(&self) -> Result<Answers, LedgerError> {
        Ok(Answers { pending: self.ledger.pending()?.into(), fence_highest: self.ledger.fence_highest()? })
    }

    /// Does one request. An error means that the ledger failed: nothing was changed without its intent having been written.
    pub fn handle(&mut self, request: Request) -> Result<(), LedgerError> {
        match request {
            Request::Command { command, received } => self.carry_out(&command, received),
            Request::Acknowledged(id) => self.ledger.acknowledge(id).map(drop),
            Request::Term(term) => {
                let highest = self.ledger.term_highest()?;
                if term < highest {
                    tracing::warn!(
                        term,
                        highest,
                        "the brain's lease term is lower than one seen before: its commands are stale"
                    );
                }
                self.ledger.raise_term(term)
            }
        }
    }

    fn carry_out(&mut self, command: &Command, received: Now) -> Result<(), LedgerError> {
        // An id is known from its intent on, and an intent of the same VM must not be resolved after a newer command.
        for intent in self.ledger.intents()?.into_iter().filter(|intent| intent.command.vm == command.vm) {
            // Nothing waits for what is done beside this thread: the judge knows of a migration, shadows are done in order, and answers come in time.
            if intent.is_migration() || intent.is_shadow() {
                if intent.command.id != command.id {
                    continue;
                }
                return self.ledger.answer_again(command.id).map(drop);
            }
            let same = intent.command.id == command.id;
            if self.resolve(&intent)? {
                continue;
            }
            return if same { Ok(()) } else { self.conclude(command, None, failed(&ActuateError::Stuck), false) };
        }
        if let Some(outcome) = self.ledger.answer_again(command.id)? {
            self.metrics.repeated.inc();
            tracing::info!(id = %command.id, result = ?outcome.result, "command came again: answered from the ledger");
            return Ok(());
        }
        let known = self.vms.find(command.vm);
        let stood_down = self.ledger.undo(command.vm)?.is_some_and(|record| record.stood_down.is_some());
        let verdict = judge::judge(command, &self.circumstances(command, received, known.sighting)?);
        match verdict {
            Verdict::Obey if stood_down && matches!(command.action, Action::Set(_) | Action::Migrate(_)) => {
                self.conclude(command, None, OutcomeResult::Refused(RefusedCommand::StoodDown), false)
            }
            Verdict::Refuse(refused) => {
                // Changes are made to the running domain only: with it, there is nothing left to undo.
                let nothing_to_undo = command.action == Action::Release && refused == RefusedCommand::UnknownVm;
                self.conclude(command, None, OutcomeResult::Refused(refused), nothing_to_undo)
            }
            Verdict::Unknowable => {
                let error = "libvirt does not answer: the VM, its definition or its balloon, is not known".to_owned();
                self.conclude(command, None, OutcomeResult::Failed { error, retryable: true }, false)
            }
            Verdict::Obey => match &command.action {
                Action::Migrate(migration) => self.migrate(command, migration, received, known),
                Action::AbortMigration => self.abort_migration(command, received),
                Action::Describe => self.describe(command, received),
                Action::DirtyRate { period_s } => self.measure(command, *period_s),
                Action::Shadow(_) | Action::Image(_) => self.shadow(command, received, known),
                Action::Set(target) => self.obey(command, vec![*target], received, known),
                Action::Release => {
                    // A VM that was never changed is already as it was.
                    let recorded = self.recorded(command.vm, known.life)?;
                    let targets = recorded.map(|undo| undo.baselines).unwrap_or_default();
                    self.obey(command, targets, received, known)
                }
            },
        }
    }

    fn circumstances(&self, command: &Command, received: Now, vm: Sighting) -> Result<Circumstances, LedgerError> {
        Ok(Circumstances {
            waited: (self.clock)().boot.since(received.boot),
            term_highest: self.ledger.term_highest()?,
            fence_of_vm: self.ledger.fence(command.vm)?,
            vm,
            bounds: self.policy.bounds,
            allowed: self.policy.allowed,
            resources: self.vms.resources(command.vm),
            opted_out: self.vms.terms(command.vm).map(|terms| match command.action {
                Action::Describe => terms.shadow == Some(false) || terms.misunderstood.is_some(),
                Action::Image(_) => terms.hands_off() || terms.shadow == Some(false) || terms.copy_disks == Some(false),
                _ => terms.hands_off(),
            }),
            migrations: self.migrations(command.vm)?,
            shadows_max: self.policy.shadows_max,
            copies: self.policy.copies,
        })
    }

    /// How to undo what was done to a VM in this life of it. Of an earlier life it says nothing: with the restart of its domain the owner's
    /// limits came back.
    fn recorded(&self, vm: VmId, life: Option<VmLife>) -> Result<Option<UndoRecord>, LedgerError> {
        Ok(self.ledger.undo(vm)?.filter(|undo| !VmLife::ended(undo.life, life)))
    }

    fn obey(
        &mut self,
        command: &Command,
        targets: Vec<Setting>,
        received: Now,
        known: Known,
    ) -> Result<(), LedgerError> {
        let Known { name, life, .. } = known;
        let recorded = self.recorded(command.vm, life)?;
        let mut changes = Vec::with_capacity(targets.len());
        for target in targets {
            match self.actuator.in_force(command.vm, target.means()) {
                Ok(before) => changes.push(Change { before, target }),
                Err(error) => return self.conclude(command, None, failed(&error), false),
            }
        }
        if matches!(command.action, Action::Set(_)) {
            let resources = self.vms.resources(command.vm);
            let refused = |change: &Change| {
                judge::against_what_is_in_force(change.before, change.target, &resources, &self.policy.allowed)
            };
            if let Some(refused) = changes.iter().find_map(refused) {
                return self.conclude(command, None, OutcomeResult::Refused(refused), false);
            }
        }
        if let (Action::Release, Some(record)) = (&command.action, &recorded) {
            changes.retain(|Change { before, .. }| {
                let restored = reconcile::to_restore(record, *before).is_some();
                if !restored {
                    tracing::info!(id = %command.id, vm = %command.vm, found = %before, "not released: its owner has set this since");
                }
                restored
            });
        }
        if let (Action::Set(_), Some(record)) = (&command.action, &recorded) {
            for change in &changes {
                if self.stands_down_over(record, change.before)? {
                    return self.conclude(command, None, OutcomeResult::Refused(RefusedCommand::StoodDown), false);
                }
            }
        }
        let undo = matches!(command.action, Action::Set(_)).then(|| {
            let name = name.unwrap_or_else(|| command.vm.to_string());
            let baselines = changes.iter().map(|change| change.before).collect();
            UndoRecord::new(command.vm, name, life, baselines, (self.clock)().wall)
        });
        if self.policy.dry_run {
            for Change { before, target } in &changes {
                tracing::info!(id = %command.id, vm = %command.vm, %before, %target, reason = command.reason, "dry run: would change the VM");
            }
            // The fence counts, so that a dry run judges the next command as a real run would.
            self.ledger.raise_fence(command.vm, command.fence)?;
            return self.conclude(command, None, OutcomeResult::DryRun, false);
        }
        let (command, received, received_at) = (command.clone(), received.boot, received.wall);
        let intent = Intent { changes, life, ..Intent::new(command, received, received_at) };
        self.ledger.begin(&intent, undo.as_ref())?;
        self.apply(&intent).map(drop)
    }

    /// The part after the intent is synced. A release goes on after a failure: what can be restored is. Returns whether all was applied.
    fn apply(&mut self, intent: &Intent) -> Result<bool, LedgerError> {
        let mut after = Vec::with_capacity(intent.changes.len());
        let mut failure = None;
        for change in &intent.changes {
            match self.actuator.apply(intent.command.vm, change.target) {
                Ok(now) => after.push(now),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let applied = failure.is_none();
        match failure {
            None => self.applied(intent, after)?,
            Some(error) => self.conclude(&intent.command, intent.cause, failed(&error), false)?,
        }
        Ok(applied)
    }

    fn applied(&mut self, intent: &Intent, after: Vec<Setting>) -> Result<(), LedgerError> {
        let took_us = took_us(intent.received, (self.clock)().boot);
        self.metrics.actuation_seconds.observe(Duration::from_micros(took_us).as_secs_f64());
        let before = intent.changes.iter().map(|change| change.before).collect();
        let result = OutcomeResult::Applied { before, after, took_us };
        self.conclude(&intent.command, intent.cause, result, intent.command.action == Action::Release)
    }

    /// What an intent's means are in now.
    fn now_in_force(&mut self, intent: &Intent) -> Result<Vec<Setting>, ActuateError> {
        let vm = intent.command.vm;
        intent.changes.iter().map(|change| self.actuator.in_force(vm, change.target.means())).collect()
    }

    /// Resolves what can be resolved and tells whether something is left.
    fn try_resolve(&mut self) -> bool {
        let resolved = self.ledger.intents().and_then(|intents| {
            let mut all = true;
            for intent in &intents {
                all &= self.resolve(intent)?;
            }
            Ok(all)
        });
        !resolved.unwrap_or_else(|error| {
            self.metrics.ledger_errors.inc();
            tracing::error!(%error, "cannot resolve the commands that were under way");
            false
        })
    }

    /// Finds out what became of an intent whose outcome was not written, by reading back. Returns whether it is concluded.
    fn resolve(&mut self, intent: &Intent) -> Result<bool, LedgerError> {
        if intent.is_migration() {
            return self.follow_migration(intent);
        }
        if intent.is_shadow() {
            return self.follow_shadow(intent);
        }
        let (command, cause) = (&intent.command, intent.cause);
        tracing::info!(id = %command.id, vm = %command.vm, "resolving a command that was under way when the agent stopped");
        let known = self.vms.find(command.vm);
        if intent.life.is_some() && known.sighting == Sighting::Unknown {
            tracing::info!(id = %command.id, "whether the VM was restarted meanwhile is not known yet");
            return Ok(false);
        }
        let restarted = VmLife::ended(intent.life, known.life);
        let reached = |now: &[Setting]| now.iter().zip(&intent.changes).all(|(now, change)| same(*now, change.target));
        match self.now_in_force(intent) {
            // What was changed, if it was, ended with the life it was changed in, and the undo record is of that life, too.
            Ok(now) if restarted && command.action == Action::Release => self.applied(intent, now)?,
            Ok(now) if !restarted && reached(&now) => self.applied(intent, now)?,
            Ok(_) => {
                let now = (self.clock)();
                let late_ms = judge::expired(command, now.boot.since(intent.received));
                match late_ms {
                    Some(late_ms) => {
                        self.conclude(
                            command,
                            cause,
                            OutcomeResult::Refused(RefusedCommand::Expired { late_ms }),
                            false,
                        )?;
                    }
                    None if restarted => {
                        let error = "the VM was restarted while the command was under way".to_owned();
                        self.conclude(command, cause, OutcomeResult::Failed { error, retryable: true }, false)?;
                    }
                    // Left by a real run and found by a dry one: it must not be carried out.
                    None if self.policy.dry_run => self.conclude(command, cause, OutcomeResult::DryRun, false)?,
                    None => drop(self.apply(intent)?),
                }
            }
            Err(ActuateError::NoSuchVm(_)) => {
                self.conclude(command, cause, OutcomeResult::Refused(RefusedCommand::UnknownVm), false)?;
            }
            Err(error) if error.retryable() => {
                tracing::warn!(id = %command.id, %error, "cannot read back yet");
                return Ok(false);
            }
            Err(error) => self.conclude(command, cause, failed(&error), false)?,
        }
        Ok(true)
    }
}

fn failed(error: &ActuateError) -> OutcomeResult {
    OutcomeResult::Failed { error: error.to_string(), retryable: error.retryable() }
}

#[cfg(test)]
mod tests;
