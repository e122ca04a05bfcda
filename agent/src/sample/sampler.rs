//! The sampling thread.

mod tick;

use super::grid::{Grid, Now};
use super::{
    DiskSource, DropSeries, ExitSource, HostReport, LiveLoads, ReclaimSource, SampleMetrics, SchedSource, StoodDownVms,
};
use crate::cost::CostControl;
use crate::host::inventory::Inventory;
use crate::host::process::Proc;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tick::Sampler;
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
    /// Which VMs to report as stood down for.
    pub stood_down: StoodDownVms,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            sample_ms: 1_000,
            window_ms: 10_000,
            cgroup_root: None,
            proc: Proc::default(),
            live: LiveLoads::default(),
            stood_down: StoodDownVms::default(),
        }
    }
}

/// Where readings come from, and what keeps their cost within bounds.
pub struct Sources {
    /// Of CPU.
    pub cpu: Box<dyn SchedSource + Send>,
    /// Of disks, where something tells.
    pub disks: Option<Box<dyn DiskSource + Send>>,
    /// Of what is dropped on network devices, where something tells.
    pub drops: Option<DropSeries>,
    /// How VMs are held up for want of memory, where something tells.
    pub reclaim: Option<Box<dyn ReclaimSource + Send>>,
    /// Why vCPUs leave their guests, where something tells.
    pub exits: Option<Box<dyn ExitSource + Send>>,
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

    fn grid(&self, now: Now) -> Grid {
        Grid::align(now, ms(self.sample_ms), ms(self.window_ms))
    }
}

fn ms(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
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
