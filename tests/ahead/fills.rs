//! Hosts that fill up while a shadow paces on them: it leaves before any VM does, and waits where no host has room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use gnomon_e2e::ticks::{TICKS_GAP_MAX, Ticks, lived_once};
use xtask::lab::Host;

use super::*;

/// So much of each host stays free: what is left of a machine's memory is little enough for a guest to fill it.
const RESERVE_SHARE: f64 = 0.9;
/// What the hosts are said to have, in cores: with the reserve one is left, for an emulated guest and a shadow.
const CORES: f64 = 10.0;

/// A guest that fills a host leaves so much, in MiB, and a shadow has 128.
const LEAVES_MIB: u64 = 96;

/// How often it is looked at which hosts have the shadow.
const INTERVAL: Duration = Duration::from_secs(1);

/// Watches on which hosts the shadow is.
struct Homes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<String>>>,
}

impl Homes {
    fn watch(stack: &Stack) -> Self {
        let (stop, hosts) = (Arc::new(AtomicBool::new(false)), stack.lab.hosts().to_vec());
        let asked = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut seen: Vec<String> = Vec::new();
            while !asked.load(Ordering::Relaxed) {
                let mut found = having(&hosts)?;
                if found.len() > 1 {
                    // It may have gone from the one to the other while they were looked at one by one.
                    found = having(&found)?;
                }
                let names: Vec<&str> = found.iter().map(Host::name).collect();
                ensure!(names.len() <= 1, "it is on {names:?} at once");
                if let Some(name) = names.first()
                    && seen.last().is_none_or(|last| last != name)
                {
                    seen.push((*name).to_owned());
                }
                thread::sleep(INTERVAL);
            }
            Ok(seen)
        });
        Self { stop, thread }
    }

    /// Where it was, one after the other; fails if it was on two hosts at once.
    fn in_order(self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watcher panicked"))?
    }
}

/// Those of some hosts whose libvirt has the shadow, running or not.
fn having(hosts: &[Host]) -> Result<Vec<Host>> {
    let mut found = Vec::new();
    for host in hosts {
        if host.virsh(["list", "--all", "--name"])?.lines().any(|line| line.trim() == "g1.shadow") {
            found.push(host.clone());
        }
    }
    Ok(found)
}

/// A production on the first of three hosts that are small. Only an operator's word makes a shadow.
fn small_hosts() -> Result<(Stack, Guest)> {
    let lab = Lab::up(Options::new("fills", HOSTS.len()))?;
    let here = lab.hosts()[0].clone();
    let guest = lab.define(&here, &GuestOptions::new("g1", format!("constant:{WANTS}").parse()?))?;
    redefine(&guest, |xml| Ok(xml.replace("gnomon.load=", "gnomon.pacer gnomon.load=")))?;
    lab.boot(std::slice::from_ref(&guest))?;
    let mut settings = settings();
    let policy = &mut settings.policy;
    (policy.shadow.every_vm, policy.shadow.cool_down_ms) = (false, 10_000);
    // Should the shadow not leave, a VM does soon after.
    policy.migrate.mode = Mode::Auto;
    (policy.migrate.reserve_share, policy.migrate.rounds) = (RESERVE_SHARE, 20);
    let stack = staff(lab, &guest, settings, CORES)?;
    Ok((stack, guest))
}

/// Starts a guest on a host that has room for it, and not for the shadow beside it.
fn fill(stack: &Stack, host: &str, name: &str) -> Result<Guest> {
    let outlook = stack.api().get(&format!("/api/v1/hosts/{host}"))?["outlook"].clone();
    let room_mib = outlook["room_bytes"].as_u64().context("nothing is known of its room")? >> 20;
    let memory_mib = u32::try_from(room_mib - LEAVES_MIB)?;
    let mut options = GuestOptions::new(name, "constant:0.02".parse()?);
    (options.memory_mib, options.memory_mib_max) = (memory_mib, memory_mib);
    let guest = stack.lab.define(&stack.lab.host(host)?.clone(), &options)?;
    stack.lab.boot(std::slice::from_ref(&guest))?;
    Ok(guest)
}

/// Has a shadow made, and waits until it does what it is told; returns its identity and its host.
fn made(stack: &Stack) -> Result<(String, &'static str)> {
    wait_for("all hosts to have told", Duration::from_secs(60), || {
        let hosts = stack.api().get("/api/v1/hosts")?;
        let hosts = hosts.as_array().context("no list of hosts")?;
        Ok(hosts.iter().all(|host| host["connected"] == true && host["outlook"].is_object()))
    })?;
    stack.api().post("/api/v1/vms/g1/shadow", &json!({}))?;
    let view = paces(stack, Duration::from_secs(90))?;
    let id = view["id"].as_str().context("no id")?.to_owned();
    Ok((id, home(&view)?))
}

