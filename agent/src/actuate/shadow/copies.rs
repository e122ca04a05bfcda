//! Copies of disks, on storage that their shadows' hosts see too: all of one shadow in one folder that is named by its UUID, in one that is named
//! by the host that makes them, since all hosts may be told the same directory: what others make is none of its business.
//!
//! A note in it says of what they are copies, from before they are begun; once they are whole it says so, with their checksums. A folder whose note does not is half, and worth nothing
//! unless a backup still writes to it.

use super::files::{create, folders, make_folder, remove_folder};
use super::send::Sending;
use super::snag::Snag;
use super::throttle::{READING_CORES, Throttle};
use crate::config::ShadowConfig;
use gnomon_common::wire::{COPIES_MAX, DiskCopy, HostId, Unshadowable, VmId};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read, Result, Write};
use std::path::PathBuf;

const NOTE_FILE: &str = "copy.json";
const SENDING_FILE: &str = "send.json";
const BLOCK_BYTES: usize = 1 << 20;

/// What a folder's copies are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Of which VM's disks.
    pub(super) of: VmId,
    /// The disks, by device, with their sizes in bytes.
    pub(super) disks: Vec<(String, u64)>,
    /// What was made of them; `None` until all is whole.
    pub(super) made: Option<Vec<(String, DiskCopy)>>,
}

/// All copies that this host has made.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    directory: PathBuf,
    bytes_max: u64,
    reserve_bytes: u64,
}

impl Copies {
    /// Those of a host; `None` where the configuration has none made.
    pub(super) fn new(config: &ShadowConfig, host: &HostId) -> Option<Self> {
        let directory = config.copies_directory.as_ref()?.join(host.as_str());
        let (bytes_max, reserve_bytes) = (config.copies_bytes_max, config.copies_reserve_bytes);
        Some(Self { directory, bytes_max, reserve_bytes })
    }

    pub(super) fn folder(&self, shadow: VmId) -> PathBuf {
        self.directory.join(shadow.0.hyphenated().to_string())
    }

    /// Where the copy of a disk is.
    pub(super) fn file(&self, shadow: VmId, device: &str) -> PathBuf {
        self.folder(shadow).join(super::definition::layer_file(device))
    }

    /// For which shadows there are some, whole or half.
    pub(super) fn all(&self) -> Result<Vec<VmId>> {
        folders(&self.directory)
    }

