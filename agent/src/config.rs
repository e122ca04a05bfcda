//! The agent's configuration: one commented TOML file (`deploy/agent.toml` is the reference).
//!
//! Every key has its unit in its name, an unknown key is an error that names the nearest known one, and relative paths are taken from the
//! file's own folder. Parsing touches nothing but the text it is given; [`Config::load`] alone reads the file.

use crate::cost::Budget;
use crate::cpu_source::Choice;
mod duties;
mod guard;
mod migration;

pub use duties::{Away, OnForeignChange, Reconcile};
pub use guard::Guard;
pub use migration::{MigrationConfig, is_remote};

use crate::uplink::Bounds;
use crate::uplink::identity::Files;
use gnomon_common::wire::HostId;
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINIMAL: &str = "[host]\nname = \"h1\"\n[brain]\naddress = \"brain:9470\"\nca = \"ca.pem\"\ncertificate = \"h1.pem\"\nkey = \"/keys/h1.key\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/gnomon/agent.toml"))
    }

    fn message(text: &str) -> String {
        parse(text).expect_err("the configuration was accepted").to_string()
    }

    #[test]
    fn the_shipped_configuration_is_valid_and_spells_out_every_default() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/agent.toml"));
        let shipped = Config::load(path).unwrap();
        let minimal = parse(MINIMAL).unwrap();
        assert_eq!(shipped.probe.source, minimal.probe.source);
        assert_eq!(shipped.sample.window_ms, minimal.sample.window_ms);
        assert_eq!(shipped.sample.sample_ms, minimal.sample.sample_ms);
        assert_eq!(shipped.cost, minimal.cost);
        assert_eq!(shipped.spool.bytes_max, minimal.spool.bytes_max);
        assert_eq!(shipped.spool.age_max_s, minimal.spool.age_max_s);
        assert_eq!(shipped.guard.cpu_bounds(), minimal.guard.cpu_bounds());
        assert_eq!(shipped.guard.allowed(), minimal.guard.allowed());
        assert_eq!(shipped.away, minimal.away);
        assert_eq!(shipped.reconcile, minimal.reconcile);
        assert_eq!(shipped.migration, minimal.migration);
        assert_eq!(shipped.host.zone, minimal.host.zone);
        assert_eq!(shipped.metrics.listen, minimal.metrics.listen);
        assert_eq!(shipped.host.libvirt_uri, minimal.host.libvirt_uri);
        assert_eq!(shipped.brain.server_name, minimal.brain.server_name);
        assert_eq!(shipped.state_dir, minimal.state_dir);
    }

    #[test]
    fn relative_paths_are_taken_from_the_files_folder() {
        let config = parse(MINIMAL).unwrap();
        let identity = config.identity();
        assert_eq!(identity.ca, Path::new("/etc/gnomon/ca.pem"));
        assert_eq!(identity.key, Path::new("/keys/h1.key"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
        let text = format!("{MINIMAL}[guard]\ncpu_flor_cores = 1.0\n");
        assert_eq!(
            message(&text),
            "/etc/gnomon/agent.toml:9: unknown key `cpu_flor_cores`: did you mean `cpu_floor_cores`?"
        );
        let text = format!("{MINIMAL}[guard]\nzzz = 1.0\n");
        assert!(
            message(&text).contains("`zzz`, expected one of `means`, `cpu_floor_cores`, `cpu_ceiling_cores`"),
            "{}",
            message(&text)
        );
    }

    #[test]
    fn a_brain_has_one_address_and_several_have_a_list() {
        assert_eq!(parse(MINIMAL).unwrap().brain.address.0, ["brain:9470"]);
        let several = MINIMAL.replace("\"brain:9470\"", "[\"a:9470\", \"[::1]:9470\"]");
        assert_eq!(parse(&several).unwrap().brain.address.0, ["a:9470", "[::1]:9470"]);
    }

    #[test]
    fn a_missing_key_and_a_wrong_type_are_named() {
        assert!(message(&MINIMAL.replace("name = \"h1\"\n", "")).contains("missing field `name`"));
        assert!(message(&MINIMAL.replace("\"h1\"", "7")).contains(":2: invalid type"));
        assert!(message(&MINIMAL.replace("\"h1\"", "\"H 1\"")).contains(":2: host name"));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_key() {
        let cases = [
            ("[sample]\nsample_ms = 0", "sample.sample_ms"),
            ("[sample]\nsample_ms = 700", "sample.window_ms"),
            ("[probe]\nsource = \"ebpf\"", "\"ebpf\" is no source"),
            ("[cost]\nbudget_cores = -0.01", "cost.budget_cores"),
            ("[cost]\nbudget_per_busy_core = inf", "cost.budget_per_busy_core"),
            ("[spool]\nbytes_max = 1000", "spool.bytes_max"),
            ("[spool]\nage_max_s = 0", "spool.age_max_s"),
            ("[guard]\ncpu_floor_cores = 0.001", "guard.cpu_floor_cores"),
            ("[guard]\ncpu_floor_cores = nan", "guard.cpu_floor_cores"),
            ("[guard]\ncpu_ceiling_cores = 0.05", "guard.cpu_ceiling_cores"),
            ("[guard]\ncpu_ceiling_cores = inf", "guard.cpu_ceiling_cores"),
            ("[guard]\nmemory_shrink_step = 0.5", "guard.memory_shrink_step"),
            ("[guard]\nmeans = [\"ram\"]", "unknown variant `ram`"),
            ("[away]\nafter_s = 0", "away.after_s"),
            ("[away]\ngrowth_max = 1.0", "away.growth_max"),
            ("[away]\nheadroom = 0.9", "away.headroom"),
            ("[away]\ndrift_step = nan", "away.drift_step"),
            ("[away]\ndrift_interval_s = 0", "away.drift_interval_s"),
            ("[reconcile]\nreapply_max = 101", "reconcile.reapply_max"),
            ("[migration]\nenabled = true", "migration.uri"),
            ("[metrics]\nlisten = \"9479\"", "neither \"off\" nor"),
        ];
        for (section, expected) in cases {
            let message = message(&format!("{MINIMAL}{section}\n"));
            assert!(message.contains(expected), "{section:?} gave {message:?}");
        }
        for address in ["\"brain\"", "[\"a:1\", \"b\"]", "[]"] {
            let message = message(&MINIMAL.replace("\"brain:9470\"", address));
            assert!(message.contains("brain.address"), "{address} gave {message:?}");
        }
        assert!(message(&MINIMAL.replace("\"brain:9470\"", "7")).contains("expected \"HOST:PORT\" or a list of them"));
        assert!(message(&MINIMAL.replace("[brain]", "zone = \"\"\n[brain]")).contains("host.zone"));
        assert!(message(&MINIMAL.replace("[brain]", "capacity_cores = 0\n[brain]")).contains("host.capacity_cores"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn accepted_bounds_are_always_ordered(floor in any::<f64>(), ceiling in any::<f64>()) {
            prop_assume!(floor.is_finite() && ceiling.is_finite());
            if let Ok(config) = parse(&format!("{MINIMAL}[guard]\ncpu_floor_cores = {floor:?}\ncpu_ceiling_cores = {ceiling:?}\n")) {
                let bounds = config.guard.cpu_bounds();
                prop_assert!(CPU_FLOOR_CORES_MIN <= bounds.floor_cores && bounds.floor_cores <= bounds.ceiling_cores);
            }
        }
    }
}
