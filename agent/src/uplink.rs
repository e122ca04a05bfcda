//! The one connection to the brain: reports and outcomes out, commands in.
//!
//! ```text
//!            +--> pause (full jitter) --> connect, TLS --> hello --> welcome? --+
//!            |                                                      no| yes     |
//!            +---------------- why, logged and counted <--------------+   serve until it ends
//! ```
//! It is kept for ever: whatever ends a connection, the next one is tried, with the next brain where there are several, and after a pause
//! once all of them have been tried. Reports are stamped and kept, in memory by the
//! [`outbox`] and on disk by the [`spool`], from the moment they are made until the brain acknowledges them, connected or not.
//!
//! Architecture Invariant: nothing that measures or actuates waits for this module; the sampler and the executor go on without a brain.

mod backoff;
pub mod enrol;
mod failure;
mod framing;
pub mod identity;
mod metrics;
pub mod outbox;
mod renew;
mod session;
pub mod spool;

pub use metrics::Metrics;
pub use spool::{Bounds, Spool, SpoolConfig};

use crate::command::Commands;
use crate::command::clock::{Clock, wall_clock};
use crate::sample::HostReport;
use backoff::{Backoff, STABLE_AFTER};
use gnomon_common::wire::{AgentEpoch, HostFacts, HostId, Losses, Report, frame};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use session::End;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Everything the uplink needs.
pub struct Uplink {
    /// `HOST:PORT` of every brain, resolved anew at every attempt. They are tried in turn: one of them leads.
    pub addresses: Vec<String>,
    /// The name the brain's certificate must have.
    pub server_name: String,
    /// Where this host's identity is: read at every attempt, replaced when it is renewed.
    pub identity: identity::Files,
    /// This host's name.
    pub host: HostId,
    /// This life of the agent.
    pub epoch: AgentEpoch,
    /// The host's facts as of now, asked for at every hello.
    pub facts: Box<dyn Fn() -> HostFacts + Send + Sync>,
    /// Where commands go and outcomes come from.
    pub commands: Commands,
    /// Stamps commands on receipt.
    pub clock: Clock,
    /// The uplink's own metrics.
    pub metrics: Metrics,
    /// For commands that do not reach the executor.
    pub command_metrics: crate::command::Metrics,
    /// Reports on their way.
    pub spool: Arc<Spool>,
}

impl Uplink {
    /// Takes reports in and keeps a connection until told to stop. `seed` spreads the pauses of different hosts.
    pub async fn run(self, mut reports: mpsc::Receiver<HostReport>, seed: u64, stop: CancellationToken) {
        let taking = async {
            while let Some(report) = reports.recv().await {
                self.take(report);
            }
            // Sampling has ended; what is in the outbox is still worth delivering.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = taking => {}
            () = self.keep_connected(seed, &stop) => {}
        }
        // Off the runtime's threads: it waits for the disk.
        let _ = tokio::task::spawn_blocking(move || self.spool.finish()).await;
    }

    async fn keep_connected(&self, seed: u64, stop: &CancellationToken) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut backoff = Backoff::default();
        let mut brains = self.addresses.iter().cycle();
        let Some(mut brain) = brains.next() else { return };
        // Since the last pause or welcome.
        let mut failures = 0;
        while !stop.is_cancelled() {
            let mut welcomed_at = None;
            let ended = session::run(self, brain, stop, || {
                welcomed_at = Some(Instant::now());
                self.metrics.count_connected();
                self.commands.presence().here();
            })
            .await;
            self.metrics.connected.set(0);
            self.commands.presence().gone(self.clock.now().boot);
            let failure = match ended {
                Ok(End::Stopped) => return,
                Ok(End::Renewed) => continue,
                Err(failure) => failure,
            };
            if welcomed_at.is_some_and(|at| at.elapsed() >= STABLE_AFTER) {
                backoff.reset();
            }
            if failure.needs_a_person() {
                backoff.give_time();
            }
            failures = if welcomed_at.is_some() { 1 } else { failures + 1 };
            let pause = if failures < self.addresses.len() {
                Duration::ZERO
            } else {
                failures = 0;
                backoff.pause(random.random())
            };
            self.metrics.count_failure(failure.kind());
            tracing::warn!(
                brain,
                kind = failure.kind(),
                reason = %failure,
                retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "not connected to the brain"
            );
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            brain = brains.next().unwrap_or(brain);
        }
    }

    /// Stamps a report and puts it into the outbox.
    fn take(&self, made: HostReport) {
        let HostReport { start, window_ms, host_window, vms, inventory_complete, losses } = made;
        let dropped = self.spool.with(|outbox| {
            let stamp = outbox.stamp();
            let report = Report {
                host: self.host.clone(),
                epoch: self.epoch,
                sequence: stamp.sequence,
                start,
                window_ms,
                host_window,
                vms,
                inventory_complete,
                losses: Losses { reports_dropped: losses.reports_dropped + stamp.reports_dropped, ..losses },
            };
            match frame::encode(&report) {
                Ok(frame) => outbox.push(frame.into(), wall_clock()),
                Err(error) => {
                    tracing::error!(%error, vms = report.vms.len(), "a report cannot be encoded and is dropped");
                    outbox.count_dropped(1);
                    1
                }
            }
        });
        if dropped > 0 {
            tracing::debug!(dropped, "old reports dropped: the disk does not take them and memory is full");
        }
        self.metrics.reports_dropped.inc_by(dropped);
        self.metrics.note_report();
        self.spool.filled();
    }
}
