//! Back-ups of an SQLite file. PostgreSQL has its own tools.

use super::{Dialect, SqlStore, integer, write};
use crate::store::{INTEGER_MAX, Location, StoreError};
use gnomon_core::Audit;
use sqlx::{AnyConnection, Connection, query, query_scalar};
use std::path::Path;

impl SqlStore {
    /// Copies an SQLite database as it is at this moment into an empty file. A brain that writes meanwhile is not held up
    /// (<https://www.sqlite.org/lang_vacuum.html#vacuuminto>).
    pub async fn back_up(&self, into: &Path) -> Result<(), StoreError> {
        if self.dialect != Dialect::Sqlite {
            return Err(StoreError::Other("a PostgreSQL database is backed up and restored by pg_dump and pg_restore"));
        }
        let into = into.to_str().ok_or(StoreError::Other("the back-up's path is no text"))?;
        query("VACUUM INTO $1").bind(into).execute(&self.writer).await?;
        Ok(())
    }

    /// Opens a back-up: an SQLite file that was a brain's store, whose every page is in order.
    pub async fn open_backup(path: &Path) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let location = Location::Sqlite(path.to_owned());
        let cannot_open = |error| location.cannot_open(error);
        let mut address = location.address()?;
        address.set_query(Dialect::Sqlite.access(true));
        // Looked at before it is opened as a store, which would make one of anything that is empty.
        let mut db = AnyConnection::connect(address.as_str()).await.map_err(cannot_open)?;
        let tables = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name IN ('host', 'report', 'command', 'audit')";
        let tables: i64 = query_scalar(tables).fetch_one(&mut db).await.map_err(cannot_open)?;
        if tables != 4 {
            return Err(StoreError::Other("the file is no back-up of a brain's store"));
        }
        let found: String = query_scalar("PRAGMA integrity_check").fetch_one(&mut db).await.map_err(cannot_open)?;
        if found != "ok" {
            return Err(StoreError::Other("the back-up is damaged: SQLite's integrity check fails"));
        }
        db.close().await.map_err(cannot_open)?;
        Self::open(&location).await
    }

    /// Closes it: what is written is in its file then, with nothing beside it, where nobody else has that open.
    pub async fn close(self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// The highest lease term ever used.
    pub async fn term(&self) -> Result<u64, StoreError> {
        let term: i64 = query_scalar("SELECT term FROM lease").fetch_one(&self.readers).await?;
        Ok(term.unsigned_abs())
    }

    /// Makes a store of a back-up: whoever leads by it gets a term above `term`, and its audit log says what happened. Everything is in the one
    /// file then, and closed.
    pub async fn conclude_restore(self, term: u64, line: &Audit) -> Result<(), StoreError> {
        if term >= INTEGER_MAX {
            return Err(StoreError::TermsUsedUp(term));
        }
        let mut transaction = self.begin().await?;
        query("UPDATE lease SET term = $1, holder = ''").bind(integer(term)).execute(&mut *transaction).await?;
        write::audit(&mut transaction, line).await?;
        transaction.commit().await?;
        self.readers.close().await;
        query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.writer).await?;
        self.writer.close().await;
        Ok(())
    }
}
