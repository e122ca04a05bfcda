//! Reports between their making and the brain's acknowledgement, as far as they are in memory: pure, no clock, no socket, no disk.
//!
//! ```text
//! made --> unstored --> (disk) --> backlog lane --> sent --> acknowledged
//!      \-> live lane --> sent --> acknowledged
//! ```
//! A report gets the next sequence when it is put in. It waits in `unstored` until the spool's thread has written it, and, while there is a
//! connection, in the *live* lane to be sent at once. What lies on disk when a connection begins comes back through the *backlog* lane. Each
//! lane is one stream, sent and acknowledged in order. Both know after an acknowledgement which segment of the disk may forget it.

mod lane;

use super::spool::{SegmentId, Stored};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, ReportAck, Sequence};
use lane::{Item, Lane};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use lane::NotAwaited;

/// Memory for reports that the disk does not take: with 50 VMs a report is about 12 KiB, so this is two hours of a full disk.
pub const UNSTORED_BYTES_MAX: usize = 8 << 20;

/// Live reports waiting to be sent: a connection that does not take so much is worse than none. More than what may be only in memory,
/// which is where a connection begins.
const LIVE_WAITING_BYTES_MAX: usize = 2 * UNSTORED_BYTES_MAX;

/// Live reports sent and not acknowledged: a report of the largest host, or of an ordinary one for many minutes.
const LIVE_SENT_BYTES_MAX: usize = 4 << 20;

/// The same of the backlog, so that it never fills a slow link's buffers or the brain's queue: 300 ms away it still drains 800 KiB/s.
const BACKLOG_SENT_BYTES_MAX: usize = 256 << 10;

/// So much of the backlog is read ahead.
const BACKLOG_WAITING_BYTES_MAX: usize = 256 << 10;

/// What the next report must carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its sequence.
    pub sequence: Sequence,
    /// Reports dropped so far.
    pub reports_dropped: u64,
}

/// A report that is not on disk yet.
#[derive(Clone, Debug)]
pub struct Unstored {
    /// Which.
    pub sequence: Sequence,
    /// When it was put in.
    pub at: Timestamp,
    /// The frame.
    pub frame: Arc<[u8]>,
}

/// Counts connections, so that what belongs to an earlier one is told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection(u64);

/// Which of a connection's two report streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Reports made since the connection began.
    Live,
    /// Reports that lay on disk when it began.
    Backlog,
}

#[derive(Debug)]
struct Lanes {
    live: Lane<()>,
    /// The newest live report that is acknowledged.
    acknowledged: Sequence,
    backlog: Lane<SegmentId>,
    /// Live reports that are on disk by now, with their place.
    stored: VecDeque<(Sequence, SegmentId)>,
}

/// The queues. Sequences start at 1, without gaps.
#[derive(Debug)]
pub struct Outbox {
    epoch: AgentEpoch,
    newest: u64,
    dropped: u64,
    unstored: VecDeque<Unstored>,
    unstored_bytes: usize,
    connection: Connection,
    lanes: Option<Lanes>,
    /// Acknowledged reports that the disk may forget, by segment.
    freed: BTreeMap<SegmentId, u64>,
}

impl Outbox {
    /// Empty queues of this life of the agent.
    pub fn new(epoch: AgentEpoch) -> Self {
        Self {
            epoch,
            newest: 0,
            dropped: 0,
            unstored: VecDeque::new(),
            unstored_bytes: 0,
            connection: Connection::default(),
            lanes: None,
            freed: BTreeMap::new(),
        }
    }

    /// What to write into the report that is put in next.
    pub fn stamp(&self) -> Stamp {
        Stamp { sequence: Sequence(self.newest + 1), reports_dropped: self.dropped }
    }

    /// Puts an encoded report in. Returns how many old ones had to go for it.
    pub fn push(&mut self, frame: Arc<[u8]>, at: Timestamp) -> u64 {
        self.newest += 1;
        let unstored = Unstored { sequence: Sequence(self.newest), at, frame };
        if let Some(lanes) = &mut self.lanes {
            lanes.live.push(live(self.epoch, &unstored));
        }
        self.unstored_bytes += unstored.frame.len();
        self.unstored.push_back(unstored);
        let before = self.dropped;
        while self.unstored_bytes > UNSTORED_BYTES_MAX && self.unstored.len() > 1 {
            self.pop_unstored();
            self.dropped += 1;
        }
        self.dropped - before
    }

    /// Counts reports that were dropped elsewhere: not encodable, or on disk.
    pub fn count_dropped(&mut self, reports: u64) {
        self.dropped += reports;
    }

    /// A connection begins. What is only in memory is sent on its live stream, what is on disk will come as its backlog.
    pub fn connect(&mut self) -> Connection {
        self.connection.0 += 1;
        let mut live_lane = Lane::new(LIVE_SENT_BYTES_MAX);
        self.unstored.iter().for_each(|unstored| live_lane.push(live(self.epoch, unstored)));
        let backlog = Lane::new(BACKLOG_SENT_BYTES_MAX);
        let acknowledged = Sequence(0);
        self.lanes = Some(Lanes { live: live_lane, acknowledged, backlog, stored: VecDeque::new() });
        self.connection
    }

