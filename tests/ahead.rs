//! A production VM and its shadow, from its start to its end: the brain has it made, paces it, moves it and takes it away, on real hosts.

#[path = "ahead/fills.rs"]
mod fills;
#[path = "ahead/walk.rs"]
mod walk;

use std::fs::{self, File};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gnomon_agent::pacer::PacerLink;
use gnomon_common::wire::{Load, Profile, ProfileStep};
use gnomon_core::policy::ShadowPolicy;
use gnomon_e2e::{reconfigure, redefine, run, skipped, wait_for};
use serde_json::{Value, json};
use xtask::lab::{Guest, GuestOptions, Lab, Options};
use xtask::stack::{AgentSettings, BrainSettings, Mode, Stack, demo_policy};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// What the production wants all the time, in cores, and what of it its shadow has.
const WANTS: f64 = 0.5;
const SHARE: f64 = 0.1;

/// A shadow paces so long after its production was started.
const PACES_WITHIN: Duration = Duration::from_secs(60);

fn settings() -> BrainSettings {
    let mut policy = demo_policy();
    // No size is changed, no VM is moved but by hand: this is about shadows.
    policy.cpu.floor_cores = 1.0;
    policy.shadow = ShadowPolicy {
        mode: Mode::Auto,
        every_vm: true,
        cpu_share: SHARE,
        lead_ms: 4_000,
        pace_ms: 4_000,
        boot_timeout_ms: 120_000,
        cool_down_ms: 20_000,
        fidelity: 0.25,
        ..ShadowPolicy::default()
    };
    BrainSettings { policy, heartbeat_ms: 500 }
}

/// A guest on the first of three hosts, all of which take shadows and VMs, and when it was started.
fn scene(name: &str, settings: BrainSettings) -> Result<(Stack, Guest, Instant)> {
    let lab = Lab::up(Options::new(name, HOSTS.len()))?;
    let here = lab.hosts()[0].clone();
    let guest = lab.define(&here, &GuestOptions::new("g1", format!("constant:{WANTS}").parse()?))?;
    // A pacer starts where there is a port for it: in a shadow.
    redefine(&guest, |xml| Ok(xml.replace("gnomon.load=", "gnomon.pacer gnomon.load=")))?;
    let stack = staff(lab, &guest, settings, 1.0)?;
    let begun = Instant::now();
    stack.lab.boot(std::slice::from_ref(&guest))?;
    Ok((stack, guest, begun))
}

/// A brain, and an agent on each host that takes shadows of the guest. The hosts are said to have so many cores.
fn staff(lab: Lab, guest: &Guest, settings: BrainSettings, capacity_cores: f64) -> Result<Stack> {
    let definition = guest.host().virsh(["dumpxml", "g1"])?;
    let mut images = vec![lab.dir().to_string_lossy().into_owned()];
    for tag in ["kernel", "initrd"] {
        let file = definition.split(&format!("<{tag}>")).nth(1).and_then(|rest| rest.split('<').next());
        images.push(file.and_then(|file| file.rsplit_once('/')).with_context(|| format!("no <{tag}>"))?.0.to_owned());
    }
    let hosts = lab.hosts().to_vec();
    let mut stack = Stack::start(lab, settings, &AgentSettings::default())?;
    for host in &hosts {
        stack.stop_agent(host.name())?;
        let directory = shadows_of(&stack, host.name())?;
        let sections = format!(
            "[migration]\nenabled = true\nuri = \"{}\"\n[shadow]\nshadows_max = 2\ndirectory = \"{directory}\"\nimage_paths = {images:?}\n",
            host.migration_uri()
        );
        let changes = [
            ("[guard]\n", "[guard]\nmemory_host_reserve_bytes = 67108864\n"),
            ("[host]\n", &*format!("[host]\ncapacity_cores = {capacity_cores:?}\n")),
        ];
        reconfigure(&stack, host.name(), &changes, &sections)?;
        fs::create_dir_all(&directory)?;
        stack.start_agent(host.name())?;
    }
    Ok(stack)
}

/// Where a host's shadows have their files.
fn shadows_of(stack: &Stack, host: &str) -> Result<String> {
    Ok(stack.lab.host(host)?.dir().join("shadows").to_string_lossy().into_owned())
}

/// The shadow of the guest, as the brain tells.
fn shadow(stack: &Stack) -> Result<Value> {
    stack.api().get("/api/v1/vms/g1/shadow")
}

