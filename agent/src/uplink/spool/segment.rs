//! One file of the spool: records, appended and read in order, removed as a whole.

use super::record::{self, Record, Records};
use gnomon_common::time::Timestamp;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a segment's file is called after its number.
const EXTENSION: &str = "spool";

/// A segment's number: higher is newer, over all lives of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(pub u64);

impl SegmentId {
    pub(super) fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{:020}.{EXTENSION}", self.0))
    }

    fn of(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        (path.extension()? == EXTENSION).then(|| stem.parse().ok().map(Self)).flatten()
    }

    /// The segments in `dir`, oldest first; none where there is no `dir`.
    pub(super) fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut all = entries
            .filter_map(|entry| entry.map(|entry| Self::of(&entry.path())).transpose())
            .collect::<io::Result<Vec<_>>>()?;
        all.sort_unstable();
        Ok(all)
    }
}

/// What is known of a segment without reading it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    /// Its length on disk.
    pub(super) bytes: u64,
    /// Sound, sendable records in it.
    pub(super) records: u64,
    /// How many of them, from the first, are acknowledged.
    pub(super) acknowledged: u64,
    /// When its first and its last record were put in.
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

impl Segment {
    pub(super) fn waiting(&self) -> u64 {
        self.records - self.acknowledged
    }

    /// Counts what is in a segment that an earlier life left; returns it and how much of it is damaged.
    pub(super) fn survey(id: SegmentId, bytes: &[u8], sendable: impl Fn(&Record<'_>) -> bool) -> (Self, u64) {
        let none = Timestamp::default();
        let mut segment = Self { id, bytes: bytes.len() as u64, records: 0, acknowledged: 0, first: none, last: none };
        let mut records = Records::new(bytes, 0);
        let mut unsendable = 0;
        for record in records.by_ref() {
            if sendable(&record) {
                segment.note(record.at);
            } else {
                unsendable += 1;
            }
        }
        (segment, records.damaged() + unsendable)
    }

    fn note(&mut self, at: Timestamp) {
        if self.records == 0 {
            self.first = at;
        }
        self.last = at;
        self.records += 1;
    }
}

/// A segment that is written to.
#[derive(Debug)]
pub(super) struct Appender {
    file: File,
    length: u64,
    unsynced: bool,
}

impl Appender {
    pub(super) fn create(dir: &Path, id: SegmentId) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(id.path(dir))?;
        Ok(Self { file, length: 0, unsynced: false })
    }

    /// Appends a record, wholly or not at all. An error of kind `InvalidData` is the record's, every other the disk's.
    pub(super) fn append(&mut self, segment: &mut Segment, record: &Record<'_>) -> io::Result<()> {
        let bytes = record::encode(record).ok_or(io::ErrorKind::InvalidData)?;
        if let Err(error) = self.file.write_all(&bytes) {
            // On a full disk a part of it may have been written.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.unsynced = true;
        segment.bytes = self.length;
        segment.note(record.at);
        Ok(())
    }

    /// Makes the segment empty: everything in it is acknowledged.
    pub(super) fn clear(&mut self, segment: &mut Segment) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        self.unsynced = false;
        (segment.bytes, segment.records, segment.acknowledged) = (0, 0, 0);
        Ok(())
    }

    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.unsynced, false) { self.file.sync_data() } else { Ok(()) }
    }
}

/// Reads a segment's file. It is at most as long as a segment may be and one record more.
pub(super) fn read(dir: &Path, id: SegmentId) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(id.path(dir))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
