//! The brain moves guests between real hosts: before a surge that it foresees, and off a host that is to be emptied.

#[path = "moves/stays.rs"]
mod stays;

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use gnomon_common::time::Timestamp;
use gnomon_core::Policy;
use gnomon_e2e::ticks::{TICKS_GAP_MAX, Ticks, lived_once};
use gnomon_e2e::{let_migrate, now_ms, reconfigure, redefine, skipped, stolen_cpu, wait_for};
use serde_json::{Value, json};
use xtask::lab::{Guest, GuestOptions, Lab, Options};
use xtask::stack::{AgentSettings, BrainSettings, Mode, Stack, demo_policy};

/// What each host is said to have for its guests. Nothing holds them to it.
const HOST_CORES: f64 = 1.0;

const PERIOD_S: f64 = 45.0;
const PEAK: f64 = 0.6;

/// Two days that surge together: more than one host has, and too much for half of it.
const DAY: &str = "periodic:period_s=45,phase_s=20,base=0.1,peak=0.6,width_s=15,shoulder_s=3";

/// A guest wants hardly more than this outside its surges.
const CALM: f64 = 0.2;

const MIB: f64 = 1048576.0;

/// So slow a link that there is time to do something meanwhile: a guest has tens of megabytes to send.
const SLOW_BYTES_PER_S: u64 = 6 << 20;

/// So many MiB one guest writes to each second, for so many seconds of its life: faster than a slow link carries.
const WRITES_MIB: u64 = 48;
const WRITES_S: u64 = 50;

/// Changes nothing about the guests.
fn as_they_are(_: &[Guest]) -> Result<()> {
    Ok(())
}

/// Guests on the first of two hosts that are alike and whose agents migrate, booted after a change.
fn scene(
    name: &str,
    guests: &[(&str, &str)],
    change: impl FnOnce(&[Guest]) -> Result<()>,
    settings: BrainSettings,
) -> Result<(Stack, Vec<Guest>)> {
    let alike = format!("capacity_cores = {HOST_CORES:?}\n");
    scene_on([&alike, &alike], name, guests, change, settings)
}

/// The same on hosts of which their agents are told this each.
fn scene_on(
    told: [&str; 2],
    name: &str,
    guests: &[(&str, &str)],
    change: impl FnOnce(&[Guest]) -> Result<()>,
    settings: BrainSettings,
) -> Result<(Stack, Vec<Guest>)> {
    let lab = Lab::up(Options::new(name, 2))?;
    let hosts = lab.hosts().to_vec();
    let guests =
        guests.iter().map(|(name, schedule)| lab.define(&hosts[0], &GuestOptions::new(name, schedule.parse()?)));
    let guests = guests.collect::<Result<Vec<_>>>()?;
    change(&guests)?;
    lab.boot(&guests)?;
    let mut stack = Stack::start(lab, settings, &AgentSettings::default())?;
    for (host, told) in hosts.iter().zip(told) {
        stack.stop_agent(host.name())?;
        let_migrate(&stack, host)?;
        reconfigure(&stack, host.name(), &[("[host]\n", &format!("[host]\n{told}"))], "")?;
        stack.start_agent(host.name())?;
    }
    Ok((stack, guests))
}

/// No VM's size is changed: this is about moves.
fn policy() -> Policy {
    let mut policy = demo_policy();
    policy.cpu.floor_cores = 1.0;
    policy
}

/// The commands to migrate, oldest first.
fn migrations(stack: &Stack) -> Result<Vec<Value>> {
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    let commands = commands.as_array().context("no list of commands")?;
    Ok(commands.iter().rev().filter(|record| !record["command"]["action"]["migrate"].is_null()).cloned().collect())
}

