//! Child processes: nested cargo, and long commands that report progress.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::progress::Activity;

/// Lines of a failed command's log that are shown: enough for cargo's and apt's closing error, little enough to read.
const LOG_TAIL_LINES: usize = 25;

/// What `cargo run` sets for the program it runs. Build scripts of some dependencies watch these: handed on to a nested
/// cargo they would rebuild such a dependency each time a developer alternates between `cargo build` and `cargo xtask`.
const CARGO_RUN_PREFIXES: &[&str] = &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// The workspace this program was built from.
pub fn workspace_root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// The directory of everything built: `CARGO_TARGET_DIR` where set, else `target` in the workspace.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// Cargo, in the workspace, with the environment of a cargo that was started by hand.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()).stdin(Stdio::null());
    forget_cargo_run(&mut command);
    command
}

/// Takes what `cargo run` said about this package out of the environment of `command`.
pub fn forget_cargo_run(command: &mut Command) {
    for (key, _) in env::vars_os() {
        let Some(name) = key.to_str() else { continue };
        if CARGO_RUN_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
}

/// What `command` prints on standard output, or `None` where it cannot be run or fails. For asking, not for doing.
pub fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with its output in `log`, showing `what`, the time it typically takes and the last line as progress.
///
/// # Errors
/// When it cannot be started or fails; the error carries the end of the log.
pub fn run_logged(mut command: Command, what: &str, typical_s: u32, log: &Path) -> Result<()> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (reader, writer) = io::pipe().context("no pipe for the command's output")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);

    let activity = Activity::start(what, typical_s);
    let mut child = command.spawn().with_context(|| format!("cannot run {what}"))?;
    // The command holds the pipe's writing end: without this the reader would never see its end.
    drop(command);
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("the command's output broke off")?;
        file.write_all(&line)?;
        file.write_all(b"\n")?;
        activity.detail(String::from_utf8_lossy(&line).trim());
    }
    let status = child.wait()?;
    if status.success() {
        activity.done();
        return Ok(());
    }
    activity.failed();
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n  ");
    bail!("{what} failed ({status}). The end of {}:\n  {tail}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_reported_with_the_end_of_its_output() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo last >&2; exit 3"]);
        let error = run_logged(command, "failing", 1, &directory.path().join("log")).unwrap_err().to_string();
        assert!(error.contains("last") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn an_unknown_program_answers_nothing() {
        assert_eq!(ask(&mut Command::new("gnomon-no-such-program")), None);
    }

    #[test]
    fn a_nested_cargo_does_not_inherit_this_package() {
        let removed: Vec<_> = cargo().get_envs().map(|(key, value)| (key.to_owned(), value.is_none())).collect();
        // Under cargo this test itself runs with CARGO_PKG_NAME set.
        assert!(removed.iter().any(|(key, gone)| key == "CARGO_PKG_NAME" && *gone));
    }
}
