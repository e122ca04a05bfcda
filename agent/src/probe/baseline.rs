//! The cost of a program that does nothing: what the probe's own cost is compared with.

use super::load::{Object, Tracing};
use super::{ProbeError, ProgramCost, cost};
use aya::Ebpf;

const PROGRAMS: [Tracing; 2] = [("empty_switch", "sched_switch"), ("empty_wakeup", "sched_wakeup")];

/// Empty programs on the tracepoints of context switches and wake-ups, attached while this lives.
pub struct Baseline {
    ebpf: Ebpf,
}

impl Baseline {
    /// Loads and attaches them.
    ///
    /// # Errors
    /// As [`Scheduler::load`](super::Scheduler::load).
    pub fn load() -> Result<Self, ProbeError> {
        let mut object = Object::open(1, false)?;
        object.attach(&PROGRAMS)?;
        Ok(Self { ebpf: object.ebpf })
    }

    /// What they have cost since they were loaded.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        cost::of_programs(&self.ebpf, &PROGRAMS.map(|(name, _)| name))
    }
}
