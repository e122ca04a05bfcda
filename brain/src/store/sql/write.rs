//! Statements that write. Every one can be repeated, and none can fail for what an agent sent.

use super::{history, integer, ms};
use crate::store::{StoreError, StoredReport};
use gnomon_common::wire::{HostId, Outcome};
use gnomon_core::{Audit, CommandRecord, Record, ShadowState};
use sqlx::AnyConnection;

/// Stores a report; `false` if it was there.
pub(super) async fn report(db: &mut AnyConnection, report: &StoredReport) -> Result<bool, StoreError> {
    let inserted = sqlx::query(
        "INSERT INTO report (host, epoch, sequence, start_ms, received_ms, payload) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (host, epoch, sequence) DO NOTHING",
    )
    .bind(report.host.as_str())
    .bind(integer(report.epoch.0))
    .bind(integer(report.sequence.0))
    .bind(ms(report.start))
    .bind(ms(report.received))
    .bind(&report.payload[..])
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Stores an outcome; `false` if this host had answered this command before. That a VM is parked between two hosts is not the last word
/// about its move.
pub(super) async fn outcome(db: &mut AnyConnection, host: &HostId, outcome: &Outcome) -> Result<bool, StoreError> {
    let inserted = sqlx::query(
        "INSERT INTO outcome (host, term, number, at_ms, outcome) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (host, term, number) DO UPDATE SET at_ms = excluded.at_ms, outcome = excluded.outcome \
         WHERE outcome.outcome LIKE '%\"whereabouts\":\"parked\"%' AND excluded.outcome <> outcome.outcome",
    )
    .bind(host.as_str())
    .bind(integer(outcome.id.term))
    .bind(integer(outcome.id.number))
    .bind(ms(outcome.at))
    .bind(serde_json::to_string(outcome)?)
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Stores a record of the core.
pub(super) async fn record(db: &mut AnyConnection, record: &Record) -> Result<(), StoreError> {
    let statement = match record {
        Record::Host { host, facts, connected, at } => sqlx::query(
            "INSERT INTO host (host, facts, connected, at_ms) VALUES ($1, $2, $3, $4) ON CONFLICT (host) DO UPDATE SET \
             facts = excluded.facts, connected = excluded.connected, at_ms = excluded.at_ms",
        )
        .bind(host.as_str())
        .bind(serde_json::to_string(facts)?)
        .bind(i64::from(*connected))
        .bind(ms(*at)),
        Record::Vm { vm, name, host, state, at } => sqlx::query(
            "INSERT INTO vm (vm, name, host, state, at_ms) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (vm) DO UPDATE SET \
             name = excluded.name, host = excluded.host, state = excluded.state, at_ms = excluded.at_ms",
        )
        .bind(vm.to_string())
        .bind(text(name))
        .bind(host.as_ref().map(|host| host.as_str()))
        .bind(serde_json::to_string(state)?)
        .bind(ms(*at)),
        Record::Allocation { vm, allocation, baselines, at } => sqlx::query(
            "INSERT INTO allocation (vm, at_ms, allocation, baselines) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (vm, at_ms) DO UPDATE SET allocation = excluded.allocation, baselines = excluded.baselines",
        )
        .bind(vm.to_string())
        .bind(ms(*at))
        .bind(serde_json::to_string(allocation)?)
        .bind(serde_json::to_string(baselines)?),
        Record::Plan(plan) => sqlx::query(
            "INSERT INTO plan (term, generation, at_ms, plan) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (term, generation) DO UPDATE SET at_ms = excluded.at_ms, plan = excluded.plan",
        )
        .bind(integer(plan.fence.term))
        .bind(integer(plan.fence.generation))
        .bind(ms(plan.at))
        .bind(serde_json::to_string(plan)?),
        Record::Command(record) => return command(db, record).await,
        Record::Audit(line) => return audit(db, line).await,
        Record::Scope { scope, hold: Some(hold) } => sqlx::query(
            "INSERT INTO hold (scope, hold) VALUES ($1, $2) ON CONFLICT (scope) DO UPDATE SET hold = excluded.hold",
        )
        .bind(serde_json::to_string(scope)?)
        .bind(serde_json::to_string(hold)?),
        Record::Scope { scope, hold: None } => {
            sqlx::query("DELETE FROM hold WHERE scope = $1").bind(serde_json::to_string(scope)?)
        }
        Record::Mode { scope, mode: Some(mode) } => sqlx::query(
            "INSERT INTO mode (scope, mode) VALUES ($1, $2) ON CONFLICT (scope) DO UPDATE SET mode = excluded.mode",
        )
        .bind(serde_json::to_string(scope)?)
        .bind(serde_json::to_string(mode)?),
        Record::Mode { scope, mode: None } => {
            sqlx::query("DELETE FROM mode WHERE scope = $1").bind(serde_json::to_string(scope)?)
        }
        Record::Setting { vm, means, setting: Some(setting) } => sqlx::query(
            "INSERT INTO setting (vm, means, setting) VALUES ($1, $2, $3) \
             ON CONFLICT (vm, means) DO UPDATE SET setting = excluded.setting",
        )
        .bind(vm.to_string())
        .bind(serde_json::to_string(means)?)
        .bind(serde_json::to_string(setting)?),
        Record::Setting { vm, means, setting: None } => sqlx::query("DELETE FROM setting WHERE vm = $1 AND means = $2")
            .bind(vm.to_string())
            .bind(serde_json::to_string(means)?),
        Record::Lesson { lesson, at } => sqlx::query(
            "INSERT INTO lesson (subject, lesson, at_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (subject) DO UPDATE SET lesson = excluded.lesson, at_ms = excluded.at_ms",
        )
        .bind(lesson.subject())
        .bind(serde_json::to_string(lesson)?)
        .bind(ms(*at)),
        Record::History { vm, change } => return history::change(db, *vm, change).await,
        Record::Drain { host, since: Some(since) } => sqlx::query(
            "INSERT INTO drain (host, since_ms) VALUES ($1, $2) ON CONFLICT (host) DO UPDATE SET since_ms = excluded.since_ms",
        )
        .bind(host.as_str())
        .bind(ms(*since)),
        Record::Drain { host, since: None } => sqlx::query("DELETE FROM drain WHERE host = $1").bind(host.as_str()),
        Record::Capacity(request) => sqlx::query(
            "INSERT INTO capacity (term, number, settled, at_ms, request) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (term, number) DO UPDATE SET settled = excluded.settled, at_ms = excluded.at_ms, request = excluded.request",
        )
        .bind(integer(request.key.term))
        .bind(integer(request.key.number))
        .bind(i64::from(!request.state.is_open()))
        .bind(ms(request.since))
        .bind(serde_json::to_string(request)?),
        Record::Proposal(proposal) => sqlx::query(
            "INSERT INTO proposal (term, number, settled, at_ms, proposal) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (term, number) DO UPDATE SET settled = excluded.settled, at_ms = excluded.at_ms, proposal = excluded.proposal",
        )
        .bind(integer(proposal.key.term))
        .bind(integer(proposal.key.number))
        .bind(i64::from(!proposal.state.is_open()))
        .bind(ms(proposal.since))
        .bind(serde_json::to_string(proposal)?),
        Record::Shadow(shadow) => sqlx::query(
            "INSERT INTO shadow (shadow, production, settled, kept_off, asked_for, wanted_ms, at_ms, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (shadow) DO UPDATE SET settled = excluded.settled, kept_off = excluded.kept_off, asked_for = excluded.asked_for, \
             wanted_ms = excluded.wanted_ms, at_ms = excluded.at_ms, body = excluded.body",
        )
        .bind(shadow.id.to_string())
        .bind(shadow.of.to_string())
        .bind(i64::from(shadow.state == ShadowState::Retired))
        .bind(i64::from(shadow.kept_off))
        .bind(i64::from(shadow.asked_for))
        .bind(ms(shadow.wanted))
        .bind(ms(shadow.since))
        .bind(serde_json::to_string(shadow)?),
        Record::Expectation { expectation, at } => sqlx::query(
            "INSERT INTO expectation (term, number, settled, at_ms, expectation) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (term, number) DO UPDATE SET settled = excluded.settled, at_ms = excluded.at_ms, \
             expectation = excluded.expectation",
        )
        .bind(integer(expectation.command.term))
        .bind(integer(expectation.command.number))
        .bind(i64::from(expectation.is_over()))
        .bind(ms(*at))
        .bind(serde_json::to_string(expectation)?),
        Record::LocalAct { host, outcome } => {
            sqlx::query("UPDATE outcome SET taken_in = 1 WHERE host = $1 AND term = $2 AND number = $3")
                .bind(host.as_str())
                .bind(integer(outcome.id.term))
                .bind(integer(outcome.id.number))
        }
    };
    statement.execute(db).await?;
    Ok(())
}

async fn command(db: &mut AnyConnection, record: &CommandRecord) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO command (term, number, host, vm, issued_ms, settled, command) VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (term, number) DO UPDATE SET settled = excluded.settled, command = excluded.command",
    )
    .bind(integer(record.command.id.term))
    .bind(integer(record.command.id.number))
    .bind(record.host.as_str())
    .bind(record.command.vm.to_string())
    .bind(ms(record.issued))
    .bind(i64::from(record.is_settled()))
    .bind(serde_json::to_string(record)?)
    .execute(db)
    .await?;
    Ok(())
}

/// Appends a line to the audit log. It is numbered by the database, within the present term: the brain and the
/// operator's commands write lines side by side.
pub(super) async fn audit(db: &mut AnyConnection, line: &Audit) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit (term, line, at_ms, actor, verb, object, detail) \
         SELECT lease.term, 1 + COALESCE((SELECT MAX(audit.line) FROM audit WHERE audit.term = lease.term), 0), \
         $1, $2, $3, $4, $5 FROM lease",
    )
    .bind(ms(line.at))
    .bind(text(&line.actor))
    .bind(text(&line.verb))
    .bind(text(&line.object))
    .bind(text(&line.detail))
    .execute(db)
    .await?;
    Ok(())
}

/// Text as every database takes it: PostgreSQL's has no zero character, and a name from a host must not be what a transaction fails
/// for, again and again. JSON writes such a character in another way.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
