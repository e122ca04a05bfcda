//! Blocks of VMs' long histories: statements that keep, forget and give back. They are opaque here; whether the bytes of one are sound
//! shows when the archive takes it back.

use super::{integer, ms};
use crate::store::StoreError;
use futures_util::TryStreamExt;
use gnomon_common::wire::VmId;
use gnomon_core::Restored;
use gnomon_core::archive::{BlockKey, Change, Kpi, SealedBlock, Tier};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AnyPool, Row, query, query_scalar};
use std::pin::pin;

/// Keeps or forgets a block.
pub(super) async fn change(db: &mut AnyConnection, vm: VmId, change: &Change) -> Result<(), StoreError> {
    let (statement, key) = match change {
        Change::Persist(SealedBlock { key, .. }) => (
            "INSERT INTO block (vm, kpi, tier, number, end_ms, bytes) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (vm, kpi, tier, number) DO UPDATE SET end_ms = excluded.end_ms, bytes = excluded.bytes",
            key,
        ),
        Change::Forget(key) => ("DELETE FROM block WHERE vm = $1 AND kpi = $2 AND tier = $3 AND number = $4", key),
    };
    let keyed = query(statement)
        .bind(vm.to_string())
        .bind(i64::from(key.kpi as u8))
        .bind(i64::from(key.tier as u8))
        .bind(integer(key.number));
    let bound = match change {
        Change::Persist(block) => keyed.bind(ms(key.end())).bind(&block.bytes[..]),
        Change::Forget(_) => keyed,
    };
    bound.execute(db).await?;
    Ok(())
}

/// Hands out all blocks, each VM's together. Rows that are no block's are skipped and counted.
pub(super) async fn restore(db: &AnyPool, sink: &mut (dyn FnMut(Restored) + Send)) -> Result<(), StoreError> {
    // Streamed, in the order of the primary key: the histories of a fleet are gigabytes.
    let mut rows =
        pin!(query("SELECT vm, kpi, tier, number, bytes FROM block ORDER BY vm, kpi, tier, number").fetch(db));
    let mut skipped = 0u64;
    while let Some(row) = rows.try_next().await? {
        match block(&row) {
            Some((vm, block)) => sink(Restored::History { vm, block }),
            None => skipped += 1,
        }
    }
    if skipped > 0 {
        tracing::warn!(
            skipped,
            "stored blocks of VMs' histories make no sense (damaged, or of a newer release) and are skipped"
        );
    }
    Ok(())
}

/// Reads these blocks of a VM; those that are not there are left out.
pub(super) async fn blocks(db: &AnyPool, vm: VmId, keys: Vec<BlockKey>) -> Result<Vec<SealedBlock>, StoreError> {
    let mut connection = db.acquire().await?;
    let vm = vm.to_string();
    let mut blocks = Vec::with_capacity(keys.len());
    for key in keys {
        let bytes: Option<Vec<u8>> =
            query_scalar("SELECT bytes FROM block WHERE vm = $1 AND kpi = $2 AND tier = $3 AND number = $4")
                .bind(&vm)
                .bind(i64::from(key.kpi as u8))
                .bind(i64::from(key.tier as u8))
                .bind(integer(key.number))
                .fetch_optional(&mut *connection)
                .await?;
        blocks.extend(bytes.map(|bytes| SealedBlock { key, bytes: bytes.into() }));
    }
    Ok(blocks)
}

/// `None` for a row that this release cannot have written.
fn block(row: &AnyRow) -> Option<(VmId, SealedBlock)> {
    let number = |column: usize| u64::try_from(row.try_get::<i64, _>(column).ok()?).ok();
    let place = |column| number(column).and_then(|number| usize::try_from(number).ok());
    let vm = row.try_get::<&str, _>(0).ok()?.parse().ok()?;
    let (kpi, tier) = (*Kpi::ALL.get(place(1)?)?, *Tier::ALL.get(place(2)?)?);
    let bytes = row.try_get::<&[u8], _>(4).ok()?.into();
    Some((vm, SealedBlock { key: BlockKey { kpi, tier, number: number(3)? }, bytes }))
}
