//! Statements that forget. Old rows go a few at a time, in transactions of their own: an acknowledgement that waits for the
//! writer waits for one of these at most.

use super::{SqlStore, ms};
use crate::store::StoreError;
use gnomon_common::time::Timestamp;
use sqlx::{AssertSqlSafe, query, query_scalar};

/// Rows in one transaction: of the largest ones, reports of a hundred VMs, some two megabytes.
const ROWS_MAX: u32 = 64;
/// Transactions for each table in one call: after the retention was shortened, the rest waits for the next calls. A brain of 100,000 VMs
/// outlives some 6,000 reports from one call to the next.
const TRANSACTIONS_MAX: u32 = 256;

/// A table, what its rows are named by, and when they are old.
struct Aging {
    table: &'static str,
    key: &'static str,
    at: &'static str,
    /// What else must be true of a row that may go; `$1` is when all that is older is old.
    condition: &'static str,
}

const REPORTS: Aging = Aging { table: "report", key: "host, epoch, sequence", at: "received_ms", condition: "" };

const BLOCKS: Aging = Aging { table: "block", key: "vm, kpi, tier, number", at: "end_ms", condition: "" };

const LESSONS: Aging = Aging { table: "lesson", key: "subject", at: "at_ms", condition: "" };

/// A VM was seen last when it vanished, or its host did. What is open about it keeps it: an operator's word, a command without an answer, a
/// shadow of it or that it is.
const VMS: Aging = Aging {
    table: "vm",
    key: "vm",
    at: "at_ms",
    condition: " AND NOT EXISTS (SELECT 1 FROM host WHERE host.host = vm.host AND (host.connected = 1 OR host.at_ms >= $1)) \
                AND NOT EXISTS (SELECT 1 FROM hold WHERE hold.scope = '{\"vm\":\"' || vm.vm || '\"}') \
                AND NOT EXISTS (SELECT 1 FROM mode WHERE mode.scope = '{\"vm\":\"' || vm.vm || '\"}') \
                AND NOT EXISTS (SELECT 1 FROM setting WHERE setting.vm = vm.vm) \
                AND NOT EXISTS (SELECT 1 FROM command WHERE command.vm = vm.vm AND command.settled = 0) \
                AND NOT EXISTS (SELECT 1 FROM shadow WHERE (shadow.shadow = vm.vm OR shadow.production = vm.vm) \
                                AND (shadow.settled = 0 OR shadow.kept_off = 1))",
};

/// A host was seen last when its agent went, or a brain began to lead that it has not come to since. So are its VMs, which keep it, as does what
/// is open about it.
const HOSTS: Aging = Aging {
    table: "host",
    key: "host",
    at: "at_ms",
    condition: " AND connected = 0 AND NOT EXISTS (SELECT 1 FROM vm WHERE vm.host = host.host) \
                AND NOT EXISTS (SELECT 1 FROM drain WHERE drain.host = host.host) \
                AND NOT EXISTS (SELECT 1 FROM hold WHERE hold.scope = '{\"host\":\"' || host.host || '\"}') \
                AND NOT EXISTS (SELECT 1 FROM mode WHERE mode.scope = '{\"host\":\"' || host.host || '\"}') \
                AND NOT EXISTS (SELECT 1 FROM command WHERE command.host = host.host AND command.settled = 0) \
                AND NOT EXISTS (SELECT 1 FROM shadow WHERE shadow.settled = 0 AND shadow.body LIKE '%\"' || host.host || '\"%')",
};

const AFFAIRS: [Aging; 13] = [
    Aging { table: "audit", key: "term, line", at: "at_ms", condition: "" },
    Aging { table: "plan", key: "term, generation", at: "at_ms", condition: "" },
    Aging { table: "outcome", key: "host, term, number", at: "at_ms", condition: "" },
    Aging { table: "command", key: "term, number", at: "issued_ms", condition: "" },
    Aging { table: "token", key: "id", at: "expires_ms", condition: "" },
    Aging { table: "certificate", key: "serial", at: "expires_ms", condition: "" },
    Aging { table: "capacity", key: "term, number", at: "at_ms", condition: " AND settled = 1" },
    Aging { table: "proposal", key: "term, number", at: "at_ms", condition: " AND settled = 1" },
    // Open or not: what is looked for lasts minutes.
    Aging { table: "expectation", key: "term, number", at: "at_ms", condition: "" },
    // What an operator has said stays until a later shadow of the same production tells it. That there is to be one goes with that production, once that has
    // been gone for as long.
    Aging {
        table: "shadow",
        key: "shadow",
        at: "at_ms",
        condition: " AND settled = 1 AND (kept_off = 0 AND asked_for = 0 \
                    OR EXISTS (SELECT 1 FROM shadow AS later WHERE later.production = shadow.production AND later.wanted_ms > shadow.wanted_ms AND shadow.wanted_ms > 0) \
                    OR kept_off = 0 AND NOT EXISTS (SELECT 1 FROM vm WHERE vm.vm = shadow.production AND (vm.host IS NOT NULL OR vm.at_ms >= $1)))",
    },
    VMS,
    HOSTS,
    // The newest allocation of a VM stays as long as the VM does: it is what the VM has.
    Aging {
        table: "allocation",
        key: "vm, at_ms",
        at: "at_ms",
        condition: " AND (EXISTS (SELECT 1 FROM allocation AS newer WHERE newer.vm = allocation.vm AND newer.at_ms > allocation.at_ms) \
                    OR NOT EXISTS (SELECT 1 FROM vm WHERE vm.vm = allocation.vm))",
    },
];

/// Forgets reports, affairs, and histories with their lessons from before these instants, a bounded number of each; returns how many rows went.
pub(super) async fn prune(
    store: &SqlStore,
    reports_before: Timestamp,
    affairs_before: Timestamp,
    history_before: Timestamp,
) -> Result<u64, StoreError> {
    let mut rows = REPORTS.forget(store, reports_before).await?;
    rows += BLOCKS.forget(store, history_before).await?;
    rows += LESSONS.forget(store, history_before).await?;
    for aging in &AFFAIRS {
        rows += aging.forget(store, affairs_before).await?;
    }
    Ok(rows)
}

impl Aging {
    async fn forget(&self, store: &SqlStore, before: Timestamp) -> Result<u64, StoreError> {
        let Self { table, key, at, condition } = self;
        // All parts are constants above: nothing from outside gets into the statements.
        let old = format!("FROM {table} WHERE {at} < $1{condition}");
        let any = format!("SELECT 1 {old} LIMIT 1");
        let delete =
            format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} {old} ORDER BY {at} LIMIT {ROWS_MAX})");
        let mut rows = 0;
        for _ in 0..TRANSACTIONS_MAX {
            // Looked for by a reader: the writer is not held up for nothing.
            let found: Option<i64> =
                query_scalar(AssertSqlSafe(any.clone())).bind(ms(before)).fetch_optional(&store.readers).await?;
            if found.is_none() {
                break;
            }
            let mut transaction = store.begin().await?;
            let deleted = query(AssertSqlSafe(delete.clone())).bind(ms(before)).execute(&mut *transaction).await?;
            transaction.commit().await?;
            rows += deleted.rows_affected();
        }
        Ok(rows)
    }
}
