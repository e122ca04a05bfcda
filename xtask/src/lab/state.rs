//! What is known of a lab after its owner is gone: `state.json` in the lab's directory, written before the things it
//! names are made.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cgroup::{Hierarchies, Span};
use super::group_name;

/// The place of a full lab's machines.
pub(crate) const MACHINES: &str = "machines";

/// A lab as it was asked for, and its guests as they were booted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) name: String,
    /// The process that made the lab.
    pub(crate) owner: Process,
    /// The lab outlives its owner.
    pub(crate) persists: bool,
    /// Where its groups are: enough to take it down.
    pub(crate) hierarchies: Hierarchies,
    /// Draws of this lab's workloads. The lab alone knows it.
    pub(crate) seed: u64,
    pub(crate) hosts: Vec<HostState>,
    pub(crate) guests: Vec<GuestState>,
    /// Hosts that are machines of their own: a full lab. It has no others.
    pub(crate) machines: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostState {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) cpus: Option<String>,
    pub(crate) capacity_cores: Option<f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GuestState {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    /// Where it was defined.
    pub(crate) host: String,
    /// The schedule, in its text form.
    pub(crate) schedule: String,
    /// When its program's start line was seen.
    pub(crate) started_at: Option<SystemTime>,
}

impl State {
    /// Shell patterns of all groups of the lab.
    pub(crate) fn group_patterns(&self) -> Vec<String> {
        self.hierarchies.patterns(&group_name(&self.name, "*"))
    }

    /// Every process in the lab's groups at this moment.
    pub(crate) fn processes(&self) -> Result<Vec<Process>> {
        let mut processes = Vec::new();
        let places = self.hosts.iter().map(|host| host.name.as_str()).chain(["net", MACHINES]);
        for place in places {
            collect(self.hierarchies.group(&group_name(&self.name, place), Span::Unified).unified(), &mut processes)?;
        }
        Ok(processes)
    }

    pub(crate) fn read(dir: &Path) -> Result<Option<State>> {
        let path = file(dir);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let state = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
                Ok(Some(state))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Replaces the file as a whole, so that a reader never sees half of it.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let mut new = tempfile::NamedTempFile::new_in(dir).with_context(|| format!("writing in {}", dir.display()))?;
        new.write_all(&serde_json::to_vec_pretty(self)?)?;
        new.persist(file(dir)).with_context(|| format!("writing {}", file(dir).display()))?;
        Ok(())
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

/// Adds the processes of the group at `dir` and of all below. A group that has gone has none.
fn collect(dir: &Path, processes: &mut Vec<Process>) -> Result<()> {
    let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else { return Ok(()) };
    processes.extend(text.lines().filter_map(|pid| Process::with_pid(pid.parse().ok()?)));
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), processes)?;
        }
    }
    Ok(())
}

/// A process beyond doubt: the kernel gives pids again, but not with the same start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

impl Process {
    /// The process that has this pid now, unless it is a zombie.
    pub fn with_pid(pid: u32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_ticks) = parse_stat(&stat)?;
        (state != "Z" && state != "X").then_some(Process { pid, start_ticks })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Process::with_pid(self.pid) == Some(*self)
    }
}

/// State and start time. The name before them is free text in parentheses, so the last one counts.
fn parse_stat(stat: &str) -> Option<(&str, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A lab's name becomes part of cgroup names and patterns; without a hyphen no name is the start of another's groups.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    ensure!(
        (1..=16).contains(&name.len()) && name.bytes().all(allowed),
        "{name:?} cannot name a lab: 1 to 16 lower-case letters and digits"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let own = Process::with_pid(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { start_ticks: own.start_ticks + 1, ..own }.is_alive());
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse_stat(stat), Some(("S", 4242)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_name_that_could_match_another_lab_is_refused() {
        for name in ["", "a-h1", "*", "Upper", "a/b", "seventeenletters0"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("e2e1").is_ok());
    }

    #[test]
    fn a_state_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(State::read(dir.path()).unwrap().is_none());
        let state = State {
            name: "x".into(),
            owner: Process { pid: 1, start_ticks: 2 },
            persists: true,
            hierarchies: Hierarchies::default(),
            seed: u64::MAX,
            hosts: vec![],
            guests: vec![],
            machines: 0,
        };
        state.write(dir.path()).unwrap();
        let read = State::read(dir.path()).unwrap().unwrap();
        assert_eq!((read.name, read.owner, read.seed), (state.name, state.owner, u64::MAX));
    }
}