/// On which host a shadow is, as the brain tells.
fn home(view: &Value) -> Result<&'static str> {
    HOSTS.into_iter().find(|name| view["host"] == json!(name)).with_context(|| format!("it is nowhere: {view}"))
}

/// Waits until the shadow paces on a host, under the same identity and with nothing left of it elsewhere.
fn paces_on(stack: &Stack, id: &str, host: &str) -> Result<()> {
    let is_there = || Ok(shadow(stack).is_ok_and(|it| it["host"] == json!(host) && it["state"] == "pacing"));
    wait_for(host, Duration::from_secs(90), is_there).with_context(|| told(stack))?;
    let view = paces(stack, Duration::from_secs(60))?;
    ensure!(view["id"] == json!(id) && view["host"] == json!(host) && traces(stack)? == [host], "{view}");
    Ok(())
}

/// Each command to a VM that is no shadow, but for questions: what a shadow is made from, and how fast its guest writes.
fn of_productions(stack: &Stack, id: &str) -> Result<Vec<Value>> {
    let commands = stack.api().get("/api/v1/commands?limit=1000")?;
    let commands = commands.as_array().context("no list of commands")?;
    let asks = |action: &Value| *action == "describe" || !action["dirty_rate"].is_null();
    let is_theirs = |record: &&Value| record["command"]["vm"] != json!(id) && !asks(&record["command"]["action"]);
    Ok(commands.iter().filter(is_theirs).cloned().collect())
}

/// Fails where one of these is not in the audit log.
fn audited(stack: &Stack, words: &[String]) -> Result<()> {
    let audit = stack.api().get("/api/v1/audit?limit=1000")?;
    for words in words {
        ensure!(audit.to_string().contains(words.as_str()), "{words:?} is not in the audit log: {audit}");
    }
    Ok(())
}

/// Fails if the production went anywhere, was stopped, or stood still.
fn untouched(stack: &Stack, guest: &Guest, ticks: Ticks) -> Result<()> {
    let gap = ticks.longest_gap()?;
    println!("the production: {gap}");
    ensure!(gap.is_within(TICKS_GAP_MAX), "the production stood still: {gap}");
    lived_once(guest)?;
    let running = guest.host().virsh(["list", "--name", "--state-running"])?;
    ensure!(running.lines().any(|line| line.trim() == guest.name()), "it runs no more: {running}");
    ensure!(stack.api().get("/api/v1/vms/g1")?["host"] == "h1");
    Ok(())
}

#[test]
fn a_shadow_leaves_a_host_that_fills_up_before_any_vm_does_and_waits_where_none_has_room() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (stack, guest) = small_hosts()?;
    let (id, first) = made(&stack)?;
    let second = if first == "h2" { "h3" } else { "h2" };
    ensure!(traces(&stack)? == [first]);
    let (homes, ticks) = (Homes::watch(&stack), Ticks::start(&guest));

    let begun = Instant::now();
    let filler = fill(&stack, first, "f1")?;
    println!("{} is up after {:.1} s", filler.name(), begun.elapsed().as_secs_f64());
    paces_on(&stack, &id, second)?;
    println!("it paces on {second} {:.1} s after {first} began to be filled", begun.elapsed().as_secs_f64());
    // Its going was enough: by then a VM would have had to go as well.
    thread::sleep(Duration::from_secs(25));
    ensure!(of_productions(&stack, &id)?.is_empty(), "{:?}", of_productions(&stack, &id)?);

    // The other one fills up as well: now no host has room.
    fill(&stack, second, "f2")?;
    let reason = "no host has room (h2: its VMs need it; h3: its VMs need it)";
    wait_for("it to be parked", Duration::from_secs(60), || {
        let view = shadow(&stack)?;
        Ok(view["state"] == "parked" && view["detail"] == reason && traces(&stack)?.is_empty())
    })
    .with_context(|| told(&stack))?;
    // It is tried again, and nothing is made of it while that is so.
    thread::sleep(Duration::from_secs(25));
    ensure!(traces(&stack)?.is_empty() && shadow(&stack)?["id"] == json!(id), "{}", told(&stack));

    // Room is back.
    let begun = Instant::now();
    filler.destroy()?;
    paces_on(&stack, &id, first)?;
    println!("it paces on {first} again {:.1} s after that had room", begun.elapsed().as_secs_f64());

    let seen = homes.in_order()?;
    ensure!(seen == [first, second, first], "it was on {seen:?}");
    untouched(&stack, &guest, ticks)?;
    ensure!(of_productions(&stack, &id)?.is_empty(), "{:?}", of_productions(&stack, &id)?);
    let leaves = |host: &str| {
        format!("shadow {id} on host {host}: pacing -> moving: its host fills up, and shadows leave first")
    };
    let parked = format!("shadow {id}: wanted -> parked: {reason}");
    audited(&stack, &[leaves(first), leaves(second), parked, "nothing is left of it".to_owned()])
}
