//! What must not happen does not: a real agent refuses stale, expired and excessive commands; a real brain refuses strangers.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_common::wire::{Action, Command, CommandId, Fence, OutcomeResult, RefusedCommand, Setting, VmId};
use gnomon_e2e::usurper::Usurper;
use gnomon_e2e::{observing, skipped, stack, wait_for};
use xtask::env::bin_dir;

fn refused(result: &OutcomeResult) -> Result<RefusedCommand> {
    match result {
        OutcomeResult::Refused(why) => Ok(*why),
        other => anyhow::bail!("not refused but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_agent_obeys_only_fresh_fenced_commands_within_its_bounds() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut stack, guests) = stack("refuse", &[("g1", "constant:0.1")], observing())?;
    let guest = &guests[0];
    stack.kill_brain()?;
    let mut brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), 7).await?;
    ensure!(brain.hello.host.as_str() == "h1", "the agent says it is {}", brain.hello.host);

    let order = |number: u64, term: u64, generation: u64, cores: f64| Command {
        id: CommandId { term, number },
        vm: VmId(guest.uuid()),
        action: Action::Set(Setting::CpuQuota { cores: Some(cores) }),
        fence: Fence { term, generation },
        time_to_live_ms: 10_000,
        reason: "a test wants it".to_owned(),
    };
    let first = order(1, 7, 10, 0.5);
    let outcome = brain.command(&first).await?;
    ensure!(matches!(outcome.result, OutcomeResult::Applied { .. }), "not applied: {outcome:?}");
    ensure!(guest.cpu_quota_cores()? == Some(0.5), "the quota is {:?}", guest.cpu_quota_cores()?);

    // The same command again is answered again and done once, whatever it now claims to want.
    let again = brain
        .command(&Command { action: Action::Set(Setting::CpuQuota { cores: Some(0.9) }), ..first.clone() })
        .await?;
    ensure!(again.result == outcome.result, "answered differently: {again:?}");

    let older_plan = brain.command(&order(2, 7, 9, 0.9)).await?;
    let older_brain = brain.command(&order(3, 6, 99, 0.9)).await?;
    for stale in [older_plan, older_brain] {
        ensure!(matches!(refused(&stale.result)?, RefusedCommand::StaleFence { .. }), "refused otherwise: {stale:?}");
    }
    let expired = brain.command(&Command { time_to_live_ms: 0, ..order(4, 7, 11, 0.9) }).await?;
    ensure!(matches!(refused(&expired.result)?, RefusedCommand::Expired { .. }), "refused otherwise: {expired:?}");
    let low = brain.command(&order(5, 7, 12, 0.01)).await?;
    ensure!(matches!(refused(&low.result)?, RefusedCommand::BelowFloor { .. }), "refused otherwise: {low:?}");
    let high = brain.command(&order(6, 7, 13, 1.5)).await?;
    ensure!(matches!(refused(&high.result)?, RefusedCommand::AboveCeiling { .. }), "refused otherwise: {high:?}");
    ensure!(guest.cpu_quota_cores()? == Some(0.5), "a refused command changed the quota");

    // A frame that announces four gigabytes ends the connection, with the reason told and logged.
    let reason = brain.babble(&u32::MAX.to_le_bytes()).await?;
    ensure!(reason.contains("limit"), "closed with {reason:?}");
    wait_for("the agent's log to tell why", Duration::from_secs(10), || {
        Ok(stack.agent_log("h1")?.contains("is over the limit"))
    })
}

#[test]
fn a_foreign_certificate_is_refused_with_a_reason_on_both_sides() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut stack, _guests) = stack("foreign", &[("g1", "constant:0.1")], observing())?;
    stack.stop_agent("h1")?;
    // Another authority, a good certificate of it, and the right authority to trust: only the brain can object.
    let host = stack.lab.host("h1")?.clone();
    let other = stack.lab.dir().join("other");
    let brain = bin_dir().join("gnomon-brain");
    let run = |arguments: &[&str]| -> Result<()> {
        let status = std::process::Command::new(&brain).args(arguments).status()?;
        ensure!(status.success(), "gnomon-brain {arguments:?}: {status}");
        Ok(())
    };
    let (other, files) = (other.to_str().context("a path")?, host.dir().join("agent"));
    run(&["ca", "init", "--dir", other])?;
    let issued = format!("{other}/h1");
    run(&["ca", "issue-agent", "--dir", other, "--host", "h1", "--out", &issued])?;
    for file in ["agent.pem", "agent.key"] {
        fs::copy(format!("{issued}/{file}"), files.join(file))?;
    }
    stack.launch_agent("h1")?;
    wait_for("the brain to refuse a stranger", Duration::from_secs(30), || {
        Ok(stack.brain_log()?.contains("connection refused"))
    })?;
    wait_for("the agent to tell why", Duration::from_secs(30), || Ok(stack.agent_log("h1")?.contains("certificate")))?;
    ensure!(stack.api().get("/api/v1/hosts/h1")?["connected"] == false, "a stranger was let in");
    let metrics = stack.api().get("/metrics")?.as_str().unwrap_or_default().to_owned();
    let counted = metrics.lines().any(|line| {
        line.starts_with("gnomon_brain_connections_refused") && line.contains("certificate") && !line.ends_with(" 0")
    });
    ensure!(counted, "not counted:\n{metrics}");
    Ok(())
}
