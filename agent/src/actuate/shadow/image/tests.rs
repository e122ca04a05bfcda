//! Copies on a host that the test plays, with real files.

use super::*;
use crate::actuate::shadow::check::{are_whole, open};
use crate::actuate::shadow::copies::is_whole;
use crate::actuate::shadow::files::Files;
use crate::actuate::shadow::there::{NotMade, NotSent, Part};
use crate::config::ShadowConfig;
use crate::host::libvirt::upload::Folder;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Command, CommandId, DiskBlueprint, Fence, HostId, OutcomeResult, Receiving};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// What libvirt has of the VM.
struct World {
    job: BackupJob,
    /// How often a job is looked at before it ends, and how.
    looks: u32,
    end: Result<(), String>,
    begun: u32,
    aborted: u32,
    speeds: Vec<(String, u64)>,
    /// So often no copy can be slowed down.
    deaf: u32,
    fails: Option<&'static str>,
    is_down: bool,
    /// What libvirt says next instead of which job there is.
    says: Option<HypervisorError>,
    /// A job that was told to end does so when it has been looked at often enough.
    ends_slowly: bool,
}

#[derive(Clone)]
struct Played(Arc<Mutex<World>>);

impl Played {
    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

fn error(what: &'static str, retryable: bool) -> HypervisorError {
    HypervisorError::Call { what, message: "no".into(), retryable }
}

impl Backups for Played {
    fn describe(&mut self, _: VmId) -> Result<Result<Blueprint, Unshadowable>, HypervisorError> {
        let disk = |device: &str, base| DiskBlueprint {
            device: device.into(),
            bus: "virtio".into(),
            size_bytes: 4 * MIB,
            base,
        };
        let image = Base::Image { path: "/i".into(), format: "raw".into() };
        let disks = vec![disk("vda", image), disk("vdb", Base::Copyable), disk("vdc", Base::Copyable)];
        Ok(Ok(crate::actuate::shadow::bare_blueprint(disks)))
    }

    fn backup_job(&mut self, _: VmId) -> Result<BackupJob, HypervisorError> {
        let mut world = self.world();
        if world.is_down {
            return Err(error("tell", true));
        }
        if let Some(error) = world.says.take() {
            return Err(error);
        }
        world.looks = world.looks.saturating_sub(1);
        if world.looks == 0 && matches!(world.job, BackupJob::Backup { .. }) {
            world.job = BackupJob::None;
        }
        Ok(world.job.clone())
    }

    fn begin_backup(&mut self, _: VmId, disks: &[(String, PathBuf)]) -> Result<(), HypervisorError> {
        let mut world = self.world();
        if let Some(what) = world.fails.take() {
            return Err(error(what, false));
        }
        assert!(disks.iter().all(|(_, file)| file.metadata().unwrap().len() > 0), "empty images are there");
        world.begun += 1;
        let targets = disks.iter().map(|(_, file)| file.clone()).collect();
        world.job = BackupJob::Backup { targets, done_bytes: 1, total_bytes: 8 };
        Ok(())
    }

    fn set_backup_speed(&mut self, _: VmId, device: &str, bytes_per_s: u64) -> Result<bool, HypervisorError> {
        let mut world = self.world();
        if let Some(left) = world.deaf.checked_sub(1) {
            world.deaf = left;
            return Err(error("slow the copying of its disks down", false));
        }
        world.speeds.push((device.to_owned(), bytes_per_s));
        Ok(true)
    }

    fn last_backup(&mut self, _: VmId) -> Result<Result<(), String>, HypervisorError> {
        Ok(self.world().end.clone())
    }

    fn abort_job(&mut self, _: VmId) -> Result<(), HypervisorError> {
        let mut world = self.world();
        world.aborted += 1;
        if !world.ends_slowly {
            world.job = BackupJob::None;
        }
        Ok(())
    }
}

/// No host takes copies.
struct Nowhere;

impl There for Nowhere {
    fn folder(&mut self, _: &Receiving) -> Result<Option<Folder>, String> {
        Ok(None)
    }