/// The hosts on which libvirt has a shadow, running or not, or files of one are.
fn traces(stack: &Stack) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    for name in HOSTS {
        let domains = stack.lab.host(name)?.virsh(["list", "--all", "--name"])?;
        let files = fs::read_dir(shadows_of(stack, name)?)?.count();
        let is_there = domains.lines().any(|line| line.trim() == "g1.shadow");
        ensure!(is_there == (files > 0), "{name} has {files} folders and these domains: {domains}");
        if is_there {
            found.push(name);
        }
    }
    Ok(found)
}

/// What the brain says of it all, for errors.
fn told(stack: &Stack) -> String {
    let get = |path: &str| stack.api().get(path).map_or_else(|error| format!("{error:#}"), |it| it.to_string());
    let [shadows, vms, audit] = ["/api/v1/shadows", "/api/v1/vms", "/api/v1/audit?limit=60"].map(get);
    format!("shadows: {shadows}\nVMs: {vms}\naudit: {audit}")
}

/// Waits until the shadow paces and its pacer tells; returns it.
fn paces(stack: &Stack, patience: Duration) -> Result<Value> {
    let is_told = |stack: &Stack| shadow(stack).is_ok_and(|it| it["state"] == "pacing" && it["pacer"].is_object());
    wait_for("a shadow that paces", patience, || Ok(is_told(stack))).with_context(|| told(stack))?;
    shadow(stack)
}

/// Waits until the pacer has made this much CPU of its production's demand.
fn makes(stack: &Stack, cores: f64) -> Result<f64> {
    let made = |stack: &Stack| Ok::<_, anyhow::Error>(shadow(stack)?["pacer"]["made"]["cpu_cores"].as_f64());
    // Its word is a mean over ten seconds. What it costs by itself counts too, which an emulated CPU makes dear.
    let tolerance = if cores == 0.0 { 0.02 } else { cores * 0.1 };
    let is_near = |made: Option<f64>| made.is_some_and(|made| (made - cores).abs() <= tolerance);
    wait_for("the pacer to follow", Duration::from_secs(60), || Ok(is_near(made(stack)?)))
        .with_context(|| format!("wanted {cores}: {:?}", shadow(stack).ok()))?;
    made(stack)?.context("the pacer tells nothing")
}

/// What the production of the second test is made to want by a pacer of its own.
const LOAD: Load = Load {
    cpu_cores: 0.4,
    memory_bytes: 40 << 20,
    disk_read_bytes_per_s: 0,
    disk_write_bytes_per_s: 1 << 20,
    network_bytes_per_s: 1 << 19,
};
/// What of its memory, disk and network traffic the shadow replays.
const REPLAYED: f64 = 0.25;

/// A guest with a disk that is a layer on an image, a network interface, and a pacer that makes it want [`LOAD`] for as long as the link is turned.
fn loaded(name: &str) -> Result<(Stack, PacerLink)> {
    let lab = Lab::up(Options::new(name, 2))?;
    let here = lab.hosts()[0].clone();
    run(&here, "ip", &["link", "add", "net0", "type", "bridge", "forward_delay", "0"])?;
    run(&here, "ip", &["link", "set", "net0", "up"])?;
    let mut options = GuestOptions::new("g1", "constant:0".parse()?);
    (options.pacer, options.bridge) = (true, Some("net0".to_owned()));
    let guest = lab.define(&here, &options)?;
    let (base, own) = (lab.dir().join("base.raw"), lab.dir().join("own.qcow2"));
    File::create(&base)?.set_len((64 << 20) + 4096)?;
    let (base, own) = (base.to_string_lossy().into_owned(), own.to_string_lossy().into_owned());
    run(&here, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &own])?;
    redefine(&guest, |xml| {
        let (before, rest) = xml.split_once("type='raw' cache='none'").context("no scratch disk")?;
        let (_, after) = rest.split_once("file='").and_then(|(_, rest)| rest.split_once('\'')).context("no file")?;
        Ok(format!("{before}type='qcow2' cache='none'/><source file='{own}'{after}"))
    })?;
    lab.boot(std::slice::from_ref(&guest))?;
    let mut settings = settings();
    let shadow = &mut settings.policy.shadow;
    (shadow.memory_share, shadow.disk_share, shadow.network_share) = (REPLAYED, REPLAYED, REPLAYED);
    // This machine's kernel may have no queue disciplines to limit it with.
    shadow.network_bytes_per_s_max = 0;
    let stack = staff(lab, &guest, settings, 1.0)?;
    Ok((stack, PacerLink::new(&guest.pacer_socket())))
}

