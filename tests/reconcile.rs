//! Someone else undoes or changes what Gnomon set: it is seen within ten seconds and answered by the host's policy.

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gnomon_common::wire::{
    Action, Command, CommandId, Fence, LocalCause, Origin, Outcome, OutcomeResult, RefusedCommand, Setting, VmId,
};
use gnomon_e2e::usurper::Usurper;
use gnomon_e2e::{agent_metrics, libvirt_quota_cores, observing, reconfigure, skipped, stack_of, wait_for};
use serde_json::json;
use tokio::time::timeout;
use xtask::lab::{Guest, GuestOptions, Host};

/// Within so long a foreign change is to be answered.
const SEEN: Duration = Duration::from_secs(10);
const BASELINE: f64 = 0.8;
const SET: f64 = 0.5;

fn order(guest: &Guest, number: u64, action: Action) -> Command {
    Command {
        // The terms of a brain that was started once before; the next real one has a higher term.
        id: CommandId { term: 1, number: 1_000 + number },
        vm: VmId(guest.uuid()),
        action,
        fence: Fence { term: 1, generation: 1_000 + number },
        time_to_live_ms: 10_000,
        reason: "a test wants it".to_owned(),
    }
}

fn set(cores: f64) -> Action {
    Action::Set(Setting::CpuQuota { cores: Some(cores) })
}

fn is(guest: &Guest, cores: f64) -> Result<bool> {
    Ok(guest.cpu_quota_cores()?.is_some_and(|quota| (quota - cores).abs() < 0.002))
}

/// What the agent tells of an act of its own.
async fn hear_of(brain: &mut Usurper, cause: LocalCause) -> Result<Outcome> {
    let like = |outcome: &Outcome| matches!(&outcome.origin, Origin::Local { cause: it, .. } if *it == cause);
    let told = timeout(SEEN, brain.outcome(like)).await;
    told.with_context(|| format!("no {cause:?} within {} s", SEEN.as_secs()))?
}

fn virsh_quota(guest: &Guest, cores: f64) -> Result<()> {
    let quota = format!("global_quota={}", (cores * 100_000.0).round());
    guest.host().virsh(["schedinfo", guest.name(), "--live", &quota]).map(drop)
}

/// Lives in the lab's cgroups and ends with them.
fn restart_libvirtd(host: &Host, meanwhile: impl FnOnce() -> Result<()>) -> Result<Child> {
    let killed = host.command("sh").args(["-c", "kill -9 $(cat /run/libvirtd.pid)"]).status()?;
    ensure!(killed.success(), "the lab's libvirtd could not be killed ({killed})");
    meanwhile()?;
    let libvirtd = host.command("libvirtd").spawn().context("starting libvirtd")?;
    wait_for("libvirtd to answer", Duration::from_secs(60), || Ok(host.virsh(["list"]).is_ok()))?;
    Ok(libvirtd)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_someone_else_does_to_a_limit_is_undone_or_by_policy_left_alone_until_a_release() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut options = GuestOptions::new("g1", "constant:0.1".parse()?);
    options.quota_cores = Some(BASELINE);
    let (mut stack, guests) = stack_of("reconcile", vec![options], observing())?;
    let guest = &guests[0];
    stack.kill_brain()?;
    stack.stop_agent("h1")?;
    stack.launch_agent("h1")?;
    let mut brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), 1).await?;
    let outcome = brain.command(&order(guest, 1, set(SET))).await?;
    ensure!(matches!(outcome.result, OutcomeResult::Applied { .. }), "not applied: {outcome:?}");

    // A write into the cgroup, and an operator: applied again, and the brain is told.
    let began = Instant::now();
    guest.unlimit_cpu_behind_libvirt()?;
    let told = hear_of(&mut brain, LocalCause::Reapply).await?;
    println!("cgroup written: applied again after {:.1} s, {:?}", began.elapsed().as_secs_f64(), told.origin);
    ensure!(began.elapsed() < SEEN && is(guest, SET)?, "{:?} after {:?}", guest.cpu_quota_cores()?, began.elapsed());
    let began = Instant::now();
    virsh_quota(guest, 0.7)?;
    let told = hear_of(&mut brain, LocalCause::Reapply).await?;
    println!("virsh: applied again after {:.1} s, {:?}", began.elapsed().as_secs_f64(), told.origin);
    ensure!(began.elapsed() < SEEN && is(guest, SET)?, "{:?} after {:?}", guest.cpu_quota_cores()?, began.elapsed());
    let libvirt = libvirt_quota_cores(guest)?.context("libvirt says unlimited")?;
    ensure!((libvirt - SET).abs() < 0.002, "libvirt says {libvirt}");
    // A libvirt that is restarted, and a limit that is undone while it is away.
    let mut libvirtd = restart_libvirtd(guest.host(), || guest.unlimit_cpu_behind_libvirt())?;
    let began = Instant::now();
    hear_of(&mut brain, LocalCause::Reapply).await?;
    println!("libvirtd restarted: applied again {:.1} s after it answers", began.elapsed().as_secs_f64());
    ensure!(began.elapsed() < SEEN && is(guest, SET)?, "{:?} after {:?}", guest.cpu_quota_cores()?, began.elapsed());
    // What the operator had chosen is what is given back: it is newer than the definition.
    brain.command(&order(guest, 2, Action::Release)).await?;
    ensure!(is(guest, 0.7)?, "released to {:?}", guest.cpu_quota_cores()?);
    brain.command(&order(guest, 3, set(SET))).await?;
    drop(brain);

    // The other policy: hands off, said so, and refused.
    stack.stop_agent("h1")?;
    reconfigure(&stack, "h1", &[], "[reconcile]\non_foreign_change = \"stand_down\"\n")?;
    stack.launch_agent("h1")?;
    let mut brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), 1).await?;
    virsh_quota(guest, 0.6)?;
    let told = hear_of(&mut brain, LocalCause::StandDown).await?;
    println!("{:?}", told.origin);
    let refused = brain.command(&order(guest, 4, set(SET))).await?;
    ensure!(refused.result == OutcomeResult::Refused(RefusedCommand::StoodDown), "not refused: {refused:?}");
    drop(brain);
    thread::sleep(Duration::from_secs(4));
    ensure!(is(guest, 0.6)?, "not left alone: {:?}", guest.cpu_quota_cores()?);

    // The real brain sees it, and its release ends it.
    stack.start_brain()?;
    let stood_down = |wanted: bool| {
        wait_for("the brain to see whether Gnomon stands down", Duration::from_secs(60), || {
            Ok(stack.api().get("/api/v1/vms/g1")?["stood_down"] == wanted)
        })
    };
    stood_down(true)?;
    ensure!(agent_metrics(&stack, "h1")?.contains("gnomon_agent_stood_down_vms 1"), "not in the metrics");
    stack.api().post("/api/v1/release", &json!({ "scope": { "vm": "g1" } }))?;
    stood_down(false)?;
    ensure!(is(guest, 0.6)?, "the release touched it: {:?}", guest.cpu_quota_cores()?);
    // It ends with its lab.
    drop(stack);
    libvirtd.wait().context("waiting for libvirtd")?;
    Ok(())
}
