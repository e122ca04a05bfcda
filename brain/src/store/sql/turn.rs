//! Whose turn it is to write, and which batch was written last.
//!
//! The answer to a commit can be lost: the database has written, and the connection ends before it says so. Whether it has is what the
//! last batch's mark tells, which is written with it.

use super::{Dialect, integer};
use crate::store::StoreError;
use sqlx::{AnyConnection, Row, query};

/// A batch: by which store, and which of its.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub(super) writer: &'a str,
    pub(super) number: u64,
}

/// The batch that was written last.
#[derive(Debug)]
pub(super) struct Last {
    writer: String,
    number: i64,
    stale: String,
}

/// Waits for the turn; it is over with the transaction.
pub(super) async fn take(db: &mut AnyConnection, dialect: Dialect) -> Result<Last, StoreError> {
    let row = query(dialect.turn()).fetch_one(db).await?;
    Ok(Last { writer: row.try_get("writer")?, number: row.try_get("batch")?, stale: row.try_get("stale")? })
}

impl Last {
    /// Which of a batch's so many entries were new, if this is the one.
    pub(super) fn fresh(&self, batch: Batch<'_>, entries: usize) -> Option<Vec<bool>> {
        if self.writer != batch.writer || self.number != integer(batch.number) {
            return None;
        }
        let mut fresh = vec![true; entries];
        for place in self.stale.split(',').filter_map(|place| place.parse::<usize>().ok()) {
            *fresh.get_mut(place)? = false;
        }
        Some(fresh)
    }
}

/// Marks a batch as written, if its transaction is.
pub(super) async fn mark(db: &mut AnyConnection, batch: Batch<'_>, fresh: &[bool]) -> Result<(), StoreError> {
    let stale = fresh.iter().enumerate().filter(|(_, fresh)| !**fresh).map(|(place, _)| place.to_string());
    query("UPDATE turn SET writer = $1, batch = $2, stale = $3")
        .bind(batch.writer)
        .bind(integer(batch.number))
        .bind(stale.collect::<Vec<_>>().join(","))
        .execute(db)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_known_by_its_writer_and_number_and_so_is_what_was_new_of_it() {
        let last = |stale: &str| Last { writer: "a".to_owned(), number: 7, stale: stale.to_owned() };
        let batch = Batch { writer: "a", number: 7 };
        assert_eq!(last("").fresh(batch, 2), Some(vec![true, true]));
        assert_eq!(last("0,2").fresh(batch, 3), Some(vec![false, true, false]));
        assert_eq!(last("2").fresh(batch, 2), None, "another number of entries is another batch");
        assert_eq!(last("").fresh(Batch { number: 8, ..batch }, 2), None);
        assert_eq!(last("").fresh(Batch { writer: "b", ..batch }, 2), None);
    }
}
