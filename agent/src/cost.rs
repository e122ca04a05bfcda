//! What measuring costs, and what is given up to keep it within the budget.
//!
//! Once in a while [`CostControl`] has the kernel time the eBPF programs of every source for one sample, adds the CPU that the agent itself
//! used since the last time, and asks the [`Governor`] whether that is too much. The governor is pure; what it decides is done by the
//! sources themselves ([`Costed`]): a source that is shed detaches its programs, and what only it tells is absent from then on, never
//! zero. The CPU that libvirtd and the QEMUs spend on the agent's questions is measured elsewhere
//! ([`crate::host::inventory`]) and is not part of the budget: nothing here could give it up. Neither is what the agent itself sets [`Aside`].

mod aside;
mod budget;
mod control;
#[cfg(test)]
mod kernel_tests;
mod standby;
mod timing;

pub use aside::Aside;
pub use budget::{Budget, Candidate, Governor, Verdict};
pub use control::CostControl;
pub use standby::{Loadable, Standby};

use crate::probe::{ProbeError, ProgramCost};
use crate::sample::SourceError;

/// What a source of readings costs, and how it is given up. One without programs of its own tells no more than its name.
pub trait Costed {
    /// In the log and the metrics.
    fn name(&self) -> &'static str;

    /// What each of the attached programs has cost since it was loaded.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        Ok(Vec::new())
    }

    /// Whether it can be given up now.
    fn can_shed(&self) -> bool {
        false
    }

    /// Detaches its programs. What only they tell is absent from now on.
    ///
    /// # Errors
    /// If what is to take over does not work; then nothing has changed.
    fn shed(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Attaches them again, with all that is tracked by now. Counters begin anew.
    ///
    /// # Errors
    /// If they cannot be loaded any more; then nothing has changed.
    fn restore(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
}
