//! The brain is away: what is set is held, a starving guest grows within bounds, a quiet one goes back, and the brain learns of it all.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use gnomon_common::wire::{Action, Command, CommandId, Fence, OutcomeResult, Setting, VmId};
use gnomon_e2e::usurper::Usurper;
use gnomon_e2e::{agent_metrics, observing, reconfigure, skipped, stack_of, wait_for};
use serde_json::json;
use xtask::lab::{Guest, GuestOptions};
use xtask::stack::Stack;

/// What the guest has by its definition, and what a brain left it with.
const BASELINE: f64 = 0.2;
const SET: f64 = 0.1;
/// The host's ceiling: so much less than the guest wants that it is held back on a busy machine, too.
const CEILING: f64 = 0.3;
/// What the guest wants for the first seconds of its life, and then.
const BUSY_S: u64 = 45;
const SCHEDULE: &str = "script:45@0.6,600@0.05";
/// Away, quiet and stepping within seconds.
const AWAY: &str = "[away]\nafter_s = 1\nquiet_s = 2\ndrift_step = 0.3\ndrift_interval_s = 1\nreflex = false\n";

fn order(guest: &Guest, number: u64, cores: f64) -> Command {
    Command {
        // The terms of a brain that was started once before; the next real one has a higher term.
        id: CommandId { term: 1, number: 1_000 + number },
        vm: VmId(guest.uuid()),
        action: Action::Set(Setting::CpuQuota { cores: Some(cores) }),
        fence: Fence { term: 1, generation: 1_000 + number },
        time_to_live_ms: 10_000,
        reason: "a test wants it".to_owned(),
    }
}

fn is(guest: &Guest, cores: f64) -> Result<bool> {
    Ok(guest.cpu_quota_cores()?.is_some_and(|quota| (quota - cores).abs() < 0.002))
}

fn restart_agent(stack: &mut Stack, changes: &[(&str, &str)], sections: &str) -> Result<()> {
    stack.stop_agent("h1")?;
    reconfigure(stack, "h1", changes, sections)?;
    stack.launch_agent("h1")
}

/// Watches the quota for a while and returns the least and the most of it.
fn watch(guest: &Guest, span: Duration) -> Result<(f64, f64)> {
    let (end, mut seen) = (Instant::now() + span, (f64::INFINITY, 0.0_f64));
    while Instant::now() < end {
        let quota = guest.cpu_quota_cores()?.context("unlimited")?;
        seen = (seen.0.min(quota), seen.1.max(quota));
        thread::sleep(Duration::from_millis(100));
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_brain_a_starving_guest_grows_within_bounds_and_a_quiet_one_goes_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut options = GuestOptions::new("g1", SCHEDULE.parse()?);
    options.quota_cores = Some(BASELINE);
    let (mut stack, guests) = stack_of("away", vec![options], observing())?;
    let (guest, busy_until) = (&guests[0], stack.lab.truth("g1")?.started_at + Duration::from_secs(BUSY_S));
    stack.kill_brain()?;
    let ceiling = format!("cpu_ceiling_cores = {CEILING:?}");
    restart_agent(&mut stack, &[("cpu_ceiling_cores = 2.0", &ceiling)], AWAY)?;
    let mut brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), 1).await?;
    let outcome = brain.command(&order(guest, 1, SET)).await?;
    ensure!(matches!(outcome.result, OutcomeResult::Applied { .. }), "not applied: {outcome:?}");
    drop(brain);

    // Without the reflex what is set is held, however the guest starves.
    let (least, most) = watch(guest, Duration::from_secs(6))?;
    println!("without the reflex: {least}..{most} cores");
    ensure!((least - SET).abs() < 0.002 && (most - SET).abs() < 0.002, "{least}..{most} cores without the reflex");
    ensure!(SystemTime::now() < busy_until, "the programs took too long: the guest is quiet already");

    // With it the guest gets what it wants within seconds.
    restart_agent(&mut stack, &[("reflex = false", "reflex = true")], "")?;
    wait_for("the starving guest to grow to the ceiling", Duration::from_secs(20), || is(guest, CEILING))?;
    ensure!(SystemTime::now() < busy_until, "the programs took too long: the guest is quiet already");
    let (least, most) = watch(guest, busy_until.duration_since(SystemTime::now())?.min(Duration::from_secs(5)))?;
    println!("with the reflex: {least}..{most} cores");
    ensure!(most < CEILING + 0.002 && least > CEILING - 0.002, "{least}..{most} cores with the reflex");
    let metrics = agent_metrics(&stack, "h1")?;
    ensure!(metrics.contains("gnomon_agent_brain_away 1"), "not away:\n{metrics}");

    // When the guest has been quiet for long it has its baseline again, step by step and no lower.
    let patience = busy_until.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_secs(20);
    let mut steps = vec![CEILING];
    wait_for("the quiet guest to go back", patience, || {
        let quota = guest.cpu_quota_cores()?.context("unlimited")?;
        if steps.last().is_some_and(|last| (quota - last).abs() > 0.002) {
            steps.push(quota);
        }
        is(guest, BASELINE)
    })?;
    let (least, most) = watch(guest, Duration::from_secs(3))?;
    println!("quiet: {steps:?}, then {least}..{most} cores");
    ensure!(steps.len() >= 3 && steps.is_sorted_by(|a, b| a > b), "not step by step: {steps:?}");
    ensure!(least > BASELINE - 0.002 && most < BASELINE + 0.002, "{least}..{most} cores after that");

    // The brain returns: it learns what was done, and rules again.
    stack.start_brain()?;
    wait_for("the brain to learn of it", Duration::from_secs(60), || {
        let audit = stack.api().get("/api/v1/audit?limit=200")?.to_string();
        Ok(["reflex", "drift"].iter().all(|act| audit.contains(act)) && audit.contains("the brain is away"))
    })?;
    wait_for("every act to be acknowledged", Duration::from_secs(10), || {
        let metrics = agent_metrics(&stack, "h1")?;
        Ok(metrics.contains("gnomon_agent_outcomes_pending 0") && metrics.contains("gnomon_agent_brain_away 0"))
    })?;
    stack.api().post("/api/v1/release", &json!({ "scope": { "vm": "g1" } }))?;
    wait_for("the release to be answered", Duration::from_secs(15), || {
        let commands = stack.api().get("/api/v1/commands")?.to_string();
        Ok(commands.contains("release") && commands.contains("applied"))
    })?;
    ensure!(is(guest, BASELINE)?, "released to {:?}", guest.cpu_quota_cores()?);
    Ok(())
}
