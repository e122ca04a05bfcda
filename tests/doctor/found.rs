//! The doctor, called to a host of the lab.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::env::bin_dir;
use xtask::lab::Host;

/// What the doctor found.
#[derive(Debug)]
pub(crate) struct Found(Value);

impl Found {
    /// Calls the doctor, by a command that becomes it where there is one. Its exit code must agree with what it says.
    pub(crate) fn on(host: &Host, wrapper: &[String]) -> Result<Self> {
        let program = bin_dir().join("gnomon-agent");
        let mut command = match wrapper {
            [] => host.command(program),
            [first, rest @ ..] => {
                let mut command = host.command(first);
                command.args(rest).arg(program);
                command
            }
        };
        let Output { status, stdout, stderr } =
            command.args(["doctor", "--json", "--config"]).arg(host.dir().join("agent.toml")).output()?;
        let found: Value = serde_json::from_slice(&stdout)
            .with_context(|| format!("the doctor ended with {status}: {}", String::from_utf8_lossy(&stderr)))?;
        let complete = found["complete"].as_bool().context("no verdict")?;
        ensure!(status.code() == Some(i32::from(!complete)), "complete is {complete}, and it ended with {status}");
        Ok(Self(found))
    }

    /// Fails unless the doctor says that everything needed is there, or that something is not.
    pub(crate) fn ensure_complete(&self, complete: bool) -> Result<()> {
        ensure!(self.0["complete"] == complete, "expected complete to be {complete}: {:#}", self.0);
        Ok(())
    }

    /// What it says of one signal.
    pub(crate) fn check(&self, signal: &str) -> Result<&Value> {
        let checks = self.0["checks"].as_array().context("no checks")?;
        checks.iter().find(|check| check["signal"] == signal).with_context(|| format!("it does not know {signal}"))
    }

    /// Fails unless these signals are in this state.
    pub(crate) fn ensure_all(&self, state: &str, signals: &[&str]) -> Result<()> {
        for signal in signals {
            let check = self.check(signal)?;
            ensure!(check["state"] == state, "expected {state}: {check:#}");
            ensure!(state == "ok" || check["enable"].is_string(), "no way out: {check:#}");
        }
        Ok(())
    }
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    ensure!(status.success(), "{command:?} ended with {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
