//! The spool's thread: moves reports from memory to disk, and the backlog from disk to memory, one step at a time.

use super::record::Record;
use super::segment::SegmentId;
use super::shelf::Shelf;
use super::{Connection, Metrics, Shared, State};
use crate::command::clock::wall_clock;
use crate::uplink::outbox::{UNSTORED_BYTES_MAX, Unstored};
use gnomon_common::wire::AgentEpoch;
use gnomon_common::wire::frame::PREFIX_BYTES;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is written is synced after this time: what a power cut may lose.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// How often a disk that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often the oldest reports are looked at for their age while nothing else happens.
const AGE_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    shelf: Shelf,
    epoch: AgentEpoch,
    shared: Arc<Shared>,
    metrics: Metrics,
    /// The connection whose backlog is read.
    connection: Connection,
    /// The disk failed; it is tried again then.
    failing_until: Option<Instant>,
    sync_due: Option<Instant>,
    trim_due: Instant,
}

/// What a turn has to do.
struct Work {
    freed: BTreeMap<SegmentId, u64>,
    connection: Connection,
    to_store: Option<Unstored>,
    backlog_room: usize,
    short_of_memory: bool,
    stopping: bool,
}

impl Writer {
    pub(super) fn new(shelf: Shelf, epoch: AgentEpoch, shared: Arc<Shared>, metrics: Metrics) -> Self {
        let trim_due = Instant::now();
        Self {
            shelf,
            epoch,
            shared,
            metrics,
            connection: Connection::default(),
            failing_until: None,
            sync_due: None,
            trim_due,
        }
    }

    pub(super) fn run(mut self) {
        match self.shelf.open() {
            Ok(found) => {
                self.count_damaged(found.damaged);
                if found.reports > 0 || found.damaged > 0 {
                    tracing::info!(
                        reports = found.reports,
                        bytes = self.shelf.bytes(),
                        damaged = found.damaged,
                        "the spool holds reports that the brain has not acknowledged"
                    );
                }
            }
            Err(error) => tracing::error!(%error, "the spool's directory cannot be listed; what is in it stays there"),
        }
        while self.turn() {}
        self.sync();
    }

    /// Waits for work and does it; `false` when there will be no more.
    fn turn(&mut self) -> bool {
        let work = self.wait();
        self.work(&work)
    }

    fn work(&mut self, work: &Work) -> bool {
        // In this order: what was acknowledged on the last connection is not part of the next one's backlog.
        self.shelf.free(&work.freed);
        if work.connection != self.connection {
            self.connection = work.connection;
            self.shelf.begin();
        }
        let now = Instant::now();
        if let Some(unstored) = &work.to_store
            && (work.stopping || self.failing_until.is_none_or(|until| until <= now))
        {
            self.store(unstored, work.short_of_memory);
        }
        if work.backlog_room > 0 && self.shelf.has_backlog() {
            self.read_ahead(work.backlog_room);
        }
        self.trim_if_due(now);
        self.sync_if_due(now);
        self.show();
        let failed = self.failing_until.is_some();
        !(work.stopping && (work.to_store.is_none() || failed))
    }

    fn wait(&self) -> Work {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        while let Some(idle) = self.idle(&state) {
            let waited = shared.work.wait_timeout(state, idle).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() {
                break;
            }
        }
        take_work(state)
    }

    /// How long there is nothing to do; `None` if there is something now.
    fn idle(&self, state: &State) -> Option<Duration> {
        let (now, outbox) = (Instant::now(), &state.outbox);
        let storable = outbox.to_store().is_some() && self.failing_until.is_none_or(|until| until <= now);
        let readable =
            outbox.backlog_room() > 0 && (outbox.connection() == self.connection && self.shelf.has_backlog());
        let begins = outbox.connection() != self.connection;
        if storable || readable || begins || outbox.has_freed() || state.stopping {
            return None;
        }
        let retry = self.failing_until.filter(|_| outbox.to_store().is_some());
        let due = [retry, self.sync_due].into_iter().flatten().fold(self.trim_due, Instant::min);
        Some(due.saturating_duration_since(now)).filter(|idle| !idle.is_zero())
    }

