//! What the scheduler probe's programs cost, measured now and then.
//!
//! The kernel times eBPF programs only while asked to, and the timing itself costs two clock reads per run, on every context switch of the
//! host. So it is turned on for one sample in [`DRAINS_PER_MEASUREMENT`] only. That takes CAP_SYS_ADMIN; without it the cost is shown only
//! while `kernel.bpf_stats_enabled` is 1, and the log says so once.

use crate::probe::{ProgramCost, Scheduler, StatsEnabled};
use crate::reading::SchedReading;
use crate::sample::{SchedSource, SourceError};
use gnomon_common::wire::VmId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::path::PathBuf;
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
    timing: Timing,
    measuring: Option<Measurement>,
    busy_cores: Family<ByProgram, GaugeF64>,
    run_seconds: Family<ByProgram, GaugeF64>,
}

struct Measurement {
    /// Held until the measurement ends; `None` where the administrator has turned the timing on for good.
    timed: Option<StatsEnabled>,
    from: Instant,
    before: Vec<ProgramCost>,
}

/// Where the administrator turns the timing on.
const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Gets the kernel to time programs, or finds that it does.
struct Timing {
    sysctl: PathBuf,
    refusal_told: bool,
}

/// What came of it.
#[derive(Debug, PartialEq)]
enum Timed<S> {
    /// On while this is held.
    Held(S),
    /// On by the administrator.
    BySysctl,
    /// Off; whether that is news.
    Off { news: bool },
}

impl Timing {
    fn at(sysctl: impl Into<PathBuf>) -> Self {
        Self { sysctl: sysctl.into(), refusal_told: false }
    }

    /// Whether the kernel times all programs anyway; anyone may read that.
    fn by_sysctl(&self) -> bool {
        std::fs::read_to_string(&self.sysctl).is_ok_and(|text| text.trim() == "1")
    }

    fn begin<S, E: std::fmt::Display>(&mut self, enable: impl FnOnce() -> Result<S, E>) -> Timed<S> {
        if self.by_sysctl() {
            return Timed::BySysctl;
        }
        match enable() {
            Ok(held) => Timed::Held(held),
            Err(error) => {
                let news = !std::mem::replace(&mut self.refusal_told, true);
                if news {
                    tracing::warn!(
                        %error,
                        "what the scheduler probe costs is not shown: set kernel.bpf_stats_enabled=1 or give the agent CAP_SYS_ADMIN to see it"
                    );
                }
                Timed::Off { news }
            }
        }
    }
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
        Self { scheduler, drains: 0, timing: Timing::at(SYSCTL), measuring: None, busy_cores, run_seconds }
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
        let timed = match self.timing.begin(StatsEnabled::new) {
            Timed::Held(stats) => Some(stats),
            Timed::BySysctl => None,
            Timed::Off { .. } => return Ok(()),
        };
        let before = self.scheduler.cost()?;
        self.measuring = Some(Measurement { timed, from: Instant::now(), before });
        Ok(())
    }

    fn conclude(&self, measurement: &Measurement) -> Result<(), crate::probe::ProbeError> {
        if measurement.timed.is_none() && !self.timing.by_sysctl() {
            return Ok(()); // turned off meanwhile: half a measurement would look cheap
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(value: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bpf_stats_enabled");
        std::fs::write(&path, value).unwrap();
        (folder, path)
    }

    #[test]
    fn timing_turned_on_by_the_administrator_needs_no_capability() {
        let (_folder, path) = sysctl("1\n");
        let enable = || -> Result<(), &str> { panic!("asked the kernel though it times already") };
        assert_eq!(Timing::at(path).begin(enable), Timed::BySysctl);
    }

    #[test]
    fn a_refusal_is_told_once_and_does_not_outlast_its_cause() {
        let (_folder, path) = sysctl("0\n");
        let mut timing = Timing::at(&path);
        let mut begin = |result: Result<(), &'static str>| timing.begin(|| result);
        assert_eq!(begin(Err("not permitted")), Timed::Off { news: true });
        assert_eq!(begin(Err("not permitted")), Timed::Off { news: false });
        assert_eq!(begin(Ok(())), Timed::Held(()));
        std::fs::write(&path, "1\n").unwrap();
        assert_eq!(begin(Err("not permitted")), Timed::BySysctl);
    }
}