    fn make(&mut self, _: &Receiving, _: &Path, _: u64) -> Result<(), NotMade> {
        unreachable!("there is no place")
    }

    fn remove(&mut self, _: &Receiving, _: &Path) -> Result<(), String> {
        unreachable!("nothing was made")
    }

    fn send(&mut self, _: &Receiving, _: &Part, _: &mut dyn FnMut(u64) -> Result<(), Snag>) -> Result<(), NotSent> {
        unreachable!("nothing was made")
    }
}

struct Bench {
    folder: tempfile::TempDir,
    world: Played,
    copies: Copies,
    give_up: GiveUp,
}

fn id(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let config = ShadowConfig {
        copies_directory: Some(folder.path().join("c")),
        copies_bytes_max: 20 * MIB,
        copies_reserve_bytes: MIB,
        ..ShadowConfig::default()
    };
    let world = World {
        job: BackupJob::None,
        looks: 3,
        end: Ok(()),
        begun: 0,
        aborted: 0,
        speeds: Vec::new(),
        deaf: 0,
        fails: None,
        is_down: false,
        says: None,
        ends_slowly: false,
    };
    let copies = Copies::new(&config, &HostId::new("h1").unwrap()).unwrap();
    Bench { folder, world: Played(Arc::new(Mutex::new(world))), copies, give_up: GiveUp::new() }
}

impl Bench {
    fn image(&self, shadow: u128, waited: Duration, time_left: Duration) -> Result<Imaged, Snag> {
        let imaging =
            Imaging { shadow: id(shadow), bandwidth_bytes_per_s: Some(2 * MIB), timeout_ms: 10_000, send_to: None };
        let task = self.task(&imaging, waited, time_left);
        let begun = Instant::now().checked_sub(Duration::from_millis(20)).unwrap();
        let order = Order { task: &task, imaging: &imaging, begun, give_up: &self.give_up };
        image(&mut self.world.clone(), &mut Nowhere, &self.copies, &order, |_, _| {})
    }

    fn task(&self, imaging: &Imaging, waited: Duration, time_left: Duration) -> Task {
        let command = Command {
            id: CommandId { term: 1, number: 1 },
            vm: id(1),
            action: Action::Image(imaging.clone()),
            fence: Fence::default(),
            time_to_live_ms: 1_000,
            reason: "it is to have a shadow".into(),
        };
        Task { command, at: Timestamp::from_unix_ms(0), time_left, waited }
    }

    fn again(&self) -> Result<Imaged, Snag> {
        self.image(9, Duration::ZERO, Duration::from_secs(1))
    }

    fn folders(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("c/h1")).map_or(0, Iterator::count)
    }

    fn is_running_into(&self, shadow: u128) {
        let targets = vec![self.copies.file(id(shadow), "vdb"), self.copies.file(id(shadow), "vdc")];
        self.world.world().job = BackupJob::Backup { targets, done_bytes: 1, total_bytes: 8 };
    }
}

