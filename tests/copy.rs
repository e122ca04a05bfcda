//! Shadows of a VM whose disks are no layers on an image: copied as they are at one moment while its guest writes, and gone with the shadow.

#[path = "copy/sent.rs"]
mod sent;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gnomon_common::wire::{
    Action, Base, Blueprint, Command, CommandId, DiskCopy, Fence, Imaged, Imaging, OutcomeResult, ShadowDone,
    ShadowOrder, ShadowSize, ShadowSpec, Unshadowable, VmId,
};
use gnomon_core::policy::ShadowPolicy;
use gnomon_e2e::usurper::Usurper;
use gnomon_e2e::{let_shadow, observing, reconfigure, redefine, run, skipped, wait_for};
use serde_json::{Value, json};
use uuid::Uuid;
use xtask::lab::{Guest, GuestOptions, Host, Lab, Options};
use xtask::stack::{AgentSettings, BrainSettings, Mode, Stack, demo_policy};

const TERM: u64 = 7;
const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// The first disk, to whose ends the guest writes; what is between is never written to.
const COUNTED_BYTES: u64 = 640 * MIB;
const UNTOUCHED: std::ops::Range<u64> = 16 * MIB..624 * MIB;
const SECOND_BYTES: u64 = 8 * MIB;
/// Both disks are read within this many bytes a second, half of that each. QEMU has up to 64 MiB of a disk under way before it hears of that, and as
/// much as it reads in the moment until then: what is left of the middle of the first takes 10 s and more.
const COPY_BYTES_PER_S: u64 = 48 * MIB;
/// No guest stands still for longer because its disks are copied.
const STALL_MAX_S: f64 = 2.0;

/// A guest on the first of two hosts, with a qcow2 and a raw disk and no image below either, that counts on the first.
fn counting(name: &str) -> Result<(Lab, Guest)> {
    let lab = Lab::up(Options::new(name, 2))?;
    let here = lab.hosts()[0].clone();
    let guest = lab.define(&here, &GuestOptions::new("g1", "constant:0.1".parse()?))?;
    let [plain, first, second] = ["plain.raw", "g1.qcow2", "g1.raw"].map(|file| lab.dir().join(file));
    let file = File::create(&plain)?;
    file.set_len(COUNTED_BYTES)?;
    file.write_all_at(&untouched(), UNTOUCHED.start)?;
    let path = |file: &Path| file.to_string_lossy().into_owned();
    run(&here, "qemu-img", &["convert", "-q", "-O", "qcow2", &path(&plain), &path(&first)])?;
    fs::remove_file(&plain)?;
    fs::write(&second, vec![0xa5; usize::try_from(SECOND_BYTES)?])?;
    redefine(&guest, |xml| {
        let disk = |format: &str, file: &Path, device: &str| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
                 <target dev='{device}' bus='virtio'/></disk>",
                file.display()
            )
        };
        let disks = disk("qcow2", &first, "vda") + &disk("raw", &second, "vdb") + "</devices>";
        Ok(xml.replace("</devices>", &disks).replace("gnomon.load=", "gnomon.count gnomon.load="))
    })?;
    lab.boot(std::slice::from_ref(&guest))?;
    wait_for("the guest to count", Duration::from_secs(60), || Ok(counted(&guest)?.len() > 5))?;
    Ok((lab, guest))
}

/// What is in the middle of the first disk.
fn untouched() -> Vec<u8> {
    UNTOUCHED.map(|place| (place / 7 % 251) as u8).collect()
}

/// When a guest had written each number, in seconds of its own clock.
fn counted(guest: &Guest) -> Result<Vec<f64>> {
    let console = fs::read_to_string(guest.console_path())?;
    let at = |line: &str| line.trim().strip_prefix("lab-count ")?.split_once(" at ")?.1.strip_suffix('.')?.parse().ok();
    Ok(console.lines().filter_map(at).collect())
}

