//! Statements that read. A row that no longer decodes is skipped and said, never a reason not to start.

use super::{history, integer, ms};
use crate::clock;
use crate::store::{RAISE_VERB, StoreError, TAKE_OVER_VERB};
use futures_util::TryStreamExt;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, HostId, Outcome, Report, Sequence, frame};
use gnomon_core::{Audit, CommandRecord, Core, Restored};
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row, query, query_scalar};
use std::pin::pin;
use std::time::Duration;

/// Moves are told to a new core that were issued so lately: a day is the longest that one takes, an hour what follows from it.
const MOVES_LATE: Duration = Duration::from_hours(25);

/// Resizes are: those that their budget counts.
const RESIZES_LATE: Duration = Duration::from_hours(1);

pub(super) async fn acknowledged(db: &AnyPool, host: &HostId, epoch: AgentEpoch) -> Result<Sequence, StoreError> {
    let highest: Option<i64> = query_scalar("SELECT MAX(sequence) FROM report WHERE host = $1 AND epoch = $2")
        .bind(host.as_str())
        .bind(integer(epoch.0))
        .fetch_one(db)
        .await?;
    Ok(Sequence(highest.unwrap_or(0).unsigned_abs()))
}

pub(super) async fn restore(
    db: &AnyPool,
    reports_since: Timestamp,
    sink: &mut (dyn FnMut(Restored) + Send),
) -> Result<Vec<(HostId, Outcome)>, StoreError> {
    for row in query("SELECT host, facts FROM host ORDER BY host").fetch_all(db).await? {
        if let (Some(host), Some(facts)) = (host_id(&row, 0)?, json(&row, 1)?) {
            sink(Restored::Host { host, facts });
        }
    }
    history::restore(db, sink).await?;
    {
        let mut lessons = pin!(query("SELECT lesson FROM lesson ORDER BY subject").fetch(db));
        while let Some(row) = lessons.try_next().await? {
            json(&row, 0)?.into_iter().for_each(|lesson| sink(Restored::Lesson(lesson)));
        }
    }
    let expectations = "SELECT expectation FROM expectation WHERE settled = 0 ORDER BY term, number";
    for row in query(expectations).fetch_all(db).await? {
        json(&row, 0)?.into_iter().for_each(|expectation| sink(Restored::Expectation(Box::new(expectation))));
    }
    {
        // Streamed: the reports of several seasons need not fit into memory.
        let mut reports = pin!(
            query("SELECT payload, received_ms FROM report WHERE received_ms >= $1 ORDER BY start_ms, host, epoch, sequence")
                .bind(ms(reports_since))
                .fetch(db)
        );
        let mut left_out = 0u64;
        while let Some(row) = reports.try_next().await? {
            match frame::decode::<Report>(row.try_get(0)?) {
                // Refused when it came, so refused now: it would fill history that is still to come.
                Ok(report) if Core::is_from_the_future(&report, received(&row)?) => left_out += 1,
                Ok(report) => sink(Restored::Report(Box::new(report))),
                Err(error) => tracing::warn!(%error, "a stored report does not decode and is skipped"),
            }
        }
        if left_out > 0 {
            tracing::warn!(left_out, "stored reports of hosts whose clocks were far ahead are left out");
        }
    }
    for row in query("SELECT scope, hold FROM hold ORDER BY scope").fetch_all(db).await? {
        if let (Some(scope), Some(hold)) = (json(&row, 0)?, json(&row, 1)?) {
            sink(Restored::Hold { scope, hold });
        }
    }
    for row in query("SELECT scope, mode FROM mode ORDER BY scope").fetch_all(db).await? {
        if let (Some(scope), Some(mode)) = (json(&row, 0)?, json(&row, 1)?) {
            sink(Restored::Mode { scope, mode });
        }
    }
    for row in query("SELECT host, since_ms FROM drain ORDER BY host").fetch_all(db).await? {
        if let Some(host) = host_id(&row, 0)? {
            let since = Timestamp::from_unix_ms(row.try_get::<i64, _>(1)?.unsigned_abs());
            sink(Restored::Drain { host, since });
        }
    }
    for row in query("SELECT vm, setting FROM setting ORDER BY vm, means").fetch_all(db).await? {
        match (row.try_get::<&str, _>(0)?.parse(), json(&row, 1)?) {
            (Ok(vm), Some(setting)) => sink(Restored::Setting { vm, setting }),
            (Err(error), _) => tracing::warn!(%error, "what was set of a VM without a UUID is skipped"),
            (Ok(_), None) => {}
        }
    }
    for row in query("SELECT request FROM capacity ORDER BY at_ms, term, number").fetch_all(db).await? {
        json(&row, 0)?.into_iter().for_each(|request| sink(Restored::Capacity(Box::new(request))));
    }
    for row in query("SELECT proposal FROM proposal ORDER BY at_ms, term, number").fetch_all(db).await? {
        json(&row, 0)?.into_iter().for_each(|proposal| sink(Restored::Proposal(Box::new(proposal))));
    }
    let shadows = "SELECT body FROM shadow WHERE settled = 0 OR kept_off = 1 OR asked_for = 1 ORDER BY at_ms, shadow";
    for row in query(shadows).fetch_all(db).await? {
        json(&row, 0)?.into_iter().for_each(|shadow| sink(Restored::Shadow(Box::new(shadow))));
    }
    {
        // Streamed: an hour of a large fleet has many resizes.
        let tried = "SELECT command FROM command WHERE settled = 1 AND (issued_ms >= $1 AND command LIKE '%\"migrate\":{%' \
                     OR issued_ms >= $2 AND command LIKE '%\"set\":{%') ORDER BY issued_ms, term, number";
        let late = query(tried).bind(ms(clock::now() - MOVES_LATE)).bind(ms(clock::now() - RESIZES_LATE));
        let mut late = pin!(late.fetch(db));
        while let Some(row) = late.try_next().await? {
            let record = json::<CommandRecord>(&row, 0)?;
            record.into_iter().for_each(|record| sink(Restored::Tried(Box::new(record))));
        }
    }
    let mut answered = Vec::new();
    let unsettled = query(
        "SELECT command.command, outcome.outcome, command.host FROM command LEFT JOIN outcome ON outcome.host = command.host \
         AND outcome.term = command.term AND outcome.number = command.number \
         WHERE command.settled = 0 ORDER BY command.term, command.number",
    );
    for row in unsettled.fetch_all(db).await? {
        let Some(record) = json::<CommandRecord>(&row, 0)? else { continue };
        if row.try_get::<Option<&str>, _>(1)?.is_some()
            && let Some(outcome) = json(&row, 1)?
        {
            answered.push((record.host.clone(), outcome));
        }
        sink(Restored::Command(record));
    }
    let local_acts = query("SELECT outcome, host FROM outcome WHERE term = 0 AND taken_in = 0 ORDER BY host, number");
    for row in local_acts.fetch_all(db).await? {
        if let (Some(outcome), Some(host)) = (json(&row, 0)?, host_id(&row, 1)?) {
            answered.push((host, outcome));
        }
    }
    Ok(answered)
}

