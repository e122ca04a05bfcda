//! Everything by which a lab could be noticed after its end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::lab::{Lab, Process};

/// What there was of a lab while it was up.
#[derive(Debug)]
pub(crate) struct Traces {
    name: String,
    processes: Vec<Process>,
    namespaces: BTreeSet<PathBuf>,
    dir: Option<PathBuf>,
}

impl Traces {
    pub(crate) fn of(lab: &Lab) -> Result<Self> {
        let processes = lab.processes()?;
        let namespaces = processes.iter().flat_map(|process| namespaces(&process.pid.to_string())).collect();
        let own: BTreeSet<PathBuf> = namespaces_of_this_process();
        let namespaces = &namespaces - &own;
        ensure!(!namespaces.is_empty(), "a lab has namespaces of its own");
        Ok(Traces { name: lab.name(), processes, namespaces, dir: Some(lab.dir().to_owned()) })
    }

    /// Of a lab that never came up: there is nothing to know but its name.
    pub(crate) fn of_name(name: &str) -> Self {
        Traces { name: name.to_owned(), processes: vec![], namespaces: BTreeSet::new(), dir: None }
    }

    /// Processes that run and places (host or network) that have groups.
    pub(crate) fn present(&self) -> usize {
        let places: BTreeSet<_> =
            groups(&self.name).iter().filter_map(|dir| dir.file_name().map(ToOwned::to_owned)).collect();
        self.processes.iter().filter(|process| process.is_alive()).count() + places.len()
    }

    pub(crate) fn ensure_gone(&self) -> Result<()> {
        let left: Vec<_> = self.processes.iter().filter(|process| process.is_alive()).collect();
        ensure!(left.is_empty(), "processes are left: {left:?}");
        let left = groups(&self.name);
        ensure!(left.is_empty(), "cgroups are left: {left:?}");
        let left = &namespaces_in_use() & &self.namespaces;
        ensure!(left.is_empty(), "namespaces are left: {left:?}");
        ensure!(self.dir.as_ref().is_none_or(|dir| !dir.exists()), "{:?} is left", self.dir);
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let run = format!("/lab/run/{}", self.name);
        let left: Vec<_> = mounts.lines().filter(|line| line.starts_with("lab-") || line.contains(&run)).collect();
        ensure!(left.is_empty(), "mounts are left: {left:?}");
        Ok(())
    }

    pub(crate) fn wait_until_gone(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.ensure_gone() {
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
                done => return done,
            }
        }
    }
}

/// All groups of the lab, wherever in the tree.
fn groups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    find(Path::new("/sys/fs/cgroup"), &format!("gnomon-{name}-"), &mut found);
    found
}

fn find(dir: &Path, prefix: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        } else {
            find(&entry.path(), prefix, found);
        }
    }
}

fn namespaces(pid: &str) -> Vec<PathBuf> {
    let link = |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    ["net", "mnt", "uts", "ipc", "cgroup"].into_iter().filter_map(link).collect()
}

fn namespaces_of_this_process() -> BTreeSet<PathBuf> {
    namespaces("self").into_iter().collect()
}

/// Namespaces by which a process lives that is in no lab: the kernel gives the number of a namespace that is gone to the
/// next one, which may be that of a lab of a test beside this one. Processes of this lab are looked for by their groups.
fn namespaces_in_use() -> BTreeSet<PathBuf> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let outside = |pid: &String| {
        pid.bytes().all(|byte| byte.is_ascii_digit())
            && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| !groups.contains("/gnomon-"))
    };
    pids.filter(outside).flat_map(|pid| namespaces(&pid)).collect()
}
