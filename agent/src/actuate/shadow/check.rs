//! Whether the copies that a shadow is to stand on are what was made, before libvirt hands them to QEMU.
//!
//! They lie where another host writes, so it is not believed what they are: each has to be a regular file with a qcow2 header that names no other
//! file, and as long and of the checksum that was told. libvirt gives the files below a disk to QEMU's user and never back: one that a shadow has
//! run on cannot be read again. So what was checked is noted beside the shadows' folders, for as long as the copies are there, and a file that
//! cannot be read passes if it is that one, not written to since.

use super::copies::is_whole;
use super::files::{Files, make_folder};
use super::host::Here;
use super::image::GiveUp;
use super::snag::Snag;
use crate::host::libvirt::FoundShadow;
use gnomon_common::wire::{Blueprint, DiskCopy, Unshadowable, VmId};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What of a qcow2 file is looked at, in bytes (QEMU, `docs/interop/qcow2.rst`; numbers are big-endian).
const HEADER_BYTES: usize = 80;

/// How notes of what was checked end, after the shadow's UUID.
const NOTE_SUFFIX: &str = ".checked.json";

/// A file that was read once and is what was made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checked {
    path: String,
    sha256: String,
    bytes: u64,
    inode: u64,
    /// When it was written to last, in seconds and nanoseconds.
    written: (i64, i64),
}

impl Checked {
    fn new(copy: &DiskCopy, file: &Metadata) -> Self {
        let (inode, written) = (file.ino(), (file.mtime(), file.mtime_nsec()));
        Self { path: copy.path.clone(), sha256: copy.sha256.clone(), bytes: file.len(), inode, written }
    }
}

/// Whether a shadow may be made on its copies. One that is defined has been.
pub(super) fn check<H: Here>(
    here: &mut H,
    files: &Files,
    shadow: VmId,
    blueprint: &Blueprint,
    give_up: &GiveUp,
) -> std::result::Result<(), Snag> {
    match here.find(shadow)? {
        FoundShadow::Shadow { .. } => Ok(()),
        _ => are_whole(files, shadow, blueprint, give_up, open),
    }
}

/// Opens a copy to read it: no link, and nothing that waits for somebody else to open it.
pub(super) fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Whether the copies that a shadow is to stand on are what was made.
pub(super) fn are_whole(
    files: &Files,
    shadow: VmId,
    blueprint: &Blueprint,
    give_up: &GiveUp,
    open: impl Fn(&Path) -> Result<File>,
) -> std::result::Result<(), Snag> {
    // No other file of this host is read.
    files.check(shadow, blueprint)?;
    let note = files.beside(shadow, NOTE_SUFFIX);
    let before = read(&note)?;
    let mut checked = Vec::new();
    for copy in blueprint.copies() {
        let path = Path::new(&copy.path);
        let named = |error: Error| Error::new(error.kind(), format!("reading {}: {error}", copy.path));
        let refuse = |why: &str| Unshadowable::Definition(format!("{} {why}", copy.path));
        let found = path.symlink_metadata().map_err(named)?;
        if !found.is_file() {
            return Err(refuse("is no regular file").into());
        }
        let damaged = || Unshadowable::Damaged(copy.path.clone()).into();
        match open(path) {
            Ok(mut file) => {
                let found = file.metadata().map_err(named)?;
                if !found.is_file() {
                    return Err(refuse("is no regular file").into());
                }
                if found.len() != copy.bytes {
                    return Err(damaged());
                }
                if !stands_alone(&file).map_err(named)? {
                    return Err(refuse("is no qcow2 image that stands on no other file").into());
                }
                match is_whole(&mut file, copy, || give_up.get().is_some()).map_err(named)? {
                    Some(true) => checked.push(Checked::new(copy, &found)),
                    Some(false) => return Err(damaged()),
                    None => return Err(Snag::Busy(format!("given up: {}", give_up.get().unwrap_or(&"")))),
                }
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                if found.len() != copy.bytes {
                    return Err(damaged());
                }
                let found = Checked::new(copy, &found);
                if !before.contains(&found) {
                    let why = "may not be read here, and this host has not checked it before: libvirt has given it to QEMU's user. \
                        It is copied anew once the shadow is retired and made again";
                    return Err(refuse(why).into());
                }
                tracing::info!(%shadow, path = copy.path, "a copy may not be read any more: its content is not checked again");
                checked.push(found);
            }
            Err(error) => return Err(named(error).into()),
        }
    }
    forget(files)?;
    if let Some(directory) = note.parent() {
        make_folder(directory)?;
    }
    // Half a note is none.
    std::fs::write(&note, serde_json::to_vec(&checked).map_err(Error::from)?)?;
    Ok(())
}

