//! Every means of changing a VM, by commands to a real agent: refused where it would hurt, seen by the guest, the kernel, QEMU and
//! libvirt where it is carried out, and undone by a release.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gnomon_common::wire::{Action, Command, CommandId, Fence, Means, OutcomeResult, RefusedCommand, Setting, VmId};
use gnomon_e2e::usurper::Usurper;
use gnomon_e2e::{observing, redefine, run, skipped};
use xtask::lab::{Guest, GuestOptions, Lab, Options};
use xtask::stack::{AgentSettings, Stack};

const MIB: u64 = 1 << 20;
const TERM: u64 = 7;
/// A busy machine starves guests for seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the host's operator allows here: everything, and 64 MiB above what a guest uses.
const GUARD: &str = "means = [\"cpu_quota\", \"cpu_weight\", \"memory\", \"vcpus\", \"disk_limit\", \"network_limit\"]\n\
                     memory_reserve_bytes = 67108864\n";

/// A brain that commands one agent, and the guests there.
struct Bench {
    stack: Stack,
    brain: Usurper,
    orders: u64,
}

impl Bench {
    /// `g1` has a disk and an interface with a tap, `g2` neither, and no balloon; both are busy on the same CPU.
    async fn up(name: &str) -> Result<(Self, Guest, Guest)> {
        let lab = Lab::up(Options::new(name, 1))?;
        let host = lab.hosts()[0].clone();
        run(&host, "ip", &["link", "add", "means0", "type", "bridge"])?;
        run(&host, "ip", &["link", "set", "means0", "up"])?;
        let guest = |name: &str| -> Result<Guest> {
            let mut options = GuestOptions::new(name, "constant:1".parse()?);
            options.cpus = Some("0".to_owned());
            lab.define(&host, &options)
        };
        let guests = [guest("g1")?, guest("g2")?];
        let disk = host.dir().join("g1.img");
        fs::File::create(&disk)?.set_len(64 * MIB)?;
        redefine(&guests[0], |xml| {
            let devices = format!(
                "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
                 <target dev='vda' bus='virtio'/></disk><interface type='bridge'><source bridge='means0'/>\
                 <model type='virtio'/></interface></devices>",
                disk.display()
            );
            Ok(xml.replace("</devices>", &devices))
        })?;
        redefine(&guests[1], |xml| {
            let (head, rest) = xml.split_once("<memballoon").context("no balloon to take away")?;
            let (_, tail) = rest.split_once("</memballoon>").context("an empty balloon")?;
            Ok(format!("{head}<memballoon model='none'/>{tail}"))
        })?;
        lab.boot(&guests)?;
        let mut stack = Stack::start(lab, observing(), &AgentSettings::default())?;
        stack.kill_brain()?;
        stack.stop_agent("h1")?;
        let config = host.dir().join("agent.toml");
        let text = fs::read_to_string(&config)?;
        let guarded = text.replace("[guard]\n", &format!("[guard]\n{GUARD}"));
        ensure!(guarded != text, "no [guard] in {text}");
        fs::write(&config, guarded)?;
        stack.launch_agent("h1")?;
        let brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), TERM).await?;
        let [g1, g2] = guests;
        Ok((Self { stack, brain, orders: 0 }, g1, g2))
    }

    fn command(&mut self, guest: &Guest, action: Action) -> Command {
        self.orders += 1;
        Command {
            id: CommandId { term: TERM, number: self.orders },
            vm: VmId(guest.uuid()),
            action,
            fence: Fence { term: TERM, generation: self.orders },
            time_to_live_ms: 30_000,
            reason: "a test wants it".to_owned(),
        }
    }

    async fn order(&mut self, guest: &Guest, action: Action) -> Result<OutcomeResult> {
        let command = self.command(guest, action.clone());
        let result = self.brain.command(&command).await?.result;
        println!("{} {action:?}: {result:?}", guest.name());
        Ok(result)
    }

    /// Lets a moment pass and then speaks with the agent, which leaves a brain that answers no heart-beat. What is said is refused.
    async fn listen(&mut self, guest: &Guest) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let nonsense = self.command(guest, Action::Set(Setting::Vcpus { count: 0 }));
        self.brain.command(&nonsense).await.map(drop)
    }

    /// Waits until `done`, or fails naming `what`.
    async fn until(&mut self, guest: &Guest, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done()? {
            ensure!(Instant::now() < deadline, "waited {} s in vain for {what}", PATIENCE.as_secs());
            self.listen(guest).await?;
        }
        Ok(())
    }

    async fn set(&mut self, guest: &Guest, target: Setting) -> Result<OutcomeResult> {
        self.order(guest, Action::Set(target)).await
    }

    /// Sets and returns what was in force before and what was read back.
    async fn apply(&mut self, guest: &Guest, target: Setting) -> Result<(Setting, Setting)> {
        match self.set(guest, target).await? {
            OutcomeResult::Applied { before, after, .. } => Ok((before[0], after[0])),
            other => bail!("{target} not applied but {other:?}"),
        }
    }

    async fn refused(&mut self, guest: &Guest, target: Setting) -> Result<RefusedCommand> {
        match self.set(guest, target).await? {
            OutcomeResult::Refused(why) => Ok(why),
            other => bail!("{target} not refused but {other:?}"),
        }
    }

    /// Waits until the agent knows what the guest uses: only then memory may shrink.
    async fn shrink_when_known(&mut self, guest: &Guest, mib: u64) -> Result<()> {
        let mut result = self.set(guest, memory(mib)).await?;
        for _ in 0..60 {
            let unknown = match result {
                OutcomeResult::Applied { .. } => return Ok(()),
                OutcomeResult::Refused(RefusedCommand::BelowLiveUse { .. }) => true,
                OutcomeResult::Failed { retryable, .. } => retryable,
                _ => false,
            };
            ensure!(unknown, "not shrunk: {result:?}");
            self.listen(guest).await?;
            result = self.set(guest, memory(mib)).await?;
        }
        bail!("never known what {} uses: {result:?}", guest.name())
    }
}

