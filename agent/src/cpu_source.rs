//! Where readings of CPU come from on this host: the highest rung of a ladder that holds.
//!
//! | rung | needs | tells |
//! |---|---|---|
//! | `task_storage` | BTF, task storage, CAP_BPF and CAP_PERFMON | all: run, wait and who ran meanwhile, histogram of waits, wake-ups, preemptions |
//! | `tracepoints` | tracefs, CAP_BPF and CAP_PERFMON | the same but for who ran, at two to three times the cost per switch |
//! | `schedstat` | a kernel that keeps `/proc/PID/task/TID/schedstat` | run and wait |
//! | `cgroup` | nothing | usage, from the control groups that are read anyway; demand above it is unknown |
//!
//! Which rung holds is found out by standing on it: programs are loaded and attached, files are read, and a thread of the agent's own must
//! be counted ([`crate::self_test`]). Kernel versions are never asked for. While eBPF costs more than it may, the agent stands lower
//! than it could ([`Footing`]). What a rung does not tell is absent from what it gives, never zero.

mod footing;
mod ladder;
mod metrics;
mod schedstat;
mod usage_only;

pub use footing::Footing;
pub use ladder::{Choice, Climb, Fall, Rungs, SourceUnavailable, climb};
pub use metrics::SignalMetrics;
pub use schedstat::{Schedstat, SchedstatError};
pub use usage_only::UsageOnly;

use crate::cost::Costed;
use crate::probe::{Mechanism, ProbeError, ProgramCost, Scheduler, SchedulerOptions};
use crate::reading::SchedReading;
use crate::sample::{SchedSource, SourceError};
use crate::self_test::{self, Uncounted};
use gnomon_common::wire::{CpuSource, VmId};

/// What stands on a rung.
pub enum Source {
    /// The eBPF probe, by either of its mechanisms.
    Probe(Box<Scheduler>),
    /// The kernel's own counts.
    Schedstat(Schedstat),
    /// Nothing but control groups.
    UsageOnly(UsageOnly),
}

impl Source {
    fn get(&self) -> &dyn SchedSource {
        match self {
            Self::Probe(scheduler) => &**scheduler,
            Self::Schedstat(schedstat) => schedstat,
            Self::UsageOnly(usage_only) => usage_only,
        }
    }

    fn get_mut(&mut self) -> &mut dyn SchedSource {
        match self {
            Self::Probe(scheduler) => &mut **scheduler,
            Self::Schedstat(schedstat) => schedstat,
            Self::UsageOnly(usage_only) => usage_only,
        }
    }
}

impl Costed for Source {
    fn name(&self) -> &'static str {
        self.get().name()
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.get().programs()
    }
}

impl SchedSource for Source {
    fn tells_demand(&self) -> bool {
        self.get().tells_demand()
    }

    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        self.get_mut().track(vm, tgids)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        self.get_mut().untrack(vm)
    }

    fn drain(&mut self) -> Result<SchedReading, SourceError> {
        self.get_mut().drain()
    }
}

/// Why a rung does not hold.
#[derive(Debug, thiserror::Error)]
pub enum RungError {
    /// The eBPF programs.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The kernel's own counts.
    #[error(transparent)]
    Schedstat(#[from] SchedstatError),
    /// It is there, and counts nothing.
    #[error(transparent)]
    Uncounted(#[from] Uncounted),
}

/// The rungs of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

impl Rungs for Host {
    type Source = Source;
    type Error = RungError;

    fn stand(&self, rung: CpuSource) -> Result<Source, RungError> {
        let probe = |mechanism| -> Result<Source, RungError> {
            let options = SchedulerOptions { mechanism, ..SchedulerOptions::default() };
            Ok(Source::Probe(Box::new(Scheduler::load(options)?)))
        };
        let mut source = match rung {
            CpuSource::TaskStorage => probe(Mechanism::TaskStorage)?,
            CpuSource::Tracepoints => probe(Mechanism::Tracepoints)?,
            CpuSource::Schedstat => Source::Schedstat(Schedstat::open()?),
            // Nothing counts here.
            CpuSource::Cgroup => return Ok(Source::UsageOnly(UsageOnly)),
        };
        self_test::cpu(&mut source)?;
        Ok(source)
    }
}
