//! A VM that stands still between two hosts: the source has sent everything, the target has never said whether it runs it. Nobody but an
//! operator may end that.

use std::time::Duration;

use anyhow::{Result, ensure};
use gnomon_common::wire::{Action, Outcome, OutcomeResult, RefusedCommand, Setting, Whereabouts};
use gnomon_e2e::{agent_metrics, run, skipped, wait_for};
use xtask::lab::Host;

use super::{Scene, as_it_is, is_here, libvirtd};

/// What the agent's metrics say while one is parked.
const PARKED: &str = "gnomon_agent_migrations{standing=\"parked\"} 1";

fn is_parked(result: &OutcomeResult) -> bool {
    matches!(result, OutcomeResult::NotMoved { whereabouts: Whereabouts::Parked, .. })
}

/// Sends a signal to a host's libvirtd.
fn signal_libvirtd(host: &Host, signal: &str) -> Result<()> {
    let pid = run(host, "cat", &["/run/libvirtd.pid"])?;
    run(host, "kill", &[signal, pid.trim()]).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_runs_nowhere_is_parked_until_an_operator_lets_it_run() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("parked", as_it_is).await?;
    let witness = scene.witness();
    let [here, there] = scene.hosts.clone();
    let reason = |host: &Host| host.virsh(["domstate", "g1", "--reason"]);
    let order = scene.begin_slowly().await?;

    // The target's libvirt says nothing any more, while the two QEMUs go on to the end: the guest stands still on both.
    signal_libvirtd(&there, "-STOP")?;
    here.virsh(["migrate-setspeed", "g1", "1000"])?;
    // Before libvirt has noted this, its next life gives the migration up and lets the guest run on.
    wait_for("all of its memory to be sent", Duration::from_secs(20), || {
        Ok(run(&here, "cat", &["/run/libvirt/qemu/g1.xml"])?.contains("phase='perform3_done'"))
    })?;
    // The source's libvirt dies before it is told that nobody answers, after which it would let the guest run on.
    signal_libvirtd(&here, "-KILL")?;
    let mut daemons = vec![libvirtd(&here)?];
    wait_for("the source's libvirt", Duration::from_secs(60), || Ok(here.virsh(["version"]).is_ok()))?;
    ensure!(reason(&here)?.contains("paused (migrating)"), "{}", reason(&here)?);
    let parked = scene.outcome(&order).await?;
    println!("parked: {parked:?}");
    ensure!(is_parked(&parked.result), "{parked:?}");
    ensure!(agent_metrics(&scene.stack, "h1")?.contains(PARKED), "{}", agent_metrics(&scene.stack, "h1")?);

    let id = order.id;
    let stays_parked =
        |told: &[Outcome]| told.iter().filter(|outcome| outcome.id == id).all(|outcome| is_parked(&outcome.result));

    // Nothing else is done to it, and it stays so, over a restart of the agent too.
    let set = scene.order(Action::Set(Setting::CpuQuota { cores: Some(0.5) }));
    let refused = scene.brain.command(&set).await?;
    ensure!(refused.result == OutcomeResult::Refused(RefusedCommand::Migrating), "{refused:?}");
    scene.stack.kill_agent("h1")?;
    scene.relaunch_agent().await?;
    let told = scene.brain.serve(Duration::from_secs(20)).await?;
    ensure!(stays_parked(&told), "{told:?}");
    ensure!(reason(&here)?.contains("paused (migrating)"), "{}", reason(&here)?);

    // The target is off for good. Its libvirt has never answered, so only a person can know that.
    signal_libvirtd(&there, "-KILL")?;
    let pid = run(&there, "cat", &["/run/libvirt/qemu/g1.pid"])?;
    run(&there, "kill", &["-KILL", pid.trim()])?;
    let told = scene.brain.serve(Duration::from_secs(5)).await?;
    ensure!(stays_parked(&told), "a target that is gone has proven nothing: {told:?}");
    ensure!(reason(&here)?.contains("paused (migrating)"), "{}", reason(&here)?);
    here.virsh(["resume", "g1"])?;
    let ended = scene.brain.outcome(|outcome| outcome.id == id && !is_parked(&outcome.result)).await?;
    println!("resumed: {ended:?}");
    ensure!(is_here(&ended.result), "{ended:?}");
    ensure!(!agent_metrics(&scene.stack, "h1")?.contains(PARKED), "{}", agent_metrics(&scene.stack, "h1")?);

    // It is tended to again, and the target, when it is back, has none.
    let set = scene.order(Action::Set(Setting::CpuQuota { cores: Some(0.5) }));
    let applied = scene.brain.command(&set).await?;
    ensure!(matches!(applied.result, OutcomeResult::Applied { .. }), "{applied:?}");
    daemons.push(libvirtd(&there)?);
    wait_for("the target's libvirt", Duration::from_secs(60), || Ok(there.virsh(["version"]).is_ok()))?;
    ensure!(scene.runs_once()? == 0, "{:?}", scene.states());
    witness.finish(&scene.guest)?;
    drop(scene);
    daemons.iter_mut().try_for_each(|daemon| daemon.wait().map(drop))?;
    Ok(())
}