/// What a shadow is told to do of one KPI and what it does, by its pacer.
fn told_and_made(stack: &Stack, kpi: &str) -> Result<(f64, f64)> {
    let view = shadow(stack)?;
    let number = |load: &Value| load[kpi].as_f64().unwrap_or(0.0);
    Ok((number(&view["ordered"]), number(&view["pacer"]["made"])))
}

/// Waits until the shadow does of one KPI what it is told, which is this share of what the production wants; 0 is nothing.
fn follows(stack: &Stack, kpi: &str, expected: f64) -> Result<()> {
    let is_near = |value: f64, target: f64, tolerance: f64| (value - target).abs() <= tolerance * target;
    wait_for(kpi, Duration::from_secs(90), || {
        let (told, made) = told_and_made(stack, kpi)?;
        Ok(is_near(told, expected, 0.25) && is_near(made, told, 0.1))
    })
    .with_context(|| format!("{kpi}, expected {expected}: {:?}", shadow(stack).ok()))?;
    let (told, made) = told_and_made(stack, kpi)?;
    println!("{kpi}: {made:.0} made of {told:.0}, the production's share is {expected:.0}");
    Ok(())
}

/// Tries a size, and waits for what comes out.
fn tries(stack: &Stack, cpu_cores: f64) -> Result<Value> {
    let body = json!({ "cpu_cores": cpu_cores, "ahead_ms": 10_000 });
    let path = "/api/v1/vms/g1/shadow/trial";
    wait_for("a forecast to try", Duration::from_secs(180), || {
        Ok(stack.api().post(&format!("{path}?dry_run=true"), &body).is_ok())
    })
    .with_context(|| told(stack))?;
    stack.api().post(path, &body)?;
    let trial = || Ok::<_, anyhow::Error>(shadow(stack)?["trial"].clone());
    wait_for("a verdict", Duration::from_secs(120), || Ok(!trial()?["verdict"].is_null()))?;
    println!("{cpu_cores} cores: {}", trial()?);
    trial()
}

#[test]
fn a_shadow_replays_what_its_fidelity_says_and_tries_sizes() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (stack, mut link) = loaded("replay")?;
    let (stop, stopped) = mpsc::channel::<()>();
    let driver = thread::spawn(move || -> Result<()> {
        let steps = vec![ProfileStep { after_ms: 0, load: LOAD, network_burst: 1.0 }];
        let profile = Profile { valid_ms: 1_200_000, steps };
        let mut is_paced = false;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            link.turn(Instant::now())?;
            if !is_paced && link.latest(Instant::now()).is_some() {
                link.pace(&profile, Instant::now())?;
                is_paced = true;
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    });
    let result = replayed(&stack);
    drop(stop);
    let driven = driver.join().map_err(|_| anyhow!("the production's pacer panicked"))?;
    result.and(driven.context("the production's pacer"))
}

fn replayed(stack: &Stack) -> Result<()> {
    let kpis = ["memory_bytes", "disk_write_bytes_per_s", "network_bytes_per_s"];
    paces(stack, Duration::from_secs(90))?;
    wait_for("the production to want its load", Duration::from_secs(60), || {
        let view = stack.api().get("/api/v1/vms/g1")?;
        let [demand, written] = [&view["memory"]["demand"]["low_bytes"], &view["disk"]["write"]["bytes_per_s"]["mean"]];
        Ok(demand.as_f64().is_some_and(|it| it > 64e6) && written.as_f64().is_some_and(|it| it > 8e5))
    })
    .with_context(|| format!("{:?}", stack.api().get("/api/v1/vms/g1")))?;
    let demand = stack.api().get("/api/v1/vms/g1")?["memory"]["demand"]["low_bytes"].as_f64().context("no demand")?;
    let wants = [demand, LOAD.disk_write_bytes_per_s as f64, LOAD.network_bytes_per_s as f64];
    for (fidelity, replays) in [(0.0, [0.0, 0.0, 0.0]), (0.5, [1.0, 0.0, 0.0]), (1.0, [1.0, 1.0, 1.0])] {
        println!("fidelity {fidelity}");
        stack.api().put("/api/v1/vms/g1/shadow", &json!({ "fidelity": fidelity }))?;
        for ((kpi, wants), replays) in kpis.into_iter().zip(wants).zip(replays) {
            follows(stack, kpi, wants * REPLAYED * replays)?;
        }
    }
    stack.api().put("/api/v1/vms/g1/shadow", &json!({ "fidelity": 0.25 }))?;
    for (cores, holds) in [(1.5, true), (0.2, false)] {
        let trial = tries(stack, cores)?;
        ensure!(trial["verdict"]["holds"] == json!(holds), "{cores} cores: {trial}");
    }
    Ok(())
}

