//! Agent and brain over bad links: what is acknowledged is there, what was measured comes, what was commanded is done once.

#[path = "link/relay.rs"]
mod relay;

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{acting, holes, now_ms, skipped, stack_of, wait_for, window_starts};
use relay::{Relay, Weather};
use serde_json::{Value, json};
use xtask::lab::GuestOptions;
use xtask::stack::{BrainSettings, Stack};

const BRAIN_PORT: u16 = 9470;
const RELAY_PORT: u16 = 9471;

/// A load that makes the planner resize every few seconds.
const RESTLESS: &str = "periodic:period_s=14,phase_s=0,base=0.1,peak=0.7,width_s=6,shoulder_s=1";

/// Idle VMs with long names: they make a report fill a quarter of a second of the slow link.
const PADDING_VMS: usize = 8;

/// A brain that follows live demand closely, so that every swing of the load is a command; with heart-beats for a link on which three of
/// them do not get lost at once.
fn nervous() -> BrainSettings {
    let mut settings = acting();
    settings.policy.cpu.quantile = 0.5;
    settings.policy.cpu.shrink_dwell_ms = 2000;
    settings.policy.cpu.shrink_interval_ms = 1000;
    // Longer than the partition: every command must be answered, none may run out.
    settings.policy.cpu.command_ttl_ms = 40_000;
    settings.heartbeat_ms = 2000;
    settings
}

#[test]
fn loss_reordering_partition_and_a_slow_link_lose_nothing_and_repeat_no_command() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut guest = GuestOptions::new("g1", RESTLESS.parse()?);
    // Below its peaks: each is a command to grow, and each release the ground for another.
    guest.quota_cores = Some(0.2);
    let (mut stack, _guests) = stack_of("link", vec![guest], nervous())?;
    pad(&stack)?;
    let relay = Relay::start(&stack.lab, RELAY_PORT, BRAIN_PORT)?;
    reconnect_through(&mut stack)?;
    let from_ms = now_ms();

    relay.set(Weather { loss: 0.3, ..Weather::default() });
    thread::sleep(Duration::from_secs(8));
    release(&stack)?;
    resume(&stack)?;
    let reordering = Duration::from_millis(300);
    relay.set(Weather { delay: reordering, jitter: reordering, ..Weather::default() });
    thread::sleep(Duration::from_secs(8));
    release(&stack)?;
    resume(&stack)?;
    relay.set(Weather::default());
    wait_for("the windows of the time of loss and reordering", Duration::from_secs(40), || {
        let starts = window_starts(&stack, "g1", from_ms)?;
        Ok(starts.last().is_some_and(|last| last + 3000 > now_ms()) && holes(&starts, 1000).is_empty())
    })?;
    let acknowledged = window_starts(&stack, "g1", from_ms)?;

    // Nothing passes for 15 s: the link itself is down, at once after a command.
    release(&stack)?;
    link(&stack, "down")?;
    let cut_ms = now_ms();
    thread::sleep(Duration::from_secs(15));
    ensure!(!connected(&stack)?, "the brain did not notice");
    relay.set(Weather { bytes_per_s: Some(8000.0), ..Weather::default() });
    link(&stack, "up")?;
    resume(&stack)?;
    slow(&stack, cut_ms)?;
    relay.set(Weather::default());

    let starts = window_starts(&stack, "g1", from_ms)?;
    ensure!(holes(&starts, 1000).is_empty(), "lost: {:?}", holes(&starts, 1000));
    let now: BTreeSet<&u64> = starts.iter().collect();
    ensure!(acknowledged.iter().all(|start| now.contains(start)), "what was acknowledged is gone");
    answered_and_done_once(&stack)
}

