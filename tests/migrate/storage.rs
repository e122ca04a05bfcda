//! Disks that only one host has go along with a guest that writes to them.
//!
//! `/var` of each lab host is a layer of its own over the machine's: one path, another file on each host.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gnomon_common::wire::{Action, Command, Copied, Immovable, Migration, Moved, OutcomeResult};
use gnomon_e2e::{reconfigure, run, skipped, wait_for};
use xtask::lab::{Guest, Host, Lab};

use super::{MIB, Scene, is_here};

const DISKS: &str = "/var/lib/gnomon-disks";
const IMAGES: &str = "/var/lib/gnomon-images";
const DISK: &str = "/var/lib/gnomon-disks/g1.qcow2";

/// The guest writes its numbers into the first part of its disk, and the image has what no one else has in the second.
const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 4096;
const IMAGE_AT: usize = BLOCKS * BLOCK_BYTES;
const IMAGE_BYTES: usize = 32 << 20;

/// Fast enough to end soon, and slow enough for the guest to write meanwhile.
const BYTES_PER_S: u64 = 8 * MIB;

/// What a guest's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// A file of its own.
    Whole,
    /// A layer on an image that is on both hosts.
    Layer,
    /// A layer on an image that is on its host alone.
    LonelyLayer,
}

/// A pool over a folder of a host, as an operator defines it.
fn pool(host: &Host, name: &str, folder: &str) -> Result<()> {
    host.virsh(["pool-define-as", name, "dir", "--target", folder])?;
    host.virsh(["pool-start", name]).map(drop)
}

fn sh(host: &Host, script: &str) -> Result<String> {
    run(host, "sh", &["-euc", script])
}

/// Files for the guest on the first host, and what the second one is to have of them.
fn disks(lab: &Lab, guest: &Guest, disk: Disk) -> Result<()> {
    let hosts = lab.hosts();
    let image = image(guest.host());
    let random = format!("dd if=/dev/urandom of={0} bs=1M seek=16 count=32 status=none", image.display());
    sh(&hosts[0], &random)?;
    for host in hosts {
        sh(host, &format!("mkdir -p {DISKS} {IMAGES}"))?;
        if disk == Disk::Layer || (disk == Disk::LonelyLayer && host.name() == "h1") {
            sh(host, &format!("cp --sparse=always {} {IMAGES}/base.raw", image.display()))?;
        }
    }
    let make = match disk {
        Disk::Whole => format!("qemu-img convert -q -O qcow2 {} {DISK}", image.display()),
        _ => format!("qemu-img create -q -f qcow2 -b {IMAGES}/base.raw -F raw {DISK}"),
    };
    sh(&hosts[0], &make)?;
    let device = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{DISK}'/>\
         <target dev='vda' bus='virtio'/></disk></devices>"
    );
    gnomon_e2e::redefine(guest, |xml| {
        let xml = xml.replace("</devices>", &device).replace("gnomon.load=", "gnomon.numbers=vda gnomon.load=");
        ensure!(xml.contains("gnomon.numbers=vda"), "no command line in {xml}");
        Ok(xml)
    })
}

/// The image, outside of both hosts' own folders.
fn image(host: &Host) -> PathBuf {
    host.dir().join("image.raw")
}

/// Two hosts whose agents copy disks of a GiB, both with pools over the folders.
async fn scene(name: &str, disk: Disk, pools: bool) -> Result<Scene> {
    let mut scene = Scene::new(name, |lab, guest| disks(lab, guest, disk)).await?;
    allow(&mut scene, "enabled = true\n", "enabled = true\ncopy_bytes_max = 1073741824\n").await?;
    if pools {
        pool(&scene.hosts[1], "disks", DISKS)?;
        pool(&scene.hosts[1], "images", IMAGES)?;
    }
    Ok(scene)
}

/// A second life of the agent, with another configuration.
async fn allow(scene: &mut Scene, from: &str, to: &str) -> Result<()> {
    scene.stack.stop_agent("h1")?;
    reconfigure(&scene.stack, "h1", &[(from, to)], "")?;
    scene.relaunch_agent().await?;
    scene.settle().await
}

fn copying(scene: &Scene, bandwidth_bytes_per_s: u64) -> Migration {
    let bandwidth_bytes_per_s = Some(bandwidth_bytes_per_s);
    Migration { copy_storage: true, bandwidth_bytes_per_s, ..scene.migration(false) }
}

/// The numbers that the guest has said are on its disk.
fn written(guest: &Guest) -> Result<Vec<usize>> {
    let console = fs::read(guest.console_path())?;
    let text = String::from_utf8_lossy(&console);
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    Ok(whole.filter_map(|line| line.trim().strip_prefix("lab-disk ")?.parse().ok()).collect())
}

