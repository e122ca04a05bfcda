//! Joining, renewing and being shut out, as the brain sees it: what a peer may say where, and what it costs the brain.

use crate::agent::{Agent, PATIENCE, endpoint, hello, host};
use crate::brain::{Brain, Home, count};
use gnomon_brain::ca::{Ca, Issued, Lifetime};
use gnomon_brain::clock::now;
use gnomon_brain::ingest::CloseCode;
use gnomon_brain::secret;
use gnomon_brain::store::{Admissions, AdmissionsOffice, Renewal, SqlStore, StoredCertificate, StoredToken};
use gnomon_common::wire::{
    AgentMessage, BrainMessage, CaPin, ENROL_ALPN, ENROL_BYTES_MAX, EnrolRefusal, EnrolReply, EnrolRequest,
    RefusalCode, Token, TokenId, TokenSecret, frame,
};
use gnomon_core::Audit;
use quinn::{Connection, ConnectionError};
use rcgen::{CertificateParams, KeyPair};
use std::time::{Duration, Instant};
use tokio::time::timeout;

fn line(verb: &str) -> Audit {
    Audit { at: now(), actor: "test".into(), verb: verb.into(), object: "host a".into(), detail: String::new() }
}

/// What `gnomon-brain token create` does.
async fn token(home: &Home, name: &str, ttl: Duration) -> Token {
    let store = SqlStore::open_sqlite(home.database()).await.unwrap();
    let (id, secret) = (TokenId(secret::random().unwrap()), TokenSecret(secret::random().unwrap()));
    let token = Token { id, ca: CaPin([0; 32]), secret, host: host(name) };
    let stored = StoredToken {
        id,
        host: token.host.clone(),
        secret_sha256: secret::sha256(&secret.0),
        created: now(),
        expires: now() + ttl,
        spent: None,
        revoked: None,
    };
    store.create_token(&stored, &line("create_token")).await.unwrap();
    token
}

/// What `gnomon-brain host revoke` does.
async fn revoke(home: &Home, name: &str) {
    let store = SqlStore::open_sqlite(home.database()).await.unwrap();
    store.revoke_host(&host(name), now(), &line("revoke_host")).await.unwrap();
}

fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::new(vec!["whatever".to_owned()]).unwrap().serialize_request(key).unwrap().der().to_vec()
}

/// A connection without a certificate, for joining.
async fn stranger(home: &Home, brain: &Brain) -> (quinn::Endpoint, Connection) {
    let endpoint = endpoint(&home.agent("x").ca, None, ENROL_ALPN);
    let connection = endpoint.connect(brain.agents, "gnomon-brain").unwrap().await.unwrap();
    (endpoint, connection)
}

/// Sends bytes as a request; the reply, or how the brain closed the connection.
async fn say(connection: &Connection, bytes: &[u8]) -> Result<EnrolReply, (u64, String)> {
    let talk = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(bytes).await.ok()?;
        let _ = send.finish();
        let mut prefix = [0; frame::PREFIX_BYTES];
        recv.read_exact(&mut prefix).await.ok()?;
        let mut payload = vec![0; frame::payload_len(prefix).unwrap()];
        recv.read_exact(&mut payload).await.ok()?;
        Some(frame::decode(&payload).unwrap())
    };
    if let Some(reply) = timeout(PATIENCE, talk).await.expect("no answer") {
        return Ok(reply);
    }
    match timeout(PATIENCE, connection.closed()).await.expect("not closed") {
        ConnectionError::ApplicationClosed(close) => {
            Err((close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned()))
        }
        other => panic!("{other}"),
    }
}

async fn ask(
    home: &Home,
    brain: &Brain,
    token: &Token,
    name: &str,
    key: &KeyPair,
) -> Result<EnrolReply, (u64, String)> {
    let (_endpoint, connection) = stranger(home, brain).await;
    let asked = EnrolRequest { token: token.id, secret: token.secret, host: host(name), request: request(key) };
    say(&connection, &frame::encode(&asked).unwrap()).await
}

