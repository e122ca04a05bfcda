//! VMs are moved between real hosts while they run, and whatever breaks meanwhile, exactly one copy runs in the end.

#[path = "migrate/parked.rs"]
mod parked;
#[path = "migrate/storage.rs"]
mod storage;
#[path = "migrate/witness.rs"]
mod witness;

use std::fs;
use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gnomon_common::wire::{
    Action, Command, CommandId, Fence, HostId, Immovable, Migration, Moved, Outcome, OutcomeResult, RefusedCommand,
    Setting, VmId, Whereabouts,
};
use gnomon_e2e::ticks::{TICKS_GAP_MAX, Ticks};
use gnomon_e2e::usurper::Usurper;
use gnomon_e2e::{agent_metrics, let_migrate, observing, reconfigure, run, skipped, wait_for};
use witness::Witness;
use xtask::lab::{Guest, GuestOptions, Host, Lab, Options};
use xtask::stack::{AgentSettings, Stack};

const TERM: u64 = 7;
const MIB: u64 = 1 << 20;

/// So slow a link that there is time to break something: the guest has tens of megabytes to send.
const SLOW_BYTES_PER_S: u64 = MIB;

/// Two hosts, a guest on the first whose agent obeys the test.
struct Scene {
    stack: Stack,
    guest: Guest,
    brain: Usurper,
    hosts: [Host; 2],
    commands: u64,
}

impl Scene {
    async fn new(name: &str, change: impl FnOnce(&Lab, &Guest) -> Result<()>) -> Result<Self> {
        let lab = Lab::up(Options::new(name, 2))?;
        let hosts = [lab.hosts()[0].clone(), lab.hosts()[1].clone()];
        let guest = lab.define(&hosts[0], &GuestOptions::new("g1", "constant:0.4".parse()?))?;
        change(&lab, &guest)?;
        lab.boot(std::slice::from_ref(&guest))?;
        let mut stack = Stack::start(lab, observing(), &AgentSettings::default())?;
        for host in &hosts {
            stack.stop_agent(host.name())?;
            let_migrate(&stack, host)?;
        }
        stack.kill_brain()?;
        stack.launch_agent("h1")?;
        let brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), TERM).await?;
        let facts = brain.hello.facts.migration.as_ref().context("the agent does not say that it migrates")?;
        ensure!(facts.uri == hosts[0].migration_uri(), "the agent says it is at {}", facts.uri);
        let mut scene = Self { stack, guest, brain, hosts, commands: 0 };
        scene.settle().await?;
        Ok(scene)
    }

    /// Waits until the agent has read the guest's definition: before that it obeys nothing.
    async fn settle(&mut self) -> Result<()> {
        for _ in 0..20 {
            let order = self.order(Action::Set(Setting::CpuQuota { cores: Some(0.8) }));
            if let OutcomeResult::Applied { .. } = self.brain.command(&order).await?.result {
                return Ok(());
            }
            self.brain.serve(Duration::from_millis(500)).await?;
        }
        bail!("the agent does not obey")
    }

    /// A second life of the agent, and its new connection.
    async fn relaunch_agent(&mut self) -> Result<()> {
        self.stack.launch_agent("h1")?;
        self.brain.welcome_next(TERM).await
    }

    fn order(&mut self, action: Action) -> Command {
        self.commands += 1;
        Command {
            id: CommandId { term: TERM, number: self.commands },
            vm: VmId(self.guest.uuid()),
            action,
            fence: Fence { term: TERM, generation: self.commands },
            time_to_live_ms: 30_000,
            reason: "a test wants it".to_owned(),
        }
    }

    fn migration(&self, slow: bool) -> Migration {
        Migration {
            to: HostId::new("h2").expect("a legal name"),
            uri: self.hosts[1].migration_uri(),
            timeout_ms: 120_000,
            bandwidth_bytes_per_s: slow.then_some(SLOW_BYTES_PER_S),
            auto_converge: false,
            copy_storage: false,
        }
    }

    async fn migrate(&mut self, migration: Migration) -> Result<OutcomeResult> {
        let order = self.order(Action::Migrate(migration));
        Ok(self.brain.command(&order).await?.result)
    }

    /// Begins a slow migration, and returns its command when it is under way for sure.
    async fn begin_slowly(&mut self) -> Result<Command> {
        let migration = self.migration(true);
        let order = self.order(Action::Migrate(migration));
        self.brain.send(&order).await?;
        let early = self.brain.serve(Duration::from_secs(4)).await?;
        ensure!(early.is_empty(), "it has ended already: {early:?}");
        ensure!(self.hosts[0].virsh(["domjobinfo", "g1"])?.contains("Unbounded"), "no job is under way");
        Ok(order)
    }

    async fn outcome(&mut self, order: &Command) -> Result<Outcome> {
        let id = order.id;
        self.brain.outcome(|outcome| outcome.id == id).await
    }

    /// What libvirt says of the guest on both hosts; no word where there is none.
    fn states(&self) -> Result<[String; 2]> {
        let state = |host: &Host| -> Result<String> {
            let all = host.virsh(["list", "--all", "--name"])?;
            let known = all.lines().any(|line| line.trim() == "g1");
            // It may be gone since the list was made.
            let told = known.then(|| host.virsh(["domstate", "g1"]).unwrap_or_default());
            Ok(told.unwrap_or_default().trim().to_owned())
        };
        Ok([state(&self.hosts[0])?, state(&self.hosts[1])?])
    }

    fn witness(&self) -> Witness {
        Witness::start(self.hosts.clone())
    }

    /// Waits until the guest runs on exactly one host, and says on which.
    fn runs_once(&self) -> Result<usize> {
        let mut found = None;
        wait_for("exactly one copy to run", Duration::from_secs(60), || {
            let states = self.states()?;
            found = match states.each_ref().map(String::as_str) {
                ["running", "" | "shut off"] => Some(0),
                ["" | "shut off", "running"] => Some(1),
                _ => None,
            };
            Ok(found.is_some())
        })
        .with_context(|| format!("{:?}", self.states()))?;
        found.context("it runs nowhere")
    }
}

