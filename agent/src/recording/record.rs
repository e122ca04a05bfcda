//! `gnomon-agent record`: samples as the daemon does, with probes of its own, and keeps what it reads.

use super::{Progress, Tape, TapeError};
use crate::config::Config;
use crate::daemon::{self, DaemonError};
use crate::sample::{self, SampleMetrics, SamplerConfig, SamplerError};
use prometheus_client::registry::Registry;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{interval, sleep};

/// How often progress is told, and a failure noticed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Why nothing, or no more, was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A source that the configuration demands does not work.
    #[error(transparent)]
    Source(#[from] DaemonError),
    /// The sampler does not start.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The file.
    #[error(transparent)]
    Tape(#[from] TapeError),
    /// The operating system did not give a thread or a signal.
    #[error("the operating system refuses {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Records to a new file for so long, or until SIGINT or SIGTERM. Nothing is set on any VM. With `names`, names are kept. `tell` hears of
/// the progress each second.
///
/// # Errors
/// What was recorded until then can be replayed.
pub async fn record(
    config: &Config,
    path: &Path,
    length: Duration,
    names: bool,
    mut tell: impl FnMut(Progress),
) -> Result<Progress, RecordError> {
    let system = |what| move |source| RecordError::System { what, source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("to handle SIGINT"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("to handle SIGTERM"))?;
    let mut registry = Registry::default();
    let (sources, _) = daemon::sources(config, &mut registry)?;
    let inventory = daemon::inventory(config, false, &mut registry);
    let (inventory, _inventory_handle) = inventory.map_err(system("the inventory's threads"))?;
    let tape = Tape::create(path, names)?;
    let (out, mut reports) = mpsc::channel(1);
    let sampler = SamplerConfig {
        sample_ms: config.sample.sample_ms,
        window_ms: config.sample.window_ms,
        cgroup_root: config.host.cgroup_root.clone(),
        tape: Some(tape.clone()),
        ..SamplerConfig::default()
    };
    let sampler = sample::spawn(sampler, inventory, sources, out, SampleMetrics::default())?;
    let mut progress = interval(PROGRESS_INTERVAL);
    let end = sleep(length);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            // The replay makes them again.
            _ = reports.recv() => {}
            _ = progress.tick() => tell(tape.progress()?),
        }
    }
    // Ends with the tick under way.
    drop(sampler);
    Ok(tape.progress()?)
}
