//! A shadow's files: all in one folder that is named by its UUID, so that what belongs to it is known by that alone.

use super::definition::{SCRATCH_FILE, layer_file};
use crate::config::ShadowConfig;
use gnomon_common::wire::{Base, Blueprint, Boot, DiskBlueprint, DiskCopy, Unshadowable, VmId};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Size of the disk that the pacer reads and writes, in bytes: more than a guest of a shadow's size caches.
const SCRATCH_BYTES: u64 = 256 << 20;

/// QEMU runs as another user, who must find the files in a folder and not list it; what a file says is its owner's alone.
const FOLDER_MODE: u32 = 0o711;
const FILE_MODE: u32 = 0o600;

/// How long `qemu-img` may take for an empty layer, which it writes in milliseconds.
const LAYER_MAX: Duration = Duration::from_secs(20);

/// The files of all shadows.
#[derive(Clone, Debug)]
pub(super) struct Files {
    config: ShadowConfig,
}

impl Files {
    pub(super) fn new(config: ShadowConfig) -> Self {
        Self { config }
    }

    /// The folder of one.
    pub(super) fn folder(&self, vm: VmId) -> PathBuf {
        self.config.directory.join(vm.0.hyphenated().to_string())
    }

    /// A file of one that is not in its folder, and outlives that.
    pub(super) fn beside(&self, vm: VmId, suffix: &str) -> PathBuf {
        self.config.directory.join(format!("{}{suffix}", vm.0.hyphenated()))
    }

    /// All files of that kind.
    pub(super) fn all_beside(&self, suffix: &str) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.config.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            all.extend(entry.file_name().to_string_lossy().ends_with(suffix).then(|| entry.path()));
        }
        Ok(all)
    }

    /// Whether it has one.
    pub(super) fn has(&self, vm: VmId) -> Result<bool> {
        self.folder(vm).try_exists()
    }

    /// Whether all that a shadow is made from may be used here, and is here.
    pub(super) fn check(&self, shadow: VmId, blueprint: &Blueprint) -> std::result::Result<(), Unshadowable> {
        let is_taken = |path: &Path| self.config.is_image_path(path) || self.config.is_received(shadow, path);
        let refused = |copy: &DiskCopy| !is_taken(Path::new(&copy.path));
        let of_copy = |disk: &&DiskBlueprint| matches!(&disk.base, Base::Copied(copy) if refused(copy));
        if let Some(disk) = blueprint.disks.iter().find(of_copy) {
            // This host takes no copies from there.
            return Err(Unshadowable::NoBase(disk.device.clone()));
        }
        for path in needed(blueprint)? {
            if !is_taken(Path::new(path)) {
                return Err(Unshadowable::Definition(format!("{path} is not below shadow.image_paths of this host")));
            }
            // What cannot be looked at may still be there: libvirt, whose rights are wider, finds out.
            if matches!(Path::new(path).try_exists(), Ok(false)) {
                return Err(Unshadowable::Missing(path.to_owned()));
            }
        }
        Ok(())
    }

    /// Makes them: an empty layer on the image of each disk, and the scratch disk. Bases are not opened, and no other file is.
    pub(super) fn make(&self, vm: VmId, blueprint: &Blueprint) -> Result<()> {
        self.remove(vm)?;
        let folder = self.folder(vm);
        make_folder(&self.config.directory)?;
        make_folder(&folder)?;
        for disk in &blueprint.disks {
            layer(disk, &folder.join(layer_file(&disk.device)))?;
        }
        let scratch = folder.join(SCRATCH_FILE);
        let scratch = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(scratch)?;
        scratch.set_len(SCRATCH_BYTES)?;
        File::open(&folder)?.sync_all()
    }

    /// Removes them, if there are any.
    pub(super) fn remove(&self, vm: VmId) -> Result<()> {
        remove_folder(&self.folder(vm)).map(drop)
    }

    /// Whose folders there are.
    pub(super) fn all(&self) -> Result<Vec<VmId>> {
        folders(&self.config.directory)
    }
}

/// The files of the host that a shadow needs, the first disk without a base being in the way.
fn needed(blueprint: &Blueprint) -> std::result::Result<Vec<&str>, Unshadowable> {
    let mut needed = match &blueprint.boot {
        Boot::Bios => Vec::new(),
        Boot::Uefi { loader, template } => vec![Some(loader), template.as_ref()],
        Boot::Kernel { kernel, initrd, .. } => vec![Some(kernel), initrd.as_ref()],
    };
    for disk in &blueprint.disks {
        match &disk.base {
            Base::Image { path, format } if matches!(format.as_str(), "raw" | "qcow2") && disk.size_bytes > 0 => {
                needed.push(Some(path));
            }
            Base::Image { format, .. } => {
                let why =
                    format!("its disk {} of {} bytes on an image of format {format:?}", disk.device, disk.size_bytes);
                return Err(Unshadowable::Definition(why));
            }
            Base::Copied(copy) if disk.size_bytes > 0 => needed.push(Some(&copy.path)),
            Base::Copied(_) => {
                return Err(Unshadowable::Definition(format!("its disk {} without a size", disk.device)));
            }
            Base::None | Base::Copyable => return Err(Unshadowable::NoBase(disk.device.clone())),
        }
    }
    Ok(needed.into_iter().flatten().map(String::as_str).collect())
}

