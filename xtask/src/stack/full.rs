//! A whole Gnomon on a full lab: the brain outside, on the loopback address, and an agent inside each host.
//!
//! The hosts reach the brain as 10.0.2.2, which is QEMU's name for the loopback address of the machine outside.

mod check;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::config::{self, AgentPlace, AgentSettings, BrainSettings, Listen};
use super::{Api, POLL, START_DEADLINE, end, spawn, tail};
use crate::env::bin_dir;
use crate::lab::full::{FullLab, Machine};

pub use check::{Carried, Findings, Moved, Squeezed, check, check_and_print, check_migration};

/// The machine outside, as QEMU's user network calls it.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where the agent's files are on its host.
const AGENT_DIR: &str = "/etc/gnomon";
/// The agent's program, and the name of its log.
const AGENT: &str = "gnomon-agent";
/// An agent loads its probes in seconds; under emulation in half a minute, on busy cores several times that.
const AGENT_DEADLINE: Duration = Duration::from_secs(180);
/// An emulated host may be late by a second or two, which is no reason to call it lost.
const HEARTBEAT_MS: u64 = 2000;
/// Windows that an emulated host can keep up with.
const WINDOW_MS: u64 = 2000;

/// Brain and agents on a full lab.
#[derive(Debug)]
pub struct FullStack {
    /// The lab they live on.
    pub lab: FullLab,
    brain: Option<Child>,
    api: Api,
}

impl FullStack {
    /// Issues certificates, starts the brain and an agent on every host, and returns when all agents are connected. The policy
    /// is the demo's.
    pub fn start(lab: FullLab) -> Result<FullStack> {
        let settings = BrainSettings { policy: super::demo_policy(), heartbeat_ms: HEARTBEAT_MS };
        let agent = AgentSettings { window_ms: WINDOW_MS, ..AgentSettings::default() };
        let dir = brain_dir(&lab);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let listen = Listen { address: Ipv4Addr::LOCALHOST, quic_port: 0, api_port: 0 };
        let token = config::prepare_brain(&dir, &settings, listen)?;
        let mut command = lab.command(&bin_dir().join("gnomon-brain").to_string_lossy());
        command.args(["run", "--config"]).arg(dir.join("brain.toml")).env("NO_COLOR", "1");
        let log = lab.logs().join("brain.log");
        // Of the run before.
        let _ = fs::remove_file(&log);
        let mut brain = spawn(&mut command, &log)?;
        let listening = await_listening(&mut brain, &log);
        // From here on, every way out stops the brain.
        let at =
            listening.as_ref().map_or_else(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |listening| listening.api);
        let stack = FullStack { lab, brain: Some(brain), api: Api::at(at, token) };
        let agents = listening?.agents;
        for machine in stack.lab.machines() {
            stack.start_agent(machine, agents.port(), &agent)?;
        }
        for machine in stack.lab.machines() {
            stack.await_agent(machine)?;
        }
        Ok(stack)
    }

    /// The brain's API, with an operator's token.
    pub fn api(&self) -> &Api {
        &self.api
    }

    fn start_agent(&self, machine: &Machine, port: u16, settings: &AgentSettings) -> Result<()> {
        let brain = brain_dir(&self.lab);
        let issued = self.lab.dir().join(machine.name()).join("agent");
        config::issue_agent(&brain, machine.name(), &issued)?;
        let there = Path::new(AGENT_DIR);
        for (file, from) in [("ca.pem", &brain), ("agent.pem", &issued), ("agent.key", &issued)] {
            let from = from.join(file);
            let text = fs::read_to_string(&from).with_context(|| format!("reading {}", from.display()))?;
            machine.write(&there.join(file).to_string_lossy(), &text)?;
        }
        let place = AgentPlace {
            host: machine.name(),
            capacity_cores: None,
            cgroup_root: None,
            brain: format!("{OUTSIDE}:{port}"),
            state_dir: Path::new("/var/lib/gnomon-agent"),
            ca: &there.join("ca.pem"),
            identity: there,
        };
        machine.write(&there.join("agent.toml").to_string_lossy(), &config::agent(&place, settings))?;
        machine.run(&format!("chmod 600 {AGENT_DIR}/agent.key"))?;
        machine.spawn(AGENT, &format!("run --config {AGENT_DIR}/agent.toml"))
    }

    fn await_agent(&self, machine: &Machine) -> Result<()> {
        let deadline = Instant::now() + AGENT_DEADLINE;
        loop {
            let hosts = self.api.get("/api/v1/hosts")?;
            let hosts = hosts.as_array().context("/api/v1/hosts is no list")?;
            if hosts.iter().any(|known| known["host"] == machine.name() && known["connected"] == true) {
                return Ok(());
            }
            let alive = machine.run(&format!("kill -0 $(cat /run/{AGENT}.pid)")).is_ok();
            if !alive || Instant::now() > deadline {
                bail!("the agent on {} does not connect:\n{}", machine.name(), self.agent_log(machine)?);
            }
            thread::sleep(POLL * 10);
        }
    }

    /// The end of what an agent logged.
    pub fn agent_log(&self, machine: &Machine) -> Result<String> {
        machine.run(&format!("tail -n 40 /var/log/{AGENT}.log"))
    }
}

impl Drop for FullStack {
    fn drop(&mut self) {
        if let Some(brain) = self.brain.take()
            && let Err(error) = end(brain, Signal::TERM)
        {
            eprintln!("stopping the brain of the full lab: {error:#}");
        }
    }
}

fn brain_dir(lab: &FullLab) -> PathBuf {
    lab.dir().join("brain")
}

/// Where a brain listens that was free to choose its ports.
#[derive(Debug, PartialEq, Eq)]
struct Listening {
    agents: SocketAddr,
    api: SocketAddr,
}

impl Listening {
    /// From the line of the log that says so.
    fn parse(log: &str) -> Option<Self> {
        let line = log.lines().find(|line| line.contains(" listening "))?;
        let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok());
        Some(Listening { agents: value("agents=")?, api: value("api=")? })
    }
}

fn await_listening(brain: &mut Child, log: &Path) -> Result<Listening> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if let Some(listening) = Listening::parse(&fs::read_to_string(log).unwrap_or_default()) {
            return Ok(listening);
        }
        let ended = brain.try_wait()?;
        ensure!(ended.is_none() && Instant::now() < deadline, "the brain does not start ({ended:?}):\n{}", tail(log));
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brains_ports_are_read_from_its_log() {
        let log = "2026-01-01T00:00:00Z  INFO gnomon_brain: starts\n\
                   2026-01-01T00:00:00Z  INFO gnomon_brain::service: listening agents=127.0.0.1:4711 api=127.0.0.1:4712\n";
        let listening = Listening::parse(log).unwrap();
        assert_eq!((listening.agents.port(), listening.api.port()), (4711, 4712));
        assert_eq!(Listening::parse("INFO starts\n"), None);
    }
}
