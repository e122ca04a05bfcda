//! The running brain: sockets, store, API, and one life after another.
//!
//! A *life* is one lease term: a core restored from the store, the loop that drives it, and the sessions of the agents
//! that were welcomed with its term. A life ends when the brain is told to stop, or when an agent shows a fence that
//! this brain never sent. The latter means that the store is older than the brain that sent the fence (somebody
//! restored a back-up): commands of this term would be refused as stale, or worse, bear ids that another brain has
//! used. So the life ends: every connection is closed, the term goes above the fence and is persisted, it is said in
//! the audit log, and a new life begins from the store. Agents come back within a second.
//!
//! Of several brains on one database one leads, by a lease ([`crate::store::Candidate`]); the others stand by, and send agents and people
//! to it. A leader that loses its lease is a part that ended: its process ends, and the next one stands by.
//!
//! A part that ends although nobody stopped it (a panic, a listener that broke) leaves a brain that looks alive and
//! decides nothing. So it is never lived with: [`Service::failed`] says which part it was, and the process ends.

mod lives;
mod raise;
mod tenure;

use lives::Lives;
pub use raise::Raising;
pub(crate) use tenure::register as register_leading;

use crate::api::{self, ApiState, Tokens, TokensError};
use crate::ca::Ca;
use crate::capacity::{self, ProviderError};
use crate::clock;
use crate::config::{CaConfig, Config, StoreConfig};
use crate::ingest::{self, Authority, Enrolment, IngestMetrics, OwnCertificate, Revocations, TlsError, TlsFiles};
use crate::role::Role;
use crate::secret::{self, SecretError};
use crate::store::{Candidate, Journal, Store, StoreError};
use crate::telemetry::Telemetry;
use gnomon_core::Policy;
use gnomon_core::archive::Tier;
use quinn::Endpoint;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tenure::Tenure;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often old rows are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// How often the brain looks whether its own certificate is due; sooner if it is due sooner.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(3600);
/// Pause after a renewal of it, also one that failed (a full disk, a read-only directory).
const CERTIFICATE_RETRY: Duration = Duration::from_secs(60);

/// Why the brain cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Keys or certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token file.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The provider of capacity.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The operating system gave no entropy for this process's name.
    #[error(transparent)]
    Name(#[from] SecretError),
    /// Another brain leads, or may.
    #[error("this brain leads no more: {0}")]
    LeaseLost(String),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {key} = \"{address}\": {source}; is another brain running, or the address not this machine's?"
    )]
    Listen {
        /// Which setting.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A part of a running brain ended on its own.
    #[error("{part} ended on its own ({how}); the brain does nothing without it and has to be started again")]
    Ended {
        /// Which part.
        part: &'static str,
        /// How it ended.
        how: String,
    },
}

impl ServiceError {
    fn ended(part: &'static str, how: impl ToString) -> Self {
        Self::Ended { part, how: how.to_string() }
    }
}

