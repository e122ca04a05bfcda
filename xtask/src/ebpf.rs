//! `cargo xtask ebpf`: builds the eBPF programs and says where they are.
//!
//! It runs the agent's own build script, by checking the agent: one recipe, one output directory, so that a build of the
//! agent afterwards finds the objects done.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process::cargo;
use crate::setup::{self, items::Purpose};

/// The package whose build script compiles the eBPF programs.
const AGENT: &str = "gnomon-agent";

/// Builds the eBPF programs, as a build of the agent would, and lists the objects.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// The one message of cargo's that interests here: where a build script put things.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    out_dir: Option<PathBuf>,
}

/// Carries out `cargo xtask ebpf`.
///
/// # Errors
/// When the toolchain is missing and cannot be installed, or when the programs don't compile; cargo's messages are on
/// standard error by then.
pub fn run(_args: &Args) -> Result<()> {
    setup::ensure(&[Purpose::Build])?;
    let mut child = cargo()
        .args(["check", "--package", AGENT, "--lib", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let mut out_dir = None;
    for line in BufReader::new(child.stdout.take().context("cargo's output is gone")?).lines() {
        out_dir = out_dir_of_agent(&line?).or(out_dir);
    }
    if !child.wait()?.success() {
        bail!("the eBPF programs or the agent that embeds them don't compile: cargo's messages are above");
    }
    let out_dir = out_dir.context("cargo did not say where the agent's build script writes")?;
    for entry in fs::read_dir(&out_dir).with_context(|| format!("cannot read {}", out_dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            println!("{} ({} bytes)", entry.path().display(), entry.metadata()?.len());
        }
    }
    Ok(())
}

fn out_dir_of_agent(line: &str) -> Option<PathBuf> {
    let message: Message = serde_json::from_str(line).ok()?;
    // `path+file:///…/agent#gnomon-agent@0.1.0`
    let agent = message.package_id.rsplit_once('#').is_some_and(|(_, name)| name.split('@').next() == Some(AGENT));
    message.out_dir.filter(|_| agent && message.reason == "build-script-executed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_build_script_is_told_from_others() {
        let line = |package: &str| {
            format!(
                r#"{{"reason":"build-script-executed","package_id":"path+file:///x#{package}@0.1.0","out_dir":"/o"}}"#
            )
        };
        assert_eq!(out_dir_of_agent(&line("gnomon-agent")), Some(PathBuf::from("/o")));
        assert_eq!(out_dir_of_agent(&line("gnomon-agent-ebpf")), None);
        assert_eq!(out_dir_of_agent(r#"{"reason":"compiler-artifact","package_id":"p#gnomon-agent@0.1.0"}"#), None);
        assert_eq!(out_dir_of_agent("not json"), None);
    }
}
