//! A whole Gnomon on a lab: one brain in the lab's network, one agent on each host, real certificates between them.
//!
//! The demo and the end-to-end tests start it the same way an operator would: through the programs' own command lines and
//! configuration files. It lives no longer than its lab.

mod api;
mod config;
pub mod full;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use config::{AgentPlace, Listen};
use gnomon_core::Policy;
use rustix::process::{Pid, Signal, kill_process};

use crate::env::bin_dir;
use crate::lab::{BRAIN_ADDRESS, Host, Lab};

pub use api::Api;
pub use config::{AgentSettings, BrainSettings};
pub use gnomon_core::Mode;
pub use gnomon_sim::demo::demo_policy;

/// UDP port of the brain for agents.
const QUIC_PORT: u16 = 9470;
/// TCP port of the brain's API.
const API_PORT: u16 = 9480;
/// A brain restores its history and an agent loads its probes within seconds, on busy cores several times that.
const START_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Brain and agents on a lab.
#[derive(Debug)]
pub struct Stack {
    /// The lab they live on.
    pub lab: Lab,
    settings: BrainSettings,
    brain: Option<Child>,
    agents: BTreeMap<String, Child>,
    api: Api,
    brain_wrapper: Vec<String>,
    agent_wrapper: Vec<String>,
}

impl Stack {
    /// Issues certificates, writes configurations, starts the brain and an agent on every host, and returns when all agents are connected.
    pub fn start(lab: Lab, brain: BrainSettings, agent: &AgentSettings) -> Result<Stack> {
        let dir = lab.dir().join("brain");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let listen = Listen { address: BRAIN_ADDRESS, quic_port: QUIC_PORT, api_port: API_PORT };
        let token = config::prepare_brain(&dir, &brain, listen)?;
        for host in lab.hosts() {
            prepare_agent(&dir, host, lab.capacity_cores(host), agent)?;
        }
        let api = Api::new(lab.publish(API_PORT)?, token);
        let mut stack = Stack {
            lab,
            settings: brain,
            brain: None,
            agents: BTreeMap::new(),
            api,
            brain_wrapper: Vec::new(),
            agent_wrapper: Vec::new(),
        };
        stack.start_brain()?;
        let names: Vec<String> = stack.lab.hosts().iter().map(|host| host.name().to_owned()).collect();
        for name in &names {
            stack.start_agent(name)?;
        }
        Ok(stack)
    }

    /// The brain's API, with an operator's token.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Where the brain keeps configuration, certificates and store.
    pub fn brain_dir(&self) -> PathBuf {
        self.lab.dir().join("brain")
    }

