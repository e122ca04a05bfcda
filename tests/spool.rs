//! What is measured while the brain is away comes when it is back, whatever happens to the agent and its disk meanwhile.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{holes, now_ms, observing, skipped, stack, wait_for, window_starts};
use xtask::stack::Stack;

/// Windows of these tests are a second long.
const WINDOW_MS: u64 = 1000;

#[test]
fn an_outage_leaves_no_hole_over_a_kill_a_torn_record_and_a_full_disk() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut stack, _guests) = stack("spool", &[("g1", "constant:0.2")], observing())?;
    killed_and_torn(&mut stack)?;
    full_disk(&mut stack)
}

/// The brain is away; the agent is killed meanwhile, and its last record torn.
fn killed_and_torn(stack: &mut Stack) -> Result<()> {
    let from_ms = now_ms();
    thread::sleep(Duration::from_secs(2));
    stack.kill_brain()?;
    thread::sleep(Duration::from_secs(5));
    stack.kill_agent("h1")?;
    let killed_ms = now_ms();
    let torn = newest_segment(&spool(stack)?)?;
    let file = File::options().write(true).open(&torn)?;
    file.set_len(file.metadata()?.len() - 5)?;

    stack.launch_agent("h1")?;
    wait_for("the agent to take stock", Duration::from_secs(20), || Ok(stack.agent_log("h1")?.contains("damaged=1")))?;
    thread::sleep(Duration::from_secs(4));
    stack.start_brain()?;
    // The second life's own windows are in the spool, too, and come after those of the first; live ones come at once.
    let back_ms = now_ms();
    // The window under way when it was killed is nobody's, and the one before it was torn. All others come.
    let around_the_kill =
        |(before, after): (u64, u64)| before + 3 * WINDOW_MS + 200 > killed_ms && after > killed_ms - WINDOW_MS;
    let complete = |starts: &[u64]| {
        let holes = holes(starts, WINDOW_MS);
        starts.last().is_some_and(|last| *last > back_ms) && holes.len() == 1 && holes.into_iter().all(around_the_kill)
    };
    let came = wait_for("live windows and the backlog", Duration::from_secs(20), || {
        Ok(complete(&window_starts(stack, "g1", from_ms)?))
    });
    let starts = window_starts(stack, "g1", from_ms)?;
    let since_kill = |start: &u64| start.cast_signed() - killed_ms.cast_signed();
    println!("windows by their start, in ms since the kill: {:?}", starts.iter().map(since_kill).collect::<Vec<_>>());
    came?;
    let lost = stack.api().get("/api/v1/hosts/h1")?["losses"]["reports_dropped"].clone();
    ensure!(lost == 1, "one record was torn, {lost} are counted");
    Ok(())
}

/// The brain is away and the disk is full; the disk gets room, and then the agent is killed.
fn full_disk(stack: &mut Stack) -> Result<()> {
    stack.stop_agent("h1")?;
    let host = stack.lab.host("h1")?.clone();
    let dir = spool(stack)?;
    // A disk of its own, full, on the mount point that only the host sees. It goes with the host's namespace.
    let on_host = |script: &str| -> Result<()> {
        let output = host.command("sh").args(["-euc", script, "sh"]).arg(&dir).output()?;
        ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    on_host("mount -t tmpfs -o size=256k gnomon-spool \"$1\"; cat /dev/zero > \"$1/ballast\" 2>/dev/null || true")?;
    let log_before = stack.agent_log("h1")?.len();
    stack.kill_brain()?;
    stack.launch_agent("h1")?;
    let said =
        |stack: &Stack, what: &str| -> Result<usize> { Ok(stack.agent_log("h1")?[log_before..].matches(what).count()) };
    wait_for("the agent to find the disk full", Duration::from_secs(30), || {
        Ok(said(stack, "the spool cannot be written")? > 0)
    })?;
    let from_ms = now_ms();
    thread::sleep(Duration::from_secs(5));
    ensure!(said(stack, "the spool cannot be written")? == 1, "it is said more than once");
    on_host("rm \"$1/ballast\"")?;
    wait_for("the agent to use the room", Duration::from_secs(10), || {
        Ok(said(stack, "the spool is written to disk again")? == 1)
    })?;
    let recovered_ms = now_ms();
    // From now on what was only in memory is on disk.
    thread::sleep(Duration::from_millis(500));
    stack.kill_agent("h1")?;
    stack.start_brain()?;
    stack.start_agent("h1")?;
    wait_for("what was measured while the disk was full", Duration::from_secs(20), || {
        let starts = window_starts(stack, "g1", from_ms)?;
        Ok(starts.iter().any(|start| *start > recovered_ms))
    })?;
    let mut starts = window_starts(stack, "g1", from_ms)?;
    starts.retain(|start| *start <= recovered_ms - WINDOW_MS);
    let holes = holes(&starts, WINDOW_MS);
    println!("{} windows from the time of the full disk", starts.len());
    ensure!(starts.len() >= 4 && holes.is_empty(), "lost in {holes:?} of {starts:?}");
    Ok(())
}

fn spool(stack: &Stack) -> Result<PathBuf> {
    Ok(stack.lab.host("h1")?.dir().join("agent-state/spool"))
}

fn newest_segment(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let segments = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    segments.into_iter().max().context("the spool is empty")
}
