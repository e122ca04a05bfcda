//! Where readings of CPU come from on this host: the highest rung of a ladder that holds.
//!
//! | rung | needs | tells |
//! |---|---|---|
//! | `task_storage` | BTF, task storage, CAP_BPF and CAP_PERFMON | all: run, wait and who ran meanwhile, histogram of waits, wake-ups, preemptions |
//! | `tracepoints` | tracefs, CAP_BPF and CAP_PERFMON | the same but for who ran, at two to three times the cost per switch |
//! | `schedstat` | a kernel that keeps `/proc/PID/task/TID/schedstat` | run and wait |
//! | `cgroup` | nothing | usage, from the control groups that are read anyway; demand above it is unknown |
//!
//! Which rung holds is found out by standing on it: programs are loaded and attached, files are read. Kernel versions are never
//! asked for. What a rung does not tell is absent from what it gives, never zero.

mod ladder;
mod metrics;
mod schedstat;
mod usage_only;

pub use ladder::{Choice, Climb, Fall, Rungs, SourceUnavailable, climb};
pub use metrics::SignalMetrics;
pub use schedstat::{Schedstat, SchedstatError};
pub use usage_only::UsageOnly;

use crate::probe::{Mechanism, ProbeError, Scheduler, SchedulerOptions};
use crate::sample::SchedSource;
use gnomon_common::wire::CpuSource;

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
    /// As the sampler takes it.
    pub fn boxed(self) -> Box<dyn SchedSource + Send> {
        match self {
            Self::Probe(scheduler) => scheduler,
            Self::Schedstat(schedstat) => Box::new(schedstat),
            Self::UsageOnly(usage_only) => Box::new(usage_only),
        }
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
        match rung {
            CpuSource::TaskStorage => probe(Mechanism::TaskStorage),
            CpuSource::Tracepoints => probe(Mechanism::Tracepoints),
            CpuSource::Schedstat => Ok(Source::Schedstat(Schedstat::open()?)),
            CpuSource::Cgroup => Ok(Source::UsageOnly(UsageOnly)),
        }
    }
}
