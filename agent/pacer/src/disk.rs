//! Disk traffic: direct reads and writes within a bounded scratch place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatfs};

use crate::board::{Board, TICK};
use crate::credit::Credit;

/// Largest scratch place, in bytes.
pub const SCRATCH_BYTES: u64 = 64 << 20;
/// Name of the file for the moment in which it has one, where the file system makes none without.
const FILE: &str = "pacer.scratch";
/// What a scratch disk begins with once it has been taken.
const MARK: &[u8] = b"gnomon-pacer scratch disk\n";
/// Smallest and largest piece of traffic: a page, and what a copying program hands over.
const UNIT_BYTES: u64 = 4096;
const PIECE_BYTES: usize = 256 << 10;
/// What fails is left alone for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// File systems in memory, by their numbers in statfs(2).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Why there is no scratch place.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// The system says no.
    #[error("{path}: {1}", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// It would be memory that is written to.
    #[error("{}: a file system in memory is no disk", .0.display())]
    InMemory(PathBuf),
    /// It is somebody's.
    #[error("{}: the disk is not empty: its first {UNIT_BYTES} bytes are neither zero nor an earlier pacer's", .0.display())]
    NotEmpty(PathBuf),
    /// There is no room for a page.
    #[error("{}: smaller than two pages", .0.display())]
    Small(PathBuf),
}

/// A file without a name, or a disk that holds nothing else.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    /// The first byte that may be written, and how many from there on.
    begin: u64,
    bytes: u64,
    /// How far it has been written: what has not would be read without a disk.
    written: u64,
    /// Where the next write and read go, from `begin`.
    write_at: u64,
    read_at: u64,
}

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Piece([u8; PIECE_BYTES]);

impl Scratch {
    /// A scratch place in a directory, or on a whole disk that is empty and not in use.
    ///
    /// # Errors
    /// Where there is none to be had; nothing has been written then.
    pub fn open(path: &Path) -> Result<Self, ScratchError> {
        let io = |error| ScratchError::Io(path.to_owned(), error);
        if fs::metadata(path).map_err(io)?.file_type().is_block_device() {
            return Self::on_disk(path);
        }
        // What an earlier life left, if it was killed in the one moment in which its file had a name.
        match fs::remove_file(path.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let kind = fstatfs(File::open(path).map_err(io)?).map_err(|error| io(error.into()))?.f_type;
        if IN_MEMORY.contains(&kind) {
            return Err(ScratchError::InMemory(path.to_owned()));
        }
        let file = nameless(path).map_err(io)?;
        fallocate(&file, FallocateFlags::empty(), 0, SCRATCH_BYTES).map_err(|error| io(error.into()))?;
        Ok(Scratch { file, begin: 0, bytes: SCRATCH_BYTES, written: 0, write_at: 0, read_at: 0 })
    }

    /// The disk itself. The kernel refuses one that is mounted or has partitions in use (`O_EXCL`, open(2)).
    fn on_disk(path: &Path) -> Result<Self, ScratchError> {
        let io = |error| ScratchError::Io(path.to_owned(), error);
        let file = direct().custom_flags((OFlags::DIRECT | OFlags::EXCL).bits() as i32).open(path).map_err(io)?;
        let mut piece = Piece::new();
        let page = &mut piece.0[..UNIT_BYTES as usize];
        file.read_exact_at(page, 0).map_err(io)?;
        let marked = page.starts_with(MARK);
        if !marked && page.iter().any(|byte| *byte != 0) {
            return Err(ScratchError::NotEmpty(path.to_owned()));
        }
        let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(io)?;
        let bytes = size.saturating_sub(UNIT_BYTES).min(SCRATCH_BYTES) / UNIT_BYTES * UNIT_BYTES;
        if bytes == 0 {
            return Err(ScratchError::Small(path.to_owned()));
        }
        page[..MARK.len()].copy_from_slice(MARK);
        file.write_all_at(page, 0).map_err(io)?;
        Ok(Scratch { file, begin: UNIT_BYTES, bytes, written: 0, write_at: 0, read_at: 0 })
    }

    /// Writes the next `bytes`, round and round.
    fn write(&mut self, piece: &Piece, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let part = left.min(self.bytes - self.write_at);
            self.file.write_all_at(&piece.0[..part as usize], self.begin + self.write_at)?;
            self.written = self.written.max(self.write_at + part);
            self.write_at = (self.write_at + part) % self.bytes;
            left -= part;
        }
        Ok(())
    }

