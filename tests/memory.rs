//! What Gnomon says that a VM wants of memory is true: against guests whose working set the lab sets, growing and shrinking.

#[path = "memory/pressed.rs"]
mod pressed;

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gnomon_common::wire::{DemandSource, MemoryDemand, MemoryWindow};
use gnomon_e2e::{observing, redefine, skipped};
use serde_json::Value;
use xtask::env::bin_dir;
use xtask::lab::{Guest, GuestOptions, Lab, Options};
use xtask::stack::{AgentSettings, Stack};

const MIB: u64 = 1 << 20;
/// How long the guests hold how many MiB, from the start of their program. First nothing: that is what their kernel wants for itself.
const STEPS: [(u64, u64); 4] = [(45, 0), (20, 48), (25, 128), (25, 16)];
/// Looked at in the last seconds of each step: a guest takes a while to touch its memory, and its statistics are a few seconds old.
const LAST: Duration = Duration::from_secs(5);
/// How far the estimate may be from the working set and what the guest's kernel wants.
const TOLERANCE: f64 = 0.05;
/// QEMU looks at 128 pages of such a guest: a standard deviation of up to 6 of them, which are 11 MiB. The mean of so many runs has 7.
const DIRTY_RUNS: u32 = 3;
/// Twice that, and a little of the kernel's own.
const DIRTY_TOLERANCE_MIB: f64 = 16.0;
/// The guest's seconds are not ours on a busy machine.
const DIRTY_TOLERANCE: f64 = 0.25;
/// What the measurements may take.
const DIRTY_TIME: Duration = Duration::from_secs(7);
/// What the kernel and the program of such a guest may want for themselves, in MiB.
const OWN_MAX: u64 = 120;

#[test]
fn what_a_guest_wants_follows_the_working_set_that_it_was_given() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("memory", 1))?;
    let guests = ["told", "silent"].map(|name| -> Result<Guest> {
        let mut options = GuestOptions::new(name, "constant:0.02".parse()?);
        (options.memory_mib, options.memory_mib_max) = (256, 256);
        lab.define(&lab.hosts()[0], &options)
    });
    let [told, silent] = guests;
    let (told, silent) = (told?, silent?);
    let steps = STEPS.map(|(duration_s, mib)| format!("{duration_s}@{mib}")).join(",");
    let word = |xml: &str| xml.replace("gnomon.load=", &format!("gnomon.memory={steps} gnomon.load="));
    redefine(&told, |xml| Ok(word(&xml)))?;
    redefine(&silent, |xml| {
        let xml = word(&xml);
        let (head, rest) = xml.split_once("<memballoon").context("no balloon to take away")?;
        let (_, tail) = rest.split_once("</memballoon>").context("an empty balloon")?;
        Ok(format!("{head}<memballoon model='none'/>{tail}"))
    })?;
    let pressed = pressed::define(&lab)?;
    lab.boot(&[told.clone(), silent.clone(), pressed.clone()])?;
    let start = |guest: &Guest| lab.truth(guest.name()).map(|truth| truth.started_at);
    let (starts, pressed_start) = ([start(&told)?, start(&silent)?], start(&pressed)?);
    let stack = Stack::start(lab, observing(), &AgentSettings::default())?;
    thread::scope(|scope| {
        let end = pressed_start + Duration::from_secs(STEPS.iter().map(|(duration_s, _)| duration_s).sum());
        let (stack, pressed) = (&stack, &pressed);
        let pressed = scope.spawn(move || pressed::check(stack, pressed, pressed_start, end));
        let steps = check_steps(stack, &told, &silent, starts);
        let pressed = pressed.join().map_err(|_| anyhow!("the thread that presses a guest panicked"))?;
        steps.and(pressed)
    })
}

