//! The cgroups of a lab: children of the groups that the lab itself was started in, in the hierarchies that libvirt
//! uses, named `gnomon-LAB-PLACE`. No group that the lab has not made is ever written to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What libvirt is told to use (`cgroup_controllers` in qemu.conf).
pub(crate) const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "cpuset", "blkio", "memory"];
/// Child of a host's group in which libvirt puts its guests; libvirt's own name for it.
pub(crate) const GUESTS: &str = "machine";
/// Child of a place's group for its daemons: libvirtd and agent on a host, the brain in its network.
pub(crate) const DAEMONS: &str = "system";
/// CFS period of the capacity; the kernel's default.
const CAPACITY_PERIOD_US: u32 = 100_000;

/// A mounted hierarchy and the group in it that the lab's groups become children of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    /// Controllers, as mount options want them: `cpu`, or `cpu,cpuacct` where they share a hierarchy. Empty: cgroup2.
    pub(crate) controllers: String,
    /// Where it is mounted, relative to /sys/fs/cgroup on every distribution.
    pub(crate) mount_point: PathBuf,
    /// The group of this process.
    own: PathBuf,
}

/// The hierarchies of this machine that a lab uses, the unified one first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    /// Finds the hierarchies and the groups of this process in them.
    pub(crate) fn of_this_process() -> Result<Self> {
        Self::parse(
            &fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?,
            &fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?,
        )
    }

    /// `mountinfo` and `cgroup` as in proc(5) and cgroups(7).
    fn parse(mountinfo: &str, cgroup: &str) -> Result<Self> {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let mount: Vec<&str> = mount.split(' ').collect();
            let filesystem: Vec<&str> = filesystem.split(' ').collect();
            let ([_, _, _, root, mount_point, ..], [kind, _, options, ..]) = (&mount[..], &filesystem[..]) else {
                continue;
            };
            let controllers: Vec<&str> = match *kind {
                "cgroup2" => vec![],
                "cgroup" => options.split(',').filter(|option| CONTROLLERS.contains(option)).collect(),
                _ => continue,
            };
            if *kind == "cgroup" && controllers.is_empty() {
                continue;
            }
            let Some(path) = cgroup.lines().find_map(|line| own_path(line, controllers.first().copied())) else {
                continue;
            };
            let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path));
            let below = below.strip_prefix("/").unwrap_or(below);
            let hierarchy = Hierarchy {
                controllers: controllers.join(","),
                own: Path::new(mount_point).join(below),
                mount_point: PathBuf::from(mount_point),
            };
            // The same hierarchy may be mounted several times; the first mount is the usual place.
            if !found.iter().any(|other| other.controllers == hierarchy.controllers) {
                found.push(hierarchy);
            }
        }
        found.sort_by_key(|hierarchy| !hierarchy.controllers.is_empty());
        let hierarchies = Hierarchies(found);
        if hierarchies.0.first().is_none_or(|first| !first.controllers.is_empty()) {
            bail!("no cgroup2 hierarchy is mounted; the lab needs one (with cgroup.kill, Linux 5.14) for its way down");
        }
        for controller in CONTROLLERS {
            if !hierarchies.0.iter().any(|hierarchy| hierarchy.has(controller)) {
                bail!(
                    "no cgroup v1 hierarchy with the controller {controller} is mounted; the lab needs the v1 controllers {CONTROLLERS:?}"
                );
            }
        }
        Ok(hierarchies)
    }

    /// The group `name` in every hierarchy (`Span::Host`) or in the unified one only.
    pub(crate) fn group(&self, name: &str, span: Span) -> Group {
        let hierarchies = self.0.iter().filter(|hierarchy| span == Span::Host || hierarchy.controllers.is_empty());
        Group { dirs: hierarchies.map(|hierarchy| (hierarchy.clone(), hierarchy.own.join(name))).collect() }
    }

    /// Shell patterns of the groups whose name matches `name`, one a hierarchy.
    pub(crate) fn patterns(&self, name: &str) -> Vec<String> {
        self.0.iter().map(|hierarchy| hierarchy.own.join(name).to_string_lossy().into_owned()).collect()
    }
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|own| own == controller)
    }
}

/// `line` is `ID:CONTROLLERS:PATH`; the unified hierarchy has id 0 and no controllers.
fn own_path<'a>(line: &'a str, controller: Option<&str>) -> Option<&'a str> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let matches = match controller {
        Some(controller) => controllers.split(',').any(|own| own == controller),
        None => id == "0" && controllers.is_empty(),
    };
    matches.then_some(path)
}

