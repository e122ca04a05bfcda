//! Where VMs' disks are, and how much of them only this host has: measured once a minute on a thread of its own. A file system on the network that
//! hangs holds up whoever looks at it, so each look is waited for so long only, and nobody looks at a file system that an earlier look has not returned
//! from.

use super::hanging::{HangingCalls, NoAnswer};
use super::inventory::{Daemon, Inventory};
use super::libvirt::Reconnecting;
use super::libvirt::needs::{Disk, Layers, Needs, Place};
use gnomon_common::wire::{LocalStorage, VmId, VmState};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// File systems whose content is the same on every host that has mounted them, by `statfs(2)`'s magic numbers: NFS, SMB and CIFS, Ceph, OCFS2,
/// GFS2, Lustre, GPFS, BeeGFS, and FUSE, of which GlusterFS is.
const SHARED_FILE_SYSTEMS: [u64; 11] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x7461_636f,
    0x0116_1970,
    0x0bd0_0bd0,
    0x4750_4653,
    0x1983_0326,
    0x6573_5546,
];

/// `stat(2)` counts what a file takes in these, whatever the file system's own unit.
const BLOCK_BYTES: u64 = 512;

/// How long a file system may take to tell of a file.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Looks at files, by the mount point of their file system, whoever wants to know.
static LOOKS: LazyLock<HangingCalls<PathBuf>> = LazyLock::new(HangingCalls::default);

/// Looks at a file.
fn look<T: Send + 'static>(path: &Path, look: impl FnOnce(&Path) -> T + Send + 'static) -> io::Result<T> {
    let there = path.to_owned();
    // Without looking at the path itself.
    let mounts = std::fs::read_to_string(MOUNTS)?;
    LOOKS.ask(&mount_point(&mounts, path), LOOK_MAX, move || look(&there)).map_err(|error| {
        let kind = if matches!(error, NoAnswer::NoThread(_)) { io::ErrorKind::Other } else { io::ErrorKind::TimedOut };
        io::Error::new(kind, format!("{} {error}", path.display()))
    })
}

/// proc(5), `/proc/pid/mountinfo`.
const MOUNTS: &str = "/proc/self/mountinfo";

/// The mount point, of those that are there, that a path is below, as far as its own words tell: a link may lead elsewhere.
fn mount_point(mounts: &str, path: &Path) -> PathBuf {
    let points = mounts.lines().filter_map(|line| Some(PathBuf::from(unescaped(line.split(' ').nth(4)?))));
    let above = points.filter(|point| path.starts_with(point));
    above.max_by_key(|point| point.components().count()).unwrap_or_else(|| PathBuf::from("/"))
}

/// Spaces, tabs, line breaks and backslashes of a mount point are told by three octal digits.
fn unescaped(word: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(word.to_owned(), |word, (told, meant)| word.replace(told, meant))
}

/// How often each VM's disks are measured.
const INTERVAL: Duration = Duration::from_mins(1);

/// How often it is seen whether there is a new VM.
const NEWCOMERS_INTERVAL: Duration = Duration::from_secs(2);

/// Whether a path means the same on all hosts: by its file system, or because the configuration says so. What cannot be looked at does not.
///
/// # Errors
/// Its file system does not answer.
pub(crate) fn is_shared(path: &Path, shared_paths: &[PathBuf]) -> io::Result<bool> {
    let declared = shared_paths
        .iter()
        .any(|shared| path.as_os_str().as_encoded_bytes().starts_with(shared.as_os_str().as_encoded_bytes()));
    Ok(declared
        || look(path, |path| rustix::fs::statfs(path))?.is_ok_and(|file_system| is_shared_kind(file_system.f_type)))
}

/// The numbers are of 32 bits, and signed on some machines.
fn is_shared_kind(magic: impl Into<i64>) -> bool {
    SHARED_FILE_SYSTEMS.contains(&(magic.into().cast_unsigned() & 0xffff_ffff))
}

/// What a file takes of its file system, and how long it is, in bytes.
pub(crate) fn sizes(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = look(path, |path| std::fs::metadata(path))??;
    Ok((metadata.blocks().saturating_mul(BLOCK_BYTES), metadata.len()))
}

/// What the images below a disk's own layer take, in bytes.
pub(crate) fn image_bytes(layers: &Layers) -> io::Result<u64> {
    layers.below.iter().try_fold(0u64, |sum, image| Ok(sum.saturating_add(sizes(&image.path)?.0)))
}

