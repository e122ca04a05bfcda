//! The embedded store: SQLite by sqlx.
//!
//! Write-ahead log with `synchronous=FULL`: a commit returns after the log is synced, so `kill -9` and power loss take
//! nothing that was answered (<https://www.sqlite.org/pragma.html#pragma_synchronous>). One connection writes, a few
//! read; in WAL mode readers never wait for the writer. The SQL is the part that SQLite and PostgreSQL share.

mod admissions;
mod history;
mod prune;
mod read;
mod write;

use super::{Entry, INTEGER_MAX, Pending, Store, StoreError};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, HostId, Outcome, Sequence, VmId};
use gnomon_core::archive::{BlockKey, SealedBlock};
use gnomon_core::{Audit, CommandRecord, Restored};
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Row};
use std::path::Path;
use std::time::Duration;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Readers at a time: the API's queries and a session's hello are short.
const READERS_MAX: u32 = 4;
/// How long a write waits for a lock that somebody else (a backup, a curious sqlite3) holds before it counts as failed.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How a transaction begins that will write: with the writer's lock. The operator's commands write to the same file; a
/// transaction that read before it wants to write would fail at once, without waiting for [`BUSY_TIMEOUT`], if the other
/// process had written meanwhile (<https://www.sqlite.org/rescode.html#busy_snapshot>).
const WRITE: &str = "BEGIN IMMEDIATE";

/// The store in one SQLite file (with its `-wal` and `-shm` beside it).
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens or makes the file, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.map_err(open)?;
        MIGRATIONS.run(&writer).await.map_err(|source| StoreError::Migrate { path: path.to_owned(), source })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.read_only(true))
            .await
            .map_err(open)?;
        Ok(Self { writer, readers })
    }

    async fn commit_all(&self, entries: &[Entry]) -> Result<Vec<bool>, StoreError> {
        let mut connection = self.writer.acquire().await?;
        let written = Self::write_all(&mut connection, entries).await;
        if written.is_err() {
            // On a full disk SQLite ends the transaction by itself, and sqlx goes on to believe in it: every later one would fail, also
            // with room again. The pool opens another connection in place of this one.
            let _ = connection.close().await;
        }
        written
    }

    async fn write_all(connection: &mut SqliteConnection, entries: &[Entry]) -> Result<Vec<bool>, StoreError> {
        let mut transaction = connection.begin_with(WRITE).await?;
        let mut fresh = Vec::with_capacity(entries.len());
        for entry in entries {
            fresh.push(match entry {
                Entry::Report(report) => write::report(&mut transaction, report).await?,
                Entry::Outcome { host, outcome } => write::outcome(&mut transaction, host, outcome).await?,
                Entry::Record(record) => {
                    write::record(&mut transaction, record).await?;
                    true
                }
            });
        }
        transaction.commit().await?;
        Ok(fresh)
    }

    async fn raise(&self, at_least: u64) -> Result<u64, StoreError> {
        let mut transaction = self.writer.begin_with(WRITE).await?;
        let stored = sqlx::query("SELECT value FROM meta WHERE key = 'term'").fetch_optional(&mut *transaction).await?;
        let stored = stored.map_or(Ok(0), |row| row.try_get::<i64, _>(0))?.unsigned_abs();
        let term = stored.max(at_least).saturating_add(1);
        if term > INTEGER_MAX {
            return Err(StoreError::TermsUsedUp(term));
        }
        sqlx::query(
            "INSERT INTO meta (key, value) VALUES ('term', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(integer(term))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(term)
    }
}

impl Store for SqliteStore {
    fn commit<'a>(&'a self, entries: &'a [Entry]) -> Pending<'a, Vec<bool>> {
        Box::pin(self.commit_all(entries))
    }

    fn raise_term(&self, at_least: u64) -> Pending<'_, u64> {
        Box::pin(self.raise(at_least))
    }

    fn acknowledged<'a>(&'a self, host: &'a HostId, epoch: AgentEpoch) -> Pending<'a, Sequence> {
        Box::pin(read::acknowledged(&self.readers, host, epoch))
    }

    fn restore<'a>(
        &'a self,
        reports_since: Timestamp,
        sink: &'a mut (dyn FnMut(Restored) + Send),
    ) -> Pending<'a, Vec<(HostId, Outcome)>> {
        Box::pin(read::restore(&self.readers, reports_since, sink))
    }

    fn audit(&self, limit: u32) -> Pending<'_, Vec<Audit>> {
        Box::pin(read::audit(&self.readers, limit))
    }

    fn commands(&self, limit: u32) -> Pending<'_, Vec<CommandRecord>> {
        Box::pin(read::commands(&self.readers, limit))
    }

    fn blocks(&self, vm: VmId, keys: Vec<BlockKey>) -> Pending<'_, Vec<SealedBlock>> {
        Box::pin(history::blocks(&self.readers, vm, keys))
    }

    fn prune(
        &self,
        reports_before: Timestamp,
        affairs_before: Timestamp,
        history_before: Timestamp,
    ) -> Pending<'_, u64> {
        Box::pin(prune::prune(&self.readers, &self.writer, reports_before, affairs_before, history_before))
    }
}

/// The database's integers are signed. Ids that would not fit are refused at the edge ([`super::fits`]); a time that
/// does not fit is absurd, and the latest one that fits is as good.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn ms(at: Timestamp) -> i64 {
    integer(at.unix_ms())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_core::Record;
    use gnomon_core::archive::{Change, Kpi, Tier};

    // `kill -9` leaves the page cache alone, so only this tells whether a power cut would, too.
    #[tokio::test]
    async fn the_writing_connection_syncs_every_commit() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&store.writer).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&store.writer).await.unwrap();
        assert_eq!((synchronous, journal.as_str()), (2, "wal"), "2 is FULL");
    }

    #[tokio::test]
    async fn a_disk_that_was_full_is_written_to_again_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let pages = async |most: u32| {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {most}")))
                .execute(&store.writer)
                .await
                .unwrap();
        };
        let report = Entry::Report(crate::store::StoredReport {
            host: HostId::new("a").unwrap(),
            epoch: AgentEpoch(1),
            sequence: Sequence(1),
            start: Timestamp::from_unix_ms(1),
            received: Timestamp::from_unix_ms(1),
            payload: vec![7; 1 << 20],
        });
        let key = BlockKey { kpi: Kpi::Cpu, tier: Tier::Hour1, number: 1 };
        let block = SealedBlock { key, bytes: vec![7; 1 << 20].into() };
        let vm = VmId(uuid::Uuid::from_u128(1));
        let history = Entry::Record(Box::new(Record::History { vm, change: Change::Persist(block.clone()) }));
        for entry in [report, history] {
            pages(1).await;
            let full = store.commit(std::slice::from_ref(&entry)).await.unwrap_err();
            assert!(full.to_string().contains("full"), "{full}");
            pages(1_000_000).await;
            assert_eq!(store.commit(&[entry]).await.unwrap(), [true]);
        }
        assert_eq!(store.blocks(vm, vec![key]).await.unwrap(), [block]);
    }
}
