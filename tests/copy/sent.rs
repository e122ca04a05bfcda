//! Copies of disks that are sent to a host without a shared folder.
//!
//! `/var` of each lab host is a layer of its own over the machine's: one path, another file on each host.

use gnomon_common::wire::{KeptCopies, Receiving};

use super::*;

const COPIES: &str = "/var/lib/gnomon-copies";
const RECEIVED: &str = "/var/lib/gnomon-received";
const RECEIVED_BYTES_MAX: u64 = 2 << 30;

fn sh(host: &Host, script: &str) -> Result<String> {
    run(host, "sh", &["-euc", script])
}

/// What is in a folder of a host.
fn names(host: &Host, folder: &str) -> Result<Vec<String>> {
    Ok(sh(host, &format!("test ! -d {folder} || ls {folder}"))?.lines().map(str::to_owned).collect())
}

/// A folder of a host that no other one sees, and not in memory.
fn own_folder(host: &Host, folder: &str) -> Result<()> {
    let disk = host.dir().join("own").join(folder.trim_start_matches('/'));
    sh(host, &format!("mkdir -p {folder} {0} && mount --bind {0} {folder}", disk.display())).map(drop)
}

/// Folders of both hosts that the other one does not see; has the first one's agent copy disks, and the second one's take shadows. They must not run.
fn let_copy_apart(stack: &Stack, images: &[String]) -> Result<PathBuf> {
    let (here, there) = (stack.lab.host("h1")?, stack.lab.host("h2")?);
    own_folder(here, COPIES)?;
    own_folder(there, RECEIVED)?;
    there.virsh(["pool-define-as", "received", "dir", "--target", RECEIVED])?;
    there.virsh(["pool-start", "received"])?;
    let copies = format!("copies_directory = {COPIES:?}\ncopies_reserve_bytes = 268435456\n");
    reconfigure(stack, "h1", &[], &format!("[shadow]\n{copies}"))?;
    // The lab's folder, which both see, is not where the copies are.
    let_shadow(stack, there, images)?;
    Ok(PathBuf::from(COPIES).join("h1"))
}

/// Has the second host's agent take copies that are sent. It must not run.
fn let_receive(stack: &Stack) -> Result<()> {
    let received = format!("[shadow]\nreceived_directory = {RECEIVED:?}\nreceived_bytes_max = {RECEIVED_BYTES_MAX}\n");
    let migration = format!("[migration]\nuri = {:?}\n", stack.lab.host("h2")?.migration_uri());
    reconfigure(stack, "h2", &[("[shadow]\n", &received)], &migration)
}

fn receiving(there: &Host) -> Receiving {
    let (uri, directory) = (there.migration_uri(), RECEIVED.to_owned());
    Receiving { uri, directory, owner: 0, group: 0, bytes_max: RECEIVED_BYTES_MAX }
}

impl Scene {
    fn image_and_send(&mut self, shadow: VmId) -> Command {
        let send_to = Some(receiving(&self.there));
        let bandwidth_bytes_per_s = Some(COPY_BYTES_PER_S);
        let imaging = Imaging { shadow, bandwidth_bytes_per_s, timeout_ms: 240_000, send_to };
        self.command(self.production(), Action::Image(imaging))
    }

    /// So much of a shadow's copies is on the other host, by the sender's journal, in bytes.
    fn noted_bytes(&self, shadow: VmId) -> Result<u64> {
        let journal = sh(&self.here, &format!("cat {COPIES}/h1/{shadow}/send.json 2>/dev/null || echo null"))?;
        Ok(serde_json::from_str::<Value>(&journal)?["bytes"].as_u64().unwrap_or(0))
    }

    /// Serves the first host's agent until a part of the copies is on the other one.
    async fn sending(&mut self, shadow: VmId) -> Result<u64> {
        for _ in 0..1200 {
            let noted = self.noted_bytes(shadow)?;
            if noted > 0 {
                return Ok(noted);
            }
            let told = self.brain.serve(Duration::from_millis(100)).await?;
            ensure!(told.is_empty(), "nothing is sent: {told:?}\n{}", self.log());
        }
        bail!("nothing is sent:\n{}", self.log())
    }

