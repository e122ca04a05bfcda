//! Brains that have forgotten something: restarts in the middle of a command, restored back-ups.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use gnomon_brain::clock::now;
use gnomon_brain::store::{Entry, RAISE_VERB, SqlStore, Store, TAKE_OVER_VERB};
use gnomon_common::wire::{BrainMessage, Fence, Hello, OutcomeResult, RefusalCode};
use gnomon_core::{Audit, Record};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_command_is_repeated_when_its_host_comes_back_with_the_time_it_has_left() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let identity = home.agent("a");
    let (mut agent, _) = Agent::join(brain.agents, &identity, hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    brain.until("the VM is known", async |brain| brain.get("/api/v1/vms").await[0].is_object()).await;
    brain.post("/api/v1/release", json!({"scope": "fleet"})).await;
    let first = agent.command().await;
    drop(agent);

    // The same brain.
    let mut with_fence = hello("a", 1);
    with_fence.fence_highest = Some(first.fence);
    let (mut agent, _) = Agent::join(brain.agents, &identity, with_fence.clone()).await;
    let again = agent.command().await;
    assert_eq!((again.id, again.fence), (first.id, first.fence));
    assert!(again.time_to_live_ms <= first.time_to_live_ms, "time spent comes back");
    drop(agent);
    brain.stop().await;

    // The next brain: a higher term, the same unanswered command before anything new.
    let brain = Brain::start(&home).await;
    let (mut agent, answer) = Agent::introduce(brain.agents, &identity, with_fence).await;
    let BrainMessage::Welcome(welcome) = answer else { panic!("{answer:?}") };
    assert!(welcome.term > first.fence.term);
    let after_restart = agent.command().await;
    assert_eq!(after_restart.id, first.id);
    agent.answer(&after_restart, OutcomeResult::DryRun).await;
    brain
        .until("settled", async |brain| {
            brain.get("/api/v1/commands?limit=1000").await.as_array().unwrap().iter().any(|record| {
                record["command"]["id"] == first.id.to_string() && record["outcome"]["result"] == "dry_run"
            })
        })
        .await;
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brain_behind_an_agents_fence_takes_a_term_above_it_before_it_commands() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let identity = home.agent("a");
    let (mut other, _) = Agent::join(brain.agents, &home.agent("b"), hello("b", 1)).await;
    other.deliver(&report("b", 1, 1, now().unix_ms(), vm(2), 0.3)).await;

    let mut ahead = hello("a", 1);
    ahead.fence_highest = Some(Fence { term: 40, generation: 7 });
    let (refused, answer) = Agent::introduce(brain.agents, &identity, ahead.clone()).await;
    assert!(matches!(answer, BrainMessage::Refused { code: RefusalCode::Busy, .. }), "{answer:?}");
    refused.closed().await;
    other.closed().await;

    brain
        .until("a new term", async |brain| {
            brain.status("/healthz", None).await == 200 && brain.get("/api/v1/status").await["term"] == 41
        })
        .await;
    let (_agent, answer) = Agent::introduce(brain.agents, &identity, ahead).await;
    let BrainMessage::Welcome(welcome) = answer else { panic!("{answer:?}") };
    assert_eq!(welcome.term, 41);
    // What was acknowledged in the old term is known in the new one.
    assert_eq!(Agent::join(brain.agents, &home.agent("b"), hello("b", 1)).await.1, 1);
    brain.until("the VM is still known", async |brain| brain.get("/api/v1/vms").await[0]["name"] == "vm-of-b").await;
    let audit = brain.get("/api/v1/audit").await;
    assert_eq!(audit[0]["verb"], "raise_term");
    assert!(audit[0]["detail"].as_str().unwrap().contains("term 40 generation 7"), "{audit}");

    // One that lies cannot do it again at once; the others stay connected.
    let mut liar = hello("c", 1);
    liar.fence_highest = Some(Fence { term: 5000, generation: 0 });
    let (_, answer) = Agent::introduce(brain.agents, &home.agent("c"), liar).await;
    assert!(matches!(answer, BrainMessage::Refused { code: RefusalCode::Busy, .. }), "{answer:?}");
    assert_eq!(brain.get("/api/v1/status").await["term"], 41);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_brains_of_two_stores_do_not_outbid_each_other_for_ever() {
    let home = Home::new();
    let store = SqlStore::open_sqlite(home.database()).await.unwrap();
    let line = |verb: &str| Audit {
        at: now() - Duration::from_secs(60),
        actor: "gnomon".into(),
        verb: verb.into(),
        object: "host a".into(),
        detail: "it has obeyed a newer fence".into(),
    };
    let raised = Entry::Record(Box::new(Record::Audit(line(RAISE_VERB))));
    let ahead = Hello { fence_highest: Some(Fence { term: 400, generation: 7 }), ..hello("a", 1) };
    let introduce = async |brain: &Brain| Agent::introduce(brain.agents, &home.agent("a"), ahead.clone()).await.1;

    // As often as it may be within a day; that outlasts restarts.
    store.commit(&vec![raised.clone(); 10]).await.unwrap();
    let brain = Brain::start(&home).await;
    let answer = introduce(&brain).await;
    let BrainMessage::Refused { code: RefusalCode::Busy, reason } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("another brain") && reason.contains("gnomon-brain take-over"), "{reason}");
    let (_other, _) = Agent::join(brain.agents, &home.agent("b"), hello("b", 1)).await;
    assert_eq!(brain.get("/api/v1/status").await["term"], 1, "whoever has obeyed no other brain is served");
    brain.stop().await;

    // An operator has said which of the two it is to be.
    store.take_over("here", Duration::ZERO, |_| Audit { at: now(), ..line(TAKE_OVER_VERB) }).await.unwrap();
    drop(store);
    let brain = Brain::start(&home).await;
    let answer = introduce(&brain).await;
    assert!(matches!(answer, BrainMessage::Welcome(_)), "{answer:?}");
    brain.stop().await;
}
