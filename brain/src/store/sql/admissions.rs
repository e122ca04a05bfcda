//! Statements about tokens, certificates and revocations.
//!
//! Two processes write here: the brain and the operator's commands. What a transaction here has read is true until it ends, because
//! each of them takes the writer's lock when it begins ([`super::Dialect`]).

use super::{SqlStore, ms, write};
use crate::ca::Serial;
use crate::store::admissions::{Revoked, corrupt};
use crate::store::{
    Admissions, AdmissionsOffice, Pending, Renewal, Standing, StoreError, StoredCertificate, StoredToken,
};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostId, TokenId};
use gnomon_core::Audit;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row, query, query_scalar};
use std::collections::BTreeMap;
use std::time::Duration;

const TOKEN: &str =
    "SELECT id, host, secret_sha256, created_ms, expires_ms, spent_ms, revoked_ms FROM token WHERE id = $1";

impl Admissions for SqlStore {
    fn token(&self, id: TokenId) -> Pending<'_, Option<StoredToken>> {
        Box::pin(async move {
            let row = query(TOKEN).bind(id.to_string()).fetch_optional(&self.readers).await?;
            row.as_ref().map(token).transpose()
        })
    }

    fn enrol<'a>(&'a self, token: TokenId, certificate: &'a StoredCertificate, line: &'a Audit) -> Pending<'a, bool> {
        Box::pin(async move {
            let mut transaction = self.begin().await?;
            let spent = query(
                "UPDATE token SET spent_ms = $2 WHERE id = $1 AND spent_ms IS NULL AND revoked_ms IS NULL AND expires_ms > $2",
            )
            .bind(token.to_string())
            .bind(ms(certificate.issued))
            .execute(&mut *transaction)
            .await?;
            if spent.rows_affected() != 1 {
                return Ok(false);
            }
            list(&mut transaction, certificate).await?;
            write::audit(&mut transaction, line).await?;
            transaction.commit().await?;
            Ok(true)
        })
    }

    fn renew<'a>(
        &'a self,
        shown: &'a Serial,
        certificate: &'a StoredCertificate,
        interval_min: Duration,
        line: &'a Audit,
    ) -> Pending<'a, Renewal> {
        Box::pin(async move {
            let mut transaction = self.begin().await?;
            if let Some(since) = standing(&mut transaction, &certificate.host, shown).await?.void_since() {
                return Ok(Renewal::Void(since));
            }
            let newest: Option<i64> = query_scalar("SELECT MAX(issued_ms) FROM certificate WHERE host = $1")
                .bind(certificate.host.as_str())
                .fetch_one(&mut *transaction)
                .await?;
            if let Some(newest) = newest {
                let age = certificate.issued.since(timestamp(newest));
                if age < interval_min {
                    return Ok(Renewal::TooSoon(age));
                }
            }
            list(&mut transaction, certificate).await?;
            write::audit(&mut transaction, line).await?;
            transaction.commit().await?;
            Ok(Renewal::Done)
        })
    }

    fn standing<'a>(&'a self, host: &'a HostId, shown: &'a Serial) -> Pending<'a, Standing> {
        Box::pin(async move {
            let mut reader = self.readers.acquire().await?;
            standing(&mut reader, host, shown).await
        })
    }

    fn revocations(&self) -> Pending<'_, BTreeMap<HostId, Timestamp>> {
        Box::pin(async move {
            let rows = query("SELECT host, at_ms FROM revocation").fetch_all(&self.readers).await?;
            rows.iter().map(|row| Ok((host(row, "host")?, timestamp(row.try_get("at_ms")?)))).collect()
        })
    }

    fn turn_away<'a>(&'a self, host: &'a HostId, line: &'a Audit) -> Pending<'a, bool> {
        Box::pin(async move {
            let mut transaction = self.begin().await?;
            let first = query("UPDATE revocation SET turned_away_ms = $2 WHERE host = $1 AND turned_away_ms IS NULL")
                .bind(host.as_str())
                .bind(ms(line.at))
                .execute(&mut *transaction)
                .await?;
            if first.rows_affected() != 1 {
                return Ok(false);
            }
            write::audit(&mut transaction, line).await?;
            transaction.commit().await?;
            Ok(true)
        })
    }
}