/// What was measured of each VM's memory before any of them was chosen: how fast it is written to, in bytes per second.
fn dirty_rates(stack: &Stack) -> Result<Vec<(Value, u64)>> {
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    let commands = commands.as_array().context("no list of commands")?;
    let rate = |record: &Value| record["outcome"]["result"]["dirty_rate"]["bytes_per_s"].as_u64();
    Ok(commands.iter().filter_map(|record| Some((record["command"]["vm"].clone(), rate(record)?))).collect())
}

/// When it was first asked how fast a guest writes to its memory, in milliseconds since the epoch.
fn asked_ms(stack: &Stack) -> Result<u64> {
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    let commands = commands.as_array().context("no list of commands")?;
    let asked = commands.iter().filter(|record| !record["command"]["action"]["dirty_rate"].is_null());
    let asked = asked.map(issued_ms).collect::<Result<Vec<_>>>()?;
    asked.into_iter().min().context("it was never asked")
}

/// Whether a command's VM was moved by it, as far as is known.
fn is_moved(record: &Value) -> bool {
    !record["outcome"]["result"]["moved"].is_null()
}

/// When a command was issued, in milliseconds since the epoch.
fn issued_ms(record: &Value) -> Result<u64> {
    Ok(serde_json::from_value::<Timestamp>(record["issued"].clone())?.unix_ms())
}

/// The hosts on which libvirt runs a guest.
fn runs_on(stack: &Stack, guest: &Guest) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for host in stack.lab.hosts() {
        let running = host.virsh(["list", "--name", "--state-running"])?;
        if running.lines().any(|line| line.trim() == guest.name()) {
            found.push(host.name().to_owned());
        }
    }
    Ok(found)
}

/// Where the brain says that a VM is.
fn told_on(stack: &Stack, guest: &Guest) -> Result<String> {
    let view = stack.api().get(&format!("/api/v1/vms/{}", guest.name()))?;
    Ok(view["host"].as_str().context("it is on no host")?.to_owned())
}

