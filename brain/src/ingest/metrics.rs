//! What ingest measures.

use gnomon_common::time::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Connections, reports and acknowledgements.
#[derive(Clone, Debug, Default)]
pub struct IngestMetrics {
    connected: Gauge,
    refused: Family<Reason, Counter>,
    ended: Family<Reason, Counter>,
    reports: Counter,
    report_bytes: Counter,
    acknowledged: Counter,
    outcomes: Counter,
    replies_dropped: Counter,
    enrolments: Family<Outcome, Counter>,
    refusals_unlisted: Counter,
    renewals: Family<Outcome, Counter>,
    own_certificate: Gauge,
}

impl IngestMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("gnomon_brain_hosts_connected", "Agents connected", metrics.connected.clone());
        registry.register(
            "gnomon_brain_connections_refused",
            "Connections refused before their welcome, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "gnomon_brain_sessions_ended",
            "Sessions of welcomed agents that ended, by reason",
            metrics.ended.clone(),
        );
        registry.register("gnomon_brain_reports", "Reports received, duplicates included", metrics.reports.clone());
        registry.register("gnomon_brain_report_bytes", "Bytes of reports received", metrics.report_bytes.clone());
        registry.register(
            "gnomon_brain_reports_acknowledged",
            "Reports acknowledged, each after its sync",
            metrics.acknowledged.clone(),
        );
        registry.register("gnomon_brain_outcomes", "Outcomes received, duplicates included", metrics.outcomes.clone());
        registry.register(
            "gnomon_brain_replies_dropped",
            "Heart-beats and commands dropped because an agent does not read",
            metrics.replies_dropped.clone(),
        );
        registry.register(
            "gnomon_brain_enrolments",
            "Attempts to join with a token, by result",
            metrics.enrolments.clone(),
        );
        registry.register(
            "gnomon_brain_enrolment_refusals_unlisted",
            "Refused tokens that the audit log does not list, because there were too many",
            metrics.refusals_unlisted.clone(),
        );
        registry.register(
            "gnomon_brain_renewals",
            "Renewals of agents' certificates, by result",
            metrics.renewals.clone(),
        );
        registry.register_with_unit(
            "gnomon_brain_certificate_expiry_timestamp",
            "When the brain's own certificate ends, since 1970",
            Unit::Seconds,
            metrics.own_certificate.clone(),
        );
        metrics
    }

    /// Until when the brain's own certificate is valid.
    pub fn own_certificate(&self, valid_to: Timestamp) {
        self.own_certificate.set(i64::try_from(valid_to.unix_ms() / 1000).unwrap_or(i64::MAX));
    }

    pub(super) fn connected(&self, agents: usize) {
        self.connected.set(i64::try_from(agents).unwrap_or(i64::MAX));
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn report(&self, bytes: usize) {
        self.reports.inc();
        self.report_bytes.inc_by(bytes as u64);
    }

    pub(super) fn acknowledged(&self) {
        self.acknowledged.inc();
    }

    pub(super) fn outcome(&self) {
        self.outcomes.inc();
    }

    pub(super) fn reply_dropped(&self) {
        self.replies_dropped.inc();
    }

    pub(super) fn enrolment(&self, result: &'static str) {
        self.enrolments.get_or_create(&Outcome { result }).inc();
    }

    pub(super) fn refusal_unlisted(&self) {
        self.refusals_unlisted.inc();
    }

    pub(super) fn renewal(&self, result: &'static str) {
        self.renewals.get_or_create(&Outcome { result }).inc();
    }
}
