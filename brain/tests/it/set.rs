//! Limits set by hand, and what agents do of their own accord, from outside: API, command line, store.

use crate::agent::{Agent, hello, host, report, vm};
use crate::brain::{Brain, Home, count};
use gnomon_brain::clock::now;
use gnomon_brain::store::{Entry, SqlStore, Store};
use gnomon_common::wire::{
    Action, AgentEpoch, AgentMessage, BrainMessage, CommandId, LocalCause, Origin, Outcome, OutcomeResult,
    RefusedCommand, Setting,
};
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};

fn quota(cores: f64) -> Setting {
    Setting::CpuQuota { cores: Some(cores) }
}

fn applied(before: f64, after: f64) -> OutcomeResult {
    OutcomeResult::Applied { before: vec![quota(before)], after: vec![quota(after)], took_us: 900 }
}

async fn brain_with_a_vm(home: &Home) -> (Brain, Agent) {
    let brain = Brain::start(home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    brain.until("the VM is known", async |brain| brain.get("/api/v1/vms").await[0].is_object()).await;
    (brain, agent)
}

/// Runs `gnomon` while the agent answers the command that comes of it.
pub(crate) async fn gnomon(
    home: &Home,
    url: &str,
    arguments: &[&str],
    answer: Option<(&mut Agent, OutcomeResult)>,
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gnomon"));
    command.args(arguments).env("GNOMON_URL", url).env("GNOMON_TOKEN_FILE", home.token_file()).stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap());
    if let Some((agent, result)) = answer {
        let command = agent.command().await;
        agent.answer(&command, result).await;
    }
    ran.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_is_applied_told_and_held_over_a_restart_until_resumed() {
    let home = Home::new();
    let (brain, mut agent) = brain_with_a_vm(&home).await;
    let url = brain.url();
    let preview = gnomon(&home, &url, &["set", "vm-of-a", "--cpu", "1.5", "--dry-run"], None).await;
    let text = String::from_utf8(preview.stdout).unwrap();
    assert!(preview.status.success() && text.contains("0.50 cores -> 1.50 cores"), "{text}");
    assert_eq!(brain.get("/api/v1/commands").await, json!([]), "a dry run was carried out");

    let arguments = ["set", "vm-of-a", "--cpu", "1.5", "--json"];
    let set = gnomon(&home, &url, &arguments, Some((&mut agent, applied(0.5, 1.5)))).await;
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    let told: Value = serde_json::from_slice(&set.stdout).unwrap();
    assert_eq!(told["result"]["applied"]["took_us"], 900, "{told}");
    let held = json!([{"cpu_quota": {"cores": 1.5}}]);
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["held"], held);
    // The answer's own line comes last, and a moment after the answer.
    brain
        .until("the audit of set, command and outcome", async |brain| {
            let line = &brain.get("/api/v1/audit?limit=3").await[2];
            (&line["verb"], &line["actor"]) == (&json!("set"), &json!("operator"))
        })
        .await;
    let table = gnomon(&home, &url, &["vms"], None).await;
    assert!(String::from_utf8_lossy(&table.stdout).contains("CPU quota"), "it is not shown as set");

    brain.stop().await;
    let brain = Brain::start(&home).await;
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["held"], held);
    let resumed = gnomon(&home, &brain.url(), &["resume", "--vm", "vm-of-a"], None).await;
    assert!(resumed.status.success());
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["held"], json!([]));
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_set_is_said_with_its_reason() {
    let home = Home::new();
    let (brain, mut agent) = brain_with_a_vm(&home).await;
    let url = brain.url();
    let why = RefusedCommand::AboveCeiling { ceiling: quota(2.0) };
    let refused =
        gnomon(&home, &url, &["set", "vm-of-a", "--cpu", "7"], Some((&mut agent, OutcomeResult::Refused(why)))).await;
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(message.contains("above this VM's ceiling: 2.00 cores"), "{message}");
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["held"], json!([]), "what was refused is not held");

    for (arguments, code, says) in [
        (&["set", "vm-of-a", "--vcpus", "4"][..], 1, "not configured to change the vCPUs"),
        (&["set", "nobody", "--cpu", "1"], 1, "no VM"),
        (&["set", "vm-of-a"], 2, "--cpu"),
        (&["set", "vm-of-a", "--cpu", "1", "--memory", "2GiB"], 2, "one means at a time"),
        (&["set", "vm-of-a", "--memory", "2gb"], 2, "2GiB"),
        (&["set", "vm-of-a", "--memory", "2G"], 1, "not configured to change the memory"),
    ] {
        let output = gnomon(&home, &url, arguments, None).await;
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(says), "{arguments:?}: {message}");
    }
    let unanswered = gnomon(&home, &url, &["set", "vm-of-a", "--cpu", "1", "--wait", "1"], None).await;
    let message = String::from_utf8(unanswered.stderr).unwrap();
    assert!(unanswered.status.code() == Some(1) && message.contains("not answered within 1 s"), "{message}");
    let (status, problem) =
        brain.post("/api/v1/vms/vm-of-a/set", json!({"setting": {"cpu_quota": {"cores": 1.0}}})).await;
    assert!(status == 409 && problem["detail"].as_str().unwrap().contains("on its way"), "{problem}");
    let (status, _) = brain.post("/api/v1/vms/vm-of-a/set", json!({"setting": {"cpu_quota": {"cores": -1.0}}})).await;
    assert_eq!(status, 422);
    brain.stop().await;
}

