//! What a full lab's host boots: a disk of Debian's own packages, its kernel, and a tar file with our programs.
//!
//! The disk is made once and cached under `target/lab/full` by the hash of its recipe: packages, kernel, scripts. To have newer
//! packages of the same names, remove it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use super::super::Progress;
use super::super::image::{self, Image};
use super::super::machine::home;
use super::super::place::output;
use crate::env::bin_dir;
use crate::process::run_logged;

/// What is on the disk, beside what these depend on.
const PACKAGES: [&str; 20] = [
    "bash",
    "busybox-static",
    "coreutils",
    "cpio",
    "dash",
    "findutils",
    "grep",
    "iproute2",
    "kmod",
    "libc-bin",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "mount",
    "procps",
    "qemu-system-x86",
    "sed",
    "tar",
    "util-linux",
    "zlib1g",
];
/// Drivers of what the disk is found by, in the order of their dependencies.
const MODULES: [&str; 7] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/virtio_console.ko",
];
const MAKE: &str = include_str!("disk.sh");
const HOST: &str = include_str!("host.sh");
const START: &str = include_str!("start.sh");
/// 85 MB of packages to fetch and unpack: 10 s with a mirror near by.
const MAKE_TYPICAL_S: u32 = 30;
/// Our programs, as `cargo build` makes them; those that a host runs.
const PROGRAMS: [&str; 2] = ["gnomon-agent", "xtask"];

/// Files for QEMU.
#[derive(Debug, Clone)]
pub(super) struct Boot {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disk: PathBuf,
}

/// Where disks and logs are kept.
pub(super) fn cache() -> PathBuf {
    home().join("full")
}

/// The files, made if their recipe has changed. One process at a time makes them, the others wait.
pub(super) fn made(progress: &Progress) -> Result<Boot> {
    let cache = cache();
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("opening the lock of the full lab's disk")?;
    flock(&lock, FlockOperation::LockExclusive).context("waiting for another build of the full lab's disk")?;

    let release = image::kernel(progress)?;
    let kernel = release.vmlinuz()?;
    let parts = image::initramfs(&release, START, &MODULES)?;
    let initrd = cache.join(format!("initramfs-{:016x}.cpio", image::key(&parts)));
    if !initrd.exists() {
        image::pack(&parts, &initrd)?;
    }
    let distribution = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let recipe = (PACKAGES, MAKE, HOST, kernel.file_name(), distribution);
    let disk = cache.join(format!("disk-{:016x}.ext4", image::key(&recipe)));
    if !disk.exists() {
        make(&cache, release.dir(), &disk)?;
    }
    Ok(Boot { kernel, initrd, disk })
}

/// Everything happens in a scratch directory that goes away, and the disk appears under its name when it is whole.
fn make(cache: &Path, kernel: &Path, disk: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(cache).context("making a scratch directory")?;
    let host = scratch.path().join("host.sh");
    fs::write(&host, HOST)?;
    let new = scratch.path().join("disk");
    let mut command = Command::new("sh");
    command.args(["-c", MAKE, "sh"]).arg(scratch.path()).arg(kernel).arg(host).arg(&new).args(PACKAGES);
    let made =
        run_logged(command, "the full lab's disk, made of Debian packages", MAKE_TYPICAL_S, &cache.join("disk.log"));
    made.context("`apt-get update` may help")?;
    // A lab that uses an older one has it open.
    for old in fs::read_dir(cache)?.flatten().map(|entry| entry.path()) {
        if old.extension().is_some_and(|kind| kind == "ext4") {
            fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    fs::rename(&new, disk).with_context(|| format!("keeping {}", disk.display()))
}

/// Our files on a host, and the lab's own there, as [`home`] finds them with `CARGO_TARGET_DIR=/lab/target`.
pub(super) const LAB_DIR: &str = "/lab";
const HOME_DIR: &str = "/lab/target/lab";

/// Packs what a host runs into a tar file, to be unpacked in [`LAB_DIR`]: our programs in `bin`, and what a lab there boots
/// guests with, so that it needs neither compiler nor network. Returns the tar file and the guest's image on the host.
pub(super) fn pack_programs(dir: &Path, progress: &Progress) -> Result<(PathBuf, Image)> {
    let guest = image::ensure(progress)?;
    let release = image::kernel(progress)?;
    let tree = dir.join("programs");
    let link = |from: &Path, to: PathBuf| -> Result<()> {
        fs::create_dir_all(to.parent().unwrap_or(&tree))?;
        symlink(from, &to).with_context(|| format!("linking {}", from.display()))
    };
    for program in PROGRAMS {
        let file = bin_dir().join(program);
        ensure!(file.exists(), "{} is not built; `cargo build --bins`", file.display());
        link(&file, tree.join("bin").join(program))?;
    }
    let mut files = release.files_for_guests()?;
    files.push(guest.initrd.clone());
    files.extend(image::guest_programs());
    for file in &files {
        link(file, tree.join("target/lab").join(file.strip_prefix(home())?))?;
    }
    let tar = dir.join("programs.tar");
    let mut command = Command::new("tar");
    command.args(["--create", "--dereference", "--owner=0", "--group=0", "--file"]).arg(&tar);
    output(command.arg("--directory").arg(&tree).arg(".")).context("packing the programs of the full lab's hosts")?;
    let there = |file: &Path| -> Result<PathBuf> { Ok(Path::new(HOME_DIR).join(file.strip_prefix(home())?)) };
    Ok((tar, Image { kernel: there(&guest.kernel)?, initrd: there(&guest.initrd)? }))
}
