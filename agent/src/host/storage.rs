//! Where VMs' disks are, and how much of them only this host has: measured once a minute on a thread of its own, since a file system on the network
//! that hangs holds up whoever looks at it.

use super::inventory::Inventory;
use super::libvirt::Reconnecting;
use super::libvirt::needs::{Disk, Layers, Needs, Place};
use gnomon_common::wire::{LocalStorage, VmId, VmState};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// How often each VM's disks are measured.
const INTERVAL: Duration = Duration::from_mins(1);

/// How often it is seen whether there is a new VM.
const NEWCOMERS_INTERVAL: Duration = Duration::from_secs(2);

/// Whether a path means the same on all hosts: by its file system, or because the configuration says so.
pub(crate) fn is_shared(path: &Path, shared_paths: &[PathBuf]) -> bool {
    let declared = shared_paths
        .iter()
        .any(|shared| path.as_os_str().as_encoded_bytes().starts_with(shared.as_os_str().as_encoded_bytes()));
    declared || rustix::fs::statfs(path).is_ok_and(|file_system| is_shared_kind(file_system.f_type))
}

/// The numbers are of 32 bits, and signed on some machines.
fn is_shared_kind(magic: impl Into<i64>) -> bool {
    SHARED_FILE_SYSTEMS.contains(&(magic.into().cast_unsigned() & 0xffff_ffff))
}

/// What a file takes of its file system, and how long it is, in bytes.
pub(crate) fn sizes(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.blocks().saturating_mul(BLOCK_BYTES), metadata.len()))
}

/// What the images below a disk's own layer take, in bytes.
pub(crate) fn image_bytes(layers: &Layers) -> io::Result<u64> {
    layers.below.iter().try_fold(0u64, |sum, image| Ok(sum.saturating_add(sizes(&image.path)?.0)))
}

/// What only this host has of disks; `None` where all are shared, or one cannot be copied.
fn local(disks: &[Disk], shared: impl Fn(&Path) -> bool) -> io::Result<Option<LocalStorage>> {
    let mut sum: Option<LocalStorage> = None;
    for disk in disks {
        let path = match &disk.place {
            Place::Network => continue,
            Place::Path(path) if shared(path) => continue,
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

    /// Begins to measure, until the inventory ends.
    pub fn start(
        &self,
        uri: String,
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
                        let local = measure(&mut link, vm, &shared_paths);
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

fn measure(link: &mut Reconnecting, vm: VmId, shared_paths: &[PathBuf]) -> Option<LocalStorage> {
    let xml = link.get().and_then(|here| here.live_definition(vm));
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

    #[test]
    fn paths_are_shared_by_their_file_system_or_because_the_operator_says_so() {
        assert!(is_shared_kind(0x6969_i64) && is_shared_kind(0xff53_4d42_u32.cast_signed()));
        assert!(!is_shared_kind(0xef53_i64));
        assert!(!is_shared(Path::new("/nonexistent/gnomon"), &[]));
        assert!(is_shared(Path::new("/dev/mapper/san-7"), &["/dev/mapper/san-".into()]));
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
        let found = local(&only, |_| false).unwrap().unwrap();
        let within = |bytes: u64, least: u64| (least..least + (1 << 20)).contains(&bytes);
        assert!(within(found.own_bytes, 1 << 20) && within(found.image_bytes, 2 << 20), "{found:?}");
        assert_eq!(local(&only, |_| true).unwrap(), None);
        assert_eq!(local(&[disk(own, Ok(layers())), disk(base.clone(), Err("no"))], |_| false).unwrap(), None);
        assert!(local(&[disk(folder.path().join("gone"), Ok(layers()))], |_| false).is_err());
    }
}