fn memory(mib: u64) -> Setting {
    Setting::Memory { bytes: mib * MIB }
}

/// `MemTotal` by the guest's own last word, in MiB.
fn guest_memory_mib(guest: &Guest) -> Result<u64> {
    Ok(guest.reports()?.last().context("the guest has said nothing yet")?.memory_kib / 1024)
}

fn guest_cpus(guest: &Guest) -> Result<u32> {
    Ok(guest.reports()?.last().context("the guest has said nothing yet")?.cpus)
}

/// The value of a field as virsh prints it: `NAME : VALUE`.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
    let value = line.and_then(|line| line.split(':').nth(1)).with_context(|| format!("no {name} in {text}"))?;
    Ok(value.trim().parse()?)
}

/// What libvirt says the balloon leaves to the guest, in MiB.
fn balloon_mib(guest: &Guest) -> Result<u64> {
    let text = guest.host().virsh(["dommemstat", guest.name()])?;
    let line = text.lines().find_map(|line| line.strip_prefix("actual ")).with_context(|| format!("none in {text}"))?;
    Ok(line.trim().parse::<u64>()? / 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_means_is_bounded_takes_effect_and_is_undone_by_a_release() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut bench, g1, g2) = Bench::up("means").await?;
    ensure!(bench.brain.hello.facts.means == Means::ALL, "the hello tells of {:?}", bench.brain.hello.facts.means);

    memory_is_the_guests(&mut bench, &g1).await?;
    no_balloon_no_memory(&mut bench, &g2).await?;
    weights_share_a_cpu(&mut bench, &g1, &g2).await?;
    disks_are_limited_in_qemu(&mut bench, &g1, &g2).await?;
    interfaces_are_limited_by_tc(&mut bench, &g1).await?;
    vcpus_are_plugged(&mut bench, &g1).await?;
    everything_is_undone(&mut bench, &g1).await
}