#[test]
fn a_shadow_lives_ahead_of_its_production_from_its_start_to_its_end() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut stack, guest, begun) = scene("ahead", settings())?;
    let view = paces(&stack, Duration::from_secs(90))?;
    let took = begun.elapsed();
    println!("its shadow paces {:.1} s after its production was started", took.as_secs_f64());
    ensure!(took <= PACES_WITHIN, "its shadow paces {took:.1?} after its production was started");
    let id = view["id"].as_str().context("no id")?.to_owned();
    let first = view["host"].as_str().context("no host")?.to_owned();
    ensure!(first != "h1" && traces(&stack)? == [first.as_str()], "{view}");

    // As large as it should be, by libvirt's word.
    let definition = stack.lab.host(&first)?.virsh(["dumpxml", "g1.shadow"])?;
    for text in
        [format!("<uuid>{id}</uuid>"), guest.uuid().to_string(), "<global_quota>10000</global_quota>".to_owned()]
    {
        ensure!(definition.contains(&text), "{text} is missing: {definition}");
    }
    ensure!(!definition.contains(&format!("<uuid>{}</uuid>", guest.uuid())), "it has its production's identity");

    // A tenth of what the production wants, then nothing, then a tenth again.
    for (fidelity, cores) in [(json!(0.25), WANTS * SHARE), (json!(0.0), 0.0), (json!(null), WANTS * SHARE)] {
        stack.api().put("/api/v1/vms/g1/shadow", &json!({ "fidelity": fidelity }))?;
        println!("fidelity {fidelity}: {:.4} cores made of {cores}", makes(&stack, cores)?);
    }
    let waits = stack.api().get(&format!("/api/v1/hosts/{first}"))?["contention"].clone();
    println!("VMs wait on {first}: {waits}");
    ensure!(waits["witness"] == "shadow", "the only VM there tells of its host: {waits}");

    // The brain dies, then the agent that has the shadow: nothing becomes of that.
    stack.kill_brain()?;
    stack.start_brain()?;
    stack.kill_agent(&first)?;
    stack.start_agent(&first)?;
    let view = paces(&stack, Duration::from_secs(60))?;
    ensure!(view["id"] == json!(id) && view["host"] == json!(first) && traces(&stack)? == [first.as_str()], "{view}");

    wait_for("all agents to be back and to have told", Duration::from_secs(60), || {
        let hosts = stack.api().get("/api/v1/hosts")?;
        let hosts = hosts.as_array().context("no list of hosts")?;
        Ok(hosts.iter().all(|host| host["connected"] == true && host["outlook"].is_object()))
    })?;

    // Production comes to where its shadow is: the shadow goes elsewhere, and keeps its identity.
    stack.api().post("/api/v1/vms/g1/migrate", &json!({ "to": first }))?;
    wait_for("the production to be there", Duration::from_secs(60), || {
        Ok(stack.api().get("/api/v1/vms/g1")?["host"] == json!(first))
    })?;
    wait_for("the shadow to leave", Duration::from_secs(30), || Ok(shadow(&stack)?["host"] != json!(first)))?;
    let view = paces(&stack, Duration::from_secs(90))?;
    let second = view["host"].as_str().context("no host")?.to_owned();
    ensure!(second != first && view["id"] == json!(id) && traces(&stack)? == [second.as_str()], "{view}");

    // With its production's life its own is over: nothing is left of it.
    stack.lab.host(&first)?.virsh(["destroy", "g1"])?;
    let is_gone = |stack: &Stack| Ok(stack.api().get("/api/v1/shadows")? == json!([]) && traces(stack)?.is_empty());
    wait_for("the shadow to be retired", Duration::from_secs(120), || is_gone(&stack)).with_context(|| told(&stack))?;
    let audit = stack.api().get("/api/v1/audit?limit=1000")?.to_string();
    for words in [
        "its production is to have a shadow",
        "its production is on its way to the same host",
        "its production is gone",
    ] {
        ensure!(audit.contains(words), "{words:?} is not in the audit log");
    }
    Ok(())
}