fn is_here(result: &OutcomeResult) -> bool {
    matches!(result, OutcomeResult::NotMoved { whereabouts: Whereabouts::Here, .. })
}

/// Changes nothing about the guest.
fn as_it_is(_: &Lab, _: &Guest) -> Result<()> {
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_moved_while_it_runs_and_what_was_set_goes_with_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("move", as_it_is).await?;
    let (witness, ticks) = (scene.witness(), Ticks::start(&scene.guest));
    scene.brain.serve(Duration::from_secs(2)).await?;
    let migration = scene.migration(false);
    let result = scene.migrate(migration).await?;
    let OutcomeResult::Moved(Moved { took_us, downtime_us, sent_bytes, .. }) = result else {
        bail!("not moved: {result:?}")
    };
    scene.brain.serve(Duration::from_secs(3)).await?;
    let gap = ticks.longest_gap()?;
    let seen = witness.finish(&scene.guest)?;
    println!("took {took_us} us, downtime {downtime_us:?} us, {sent_bytes:?} bytes; {gap}");
    ensure!(gap.is_within(TICKS_GAP_MAX), "{gap}");
    ensure!(seen.ran.iter().all(|looks| *looks > 5), "it did not run on both hosts: {seen:?}");
    ensure!(downtime_us.is_some_and(|us| (1..2_000_000).contains(&us)), "a downtime of {downtime_us:?}");
    ensure!(sent_bytes.is_some_and(|bytes| bytes > MIB), "{sent_bytes:?} bytes were sent");
    ensure!(scene.states()? == ["".to_owned(), "running".to_owned()], "{:?}", scene.states()?);
    let [_, there] = &scene.hosts;
    let quota = there.virsh(["schedinfo", "g1"])?;
    ensure!(quota.lines().any(|line| line.starts_with("global_quota") && line.ends_with(" 80000")), "{quota}");
    ensure!(
        there.virsh(["dominfo", "g1"])?.lines().any(|line| line.starts_with("Persistent") && line.ends_with("yes"))
    );
    // Here it is unknown from now on.
    let migration = scene.migration(false);
    let again = scene.migrate(migration).await?;
    ensure!(again == OutcomeResult::Refused(RefusedCommand::UnknownVm), "{again:?}");

    // There it can be released: what the other agent did goes back to what was there before that.
    scene.stack.stop_agent("h1")?;
    scene.stack.launch_agent("h2")?;
    scene.brain.welcome_next(TERM).await?;
    for _ in 0..60 {
        if scene.stack.agent_log("h2")?.contains("it came from another host") {
            break;
        }
        scene.brain.serve(Duration::from_millis(500)).await?;
    }
    let release = scene.order(Action::Release);
    let released = scene.brain.command(&release).await?;
    println!("released on the other host: {released:?}");
    let OutcomeResult::Applied { after, .. } = released.result else { bail!("not released: {released:?}") };
    ensure!(after == [Setting::CpuQuota { cores: None }], "{after:?}");
    let definition = scene.hosts[1].virsh(["dumpxml", "g1"])?;
    ensure!(!definition.contains("urn:gnomon:undo"), "what was taken over is still in the metadata");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_the_target_cannot_take_stays_and_nothing_is_changed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    const NETWORK: &str = "<network><name>lan</name><forward mode='bridge'/><bridge name='net0'/></network>";
    let connected = |_: &Lab, guest: &Guest| -> Result<()> {
        let host = guest.host();
        run(host, "ip", &["link", "add", "net0", "type", "bridge", "forward_delay", "0"])?;
        let file = host.dir().join("lan.xml");
        fs::write(&file, NETWORK)?;
        host.virsh(["net-define".as_ref(), file.as_os_str()])?;
        host.virsh(["net-start", "lan"])?;
        let interface = "<interface type='network'><source network='lan'/><model type='virtio'/></interface></devices>";
        gnomon_e2e::redefine(guest, |xml| Ok(xml.replace("</devices>", interface)))
    };
    let mut scene = Scene::new("unable", connected).await?;
    let migration = scene.migration(false);

    let result = scene.migrate(Migration { to: HostId::new("h1")?, ..migration.clone() }).await?;
    ensure!(result == OutcomeResult::Immovable(Immovable::SameHost), "{result:?}");
    // Its owner's word is read anew for each migration.
    let of_owner = ["metadata", "g1", "urn:gnomon:policy:1", "--live"];
    scene.hosts[0].virsh(of_owner.iter().chain(&["--key", "gnomon", "--set", "<policy migrate='no'/>"]))?;
    let result = scene.migrate(migration.clone()).await?;
    let stays = "its owner wants it to stay".to_owned();
    ensure!(result == OutcomeResult::Immovable(Immovable::Bound(stays)), "{result:?}");
    scene.hosts[0].virsh(of_owner.iter().chain(&["--remove"]))?;
    // Taken back, that leaves an empty element behind: what follows leaves nothing.
    let before = scene.hosts[0].virsh(["dumpxml", "g1"])?;
    let nowhere = Migration { uri: "qemu+tcp://10.77.0.99/system".to_owned(), ..migration.clone() };
    let result = scene.migrate(nowhere).await?;
    ensure!(matches!(result, OutcomeResult::Immovable(Immovable::Unreachable(_))), "{result:?}");
    let result = scene.migrate(migration.clone()).await?;
    ensure!(result == OutcomeResult::Immovable(Immovable::Network("lan".to_owned())), "{result:?}");

    let there = scene.hosts[1].clone();
    let namesake = there.dir().join("namesake.xml");
    fs::write(
        &namesake,
        "<domain type='qemu'><name>g1</name><memory>16384</memory><os><type>hvm</type></os></domain>",
    )?;
    there.virsh(["define".as_ref(), namesake.as_os_str()])?;
    let result = scene.migrate(migration.clone()).await?;
    ensure!(result == OutcomeResult::Immovable(Immovable::AlreadyThere), "{result:?}");
    there.virsh(["undefine", "g1"])?;

    // With the network there, what is left is room.
    run(&there, "ip", &["link", "add", "net0", "type", "bridge", "forward_delay", "0"])?;
    let file = there.dir().join("lan.xml");
    fs::write(&file, NETWORK)?;
    there.virsh(["net-define".as_ref(), file.as_os_str()])?;
    there.virsh(["net-start", "lan"])?;
    scene.stack.stop_agent("h1")?;
    let reserve = ("memory_host_reserve_bytes = 67108864", "memory_host_reserve_bytes = 1099511627776");
    reconfigure(&scene.stack, "h1", &[reserve], "")?;
    scene.relaunch_agent().await?;
    scene.settle().await?;
    let result = scene.migrate(migration).await?;
    ensure!(matches!(result, OutcomeResult::Immovable(Immovable::Memory { .. })), "{result:?}");
    ensure!(scene.states()? == ["running".to_owned(), "".to_owned()], "{:?}", scene.states()?);
    ensure!(scene.hosts[0].virsh(["dumpxml", "g1"])? == before, "its definition was changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_given_up_leaves_the_guest_running_where_it_was() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("giveup", as_it_is).await?;
    let witness = scene.witness();
    scene.stack.launch_agent("h2")?;
    for _ in 0..60 {
        if agent_metrics(&scene.stack, "h2")?.contains("state=\"arriving\"} 0") {
            break;
        }
        scene.brain.serve(Duration::from_millis(500)).await?;
    }
    let order = scene.begin_slowly().await?;
    // Both agents know what it is about.
    let (moving, arriving) = ("gnomon_agent_migrations{standing=\"moving\"} 1", "state=\"arriving\"} 1");
    ensure!(agent_metrics(&scene.stack, "h1")?.contains(moving), "{}", agent_metrics(&scene.stack, "h1")?);
    ensure!(agent_metrics(&scene.stack, "h2")?.contains(arriving), "{}", agent_metrics(&scene.stack, "h2")?);
    let set = scene.order(Action::Set(Setting::CpuQuota { cores: Some(0.5) }));
    let refused = scene.brain.command(&set).await?;
    ensure!(refused.result == OutcomeResult::Refused(RefusedCommand::Migrating), "{refused:?}");
    let abort = scene.order(Action::AbortMigration);
    let aborted = scene.brain.command(&abort).await?;
    ensure!(matches!(aborted.result, OutcomeResult::Applied { .. }), "{aborted:?}");
    let outcome = scene.outcome(&order).await?;
    println!("abort: {outcome:?}");
    ensure!(is_here(&outcome.result), "{outcome:?}");
    ensure!(scene.runs_once()? == 0);

    let migration = Migration { timeout_ms: 3_000, ..scene.migration(true) };
    let result = scene.migrate(migration).await?;
    println!("time-out: {result:?}");
    ensure!(is_here(&result), "{result:?}");
    ensure!(scene.runs_once()? == 0);
    // What was refused meanwhile works again.
    let set = scene.order(Action::Set(Setting::CpuQuota { cores: Some(0.5) }));
    let applied = scene.brain.command(&set).await?;
    ensure!(matches!(applied.result, OutcomeResult::Applied { .. }), "{applied:?}");
    witness.finish(&scene.guest).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_tells_after_its_restart_what_became_of_the_migration() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("agentdies", as_it_is).await?;
    let witness = scene.witness();
    // In the middle, and it is still under way when the agent is back.
    let order = scene.begin_slowly().await?;
    scene.stack.kill_agent("h1")?;
    thread::sleep(Duration::from_secs(2));
    scene.relaunch_agent().await?;
    let early = scene.brain.serve(Duration::from_secs(5)).await?;
    ensure!(early.is_empty(), "the restarted agent does not wait for it: {early:?}");
    // An abort reaches what an earlier life began.
    let abort = scene.order(Action::AbortMigration);
    scene.brain.command(&abort).await?;
    let outcome = scene.outcome(&order).await?;
    println!("aborted after the restart: {outcome:?}");
    ensure!(is_here(&outcome.result) && scene.runs_once()? == 0, "{outcome:?}");

    // In the middle, and it has ended when the agent is back.
    let order = scene.begin_slowly().await?;
    scene.stack.kill_agent("h1")?;
    scene.hosts[0].virsh(["migrate-setspeed", "g1", "1000"])?;
    wait_for("libvirt to migrate without an agent", Duration::from_secs(60), || {
        Ok(scene.states()? == ["".to_owned(), "running".to_owned()])
    })?;
    scene.relaunch_agent().await?;
    let outcome = scene.outcome(&order).await?;
    println!("moved without the agent: {outcome:?}");
    ensure!(matches!(outcome.result, OutcomeResult::Moved(_)) && scene.runs_once()? == 1, "{outcome:?}");
    witness.finish(&scene.guest).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_whose_libvirt_is_killed_leaves_exactly_one_copy() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("targetdies", as_it_is).await?;
    let witness = scene.witness();
    let order = scene.begin_slowly().await?;
    let there = scene.hosts[1].clone();
    let pid = run(&there, "cat", &["/run/libvirtd.pid"])?;
    run(&there, "kill", &["-KILL", pid.trim()])?;
    let outcome = scene.outcome(&order).await?;
    println!("{outcome:?}");
    ensure!(is_here(&outcome.result), "{outcome:?}");
    ensure!(scene.hosts[0].virsh(["domstate", "g1"])?.trim() == "running");
    let mut daemon = libvirtd(&there)?;
    wait_for("the target's libvirt", Duration::from_secs(60), || Ok(there.virsh(["version"]).is_ok()))?;
    ensure!(scene.runs_once()? == 0, "{:?}", scene.states());
    scene.brain.serve(Duration::from_secs(2)).await?;
    witness.finish(&scene.guest)?;
    // And it can be moved when all is well again.
    let migration = scene.migration(false);
    let result = scene.migrate(migration).await?;
    ensure!(matches!(result, OutcomeResult::Moved(_)) && scene.runs_once()? == 1, "{result:?}");
    drop(scene);
    daemon.wait()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_in_the_middle_leaves_exactly_one_copy() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("cut", as_it_is).await?;
    let witness = scene.witness();
    let order = scene.begin_slowly().await?;
    link(&scene.stack, "down")?;
    let meanwhile = scene.brain.serve(Duration::from_secs(40)).await?;
    println!("while the link is down: {meanwhile:?}");
    link(&scene.stack, "up")?;
    let outcome = match meanwhile.into_iter().find(|outcome| outcome.id == order.id) {
        Some(outcome) => outcome,
        None => scene.outcome(&order).await?,
    };
    println!("{outcome:?}");
    let runs_on = scene.runs_once()?;
    let told_truth = match outcome.result {
        OutcomeResult::Moved(_) => runs_on == 1,
        ref result => is_here(result) && runs_on == 0,
    };
    ensure!(told_truth, "{outcome:?}, and it runs on h{}", runs_on + 1);
    scene.brain.serve(Duration::from_secs(2)).await?;
    witness.finish(&scene.guest).map(drop)
}

/// A second life of a host's libvirtd.
fn libvirtd(host: &Host) -> Result<Child> {
    let log = fs::File::create(host.dir().join("log/libvirtd-2.out"))?;
    let mut command = host.command("libvirtd");
    command.arg("--listen").stdout(log.try_clone()?).stderr(log);
    Ok(command.spawn()?)
}

/// Takes the second host's end of the bridge up or down.
fn link(stack: &Stack, state: &str) -> Result<()> {
    let output = stack.lab.brain_command("ip").args(["link", "set", "v-h2", state]).output()?;
    ensure!(output.status.success(), "ip link: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