    /// What a folder has. One whose note was never written, or is none, tells nothing.
    pub(super) fn note(&self, shadow: VmId) -> Result<Option<Note>> {
        match std::fs::read(self.folder(shadow).join(NOTE_FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, shadow: VmId, note: &Note) -> Result<()> {
        self.write_down(shadow, NOTE_FILE, note)
    }

    /// How far they are sent elsewhere, if they are; half a journal is none.
    pub(super) fn sending(&self, shadow: VmId) -> Result<Option<Sending>> {
        match std::fs::read(self.folder(shadow).join(SENDING_FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes down how far they are sent, for good.
    pub(super) fn note_sending(&self, shadow: VmId, sending: &Sending) -> Result<()> {
        self.write_down(shadow, SENDING_FILE, sending)
    }

    /// Whether nothing is left of them here but the notes, since another host has them.
    pub(super) fn is_sent(&self, shadow: VmId) -> Result<bool> {
        Ok(self.sending(shadow)?.is_some_and(|sending| sending.is_whole))
    }

    /// Removes the files of copies that another host has. The notes stay, until the order to send them is answered.
    pub(super) fn remove_files(&self, shadow: VmId, made: &[(String, DiskCopy)]) -> Result<()> {
        for (device, _) in made {
            match std::fs::remove_file(self.file(shadow, device)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn write_down(&self, shadow: VmId, name: &str, what: &impl Serialize) -> Result<()> {
        let (folder, text) = (self.folder(shadow), serde_json::to_vec(what)?);
        let (new, file) = (folder.join("copy.new"), folder.join(name));
        let mut written = File::create(&new)?;
        written.write_all(&text)?;
        written.sync_all()?;
        std::fs::rename(&new, &file)?;
        File::open(&folder)?.sync_all()
    }

    /// Makes a folder with empty files of the disks' sizes.
    pub(super) fn begin(&self, shadow: VmId, of: VmId, disks: &[(String, u64)]) -> Result<()> {
        // One that is there already has the mode that an administrator gave it.
        let above = self.directory.parent().filter(|above| !above.exists());
        above.map_or(Ok(()), make_folder)?;
        make_folder(&self.directory)?;
        make_folder(&self.folder(shadow))?;
        self.write(shadow, &Note { of, disks: disks.to_vec(), made: None })?;
        disks.iter().try_for_each(|(device, size_bytes)| create(&[], &self.file(shadow, device), *size_bytes))
    }

    /// Says that they are whole.
    pub(super) fn finish(&self, shadow: VmId, note: Note, made: Vec<(String, DiskCopy)>) -> Result<()> {
        self.write(shadow, &Note { made: Some(made), ..note })
    }

    /// Removes them. Returns whether there was anything.
    pub(super) fn remove(&self, shadow: VmId) -> Result<bool> {
        remove_folder(&self.folder(shadow))
    }

    /// Whether disks of so many bytes may be copied as well, and there is room for them.
    pub(super) fn has_room(&self, size_bytes: u64) -> std::result::Result<(), Snag> {
        let no_room = |why: String| Err(Unshadowable::NoRoom(why).into());
        let mut there = Vec::new();
        for shadow in self.all()? {
            // What another host has takes no room here.
            if !self.is_sent(shadow)? {
                there.push(self.note(shadow)?);
            }
        }
        if there.len() >= COPIES_MAX {
            return no_room(format!("copies for {} shadows are here", there.len()));
        }
        let disks = there.iter().flatten().flat_map(|note| &note.disks);
        let bytes = disks.fold(size_bytes, |sum, (_, bytes)| sum.saturating_add(*bytes));
        if bytes > self.bytes_max {
            let most = self.bytes_max;
            return no_room(format!("copies would be of {bytes} bytes of disks, and may be of {most}"));
        }
        let needed = size_bytes.saturating_add(self.reserve_bytes);
        match self.free_bytes()? {
            free if free < needed => {
                no_room(format!("{free} bytes are free for copies, and {needed} are needed with the reserve"))
            }
            _ => Ok(()),
        }
    }

    /// What is free where they are, or will be, in bytes.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let there = self.directory.ancestors().find(|place| place.exists()).unwrap_or(&self.directory);
        let system = rustix::fs::statvfs(there)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// Whether room runs out: then what is under way is given up, long before a guest's write could find none.
    pub(super) fn is_short(&self) -> Result<bool> {
        Ok(self.free_bytes()? < self.reserve_bytes / 2)
    }
}

/// Length and SHA-256 of all that a file has, in bytes and in hexadecimal digits; `None` where it was given up. Takes [`READING_CORES`] of a core at most.
pub(super) fn sha256(file: &mut File, gives_up: impl Fn() -> bool) -> Result<Option<(u64, String)>> {
    let (mut digest, mut bytes, mut block) = (Context::new(&SHA256), 0, vec![0; BLOCK_BYTES]);
    let mut throttle = Throttle::new(READING_CORES);
    loop {
        if gives_up() {
            return Ok(None);
        }
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(read) => {
                digest.update(&block[..read]);
                bytes += read as u64;
                throttle.pause();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let digits = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some((bytes, digits)))
}

/// Whether an opened copy is what was made; `None` where that was given up.
pub(super) fn is_whole(file: &mut File, copy: &DiskCopy, gives_up: impl Fn() -> bool) -> Result<Option<bool>> {
    if file.metadata()?.len() != copy.bytes {
        return Ok(Some(false));
    }
    let read = sha256(file, gives_up)?;
    Ok(read.map(|(bytes, digits)| bytes == copy.bytes && digits == copy.sha256))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Aside;
    use std::io::Seek;
    use std::path::Path;
    use std::time::Instant;
    use uuid::Uuid;

    fn id(number: u128) -> VmId {
        VmId(Uuid::from_u128(number))
    }

    fn copies(folder: &Path) -> Copies {
        Copies { directory: folder.join("copies"), bytes_max: 3 << 20, reserve_bytes: 1 << 20 }
    }

    #[test]
    fn a_note_says_what_is_there_and_whether_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let copies = copies(folder.path());
        assert_eq!((copies.all().unwrap(), copies.note(id(1)).unwrap()), (vec![], None));
        copies.begin(id(1), id(2), &[]).unwrap();
        let half = Note { of: id(2), disks: vec![], made: None };
        assert_eq!((copies.all().unwrap(), copies.note(id(1)).unwrap()), (vec![id(1)], Some(half.clone())));
        let copy = DiskCopy { path: "/x".to_owned(), bytes: 1, sha256: "00".to_owned() };
        copies.finish(id(1), half, vec![("vda".to_owned(), copy.clone())]).unwrap();
        assert_eq!(copies.note(id(1)).unwrap().unwrap().made, Some(vec![("vda".to_owned(), copy)]));
        std::fs::write(copies.folder(id(1)).join(NOTE_FILE), "{").unwrap();
        assert_eq!(copies.note(id(1)).unwrap(), None);
        assert!(copies.remove(id(1)).unwrap() && !copies.remove(id(1)).unwrap());
    }

    #[test]
    fn hosts_that_are_told_the_same_directory_leave_each_other_s_copies_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = ShadowConfig { copies_directory: Some(folder.path().join("c")), ..ShadowConfig::default() };
        let [a, b] = ["a", "b"].map(|host| Copies::new(&config, &HostId::new(host).unwrap()).unwrap());
        a.begin(id(1), id(2), &[]).unwrap();
        assert_eq!((a.all().unwrap(), b.all().unwrap()), (vec![id(1)], vec![]));
        assert!(!b.remove(id(1)).unwrap() && b.note(id(1)).unwrap().is_none() && a.remove(id(1)).unwrap());
    }

    #[test]
    fn what_is_there_counts_by_the_sizes_of_its_disks_and_the_reserve_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut copies = copies(folder.path());
        let room = |copies: &Copies, mib: u64| match copies.has_room(mib << 20) {
            Ok(()) => true,
            Err(Snag::Unshadowable(Unshadowable::NoRoom(_))) => false,
            Err(other) => panic!("{other}"),
        };
        assert!(room(&copies, 3));
        make_folder(&copies.directory).unwrap();
        make_folder(&copies.folder(id(1))).unwrap();
        copies.write(id(1), &Note { of: id(2), disks: vec![("vda".to_owned(), 2 << 20)], made: None }).unwrap();
        assert!(room(&copies, 1) && !room(&copies, 2));
        assert!(!copies.is_short().unwrap());
        copies.reserve_bytes = u64::MAX;
        assert!(!room(&copies, 1) && copies.is_short().unwrap());
    }

    #[test]
    fn to_read_a_copy_takes_no_more_of_a_core_than_it_may() {
        const BYTES: u64 = 64 << 20;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; BYTES as usize]).unwrap();
        file.rewind().unwrap();
        let (begun, mut used) = (Instant::now(), Aside::begin());
        let (bytes, _) = sha256(&mut file, || false).unwrap().unwrap();
        let (took, used) = (begun.elapsed(), used.count());
        println!("{bytes} bytes in {took:.3?}, for {used:.3?} of which it ran");
        assert_eq!(bytes, BYTES);
        // But for what goes before the first pause and comes after the last one.
        assert!(used.as_secs_f64() <= READING_CORES * took.as_secs_f64() * 1.1, "it ran for {used:?} of {took:?}");
    }

    #[test]
    fn a_copy_that_was_changed_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        let copy = DiskCopy { path: path.to_string_lossy().into_owned(), bytes: 3, sha256 };
        let whole = |gives_up: bool| is_whole(&mut File::open(&path)?, &copy, || gives_up);
        assert_eq!(whole(false).unwrap(), Some(true));
        assert_eq!(whole(true).unwrap(), None);
        for changed in ["abd", "abcd", ""] {
            std::fs::write(&path, changed).unwrap();
            assert_eq!(whole(false).unwrap(), Some(false), "{changed}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(whole(false).is_err());
    }
}