async fn memory_is_the_guests(bench: &mut Bench, g1: &Guest) -> Result<()> {
    bench.until(g1, "the guest's first word", || Ok(!g1.reports()?.is_empty())).await?;
    let small_mib = guest_memory_mib(g1)?;
    // The agent has just started: until it has seen an answer of the driver it does not know that there is one.
    let mut grown = bench.set(g1, memory(192)).await?;
    for _ in 0..60 {
        if matches!(grown, OutcomeResult::Applied { .. }) {
            break;
        }
        bench.listen(g1).await?;
        grown = bench.set(g1, memory(192)).await?;
    }
    let OutcomeResult::Applied { before, after, .. } = &grown else { bail!("not grown: {grown:?}") };
    // The agent reports how far the balloon came while it watched; the last MiB may still be on its way.
    let nearly = matches!(after[0], Setting::Memory { bytes } if (190 << 20..=192 << 20).contains(&bytes));
    ensure!(before[0] == memory(128) && nearly, "from {} to {}", before[0], after[0]);
    bench
        .until(g1, "the guest to have 64 MiB more", || {
            Ok(guest_memory_mib(g1)? >= small_mib + 60 && balloon_mib(g1)? == 192)
        })
        .await?;
    let large_mib = guest_memory_mib(g1)?;
    let too_much = bench.refused(g1, memory(193)).await?;
    ensure!(too_much == RefusedCommand::AboveCeiling { ceiling: memory(192) }, "{too_much:?}");

    bench.shrink_when_known(g1, 184).await?;
    bench
        .until(g1, "the guest to have 8 MiB less", || {
            Ok(guest_memory_mib(g1)? <= large_mib - 6 && balloon_mib(g1)? == 184)
        })
        .await?;
    let step = bench.refused(g1, memory(160)).await?;
    ensure!(matches!(step, RefusedCommand::StepTooLarge { .. }), "{step:?}");
    let starving = bench.refused(g1, memory(90)).await?;
    ensure!(matches!(starving, RefusedCommand::BelowLiveUse { .. }), "{starving:?}");
    ensure!(balloon_mib(g1)? == 184, "a refused command moved the balloon");
    Ok(())
}

async fn no_balloon_no_memory(bench: &mut Bench, g2: &Guest) -> Result<()> {
    let refused = bench.refused(g2, memory(150)).await?;
    ensure!(refused == RefusedCommand::Unsupported { means: Means::Memory }, "{refused:?}");
    let log = bench.stack.agent_log("h1")?;
    ensure!(log.contains("absent"), "the log does not say that g2 has no balloon");
    Ok(())
}

async fn weights_share_a_cpu(bench: &mut Bench, g1: &Guest, g2: &Guest) -> Result<()> {
    let off_scale = bench.refused(g1, Setting::CpuWeight { weight: 20_000 }).await?;
    ensure!(matches!(off_scale, RefusedCommand::AboveCeiling { .. }), "{off_scale:?}");
    let (before, after) = bench.apply(g1, Setting::CpuWeight { weight: 300 }).await?;
    ensure!(before == Setting::CpuWeight { weight: 100 } && after == Setting::CpuWeight { weight: 300 });
    let dir = g1.cgroup_dir("cpu")?;
    let raw = fs::read_to_string(dir.join("cpu.shares")).or_else(|_| fs::read_to_string(dir.join("cpu.weight")))?;
    ensure!(["3072", "300"].contains(&raw.trim()), "the cgroup has {raw}");
    let used = || -> Result<[f64; 2]> { Ok([g1.cpu_time_s()?, g2.cpu_time_s()?]) };
    let before = used()?;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        bench.listen(g1).await?;
    }
    let after = used()?;
    let ratio = (after[0] - before[0]) / (after[1] - before[1]);
    println!("CPU time at weights 300 and 100: {ratio:.2} to 1");
    ensure!((2.2..4.0).contains(&ratio), "weights of 300 and 100 share a CPU {ratio:.2} to 1");
    Ok(())
}

async fn disks_are_limited_in_qemu(bench: &mut Bench, g1: &Guest, g2: &Guest) -> Result<()> {
    let limit = Setting::DiskLimit { bytes_per_s: Some(5 * MIB), operations_per_s: Some(200) };
    bench.apply(g1, limit).await?;
    let tune = g1.host().virsh(["blkdeviotune", g1.name(), "vda"])?;
    ensure!(field(&tune, "total_bytes_sec")? == 5 * MIB && field(&tune, "total_iops_sec")? == 200, "{tune}");
    // A second change starts from a limited disk, which QEMU has put into a group of its own.
    bench.apply(g1, Setting::DiskLimit { bytes_per_s: Some(6 * MIB), operations_per_s: None }).await?;
    let starving = bench.refused(g1, Setting::DiskLimit { bytes_per_s: Some(1), operations_per_s: None }).await?;
    ensure!(matches!(starving, RefusedCommand::BelowFloor { .. }), "{starving:?}");
    match bench.set(g2, limit).await? {
        OutcomeResult::Failed { error, retryable: false } => ensure!(error.contains("no disk"), "{error}"),
        other => bail!("a VM without disks: {other:?}"),
    }
    Ok(())
}

