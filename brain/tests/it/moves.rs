//! Moves by hand, from outside: API, command line, store.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use crate::set::gnomon;
use gnomon_brain::clock::now;
use gnomon_common::wire::{Action, Immovable, MigrationFacts, Moved, OutcomeResult};
use serde_json::Value;

/// Two agents that take part in migrations; the VM is on `a`.
async fn brain_with_two_hosts(home: &Home) -> (Brain, Agent, Agent) {
    let brain = Brain::start(home).await;
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let mut hello = hello(name, 1);
        hello.facts.migration = Some(MigrationFacts { uri: format!("qemu+tls://{name}/system"), copy_bytes_max: 0 });
        hello.facts.memory_bytes = 8 << 30;
        hello.facts.capacity_cores = 4.0;
        agents.push(Agent::join(brain.agents, &home.agent(name), hello).await.0);
    }
    let mut b = agents.pop().unwrap();
    let mut a = agents.pop().unwrap();
    a.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    let mut empty = report("b", 1, 1, now().unix_ms(), vm(2), 0.1);
    empty.vms.clear();
    b.deliver(&empty).await;
    brain.until("the VM is known", async |brain| brain.get("/api/v1/vms").await[0].is_object()).await;
    (brain, a, b)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_moved_by_hand_and_is_on_the_other_host_at_once() {
    let home = Home::new();
    let (brain, mut a, _b) = brain_with_two_hosts(&home).await;
    let preview = gnomon(&home, &brain.url(), &["migrate", "vm-of-a", "b", "--dry-run"], None).await;
    assert!(text(&preview.stdout).contains("would move vm-of-a from a to b"), "{}", text(&preview.stderr));

    let moved = OutcomeResult::Moved(Moved {
        took_us: 2_500_000,
        downtime_us: Some(76_000),
        sent_bytes: Some(1 << 28),
        copied: None,
    });
    let told = gnomon(&home, &brain.url(), &["migrate", "vm-of-a", "b"], Some((&mut a, moved))).await;
    assert!(told.status.success(), "{}", text(&told.stderr));
    assert!(text(&told.stdout).contains("moved in 2.5 s, 0.076 s of it at a stand"), "{}", text(&told.stdout));
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["host"], "b");
    assert!(brain.metric("gnomon_brain_migration_seconds_count").await >= 1.0);
    let audit = brain.get("/api/v1/audit").await.to_string();
    assert!(audit.contains("migrate from host a to host b"), "{audit}");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_moved_says_why() {
    let home = Home::new();
    let (brain, mut a, _b) = brain_with_two_hosts(&home).await;
    for (arguments, expected) in [
        (["migrate", "vm-of-a", "a"], "already"),
        (["migrate", "vm-of-a", "c"], "no host is named c"),
        (["migrate", "vm-of-b", "a"], "no VM"),
    ] {
        let refused = gnomon(&home, &brain.url(), &arguments, None).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(expected), "{}", text(&refused.stderr));
    }
    let immovable = OutcomeResult::Immovable(Immovable::Storage("vda".to_owned()));
    let refused = gnomon(&home, &brain.url(), &["migrate", "vm-of-a", "b"], Some((&mut a, immovable))).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("its disk vda is not shared"), "{}", text(&refused.stderr));
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["host"], "a");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_emptied_stays_so_over_a_restart_and_its_vms_go() {
    let home = Home::new();
    home.write_config(|config| config.replace("mode = \"observe\"", "mode = \"auto\""));
    let (brain, mut a, mut b) = brain_with_two_hosts(&home).await;
    let drain = gnomon(&home, &brain.url(), &["drain", "a"], None).await;
    assert!(drain.status.success() && text(&drain.stdout).contains("vm-of-a"), "{}", text(&drain.stderr));
    // What its move takes is asked for first, and shown.
    let asked = a.command().await;
    assert_eq!((asked.vm, &asked.action), (vm(1), &Action::DirtyRate { period_s: 1 }));
    a.answer(&asked, OutcomeResult::DirtyRate { bytes_per_s: 3 << 20 }).await;
    assert_eq!(brain.get("/api/v1/vms/vm-of-a").await["dirty_bytes_per_s"], 3 << 20);
    let explained = gnomon(&home, &brain.url(), &["explain", "vm-of-a"], None).await;
    let said = "its guest writes to 3.0 MiB of its memory a second";
    assert!(text(&explained.stdout).contains(said), "{}", text(&explained.stdout));
    let mut empty = report("b", 1, 2, now().unix_ms(), vm(2), 0.1);
    empty.vms.clear();
    b.deliver(&empty).await;
    a.deliver(&report("a", 1, 2, now().unix_ms(), vm(1), 0.3)).await;
    let command = a.command().await;
    let Action::Migrate(migration) = &command.action else { panic!("{command:?}") };
    assert_eq!((migration.to.as_str(), migration.uri.as_str()), ("b", "qemu+tls://b/system"));
    assert!(command.reason.contains("is being emptied") && command.reason.contains(said), "{}", command.reason);
    brain.stop().await;

    let brain = Brain::start(&home).await;
    let draining = |hosts: &Value| hosts[0]["draining_since"].is_number();
    assert!(draining(&brain.get("/api/v1/hosts").await));
    let hosts = gnomon(&home, &brain.url(), &["hosts"], None).await;
    assert!(text(&hosts.stdout).contains("draining"), "{}", text(&hosts.stdout));
    assert!(gnomon(&home, &brain.url(), &["undrain", "a"], None).await.status.success());
    assert!(!draining(&brain.get("/api/v1/hosts").await));
    brain.stop().await;
}
