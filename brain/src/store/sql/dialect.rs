//! Where SQLite and PostgreSQL differ. Everything else is the SQL that they share.

use crate::store::Location;
use sqlx::{AnyConnection, Row, query};

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// One process leads, for as long as it lives; commands of the operator write beside it.
    Sqlite,
    /// Several brains, of which one leads.
    Postgres,
}

/// Reads the lease's row: holder, term, since when and until when it has it, and what time it is.
const LEASE_SQLITE: &str = "SELECT holder, term, since_ms, expires_ms, expires_ms AS now_ms FROM lease";

macro_rules! lease_postgres {
    ($lock:literal) => {
        concat!(
            "SELECT holder, term, since_ms, expires_ms, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) AS now_ms FROM lease",
            $lock
        )
    };
}

impl Dialect {
    pub(super) fn of(location: &Location) -> Self {
        match location {
            Location::Sqlite(_) => Self::Sqlite,
            Location::Postgres { .. } => Self::Postgres,
        }
    }

    /// What is said to a new connection.
    ///
    /// SQLite: a write-ahead log, synced at every commit (<https://www.sqlite.org/pragma.html#pragma_synchronous>), and two seconds of
    /// patience with whoever else holds a lock: a back-up, a curious sqlite3.
    ///
    /// PostgreSQL: a commit returns when it is on disk, whatever the server's or the role's default is. A brain that stops amid a
    /// transaction holds the turn; the server ends such a session sooner than a lease, and whoever waits for the turn waits longer
    /// than that.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Self::Sqlite => "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 2000",
            Self::Postgres => {
                "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local'); \
                 SET idle_in_transaction_session_timeout = '2s'; SET lock_timeout = '3s'"
            }
        }
    }

    /// Fails on a database that cannot keep what a brain stores, and warns of one that does not keep it through a power cut.
    pub(super) async fn examine(self, db: &mut AnyConnection) -> sqlx::Result<()> {
        if self == Self::Sqlite {
            return Ok(());
        }
        let settings =
            query("SELECT current_setting('server_encoding'), current_setting('fsync')").fetch_one(db).await?;
        let (encoding, fsync) = (settings.try_get::<&str, _>(0)?, settings.try_get::<&str, _>(1)?);
        if encoding != "UTF8" {
            let problem = format!("its encoding is {encoding}; a brain's database is made with ENCODING 'UTF8'");
            return Err(sqlx::Error::Configuration(problem.into()));
        }
        if fsync != "on" {
            tracing::warn!("PostgreSQL runs with fsync off: a power cut takes what agents were told is stored");
        }
        Ok(())
    }

    /// The query of an address by which a reader, or else a writer, opens it.
    pub(super) fn access(self, reads_only: bool) -> Option<&'static str> {
        match (self, reads_only) {
            (Self::Sqlite, true) => Some("mode=ro"),
            (Self::Sqlite, false) => Some("mode=rwc"),
            (Self::Postgres, _) => None,
        }
    }

    /// How a transaction begins that will write; [`Self::turn`] follows. A transaction of SQLite that read before it wants to write would fail
    /// at once, without any patience, if another process had written meanwhile (<https://www.sqlite.org/rescode.html#busy_snapshot>). In
    /// PostgreSQL what is read after the turn has come has to be what there is then, whatever the server's default isolation is.
    pub(super) fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    /// Takes the turn to write, which SQLite's transaction has from its beginning.
    pub(super) fn turn(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT writer, batch, stale FROM turn",
            Self::Postgres => "SELECT writer, batch, stale FROM turn FOR UPDATE",
        }
    }

    /// Reads the lease, without waiting for anybody.
    pub(super) fn lease(self) -> &'static str {
        match self {
            Self::Sqlite => LEASE_SQLITE,
            Self::Postgres => lease_postgres!(""),
        }
    }

    /// Reads the lease within a transaction that will change it: it is not renewed meanwhile.
    pub(super) fn lease_locked(self) -> &'static str {
        match self {
            Self::Sqlite => LEASE_SQLITE,
            Self::Postgres => lease_postgres!(" FOR UPDATE"),
        }
    }

    /// Has the lease of `$2`, where that has it, last for `$1` milliseconds from now on. SQLite's does not end.
    pub(super) fn renewal(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some(
                "UPDATE lease SET expires_ms = CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + $1 WHERE holder = $2",
            ),
        }
    }

    /// Connections that write. PostgreSQL's take turns at a row; nobody need wait for a connection as well.
    pub(super) fn writers_max(self) -> u32 {
        match self {
            Self::Sqlite => 1,
            Self::Postgres => 4,
        }
    }
}