    /// Serves the agent while something is looked at that takes long.
    async fn meanwhile<T: Send + 'static>(&mut self, look: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let looking = tokio::task::spawn_blocking(look);
        while !looking.is_finished() {
            self.brain.serve(Duration::from_millis(200)).await?;
        }
        looking.await?
    }

    /// The outcome of the first host's agent to a command.
    async fn becomes_of(&mut self, command: &Command) -> Result<OutcomeResult> {
        let id = command.id;
        Ok(self.brain.outcome(|outcome| outcome.id == id).await?.result)
    }

    fn libvirtd_there(&self, signal: &str) -> Result<()> {
        sh(&self.there, &format!("kill -{signal} \"$(cat /run/libvirtd.pid)\"")).map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_sent_to_a_host_without_a_shared_folder_and_whatever_breaks_leaves_one_whole_file_or_none()
-> Result<()> {
    if skipped() {
        return Ok(());
    }
    let configure = |stack: &Stack, images: &[String]| {
        let copies = let_copy_apart(stack, images)?;
        let_receive(stack)?;
        Ok(copies)
    };
    let mut scene = Scene::configured("send", configure).await?;
    let blueprint = scene.describe().await?;
    let (shadow, before) = (VmId(Uuid::new_v4()), counted(&scene.guest)?.len());
    let image = scene.image_and_send(shadow);
    scene.brain.send(&image).await?;

    // The agent is killed while it sends: it goes on from where it was.
    let noted = scene.sending(shadow).await?;
    ensure!(!scene.is_copying(), "libvirt still copies");
    scene.relaunch("h1", "h1").await?;
    ensure!(scene.brain.hello.facts.copies.made == Some(vec![shadow]), "{:?}", scene.brain.hello.facts.copies);
    ensure!(scene.noted_bytes(shadow)? >= noted, "it was begun anew");
    scene.brain.send(&image).await?;
    let imaged = scene.imaged(&image).await?;
    println!("killed after {noted} bytes; {imaged:?}");
    ensure!(scene.log().contains("goes on"), "{}", scene.log());
    let times = counted(&scene.guest)?;
    let pause_s = longest_pause_s(&times, before);
    println!("the guest stood still for {pause_s:.2} s at most; {} numbers meanwhile", times.len() - before);
    ensure!(times.len() > before + 5 && pause_s < STALL_MAX_S, "it stood still for {pause_s} s");

    // There is one whole file for each disk, and none here.
    let files = ["vda", "vdb"].map(|device| format!("{shadow}.{device}.qcow2"));
    ensure!(names(&scene.there, RECEIVED)? == files, "{:?}", names(&scene.there, RECEIVED)?);
    ensure!(names(&scene.here, &format!("{COPIES}/h1/{shadow}"))? == ["copy.json", "send.json"]);
    ensure!(names(&scene.here, RECEIVED)?.is_empty(), "the hosts share that folder");
    let (there, disks, to) = (scene.there.clone(), imaged.disks.clone(), receiving(&scene.there));
    let look = move || -> Result<(u64, u64)> {
        for (device, copy) in &disks {
            ensure!(copy.path == to.file(shadow, device), "{copy:?}");
            let sum = sh(&there, &format!("sha256sum {0}; stat -c '%a %u %s' {0}", copy.path))?;
            ensure!(sum.starts_with(&copy.sha256) && sum.ends_with(&format!("600 0 {}\n", copy.bytes)), "{sum}");
            run(&there, "qemu-img", &["check", "-q", &copy.path])?;
        }
        let [(_, first), _] = disks.as_slice() else { bail!("{disks:?}") };
        last_counts(&there, &first.path)
    };
    let (from_start, from_end) = scene.meanwhile(look).await?;
    println!("the copy has {from_start} numbers from its beginning, {from_end} from its end");
    ensure!(from_start == from_end || from_start == from_end + 1, "{from_start} and {from_end}");
    ensure!(from_end + 1 >= before as u64 && from_end < times.len() as u64, "it is of another time");

    // Another one is given up as its shadow is retired: of that nothing is left on either host.
    let other = VmId(Uuid::new_v4());
    let image = scene.image_and_send(other);
    scene.brain.send(&image).await?;
    scene.sending(other).await?;
    let retire = scene.command(other, Action::Shadow(ShadowOrder::Retire));
    scene.brain.send(&retire).await?;
    let given_up = scene.becomes_of(&image).await?;
    ensure!(
        matches!(&given_up, OutcomeResult::Failed { error, .. } if error.ends_with("its shadow is retired")),
        "{given_up:?}"
    );
    let retired = scene.becomes_of(&retire).await?;
    ensure!(retired == OutcomeResult::Shadow(ShadowDone::Retired), "{retired:?}");
    ensure!(names(&scene.there, RECEIVED)? == files, "{:?}", names(&scene.there, RECEIVED)?);
    ensure!(!names(&scene.here, &format!("{COPIES}/h1"))?.contains(&other.to_string()));

    // The other host's libvirt hangs: nothing but that copy waits, and what is left there is said.
    let image = scene.image_and_send(other);
    scene.brain.send(&image).await?;
    scene.sending(other).await?;
    scene.libvirtd_there("STOP")?;
    let begun = Instant::now();
    scene.describe().await?;
    println!("described in {:.1?} while the other host's libvirt hangs", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(5), "an order waits for it");
    let retire = scene.command(other, Action::Shadow(ShadowOrder::Retire));
    scene.brain.send(&retire).await?;
    let given_up = scene.becomes_of(&image).await?;
    println!("given up after {:.1?}: {given_up:?}", begun.elapsed());
    ensure!(
        matches!(&given_up, OutcomeResult::Failed { error, .. } if error.contains("left there until its agent deletes it"))
    );
    let retired = scene.becomes_of(&retire).await?;
    ensure!(retired == OutcomeResult::Shadow(ShadowDone::Retired), "{retired:?}");
    scene.libvirtd_there("CONT")?;

    // The other host's agent tells of both, deletes that one, and makes a shadow on what it checks.
    scene.relaunch("h1", "h2").await?;
    let facts = scene.brain.hello.facts.clone();
    let mut known = vec![shadow, other];
    known.sort_unstable();
    ensure!(facts.copies == KeptCopies { made: None, received: Some(known) }, "{:?}", facts.copies);
    ensure!(facts.shadows.and_then(|shadows| shadows.receives) == Some(Box::new(receiving(&scene.there))));
    let retired = scene.order(other, ShadowOrder::Retire).await?;
    ensure!(retired == OutcomeResult::Shadow(ShadowDone::Retired), "{retired:?}");
    ensure!(names(&scene.there, RECEIVED)? == files, "{:?}", names(&scene.there, RECEIVED)?);
    let production = scene.production();
    let mut copy = async |shadow: VmId, copies: &[(String, DiskCopy)]| {
        let spec = spec(production, blueprint.clone(), copies);
        scene.order(shadow, ShadowOrder::Copy(Box::new(spec))).await
    };
    // Those of another shadow are not for this one.
    let refused = copy(other, &imaged.disks).await?;
    ensure!(refused == OutcomeResult::Unshadowable(Unshadowable::NoBase("vda".to_owned())), "{refused:?}");
    let mut changed = imaged.disks.clone();
    changed[1].1.sha256 = "0".repeat(64);
    let refused = copy(shadow, &changed).await?;
    ensure!(refused == OutcomeResult::Unshadowable(Unshadowable::Damaged(changed[1].1.path.clone())), "{refused:?}");
    let copied = copy(shadow, &imaged.disks).await?;
    ensure!(matches!(copied, OutcomeResult::Shadow(ShadowDone::Copied { .. })), "{copied:?}");
    let started = scene.order(shadow, ShadowOrder::Start).await?;
    ensure!(matches!(started, OutcomeResult::Shadow(ShadowDone::Started { .. })), "{started:?}");
    scene.stands_on_the_copy().await?;
    let retired = scene.order(shadow, ShadowOrder::Retire).await?;
    ensure!(retired == OutcomeResult::Shadow(ShadowDone::Retired), "{retired:?}");
    ensure!(names(&scene.there, RECEIVED)?.is_empty(), "{:?}", names(&scene.there, RECEIVED)?);

    // What the first host's agent has left to say that it has sent them is gone soon after it starts.
    scene.relaunch("h2", "h1").await?;
    ensure!(scene.brain.hello.facts.copies.made == Some(vec![]), "{:?}", scene.brain.hello.facts.copies);
    scene.brain.serve(Duration::from_secs(5)).await?;
    ensure!(
        names(&scene.here, &format!("{COPIES}/h1"))?.is_empty(),
        "{:?}",
        names(&scene.here, &format!("{COPIES}/h1"))?
    );
    Ok(())
}

#[test]
fn a_host_that_does_not_say_that_it_takes_copies_has_no_shadow_on_one_and_one_that_does_has() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (lab, guest) = counting("sendword")?;
    let (here, there) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
    let images = image_paths(&lab, &here)?;
    let mut settings = settings();
    settings.policy.shadow.copy_disks = true;
    let mut stack = Stack::start(lab, settings, &AgentSettings::default())?;
    for host in ["h1", "h2"] {
        stack.stop_agent(host)?;
    }
    let_copy_apart(&stack, &images)?;
    for host in ["h1", "h2"] {
        stack.start_agent(host)?;
    }
    let audit = |stack: &Stack| -> Result<String> { Ok(stack.api().get("/api/v1/audit?limit=1000")?.to_string()) };
    let told = |stack: &Stack| format!("{:?}\n{:?}", shadow(stack), stack.api().get("/api/v1/audit?limit=60"));
    let words = "host h2: its disk vda is no layer on an image, and copies of disks are not allowed here";
    wait_for("it to be refused in words", Duration::from_secs(180), || Ok(audit(&stack)?.contains(words)))
        .with_context(|| told(&stack))?;
    ensure!(names(&there, RECEIVED)?.is_empty() && !audit(&stack)?.contains("sent to host"));

    let nothing_is_left = |stack: &Stack| -> Result<bool> {
        let is_gone = stack.api().get("/api/v1/shadows")? == json!([]);
        Ok(is_gone && names(&there, RECEIVED)?.is_empty() && names(&here, &format!("{COPIES}/h1"))?.is_empty())
    };
    stack.api().delete("/api/v1/vms/g1/shadow")?;
    wait_for("it to be gone", Duration::from_secs(60), || nothing_is_left(&stack)).with_context(|| told(&stack))?;
    stack.stop_agent("h2")?;
    let_receive(&stack)?;
    stack.start_agent("h2")?;
    stack.api().post("/api/v1/vms/g1/shadow", &json!({}))?;
    wait_for("a shadow that runs", Duration::from_secs(240), || {
        Ok(shadow(&stack).is_ok_and(|it| it["state"] == "booting" || it["state"] == "pacing"))
    })
    .with_context(|| told(&stack))?;
    let view = shadow(&stack)?;
    let id = view["id"].as_str().context("no id")?.to_owned();
    ensure!(view["copies"]["on"] == "h2" && view["copies"]["to"] == "h2", "{view}");
    ensure!(names(&there, RECEIVED)?.iter().all(|name| name.starts_with(&id)), "{:?}", names(&there, RECEIVED)?);
    let before = audit(&stack)?;
    let sent = "host h1 has deleted its own copies, which host h2 has now";
    ensure!(
        before.contains(sent) && before.contains(&format!("vda to host h2: {RECEIVED}/{id}.vda.qcow2")),
        "{before}"
    );

    stack.api().delete("/api/v1/vms/g1/shadow")?;
    // What the first host keeps are notes without copies, for a minute at most.
    wait_for("it to be gone on both hosts", Duration::from_secs(90), || nothing_is_left(&stack))
        .with_context(|| told(&stack))?;
    ensure!(
        audit(&stack)?.contains("host h2 has none of the copies of its production's disks any more"),
        "{}",
        told(&stack)
    );
    guest.destroy()
}
