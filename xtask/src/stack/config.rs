//! Certificates and configuration files of a stack, made with the programs' own commands.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use gnomon_core::Policy;

use super::output;
use crate::env::bin_dir;

/// Reports of a lab are kept for as long as any lab lives.
const RETENTION_S: u64 = 86_400;

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

/// Where a brain listens; a port of 0 is any that is free.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listen {
    pub(super) address: Ipv4Addr,
    /// UDP, for agents.
    pub(super) quic_port: u16,
    /// TCP.
    pub(super) api_port: u16,
}

/// Makes the brain's directory; returns its API token.
pub(super) fn prepare_brain(dir: &Path, settings: &BrainSettings, listen: Listen) -> Result<String> {
    let Listen { address, quic_port, api_port } = listen;
    let mut init = Command::new(bin_dir().join("gnomon-brain"));
    output(init.arg("init").arg("--dir").arg(dir).arg("--address").arg(address.to_string()))?;
    let config = toml::toml! {
        [tls]
        ca = "ca.pem"
        certificate = "brain.pem"
        key = "brain.key"
    };
    let mut config = config;
    let mut section = |name: &str, table: toml::Table| config.insert(name.to_owned(), table.into());
    section(
        "listen",
        toml::Table::from_iter([
            ("address".to_owned(), format!("{address}:{quic_port}").into()),
            ("heartbeat_ms".to_owned(), i64::try_from(settings.heartbeat_ms)?.into()),
        ]),
    );
    section(
        "api",
        toml::Table::from_iter([
            ("listen".to_owned(), format!("{address}:{api_port}").into()),
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
    write(&config_file(dir), &toml::to_string(&config)?)?;
    set_policy(dir, &settings.policy)?;
    let tokens = dir.join("tokens");
    let tokens = fs::read_to_string(&tokens).with_context(|| format!("reading {}", tokens.display()))?;
    let token = tokens.lines().filter(|line| !line.starts_with('#')).find_map(|line| line.split_whitespace().nth(1));
    token.map(str::to_owned).context("gnomon-brain init made no token")
}

/// Writes a policy into the brain's configuration, in place of the one that is there.
pub(super) fn set_policy(dir: &Path, policy: &Policy) -> Result<()> {
    let path = config_file(dir);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut config: toml::Table = text.parse().with_context(|| format!("parsing {}", path.display()))?;
    let policy = toml::Table::try_from(policy).context("writing the policy")?;
    config.insert("policy".to_owned(), policy.into());
    write(&path, &toml::to_string(&config)?)
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("brain.toml")
}

/// Issues a host's certificate: `agent.pem` and `agent.key` in `out`.
pub(super) fn issue_agent(brain_dir: &Path, host: &str, out: &Path) -> Result<()> {
    let mut issue = Command::new(bin_dir().join("gnomon-brain"));
    issue.args(["ca", "issue-agent", "--host", host, "--dir"]).arg(brain_dir);
    output(issue.arg("--out").arg(out)).map(|_| ())
}

/// What an agent is told of its place; all paths are those on its host.
#[derive(Debug)]
pub(super) struct AgentPlace<'a> {
    pub(super) host: &'a str,
    pub(super) capacity_cores: Option<f64>,
    /// The group that stands for the host, where hosts share a kernel.
    pub(super) cgroup_root: Option<&'a Path>,
    /// `ADDRESS:PORT`.
    pub(super) brain: String,
    pub(super) state_dir: &'a Path,
    pub(super) ca: &'a Path,
    /// Where `agent.pem` and `agent.key` are.
    pub(super) identity: &'a Path,
}

/// The text of an agent's configuration.
pub(super) fn agent(place: &AgentPlace<'_>, settings: &AgentSettings) -> String {
    let AgentSettings { sample_ms, window_ms, floor_cores, ceiling_cores } = settings;
    let AgentPlace { host, brain, state_dir, ca, identity, .. } = place;
    let capacity = place.capacity_cores.map_or(String::new(), |cores| format!("capacity_cores = {cores:?}\n"));
    let root = place.cgroup_root.map_or(String::new(), |root| format!("cgroup_root = {root:?}\n"));
    // Debug formatting quotes a path as TOML's basic strings do. Ten times as many windows as by default may cost ten times as much.
    format!(
        "state_dir = {state_dir:?}\n\
         [host]\nname = {host:?}\n{capacity}{root}\
         [brain]\naddress = {brain:?}\nca = {ca:?}\ncertificate = {:?}\nkey = {:?}\n\
         [sample]\nsample_ms = {sample_ms}\nwindow_ms = {window_ms}\n\
         [cost]\nbudget_cores = 0.1\n\
         [guard]\ncpu_floor_cores = {floor_cores:?}\ncpu_ceiling_cores = {ceiling_cores:?}\n",
        identity.join("agent.pem"),
        identity.join("agent.key"),
    )
}

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
