//! Capacity from outside: a real provider is asked, by a real command or over real HTTP, and a host comes.

use crate::agent::{Agent, hello, host, report, vm};
use crate::brain::{Brain, Home, request};
use crate::database::{Database, on_every_database};
use crate::process;
use crate::set::gnomon;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use gnomon_brain::capacity::{self, CapacityConfig, Provider, ProviderKind};
use gnomon_brain::clock::now;
use gnomon_brain::secret;
use gnomon_brain::store::{Entry, Store};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Hello, MigrationFacts, Report};
use gnomon_core::capacity::FullHost;
use gnomon_core::{CapacityAnswer, CapacityKey, CapacityRequest, CapacityState, Record, Restored};
use ring::hmac;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const SECRET: &str = "what only the two of us know";

/// One request as the provider got it.
#[derive(Clone, Debug)]
struct Posted {
    key: String,
    timestamp: String,
    signature: String,
    body: String,
}

impl Posted {
    fn is_signed(&self) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let tag = hmac::sign(&key, format!("{}.{}", self.timestamp, self.body).as_bytes());
        let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.signature == format!("sha256={digits}")
    }
}

/// Status and body; `None` is no answer at all.
type Answer = Option<(u16, &'static str)>;

/// A provider on loopback. It answers what it was told to, one after the other, and from then on the last one.
#[derive(Clone)]
struct Cloud {
    url: String,
    posted: Arc<Mutex<Vec<Posted>>>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl Cloud {
    async fn start(answers: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/gnomon", listener.local_addr().unwrap());
        let answers = answers.iter().rev().copied().collect();
        let cloud = Self { url, posted: Arc::default(), answers: Arc::new(Mutex::new(answers)) };
        let router = Router::new().route("/gnomon", post(Self::take)).with_state(cloud.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        cloud
    }

    async fn take(State(cloud): State<Self>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
        let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        cloud.posted.lock().unwrap().push(Posted {
            key: header("idempotency-key"),
            timestamp: header("x-gnomon-timestamp"),
            signature: header("x-gnomon-signature"),
            body: String::from_utf8(body.to_vec()).unwrap(),
        });
        let answer = {
            let mut answers = cloud.answers.lock().unwrap();
            if answers.len() > 1 { answers.pop().unwrap() } else { answers[0] }
        };
        match answer {
            Some((status, body)) => (StatusCode::from_u16(status).unwrap(), body),
            None => std::future::pending().await,
        }
    }

    fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap().clone()
    }

    fn config(&self, secret_file: &Path, timeout_ms: u64) -> CapacityConfig {
        CapacityConfig {
            provider: ProviderKind::Webhook,
            url: Some(self.url.parse().unwrap()),
            secret_file: Some(secret_file.to_owned()),
            timeout_ms,
            ..CapacityConfig::default()
        }
    }
}

fn wanted(number: u64, state: CapacityState, since: Timestamp) -> CapacityRequest {
    let full = FullHost {
        host: host("a"),
        demand_cores: 3.8,
        room_cores: 3.6,
        memory_bytes: 5 << 30,
        room_bytes: 4 << 30,
        since,
    };
    CapacityRequest {
        key: CapacityKey { term: 7, number },
        zone: Some("north \"1\"".to_owned()),
        cores: 0.2,
        memory_bytes: 1 << 30,
        reason: "it is too full".to_owned(),
        ahead_ms: 300_000,
        hosts: vec![full],
        hosts_full: 1,
        asked: since,
        state,
        since,
        detail: String::new(),
        approved_by: None,
        attempts: 1,
        reference: None,
        fulfilled_by: None,
    }
}

async fn ask(provider: &Arc<dyn Provider>) -> CapacityAnswer {
    let (provider, request) = (provider.clone(), wanted(3, CapacityState::Sent, now()));
    tokio::task::spawn_blocking(move || provider.ask(&request)).await.unwrap()
}

on_every_database!(requests_are_given_back_as_they_were_last_and_open_ones_are_never_forgotten);

async fn requests_are_given_back_as_they_were_last_and_open_ones_are_never_forgotten(database: Database) {
    let store = database.open().await;
    let at = |second: u64| Timestamp::from_unix_ms(second * 1000);
    let first = wanted(1, CapacityState::AwaitingApproval, at(1));
    let denied = CapacityRequest { state: CapacityState::Denied, since: at(50), ..first.clone() };
    let failed = wanted(2, CapacityState::Failed, at(40));
    let sent = wanted(3, CapacityState::Sent, at(2));
    let entry = |request: &CapacityRequest| Entry::Record(Box::new(Record::Capacity(Box::new(request.clone()))));
    store.commit(&[entry(&first), entry(&sent), entry(&failed), entry(&denied)]).await.unwrap();
    drop(store);

    let store = database.open().await;
    let restored = async || {
        let mut requests = Vec::new();
        let mut sink = |restored| {
            if let Restored::Capacity(request) = restored {
                requests.push(*request);
            }
        };
        store.restore(now(), &mut sink).await.unwrap();
        requests
    };
    assert_eq!(restored().await, [sent.clone(), failed, denied.clone()]);
    assert_eq!(store.prune(at(0), at(45), at(0)).await.unwrap(), 1);
    assert_eq!(restored().await, [sent.clone(), denied]);
    assert_eq!(store.prune(at(0), at(1000), at(0)).await.unwrap(), 1);
    assert_eq!(restored().await, [sent]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_is_asked_is_signed_and_its_status_is_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let secret_file = dir.path().join("secret");
    secret::write_new(&secret_file, &format!("{SECRET}\n")).unwrap();
    let accepted = |reference: &str| CapacityAnswer::Accepted(reference.to_owned());
    let unreachable = |said: &str| CapacityAnswer::Unreachable(said.to_owned());
    let refused = |said: &str| CapacityAnswer::Refused(said.to_owned());
    let cases = [
        ((202, "{\"reference\": \"order 7\", \"eta_s\": 90}"), accepted("order 7")),
        ((204, ""), accepted("")),
        ((400, "\nno such pool\nat all"), refused("it answers 400 Bad Request no such pool")),
        ((403, ""), refused("it answers 403 Forbidden")),
        ((408, ""), unreachable("it answers 408 Request Timeout")),
        ((429, "later"), unreachable("it answers 429 Too Many Requests later")),
        ((302, ""), unreachable("it answers 302 Found")),
        ((500, ""), unreachable("it answers 500 Internal Server Error")),
    ];
    let cloud = Cloud::start(&cases.clone().map(|(answer, _)| Some(answer))).await;
    let provider = capacity::open(&cloud.config(&secret_file, 5000)).unwrap().unwrap();
    for (_, expected) in &cases {
        assert_eq!(ask(&provider).await, *expected);
    }
    let posted = cloud.posted();
    assert!(posted.iter().all(Posted::is_signed), "{posted:?}");
    assert!(posted.iter().all(|posted| posted.key == "7-3"));
    let timestamp: u64 = posted[0].timestamp.parse().unwrap();
    assert!(now().unix_ms() / 1000 - timestamp < 60);
    let body: Value = serde_json::from_str(&posted[0].body).unwrap();
    assert_eq!(
        (&body["version"], &body["key"], &body["zone"], &body["cores"], &body["memory_bytes"]),
        (&json!(1), &json!("7-3"), &json!("north \"1\""), &json!(0.2), &json!(1 << 30))
    );
    assert_eq!((&body["hosts"][0]["host"], &body["hosts"][0]["demand_cores"]), (&json!("a"), &json!(3.8)));

    // A secret that was replaced counts from the next time on.
    fs::write(&secret_file, "another").unwrap();
    ask(&provider).await;
    assert!(!cloud.posted().last().unwrap().is_signed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_says_nothing_is_not_reached_and_one_without_a_secret_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let secret_file = dir.path().join("secret");
    secret::write_new(&secret_file, SECRET).unwrap();
    let cloud = Cloud::start(&[None]).await;
    let begun = Instant::now();
    let silent = capacity::open(&cloud.config(&secret_file, 300)).unwrap().unwrap();
    assert!(matches!(ask(&silent).await, CapacityAnswer::Unreachable(_)));
    assert!(begun.elapsed() < Duration::from_secs(5));
    let plain = Cloud { url: cloud.url.replace("http:", "https:"), ..cloud.clone() };
    let plain = capacity::open(&plain.config(&secret_file, 5000)).unwrap().unwrap();
    assert!(matches!(ask(&plain).await, CapacityAnswer::Unreachable(_)), "what is there speaks no TLS");
    let nobody = Cloud { url: "http://127.0.0.1:1/".to_owned(), ..cloud.clone() };
    let nobody = capacity::open(&nobody.config(&secret_file, 300)).unwrap().unwrap();
    assert!(matches!(ask(&nobody).await, CapacityAnswer::Unreachable(_)));

    let problem = |file: &Path| capacity::open(&cloud.config(file, 300)).err().unwrap().to_string();
    let (open, empty) = (dir.path().join("open"), dir.path().join("empty"));
    secret::write_new_public(&open, SECRET).unwrap();
    secret::write_new(&empty, "\n").unwrap();
    assert!(problem(&open).contains("chmod 600"));
    assert!(problem(&empty).contains("is empty"));
    assert!(problem(&dir.path().join("missing")).contains("missing"));
    fs::remove_file(&secret_file).unwrap();
    let CapacityAnswer::Unreachable(said) = ask(&silent).await else { panic!("it was asked without a secret") };
    assert!(said.contains("secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_told_by_its_input_and_tells_by_its_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    let run = async |script: &str, timeout_ms: u64| {
        let command = ["sh", "-c", script, "sh", dir.path().to_str().unwrap()].map(str::to_owned).to_vec();
        let config =
            CapacityConfig { provider: ProviderKind::Command, command, timeout_ms, ..CapacityConfig::default() };
        ask(&capacity::open(&config).unwrap().unwrap()).await
    };
    let answer = run("cat > \"$1/told\"; echo; echo \"order for $GNOMON_IDEMPOTENCY_KEY\"; echo more", 5000).await;
    assert_eq!(answer, CapacityAnswer::Accepted("order for 7-3".to_owned()));
    let told: Value = serde_json::from_slice(&fs::read(dir.path().join("told")).unwrap()).unwrap();
    assert_eq!((&told["key"], &told["reason"]), (&json!("7-3"), &json!("it is too full")));

    assert_eq!(run("true", 5000).await, CapacityAnswer::Accepted(String::new()), "it need not read its input");
    let CapacityAnswer::Refused(said) = run("echo no quota >&2; exit 3", 5000).await else { panic!("not refused") };
    assert!(said.contains("no quota"), "{said}");
    for script in ["exit 1", "exit 127", "kill -9 $$", "head -c 1000000 /dev/zero; exit 1"] {
        assert!(matches!(run(script, 5000).await, CapacityAnswer::Unreachable(_)), "{script}");
    }

    let begun = Instant::now();
    let CapacityAnswer::Unreachable(said) = run("sleep 60 & echo $! > \"$1/child\"; wait", 500).await else {
        panic!("it did not take too long")
    };
    assert!(said.contains("took longer than 500ms") && begun.elapsed() < Duration::from_secs(10), "{said}");
    let child = fs::read_to_string(dir.path().join("child")).unwrap();
    let status = Path::new("/proc").join(child.trim()).join("stat");
    let deadline = Instant::now() + Duration::from_secs(5);
    // Ended, or a zombie until somebody takes note of that.
    while fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "what it had started lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let command = vec!["/nowhere/ask".to_owned()];
    let config = CapacityConfig { provider: ProviderKind::Command, command, ..CapacityConfig::default() };
    let CapacityAnswer::Unreachable(said) = ask(&capacity::open(&config).unwrap().unwrap()).await else {
        panic!("there is no such program")
    };
    assert!(said.contains("/nowhere/ask"), "{said}");
}

/// A host that takes part in migrations, with two cores.
fn movable(name: &str) -> Hello {
    let mut hello = hello(name, 1);
    hello.facts.migration = Some(MigrationFacts { uri: format!("qemu+tls://{name}/system"), copy_bytes_max: 0 });
    hello
}

/// Three VMs that want nearly a core each, and have all that they want. Windows follow each other, however fast they come.
fn crowded(sequence: u64, begun: Timestamp) -> Report {
    let mut report = report("a", 1, sequence, begun.unix_ms() + sequence * 1000, vm(1), 0.9);
    let window = report.vms[0].clone();
    report.vms = (1..=3)
        .map(|number| {
            let mut window = window.clone();
            (window.vm, window.allocation.quota_cores) = (vm(number), Some(2.0));
            window
        })
        .collect();
    report
}

/// Plans are carried out, a host counts as stuck after a second, and this provider is asked.
fn with_provider(home: &Home, cloud: &Cloud, approval: &str) {
    secret::write_new(&home.dir.path().join("capacity-secret"), SECRET).unwrap();
    let webhook = format!("provider = \"webhook\"\nurl = \"{}\"\nsecret_file = \"capacity-secret\"", cloud.url);
    home.write_config(|config| {
        config
            .replace("mode = \"observe\"", "mode = \"auto\"")
            .replace("provider = \"none\"", &webhook)
            .replace("full_for_ms = 900000", "full_for_ms = 1000")
            .replace("approval = \"required\"", &format!("approval = \"{approval}\""))
    });
}

/// The one request there is.
async fn known(brain: &Brain) -> Value {
    let requests = brain.get("/api/v1/capacity").await;
    assert!(requests.as_array().unwrap().len() < 2, "{requests}");
    requests[0].clone()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_host_leads_to_a_request_that_an_operator_approves_and_a_host_that_comes() {
    let home = Home::new();
    let cloud = Cloud::start(&[Some((503, "maintenance")), Some((202, "{\"reference\": \"order-7\"}"))]).await;
    with_provider(&home, &cloud, "required");
    let brain = Brain::start(&home).await;
    let (mut a, _) = Agent::join(brain.agents, &home.agent("a"), movable("a")).await;
    let (mut sequence, began) = (0, now());
    brain
        .until("capacity is asked for", async |brain| {
            sequence += 1;
            a.deliver(&crowded(sequence, began)).await;
            known(brain).await.is_object()
        })
        .await;
    let asked = known(&brain).await;
    assert_eq!((&asked["state"], &asked["attempts"]), (&json!("awaiting_approval"), &json!(0)));
    assert_eq!(asked["cores"], json!(0.9), "2.7 of the 1.8 cores that it has for VMs");
    let key = asked["key"].as_str().unwrap().to_owned();
    let listed = gnomon(&home, &brain.url(), &["capacity", "list"], None).await;
    let table = text(&listed.stdout);
    assert!(table.contains(&key) && table.contains("awaiting approval") && table.contains("0.90"), "{table}");
    assert!(cloud.posted().is_empty(), "it was sent before anybody approved it");
    brain.stop().await;

    let brain = Brain::start(&home).await;
    assert_eq!(known(&brain).await, asked);
    let unknown = gnomon(&home, &brain.url(), &["capacity", "approve", "9-9"], None).await;
    assert!(unknown.status.code() == Some(1) && text(&unknown.stderr).contains("no capacity request 9-9"));
    let (status, _) = brain.post("/api/v1/capacity/nonsense/approve", json!({})).await;
    assert_eq!(status, 422);
    let approved = gnomon(&home, &brain.url(), &["capacity", "approve", &key], None).await;
    assert!(approved.status.success(), "{}", text(&approved.stderr));
    brain.until("the provider was not ready", async |brain| known(brain).await["state"] == "approved").await;
    assert!(known(&brain).await["detail"].as_str().unwrap().contains("503 Service Unavailable maintenance"));
    let (status, problem) = brain.post(&format!("/api/v1/capacity/{key}/deny"), json!({})).await;
    assert_eq!((status, &problem["status"]), (409, &json!(409)));
    brain.stop().await;

    // The second attempt is another life's.
    let brain = Brain::start(&home).await;
    brain.until("the provider accepts", async |brain| known(brain).await["state"] == "accepted").await;
    let posted = cloud.posted();
    assert_eq!(posted.len(), 2);
    assert!(posted.iter().all(|posted| posted.is_signed() && posted.key == key), "{posted:?}");
    assert_eq!(posted[0].body, posted[1].body);
    let (_a, _) = Agent::join(brain.agents, &home.agent("a"), movable("a")).await;
    let (_c, _) = Agent::join(brain.agents, &home.agent("c"), movable("c")).await;
    brain.until("a host came", async |brain| known(brain).await["state"] == "fulfilled").await;
    let fulfilled = known(&brain).await;
    let said = (&fulfilled["fulfilled_by"], &fulfilled["reference"], &fulfilled["approved_by"]);
    assert_eq!(said, (&json!("c"), &json!("order-7"), &json!("operator")));
    assert_eq!(brain.metric("gnomon_brain_capacity_requests{state=\"fulfilled\"}").await, 1.0);
    // The core knows before the store does.
    brain.until("it is audited", async |brain| brain.get("/api/v1/audit").await[0]["verb"] == "fulfil").await;
    let audit = brain.get("/api/v1/audit").await;
    let of_it = audit.as_array().unwrap().iter().rev().filter(|line| line["object"] == format!("capacity {key}"));
    let verbs: Vec<&str> = of_it.map(|line| line["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs, ["ask", "approve", "send", "retry", "send", "accept", "fulfil"]);
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_between_sending_and_the_answer_asks_under_the_same_key() {
    let home = Home::new();
    let cloud = Cloud::start(&[None, Some((200, ""))]).await;
    with_provider(&home, &cloud, "automatic");
    let (mut brain, agents, _) = process::start_served(&home);
    let (mut a, _) = Agent::join(agents, &home.agent("a"), movable("a")).await;
    let deadline = Instant::now() + crate::agent::PATIENCE;
    let began = now();
    for sequence in 1.. {
        a.deliver(&crowded(sequence, began)).await;
        if !cloud.posted().is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "nothing is asked for");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    brain.0.kill().unwrap();
    brain.0.wait().unwrap();

    let (_brain, _, api) = process::start_served(&home);
    let url = format!("http://{api}/api/v1/capacity");
    let token = home.token();
    let requests = loop {
        let (url, token) = (url.clone(), token.clone());
        let asking = tokio::task::spawn_blocking(move || request("GET", &url, Some(&token), None));
        let requests: Value = serde_json::from_str(&asking.await.unwrap().1).unwrap();
        if requests[0]["state"] == "accepted" {
            break requests;
        }
        assert!(Instant::now() < deadline + crate::agent::PATIENCE, "it is not asked again: {requests}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(requests.as_array().unwrap().len(), 1);
    let posted = cloud.posted();
    assert_eq!(posted.len(), 2);
    assert!(posted.iter().all(|posted| posted.key == requests[0]["key"].as_str().unwrap()));
    assert_eq!(posted[0].body, posted[1].body);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_provider_nothing_is_asked_and_nothing_kept() {
    let home = Home::new();
    home.write_config(|config| {
        config
            .replace("mode = \"observe\"", "mode = \"auto\"")
            .replace("full_for_ms = 900000", "full_for_ms = 1000")
            .replace("approval = \"required\"", "approval = \"automatic\"")
    });
    let brain = Brain::start(&home).await;
    let (mut a, _) = Agent::join(brain.agents, &home.agent("a"), movable("a")).await;
    let stuck = "gnomon_brain_notices_total{kind=\"no_room\"}";
    let begun = Instant::now();
    let (mut sequence, began) = (0, now());
    brain
        .until("it was stuck for long", async |brain| {
            sequence += 1;
            a.deliver(&crowded(sequence, began)).await;
            brain.metric(stuck).await == 1.0 && begun.elapsed() > Duration::from_secs(2)
        })
        .await;
    assert_eq!(brain.get("/api/v1/capacity").await, json!([]));
    assert_eq!(crate::brain::count(&home.database(), "SELECT COUNT(*) FROM capacity").await, 0);
    let (_, metrics) = brain.request("GET", "/metrics", None, None).await;
    assert!(!metrics.contains("gnomon_brain_capacity_requests{"), "{metrics}");
    brain.stop().await;
}

#[test]
fn a_states_name_is_what_json_has() {
    for state in CapacityState::ALL {
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
}
