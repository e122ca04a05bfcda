//! The API over real HTTP: who gets in, what comes out, what operators can do.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use gnomon_brain::clock::now;
use gnomon_common::wire::{Action, OutcomeResult, Setting};
use serde_json::json;

const PATHS: [&str; 15] = [
    "/api/v1/status",
    "/api/v1/hosts",
    "/api/v1/hosts/a",
    "/api/v1/vms",
    "/api/v1/vms/x",
    "/api/v1/vms/x/forecast",
    "/api/v1/vms/x/explain",
    "/api/v1/vms/x/history",
    "/api/v1/vms/x/archive?kpi=cpu",
    "/api/v1/alerts",
    "/api/v1/audit",
    "/api/v1/commands",
    "/api/v1/capacity",
    "/api/v1/proposals",
    "/api/v1/mode",
];

fn quota(cores: Option<f64>) -> Setting {
    Setting::CpuQuota { cores }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_under_the_api_is_told_without_a_token() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let near_miss = {
        let mut token = home.token();
        token.pop();
        token
    };
    for path in PATHS {
        for token in [None, Some("wrong"), Some(near_miss.as_str())] {
            assert_eq!(brain.status(path, token).await, 401, "{path} {token:?}");
        }
    }
    for path in [
        "/api/v1/pause",
        "/api/v1/resume",
        "/api/v1/release",
        "/api/v1/mode",
        "/api/v1/capacity/1-1/approve",
        "/api/v1/proposals/1-1/approve",
    ] {
        let (status, _) = brain.request("POST", path, None, Some(json!({"scope": "fleet"}).to_string())).await;
        assert_eq!(status, 401, "{path}");
    }
    assert_eq!(brain.get("/api/v1/audit").await, json!([]), "a refused request left a trace in the core");
    for path in ["/healthz", "/metrics", "/api/v1/openapi.json"] {
        assert_eq!(brain.status(path, None).await, 200, "{path}");
    }
    assert_eq!(brain.metric("gnomon_brain_api_tokens_refused_total").await, 30.0);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_problem_documents_that_say_what_to_do() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let token = home.token();
    let problem = async |method, path: &'static str, body: Option<&str>| {
        let (status, text) = brain.request(method, path, Some(&token), body.map(str::to_owned)).await;
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
        assert_eq!(problem["status"], status, "{path}");
        assert!(problem["detail"].as_str().unwrap().len() > 10, "{path}: {problem}");
        status
    };
    assert_eq!(problem("GET", "/api/v1/vms/nobody", None).await, 404);
    assert_eq!(problem("GET", "/api/v1/hosts/nobody", None).await, 404);
    assert_eq!(problem("GET", "/nowhere", None).await, 404);
    assert_eq!(problem("GET", "/api/v1/audit?limit=many", None).await, 400);
    assert_eq!(problem("GET", "/api/v1/audit?limt=1", None).await, 400);
    assert_eq!(problem("GET", "/api/v1/pause", None).await, 405);
    assert_eq!(problem("POST", "/api/v1/pause", Some("{")).await, 400);
    assert_eq!(problem("POST", "/api/v1/pause", Some(r#"{"scope": "all"}"#)).await, 422);
    assert_eq!(problem("POST", "/api/v1/pause", Some(r#"{"scope": {"vm": "nobody"}}"#)).await, 404);
    assert_eq!(problem("POST", "/api/v1/pause", Some(&format!("\"{}\"", "x".repeat(20_000)))).await, 413);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_and_its_history_are_what_the_agents_reported() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let start = now().unix_ms() / 1000 * 1000 - 5000;
    for i in 0..5 {
        agent.deliver(&report("a", 1, i + 1, start + i * 1000, vm(1), 0.1 * (i + 1) as f64)).await;
    }
    brain
        .until("five windows", async |brain| {
            let vms = brain.get("/api/v1/vms").await;
            vms[0].is_object() && brain.get("/api/v1/vms/vm-of-a/history").await.as_array().unwrap().len() == 5
        })
        .await;
    let status = brain.get("/api/v1/status").await;
    assert_eq!((&status["hosts"], &status["hosts_connected"], &status["vms"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(status["mode"], "observe");
    assert_eq!(status["store_writable"], true);
    assert_eq!(brain.get("/api/v1/hosts/a").await["facts"]["kernel"], "6.1.0");
    let uuid = vm(1).to_string();
    assert_eq!(brain.get(&format!("/api/v1/vms/{uuid}")).await["name"], "vm-of-a");
    let late = brain.get(&format!("/api/v1/vms/{uuid}/history?since_ms={}", start + 3000)).await;
    assert_eq!(late.as_array().unwrap().len(), 2);
    assert_eq!(late[1]["start_ms"], start + 4000);
    assert_eq!(late[1]["demand_high_cores"], 0.5);
    assert_eq!(late[1]["limit_cores"], 0.5);
    assert!(brain.get(&format!("/api/v1/vms/{uuid}/forecast")).await.is_null(), "a forecast from five windows");
    assert!(!brain.get(&format!("/api/v1/vms/{uuid}/explain")).await["lines"].as_array().unwrap().is_empty());
    let gauge = format!("gnomon_vm_cpu_limit_cores{{vm=\"{uuid}\",name=\"vm-of-a\",host=\"a\"}}");
    assert_eq!(brain.metric(&gauge).await, 0.5);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_history_is_told_is_forecast_from_and_survives_a_restart() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let (steps, step_ms) = (700, 300_000);
    let start = now().unix_ms() / step_ms * step_ms - steps * step_ms;
    for step in 0..steps {
        let mut report = report("a", 1, step + 1, start + step * step_ms, vm(1), 0.3 + 0.01 * (step % 7) as f64);
        report.window_ms = u32::try_from(step_ms).unwrap();
        agent.deliver(&report).await;
    }
    let path = |what: &str| format!("/api/v1/vms/{}/{what}", vm(1));
    let forecast = path("forecast?ahead_s=7200");
    // The first look may come before the last report.
    let is_seven_steps = |told: &serde_json::Value| {
        told["season_ms"].as_f64().is_some_and(|season_ms| (season_ms / (7 * step_ms) as f64 - 1.0).abs() < 0.01)
    };
    let has_season = async |brain: &Brain| is_seven_steps(&brain.get(&forecast).await);
    brain.until("a forecast of two hours, with its season", has_season).await;
    let told = brain.get(&forecast).await;
    assert_eq!(told["resolution_ms"], step_ms);
    // The demand repeats every seven steps.
    assert!(is_seven_steps(&told), "{told}");
    let weights = told["models"].as_array().unwrap().iter().map(|share| share["weight"].as_f64().unwrap());
    assert!((weights.sum::<f64>() - 1.0).abs() < 1e-6);
    let p95 = told["steps"][20]["p95"].as_f64().unwrap();
    assert!((0.29..0.5).contains(&p95), "{told}");
    assert_eq!(brain.get("/api/v1/alerts").await, serde_json::json!([]));

    let known = brain.get(&path("archive?kpi=cpu")).await;
    let hours =
        brain.get(&path(&format!("archive?kpi=cpu&resolution_s=3600&since_ms={}", start + 10 * 12 * step_ms))).await;
    assert_eq!(known.as_array().unwrap().len() as u64, steps);
    assert_eq!(known[7]["start_ms"], start + 7 * step_ms);
    assert!((known[7]["mean"].as_f64().unwrap() - 0.3).abs() < 0.001);
    assert!((44..=49).contains(&hours.as_array().unwrap().len()), "{hours}");
    for refused in ["archive?kpi=cpu&resolution_s=7", "archive?kpi=gpu", "forecast?ahead_s=99999999"] {
        assert_eq!(brain.status(&path(refused), Some(&home.token())).await, 400, "{refused}");
    }
    brain.stop().await;
    let brain = Brain::start(&home).await;
    assert_eq!(brain.get(&path("archive?kpi=cpu")).await, known);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_reaches_the_agent_and_its_outcome_the_audit_log_in_the_operators_name() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    brain.until("the VM is known", async |brain| brain.get("/api/v1/vms").await[0].is_object()).await;

    let (status, preview) = brain.post("/api/v1/release?dry_run=true", json!({"scope": {"vm": "vm-of-a"}})).await;
    assert_eq!((status, &preview["dry_run"], &preview["vms"][0]["quota_cores"]), (200, &json!(true), &json!(0.5)));
    assert_eq!(brain.get("/api/v1/commands").await, json!([]), "a dry run was carried out");

    let (status, _) = brain.post("/api/v1/release", json!({"scope": {"vm": "vm-of-a"}})).await;
    assert_eq!(status, 200);
    // The answer came after the sync, so the store knows.
    let issued = brain.get("/api/v1/commands").await;
    assert_eq!(issued[0]["command"]["action"], "release");
    assert_eq!(issued[0]["outcome"], json!(null));
    let command = agent.command().await;
    assert_eq!(command.action, Action::Release);
    assert_eq!(issued[0]["command"]["id"], command.id.to_string());
    agent
        .answer(
            &command,
            OutcomeResult::Applied { before: vec![quota(Some(0.5))], after: vec![quota(None)], took_us: 900 },
        )
        .await;
    brain
        .until("the outcome is settled", async |brain| {
            brain.get("/api/v1/commands").await[0]["outcome"]["result"]["applied"]["took_us"] == 900
        })
        .await;
    let audit = brain.get("/api/v1/audit?limit=10").await;
    let verbs: Vec<_> = audit.as_array().unwrap().iter().map(|line| line["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs, ["outcome", "command", "release"]);
    assert_eq!(audit[2]["actor"], "operator");
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["hold"], "released");
    let settled = "gnomon_brain_commands_settled_total{action=\"release\",outcome=\"applied\"}";
    assert_eq!(brain.metric(settled).await, 1.0);

    // The hold outlives the brain.
    brain.stop().await;
    let brain = Brain::start(&home).await;
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["hold"], "released");
    let (status, _) = brain.post("/api/v1/resume", json!({"scope": {"vm": vm(1).to_string()}})).await;
    assert_eq!(status, 200);
    assert!(brain.get("/api/v1/vms/vm-of-a").await["hold"].is_null());
    brain.stop().await;
}
