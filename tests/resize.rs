//! A plan becomes a changed limit: read back from libvirt and from the cgroup, and undone by a release.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{acting, agent_metrics, libvirt_quota_cores, skipped, stack, stack_of, wait_for};
use serde_json::{Value, json};
use xtask::env::bin_dir;
use xtask::lab::GuestOptions;

/// A dwell, a shrink interval and what a busy machine adds.
const RESIZE: Duration = Duration::from_secs(60);

#[test]
fn a_resize_is_read_back_from_libvirt_and_the_cgroup_and_a_release_undoes_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut options = GuestOptions::new("g1", "constant:0.1".parse()?);
    options.quota_cores = Some(0.8);
    let (stack, guests) = stack_of("resize", vec![options], acting())?;
    let guest = &guests[0];
    wait_for("the idle guest to shrink", RESIZE, || Ok(guest.cpu_quota_cores()?.is_some_and(|cores| cores < 0.5)))?;
    // The next resize may come at any moment: take both in one look, and look again where they differ.
    wait_for("libvirt and cgroup to agree", Duration::from_secs(10), || {
        let (cgroup, libvirt) = (guest.cpu_quota_cores()?, libvirt_quota_cores(guest)?);
        println!("cgroup {cgroup:?}, libvirt {libvirt:?}");
        Ok(cgroup.zip(libvirt).is_some_and(|(cgroup, libvirt)| (cgroup - libvirt).abs() < 0.002))
    })?;
    let commands = stack.api().get("/api/v1/commands")?;
    let applied = commands.as_array().context("no list")?.iter().find(|command| !command["outcome"].is_null());
    let applied = applied.context("no command was answered")?;
    let after =
        applied["outcome"]["result"]["applied"]["after"][0]["cpu_quota"]["cores"].as_f64().context("not applied")?;
    let wanted = applied["command"]["action"]["set"]["cpu_quota"]["cores"].as_f64().context("no quota")?;
    ensure!((after - wanted).abs() < 0.002, "wanted {wanted}, read back {after}");
    ensure!(applied["command"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "no reason in {applied}");

    // What it had before is told as long as there is something to give back.
    let had = |wanted: Value| {
        wait_for("what it had before", Duration::from_secs(15), || {
            Ok(stack.api().get("/api/v1/vms/g1")?["baselines"] == wanted)
        })
    };
    had(json!([{ "cpu_quota": { "cores": 0.8 } }]))?;
    let explained = stack.api().get("/api/v1/vms/g1/explain")?.to_string();
    ensure!(explained.contains("Before Gnomon's first change it had 0.80 cores"), "{explained}");

    stack.api().post("/api/v1/release", &json!({ "scope": { "vm": "g1" } }))?;
    wait_for("the baseline", Duration::from_secs(15), || {
        Ok(guest.cpu_quota_cores()?.is_some_and(|cores| (cores - 0.8).abs() < 0.002))
    })?;
    let libvirt = libvirt_quota_cores(guest)?.context("libvirt says unlimited")?;
    ensure!((libvirt - 0.8).abs() < 0.002, "libvirt says {libvirt} after the release");
    had(json!([]))?;
    let audit = stack.api().get("/api/v1/audit")?.to_string();
    ensure!(audit.contains("release"), "the release is not in the audit log: {audit}");
    Ok(())
}

#[test]
fn the_operators_command_shows_and_steers_a_live_fleet() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (stack, _guests) = stack("cli", &[("g1", "constant:0.3")], acting())?;
    let run = |arguments: &[&str]| -> Result<Value> {
        let mut command = Command::new(bin_dir().join("gnomon"));
        command.arg("--json").args(arguments);
        command.env("GNOMON_URL", stack.api().url("")).env("GNOMON_TOKEN_FILE", stack.brain_dir().join("tokens"));
        let output = command.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "gnomon {arguments:?}: {} {error}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let hosts = run(&["hosts"])?;
    ensure!(hosts.to_string().contains("\"h1\""), "h1 is not listed");
    let of_nodes =
        hosts[0]["facts"]["numa"].as_array().context("no NUMA nodes")?.iter().map(|node| node["cpus"].as_u64());
    let [told, online] = [of_nodes.sum::<Option<u64>>(), Some(std::thread::available_parallelism()?.get() as u64)];
    ensure!(told >= online, "its NUMA nodes have {told:?} CPUs, of {online:?} at least: {hosts}");
    let vms = run(&["vms"])?;
    ensure!(vms.to_string().contains("\"g1\""), "g1 is not listed: {vms}");
    run(&["status"])?;
    run(&["explain", "g1"])?;
    run(&["pause", "--vm", "g1"])?;
    ensure!(stack.api().get("/api/v1/vms/g1")?["hold"] == "paused", "the pause is not in force");
    run(&["resume", "--vm", "g1"])?;
    ensure!(stack.api().get("/api/v1/vms/g1")?["hold"].is_null(), "the pause is still in force");
    let metrics = stack.api().get("/metrics")?.to_string();
    ensure!(metrics.contains("gnomon_brain_"), "no metrics of the brain: {metrics}");
    wait_for("the agent's metrics to tell of g1", Duration::from_secs(10), || {
        let metrics = agent_metrics(&stack, "h1")?;
        Ok(metrics.contains("gnomon_agent_uplink_connected 1") && metrics.contains("\"g1\""))
    })?;
    Ok(())
}