/// A part of the brain, and how it came to its end.
type Part = (&'static str, Result<Result<(), ServiceError>, JoinError>);

/// A brain that runs.
pub struct Service {
    agents_address: SocketAddr,
    api_address: SocketAddr,
    policy: watch::Sender<Policy>,
    has_provider: bool,
    stop: CancellationToken,
    parts: JoinSet<Part>,
}

impl Service {
    /// Starts everything on the present tokio runtime; returns once agents and API clients can connect.
    pub async fn start(config: Config, store: Arc<dyn Store>) -> Result<Self, ServiceError> {
        let tokens = Arc::new(Tokens::open(&config.api.token_file)?);
        let provider = capacity::open(&config.capacity)?;
        let has_provider = provider.is_some();
        let tls = TlsFiles {
            ca: config.tls.ca.clone(),
            certificate: config.tls.certificate.clone(),
            key: config.tls.key.clone(),
        };
        let authority = config.ca.as_ref().map(|ca| authority(ca, &tls)).transpose()?;
        let own = Arc::new(OwnCertificate::load(tls, authority.as_ref().map(|authority| &authority.ca), clock::now())?);
        let server = ingest::server_config(&config.tls.ca, own.clone(), config.listen.heartbeat())?;
        let listen = |key, address| move |source| ServiceError::Listen { key, address, source };
        let endpoint =
            Endpoint::server(server, config.listen.address).map_err(listen("listen.address", config.listen.address))?;
        let listener = TcpListener::bind(config.api.listen).await.map_err(listen("api.listen", config.api.listen))?;
        let agents_address = endpoint.local_addr().map_err(listen("listen.address", config.listen.address))?;
        let api_address = listener.local_addr().map_err(listen("api.listen", config.api.listen))?;

        let telemetry = Telemetry::new();
        let stop = CancellationToken::new();
        let (role_out, role) = watch::channel(Role::Between);
        let candidate = Candidate { name: name(agents_address)?, lease: config.store.lease() };
        let tenure = Tenure::new(candidate.lease, telemetry.leading.clone());
        let (policy, policy_seen) = watch::channel(config.policy.clone());
        let journal = Journal::start(store.clone(), telemetry.journal.clone());
        let state = ApiState {
            role,
            name: candidate.name.as_str().into(),
            store: store.clone(),
            tokens,
            telemetry: telemetry.clone(),
            started: clock::now(),
        };
        let authority = authority.map(Arc::new);
        let enrolment = Enrolment::new(authority.clone(), store.clone(), journal.clone(), telemetry.ingest.clone());
        let (revoked, revocations) = watch::channel(Revocations::default());
        let ingest_metrics = telemetry.ingest.clone();
        let lives = Lives {
            config: config.clone(),
            policy: policy_seen,
            endpoint,
            store: store.clone(),
            provider,
            journal,
            enrolment: Arc::new(enrolment),
            revocations,
            telemetry,
            role: role_out,
            candidate: candidate.clone(),
            tenure: tenure.clone(),
            stop: stop.clone(),
        };
        let api_stop = stop.clone();
        let mut parts = JoinSet::new();
        start_part(&mut parts, "serving agents", lives.run());
        let pruning = prune(store.clone(), config.store, tenure.clone());
        start_part(&mut parts, "pruning the store", until(stop.clone(), pruning));
        start_part(&mut parts, "the lease", keep_lease(tenure, store.clone(), candidate, stop.clone()));
        start_part(&mut parts, "watching revocations", until(stop.clone(), ingest::watch_revocations(store, revoked)));
        let keep = keep_certificate(own, authority, ingest_metrics);
        start_part(&mut parts, "the brain's certificate", until(stop.clone(), keep));
        start_part(&mut parts, "the API", async move {
            api::serve(listener, state, api_stop).await.map_err(|error| ServiceError::ended("the API", error))
        });
        tracing::info!(agents = %agents_address, api = %api_address, "listening");
        Ok(Self { agents_address, api_address, policy, has_provider, stop, parts })
    }

    /// Where agents connect.
    pub fn agents_address(&self) -> SocketAddr {
        self.agents_address
    }

    /// Where the API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// Puts a new policy in force. Whether there is a provider of capacity was settled at the start.
    pub fn set_policy(&self, mut policy: Policy) {
        policy.capacity.has_provider = self.has_provider;
        self.policy.send_replace(policy);
    }

    /// Resolves when a part of the brain ends on its own, and says which. Then only [`Service::stop`] is left to do.
    pub async fn failed(&mut self) -> ServiceError {
        let Some(ended) = self.parts.join_next().await else {
            return ServiceError::ended("every part", "nothing is left that runs");
        };
        match ended {
            Ok((_, Ok(Err(error)))) => error,
            Ok((part, Err(panicked))) => ServiceError::ended(part, panicked),
            Ok((part, Ok(Ok(())))) => ServiceError::ended(part, "it returned"),
            Err(error) => ServiceError::ended("a part", error),
        }
    }

    /// Stops: agents are told, what was decided is synced, then it returns. Limits on VMs stay as they are.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.parts.join_next().await {
            match ended {
                Ok((_, Ok(Ok(())))) => {}
                Ok((_, Ok(Err(error)))) => tracing::error!(%error, "a part failed"),
                Ok((_, Err(error))) | Err(error) => tracing::error!(%error, "a part failed"),
            }
        }
    }
}