impl AdmissionsOffice for SqlStore {
    fn create_token<'a>(&'a self, token: &'a StoredToken, line: &'a Audit) -> Pending<'a, ()> {
        Box::pin(async move {
            let mut transaction = self.begin().await?;
            query("INSERT INTO token (id, host, secret_sha256, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5)")
                .bind(token.id.to_string())
                .bind(token.host.as_str())
                .bind(&token.secret_sha256[..])
                .bind(ms(token.created))
                .bind(ms(token.expires))
                .execute(&mut *transaction)
                .await?;
            write::audit(&mut transaction, line).await?;
            Ok(transaction.commit().await?)
        })
    }

    fn tokens(&self) -> Pending<'_, Vec<StoredToken>> {
        Box::pin(async move {
            let rows = query(
                "SELECT id, host, secret_sha256, created_ms, expires_ms, spent_ms, revoked_ms FROM token \
                 ORDER BY created_ms DESC, id",
            )
            .fetch_all(&self.readers)
            .await?;
            rows.iter().map(token).collect()
        })
    }

    fn revoke_token<'a>(&'a self, id: TokenId, at: Timestamp, line: &'a Audit) -> Pending<'a, Option<StoredToken>> {
        Box::pin(async move {
            let mut transaction = self.begin().await?;
            let row = query(TOKEN).bind(id.to_string()).fetch_optional(&mut *transaction).await?;
            let Some(before) = row.as_ref().map(token).transpose()? else { return Ok(None) };
            if before.admits(&before.host, at).is_ok() {
                query("UPDATE token SET revoked_ms = $2 WHERE id = $1")
                    .bind(id.to_string())
                    .bind(ms(at))
                    .execute(&mut *transaction)
                    .await?;
                write::audit(&mut transaction, line).await?;
                transaction.commit().await?;
            }
            Ok(Some(before))
        })
    }

    fn revoke_host<'a>(&'a self, host: &'a HostId, at: Timestamp, line: &'a Audit) -> Pending<'a, Revoked> {
        Box::pin(async move {
            let mut transaction = self.begin().await?;
            let known =
                query("SELECT host FROM host WHERE host = $1 UNION SELECT host FROM certificate WHERE host = $1")
                    .bind(host.as_str())
                    .fetch_optional(&mut *transaction)
                    .await?
                    .is_some();
            let tokens = query(
                "UPDATE token SET revoked_ms = $2 WHERE host = $1 AND spent_ms IS NULL AND revoked_ms IS NULL AND expires_ms > $2",
            )
            .bind(host.as_str())
            .bind(ms(at))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            query(
                "INSERT INTO revocation (host, at_ms) VALUES ($1, $2) \
                 ON CONFLICT (host) DO UPDATE SET at_ms = excluded.at_ms, turned_away_ms = NULL",
            )
            .bind(host.as_str())
            .bind(ms(at))
            .execute(&mut *transaction)
            .await?;
            write::audit(&mut transaction, line).await?;
            transaction.commit().await?;
            Ok(Revoked { known, tokens })
        })
    }

    fn hosts(&self) -> Pending<'_, Vec<(StoredCertificate, Option<Timestamp>)>> {
        Box::pin(async move {
            let rows = query(
                "SELECT newest.host, newest.serial, newest.issued_ms, newest.expires_ms, revocation.at_ms FROM certificate AS newest \
                 LEFT JOIN revocation ON revocation.host = newest.host WHERE NOT EXISTS (SELECT 1 FROM certificate AS newer \
                 WHERE newer.host = newest.host AND newer.issued_ms > newest.issued_ms) ORDER BY newest.host",
            )
            .fetch_all(&self.readers)
            .await?;
            let read = |row: &AnyRow| -> Result<_, StoreError> {
                let certificate = StoredCertificate {
                    serial: Serial::from_store(row.try_get("serial")?),
                    host: host(row, "host")?,
                    issued: timestamp(row.try_get("issued_ms")?),
                    expires: timestamp(row.try_get("expires_ms")?),
                };
                Ok((certificate, row.try_get::<Option<i64>, _>("at_ms")?.map(timestamp)))
            };
            rows.iter().map(read).collect()
        })
    }
}

async fn list(db: &mut AnyConnection, certificate: &StoredCertificate) -> Result<(), StoreError> {
    query("INSERT INTO certificate (serial, host, issued_ms, expires_ms) VALUES ($1, $2, $3, $4)")
        .bind(certificate.serial.as_str())
        .bind(certificate.host.as_str())
        .bind(ms(certificate.issued))
        .bind(ms(certificate.expires))
        .execute(db)
        .await?;
    Ok(())
}

async fn standing(db: &mut AnyConnection, host: &HostId, shown: &Serial) -> Result<Standing, StoreError> {
    let row = query(
        "SELECT (SELECT issued_ms FROM certificate WHERE serial = $1 AND host = $2), \
         (SELECT at_ms FROM revocation WHERE host = $2)",
    )
    .bind(shown.as_str())
    .bind(host.as_str())
    .fetch_one(db)
    .await?;
    let instant =
        |column: usize| -> Result<_, StoreError> { Ok(row.try_get::<Option<i64>, _>(column)?.map(timestamp)) };
    Ok(Standing { issued: instant(0)?, revoked: instant(1)? })
}

fn token(row: &AnyRow) -> Result<StoredToken, StoreError> {
    let instant = |column: &str| -> Result<_, StoreError> { Ok(row.try_get::<Option<i64>, _>(column)?.map(timestamp)) };
    let secret: &[u8] = row.try_get("secret_sha256")?;
    Ok(StoredToken {
        id: row.try_get::<&str, _>("id")?.parse().map_err(|_| corrupt("a stored token has no valid id"))?,
        host: host(row, "host")?,
        secret_sha256: secret.try_into().map_err(|_| corrupt("a stored token's hash is none"))?,
        created: timestamp(row.try_get("created_ms")?),
        expires: timestamp(row.try_get("expires_ms")?),
        spent: instant("spent_ms")?,
        revoked: instant("revoked_ms")?,
    })
}

fn host(row: &AnyRow, column: &str) -> Result<HostId, StoreError> {
    HostId::new(row.try_get::<&str, _>(column)?).map_err(|_| corrupt("a stored host has no valid name"))
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms.unsigned_abs())
}
