//! The one writer: group commit.
//!
//! Whatever waits when the store is free is written in one transaction with one sync (bounded by [`BATCH_MAX`]); while
//! the disk syncs, the next batch gathers by itself. So a lone record pays one sync and no artificial wait, and a
//! thousand agents share one.
//!
//! A failing store is retried for ever with a growing pause: nothing is answered meanwhile, so nothing is acknowledged
//! and no command leaves, and the bounded queue pushes back on the agents, whose spools hold what was not acknowledged. What it
//! has written although its answer was lost is not written again. Only another brain's leadership ends the writer: what it has not
//! written then is that brain's business.

use super::{Entry, Repeated, Store, StoreError, StoredReport};
use crate::drive::Event;
use gnomon_common::wire::{HostId, Outcome, Report};
use gnomon_core::{Input, Record};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep};

/// Submissions in one transaction: more would only make the first of them wait longer.
const BATCH_MAX: usize = 512;
/// Submissions waiting for the writer. Beyond it, submitters wait: sessions stop reading, and QUIC's flow control stops
/// the agents.
const QUEUE_MAX: usize = 1024;
/// Bytes of report payloads waiting for the writer: 64 MiB bounds memory when many agents come back with full spools.
const QUEUE_BYTES_MAX: u32 = 64 << 20;
/// First pause after the store failed.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a disk that was freed is noticed within this time.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Resolves once the submission is synced; fails only when the journal has stopped.
pub type Receipt = oneshot::Receiver<()>;

/// The journal has stopped: the brain is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the brain is shutting down")]
pub struct Stopped;

/// What the writer measures.
#[derive(Clone, Debug)]
pub struct JournalMetrics {
    batch: Histogram,
    sync: Histogram,
    failures: Counter,
    failing: Gauge,
    duplicates: Counter,
    answers_lost: Counter,
}

impl JournalMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            sync: Histogram::new(exponential_buckets(0.000_5, 2.0, 14)),
            failures: Counter::default(),
            failing: Gauge::default(),
            duplicates: Counter::default(),
            answers_lost: Counter::default(),
        };
        registry.register(
            "gnomon_brain_store_batch_entries",
            "Entries written in one transaction",
            metrics.batch.clone(),
        );
        registry.register_with_unit(
            "gnomon_brain_store_sync",
            "Time to write and sync one transaction",
            Unit::Seconds,
            metrics.sync.clone(),
        );
        registry.register("gnomon_brain_store_failures", "Transactions that failed", metrics.failures.clone());
        registry.register(
            "gnomon_brain_store_failing",
            "1 while the store does not accept writes",
            metrics.failing.clone(),
        );
        registry.register(
            "gnomon_brain_store_duplicates",
            "Reports and outcomes that were stored already",
            metrics.duplicates.clone(),
        );
        registry.register(
            "gnomon_brain_store_answers_lost",
            "Transactions that were written although the database's answer was lost, and not written again",
            metrics.answers_lost.clone(),
        );
        metrics
    }

    /// Whether the last write failed.
    pub fn is_failing(&self) -> bool {
        self.failing.get() != 0
    }
}

/// What goes to the core once it is synced, and its reserved place in the core's queue: the writer never waits for the
/// core.
struct Feed {
    place: OwnedPermit<Event>,
    input: Input,
}

struct Submission {
    entries: Vec<Entry>,
    feed: Option<Feed>,
    /// Held until the submission is written; bounds the bytes in flight.
    _bytes: Option<OwnedSemaphorePermit>,
    done: oneshot::Sender<()>,
}

/// The way in. Clones share one writer; it ends when the last clone is gone.
#[derive(Clone)]
pub struct Journal {
    queue: mpsc::Sender<Submission>,
    bytes: Arc<Semaphore>,
}

