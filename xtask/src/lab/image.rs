//! What a guest boots: Debian's cloud kernel and an initramfs of busybox, virtio drivers, the load program and the pacer. Built
//! once and cached under `target/lab`, by the content of its parts.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use super::Progress;
use super::machine::home;
use super::place::output;
use crate::process::ask;

/// The package that always depends on Debian's newest kernel for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// In the order of their dependencies, because busybox's insmod knows none.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/virtio/virtio_balloon.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/virtio_console.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
];
const INIT: &str = include_str!("guest/init.sh");
/// Our packages for guests, each with a program of its own name.
const PROGRAMS: [&str; 2] = ["gnomon-lab-load", "gnomon-pacer"];
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Files for QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// The image, built if its parts have changed. One process at a time builds, the others wait.
pub(crate) fn ensure(progress: &Progress) -> Result<Image> {
    let dir = home().join("guest");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let lock = File::create(dir.join("lock")).context("opening the lock of the guest image")?;
    flock(&lock, FlockOperation::LockExclusive).context("waiting for another build of the guest image")?;

    let release = kernel(progress)?;
    build_programs(progress)?;
    let kernel_file = release.vmlinuz()?;
    let mut parts = initramfs(&release, INIT, &MODULES)?;
    for (program, file) in PROGRAMS.iter().zip(guest_programs()) {
        parts.push((format!("bin/{program}"), read(&file)?, 0o755));
    }
    let initrd = dir.join(format!("initramfs-{:016x}.cpio", key(&parts)));
    if !initrd.exists() {
        progress.tell(format_args!("building the guest's initramfs"));
        pack(&parts, &initrd)?;
    }
    Ok(Image { kernel: kernel_file, initrd })
}

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub(super) struct Release(PathBuf);

impl Release {
    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    pub(super) fn vmlinuz(&self) -> Result<PathBuf> {
        only_entry(&self.0.join("boot"), "vmlinuz-")
    }

    fn modules(&self) -> Result<PathBuf> {
        only_entry(&self.0.join("lib/modules"), "")
    }

    /// The files of the package that a guest's image is made of.
    pub(super) fn files_for_guests(&self) -> Result<Vec<PathBuf>> {
        let tree = self.modules()?;
        let modules = MODULES.iter().map(|module| tree.join("kernel").join(module)).filter(|file| file.exists());
        Ok([self.vmlinuz()?, tree.join("modules.builtin")].into_iter().chain(modules).collect())
    }
}

/// Debian's kernel for virtual machines: the one that is cached, or else the newest.
pub(super) fn kernel(progress: &Progress) -> Result<Release> {
    let dir = home().join("kernel");
    if dir.exists() {
        return Ok(Release(dir));
    }
    progress.tell(format_args!("fetching the guest's kernel"));
    let depends = output(Command::new("apt-cache").args(["depends", "--important", KERNEL_PACKAGE]));
    let depends = depends.with_context(|| format!("asking apt for {KERNEL_PACKAGE}"))?;
    let package =
        depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).filter(|name| !name.is_empty());
    let package = package.with_context(|| format!("apt knows no {KERNEL_PACKAGE}; run `apt-get update` (Debian)"))?;
    unpack(package, &dir)?;
    Ok(Release(dir))
}

/// Puts the files of a Debian package below `dir`, which must not be there.
pub(super) fn unpack(package: &str, dir: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(home())?;
    let download = output(Command::new("apt-get").args(["download", package]).current_dir(scratch.path()));
    download.with_context(|| format!("downloading {package}; `apt-get update` may help"))?;
    let archive = only_entry(scratch.path(), package)?;
    let tree = scratch.path().join("tree");
    let extract = output(Command::new("dpkg").arg("--extract").args([&archive, &tree]));
    extract.with_context(|| format!("unpacking {package}"))?;
    fs::rename(&tree, dir).with_context(|| format!("keeping {}", dir.display()))
}

