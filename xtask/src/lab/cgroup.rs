//! The cgroups of a lab: children of the groups that the lab itself was started in, in the hierarchies that libvirt
//! uses, named `gnomon-LAB-PLACE`. Version 1, version 2 and both beside each other.
//!
//! No group that the lab has not made is ever written to, with one exception. A version 2 group that has processes cannot
//! hand controllers down to its children, and the group of a shell has some: there the lab's groups are children of the
//! nearest group above that hands down what a lab needs, else of the root, which is asked to hand down what is missing.

mod version_2;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use version_2::Level;

/// What libvirt is told to use (`cgroup_controllers` in qemu.conf), by the names of version 1.
pub(crate) const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "cpuset", "blkio", "memory"];
/// Child of a host's group in which libvirt puts its guests; libvirt's own name for it.
pub(crate) const GUESTS: &str = "machine";
/// Child of a place's group for its daemons: libvirtd and agent on a host, the brain in its network.
pub(crate) const DAEMONS: &str = "system";
/// Child of a place's unified group that holds its anchor and nothing else.
const ANCHOR: &str = "anchor";
/// CFS period of the capacity; the kernel's default.
const CAPACITY_PERIOD_US: u32 = 100_000;

/// A mounted hierarchy and the group in it that the lab's groups become children of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    /// Version 2: the unified hierarchy.
    unified: bool,
    /// Controllers, by version 1's names and as its mount options want them: `cpu`, or `cpu,cpuacct` where they share a
    /// hierarchy. Of the unified hierarchy: those that the lab uses there, none where version 1 has them all.
    controllers: String,
    /// Where it is mounted, relative to /sys/fs/cgroup on every distribution.
    pub(crate) mount_point: PathBuf,
    /// The group whose children the lab's are: this process's own, or one above.
    parent: PathBuf,
}

/// The hierarchies of this machine that a lab uses, the unified one first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

impl Hierarchies {
    /// Finds the hierarchies and the groups of this process in them. Changes nothing.
    pub(crate) fn of_this_process() -> Result<Self> {
        Self::parse(
            &fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?,
            &fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?,
            Level::read,
        )
    }

    /// `mountinfo` and `cgroup` as in proc(5) and cgroups(7); `level` reads a group of the unified hierarchy.
    fn parse(mountinfo: &str, cgroup: &str, level: impl Fn(&Path) -> Option<Level>) -> Result<Self> {
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
                unified: *kind == "cgroup2",
                controllers: controllers.join(","),
                parent: Path::new(mount_point).join(below),
                mount_point: PathBuf::from(mount_point),
            };
            // The same hierarchy may be mounted several times; the first mount is the usual place.
            if !found.iter().any(|other| other.controllers == hierarchy.controllers) {
                found.push(hierarchy);
            }
        }
        found.sort_by_key(|hierarchy| !hierarchy.unified);
        let missing = CONTROLLERS.into_iter().filter(|name| !found.iter().any(|hierarchy| hierarchy.has(name)));
        let missing: Vec<&str> = missing.collect();
        let Some(unified) = found.first_mut().filter(|first| first.unified) else {
            bail!("no cgroup2 hierarchy is mounted; the lab needs one (with cgroup.kill, Linux 5.14) for its way down");
        };
        if !missing.is_empty() {
            unified.parent = version_2::parent(&unified.parent, &unified.mount_point, &missing, level)?;
            unified.controllers = missing.join(",");
        }
        Ok(Hierarchies(found))
    }

    /// Makes the parents of the lab's groups hand down what those need.
    pub(crate) fn prepare(&self) -> Result<()> {
        let mut unified = self.0.iter().filter(|hierarchy| hierarchy.unified);
        unified.try_for_each(|hierarchy| version_2::hand_down(&hierarchy.parent, &hierarchy.controllers))
    }

    /// The group `name` in every hierarchy (`Span::Host`) or in the unified one only.
    pub(crate) fn group(&self, name: &str, span: Span) -> Group {
        let hierarchies = self.0.iter().filter(|hierarchy| span == Span::Host || hierarchy.unified);
        Group { span, dirs: hierarchies.map(|hierarchy| (hierarchy.clone(), hierarchy.parent.join(name))).collect() }
    }

    /// Shell patterns of the groups whose name matches `name`, one a hierarchy.
    pub(crate) fn patterns(&self, name: &str) -> Vec<String> {
        self.0.iter().map(|hierarchy| hierarchy.parent.join(name).to_string_lossy().into_owned()).collect()
    }
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|own| own == controller)
    }

    /// `KIND=MOUNT_POINT`, as host.sh mounts it: the kind is `cgroup2` or a list of controllers.
    pub(crate) fn mount(&self) -> String {
        let kind = if self.unified { "cgroup2" } else { &self.controllers };
        format!("{kind}={}", self.mount_point.display())
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
    span: Span,
    dirs: Vec<(Hierarchy, PathBuf)>,
}

