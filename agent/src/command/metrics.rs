//! What commands, and what the agent does of its own accord, cost and how they end.

use gnomon_common::wire::LocalCause;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// Label of [`Metrics::commands`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByResult {
    result: &'static str,
}

pub(super) const APPLIED: ByResult = ByResult { result: "applied" };
pub(super) const DRY_RUN: ByResult = ByResult { result: "dry_run" };
pub(super) const REFUSED: ByResult = ByResult { result: "refused" };
pub(super) const FAILED: ByResult = ByResult { result: "failed" };
pub(super) const MOVED: ByResult = ByResult { result: "moved" };
pub(super) const NOT_MOVED: ByResult = ByResult { result: "not_moved" };
pub(super) const IMMOVABLE: ByResult = ByResult { result: "immovable" };
pub(super) const DESCRIBED: ByResult = ByResult { result: "described" };
pub(super) const IMAGED: ByResult = ByResult { result: "imaged" };
pub(super) const DIRTY_RATE: ByResult = ByResult { result: "dirty_rate" };
pub(super) const SHADOW: ByResult = ByResult { result: "shadow" };
pub(super) const UNSHADOWABLE: ByResult = ByResult { result: "unshadowable" };

/// Label of [`Metrics::migrations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStanding {
    standing: &'static str,
}

/// Label of [`Metrics::local_acts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCause {
    cause: &'static str,
    result: &'static str,
}

/// Label of [`Metrics::foreign_changes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAction {
    action: &'static str,
}

const CAUSES: [LocalCause; 4] = [LocalCause::Reflex, LocalCause::Drift, LocalCause::Reapply, LocalCause::StandDown];

fn name(cause: LocalCause) -> &'static str {
    match cause {
        LocalCause::Reflex => "reflex",
        LocalCause::Drift => "drift",
        LocalCause::Reapply => "reapply",
        LocalCause::StandDown => "stand_down",
    }
}

/// What commands cost and how they end.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) commands: Family<ByResult, Counter>,
    pub(super) repeated: Counter,
    queue_full: Counter,
    pub(super) ledger_errors: Counter,
    pub(super) outcomes_forgotten: Counter,
    pub(super) outcomes_pending: Gauge,
    pub(super) actuation_seconds: Histogram,
    local_acts: Family<ByCause, Counter>,
    foreign_changes: Family<ByAction, Counter>,
    pub(super) stood_down_vms: Gauge,
    pub(super) brain_away: Gauge,
    migrations: Family<ByStanding, Gauge>,
    migration_seconds: Histogram,
    migration_downtime_seconds: Histogram,
    pub(super) shadow_orphans: Counter,
    copied_bytes: Gauge,
    copied_of_bytes: Gauge,
}