async fn join(home: &Home, brain: &Brain, name: &str) -> Issued {
    let (key, token) = (KeyPair::generate().unwrap(), token(home, name, Duration::from_secs(60)).await);
    match ask(home, brain, &token, name, &key).await {
        Ok(EnrolReply::Issued { certificate, ca }) => Issued { ca, certificate, key: key.serialize_pem() },
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_joined_connects_with_what_it_got_and_speaks_for_nobody_else() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let identity = join(&home, &brain, "a").await;
    let (_agent, _) = Agent::join(brain.agents, &identity, hello("a", 1)).await;
    let (_, answer) = Agent::introduce(brain.agents, &identity, hello("b", 1)).await;
    assert!(matches!(answer, BrainMessage::Refused { code: RefusalCode::Identity, .. }), "{answer:?}");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_try_one_token_at_once_exactly_one_gets_in() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let token = token(&home, "a", Duration::from_secs(60)).await;
    let keys: Vec<KeyPair> = (0..6).map(|_| KeyPair::generate().unwrap()).collect();
    let replies = futures_util::future::join_all(keys.iter().map(|key| ask(&home, &brain, &token, "a", key))).await;
    let issued = replies.iter().filter(|reply| matches!(reply, Ok(EnrolReply::Issued { .. }))).count();
    let spent =
        |reply: &&Result<EnrolReply, _>| matches!(reply, Ok(EnrolReply::Refused { code: EnrolRefusal::Spent, .. }));
    assert_eq!((issued, replies.iter().filter(spent).count()), (1, 5), "{replies:?}");
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM certificate").await, 1);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_hosts_join_nothing_else_is_spoken_and_little_is_read() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let hello = frame::encode(&AgentMessage::Hello(hello("a", 1))).unwrap();
    let oversized = u32::try_from(ENROL_BYTES_MAX + 1).unwrap().to_le_bytes();
    for bytes in [&hello[..], &oversized, b"\x05\0\0\0ahem!", b"\x40\0\0\0too short", b""] {
        let (_endpoint, connection) = stranger(&home, &brain).await;
        let (code, reason) = say(&connection, bytes).await.expect_err("answered");
        assert_eq!(code, CloseCode::Malformed as u64, "{bytes:?}: {reason}");
    }
    assert_eq!(brain.metric("gnomon_brain_enrolments_total{result=\"malformed\"}").await, 5.0);
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM audit").await, 0, "noise is in the audit log");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_with_invented_tokens_cannot_fill_the_audit_log_nor_hide_a_real_refusal() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let real = token(&home, "a", Duration::from_secs(60)).await;
    let key = KeyPair::generate().unwrap();
    let (mut refused, mut busy) = (0, 0);
    for number in 0..100_u8 {
        let invented = Token { id: TokenId([number; 8]), ..real.clone() };
        match ask(&home, &brain, &invented, "a", &key).await {
            Ok(EnrolReply::Refused { code: EnrolRefusal::Foreign, .. }) => refused += 1,
            Err((code, _)) if code == CloseCode::Busy as u64 => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    let listed = count(&home.database(), "SELECT COUNT(*) FROM audit WHERE verb = 'refuse_token'").await;
    assert!((1..=17).contains(&listed), "{listed} lines of {refused} refusals, {busy} put off");
    let unlisted = brain.metric("gnomon_brain_enrolment_refusals_unlisted_total").await;
    assert_eq!(listed as f64 + unlisted, f64::from(refused), "a refusal is neither listed nor counted");

    // The bearer of a real token, on the wrong host, is listed all the same.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask(&home, &brain, &real, "b", &key).await {
            Ok(EnrolReply::Refused { code: EnrolRefusal::OtherHost, .. }) => break,
            Err((code, _)) if code == CloseCode::Busy as u64 && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => panic!("{other:?}"),
        }
    }
    let sql = "SELECT COUNT(*) FROM audit WHERE verb = 'refuse_token' AND detail LIKE 'other_host:%'";
    assert_eq!(count(&home.database(), sql).await, 1);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_host_is_out_at_once_and_comes_back_with_its_new_certificate_only() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (old, by_hand) = (join(&home, &brain, "a").await, home.agent("a"));
    let (mut connected, _) = Agent::join(brain.agents, &old, hello("a", 1)).await;
    let (other, _) = Agent::join(brain.agents, &home.agent("b"), hello("b", 1)).await;
    let since = Instant::now();
    revoke(&home, "a").await;
    let told = connected.hear().await;
    assert!(matches!(told, BrainMessage::Refused { code: RefusalCode::Revoked, .. }), "{told:?}");
    assert_eq!(connected.closed().await.0, CloseCode::Revoked as u64);
    assert!(since.elapsed() < Duration::from_secs(2), "out after {:?}", since.elapsed());
    assert!(other.connection.close_reason().is_none(), "another host suffered");

    let refused = async |identity| {
        let (agent, answer) = Agent::introduce(brain.agents, identity, hello("a", 2)).await;
        assert!(matches!(answer, BrainMessage::Refused { code: RefusalCode::Revoked, .. }), "{answer:?}");
        assert_eq!(agent.closed().await.0, CloseCode::Revoked as u64);
    };
    refused(&old).await;
    refused(&by_hand).await;
    let new = join(&home, &brain, "a").await;
    let (_agent, _) = Agent::join(brain.agents, &new, hello("a", 3)).await;
    // What was copied before the revocation stays void.
    refused(&old).await;
    refused(&by_hand).await;
    let sql = "SELECT COUNT(*) FROM audit WHERE verb = 'refuse_host'";
    assert_eq!(count(&home.database(), sql).await, 1, "one revocation, one line");
    brain.stop().await;
    let brain = Brain::start(&home).await;
    let (agent, _) = Agent::introduce(brain.agents, &old, hello("a", 4)).await;
    assert_eq!(agent.closed().await.0, CloseCode::Revoked as u64, "forgotten by a restart");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_agent_renews_for_a_new_key_and_not_again_at_once() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let key = KeyPair::generate().unwrap();
    agent.say(&AgentMessage::Renew { request: b"no request".to_vec() }).await;
    assert!(matches!(agent.hear().await, BrainMessage::RenewalRefused { .. }));
    agent.say(&AgentMessage::Renew { request: request(&key) }).await;
    let BrainMessage::Renewed { certificate } = agent.hear().await else { panic!("not renewed") };
    let renewed = Issued { ca: home.agent("a").ca, certificate, key: key.serialize_pem() };
    let (mut agent, _) = Agent::join(brain.agents, &renewed, hello("a", 1)).await;
    agent.say(&AgentMessage::Renew { request: request(&key) }).await;
    let BrainMessage::RenewalRefused { reason } = agent.hear().await else { panic!("renewed again") };
    assert!(reason.contains("is enough"), "{reason}");
    assert_eq!(brain.metric("gnomon_brain_renewals_total{result=\"too_soon\"}").await, 1.0);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_the_certificate_that_made_it() {
    let home = Home::new();
    let brain = Brain::start(&home).await;
    let short = Ca::open(home.dir.path()).unwrap().issue_agent(&host("a"), Lifetime(Duration::from_secs(3))).unwrap();
    let (mut agent, _) = Agent::join(brain.agents, &short, hello("a", 1)).await;
    let told = agent.hear().await;
    assert!(matches!(told, BrainMessage::Refused { code: RefusalCode::Expired, .. }), "{told:?}");
    assert_eq!(agent.closed().await.0, CloseCode::Expired as u64);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brain_without_the_cas_key_lets_agents_in_and_nobody_join_and_says_why() {
    let home = Home::new();
    home.write_config(|text| {
        text.replace("[ca]\n", "").replace("key = \"ca.key\"\n", "").replace("certificate_lifetime_s = 604800\n", "")
    });
    let brain = Brain::start(&home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    let key = KeyPair::generate().unwrap();
    let token = token(&home, "b", Duration::from_secs(60)).await;
    let answer = ask(&home, &brain, &token, "b", &key).await;
    assert!(matches!(answer, Ok(EnrolReply::Refused { code: EnrolRefusal::NoAuthority, .. })), "{answer:?}");
    agent.say(&AgentMessage::Renew { request: request(&key) }).await;
    let BrainMessage::RenewalRefused { reason } = agent.hear().await else { panic!("renewed") };
    assert!(reason.contains("[ca]"), "{reason}");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_brain_renews_its_own_certificate_and_goes_on() {
    let home = Home::new();
    let ca = Ca::open(home.dir.path()).unwrap();
    // Due in a few seconds, while it runs.
    let short = ca.issue_brain("gnomon-brain", &[], Lifetime(Duration::from_secs(6))).unwrap();
    secret::replace(&home.dir.path().join("brain.key"), &short.key, 0o600).unwrap();
    secret::replace(&home.dir.path().join("brain.pem"), &short.certificate, 0o644).unwrap();
    let brain = Brain::start(&home).await;
    brain
        .until("the brain has a certificate for a year", async |brain| {
            let ends_s = brain.metric("gnomon_brain_certificate_expiry_timestamp_seconds").await;
            ends_s - now().unix_ms() as f64 / 1000.0 > 300.0 * 86_400.0
        })
        .await;
    let (_agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    assert_ne!(std::fs::read_to_string(home.dir.path().join("brain.pem")).unwrap(), short.certificate);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_lines_of_the_brain_and_of_the_operators_commands_do_not_get_in_each_others_way() {
    let home = Home::new();
    let store = SqlStore::open_sqlite(home.database()).await.unwrap();
    let tokens = async |name: &'static str| {
        for _ in 0..30 {
            token(&home, name, Duration::from_secs(60)).await;
        }
    };
    let brain = Brain::start(&home).await;
    let renewals = async {
        for number in 0..30 {
            let serial = Ca::open(home.dir.path()).unwrap().sign_agent(
                &host("c"),
                &request(&KeyPair::generate().unwrap()),
                Lifetime::BY_HAND,
            );
            let serial = serial.unwrap().serial;
            let certificate =
                StoredCertificate { serial: serial.clone(), host: host("c"), issued: now(), expires: now() };
            let renewed = store.renew(&serial, &certificate, Duration::ZERO, &line("renew")).await;
            assert_eq!(renewed.unwrap(), Renewal::Done, "{number}");
        }
    };
    tokio::join!(tokens("a"), tokens("b"), renewals);
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM audit").await, 90);
    brain.stop().await;
}
