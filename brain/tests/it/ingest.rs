//! What agents may do, and what becomes of those that do otherwise.

use crate::agent::{Agent, PATIENCE, endpoint, hello, host, report, vm};
use crate::brain::{Brain, Home, count};
use gnomon_brain::ca::{Ca, Lifetime};
use gnomon_brain::clock::now;
use gnomon_brain::ingest::CloseCode;
use gnomon_common::wire::{ALPN, AgentMessage, BrainMessage, RefusalCode, VersionRange};
use std::time::Duration;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_in_the_database_when_it_is_acknowledged_and_then_in_the_core() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (mut agent, acknowledged) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    assert_eq!(acknowledged, 0);
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM report").await, 1);
    brain.until("the host is known", async |brain| brain.get("/api/v1/vms").await[0]["name"] == "vm-of-a").await;
    assert_eq!(brain.metric("gnomon_brain_hosts_connected").await, 1.0);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_acknowledged_again_and_stored_once() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let report = report("a", 1, 1, now().unix_ms(), vm(1), 0.3);
    agent.deliver(&report).await;
    agent.deliver(&report).await;
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM report").await, 1);
    assert_eq!(brain.metric("gnomon_brain_store_duplicates_total").await, 1.0);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnecting_agent_is_told_what_the_brain_has_and_a_new_life_starts_from_nothing() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let identity = home.agent("a");
    let (mut agent, _) = Agent::join(brain.agents, &identity, hello("a", 1)).await;
    for sequence in 1..=3 {
        agent.deliver(&report("a", 1, sequence, now().unix_ms() + sequence * 1000, vm(1), 0.3)).await;
    }
    drop(agent);
    assert_eq!(Agent::join(brain.agents, &identity, hello("a", 1)).await.1, 3);
    assert_eq!(Agent::join(brain.agents, &identity, hello("a", 2)).await.1, 0);
    brain.stop().await;
    let brain = Brain::start(&home).await;
    assert_eq!(Agent::join(brain.agents, &identity, hello("a", 1)).await.1, 3, "forgotten by a restart");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_replaces_the_older_and_an_older_life_is_told_to_wait() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let identity = home.agent("a");
    let (first, _) = Agent::join(brain.agents, &identity, hello("a", 2)).await;
    let (second, _) = Agent::join(brain.agents, &identity, hello("a", 2)).await;
    assert_eq!(first.closed().await.0, CloseCode::Replaced as u64);
    let (stale, answer) = Agent::introduce(brain.agents, &identity, hello("a", 1)).await;
    assert!(matches!(answer, BrainMessage::Refused { code: RefusalCode::Busy, .. }), "{answer:?}");
    assert_eq!(stale.closed().await.0, CloseCode::Busy as u64);
    assert!(second.connection.close_reason().is_none(), "the good connection suffered");
    brain.until("one agent", async |brain| brain.metric("gnomon_brain_hosts_connected").await == 1.0).await;
    brain.until("connected", async |brain| brain.get("/api/v1/hosts").await[0]["connected"] == true).await;
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_agent_is_lost_after_three_heartbeats_and_a_talking_one_is_not() {
    let home = Home::new();
    home.write_config(|text| text.replace("heartbeat_ms = 30000", "heartbeat_ms = 500"));
    let brain = Brain::start(&home).await;
    let (silent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let (mut talking, _) = Agent::join(brain.agents, &home.agent("b"), hello("b", 1)).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        talking.say(&AgentMessage::Heartbeat { at: now() }).await;
        assert!(matches!(talking.hear().await, BrainMessage::Heartbeat { .. }));
    }
    assert_eq!(silent.closed().await.0, CloseCode::Silent as u64);
    assert!(talking.connection.close_reason().is_none());
    brain
        .until("the loss is known", async |brain| {
            let hosts = brain.get("/api/v1/hosts").await;
            hosts[0]["connected"] == false && hosts[1]["connected"] == true
        })
        .await;
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_peers_are_refused_with_a_reason_and_counted_while_a_good_one_goes_on() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (mut good, _) = Agent::join(brain.agents, &home.agent("good"), hello("good", 1)).await;
    let a = home.agent("a");

    // Another host's name, and a version from the future.
    let refused = async |hello, code| {
        let (agent, answer) = Agent::introduce(brain.agents, &a, hello).await;
        let BrainMessage::Refused { code: told, reason } = answer else { panic!("{answer:?}") };
        let (close, close_reason) = agent.closed().await;
        assert_eq!(told, code);
        assert_eq!(reason, close_reason, "stream and close frame must agree");
        close
    };
    assert_eq!(refused(hello("b", 1), RefusalCode::Identity).await, CloseCode::Identity as u64);
    let mut future = hello("a", 1);
    future.versions = VersionRange { min: 8, max: 9 };
    assert_eq!(refused(future, RefusalCode::Version).await, CloseCode::Version as u64);

    // Garbage, an oversized frame, half a frame, and a first message that is no hello.
    let garbage: [&[u8]; 3] = [b"\x05\0\0\0ahem!", &u32::MAX.to_le_bytes(), b"\x40\0\0\0too short"];
    for bytes in garbage {
        let mut agent = Agent::dial(brain.agents, &a).await.unwrap();
        agent.control.write_all(bytes).await.unwrap();
        agent.control.finish().unwrap();
        assert_eq!(agent.closed().await.0, CloseCode::Malformed as u64, "{bytes:?}");
    }
    let mut rude = Agent::dial(brain.agents, &a).await.unwrap();
    rude.say(&AgentMessage::Heartbeat { at: now() }).await;
    assert_eq!(rude.closed().await.0, CloseCode::Malformed as u64);

    // A welcome agent that speaks for another host, and one that goes mad on its report stream.
    let (mut liar, _) = Agent::join(brain.agents, &a, hello("a", 1)).await;
    liar.send(&report("good", 1, 1, now().unix_ms(), vm(1), 0.3)).await.unwrap();
    assert_eq!(liar.closed().await.0, CloseCode::Identity as u64);
    let (mut mad, _) = Agent::join(brain.agents, &a, hello("a", 1)).await;
    mad.send(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await.unwrap();
    mad.reports.as_mut().unwrap().0.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(mad.closed().await.0, CloseCode::Malformed as u64);

    good.deliver(&report("good", 1, 1, now().unix_ms(), vm(2), 0.3)).await;
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM report WHERE host = 'good'").await, 1);
    assert_eq!(brain.metric("gnomon_brain_connections_refused_total{reason=\"identity\"}").await, 1.0);
    assert_eq!(brain.metric("gnomon_brain_connections_refused_total{reason=\"version\"}").await, 1.0);
    assert_eq!(brain.metric("gnomon_brain_connections_refused_total{reason=\"malformed\"}").await, 4.0);
    assert_eq!(brain.metric("gnomon_brain_sessions_ended_total{reason=\"identity\"}").await, 1.0);
    assert_eq!(brain.metric("gnomon_brain_sessions_ended_total{reason=\"malformed\"}").await, 1.0);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_get_past_tls() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let other_dir = tempfile::tempdir().unwrap();
    let foreign = Ca::init(other_dir.path()).unwrap().issue_agent(&host("a"), Lifetime::BY_HAND).unwrap();
    let ours = home.agent("a");

    let rejected = async |identity, alpn: &[u8]| {
        let endpoint = endpoint(&ours.ca, identity, alpn);
        // In TLS 1.3 a client may finish its side before the server has judged its certificate.
        match endpoint.connect(brain.agents, "gnomon-brain").unwrap().await {
            Ok(connection) => timeout(PATIENCE, connection.closed()).await.expect("let in").to_string(),
            Err(error) => error.to_string(),
        }
    };
    let server_certificate = home.brain_certificate("a");
    for (who, identity) in [
        ("foreign CA", Some(&foreign)),
        ("no certificate", None),
        ("a server's certificate", Some(&server_certificate)),
    ] {
        let reason = rejected(identity, ALPN).await;
        assert!(reason.contains("certificate"), "{who}: {reason}");
    }
    let reason = rejected(Some(&ours), b"h3").await;
    assert!(reason.contains("known protocol"), "{reason}");
    brain
        .until("all four are counted", async |brain| {
            brain.metric("gnomon_brain_connections_refused_total{reason=\"certificate\"}").await == 3.0
                && brain.metric("gnomon_brain_connections_refused_total{reason=\"protocol\"}").await == 1.0
        })
        .await;
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agent_too_many_is_told_to_come_again() {
    let home = Home::new();
    home.write_config(|text| text.replace("agents_max = 1024", "agents_max = 1"));
    let brain = Brain::start(&home).await;
    let (first, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let (_, answer) = Agent::introduce(brain.agents, &home.agent("b"), hello("b", 1)).await;
    assert!(matches!(answer, BrainMessage::Refused { code: RefusalCode::Busy, .. }), "{answer:?}");
    // The same host may still come back: it takes its own place.
    let (_again, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    assert_eq!(first.closed().await.0, CloseCode::Replaced as u64);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_brain_says_so() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    brain.stop().await;
    assert_eq!(agent.closed().await.0, CloseCode::Stopping as u64);
}
