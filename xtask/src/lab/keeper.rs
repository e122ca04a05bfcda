//! The keeper of a lab: a process that waits for the owner's end and then leaves nothing of the lab.
//!
//! It blocks on a pipe whose only other end is the owner's. However the owner ends (return, panic, SIGINT, SIGKILL), the
//! kernel closes that end and the keeper runs `down.sh`. PR_SET_PDEATHSIG would reach direct children of one thread only,
//! and QEMU is no child of ours.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

const DOWN: &str = include_str!("down.sh");

#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    /// From now on the groups that match `patterns`, and `dir`, end with this process.
    pub(crate) fn start(dir: &Path, patterns: &[String]) -> Result<Self> {
        let mut command = script("wait", dir, patterns);
        // A group of its own: an interrupt from the terminal must reach the owner alone.
        let child = command.process_group(0).stdin(Stdio::piped()).spawn().context("starting the keeper (sh)")?;
        Ok(Keeper(child))
    }

    /// Takes the lab down now and waits for it.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        wait(self.0)
    }

    /// Lets the lab outlive this process.
    pub(crate) fn release(mut self) -> Result<()> {
        if let Some(mut stdin) = self.0.stdin.take() {
            stdin.write_all(b"keep").context("telling the keeper to leave the lab up")?;
        }
        wait(self.0)
    }
}

/// Takes down whatever matches `patterns`, and `dir`. Nothing there is fine.
pub(crate) fn down(dir: &Path, patterns: &[String]) -> Result<()> {
    wait(script("now", dir, patterns).stdin(Stdio::null()).spawn().context("starting sh")?)
}

fn script(when: &str, dir: &Path, patterns: &[String]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", DOWN, "gnomon-lab-keeper", when]).arg::<&OsStr>(dir.as_ref()).args(patterns);
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn wait(mut child: Child) -> Result<()> {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "the lab is not down ({status}): {}", said.trim());
    Ok(())
}
