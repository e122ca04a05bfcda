//! Statements about who leads.
//!
//! PostgreSQL's lease ends by its own clock. SQLite's is a lock on a file beside the database: the kernel ends it with the process that
//! has it, neither sooner nor later, so there is nothing to renew and nothing to wait for.

use super::{Dialect, SqlStore, integer, ms, write};
use crate::clock;
use crate::store::{Candidate, INTEGER_MAX, Lead, Leadership, Location, StoreError, TERM_JUMP};
use gnomon_common::time::Timestamp;
use gnomon_core::Audit;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row, query};
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

/// The lease as it stands.
pub(super) struct Lease {
    pub(super) holder: String,
    term: u64,
    since: Option<Timestamp>,
    /// `None` once it is over.
    left_ms: Option<u64>,
    now_ms: i64,
}

impl Lease {
    fn of(row: &AnyRow) -> Result<Self, StoreError> {
        let (expires_ms, now_ms) = (row.try_get::<i64, _>("expires_ms")?, row.try_get::<i64, _>("now_ms")?);
        let since_ms = row.try_get::<i64, _>("since_ms")?;
        Ok(Self {
            since: (since_ms > 0).then(|| Timestamp::from_unix_ms(since_ms.unsigned_abs())),
            holder: row.try_get("holder")?,
            term: row.try_get::<i64, _>("term")?.unsigned_abs(),
            left_ms: u64::try_from(expires_ms.saturating_sub(now_ms)).ok().filter(|left_ms| *left_ms > 0),
            now_ms,
        })
    }

    /// Whether another than `name` leads, or may lead first.
    fn is_anothers(&self, name: &str) -> bool {
        let is_heir = self.is_kept() && name.starts_with(&self.holder);
        self.holder != name && !is_heir && self.left_ms.is_some()
    }

    fn leadership(self) -> Leadership {
        let leads = self.left_ms.is_some() && !self.is_kept();
        Leadership { leads, since: self.since, term: self.term, holder: self.holder }
    }

    /// Whether nobody has it, and it is kept for the brain of a place: then the name of that is the holder, without a mark behind the slash.
    fn is_kept(&self) -> bool {
        self.holder.ends_with('/')
    }

    /// The next term, above all before it and above `at_least`.
    fn next_term(&self, at_least: u64) -> Result<u64, StoreError> {
        let term = self.term.max(at_least).saturating_add(1);
        if term > INTEGER_MAX { Err(StoreError::TermsUsedUp(term)) } else { Ok(term) }
    }
}

/// A holder as people are told it: of a place that an operator keeps the lease for, without the slash.
pub(super) fn told(holder: &str) -> String {
    holder.trim_end_matches('/').to_owned()
}

/// The lease as it stands in a transaction whose turn it is: nobody else takes it until that ends, though it may be renewed.
pub(super) async fn seen(db: &mut AnyConnection, dialect: Dialect) -> Result<Lease, StoreError> {
    Lease::of(&query(dialect.lease()).fetch_one(db).await?)
}

/// The same where it is going to be changed: it is not renewed either.
async fn locked(db: &mut AnyConnection, dialect: Dialect) -> Result<Lease, StoreError> {
    Lease::of(&query(dialect.lease_locked()).fetch_one(db).await?)
}

