//! Mode `approve` from outside: API, command line, store.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use crate::database::{Database, on_every_database};
use crate::set::gnomon;
use gnomon_brain::clock::now;
use gnomon_brain::store::{Entry, Store};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Setting};
use gnomon_core::{PlannedAction, Proposal, ProposalKey, ProposalState, Reason, Record, Restored};
use serde_json::Value;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A brain that asks first, and a VM that wants more than its quota.
async fn brain_that_asks(home: &Home) -> (Brain, Agent) {
    home.write_config(|config| config.replacen("mode = \"observe\"", "mode = \"approve\"", 1));
    let brain = Brain::start(home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.49)).await;
    brain.until("it is proposed", async |brain| brain.get("/api/v1/proposals").await[0].is_object()).await;
    (brain, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_proposed_survives_a_restart_and_leaves_once_it_is_approved() {
    let home = Home::new();
    let (brain, _agent) = brain_that_asks(&home).await;
    let listed = gnomon(&home, &brain.url(), &["proposals", "list"], None).await;
    assert!(text(&listed.stdout).contains("CPU quota 0.50 cores"), "{}", text(&listed.stdout));
    let status = gnomon(&home, &brain.url(), &["status"], None).await;
    assert!(text(&status.stdout).contains("1 wait for an operator"), "{}", text(&status.stdout));
    let key = brain.get("/api/v1/proposals").await[0]["key"].as_str().unwrap().to_owned();
    assert!(brain.metric("gnomon_brain_proposals_open").await >= 1.0);
    brain.stop().await;

    let brain = Brain::start(&home).await;
    assert_eq!(brain.get("/api/v1/proposals").await[0]["key"], key);
    let silent = gnomon(&home, &brain.url(), &["proposals", "approve", &key], None).await;
    assert_eq!(silent.status.code(), Some(1));
    assert!(text(&silent.stderr).contains("host a has told nothing"), "{}", text(&silent.stderr));
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    // A window after that of the first life.
    agent.deliver(&report("a", 1, 2, now().unix_ms() + 1000, vm(1), 0.49)).await;
    brain.until("the host has told", async |brain| brain.get("/api/v1/hosts/a").await["outlook"].is_object()).await;
    let asked = gnomon(&home, &brain.url(), &["proposals", "approve", "--all"], None).await;
    assert_eq!(asked.status.code(), Some(2), "{}", brain.get("/api/v1/audit").await);
    assert!(text(&asked.stdout).contains(&key) && text(&asked.stderr).contains("--yes"), "{}", text(&asked.stderr));
    let approved = gnomon(&home, &brain.url(), &["proposals", "approve", "--all", "--yes"], None).await;
    assert!(approved.status.success(), "{}", text(&approved.stderr));
    let command = agent.command().await;
    assert!(matches!(command.action, Action::Set(Setting::CpuQuota { .. })), "{command:?}");
    assert!(command.reason.ends_with("approved by operator"), "{}", command.reason);
    let audit = brain.get("/api/v1/audit").await.to_string();
    assert!(audit.contains("\"propose\"") && audit.contains("operator approved it"), "{audit}");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_is_over_and_what_cannot_be_decided_is_said() {
    let home = Home::new();
    let (brain, _agent) = brain_that_asks(&home).await;
    let key = brain.get("/api/v1/proposals").await[0]["key"].as_str().unwrap().to_owned();
    let denied = gnomon(&home, &brain.url(), &["proposals", "deny", &key, "9-9", "--json"], None).await;
    assert_eq!(denied.status.code(), Some(1), "one of them is unknown");
    let answers: Value = serde_json::from_slice(&denied.stdout).unwrap();
    assert_eq!((&answers[0]["state"], &answers[0]["decided_by"]), (&"denied".into(), &"operator".into()));
    assert!(answers[1]["error"].as_str().unwrap().contains("there is no proposal 9-9"), "{answers}");
    for (path, status) in [(format!("{key}/approve"), 409), ("9-9/deny".to_owned(), 404), ("x/approve".to_owned(), 422)]
    {
        let (told, problem) = brain.post(&format!("/api/v1/proposals/{path}"), Value::Null).await;
        assert_eq!(told, status, "{path}: {problem}");
    }
    let open = gnomon(&home, &brain.url(), &["proposals", "list"], None).await;
    assert!(!text(&open.stdout).contains(&key));
    let closed = gnomon(&home, &brain.url(), &["proposals", "list", "--closed"], None).await;
    assert!(text(&closed.stdout).contains(&key));
    brain.stop().await;
}

on_every_database!(proposals_are_given_back_as_they_were_last_and_open_ones_are_never_forgotten);

async fn proposals_are_given_back_as_they_were_last_and_open_ones_are_never_forgotten(database: Database) {
    let at = |second: u64| Timestamp::from_unix_ms(second * 1000);
    let action = PlannedAction {
        host: crate::agent::host("a"),
        vm: vm(1),
        action: Action::Set(Setting::CpuQuota { cores: Some(1.0) }),
        before: None,
        reason: Reason::LiveDemand { demand_cores: 0.9 },
        along: None,
        approved_by: None,
    };
    let made = |number: u64, state: ProposalState, since: Timestamp| Proposal {
        key: ProposalKey { term: 7, number },
        name: "web".to_owned(),
        summary: action.summary(),
        reason: action.reason.to_string(),
        effect: action.effect(),
        action: action.clone(),
        proposed: at(1),
        expires: at(3601),
        state,
        since,
        detail: String::new(),
        decided_by: None,
    };
    let store = database.open().await;
    let first = made(1, ProposalState::AwaitingApproval, at(1));
    let denied = Proposal { state: ProposalState::Denied, since: at(50), ..first.clone() };
    let open = made(2, ProposalState::AwaitingApproval, at(2));
    let entry = |proposal: &Proposal| Entry::Record(Box::new(Record::Proposal(Box::new(proposal.clone()))));
    store.commit(&[entry(&first), entry(&open), entry(&denied)]).await.unwrap();
    drop(store);

    let store = database.open().await;
    let restored = async || {
        let mut proposals = Vec::new();
        let mut sink = |restored| {
            if let Restored::Proposal(proposal) = restored {
                proposals.push(*proposal);
            }
        };
        store.restore(now(), &mut sink).await.unwrap();
        proposals
    };
    assert_eq!(restored().await, [open.clone(), denied]);
    assert_eq!(store.prune(at(0), at(1000), at(0)).await.unwrap(), 1);
    assert_eq!(restored().await, [open]);
}
