//! The brain's configuration: one TOML file, `deploy/brain.toml` is the commented example.
//!
//! Unknown keys are refused with the nearest known one, values that make no sense with what would.

mod unknown;

use crate::ca::Lifetime;
use crate::capacity::{CapacityConfig, ProviderKind};
use crate::store::Location;
use gnomon_core::Policy;
use serde::Deserialize;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// The commented example, which is also what `gnomon-brain init` writes.
pub const EXAMPLE: &str = include_str!("../../deploy/brain.toml");

/// Heart-beats faster than this would cost more than they tell; slower ones would not notice a dead host within
/// minutes.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// Certificates that live shorter would be renewed more often than connections last; those that live longer outlive what
/// they are short-lived for.
const CERTIFICATE_LIFETIME_S: std::ops::RangeInclusive<u64> = 10..=365 * 86_400;
/// A shorter lease would end at every hiccup of the database, and a longer one would leave a fleet without a leader for minutes.
const LEASE_MS: std::ops::RangeInclusive<u64> = 3000..=120_000;
/// A forecast wants to see its season at least twice.
const SEASONS_KEPT_MIN: u64 = 2;

/// Everything the brain is told at start.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The agents' side.
    pub listen: Listen,
    /// Keys and certificates.
    pub tls: Tls,
    /// Issuing certificates; a brain without it issues none.
    pub ca: Option<CaConfig>,
    /// The people's and programs' side.
    pub api: Api,
    /// The database.
    pub store: StoreConfig,
    /// Whom to ask for more hosts.
    #[serde(default)]
    pub capacity: CapacityConfig,
    /// How to behave; the core's.
    #[serde(default)]
    pub policy: Policy,
}

/// `[listen]`: where agents connect.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// UDP address.
    pub address: SocketAddr,
    /// Agents served at a time.
    #[serde(default = "agents_max")]
    pub agents_max: usize,
    /// Time between heart-beats, in milliseconds.
    #[serde(default = "heartbeat_ms")]
    pub heartbeat_ms: u64,
}

/// `[tls]`: who the brain is and whom it trusts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The CA of agents' certificates.
    pub ca: PathBuf,
    /// The brain's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// `[ca]`: how agents get their certificates.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaConfig {
    /// The key of the first certificate in `tls.ca`.
    pub key: PathBuf,
    /// How long an agent's certificate is valid, in seconds; it renews itself when two thirds of that are over.
    #[serde(default = "certificate_lifetime_s")]
    pub certificate_lifetime_s: u64,
}

/// `[api]`: HTTP.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// TCP address.
    #[serde(default = "api_listen")]
    pub listen: SocketAddr,
    /// Who may use it.
    pub token_file: PathBuf,
}

/// `[store]`: the host information database.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The SQLite file: this or `url`.
    pub path: Option<PathBuf>,
    /// PostgreSQL, as `postgres://USER@HOST/DATABASE`.
    pub url: Option<Url>,
    /// The file with the password for it.
    pub password_file: Option<PathBuf>,
    /// How long a leader leads that does not renew its lease, in milliseconds; on PostgreSQL.
    #[serde(default = "lease_ms")]
    pub lease_ms: u64,
    /// How long reports are kept, in seconds.
    #[serde(default = "report_retention_s")]
    pub report_retention_s: u64,
    /// How long audit, plans, commands and outcomes are kept, in seconds.
    #[serde(default = "affairs_retention_s")]
    pub affairs_retention_s: u64,
}

fn agents_max() -> usize {
    1024
}

fn heartbeat_ms() -> u64 {
    5000
}

fn certificate_lifetime_s() -> u64 {
    7 * 86_400
}

fn api_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7480))
}

fn lease_ms() -> u64 {
    9000
}

fn report_retention_s() -> u64 {
    24 * 3600
}

fn affairs_retention_s() -> u64 {
    365 * 86_400
}

impl Listen {
    /// Time between heart-beats.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }
}

impl CaConfig {
    /// How long an agent's certificate is valid.
    pub fn certificate_lifetime(&self) -> Lifetime {
        Lifetime(Duration::from_secs(self.certificate_lifetime_s))
    }
}

impl StoreConfig {
    /// Where the database is.
    pub fn location(&self) -> Location {
        match (&self.url, &self.path) {
            (Some(url), _) => Location::Postgres { url: url.clone(), password_file: self.password_file.clone() },
            (None, path) => Location::Sqlite(path.clone().unwrap_or_default()),
        }
    }

