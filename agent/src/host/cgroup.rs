//! A domain's control groups: where they are, what they count, what they limit. Versions 1, 2 and hybrid hosts.
//!
//! libvirt puts QEMU's main thread in `DOMAIN/emulator` and each vCPU in `DOMAIN/vcpuN`. DOMAIN is
//! `/machine/qemu-1-web.libvirt-qemu` where libvirt manages the groups itself, and
//! `/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt` under systemd, where the *scope* carries the limits and the
//! `libvirt` group below it the threads. Both levels may hold a quota, so both are read.
//!
//! **Throttled** is the share of wall time (0..=1) that lies in bandwidth periods whose quota ran out: `nr_throttled` times the
//! period; of several groups (domain, single vCPUs) the worst. It is an upper bound of the time held back, since a hold
//! need not last to the end of its period. The kernel's own times (`throttled_time` in ns of version 1, `throttled_usec` of version 2) would be
//! finer but cannot be trusted: they are sums over CPUs, and where the threads are in groups below the limited one, as
//! libvirt puts them, Linux 6.18 (which throttles tasks one by one) counts a third or less of the time. How *long* threads were
//! held is in the run-queue wait that the scheduler probe measures.

mod counters;
mod faults;
mod layout;
mod pressure;
mod weight;

pub use counters::{Bandwidth, CgroupReading, ThrottleCounters, cpu_usage_ns};
pub use layout::{CgroupMounts, Membership};
pub use weight::CpuWeight;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a domain's counters are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainCgroup {
    /// The group whose CPU usage is the domain's: QEMU's threads and its vhost workers.
    usage: Option<Arc<Path>>,
    /// The groups whose quota limits the whole domain, outermost first.
    bandwidth: Vec<Arc<Path>>,
    /// Groups of single vCPUs or iothreads that have a quota of their own.
    limited_threads: Vec<Arc<Path>>,
    /// The groups whose block requests are the domain's, by the number of their inode, which is how the kernel knows them.
    block: Vec<u64>,
    /// The outermost group of the unified hierarchy, which has pressure stall information with or without controllers.
    unified: Option<Arc<Path>>,
}

impl DomainCgroup {
    /// Finds the domain's groups from its QEMU process's membership. `None` where libvirt made none for it (session mode, or
    /// `cgroup_controllers = []`): the groups the process is in then hold other processes too, and their counters are not the VM's.
    pub fn discover(mounts: &CgroupMounts, membership: &Membership) -> Option<Self> {
        let usage = membership.domain_dirs(mounts, "cpuacct").pop();
        let bandwidth = membership.domain_dirs(mounts, "cpu");
        let inode = |dir: PathBuf| std::fs::metadata(dir).map(|metadata| metadata.ino()).ok();
        let block = membership.domain_dirs(mounts, "blkio").into_iter().filter_map(inode).collect();
        let unified = membership.unified_domain_dirs(mounts).into_iter().next().map(Arc::from);
        if usage.is_none() && bandwidth.is_empty() {
            return None;
        }
        let limited_threads = bandwidth.last().map(|dir| limited_children(dir)).unwrap_or_default();
        Some(Self {
            usage: usage.map(Arc::from),
            bandwidth: bandwidth.into_iter().map(Arc::from).collect(),
            limited_threads,
            block,
            unified,
        })
    }

    /// The groups that the domain's block requests are charged to.
    pub fn block_ids(&self) -> &[u64] {
        &self.block
    }
}