    fn store(&mut self, unstored: &Unstored, short_of_memory: bool) {
        let record = Record {
            epoch: self.epoch,
            sequence: unstored.sequence,
            at: unstored.at,
            payload: unstored.frame.get(PREFIX_BYTES..).unwrap_or_default(),
        };
        let mut appended = self.shelf.append(&record);
        while short_of_memory && appended.is_err() && self.shelf.has_reports() {
            // The oldest of all go first, and their files make room.
            let dropped = self.shelf.drop_oldest();
            self.count_dropped(dropped);
            appended = self.shelf.append(&record);
        }
        match appended {
            Ok(segment) => {
                if self.failing_until.take().is_some() {
                    self.metrics.spool_failing.set(0);
                    tracing::info!("the spool is written to disk again");
                }
                self.sync_due.get_or_insert_with(|| Instant::now() + SYNC_AFTER);
                self.shared.lock().outbox.stored(unstored.sequence, segment, self.connection);
                let dropped = self.shelf.trim(wall_clock());
                self.count_dropped(dropped);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(sequence = unstored.sequence.0, "a report is too large for the spool and is dropped");
                self.shared.lock().outbox.drop_unstored(unstored.sequence);
                self.metrics.reports_dropped.inc();
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.metrics.spool_write_failures.inc();
        self.metrics.spool_failing.set(1);
        if self.failing_until.replace(Instant::now() + RETRY_INTERVAL).is_none() {
            tracing::error!(
                dir = %self.shelf.dir().display(),
                %error,
                memory_bytes_max = UNSTORED_BYTES_MAX,
                "the spool cannot be written; reports are kept in memory until it can, and the oldest dropped when that is full"
            );
        }
    }

    fn read_ahead(&mut self, bytes_max: usize) {
        let (reports, lost) = self.shelf.read(bytes_max);
        self.count_damaged(lost);
        if !reports.is_empty() {
            self.shared.lock().outbox.add_backlog(self.connection, reports);
            self.shared.backlog.notify_one();
        }
    }

    fn trim_if_due(&mut self, now: Instant) {
        if now >= self.trim_due {
            self.trim_due = now + AGE_INTERVAL;
            let dropped = self.shelf.trim(wall_clock());
            self.count_dropped(dropped);
        }
    }

    fn sync_if_due(&mut self, now: Instant) {
        if !self.shelf.is_unsynced() {
            self.sync_due = None;
        } else if self.sync_due.is_none_or(|due| due <= now) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        self.sync_due = None;
        if self.shelf.is_unsynced()
            && let Err(error) = self.shelf.sync()
        {
            self.metrics.spool_write_failures.inc();
            tracing::warn!(%error, "the spool could not be synced: a power cut now would lose its last reports");
        }
    }

    fn count_dropped(&self, reports: u64) {
        if reports > 0 {
            tracing::debug!(reports, "old reports dropped: the spool is full");
            self.metrics.reports_dropped.inc_by(reports);
            self.shared.lock().outbox.count_dropped(reports);
        }
    }

    fn count_damaged(&self, records: u64) {
        if records > 0 {
            tracing::warn!(records, "damaged records of the spool are skipped");
            self.metrics.spool_records_damaged.inc_by(records);
            self.count_dropped(records);
        }
    }

    fn show(&self) {
        let on_disk = self.shelf.waiting();
        let mut state = self.shared.lock();
        state.on_disk = on_disk;
        let (reports, bytes) = (on_disk + state.outbox.unstored() as u64, state.outbox.unstored_bytes());
        drop(state);
        self.metrics.show(reports, bytes, self.shelf.bytes());
    }
}

fn take_work(mut state: MutexGuard<'_, State>) -> Work {
    let outbox = &mut state.outbox;
    Work {
        freed: outbox.take_freed(),
        connection: outbox.connection(),
        to_store: outbox.to_store().cloned(),
        backlog_room: outbox.backlog_room(),
        short_of_memory: outbox.is_short_of_memory(),
        stopping: state.stopping,
    }
}

#[cfg(test)]
mod tests;
