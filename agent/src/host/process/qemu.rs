//! Which process is a VM's QEMU.
//!
//! libvirt has no call for it. Two witnesses do: the pid file that libvirt writes (root only, exact, but its directory
//! depends on the driver's mode and mount namespace) and the `-uuid` that libvirt puts on QEMU's command line (found anywhere,
//! but any local process can claim one, and during a migration between two libvirts of one kernel there are two). So the pid
//! file is asked first and believed only if its process carries the right UUID (which also unmasks a stale file whose pid
//! was used again); the scan of `/proc` is the fall-back and its answer counts only if it is the only one.

use super::super::cgroup::Membership;
use super::super::kernel_file::{ReadError, read_text};
use super::{Proc, ThreadRole, VmThread};
use gnomon_common::wire::VmId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A VM's QEMU process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuProcess {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: distinguishes it from a later process of the same id.
    pub start_ticks: u64,
    /// Its threads, ascending by id. No part of a recording: nothing is made of them.
    #[serde(skip)]
    pub threads: Vec<VmThread>,
    /// vhost workers that are kernel threads of their own (kernels before 6.4), ascending.
    pub vhost_pids: Vec<u32>,
}

impl QemuProcess {
    /// The thread groups whose CPU time is the VM's: QEMU and its vhost kernel threads.
    pub fn thread_groups(&self) -> Vec<u32> {
        std::iter::once(self.pid).chain(self.vhost_pids.iter().copied()).collect()
    }

    /// How many threads of each role it has.
    pub fn roles(&self) -> BTreeMap<&'static str, usize> {
        let mut roles = BTreeMap::new();
        for role in self.threads.iter().map(|thread| thread.role.name()).chain(self.vhost_pids.iter().map(|_| "vhost"))
        {
            *roles.entry(role).or_default() += 1;
        }
        roles
    }
}

/// One look at the host's processes: what is expensive to find is found at most once and serves all VMs.
pub struct ProcessScan<'a> {
    proc: &'a Proc,
    pid_dir: &'a Path,
    claims: Option<BTreeMap<VmId, Vec<u32>>>,
    vhosts: Vec<(u32, u32)>,
}

impl<'a> ProcessScan<'a> {
    /// Starts a scan. `pid_dir` is where libvirt's QEMU driver keeps its pid files.
    pub fn new(proc: &'a Proc, pid_dir: &'a Path) -> Self {
        let vhosts =
            if proc.may_have_vhost_kthreads() { proc.vhost_kthreads().unwrap_or_default() } else { Vec::new() };
        Self { proc, pid_dir, claims: None, vhosts }
    }

    /// The QEMU process of a VM, if there is exactly one.
    pub fn find(&mut self, vm: VmId, name: &str) -> Result<Option<QemuProcess>, ReadError> {
        let pid = self.by_pid_file(vm, name).or_else(|| self.by_command_line(vm));
        match pid.map(|pid| self.describe(pid)) {
            None => Ok(None),
            Some(Ok(process)) => Ok(Some(process)),
            Some(Err(error)) if error.is_gone() => Ok(None),
            Some(Err(error)) => Err(error),
        }
    }

    fn by_pid_file(&self, vm: VmId, name: &str) -> Option<u32> {
        // A domain's name cannot hold a slash, but this one came over a socket.
        if name.contains('/') {
            return None;
        }
        let pid = read_text(&self.pid_dir.join(format!("{name}.pid"))).ok()?.trim().parse().ok()?;
        (claimed_vm(&self.proc.arguments(pid).ok()?)? == vm).then_some(pid)
    }

    fn by_command_line(&mut self, vm: VmId) -> Option<u32> {
        let proc = self.proc;
        let claims = self.claims.get_or_insert_with(|| {
            let mut claims: BTreeMap<VmId, Vec<u32>> = BTreeMap::new();
            for pid in proc.pids().unwrap_or_default() {
                if let Some(vm) = proc.arguments(pid).ok().as_deref().and_then(claimed_vm) {
                    claims.entry(vm).or_default().push(pid);
                }
            }
            claims
        });
        match claims.get(&vm)?.as_slice() {
            [pid] => Some(*pid),
            several => {
                tracing::warn!(%vm, pids = ?several, "several processes claim this VM: measuring none; check the pid file directory");
                None
            }
        }
    }

    fn describe(&self, pid: u32) -> Result<QemuProcess, ReadError> {
        let stat = self.proc.stat(pid)?;
        let mut threads = Vec::new();
        for tid in self.proc.tids(pid)? {
            if let Some(role) = self.role(pid, tid, &stat.comm) {
                threads.push(VmThread { tid, role });
            }
        }
        let mut vhost_pids: Vec<u32> = self
            .vhosts
            .iter()
            .filter(|(_, owner)| threads.iter().any(|thread| thread.tid == *owner))
            .map(|(worker, _)| *worker)
            .collect();
        vhost_pids.sort_unstable();
        Ok(QemuProcess { pid, start_ticks: stat.start_ticks, threads, vhost_pids })
    }

