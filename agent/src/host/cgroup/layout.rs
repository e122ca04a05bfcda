//! From a process's membership to directories: `/proc/PID/cgroup` and `/proc/self/mountinfo`.

use super::super::kernel_file::{ReadError, read_text};
use std::path::{Component, Path, PathBuf};

/// The control group hierarchies this process can see.
#[derive(Clone, Debug, Default)]
pub struct CgroupMounts {
    mounts: Vec<Mount>,
}

#[derive(Clone, Debug)]
struct Mount {
    /// The group that appears at `point`, as this process's cgroup namespace names it.
    root: PathBuf,
    point: PathBuf,
    /// Version 1: the controllers. Version 2: `None`.
    controllers: Option<Vec<String>>,
}

impl CgroupMounts {
    /// Reads a `mountinfo`, usually `/proc/self/mountinfo`.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        read_text(path).map(|text| Self::parse(&text))
    }

    /// Parses a `mountinfo`; lines that are not cgroup mounts, or not lines of a `mountinfo`, are passed over.
    pub fn parse(text: &str) -> Self {
        Self { mounts: text.lines().filter_map(parse_mount).collect() }
    }

    /// The directory of a group. Of several mounts the last one wins, as for libvirt: it hides the earlier ones.
    fn directory(&self, hierarchy: &Hierarchy, group: &Path) -> Option<PathBuf> {
        self.mounts.iter().rev().filter(|mount| hierarchy.is_of(mount)).find_map(|mount| {
            // A group above the root of the namespace is `/../name`: reachable only through a mount whose root is as high.
            let below = group.strip_prefix(&mount.root).ok()?;
            let ascends = below.components().any(|part| part == Component::ParentDir);
            let directory = mount.point.join(below);
            (!ascends && directory.is_dir()).then_some(directory)
        })
    }
}

/// proc(5): `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - TYPE SOURCE SUPER_OPTIONS`.
fn parse_mount(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (unescape(mount.next()?), unescape(mount.next()?));
    let mut filesystem = filesystem.split(' ');
    let controllers = match filesystem.next()? {
        "cgroup" => Some(filesystem.nth(1)?.split(',').map(str::to_owned).collect()),
        "cgroup2" => None,
        _ => return None,
    };
    Some(Mount { root: root.into(), point: point.into(), controllers })
}

/// Undoes the kernel's octal escapes (`\040` for a blank, `\134` for a backslash).
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Which groups a process or thread is in.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    groups: Vec<(Hierarchy, PathBuf)>,
}

#[derive(Clone, Debug)]
struct Hierarchy {
    /// Empty for version 2.
    controllers: Vec<String>,
}

impl Hierarchy {
    fn is_of(&self, mount: &Mount) -> bool {
        match &mount.controllers {
            Some(options) => self.controllers.first().is_some_and(|controller| options.contains(controller)),
            None => self.controllers.is_empty(),
        }
    }
}

impl Membership {
    /// Reads a `/proc/PID/cgroup` or `/proc/PID/task/TID/cgroup`.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        read_text(path).map(|text| Self::parse(&text))
    }

    /// Parses lines of `ID:CONTROLLERS:PATH`; what is not such a line is passed over, and so is a group that was removed.
    pub fn parse(text: &str) -> Self {
        let group = |line: &str| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            (path.starts_with('/') && !path.ends_with(" (deleted)")).then(|| (Hierarchy { controllers }, path.into()))
        };
        Self { groups: text.lines().filter_map(group).collect() }
    }

    /// The last path components: for a thread of a VM `emulator`, `vcpuN` or `iothreadN`.
    pub fn leaves(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().filter_map(|(_, path)| path.file_name()?.to_str())
    }

    /// The directories that hold the whole domain in the hierarchy of a (version 1) `controller`, else in version 2; outermost
    /// first, empty where there is none.
    pub(super) fn domain_dirs(&self, mounts: &CgroupMounts, controller: &str) -> Vec<PathBuf> {
        let version_1 = self.groups.iter().filter(|(h, _)| h.controllers.iter().any(|name| name == controller));
        let dirs =
            version_1.map(|(hierarchy, path)| directories(mounts, hierarchy, path)).find(|dirs| !dirs.is_empty());
        dirs.unwrap_or_else(|| self.unified_domain_dirs(mounts))
    }

    /// The same in version 2, whatever controllers it has.
    pub(super) fn unified_domain_dirs(&self, mounts: &CgroupMounts) -> Vec<PathBuf> {
        let version_2 = self.groups.iter().find(|(hierarchy, _)| hierarchy.controllers.is_empty());
        version_2.map(|(hierarchy, path)| directories(mounts, hierarchy, path)).unwrap_or_default()
    }
}

