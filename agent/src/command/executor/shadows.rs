//! Shadows: begun like any command, by an intent; ended when the thread that carries orders out says so. To describe a VM changes nothing, and
//! has no intent.

use super::{Beside, Executor, Known, Now, took_us};
use crate::actuate::shadow::{ShadowNews, Task};
use crate::command::ledger::{Intent, LedgerError};
use gnomon_common::wire::{Action, Command, Imaged, OutcomeResult, ShadowDone, ShadowOrder};
use std::time::Duration;

/// An order takes a second. After this the brain is told that it takes longer; what becomes of it is told then.
const ORDER_MAX: Duration = Duration::from_secs(120);

/// How long an order may take: one that copies disks, or reads copies, has its own time besides.
fn order_max(action: &Action) -> Duration {
    let more_ms = match action {
        Action::Image(imaging) => imaging.timeout_ms,
        Action::Shadow(ShadowOrder::Copy(spec)) => spec.blueprint.reading_ms(),
        _ => 0,
    };
    ORDER_MAX.saturating_add(Duration::from_millis(more_ms))
}

impl Beside {
    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.mover.is_idle() && self.shadower.is_idle() && self.meter.is_idle()
    }
}

impl Executor {
    /// One that comes again while it is under way is answered with the first.
    pub(super) fn describe(&mut self, command: &Command, received: Now) -> Result<(), LedgerError> {
        if self.beside.shadower.has(command.id) {
            return Ok(());
        }
        self.begin_shadow(command, received)
    }

    pub(super) fn shadow(&mut self, command: &Command, received: Now, known: Known) -> Result<(), LedgerError> {
        if self.policy.dry_run {
            tracing::info!(id = %command.id, vm = %command.vm, reason = command.reason, "dry run: would see to a shadow");
            self.ledger.raise_fence(command.vm, command.fence)?;
            return self.conclude(command, None, OutcomeResult::DryRun, false);
        }
        let intent = Intent { life: known.life, ..Intent::new(command.clone(), received.boot, received.wall) };
        self.ledger.begin(&intent, None)?;
        self.begin_shadow(command, received)
    }

    fn begin_shadow(&mut self, command: &Command, received: Now) -> Result<(), LedgerError> {
        match self.beside.shadower.begin(self.task(command, received)) {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = format!("no thread to see to shadows: {error}");
                self.conclude(command, None, OutcomeResult::Failed { error, retryable: true }, false)
            }
        }
    }

    fn task(&self, command: &Command, received: Now) -> Task {
        // Of a command from before a reboot the time is over.
        let waited = (self.clock)().boot.since(received.boot).unwrap_or(Duration::MAX);
        let time_left = Duration::from_millis(command.time_to_live_ms).saturating_sub(waited);
        Task { command: command.clone(), at: received.wall, time_left, waited }
    }

    /// Sees to it that an order of an earlier life of the agent comes to its end: done again it finds what was done, and what comes too late is
    /// undone. A dry run leaves that to the next life.
    pub(super) fn follow_shadow(&mut self, intent: &Intent) -> Result<bool, LedgerError> {
        let command = &intent.command;
        if !self.policy.dry_run && !self.beside.shadower.has(command.id) {
            tracing::info!(id = %command.id, vm = %command.vm, "an order about a shadow was under way when the agent stopped: finding out what became of it");
            let task = self.task(command, Now { boot: intent.received, wall: intent.received_at });
            if let Err(error) = self.beside.shadower.begin(task) {
                tracing::error!(%error, "no thread to see to shadows");
            }
        }
        Ok(false)
    }

    /// Concludes what has ended, and tells of what should have. Returns whether there is news in the ledger.
    pub(super) fn take_shadow_news(&mut self) -> Result<bool, LedgerError> {
        let mut acted = false;
        for news in self.beside.shadower.news() {
            match news {
                ShadowNews::Ended(command, result) => {
                    self.end_shadow(&command, result)?;
                    acted = true;
                }
                ShadowNews::Tidied(removed) => drop(self.metrics.shadow_orphans.inc_by(removed)),
                ShadowNews::Copying(done, total) => self.metrics.copying(done, total),
            }
        }
        if self.beside.shadower.is_idle() {
            return Ok(acted);
        }
        let now = (self.clock)().boot;
        for intent in self.ledger.intents()?.into_iter().filter(|intent| intent.is_shadow() && !intent.parked) {
            let most = order_max(&intent.command.action);
            if now.since(intent.received).is_none_or(|since| since > most) {
                let error = format!("not done after {} s; it goes on", most.as_secs());
                self.tell_parked(&intent, OutcomeResult::Failed { error, retryable: true })?;
                acted = true;
            }
        }
        Ok(acted)
    }

    fn end_shadow(&mut self, command: &Command, result: OutcomeResult) -> Result<(), LedgerError> {
        let begun = self.ledger.intents()?.into_iter().find(|intent| intent.command.id == command.id);
        let took_us = begun.map_or(0, |intent| took_us(intent.received, (self.clock)().boot));
        let result = match result {
            OutcomeResult::Shadow(ShadowDone::Copied { copied_bytes, .. }) => {
                OutcomeResult::Shadow(ShadowDone::Copied { took_us, copied_bytes })
            }
            OutcomeResult::Imaged(imaged) => OutcomeResult::Imaged(Box::new(Imaged { took_us, ..*imaged })),
            OutcomeResult::Shadow(ShadowDone::Started { .. }) => OutcomeResult::Shadow(ShadowDone::Started { took_us }),
            OutcomeResult::Shadow(ShadowDone::Resized { .. }) => OutcomeResult::Shadow(ShadowDone::Resized { took_us }),
            other => other,
        };
        if matches!(command.action, Action::Image(_)) {
            self.metrics.copying(0, 0);
        }
        // What was set on it ended with it.
        let is_gone = result == OutcomeResult::Shadow(ShadowDone::Retired);
        self.conclude(command, None, result, is_gone)
    }

    /// Has what shadows left behind removed, in a while. A dry run removes nothing.
    pub(super) fn tidy_shadows(&mut self) {
        if self.policy.dry_run {
            return;
        }
        let of_intent = |intent: &Intent| match &intent.command.action {
            Action::Image(imaging) => imaging.shadow,
            _ => intent.command.vm,
        };
        let under_way = self.ledger.intents().map(|intents| intents.iter().map(of_intent).collect());
        let begun = under_way
            .map_err(|error| error.to_string())
            .and_then(|under_way| self.beside.shadower.tidy(under_way).map_err(|error| error.to_string()));
        if let Err(error) = begun {
            tracing::error!(error, "whether shadows have left something behind is not looked for");
        }
    }
}
