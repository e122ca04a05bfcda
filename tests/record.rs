//! What is recorded beside a running agent tells elsewhere what the agent told.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{now_ms, observing, skipped, stack, windows};
use serde_json::{Map, Value};
use xtask::env::bin_dir;

#[test]
fn a_recording_replayed_elsewhere_tells_the_windows_of_the_agent_beside_it() -> Result<()> {
    const LOAD: f64 = 0.4;
    if skipped() {
        return Ok(());
    }
    let (stack, guests) = stack("record", &[("g1", &format!("constant:{LOAD}"))], observing())?;
    let host = guests[0].host();
    let recording = host.dir().join("load.recording");
    let record = |file: &Path, length: &str| {
        let mut command = host.command(bin_dir().join("gnomon-agent"));
        command.args(["record", "--for", length, "--config"]).arg(host.dir().join("agent.toml")).arg(file);
        command
    };
    let from_ms = now_ms();
    let output = record(&recording, "20s").output()?;
    let to_ms = now_ms() - 1000;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.contains("gnomon-agent replay"), "{}: {said}", output.status);

    let replayed = replay(&recording)?;
    ensure!(replayed.1.is_empty(), "{}", replayed.1);
    let told = windows(&stack, "g1", from_ms, to_ms)?;
    let (mut compared, mut apart) = (0, 0.0_f64);
    for window in &replayed.0 {
        let is_whole = |cpu: &&Map<String, Value>| cpu["covered"].as_f64().is_some_and(|covered| covered > 0.9);
        let Some(cpu) = window["vms"][0]["cpu"].as_object().filter(is_whole) else { continue };
        let number = |name: &str| cpu[name]["mean"].as_f64().with_context(|| format!("no {name} in {window}"));
        let same = told.iter().find(|told| window["start"] == told.start_ms);
        let Some((low, high)) = same.and_then(|told| told.demand_low_cores.zip(told.demand_high_cores)) else {
            continue;
        };
        apart = apart.max((number("demand_low")? - low).abs()).max((number("demand_high")? - high).abs());
        ensure!(number("demand_low")? > LOAD / 2.0 && window["vms"][0]["name"] == "vm1", "{window}");
        compared += 1;
    }
    let bytes = fs::metadata(&recording)?.len();
    println!("{compared} windows, at most {apart:.3} cores from what the agent told; {bytes} bytes: {said}");
    // Both look at about the same second, within the time that a tick is late.
    ensure!(compared >= 8 && apart < 0.1, "{compared} windows, {apart:.3} cores apart");
    let table = Command::new(bin_dir().join("gnomon-agent")).arg("replay").arg(&recording).output()?;
    print!("{}", String::from_utf8_lossy(&table.stdout));

    // What is killed leaves what it has read until then.
    let killed = host.dir().join("killed.recording");
    let mut recorder = record(&killed, "10m").stderr(Stdio::null()).spawn()?;
    thread::sleep(Duration::from_secs(8));
    recorder.kill()?;
    recorder.wait()?;
    let (windows, _) = replay(&killed)?;
    ensure!(windows.len() >= 3, "only {} windows", windows.len());
    Ok(())
}

/// The windows of a recording, and what was said beside them. On no host of the lab.
fn replay(recording: &Path) -> Result<(Vec<Value>, String)> {
    let output = Command::new(bin_dir().join("gnomon-agent")).args(["replay", "--json"]).arg(recording).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}: {said}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    Ok((lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?, said))
}