/// The directories of the domain's groups in one hierarchy.
fn directories(mounts: &CgroupMounts, hierarchy: &Hierarchy, path: &Path) -> Vec<PathBuf> {
    domain_groups(path).iter().filter_map(|group| mounts.directory(hierarchy, group)).collect()
}

/// The groups of the domain whose QEMU is in `path`: scope and nested group under systemd, else one; none where `path` is not a
/// group that libvirt makes for one domain.
fn domain_groups(path: &Path) -> Vec<&Path> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let leaf = name(path);
    let is_thread_group = leaf == "emulator" || is_numbered(&leaf, "vcpu") || is_numbered(&leaf, "iothread");
    let domain = if is_thread_group { path.parent().unwrap_or(path) } else { path };
    let (scope, nested) = match domain.parent() {
        Some(scope) if name(domain) == "libvirt" => (scope, Some(domain)),
        _ => (domain, None),
    };
    let scope_name = name(scope);
    let is_domain = is_thread_group && scope.parent().is_some()
        || scope_name.starts_with("machine-qemu") && scope_name.ends_with(".scope")
        || scope_name.ends_with(".libvirt-qemu");
    if is_domain { std::iter::once(scope).chain(nested).collect() } else { Vec::new() }
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_domain_is_above_its_thread_groups_and_below_everything_else() {
        let groups = |path: &'static str| domain_groups(Path::new(path));
        let scope = Path::new("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope");
        assert_eq!(
            groups("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator"),
            [scope, &scope.join("libvirt")]
        );
        assert_eq!(groups("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/emulator"), [scope]);
        assert_eq!(groups("/machine.slice/machine-qemu\\x2d1\\x2dweb.scope"), [scope]);
        assert_eq!(groups("/machine/qemu-1-web.libvirt-qemu/vcpu0"), [Path::new("/machine/qemu-1-web.libvirt-qemu")]);
        assert_eq!(groups("/emulator"), [] as [&Path; 0]);
        assert_eq!(groups("/"), [] as [&Path; 0]);
        assert_eq!(groups("/user.slice/user-0.slice/session-1.scope"), [] as [&Path; 0]);
    }

    #[test]
    fn the_last_of_several_mounts_wins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            std::fs::create_dir_all(dir.path().join(name).join("d")).unwrap();
            format!("1 1 0:1 / {}/{name} rw - cgroup cgroup rw,cpu,cpuacct", dir.path().display())
        };
        let mounts = CgroupMounts::parse(&[at("first"), at("second")].join("\n"));
        let hierarchy = Hierarchy { controllers: vec!["cpu".into(), "cpuacct".into()] };
        assert_eq!(mounts.directory(&hierarchy, Path::new("/d")), Some(dir.path().join("second/d")));
        assert_eq!(mounts.directory(&hierarchy, Path::new("/missing")), None);
        assert_eq!(mounts.directory(&Hierarchy { controllers: Vec::new() }, Path::new("/d")), None);
    }

    #[test]
    fn octal_escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape(r"/a\040b\134x2d"), r"/a b\x2d");
        assert_eq!(unescape(r"/a\x2d\9\04"), r"/a\x2d\9\04");
    }

    #[test]
    fn this_machines_own_hierarchies_are_found() {
        let mounts = CgroupMounts::read(Path::new("/proc/self/mountinfo")).unwrap();
        let membership = Membership::read(Path::new("/proc/self/cgroup")).unwrap();
        let found = membership.groups.iter().filter_map(|(h, path)| mounts.directory(h, path)).count();
        assert!(found > 0 || mounts.mounts.is_empty(), "no group of this process was found below any cgroup mount");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[ -~\\n]{0,300}") {
            let mounts = CgroupMounts::parse(&text);
            let _ = Membership::parse(&text).domain_dirs(&mounts, "cpu");
        }

        #[test]
        fn a_path_with_colons_and_blanks_is_kept_whole(path in "/[ -~]{0,40}[a-z:]") {
            let membership = Membership::parse(&format!("4:cpu,cpuacct:{path}\n"));
            prop_assert_eq!(membership.groups[0].1.to_str(), Some(path.as_str()));
        }

        #[test]
        fn escaping_is_undone_whatever_the_name(name in "[ -~]{0,30}") {
            let escaped: String = name.chars().map(|c| match c {
                ' ' => r"\040".to_owned(),
                '\\' => r"\134".to_owned(),
                c => c.to_string(),
            }).collect();
            prop_assert_eq!(unescape(&escaped), name);
        }
    }
}
