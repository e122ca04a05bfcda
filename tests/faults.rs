//! What Gnomon stands on fails: libvirt dies, the brain's disk is full, a host's clock jumps. It goes on with what is left, says what is
//! missing, and takes up the rest by itself.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{Window, mean, now_ms, observing, skipped, stack, wait_for, windows};
use serde_json::{Value, json};
use xtask::lab::{GuestOptions, Host};
use xtask::stack::Stack;

/// The load of the one guest.
const LOAD: &str = "constant:0.5";

/// For what takes a retry or two.
const PATIENCE: Duration = Duration::from_secs(40);

#[test]
fn measuring_goes_on_without_libvirt_and_commands_wait_for_its_return() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (stack, _guests) = stack("libvirtdies", &[("g1", LOAD)], observing())?;
    let host = &stack.lab.hosts()[0];
    kill_libvirtd(host)?;
    let quota = json!({ "setting": { "cpu_quota": { "cores": 0.9 } } });
    stack.api().post("/api/v1/vms/g1/set", &quota)?;
    let dead_ms = now_ms();
    thread::sleep(Duration::from_secs(8));
    let meanwhile = windows(&stack, "g1", dead_ms + 1000, now_ms() - 1500)?;
    ensure!(meanwhile.len() >= 4, "only {} windows while libvirt was dead", meanwhile.len());
    is_the_load(&meanwhile)?;
    ensure!(stack.api().get("/api/v1/vms/g1")?["host"] == "h1", "the VM was given up with its libvirt");
    let answer = wait_for_outcome(&stack, |result| result["failed"].is_object())?;
    ensure!(answer["failed"]["retryable"] == true, "a dead libvirt is no final answer: {answer}");

    let mut libvirtd = start_libvirtd(host)?;
    wait_for("libvirt to take commands", PATIENCE, || {
        thread::sleep(Duration::from_secs(2));
        stack.api().post("/api/v1/vms/g1/set", &quota)?;
        Ok(outcomes(&stack)?.iter().any(|result| result["applied"].is_object()))
    })?;
    let guest = stack.lab.define(host, &GuestOptions::new("g2", LOAD.parse()?))?;
    stack.lab.boot(&[guest])?;
    wait_for("a guest that came after the restart", PATIENCE, || Ok(stack.api().get("/api/v1/vms/g2").is_ok()))?;
    drop(stack);
    libvirtd.wait().context("waiting for libvirtd")?;
    Ok(())
}

#[test]
fn a_full_disk_under_the_brain_delays_reports_and_loses_none() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut stack, _guests) = stack("braindisk", &[("g1", LOAD)], observing())?;
    let from_ms = now_ms() + 1000;
    stack.kill_brain()?;
    // A disk of its own that can be filled: mounted in a namespace where only the brain sees it.
    let folder = stack.brain_dir().join("disk");
    fs::create_dir(&folder)?;
    let config = stack.brain_dir().join("brain.toml");
    let text = fs::read_to_string(&config)?;
    ensure!(text.contains("\"brain.db\""), "the store is elsewhere: {text}");
    fs::write(&config, text.replace("\"brain.db\"", "\"disk/brain.db\""))?;
    let mount =
        format!("mount -t tmpfs -o size=24m gnomon-disk {0} && cp brain.db* {0}/ && exec \"$@\"", folder.display());
    let inside = format!("cd {} && {mount}", stack.brain_dir().display());
    stack.wrap_brain(["unshare", "--mount", "sh", "-c", &inside, "sh"]);
    stack.start_brain()?;
    wait_for("the agent to come back", PATIENCE, || connected(&stack))?;

    let disk = format!("/proc/{}/root{}", stack.brain_pid()?, folder.display());
    let ballast = Path::new(&disk).join("ballast");
    fill(&ballast)?;
    let full_ms = now_ms();
    thread::sleep(Duration::from_secs(6));
    ensure!(stack.brain_log()?.contains("full"), "the brain does not say that its disk is full");
    ensure!(connected(&stack)?, "the agent was turned away");
    fs::remove_file(&ballast)?;
    let all = windows(&stack, "g1", from_ms, now_ms() + 2000)
        .with_context(|| format!("the brain says: {}", stack.brain_log().unwrap_or_default()))?;
    let starts: Vec<u64> = all.iter().map(|window| window.start_ms).collect();
    ensure!(starts.iter().any(|start| *start > full_ms), "nothing is stored since");
    let gap = starts.windows(2).find(|pair| pair[1] - pair[0] > 1100);
    ensure!(gap.is_none(), "a gap at {gap:?} in {starts:?}");
    Ok(())
}

