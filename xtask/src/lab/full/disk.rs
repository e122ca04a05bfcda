//! What a full lab's host boots: a disk of Debian's own packages, its kernel, and a tar file with our programs.
//!
//! The disk is cached under `target/lab/full`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::super::Progress;
use super::super::debian::{Boot, Recipe};
use super::super::image::{self, Image};
use super::super::machine::home;
use super::super::place::output;
use crate::env::bin_dir;

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
const HOST: &str = include_str!("host.sh");
/// 85 MB of packages to fetch and unpack: 10 s with a mirror near by.
const MAKE_TYPICAL_S: u32 = 30;
/// Our programs, as `cargo build` makes them; those that a host runs.
const PROGRAMS: [&str; 2] = ["gnomon-agent", "xtask"];

/// Where disks and logs are kept.
pub(super) fn cache() -> PathBuf {
    home().join("full")
}

/// The files, made if something of them has changed.
pub(super) fn made(progress: &Progress) -> Result<Boot> {
    let recipe = Recipe {
        what: "the full lab's disk",
        packages: &PACKAGES,
        files: vec![("usr/sbin/gnomon-host".to_owned(), HOST.as_bytes().to_vec(), 0o755)],
        furnish: include_str!("host-disk.sh"),
        modules: &MODULES,
        typical_s: MAKE_TYPICAL_S,
    };
    recipe.made(&cache(), progress)
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