fn reflex(count: u32) -> Outcome {
    let origin = Origin::Local { cause: LocalCause::Reflex, reason: "it starved".into() };
    let id = CommandId::local(AgentEpoch(1), count);
    Outcome { id, vm: vm(1), at: now(), origin, result: applied(0.5, 0.7) }
}

async fn tell(agent: &mut Agent, outcome: &Outcome) {
    agent.say(&AgentMessage::Outcome(outcome.clone())).await;
    loop {
        match agent.hear().await {
            BrainMessage::OutcomeAck { id } if id == outcome.id => return,
            BrainMessage::Heartbeat { .. } => {}
            other => panic!("{other:?} instead of an acknowledgement"),
        }
    }
}

const REFLEXES: &str = "SELECT COUNT(*) FROM audit WHERE verb = 'reflex'";

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_own_act_is_audited_once_however_often_it_is_told() {
    let home = Home::new();
    let (brain, mut agent) = brain_with_a_vm(&home).await;
    let act = reflex(1);
    tell(&mut agent, &act).await;
    tell(&mut agent, &act).await;
    let counter = "gnomon_brain_local_acts_total{cause=\"reflex\",outcome=\"applied\"}";
    brain.until("it is taken in", async |brain| brain.metric(counter).await == 1.0).await;
    let line = brain.get("/api/v1/audit?limit=1").await;
    assert_eq!((&line[0]["actor"], &line[0]["verb"]), (&json!("a"), &json!("reflex")), "{line}");
    assert!(line[0]["detail"].as_str().unwrap().contains("0.50 cores -> 0.70 cores: it starved"), "{line}");
    let explained = brain.get("/api/v1/vms/vm-of-a/explain").await;
    assert_eq!(explained["recent"][0]["remark"], "it starved");
    assert_eq!(explained["vm"]["allocation"]["quota_cores"], 0.7);

    brain.stop().await;
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    tell(&mut agent, &act).await;
    brain.stop().await;
    assert_eq!(count(&home.database(), REFLEXES).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_that_a_crash_kept_from_the_core_is_audited_at_the_next_start() {
    let home = Home::new();
    let (brain, _agent) = brain_with_a_vm(&home).await;
    brain.stop().await;
    {
        // Synced, and then the process died before the core had it.
        let store = SqlStore::open_sqlite(home.database()).await.unwrap();
        let entry = Entry::Outcome { host: host("a"), outcome: Box::new(reflex(2)) };
        assert_eq!(store.commit(&[entry]).await.unwrap(), [true]);
    }
    for _ in 0..2 {
        Brain::start(&home).await.stop().await;
        assert_eq!(count(&home.database(), REFLEXES).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_sent_to_an_agent_that_stands_down_when_the_vm_is_resumed() {
    let home = Home::new();
    let (brain, mut agent) = brain_with_a_vm(&home).await;
    let mut stood_down = report("a", 1, 2, now().unix_ms(), vm(1), 0.3);
    stood_down.vms[0].stood_down = true;
    agent.deliver(&stood_down).await;
    let is_stood_down = async |brain: &Brain| brain.get("/api/v1/vms/vm-of-a").await["stood_down"] == true;
    brain.until("the brain knows", is_stood_down).await;
    assert_eq!(brain.get("/api/v1/status").await["vms_stood_down"], 1);
    let table = gnomon(&home, &brain.url(), &["vms"], None).await;
    assert!(String::from_utf8_lossy(&table.stdout).contains("stood"), "it is not shown");
    gnomon(&home, &brain.url(), &["resume", "--vm", "vm-of-a"], None).await;
    assert_eq!(agent.command().await.action, Action::Release);
    brain.stop().await;
}