/// Holds what is told in each step against its working set.
fn check_steps(stack: &Stack, told: &Guest, silent: &Guest, starts: [SystemTime; 2]) -> Result<()> {
    let mut own = 0;
    let mut end_s = 0;
    for (duration_s, working_set) in STEPS {
        end_s += duration_s;
        let [told_end, silent_end] = starts.map(|start| start + Duration::from_secs(end_s));
        let dirty = dirty_mib_per_s(stack, told, told_end)?;
        let of_guest = last_demand(stack, told, told_end.min(silent_end))?;
        let window = window(stack, silent)?;
        let of_host = window.demand.context("no demand of the silent guest")?;
        let [low, high] = [of_guest.low_bytes, of_guest.high_bytes].map(|bytes| bytes / MIB);
        println!(
            "working set {working_set} MiB: the guest tells {low} to {high}, the host sees {} to {} of {} resident; it writes to \
             {dirty:.0} MiB each second",
            of_host.low_bytes / MIB,
            of_host.high_bytes / MIB,
            window.resident_bytes / MIB
        );
        ensure!(
            of_guest.source == DemandSource::Guest && of_host.source == DemandSource::Host,
            "{of_guest:?} {of_host:?}"
        );
        if working_set == 0 {
            own = high;
            ensure!((1..OWN_MAX).contains(&own), "a guest that does nothing wants {own} MiB");
        }
        // All of it is written to once a second, and hardly anything else.
        let off = (dirty - working_set as f64).abs();
        ensure!(
            off <= DIRTY_TOLERANCE_MIB + DIRTY_TOLERANCE * working_set as f64,
            "{working_set} MiB, {dirty} written to"
        );
        let truth = (own + working_set) as f64;
        for wanted in [low, high] {
            ensure!((wanted as f64 - truth).abs() <= TOLERANCE * truth, "{truth} MiB are wanted, {wanted} estimated");
        }
        ensure!(
            (of_host.low_bytes..=of_host.high_bytes).contains(&(truth as u64 * MIB)),
            "{truth} MiB and {of_host:?}"
        );
        ensure!(window.reclaim.is_some(), "time in reclaim is not told: {window:?}");
    }
    Ok(())
}

/// Memory that the guest writes to, as an operator asks for it, before the last seconds of a step.
fn dirty_mib_per_s(stack: &Stack, guest: &Guest, end: SystemTime) -> Result<f64> {
    thread::sleep(end.duration_since(SystemTime::now()).unwrap_or_default().saturating_sub(LAST + DIRTY_TIME));
    let host = &stack.lab.hosts()[0];
    let mut bytes = 0.0;
    for _ in 0..DIRTY_RUNS {
        let mut agent = host.command(bin_dir().join("gnomon-agent"));
        agent.args(["dirty-rate", guest.name(), "--json", "--config"]).arg(host.dir().join("agent.toml"));
        let told = agent.output().context("starting gnomon-agent")?;
        ensure!(told.status.success(), "dirty-rate: {}", String::from_utf8_lossy(&told.stderr));
        let told: Value = serde_json::from_slice(&told.stdout)?;
        bytes += told["dirty_bytes_per_s"].as_f64().context("no rate")?;
    }
    Ok(bytes / f64::from(DIRTY_RUNS) / MIB as f64)
}

/// The median of what the VM wants in the last seconds before `end`, by its upper end.
fn last_demand(stack: &Stack, guest: &Guest, end: SystemTime) -> Result<MemoryDemand> {
    let mut seen = Vec::new();
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        if left > LAST {
            thread::sleep(left - LAST);
            continue;
        }
        seen.extend(window(stack, guest)?.demand);
        thread::sleep(Duration::from_millis(500));
    }
    if seen.is_empty() {
        bail!("{} was not seen in the last {LAST:?} before {end:?}", guest.name());
    }
    seen.sort_by_key(|demand| demand.high_bytes);
    Ok(seen[seen.len() / 2])
}

fn window(stack: &Stack, guest: &Guest) -> Result<MemoryWindow> {
    let view: Value = stack.api().get(&format!("/api/v1/vms/{}", guest.name()))?;
    Ok(serde_json::from_value(view["memory"].clone())?)
}