impl Metrics {
    /// Makes and registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        // Milliseconds when all is well, up to the actuation's deadline of 10 s.
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];
        let new = Self {
            commands: Family::default(),
            repeated: Counter::default(),
            queue_full: Counter::default(),
            ledger_errors: Counter::default(),
            outcomes_forgotten: Counter::default(),
            outcomes_pending: Gauge::default(),
            actuation_seconds: Histogram::new(buckets),
            local_acts: Family::default(),
            foreign_changes: Family::default(),
            stood_down_vms: Gauge::default(),
            brain_away: Gauge::default(),
            migrations: Family::default(),
            // A small idle guest on a fast link, up to a large busy one on a slow one.
            migration_seconds: Histogram::new([1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0]),
            migration_downtime_seconds: Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
            shadow_orphans: Counter::default(),
            copied_bytes: Gauge::default(),
            copied_of_bytes: Gauge::default(),
        };
        new.migrations(0, 0);
        for result in [MOVED, NOT_MOVED, IMMOVABLE, DESCRIBED, DIRTY_RATE, SHADOW, UNSHADOWABLE] {
            drop(new.commands.get_or_create(&result));
        }
        for result in [APPLIED, DRY_RUN, REFUSED, FAILED] {
            drop(new.commands.get_or_create(&result)); // shown from the start, as 0
            for cause in CAUSES {
                drop(new.local_acts.get_or_create(&ByCause { cause: name(cause), result: result.result }));
            }
        }
        for cause in [LocalCause::Reapply, LocalCause::StandDown] {
            drop(new.foreign_changes.get_or_create(&ByAction { action: name(cause) }));
        }
        registry.register("gnomon_agent_commands", "Commands concluded, by result", new.commands.clone());
        registry.register(
            "gnomon_agent_commands_repeated",
            "Commands that had come before and were answered from the ledger",
            new.repeated.clone(),
        );
        registry.register(
            "gnomon_agent_commands_queue_full",
            "Commands refused because too many were waiting",
            new.queue_full.clone(),
        );
        registry.register(
            "gnomon_agent_ledger_errors",
            "Reads and writes of the command ledger that failed",
            new.ledger_errors.clone(),
        );
        registry.register(
            "gnomon_agent_outcomes_forgotten",
            "Outcomes forgotten before the brain had acknowledged them",
            new.outcomes_forgotten.clone(),
        );
        registry.register(
            "gnomon_agent_outcomes_pending",
            "Outcomes the brain has not acknowledged",
            new.outcomes_pending.clone(),
        );
        registry.register(
            "gnomon_agent_actuation_seconds",
            "From a command's receipt to its read-back",
            new.actuation_seconds.clone(),
        );
        registry.register(
            "gnomon_agent_local_acts",
            "What the agent did of its own accord, by cause and result",
            new.local_acts.clone(),
        );
        registry.register(
            "gnomon_agent_foreign_changes",
            "Limits of Gnomon's that someone else undid or changed, by what was done about it",
            new.foreign_changes.clone(),
        );
        registry.register(
            "gnomon_agent_stood_down_vms",
            "VMs that Gnomon keeps its hands off until they are released",
            new.stood_down_vms.clone(),
        );
        registry.register(
            "gnomon_agent_brain_away",
            "1 while the brain has been unreachable for longer than away.after_s",
            new.brain_away.clone(),
        );
        registry.register(
            "gnomon_agent_migrations",
            "Migrations away from here that have not ended: moving, or parked (the VM stands still until it is known that the target does not run it)",
            new.migrations.clone(),
        );
        registry.register(
            "gnomon_agent_migration_seconds",
            "From a command to migrate until the VM was on the other host",
            new.migration_seconds.clone(),
        );
        registry.register(
            "gnomon_agent_migration_downtime_seconds",
            "How long migrated VMs stood still, as QEMU tells it",
            new.migration_downtime_seconds.clone(),
        );
        registry.register(
            "gnomon_agent_shadow_orphans",
            "Files of shadows without a shadow, and shadows without their files, that were removed",
            new.shadow_orphans.clone(),
        );
        registry.register(
            "gnomon_agent_disk_copied_bytes",
            "Of a VM whose disks are being copied for its shadow: copied so far, then sent to its host so far; 0 where none is",
            new.copied_bytes.clone(),
        );
        registry.register(
            "gnomon_agent_disk_copied_of_bytes",
            "Of a VM whose disks are being copied for its shadow: what there is to copy, then to send; 0 where none is",
            new.copied_of_bytes.clone(),
        );
        new
    }

    /// So many migrations are under way.
    pub(super) fn migrations(&self, moving: usize, parked: usize) {
        for (standing, count) in [("moving", moving), ("parked", parked)] {
            self.migrations.get_or_create(&ByStanding { standing }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// So much of a VM's disks is copied.
    pub(super) fn copying(&self, done_bytes: u64, total_bytes: u64) {
        self.copied_bytes.set(i64::try_from(done_bytes).unwrap_or(i64::MAX));
        self.copied_of_bytes.set(i64::try_from(total_bytes).unwrap_or(i64::MAX));
    }

    /// One has ended well.
    pub(super) fn migrated(&self, took_us: u64, downtime_us: Option<u64>) {
        self.migration_seconds.observe(Duration::from_micros(took_us).as_secs_f64());
        if let Some(downtime_us) = downtime_us {
            self.migration_downtime_seconds.observe(Duration::from_micros(downtime_us).as_secs_f64());
        }
    }

    pub(super) fn count_concluded(&self, cause: Option<LocalCause>, by: ByResult) {
        match cause {
            None => self.commands.get_or_create(&by).inc(),
            Some(cause) => self.local_acts.get_or_create(&ByCause { cause: name(cause), result: by.result }).inc(),
        };
    }

    pub(super) fn count_foreign_change(&self, answered_by: LocalCause) {
        self.foreign_changes.get_or_create(&ByAction { action: name(answered_by) }).inc();
    }

    /// Counts a command refused before it reached the executor.
    pub fn count_queue_full(&self) {
        self.queue_full.inc();
    }
}
