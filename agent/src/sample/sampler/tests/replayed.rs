//! What was recorded of a sampler is told again as it was told.

use super::*;
use crate::reading::{Culprit, WaitCauses};
use crate::recording::{FileError, Frames, Replay};
use crate::sample::{HostSeries, Start, Tick};
use gnomon_common::abi::sched::Command;
use gnomon_common::wire::frame::{decode_wide, encode_wide};
use gnomon_common::wire::{Dropped, EXIT_REASONS, Who};
use proptest::prelude::*;

const TAR: Command = Command([u64::from_le_bytes(*b"tar\0\0\0\0\0"), 0]);

fn device(bench: &Bench, second: u64) {
    let count = second * 5_000;
    let table = format!(
        "Inter-| Receive | Transmit\n face |bytes\n eth0: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n lo: {second} {second} 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n vnet7: {count} {second} 0 0 0 0 0 0 {count} 9 0 {second} 0 0 0 0\n"
    );
    write(bench.dir.path(), "proc/net/dev", &table);
    write(bench.dir.path(), "proc/7/io", &format!("read_bytes: {count}\nwrite_bytes: {count}\n"));
}

/// A minute in which much happens: what the sampler told, and the recording.
fn recorded(names: bool) -> (Vec<HostReport>, Vec<u8>) {
    let mut path = PathBuf::new();
    let mut bench = Bench::with(|dir| {
        path = dir.join("recording");
        Some(Tape::create(&path, names).unwrap())
    });
    let other = VmId(uuid::Uuid::from_u128(2));
    // Drops and queues are told of a device that every host has.
    let facts = |bench: &Bench, state| VmFacts { interfaces: vec![tap("vnet7"), tap("lo")], ..bench.facts(state) };
    let mut reports = Vec::new();
    for second in 1..=60_u64 {
        match second {
            1 | 18 => bench.publish(vec![facts(&bench, VmState::Running)], true),
            15 => bench.publish(vec![facts(&bench, VmState::Paused)], false),
            22 => {
                let second = VmFacts { id: other, name: "shop".into(), process: None, ..bench.facts(VmState::ShutOff) };
                bench.publish(vec![facts(&bench, VmState::Running), second], true);
            }
            33 => {
                let mut restarted = facts(&bench, VmState::Running);
                restarted.process.as_mut().unwrap().start_ticks = 100;
                write(bench.dir.path(), "proc/7/stat", "7 (qemu) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 100 0 0");
                bench.publish(vec![restarted], true);
            }
            _ => {}
        }
        device(&bench, second);
        {
            let mut state = bench.script.0.lock().unwrap();
            state.turn = u32::from(second > 40);
            state.shed = (25..=30).contains(&second);
            state.broken = second == 45;
            state.packets = second * 40;
            let done = Direction { operations: second * 10, bytes: second << 20, ..Direction::default() };
            if let Some(disks) = state.disks.get_mut(&web()) {
                disks.insert(DiskId { major: 0, minor: 99 }, DiskAccount { write: done, ..DiskAccount::default() });
            }
            let culprits = vec![(Culprit::Vm(other), second * S / 10), (Culprit::Task(TAR), second * S / 20)];
            state.culprits.insert(web(), WaitCauses { culprits, own_quota_ns: Some(second), ..WaitCauses::default() });
            let exits = ExitCounters { vcpus: 2, exits: [second * 9; EXIT_REASONS], ..ExitCounters::default() };
            state.exits.insert(web(), exits);
            state.reclaim.insert(web(), ReclaimCounters { reclaims: second * 4, stalled_ns: second * S / 2 });
        }
        if second == 52 {
            // The wall clock was set.
            bench.second += 1;
            let now = Now { wall: Timestamp::from_unix_ms(9_000_000), ..at(bench.second) };
            bench.sampler.tick(now);
        } else {
            bench.second(0.5, 0.25);
        }
        reports.extend(bench.reports.try_recv());
    }
    (reports, fs::read(&path).unwrap())
}

fn replayed(bytes: &[u8]) -> Result<Vec<HostReport>, FileError> {
    Replay::new(bytes.to_vec())?.collect()
}