/// An empty layer. With its size and format given, `-u` keeps `qemu-img` from opening the base.
fn layer(disk: &DiskBlueprint, file: &Path) -> Result<()> {
    let (path, format) = match &disk.base {
        Base::Image { path, format } => (path, format.as_str()),
        Base::Copied(copy) => (&copy.path, "qcow2"),
        Base::None | Base::Copyable => return Err(Error::other("a disk without a base has no layer")),
    };
    create(&["-u", "-b", path, "-F", format], file, disk.size_bytes)
}

/// An empty qcow2 file of this size, for its owner alone.
pub(super) fn create(options: &[&str], file: &Path, size_bytes: u64) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(file).arg(size_bytes.to_string());
    run(command)?;
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(FILE_MODE))
}

/// A folder that QEMU's user can search, and nobody else can list.
pub(super) fn make_folder(folder: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    // The mask of the agent's unit would take what QEMU needs from it.
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(FOLDER_MODE))
}

/// The folders in a directory that are named by a UUID as ours are. What is not is none of ours.
pub(super) fn folders(directory: &Path) -> Result<Vec<VmId>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| Some((name, name.parse::<Uuid>().ok()?)));
        all.extend(id.filter(|(name, id)| id.hyphenated().to_string() == *name).map(|(_, id)| VmId(id)));
    }
    Ok(all)
}

/// Removes a folder, if there is one. Returns whether there was.
pub(super) fn remove_folder(folder: &Path) -> Result<bool> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        removed => removed.map(|()| true),
    }
}

fn run(mut command: Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| Error::new(error.kind(), format!("starting qemu-img (qemu-utils): {error}")))?;
    let end = Instant::now() + LAYER_MAX;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= end => {
                child.kill()?;
                child.wait()?;
                return Err(Error::new(ErrorKind::TimedOut, format!("qemu-img took over {} s", LAYER_MAX.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    Err(Error::other(format!("qemu-img: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actuate::shadow::bare_blueprint as blueprint;
    use std::os::unix::fs::PermissionsExt;

    fn disk(base: Base) -> DiskBlueprint {
        DiskBlueprint { device: "vda".into(), bus: "virtio".into(), size_bytes: 1 << 20, base }
    }

    fn files(folder: &Path) -> Files {
        let (directory, image_paths) = (folder.join("shadows"), vec![folder.join("images")]);
        Files::new(ShadowConfig { directory, image_paths, ..ShadowConfig::default() })
    }

    #[test]
    fn what_is_made_lies_in_one_folder_and_is_gone_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (files, vm) = (files(folder.path()), VmId(Uuid::from_u128(7)));
        assert!(files.all().unwrap().is_empty());
        files.make(vm, &blueprint(Vec::new())).unwrap();
        std::fs::create_dir(folder.path().join("shadows/somebody's")).unwrap();
        let scratch = files.folder(vm).join(SCRATCH_FILE);
        assert_eq!(scratch.metadata().unwrap().len(), SCRATCH_BYTES);
        assert_eq!(scratch.metadata().unwrap().permissions().mode() & 0o777, FILE_MODE);
        assert_eq!(files.folder(vm).metadata().unwrap().permissions().mode() & 0o777, FOLDER_MODE);
        assert_eq!((files.all().unwrap(), files.has(vm).unwrap()), (vec![vm], true));
        // Again is as once, and so is removing.
        files.make(vm, &blueprint(Vec::new())).unwrap();
        files.remove(vm).unwrap();
        files.remove(vm).unwrap();
        assert_eq!((files.all().unwrap(), files.has(vm).unwrap()), (vec![], false));
    }

    #[test]
    fn what_is_missing_or_may_not_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let check = |base| files.check(VmId(Uuid::from_u128(7)), &blueprint(vec![disk(base)]));
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let image = |name: &str, format: &str| Base::Image { path: path(name), format: format.to_owned() };
        assert_eq!(check(Base::None), Err(Unshadowable::NoBase("vda".into())));
        assert_eq!(check(image("images/a.raw", "raw")), Err(Unshadowable::Missing(path("images/a.raw"))));
        assert!(matches!(check(image("secret", "raw")), Err(Unshadowable::Definition(_))));
        std::fs::create_dir(folder.path().join("images")).unwrap();
        std::fs::write(folder.path().join("images/a.raw"), [0]).unwrap();
        assert_eq!(check(image("images/a.raw", "raw")), Ok(()));
        assert!(matches!(check(image("images/a.raw", "vmdk")), Err(Unshadowable::Definition(_))));
        let copied = |name: &str| Base::Copied(DiskCopy { path: path(name), bytes: 1, sha256: String::new() });
        assert_eq!(check(copied("images/a.raw")), Ok(()));
        assert_eq!(check(copied("secret")), Err(Unshadowable::NoBase("vda".into())));
        assert_eq!(check(Base::Copyable), Err(Unshadowable::NoBase("vda".into())));
        let initrd = Some(path("images/i"));
        let boot = Boot::Kernel { kernel: path("images/a.raw"), initrd, command_line: String::new() };
        let kernel = Blueprint { boot, ..blueprint(Vec::new()) };
        assert_eq!(files.check(VmId(Uuid::from_u128(7)), &kernel), Err(Unshadowable::Missing(path("images/i"))));
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no room >&2; exit 1"]);
        assert_eq!(run(command).unwrap_err().to_string(), "qemu-img: no room");
        run(Command::new("true")).unwrap();
    }
}
