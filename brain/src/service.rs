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

mod tenure;

pub(crate) use tenure::register as register_leading;

use crate::api::{self, ApiState, Tokens, TokensError};
use crate::ca::Ca;
use crate::capacity::{self, Provider, ProviderError};
use crate::clock;
use crate::config::{CaConfig, Config, StoreConfig};
use crate::drive::{Dispatch, Drive, DriveHandle, Event, Issued};
use crate::ingest::{
    self, Authority, Enrolment, Ingest, IngestMetrics, OwnCertificate, Registry, Revocations, Served, TlsError,
    TlsFiles,
};
use crate::role::Role;
use crate::secret::{self, SecretError};
use crate::store::{Candidate, Journal, Lead, Store, StoreError};
use crate::telemetry::Telemetry;
use gnomon_common::wire::{Command, HostId};
use gnomon_core::archive::Tier;
use gnomon_core::{Audit, CapacityAnswer, CapacityRequest, Input, Policy, Record};
use quinn::Endpoint;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tenure::Tenure;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Least time between two new terms for agents' sake: an agent that lies about its fence cannot keep the others
/// disconnected.
const RAISE_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before a store that failed at the begin of a life is tried again.
const STORE_RETRY: Duration = Duration::from_secs(2);
/// How often a brain that stands by looks whether the leader's lease has ended.
const STANDBY_INTERVAL: Duration = Duration::from_secs(1);
/// How long giving up the lease may take at the end; without it the next leader waits for the lease to end.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last connections may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often old rows are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// How long stopping waits for what was already decided to be synced and sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the brain looks whether its own certificate is due; sooner if it is due sooner.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(3600);
/// Pause after a renewal of it, also one that failed (a full disk, a read-only directory).
const CERTIFICATE_RETRY: Duration = Duration::from_secs(60);
/// The journal's name in an error.
const JOURNAL: &str = "the writer of the store";

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

/// One life after another.
struct Lives {
    config: Config,
    policy: watch::Receiver<Policy>,
    endpoint: Endpoint,
    store: Arc<dyn Store>,
    provider: Option<Arc<dyn Provider>>,
    journal: Journal,
    enrolment: Arc<Enrolment>,
    revocations: watch::Receiver<Revocations>,
    telemetry: Telemetry,
    role: watch::Sender<Role>,
    candidate: Candidate,
    tenure: Tenure,
    stop: CancellationToken,
}

impl Lives {
    async fn run(mut self) -> Result<(), ServiceError> {
        let mut term_floor = 0;
        let mut may_raise_from = Instant::now();
        let mut said: Option<Audit> = None;
        let stop = self.stop.clone();
        let ended = loop {
            let Some(begun) = stop.run_until_cancelled(self.begin(term_floor)).await else { break Ok(()) };
            let term = begun.handle().term();
            if let Some(mut line) = said.take() {
                line.detail.push_str(&format!("; this brain now has term {term}"));
                // Synced like everything: before a command of the new term can be.
                if self.journal.records(vec![Record::Audit(line)]).await.is_err() {
                    break Err(ServiceError::ended(JOURNAL, "it takes no more records"));
                }
            }
            match self.live(begun, may_raise_from).await {
                Err(error) => break Err(error),
                Ok(Served::Stopped) => break Ok(()),
                Ok(Served::Regressed { host, fence }) => {
                    tracing::warn!(host, %fence, term, "the store is older than the brain that sent this fence: taking a new term");
                    said = Some(Audit {
                        at: clock::now(),
                        actor: "gnomon".into(),
                        verb: "raise_term".into(),
                        object: format!("host {host}"),
                        detail: format!(
                            "it has obeyed fence {fence}, which this store does not know: the store was restored from a back-up"
                        ),
                    });
                    term_floor = fence.term;
                    may_raise_from = Instant::now() + RAISE_INTERVAL;
                }
            }
        };
        self.endpoint.close(ingest::CloseCode::Stopping.var_int(), b"the brain is shutting down");
        if timeout(DRAIN_TIMEOUT, self.journal.drained()).await.is_err() {
            tracing::warn!("stopping although the store does not take what is left; nothing of it was acknowledged");
        }
        if self.tenure.is_held() && !matches!(timeout(RESIGN_TIMEOUT, self.store.resign()).await, Ok(Ok(()))) {
            tracing::warn!("the lease was not given up; the next leader waits until it ends");
        }
        self.tenure.end();
        // The close is on its way. How long QUIC keeps a place for what may still arrive follows the round trip, which a process that was
        // stopped for a while takes for very long.
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
        ended
    }

    /// Leads as soon as nobody else does, and restores a core; a store that fails is tried again until it works.
    async fn begin(&mut self, term_floor: u64) -> Drive {
        loop {
            let begun = async {
                let term = self.lead(term_floor).await?;
                let policy = self.policy.borrow_and_update().clone();
                let retention = self.config.store.report_retention();
                Drive::restore(policy, term, retention, &self.store, self.telemetry.drive.clone()).await
            };
            match begun.await {
                Ok(drive) => return drive,
                Err(error) => {
                    tracing::error!(%error, "the store does not let this brain begin; trying again in {STORE_RETRY:?}");
                    sleep(STORE_RETRY).await;
                }
            }
        }
    }