#[test]
fn a_guest_leaves_before_the_surge_that_its_host_has_no_room_for() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut policy = policy();
    policy.migrate.mode = Mode::Observe;
    policy.migrate.lead_ms = 18_000;
    policy.migrate.rounds = 2;
    let settings = BrainSettings { policy, heartbeat_ms: 500 };
    let (mut stack, guests) = scene("foresee", &[("g1", DAY), ("g2", DAY)], as_they_are, settings)?;
    let truths = guests.iter().map(|guest| stack.lab.truth(guest.name())).collect::<Result<Vec<_>>>()?;
    let level_at = |time: SystemTime| truths.iter().map(|truth| truth.level_at(time)).fold(0.0, f64::max);
    wait_for("the brain to hear of both guests", Duration::from_secs(60), || {
        Ok(guests.iter().all(|guest| told_on(&stack, guest).is_ok()))
    })?;
    // Days pass in which nothing is moved and the brain learns them…
    wait_for("the season of both guests", Duration::from_secs(330), || {
        let seasons = guests.iter().map(|guest| stack.api().get(&format!("/api/v1/vms/{}", guest.name())));
        let seasons = seasons.collect::<Result<Vec<_>>>()?;
        Ok(seasons.iter().all(|view| !view["season_ms"].is_null()))
    })?;
    // …until it sees a surge that is still some seconds away.
    wait_for("the brain to foresee a surge", Duration::from_secs(150), || {
        let at = |seconds: f64| level_at(SystemTime::now() - Duration::from_secs(4) + Duration::from_secs_f64(seconds));
        let comes = [at(0.0), at(4.0), at(12.0)].into_iter().all(|level| level < CALM) && at(20.0) > CALM;
        let outlook = &stack.api().get("/api/v1/hosts/h1")?["outlook"];
        Ok(comes && outlook["demand_cores"].as_f64() > outlook["room_cores"].as_f64())
    })?;
    ensure!(migrations(&stack)?.is_empty(), "it moves although it only may observe");
    // The next surge is to be more than 20 s away, so that nothing of this one is left in what is seen.
    wait_for("the hours after a surge", Duration::from_secs(60), || {
        let before = SystemTime::now() - Duration::from_secs(4);
        Ok((0..=26).all(|second| level_at(before + Duration::from_secs(second)) < CALM))
    })?;
    let watched = guests.iter().map(Ticks::start).collect::<Vec<_>>();
    let (watched_since, stolen_before) = (Instant::now(), stolen_cpu()?);
    stack.change_policy(|policy| policy.migrate.mode = Mode::Auto)?;

    wait_for("a move", Duration::from_secs_f64(PERIOD_S), || Ok(migrations(&stack)?.iter().any(is_moved)))
        .with_context(|| format!("{:?}\n{:?}", stack.api().get("/api/v1/hosts"), migrations(&stack)))?;
    let done = SystemTime::now();
    let record = migrations(&stack)?.remove(0);
    let (reason, moved) = (record["command"]["reason"].to_string(), record["outcome"]["result"]["moved"].clone());
    let issued = UNIX_EPOCH + Duration::from_millis(issued_ms(&record)?);
    println!("{reason}\n{moved}");
    let surge = (0..600).map(|tenth| done + Duration::from_millis(100 * tenth)).find(|time| level_at(*time) > CALM);
    let surge = surge.context("no surge follows")?;
    let asked = UNIX_EPOCH + Duration::from_millis(asked_ms(&stack)?);
    println!(
        "asked how fast they write {:.1} s, decided {:.1} s and done {:.1} s before the surge",
        surge.duration_since(asked)?.as_secs_f64(),
        surge.duration_since(issued)?.as_secs_f64(),
        surge.duration_since(done)?.as_secs_f64()
    );
    ensure!(level_at(issued) < CALM && level_at(done) < CALM, "it came with the surge, not before it");
    ensure!(reason.contains("will want"), "{reason}");

    // Through the surge: both are served, each by its own host.
    let end = surge + Duration::from_secs(16);
    thread::sleep(end.duration_since(SystemTime::now())?);
    let stolen = (stolen_cpu()? - stolen_before).as_secs_f64() / watched_since.elapsed().as_secs_f64();
    let homes = guests.iter().map(|guest| runs_on(&stack, guest)).collect::<Result<Vec<_>>>()?;
    ensure!(homes.iter().all(|homes| homes.len() == 1) && homes[0] != homes[1], "they run on {homes:?}");
    for (guest, home) in guests.iter().zip(&homes) {
        ensure!(told_on(&stack, guest)? == home[0], "the brain says {}", told_on(&stack, guest)?);
    }
    for ((guest, ticks), truth) in guests.iter().zip(watched).zip(&truths) {
        let gap = ticks.longest_gap()?;
        lived_once(guest)?;
        let plateau = surge.duration_since(truth.started_at)?.as_secs_f64() + 4.0;
        let reports = guest.reports()?;
        let busy: Vec<f64> = reports
            .iter()
            .filter(|report| (plateau..plateau + 7.0).contains(&report.t_s))
            .map(|report| report.busy)
            .collect();
        let served = busy.iter().sum::<f64>() / busy.len().max(1) as f64;
        println!(
            "{}: {gap}; {served:.3} of {PEAK} cores served in the surge, {stolen:.3} stolen from the machine",
            guest.name()
        );
        ensure!(gap.is_within(TICKS_GAP_MAX), "{}: {gap}", guest.name());
        ensure!(served >= 0.9 * PEAK - stolen, "{} was served {served:.3} of {PEAK} cores in the surge", guest.name());
    }
    ensure!(migrations(&stack)?.len() == 1, "one move was enough: {:?}", migrations(&stack)?);
    Ok(())
}

