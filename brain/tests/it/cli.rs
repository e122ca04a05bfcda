//! The real `gnomon` against a running brain.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Brain, Home};
use gnomon_brain::clock::now;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

async fn gnomon(home: &Home, url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gnomon"));
    command.args(arguments).env("GNOMON_URL", url).env("GNOMON_TOKEN_FILE", home.token_file()).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn brain_with_a_vm(home: &Home) -> (Brain, Agent) {
    let brain = Brain::start(home).await;
    let (mut agent, _) = Agent::join(brain.agents, &home.agent("a"), hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;
    brain.until("the VM is known", async |brain| brain.get("/api/v1/vms").await[0].is_object()).await;
    (brain, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn json_output_is_the_apis_and_tables_show_the_same() {
    let home = Home::new();
    let (brain, _agent) = brain_with_a_vm(&home).await;
    let url = brain.url();
    for (arguments, path) in [
        (vec!["hosts"], "/api/v1/hosts"),
        (vec!["vms"], "/api/v1/vms"),
        (vec!["forecast", "vm-of-a"], "/api/v1/vms/vm-of-a/forecast"),
        (vec!["explain", "vm-of-a"], "/api/v1/vms/vm-of-a/explain"),
        (vec!["forecast", "vm-of-a", "--ahead", "1d"], "/api/v1/vms/vm-of-a/forecast?ahead_s=86400"),
        (vec!["alerts"], "/api/v1/alerts"),
        (vec!["audit"], "/api/v1/audit"),
        (vec!["status"], "/api/v1/status"),
    ] {
        let json = [arguments.clone(), vec!["--json"]].concat();
        assert_eq!(json_of(&gnomon(&home, &url, &json).await), brain.get(path).await, "{arguments:?}");
        let table = gnomon(&home, &url, &arguments).await;
        assert!(table.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&table.stderr));
        assert!(!table.stdout.is_empty());
    }
    let vms = gnomon(&home, &url, &["vms"]).await;
    let table = String::from_utf8(vms.stdout).unwrap();
    assert!(table.contains("vm-of-a") && table.contains("0.50 of 2") && table.contains("running"), "{table}");
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_and_resume_and_release_do_what_they_say() {
    let home = Home::new();
    let (brain, mut agent) = brain_with_a_vm(&home).await;
    let url = brain.url();
    let hold = async || brain.get("/api/v1/vms").await[0]["hold"].clone();
    json_of(&gnomon(&home, &url, &["pause", "--vm", "vm-of-a", "--json"]).await);
    assert_eq!(hold().await, "paused");
    json_of(&gnomon(&home, &url, &["resume", "--fleet", "--json"]).await);
    assert_eq!(hold().await, json!(null));

    let preview = json_of(&gnomon(&home, &url, &["release", "--host", "a", "--dry-run", "--json"]).await);
    assert_eq!(preview["vms"][0]["name"], "vm-of-a");
    let unasked = gnomon(&home, &url, &["release", "--host", "a"]).await;
    assert_eq!(unasked.status.code(), Some(2), "nobody was there to be asked");
    assert_eq!(hold().await, json!(null));
    let released = gnomon(&home, &url, &["release", "--host", "a", "--yes"]).await;
    assert!(released.status.success());
    assert_eq!(hold().await, "released");
    agent.command().await;
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_what_kind_of_failure_it_was() {
    let home = Home::new();
    let (brain, _agent) = brain_with_a_vm(&home).await;
    let url = brain.url();
    let code = async |url: &str, arguments: &[&str]| {
        let output = gnomon(&home, url, arguments).await;
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() || !message.is_empty(), "a failure without a word");
        output.status.code().unwrap()
    };
    assert_eq!(code(&url, &["status"]).await, 0);
    assert_eq!(code(&url, &["explain", "nobody"]).await, 1);
    assert_eq!(code(&url, &["pause"]).await, 2);
    assert_eq!(code(&url, &["release", "x", "--fleet"]).await, 2);
    assert_eq!(code("http://127.0.0.1:1", &["status"]).await, 3);
    let wrong = home.dir.path().join("wrong");
    std::fs::write(&wrong, "x".repeat(64)).unwrap();
    assert_eq!(code(&url, &["status", "--token-file", wrong.to_str().unwrap()]).await, 4);
    assert_eq!(code(&url, &["status", "--token-file", "/nowhere"]).await, 4);
    brain.stop().await;
}

/// Answers every request over TLS in one way, with a certificate for `localhost`; the address.
fn proxy(home: &Home) -> String {
    let issued = home.brain_certificate("localhost");
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("localhost:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(connection, stream.unwrap());
            let mut head = [0; 4096];
            // Whoever does not trust the certificate hangs up here.
            if stream.read(&mut head).is_ok_and(|bytes| bytes > 0) {
                let body = r#"{"status": 503, "title": "", "detail": "the brain behind the proxy is away"}"#;
                let head = format!("HTTP/1.1 503 Away\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            }
        }
    });
    format!("https://localhost:{port}")
}

#[test]
fn https_is_spoken_with_whom_the_systems_authorities_vouch_for() {
    let home = Home::new();
    let url = proxy(&home);
    let status = |authorities: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_gnomon"))
            .arg("status")
            .env("GNOMON_URL", &url)
            .env("GNOMON_TOKEN_FILE", home.token_file())
            .env("SSL_CERT_FILE", home.dir.path().join(authorities))
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = status("ca.pem");
    assert!(code == Some(1) && told.contains("behind the proxy is away"), "{told}");
    // The brain's own certificate is no authority.
    let (code, told) = status("brain.pem");
    assert!(code == Some(3) && told.contains("certificate"), "{told}");
}
