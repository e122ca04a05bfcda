//! The store in a database, by sqlx: embedded in SQLite, or in PostgreSQL.
//!
//! One set of statements serves both, through sqlx's `Any` driver: it is the SQL that the two share, and where they differ,
//! [`dialect`](Dialect) says so. A commit returns after the log is synced, so `kill -9` and power loss take nothing that was answered.
//! Those who write take turns, a few read, and readers never wait for a writer.

mod admissions;
mod backup;
mod dialect;
mod history;
mod lease;
mod prune;
mod read;
mod turn;
mod write;

pub use lease::leader_lock;

use super::{Candidate, Entry, Lead, Location, Pending, Repeated, Store, StoreError};
use crate::secret;
use dialect::Dialect;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, HostId, Outcome, Sequence, VmId};
use gnomon_core::archive::{BlockKey, SealedBlock};
use gnomon_core::{Audit, CommandRecord, Restored};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use sqlx::migrate::Migrator;
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions, Connection, Transaction};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Readers at a time: the API's queries and a session's hello are short.
const READERS_MAX: u32 = 4;
/// How long a database may take to answer before it counts as one that does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection of its own to renew the lease by: it waits neither for a turn nor for another connection. One that does not answer in time
/// is not waited for either: whoever gives up a renewal drops it, and the next one opens another.
struct Renewals {
    options: AnyConnectOptions,
    settings: &'static str,
    idle: Mutex<Option<AnyConnection>>,
}

impl Renewals {
    async fn take(&self) -> sqlx::Result<AnyConnection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let mut connection = AnyConnection::connect_with(&self.options).await?;
        sqlx::raw_sql(self.settings).execute(&mut connection).await?;
        Ok(connection)
    }

    fn give_back(&self, connection: AnyConnection) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

/// The store in one database. SQLite's is one file, with its `-wal`, `-shm` and `-leader` beside it.
pub struct SqlStore {
    location: Location,
    dialect: Dialect,
    writer: AnyPool,
    readers: AnyPool,
    /// Renews the lease, where that ends.
    renewals: Option<Renewals>,
    /// What this store is called as a writer of batches: no other one is.
    writer_name: String,
    /// The batch that was tried last.
    batch: AtomicU64,
    /// Who this store's owner is, once it has led: from then on it writes nothing unless it still leads.
    leads_as: OnceLock<String>,
    /// Of an SQLite file whose leader this is.
    lock: Mutex<Option<File>>,
}

impl SqlStore {
    /// Opens the database, and brings its schema up to date. An SQLite file is made where there is none.
    pub async fn open(location: &Location) -> Result<Self, StoreError> {
        install_default_drivers();
        let dialect = Dialect::of(location);
        let address = location.address()?;
        let options = |reads_only: bool| {
            let mut address = address.clone();
            if let Some(access) = dialect.access(reads_only) {
                address.set_query(Some(access));
            }
            AnyConnectOptions::from_url(&address)
        };
        let connect = async |most: u32, reads_only: bool| {
            let options = options(reads_only)?;
            let pool = AnyPoolOptions::new().max_connections(most).acquire_timeout(CONNECT_TIMEOUT);
            let settings = dialect.settings();
            let pool = pool.after_connect(move |connection, _| {
                Box::pin(async move { sqlx::raw_sql(settings).execute(connection).await.map(drop) })
            });
            pool.connect_with(options).await
        };
        let writer = connect(dialect.writers_max(), false).await.map_err(|error| location.cannot_open(error))?;
        let examined = async { dialect.examine(&mut *writer.acquire().await?).await };
        examined.await.map_err(|error| location.cannot_open(error))?;
        let migrated = MIGRATIONS.run(&writer).await;
        migrated.map_err(|source| StoreError::Migrate { location: Box::new(location.clone()), source })?;
        let readers = connect(READERS_MAX, true).await.map_err(|error| location.cannot_open(error))?;
        let options = options(false).map_err(|error| location.cannot_open(error))?;
        let renewals =
            dialect.renewal().map(|_| Renewals { options, settings: dialect.settings(), idle: Mutex::default() });
        let entropy = |_| StoreError::Other("the operating system's random source failed");
        let writer_name = format!("{:016x}", u64::from_be_bytes(secret::random().map_err(entropy)?));
        let (location, batch, leads_as, lock) =
            (location.clone(), AtomicU64::new(0), OnceLock::new(), Mutex::default());
        Ok(Self { location, dialect, writer, readers, renewals, writer_name, batch, leads_as, lock })
    }

