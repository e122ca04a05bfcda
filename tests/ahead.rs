//! A production VM and its shadow, from its start to its end: the brain has it made, paces it, moves it and takes it away, on real hosts.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gnomon_core::policy::ShadowPolicy;
use gnomon_e2e::{reconfigure, redefine, skipped, wait_for};
use serde_json::{Value, json};
use xtask::lab::{Guest, GuestOptions, Lab, Options};
use xtask::stack::{AgentSettings, BrainSettings, Mode, Stack, demo_policy};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// What the production wants all the time, in cores, and what of it its shadow has.
const WANTS: f64 = 0.5;
const SHARE: f64 = 0.1;

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

/// A guest on the first of three hosts, all of which take shadows and VMs.
fn scene(name: &str) -> Result<(Stack, Guest)> {
    let lab = Lab::up(Options::new(name, HOSTS.len()))?;
    let here = lab.hosts()[0].clone();
    let guest = lab.define(&here, &GuestOptions::new("g1", format!("constant:{WANTS}").parse()?))?;
    // A pacer starts where there is a port for it: in a shadow.
    redefine(&guest, |xml| Ok(xml.replace("gnomon.load=", "gnomon.pacer gnomon.load=")))?;
    lab.boot(std::slice::from_ref(&guest))?;
    let definition = here.virsh(["dumpxml", "g1"])?;
    let mut images = Vec::new();
    for tag in ["kernel", "initrd"] {
        let file = definition.split(&format!("<{tag}>")).nth(1).and_then(|rest| rest.split('<').next());
        images.push(file.and_then(|file| file.rsplit_once('/')).with_context(|| format!("no <{tag}>"))?.0.to_owned());
    }
    let hosts = lab.hosts().to_vec();
    let mut stack = Stack::start(lab, settings(), &AgentSettings::default())?;
    for host in &hosts {
        stack.stop_agent(host.name())?;
        let directory = shadows_of(&stack, host.name())?;
        let sections = format!(
            "[migration]\nenabled = true\nuri = \"{}\"\n[shadow]\nshadows_max = 2\ndirectory = \"{directory}\"\nimage_paths = {images:?}\n",
            host.migration_uri()
        );
        let changes = [
            ("[guard]\n", "[guard]\nmemory_host_reserve_bytes = 67108864\n"),
            ("[host]\n", "[host]\ncapacity_cores = 1.0\n"),
        ];
        reconfigure(&stack, host.name(), &changes, &sections)?;
        fs::create_dir_all(&directory)?;
        stack.start_agent(host.name())?;
    }
    Ok((stack, guest))
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

#[test]
fn a_shadow_lives_ahead_of_its_production_from_its_start_to_its_end() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let begun = Instant::now();
    let (mut stack, guest) = scene("ahead")?;
    let up = begun.elapsed();
    let view = paces(&stack, Duration::from_secs(90))?;
    println!("its shadow paces {:.1} s after the agents were up", (begun.elapsed() - up).as_secs_f64());
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
    for words in ["its production is to have a shadow", "its production is on the same host", "its production is gone"]
    {
        ensure!(audit.contains(words), "{words:?} is not in the audit log");
    }
    Ok(())
}
