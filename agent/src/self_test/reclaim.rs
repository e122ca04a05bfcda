//! Reclaim in a control group that has no process and no memory: it is begun, finds nothing, and ends.

use super::{OWN, Trial, Uncounted};
use crate::probe::MemoryProbe;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

/// Where control groups of version 2 are.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// What is asked for, in bytes: the least that there is.
const WANTED_BYTES: &[u8] = b"4096";

/// Makes the memory probe count a reclaim that the agent asks for in a group `gnomon-self-test-PID` below `root`, which is removed again.
///
/// # Errors
/// If it does not count it.
pub fn reclaim(probe: &mut MemoryProbe, root: &Path) -> Result<Trial, Uncounted> {
    probe.track(OWN, &[std::process::id()])?;
    let tried = try_reclaim(probe, root);
    let untracked = probe.untrack(OWN);
    tried.and_then(|trial| untracked.map(|()| trial).map_err(Uncounted::from))
}

fn try_reclaim(probe: &mut MemoryProbe, root: &Path) -> Result<Trial, Uncounted> {
    if !probe.sees_limits() {
        return Ok(Trial::NotProvoked("this kernel has no control groups for memory".to_owned()));
    }
    let mut reclaims =
        || -> Result<u64, Uncounted> { Ok(probe.drain()?.get(&OWN).map_or(0, |counters| counters.reclaims)) };
    let before = reclaims()?;
    if let Err(why) = reclaim_nothing(root) {
        return Ok(Trial::NotProvoked(why));
    }
    if reclaims()? > before { Ok(Trial::Counted) } else { Err(Uncounted::Reclaims) }
}

/// Has the kernel look for memory to take back where there is none. Otherwise why not.
fn reclaim_nothing(root: &Path) -> Result<(), String> {
    let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        return Err(format!("control groups of version 2 have no memory controller below {}", root.display()));
    }
    let group = root.join(format!("gnomon-self-test-{}", std::process::id()));
    let told = |error: io::Error| format!("{}: {error}", group.display());
    fs::create_dir(&group).map_err(told)?;
    let asked = File::options().write(true).open(group.join("memory.reclaim"));
    let asked = match asked.and_then(|mut file| file.write_all(WANTED_BYTES)) {
        // It has found too little, as it had to.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err("this kernel has no memory.reclaim (since 5.19)".to_owned())
        }
        asked => asked.map_err(told),
    };
    let removed = fs::remove_dir(&group).map_err(told);
    asked.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::loaded;

    #[test]
    fn the_memory_probe_counts_a_reclaim_or_says_why_there_was_none() {
        let Some(mut probe) = loaded(MemoryProbe::load()) else { return };
        let root = Path::new(CGROUP_ROOT);
        let has_memory = fs::read_to_string(root.join("cgroup.subtree_control"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|controller| controller == "memory"));
        let trial = reclaim(&mut probe, root).unwrap();
        println!("{trial:?}");
        assert!(has_memory || matches!(&trial, Trial::NotProvoked(why) if why.contains("no memory controller")));
        assert!(probe.drain().unwrap().is_empty(), "the agent is no VM");
    }

    #[test]
    fn what_cannot_be_provoked_leaves_no_group_behind() {
        let root = tempfile::tempdir().unwrap();
        assert!(reclaim_nothing(root.path()).unwrap_err().contains("no memory controller"));
        fs::write(root.path().join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        assert!(reclaim_nothing(root.path()).unwrap_err().contains("5.19"));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
