//! Statements about who leads.
//!
//! PostgreSQL's lease ends by its own clock. SQLite's is a lock on a file beside the database: the kernel ends it with the process that
//! has it, neither sooner nor later, so there is nothing to renew and nothing to wait for.

use super::{Dialect, SqlStore, integer, write};
use crate::clock;
use crate::store::{Candidate, INTEGER_MAX, Lead, Location, StoreError};
use gnomon_core::Audit;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row, query};
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::PoisonError;

/// The lease as it stands.
pub(super) struct Lease {
    pub(super) holder: String,
    term: u64,
    /// `None` once it is over.
    left_ms: Option<u64>,
    now_ms: i64,
}

impl Lease {
    fn of(row: &AnyRow) -> Result<Self, StoreError> {
        let (expires_ms, now_ms) = (row.try_get::<i64, _>("expires_ms")?, row.try_get::<i64, _>("now_ms")?);
        Ok(Self {
            holder: row.try_get("holder")?,
            term: row.try_get::<i64, _>("term")?.unsigned_abs(),
            left_ms: u64::try_from(expires_ms.saturating_sub(now_ms)).ok().filter(|left_ms| *left_ms > 0),
            now_ms,
        })
    }

    /// Whether another than `name` leads.
    fn is_anothers(&self, name: &str) -> bool {
        self.holder != name && self.left_ms.is_some()
    }

    /// The next term, above all before it and above `at_least`.
    fn next_term(&self, at_least: u64) -> Result<u64, StoreError> {
        let term = self.term.max(at_least).saturating_add(1);
        if term > INTEGER_MAX { Err(StoreError::TermsUsedUp(term)) } else { Ok(term) }
    }
}

pub(super) async fn locked(db: &mut AnyConnection, dialect: Dialect) -> Result<Lease, StoreError> {
    Lease::of(&query(dialect.lease_locked()).fetch_one(db).await?)
}

/// Takes the lease for `candidate`, who may have it already, unless another has it.
pub(super) async fn lead(store: &SqlStore, candidate: &Candidate, at_least: u64) -> Result<Lead, StoreError> {
    let seen = Lease::of(&query(store.dialect.lease()).fetch_one(&store.readers).await?)?;
    if seen.is_anothers(&candidate.name) || !lock(store)? {
        return Ok(Lead::Theirs { leader: seen.holder });
    }
    let mut transaction = store.begin().await?;
    let before = locked(&mut transaction, store.dialect).await?;
    if before.is_anothers(&candidate.name) {
        return Ok(Lead::Theirs { leader: before.holder });
    }
    let term = before.next_term(at_least)?;
    let shared = store.dialect == Dialect::Postgres;
    let length_ms = if shared { i64::try_from(candidate.lease.as_millis()).unwrap_or(i64::MAX) } else { 0 };
    query("UPDATE lease SET holder = $1, term = $2, expires_ms = $3")
        .bind(&candidate.name)
        .bind(integer(term))
        .bind(before.now_ms.saturating_add(length_ms))
        .execute(&mut *transaction)
        .await?;
    if shared && before.holder != candidate.name {
        let from = match before.holder.as_str() {
            "" => "nobody has led before".to_owned(),
            former => format!("{former} leads no more"),
        };
        let line = Audit {
            at: clock::now(),
            actor: format!("brain {}", candidate.name),
            verb: "take_lease".to_owned(),
            object: "fleet".to_owned(),
            detail: format!("term {term}; {from}"),
        };
        write::audit(&mut transaction, &line).await?;
    }
    transaction.commit().await?;
    // Always the same name: a process has one.
    let _ = store.leads_as.set(candidate.name.clone());
    Ok(Lead::Ours { term, ends: shared })
}

/// Has the lease last for its whole length from now on.
pub(super) async fn renew(store: &SqlStore, candidate: &Candidate) -> Result<(), StoreError> {
    if store.dialect == Dialect::Sqlite {
        return Ok(());
    }
    let mut transaction = store.begin().await?;
    let now = locked(&mut transaction, store.dialect).await?.now_ms;
    let length_ms = i64::try_from(candidate.lease.as_millis()).unwrap_or(i64::MAX);
    query("UPDATE lease SET expires_ms = $1").bind(now.saturating_add(length_ms)).execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

/// Lets another brain lead at once.
pub(super) async fn resign(store: &SqlStore) -> Result<(), StoreError> {
    if store.dialect == Dialect::Postgres {
        let mut transaction = store.begin().await?;
        query("UPDATE lease SET expires_ms = 0").execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    drop(store.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    Ok(())
}

/// Takes the lock of an SQLite file, if it is one, for this store; whether it has it now.
fn lock(store: &SqlStore) -> Result<bool, StoreError> {
    let Location::Sqlite(path) = &store.location else { return Ok(true) };
    let mut lock = store.lock.lock().unwrap_or_else(PoisonError::into_inner);
    if lock.is_none() {
        *lock = leader_lock(path).map_err(|error| store.location.cannot_open(error.into()))?;
    }
    Ok(lock.is_some())
}

/// The lock that whoever leads on this SQLite file holds, until it is dropped; `None` while another process has it.
pub fn leader_lock(path: &Path) -> std::io::Result<Option<File>> {
    let mut name = OsString::from(path);
    name.push("-leader");
    let file = File::options().create(true).truncate(false).write(true).open(name)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
