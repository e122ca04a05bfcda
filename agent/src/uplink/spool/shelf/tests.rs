use super::*;
use gnomon_common::wire::{AgentEpoch, Sequence};
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const BOUNDS: Bounds = Bounds { bytes_max: 16_000, age_max: Duration::from_secs(16_000) };

/// Payload so long that two records fill a segment of [`BOUNDS`].
const HALF: usize = 500;

fn shelf(dir: &TempDir) -> Shelf {
    Shelf::new(dir.path().join("spool"), BOUNDS, Box::new(|_| true))
}

fn put(shelf: &mut Shelf, sequence: u64, payload: &[u8]) -> SegmentId {
    put_at(shelf, sequence, payload, 0)
}

fn put_at(shelf: &mut Shelf, sequence: u64, payload: &[u8], at_s: u64) -> SegmentId {
    let (epoch, sequence, at) = (AgentEpoch(1), Sequence(sequence), Timestamp::from_unix_ms(at_s * 1000));
    shelf.append(&Record { epoch, sequence, at, payload }).unwrap()
}

fn read(shelf: &mut Shelf) -> Vec<u64> {
    shelf.read(usize::MAX).0.iter().map(|stored| stored.id.sequence.0).collect()
}

fn files(dir: &TempDir) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir.path().join("spool")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn free(shelf: &mut Shelf, segment: SegmentId, reports: u64) {
    shelf.free(&BTreeMap::from([(segment, reports)]));
}

#[test]
fn a_later_life_finds_what_an_earlier_one_left_and_removes_what_is_acknowledged() {
    let dir = TempDir::new().unwrap();
    let mut first = shelf(&dir);
    for sequence in 1..=5 {
        put(&mut first, sequence, &[7; HALF]);
    }
    drop(first);

    let mut later = shelf(&dir);
    assert_eq!(later.open().unwrap(), Found { reports: 5, damaged: 0 });
    later.begin();
    let (batch, lost) = later.read(1);
    assert_eq!((batch.len(), lost), (1, 0), "a batch is bounded");
    assert_eq!(batch[0].frame[..4], 500_u32.to_le_bytes());
    assert_eq!(read(&mut later), [2, 3, 4, 5]);
    assert!(!later.has_backlog());

    free(&mut later, SegmentId(1), 2);
    assert_eq!((files(&dir).len(), later.waiting()), (2, 3));
    // A new connection gets the rest; what is put in now is not its backlog.
    free(&mut later, SegmentId(2), 1);
    later.begin();
    put(&mut later, 6, b"live");
    assert_eq!(read(&mut later), [4, 5]);
}

#[test]
fn an_open_segment_whose_reports_are_all_acknowledged_is_emptied() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(&dir);
    for sequence in 1..=20 {
        let segment = put(&mut shelf, sequence, &[7; HALF]);
        free(&mut shelf, segment, 1);
        assert_eq!((segment, shelf.bytes()), (SegmentId(1), 0));
    }
    assert!(!shelf.appender.as_ref().unwrap().is_unsynced(), "nothing of it would be synced");
    assert_eq!(fs::metadata(&files(&dir)[0]).unwrap().len(), 0);
}

#[test]
fn over_the_bound_the_oldest_go_and_are_counted_without_those_acknowledged() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(&dir);
    for sequence in 1..=29 {
        put(&mut shelf, sequence, &[7; HALF]);
    }
    free(&mut shelf, SegmentId(1), 1);
    assert_eq!(shelf.trim(Timestamp::default()), 0, "29 records are within the bound");
    for sequence in 30..=31 {
        put(&mut shelf, sequence, &[7; HALF]);
    }
    assert_eq!(shelf.trim(Timestamp::default()), 1, "one of the two dropped was acknowledged");
    assert!(shelf.bytes() <= BOUNDS.bytes_max);
    shelf.begin();
    assert_eq!(read(&mut shelf), (3..=31).collect::<Vec<_>>());
}

