//! The memory probe on the running kernel. Each test says so and passes where it may not load eBPF programs, or where there are no control groups
//! for memory.

use super::block_tests::in_child;
use super::{MemoryProbe, ProbeError, StatsEnabled};
use crate::reading::ReclaimCounters;
use gnomon_common::wire::VmId;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// What the group may have, and what is read through it: a page cache that does not fit.
const LIMIT: u64 = 32 * MIB;
const FILE: u64 = 512 * MIB;

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn load() -> Option<MemoryProbe> {
    match MemoryProbe::load() {
        Ok(probe) => Some(probe),
        Err(error @ (ProbeError::NoBtf { .. } | ProbeError::NotPermitted { .. })) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A control group with a limit on its memory; removed with this.
struct Group {
    path: PathBuf,
    is_version_2: bool,
}

impl Group {
    fn make(name: &str) -> Option<Self> {
        let (version_1, version_2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let controllers = fs::read_to_string(version_2.join("cgroup.subtree_control")).unwrap_or_default();
        let is_version_2 = controllers.split_whitespace().any(|controller| controller == "memory");
        if !is_version_2 && !version_1.join("cgroup.procs").exists() {
            println!("skipped: no hierarchy of control groups for memory");
            return None;
        }
        let path =
            if is_version_2 { version_2 } else { version_1 }.join(format!("gnomon-{name}-{}", std::process::id()));
        fs::create_dir(&path).inspect_err(|error| println!("skipped: {}: {error}", path.display())).ok()?;
        let group = Self { path, is_version_2 };
        fs::write(
            group.path.join(if is_version_2 { "memory.max" } else { "memory.limit_in_bytes" }),
            LIMIT.to_string(),
        )
        .unwrap();
        Some(group)
    }

    fn join(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// How often the limit refused memory, by the kernel's own count. Of a batch of pages that is refused, fewer are asked for at first: not each
    /// refusal leads to a reclaim.
    fn refusals(&self) -> u64 {
        let text = |name: &str| fs::read_to_string(self.path.join(name)).unwrap();
        if self.is_version_2 {
            let events = text("memory.events");
            events.lines().find_map(|line| line.strip_prefix("max ")).unwrap().parse().unwrap()
        } else {
            text("memory.failcnt").trim().parse().unwrap()
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        fs::remove_dir(&self.path).unwrap();
    }
}

/// A file of holes: read through the page cache it takes memory, and no disk.
fn holes(file: &File) {
    file.set_len(FILE).unwrap();
}

fn read_all(path: &Path) {
    let (mut file, mut chunk) = (File::open(path).unwrap(), vec![0; MIB as usize]);
    while file.read(&mut chunk).unwrap() > 0 {}
}

#[test]
fn what_a_process_reclaims_at_its_limit_is_its_vms_and_nobody_elses() {
    let Some((mut probe, group)) = load().zip(Group::make("reclaims")) else { return };
    assert!(probe.sees_limits());
    let _timed = StatsEnabled::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    holes(file.as_file());
    probe.track(vm(2), &[std::process::id()]).unwrap();
    let began = Instant::now();
    let prepare = |pid| {
        group.join(pid);
        probe.track(vm(1), &[pid]).unwrap();
    };
    in_child(prepare, || read_all(file.path()));
    let wall_ns = began.elapsed().as_nanos() as u64;
    let reading = probe.drain().unwrap();
    let ReclaimCounters { reclaims, stalled_ns } = reading[&vm(1)];
    let refusals = group.refusals();
    println!(
        "{reclaims} reclaims of {refusals} refusals, {stalled_ns} ns of {wall_ns}; the others: {:?}",
        reading[&vm(2)]
    );
    for cost in probe.cost().unwrap() {
        println!("{}: {} runs of {} ns", cost.program, cost.runs, cost.run_ns / cost.runs.max(1));
    }
    // What is read beyond the limit drives out as much, and no reclaim gets more than a few hundred pages.
    assert!(reclaims >= (FILE - LIMIT) / (4 * MIB) && reclaims <= refusals, "{reclaims} of {refusals}");
    assert!(stalled_ns > 1_000 * reclaims && stalled_ns < wall_ns, "{stalled_ns} ns of {wall_ns}");
    assert_eq!(reading[&vm(2)], ReclaimCounters::default(), "this process has no limit");
}

#[test]
fn a_vm_no_longer_tracked_is_forgotten_and_starts_from_zero() {
    let Some((mut probe, group)) = load().zip(Group::make("forgets")) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    holes(file.as_file());
    let mut child = 0;
    let prepare = |pid| {
        child = pid;
        group.join(pid);
        probe.track(vm(1), &[pid]).unwrap();
    };
    in_child(prepare, || read_all(file.path()));
    assert!(probe.drain().unwrap()[&vm(1)].reclaims > 0);
    probe.untrack(vm(1)).unwrap();
    assert!(probe.drain().unwrap().is_empty());
    probe.track(vm(1), &[child]).unwrap();
    assert_eq!(probe.drain().unwrap()[&vm(1)], ReclaimCounters::default());
}
