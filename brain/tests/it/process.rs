//! The real `gnomon-brain`, killed without warning under load.

use crate::agent::{Agent, PATIENCE, hello, report, vm};
use crate::brain::{Home, count};
use gnomon_brain::clock::now;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::timeout;

pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the daemon and reads from its log where agents connect.
pub(crate) fn start(home: &Home) -> (Process, SocketAddr) {
    let (process, agents, _) = start_served(home);
    (process, agents)
}

/// Starts the daemon and reads from its log where agents connect, and where the API is.
pub(crate) fn start_served(home: &Home) -> (Process, SocketAddr, SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gnomon-brain"))
        .args(["run", "--config"])
        .arg(home.config_path())
        .env("GNOMON_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let process = Process(child);
    let field = |line: &str, name: &str| Some(line.split_once(name)?.1.split_whitespace().next()?.parse().unwrap());
    let (agents, api) = log
        .by_ref()
        .map(Result::unwrap)
        .find_map(|line| field(&line, "agents=").zip(field(&line, "api=")))
        .expect("the brain did not start");
    // Somebody has to read on, or the daemon would block on a full pipe.
    std::thread::spawn(move || log.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
    (process, agents, api)
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_under_load_loses_no_acknowledged_report() {
    let home = Home::new();
    let identity = home.agent("a");
    let mut acknowledged = 0;
    for life in 0..3 {
        let (mut brain, address) = start(&home);
        let (mut agent, known) = Agent::join(address, &identity, hello("a", 1)).await;
        assert!(known >= acknowledged, "life {life} begins at {known}, but {acknowledged} were acknowledged");
        // Sent without waiting, so that the kill meets reports in every stage; acknowledgements are read meanwhile.
        let deadline = tokio::time::Instant::now() + Duration::from_millis(400);
        let mut next = known + 1;
        while tokio::time::Instant::now() < deadline {
            for _ in 0..8 {
                agent.send(&report("a", 1, next, now().unix_ms() + next, vm(1), 0.3)).await.unwrap();
                next += 1;
            }
            if let Ok(Some(ack)) = timeout(Duration::from_millis(1), agent.acknowledged()).await {
                acknowledged = acknowledged.max(ack.sequence.0);
            }
        }
        brain.0.kill().unwrap();
        brain.0.wait().unwrap();
        // What was on its way when it died counts as acknowledged, too.
        while let Ok(Some(ack)) = timeout(Duration::from_millis(200), agent.acknowledged()).await {
            acknowledged = acknowledged.max(ack.sequence.0);
        }
        let stored = count(&home.database(), "SELECT COUNT(*) FROM report").await;
        assert!(stored as u64 >= acknowledged, "{acknowledged} acknowledged, {stored} stored");
        let highest = count(&home.database(), "SELECT MAX(sequence) FROM report").await;
        assert_eq!(stored, highest, "a gap below an acknowledged report");
    }
    assert!(acknowledged > 50, "only {acknowledged} reports got through: no load");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_it_cleanly_and_sighup_rereads_the_policy() {
    let home = Home::new();
    let (mut brain, address) = start(&home);
    let (agent, _) = Agent::join(address, &home.agent("a"), hello("a", 1)).await;
    let pid = rustix::process::Pid::from_child(&brain.0);
    home.write_config(|text| text.replace("mode = \"observe\"", "mode = \"obseve\""));
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(brain.0.try_wait().unwrap().is_none(), "a wrong policy killed a running brain");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(agent.closed().await.1.contains("shutting down"));
    let status = timeout(PATIENCE, tokio::task::spawn_blocking(move || brain.0.wait().unwrap())).await;
    assert!(status.expect("it does not end").unwrap().success());
}

#[test]
fn a_wrong_configuration_is_refused_with_what_would_be_right() {
    let home = Home::new();
    let check = || {
        let output = Command::new(env!("CARGO_BIN_EXE_gnomon-brain"))
            .args(["check-config", "--config"])
            .arg(home.config_path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check().0, Some(0));
    home.write_config(|text| text.replace("token_file", "token_fiel"));
    let (code, message) = check();
    assert_eq!(code, Some(1));
    assert!(message.contains("did you mean `token_file`?"), "{message}");
}

#[test]
fn init_makes_everything_that_run_needs_and_refuses_to_do_it_twice() {
    let dir = tempfile::tempdir().unwrap();
    let brain = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_gnomon-brain")).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let home = path("home");
    assert!(brain(&["init", "--dir", &home, "--address", "127.0.0.1"]).0);
    assert!(brain(&["run", "--check-config", "--config", &path("home/brain.toml")]).0);
    assert!(!brain(&["init", "--dir", &home]).0);
    let (issued, paths) = brain(&["ca", "issue-agent", "--dir", &home, "--host", "node-1", "--out", &path("node")]);
    assert!(issued && paths.lines().count() == 3, "{paths}");
    assert!(!brain(&["ca", "issue-agent", "--dir", &home, "--host", "Node_1", "--out", &path("other")]).0);
    let (_, shown) = brain(&["ca", "show", &home, &path("node/agent.pem"), &path("home/brain.pem")]);
    for expected in ["certificate authority", "agent (client)", "node-1", "brain (server)", "gnomon-brain"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
}