/// In which hierarchies a place has groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// All: the place has limits and accounts of its own.
    Host,
    /// The unified hierarchy: the place only needs a way down.
    Unified,
}

/// One group of the lab: the directory of the same name in each of its hierarchies, the unified one first.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    dirs: Vec<(Hierarchy, PathBuf)>,
}

impl Group {
    /// Makes the group and its parts. Directories that are there stay as they are.
    pub(crate) fn create(&self, parts: &[&str], cpus: Option<&str>, capacity_cores: Option<f64>) -> Result<()> {
        for (hierarchy, dir) in &self.dirs {
            for dir in [dir.clone()].into_iter().chain(parts.iter().map(|part| dir.join(part))) {
                fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
                if hierarchy.has("cpuset") {
                    inherit_cpuset(&dir, cpus)?;
                }
            }
            if let (true, Some(cores)) = (hierarchy.has("cpu"), capacity_cores) {
                let quota_us = (cores * f64::from(CAPACITY_PERIOD_US)).round();
                write(&dir.join(GUESTS).join("cpu.cfs_period_us"), &CAPACITY_PERIOD_US.to_string())?;
                write(&dir.join(GUESTS).join("cpu.cfs_quota_us"), &quota_us.to_string())?;
            }
        }
        Ok(())
    }

    pub(crate) fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.dirs.iter().map(|(_, dir)| dir)
    }

    /// Hierarchies of the group, as pairs of mount point and controllers.
    pub(crate) fn hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        self.dirs.iter().map(|(hierarchy, _)| hierarchy)
    }

    pub(crate) fn unified(&self) -> &Path {
        &self.dirs[0].1
    }

    /// The directory in the hierarchy of `controller`.
    pub(crate) fn dir(&self, controller: &str) -> Option<&Path> {
        self.dirs.iter().find(|(hierarchy, _)| hierarchy.has(controller)).map(|(_, dir)| dir.as_path())
    }
}

/// A new cpuset group is empty and takes no process before it has CPUs and memory nodes.
fn inherit_cpuset(dir: &Path, cpus: Option<&str>) -> Result<()> {
    let parent = dir.parent().context("a cpuset group without a parent")?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let inherited = fs::read_to_string(parent.join(file))
            .with_context(|| format!("reading {}", parent.join(file).display()))?;
        let value = cpus.filter(|_| file == "cpuset.cpus").unwrap_or(inherited.trim());
        write(&dir.join(file), value)?;
    }
    Ok(())
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("writing {value:?} to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 20 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
32 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
33 30 0:28 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
34 30 0:29 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
36 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
37 30 0:27 / /other/cpuset rw - cgroup cgroup rw,cpuset
";
    const OWN: &str = "5:cpuacct,cpu:/a\n4:cpuset:/\n3:blkio:/\n2:memory:/box/own\n1:name=systemd:/s\n0::/u\n";

    #[test]
    fn groups_are_children_of_the_groups_of_this_process() {
        let group = Hierarchies::parse(V1, OWN).unwrap().group("gnomon-x-h1", Span::Host);
        assert_eq!(group.unified(), Path::new("/sys/fs/cgroup/unified/u/gnomon-x-h1"));
        let dir = |controller| group.dir(controller).unwrap().to_str().unwrap();
        assert_eq!(dir("cpu"), "/sys/fs/cgroup/cpu,cpuacct/a/gnomon-x-h1");
        assert_eq!(dir("cpuacct"), dir("cpu"));
        assert_eq!(dir("memory"), "/sys/fs/cgroup/memory/own/gnomon-x-h1");
        assert_eq!(dir("cpuset"), "/sys/fs/cgroup/cpuset/gnomon-x-h1");
        assert_eq!(group.dirs().count(), 5);
    }

    #[test]
    fn a_place_without_limits_is_in_the_unified_hierarchy_only() {
        let group = Hierarchies::parse(V1, OWN).unwrap().group("gnomon-x-net", Span::Unified);
        assert_eq!(group.dirs().count(), 1);
        assert_eq!(group.dir("cpu"), None);
    }

    #[test]
    fn a_machine_without_the_hierarchies_is_refused_with_the_reason() {
        let without = |what: &str| V1.lines().filter(|line| !line.contains(what)).collect::<Vec<_>>().join("\n");
        let error = |mountinfo: &str| Hierarchies::parse(mountinfo, OWN).unwrap_err().to_string();
        assert!(error(&without("cgroup2")).contains("cgroup2"));
        assert!(error(&without("blkio")).contains("blkio"));
        assert!(error("nonsense\n - x\n").contains("cgroup2"));
    }
}