pub(super) async fn audit(db: &AnyPool, limit: u32) -> Result<Vec<Audit>, StoreError> {
    let rows = query("SELECT at_ms, actor, verb, object, detail FROM audit ORDER BY term DESC, line DESC LIMIT $1")
        .bind(i64::from(limit))
        .fetch_all(db)
        .await?;
    let line = |row: AnyRow| -> Result<Audit, StoreError> {
        Ok(Audit {
            at: Timestamp::from_unix_ms(row.try_get::<i64, _>(0)?.unsigned_abs()),
            actor: row.try_get(1)?,
            verb: row.try_get(2)?,
            object: row.try_get(3)?,
            detail: row.try_get(4)?,
        })
    };
    rows.into_iter().map(line).collect()
}

/// When terms were raised for agents' sake since then, and since an operator last had a brain take over.
pub(super) async fn raises(db: &AnyPool, since: Timestamp) -> Result<Vec<Timestamp>, StoreError> {
    let rows = query_scalar(
        "SELECT at_ms FROM audit WHERE verb = $1 AND at_ms >= $3 \
         AND at_ms >= COALESCE((SELECT MAX(at_ms) FROM audit WHERE verb = $2 AND at_ms >= $3), 0) ORDER BY at_ms",
    );
    let times: Vec<i64> = rows.bind(RAISE_VERB).bind(TAKE_OVER_VERB).bind(ms(since)).fetch_all(db).await?;
    Ok(times.into_iter().map(|at_ms| Timestamp::from_unix_ms(at_ms.unsigned_abs())).collect())
}

pub(super) async fn commands(db: &AnyPool, limit: u32) -> Result<Vec<CommandRecord>, StoreError> {
    let rows = query("SELECT command FROM command ORDER BY term DESC, number DESC LIMIT $1")
        .bind(i64::from(limit))
        .fetch_all(db)
        .await?;
    rows.iter().filter_map(|row| json(row, 0).transpose()).collect()
}

fn received(row: &AnyRow) -> Result<Timestamp, StoreError> {
    Ok(Timestamp::from_unix_ms(row.try_get::<i64, _>("received_ms")?.unsigned_abs()))
}

fn host_id(row: &AnyRow, column: usize) -> Result<Option<HostId>, StoreError> {
    let name: &str = row.try_get(column)?;
    HostId::new(name).map(Some).or_else(|error| {
        tracing::warn!(%error, "a stored host is skipped");
        Ok(None)
    })
}

fn json<T: DeserializeOwned>(row: &AnyRow, column: usize) -> Result<Option<T>, StoreError> {
    let text: &str = row.try_get(column)?;
    serde_json::from_str(text).map(Some).or_else(|error| {
        tracing::warn!(%error, text, "a stored value does not decode and is skipped");
        Ok(None)
    })
}