/// What only this host has of disks; `None` where all are shared, or one cannot be copied.
fn local(disks: &[Disk], shared: impl Fn(&Path) -> io::Result<bool>) -> io::Result<Option<LocalStorage>> {
    let mut sum: Option<LocalStorage> = None;
    for disk in disks {
        let path = match &disk.place {
            Place::Network => continue,
            Place::Path(path) if shared(path)? => continue,
            Place::Path(path) => path,
            Place::Other(_) => return Ok(None),
        };
        let Ok(layers) = &disk.copy else { return Ok(None) };
        let (own, images) = (sizes(path)?.0, image_bytes(layers)?);
        let sum = sum.get_or_insert_default();
        sum.own_bytes = sum.own_bytes.saturating_add(own);
        sum.image_bytes = sum.image_bytes.saturating_add(images);
    }
    Ok(sum)
}

/// What only this host has of each VM's disks: cheap to clone, all clones share one state.
#[derive(Clone, Debug, Default)]
pub struct StorageBook(Arc<Mutex<BTreeMap<VmId, Option<LocalStorage>>>>);

impl StorageBook {
    /// Of those VMs that have such disks.
    pub fn all(&self) -> BTreeMap<VmId, LocalStorage> {
        self.lock().iter().filter_map(|(&vm, local)| Some((vm, (*local)?))).collect()
    }

