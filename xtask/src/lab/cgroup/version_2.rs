//! Version 2: a group hands controllers down to its children (`cgroup.subtree_control`), and only a group without processes
//! of its own can, but for the root (cgroup-v2.rst, "No Internal Process Constraint").

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Version 2's name of a controller of version 1. CPU time is counted where there is `cpu`; `cpuacct` is no controller.
fn name(controller: &str) -> &str {
    match controller {
        "cpuacct" => "cpu",
        "blkio" => "io",
        other => other,
    }
}

/// A group, as far as it decides what its children can have.
#[derive(Debug)]
pub(super) struct Level {
    /// What it could hand down.
    available: Vec<String>,
    /// What it hands down.
    handed_down: Vec<String>,
    /// It is the root of the hierarchy, not only of a namespace.
    is_root: bool,
}

impl Level {
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        // The kernel leaves this file out of the real root.
        let is_root = !dir.join("cgroup.events").exists();
        Some(Self::of(&read("cgroup.controllers")?, &read("cgroup.subtree_control")?, is_root))
    }

    /// From the texts of `cgroup.controllers` and `cgroup.subtree_control`.
    pub(super) fn of(available: &str, handed_down: &str, is_root: bool) -> Self {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        Self { available: words(available), handed_down: words(handed_down), is_root }
    }

    fn suits(&self, controllers: &[&str]) -> bool {
        let of = if self.is_root { &self.available } else { &self.handed_down };
        controllers.iter().all(|controller| of.iter().any(|own| own == name(controller)))
    }
}

/// The group, from `own` upwards within the mount, whose children can have all of `controllers`: the nearest that hands them
/// down, else the root.
pub(super) fn parent(
    own: &Path,
    mount_point: &Path,
    controllers: &[&str],
    level: impl Fn(&Path) -> Option<Level>,
) -> Result<PathBuf> {
    let mut within = own.ancestors().take_while(|dir| dir.starts_with(mount_point));
    let suitable = within.find(|dir| level(dir).is_some_and(|level| level.suits(controllers)));
    let Some(suitable) = suitable else {
        let names = controllers.join(" ");
        bail!(
            "no hierarchy of cgroup version 1 has the controllers {names}, and no group above {} hands them down; in a \
             container, give it the machine's cgroups",
            own.display()
        );
    };
    Ok(suitable.to_owned())
}

/// Makes `dir` hand down the version 2 equivalents of `controllers`, a list with commas. What it hands down already is left alone.
pub(super) fn hand_down(dir: &Path, controllers: &str) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    if controllers.is_empty() {
        return Ok(());
    }
    let present = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    for controller in controllers.split(',').map(name) {
        if !present.split_whitespace().any(|own| own == controller) {
            let text = format!("+{controller}");
            fs::write(&file, &text).with_context(|| format!("writing {text:?} to {}", file.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNT: &str = "/cg";
    const OWN: &str = "/cg/user.slice/user-0.slice/session-1.scope";

    fn chosen(level: impl Fn(&str) -> Level) -> Result<PathBuf> {
        parent(Path::new(OWN), Path::new(MOUNT), &["cpu", "cpuacct", "blkio"], |dir| Some(level(dir.to_str().unwrap())))
    }

    #[test]
    fn the_nearest_group_that_hands_down_enough_is_the_parent() {
        let level = |dir: &str| match dir {
            "/cg/user.slice" => Level::of("cpu io memory", "cpu io memory", false),
            "/cg" => Level::of("cpu io memory", "cpu io memory", true),
            _ => Level::of("cpu io memory", "memory", false),
        };
        assert_eq!(chosen(level).unwrap(), Path::new("/cg/user.slice"));
    }

    #[test]
    fn the_root_is_the_parent_where_no_other_group_will_do() {
        let level = |dir: &str| Level::of("cpu io memory", "memory", dir == "/cg");
        assert_eq!(chosen(level).unwrap(), Path::new("/cg"));
    }

    #[test]
    fn the_root_of_a_namespace_is_a_group_like_others() {
        let error = chosen(|_| Level::of("cpu io memory", "", false)).unwrap_err().to_string();
        assert!(error.contains("blkio") && error.contains(OWN), "{error}");
    }

    #[test]
    fn nothing_above_the_mount_is_looked_at() {
        let own = Path::new("/cg/a");
        let level = |dir: &Path| (dir == Path::new("/")).then(|| Level::of("cpu", "cpu", true));
        assert!(parent(own, Path::new(MOUNT), &["cpu"], level).is_err());
    }

    #[test]
    fn only_what_is_missing_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cgroup.subtree_control");
        fs::write(&file, "cpu memory\n").unwrap();
        hand_down(dir.path(), "cpu,cpuacct,memory").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "cpu memory\n");
        hand_down(dir.path(), "blkio").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "+io");
        hand_down(Path::new("/nowhere"), "").unwrap();
    }
}