fn busy(result: Result<Imaged, Snag>) -> String {
    match result {
        Err(Snag::Busy(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_disks_without_a_base_are_copied_once_at_their_share_of_the_speed() {
    let bench = bench();
    let imaged = bench.again().unwrap();
    let devices: Vec<&str> = imaged.disks.iter().map(|(device, _)| device.as_str()).collect();
    assert_eq!(devices, ["vdb", "vdc"]);
    for (_, copy) in &imaged.disks {
        assert_eq!(is_whole(&mut File::open(&copy.path).unwrap(), copy, || false).unwrap(), Some(true));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(Path::new(&copy.path).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(bench.world.world().speeds, [("vdb".to_owned(), MIB), ("vdc".to_owned(), MIB)]);
    assert_eq!(bench.again().unwrap(), imaged, "again is as once, also when it comes late");
    assert_eq!(bench.image(9, Duration::MAX, Duration::ZERO).unwrap(), imaged);
    assert_eq!((bench.world.world().begun, bench.folders()), (1, 1));
    let mut here = bench.world.clone();
    abandon(&mut here, &bench.copies, id(9), None).unwrap();
    abandon(&mut here, &bench.copies, id(9), None).unwrap();
    assert_eq!((bench.folders(), bench.world.world().aborted), (0, 0));
}

#[test]
fn nothing_is_copied_for_a_host_that_has_no_place_for_it() {
    let bench = bench();
    let uri = "qemu+tls://h2/system".to_owned();
    let to = Receiving { uri, directory: "/srv/r".into(), owner: 0, group: 0, bytes_max: MIB };
    let imaging = Imaging { shadow: id(9), bandwidth_bytes_per_s: None, timeout_ms: 10_000, send_to: Some(to) };
    let task = bench.task(&imaging, Duration::ZERO, Duration::from_secs(1));
    let order = Order { task: &task, imaging: &imaging, begun: Instant::now(), give_up: &bench.give_up };
    let imaged = image(&mut bench.world.clone(), &mut Nowhere, &bench.copies, &order, |_, _| {});
    let Err(Snag::Unshadowable(Unshadowable::NoRoom(why))) = imaged else { panic!("{imaged:?}") };
    assert!(why.contains("no storage pool of the libvirt at qemu+tls://h2/system is active over /srv/r"), "{why}");
    assert_eq!((bench.world.world().begun, bench.folders()), (0, 0));
}

#[test]
fn a_copy_that_cannot_be_slowed_down_is_tried_again_and_not_let_run() {
    let bench = bench();
    bench.world.world().deaf = SPEED_TRIES - 1;
    assert_eq!(bench.again().unwrap().disks.len(), 2);
    let fast = self::bench();
    fast.world.world().deaf = SPEED_TRIES;
    fast.world.world().looks = u32::MAX;
    assert!(matches!(fast.again(), Err(Snag::Libvirt(_))));
    assert_eq!((fast.world.world().begun, fast.folders()), (1, 0));
    assert_eq!(fast.world.world().aborted, 1);
}

#[test]
fn whole_copies_of_which_a_file_is_gone_are_made_anew() {
    let bench = bench();
    let imaged = bench.again().unwrap();
    std::fs::remove_file(&imaged.disks[0].1.path).unwrap();
    bench.world.world().looks = 3;
    assert_eq!(bench.again().unwrap().disks.len(), 2);
    assert_eq!((bench.world.world().begun, bench.folders()), (2, 1));
}

#[test]
fn a_copy_that_an_earlier_life_began_is_followed_and_half_of_one_is_begun_anew() {
    let bench = bench();
    bench.copies.begin(id(9), id(1), &[("vdb".to_owned(), MIB), ("vdc".to_owned(), MIB)]).unwrap();
    bench.is_running_into(9);
    assert_eq!(bench.image(9, Duration::from_secs(5), Duration::ZERO).unwrap().disks.len(), 2);
    assert_eq!(bench.world.world().begun, 0);
    let bench = self::bench();
    bench.copies.begin(id(9), id(1), &[("vdb".to_owned(), MIB)]).unwrap();
    assert_eq!(bench.again().unwrap().disks.len(), 2);
    assert_eq!((bench.world.world().begun, bench.folders()), (1, 1));
    let late = self::bench();
    late.copies.begin(id(9), id(1), &[("vdb".to_owned(), MIB)]).unwrap();
    assert!(matches!(late.image(9, Duration::ZERO, Duration::ZERO), Err(Snag::Late(_))));
    assert_eq!(late.folders(), 0);
}

#[test]
fn a_vm_with_a_job_of_somebody_else_is_left_alone() {
    let bench = bench();
    bench.world.world().job = BackupJob::Other;
    assert!(busy(bench.again()).contains("another job"));
    bench.is_running_into(8);
    bench.world.world().looks = 9;
    assert!(busy(bench.again()).contains("another backup"));
    assert_eq!((bench.world.world().aborted, bench.folders()), (0, 0));
    // Nor is its job ended where only our half folder is left.
    bench.copies.begin(id(9), id(1), &[]).unwrap();
    abandon(&mut bench.world.clone(), &bench.copies, id(9), None).unwrap();
    assert_eq!((bench.world.world().aborted, bench.folders()), (0, 0));
}

#[test]
fn whatever_ends_a_copy_leaves_neither_job_nor_file() {
    let bench = bench();
    bench.world.world().looks = u32::MAX;
    bench.give_up.set("it is being migrated").unwrap();
    assert!(busy(bench.again()).contains("given up: it is being migrated"));
    assert_eq!((bench.world.world().begun, bench.folders()), (0, 0));
    bench.copies.begin(id(9), id(1), &[]).unwrap();
    bench.is_running_into(9);
    busy(bench.again());
    assert_eq!((bench.world.world().aborted, bench.folders()), (1, 0), "one that was followed");

    let bench = self::bench();
    bench.world.world().looks = u32::MAX;
    bench.copies.begin(id(9), id(1), &[]).unwrap();
    bench.is_running_into(9);
    assert!(busy(bench.image(9, Duration::from_secs(11), Duration::ZERO)).contains("not done after 10 s"));
    assert_eq!((bench.world.world().aborted, bench.folders()), (1, 0));

    let bench = self::bench();
    bench.world.world().end = Err("no space".to_owned());
    assert!(busy(bench.again()).contains("no space"));
    assert_eq!(bench.folders(), 0);
    bench.world.world().fails = Some("copy its disks");
    assert!(matches!(bench.again(), Err(Snag::Libvirt(_))));
    assert_eq!(bench.folders(), 0);
}

#[test]
fn nothing_is_removed_while_it_is_not_known_whether_somebody_writes_to_it() {
    let bench = bench();
    bench.copies.begin(id(9), id(1), &[]).unwrap();
    bench.world.world().is_down = true;
    assert!(matches!(bench.again(), Err(Snag::Libvirt(_))));
    assert!(matches!(abandon(&mut bench.world.clone(), &bench.copies, id(9), None), Err(Snag::Libvirt(_))));
    assert_eq!(bench.folders(), 1);
}

#[test]
fn an_error_that_is_not_of_a_vm_that_ended_does_not_say_that_there_is_no_job() {
    let bench = bench();
    let note = || bench.copies.begin(id(9), id(1), &[("vdb".to_owned(), MIB), ("vdc".to_owned(), MIB)]).unwrap();
    let give_up = || abandon(&mut bench.world.clone(), &bench.copies, id(9), None);
    let says = |error| bench.world.world().says = Some(error);
    note();
    bench.is_running_into(9);
    bench.world.world().looks = u32::MAX;
    says(error("tell of its jobs", false));
    assert!(matches!(give_up(), Err(Snag::Libvirt(_))));
    assert_eq!((bench.folders(), bench.world.world().aborted), (1, 0));
    for gone in [HypervisorError::NotRunning(id(1)), HypervisorError::NoSuchDomain(id(1))] {
        note();
        says(gone);
        give_up().unwrap();
        assert_eq!((bench.folders(), bench.world.world().aborted), (0, 0));
    }
    // Nor has one that is followed ended.
    note();
    bench.world.world().looks = 4;
    let imaging = Imaging { shadow: id(9), bandwidth_bytes_per_s: None, timeout_ms: 10_000, send_to: None };
    let task = bench.task(&imaging, Duration::ZERO, Duration::from_secs(1));
    let order = Order { task: &task, imaging: &imaging, begun: Instant::now(), give_up: &bench.give_up };
    let mut next = Some(error("tell of its jobs", false));
    let tell = |_, _| bench.world.world().says = next.take();
    assert_eq!(image(&mut bench.world.clone(), &mut Nowhere, &bench.copies, &order, tell).unwrap().disks.len(), 2);
    let world = bench.world.world();
    assert_eq!((world.begun, world.aborted), (0, 0));
}

#[test]
fn what_writes_into_a_folder_without_a_note_is_ended_before_that_is_removed() {
    let bench = bench();
    bench.copies.begin(id(9), id(1), &[("vdb".to_owned(), MIB)]).unwrap();
    bench.is_running_into(9);
    bench.world.world().looks = u32::MAX;
    std::fs::remove_file(bench.copies.folder(id(9)).join("copy.json")).unwrap();
    // What is found is followed, and given up.
    bench.give_up.set("it is being migrated").unwrap();
    busy(bench.again());
    assert_eq!((bench.world.world().aborted, bench.folders()), (1, 0));
}

#[test]
fn a_copy_is_told_to_end_once_and_then_only_looked_at() {
    let bench = bench();
    bench.copies.begin(id(9), id(1), &[("vdb".to_owned(), MIB)]).unwrap();
    bench.is_running_into(9);
    (bench.world.world().looks, bench.world.world().ends_slowly) = (5, true);
    abandon(&mut bench.world.clone(), &bench.copies, id(9), None).unwrap();
    assert_eq!((bench.world.world().aborted, bench.folders()), (1, 0));
}

#[test]
fn copies_have_their_bound() {
    let bench = bench();
    bench.again().unwrap();
    bench.world.world().looks = 3;
    bench.image(10, Duration::ZERO, Duration::from_secs(1)).unwrap();
    let third = bench.image(11, Duration::ZERO, Duration::from_secs(1));
    assert!(matches!(third, Err(Snag::Unshadowable(Unshadowable::NoRoom(_)))), "{third:?}");
    assert_eq!((bench.folders(), bench.world.world().begun), (2, 2));
    let answer = OutcomeResult::from(third.unwrap_err());
    assert!(matches!(answer, OutcomeResult::Unshadowable(_)));
}

#[test]
fn a_shadow_stands_only_on_what_was_made() {
    let bench = bench();
    let imaged = bench.again().unwrap();
    let directory = bench.folder.path().join("s");
    let files =
        |image_paths| Files::new(ShadowConfig { image_paths, directory: directory.clone(), ..ShadowConfig::default() });
    let check =
        |files: &Files, blueprint: &Blueprint, give_up: &GiveUp| are_whole(files, id(9), blueprint, give_up, open);
    let mut blueprint = bench.world.clone().describe(id(1)).unwrap().unwrap();
    blueprint.disks.remove(0);
    for (disk, (_, copy)) in blueprint.disks.iter_mut().zip(&imaged.disks) {
        disk.base = Base::Copied(copy.clone());
    }
    let allowed = files(vec![bench.folder.path().to_owned()]);
    check(&allowed, &blueprint, &bench.give_up).unwrap();
    let elsewhere = check(&files(vec!["/usr/share".into()]), &blueprint, &bench.give_up);
    assert!(matches!(elsewhere, Err(Snag::Unshadowable(Unshadowable::NoBase(_)))), "{elsewhere:?}");
    let path = &imaged.disks[1].1.path;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(path, &bytes).unwrap();
    let damaged = check(&allowed, &blueprint, &bench.give_up).unwrap_err();
    assert!(matches!(&damaged, Snag::Unshadowable(Unshadowable::Damaged(file)) if file == path), "{damaged}");
    std::fs::remove_file(path).unwrap();
    let missing = check(&allowed, &blueprint, &bench.give_up).unwrap_err();
    assert!(matches!(&missing, Snag::Unshadowable(Unshadowable::Missing(file)) if file == path), "{missing}");
}
