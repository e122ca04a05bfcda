//! The segments on disk: what goes in, what is read for delivery, what is removed. All file access of the spool is here and in [`segment`];
//! it blocks, and belongs on the spool's own thread.
//!
//! [`segment`]: super::segment

use super::record::{Record, Records};
use super::segment::{self, Appender, Segment, SegmentId};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::ReportAck;
use gnomon_common::wire::frame::PREFIX_BYTES;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A segment is full at this part of the bounds on bytes and age: the granule in which the oldest reports are dropped.
const SEGMENTS_OF_BOUND: u32 = 16;

/// No segment is longer, but for its last record: one is read into memory as a whole.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;

/// Each connection begins a segment, and a brain that welcomes and never acknowledges would leave files of one report each. Over this,
/// the oldest are dropped: more files than this are slower to list than to lose.
const SEGMENTS_MAX: usize = 4096;

/// How much may be kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes on disk.
    pub bytes_max: u64,
    /// Older reports are dropped.
    pub age_max: Duration,
}

/// A report read back for delivery.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What its acknowledgement will say.
    pub id: ReportAck,
    /// The frame to send.
    pub frame: Arc<[u8]>,
    /// Where it lies.
    pub segment: SegmentId,
}

/// What opening found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) reports: u64,
    /// Records that are torn, corrupt, or of a host or a release that cannot be spoken for.
    pub(super) damaged: u64,
}