    /// Reads the next `bytes` of what has been written, round and round. Something has been.
    fn read(&mut self, piece: &mut Piece, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let part = left.min(self.written - self.read_at);
            self.file.read_exact_at(&mut piece.0[..part as usize], self.begin + self.read_at)?;
            self.read_at = (self.read_at + part) % self.written;
            left -= part;
        }
        Ok(())
    }
}

impl Piece {
    fn new() -> Box<Self> {
        Box::new(Piece([0x5a; PIECE_BYTES]))
    }
}

fn direct() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlags::DIRECT.bits() as i32);
    options
}

/// A file that is gone with the process, however it ends.
fn nameless(dir: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECT | OFlags::TMPFILE).bits() as i32;
    match direct().custom_flags(flags).open(dir) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let path = dir.join(FILE);
            let file = direct().create_new(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        opened => opened,
    }
}

/// Makes what is wanted, for ever.
pub(crate) fn serve(board: &Board, mut scratch: Scratch) {
    let mut piece = Piece::new();
    let mut told = false;
    loop {
        board.wait_until(|targets| targets.read_bytes_per_s > 0 || targets.write_bytes_per_s > 0);
        if let Err(error) = traffic(board, &mut scratch, &mut piece) {
            if !std::mem::replace(&mut told, true) {
                eprintln!(
                    "gnomon-pacer: the scratch place fails, and is tried again every {} s: {error}",
                    PAUSE.as_secs()
                );
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Returns once nothing is wanted any more.
fn traffic(board: &Board, scratch: &mut Scratch, piece: &mut Piece) -> io::Result<()> {
    let (mut reads, mut writes) = (Credit::default(), Credit::default());
    let mut before = Instant::now();
    loop {
        let targets = board.targets();
        if targets.read_bytes_per_s == 0 && targets.write_bytes_per_s == 0 {
            return Ok(());
        }
        thread::sleep(TICK);
        let now = Instant::now();
        reads.earn(targets.read_bytes_per_s, now - before, UNIT_BYTES);
        writes.earn(targets.write_bytes_per_s, now - before, UNIT_BYTES);
        before = now;
        while let Some(bytes) = writes.spend(UNIT_BYTES, PIECE_BYTES as u64) {
            scratch.write(piece, bytes)?;
            Board::count(&board.written, bytes);
        }
        if targets.read_bytes_per_s > 0 && scratch.written == 0 {
            // Once in a life: something to read. It is a write, and is told as one.
            scratch.write(piece, PIECE_BYTES as u64)?;
            Board::count(&board.written, PIECE_BYTES as u64);
        }
        while let Some(bytes) = reads.spend(UNIT_BYTES, PIECE_BYTES as u64) {
            scratch.read(piece, bytes)?;
            Board::count(&board.read, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a disk: what tests have for temporary files may be memory.
    fn dir() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    #[test]
    fn a_scratch_file_has_no_name_and_an_earlier_lifes_is_removed() {
        let dir = dir();
        fs::write(dir.path().join(FILE), "left by a life that was killed").unwrap();
        let _scratch = Scratch::open(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_reader_reads_only_what_was_written_and_both_go_round() {
        let dir = dir();
        let mut scratch = Scratch::open(dir.path()).unwrap();
        let mut piece = Piece::new();
        scratch.bytes = 3 * UNIT_BYTES;
        scratch.write(&piece, 2 * UNIT_BYTES).unwrap();
        piece.0.fill(0);
        scratch.read(&mut piece, 3 * UNIT_BYTES).unwrap();
        assert!(piece.0[..2 * UNIT_BYTES as usize].iter().all(|byte| *byte == 0x5a));
        assert_eq!((scratch.read_at, scratch.written), (UNIT_BYTES, 2 * UNIT_BYTES));
        scratch.write(&piece, 2 * UNIT_BYTES).unwrap();
        assert_eq!((scratch.write_at, scratch.written), (UNIT_BYTES, 3 * UNIT_BYTES));
        scratch.read(&mut piece, 2 * UNIT_BYTES).unwrap();
        assert_eq!(scratch.read_at, 0);
    }

    #[test]
    fn memory_and_what_is_not_there_are_no_scratch_places() {
        assert!(matches!(Scratch::open(Path::new("/dev/shm")), Err(ScratchError::InMemory(_))));
        assert!(matches!(Scratch::open(Path::new("/nowhere")), Err(ScratchError::Io(..))));
    }
}
