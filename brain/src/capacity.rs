//! Asking a provider for capacity: a command, or a webhook.
//!
//! Both are given the same JSON document, the same at each attempt, and the request's key, by which a provider that is asked
//! twice knows that it was. Whether to ask, and whether to ask again, is the core's judgement.

mod command;
mod webhook;

use crate::secret::SecretError;
use command::Command;
use gnomon_common::time::Timestamp;
use gnomon_core::capacity::FullHost;
use gnomon_core::{CapacityAnswer, CapacityKey, CapacityRequest};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use url::Url;
use webhook::Webhook;

/// The document's version, raised when a provider would have to read it in another way.
const VERSION: u32 = 1;
/// A provider that takes longer is not reached; the core waits for ten minutes.
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1000..=300_000;
/// What is read of a provider's answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// `[capacity]`: whom to ask for more hosts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CapacityConfig {
    /// How the provider is asked.
    pub provider: ProviderKind,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where to POST to.
    pub url: Option<Url>,
    /// The file with the secret that signs what is posted.
    pub secret_file: Option<PathBuf>,
    /// How long the provider may take, in milliseconds.
    pub timeout_ms: u64,
}

/// How a provider is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// There is none: nothing is ever asked for.
    #[default]
    None,
    /// A program is run.
    Command,
    /// An HTTP request is made.
    Webhook,
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self { provider: ProviderKind::None, command: Vec::new(), url: None, secret_file: None, timeout_ms: 30_000 }
    }
}

impl CapacityConfig {
    /// Makes relative paths relative to `base`. A program without a slash is looked for in `PATH`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        if let Some(program) = self.command.first_mut().filter(|program| program.contains('/')) {
            *program = base.join(&*program).to_string_lossy().into_owned();
        }
        if let Some(file) = &mut self.secret_file {
            *file = base.join(&*file);
        }
    }

    pub(crate) fn check(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: &str| Err((format!("capacity.{key}"), problem.to_owned()));
        if !TIMEOUT_MS.contains(&self.timeout_ms) {
            return fail("timeout_ms", &format!("{} is not in {TIMEOUT_MS:?}", self.timeout_ms));
        }
        let is = |kind| self.provider == kind;
        match &self.url {
            _ if !is(ProviderKind::Command) && !self.command.is_empty() => {
                fail("command", "is for provider = \"command\"")
            }
            _ if is(ProviderKind::Command) && self.command.first().is_none_or(String::is_empty) => {
                fail("command", "names no program: [\"PROGRAM\", \"ARGUMENT\", ...]")
            }
            Some(_) if !is(ProviderKind::Webhook) => fail("url", "is for provider = \"webhook\""),
            None if is(ProviderKind::Webhook) => fail("url", "is missing: where to POST requests to"),
            Some(url) if !["http", "https"].contains(&url.scheme()) => fail("url", "is no address of HTTP"),
            Some(url) if !url.username().is_empty() || url.password().is_some() => {
                fail("url", "has a user or password in it, which everybody sees who sees the address")
            }
            _ if !is(ProviderKind::Webhook) && self.secret_file.is_some() => {
                fail("secret_file", "is for provider = \"webhook\"")
            }
            _ if is(ProviderKind::Webhook) && self.secret_file.is_none() => {
                fail("secret_file", "is missing: the secret that signs requests")
            }
            _ => Ok(()),
        }
    }
}

/// Who can be asked.
pub trait Provider: Send + Sync + 'static {
    /// Asks once. Blocks until there is an answer, or the provider has taken too long.
    fn ask(&self, request: &CapacityRequest) -> CapacityAnswer;
}

/// Why a provider cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The webhook's secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A signature that everybody can make is none.
    #[error("{0} is empty: put a secret into it that the provider has as well")]
    EmptySecret(PathBuf),
}

/// The provider of a configuration that passed its check; `None` where there is none.
pub fn open(config: &CapacityConfig) -> Result<Option<Arc<dyn Provider>>, ProviderError> {
    let timeout = Duration::from_millis(config.timeout_ms);
    Ok(match (config.provider, &config.url, &config.secret_file) {
        (ProviderKind::Command, ..) => Some(Arc::new(Command::new(config.command.clone(), timeout))),
        (ProviderKind::Webhook, Some(url), Some(secret)) => Some(Arc::new(Webhook::open(url, secret, timeout)?)),
        _ => None,
    })
}

/// What a provider is told: all of a request that does not change.
#[derive(Serialize)]
struct Question<'a> {
    version: u32,
    key: CapacityKey,
    zone: Option<&'a str>,
    cores: f64,
    memory_bytes: u64,
    reason: &'a str,
    asked: Timestamp,
    ahead_ms: u64,
    hosts_full: usize,
    hosts: &'a [FullHost],
}

/// The document, as JSON.
fn document(request: &CapacityRequest) -> String {
    let CapacityRequest { key, zone, cores, memory_bytes, reason, asked, ahead_ms, hosts_full, hosts, .. } = request;
    let question = Question {
        version: VERSION,
        key: *key,
        zone: zone.as_deref(),
        cores: *cores,
        memory_bytes: *memory_bytes,
        reason,
        asked: *asked,
        ahead_ms: *ahead_ms,
        hosts_full: *hosts_full,
        hosts,
    };
    serde_json::json!(question).to_string()
}

/// The first line that says something.
fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}