type Sendable = Box<dyn Fn(&Record<'_>) -> bool + Send>;

#[derive(Debug)]
struct Reading {
    segment: SegmentId,
    bytes: Vec<u8>,
    offset: usize,
    /// Records passed, the acknowledged ones that are not sent again included.
    passed: u64,
    skip: u64,
}

pub(super) struct Shelf {
    dir: PathBuf,
    bounds: Bounds,
    /// Whether a record on disk may be sent by this agent at all: what the brain would refuse must not end every connection.
    sendable: Sendable,
    segments: VecDeque<Segment>,
    bytes: u64,
    appender: Option<Appender>,
    next: SegmentId,
    dir_unsynced: bool,
    /// The backlog of this connection: segments below `backlog_end`; the next to be read is the first from `read_from` on.
    backlog_end: SegmentId,
    read_from: SegmentId,
    reading: Option<Reading>,
}

impl Shelf {
    pub(super) fn new(dir: PathBuf, bounds: Bounds, sendable: Sendable) -> Self {
        let first = SegmentId(1);
        Self {
            dir,
            bounds,
            sendable,
            segments: VecDeque::new(),
            bytes: 0,
            appender: None,
            next: first,
            dir_unsynced: false,
            backlog_end: first,
            read_from: first,
            reading: None,
        }
    }

    /// Takes stock of what earlier lives left. A segment that cannot be read is left where it is.
    pub(super) fn open(&mut self) -> io::Result<Found> {
        let mut found = Found::default();
        for id in SegmentId::all(&self.dir)? {
            self.next = SegmentId(id.0 + 1);
            let bytes = match segment::read(&self.dir, id) {
                Ok(bytes) => bytes,
                Err(error) => {
                    let path = id.path(&self.dir);
                    tracing::error!(path = %path.display(), %error, "a spool file cannot be read and is left as it is");
                    continue;
                }
            };
            let (segment, damaged) = Segment::survey(id, &bytes, &self.sendable);
            found.damaged += damaged;
            found.reports += segment.records;
            self.bytes += segment.bytes;
            self.segments.push_back(segment);
            if segment.records == 0 {
                self.remove(self.segments.len() - 1);
            }
        }
        Ok(found)
    }

    /// Reports on disk that are not acknowledged.
    pub(super) fn waiting(&self) -> u64 {
        self.segments.iter().map(Segment::waiting).sum()
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether [`Shelf::append`] has written what [`Shelf::sync`] has not synced.
    pub(super) fn is_unsynced(&self) -> bool {
        self.dir_unsynced || self.appender.as_ref().is_some_and(Appender::is_unsynced)
    }

    /// Whether a drop could make room.
    pub(super) fn has_reports(&self) -> bool {
        self.segments.iter().any(|segment| segment.waiting() > 0)
    }

    /// Writes a record behind all others.
    pub(super) fn append(&mut self, record: &Record<'_>) -> io::Result<SegmentId> {
        if self.appender.is_some() && self.segments.back().is_some_and(|last| self.is_full(last, record.at)) {
            self.close();
        }
        if self.appender.is_none() {
            let id = self.next;
            self.appender = Some(Appender::create(&self.dir, id)?);
            self.next = SegmentId(id.0 + 1);
            self.dir_unsynced = true;
            let at = record.at;
            self.segments.push_back(Segment { id, bytes: 0, records: 0, acknowledged: 0, first: at, last: at });
        }
        let (Some(appender), Some(segment)) = (&mut self.appender, self.segments.back_mut()) else {
            return Err(io::Error::other("no segment is open"));
        };
        let before = segment.bytes;
        let (id, appended) = (segment.id, appender.append(segment, record));
        self.bytes += segment.bytes - before;
        if appended.is_err() {
            // Whatever is wrong with this file, the next attempt begins with another.
            self.close();
        }
        appended.map(|()| id)
    }

    fn is_full(&self, segment: &Segment, at: Timestamp) -> bool {
        let bytes_max = (self.bounds.bytes_max / u64::from(SEGMENTS_OF_BOUND)).min(SEGMENT_BYTES_MAX);
        let span_max = self.bounds.age_max / SEGMENTS_OF_BOUND;
        segment.records > 0 && (segment.bytes >= bytes_max || at.since(segment.first) > span_max)
    }

    /// No more is written to the open segment. What is empty is removed.
    fn close(&mut self) {
        let Some(mut appender) = self.appender.take() else { return };
        if let Err(error) = appender.sync() {
            tracing::warn!(%error, "a spool file could not be synced: a power cut now would lose its last reports");
        }
        if self.segments.back().is_some_and(|segment| segment.records == 0) {
            self.remove(self.segments.len() - 1);
        }
    }

    /// Syncs what was written since the last time.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if let Some(appender) = &mut self.appender {
            appender.sync()?;
        }
        if std::mem::replace(&mut self.dir_unsynced, false) {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    /// A connection begins: everything on disk is its backlog, and what comes now goes into another segment.
    pub(super) fn begin(&mut self) {
        self.close();
        self.reading = None;
        self.read_from = SegmentId(0);
        self.backlog_end = self.next;
    }

    /// Whether [`Shelf::read`] may find something.
    pub(super) fn has_backlog(&self) -> bool {
        self.reading.is_some() || self.next_to_read().is_some()
    }

    fn next_to_read(&self) -> Option<&Segment> {
        let first = self.segments.partition_point(|segment| segment.id < self.read_from);
        self.segments.get(first).filter(|segment| segment.id < self.backlog_end)
    }

    /// The next reports of the backlog, oldest first, until they are `bytes_max` together; none at its end. Returns, too, how many
    /// reports that were sound have been found damaged.
    pub(super) fn read(&mut self, bytes_max: usize) -> (Vec<Stored>, u64) {
        let (mut batch, mut bytes, mut lost) = (Vec::new(), 0, 0);
        while bytes < bytes_max {
            let Some(mut reading) = self.reading.take().or_else(|| self.start_reading()) else { break };
            let mut records = Records::new(&reading.bytes, reading.offset);
            let next = records.by_ref().find(|record| (self.sendable)(record));
            reading.offset = records.offset();
            let Some(record) = next else {
                lost += self.end_reading(&reading);
                continue;
            };
            reading.passed += 1;
            if reading.passed > reading.skip {
                let stored = Stored {
                    id: ReportAck { epoch: record.epoch, sequence: record.sequence },
                    frame: frame_of(record.payload),
                    segment: reading.segment,
                };
                bytes += stored.frame.len();
                batch.push(stored);
            }
            self.reading = Some(reading);
        }
        (batch, lost)
    }

    fn start_reading(&mut self) -> Option<Reading> {
        loop {
            let &Segment { id, acknowledged: skip, .. } = self.next_to_read()?;
            self.read_from = SegmentId(id.0 + 1);
            match segment::read(&self.dir, id) {
                Ok(bytes) => return Some(Reading { segment: id, bytes, offset: 0, passed: 0, skip }),
                Err(error) => {
                    let path = id.path(&self.dir);
                    tracing::error!(path = %path.display(), %error, "a spool file cannot be read; the next connection tries again");
                }
            }
        }
    }

    /// What was counted and is not there any more must not keep its segment for ever.
    fn end_reading(&mut self, reading: &Reading) -> u64 {
        let Some(index) = self.index_of(reading.segment) else { return 0 };
        let segment = &mut self.segments[index];
        let lost = segment.records.saturating_sub(reading.passed);
        segment.records -= lost;
        segment.acknowledged = segment.acknowledged.min(segment.records);
        if segment.waiting() == 0 {
            self.remove(index);
        }
        lost
    }

    /// Forgets acknowledged reports: so many of each segment, from its first on.
    pub(super) fn free(&mut self, acknowledged: &BTreeMap<SegmentId, u64>) {
        for (&id, &reports) in acknowledged {
            // Dropped meanwhile: nothing is left to forget.
            let Some(index) = self.index_of(id) else { continue };
            let is_open = index + 1 == self.segments.len();
            let segment = &mut self.segments[index];
            segment.acknowledged = (segment.acknowledged + reports).min(segment.records);
            if segment.waiting() > 0 {
                continue;
            }
            match self.appender.as_mut().filter(|_| is_open) {
                Some(appender) => {
                    let before = segment.bytes;
                    match appender.clear(segment) {
                        // In the usual case, a brain that answers at once, no report ever gets from the page cache to the disk.
                        Ok(()) => self.bytes -= before,
                        Err(_) => {
                            self.appender = None;
                            self.remove(index);
                        }
                    }
                }
                None => self.remove(index),
            }
        }
    }

    /// Drops what is over the bounds, oldest first; returns how many reports were lost.
    pub(super) fn trim(&mut self, now: Timestamp) -> u64 {
        let mut dropped = 0;
        while let Some(oldest) = self.segments.front() {
            let only = self.segments.len() == 1;
            let too_much = !only && (self.bytes > self.bounds.bytes_max || self.segments.len() > SEGMENTS_MAX);
            let too_old = oldest.records > 0 && now.since(oldest.last) > self.bounds.age_max;
            if !(too_much || too_old) {
                break;
            }
            dropped += self.drop_oldest();
        }
        dropped
    }

    /// Drops the oldest segment; returns how many reports were lost.
    pub(super) fn drop_oldest(&mut self) -> u64 {
        let Some(oldest) = self.segments.front() else { return 0 };
        let (id, dropped) = (oldest.id, oldest.waiting());
        if self.segments.len() == 1 {
            self.appender = None;
        }
        if self.reading.as_ref().is_some_and(|reading| reading.segment == id) {
            self.reading = None;
        }
        self.remove(0);
        dropped
    }

    fn remove(&mut self, index: usize) {
        let Some(segment) = self.segments.remove(index) else { return };
        self.bytes -= segment.bytes;
        let path = segment.id.path(&self.dir);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %path.display(), %error, "a spool file cannot be removed; what is in it will be sent again");
        }
    }

    fn index_of(&self, id: SegmentId) -> Option<usize> {
        self.segments.binary_search_by_key(&id, |segment| segment.id).ok()
    }
}

fn frame_of(payload: &[u8]) -> Arc<[u8]> {
    let mut frame = Vec::with_capacity(PREFIX_BYTES + payload.len());
    // A record's payload is never longer than a frame's: decoding it has checked that.
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(payload);
    frame.into()
}

#[cfg(test)]
#[path = "shelf/tests.rs"]
mod tests;