/// A disk as a guest would see it, when nothing runs on it any more.
fn content(host: &Host) -> Result<Vec<u8>> {
    let raw = host.dir().join("content.raw");
    sh(host, &format!("qemu-img convert -q -O raw {DISK} {}", raw.display()))?;
    Ok(fs::read(raw)?)
}

/// Whether a disk has all that the image has, and each number that was said to be on it, or a later one in its place.
fn ensure_whole(content: &[u8], image: &Path, written: &[usize]) -> Result<()> {
    let image = fs::read(image)?;
    ensure!(content.len() == image.len(), "{} bytes in place of {}", content.len(), image.len());
    ensure!(image.len() == IMAGE_AT + IMAGE_BYTES, "an image of {} bytes", image.len());
    ensure!(content[IMAGE_AT..] == image[IMAGE_AT..], "the image's part differs");
    let mut lost = Vec::new();
    for number in written {
        let at = (number % BLOCKS) * BLOCK_BYTES;
        let found = String::from_utf8_lossy(&content[at..at + BLOCK_BYTES]).trim().parse::<usize>();
        if !found.is_ok_and(|found| found >= *number) {
            lost.push(*number);
        }
    }
    ensure!(lost.is_empty(), "of {} numbers that were on the disk are lost: {lost:?}", written.len());
    Ok(())
}

fn is_there(host: &Host) -> Result<bool> {
    Ok(sh(host, &format!("test ! -e {DISK} || echo there"))?.contains("there"))
}

/// Moves a guest that writes, and looks at what has come over.
async fn arrives(name: &str, disk: Disk) -> Result<Moved> {
    let mut scene = scene(name, disk, true).await?;
    let witness = scene.witness();
    wait_for("the guest to write", Duration::from_secs(60), || Ok(written(&scene.guest)?.len() > 20))?;
    let before = written(&scene.guest)?.len();
    let migration = copying(&scene, BYTES_PER_S);
    let result = scene.migrate(migration).await?;
    let OutcomeResult::Moved(moved) = result else { bail!("not moved: {result:?}") };
    let during = written(&scene.guest)?.len() - before;
    println!("{disk:?}: {moved:?}; {during} numbers written meanwhile");
    scene.brain.serve(Duration::from_secs(3)).await?;
    let after = written(&scene.guest)?.len() - before - during;
    ensure!(during > 10 && after > 10, "it wrote {during} numbers on its way, and {after} after that");
    ensure!(scene.runs_once()? == 1, "{:?}", scene.states()?);
    witness.finish(&scene.guest)?;

    let copied = moved.copied.as_ref().context("nothing was copied")?;
    let expected = Copied { bytes: copied.bytes, is_layered: disk == Disk::Layer, left: vec![DISK.to_owned()] };
    ensure!(*copied == expected, "{copied:?}");
    let [here, there] = scene.hosts.clone();
    there.virsh(["destroy", "g1"])?;
    ensure_whole(&content(&there)?, &image(&here), &written(&scene.guest)?)?;
    ensure!(is_there(&here)?, "the file that it has left was removed");
    let below = sh(&there, &format!("qemu-img info {DISK}"))?;
    ensure!(below.contains("backing file:") == (disk == Disk::Layer), "{below}");
    // It boots there: nothing in its definition leads to what the other host has.
    there.virsh(["start", "g1"])?;
    Ok(moved)
}

