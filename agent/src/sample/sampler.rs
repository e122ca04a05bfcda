//! The sampling thread.

mod reader;

use super::grid::Now;
use super::series::HostSeries;
use super::{
    ChangedVms, DeviceReadings, DropReading, HostReport, LiveLoads, MigrationBook, QueueReading, SampleMetrics,
    SchedSource, VmReadings,
};
use crate::cost::CostControl;
use crate::host::inventory::Inventory;
use crate::host::process::Proc;
use crate::host::storage::StorageBook;
use crate::pacer::Pacers;
use crate::reading::{BlockReading, ExitReading, ReclaimReading};
use crate::recording::Tape;
use reader::Reader;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

/// Shortest sample interval. Below it the cost of reading outgrows the agent's budget and the clock's jitter the differences.
const SAMPLE_MS_MIN: u32 = 100;
/// Shortest window.
const WINDOW_MS_MIN: u32 = 1_000;

/// How to sample.
#[derive(Clone, Debug)]
pub struct SamplerConfig {
    /// Length of a sample interval, in milliseconds; at least 100.
    pub sample_ms: u32,
    /// Length of a window, in milliseconds; at least 1,000 and a multiple of `sample_ms`.
    pub window_ms: u32,
    /// The control group that stands for this host where several share a kernel; `None` is the whole machine.
    pub cgroup_root: Option<PathBuf>,
    /// The `/proc` of the host.
    pub proc: Proc,
    /// Where the last seconds of every VM are told.
    pub live: LiveLoads,
    /// What to report of VMs that Gnomon has changed.
    pub changed: ChangedVms,
    /// How far migrations away from here have come.
    pub migrations: MigrationBook,
    /// What the pacers in shadows say.
    pub pacers: Pacers,
    /// What only this host has of VMs' disks.
    pub storage: StorageBook,
    /// Keeps what is read.
    pub tape: Option<Tape>,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            sample_ms: 1_000,
            window_ms: 10_000,
            cgroup_root: None,
            proc: Proc::default(),
            live: LiveLoads::default(),
            changed: ChangedVms::default(),
            migrations: MigrationBook::default(),
            pacers: Pacers::default(),
            storage: StorageBook::default(),
            tape: None,
        }
    }
}

/// Where readings come from, and what keeps their cost within bounds.
pub struct Sources {
    /// Of CPU.
    pub cpu: Box<dyn SchedSource + Send>,
    /// Of disks, where something tells.
    pub disks: Option<VmReadings<BlockReading>>,
    /// Of what is dropped on network devices, where something tells.
    pub drops: Option<DeviceReadings<DropReading>>,
    /// Of how long packets wait there, where something tells.
    pub queues: Option<DeviceReadings<QueueReading>>,
    /// How VMs are held up for want of memory, where something tells.
    pub reclaim: Option<VmReadings<ReclaimReading>>,
    /// Why vCPUs leave their guests, where something tells.
    pub exits: Option<VmReadings<ExitReading>>,
    /// Gives them up and takes them back.
    pub cost: CostControl,
}

/// Why sampling cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The intervals do not fit together.
    #[error(
        "cannot sample every {sample_ms} ms in windows of {window_ms} ms: sample_ms must be at least {SAMPLE_MS_MIN}, \
         window_ms at least {WINDOW_MS_MIN} and a multiple of sample_ms"
    )]
    Pace {
        /// As configured.
        sample_ms: u32,
        /// As configured.
        window_ms: u32,
    },
    /// The thread cannot be started.
    #[error("cannot start the sampling thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl SamplerConfig {
    /// Whether the intervals fit together: for `--check-config`, and before sampling starts.
    pub fn check(&self) -> Result<(), SamplerError> {
        let &Self { sample_ms, window_ms, .. } = self;
        let good = sample_ms >= SAMPLE_MS_MIN && window_ms >= WINDOW_MS_MIN && window_ms % sample_ms == 0;
        if good { Ok(()) } else { Err(SamplerError::Pace { sample_ms, window_ms }) }
    }
}

/// Keeps the sampling thread; dropping it stops the thread and waits for its tick to end.
pub struct SamplerHandle {
    stop: Option<std_mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SamplerHandle {
    /// Whether the thread still runs; it ends by itself only when nobody receives its reports any more.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for SamplerHandle {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads, adds up, and hands windows over.
struct Sampler {
    reader: Reader,
    series: HostSeries,
    tape: Option<Tape>,
    out: mpsc::Sender<HostReport>,
    metrics: SampleMetrics,
}

impl Sampler {
    fn new(
        config: SamplerConfig,
        inventory: watch::Receiver<Arc<Inventory>>,
        sources: Sources,
        out: mpsc::Sender<HostReport>,
        metrics: SampleMetrics,
        now: Now,
    ) -> Self {
        let (live, tape) = (config.live.clone(), config.tape.clone());
        let reader = Reader::new(config, inventory, sources, metrics.clone());
        let start = reader.start(now);
        if let Some(tape) = &tape {
            tape.begin(&start);
        }
        Self { reader, series: HostSeries::new(&start, live, metrics.clone()), tape, out, metrics }
    }

    fn until_next_tick(&self, now: Now) -> Duration {
        self.series.until_next_tick(now)
    }

    /// Takes one sample of everything; `false` means that nobody receives reports any more.
    fn tick(&mut self, now: Now) -> bool {
        let began = Instant::now();
        let tick = self.reader.read(now, self.series.ends_window(now));
        if let Some(tape) = &self.tape {
            tape.keep(&tick);
        }
        let host_cpu = tick.host_cpu;
        let report = self.series.apply(tick);
        if let Some((_, host_ns)) = host_cpu {
            self.reader.control_cost(host_ns);
        }
        let connected = report.is_none_or(|report| match self.out.try_send(report) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.series.lost_report();
                true
            }
            Err(TrySendError::Closed(_)) => false,
        });
        self.metrics.tick_seconds.observe(began.elapsed().as_secs_f64());
        connected
    }
}

/// Starts sampling: one [`HostReport`] per window goes to `out`, which never holds sampling up. A report that finds the
/// queue full is dropped and counted.
pub fn spawn(
    config: SamplerConfig,
    inventory: watch::Receiver<Arc<Inventory>>,
    sources: Sources,
    out: mpsc::Sender<HostReport>,
    metrics: SampleMetrics,
) -> Result<SamplerHandle, SamplerError> {
    config.check()?;
    let (stop, stopped) = std_mpsc::channel();
    let mut sampler = Sampler::new(config, inventory, sources, out, metrics, Now::read());
    let run = move || {
        loop {
            let pause = sampler.until_next_tick(Now::read());
            // The sender is never used, only dropped.
            if stopped.recv_timeout(pause) != Err(std_mpsc::RecvTimeoutError::Timeout) {
                break;
            }
            if !sampler.tick(Now::read()) {
                tracing::warn!("nobody receives reports any more: sampling ends");
                break;
            }
        }
    };
    let thread = std::thread::Builder::new().name("sampler".into()).spawn(run)?;
    Ok(SamplerHandle { stop: Some(stop), thread: Some(thread) })
}

#[cfg(test)]
mod tests;
