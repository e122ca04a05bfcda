//! Certificates and configuration files of a stack, made with the programs' own commands.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use gnomon_core::Policy;

use super::{API_PORT, QUIC_PORT, agent_config, output};
use crate::env::bin_dir;
use crate::lab::{BRAIN_ADDRESS, Host};

/// Reports of a lab are kept for as long as any lab lives.
const RETENTION_S: u64 = 86_400;

/// The top of a host's own groups as seen on the host, in the hierarchy that counts CPU time.
const HOST_GROUP: &str = "/sys/fs/cgroup/cpuacct";

/// How the brain is to be.
#[derive(Debug, Clone)]
pub struct BrainSettings {
    /// The policy in force.
    pub policy: Policy,
    /// How often agents and brain say that they are there, in milliseconds.
    pub heartbeat_ms: u64,
}

/// How the agents are to be, all alike.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Time between two samples, in milliseconds.
    pub sample_ms: u64,
    /// Time covered by a report, in milliseconds.
    pub window_ms: u64,
    /// The agents' own floor, in cores.
    pub floor_cores: f64,
    /// The agents' own ceiling, in cores.
    pub ceiling_cores: f64,
}

impl Default for AgentSettings {
    /// One-second windows, so that a test sees in seconds what an operator sees in minutes.
    fn default() -> Self {
        Self { sample_ms: 1000, window_ms: 1000, floor_cores: 0.05, ceiling_cores: 2.0 }
    }
}

/// Makes the brain's directory; returns its API token.
pub(super) fn prepare_brain(dir: &Path, settings: &BrainSettings) -> Result<String> {
    let mut init = Command::new(bin_dir().join("gnomon-brain"));
    output(init.arg("init").arg("--dir").arg(dir).arg("--address").arg(BRAIN_ADDRESS.to_string()))?;
    let policy = toml::Table::try_from(&settings.policy).context("writing the policy")?;
    let config = toml::toml! {
        [tls]
        ca = "ca.pem"
        certificate = "brain.pem"
        key = "brain.key"
    };
    let mut config = config;
    let mut section = |name: &str, table: toml::Table| config.insert(name.to_owned(), table.into());
    let listen = format!("{BRAIN_ADDRESS}:{QUIC_PORT}");
    section(
        "listen",
        toml::Table::from_iter([
            ("address".to_owned(), listen.into()),
            ("heartbeat_ms".to_owned(), i64::try_from(settings.heartbeat_ms)?.into()),
        ]),
    );
    section(
        "api",
        toml::Table::from_iter([
            ("listen".to_owned(), format!("{BRAIN_ADDRESS}:{API_PORT}").into()),
            ("token_file".to_owned(), "tokens".into()),
        ]),
    );
    section(
        "store",
        toml::Table::from_iter([
            ("path".to_owned(), "brain.db".into()),
            ("report_retention_s".to_owned(), i64::try_from(RETENTION_S)?.into()),
        ]),
    );
    section("policy", policy);
    write(&dir.join("brain.toml"), &toml::to_string(&config)?)?;
    let tokens = dir.join("tokens");
    let tokens = fs::read_to_string(&tokens).with_context(|| format!("reading {}", tokens.display()))?;
    let token = tokens.lines().filter(|line| !line.starts_with('#')).find_map(|line| line.split_whitespace().nth(1));
    token.map(str::to_owned).context("gnomon-brain init made no token")
}

/// Issues a host's certificate into its directory and writes the agent's configuration there.
pub(super) fn prepare_agent(
    brain_dir: &Path,
    host: &Host,
    capacity_cores: Option<f64>,
    settings: &AgentSettings,
) -> Result<()> {
    let mut issue = Command::new(bin_dir().join("gnomon-brain"));
    issue.args(["ca", "issue-agent", "--host", host.name(), "--dir"]).arg(brain_dir);
    output(issue.arg("--out").arg(host.dir().join("agent")))?;
    let AgentSettings { sample_ms, window_ms, floor_cores, ceiling_cores } = settings;
    let name = host.name();
    let capacity = capacity_cores.map_or(String::new(), |cores| format!("capacity_cores = {cores:?}\n"));
    // Debug formatting quotes a path as TOML's basic strings do.
    let state = host.dir().join("agent-state");
    let ca = brain_dir.join("ca.pem");
    let files = host.dir().join("agent");
    let config = format!(
        "state_dir = {state:?}\n\
         [host]\nname = {name:?}\n{capacity}cgroup_root = {HOST_GROUP:?}\n\
         [brain]\naddress = \"{BRAIN_ADDRESS}:{QUIC_PORT}\"\nca = {ca:?}\n\
         certificate = {:?}\nkey = {:?}\n\
         [sample]\nsample_ms = {sample_ms}\nwindow_ms = {window_ms}\n\
         [guard]\ncpu_floor_cores = {floor_cores:?}\ncpu_ceiling_cores = {ceiling_cores:?}\n",
        files.join("agent.pem"),
        files.join("agent.key"),
    );
    write(&agent_config(host), &config)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
