//! Joining ([`gnomon_common::wire::ENROL_ALPN`]): the only thing that a peer without a certificate can do here.
//!
//! ```text
//! connection -> place? -> one stream, one bounded request -> token good? -> sign -> spend the token -> reply -> close
//!                 no: busy                                    no: refused, logged, in the audit log
//! ```
//! Strangers can get this far, so everything is bounded: how many are served at a time, how many over time, how much each
//! may send, how long it may take, and how many lines they can add to the audit log. What is over a bound is counted.

use super::bucket::Bucket;
use super::close::{CloseCode, Ending};
use super::framing;
use super::metrics::IngestMetrics;
use crate::ca::{Ca, Lifetime};
use crate::clock;
use crate::secret;
use crate::store::{Journal, Store, StoreError, StoredCertificate};
use gnomon_common::wire::{ENROL_BYTES_MAX, EnrolRefusal, EnrolReply, EnrolRequest};
use gnomon_core::{Audit, Record};
use quinn::{Connection, ConnectionError, SendStream};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// Hosts that join at the same moment: each holds at most a connection's receive window of memory.
const JOINING_MAX: usize = 8;
/// Attempts at once, and over time: a rack that comes up joins within seconds; who guesses secrets gets nowhere.
const ARRIVALS: (u32, Duration) = (64, Duration::from_millis(50));
/// Audit lines that strangers (who prove to have no token) can cause: enough to be seen, too few to bury anything.
const STRANGERS_LINES: (u32, Duration) = (16, Duration::from_secs(60));
/// Audit lines that bearers of real, useless tokens can cause. An allowance of its own, so that strangers cannot use it up.
const BEARERS_LINES: (u32, Duration) = (64, Duration::from_secs(10));
/// From the end of the handshake to the whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// For everything that the store is asked on behalf of one attempt.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the reply may take to arrive.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// The TLS alert of a client whose token pins another CA than ours (RFC 8446, section 6.2: `unknown_ca`), as QUIC carries it.
const ALERT_UNKNOWN_CA: u64 = 0x100 + 48;

/// What signs agents' certificates.
pub struct Authority {
    /// The CA.
    pub ca: Ca,
    /// How long what it signs is valid.
    pub lifetime: Lifetime,
}

/// Where hosts join, for as long as the process lives: the allowances outlast lease terms.
pub struct Enrolment {
    authority: Option<Arc<Authority>>,
    store: Arc<dyn Store>,
    journal: Journal,
    metrics: IngestMetrics,
    places: Semaphore,
    arrivals: Mutex<Bucket>,
    strangers_lines: Mutex<Bucket>,
    bearers_lines: Mutex<Bucket>,
}

/// Why somebody may not join, and whether it proved to have a token.
struct Refusal {
    code: EnrolRefusal,
    reason: String,
    /// What the audit log shall say of it; nothing of what is no fault of a token.
    audit: Option<Evidence>,
}

/// What an audit line about a refused token rests on.
struct Evidence {
    /// The token and its secret were right.
    bearer: bool,
    /// Whom it is about.
    object: String,
}

impl Refusal {
    fn new(code: EnrolRefusal, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), audit: None }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store fails while a host wants to join");
        Self::new(EnrolRefusal::Busy, "the store fails; try again")
    }
}

impl Enrolment {
    /// Opens; without an authority everybody is refused.
    pub fn new(
        authority: Option<Arc<Authority>>,
        store: Arc<dyn Store>,
        journal: Journal,
        metrics: IngestMetrics,
    ) -> Self {
        let now = Instant::now();
        let bucket = |(burst, interval)| Mutex::new(Bucket::new(burst, interval, now));
        Self {
            authority,
            store,
            journal,
            metrics,
            places: Semaphore::new(JOINING_MAX),
            arrivals: bucket(ARRIVALS),
            strangers_lines: bucket(STRANGERS_LINES),
            bearers_lines: bucket(BEARERS_LINES),
        }
    }

    /// What signs, if anything does.
    pub(super) fn authority(&self) -> Option<&Arc<Authority>> {
        self.authority.as_ref()
    }

    /// Serves one attempt to its end.
    pub(super) async fn serve(&self, connection: Connection) {
        let peer = connection.remote_address();
        let place = self.places.try_acquire();
        let (Ok(_place), Some(_)) = (place, take(&self.arrivals)) else {
            self.metrics.enrolment(EnrolRefusal::Busy.word());
            return connection.close(CloseCode::Busy.var_int(), b"too many hosts join at once; try again");
        };
        let (mut stream, request) = match timeout(REQUEST_TIMEOUT, hear(&connection)).await {
            Ok(Ok(heard)) => heard,
            failed => {
                let late = || Ending::new(CloseCode::Malformed, format!("no request within {REQUEST_TIMEOUT:?}"));
                let ending = failed.map_or_else(|_| late(), |heard| heard.err().unwrap_or_else(late));
                tracing::warn!(%peer, kind = ending.code.kind(), reason = ending.reason, "enrolment refused");
                self.metrics.enrolment(EnrolRefusal::Malformed.word());
                return connection.close(ending.code.var_int(), ending.reason_bytes());
            }
        };
        let answer = timeout(STORE_TIMEOUT, self.judge(peer, &request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Refusal::new(EnrolRefusal::Busy, "the store is slow; try again")));
        let reply = match answer {
            Ok(reply) => {
                self.metrics.enrolment("issued");
                reply
            }
            Err(refusal) => self.refuse(peer, refusal).await,
        };
        let said = async {
            framing::write(&mut stream, &reply).await?;
            let _ = stream.finish();
            let _ = stream.stopped().await;
            Ok::<(), Ending>(())
        };
        let _ = timeout(REPLY_TIMEOUT, said).await;
        connection.close(CloseCode::Done.var_int(), b"");
    }

