//! Renewing: a connected agent gets the next certificate for a new key.

use super::session::SessionContext;
use crate::ca::{Identity, Signed};
use crate::clock;
use crate::store::{Renewal, StoredCertificate};
use gnomon_common::wire::{BrainMessage, HostId};
use gnomon_core::Audit;
use std::time::Duration;
use tokio::time::timeout;

/// No host gets more certificates than this many in a lifetime: one is needed every two thirds of it, and some are lost.
const RENEWALS_PER_LIFETIME_MAX: u32 = 10;
/// How long the store may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// What to answer to a signing request of `host`, which showed `shown`.
pub(super) async fn answer(context: &SessionContext, host: &HostId, shown: &Identity, request: &[u8]) -> BrainMessage {
    match renew(context, host, shown, request).await {
        Ok(certificate) => {
            context.metrics.renewal("renewed");
            BrainMessage::Renewed { certificate }
        }
        Err((kind, reason)) => {
            tracing::warn!(%host, kind, reason, "no renewal");
            context.metrics.renewal(kind);
            BrainMessage::RenewalRefused { reason }
        }
    }
}

async fn renew(
    context: &SessionContext,
    host: &HostId,
    shown: &Identity,
    request: &[u8],
) -> Result<String, (&'static str, String)> {
    let Some(authority) = context.enrolment.authority() else {
        let reason =
            "this brain has no [ca] in its configuration; issue the next certificate with: gnomon-brain ca issue-agent";
        return Err(("no_authority", reason.to_owned()));
    };
    let signed = authority.ca.sign_agent(host, request, authority.lifetime);
    let Signed { certificate, serial, valid_to } = signed.map_err(|error| ("malformed", error.to_string()))?;
    let now = clock::now();
    let listed = StoredCertificate { serial, host: host.clone(), issued: now, expires: valid_to };
    let line = Audit {
        at: now,
        actor: format!("host {host}"),
        verb: "renew".to_owned(),
        object: format!("host {host}"),
        detail: format!("certificate {} follows {}", listed.serial, shown.serial),
    };
    let interval_min = authority.lifetime.0 / RENEWALS_PER_LIFETIME_MAX;
    let renewed = timeout(STORE_TIMEOUT, context.store.renew(&shown.serial, &listed, interval_min, &line)).await;
    match renewed {
        Ok(Ok(Renewal::Done)) => {
            tracing::info!(%host, serial = %listed.serial, "certificate renewed");
            Ok(certificate)
        }
        Ok(Ok(Renewal::Void(_))) => Err(("revoked", format!("host {host} was revoked"))),
        Ok(Ok(Renewal::TooSoon(age))) => {
            Err(("too_soon", format!("host {host} got a certificate {age:?} ago; one in {interval_min:?} is enough")))
        }
        Ok(Err(error)) => Err(("store", format!("the store fails: {error}"))),
        Err(_) => Err(("store", format!("the store did not answer within {STORE_TIMEOUT:?}"))),
    }
}
