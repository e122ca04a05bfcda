//! `gnomon-agent doctor`: every signal this agent knows, tried on this host.
//!
//! Nothing is concluded from versions or names: programs are loaded and must count, files are read, libvirt is asked, the state
//! directory is written to, and the brain must answer a handshake. What fails says why and what would make it work. Nothing is
//! changed, and a running daemon is not disturbed.

mod brain;
mod cost;
mod cpu;
mod disks;
mod drops;
mod exits;
mod kernel;
mod migration;
mod pools;
mod queues;
mod reclaim;
mod shadow;
mod state;
mod table;
mod vms;

use crate::config::{Config, ConfigError};
use serde::Serialize;

/// How a signal or means is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All of it works.
    Ok,
    /// Something works: `why` says what does not.
    Degraded,
    /// It does not work.
    Unavailable,
}

/// One signal or means, tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is.
    pub signal: &'static str,
    /// Whether the agent can do its work without it.
    pub needed: bool,
    /// How it is.
    pub state: State,
    /// Where it comes from.
    pub source: String,
    /// What was found.
    pub why: String,
    /// What would make it work, or work better.
    pub enable: Option<String>,
}

impl Check {
    fn new(signal: &'static str, state: State, source: impl Into<String>, why: impl Into<String>) -> Self {
        Self { signal, needed: false, state, source: source.into(), why: why.into(), enable: None }
    }

    fn ok(signal: &'static str, source: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(signal, State::Ok, source, why)
    }

    fn degraded(signal: &'static str, source: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(signal, State::Degraded, source, why)
    }

    fn unavailable(signal: &'static str, source: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(signal, State::Unavailable, source, why)
    }

    fn needed(mut self) -> Self {
        self.needed = true;
        self
    }

    fn enable(mut self, how: impl Into<String>) -> Self {
        self.enable = Some(how.into());
        self
    }
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// The agent's release.
    pub version: &'static str,
    /// Whether everything that is needed is there.
    pub complete: bool,
    /// Signals and means, those on which others rest first.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    fn new(checks: Vec<Check>) -> Self {
        let complete = !checks.iter().any(|check| check.needed && check.state == State::Unavailable);
        Self { version: env!("CARGO_PKG_VERSION"), complete, checks }
    }

    /// What is needed and does not work.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = self.checks.iter().filter(|check| check.needed && check.state == State::Unavailable);
        missing.map(|check| check.signal).collect()
    }

    /// For people: one line for each, and what would enable it below.
    pub fn table(&self, colour: bool) -> String {
        table::render(self, colour)
    }
}

/// Tries everything. A configuration that is not good is itself a finding: the rest is tried with what it would be by default.
pub async fn examine(config: Result<Config, ConfigError>) -> Diagnosis {
    let mut checks = vec![configuration(&config)];
    let config = config.ok();
    let choice = config.as_ref().map(|config| config.probe.source).unwrap_or_default();
    let state_dir = config.as_ref().map(|config| config.state_dir.clone());
    // Loading programs takes a while and blocks, as everything here does but for the network.
    let host = tokio::task::spawn_blocking(move || {
        let mut checks = kernel::examine();
        checks.extend(cpu::examine(choice));
        checks.push(disks::examine(state_dir.as_deref()));
        checks.push(drops::examine());
        checks.push(queues::examine());
        checks.push(reclaim::examine());
        checks.push(exits::examine());
        checks
    });
    match host.await {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(Check::unavailable("kernel", "this program", error.to_string()).needed()),
    }
    checks.extend(vms::examine(config.as_ref()).await);
    if let Some(config) = &config {
        checks.push(migration::examine(config).await);
        checks.extend(pools::examine(config).await);
        checks.push(shadow::examine(config));
        checks.extend(shadow::examine_copies(config));
        checks.extend(shadow::examine_received(config));
        checks.extend(state::examine(config));
        checks.push(cost::examine(config).await);
        checks.extend(brain::examine(config).await);
    }
    Diagnosis::new(checks)
}

fn configuration(config: &Result<Config, ConfigError>) -> Check {
    match config {
        Ok(config) => Check::ok("configuration", "file", format!("host {}", config.host.name)),
        Err(error) => Check::unavailable("configuration", "file", error.to_string())
            .enable("name it with --config FILE, or let `gnomon-agent join BRAIN:PORT TOKEN` write one; deploy/agent.toml explains it"),
    }
    .needed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_and_unavailable_makes_a_diagnosis_incomplete() {
        let bad = Check::unavailable("a", "x", "y");
        assert!(Diagnosis::new(vec![bad.clone(), Check::degraded("b", "x", "y").needed()]).complete);
        let diagnosis = Diagnosis::new(vec![bad.needed(), Check::ok("b", "x", "y").needed()]);
        assert!(!diagnosis.complete);
        assert_eq!(diagnosis.missing(), ["a"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_host_without_a_configuration_is_examined_all_the_same() {
        let diagnosis = examine(Config::load(std::path::Path::new("/nonexistent/agent.toml"))).await;
        let state =
            |signal: &str| diagnosis.checks.iter().find(|check| check.signal == signal).map(|check| check.state);
        assert_eq!(state("configuration"), Some(State::Unavailable));
        assert!(!diagnosis.complete);
        for signal in [
            "BTF",
            "tracefs",
            "CPU run and wait",
            "CPU wait histogram",
            "disk I/O",
            "network drops",
            "network queues",
            "memory, reclaim",
            "KVM exits",
            "libvirt",
            "clock",
            "capabilities",
        ] {
            assert!(state(signal).is_some(), "{signal} was not examined");
        }
        for check in &diagnosis.checks {
            assert!(!check.why.is_empty() && !check.source.is_empty(), "{check:?}");
            assert!(check.state == State::Ok || check.enable.is_some(), "no way out of {check:?}");
        }
    }
}