#[test]
fn an_operator_gives_a_move_up_and_the_guest_stays() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut policy = policy();
    policy.migrate.bandwidth_bytes_per_s = Some(SLOW_BYTES_PER_S);
    let (stack, guests) =
        scene("giveup", &[("g1", "constant:0.02")], as_they_are, BrainSettings { policy, heartbeat_ms: 500 })?;
    // Both hosts have told, and the guest has calmed down after its boot.
    wait_for("a move to be possible", Duration::from_secs(60), || {
        Ok(stack.api().post("/api/v1/vms/g1/migrate?dry_run=true", &json!({ "to": "h2" })).is_ok())
    })?;
    let idle = stack.api().delete("/api/v1/vms/g1/migrate");
    ensure!(idle.is_err_and(|error| error.to_string().contains("no move of this VM")), "there is none to give up");
    stack.api().post("/api/v1/vms/g1/migrate", &json!({ "to": "h2" }))?;
    wait_for("the move to be under way", Duration::from_secs(30), || {
        Ok(!stack.api().get("/api/v1/vms/g1")?["migration"].is_null())
    })?;
    let answer = stack.api().delete("/api/v1/vms/g1/migrate")?;
    wait_for("the move to end", Duration::from_secs(30), || {
        Ok(migrations(&stack)?.iter().all(|record| !record["outcome"].is_null()))
    })?;
    let record = migrations(&stack)?.remove(0);
    println!("{answer}\n{}", record["outcome"]["result"]);
    ensure!(answer["migration"] == record["command"]["id"], "{answer}");
    ensure!(record["outcome"]["result"]["not_moved"]["whereabouts"] == "here", "{}", record["outcome"]);
    ensure!(runs_on(&stack, &guests[0])? == ["h1"] && told_on(&stack, &guests[0])? == "h1");
    lived_once(&guests[0])
}

