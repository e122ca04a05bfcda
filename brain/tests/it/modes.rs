//! Modes by scope from outside: API, command line, store.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use crate::set::gnomon;
use gnomon_brain::clock::now;
use serde_json::json;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_is_set_shown_kept_over_a_restart_and_ended_and_an_unknown_scope_is_an_error() {
    let home = Home::new();
    home.write_config(|config| config.replacen("mode = \"observe\"", "mode = \"auto\"", 1));
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    brain.until("the VM is known", async |brain| brain.get("/api/v1/vms").await[0].is_object()).await;

    let url = brain.url();
    let set = gnomon(&home, &url, &["mode", "recommend", "--host", "a"], None).await;
    assert!(text(&set.stdout).contains("mode recommend: host a, 1 VMs"), "{}", text(&set.stderr));
    assert_eq!(gnomon(&home, &url, &["mode", "approve", "--vm", "vm-of-a"], None).await.status.code(), Some(0));
    for (scope, status) in [(json!({"host": "b"}), 404), (json!({"vm": "nobody"}), 404), (json!("all"), 422)] {
        let (told, problem) = brain.post("/api/v1/mode", json!({"scope": scope, "mode": "observe"})).await;
        assert_eq!(told, status, "{problem}");
    }
    assert_eq!(brain.post("/api/v1/mode", json!({"scope": "fleet", "mode": "sometimes"})).await.0, 422);
    for arguments in [&["mode", "sometimes", "--fleet"][..], &["mode", "auto"], &["mode", "--fleet"]] {
        assert_eq!(gnomon(&home, &url, arguments, None).await.status.code(), Some(2), "{arguments:?}");
    }
    brain.stop().await;

    let brain = Brain::start(&home).await;
    let url = brain.url();
    let modes = json!([
        {"scope": {"host": "a"}, "mode": "recommend"}, {"scope": {"vm": vm(1).to_string()}, "mode": "approve"},
    ]);
    assert_eq!(brain.get("/api/v1/mode").await, modes);
    let by_host = json!({"mode": "recommend", "by": "host"});
    assert_eq!(brain.get("/api/v1/hosts/a").await["mode"], by_host);
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["mode"], by_host, "the more cautious one counts");
    let hosts = gnomon(&home, &url, &["hosts"], None).await;
    assert!(text(&hosts.stdout).contains("recommend (host)"), "{}", text(&hosts.stdout));
    let audit = brain.get("/api/v1/audit").await.to_string();
    assert!(audit.contains("recommend; was auto before") && audit.contains("\"operator\""), "{audit}");

    assert!(gnomon(&home, &url, &["mode", "auto", "--host", "a"], None).await.status.success());
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["mode"], json!({"mode": "approve", "by": "vm"}));
    let listed = gnomon(&home, &url, &["mode"], None).await;
    let listed = text(&listed.stdout);
    assert!(listed.contains("auto is the mode of the fleet") && listed.contains(&vm(1).to_string()), "{listed}");
    assert!(!listed.contains("recommend"), "{listed}");
    brain.stop().await;
}
