//! What the loop measures.

use gnomon_common::wire::{Action, Origin, Outcome, OutcomeResult, Setting, ShadowOrder, Whereabouts};
use gnomon_core::plan::local_cause;
use gnomon_core::{CapacityState, CommandRecord, Expectation, ShadowState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sent {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotSent {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Settled {
    action: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LocalAct {
    cause: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    expected: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// Metrics of the loop and of what it carries out.
#[derive(Clone, Debug)]
pub struct DriveMetrics {
    handle: Histogram,
    effects_waiting: Gauge,
    fits_waiting: Gauge,
    fits_failed: Counter,
    notices: Family<Kind, Counter>,
    sent: Family<Sent, Counter>,
    not_sent: Family<NotSent, Counter>,
    settled: Family<Settled, Counter>,
    local_acts: Family<LocalAct, Counter>,
    verdicts: Family<Verdict, Counter>,
    actuation: Histogram,
    moves: Histogram,
    capacity: Family<State, Gauge>,
    proposals: Gauge,
    shadows: Family<State, Gauge>,
}

impl DriveMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            handle: Histogram::new(exponential_buckets(0.000_001, 4.0, 10)),
            effects_waiting: Gauge::default(),
            fits_waiting: Gauge::default(),
            fits_failed: Counter::default(),
            notices: Family::default(),
            sent: Family::default(),
            not_sent: Family::default(),
            settled: Family::default(),
            local_acts: Family::default(),
            verdicts: Family::default(),
            actuation: Histogram::new(exponential_buckets(0.000_5, 2.0, 16)),
            moves: Histogram::new(exponential_buckets(0.5, 2.0, 13)),
            capacity: Family::default(),
            proposals: Gauge::default(),
            shadows: Family::default(),
        };
        registry.register_with_unit(
            "gnomon_brain_core_handle",
            "Time the core took for one input or time-out",
            Unit::Seconds,
            metrics.handle.clone(),
        );
        registry.register(
            "gnomon_brain_effects_waiting",
            "Outputs of the core not yet handed over to be carried out",
            metrics.effects_waiting.clone(),
        );
        registry.register("gnomon_brain_fits_waiting", "Fits waiting or running", metrics.fits_waiting.clone());
        registry.register("gnomon_brain_fits_failed", "Fits that ended without a result", metrics.fits_failed.clone());
        registry.register("gnomon_brain_notices", "Notices of the core, by kind", metrics.notices.clone());
        registry.register(
            "gnomon_brain_commands_sent",
            "Commands sent, repetitions included, by action",
            metrics.sent.clone(),
        );
        registry.register(
            "gnomon_brain_commands_not_sent",
            "Commands that could not be sent when they were due, by reason",
            metrics.not_sent.clone(),
        );
        registry.register(
            "gnomon_brain_commands_settled",
            "Commands that were answered or given up, by action and outcome",
            metrics.settled.clone(),
        );
        registry.register(
            "gnomon_brain_local_acts",
            "What agents told that they did without a command, by cause and outcome",
            metrics.local_acts.clone(),
        );
        registry.register(
            "gnomon_brain_verdicts",
            "Actions by what they were taken for (surge, promise, anomaly, memory, relief) and what came of that: served, unserved, absent",
            metrics.verdicts.clone(),
        );
        registry.register_with_unit(
            "gnomon_brain_actuation",
            "From an agent's receipt of a command to its read-back, as the agent tells",
            Unit::Seconds,
            metrics.actuation.clone(),
        );
        registry.register_with_unit(
            "gnomon_brain_migration",
            "From an agent's receipt of a command to move a VM until that ran elsewhere, as the agent tells",
            Unit::Seconds,
            metrics.moves.clone(),
        );
        registry.register(
            "gnomon_brain_capacity_requests",
            "Requests for capacity, open ones and those closed last, by state; absent where there never was one",
            metrics.capacity.clone(),
        );
        registry.register(
            "gnomon_brain_proposals_open",
            "Planned actions that wait for an operator's approval",
            metrics.proposals.clone(),
        );
        registry.register(
            "gnomon_brain_shadows",
            "Shadows that are not retired, by state; absent where there never was one",
            metrics.shadows.clone(),
        );
        metrics
    }

    pub(super) fn handled(&self, took: Duration) {
        self.handle.observe(took.as_secs_f64());
    }

    pub(super) fn waiting(&self, effects: usize, fits: usize) {
        self.effects_waiting.set(i64::try_from(effects).unwrap_or(i64::MAX));
        self.fits_waiting.set(i64::try_from(fits).unwrap_or(i64::MAX));
    }

    pub(super) fn fit_failed(&self) {
        self.fits_failed.inc();
    }

    pub(super) fn noticed(&self, kind: &'static str) {
        self.notices.get_or_create(&Kind { kind }).inc();
    }

    pub(super) fn sent(&self, action: &Action) {
        self.sent.get_or_create(&Sent { action: action_name(action) }).inc();
    }

    pub(super) fn not_sent(&self, reason: &'static str) {
        self.not_sent.get_or_create(&NotSent { reason }).inc();
    }

    pub(super) fn settled(&self, record: &CommandRecord) {
        let result = record.outcome.as_ref().map(|outcome| &outcome.result);
        match result {
            Some(OutcomeResult::Applied { took_us, .. }) => {
                self.actuation.observe(Duration::from_micros(*took_us).as_secs_f64());
            }
            Some(OutcomeResult::Moved(moved)) => self.moves.observe(Duration::from_micros(moved.took_us).as_secs_f64()),
            _ => {}
        }
        let outcome = result.map_or("unanswered", result_name);
        self.settled.get_or_create(&Settled { action: action_name(&record.command.action), outcome }).inc();
    }

    /// Counts what came of what an action was taken for, once that is known.
    pub(super) fn looked_back(&self, expectation: &Expectation) {
        if let Some((aftermath, _)) = expectation.verdict() {
            let verdict = Verdict { expected: expectation.of.name(), outcome: aftermath.name() };
            self.verdicts.get_or_create(&verdict).inc();
        }
    }

    pub(super) fn asked(&self, states: impl Iterator<Item = (CapacityState, usize)>) {
        for (state, requests) in states {
            let state = State { state: state.name() };
            self.capacity.get_or_create(&state).set(i64::try_from(requests).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn shadowed(&self, states: impl Iterator<Item = (ShadowState, usize)>) {
        for (state, shadows) in states {
            let state = State { state: state.name() };
            self.shadows.get_or_create(&state).set(i64::try_from(shadows).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn proposed(&self, open: usize) {
        self.proposals.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    pub(super) fn acted(&self, act: &Outcome) {
        if let Origin::Local { cause, .. } = act.origin {
            let labels = LocalAct { cause: local_cause(cause), outcome: result_name(&act.result) };
            self.local_acts.get_or_create(&labels).inc();
        }
    }
}

fn result_name(result: &OutcomeResult) -> &'static str {
    match result {
        OutcomeResult::Applied { .. } => "applied",
        OutcomeResult::Moved(_) => "moved",
        OutcomeResult::NotMoved { whereabouts: Whereabouts::Here, .. } => "not_moved",
        OutcomeResult::NotMoved { whereabouts: Whereabouts::Parked, .. } => "parked",
        OutcomeResult::Immovable(_) => "immovable",
        OutcomeResult::Described(_) => "described",
        OutcomeResult::Imaged(_) => "imaged",
        OutcomeResult::DirtyRate { .. } => "dirty_rate",
        OutcomeResult::Shadow(_) => "shadow",
        OutcomeResult::Unshadowable(_) => "unshadowable",
        OutcomeResult::DryRun => "dry_run",
        OutcomeResult::Refused(_) => "refused",
        OutcomeResult::Failed { .. } => "failed",
    }
}

fn action_name(action: &Action) -> &'static str {
    match action {
        Action::Set(Setting::CpuQuota { .. }) => "set_cpu_quota",
        Action::Set(Setting::CpuWeight { .. }) => "set_cpu_weight",
        Action::Set(Setting::Memory { .. }) => "set_memory",
        Action::Set(Setting::Vcpus { .. }) => "set_vcpus",
        Action::Set(Setting::DiskLimit { .. }) => "set_disk_limit",
        Action::Set(Setting::NetworkLimit { .. }) => "set_network_limit",
        Action::Release => "release",
        Action::Migrate(_) => "migrate",
        Action::AbortMigration => "abort_migration",
        Action::Describe => "describe",
        Action::Image(_) => "image",
        Action::DirtyRate { .. } => "dirty_rate",
        Action::Shadow(ShadowOrder::Copy(_)) => "shadow_copy",
        Action::Shadow(ShadowOrder::Start) => "shadow_start",
        Action::Shadow(ShadowOrder::Pace(_)) => "shadow_pace",
        Action::Shadow(ShadowOrder::Retire) => "shadow_retire",
        Action::Shadow(ShadowOrder::Resize(_)) => "shadow_resize",
    }
}