impl Group {
    /// Makes the group and its parts, in version 1 with their limits. Directories that are there stay as they are.
    pub(crate) fn create(&self, parts: &[&str], cpus: Option<&str>, capacity_cores: Option<f64>) -> Result<()> {
        for (hierarchy, dir) in &self.dirs {
            let anchor = hierarchy.unified.then_some(ANCHOR);
            for dir in [dir.clone()].into_iter().chain(parts.iter().chain(&anchor).map(|part| dir.join(part))) {
                fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
                if hierarchy.has("cpuset") && !hierarchy.unified {
                    inherit_cpuset(&dir, cpus)?;
                }
            }
            if let (true, false, Some(cores)) = (hierarchy.has("cpu"), hierarchy.unified, capacity_cores) {
                write(&dir.join(GUESTS).join("cpu.cfs_period_us"), &CAPACITY_PERIOD_US.to_string())?;
                write(&dir.join(GUESTS).join("cpu.cfs_quota_us"), &capacity_us(cores))?;
            }
        }
        Ok(())
    }

    /// In version 2: hands controllers down to the parts, and sets the limits. Only once the anchor has left the top, because
    /// a group that has processes cannot.
    pub(crate) fn hand_down(&self, cpus: Option<&str>, capacity_cores: Option<f64>) -> Result<()> {
        let Some((hierarchy, top)) = self.dirs.first().filter(|(hierarchy, _)| hierarchy.unified) else {
            return Ok(());
        };
        if self.span == Span::Unified {
            return Ok(());
        }
        version_2::hand_down(top, &hierarchy.controllers)?;
        if let (true, Some(cpus)) = (hierarchy.has("cpuset"), cpus) {
            write(&top.join("cpuset.cpus"), cpus)?;
        }
        if let (true, Some(cores)) = (hierarchy.has("cpu"), capacity_cores) {
            write(&top.join(GUESTS).join("cpu.max"), &format!("{} {CAPACITY_PERIOD_US}", capacity_us(cores)))?;
        }
        Ok(())
    }

    pub(crate) fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.dirs.iter().map(|(_, dir)| dir)
    }

    /// The hierarchies that the group is in.
    pub(crate) fn hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        self.dirs.iter().map(|(hierarchy, _)| hierarchy)
    }

    pub(crate) fn unified(&self) -> &Path {
        &self.dirs[0].1
    }

    /// Where the anchor lives, in the unified hierarchy.
    pub(crate) fn anchor(&self) -> PathBuf {
        self.unified().join(ANCHOR)
    }

    /// The directory in the hierarchy of `controller`.
    pub(crate) fn dir(&self, controller: &str) -> Option<&Path> {
        self.dirs.iter().find(|(hierarchy, _)| hierarchy.has(controller)).map(|(_, dir)| dir.as_path())
    }

    /// Where the hierarchy of `controller` is mounted, on the machine and on its hosts alike.
    pub(crate) fn mount_point(&self, controller: &str) -> Option<&Path> {
        self.hierarchies().find(|hierarchy| hierarchy.has(controller)).map(|hierarchy| hierarchy.mount_point.as_path())
    }
}