/// On 64 kbit/s the backlog of the partition takes its time, and live windows do not wait for it.
fn slow(stack: &Stack, cut_ms: u64) -> Result<()> {
    let mut lags_ms = Vec::new();
    wait_for("the backlog over a slow link", Duration::from_secs(60), || {
        let starts = window_starts(stack, "g1", cut_ms - 2000)?;
        let draining = !holes(&starts, 1000).is_empty();
        if let (true, Some(last)) = (draining, starts.last().filter(|last| **last > cut_ms + 15_000)) {
            // From the end of the newest window to now.
            lags_ms.push(now_ms().saturating_sub(last + 1000));
        }
        Ok(!draining && starts.last().is_some_and(|last| *last > cut_ms + 15_000))
    })?;
    lags_ms.sort_unstable();
    let median_ms = lags_ms.get(lags_ms.len() / 2).context("the backlog came before the first live window")?;
    println!("{} looks while the backlog drained: live windows are {median_ms} ms old", lags_ms.len());
    ensure!(*median_ms < 3000, "live windows waited for the backlog: {lags_ms:?}");
    Ok(())
}

/// The commands, newest first.
fn commands(stack: &Stack) -> Result<Vec<Value>> {
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    Ok(commands.as_array().context("no list of commands")?.clone())
}

/// The commands that were carried out, as often as the agent's log says so.
fn applied_ids(log: &str) -> Vec<String> {
    let applied = log.lines().filter(|line| line.contains("VM changed"));
    let id =
        |line: &str| line.split(" id=").nth(1)?.split_whitespace().next().map(|id| id.trim_matches('"').to_owned());
    applied.filter_map(id).collect()
}

fn answered_and_done_once(stack: &Stack) -> Result<()> {
    stack.api().post("/api/v1/pause", &json!({ "scope": "fleet" }))?;
    wait_for("an answer to every command", Duration::from_secs(45), || {
        Ok(commands(stack)?.iter().all(|command| !command["outcome"].is_null()))
    })?;
    let commands = commands(stack)?;
    ensure!(commands.len() >= 4, "only {} commands: nothing was put to the test", commands.len());
    let applied = applied_ids(&stack.agent_log("h1")?);
    let once: BTreeSet<&String> = applied.iter().collect();
    println!("{} commands, {} applied", commands.len(), applied.len());
    ensure!(!applied.is_empty() && once.len() == applied.len(), "applied twice, or never: {applied:?}");
    Ok(())
}

/// Gives every VM its baseline back.
fn release(stack: &Stack) -> Result<()> {
    stack.api().post("/api/v1/release", &json!({ "scope": "fleet" }))?;
    Ok(())
}

/// Lets the brain act again once everything is answered.
fn resume(stack: &Stack) -> Result<()> {
    wait_for("an answer to the release", Duration::from_secs(30), || {
        Ok(commands(stack)?.iter().all(|command| !command["outcome"].is_null()))
    })?;
    stack.api().post("/api/v1/resume", &json!({ "scope": "fleet" }))?;
    Ok(())
}

/// Defines VMs that never run.
fn pad(stack: &Stack) -> Result<()> {
    let host = stack.lab.host("h1")?;
    for number in 0..PADDING_VMS {
        let name = format!("padding-{number}-{}", "x".repeat(180));
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"
        );
        let file = host.dir().join(format!("padding-{number}.xml"));
        fs::write(&file, xml)?;
        host.virsh(["define".as_ref(), file.as_os_str()])?;
    }
    Ok(())
}

/// Restarts the agent with the relay as its brain.
fn reconnect_through(stack: &mut Stack) -> Result<()> {
    stack.stop_agent("h1")?;
    let config = stack.lab.host("h1")?.dir().join("agent.toml");
    let text = fs::read_to_string(&config)?;
    let through = text.replace(&format!(":{BRAIN_PORT}\""), &format!(":{RELAY_PORT}\""));
    ensure!(through != text, "no brain's address in {text}");
    fs::write(&config, through)?;
    stack.start_agent("h1")
}

/// Takes the host's end of the bridge up or down.
fn link(stack: &Stack, state: &str) -> Result<()> {
    let output = stack.lab.brain_command("ip").args(["link", "set", "v-h1", state]).output()?;
    ensure!(output.status.success(), "ip link: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn connected(stack: &Stack) -> Result<bool> {
    Ok(stack.api().get("/api/v1/hosts/h1")?["connected"] == true)
}