/// How long a guest stood still at most between two numbers, from one of them on, in seconds.
fn longest_pause_s(times: &[f64], from: usize) -> f64 {
    times[from.min(times.len())..].windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

/// The folder with all that the guest boots from, and the lab's own.
fn image_paths(lab: &Lab, host: &Host) -> Result<Vec<String>> {
    let mut paths = vec![lab.dir().to_string_lossy().into_owned()];
    let definition = host.virsh(["dumpxml", "g1"])?;
    for tag in ["kernel", "initrd"] {
        let file = definition.split(&format!("<{tag}>")).nth(1).and_then(|rest| rest.split('<').next());
        paths.push(file.and_then(|file| file.rsplit_once('/')).with_context(|| format!("no <{tag}>"))?.0.to_owned());
    }
    Ok(paths)
}

/// Has both hosts' agents copy disks into a directory of the lab, which both see, and the second take shadows. They must not run. Returns where the
/// first host's copies are.
fn let_copy(stack: &Stack, images: &[String]) -> Result<PathBuf> {
    let directory = stack.lab.dir().join("copies");
    let copies = format!("copies_directory = {directory:?}\ncopies_reserve_bytes = 268435456\n");
    reconfigure(stack, "h1", &[], &format!("[shadow]\n{copies}"))?;
    let_shadow(stack, stack.lab.host("h2")?, images)?;
    reconfigure(stack, "h2", &[("[shadow]\n", &format!("[shadow]\n{copies}"))], "")?;
    Ok(directory.join("h1"))
}

/// What is in a directory, by name, if there is one.
fn listed(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What a disk says: the last number from its beginning, and from its end; and that what is between is as it was.
fn last_counts(host: &Host, file: &str) -> Result<(u64, u64)> {
    let out = host.dir().join("converted.raw");
    run(host, "qemu-img", &["convert", "-q", "-O", "raw", file, &out.to_string_lossy()])?;
    let read = fs::read(&out)?;
    fs::remove_file(&out)?;
    ensure!(read.len() as u64 == COUNTED_BYTES, "{} bytes", read.len());
    let middle = usize::try_from(UNTOUCHED.start)?..usize::try_from(UNTOUCHED.end)?;
    ensure!(read[middle] == untouched(), "{file} differs");
    let sectors = COUNTED_BYTES / SECTOR;
    let number = |sector: u64| -> Option<u64> {
        let start = usize::try_from(sector * SECTOR).ok()?;
        std::str::from_utf8(&read[start..start + 12]).ok()?.strip_prefix("count ")?.trim().parse().ok()
    };
    let most = UNTOUCHED.start / SECTOR;
    let count = |sector: &dyn Fn(u64) -> u64| -> Result<u64> {
        let last = (1..most).take_while(|n| number(sector(*n)) == Some(*n)).last().unwrap_or(0);
        let beyond = (last + 1..most).find(|n| number(sector(*n)).is_some());
        ensure!(beyond.is_none(), "{file} has {last} and {beyond:?}, and not what is between");
        Ok(last)
    };
    Ok((count(&|n| n)?, count(&|n| sectors - n)?))
}

/// The guest's host and the other one, whose agents obey a played brain.
struct Scene {
    stack: Stack,
    guest: Guest,
    brain: Usurper,
    here: Host,
    there: Host,
    copies: PathBuf,
    commands: u64,
}

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        Self::configured(name, let_copy).await
    }

    /// With agents that are configured like this, which says where the first host's copies are.
    async fn configured(name: &str, configure: impl Fn(&Stack, &[String]) -> Result<PathBuf>) -> Result<Self> {
        let (lab, guest) = counting(name)?;
        let (here, there) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
        let images = image_paths(&lab, &here)?;
        let mut stack = Stack::start(lab, observing(), &AgentSettings::default())?;
        for host in ["h1", "h2"] {
            stack.stop_agent(host)?;
        }
        let copies = configure(&stack, &images)?;
        stack.kill_brain()?;
        stack.launch_agent("h1")?;
        let brain = Usurper::welcome(&stack.lab, &stack.brain_dir(), TERM).await?;
        Ok(Self { stack, guest, brain, here, there, copies, commands: 0 })
    }

    fn production(&self) -> VmId {
        VmId(self.guest.uuid())
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

    fn image(&mut self, shadow: VmId) -> Command {
        let bandwidth_bytes_per_s = Some(COPY_BYTES_PER_S);
        let imaging = Imaging { shadow, bandwidth_bytes_per_s, timeout_ms: 120_000, send_to: None };
        self.command(self.production(), Action::Image(imaging))
    }

    async fn order(&mut self, shadow: VmId, order: ShadowOrder) -> Result<OutcomeResult> {
        let command = self.command(shadow, Action::Shadow(order));
        Ok(self.brain.command(&command).await?.result)
    }

    async fn describe(&mut self) -> Result<Blueprint> {
        for _ in 0..40 {
            let command = self.command(self.production(), Action::Describe);
            match self.brain.command(&command).await?.result {
                OutcomeResult::Described(blueprint) => return Ok(*blueprint),
                // Before its definition was read nothing is obeyed.
                OutcomeResult::Failed { retryable: true, .. } => {
                    drop(self.brain.serve(Duration::from_millis(500)).await?);
                }
                other => bail!("not described: {other:?}"),
            }
        }
        bail!("the agent does not know the guest")
    }

    async fn imaged(&mut self, command: &Command) -> Result<Imaged> {
        match self.brain.outcome(|outcome| outcome.id == command.id).await?.result {
            OutcomeResult::Imaged(imaged) => Ok(*imaged),
            other => bail!("{other:?}"),
        }
    }

    /// Whether libvirt copies the guest's disks now.
    fn is_copying(&self) -> bool {
        self.here.virsh(["backup-dumpxml", "g1"]).is_ok()
    }

    /// Serves the agent until libvirt copies.
    async fn copying(&mut self) -> Result<()> {
        for _ in 0..100 {
            if self.is_copying() {
                return Ok(());
            }
            let told = self.brain.serve(Duration::from_millis(100)).await?;
            ensure!(told.is_empty(), "libvirt has no backup: {told:?}\n{}", self.log());
        }
        bail!("libvirt has no backup:\n{}", self.log())
    }

    /// The shadow runs: its guest finds what was counted before, and goes on with it.
    async fn stands_on_the_copy(&mut self) -> Result<()> {
        let (there, pty) = (self.there.clone(), self.there.virsh(["ttyconsole", "g1.shadow"])?);
        let read =
            tokio::task::spawn_blocking(move || there.command("timeout").args(["40", "cat", pty.trim()]).output());
        self.brain.serve(Duration::from_secs(40)).await?;
        let said = String::from_utf8_lossy(&read.await??.stdout).into_owned();
        ensure!(said.contains("lab-count found: count1"), "it does not stand on the copy: {said}");
        ensure!(said.contains("lab-count 2 at"), "it does not write: {said}");
        Ok(())
    }

    /// What the first host's agent says, for errors.
    fn log(&self) -> String {
        fs::read_to_string(self.here.dir().join("agent.log")).unwrap_or_default()
    }

    async fn relaunch(&mut self, from: &str, to: &str) -> Result<()> {
        if from == to {
            self.stack.kill_agent(from)?;
        } else {
            self.stack.stop_agent(from)?;
        }
        self.stack.launch_agent(to)?;
        self.brain.welcome_next(TERM).await
    }
}

fn spec(of: VmId, mut blueprint: Blueprint, copies: &[(String, DiskCopy)]) -> ShadowSpec {
    for disk in &mut blueprint.disks {
        let copy = copies.iter().find(|(device, _)| *device == disk.device);
        disk.base = copy.map_or(Base::None, |(_, copy)| Base::Copied(copy.clone()));
    }
    let size = ShadowSize {
        cpu_cores: 0.35,
        vcpus: 1,
        cpu_weight: 50,
        memory_bytes: 128 * MIB,
        disk_bytes_per_s: None,
        network_bytes_per_s: None,
    };
    ShadowSpec { of, blueprint, size }
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_copied_as_they_are_at_one_moment_and_a_killed_agent_leaves_neither_half_nor_two() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = Scene::new("copy").await?;
    let blueprint = scene.describe().await?;
    let bases: Vec<_> = blueprint.disks.iter().map(|disk| (disk.base.clone(), disk.size_bytes)).collect();
    ensure!(bases == [(Base::Copyable, COUNTED_BYTES), (Base::Copyable, SECOND_BYTES)], "{blueprint:?}");

    // An agent is killed in the middle, twice; the copy goes on, and there is one.
    let (shadow, before) = (VmId(Uuid::new_v4()), counted(&scene.guest)?.len());
    let (image, begun) = (scene.image(shadow), Instant::now());
    scene.brain.send(&image).await?;
    for _ in 0..2 {
        scene.copying().await?;
        scene.relaunch("h1", "h1").await?;
        ensure!(scene.brain.hello.facts.copies.made == Some(vec![shadow]), "{:?}", scene.brain.hello.facts.copies);
        println!("the job goes on: {:?}", scene.here.virsh(["domjobinfo", "g1"]));
        ensure!(scene.is_copying(), "the copy was given up, or is too fast: {}", scene.log());
        scene.brain.send(&image).await?;
    }
    let imaged = scene.imaged(&image).await?;
    let (took, times) = (begun.elapsed(), counted(&scene.guest)?);
    let pause_s = longest_pause_s(&times, before);
    let quiet_s = longest_pause_s(&times[..before], 0);
    println!("copied in {took:.1?}: {imaged:?}; {} numbers meanwhile", times.len() - before);
    println!("the guest stood still for {pause_s:.2} s at most, and for {quiet_s:.2} s before");
    // The middle of the first disk, at its half of the speed, would be 24 s.
    ensure!(took > Duration::from_secs(8), "it is not slowed down: {took:?}");
    ensure!(times.len() > before + 5 && pause_s < STALL_MAX_S, "it stood still for {pause_s} s");
    ensure!(listed(&scene.copies) == [shadow.to_string()], "{:?}", listed(&scene.copies));
    let folder = scene.copies.join(shadow.to_string());
    ensure!(listed(&folder) == ["copy.json", "vda.qcow2", "vdb.qcow2"], "{:?}", listed(&folder));

    // One moment: as many numbers from the beginning as from the end, or one more, which was being written.
    for (device, copy) in &imaged.disks {
        run(&scene.here, "qemu-img", &["check", "-q", &copy.path])?;
        ensure!(Path::new(&copy.path).metadata()?.permissions().mode() & 0o777 == 0o600, "{device}");
        let sum = run(&scene.here, "sha256sum", &[&copy.path])?;
        ensure!(sum.starts_with(&copy.sha256) && copy.bytes == Path::new(&copy.path).metadata()?.len(), "{sum}");
    }
    let [(_, first), (_, second)] = imaged.disks.as_slice() else { bail!("{imaged:?}") };
    let (from_start, from_end) = last_counts(&scene.here, &first.path)?;
    println!("the copy has {from_start} numbers from its beginning, {from_end} from its end");
    ensure!(from_start == from_end || from_start == from_end + 1, "{from_start} and {from_end}");
    ensure!(from_end + 1 >= before as u64 && from_end < times.len() as u64, "it is of another time");
    run(
        &scene.here,
        "qemu-img",
        &["compare", "-q", "-U", &second.path, &scene.stack.lab.dir().join("g1.raw").to_string_lossy()],
    )?;

    // Nobody served the agent while files were read. In its next life again is as once. Another one is given up as its shadow is retired.
    scene.relaunch("h1", "h1").await?;
    let again = scene.image(shadow);
    scene.brain.send(&again).await?;
    ensure!(scene.imaged(&again).await?.disks == imaged.disks && !scene.is_copying());
    let other = VmId(Uuid::new_v4());
    let image = scene.image(other);
    scene.brain.send(&image).await?;
    scene.copying().await?;
    let retire = scene.command(other, Action::Shadow(ShadowOrder::Retire));
    scene.brain.send(&retire).await?;
    let given_up = scene.brain.outcome(|outcome| outcome.id == image.id).await?.result;
    ensure!(matches!(&given_up, OutcomeResult::Failed { error, .. } if error.contains("is retired")), "{given_up:?}");
    let retired = scene.brain.outcome(|outcome| outcome.id == retire.id).await?.result;
    ensure!(retired == OutcomeResult::Shadow(ShadowDone::Retired), "{retired:?}");
    ensure!(!scene.is_copying() && listed(&scene.copies) == [shadow.to_string()], "{:?}", listed(&scene.copies));
    // One whose libvirt job somebody else ends leaves nothing either.
    let image = scene.image(other);
    scene.brain.send(&image).await?;
    scene.copying().await?;
    scene.here.virsh(["domjobabort", "g1"])?;
    let aborted = scene.brain.outcome(|outcome| outcome.id == image.id).await?.result;
    ensure!(
        matches!(&aborted, OutcomeResult::Failed { error, retryable: true } if error.contains("cancelled")),
        "{aborted:?}"
    );
    ensure!(listed(&scene.copies) == [shadow.to_string()], "{:?}", listed(&scene.copies));

    // The other host makes a shadow of that, and only of what was made.
    scene.relaunch("h1", "h2").await?;
    let production = scene.production();
    let refused = scene.order(shadow, ShadowOrder::Copy(Box::new(spec(production, blueprint.clone(), &[])))).await?;
    ensure!(refused == OutcomeResult::Unshadowable(Unshadowable::NoBase("vda".to_owned())), "{refused:?}");
    let mut changed = imaged.disks.clone();
    changed[1].1.sha256 = "0".repeat(64);
    let refused =
        scene.order(shadow, ShadowOrder::Copy(Box::new(spec(production, blueprint.clone(), &changed)))).await?;
    ensure!(refused == OutcomeResult::Unshadowable(Unshadowable::Damaged(second.path.clone())), "{refused:?}");
    let copied = scene.order(shadow, ShadowOrder::Copy(Box::new(spec(production, blueprint, &imaged.disks)))).await?;
    ensure!(matches!(copied, OutcomeResult::Shadow(ShadowDone::Copied { .. })), "{copied:?}");
    let started = scene.order(shadow, ShadowOrder::Start).await?;
    ensure!(matches!(started, OutcomeResult::Shadow(ShadowDone::Started { .. })), "{started:?}");
    scene.stands_on_the_copy().await?;
    let retired = scene.order(shadow, ShadowOrder::Retire).await?;
    ensure!(retired == OutcomeResult::Shadow(ShadowDone::Retired), "{retired:?}");
    let sum = run(&scene.here, "sha256sum", &[&first.path])?;
    ensure!(sum.starts_with(&first.sha256), "the copy was written to");

    // Where they were made they are deleted.
    ensure!(listed(&scene.copies) == [shadow.to_string()], "{:?}", listed(&scene.copies));
    scene.relaunch("h2", "h1").await?;
    ensure!(scene.brain.hello.facts.copies.made == Some(vec![shadow]), "{:?}", scene.brain.hello.facts.copies);
    let retired = scene.order(shadow, ShadowOrder::Retire).await?;
    ensure!(retired == OutcomeResult::Shadow(ShadowDone::Retired) && listed(&scene.copies).is_empty());

    // The production has all that its guest wrote, and nothing else.
    let counted = counted(&scene.guest)?.len() as u64;
    scene.guest.destroy()?;
    let own = scene.stack.lab.dir().join("g1.qcow2");
    run(&scene.here, "qemu-img", &["check", "-q", &own.to_string_lossy()])?;
    let (from_start, from_end) = last_counts(&scene.here, &own.to_string_lossy())?;
    ensure!(from_end >= counted && from_start <= from_end + 1, "{from_start} and {from_end} of {counted}");
    ensure!(fs::read(scene.stack.lab.dir().join("g1.raw"))?.iter().all(|byte| *byte == 0xa5), "vdb has changed");
    Ok(())
}

fn settings() -> BrainSettings {
    let mut policy = demo_policy();
    policy.cpu.floor_cores = 1.0;
    policy.shadow = ShadowPolicy {
        mode: Mode::Auto,
        every_vm: true,
        lead_ms: 4_000,
        pace_ms: 4_000,
        boot_timeout_ms: 120_000,
        cool_down_ms: 10_000,
        copy_bytes_per_s_max: COPY_BYTES_PER_S,
        ..ShadowPolicy::default()
    };
    BrainSettings { policy, heartbeat_ms: 500 }
}

/// The shadow of the guest, as the brain tells.
fn shadow(stack: &Stack) -> Result<Value> {
    stack.api().get("/api/v1/vms/g1/shadow")
}

#[test]
fn with_its_owner_s_word_alone_a_vm_without_a_base_has_a_shadow_and_without_it_none() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (lab, guest) = counting("copyword")?;
    let (here, there) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
    let images = image_paths(&lab, &here)?;
    let mut stack = Stack::start(lab, settings(), &AgentSettings::default())?;
    for host in ["h1", "h2"] {
        stack.stop_agent(host)?;
    }
    let copies = let_copy(&stack, &images)?;
    for host in ["h1", "h2"] {
        stack.start_agent(host)?;
    }
    let told = |stack: &Stack| format!("{:?}\n{:?}", shadow(stack), stack.api().get("/api/v1/audit?limit=40"));
    wait_for("it to be parked", Duration::from_secs(90), || {
        Ok(shadow(&stack).is_ok_and(|it| it["state"] == "parked" && it["detail"].to_string().contains("no layer")))
    })
    .with_context(|| told(&stack))?;
    ensure!(listed(&copies).is_empty(), "{:?}", listed(&copies));

    let word = "<policy copy_disks='yes'/>";
    here.virsh(["metadata", "g1", "urn:gnomon:policy:1", "--live", "--key", "gnomon", "--set", word])?;
    let before = counted(&guest)?.len();
    wait_for("a shadow that runs", Duration::from_secs(240), || {
        Ok(shadow(&stack).is_ok_and(|it| it["state"] == "booting" || it["state"] == "pacing"))
    })
    .with_context(|| told(&stack))?;
    let pause_s = longest_pause_s(&counted(&guest)?, before);
    let view = shadow(&stack)?;
    let id = view["id"].as_str().context("no id")?.to_owned();
    println!("{view}; the guest stood still for {pause_s:.2} s at most");
    ensure!(pause_s < STALL_MAX_S, "the guest stood still for {pause_s} s");
    ensure!(view["copies"]["on"] == "h1" && listed(&copies) == [id], "{view} {:?}", listed(&copies));

    stack.api().delete("/api/v1/vms/g1/shadow")?;
    wait_for("it to be gone", Duration::from_secs(60), || {
        Ok(stack.api().get("/api/v1/shadows")? == json!([]) && listed(&copies).is_empty())
    })
    .with_context(|| told(&stack))?;
    ensure!(!there.virsh(["list", "--all", "--name"])?.contains("g1.shadow"));
    let audit = stack.api().get("/api/v1/audit?limit=1000")?.to_string();
    for words in ["shadow_copied", "shadow_copies_deleted", "SHA-256", "wanted -> imaging"] {
        ensure!(audit.contains(words), "{words:?} is not in the audit log");
    }
    Ok(())
}