/// The CPU time of a capacity in each period, in microseconds.
fn capacity_us(cores: f64) -> String {
    (cores * f64::from(CAPACITY_PERIOD_US)).round().to_string()
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

    /// The shell's group in a session, as systemd makes it: its slices hand down less than a lab needs.
    const V2: &str = "30 20 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const V2_OWN: &str = "0::/user.slice/session-1.scope\n";

    fn no_level(_: &Path) -> Option<Level> {
        None
    }

    #[test]
    fn groups_are_children_of_the_groups_of_this_process() {
        let group = Hierarchies::parse(V1, OWN, no_level).unwrap().group("gnomon-x-h1", Span::Host);
        assert_eq!(group.unified(), Path::new("/sys/fs/cgroup/unified/u/gnomon-x-h1"));
        let dir = |controller| group.dir(controller).unwrap().to_str().unwrap();
        assert_eq!(dir("cpu"), "/sys/fs/cgroup/cpu,cpuacct/a/gnomon-x-h1");
        assert_eq!(dir("cpuacct"), dir("cpu"));
        assert_eq!(dir("memory"), "/sys/fs/cgroup/memory/own/gnomon-x-h1");
        assert_eq!(dir("cpuset"), "/sys/fs/cgroup/cpuset/gnomon-x-h1");
        assert_eq!(group.dirs().count(), 5);
        let mounts: Vec<String> = group.hierarchies().map(Hierarchy::mount).collect();
        assert_eq!(mounts[..2], ["cgroup2=/sys/fs/cgroup/unified", "cpu,cpuacct=/sys/fs/cgroup/cpu,cpuacct"]);
    }

    #[test]
    fn a_place_without_limits_is_in_the_unified_hierarchy_only() {
        let group = Hierarchies::parse(V1, OWN, no_level).unwrap().group("gnomon-x-net", Span::Unified);
        assert_eq!(group.dirs().count(), 1);
        assert_eq!(group.dir("cpu"), None);
    }

    #[test]
    fn where_there_is_version_2_alone_one_directory_has_every_controller() {
        let level = |dir: &Path| Level::of("cpu cpuset io memory pids", "cpu memory pids", dir.ends_with("cgroup"));
        let hierarchies = Hierarchies::parse(V2, V2_OWN, |dir| Some(level(dir))).unwrap();
        let group = hierarchies.group("gnomon-x-h1", Span::Host);
        assert_eq!(group.dirs().collect::<Vec<_>>(), [Path::new("/sys/fs/cgroup/gnomon-x-h1")]);
        for controller in CONTROLLERS {
            assert_eq!(group.dir(controller), Some(group.unified()));
            assert_eq!(group.mount_point(controller), Some(Path::new("/sys/fs/cgroup")));
        }
        assert_eq!(group.hierarchies().map(Hierarchy::mount).collect::<Vec<_>>(), ["cgroup2=/sys/fs/cgroup"]);
        assert_eq!(hierarchies.patterns("gnomon-x-*"), ["/sys/fs/cgroup/gnomon-x-*"]);
    }

    #[test]
    fn controllers_may_be_shared_out_between_both_versions() {
        let without_memory: Vec<&str> = V1.lines().filter(|line| !line.contains("memory")).collect();
        let level = |_: &Path| Some(Level::of("memory", "memory", false));
        let hierarchies = Hierarchies::parse(&without_memory.join("\n"), OWN, level).unwrap();
        let group = hierarchies.group("gnomon-x-h1", Span::Host);
        assert_eq!(group.dir("memory"), Some(group.unified()));
        assert_eq!(group.dir("cpu"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/a/gnomon-x-h1")));
    }

    #[test]
    fn a_machine_without_the_hierarchies_is_refused_with_the_reason() {
        let without = |what: &str| V1.lines().filter(|line| !line.contains(what)).collect::<Vec<_>>().join("\n");
        let error = |mountinfo: &str| Hierarchies::parse(mountinfo, OWN, no_level).unwrap_err().to_string();
        assert!(error(&without("cgroup2")).contains("cgroup2"));
        assert!(error(&without("blkio")).contains("blkio"), "{}", error(&without("blkio")));
        assert!(error("nonsense\n - x\n").contains("cgroup2"));
    }
}
