//! What the lab needs of the machine, and where it keeps its files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::cgroup::Hierarchies;

/// Programs that the lab calls, and the Debian package of each.
const PROGRAMS: [(&str, &str); 9] = [
    ("libvirtd", "libvirt-daemon"),
    ("virsh", "libvirt-clients"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("timeout", "coreutils"),
];

/// Whether a lab can be made here; the error says what is missing. For tests that skip themselves.
pub fn check_machine() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the lab needs root: namespaces, mounts and cgroups");
    check_programs(&PROGRAMS)?;
    for tree in ["/etc", "/run", "/var"] {
        ensure!(!home().starts_with(tree), "{} is under {tree}, which is private to each lab host", home().display());
    }
    Hierarchies::of_this_process().map(|_| ())
}

/// Whether all of these programs, each with its Debian package, are there.
pub(super) fn check_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| !on_path(program)).collect::<Vec<_>>();
    if !missing.is_empty() {
        let list =
            |of: fn(&(&str, &str)) -> String| missing.iter().map(|entry| of(entry)).collect::<Vec<_>>().join(" ");
        bail!(
            "missing programs: {}; `apt-get install {}`",
            list(|(program, _)| (*program).to_owned()),
            list(|(_, package)| (*package).to_owned())
        );
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// All files of all labs: caches, locks and running labs.
pub(crate) fn home() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let target = fs::canonicalize(&target).unwrap_or(target);
    target.join("lab")
}
