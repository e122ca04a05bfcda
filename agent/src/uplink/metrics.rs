//! What the connection does, in numbers.

use gnomon_common::time::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

/// The uplink's metrics; clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) connected: Gauge,
    connections: Counter,
    failures: Family<ByKind, Counter>,
    pub(super) reports_sent: Counter,
    pub(super) reports_acknowledged: Counter,
    pub(super) reports_dropped: Counter,
    reports_waiting: Gauge,
    reports_waiting_bytes: Gauge,
    spool_bytes: Gauge,
    pub(super) spool_failing: Gauge,
    pub(super) spool_write_failures: Counter,
    pub(super) spool_records_damaged: Counter,
    pub(super) acknowledgements_unheard: Counter,
    certificate_valid_to: Gauge,
    renewals: Family<ByResult, Counter>,
    pub(super) clock_ahead_seconds: Gauge<f64, AtomicU64>,
    /// When the last report was made, in milliseconds since the other.
    last_report: Arc<(Instant, AtomicU64)>,
}

impl Metrics {
    /// Makes and registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let new = Self {
            connected: Gauge::default(),
            connections: Counter::default(),
            failures: Family::default(),
            reports_sent: Counter::default(),
            reports_acknowledged: Counter::default(),
            reports_dropped: Counter::default(),
            reports_waiting: Gauge::default(),
            reports_waiting_bytes: Gauge::default(),
            spool_bytes: Gauge::default(),
            spool_failing: Gauge::default(),
            spool_write_failures: Counter::default(),
            spool_records_damaged: Counter::default(),
            acknowledgements_unheard: Counter::default(),
            certificate_valid_to: Gauge::default(),
            renewals: Family::default(),
            clock_ahead_seconds: Gauge::default(),
            last_report: Arc::new((Instant::now(), AtomicU64::new(0))),
        };
        let mut add = |name: &str, help: &str, metric: &Counter| {
            registry.register(format!("gnomon_agent_{name}"), help, metric.clone());
        };
        add("uplink_connections", "Connections the brain has welcomed", &new.connections);
        add("reports_sent", "Reports sent, those sent again included", &new.reports_sent);
        add("reports_acknowledged", "Reports the brain has stored", &new.reports_acknowledged);
        add(
            "reports_dropped",
            "Reports dropped: the brain was away for longer than the spool's bounds, or the disk failed for longer than memory",
            &new.reports_dropped,
        );
        add("spool_write_failures", "Failed attempts to write or sync the spool", &new.spool_write_failures);
        add(
            "spool_records_damaged",
            "Records of the spool that were torn, corrupt, or of another host or format; skipped, and dropped",
            &new.spool_records_damaged,
        );
        add(
            "outcome_acknowledgements_unheard",
            "Acknowledgements of outcomes that found the command queue full; the outcomes are sent again",
            &new.acknowledgements_unheard,
        );
        registry.register("gnomon_agent_uplink_connected", "1 while the brain has welcomed us", new.connected.clone());
        registry.register(
            "gnomon_agent_uplink_failures",
            "Connections that failed or ended, by reason",
            new.failures.clone(),
        );
        registry.register(
            "gnomon_agent_reports_waiting",
            "Reports not acknowledged, on disk and in memory",
            new.reports_waiting.clone(),
        );
        registry.register_with_unit(
            "gnomon_agent_reports_waiting",
            "Reports that are only in memory: the disk has not taken them",
            Unit::Bytes,
            new.reports_waiting_bytes.clone(),
        );
        registry.register_with_unit("gnomon_agent_spool", "Spool on disk", Unit::Bytes, new.spool_bytes.clone());
        registry.register(
            "gnomon_agent_spool_failing",
            "1 while the spool cannot be written to disk",
            new.spool_failing.clone(),
        );
        registry.register_with_unit(
            "gnomon_agent_certificate_expiry_timestamp",
            "When this host's certificate ends, since 1970",
            Unit::Seconds,
            new.certificate_valid_to.clone(),
        );
        registry.register(
            "gnomon_agent_certificate_renewals",
            "Attempts to renew this host's certificate, by result",
            new.renewals.clone(),
        );
        registry.register_with_unit(
            "gnomon_agent_uplink_clock_ahead",
            "The brain's wall clock minus this host's, at its last heart-beat",
            Unit::Seconds,
            new.clock_ahead_seconds.clone(),
        );
        new
    }

    /// Whether the brain has welcomed this agent and the connection still stands.
    pub fn is_connected(&self) -> bool {
        self.connected.get() == 1
    }

    /// Time since sampling handed the last report over, or since the start.
    pub fn since_last_report(&self) -> Duration {
        let (start, last_ms) = &*self.last_report;
        start.elapsed().saturating_sub(Duration::from_millis(last_ms.load(Ordering::Relaxed)))
    }

    pub(super) fn note_report(&self) {
        let (start, last_ms) = &*self.last_report;
        last_ms.store(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn count_connected(&self) {
        self.connections.inc();
        self.connected.set(1);
    }

    pub(super) fn certificate_valid_to(&self, at: Timestamp) {
        self.certificate_valid_to.set(i64::try_from(at.unix_ms() / 1000).unwrap_or(i64::MAX));
    }

    pub(super) fn count_renewal(&self, result: &'static str) {
        self.renewals.get_or_create(&ByResult { result }).inc();
    }

    pub(super) fn count_failure(&self, kind: &'static str) {
        self.failures.get_or_create(&ByKind { kind }).inc();
    }

    /// Shows what waits: reports altogether, bytes of those only in memory, bytes on disk.
    pub(super) fn show(&self, reports: u64, memory_bytes: usize, disk_bytes: u64) {
        self.reports_waiting.set(i64::try_from(reports).unwrap_or(i64::MAX));
        self.reports_waiting_bytes.set(i64::try_from(memory_bytes).unwrap_or(i64::MAX));
        self.spool_bytes.set(i64::try_from(disk_bytes).unwrap_or(i64::MAX));
    }
}