fn copied_bytes(moved: &Moved) -> Result<u64> {
    moved.copied.as_ref().and_then(|copied| copied.bytes).context("how much was copied is not told")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_s_own_disk_goes_along_with_what_it_writes_meanwhile() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let moved = arrives("disk", Disk::Whole).await?;
    ensure!(copied_bytes(&moved)? >= IMAGE_BYTES as u64, "{moved:?}");
    ensure!(moved.sent_bytes.is_some_and(|bytes| bytes > copied_bytes(&moved).unwrap_or(u64::MAX) + MIB), "{moved:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_layer_only_that_is_copied_where_the_image_is_there_and_else_both() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let layer = arrives("layer", Disk::Layer).await?;
    let whole = arrives("lonely", Disk::LonelyLayer).await?;
    println!(
        "as a layer {} bytes in {} us, whole {} bytes in {} us",
        copied_bytes(&layer)?,
        layer.took_us,
        copied_bytes(&whole)?,
        whole.took_us
    );
    ensure!(copied_bytes(&layer)? < IMAGE_BYTES as u64 && copied_bytes(&whole)? >= IMAGE_BYTES as u64);
    ensure!(layer.took_us < whole.took_us, "a layer took longer");
    Ok(())
}

/// Begins a slow move, and returns its command when there is a copy under way.
async fn begin(scene: &mut Scene) -> Result<Command> {
    let migration = copying(scene, MIB);
    let order = scene.order(Action::Migrate(migration));
    scene.brain.send(&order).await?;
    let early = scene.brain.serve(Duration::from_secs(6)).await?;
    ensure!(early.is_empty(), "it has ended already: {early:?}");
    ensure!(is_there(&scene.hosts[1])?, "no copy is under way");
    Ok(order)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_given_up_leaves_no_copy_and_one_that_was_there_is_not_touched() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = scene("leaves", Disk::Whole, true).await?;
    let witness = scene.witness();
    let there = scene.hosts[1].clone();
    let order = begin(&mut scene).await?;
    let abort = scene.order(Action::AbortMigration);
    scene.brain.command(&abort).await?;
    let outcome = scene.outcome(&order).await?;
    println!("given up: {outcome:?}");
    ensure!(is_here(&outcome.result) && scene.runs_once()? == 0 && !is_there(&there)?, "{outcome:?}");

    // An agent that is killed in the middle knows in its next life what it has made.
    let order = begin(&mut scene).await?;
    scene.stack.kill_agent("h1")?;
    scene.relaunch_agent().await?;
    let abort = scene.order(Action::AbortMigration);
    scene.brain.command(&abort).await?;
    let outcome = scene.outcome(&order).await?;
    println!("given up in another life: {outcome:?}");
    ensure!(is_here(&outcome.result) && scene.runs_once()? == 0 && !is_there(&there)?, "{outcome:?}");

    let migration = Migration { timeout_ms: 4_000, ..copying(&scene, MIB) };
    let result = scene.migrate(migration).await?;
    println!("timed out: {result:?}");
    ensure!(is_here(&result) && scene.runs_once()? == 0 && !is_there(&there)?, "{result:?}");

    // Its disk has lost nothing by that, and it can go after all.
    let migration = copying(&scene, 64 * MIB);
    let result = scene.migrate(migration).await?;
    ensure!(matches!(result, OutcomeResult::Moved(_)) && scene.runs_once()? == 1, "{result:?}");
    witness.finish(&scene.guest)?;
    there.virsh(["destroy", "g1"])?;
    ensure_whole(&content(&there)?, &image(&scene.hosts[0]), &written(&scene.guest)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_has_no_place_on_the_target_keeps_its_guest_and_the_reason_is_told() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut scene = scene("noplace", Disk::Whole, false).await?;
    let there = scene.hosts[1].clone();
    let no_place = |result: &OutcomeResult, words: &str| match result {
        OutcomeResult::Immovable(why @ Immovable::NoPlace(_)) if why.to_string().contains(words) => Ok(()),
        other => bail!("{other:?} in place of {words:?}"),
    };
    let migration = copying(&scene, BYTES_PER_S);
    let result = scene.migrate(Migration { copy_storage: false, ..migration.clone() }).await?;
    ensure!(result == OutcomeResult::Immovable(Immovable::Storage(format!("vda ({DISK})"))), "{result:?}");
    let result = scene.migrate(migration.clone()).await?;
    no_place(&result, "no storage pool")?;

    sh(&there, &format!("mount -t tmpfs -o size=16m tmpfs {DISKS}"))?;
    pool(&there, "disks", DISKS)?;
    let result = scene.migrate(migration.clone()).await?;
    println!("too little room: {result:?}");
    no_place(&result, "bytes free")?;
    ensure!(!is_there(&there)?);
    there.virsh(["pool-destroy", "disks"])?;
    let result = scene.migrate(migration.clone()).await?;
    no_place(&result, "no storage pool")?;
    sh(&there, &format!("umount {DISKS}"))?;
    there.virsh(["pool-start", "disks"])?;

    sh(&there, &format!("echo of somebody else > {DISK}"))?;
    let result = scene.migrate(migration.clone()).await?;
    no_place(&result, "is there already")?;
    ensure!(sh(&there, &format!("cat {DISK}"))? == "of somebody else\n", "it was overwritten");
    sh(&there, &format!("rm {DISK}"))?;

    allow(&mut scene, "copy_bytes_max = 1073741824\n", "copy_bytes_max = 1048576\n").await?;
    let result = scene.migrate(migration).await?;
    println!("too large: {result:?}");
    let too_large = |bytes| bytes >= IMAGE_BYTES as u64;
    let refused = matches!(result, OutcomeResult::Immovable(Immovable::StorageTooLarge { bytes, bytes_max: MIB }) if too_large(bytes));
    ensure!(refused && !is_there(&there)?, "{result:?}");
    ensure!(scene.states()? == ["running".to_owned(), String::new()], "{:?}", scene.states()?);
    Ok(())
}
