//! Brain and agent are killed without warning, again and again: what was acknowledged is there, what was commanded was done once.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{acting, holes, now_ms, skipped, stack, wait_for, windows};
use serde_json::{Value, json};
use xtask::stack::{BrainSettings, Stack};

/// A load that makes the planner resize every few seconds.
const RESTLESS: &str = "periodic:period_s=14,phase_s=0,base=0.1,peak=0.7,width_s=6,shoulder_s=1";

/// A brain that follows live demand closely, so that every swing of the load is a command.
fn nervous() -> BrainSettings {
    let mut settings = acting();
    settings.policy.cpu.quantile = 0.5;
    settings.policy.cpu.shrink_dwell_ms = 2000;
    settings.policy.cpu.shrink_interval_ms = 1000;
    // Longer than any outage of the test: every command must be answered, none may run out.
    settings.policy.cpu.command_ttl_ms = 30_000;
    settings
}

/// The commands, newest first.
fn commands(stack: &Stack) -> Result<Vec<Value>> {
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    Ok(commands.as_array().context("no list of commands")?.clone())
}

/// How often the agent's ledger says that each command was carried out, from its log.
fn applied_ids(log: &str) -> Vec<String> {
    let applied = log.lines().filter(|line| line.contains("VM changed"));
    applied
        .filter_map(|line| {
            line.split("id=").nth(1)?.split_whitespace().next().map(|id| id.trim_matches('"').to_owned())
        })
        .collect()
}

#[test]
fn kill_9_of_brain_and_agent_loses_no_acknowledged_report_and_repeats_no_command() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut stack, guests) = stack("crash", &[("g1", RESTLESS)], nervous())?;
    let from_ms = now_ms();
    thread::sleep(Duration::from_secs(12));
    for round in 0..3 {
        let acknowledged_ms = now_ms() - 2000;
        let before: BTreeSet<u64> =
            windows(&stack, "g1", from_ms, acknowledged_ms)?.iter().map(|window| window.start_ms).collect();
        ensure!(before.len() > 5, "only {} windows before round {round}", before.len());
        stack.kill_brain()?;
        // So long that four whole windows are in what is looked at below, however fast the brain is back.
        thread::sleep(Duration::from_secs(5));
        stack.start_brain()?;
        wait_for("the agent to come back", Duration::from_secs(30), || {
            Ok(stack.api().get("/api/v1/hosts/h1")?["connected"] == true)
        })?;
        let after: BTreeSet<u64> =
            windows(&stack, "g1", from_ms, acknowledged_ms)?.iter().map(|window| window.start_ms).collect();
        ensure!(before.is_subset(&after), "lost: {:?}", before.difference(&after).collect::<Vec<_>>());
        // What was measured while the brain was away came afterwards: not a window is missing.
        // The backlog follows the greeting, so the brain gets a moment to take it in.
        let until_ms = now_ms() - 1500;
        wait_for("the windows measured while the brain was away", Duration::from_secs(20), || {
            let later = windows(&stack, "g1", acknowledged_ms, until_ms)?;
            let starts: Vec<u64> =
                [acknowledged_ms].into_iter().chain(later.iter().map(|window| window.start_ms)).collect();
            Ok(starts.len() > 4 && holes(&starts, 1000).is_empty())
        })
        .with_context(|| format!("round {round}: from {acknowledged_ms} to {until_ms}"))?;
        thread::sleep(Duration::from_secs(6));
        stack.kill_agent("h1")?;
        thread::sleep(Duration::from_secs(1));
        stack.start_agent("h1")?;
        thread::sleep(Duration::from_secs(6));
    }
    stack.api().post("/api/v1/pause", &json!({ "scope": "fleet" }))?;
    wait_for("an answer to every command", Duration::from_secs(20), || {
        Ok(commands(&stack)?.iter().all(|command| !command["outcome"].is_null()))
    })?;
    let commands = commands(&stack)?;
    ensure!(commands.len() >= 3, "only {} commands: the load was not restless", commands.len());
    let ids: Vec<&str> = commands.iter().filter_map(|command| command["command"]["id"].as_str()).collect();
    ensure!(ids.len() == ids.iter().collect::<BTreeSet<_>>().len(), "a command id was used twice: {ids:?}");
    let applied = applied_ids(&stack.agent_log("h1")?);
    ensure!(!applied.is_empty(), "the agent's log tells of no command");
    let once: BTreeSet<&String> = applied.iter().collect();
    ensure!(once.len() == applied.len(), "applied twice: {applied:?}");
    // What is in force is what the newest applied command said.
    let after = |command: &Value| command["outcome"]["result"]["applied"]["after"][0]["cpu_quota"]["cores"].as_f64();
    let newest = commands.iter().find_map(after).context("no command was applied")?;
    println!("{} commands, {} applied; the newest set {newest} cores", commands.len(), applied.len());
    let in_force = guests[0].cpu_quota_cores()?.context("no quota is in force")?;
    ensure!((in_force - newest).abs() < 0.002, "{in_force} cores are in force, the newest command set {newest}");
    Ok(())
}
