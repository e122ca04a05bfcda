//! Parts of a brain that break: it must end and say so, not live on as if nothing were.

use crate::agent::{Agent, PATIENCE, hello, host, report, vm};
use crate::brain::{Brain, Home};
use crate::uninvited::nobody_joins;
use gnomon_brain::clock::now;
use gnomon_brain::drive::{Dispatch, Drive, Event, Issued};
use gnomon_brain::store::{Candidate, Entry, Journal, Lead, Pending, SqlStore, Stopped, Store};
use gnomon_brain::telemetry::Telemetry;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, Command, HostId, Outcome, Sequence, VmId};
use gnomon_core::archive::{BlockKey, SealedBlock};
use gnomon_core::{Audit, CommandRecord, Input, OperatorRequest, Policy, Restored, Scope};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A store with a defect.
struct Broken {
    store: SqlStore,
    /// Whether its driver panics when it is written to.
    panics: bool,
    /// So many questions who leads are never answered.
    unanswered: AtomicU32,
}

nobody_joins!(Broken);

impl Store for Broken {
    fn commit<'a>(&'a self, entries: &'a [Entry]) -> Pending<'a, Vec<bool>> {
        if self.panics {
            Box::pin(async { panic!("a defect in the store's driver") })
        } else {
            self.store.commit(entries)
        }
    }

    fn lead<'a>(&'a self, candidate: &'a Candidate, at_least: u64) -> Pending<'a, Lead> {
        let one_less = |left: u32| left.checked_sub(1);
        match self.unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
            Ok(_) => Box::pin(pending()),
            Err(_) => self.store.lead(candidate, at_least),
        }
    }

    fn acknowledged<'a>(&'a self, host: &'a HostId, epoch: AgentEpoch) -> Pending<'a, Sequence> {
        self.store.acknowledged(host, epoch)
    }

    fn restore<'a>(
        &'a self,
        reports_since: Timestamp,
        sink: &'a mut (dyn FnMut(Restored) + Send),
    ) -> Pending<'a, Vec<(HostId, Outcome)>> {
        self.store.restore(reports_since, sink)
    }

    fn audit(&self, limit: u32) -> Pending<'_, Vec<Audit>> {
        self.store.audit(limit)
    }

    fn commands(&self, limit: u32) -> Pending<'_, Vec<CommandRecord>> {
        self.store.commands(limit)
    }

    fn blocks(&self, vm: VmId, keys: Vec<BlockKey>) -> Pending<'_, Vec<SealedBlock>> {
        self.store.blocks(vm, keys)
    }

    fn prune(
        &self,
        reports_before: Timestamp,
        affairs_before: Timestamp,
        history_before: Timestamp,
    ) -> Pending<'_, u64> {
        self.store.prune(reports_before, affairs_before, history_before)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brain_whose_journal_died_says_so_and_ends() {
    let home = Home::new();
    let store = SqlStore::open_sqlite(home.database()).await.unwrap();
    let mut brain =
        Brain::start_on(&home, Arc::new(Broken { store, panics: true, unanswered: AtomicU32::new(0) })).await;
    assert!(timeout(Duration::from_millis(200), brain.service.failed()).await.is_err(), "nothing has happened yet");
    // Its arrival is the first thing to be written.
    let _agent = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let error = timeout(PATIENCE, brain.service.failed()).await.expect("it lives on without its journal").to_string();
    assert!(error.contains("ended on its own"), "{error}");
    timeout(PATIENCE, brain.stop()).await.expect("what is left can be stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_say_who_leads_is_asked_again() {
    let home = Home::new();
    let store = SqlStore::open_sqlite(home.database()).await.unwrap();
    let store = Arc::new(Broken { store, panics: false, unanswered: AtomicU32::new(1) });
    let brain = Brain::start_on(&home, store.clone()).await;
    let token = home.token();
    brain.until("it leads", async |brain| brain.status("/api/v1/hosts", Some(&token)).await == 200).await;
    assert_eq!(store.unanswered.load(Ordering::Relaxed), 0);
    timeout(PATIENCE, brain.stop()).await.expect("it stops");
}

struct NoWayOut;

impl Dispatch for NoWayOut {
    fn dispatch(&self, _host: &HostId, _command: Command) -> bool {
        panic!("a defect on the way to the agents")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loop_ends_with_the_task_that_carries_its_effects_out() {
    let home = Home::new();
    let store: Arc<dyn Store> = Arc::new(SqlStore::open_sqlite(home.database()).await.unwrap());
    let telemetry = Telemetry::new();
    let retention = Duration::from_secs(3600);
    let drive = Drive::restore(Policy::default(), 1, retention, &store, telemetry.drive.clone()).await.unwrap();
    let handle = drive.handle();
    let journal = Journal::start(store, telemetry.journal.clone());
    let ran = drive.run(journal, Arc::new(NoWayOut), None, Arc::new(Issued::default()), CancellationToken::new());
    let report = report("a", 1, 1, now().unix_ms(), vm(1), 0.3);
    let (synced, _) = oneshot::channel();
    let request = OperatorRequest::Release { scope: Scope::Fleet };
    for event in [
        Event::Input(Input::HostUp { host: host("a"), facts: hello("a", 1).facts }),
        Event::Input(Input::Report(Box::new(report))),
        Event::Operator { actor: "test".into(), request, synced },
    ] {
        assert!(handle.events().send(event).await.is_ok());
    }
    let ended = timeout(PATIENCE, ran).await.expect("it goes on although nothing it decides is done").unwrap();
    assert_eq!(ended, Err(Stopped));
}