/// The groups below `domain` that have a quota: libvirt's `vcpu_quota` or `iothread_quota`.
fn limited_children(domain: &Path) -> Vec<Arc<Path>> {
    let Ok(entries) = std::fs::read_dir(domain) else { return Vec::new() };
    let mut dirs: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|dir| dir.is_dir())
        .filter(|dir| Bandwidth::read(dir).is_ok_and(|bandwidth| bandwidth.quota_cores().is_some()))
        .collect();
    dirs.sort();
    dirs.into_iter().map(Arc::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    /// A tree of files under a temporary directory that stands for the mounted hierarchies.
    struct Tree(TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(dir)
        }

        /// `mountinfo` with each hierarchy mounted where the tree has it: (directory, root, type, options).
        fn mounts(&self, mounts: &[(&str, &str, &str, &str)]) -> CgroupMounts {
            let lines: Vec<String> = mounts
                .iter()
                .map(|(dir, root, kind, options)| {
                    format!(
                        "31 23 0:28 {root} {}/{dir} rw,nosuid shared:9 - {kind} cgroup rw,{options}",
                        self.0.path().display()
                    )
                })
                .collect();
            CgroupMounts::parse(&lines.join("\n"))
        }

        fn path(&self, relative: &str) -> PathBuf {
            self.0.path().join(relative)
        }
    }

    const V1_STAT: &str = "nr_periods 100\nnr_throttled 40\nthrottled_time 1\n";
    const V2_STAT: &str =
        "usage_usec 5000000\nuser_usec 1\nsystem_usec 1\nnr_periods 100\nnr_throttled 40\nthrottled_usec 1\n";
    const SCOPE: &str = "machine.slice/machine-qemu\\x2d1\\x2dweb.scope";

    #[test]
    fn version_1_without_systemd_takes_usage_and_quota_from_two_hierarchies() {
        let domain = "machine/qemu-1-web.libvirt-qemu";
        let tree = Tree::new(&[
            (&format!("cpuacct/{domain}/cpuacct.usage"), "5000000000\n"),
            (&format!("cpu/{domain}/cpu.cfs_quota_us"), "150000\n"),
            (&format!("cpu/{domain}/cpu.cfs_period_us"), "100000\n"),
            (&format!("cpu/{domain}/cpu.stat"), V1_STAT),
            (&format!("cpu/{domain}/vcpu0/cpu.cfs_quota_us"), "50000\n"),
            (&format!("cpu/{domain}/vcpu0/cpu.cfs_period_us"), "100000\n"),
            (&format!("cpu/{domain}/vcpu0/cpu.stat"), V1_STAT),
            (&format!("cpu/{domain}/vcpu1/cpu.cfs_quota_us"), "-1\n"),
            (&format!("cpu/{domain}/vcpu1/cpu.cfs_period_us"), "100000\n"),
            (&format!("cpu/{domain}/vcpu1/cpu.stat"), V1_STAT),
        ]);
        let mounts = tree.mounts(&[("cpu", "/", "cgroup", "cpu"), ("cpuacct", "/", "cgroup", "cpuacct")]);
        let membership = Membership::parse(&format!("2:cpuacct:/{domain}/emulator\n1:cpu:/{domain}/emulator\n0::/\n"));
        let cgroup = DomainCgroup::discover(&mounts, &membership).unwrap();
        let reading = cgroup.read(77).unwrap();
        assert_eq!(reading.taken_ns, 77);
        assert_eq!(reading.usage_ns, Some(5_000_000_000));
        assert_eq!(reading.quota_cores, Some(1.5));
        let throttled: Vec<_> =
            reading.throttles.iter().map(|(dir, t)| (dir.to_path_buf(), t.throttled_periods)).collect();
        let domain = tree.path(&format!("cpu/{domain}"));
        assert_eq!(throttled, [(domain.clone(), 40), (domain.join("vcpu0"), 40)]);
    }

    #[test]
    fn version_2_under_systemd_finds_the_limit_on_the_scope() {
        let tree = Tree::new(&[
            (&format!("cg/{SCOPE}/cpu.max"), "50000 100000\n"),
            (&format!("cg/{SCOPE}/cpu.stat"), V2_STAT),
            (&format!("cg/{SCOPE}/libvirt/cpu.max"), "max 100000\n"),
            (&format!("cg/{SCOPE}/libvirt/cpu.stat"), V2_STAT),
        ]);
        let mounts = tree.mounts(&[("cg", "/", "cgroup2", "nsdelegate")]);
        let membership = Membership::parse(&format!("0::/{SCOPE}/libvirt/emulator\n"));
        let reading = DomainCgroup::discover(&mounts, &membership).unwrap().read(0).unwrap();
        assert_eq!(reading.usage_ns, Some(5_000_000_000));
        assert_eq!(reading.quota_cores, Some(0.5));
        assert_eq!(reading.throttles.len(), 2);
        assert_eq!(reading.throttles[0].1.period_ns, 100_000_000);
    }

    #[test]
    fn version_2_without_the_cpu_controller_still_tells_usage() {
        let tree = Tree::new(&[("cg/machine/qemu-1-web.libvirt-qemu/cpu.stat", "usage_usec 9\nuser_usec 9\n")]);
        let mounts = tree.mounts(&[("cg", "/", "cgroup2", "nsdelegate")]);
        let membership = Membership::parse("0::/machine/qemu-1-web.libvirt-qemu/emulator\n");
        let reading = DomainCgroup::discover(&mounts, &membership).unwrap().read(0).unwrap();
        assert_eq!((reading.usage_ns, reading.quota_cores), (Some(9_000), None));
        assert!(reading.throttles.is_empty());
    }

    #[test]
    fn in_a_cgroup_namespace_paths_are_relative_to_its_root() {
        let domain = "machine/qemu-1-web.libvirt-qemu";
        let tree = Tree::new(&[(&format!("cpuacct/{domain}/cpuacct.usage"), "7\n")]);
        // Mount and process seen from within the namespace ...
        let inside = tree.mounts(&[("cpuacct", "/", "cgroup", "cpuacct")]);
        let membership = Membership::parse(&format!("2:cpuacct:/{domain}/emulator\n"));
        assert_eq!(DomainCgroup::discover(&inside, &membership).unwrap().read(0).unwrap().usage_ns, Some(7));
        // ... the same mount and process seen by an agent outside it ...
        let outside = tree.mounts(&[("cpuacct", "/host-1", "cgroup", "cpuacct")]);
        let membership = Membership::parse(&format!("2:cpuacct:/host-1/{domain}/emulator\n"));
        assert_eq!(DomainCgroup::discover(&outside, &membership).unwrap().read(0).unwrap().usage_ns, Some(7));
        // ... and a process that is outside our namespace, whose directory the mount does not show.
        let membership = Membership::parse(&format!("2:cpuacct:/../host-2/{domain}/emulator\n"));
        assert_eq!(DomainCgroup::discover(&inside, &membership), None);
    }

    #[test]
    fn a_process_in_a_group_that_is_not_its_domains_own_has_no_counters() {
        let tree = Tree::new(&[("cpuacct/system.slice/libvirtd.service/cpuacct.usage", "7\n")]);
        let mounts = tree.mounts(&[("cpuacct", "/", "cgroup", "cpuacct")]);
        let membership = Membership::parse("2:cpuacct:/system.slice/libvirtd.service\n");
        assert_eq!(DomainCgroup::discover(&mounts, &membership), None);
    }

    #[test]
    fn a_vanished_domain_is_gone_and_a_malformed_file_is_an_error() {
        let domain = "machine/qemu-1-web.libvirt-qemu";
        let tree = Tree::new(&[(&format!("cpuacct/{domain}/cpuacct.usage"), "many\n")]);
        let mounts = tree.mounts(&[("cpuacct", "/", "cgroup", "cpuacct")]);
        let membership = Membership::parse(&format!("2:cpuacct:/{domain}/emulator\n"));
        let cgroup = DomainCgroup::discover(&mounts, &membership).unwrap();
        assert!(!cgroup.read(0).unwrap_err().is_gone());
        fs::remove_dir_all(tree.path(&format!("cpuacct/{domain}"))).unwrap();
        assert!(cgroup.read(0).unwrap_err().is_gone());
    }
}
