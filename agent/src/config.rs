//! The agent's configuration: one commented TOML file (`deploy/agent.toml` is the reference).
//!
//! Every key has its unit in its name, an unknown key is an error that names the nearest known one, and relative paths are taken from the
//! file's own folder. Parsing touches nothing but the text it is given; [`Config::load`] alone reads the file.

use crate::cost::Budget;
use crate::cpu_source::Choice;
mod duties;
mod guard;
mod migration;
mod shadow;

pub use duties::{Away, OnForeignChange, Reconcile};
pub use guard::Guard;
pub use migration::{MigrationConfig, is_remote};
pub use shadow::ShadowConfig;

use crate::uplink::Bounds;
use crate::uplink::identity::Files;
use gnomon_common::wire::{HostId, Labels};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Smallest CPU quota the kernel accepts: 1 ms in libvirt's period of 100 ms (`min_cfs_quota_period`).
pub const CPU_FLOOR_CORES_MIN: f64 = 0.01;

/// Shortest and longest time between two samples: below, the agent's own cost shows; above, a surge fits between two samples.
const SAMPLE_MS: std::ops::RangeInclusive<u32> = 100..=10_000;

/// Shortest and longest window: the brain's finest history step is 10 s, and a window is its granule of loss.
const WINDOW_MS: std::ops::RangeInclusive<u32> = 1_000..=60_000;

/// Least disk space and least age of the spool: less would drop what a brain that restarts has no time to take.
const SPOOL_BYTES_MIN: u64 = 1 << 20;
const SPOOL_AGE_MIN_S: u64 = 60;

/// Longest name of a zone, in bytes.
const ZONE_BYTES_MAX: usize = 64;

/// Everything an operator can set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the ledger of commands lives; created with mode 0700.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// What this host is.
    pub host: Host,
    /// Where the brain is and how both prove who they are.
    pub brain: Brain,
    /// By what means to measure.
    #[serde(default)]
    pub probe: Probe,
    /// How often to measure.
    #[serde(default)]
    pub sample: Sample,
    /// What measuring may cost.
    #[serde(default)]
    pub cost: Budget,
    /// What is kept for a brain that is away.
    #[serde(default)]
    pub spool: Spool,
    /// Limits that no command can override.
    #[serde(default)]
    pub guard: Guard,
    /// While there is no brain.
    #[serde(default)]
    pub away: Away,
    /// When someone else changes what Gnomon set.
    #[serde(default)]
    pub reconcile: Reconcile,
    /// Sending VMs to other hosts.
    #[serde(default)]
    pub migration: MigrationConfig,
    /// Taking shadows of other hosts' VMs.
    #[serde(default)]
    pub shadow: ShadowConfig,
    /// The agent's own metrics.
    #[serde(default)]
    pub metrics: Metrics,
}

/// `[host]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The host's name: must be the name in its certificate.
    pub name: HostId,
    /// CPU that VMs may share out, in cores; the number of online CPUs where absent.
    pub capacity_cores: Option<f64>,
    /// Only this control group counts as "the host" for its CPU use (a directory with `cpu.stat` of version 2 or `cpuacct.usage`); the
    /// whole machine where absent.
    pub cgroup_root: Option<PathBuf>,
    /// Which libvirt to talk to.
    #[serde(default = "default_libvirt_uri")]
    pub libvirt_uri: String,
    /// Where it stands, for what must not be in one place: a room, a feed, a rack.
    pub zone: Option<String>,
    /// What is said of it for VMs whose owners ask for that.
    #[serde(default)]
    pub labels: Labels,
}

/// `[brain]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Brain {
    /// Where it is.
    pub address: Addresses,
    /// The name in the brain's certificate.
    #[serde(default = "default_server_name")]
    pub server_name: String,
    /// PEM: the authority that signed the brain's certificate; no other is trusted. See [`Config::identity`] where absent.
    pub ca: Option<PathBuf>,
    /// PEM: this host's certificate (and intermediates).
    pub certificate: Option<PathBuf>,
    /// PEM: its private key; refused when others than owner and group can read it.
    pub key: Option<PathBuf>,
}

/// `HOST:PORT` (UDP) of the brain, or of all the brains of a fleet: one of them leads, and is found by trying them in turn. Names are
/// resolved anew at every attempt.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "OneOrMore")]
pub struct Addresses(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"HOST:PORT\" or a list of them")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<OneOrMore> for Addresses {
    fn from(addresses: OneOrMore) -> Self {
        Self(match addresses {
            OneOrMore::One(address) => vec![address],
            OneOrMore::More(addresses) => addresses,
        })
    }
}

/// `[probe]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    /// Where readings of CPU come from.
    pub source: Choice,
}

/// `[sample]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sample {
    /// Time between two samples, in milliseconds.
    pub sample_ms: u32,
    /// Time covered by one report, in milliseconds: a multiple of `sample_ms`.
    pub window_ms: u32,
}

impl Default for Sample {
    fn default() -> Self {
        Self { sample_ms: 1_000, window_ms: 10_000 }
    }
}

/// `[spool]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// Disk space for reports that the brain has not acknowledged, in bytes.
    pub bytes_max: u64,
    /// Reports older than this are dropped, in seconds of the host's wall clock.
    pub age_max_s: u64,
}

impl Default for Spool {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, age_max_s: 7 * 24 * 3600 }
    }
}

