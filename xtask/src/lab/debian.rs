//! What boots Debian: a disk of Debian's own packages, its kernel, and an initramfs that knows the way to the disk.
//!
//! A disk is made once and cached by the hash of its [`Recipe`]. To have newer packages of the same names, remove it.

pub(super) mod guest;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::Progress;
use super::image::{self, Part, Release};
use super::machine::check_programs;
use crate::process::run_logged;

const MAKE: &str = include_str!("debian/disk.sh");
const START: &str = include_str!("debian/start.sh");
/// Programs that making a disk takes beyond those of every lab, and the Debian package of each.
const PROGRAMS: [(&str, &str); 6] = [
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("mkfs.ext4", "e2fsprogs"),
    ("tar", "tar"),
    ("chroot", "coreutils"),
    ("qemu-img", "qemu-utils"),
];

/// Files for QEMU.
#[derive(Debug, Clone)]
pub(super) struct Boot {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disk: PathBuf,
}

/// What a disk is made of.
pub(super) struct Recipe<'a> {
    /// For whoever waits: "the full lab's disk".
    pub(super) what: &'a str,
    /// What is on the disk, beside what these depend on.
    pub(super) packages: &'a [&'a str],
    /// Files to be put into the tree of packages.
    pub(super) files: Vec<Part>,
    /// Shell lines for what remains to be done in the tree `$root`.
    pub(super) furnish: &'a str,
    /// Drivers of what the disk is found by, in the order of their dependencies.
    pub(super) modules: &'a [&'a str],
    /// How long making it takes with a mirror near by, in seconds.
    pub(super) typical_s: u32,
}

/// Whether a disk can be made here; the error says what is missing.
pub(super) fn check_machine() -> Result<()> {
    check_programs(&PROGRAMS).context("the disk is made of Debian packages")
}

impl Recipe<'_> {
    /// The files in `cache`, made if the recipe has changed. One process at a time makes them, the others wait.
    pub(super) fn made(&self, cache: &Path, progress: &Progress) -> Result<Boot> {
        fs::create_dir_all(cache).with_context(|| format!("making {}", cache.display()))?;
        let lock = File::create(cache.join("lock")).with_context(|| format!("opening the lock of {}", self.what))?;
        flock(&lock, FlockOperation::LockExclusive)
            .with_context(|| format!("waiting for another build of {}", self.what))?;

        let release = image::kernel(progress)?;
        let kernel = release.vmlinuz()?;
        let parts = image::initramfs(&release, START, self.modules)?;
        let initrd = cache.join(format!("initramfs-{:016x}.cpio", image::key(&parts)));
        if !initrd.exists() {
            image::pack(&parts, &initrd)?;
        }
        let distribution = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let disk = cache.join(format!("disk-{:016x}.ext4", self.key(&kernel, &distribution)));
        if !disk.exists() {
            self.make(cache, &release, &disk)?;
        }
        Ok(Boot { kernel, initrd, disk })
    }

    fn key(&self, kernel: &Path, distribution: &str) -> u64 {
        image::key(&(self.packages, &self.files, self.furnish, MAKE, kernel.file_name(), distribution))
    }

    /// Everything happens in a scratch directory that goes away, and the disk appears under its name when it is whole.
    fn make(&self, cache: &Path, kernel: &Release, disk: &Path) -> Result<()> {
        let scratch = tempfile::tempdir_in(cache).context("making a scratch directory")?;
        write_tree(&self.files, &scratch.path().join("files"))?;
        fs::write(scratch.path().join("furnish.sh"), self.furnish)?;
        let new = scratch.path().join("disk");
        let mut command = Command::new("sh");
        command.args(["-c", MAKE, "sh"]).arg(scratch.path()).arg(kernel.dir()).arg(&new).args(self.packages);
        let what = format!("{}, made of Debian packages", self.what);
        let made = run_logged(command, &what, self.typical_s, &cache.join("disk.log"));
        made.context("`apt-get update` may help")?;
        // A lab that uses an older one has it open.
        for old in fs::read_dir(cache)?.flatten().map(|entry| entry.path()) {
            if old.extension().is_some_and(|kind| kind == "ext4") {
                fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        fs::rename(&new, disk).with_context(|| format!("keeping {}", disk.display()))
    }
}

/// Files with their directories, as they are to be on a disk.
fn write_tree(files: &[Part], tree: &Path) -> Result<()> {
    fs::create_dir_all(tree)?;
    for (name, bytes, mode) in files {
        let file = tree.join(name);
        fs::create_dir_all(file.parent().unwrap_or(tree))?;
        fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(files: Vec<Part>) -> Recipe<'static> {
        Recipe { what: "a disk", packages: &["dash"], files, furnish: "", modules: &[], typical_s: 1 }
    }

    #[test]
    fn a_disk_is_made_anew_when_a_file_on_it_has_changed() {
        let key = |bytes: &str, mode, distribution| {
            let files = vec![("usr/bin/x".to_owned(), bytes.as_bytes().to_vec(), mode)];
            recipe(files).key(Path::new("/boot/vmlinuz-6.1"), distribution)
        };
        assert_eq!(key("a", 0o755, "12"), key("a", 0o755, "12"));
        for changed in [key("b", 0o755, "12"), key("a", 0o644, "12"), key("a", 0o755, "13")] {
            assert_ne!(changed, key("a", 0o755, "12"));
        }
    }

    #[test]
    fn files_are_written_with_their_directories_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("files");
        write_tree(&[("usr/local/bin/x".to_owned(), b"1".to_vec(), 0o755)], &tree).unwrap();
        let file = tree.join("usr/local/bin/x");
        assert_eq!(fs::read(&file).unwrap(), b"1");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
