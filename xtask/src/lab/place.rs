//! A place: namespaces and cgroups in which programs of the lab run. A host is one, the network of the brain another.
//!
//! A place is held by its anchor, a sleeping process that is alone in a cgroup below the place's top. Its pid is read from
//! there at each use and never remembered, so a recycled pid can never be entered or signalled.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::cgroup::Group;

/// Joins the groups, then enters the anchor's namespaces, then becomes the program: one pid all the way.
/// Arguments: the anchor's group, the groups to join, `--`, options of nsenter, the program and its arguments.
/// 125 is what env(1) and timeout(1) return for their own failures.
const ENTER: &str = r#"
read -r anchor < "$1/cgroup.procs" || { echo "lab: no anchor in $1: the place is gone" >&2; exit 125; }
shift
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 125; shift; done
shift
exec nsenter --target "$anchor" "$@"
"#;

/// Joins the groups (`$@` up to `--`), then becomes the rest.
const JOIN: &str = r#"
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 125; shift; done
shift
exec "$@"
"#;

/// A namespace that a place has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    Cgroup,
    Ipc,
    Mount,
    Net,
    Uts,
}

impl Namespace {
    /// The option of unshare(1) and nsenter(1); both use the same names.
    fn option(self) -> &'static str {
        match self {
            Namespace::Cgroup => "--cgroup",
            Namespace::Ipc => "--ipc",
            Namespace::Mount => "--mount",
            Namespace::Net => "--net",
            Namespace::Uts => "--uts",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The unified group that holds the anchor.
    anchor: PathBuf,
    /// What a program joins, the unified group first: from then on the way down reaches it.
    join: Vec<PathBuf>,
    namespaces: Vec<Namespace>,
}

impl Place {
    /// A place that exists, or will once [`Place::anchor`] has been called. Programs run in the child `part` of `group`.
    pub(crate) fn new(group: &Group, part: &str, namespaces: &[Namespace]) -> Self {
        let join = group.dirs().map(|dir| dir.join(part)).collect();
        Place(Arc::new(Inner { anchor: group.anchor(), join, namespaces: namespaces.to_owned() }))
    }

    /// Starts the anchor: it joins `group`, gets its namespaces, leaves the top of `group` for the anchor's own, runs `script`
    /// and then sleeps. Returns when the script is through.
    ///
    /// The group at the time of unshare(2) becomes the root of the cgroup namespace, so it has to be the top; the anchor cannot
    /// stay, or the top could not hand controllers down (version 2).
    pub(crate) fn anchor(&self, group: &Group, script: &str, arguments: &[&OsStr], log: &Path) -> Result<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", JOIN, "sh"]).args(group.dirs()).args(["--", "unshare"]);
        command.args(self.0.namespaces.iter().map(|namespace| namespace.option()));
        // A `sleep` that its own parent does not end sleeps until it is killed.
        let script = format!(
            "set -eu\necho $$ > \"$1/cgroup.procs\"\nshift\n{script}\necho ready\nexec sleep infinity >/dev/null"
        );
        command.args(["sh", "-c", &script, "sh"]).arg(&self.0.anchor).args(arguments);
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log).with_context(|| format!("creating {}", log.display()))?)
            .spawn()
            .context("starting sh")?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            // One line or the end of file: the script has no way to keep this waiting but a hanging mount.
            BufReader::new(stdout.take(4096)).read_line(&mut said)?;
        }
        if said != "ready\n" {
            let _ = child.kill();
            let status = child.wait()?;
            bail!("the namespaces could not be set up ({status}):\n{}", tail(log));
        }
        Ok(child)
    }

    /// A program inside the place. Arguments, environment and streams may be added as usual; the program should be an
    /// absolute path or on PATH, because the working directory becomes `/`. Exit code 125: the place is gone.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let inner = &self.0;
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "sh"]).arg(&inner.anchor).args(&inner.join).arg("--");
        command.args(inner.namespaces.iter().map(|namespace| namespace.option()));
        command.arg("--").arg(program);
        command
    }

    /// The pid of the anchor, as long as the place exists.
    pub(crate) fn anchor_pid(&self) -> Result<u32> {
        let procs = self.0.anchor.join("cgroup.procs");
        let text =
            fs::read_to_string(&procs).with_context(|| format!("reading {}: is the lab up?", procs.display()))?;
        let pid = text.lines().next().with_context(|| format!("no anchor in {}: the lab is down", procs.display()))?;
        pid.parse().with_context(|| format!("{pid:?} in {}", procs.display()))
    }

    /// The network namespace, as a file to be entered.
    pub(crate) fn net(&self) -> Result<File> {
        let path = format!("/proc/{}/ns/net", self.anchor_pid()?);
        File::open(&path).with_context(|| format!("opening {path}"))
    }
}

/// A program in these groups, from before its exec, and in the namespaces of the caller.
pub(crate) fn joined(groups: &[&Path], program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", JOIN, "sh"]).args(groups).arg("--").arg(program);
    command
}

/// Runs a command to its end and returns what it wrote; a failure carries what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The end of a log file, for an error message.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 12;
    let text = fs::read_to_string(log).unwrap_or_else(|error| format!("({}: {error})", log.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