    /// Begins to measure, until the inventory ends; libvirt at `uri` is asked through `daemon`.
    pub fn start(
        &self,
        uri: String,
        daemon: Daemon,
        shared_paths: Vec<PathBuf>,
        inventory: watch::Receiver<Arc<Inventory>>,
    ) -> io::Result<()> {
        let book = self.clone();
        let run = move || {
            let mut link = Reconnecting::new(uri);
            let mut measured = Instant::now();
            while inventory.has_changed().is_ok() {
                std::thread::sleep(NEWCOMERS_INTERVAL);
                let is_due = measured.elapsed() >= INTERVAL;
                let vms = Arc::clone(&inventory.borrow());
                let running: Vec<VmId> =
                    vms.vms.iter().filter(|facts| facts.state == VmState::Running).map(|facts| facts.id).collect();
                book.lock().retain(|vm, _| running.contains(vm));
                for vm in running {
                    if is_due || !book.lock().contains_key(&vm) {
                        let local = measure(&mut link, &daemon, vm, &shared_paths);
                        book.lock().insert(vm, local);
                    }
                }
                if is_due {
                    measured = Instant::now();
                }
            }
        };
        std::thread::Builder::new().name("gnomon-storage".to_owned()).spawn(run).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Option<LocalStorage>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn measure(link: &mut Reconnecting, daemon: &Daemon, vm: VmId, shared_paths: &[PathBuf]) -> Option<LocalStorage> {
    let xml = daemon.ask(|| link.get().and_then(|here| here.live_definition(vm)));
    let xml = xml.inspect_err(|error| tracing::debug!(%vm, %error, "its disks are not known")).ok()?;
    let found = local(&Needs::parse(&xml)?.disks, |path| is_shared(path, shared_paths));
    found.unwrap_or_else(|error| {
        tracing::debug!(%vm, %error, "how much of its disks only this host has is not known");
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::libvirt::needs::Image;
    use crate::host::process::Proc;

    #[test]
    fn paths_are_shared_by_their_file_system_or_because_the_operator_says_so() {
        assert!(is_shared_kind(0x6969_i64) && is_shared_kind(0xff53_4d42_u32.cast_signed()));
        assert!(!is_shared_kind(0xef53_i64));
        assert!(!is_shared(Path::new("/nonexistent/gnomon"), &[]).unwrap());
        assert!(is_shared(Path::new("/dev/mapper/san-7"), &["/dev/mapper/san-".into()]).unwrap());
    }

    /// A file system whose server never answers, as a dead NFS server does not. It is gone when this is.
    struct Dead {
        folder: tempfile::TempDir,
        server: Option<std::fs::File>,
    }

    impl Dead {
        /// `None`, and a word about it, where that may not be mounted.
        fn mount() -> Option<Self> {
            use rustix::mount::{MountFlags, mount};
            let server = std::fs::File::options().read(true).write(true).open("/dev/fuse");
            let server = server.inspect_err(|error| eprintln!("SKIPPED: /dev/fuse: {error}")).ok()?;
            let folder = tempfile::tempdir().unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&server);
            let options = std::ffi::CString::new(format!("fd={fd},rootmode=40000,user_id=0,group_id=0")).unwrap();
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            let mounted = mount("gnomon-test", folder.path(), "fuse", flags, options.as_c_str());
            mounted.inspect_err(|error| eprintln!("SKIPPED: mounting a file system: {error}")).ok()?;
            Some(Self { folder, server: Some(server) })
        }
    }

    impl Drop for Dead {
        fn drop(&mut self) {
            // Whoever waits gets an error.
            drop(self.server.take());
            let gone = rustix::mount::unmount(self.folder.path(), rustix::mount::UnmountFlags::DETACH);
            gone.expect("it is mounted");
        }
    }

    #[test]
    fn a_file_system_that_does_not_answer_holds_nobody_up_and_is_asked_once() {
        let Some(dead) = Dead::mount() else { return };
        let disk = dead.folder.path().join("disk");
        let begun = Instant::now();
        let late = is_shared(&disk, &[]).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut, "{late}");
        assert!((LOOK_MAX..LOOK_MAX * 3).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        let begun = Instant::now();
        for number in 0..100 {
            // Of all paths there.
            let disk = dead.folder.path().join(format!("{number}/disk"));
            assert_eq!(sizes(&disk).unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(is_shared(&disk, &[]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        assert!(begun.elapsed() < LOOK_MAX, "{:?}", begun.elapsed());
        // Others are looked at meanwhile.
        assert!(!is_shared(Path::new("/proc/self"), &[]).unwrap());
        drop(dead);
        let patience = Instant::now() + Duration::from_secs(20);
        while is_shared(&disk, &[]).is_err() {
            assert!(Instant::now() < patience, "it is not asked again");
        }
    }

    #[test]
    fn what_libvirt_is_asked_is_counted_with_its_other_questions() {
        let daemon = Daemon::of_this_process();
        if Proc::default().run_ns(std::process::id()).is_err() {
            return println!("skipped: this kernel keeps no schedstat");
        }
        let mut link = Reconnecting::new("test:///default");
        assert_eq!(measure(&mut link, &daemon, VmId(uuid::Uuid::nil()), &[]), None, "no such VM");
        assert!(daemon.was_asked());
    }

    #[test]
    fn the_nearest_mount_point_above_a_path_is_its_file_systems() {
        let mounts = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:5 / /srv rw shared:7 - nfs a:/ rw\n\
            23 22 0:6 / /srv/my\\040disks rw - nfs b:/ rw\n";
        for (path, point) in
            [("/srv/a/b", "/srv"), ("/srv/my disks/c", "/srv/my disks"), ("/srvs/d", "/"), ("/srv", "/srv"), ("x", "/")]
        {
            assert_eq!(mount_point(mounts, Path::new(path)), Path::new(point), "{path}");
        }
    }

    #[test]
    fn what_only_this_host_has_is_what_files_take_of_the_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: usize| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![1; bytes]).unwrap();
            path
        };
        let (own, base) = (file("own", 1 << 20), file("base", 2 << 20));
        // Of a sparse file what is written.
        std::fs::OpenOptions::new().write(true).open(&own).unwrap().set_len(1 << 30).unwrap();
        let disk = |path: PathBuf, copy| Disk { target: "vda".into(), place: Place::Path(path), copy };
        let layers =
            || Layers { format: "raw".into(), below: vec![Image { path: base.clone(), format: "raw".into() }] };
        let only = [disk(own.clone(), Ok(layers()))];
        let found = local(&only, |_| Ok(false)).unwrap().unwrap();
        let within = |bytes: u64, least: u64| (least..least + (1 << 20)).contains(&bytes);
        assert!(within(found.own_bytes, 1 << 20) && within(found.image_bytes, 2 << 20), "{found:?}");
        assert_eq!(local(&only, |_| Ok(true)).unwrap(), None);
        assert_eq!(local(&[disk(own, Ok(layers())), disk(base.clone(), Err("no"))], |_| Ok(false)).unwrap(), None);
        assert!(local(&[disk(folder.path().join("gone"), Ok(layers()))], |_| Ok(false)).is_err());
    }
}