    /// The connection has ended.
    pub fn disconnect(&mut self) {
        self.lanes = None;
    }

    /// The newest connection, ended or not.
    pub fn connection(&self) -> Connection {
        self.connection
    }

    /// The next frame to send on this stream of the connection.
    pub fn next_frame(&mut self, stream: Stream) -> Option<Arc<[u8]>> {
        let lanes = self.lanes.as_mut()?;
        match stream {
            Stream::Live => lanes.live.next_frame(),
            Stream::Backlog => lanes.backlog.next_frame(),
        }
    }

    /// The brain has everything sent on this stream up to and including `id`. Returns how many reports that were.
    pub fn acknowledge(&mut self, stream: Stream, id: ReportAck) -> Result<u64, NotAwaited> {
        let lanes = self.lanes.as_mut().ok_or(NotAwaited(id))?;
        if stream == Stream::Backlog {
            let acknowledged = lanes.backlog.acknowledge(id)?;
            for (_, segment) in &acknowledged {
                *self.freed.entry(*segment).or_default() += 1;
            }
            return Ok(acknowledged.len() as u64);
        }
        let acknowledged = lanes.live.acknowledge(id)?.len() as u64;
        lanes.acknowledged = id.sequence;
        while let Some(&(sequence, segment)) = lanes.stored.front()
            && sequence <= id.sequence
        {
            lanes.stored.pop_front();
            *self.freed.entry(segment).or_default() += 1;
        }
        while self.unstored.front().is_some_and(|oldest| oldest.sequence <= id.sequence) {
            self.pop_unstored();
        }
        Ok(acknowledged)
    }

    /// Whether the connection takes so little that it should be ended: what is left goes to the next one as its backlog.
    pub fn is_stalled(&self) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.live.waiting_bytes() > LIVE_WAITING_BYTES_MAX)
    }

    /// The oldest report that is to be written to disk.
    pub fn to_store(&self) -> Option<&Unstored> {
        self.unstored.front()
    }

    /// The report was written to `segment`, in the time of `connection`.
    pub fn stored(&mut self, sequence: Sequence, segment: SegmentId, connection: Connection) {
        if self.unstored.front().is_some_and(|oldest| oldest.sequence == sequence) {
            self.pop_unstored();
        }
        // Where a newer connection began meanwhile, the disk counts it to that one's backlog, and only an acknowledgement there frees it.
        // It is sent live as well: the brain knows a report that comes twice.
        let Some(lanes) = self.lanes.as_mut().filter(|_| connection == self.connection) else { return };
        if sequence <= lanes.acknowledged {
            *self.freed.entry(segment).or_default() += 1;
        } else {
            lanes.stored.push_back((sequence, segment));
        }
    }

    /// The report is no longer to be written to disk: it cannot be.
    pub fn drop_unstored(&mut self, sequence: Sequence) {
        if self.unstored.front().is_some_and(|oldest| oldest.sequence == sequence) {
            self.pop_unstored();
            self.dropped += 1;
        }
    }

    /// Whether memory for reports that the disk does not take is short.
    pub fn is_short_of_memory(&self) -> bool {
        self.unstored_bytes > UNSTORED_BYTES_MAX / 2
    }

    /// How many bytes of backlog the connection could take now.
    pub fn backlog_room(&self) -> usize {
        let waiting = self.lanes.as_ref().map(|lanes| lanes.backlog.waiting_bytes());
        waiting.map_or(0, |waiting| BACKLOG_WAITING_BYTES_MAX.saturating_sub(waiting))
    }

    /// Reports read back from disk for `connection`.
    pub fn add_backlog(&mut self, connection: Connection, reports: Vec<Stored>) {
        let Some(lanes) = self.lanes.as_mut().filter(|_| connection == self.connection) else { return };
        for Stored { id, frame, segment } in reports {
            lanes.backlog.push(Item { id, frame, place: segment });
        }
    }

    /// What the disk may forget since the last call.
    pub fn take_freed(&mut self) -> BTreeMap<SegmentId, u64> {
        std::mem::take(&mut self.freed)
    }

    /// Whether the disk has something to forget.
    pub fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// Reports that are only in memory.
    pub fn unstored(&self) -> usize {
        self.unstored.len()
    }

    /// Bytes of reports that are only in memory.
    pub fn unstored_bytes(&self) -> usize {
        self.unstored_bytes
    }

    fn pop_unstored(&mut self) {
        if let Some(oldest) = self.unstored.pop_front() {
            self.unstored_bytes -= oldest.frame.len();
        }
    }
}

fn live(epoch: AgentEpoch, unstored: &Unstored) -> Item<()> {
    let id = ReportAck { epoch, sequence: unstored.sequence };
    Item { id, frame: Arc::clone(&unstored.frame), place: () }
}

#[cfg(test)]
mod tests;
