//! The real pipeline over a store that forgets what is not synced, with the power failing at many different commits.

use crate::agent::{Agent, hello, host, report, vm};
use crate::brain::{Brain, Home};
use crate::forgetful::{Disk, Forgetful};
use gnomon_brain::clock::now;
use gnomon_common::wire::{AgentEpoch, AgentMessage, BrainMessage, Command, Origin, Outcome, OutcomeResult, Sequence};
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// The power fails at the first, the second, … commit of a life: enough for every stage of a release and its answer.
const COMMITS_MAX: u32 = 10;

/// What the agent saw of the brain.
#[derive(Default)]
struct Seen {
    acknowledged: u64,
    commands: Vec<Command>,
}

#[test]
fn a_crash_at_any_commit_loses_no_acknowledged_report_and_no_command_sent() {
    let home = Home::new();
    let disk = Arc::new(Mutex::new(Disk::default()));
    let mut seen = Seen::default();
    for commits in 1..=COMMITS_MAX {
        for before_sync in [true, false] {
            let store = Arc::new(Forgetful::power_on(disk.clone(), commits, before_sync));
            // A runtime that is torn down under its tasks is the nearest thing to a power cut within a process.
            let runtime = Runtime::new().unwrap();
            runtime.block_on(async {
                let brain = Brain::start_on(&home, store.clone()).await;
                run_until_crash(&home, &brain, &store, &mut seen).await;
            });
            runtime.shutdown_timeout(Duration::ZERO);

            let disk = disk.lock().unwrap();
            for sequence in 1..=seen.acknowledged {
                let key = (host("a"), AgentEpoch(1), Sequence(sequence));
                assert!(disk.reports.contains_key(&key), "report {sequence} was acknowledged and is lost");
            }
            for command in &seen.commands {
                assert!(disk.commands.contains_key(&command.id), "command {} was sent and is lost", command.id);
            }
        }
    }
    assert!(seen.acknowledged > 10, "only {} reports got through", seen.acknowledged);
    assert!(seen.commands.len() > 10, "only {} commands were sent", seen.commands.len());
}

/// Reports, releases and answers until the power has failed and a moment longer: what arrives then would be a lie.
async fn run_until_crash(home: &Home, brain: &Brain, store: &Forgetful, seen: &mut Seen) {
    let (mut agent, acknowledged) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    assert!(acknowledged >= seen.acknowledged, "the brain forgot what it acknowledged");
    let mut next = acknowledged + 1;
    while !store.has_crashed() {
        agent.send(&report("a", 1, next, now().unix_ms(), vm(1), 0.3)).await.unwrap();
        next += 1;
        let operate =
            async |verb| timeout(Duration::from_millis(300), brain.post(verb, json!({"scope": "fleet"}))).await;
        let _ = operate("/api/v1/release").await;
        drain(&mut agent, seen, Duration::from_millis(20)).await;
        let _ = operate("/api/v1/resume").await;
    }
    drain(&mut agent, seen, Duration::from_millis(100)).await;
}

/// Takes what the brain says until it is quiet.
async fn drain(agent: &mut Agent, seen: &mut Seen, quiet: Duration) {
    while let Ok(Some(ack)) = timeout(quiet, agent.acknowledged()).await {
        seen.acknowledged = seen.acknowledged.max(ack.sequence.0);
    }
    while let Ok(Some(message)) = timeout(quiet, agent.try_hear()).await {
        if let BrainMessage::Command(command) = message {
            let result = OutcomeResult::Applied { before: vec![], after: vec![], took_us: 1 };
            let outcome = Outcome { id: command.id, vm: command.vm, at: now(), origin: Origin::Command, result };
            agent.say(&AgentMessage::Outcome(outcome)).await;
            seen.commands.push(command);
        }
    }
}