    /// Opens an SQLite file.
    pub async fn open_sqlite(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open(&Location::Sqlite(path.into())).await
    }

    /// Begins a transaction that will write: nobody else writes until it ends, and nobody takes the lease.
    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.writer.begin_with(self.dialect.begin()).await?;
        self.take_turn(&mut transaction).await?;
        Ok(transaction)
    }

    /// Waits for the turn; fails in a transaction of a brain that has led and leads no more.
    async fn take_turn(&self, db: &mut AnyConnection) -> Result<turn::Last, StoreError> {
        let last = turn::take(db, self.dialect).await?;
        let holder = lease::seen(db, self.dialect).await?.holder;
        match self.leads_as.get() {
            Some(name) if *name != holder => Err(StoreError::Deposed { leader: lease::told(&holder) }),
            _ => Ok(last),
        }
    }

    async fn commit_batch(&self, number: u64, entries: &[Entry]) -> Result<Repeated, StoreError> {
        let mut connection = self.writer.acquire().await?;
        let written = self.write_all(&mut connection, number, entries).await;
        if written.is_err() {
            // On a full disk SQLite ends the transaction by itself, and sqlx goes on to believe in it: every later one would fail, also
            // with room again. The pool opens another connection in place of this one.
            let _ = connection.close().await;
        }
        written
    }

    async fn write_all(
        &self,
        connection: &mut AnyConnection,
        number: u64,
        entries: &[Entry],
    ) -> Result<Repeated, StoreError> {
        let batch = turn::Batch { writer: &self.writer_name, number };
        let mut transaction = connection.begin_with(self.dialect.begin()).await?;
        if let Some(fresh) = self.take_turn(&mut transaction).await?.fresh(batch, entries.len()) {
            return Ok(Repeated { fresh, was_written: true });
        }
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
        turn::mark(&mut transaction, batch, &fresh).await?;
        transaction.commit().await?;
        Ok(Repeated { fresh, was_written: false })
    }
}

impl Store for SqlStore {
    fn commit<'a>(&'a self, entries: &'a [Entry]) -> Pending<'a, Vec<bool>> {
        let number = self.batch.fetch_add(1, Ordering::Relaxed) + 1;
        Box::pin(async move { Ok(self.commit_batch(number, entries).await?.fresh) })
    }

    fn commit_again<'a>(&'a self, entries: &'a [Entry]) -> Pending<'a, Repeated> {
        Box::pin(self.commit_batch(self.batch.load(Ordering::Relaxed), entries))
    }

    fn lead<'a>(&'a self, candidate: &'a Candidate, at_least: u64) -> Pending<'a, Lead> {
        Box::pin(lease::lead(self, candidate, at_least))
    }

    fn renew_lease<'a>(&'a self, candidate: &'a Candidate) -> Pending<'a, ()> {
        Box::pin(lease::renew(self, candidate))
    }

    fn resign(&self) -> Pending<'_, ()> {
        Box::pin(lease::resign(self))
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

    fn raises(&self, since: Timestamp) -> Pending<'_, Vec<Timestamp>> {
        Box::pin(read::raises(&self.readers, since))
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
        Box::pin(prune::prune(self, reports_before, affairs_before, history_before))
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
        let store = SqlStore::open_sqlite(dir.path().join("db")).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&store.writer).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&store.writer).await.unwrap();
        assert_eq!((synchronous, journal.as_str()), (2, "wal"), "2 is FULL");
    }

    #[tokio::test]
    async fn a_disk_that_was_full_is_written_to_again_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqlStore::open_sqlite(dir.path().join("db")).await.unwrap();
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
