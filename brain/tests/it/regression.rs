//! Brains that have forgotten something: restarts in the middle of a command, restored back-ups.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use gnomon_brain::clock::now;
use gnomon_common::wire::{BrainMessage, Fence, OutcomeResult, RefusalCode};
use serde_json::json;

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
