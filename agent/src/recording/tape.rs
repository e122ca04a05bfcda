//! Between the sampler, which brings ticks, and the file.

use super::file::{self, FrameWriter};
use super::labels::Labels;
use crate::sample::{Start, Tick};
use gnomon_common::wire::frame::FrameError;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why recording ended.
#[derive(Debug, thiserror::Error)]
pub enum TapeError {
    /// Nothing is overwritten.
    #[error("{} is there already: give another name, or remove it", .0.display())]
    Exists(PathBuf),
    /// The file cannot be made or written.
    #[error("cannot write {}: {source}; what is in it can be replayed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A tick that is larger than any should be.
    #[error("cannot keep what was read: {0}")]
    Frame(#[from] FrameError),
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Ticks kept.
    pub ticks: u64,
    /// VMs in the last one.
    pub vms: usize,
    /// Bytes written.
    pub bytes: u64,
}

/// A recording that is being made: cheap to clone, all clones share one state. A failure ends it, and is told by [`Tape::progress`].
#[derive(Clone, Debug)]
pub struct Tape(Arc<Mutex<Recorder>>);

#[derive(Debug)]
struct Recorder {
    path: PathBuf,
    /// `None` once it has failed: a frame behind one that is cut short could not be read.
    file: Option<File>,
    failed: Option<TapeError>,
    frames: FrameWriter,
    labels: Labels,
    progress: Progress,
}

impl Tape {
    /// Makes the file, readable by its owner alone. With `names`, names of VMs, devices and commands are kept.
    ///
    /// # Errors
    /// If it is there already or cannot be made.
    pub fn create(path: &Path, names: bool) -> Result<Self, TapeError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => TapeError::Exists(path.to_owned()),
            _ => TapeError::Io { path: path.to_owned(), source },
        })?;
        let tape = Self::of(file, path, names);
        tape.lock().write(file::title().as_bytes());
        tape.progress().map(|_| tape)
    }

    fn of(file: File, path: &Path, names: bool) -> Self {
        Self(Arc::new(Mutex::new(Recorder {
            path: path.to_owned(),
            file: Some(file),
            failed: None,
            frames: FrameWriter::default(),
            labels: Labels::new(names),
            progress: Progress::default(),
        })))
    }

    pub(crate) fn begin(&self, start: &Start) {
        self.lock().keep(start);
    }

    pub(crate) fn keep(&self, tick: &Tick) {
        let mut tick = tick.clone();
        let mut recorder = self.lock();
        recorder.labels.clean(&mut tick);
        recorder.progress.ticks += 1;
        recorder.progress.vms = tick.inventory.vms.len();
        recorder.keep(&tick);
    }

    /// How far it is.
    ///
    /// # Errors
    /// Why it has ended, once.
    pub fn progress(&self) -> Result<Progress, TapeError> {
        let mut recorder = self.lock();
        recorder.failed.take().map_or(Ok(recorder.progress), Err)
    }

    fn lock(&self) -> MutexGuard<'_, Recorder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    fn keep<T: Serialize>(&mut self, message: &T) {
        match self.frames.frame(message) {
            Ok(bytes) => self.write(&bytes),
            Err(error) => self.fail(error.into()),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(bytes) {
            Ok(()) => self.progress.bytes += bytes.len() as u64,
            Err(source) => {
                let path = self.path.clone();
                self.fail(TapeError::Io { path, source });
            }
        }
    }

    fn fail(&mut self, error: TapeError) {
        self.file = None;
        self.failed.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten_and_others_cannot_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let tape = Tape::create(&path, false).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(tape.progress().unwrap().bytes, path.metadata().unwrap().len());
        assert!(matches!(Tape::create(&path, false), Err(TapeError::Exists(_))));
    }

    #[test]
    fn a_full_disk_ends_it_and_is_told_once() {
        let full = Path::new("/dev/full");
        let tape = Tape::of(File::options().write(true).open(full).unwrap(), full, false);
        tape.lock().keep(&1);
        let error = tape.progress().unwrap_err().to_string();
        assert!(error.contains("cannot write /dev/full") && error.contains("can be replayed"), "{error}");
        tape.lock().keep(&2);
        assert_eq!(tape.progress().unwrap(), Progress::default());
    }
}
