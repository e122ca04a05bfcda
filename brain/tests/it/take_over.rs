//! `gnomon-brain take-over`, as an operator runs it.

use crate::agent::{Agent, PATIENCE, hello, report, vm};
use crate::brain::{Home, count};
use crate::failover::two_brains;
use crate::process::start;
use gnomon_brain::clock::now;
use gnomon_common::wire::{BrainMessage, Fence, Hello};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Runs it; whether it succeeded, and all that it said.
fn take_over(config: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gnomon-brain"));
    let output = command.arg("take-over").args(arguments).arg("--config").arg(config).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn told(config: &Path, arguments: &[&str]) -> Value {
    let (done, said) = take_over(config, &[arguments, &["--json"]].concat());
    assert!(done, "{said}");
    serde_json::from_str(&said).unwrap()
}

const WHY: [&str; 2] = ["--reason", "its disk is slow"];
const DRY: [&str; 3] = ["--reason", "its disk is slow", "--dry-run"];

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_well_is_displaced_at_once_and_writes_and_sends_nothing_after_that() {
    let Some((database, home, mut first, second)) = two_brains().await else { return };
    let (mut agent, _) = Agent::join(first.agents, &home.agent("a"), hello("a", 1)).await;
    agent.deliver(&report("a", 1, 1, now().unix_ms(), vm(1), 0.3)).await;

    // What would happen, to whom, and nothing does.
    let config = home.config_path();
    let dry = told(&config, &DRY);
    assert_eq!(
        (&dry["leads"], &dry["term_before"], &dry["term_after"]),
        (&true.into(), &1.into(), &1002.into()),
        "{dry}"
    );
    assert!(dry["leader"].as_str().unwrap().contains('/') && dry["since"].is_string(), "{dry}");
    assert_eq!(dry["next"], Value::Null, "its port is not known");
    let other = home.dir.path().join("other.toml");
    std::fs::write(&other, std::fs::read_to_string(&config).unwrap().replacen("127.0.0.1:0", "127.0.0.1:7443", 1))
        .unwrap();
    assert!(told(&other, &DRY)["next"].as_str().unwrap().ends_with(":7443"));
    let (done, said) = take_over(&config, &["--reason", " "]);
    assert!(!done && said.contains("--reason is empty"), "{said}");
    assert_eq!(database.count("SELECT term FROM lease").await, 1);
    assert!(first.is_leader().await);

    let (done, said) = take_over(&config, &WHY);
    assert!(done && said.contains("leads since") && said.contains("in term 1002"), "{said}");
    let since = Instant::now();
    for sequence in 1000..1050 {
        // Its connection ends as soon as it has noticed.
        if agent.send(&report("a", 1, sequence, now().unix_ms() + sequence, vm(1), 0.3)).await.is_err() {
            break;
        }
    }
    second.until_leader().await;
    println!("taken over: the other brain led after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}: nobody waits for a lease's end", since.elapsed());
    let ended = timeout(PATIENCE, tokio::task::spawn_blocking(move || first.process.0.wait().unwrap())).await;
    assert!(!ended.expect("it goes on without the lease").unwrap().success(), "it must say that it failed");
    while let Ok(message) = timeout(Duration::from_millis(300), agent.try_hear()).await {
        match message {
            Some(BrainMessage::Command(command)) => panic!("{} of a leader that was displaced", command.id),
            Some(_) => {}
            None => break,
        }
    }
    assert_eq!(database.count("SELECT COUNT(*) FROM report WHERE sequence >= 1000").await, 0);
    let (_, answer) = Agent::introduce(second.agents, &home.agent("b"), hello("b", 1)).await;
    let BrainMessage::Welcome(welcome) = answer else { panic!("{answer:?}") };
    assert_eq!(welcome.term, 1002);
    let taken = "SELECT COUNT(*) FROM audit WHERE verb = 'take_over' AND actor LIKE 'uid %' AND detail LIKE \
        'its disk is slow; %/% was displaced; term 1001 from here on'";
    assert_eq!(database.count(taken).await, 1);
    let led = "SELECT COUNT(*) FROM audit WHERE verb = 'take_lease' AND detail LIKE 'term 1002; an operator has had % take over'";
    assert_eq!(database.count(led).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_database_wins_over_the_brain_that_uses_the_other_copy() {
    let home = Home::new();
    let config = home.config_path();
    let fresh = told(&config, &DRY);
    assert_eq!(
        (&fresh["leads"], &fresh["since"], &fresh["term_before"]),
        (&false.into(), &Value::Null, &0.into()),
        "{fresh}"
    );
    let (mut running, _) = start(&home);
    let (done, said) = take_over(&config, &WHY);
    assert!(!done && said.contains("stop it first") && said.contains("leads since"), "{said}");
    kill_process(Pid::from_child(&running.0), Signal::TERM).unwrap();
    assert!(running.0.wait().unwrap().success());
    assert_eq!(count(&home.database(), "SELECT term FROM lease").await, 1);

    let done = told(&config, &WHY);
    assert_eq!((&done["term_before"], &done["term_after"], &done["dry_run"]), (&1.into(), &1002.into(), &false.into()));
    let line = "SELECT COUNT(*) FROM audit WHERE verb = 'take_over' AND detail LIKE 'its disk is slow; no brain led; term 1001%'";
    assert_eq!(count(&home.database(), line).await, 1);
    // The other brain has gone on for a while.
    let (_again, agents) = start(&home);
    let obeyed = Hello { fence_highest: Some(Fence { term: 400, generation: 7 }), ..hello("a", 1) };
    let (_agent, answer) = Agent::introduce(agents, &home.agent("a"), obeyed).await;
    let BrainMessage::Welcome(welcome) = answer else { panic!("{answer:?}: the other brain's fence is newer") };
    assert_eq!(welcome.term, 1002);
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM audit WHERE verb = 'raise_term'").await, 0);
}
