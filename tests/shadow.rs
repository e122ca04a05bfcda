//! A shadow of a production VM on another host: it boots as ordered, reaches nothing, and leaves nothing, whatever becomes of the agent.

use std::fs;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gnomon_common::wire::{
    Action, Base, Blueprint, Boot, Command, CommandId, Fence, OutcomeResult, Profile, RefusedCommand, ShadowDone,
    ShadowOrder, ShadowSize, ShadowSpec, Unshadowable, VmId,
};
use gnomon_e2e::usurper::Usurper;
use gnomon_e2e::{agent_metrics, let_shadow, observing, redefine, run, skipped, wait_for};
use uuid::Uuid;
use xtask::lab::{Guest, GuestOptions, Host, Lab, Options};
use xtask::stack::{AgentSettings, Stack};

const TERM: u64 = 7;
const MIB: u64 = 1 << 20;
const DIRECTORY: &str = "/var/lib/gnomon/shadows";
/// The production itself, and an address that somebody gives to the bridge of shadows; both serve on that port.
const PRODUCTION: &str = "10.88.0.2";
const BRIDGE: &str = "10.88.0.4";
const SERVED: &str = "7777";
/// The production's network, its host on the lab's network, and the shadow's host there.
const REACH: &str = "10.88.0.1:7777,10.77.0.1:16509,10.77.0.2:16509";

/// What a guest said last that it reached of an address.
fn reached<'a>(console: &'a str, address: &str) -> Option<&'a str> {
    let begin = format!("lab-reach {address}:");
    console
        .lines()
        .rev()
        .filter(|line| line.trim_end().ends_with('.'))
        .find_map(|line| line.trim().strip_prefix(&begin))
}

