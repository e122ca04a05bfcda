//! Renewing this host's certificate, over the connection that it has made with the present one.
//!
//! When two thirds of the certificate's life are over ([`renewal_due`]), a new key is made, its request sent, the answer put on disk,
//! and the session ended: the next one, at once, shows the new certificate. Whatever goes wrong is tried again while the rest of the life
//! lasts; after that the brain refuses the connection, and only a new token helps.

use super::Uplink;
use super::failure::Failure;
use super::identity::{Fresh, Identity};
use crate::command::clock::wall_clock;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentMessage, renewal_due};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// The clock is looked at this often at least: it may be set, and the host may have slept.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How long the brain may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// After a renewal that failed, this part of the certificate's whole life passes before the next attempt: ten fit into the last third.
const RETRY_SHARE: u32 = 30;
/// Bounds of that pause.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// What the brain says to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The next certificate, PEM.
    Renewed(String),
    /// Why there is none yet.
    Refused(String),
}

/// Renews when it is time; returns once the new identity is on disk. Requests leave by `ask`, answers come by `answers`.
pub(super) async fn renewed(
    uplink: &Uplink,
    present: &Identity,
    ask: mpsc::Sender<AgentMessage>,
    mut answers: mpsc::Receiver<Answer>,
) -> Result<(), Failure> {
    let due = renewal_due(present.valid_from, present.valid_to);
    uplink.metrics.certificate_valid_to(present.valid_to);
    loop {
        wait_until(due).await;
        match attempt(uplink, &ask, &mut answers).await {
            Ok(valid_to) => {
                uplink.metrics.count_renewal("renewed");
                tracing::info!(valid_to_s = valid_to.unix_ms() / 1000, "certificate renewed; connecting again with it");
                return Ok(());
            }
            Err(reason) => {
                let pause = (present.valid_to.since(present.valid_from) / RETRY_SHARE).clamp(RETRY.0, RETRY.1);
                let left_s = present.valid_to.since(wall_clock()).as_secs();
                uplink.metrics.count_renewal("failed");
                tracing::warn!(reason, left_s, retry_in_s = pause.as_secs(), "the certificate is not renewed");
                sleep(pause).await;
            }
        }
    }
}

async fn attempt(
    uplink: &Uplink,
    ask: &mpsc::Sender<AgentMessage>,
    answers: &mut mpsc::Receiver<Answer>,
) -> Result<Timestamp, String> {
    let fresh = Fresh::make(&uplink.host).map_err(|error| format!("no new key: {error}"))?;
    // An answer that came too late belongs to a key that is gone.
    while answers.try_recv().is_ok() {}
    let gone = || "the connection is ending".to_owned();
    ask.send(AgentMessage::Renew { request: fresh.request.clone() }).await.map_err(|_| gone())?;
    let answer = timeout(ANSWER_MAX, answers.recv()).await;
    match answer.map_err(|_| format!("no answer from the brain within {} s", ANSWER_MAX.as_secs()))?.ok_or_else(gone)? {
        Answer::Renewed(certificate) => {
            let replaced = uplink.identity.replace(&fresh, &certificate, None);
            Ok(replaced.map_err(|error| format!("{error}; the agent must be able to write there"))?.valid_to)
        }
        Answer::Refused(reason) => Err(format!("the brain refuses: {reason}")),
    }
}

async fn wait_until(due: Timestamp) {
    loop {
        let rest = due.since(wall_clock());
        if rest.is_zero() {
            return;
        }
        sleep(rest.min(LOOK_INTERVAL)).await;
    }
}
