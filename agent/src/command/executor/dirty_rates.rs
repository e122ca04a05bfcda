//! Measurements of how fast guests write to their memory: they change nothing and have no intent, and an agent that was killed begins them again
//! when the command comes again.

use super::Executor;
use crate::command::ledger::LedgerError;
use gnomon_common::wire::{Command, OutcomeResult};

impl Executor {
    /// One that comes again while it is under way is answered with the first.
    pub(super) fn measure(&mut self, command: &Command, period_s: u8) -> Result<(), LedgerError> {
        if self.beside.meter.has(command.id) {
            return Ok(());
        }
        match self.beside.meter.begin(command, period_s) {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = format!("its memory is not measured: {error}");
                self.conclude(command, None, OutcomeResult::Failed { error, retryable: true }, false)
            }
        }
    }

    /// Concludes what has been measured. Returns whether there is news in the ledger.
    pub(super) fn take_measurements(&mut self) -> Result<bool, LedgerError> {
        let all = self.beside.meter.news();
        let acted = !all.is_empty();
        // One that cannot be written is no reason to lose the others.
        let mut concluded = Ok(acted);
        for (command, result) in all {
            if let Err(error) = self.conclude(&command, None, result, false) {
                concluded = Err(error);
            }
        }
        concluded
    }

    /// What has become of all that is done beside this thread. Returns whether there is news in the ledger.
    pub(super) fn take_all_news(&mut self) -> Result<bool, LedgerError> {
        let (moves, shadows, measurements) = (self.take_news(), self.take_shadow_news(), self.take_measurements());
        Ok(moves? | shadows? | measurements?)
    }
}