/// Two guests on the first host, one of them with a disk on a base image; the second host takes shadows.
struct Scene {
    stack: Stack,
    guests: [Guest; 2],
    brain: Usurper,
    there: Host,
    server: Child,
    commands: u64,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let ended = self.server.kill().and_then(|()| self.server.wait());
        if let Err(error) = ended {
            eprintln!("ending the server of the production's network: {error}");
        }
    }
}

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        let lab = Lab::up(Options::new(name, 2))?;
        let (here, there) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
        run(&here, "ip", &["link", "add", "net0", "type", "bridge", "forward_delay", "0"])?;
        run(&here, "ip", &["address", "add", "10.88.0.1/24", "dev", "net0"])?;
        run(&here, "ip", &["link", "set", "net0", "up"])?;
        let server = here.command("busybox").args(["httpd", "-f", "-p", "10.88.0.1:7777", "-h", "/run"]).spawn()?;
        let guests = ["g1", "g2"].map(|name| GuestOptions::new(name, "constant:0.1".parse().expect("a schedule")));
        let guests = [lab.define(&here, &guests[0])?, lab.define(&here, &guests[1])?];
        redefine(&guests[0], |xml| {
            let interface =
                "<interface type='bridge'><source bridge='net0'/><model type='virtio'/></interface></devices>";
            let words =
                format!("gnomon.address={PRODUCTION}/24 gnomon.serve={SERVED} gnomon.reach={REACH} gnomon.load=");
            Ok(xml.replace("</devices>", interface).replace("gnomon.load=", &words))
        })?;
        let (base, own) = (base(&lab), lab.dir().join("g2.qcow2"));
        fs::write(&base, vec![0x5a; 8 << 20])?;
        let base = base.to_string_lossy();
        run(&here, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &own.to_string_lossy()])?;
        redefine(&guests[1], |xml| {
            let disk = format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/>\
                 <serial>production</serial></disk></devices>",
                own.display()
            );
            Ok(xml.replace("</devices>", &disk))
        })?;
        lab.boot(&guests)?;
        let mut image_paths = vec![lab.dir().to_string_lossy().into_owned()];
        let definition = here.virsh(["dumpxml", "g1"])?;
        for tag in ["kernel", "initrd"] {
            let file = definition.split(&format!("<{tag}>")).nth(1).and_then(|rest| rest.split('<').next());
            let folder = file.and_then(|file| file.rsplit_once('/')).with_context(|| format!("no <{tag}>"))?.0;
            image_paths.push(folder.to_owned());
        }
        let mut stack = Stack::start(lab, observing(), &AgentSettings::default())?;
        for host in ["h1", "h2"] {
            stack.stop_agent(host)?;
        }
        let_shadow(&stack, &there, &image_paths)?;
        stack.kill_brain()?;
        stack.launch_agent("h1")?;
        let brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), TERM).await?;
        ensure!(brain.hello.facts.shadows.is_none(), "the first host takes shadows");
        Ok(Self { stack, guests, brain, there, server, commands: 0 })
    }

    fn command(&mut self, vm: VmId, action: Action) -> Command {
        self.commands += 1;
        Command {
            id: CommandId { term: TERM, number: self.commands },
            vm,
            action,
            fence: Fence { term: TERM, generation: self.commands },
            time_to_live_ms: 30_000,
            reason: "a test wants it".to_owned(),
        }
    }

    async fn result(&mut self, vm: VmId, action: Action) -> Result<OutcomeResult> {
        let command = self.command(vm, action);
        Ok(self.brain.command(&command).await?.result)
    }

    async fn order(&mut self, shadow: VmId, order: ShadowOrder) -> Result<OutcomeResult> {
        self.result(shadow, Action::Shadow(order)).await
    }

    async fn describe(&mut self, guest: usize) -> Result<Blueprint> {
        let vm = self.production(guest);
        for _ in 0..40 {
            match self.result(vm, Action::Describe).await? {
                OutcomeResult::Described(blueprint) => return Ok(*blueprint),
                // Before its definition was read nothing is obeyed.
                OutcomeResult::Failed { retryable: true, .. } => {
                    self.brain.serve(Duration::from_millis(500)).await?;
                }
                other => bail!("not described: {other:?}"),
            }
        }
        bail!("the agent does not know the guest")
    }

    fn production(&self, guest: usize) -> VmId {
        VmId(self.guests[guest].uuid())
    }

    fn spec(&self, guest: usize, blueprint: Blueprint, disk_bytes_per_s: Option<u64>) -> ShadowSpec {
        let memory_bytes = 128 * MIB;
        let size = ShadowSize {
            cpu_cores: 0.35,
            vcpus: 1,
            cpu_weight: 50,
            memory_bytes,
            disk_bytes_per_s,
            // What the kernel of this machine has for that is not always there.
            network_bytes_per_s: None,
        };
        ShadowSpec { of: self.production(guest), blueprint, size }
    }

    /// From the first host's agent to the second's.
    async fn go_there(&mut self) -> Result<()> {
        self.stack.stop_agent("h1")?;
        self.stack.launch_agent("h2")?;
        self.brain.welcome_next(TERM).await?;
        let facts = self.brain.hello.facts.shadows.as_ref().context("the second host takes no shadows")?;
        ensure!((facts.shadows_max, facts.share_max) == (4, 0.25), "{facts:?}");
        Ok(())
    }

    async fn copy(&mut self, shadow: VmId, spec: &ShadowSpec) -> Result<()> {
        let result = self.order(shadow, ShadowOrder::Copy(Box::new(spec.clone()))).await?;
        println!("copy: {result:?}");
        let took = |us| (1..20_000_000).contains(&us);
        ensure!(
            matches!(result, OutcomeResult::Shadow(ShadowDone::Copied { took_us, copied_bytes: 0 }) if took(took_us)),
            "{result:?}"
        );
        Ok(())
    }

    async fn start(&mut self, shadow: VmId) -> Result<()> {
        let result = self.order(shadow, ShadowOrder::Start).await?;
        println!("start: {result:?}");
        ensure!(matches!(result, OutcomeResult::Shadow(ShadowDone::Started { .. })), "{result:?}");
        Ok(())
    }

    async fn retire(&mut self, shadow: VmId) -> Result<()> {
        let result = self.order(shadow, ShadowOrder::Retire).await?;
        ensure!(result == OutcomeResult::Shadow(ShadowDone::Retired), "{result:?}");
        Ok(())
    }

    /// What a shadow says on its console within so many seconds, while its agent is served.
    async fn console(&mut self, name: &str, seconds: u32) -> Result<String> {
        let (there, name) = (self.there.clone(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || -> Result<String> {
            let pty = there.virsh(["ttyconsole", &name])?;
            let output = there.command("timeout").args([&seconds.to_string(), "cat", pty.trim()]).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        });
        self.brain.serve(Duration::from_secs(seconds.into())).await?;
        read.await?
    }

    fn domains(&self) -> Result<Vec<String>> {
        let all = self.there.virsh(["list", "--all", "--name"])?;
        Ok(all.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// The names of all shadows' folders.
    fn folders(&self) -> Result<Vec<String>> {
        let listed = run(&self.there, "sh", &["-c", &format!("mkdir -p {DIRECTORY}; ls {DIRECTORY}")])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    fn hash(&self, file: &str) -> Result<String> {
        run(self.guests[1].host(), "sha256sum", &[&self.stack.lab.dir().join(file).to_string_lossy()])
    }

    /// A second life of the second host's agent.
    async fn relaunch(&mut self) -> Result<()> {
        self.stack.launch_agent("h2")?;
        self.brain.welcome_next(TERM).await
    }
}

fn base(lab: &Lab) -> std::path::PathBuf {
    lab.dir().join("base.raw")
}

fn shadow_id() -> VmId {
    VmId(Uuid::new_v4())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_boots_as_ordered_reaches_nothing_and_leaves_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("shadow").await?;
    let blueprint = scene.describe(0).await?;
    println!("{blueprint:?}");
    let Boot::Kernel { command_line, .. } = &blueprint.boot else { bail!("no kernel: {blueprint:?}") };
    ensure!(command_line.contains(REACH) && blueprint.disks.is_empty() && blueprint.interfaces == ["virtio"]);
    ensure!((blueprint.vcpus, blueprint.memory_bytes, blueprint.kvm) == (1, 128 * MIB, false), "{blueprint:?}");
    // The probe works: production reaches its network and its host.
    wait_for("the production to reach its network", Duration::from_secs(60), || {
        let console = fs::read_to_string(scene.guests[0].console_path())?;
        let all = |address| reached(&console, address) == Some(" arp ping tcp.");
        Ok(all("10.88.0.1") && all("10.77.0.1"))
    })
    .with_context(|| fs::read_to_string(scene.guests[0].console_path()).unwrap_or_default())?;

    scene.go_there().await?;
    let (shadow, production) = (shadow_id(), scene.production(0));
    let spec = scene.spec(0, blueprint.clone(), Some(4 * MIB));
    scene.copy(shadow, &spec).await?;
    scene.copy(shadow, &spec).await?;
    ensure!(scene.there.virsh(["domstate", "g1.shadow"])?.trim() == "shut off");
    scene.start(shadow).await?;
    let said = scene.console("g1.shadow", 45).await?;
    ensure!(said.contains("gnomon-load t_s="), "it does not boot: {said}");
    for address in ["10.88.0.1", "10.77.0.1", "10.77.0.2"] {
        ensure!(reached(&said, address) == Some("."), "it reaches {address}: {said}");
    }

    // As it was ordered.
    let definition = scene.there.virsh(["dumpxml", "g1.shadow"])?;
    ensure!(definition.contains(&format!("<uuid>{shadow}</uuid>")) && definition.contains(&production.to_string()));
    ensure!(definition.contains("<port isolated='yes'/>") && !definition.contains("52:54:00"), "{definition}");
    let info = scene.there.virsh(["schedinfo", "g1.shadow"])?;
    let says = |name: &str, value: &str| {
        info.lines()
            .any(|line| line.starts_with(name) && line.rsplit(':').next().is_some_and(|told| told.trim() == value))
    };
    ensure!(says("global_quota", "35000") && (says("cpu_shares", "512") || says("cpu_shares", "50")), "{info}");
    ensure!(scene.there.virsh(["dommemstat", "g1.shadow"])?.contains("actual 131072"));
    let report = scene.brain.report(|report| report.vms.iter().any(|vm| vm.shadow.is_some())).await?;
    let told = report.vms.iter().find(|vm| vm.vm == shadow).context("the report does not know it")?;
    ensure!(told.shadow.is_some_and(|told| told.of == production), "{told:?}");
    ensure!(told.terms.stays_because() == Some("it is a shadow"), "{:?}", told.terms);
    // Another size while it runs, and in its definition: a guest that restarts has it as well.
    let other = ShadowSize { cpu_cores: 0.25, cpu_weight: 80, memory_bytes: 112 * MIB, ..spec.size };
    let resized = scene.order(shadow, ShadowOrder::Resize(other)).await?;
    println!("resize: {resized:?}");
    ensure!(matches!(resized, OutcomeResult::Shadow(ShadowDone::Resized { took_us: 1.. })), "{resized:?}");
    for form in ["", "--inactive"] {
        let definition = scene.there.virsh(["dumpxml", "g1.shadow"].into_iter().chain(form.split_whitespace()))?;
        let has = |part: &str| definition.contains(part);
        ensure!(has("<global_quota>25000<") && (has("<shares>80<") || has("<shares>819<")), "{definition}");
        // libvirt's view of a balloon that moves is up to a second old.
        ensure!(form.is_empty() || has("<currentMemory unit='KiB'>114688<"), "{definition}");
    }
    ensure!(scene.there.virsh(["dommemstat", "g1.shadow"])?.contains("actual 114688"));
    let too_much = ShadowSize { memory_bytes: 256 * MIB, ..other };
    let refused = scene.order(shadow, ShadowOrder::Resize(too_much)).await?;
    ensure!(matches!(refused, OutcomeResult::Unshadowable(Unshadowable::Unresizable(_))), "{refused:?}");

    // It is sized like any VM, and never sent away.
    let quota = gnomon_common::wire::Setting::CpuQuota { cores: Some(0.2) };
    let set = scene.result(shadow, Action::Set(quota)).await?;
    ensure!(matches!(set, OutcomeResult::Applied { .. }), "{set:?}");

    // What others hang on its bridge keeps the next one from starting.
    let second = shadow_id();
    let mut other = scene.spec(0, Blueprint { name: "other".to_owned(), ..blueprint }, None);
    let Boot::Kernel { command_line, .. } = &mut other.blueprint.boot else { bail!("no kernel") };
    *command_line = command_line.replace("10.88.0.2/24", "10.88.0.3/24").replace(REACH, "10.88.0.2:1");
    other.size.cpu_cores = 0.1;
    scene.copy(second, &other).await?;
    run(&scene.there, "ip", &["address", "add", "10.99.0.1/32", "dev", "gnomon-shadow"])?;
    let refused = scene.order(second, ShadowOrder::Start).await?;
    ensure!(matches!(refused, OutcomeResult::Unshadowable(Unshadowable::NotIsolated(_))), "{refused:?}");
    run(&scene.there, "ip", &["address", "del", "10.99.0.1/32", "dev", "gnomon-shadow"])?;
    scene.start(second).await?;
    // Its image has no pacer: that is said, not taken for done.
    let paced = scene.order(second, ShadowOrder::Pace(Profile::default())).await?;
    let is_told =
        matches!(&paced, OutcomeResult::Failed { error, retryable: true } if error.contains("no pacer answers"));
    ensure!(is_told, "{paced:?}");

    // The production's own identity is never a shadow's.
    let orders = [ShadowOrder::Start, ShadowOrder::Copy(Box::new(spec.clone()))];
    for (order, why) in orders.into_iter().zip([Unshadowable::NoShadow, Unshadowable::Taken]) {
        let refused = scene.order(production, order).await?;
        ensure!(refused == OutcomeResult::Unshadowable(why), "{refused:?}");
    }
    scene.retire(shadow).await?;
    scene.retire(shadow).await?;
    ensure!(scene.domains()? == ["other.shadow"], "{:?}", scene.domains()?);
    ensure!(scene.folders()? == [second.to_string()], "{:?}", scene.folders()?);
    scene.retire(second).await?;
    ensure!(scene.domains()?.is_empty() && scene.folders()?.is_empty());
    ensure!(!scene.there.virsh(["net-list", "--all", "--name"])?.contains("gnomon-shadows"), "the network stays");

    // The production's own host does not retire it either.
    scene.stack.stop_agent("h2")?;
    scene.stack.launch_agent("h1")?;
    scene.brain.welcome_next(TERM).await?;
    let refused = scene.order(production, ShadowOrder::Retire).await?;
    ensure!(refused == OutcomeResult::Unshadowable(Unshadowable::NoShadow), "{refused:?}");
    let not_taken = scene.order(shadow, ShadowOrder::Start).await?;
    ensure!(not_taken == OutcomeResult::Refused(RefusedCommand::ShadowsNotAllowed), "{not_taken:?}");
    ensure!(scene.guests[0].host().virsh(["domstate", "g1"])?.trim() == "running");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_s_disk_is_a_layer_of_its_own_and_a_killed_agent_leaves_neither_half_nor_two() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("shadowdisk").await?;
    let blueprint = scene.describe(1).await?;
    let path = base(&scene.stack.lab).to_string_lossy().into_owned();
    let disk = blueprint.disks.first().context("no disk")?;
    ensure!(disk.base == Base::Image { path, format: "raw".to_owned() } && disk.size_bytes == 8 * MIB, "{disk:?}");
    let before = [scene.hash("base.raw")?, scene.hash("g2.qcow2")?];
    scene.go_there().await?;

    let (shadow, mut spec) = (shadow_id(), scene.spec(1, blueprint.clone(), Some(4 * MIB)));
    // A shadow that writes to its first disk, as its production does not, and tries to reach another production and the bridge from their own network.
    let Boot::Kernel { command_line, .. } = &mut spec.blueprint.boot else { bail!("no kernel") };
    let reach = format!("gnomon.address=10.88.0.3/24 gnomon.reach={PRODUCTION}:{SERVED},{BRIDGE}:{SERVED}");
    *command_line = command_line.replace("gnomon.load=", &format!("{reach} gnomon.disk=100000 gnomon.load="));
    spec.blueprint.interfaces = vec!["virtio".to_owned()];
    let mut missing = spec.clone();
    missing.blueprint.disks[0].base = Base::None;
    let refused = scene.order(shadow_id(), ShadowOrder::Copy(Box::new(missing.clone()))).await?;
    ensure!(refused == OutcomeResult::Unshadowable(Unshadowable::NoBase("vda".to_owned())), "{refused:?}");
    let nowhere = scene.stack.lab.dir().join("nowhere.raw").to_string_lossy().into_owned();
    missing.blueprint.disks[0].base = Base::Image { path: nowhere.clone(), format: "raw".to_owned() };
    let refused = scene.order(shadow_id(), ShadowOrder::Copy(Box::new(missing))).await?;
    ensure!(refused == OutcomeResult::Unshadowable(Unshadowable::Missing(nowhere)), "{refused:?}");

    // Killed at many moments of each order; what is sent again is answered, and there is one.
    let other = ShadowSize { cpu_cores: 0.3, cpu_weight: 80, disk_bytes_per_s: Some(3 * MIB), ..spec.size };
    for delay_ms in [0_u64, 10, 30, 60, 200] {
        for order in [ShadowOrder::Copy(Box::new(spec.clone())), ShadowOrder::Start, ShadowOrder::Resize(other)] {
            let command = scene.command(shadow, Action::Shadow(order.clone()));
            scene.brain.send(&command).await?;
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            scene.stack.kill_agent("h2")?;
            scene.relaunch().await?;
            scene.brain.send(&command).await?;
            let outcome = scene.brain.outcome(|outcome| outcome.id == command.id).await?;
            ensure!(matches!(outcome.result, OutcomeResult::Shadow(_)), "{order} after {delay_ms} ms: {outcome:?}");
            ensure!(scene.domains()? == ["g2.shadow"], "{:?}", scene.domains()?);
            ensure!(scene.folders()? == [shadow.to_string()], "{:?}", scene.folders()?);
        }
        let definition = scene.there.virsh(["dumpxml", "--inactive", "g2.shadow"])?;
        let limits = definition.matches("<total_bytes_sec>3145728<").count();
        ensure!(definition.contains("<global_quota>30000<") && limits == 2, "{definition}");
        if delay_ms < 200 {
            let command = scene.command(shadow, Action::Shadow(ShadowOrder::Retire));
            scene.brain.send(&command).await?;
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            scene.stack.kill_agent("h2")?;
            scene.relaunch().await?;
            scene.brain.send(&command).await?;
            let outcome = scene.brain.outcome(|outcome| outcome.id == command.id).await?;
            ensure!(outcome.result == OutcomeResult::Shadow(ShadowDone::Retired), "{outcome:?}");
            ensure!(scene.domains()?.is_empty() && scene.folders()?.is_empty(), "{:?}", scene.folders()?);
        }
    }
    // Both would answer.
    let here = scene.guests[0].host().clone();
    run(&scene.there, "ip", &["address", "add", &format!("{BRIDGE}/24"), "dev", "gnomon-shadow"])?;
    run(&scene.there, "busybox", &["httpd", "-p", &format!("{BRIDGE}:{SERVED}"), "-h", "/run"])?;
    for (host, address) in [(&here, PRODUCTION), (&scene.there, BRIDGE)] {
        run(host, "busybox", &["ping", "-q", "-c", "1", "-W", "5", address])?;
        run(host, "sh", &["-c", &format!("busybox nc -w 5 {address} {SERVED} < /dev/null")])?;
    }
    let said = scene.console("g2.shadow", 40).await?;
    run(&scene.there, "ip", &["address", "del", &format!("{BRIDGE}/24"), "dev", "gnomon-shadow"])?;
    ensure!(said.contains("gnomon-load t_s="), "it does not boot: {said}");
    for address in [PRODUCTION, BRIDGE] {
        ensure!(reached(&said, address) == Some("."), "it reaches {address}: {said}");
    }
    let layer = format!("{DIRECTORY}/{shadow}/vda.qcow2");
    let told = run(&scene.there, "qemu-img", &["info", "-U", "--output=json", &layer])?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    ensure!(told["actual-size"].as_u64().is_some_and(|bytes| bytes > 300_000), "it wrote nothing: {told:#}");
    ensure!([scene.hash("base.raw")?, scene.hash("g2.qcow2")?] == before, "the production's disk has changed");

    // What nobody knows of is removed at the agent's start, and what it is known of runs on.
    scene.stack.kill_agent("h2")?;
    run(&scene.there, "mkdir", &[&format!("{DIRECTORY}/{}", shadow_id())])?;
    scene.relaunch().await?;
    wait_for("the orphan to be removed", Duration::from_secs(20), || Ok(scene.folders()? == [shadow.to_string()]))?;
    wait_for("the orphan to be counted", Duration::from_secs(20), || {
        Ok(agent_metrics(&scene.stack, "h2")?.contains("gnomon_agent_shadow_orphans_total 1"))
    })?;
    ensure!(scene.there.virsh(["domstate", "g2.shadow"])?.trim() == "running");
    scene.retire(shadow).await?;
    ensure!(scene.domains()?.is_empty() && scene.folders()?.is_empty());
    Ok(())
}

/// A user and a group that nobody else has: Debian gives ids from 60000 to 64999 only on request.
const USER: &str = "61999";

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_with_libvirt_s_socket_and_the_directory_makes_and_retires_shadows() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("shadowuser").await?;
    let blueprint = scene.describe(1).await?;
    // What the unit's user, StateDirectory=, SupplementaryGroups=libvirt and the steps of its installation are.
    let (state, files) = (scene.there.dir().join("agent-state"), scene.there.dir().join("agent"));
    let prepare = format!(
        "echo gnomon-agent:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin >> /etc/passwd\n\
         echo gnomon-agent:x:{USER}: >> /etc/group\n\
         chown -R {USER}:{USER} {} {}\n\
         chgrp {USER} /run/libvirt/libvirt-sock\n\
         chmod 770 /run/libvirt/libvirt-sock\n\
         install -d -m 711 -o {USER} -g {USER} /var/lib/gnomon {DIRECTORY}\n",
        state.display(),
        files.display()
    );
    run(&scene.there, "sh", &["-euc", &prepare])?;
    let sets = ["--inh-caps", "--ambient-caps", "--bounding-set"].map(|set| format!("{set}=-all,+bpf,+perfmon"));
    let user = [format!("--reuid={USER}"), format!("--regid={USER}")];
    let words = ["setpriv", "--clear-groups", "--no-new-privs"].into_iter();
    scene.stack.wrap_agents(words.chain(user.iter().chain(&sets).map(String::as_str)));
    scene.go_there().await?;

    let (shadow, spec) = (shadow_id(), scene.spec(1, blueprint, None));
    scene.copy(shadow, &spec).await?;
    let owner = run(&scene.there, "stat", &["-c", "%u %a", &format!("{DIRECTORY}/{shadow}/vda.qcow2")])?;
    ensure!(owner.trim() == format!("{USER} 600"), "{owner}");
    scene.start(shadow).await?;
    let said = scene.console("g2.shadow", 30).await?;
    ensure!(said.contains("gnomon-load start"), "it does not boot: {said}");
    scene.retire(shadow).await?;
    ensure!(scene.domains()?.is_empty() && scene.folders()?.is_empty(), "{:?}", scene.folders()?);
    Ok(())
}