    /// A handshake for joining that came to nothing. Where the peer does not know our CA, it has another brain's token.
    pub(super) async fn failed(&self, peer: SocketAddr, error: &ConnectionError) {
        let ConnectionError::ConnectionClosed(close) = error else { return };
        if u64::from(close.error_code) != ALERT_UNKNOWN_CA || take(&self.arrivals).is_none() {
            return;
        }
        let reason = "the host does not know this brain's CA: its token was made by another brain";
        let audit = Some(Evidence { bearer: false, object: "unknown host".to_owned() });
        self.refuse(peer, Refusal { code: EnrolRefusal::Foreign, reason: reason.to_owned(), audit }).await;
    }

    async fn judge(&self, peer: SocketAddr, asked: &EnrolRequest) -> Result<EnrolReply, Refusal> {
        let EnrolRequest { token, secret, host, request } = asked;
        let Some(authority) = &self.authority else {
            let reason = "this brain has no [ca] in its configuration: it issues no certificates (gnomon-brain ca issue-agent does)";
            return Err(Refusal::new(EnrolRefusal::NoAuthority, reason));
        };
        let evidence = |bearer| Some(Evidence { bearer, object: format!("host {host}") });
        let stored = self.store.token(*token).await?;
        let Some(stored) = stored.filter(|stored| stored.is_proved_by(&secret::sha256(&secret.0))) else {
            let reason = format!("token {token} with this secret is none of this brain's");
            return Err(Refusal { code: EnrolRefusal::Foreign, reason, audit: evidence(false) });
        };
        let useless = |code| {
            let what = match code {
                EnrolRefusal::OtherHost => {
                    format!(
                        "token {token} is good for host {}, not for host {host}; no host may speak for another",
                        stored.host
                    )
                }
                EnrolRefusal::Spent => format!("token {token} has let a host in before, and does so only once"),
                EnrolRefusal::Expired => format!("token {token} has expired"),
                _ => format!("token {token} was revoked"),
            };
            let reason = format!("{what}; make a new one with: gnomon-brain token create --host {host}");
            Refusal { code, reason, audit: evidence(true) }
        };
        let now = clock::now();
        stored.admits(host, now).map_err(useless)?;
        let signed = authority.ca.sign_agent(host, request, authority.lifetime).map_err(|error| {
            tracing::warn!(%peer, %host, %error, "a bearer of a good token sent a bad signing request");
            Refusal::new(EnrolRefusal::Malformed, error.to_string())
        })?;
        let certificate =
            StoredCertificate { serial: signed.serial, host: host.clone(), issued: now, expires: signed.valid_to };
        let line = Audit {
            at: now,
            actor: format!("host {host}"),
            verb: "enrol".to_owned(),
            object: format!("host {host}"),
            detail: format!("token {token}, certificate {}, from {}", certificate.serial, peer.ip()),
        };
        if !self.store.enrol(*token, &certificate, &line).await? {
            // Somebody was faster between the look and the spending; the store knows how.
            let code = match self.store.token(*token).await? {
                Some(stored) => stored.admits(host, clock::now()).err().unwrap_or(EnrolRefusal::Spent),
                None => EnrolRefusal::Expired,
            };
            return Err(useless(code));
        }
        tracing::info!(%peer, %host, %token, serial = %certificate.serial, "a host joined");
        Ok(EnrolReply::Issued { certificate: signed.certificate, ca: authority.ca.certificate_pem().to_owned() })
    }

    /// Says why: in the log, and within the allowance in the audit log, before the peer hears of it.
    async fn refuse(&self, peer: SocketAddr, Refusal { code, reason, audit }: Refusal) -> EnrolReply {
        tracing::warn!(%peer, code = code.word(), reason, "enrolment refused");
        self.metrics.enrolment(code.word());
        if let Some(Evidence { bearer, object }) = audit {
            let allowance = if bearer { &self.bearers_lines } else { &self.strangers_lines };
            match take(allowance) {
                Some(unlisted) => {
                    let more = match unlisted {
                        0 => String::new(),
                        more => format!(" ({more} earlier refusals are not listed)"),
                    };
                    let line = Audit {
                        at: clock::now(),
                        actor: peer.ip().to_string(),
                        verb: "refuse_token".to_owned(),
                        object,
                        detail: format!("{}: {reason}{more}", code.word()),
                    };
                    self.note(line).await;
                }
                None => self.metrics.refusal_unlisted(),
            }
        }
        EnrolReply::Refused { code, reason }
    }

    async fn note(&self, line: Audit) {
        let noted = async {
            let receipt = self.journal.records(vec![Record::Audit(line)]).await.ok()?;
            receipt.await.ok()
        };
        if timeout(STORE_TIMEOUT, noted).await.ok().flatten().is_none() {
            tracing::warn!("the store is slow: the audit log gets this refusal later, or the log alone has it");
        }
    }
}

/// One of an allowance; how many were refused before it.
fn take(bucket: &Mutex<Bucket>) -> Option<u64> {
    // A bucket is consistent between its methods, so that a panic elsewhere does not spoil it.
    bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
}

async fn hear(connection: &Connection) -> Result<(SendStream, EnrolRequest), Ending> {
    let opened = connection.accept_bi().await;
    let (send, mut recv) = opened.map_err(|error| Ending::new(CloseCode::Done, error.to_string()))?;
    let payload = framing::read_payload_within(&mut recv, ENROL_BYTES_MAX).await?;
    let payload = payload.ok_or_else(|| Ending::new(CloseCode::Malformed, "the stream ended before a request"))?;
    Ok((send, framing::decode(&payload)?))
}
