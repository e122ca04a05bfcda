//! A small Debian guest: systemd, udev, dbus and what they need, and the pacer as docs/pacer.md says that it gets into an image.

use std::fs;

use anyhow::{Context, Result};

use super::{Boot, Recipe};
use crate::lab::Progress;
use crate::lab::image::{self, Part};
use crate::lab::machine::home;

const PACKAGES: [&str; 11] = [
    "base-files",
    "coreutils",
    "dash",
    "dbus",
    "grep",
    "kmod",
    "libc-bin",
    "systemd",
    "systemd-sysv",
    "udev",
    // Else apt would merge /usr by the package that brings Perl.
    "usr-is-merged",
];
/// The disk's alone: drivers of ports and network are udev's to load, as in any image.
const MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
];
/// Ours on the disk, and where.
const FILES: [(&str, &str); 3] = [
    ("etc/systemd/system/gnomon-pacer.service", include_str!("../../../../deploy/gnomon-pacer.service")),
    ("etc/systemd/system/gnomon-lab-shell.service", include_str!("shell.service")),
    ("etc/systemd/network/wired.network", include_str!("wired.network")),
];
/// 20 MB of packages to fetch and unpack.
const MAKE_TYPICAL_S: u32 = 20;

/// What such a guest boots, made if something of it has changed.
pub(in crate::lab) fn made(progress: &Progress) -> Result<Boot> {
    let program = image::pacer(progress)?;
    let bytes = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let text = |(name, text): &(&str, &str)| -> Part { ((*name).to_owned(), text.as_bytes().to_vec(), 0o644) };
    let mut files: Vec<Part> = FILES.iter().map(text).collect();
    files.push(("usr/local/bin/gnomon-pacer".to_owned(), bytes, 0o755));
    let recipe = Recipe {
        what: "the Debian guest's disk",
        packages: &PACKAGES,
        files,
        furnish: include_str!("guest.sh"),
        modules: &MODULES,
        typical_s: MAKE_TYPICAL_S,
    };
    recipe.made(&home().join("debian"), progress)
}