fn start_part(
    parts: &mut JoinSet<Part>,
    part: &'static str,
    work: impl Future<Output = Result<(), ServiceError>> + Send + 'static,
) {
    // In a task of its own, so that whoever waits for a panic still knows the part's name.
    let work = tokio::spawn(work);
    parts.spawn(async move { (part, work.await) });
}

/// What this process is called: where it is, and a mark that no other process has.
fn name(agents: SocketAddr) -> Result<String, SecretError> {
    let mark = u32::from_be_bytes(secret::random()?);
    Ok(format!("{}/{mark:08x}", place(agents.port())))
}

/// Where a brain of this machine is that agents reach by this port: all its processes' names begin with it and a slash.
pub fn place(agents_port: u16) -> String {
    format!("{}:{agents_port}", rustix::system::uname().nodename().to_string_lossy())
}

/// Keeps the lease; ends without fault when it is told to stop.
async fn keep_lease(
    tenure: Tenure,
    store: Arc<dyn Store>,
    candidate: Candidate,
    stop: CancellationToken,
) -> Result<(), ServiceError> {
    match stop.run_until_cancelled(tenure.keep(store.as_ref(), &candidate)).await {
        None => Ok(()),
        Some(lost) => Err(ServiceError::LeaseLost(lost.to_string())),
    }
}

/// Opens the CA.
fn authority(config: &CaConfig, tls: &TlsFiles) -> Result<Authority, TlsError> {
    Ok(Authority { ca: Ca::load(&tls.ca, &config.key)?, lifetime: config.certificate_lifetime() })
}

/// A part that goes on until it is stopped.
async fn until(stop: CancellationToken, forever: impl Future<Output = ()>) -> Result<(), ServiceError> {
    // One that ends by itself is missed by `Service::failed`.
    let _ = stop.run_until_cancelled(forever).await;
    Ok(())
}

/// Renews the brain's own certificate in time, or says that somebody has to.
async fn keep_certificate(own: Arc<OwnCertificate>, authority: Option<Arc<Authority>>, metrics: IngestMetrics) {
    let mut said = false;
    loop {
        metrics.own_certificate(own.valid_to());
        let mut pause = own.due().since(clock::now()).min(CERTIFICATE_INTERVAL);
        if pause.is_zero() {
            match &authority {
                Some(authority) => {
                    // Also after a success: of a CA that ends soon, every certificate is due at once.
                    pause = CERTIFICATE_RETRY;
                    match own.renew(&authority.ca) {
                        Ok(()) => metrics.own_certificate(own.valid_to()),
                        Err(error) => {
                            tracing::error!(%error, "the brain's own certificate is not renewed; trying again in {CERTIFICATE_RETRY:?}");
                        }
                    }
                }
                None => {
                    pause = CERTIFICATE_INTERVAL;
                    if !std::mem::replace(&mut said, true) {
                        let days = own.valid_to().since(clock::now()).as_secs() / 86_400;
                        tracing::warn!(
                            days,
                            "the brain's certificate ends soon, and without [ca] it does not renew itself: gnomon-brain ca issue-brain"
                        );
                    }
                }
            }
        }
        sleep(pause).await;
    }
}

/// Forgets what is old, while this brain leads.
async fn prune(store: Arc<dyn Store>, config: StoreConfig, tenure: Tenure) {
    loop {
        sleep(PRUNE_INTERVAL).await;
        if !tenure.is_held() {
            continue;
        }
        let now = clock::now();
        let (reports, affairs) = (now - config.report_retention(), now - config.affairs_retention());
        // An archive tells itself what it no longer wants; what is left is of VMs that are gone.
        match store.prune(reports, affairs, now - Tier::Hour1.kept_max()).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "pruned the store"),
            Err(error) => tracing::warn!(%error, "old rows could not be pruned; trying again in {PRUNE_INTERVAL:?}"),
        }
    }
}