/// Takes the lease for `candidate`, who may have it already, unless another has it.
pub(super) async fn lead(store: &SqlStore, candidate: &Candidate, at_least: u64) -> Result<Lead, StoreError> {
    let before = Lease::of(&query(store.dialect.lease()).fetch_one(&store.readers).await?)?;
    if before.is_anothers(&candidate.name) || !lock(store)? {
        return Ok(Lead::Theirs { leader: told(&before.holder) });
    }
    let mut transaction = store.begin().await?;
    let before = locked(&mut transaction, store.dialect).await?;
    if before.is_anothers(&candidate.name) {
        return Ok(Lead::Theirs { leader: told(&before.holder) });
    }
    let term = before.next_term(at_least)?;
    let shared = store.dialect == Dialect::Postgres;
    let length_ms = if shared { i64::try_from(candidate.lease.as_millis()).unwrap_or(i64::MAX) } else { 0 };
    let since = before.since.filter(|_| before.holder == candidate.name).unwrap_or_else(clock::now);
    query("UPDATE lease SET holder = $1, term = $2, expires_ms = $3, since_ms = $4")
        .bind(&candidate.name)
        .bind(integer(term))
        .bind(before.now_ms.saturating_add(length_ms))
        .bind(ms(since))
        .execute(&mut *transaction)
        .await?;
    // No agent is connected to who has just begun to lead, whatever a brain that was killed had left.
    query("UPDATE host SET connected = 0, at_ms = $1 WHERE connected = 1")
        .bind(ms(clock::now()))
        .execute(&mut *transaction)
        .await?;
    if shared && before.holder != candidate.name {
        let from = match before.holder.as_str() {
            "" => "nobody has led before".to_owned(),
            place if before.is_kept() => format!("an operator has had {} take over", told(place)),
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

impl SqlStore {
    /// Who leads.
    pub async fn leadership(&self) -> Result<Leadership, StoreError> {
        let lease = Lease::of(&query(self.dialect.lease()).fetch_one(&self.readers).await?)?;
        let leadership = lease.leadership();
        // Of an SQLite file the lock says it; a look at it gives it back at once.
        let Location::Sqlite(path) = &self.location else { return Ok(leadership) };
        let lock = leader_lock(path).map_err(|error| self.location.cannot_open(error.into()))?;
        Ok(Leadership { leads: lock.is_none(), ..leadership })
    }

    /// Ends the lease of whoever leads, and raises the term by [`TERM_JUMP`]. `keep`: for so long only a brain of `place` can lead (PostgreSQL).
    /// `line` says what the audit log says of it; returns what was before.
    ///
    /// # Errors
    /// A brain runs on an SQLite file: it would go on in its old term.
    pub async fn take_over(
        &self,
        place: &str,
        keep: Duration,
        line: impl FnOnce(&Leadership) -> Audit,
    ) -> Result<Leadership, StoreError> {
        if !lock(self)? {
            return Err(StoreError::Other("a brain runs on this file, and goes on in its term until it is stopped"));
        }
        let mut transaction = self.begin().await?;
        let lease = locked(&mut transaction, self.dialect).await?;
        let term = lease.next_term(lease.term.saturating_add(TERM_JUMP - 1))?;
        let keep_ms =
            if self.dialect == Dialect::Postgres { i64::try_from(keep.as_millis()).unwrap_or(i64::MAX) } else { 0 };
        let ends_ms = lease.now_ms.saturating_add(keep_ms);
        let before = lease.leadership();
        query("UPDATE lease SET holder = $1, term = $2, expires_ms = $3, since_ms = $4")
            .bind(format!("{place}/"))
            .bind(integer(term))
            .bind(ends_ms)
            .bind(ms(clock::now()))
            .execute(&mut *transaction)
            .await?;
        write::audit(&mut transaction, &line(&before)).await?;
        transaction.commit().await?;
        Ok(before)
    }
}

/// Has the lease last for its whole length from now on. It waits for no writer: one that writes for long is no reason to lose it.
pub(super) async fn renew(store: &SqlStore, candidate: &Candidate) -> Result<(), StoreError> {
    let Some((renewal, renewals)) = store.dialect.renewal().zip(store.renewals.as_ref()) else { return Ok(()) };
    let length_ms = i64::try_from(candidate.lease.as_millis()).unwrap_or(i64::MAX);
    let mut connection = renewals.take().await?;
    let renewed = query(renewal).bind(length_ms).bind(&candidate.name).execute(&mut connection).await?;
    if renewed.rows_affected() == 1 {
        renewals.give_back(connection);
        return Ok(());
    }
    let lease = Lease::of(&query(store.dialect.lease()).fetch_one(&mut connection).await?)?;
    renewals.give_back(connection);
    Err(StoreError::Deposed { leader: told(&lease.holder) })
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