/// On a kernel without the queueing disciplines that libvirt uses, it is told so and nothing is left behind.
async fn interfaces_are_limited_by_tc(bench: &mut Bench, g1: &Guest) -> Result<()> {
    let host = g1.host();
    let list = host.virsh(["domiflist", g1.name()])?;
    let device = list.split_whitespace().find(|word| word.starts_with("vnet")).context("no tap")?.to_owned();
    let qdiscs = || run(host, "tc", &["qdisc", "show", "dev", &device]);
    let limit = Setting::NetworkLimit { in_bytes_per_s: Some(1_000_000), out_bytes_per_s: Some(500_000) };
    match bench.set(g1, limit).await? {
        OutcomeResult::Applied { .. } => {
            let tune = host.virsh(["domiftune", g1.name(), &device])?;
            ensure!(field(&tune, "inbound.average")? == 1000 && field(&tune, "outbound.average")? == 500, "{tune}");
            let classes = run(host, "tc", &["class", "show", "dev", &device])?;
            ensure!(classes.contains("rate 8Mbit"), "{classes}");
        }
        OutcomeResult::Failed { error, retryable: false } => {
            let lacking = run(host, "tc", &["qdisc", "add", "dev", "means0", "root", "sfq"]).is_err();
            ensure!(lacking, "this kernel has what it takes: {error}");
            ensure!(error.contains("queueing discipline"), "{error}");
            ensure!(!qdiscs()?.contains("htb"), "left behind: {}", qdiscs()?);
        }
        other => bail!("neither limited nor told why: {other:?}"),
    }
    Ok(())
}

async fn vcpus_are_plugged(bench: &mut Bench, g1: &Guest) -> Result<()> {
    let too_many = bench.refused(g1, Setting::Vcpus { count: 3 }).await?;
    ensure!(too_many == RefusedCommand::AboveCeiling { ceiling: Setting::Vcpus { count: 2 } }, "{too_many:?}");
    bench.apply(g1, Setting::Vcpus { count: 2 }).await?;
    bench.until(g1, "the guest to see two CPUs", || Ok(guest_cpus(g1)? == 2)).await?;
    // QEMU does not finish an unplug under emulation, and a real guest may refuse it.
    for expected in ["timed out", "not tried again"] {
        match bench.set(g1, Setting::Vcpus { count: 1 }).await? {
            OutcomeResult::Applied { .. } => return Ok(()),
            OutcomeResult::Failed { error, retryable: false } => {
                ensure!(error.contains("irreversible until it is restarted") && error.contains(expected), "{error}");
            }
            other => bail!("neither unplugged nor irreversible: {other:?}"),
        }
    }
    Ok(())
}

async fn everything_is_undone(bench: &mut Bench, g1: &Guest) -> Result<()> {
    let released = bench.order(g1, Action::Release).await?;
    // What can be undone is, whatever cannot: the answer names the vCPU that the guest keeps.
    match &released {
        OutcomeResult::Applied { .. } => {}
        OutcomeResult::Failed { error, .. } => {
            ensure!(error.contains("vCPUs") && error.contains("irreversible"), "{error}");
        }
        other => bail!("not released: {other:?}"),
    }
    bench.until(g1, "the balloon to be back", || Ok(balloon_mib(g1)? == 128)).await?;
    let dir = g1.cgroup_dir("cpu")?;
    let raw = fs::read_to_string(dir.join("cpu.shares")).or_else(|_| fs::read_to_string(dir.join("cpu.weight")))?;
    ensure!(["1024", "100"].contains(&raw.trim()), "the weight is {raw} after the release");
    let tune = g1.host().virsh(["blkdeviotune", g1.name(), "vda"])?;
    ensure!(field(&tune, "total_bytes_sec")? == 0 && field(&tune, "total_iops_sec")? == 0, "{tune}");
    let list = g1.host().virsh(["domiflist", g1.name()])?;
    let device = list.split_whitespace().find(|word| word.starts_with("vnet")).context("no tap")?.to_owned();
    let tune = g1.host().virsh(["domiftune", g1.name(), &device])?;
    ensure!(field(&tune, "inbound.average")? == 0 && field(&tune, "outbound.average")? == 0, "{tune}");
    Ok(())
}