    /// A thread's role: by its name, else by libvirt's cgroup for it; `None` if it has exited meanwhile.
    fn role(&self, pid: u32, tid: u32, process_name: &str) -> Option<ThreadRole> {
        if tid == pid {
            return Some(ThreadRole::Emulator);
        }
        let name = self.proc.thread_name(pid, tid).ok()?;
        if let Some(role) = ThreadRole::from_name(&name, process_name) {
            return Some(role);
        }
        let groups = Membership::read(&self.proc.path(format!("{pid}/task/{tid}/cgroup"))).ok()?;
        Some(groups.leaves().find_map(ThreadRole::from_group).unwrap_or(ThreadRole::Worker))
    }
}

/// The UUID behind `-uuid`.
fn claimed_vm(arguments: &[String]) -> Option<VmId> {
    let at = arguments.iter().position(|argument| argument == "-uuid")?;
    arguments.get(at + 1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

    struct Host {
        dir: TempDir,
    }

    impl Host {
        fn new(kernel: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("proc/sys/kernel")).unwrap();
            fs::create_dir_all(dir.path().join("run")).unwrap();
            fs::write(dir.path().join("proc/sys/kernel/osrelease"), kernel).unwrap();
            Self { dir }
        }

        fn process(&self, pid: u32, comm: &str, parent: u32, arguments: &[&str], threads: &[(u32, &str, &str)]) {
            let dir = self.dir.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&dir).unwrap();
            let stat = format!("{pid} ({comm}) S {parent} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5{pid} 0 0");
            fs::write(dir.join("stat"), stat).unwrap();
            fs::write(dir.join("cmdline"), arguments.join("\0") + "\0").unwrap();
            for (tid, comm, cgroup) in threads {
                let task = dir.join(format!("task/{tid}"));
                fs::create_dir_all(&task).unwrap();
                fs::write(task.join("comm"), format!("{comm}\n")).unwrap();
                fs::write(task.join("cgroup"), cgroup).unwrap();
            }
        }

        fn find(&self) -> Option<QemuProcess> {
            let (proc, run) = (Proc::at(self.dir.path().join("proc")), self.dir.path().join("run"));
            ProcessScan::new(&proc, &run).find(UUID.parse().unwrap(), "web").unwrap()
        }
    }

    const QEMU: &[&str] = &["/usr/bin/qemu-system-x86_64", "-name", "guest=web", "-uuid", UUID];

    #[test]
    fn the_pid_file_decides_between_two_processes_of_one_uuid() {
        let host = Host::new("6.18.0");
        host.process(10, "qemu", 1, QEMU, &[(10, "qemu", "")]);
        host.process(11, "qemu", 1, QEMU, &[(11, "qemu", "")]);
        assert_eq!(host.find(), None, "an ambiguous scan must not guess");
        fs::write(host.dir.path().join("run/web.pid"), "11\n").unwrap();
        assert_eq!(host.find().unwrap().pid, 11);
    }

    #[test]
    fn a_stale_pid_file_whose_pid_was_used_again_is_not_believed() {
        let host = Host::new("6.18.0");
        host.process(10, "qemu", 1, QEMU, &[(10, "qemu", "")]);
        host.process(12, "bash", 1, &["bash"], &[(12, "bash", "")]);
        fs::write(host.dir.path().join("run/web.pid"), "12").unwrap();
        assert_eq!(host.find().unwrap().pid, 10);
    }

    #[test]
    fn threads_get_roles_by_name_and_else_by_cgroup() {
        let host = Host::new("6.18.0");
        let threads = [
            (20, "qemu", ""),
            (21, "CPU 1/KVM", ""),
            (22, "qemu", "1:cpu:/machine/qemu-1-web.libvirt-qemu/vcpu3\n"),
            (23, "vhost-20", ""),
            (24, "qemu", "1:cpu:/machine/qemu-1-web.libvirt-qemu/emulator\n"),
        ];
        host.process(20, "qemu", 1, QEMU, &threads);
        let process = host.find().unwrap();
        let roles: Vec<_> = process.threads.iter().map(|thread| thread.role.to_string()).collect();
        assert_eq!(roles, ["emulator", "vcpu1", "vcpu3", "vhost", "worker"]);
        assert_eq!(process.start_ticks, 520);
        assert_eq!(process.thread_groups(), [20]);
    }

    #[test]
    fn vhost_kernel_threads_of_old_kernels_belong_to_their_owner_only() {
        let host = Host::new("6.1.0-28-amd64");
        host.process(20, "qemu", 1, QEMU, &[(20, "qemu", "")]);
        host.process(30, "vhost-20", 2, &[], &[]);
        host.process(31, "vhost-99", 2, &[], &[]);
        host.process(32, "vhost-20", 1, &[], &[]);
        assert_eq!(host.find().unwrap().thread_groups(), [20, 30]);
    }
}
