//! The end of a command: told to the log, written to the ledger, counted.

use super::Executor;
use crate::command::ledger::{self, LedgerError};
use crate::command::metrics::{
    APPLIED, DESCRIBED, DIRTY_RATE, DRY_RUN, FAILED, IMAGED, IMMOVABLE, MOVED, NOT_MOVED, REFUSED, SHADOW, UNSHADOWABLE,
};
use gnomon_common::wire::{Command, LocalCause, Outcome, OutcomeResult};

impl Executor {
    pub(super) fn conclude(
        &mut self,
        command: &Command,
        cause: Option<LocalCause>,
        result: OutcomeResult,
        forget_undo: bool,
    ) -> Result<(), LedgerError> {
        let at = (self.clock)().wall;
        let label = match &result {
            OutcomeResult::Applied { before, after, took_us } => {
                for (before, after) in before.iter().zip(after) {
                    tracing::info!(id = %command.id, vm = %command.vm, %before, %after, took_us, reason = command.reason, "VM changed");
                }
                APPLIED
            }
            OutcomeResult::DryRun => DRY_RUN,
            OutcomeResult::Refused(refused) => {
                tracing::warn!(id = %command.id, vm = %command.vm, action = ?command.action, why = %refused, "command refused");
                REFUSED
            }
            OutcomeResult::Failed { error, retryable } => {
                tracing::warn!(id = %command.id, vm = %command.vm, action = ?command.action, error, retryable, "command failed");
                FAILED
            }
            OutcomeResult::Moved(moved) => {
                tracing::info!(id = %command.id, vm = %command.vm, ?moved, reason = command.reason, "VM migrated");
                MOVED
            }
            OutcomeResult::NotMoved { error, whereabouts } => {
                tracing::warn!(id = %command.id, vm = %command.vm, error, %whereabouts, "VM not migrated");
                NOT_MOVED
            }
            OutcomeResult::Immovable(why) => {
                tracing::warn!(id = %command.id, vm = %command.vm, %why, "VM cannot be migrated");
                IMMOVABLE
            }
            OutcomeResult::Described(_) => {
                tracing::debug!(id = %command.id, vm = %command.vm, "VM described");
                DESCRIBED
            }
            OutcomeResult::Imaged(imaged) => {
                tracing::info!(id = %command.id, vm = %command.vm, ?imaged, reason = command.reason, "VM's disks copied");
                IMAGED
            }
            OutcomeResult::DirtyRate { bytes_per_s } => {
                tracing::debug!(id = %command.id, vm = %command.vm, bytes_per_s, "dirty rate measured");
                DIRTY_RATE
            }
            OutcomeResult::Shadow(done) => {
                tracing::info!(id = %command.id, vm = %command.vm, ?done, reason = command.reason, "shadow");
                SHADOW
            }
            OutcomeResult::Unshadowable(why) => {
                tracing::warn!(id = %command.id, vm = %command.vm, %why, "no shadow");
                UNSHADOWABLE
            }
        };
        let outcome = Outcome { id: command.id, vm: command.vm, at, origin: ledger::origin(command, cause), result };
        let forgotten = self.ledger.conclude(&outcome, forget_undo)?;
        self.metrics.count_concluded(cause, label);
        self.metrics.outcomes_forgotten.inc_by(forgotten);
        Ok(())
    }
}
