//! Back-ups: made beside a running brain, put in place of a store, and what agents see of that.

use crate::agent::{Agent, hello, report, vm};
use crate::brain::{Home, count};
use crate::process::{Process, start};
use gnomon_brain::clock::now;
use gnomon_common::wire::{BrainMessage, Fence, Hello};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Command;

/// Runs a command of the brain; whether it succeeded, and all that it said.
fn brain(home: &Home, command: &str, file: &Path) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gnomon-brain"))
        .arg(command)
        .arg(file)
        .arg("--config")
        .arg(home.config_path())
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn stop(mut brain: Process) {
    kill_process(Pid::from_child(&brain.0), Signal::TERM).unwrap();
    assert!(brain.0.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_up_of_a_running_brain_is_restored_with_a_term_above_all_that_was_used_since() {
    let home = Home::new();
    let (identity, file) = (home.agent("a"), home.dir.path().join("backup.db"));
    let (running, agents) = start(&home);
    let (mut agent, _) = Agent::join(agents, &identity, hello("a", 1)).await;
    for sequence in 1..=2 {
        agent.deliver(&report("a", 1, sequence, now().unix_ms() + sequence, vm(1), 0.3)).await;
    }
    let (done, said) = brain(&home, "backup", &file);
    assert!(done, "{said}");
    let bytes = std::fs::read(&file).unwrap();
    let (done, said) = brain(&home, "backup", &file);
    assert!(!done && said.contains("overwrites nothing"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes);

    agent.deliver(&report("a", 1, 3, now().unix_ms() + 3, vm(1), 0.3)).await;
    let (done, said) = brain(&home, "restore", &file);
    assert!(!done && said.contains("a brain runs"), "{said}");
    stop(running);

    // Nothing that is not a back-up takes the store's place.
    let wrong = home.dir.path().join("wrong");
    let mut damaged = bytes.clone();
    damaged[8192..].fill(0xa5);
    for content in [&b""[..], b"a text", &damaged] {
        std::fs::write(&wrong, content).unwrap();
        let (done, said) = brain(&home, "restore", &wrong);
        assert!(!done, "{said}");
        assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM report").await, 3);
    }

    // Two more starts: terms that the back-up knows nothing of.
    for _ in 0..2 {
        let (running, agents) = start(&home);
        Agent::join(agents, &identity, hello("a", 1)).await;
        stop(running);
    }
    let used = count(&home.database(), "SELECT term FROM lease").await.unsigned_abs();
    assert_eq!(used, 3);
    let (done, said) = brain(&home, "restore", &file);
    assert!(done, "{said}");
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM report").await, 2);
    let beside = std::fs::read_dir(home.database().parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = beside.filter(|path| path.to_string_lossy().contains(".before-")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(count(&kept[0], "SELECT term FROM lease").await, 3, "what was there before is whole without its log");
    let (_running, agents) = start(&home);
    let obeyed = Hello { fence_highest: Some(Fence { term: used, generation: 7 }), ..hello("a", 1) };
    let (_agent, answer) = Agent::introduce(agents, &identity, obeyed).await;
    let BrainMessage::Welcome(welcome) = answer else {
        panic!("{answer:?}: the store is behind what the agent obeyed")
    };
    assert_eq!((welcome.term, welcome.acknowledged.0), (used + 1001, 2));
    assert_eq!(count(&home.database(), "SELECT COUNT(*) FROM audit WHERE verb = 'restore'").await, 1);
}
