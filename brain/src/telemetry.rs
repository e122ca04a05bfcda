//! Logs and metrics of the whole process. Each metric is registered beside the code that it measures; here they only
//! meet.

use crate::api::ApiMetrics;
use crate::drive::DriveMetrics;
use crate::ingest::IngestMetrics;
use crate::service;
use crate::store::JournalMetrics;
use prometheus_client::encoding::text;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

/// The environment variable that chooses what is logged, in `tracing`'s filter syntax.
pub const LOG_VARIABLE: &str = "GNOMON_LOG";
/// The content type of [`Telemetry::encode`].
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the process.
#[derive(Clone)]
pub struct Telemetry {
    registry: Arc<Registry>,
    /// The agents' side.
    pub ingest: IngestMetrics,
    /// The writer.
    pub journal: JournalMetrics,
    /// The loop.
    pub drive: DriveMetrics,
    /// Whether this brain leads.
    pub leading: Gauge,
    /// HTTP.
    pub api: ApiMetrics,
}

impl Telemetry {
    /// Registers everything once.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("gnomon_brain_build", "Release of this brain", build);
        Self {
            ingest: IngestMetrics::register(&mut registry),
            journal: JournalMetrics::register(&mut registry),
            drive: DriveMetrics::register(&mut registry),
            leading: service::register_leading(&mut registry),
            api: ApiMetrics::register(&mut registry),
            registry: Arc::new(registry),
        }
    }

    /// All metrics, and those of `more`, in OpenMetrics text.
    pub fn encode(&self, more: &Registry) -> Result<String, fmt::Error> {
        let mut body = String::new();
        text::encode_registry(&mut body, &self.registry)?;
        text::encode_registry(&mut body, more)?;
        text::encode_eof(&mut body)?;
        Ok(body)
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

/// Logs to standard error, `info` and above unless [`LOG_VARIABLE`] says otherwise.
pub fn start_logging() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}
