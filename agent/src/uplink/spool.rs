//! Reports that the brain has not acknowledged, on disk: an outage of brain, network or agent leaves no hole.
//!
//! ```text
//! DIR/00000000000000000017.spool   a segment: records, one behind the other (see [`record`])
//! ```
//! Reports are appended to the newest segment; a segment goes as a whole, once everything in it is acknowledged or when it is the oldest and
//! the bounds on bytes and age are reached. That is all: no index, no compaction, and the order on disk is the order of delivery. A database
//! (`redb` is in the tree, for the ledger) would bring transactions that this does not need, rewrite pages for each report and its removal, and
//! need free space to delete; here a full disk costs nothing that is on it, and a torn write costs the record that was torn.
//!
//! **What survives.** A report is written (`write`, so to the page cache) as soon as it is made, by the spool's own thread: `kill -9` loses
//! none that the thread has got to, which it does within a millisecond unless the disk hangs. The disk is synced at most once a second,
//! and only while something waits: a power cut loses the last second or so. With a brain that answers, each report is acknowledged before
//! that and its segment is emptied again, so that hardly anything ever gets from the page cache to the disk.
//!
//! **What it costs.** Measured on a virtual disk (ext4) with reports of 12 KiB, which is 50 VMs: 25 µs to write one; 24 µs to write it, take its
//! acknowledgement and empty the segment again; 3.6 ms with a sync for each, which happens only while the brain is away, once a window. The
//! test `one_report_costs_microseconds` in `writer/tests.rs` measures it again.
//!
//! **When the disk fails or is full**, reports stay in memory, bounded; it is said once and tried again each second, in order, so that it
//! mends by itself. When memory gets short as well, the oldest segments on disk go first: that makes room. Whatever is dropped, torn or
//! corrupt is counted, in the metrics and in every later report.
//!
//! **Delivery.** A connection gets what is on disk as its *backlog*, oldest first, on a stream of its own behind the live one, a bounded
//! amount at a time; live reports never wait for it.
//!
//! Architecture Invariant: nothing but the spool's own thread touches these files, and nobody waits for it. The lock that it shares with the
//! uplink is never held over a file operation.

pub mod record;
mod segment;
mod shelf;
mod writer;

pub use segment::SegmentId;
pub use shelf::{Bounds, Stored};

use super::Metrics;
use super::outbox::{Connection, Outbox, Stream};
use gnomon_common::wire::{AgentEpoch, HostId, Report, frame};
use record::Record;
use shelf::Shelf;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use writer::Writer;

/// How long the thread may take to write what is left when the agent stops. A disk that hangs must not keep it from ending.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// How often finishing looks whether the thread has ended.
const FINISH_POLL: Duration = Duration::from_millis(5);

/// Where and how much.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// The directory; made with mode 0700 when first needed.
    pub dir: PathBuf,
    /// How much is kept.
    pub bounds: Bounds,
    /// Whose reports these are.
    pub host: HostId,
    /// This life of the agent.
    pub epoch: AgentEpoch,
}

/// The way to the spool, shared by the task that fills it and the session that empties it.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is work for the thread.
    work: Condvar,
    /// There may be something to send on the live stream.
    live: Notify,
    /// There may be something to send on the backlog stream.
    backlog: Notify,
    /// The connection may have stalled.
    stalled: Notify,
}

#[derive(Debug)]
struct State {
    outbox: Outbox,
    /// Reports on disk, as of the thread's last turn.
    on_disk: u64,
    stopping: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The outbox is consistent between its methods, so that a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spool {
    /// Starts the spool's thread, which first takes stock of what is on disk.
    pub fn start(config: SpoolConfig, metrics: Metrics) -> io::Result<Self> {
        let SpoolConfig { dir, bounds, host, epoch } = config;
        let state = State { outbox: Outbox::new(epoch), on_disk: 0, stopping: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            live: Notify::new(),
            backlog: Notify::new(),
            stalled: Notify::new(),
        });
        let sendable = move |record: &Record<'_>| is_sendable(record, &host, epoch);
        let writer = Writer::new(Shelf::new(dir, bounds, Box::new(sendable)), epoch, Arc::clone(&shared), metrics);
        let thread = thread::Builder::new().name("spool".to_owned()).spawn(move || writer.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Looks at or changes the queues, and lets the thread see what is to be done.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Outbox) -> T) -> T {
        let done = work(&mut self.shared.lock().outbox);
        self.shared.work.notify_one();
        done
    }

    /// A report was put in.
    pub(super) fn filled(&self) {
        self.shared.live.notify_one();
        self.shared.stalled.notify_one();
    }

    /// Waits until there may be something to send on `stream`, or room for it.
    pub(super) async fn changed(&self, stream: Stream) {
        match stream {
            Stream::Live => self.shared.live.notified().await,
            Stream::Backlog => self.shared.backlog.notified().await,
        }
    }

    /// Something was acknowledged on `stream`.
    pub(super) fn acknowledged(&self, stream: Stream) {
        match stream {
            Stream::Live => self.shared.live.notify_one(),
            Stream::Backlog => self.shared.backlog.notify_one(),
        }
    }

    /// Resolves when the connection has stalled.
    pub(super) async fn stalled(&self) {
        while !self.shared.lock().outbox.is_stalled() {
            self.shared.stalled.notified().await;
        }
    }

    /// Begins a connection; dropping the guard ends it.
    pub(super) fn connect(&self) -> Connected<'_> {
        self.with(Outbox::connect);
        Connected(self)
    }

    /// Reports that are not acknowledged, on disk and in memory.
    pub(super) fn waiting(&self) -> u64 {
        let state = self.shared.lock();
        state.on_disk + state.outbox.unstored() as u64
    }

    /// Lets the thread write and sync what is left, and waits for that. Blocks.
    pub fn finish(&self) {
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.shared.lock().stopping = true;
        self.shared.work.notify_one();
        let patience = Instant::now() + FINISH_MAX;
        while !thread.is_finished() {
            if Instant::now() >= patience {
                tracing::warn!("the disk takes too long: what it has not taken of the spool may be lost");
                return;
            }
            thread::sleep(FINISH_POLL);
        }
    }
}

/// A connection that has begun.
#[derive(Debug)]
pub(super) struct Connected<'a>(&'a Spool);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.with(Outbox::disconnect);
    }
}

/// Whether the brain would take this record from this agent. One that it refuses would end every connection anew: a record of another host
/// (a copied disk), of another release's format, or of a life that is still to come (a ledger lost and a clock set back).
fn is_sendable(record: &Record<'_>, host: &HostId, epoch: AgentEpoch) -> bool {
    frame::decode::<Report>(record.payload).is_ok_and(|report| {
        report.host == *host
            && report.epoch <= epoch
            && (report.epoch, report.sequence) == (record.epoch, record.sequence)
            && record.sequence.0 > 0
    })
}