/// Whether a file is a qcow2 image that leads QEMU to no other file.
fn stands_alone(file: &File) -> Result<bool> {
    let mut header = [0; HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    let is_zero = |from: usize, to: usize| header[from..to].iter().all(|byte| *byte == 0);
    let version = &header[4..8];
    let has_no_base = is_zero(8, 16);
    // Of the lowest byte of the incompatible features: the data are in another file.
    let has_its_data = version == [0, 0, 0, 2] || version == [0, 0, 0, 3] && header[79] & 0b100 == 0;
    Ok(header[..4] == *b"QFI\xfb" && has_no_base && has_its_data)
}

fn read(note: &Path) -> Result<Vec<Checked>> {
    match std::fs::read(note) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes the notes of copies that are not there any more.
fn forget(files: &Files) -> Result<()> {
    for note in files.all_beside(NOTE_SUFFIX)? {
        if read(&note)?.iter().all(|checked| matches!(Path::new(&checked.path).try_exists(), Ok(false))) {
            std::fs::remove_file(&note)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ShadowConfig;
    use gnomon_common::wire::{Base, DiskBlueprint};
    use std::path::PathBuf;
    use uuid::Uuid;

    const SHADOW: VmId = VmId(Uuid::from_u128(9));

    /// A qcow2 file of version 3 as QEMU begins it.
    fn qcow2() -> Vec<u8> {
        let mut bytes = vec![0; 4_096];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes
    }

    struct Bench {
        folder: tempfile::TempDir,
        files: Files,
        copy: PathBuf,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let (directory, image_paths) = (folder.path().join("s"), vec![folder.path().to_owned()]);
        let files = Files::new(ShadowConfig { directory, image_paths, ..ShadowConfig::default() });
        let copy = folder.path().join("vda.qcow2");
        std::fs::write(&copy, qcow2()).unwrap();
        Bench { folder, files, copy }
    }

    fn blueprint(path: &Path) -> Blueprint {
        let file = std::fs::read(path).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &file);
        let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
        let copy =
            DiskCopy { path: path.to_string_lossy().into_owned(), bytes: file.len() as u64, sha256: sha256.collect() };
        let disk =
            DiskBlueprint { device: "vda".into(), bus: "virtio".into(), size_bytes: 1 << 20, base: Base::Copied(copy) };
        crate::actuate::shadow::bare_blueprint(vec![disk])
    }

    impl Bench {
        fn check(&self, blueprint: &Blueprint) -> std::result::Result<(), Snag> {
            are_whole(&self.files, SHADOW, blueprint, &GiveUp::new(), open)
        }

        /// As where the file belongs to QEMU's user.
        fn unreadable(&self, blueprint: &Blueprint) -> std::result::Result<(), Snag> {
            let open = |_: &Path| Err(Error::from(ErrorKind::PermissionDenied));
            are_whole(&self.files, SHADOW, blueprint, &GiveUp::new(), open)
        }

        fn notes(&self) -> usize {
            self.files.all_beside(NOTE_SUFFIX).unwrap().len()
        }
    }

    fn is_refused(checked: std::result::Result<(), Snag>, why: &str) {
        match checked {
            Err(Snag::Unshadowable(Unshadowable::Definition(said))) if said.contains(why) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_copy_that_cannot_be_read_any_more_is_taken_only_if_it_was_checked_here_and_not_written_to_since() {
        let bench = bench();
        let made = blueprint(&bench.copy);
        is_refused(bench.unreadable(&made), "has not checked it before");
        bench.check(&made).unwrap();
        bench.unreadable(&made).unwrap();
        bench.unreadable(&made).unwrap();
        let mut other = made.clone();
        if let Base::Copied(copy) = &mut other.disks[0].base {
            copy.sha256 = "00".repeat(32);
        }
        is_refused(bench.unreadable(&other), "has not checked it before");
        // Another file of the same length in its place, and one that is longer.
        let another = bench.folder.path().join("another");
        std::fs::write(&another, qcow2()).unwrap();
        std::fs::rename(&another, &bench.copy).unwrap();
        is_refused(bench.unreadable(&made), "has not checked it before");
        std::fs::write(&bench.copy, [qcow2(), vec![0]].concat()).unwrap();
        let damaged = bench.unreadable(&made);
        assert!(matches!(damaged, Err(Snag::Unshadowable(Unshadowable::Damaged(_)))), "{damaged:?}");
    }

    #[test]
    fn what_was_checked_is_forgotten_with_the_copy() {
        let bench = bench();
        bench.check(&blueprint(&bench.copy)).unwrap();
        assert_eq!((bench.notes(), bench.files.all().unwrap()), (1, vec![]));
        std::fs::remove_file(&bench.copy).unwrap();
        forget(&bench.files).unwrap();
        assert_eq!(bench.notes(), 0);
    }

    #[test]
    fn a_file_that_is_none_or_leads_to_another_is_refused_whatever_its_checksum() {
        let bench = bench();
        for (at, byte) in [(0, b'q'), (7, 4), (8, 1), (15, 1), (79, 0b100)] {
            let mut bytes = qcow2();
            bytes[at] = byte;
            std::fs::write(&bench.copy, bytes).unwrap();
            is_refused(bench.check(&blueprint(&bench.copy)), "is no qcow2 image");
        }
        std::fs::write(&bench.copy, &qcow2()[..60]).unwrap();
        is_refused(bench.check(&blueprint(&bench.copy)), "is no qcow2 image");
        let old = [&b"QFI\xfb\0\0\0\x02"[..], &[0; 64], &[0xff; 8], &[0; 512]].concat();
        std::fs::write(&bench.copy, old).unwrap();
        bench.check(&blueprint(&bench.copy)).unwrap();
        assert_eq!(bench.notes(), 1);

        let link = bench.folder.path().join("link");
        std::os::unix::fs::symlink(&bench.copy, &link).unwrap();
        is_refused(bench.check(&blueprint(&link)), "is no regular file");
        assert_eq!(open(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP), "also if it becomes one meanwhile");
        let pipe = bench.folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut of_pipe = blueprint(&bench.copy);
        if let Base::Copied(copy) = &mut of_pipe.disks[0].base {
            copy.path = pipe.to_string_lossy().into_owned();
        }
        is_refused(bench.check(&of_pipe), "is no regular file");
        assert!(open(&pipe).is_ok(), "it is not waited for whoever writes to it");
    }
}