    /// Starts the brain and waits until its API answers.
    pub fn start_brain(&mut self) -> Result<()> {
        ensure!(self.brain.is_none(), "the brain runs already");
        let dir = self.brain_dir();
        let words = wrapped(&self.brain_wrapper, "gnomon-brain");
        let mut command = self.lab.brain_command(&words[0]);
        command.args(&words[1..]).args(["run", "--config"]).arg(dir.join("brain.toml"));
        self.brain = Some(spawn(&mut command, &dir.join("brain.log"))?);
        let deadline = Instant::now() + START_DEADLINE;
        while self.api.get("/healthz").is_err() {
            if let Some(status) = self.brain.as_mut().and_then(|brain| brain.try_wait().transpose()).transpose()? {
                bail!("the brain ended with {status}:\n{}", tail(&dir.join("brain.log")));
            }
            ensure!(Instant::now() < deadline, "the brain does not answer:\n{}", tail(&dir.join("brain.log")));
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Gives the agent of a host other settings, from its next start on.
    pub fn configure_agent(&self, host: &str, settings: &AgentSettings) -> Result<()> {
        let host = self.lab.host(host)?;
        configure_agent(&self.brain_dir(), host, self.lab.capacity_cores(host), settings)
    }

    /// Starts the agent of a host, and no more.
    pub fn launch_agent(&mut self, host: &str) -> Result<()> {
        ensure!(!self.agents.contains_key(host), "the agent of {host} runs already");
        let place = self.lab.host(host)?;
        let words = wrapped(&self.agent_wrapper, "gnomon-agent");
        let mut command = place.command(&words[0]);
        command.args(&words[1..]).args(["run", "--config"]).arg(agent_config(place));
        let agent = spawn(&mut command, &agent_log(place))?;
        self.agents.insert(host.to_owned(), agent);
        Ok(())
    }

    /// Starts the agent of a host and waits until the brain sees it.
    pub fn start_agent(&mut self, host: &str) -> Result<()> {
        self.launch_agent(host)?;
        let log = agent_log(self.lab.host(host)?);
        let deadline = Instant::now() + START_DEADLINE;
        while !self.connected(host)? {
            if let Some(agent) = self.agents.get_mut(host)
                && let Some(status) = agent.try_wait()?
            {
                bail!("the agent of {host} ended with {status}:\n{}", tail(&log));
            }
            ensure!(Instant::now() < deadline, "the agent of {host} does not connect:\n{}", tail(&log));
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn connected(&self, host: &str) -> Result<bool> {
        let hosts = self.api.get("/api/v1/hosts")?;
        let hosts = hosts.as_array().context("/api/v1/hosts is no list")?;
        Ok(hosts.iter().any(|known| known["host"] == host && known["connected"] == true))
    }

    /// Kills the brain without warning (SIGKILL) and waits until it is gone.
    pub fn kill_brain(&mut self) -> Result<()> {
        end(self.brain.take().context("no brain runs")?, Signal::KILL)
    }

    /// Kills the agent of a host without warning (SIGKILL) and waits until it is gone.
    pub fn kill_agent(&mut self, host: &str) -> Result<()> {
        end(self.agents.remove(host).with_context(|| format!("no agent runs on {host}"))?, Signal::KILL)
    }

    /// Asks the agent of a host to end (SIGTERM) and waits until it is gone.
    pub fn stop_agent(&mut self, host: &str) -> Result<()> {
        end(self.agents.remove(host).with_context(|| format!("no agent runs on {host}"))?, Signal::TERM)
    }

    /// Starts the brain by this command from now on, which must become (`exec`) what follows it. For a disk of its own, say.
    pub fn wrap_brain<'a>(&mut self, wrapper: impl IntoIterator<Item = &'a str>) {
        self.brain_wrapper = wrapper.into_iter().map(str::to_owned).collect();
    }

    /// As [`Stack::wrap_brain`], for the agents. For a clock of their own, say.
    pub fn wrap_agents<'a>(&mut self, wrapper: impl IntoIterator<Item = &'a str>) {
        self.agent_wrapper = wrapper.into_iter().map(str::to_owned).collect();
    }

    /// The brain's process.
    pub fn brain_pid(&self) -> Result<u32> {
        Ok(self.brain.as_ref().context("no brain runs")?.id())
    }

    /// Changes the policy in the brain's configuration, and has the brain reread it (SIGHUP).
    pub fn change_policy(&mut self, change: impl FnOnce(&mut Policy)) -> Result<()> {
        change(&mut self.settings.policy);
        config::set_policy(&self.brain_dir(), &self.settings.policy)?;
        Ok(kill_process(pid_of(self.brain.as_ref().context("no brain runs")?)?, Signal::HUP)?)
    }

    /// The process of a host's agent.
    pub fn agent_pid(&self, host: &str) -> Result<u32> {
        Ok(self.agents.get(host).with_context(|| format!("no agent runs on {host}"))?.id())
    }

    /// What the brain logged.
    pub fn brain_log(&self) -> Result<String> {
        let path = self.brain_dir().join("brain.log");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// What the agent of a host logged.
    pub fn agent_log(&self, host: &str) -> Result<String> {
        let path = agent_log(self.lab.host(host)?);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// How the brain was configured.
    pub fn settings(&self) -> &BrainSettings {
        &self.settings
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The lab kills what is left with its cgroups; a clean end first lets sanitised logs and stores be looked at.
        for child in std::mem::take(&mut self.agents).into_values().chain(self.brain.take()) {
            if let Err(error) = end(child, Signal::TERM) {
                eprintln!("stopping a daemon of the lab: {error:#}");
            }
        }
    }
}

/// Issues a host's certificate into its directory and writes the agent's configuration there.
fn prepare_agent(brain_dir: &Path, host: &Host, capacity_cores: Option<f64>, settings: &AgentSettings) -> Result<()> {
    config::issue_agent(brain_dir, host.name(), &host.dir().join("agent"))?;
    configure_agent(brain_dir, host, capacity_cores, settings)
}

fn configure_agent(brain_dir: &Path, host: &Host, capacity_cores: Option<f64>, settings: &AgentSettings) -> Result<()> {
    let identity = host.dir().join("agent");
    let place = AgentPlace {
        host: host.name(),
        capacity_cores,
        cgroup_root: Some(host.own_cgroup_root()?),
        brain: format!("{BRAIN_ADDRESS}:{QUIC_PORT}"),
        state_dir: &host.dir().join("agent-state"),
        ca: &brain_dir.join("ca.pem"),
        identity: &identity,
    };
    config::write(&agent_config(host), &config::agent(&place, settings))
}

fn agent_config(host: &Host) -> PathBuf {
    host.dir().join("agent.toml")
}

fn agent_log(host: &Host) -> PathBuf {
    host.dir().join("agent.log")
}

/// The words of a command that starts a program of ours, behind a wrapper.
fn wrapped(wrapper: &[String], program: &str) -> Vec<OsString> {
    let program = bin_dir().join(program).into_os_string();
    wrapper.iter().map(OsString::from).chain([program]).collect()
}

/// Starts a daemon with its output appended to a log.
fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let file =
        File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    command.spawn().with_context(|| format!("starting {command:?}"))
}

fn pid_of(child: &Child) -> Result<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a pid beyond the kernel's")
}

/// Signals a daemon of ours and waits for its end; one that does not obey within the deadline is killed.
fn end(mut child: Child, signal: Signal) -> Result<()> {
    let pid = pid_of(&child)?;
    if child.try_wait()?.is_none() {
        kill_process(pid, signal)?;
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// The last lines of a log, for error messages.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Runs a program of ours to its end and returns what it printed.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