/// Our programs for guests, static, in a target directory of their own so that they never wait for another build of the workspace.
/// On a machine that has been given the programs and no compiler they are there already.
fn build_programs(progress: &Progress) -> Result<()> {
    let target = home().join("load");
    let programs = guest_programs();
    if !programs.iter().all(|program| program.exists()) {
        progress.tell(format_args!("building the guest's programs"));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if programs.iter().all(|program| program.exists()) && ask(Command::new(&cargo).arg("--version")).is_none() {
        return Ok(());
    }
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--bins", "--release", "--target", TARGET, "--target-dir"]).arg(&target);
    command.args(PROGRAMS.iter().flat_map(|program| ["--package", program]));
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        // A guest keeps them in memory: nothing of theirs is to be in its way.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Cstrip=symbols");
    output(&mut command).with_context(|| format!("building {}", PROGRAMS.join(" and ")))?;
    Ok(())
}

/// The pacer as a guest runs it, built if it has changed.
pub(super) fn pacer(progress: &Progress) -> Result<PathBuf> {
    fs::create_dir_all(home()).with_context(|| format!("making {}", home().display()))?;
    build_programs(progress)?;
    let [_, pacer] = guest_programs();
    Ok(pacer)
}

/// Where our programs for guests are once they are built.
pub(super) fn guest_programs() -> [PathBuf; 2] {
    PROGRAMS.map(|program| home().join("load").join(TARGET).join("release").join(program))
}

/// A file of an initramfs: its path there, its bytes, its mode.
pub(super) type Part = (String, Vec<u8>, u32);

/// Busybox, `init`, and of `modules` those that are not built in, with a list of them in `modules/order`.
pub(super) fn initramfs(release: &Release, init: &str, modules: &[&str]) -> Result<Vec<Part>> {
    let busybox = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("busybox"))
        .find(|path| path.is_file())
        .context("no busybox on PATH; `apt-get install busybox-static`")?;
    let tree = release.modules()?;
    let built_in = String::from_utf8(read(&tree.join("modules.builtin"))?)?;
    let mut order = String::new();
    let mut parts =
        vec![("init".to_owned(), init.as_bytes().to_vec(), 0o755), ("bin/busybox".to_owned(), read(&busybox)?, 0o755)];
    for module in modules.iter().filter(|module| !built_in.contains(*module)) {
        let name = module.rsplit('/').next().unwrap_or(module);
        order += &format!("{name}\n");
        parts.push((format!("modules/{name}"), read(&tree.join("kernel").join(module))?, 0o644));
    }
    parts.push(("modules/order".to_owned(), order.into_bytes(), 0o644));
    Ok(parts)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// By what something is cached: equal inputs, equal key.
pub(super) fn key(inputs: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    hasher.finish()
}

/// Not compressed: an emulated CPU unpacks slower than an emulated machine is given a larger file.
pub(super) fn pack(parts: &[Part], initrd: &Path) -> Result<()> {
    let tree = tempfile::tempdir()?;
    for empty in ["bin", "dev", "modules", "proc", "sys"] {
        fs::create_dir(tree.path().join(empty))?;
    }
    for (name, bytes, mode) in parts {
        let file = tree.path().join(name);
        fs::write(&file, bytes)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    let new = initrd.with_extension("new");
    let script = "find . | cpio --quiet --create --format=newc --owner=+0:+0 > \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-euc", script, "sh"]).arg(&new).current_dir(tree.path());
    output(&mut command).context("packing the initramfs")?;
    fs::rename(&new, initrd).with_context(|| format!("keeping {}", initrd.display()))
}

/// The one entry of a directory whose name starts with `prefix`.
fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let starts = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(prefix));
    let found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(starts).collect();
    ensure!(found.len() == 1, "{} entries {prefix}* in {}, not one: remove it", found.len(), dir.display());
    Ok(found[0].clone())
}