#[test]
fn what_is_too_old_goes_even_if_nothing_comes_after_it() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(&dir);
    put_at(&mut shelf, 1, b"old", 0);
    put_at(&mut shelf, 2, b"newer", 1_500);
    assert_eq!(shelf.trim(Timestamp::from_unix_ms(16_001_000)), 1, "a segment spans a part of the bound only");
    assert_eq!(shelf.trim(Timestamp::from_unix_ms(17_501_000)), 1);
    assert_eq!((files(&dir).len(), shelf.waiting()), (0, 0));
}

#[test]
fn a_torn_last_record_is_counted_and_the_rest_delivered() {
    let dir = TempDir::new().unwrap();
    let mut first = shelf(&dir);
    for sequence in 1..=3 {
        put(&mut first, sequence, b"payload");
    }
    let path = &files(&dir)[0];
    let torn = fs::metadata(path).unwrap().len() - 3;
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(torn).unwrap();
    drop(first);

    let mut later = shelf(&dir);
    assert_eq!(later.open().unwrap(), Found { reports: 2, damaged: 1 });
    // What comes next goes into a file of its own, so the torn one does no further harm.
    put(&mut later, 4, b"payload");
    later.begin();
    assert_eq!(read(&mut later), [1, 2, 4]);
    free(&mut later, SegmentId(1), 2);
    assert_eq!(files(&dir).len(), 1);
}

#[test]
fn what_the_brain_would_refuse_is_counted_and_never_sent() {
    let dir = TempDir::new().unwrap();
    let mut first = shelf(&dir);
    for sequence in 1..=3 {
        put(&mut first, sequence, if sequence == 2 { b"foreign" } else { b"ours" });
    }
    drop(first);
    let mut later = Shelf::new(dir.path().join("spool"), BOUNDS, Box::new(|record| record.payload == b"ours"));
    assert_eq!(later.open().unwrap(), Found { reports: 2, damaged: 1 });
    later.begin();
    assert_eq!(read(&mut later), [1, 3]);
    free(&mut later, SegmentId(1), 2);
    assert_eq!(files(&dir).len(), 0, "it does not keep its segment");
}

#[test]
fn damage_that_comes_after_the_count_is_counted_and_keeps_no_segment() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(&dir);
    for sequence in 1..=2 {
        put(&mut shelf, sequence, b"payload");
    }
    shelf.begin();
    let path = &files(&dir)[0];
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
    let (batch, lost) = shelf.read(usize::MAX);
    assert_eq!((batch.len(), lost), (1, 1));
    free(&mut shelf, SegmentId(1), 1);
    assert_eq!((files(&dir).len(), shelf.bytes()), (0, 0));
}

#[test]
fn a_disk_that_takes_nothing_takes_the_next_one_when_it_can() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(&dir);
    let record = Record { epoch: AgentEpoch(1), sequence: Sequence(1), at: Timestamp::default(), payload: b"payload" };
    // A file where the directory should be: nothing can be made below it.
    fs::write(dir.path().join("spool"), "").unwrap();
    assert!(shelf.append(&record).is_err());
    assert_eq!((shelf.waiting(), shelf.bytes()), (0, 0));
    fs::remove_file(dir.path().join("spool")).unwrap();
    shelf.append(&record).unwrap();
    shelf.begin();
    assert_eq!(read(&mut shelf), [1]);
}

#[test]
fn the_files_are_the_agents_alone() {
    let dir = TempDir::new().unwrap();
    put(&mut shelf(&dir), 1, b"payload");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir.path().join("spool")), mode(&files(&dir)[0])), (0o700, 0o600));
}

#[test]
fn a_foreign_file_in_the_directory_is_left_alone() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("spool")).unwrap();
    let note = dir.path().join("spool/README");
    fs::write(&note, "not a segment").unwrap();
    let mut shelf = shelf(&dir);
    assert_eq!(shelf.open().unwrap(), Found::default());
    put(&mut shelf, 1, b"payload");
    assert!(note.exists());
}
