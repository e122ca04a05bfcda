//! What waits for what, on a host whose libvirt does not answer: no order does anything.

use super::*;
use gnomon_common::wire::{Base, DiskBlueprint, DiskCopy, Fence, ShadowSize, ShadowSpec};
use uuid::Uuid;

fn id(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn shadower(folder: &Path) -> LibvirtShadower {
    let shadow = ShadowConfig {
        directory: folder.join("s"),
        copies_directory: Some(folder.join("c")),
        ..ShadowConfig::default()
    };
    let config = ShadowerConfig {
        host: HostId::new("h1").unwrap(),
        uri: "qemu:///system?socket=/nonexistent/gnomon.sock".to_owned(),
        shadow,
        capacity_cores: 2.0,
        memory_bytes: 1 << 30,
        reserve_bytes: 0,
        machine: Machine::default(),
    };
    LibvirtShadower::new(config, None)
}

fn task(number: u64, vm: u128, action: Action) -> Task {
    let id = CommandId { term: 1, number };
    let (fence, reason) = (Fence::default(), "it is to have a shadow".to_owned());
    let command = Command { id, vm: self::id(vm), action, fence, time_to_live_ms: 1_000, reason };
    Task { command, at: Timestamp::from_unix_ms(0), time_left: Duration::from_secs(60), waited: Duration::ZERO }
}

fn image(number: u64) -> Task {
    task(
        number,
        1,
        Action::Image(Imaging { shadow: id(9), bandwidth_bytes_per_s: None, timeout_ms: 60_000, send_to: None }),
    )
}

/// On a copy, which is checked before.
fn copy(number: u64) -> Task {
    let copy = DiskCopy { path: "/nonexistent/vda.qcow2".to_owned(), bytes: 1, sha256: String::new() };
    let disk =
        DiskBlueprint { device: "vda".into(), bus: "virtio".into(), size_bytes: 1 << 20, base: Base::Copied(copy) };
    let size = ShadowSize {
        cpu_cores: 0.1,
        vcpus: 1,
        cpu_weight: 10,
        memory_bytes: 1 << 20,
        disk_bytes_per_s: None,
        network_bytes_per_s: None,
    };
    let spec = ShadowSpec { of: id(1), blueprint: bare_blueprint(vec![disk]), size };
    task(number, 9, Action::Shadow(ShadowOrder::Copy(Box::new(spec))))
}

fn retire(number: u64) -> Task {
    task(number, 9, Action::Shadow(ShadowOrder::Retire))
}

/// The numbers of the commands that end next, until all have.
fn ends(shadower: &mut LibvirtShadower) -> Vec<u64> {
    let (mut ended, until) = (Vec::new(), Instant::now() + Duration::from_secs(30));
    while !shadower.is_idle() {
        assert!(Instant::now() < until, "{ended:?}");
        for news in shadower.news() {
            if let ShadowNews::Ended(command, result) = news {
                assert!(matches!(result, OutcomeResult::Failed { retryable: true, .. }), "{result:?}");
                ended.push(command.id.number);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    ended
}

#[test]
fn no_copy_is_begun_while_files_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mut shadower = shadower(folder.path());
    shadower.tidy(BTreeSet::new()).unwrap();
    shadower.begin(image(1)).unwrap();
    assert_eq!((shadower.slow.len(), shadower.held.len()), (0, 1), "it waits for the end of that");
    assert_eq!((ends(&mut shadower), shadower.held.len()), (vec![1], 0));
    shadower.begin(retire(2)).unwrap();
    shadower.begin(image(3)).unwrap();
    assert_eq!((shadower.slow.len(), shadower.held.len()), (0, 1), "so it does for its shadow's");
    assert_eq!((ends(&mut shadower), shadower.retiring.len()), (vec![2, 3], 0));
}

#[test]
fn a_copy_that_waits_is_not_begun_once_it_is_not_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut shadower = shadower(folder.path());
    shadower.tidy(BTreeSet::new()).unwrap();
    shadower.begin(image(1)).unwrap();
    shadower.begin(retire(2)).unwrap();
    assert_eq!((shadower.slow.len(), shadower.held.len()), (0, 0));
    shadower.begin(image(3)).unwrap();
    shadower.give_up_copies(id(1));
    assert_eq!((shadower.slow.len(), shadower.held.len()), (0, 0));
    let mut ended = ends(&mut shadower);
    ended.sort_unstable();
    assert_eq!(ended, [1, 2, 3]);
}

#[test]
fn no_copy_is_read_for_an_order_that_came_too_late() {
    let folder = tempfile::tempdir().unwrap();
    let mut shadower = shadower(folder.path());
    shadower.begin(copy(1)).unwrap();
    assert_eq!(shadower.slow.len(), 1, "it is checked");
    assert_eq!(ends(&mut shadower), [1]);
    shadower.begin(Task { time_left: Duration::ZERO, ..copy(2) }).unwrap();
    assert_eq!(shadower.slow.len(), 0);
    assert_eq!(ends(&mut shadower), [2]);
}

#[test]
fn what_is_slow_is_known_to_whoever_removes_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut shadower = shadower(folder.path());
    let busy = shadower.busy.clone();
    shadower.begin(image(1)).unwrap();
    assert!(busy.has(id(9)) && !busy.has(id(1)));
    ends(&mut shadower);
    assert!(!busy.has(id(9)));
}

#[test]
fn which_copies_are_here_is_told_without_looking() {
    let folder = tempfile::tempdir().unwrap();
    let mut shadower = shadower(folder.path());
    let copies = folder.path().join("c/h1").join(id(9).0.hyphenated().to_string());
    std::fs::create_dir_all(&copies).unwrap();
    let kept = shadower.copies_kept().unwrap();
    assert_eq!(kept.told().received, None, "none are taken");
    let made = || kept.told().made.expect("some are made");
    let until = Instant::now() + Duration::from_secs(30);
    while made().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(made(), [id(9)]);
    std::fs::remove_dir(&copies).unwrap();
    assert_eq!(made(), [id(9)], "nobody has looked since");
    shadower.tidy(BTreeSet::new()).unwrap();
    while !made().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(made(), []);
}