    /// How long a lease lasts that is not renewed.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    fn check(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: &str| Err((format!("store.{key}"), problem.to_owned()));
        if !LEASE_MS.contains(&self.lease_ms) {
            return fail("lease_ms", &format!("{} is not in {LEASE_MS:?}", self.lease_ms));
        }
        match (&self.path, &self.url) {
            (Some(_), None) if self.password_file.is_some() => {
                fail("password_file", "is for store.url; an SQLite file has no password")
            }
            (Some(_), None) => Ok(()),
            (None, Some(url)) if !["postgres", "postgresql"].contains(&url.scheme()) => {
                fail("url", "is no address of PostgreSQL: postgres://USER@HOST/DATABASE")
            }
            (None, Some(url)) if url.password().is_some() || url.query_pairs().any(|(key, _)| key == "password") => {
                fail("url", "has a password in it, which everybody sees who sees the address; use store.password_file")
            }
            (None, Some(_)) => Ok(()),
            (Some(_), Some(_)) => fail("url", "and store.path exclude each other; take one of them out"),
            (None, None) => fail("path", "is missing, and store.url as well; one of them says where the database is"),
        }
    }

    /// How long reports are kept.
    pub fn report_retention(&self) -> Duration {
        Duration::from_secs(self.report_retention_s)
    }

    /// How long settled affairs are kept.
    pub fn affairs_retention(&self) -> Duration {
        Duration::from_secs(self.affairs_retention_s)
    }
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, a wrong type, a missing or an unknown key.
    #[error("{path}:{line}: {problem}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong, and the nearest known key if one is unknown.
        problem: String,
    },
    /// A value makes no sense.
    #[error("{path}: {key}: {problem}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file; relative paths in it become relative to its directory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            ConfigError::Parse { path: path.to_owned(), line, problem: unknown::explain(error.message()) }
        })?;
        let base = path.parent().unwrap_or(Path::new("."));
        let Config { tls, ca, api, store, capacity, policy, .. } = &mut config;
        policy.capacity.has_provider = capacity.provider != ProviderKind::None;
        capacity.resolve(base);
        let files = [&mut tls.ca, &mut tls.certificate, &mut tls.key, &mut api.token_file];
        let optional = [ca.as_mut().map(|ca| &mut ca.key), store.path.as_mut(), store.password_file.as_mut()];
        for file in files.into_iter().chain(optional.into_iter().flatten()) {
            *file = base.join(&*file);
        }
        config.validate().map_err(|(key, problem)| ConfigError::Value { path: path.to_owned(), key, problem })?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: String| Err((key.to_owned(), problem));
        if !HEARTBEAT_MS.contains(&self.listen.heartbeat_ms) {
            return fail("listen.heartbeat_ms", format!("{} is not in {HEARTBEAT_MS:?}", self.listen.heartbeat_ms));
        }
        if self.listen.agents_max == 0 {
            return fail("listen.agents_max", "0 would refuse every agent".into());
        }
        if let Some(ca) = &self.ca
            && !CERTIFICATE_LIFETIME_S.contains(&ca.certificate_lifetime_s)
        {
            let problem = format!("{} is not in {CERTIFICATE_LIFETIME_S:?}", ca.certificate_lifetime_s);
            return fail("ca.certificate_lifetime_s", problem);
        }
        self.store.check()?;
        self.capacity.check()?;
        self.policy.validate().map_err(|error| (format!("policy.{}", error.setting), error.problem))?;
        let forecast = &self.policy.forecast;
        let season_s = (forecast.season_steps_max as u64).saturating_mul(forecast.resolution_ms).div_ceil(1000);
        let least_s = season_s.saturating_mul(SEASONS_KEPT_MIN);
        if self.store.report_retention_s < least_s {
            return fail(
                "store.report_retention_s",
                format!(
                    "{} s is less than {SEASONS_KEPT_MIN} of the longest season ({season_s} s): a restarted brain would have \
                     forgotten it; use at least {least_s}",
                    self.store.report_retention_s
                ),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/gnomon/brain.toml"))
    }

    #[test]
    fn the_commented_example_is_a_configuration_and_shows_the_defaults() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.tls.key, Path::new("/etc/gnomon/brain.key"));
        assert_eq!(config.policy, Policy::default());
        assert_eq!(config.listen.agents_max, agents_max());
        assert_eq!(config.listen.heartbeat_ms, heartbeat_ms());
        let ca = config.ca.unwrap();
        assert_eq!(ca.key, Path::new("/etc/gnomon/ca.key"));
        assert_eq!(ca.certificate_lifetime_s, certificate_lifetime_s());
        assert_eq!(config.api.listen, api_listen());
        assert_eq!(config.store.location(), Location::Sqlite("/etc/gnomon/brain.db".into()));
        assert_eq!(config.store.lease_ms, lease_ms());
        assert_eq!(config.store.report_retention_s, report_retention_s());
        assert_eq!(config.store.affairs_retention_s, affairs_retention_s());
        assert_eq!(config.capacity, CapacityConfig::default());
    }

    #[test]
    fn a_mistyped_key_is_refused_with_its_line_and_the_nearest_known_one() {
        let message = parse(&EXAMPLE.replace("heartbeat_ms", "hartbeat_ms")).unwrap_err().to_string();
        assert!(message.contains("unknown key `hartbeat_ms`, did you mean `heartbeat_ms`?"), "{message}");
        let line = EXAMPLE.lines().position(|line| line.starts_with("heartbeat_ms")).unwrap() + 1;
        assert!(message.contains(&format!("brain.toml:{line}:")), "{message}");
    }

    #[test]
    fn a_mistyped_key_of_the_policy_is_refused_too() {
        let message = parse(&EXAMPLE.replace("shrink_dwell_ms", "shrink_dwel_ms")).unwrap_err().to_string();
        assert!(message.contains("did you mean `shrink_dwell_ms`?"), "{message}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        for (from, to, key) in [
            ("heartbeat_ms = 5000", "heartbeat_ms = 1", "listen.heartbeat_ms"),
            ("agents_max = 1024", "agents_max = 0", "listen.agents_max"),
            ("certificate_lifetime_s = 604800", "certificate_lifetime_s = 1", "ca.certificate_lifetime_s"),
            ("quantile = 0.95", "quantile = 0.8", "policy.cpu.quantile"),
            ("report_retention_s = 86400", "report_retention_s = 3600", "store.report_retention_s"),
            ("lease_ms = 9000", "lease_ms = 900", "store.lease_ms"),
            ("path = \"brain.db\"", "", "store.path"),
            ("path = \"brain.db\"", "url = \"mysql://gnomon@db/gnomon\"", "store.url"),
            ("path = \"brain.db\"", "path = \"brain.db\"\nurl = \"postgres://gnomon@db/gnomon\"", "store.url"),
            ("path = \"brain.db\"", "path = \"brain.db\"\npassword_file = \"password\"", "store.password_file"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let message = parse(&EXAMPLE.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_without_being_shown() {
        for url in ["postgres://gnomon:hunter2@db/gnomon", "postgres://gnomon@db/gnomon?password=hunter2"] {
            let text = EXAMPLE.replace("path = \"brain.db\"", &format!("url = \"{url}\""));
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains("store.password_file") && !message.contains("hunter2"), "{message}");
        }
        let good =
            EXAMPLE.replace("path = \"brain.db\"", "url = \"postgres://gnomon@db/gnomon\"\npassword_file = \"p\"");
        let Location::Postgres { url, password_file } = parse(&good).unwrap().store.location() else {
            panic!("SQLite")
        };
        assert_eq!((url.as_str(), password_file), ("postgres://gnomon@db/gnomon", Some("/etc/gnomon/p".into())));
    }

    #[test]
    fn a_provider_has_what_it_needs_and_nothing_of_another_one() {
        let with = |lines: &str| parse(&EXAMPLE.replace("provider = \"none\"", lines));
        for (lines, key) in [
            ("provider = \"command\"", "capacity.command"),
            ("provider = \"command\"\ncommand = [\"\"]", "capacity.command"),
            ("provider = \"none\"\ncommand = [\"true\"]", "capacity.command"),
            ("provider = \"webhook\"\nsecret_file = \"s\"", "capacity.url"),
            ("provider = \"webhook\"\nsecret_file = \"s\"\nurl = \"ftp://cloud\"", "capacity.url"),
            ("provider = \"webhook\"\nsecret_file = \"s\"\nurl = \"https://me:hunter2@cloud\"", "capacity.url"),
            ("provider = \"none\"\nurl = \"https://cloud\"", "capacity.url"),
            ("provider = \"webhook\"\nurl = \"https://cloud\"", "capacity.secret_file"),
            ("provider = \"none\"\nsecret_file = \"s\"", "capacity.secret_file"),
        ] {
            let message = with(lines).unwrap_err().to_string();
            assert!(message.contains(key) && !message.contains("hunter2"), "{lines}: {message}");
        }
        let message = parse(&EXAMPLE.replace("timeout_ms = 30000", "timeout_ms = 10")).unwrap_err().to_string();
        assert!(message.contains("capacity.timeout_ms"), "{message}");
        let command = with("provider = \"command\"\ncommand = [\"./ask\", \"./as-it-is\"]").unwrap();
        assert_eq!(command.capacity.command, ["/etc/gnomon/./ask", "./as-it-is"]);
        let url = "provider = \"webhook\"\nurl = \"https://cloud\"\nsecret_file = \"s\"";
        assert_eq!(with(url).unwrap().capacity.secret_file, Some("/etc/gnomon/s".into()));
        assert!(
            with(url).unwrap().policy.capacity.has_provider && !parse(EXAMPLE).unwrap().policy.capacity.has_provider
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        let message = parse(&EXAMPLE.replace("token_file = \"tokens\"", "")).unwrap_err().to_string();
        assert!(message.contains("token_file"), "{message}");
    }
}