#[test]
fn a_replay_tells_what_the_sampler_told() {
    let (live, bytes) = recorded(true);
    let again = replayed(&bytes).unwrap();
    let lines = |reports: &[HostReport]| reports.iter().map(|r| serde_json::to_string(r).unwrap()).collect::<Vec<_>>();
    assert_eq!(lines(&again), lines(&live));
    // All that may differ is in it.
    let vm = |index: usize| &live[index].vms[0];
    assert_eq!((live.len(), live[2].vms.len(), live[1].inventory_complete), (6, 2, true));
    assert!(!vm(0).interfaces.is_empty() && vm(0).cpu.unwrap().throttled.mean > 0.0);
    let lo = |index: usize| vm(index).interfaces.iter().find(|interface| interface.device == "lo").unwrap();
    let dropped = vec![Dropped { reason: "full_ring".to_owned(), packets_per_s: 10.0 }];
    assert_eq!(
        (lo(0).drops.as_ref(), lo(1).drops.as_ref()),
        (None, Some(&dropped)),
        "the first has nothing to compare with"
    );
    let queue = lo(1).queue.unwrap();
    assert_eq!((queue.wait_ms, queue.waits.0[11]), (Some(2.0), 300));
    assert_eq!((lo(2).drops.as_ref(), lo(2).queue), (None, None), "the probes were shed");
    assert!(vm(0).culprits.as_ref().unwrap().named.iter().any(|share| share.who == Who::Task("tar".into())));
    assert!(
        vm(1).exits.is_some()
            && vm(1).memory.unwrap().reclaim.is_some()
            && vm(4).disk.as_ref().unwrap().process.is_some()
    );
}

#[test]
fn without_names_there_are_none_in_the_file_and_the_windows_are_the_same_but_for_them() {
    let (live, bytes) = recorded(false);
    let mut again = replayed(&bytes).unwrap();
    assert_eq!(again[0].vms[0].name, "vm1");
    assert_eq!(again[2].vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["vm1", "vm2"]);
    for vm in again.iter_mut().flat_map(|report| &mut report.vms) {
        vm.name = if vm.name == "vm1" { "web" } else { "shop" }.to_owned();
        for interface in &mut vm.interfaces {
            // By the order in which the VM has them.
            let names = [("net1", "vnet7"), ("net2", "lo")];
            let (_, name) = names.into_iter().find(|(label, _)| *label == interface.device).unwrap();
            interface.device = name.to_owned();
        }
        // Told by name, which is another now.
        vm.interfaces.sort_by(|one, other| one.device.cmp(&other.device));
        for share in vm.culprits.iter_mut().flat_map(|culprits| &mut culprits.named) {
            if share.who == Who::Task("task1".to_owned()) {
                share.who = Who::Task("tar".to_owned());
            }
        }
    }
    assert_eq!(again, live);

    let mut frames = Frames::new(bytes).unwrap();
    let mut raw = format!("{:?}", frames.next::<Start>().unwrap());
    while let Some(tick) = frames.next::<Tick>().unwrap() {
        raw += &format!("{tick:?}");
    }
    assert!(raw.contains("vm1") && raw.contains("net1") && raw.contains("group1"));
    for name in ["web", "shop", "vnet7", "eth0", "qemu-1", &format!("{TAR:?}")] {
        assert!(!raw.contains(name), "{name}");
    }
}

#[test]
fn a_recording_cut_short_tells_the_windows_before_that() {
    let (live, bytes) = recorded(true);
    // What is cut off of a frame is told in the file's own tests: these are some at both ends.
    for end in (0..1_000).chain(bytes.len() - 1_000..=bytes.len()) {
        match Replay::new(bytes[..end].to_vec()) {
            Ok(mut replay) => {
                let windows: Vec<HostReport> = replay.by_ref().map(Result::unwrap).collect();
                assert_eq!(windows, live[..windows.len()], "at {end}");
                assert_eq!(windows.len() == live.len(), end == bytes.len(), "at {end}");
            }
            Err(error) => assert!(matches!(error, FileError::Empty(_)), "{error} at {end}"),
        }
    }
}

proptest! {
    /// Whoever writes a recording by hand gets strange windows, or none.
    #[test]
    fn a_start_and_ticks_of_any_content_break_nothing(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 8]>()), 1..60),
        sample_ms in prop_oneof![Just(0), Just(1_000), any::<u32>()],
        window_ms in prop_oneof![Just(0), Just(10_000), any::<u32>()],
    ) {
        let (_, bytes) = RECORDED.get_or_init(|| recorded(false)).clone();
        let mut frames = Frames::new(bytes).unwrap();
        let start = Start { sample_ms, window_ms, ..frames.next::<Start>().unwrap().unwrap() };
        let mut series = HostSeries::new(&start, LiveLoads::default(), SampleMetrics::default());
        let mut changes = changes.into_iter().cycle();
        while let Some(tick) = frames.next::<Tick>().unwrap() {
            let mut raw = encode_wide(&tick).unwrap();
            if let Some((at, number)) = changes.next() {
                let at = at.index(raw.len() - number.len());
                raw[at..at + number.len()].copy_from_slice(&number);
            }
            if let Ok(tick) = decode_wide(&raw) {
                series.apply(tick);
            }
        }
    }
}

static RECORDED: std::sync::OnceLock<(Vec<HostReport>, Vec<u8>)> = std::sync::OnceLock::new();
