//! One lease term after another: leading or standing by, and what a leader runs.

use super::ServiceError;
use super::raise::{self, Raising};
use super::tenure::{self, Tenure};
use crate::capacity::Provider;
use crate::config::Config;
use crate::drive::{Dispatch, Drive, DriveHandle, Event, Issued};
use crate::ingest::{self, Enrolment, Ingest, Registry, Revocations, Served};
use crate::role::Role;
use crate::store::{Candidate, Journal, Lead, Store, StoreError};
use crate::telemetry::Telemetry;
use gnomon_common::wire::{Command, HostId};
use gnomon_core::{Audit, CapacityAnswer, CapacityRequest, Input, Policy, Record};
use quinn::Endpoint;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Pause before a store that failed at the begin of a life is tried again.
const STORE_RETRY: Duration = Duration::from_secs(2);
/// How long the store may take to say who leads. Whether this brain leads by an answer that came too late the next one says.
const LEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a brain that stands by looks whether the leader's lease has ended.
const STANDBY_INTERVAL: Duration = Duration::from_secs(1);
/// How long giving up the lease may take at the end; without it the next leader waits for the lease to end.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last connections may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long stopping waits for what was already decided to be synced and sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The journal's name in an error.
const JOURNAL: &str = "the writer of the store";

/// One life after another.
pub(super) struct Lives {
    pub(super) config: Config,
    pub(super) policy: watch::Receiver<Policy>,
    pub(super) endpoint: Endpoint,
    pub(super) store: Arc<dyn Store>,
    pub(super) provider: Option<Arc<dyn Provider>>,
    pub(super) journal: Journal,
    pub(super) enrolment: Arc<Enrolment>,
    pub(super) revocations: watch::Receiver<Revocations>,
    pub(super) telemetry: Telemetry,
    pub(super) role: watch::Sender<Role>,
    pub(super) candidate: Candidate,
    pub(super) tenure: Tenure,
    pub(super) stop: CancellationToken,
}

impl Lives {
    /// Leads as often as it can, until it is told to stop.
    pub(super) async fn run(mut self) -> Result<(), ServiceError> {
        let mut term_floor = 0;
        let mut quiet_until = Instant::now();
        let mut said: Option<Audit> = None;
        let stop = self.stop.clone();
        let ended = loop {
            let Some(begun) = stop.run_until_cancelled(self.begin(term_floor)).await else { break Ok(()) };
            let term = begun.handle().term();
            if let Some(mut line) = said.take() {
                line.detail.push_str(&format!("; this brain now has term {term}"));
                // Synced like everything: before a command of the new term can be.
                let said = self.journal.records(vec![Record::Audit(line)]).await;
                // The next look at how many there were is to see it.
                let synced = stop.run_until_cancelled(self.journal.drained()).await;
                if said.is_err() || matches!(synced, Some(Err(_))) {
                    break Err(ServiceError::ended(JOURNAL, "it takes no more records"));
                }
            }
            let raising = Raising::now(self.store.as_ref(), quiet_until).await;
            match self.live(begun, raising).await {
                Err(error) => break Err(error),
                Ok(Served::Stopped) => break Ok(()),
                Ok(Served::Regressed { host, fence }) => {
                    tracing::warn!(host, %fence, term, "the store is older than the brain that sent this fence: taking a new term");
                    said = Some(raise::line(&host, fence));
                    term_floor = fence.term;
                    quiet_until = Instant::now() + raise::INTERVAL;
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
            let answer = timeout(LEAD_TIMEOUT, self.store.lead(&self.candidate, term_floor)).await;
            match answer.unwrap_or(Err(StoreError::Silent(LEAD_TIMEOUT)))? {
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

    async fn live(&mut self, drive: Drive, raising: Raising) -> Result<Served, ServiceError> {
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
            raising,
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