    /// Stands by until the lease is this brain's; returns its term.
    async fn lead(&self, term_floor: u64) -> Result<u64, StoreError> {
        let mut standing_by =
            pin!(ingest::stand_by(&self.endpoint, self.role.subscribe(), self.telemetry.ingest.clone()));
        loop {
            let asked = tenure::since_boot();
            match self.store.lead(&self.candidate, term_floor).await? {
                Lead::Ours { term, ends } => {
                    self.tenure.begin(asked, ends);
                    self.role.send_replace(Role::Between);
                    tracing::info!(term, name = self.candidate.name, "this brain leads");
                    return Ok(term);
                }
                Lead::Theirs { leader } => {
                    let news = self.role.send_if_modified(|role| {
                        let known = matches!(role, Role::StandingBy { leader: known } if *known == leader);
                        if !known {
                            *role = Role::StandingBy { leader: leader.clone() };
                        }
                        !known
                    });
                    if news {
                        tracing::info!(leader, "another brain leads: standing by");
                    }
                    let _ = timeout(STANDBY_INTERVAL, &mut standing_by).await;
                }
            }
        }
    }

    async fn live(&mut self, drive: Drive, may_raise_from: Instant) -> Result<Served, ServiceError> {
        let handle = drive.handle();
        let registry = Arc::new(Registry::new(self.config.listen.agents_max, self.telemetry.ingest.clone()));
        let dispatch = Arc::new(WhileLeading { registry: registry.clone(), tenure: self.tenure.clone() });
        let ask = |provider: Arc<dyn Provider>| -> Arc<dyn Provider> {
            Arc::new(AskWhileLeading { provider, tenure: self.tenure.clone() })
        };
        let provider = self.provider.clone().map(ask);
        let issued = Arc::new(Issued::default());
        let ending = CancellationToken::new();
        let mut driven = drive.run(self.journal.clone(), dispatch, provider, issued.clone(), ending.clone());
        self.role.send_replace(Role::Leading(handle.clone()));
        let ingest = Ingest {
            endpoint: self.endpoint.clone(),
            drive: handle.clone(),
            journal: self.journal.clone(),
            store: self.store.clone(),
            registry,
            issued,
            enrolment: self.enrolment.clone(),
            revocations: self.revocations.clone(),
            heartbeat: self.config.listen.heartbeat(),
            may_raise_from,
            metrics: self.telemetry.ingest.clone(),
        };
        let served = tokio::select! {
            served = ingest::serve(ingest, self.stop.clone()) => Ok(served),
            served = forward_policy(&mut self.policy, &handle) => Ok(served),
            // Neither ends before it is told to, unless something broke.
            () = self.journal.stopped() => Err(ServiceError::ended(JOURNAL, "it takes no more records")),
            ended = &mut driven => {
                self.role.send_replace(Role::Between);
                let how = match ended {
                    Err(panicked) => panicked.to_string(),
                    Ok(Err(stopped)) => stopped.to_string(),
                    Ok(Ok(())) => "it returned".to_owned(),
                };
                return Err(ServiceError::ended("the loop that decides", how));
            }
        };
        // First nobody can ask any more, then the loop ends with what it has decided, then all of it is on disk: only
        // so does a next life restore everything that was acknowledged.
        self.role.send_replace(Role::Between);
        ending.cancel();
        if timeout(DRAIN_TIMEOUT, &mut driven).await.is_err() {
            tracing::warn!("the store is too slow for what was left to do; it was neither acknowledged nor sent");
            driven.abort();
        }
        if matches!(served, Ok(Served::Regressed { .. })) {
            let _ = self.journal.drained().await;
        }
        served
    }
}

/// The way out for commands, open only while this brain leads: the last look before one leaves.
struct WhileLeading {
    registry: Arc<Registry>,
    tenure: Tenure,
}

impl Dispatch for WhileLeading {
    fn dispatch(&self, host: &HostId, command: Command) -> bool {
        self.tenure.is_held() && self.registry.dispatch(host, command)
    }
}

/// The way to the provider, open only while this brain leads.
struct AskWhileLeading {
    provider: Arc<dyn Provider>,
    tenure: Tenure,
}

impl Provider for AskWhileLeading {
    fn ask(&self, request: &CapacityRequest) -> CapacityAnswer {
        if self.tenure.is_held() {
            self.provider.ask(request)
        } else {
            CapacityAnswer::Unreachable("this brain leads no more".to_owned())
        }
    }
}

/// What this process is called: where it is, and a mark that no other process has.
fn name(agents: SocketAddr) -> Result<String, SecretError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mark = u32::from_be_bytes(secret::random()?);
    Ok(format!("{host}:{}/{mark:08x}", agents.port()))
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

/// Hands changed policies to the core; never ends by itself.
async fn forward_policy(policy: &mut watch::Receiver<Policy>, drive: &DriveHandle) -> Served {
    while policy.changed().await.is_ok() {
        let changed = policy.borrow_and_update().clone();
        if drive.events().send(Event::Input(Input::Policy(Box::new(changed)))).await.is_err() {
            break;
        }
    }
    std::future::pending().await
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