#[test]
fn a_clock_that_jumps_spoils_no_measurement_and_expires_no_command() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    if !Path::new(FAKETIME).exists() {
        println!("SKIPPED, no libfaketime: `cargo xtask setup` installs it");
        return Ok(());
    }
    let (mut stack, _guests) = stack("clock", &[("g1", LOAD)], observing())?;
    stack.kill_agent("h1")?;
    let offset = stack.brain_dir().join("offset");
    let set_clock = |text: &str| -> Result<()> {
        // Replaced at once: the agent reads it at any moment.
        fs::write(offset.with_extension("new"), text)?;
        Ok(fs::rename(offset.with_extension("new"), &offset)?)
    };
    set_clock("+0")?;
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", offset.display());
    let preload = format!("LD_PRELOAD={FAKETIME}");
    stack.wrap_agents(["env", &preload, &file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
    stack.start_agent("h1")?;

    for jump in ["+3600", "-3600"] {
        set_clock(jump)?;
        thread::sleep(Duration::from_secs(4));
        // Its time to live is shorter than the jump, and counts on a clock that nobody sets.
        let answered = outcomes(&stack)?.len();
        stack.api().post("/api/v1/release", &json!({ "scope": { "vm": "g1" } }))?;
        wait_for("an answer in the wrong time", PATIENCE, || Ok(outcomes(&stack)?.len() > answered))?;
        let result = outcomes(&stack)?.remove(0);
        ensure!(result["applied"].is_object(), "{jump} s: {result}");
        ensure!(connected(&stack)?, "{jump} s: the agent was lost");

        set_clock("+0")?;
        let from_ms = now_ms() + 2000;
        thread::sleep(Duration::from_secs(11));
        let after = windows(&stack, "g1", from_ms, now_ms() - 1500)?;
        ensure!(after.len() >= 5, "{jump} s and back: only {} windows in 9 s", after.len());
        is_the_load(&after)?;
        stack.api().post("/api/v1/resume", &json!({ "scope": { "vm": "g1" } }))?;
    }
    let log = stack.brain_log()?;
    ensure!(log.contains("report_from_the_future"), "the brain does not say that a clock is ahead");
    Ok(())
}

fn connected(stack: &Stack) -> Result<bool> {
    Ok(stack.api().get("/api/v1/hosts/h1")?["connected"] == true)
}

/// The results of all answered commands, newest first.
fn outcomes(stack: &Stack) -> Result<Vec<Value>> {
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    let commands = commands.as_array().context("no list of commands")?;
    Ok(commands.iter().map(|command| command["outcome"]["result"].clone()).filter(|result| !result.is_null()).collect())
}

fn wait_for_outcome(stack: &Stack, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut found = None;
    wait_for("the command's answer", PATIENCE, || {
        found = outcomes(stack)?.into_iter().find(|result| wanted(result));
        Ok(found.is_some())
    })?;
    found.context("it was there a moment ago")
}

/// What was measured is what the kernel charged to the guest's cgroup, and no idle guest's.
fn is_the_load(windows: &[Window]) -> Result<()> {
    let measured = mean(windows, |window| window.demand_low_cores);
    let charged = mean(windows, |window| window.usage_cores);
    println!("{} windows, {measured:.3} cores, {charged:.3} by the cgroup", windows.len());
    ensure!(measured > 0.1, "{measured} cores were measured of a busy guest");
    ensure!((measured - charged).abs() < 0.05, "{measured} cores were measured, {charged} charged to the cgroup");
    Ok(())
}

fn kill_libvirtd(host: &Host) -> Result<()> {
    // The pid file is the lab host's own, and so is the process.
    let killed = host.command("sh").args(["-c", "kill -9 $(cat /run/libvirtd.pid)"]).status()?;
    ensure!(killed.success(), "the lab's libvirtd could not be killed ({killed})");
    Ok(())
}

fn start_libvirtd(host: &Host) -> Result<Child> {
    let mut command = host.command("libvirtd");
    command.arg("--listen").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("starting libvirtd")
}

/// Writes until the disk has no byte left.
fn fill(ballast: &Path) -> Result<()> {
    let filled = fs::write(ballast, vec![0; 64 << 20]);
    ensure!(filled.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull), "the disk takes everything");
    Ok(())
}