impl Journal {
    /// Starts the writer.
    pub fn start(store: Arc<dyn Store>, metrics: JournalMetrics) -> Self {
        let (queue, submissions) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(write(store, submissions, metrics));
        Self { queue, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize)) }
    }

    /// Submits a report; once synced, and unless it was stored before, it goes to the core in `place`.
    pub async fn report(
        &self,
        report: Report,
        payload: Vec<u8>,
        place: OwnedPermit<Event>,
    ) -> Result<Receipt, Stopped> {
        let weight = u32::try_from(payload.len()).unwrap_or(u32::MAX).clamp(1, QUEUE_BYTES_MAX);
        let bytes = self.bytes.clone().acquire_many_owned(weight).await.map_err(|_| Stopped)?;
        let stored = StoredReport {
            host: report.host.clone(),
            epoch: report.epoch,
            sequence: report.sequence,
            start: report.start,
            received: crate::clock::now(),
            payload,
        };
        let feed = Feed { place, input: Input::Report(Box::new(report)) };
        self.submit(vec![Entry::Report(stored)], Some(feed), Some(bytes)).await
    }

    /// Submits an outcome; once synced, and unless it was stored before, it goes to the core in `place`.
    pub async fn outcome(&self, host: HostId, outcome: Outcome, place: OwnedPermit<Event>) -> Result<Receipt, Stopped> {
        let input = Input::Outcome { host: host.clone(), outcome: outcome.clone() };
        let entry = Entry::Outcome { host, outcome: Box::new(outcome) };
        self.submit(vec![entry], Some(Feed { place, input }), None).await
    }

    /// Submits records of the core, all in one transaction.
    pub async fn records(&self, records: Vec<Record>) -> Result<Receipt, Stopped> {
        let entries = records.into_iter().map(|record| Entry::Record(Box::new(record))).collect();
        self.submit(entries, None, None).await
    }

    /// Waits until everything submitted so far is synced.
    pub async fn drained(&self) -> Result<(), Stopped> {
        self.records(Vec::new()).await?.await.map_err(|_| Stopped)
    }

    /// Resolves when the writer has ended, which it does not while a `Journal` lives, unless it panicked or another brain leads.
    pub async fn stopped(&self) {
        self.queue.closed().await;
    }

    async fn submit(
        &self,
        entries: Vec<Entry>,
        feed: Option<Feed>,
        bytes: Option<OwnedSemaphorePermit>,
    ) -> Result<Receipt, Stopped> {
        let (done, receipt) = oneshot::channel();
        let submission = Submission { entries, feed, _bytes: bytes, done };
        self.queue.send(submission).await.map_err(|_| Stopped)?;
        Ok(receipt)
    }
}

async fn write(store: Arc<dyn Store>, mut submissions: mpsc::Receiver<Submission>, metrics: JournalMetrics) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while submissions.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut counts = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        for submission in &mut batch {
            counts.push(submission.entries.len());
            entries.append(&mut submission.entries);
        }
        let Some(fresh) = commit_until_done(store.as_ref(), &entries, &submissions, &metrics).await else { return };
        let mut fresh = fresh.into_iter();
        for (submission, count) in batch.drain(..).zip(counts) {
            let all_fresh = fresh.by_ref().take(count).filter(|fresh| !fresh).count() == 0;
            match submission.feed {
                Some(feed) if all_fresh => drop(feed.place.send(Event::Input(feed.input))),
                Some(_) => drop(metrics.duplicates.inc()),
                None => {}
            }
            // Whoever submitted may be gone (a connection that ended): the entry is synced all the same.
            let _ = submission.done.send(());
        }
    }
}

/// Commits, however often it takes; `None` when everybody who could have waited for it is gone, or another brain leads.
async fn commit_until_done(
    store: &dyn Store,
    entries: &[Entry],
    submissions: &mpsc::Receiver<Submission>,
    metrics: &JournalMetrics,
) -> Option<Vec<bool>> {
    if entries.is_empty() {
        return Some(Vec::new());
    }
    let (mut pause, mut is_first) = (RETRY_MIN, true);
    loop {
        let started = Instant::now();
        let committed = if std::mem::replace(&mut is_first, false) {
            store.commit(entries).await.map(|fresh| Repeated { fresh, was_written: false })
        } else {
            store.commit_again(entries).await
        };
        match committed {
            Ok(Repeated { fresh, was_written }) => {
                metrics.answers_lost.inc_by(u64::from(was_written));
                metrics.sync.observe(started.elapsed().as_secs_f64());
                metrics.batch.observe(entries.len() as f64);
                if metrics.failing.set(0) != 0 {
                    tracing::info!("the store accepts writes again");
                }
                return Some(fresh);
            }
            Err(error @ StoreError::Deposed { .. }) => {
                tracing::error!(%error, entries = entries.len(), "nothing of what waits is acknowledged or sent");
                metrics.failures.inc();
                metrics.failing.set(1);
                return None;
            }
            Err(error) => {
                metrics.failures.inc();
                if metrics.failing.set(1) == 0 {
                    say_failing(&error, entries.len());
                }
                if submissions.is_closed() {
                    return None;
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

fn say_failing(error: &StoreError, entries: usize) {
    tracing::error!(%error, entries, "the store fails: nothing is acknowledged and no command is sent until it works again");
}