impl Spool {
    /// The bounds as the spool takes them.
    pub fn bounds(self) -> Bounds {
        Bounds { bytes_max: self.bytes_max, age_max: Duration::from_secs(self.age_max_s) }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where `/metrics` and `/healthz` are served; `"off"` serves nothing.
    pub listen: Listen,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: Listen::At(SocketAddr::from(([127, 0, 0, 1], 9479))) }
    }
}

/// An address to listen on, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// Serve there.
    At(SocketAddr),
    /// Do not serve.
    Off,
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| format!("{text:?} is neither \"off\" nor ADDRESS:PORT, like 127.0.0.1:9479"))
    }
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/gnomon-agent")
}

fn default_libvirt_uri() -> String {
    "qemu:///system".to_owned()
}

fn default_server_name() -> String {
    "gnomon-brain".to_owned()
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML, a key is unknown or missing, or a value has the wrong type.
    #[error("{path}:{line}: {message}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong, with the nearest known key where one is near.
        message: String,
    },
    /// A value is well-formed and makes no sense.
    #[error("{path}: {key}: {message}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key, like `guard.cpu_floor_cores`.
        key: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of the file `path` (used for messages and for relative paths).
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start).min(text.len());
            let line = 1 + text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count();
            ConfigError::Syntax { path: path.to_owned(), line, message: with_nearest_key(error.message()) }
        })?;
        config.check().map_err(|(key, message)| ConfigError::Value { path: path.to_owned(), key, message })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let Brain { ca, certificate, key, .. } = &mut config.brain;
        let files = [ca, certificate, key].into_iter().flatten();
        for relative in files.chain([&mut config.state_dir]) {
            *relative = folder.join(&*relative);
        }
        Ok(config)
    }

    /// Where this host's identity is: by default in a directory of its own below `state_dir`, which the agent can write to.
    pub fn identity(&self) -> Files {
        let Brain { ca, certificate, key, .. } = &self.brain;
        let file =
            |set: &Option<PathBuf>, name| set.clone().unwrap_or_else(|| self.state_dir.join("identity").join(name));
        Files { ca: file(ca, "ca.pem"), certificate: file(certificate, "agent.pem"), key: file(key, "agent.key") }
    }

    /// Where the ledger of commands is kept.
    pub fn ledger_path(&self) -> PathBuf {
        self.state_dir.join("commands.redb")
    }

    /// Where reports wait for the brain.
    pub fn spool_path(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        self.away.check()?;
        self.reconcile.check()?;
        let Spool { bytes_max, age_max_s } = self.spool;
        if bytes_max < SPOOL_BYTES_MIN {
            return Err((
                "spool.bytes_max",
                format!("{bytes_max} is below {SPOOL_BYTES_MIN}, a few reports of a full host"),
            ));
        }
        if age_max_s < SPOOL_AGE_MIN_S {
            return Err(("spool.age_max_s", format!("{age_max_s} is below {SPOOL_AGE_MIN_S}, one longest window")));
        }
        let Budget { budget_cores, budget_per_busy_core } = self.cost;
        let shares = [("cost.budget_cores", budget_cores), ("cost.budget_per_busy_core", budget_per_busy_core)];
        if let Some((key, value)) = shares.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            return Err((key, format!("{value} is not a number of cores from 0 on")));
        }
        let Sample { sample_ms, window_ms } = self.sample;
        let Addresses(addresses) = &self.brain.address;
        if addresses.is_empty() {
            return Err(("brain.address", "is an empty list; it needs the HOST:PORT of a brain".to_owned()));
        }
        let is_host_and_port =
            |address: &&String| address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if let Some(address) = addresses.iter().find(|address| !is_host_and_port(address)) {
            return Err(("brain.address", format!("{address:?} is not HOST:PORT")));
        }
        if !SAMPLE_MS.contains(&sample_ms) {
            return Err(("sample.sample_ms", format!("{sample_ms} is not within {SAMPLE_MS:?}")));
        }
        if !WINDOW_MS.contains(&window_ms) || !window_ms.is_multiple_of(sample_ms) {
            let wanted = format!("a multiple of sample.sample_ms ({sample_ms}) within {WINDOW_MS:?}");
            return Err(("sample.window_ms", format!("{window_ms} is not {wanted}")));
        }
        self.guard.check()?;
        self.migration.check()?;
        self.shadow.check(&self.migration)?;
        if let Some(zone) = &self.host.zone
            && !(1..=ZONE_BYTES_MAX).contains(&zone.len())
        {
            return Err(("host.zone", format!("{zone:?} is not a name of 1 to {ZONE_BYTES_MAX} bytes")));
        }
        if let Some(capacity) = self.host.capacity_cores
            && !(capacity.is_finite() && capacity > 0.0)
        {
            return Err(("host.capacity_cores", format!("{capacity} is not a positive number of cores")));
        }
        Ok(())
    }
}

/// Adds "did you mean" to serde's message for an unknown field, which lists all known ones. The wording is serde's public
/// convention; should it ever change, the message passes unchanged.
fn with_nearest_key(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let Some((unknown, known)) = rest.split_once('`') else { return message.to_owned() };
    let nearest = known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|key| (strsim::jaro_winkler(unknown, key), key))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.7);
    match nearest {
        Some((_, key)) => format!("unknown key `{unknown}`: did you mean `{key}`?"),
        None => format!("unknown key `{unknown}`{known}"),
    }
}

#[cfg(test)]
mod tests;
