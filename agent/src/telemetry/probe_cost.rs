//! What the scheduler probe's programs cost, measured now and then.
//!
//! The kernel times eBPF programs only while asked to, and the timing itself costs two clock reads per run, on every context switch of the
//! host. So it is turned on for one sample in [`DRAINS_PER_MEASUREMENT`] only.

use crate::probe::{ProgramCost, Scheduler, StatsEnabled};
use crate::reading::SchedReading;
use crate::sample::{SchedSource, SourceError};
use gnomon_common::wire::VmId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// One drain in a minute of 1 s samples.
const DRAINS_PER_MEASUREMENT: u64 = 60;

type GaugeF64 = Gauge<f64, AtomicU64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProgram {
    program: &'static str,
}

/// The scheduler probe, with its cost shown as metrics.
pub struct WithCost {
    scheduler: Scheduler,
    drains: u64,
    measuring: Option<Measurement>,
    busy_cores: Family<ByProgram, GaugeF64>,
    run_seconds: Family<ByProgram, GaugeF64>,
}

struct Measurement {
    _stats: StatsEnabled,
    from: Instant,
    before: Vec<ProgramCost>,
}

impl WithCost {
    /// Wraps the probe and registers its metrics.
    pub fn register(scheduler: Scheduler, registry: &mut Registry) -> Self {
        let (busy_cores, run_seconds) = (Family::default(), Family::default());
        registry.register(
            "gnomon_agent_probe_busy_cores",
            "CPU spent in an eBPF program, in cores, in the last measured second of a minute",
            busy_cores.clone(),
        );
        registry.register(
            "gnomon_agent_probe_run_seconds",
            "Mean time of one run of an eBPF program, in the last measured second of a minute",
            run_seconds.clone(),
        );
        Self { scheduler, drains: 0, measuring: None, busy_cores, run_seconds }
    }

    fn measure(&mut self) {
        let result = match self.measuring.take() {
            Some(measurement) => self.conclude(&measurement),
            None if self.drains.is_multiple_of(DRAINS_PER_MEASUREMENT) => self.begin(),
            None => Ok(()),
        };
        self.drains += 1;
        if let Err(error) = result {
            tracing::debug!(%error, "the probe's cost cannot be measured");
        }
    }

    fn begin(&mut self) -> Result<(), crate::probe::ProbeError> {
        let _stats = StatsEnabled::new()?;
        let before = self.scheduler.cost()?;
        self.measuring = Some(Measurement { _stats, from: Instant::now(), before });
        Ok(())
    }

    fn conclude(&self, measurement: &Measurement) -> Result<(), crate::probe::ProbeError> {
        let elapsed_s = measurement.from.elapsed().as_secs_f64();
        for (before, after) in measurement.before.iter().zip(self.scheduler.cost()?) {
            let label = ByProgram { program: after.program };
            let spent_s = after.run_ns.saturating_sub(before.run_ns) as f64 / 1e9;
            let runs = after.runs.saturating_sub(before.runs);
            self.busy_cores.get_or_create(&label).set(spent_s / elapsed_s);
            if runs > 0 {
                self.run_seconds.get_or_create(&label).set(spent_s / runs as f64);
            }
        }
        Ok(())
    }
}

impl SchedSource for WithCost {
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        Ok(self.scheduler.track(vm, tgids)?)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        Ok(self.scheduler.untrack(vm)?)
    }

    fn drain(&mut self) -> Result<SchedReading, SourceError> {
        let reading = self.scheduler.drain();
        self.measure();
        Ok(reading)
    }
}