#[test]
fn a_host_is_emptied_through_a_pause_and_the_deaths_of_the_brain_and_of_both_agents() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut policy = policy();
    policy.migrate.mode = Mode::Auto;
    policy.migrate.bandwidth_bytes_per_s = Some(SLOW_BYTES_PER_S);
    let settings = BrainSettings { policy, heartbeat_ms: 500 };
    let one_writes = |guests: &[Guest]| {
        let word = format!("gnomon.memory={WRITES_S}@{WRITES_MIB},3600@0 gnomon.load=");
        redefine(&guests[0], |xml| Ok(xml.replace("gnomon.load=", &word)))
    };
    let day = "constant:0.02";
    let (mut stack, guests) = scene("empty", &[("g1", day), ("g2", day)], one_writes, settings)?;
    let writes_until = stack.lab.truth("g1")?.started_at + Duration::from_secs(WRITES_S);
    wait_for("the brain to hear of both guests", Duration::from_secs(20), || {
        Ok(guests.iter().all(|guest| told_on(&stack, guest).is_ok()))
    })?;
    let nothing = json!({});
    let left = writes_until.duration_since(SystemTime::now()).unwrap_or_default();
    ensure!(left > Duration::from_secs(5), "{left:?} are left in which it writes");
    stack.api().post("/api/v1/hosts/h1/drain", &nothing)?;
    wait_for("the first to be on its way", Duration::from_secs(30), || {
        let views = guests.iter().map(|guest| stack.api().get(&format!("/api/v1/vms/{}", guest.name())));
        Ok(views.collect::<Result<Vec<_>>>()?.iter().any(|view| !view["migration"].is_null()))
    })?;
    let first = migrations(&stack)?;
    ensure!(first.len() == 1, "one at a time: {first:?}");
    // How fast both write to their memory was measured for that: the calm one goes first, and the reason says why.
    let rates = dirty_rates(&stack)?;
    let reason = first[0]["command"]["reason"].as_str().unwrap_or_default().to_owned();
    println!("{rates:?}: {reason}");
    let rate_of = |guest: &Guest| -> Result<u64> {
        let view = stack.api().get(&format!("/api/v1/vms/{}", guest.name()))?;
        let rate = rates.iter().find(|(vm, _)| *vm == view["vm"]).map(|(_, rate)| *rate);
        ensure!(rate.is_some() && view["dirty_bytes_per_s"].as_u64() == rate, "{rate:?} was measured: {view}");
        rate.context("not measured")
    };
    let [busy, calm] = [rate_of(&guests[0])?, rate_of(&guests[1])?].map(|bytes| bytes as f64 / MIB);
    ensure!((0.5..1.5).contains(&(busy / WRITES_MIB as f64)) && calm < busy / 4.0, "{busy} and {calm} MiB a second");
    ensure!(first[0]["command"]["vm"] == guests[1].uuid().to_string(), "the one that writes goes first");
    ensure!(reason.contains(&format!("its guest writes to {calm:.1} MiB of its memory a second")), "{reason}");

    // A pause holds within a second, and through the death of the brain; what is on its way arrives.
    stack.api().post("/api/v1/pause", &json!({ "scope": "fleet" }))?;
    let paused_ms = now_ms();
    ensure!(!migrations(&stack)?.iter().any(is_moved), "it has arrived already: the link is too fast for this test");
    stack.kill_brain()?;
    thread::sleep(Duration::from_secs(2));
    let both = guests.iter().map(|guest| runs_on(&stack, guest)).collect::<Result<Vec<_>>>()?;
    ensure!(both.iter().all(|homes| homes.len() <= 1), "they run on {both:?}");
    stack.start_brain()?;
    wait_for("the brain to know that it has arrived", Duration::from_secs(90), || {
        Ok(migrations(&stack)?.iter().any(is_moved))
    })?;
    // Long enough for some reports: nothing else begins.
    thread::sleep(Duration::from_secs(6));
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    let issued = commands.as_array().context("no list")?.iter().map(issued_ms).collect::<Result<Vec<_>>>()?;
    let late: Vec<u64> = issued.into_iter().filter(|issued_ms| *issued_ms > paused_ms + 1000).collect();
    ensure!(late.is_empty(), "sent after the pause of {paused_ms}: {late:?}");
    ensure!(stack.api().get("/api/v1/hosts/h1")?["vms"] == 1, "{}", stack.api().get("/api/v1/hosts/h1")?);

    // Emptying goes on after it, once the other one is calm as well; while that is on its way, the agents of both its hosts are killed.
    thread::sleep(writes_until.duration_since(SystemTime::now()).unwrap_or_default());
    stack.api().post("/api/v1/resume", &json!({ "scope": "fleet" }))?;
    wait_for("the second to be on its way", Duration::from_secs(60), || {
        Ok(!stack.api().get("/api/v1/vms/g1")?["migration"].is_null())
    })?;
    for host in ["h1", "h2"] {
        stack.kill_agent(host)?;
    }
    let orphaned = migrations(&stack)?;
    ensure!(orphaned.len() == 2 && !is_moved(&orphaned[1]), "it was not on its way when they died: {orphaned:?}");
    thread::sleep(Duration::from_secs(2));
    ensure!(runs_on(&stack, &guests[0])?.len() <= 1, "it runs on {:?}", runs_on(&stack, &guests[0])?);
    for host in ["h1", "h2"] {
        stack.start_agent(host)?;
    }
    wait_for("the host to be empty", Duration::from_secs(120), || {
        Ok(stack.api().get("/api/v1/hosts/h1")?["vms"] == 0 && migrations(&stack)?.iter().all(is_moved))
    })
    .with_context(|| format!("{:?}\n{}", migrations(&stack), stack.brain_log().unwrap_or_default()))?;
    for guest in &guests {
        let homes = runs_on(&stack, guest)?;
        ensure!(homes == ["h2"], "{} runs on {homes:?}", guest.name());
        ensure!(told_on(&stack, guest)? == "h2");
        lived_once(guest)?;
    }
    let all = migrations(&stack)?;
    for record in &all {
        println!("{} {}", record["command"]["reason"], record["outcome"]["result"]);
    }
    ensure!(all.len() == 2 && all[0]["command"]["vm"] != all[1]["command"]["vm"], "no command twice: {all:?}");
    Ok(())
}
