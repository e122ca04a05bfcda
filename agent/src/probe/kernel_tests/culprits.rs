//! Who is charged with what VMs waited, on the running kernel.

use super::{Child, MS, counters, load, pinned_hog, vm};
use crate::probe::SchedulerOptions;
use crate::reading::{Culprit, SchedReading, WaitCauses};
use gnomon_common::abi::sched::Command;
use gnomon_common::wire::VmId;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What was waited between two readings, in nanoseconds, and for whom.
struct Waited {
    all: u64,
    own_quota: u64,
    own: u64,
    culprits: Vec<(Culprit, u64)>,
    other_tasks: u64,
}

impl Waited {
    fn of(before: &SchedReading, after: &SchedReading, vm: VmId) -> Self {
        let (b, a): (&WaitCauses, &WaitCauses) = (&before.culprits[&vm], &after.culprits[&vm]);
        let known = |who: Culprit| b.culprits.iter().find(|(known, _)| *known == who).map_or(0, |(_, ns)| *ns);
        let waited = Self {
            all: counters(after, vm).wait_ns - counters(before, vm).wait_ns,
            own_quota: a.own_quota_ns.expect("this kernel tells") - b.own_quota_ns.unwrap(),
            own: a.own_ns - b.own_ns,
            culprits: a.culprits.iter().map(|&(who, ns)| (who, ns - known(who))).collect(),
            other_tasks: a.other_tasks_ns - b.other_tasks_ns,
        };
        println!(
            "{vm} waited {} ms: {} for its quota, {} for itself, {} for other tasks; {:?}",
            waited.all / MS,
            waited.own_quota / MS,
            waited.own / MS,
            waited.other_tasks / MS,
            waited.culprits
        );
        waited
    }

    fn for_culprit(&self, who: Culprit) -> u64 {
        self.culprits.iter().find(|(known, _)| *known == who).map_or(0, |(_, ns)| *ns)
    }

    fn for_others(&self) -> u64 {
        self.culprits.iter().map(|(_, ns)| ns).sum::<u64>() + self.other_tasks
    }
}

fn run_ns(before: &SchedReading, after: &SchedReading, vm: VmId) -> u64 {
    counters(after, vm).run_ns - counters(before, vm).run_ns
}

#[test]
fn of_two_vms_on_one_cpu_each_is_the_others_culprit() {
    let Some(mut scheduler) = load(SchedulerOptions::default()) else { return };
    let hogs = [pinned_hog(c"one"), pinned_hog(c"other")];
    for (number, hog) in hogs.iter().enumerate() {
        scheduler.track(vm(number as u128), &[hog.tgid()]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    let before = scheduler.drain();
    std::thread::sleep(Duration::from_secs(4));
    let after = scheduler.drain();
    // Neither ever sleeps: the CPU was someone else's for the rest, and then both waited for that.
    let strangers = after.taken_ns - before.taken_ns - run_ns(&before, &after, vm(0)) - run_ns(&before, &after, vm(1));
    for (victim, culprit) in [(0, 1), (1, 0)] {
        let waited = Waited::of(&before, &after, vm(victim));
        let expected = waited.all.saturating_sub(strangers);
        let charged = waited.for_culprit(Culprit::Vm(vm(culprit)));
        println!(
            "{} ms of {} ms charged to the other, {} ms were strangers'",
            charged / MS,
            waited.all / MS,
            strangers / MS
        );
        assert!(expected > 500 * MS, "no contention: strangers had the CPU");
        assert!(charged as f64 >= 0.9 * expected as f64, "{charged} of {expected} ns");
        assert_eq!(waited.own, 0);
        assert!(waited.own_quota < waited.all / 100, "nobody has a quota");
    }
}

#[test]
fn a_host_task_is_named_by_its_command() {
    let Some(mut scheduler) = load(SchedulerOptions::default()) else { return };
    let (guest, _task) = (pinned_hog(c"guest"), pinned_hog(c"gnomon-hog/7"));
    scheduler.track(vm(1), &[guest.tgid()]).unwrap();
    let mut bytes = *b"gnomon-hog\0\0\0\0\0\0";
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let task = Culprit::Task(Command([word(0), word(8)]));
    // Until it has a column it is one of the others; on a busy machine it takes a while to be met at all.
    let start = scheduler.drain();
    let mut before = scheduler.drain();
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(100));
        before = scheduler.drain();
        if Waited::of(&start, &before, vm(1)).for_culprit(task) > 0 {
            break;
        }
    }
    let mut waited = Waited::of(&before, &before, vm(1));
    for _ in 0..60 {
        std::thread::sleep(Duration::from_millis(500));
        waited = Waited::of(&before, &scheduler.drain(), vm(1));
        if waited.for_culprit(task) > 500 * MS {
            break;
        }
    }
    let named = waited.for_culprit(task);
    assert!(named > 500 * MS, "only {named} ns are the task's");
    assert!(waited.for_others() as f64 >= 0.9 * waited.all as f64);
    bytes[0] = b'x';
    assert_eq!(waited.for_culprit(Culprit::Task(Command([u64::from_le_bytes(bytes[..8].try_into().unwrap()), 0]))), 0);
}

/// A control group with a quota of 0.3 cores, removed when dropped.
struct QuotaGroup(PathBuf);

impl QuotaGroup {
    /// `None` where this process may not make one.
    fn with(name: &str, child: &Child) -> Option<Self> {
        let file = format!("gnomon-test-{}-{name}", std::process::id());
        let legacy = Path::new("/sys/fs/cgroup/cpu");
        let (group, limits): (PathBuf, &[(&str, &str)]) = if legacy.join("cpu.cfs_quota_us").exists() {
            (legacy.join(file), &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "30000")])
        } else {
            (Path::new("/sys/fs/cgroup").join(file), &[("cpu.max", "30000 100000")])
        };
        if let Err(error) = fs::create_dir(&group) {
            println!("skipped: {}: {error}", group.display());
            return None;
        }
        let group = Self(group);
        let moved = limits
            .iter()
            .copied()
            .chain([("cgroup.procs", child.pid.to_string().as_str())])
            .try_for_each(|(file, text)| fs::write(group.0.join(file), text));
        match moved {
            Ok(()) => Some(group),
            Err(error) => {
                println!("skipped: no quota in {}: {error}", group.0.display());
                None
            }
        }
    }
}

impl Drop for QuotaGroup {
    fn drop(&mut self) {
        // Its process has ended, as it is dropped before; a group that is left behind is empty and has a telling name.
        let _ = fs::remove_dir(&self.0);
    }
}

fn a_throttled_vm_waits_for_its_own_quota(name: &str, options: SchedulerOptions) {
    let Some(mut scheduler) = load(options) else { return };
    let hog = Child::start(|_, _| {
        loop {
            std::hint::spin_loop();
        }
    });
    let Some(group) = QuotaGroup::with(name, &hog) else { return };
    scheduler.track(vm(1), &[hog.tgid()]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = scheduler.drain();
    std::thread::sleep(Duration::from_secs(3));
    let after = scheduler.drain();
    let waited = Waited::of(&before, &after, vm(1));
    drop(hog);
    drop(group);
    assert!(waited.all > 1_500 * MS, "it was hardly throttled");
    assert!(waited.own_quota as f64 >= 0.9 * (waited.all - waited.for_others()) as f64, "{} ns", waited.own_quota);
    assert_eq!(waited.own, 0);
    assert!(waited.culprits.iter().all(|(who, _)| !matches!(who, Culprit::Vm(_))), "there is no other VM");
}

#[test]
fn a_throttled_vm_is_told_apart_from_a_starved_one() {
    a_throttled_vm_waits_for_its_own_quota("thread", SchedulerOptions::default());
}

#[test]
fn a_throttled_vm_is_told_apart_where_only_its_group_tells() {
    a_throttled_vm_waits_for_its_own_quota(
        "group",
        SchedulerOptions { throttled_by_group: true, ..SchedulerOptions::default() },
    );
}

#[test]
fn a_slot_that_is_given_away_takes_no_waits_along() {
    let Some(mut scheduler) = load(SchedulerOptions::default()) else { return };
    let hogs = [pinned_hog(c"one"), pinned_hog(c"other")];
    scheduler.track(vm(1), &[hogs[0].tgid()]).unwrap();
    scheduler.track(vm(2), &[hogs[1].tgid()]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let reading = scheduler.drain();
    let charged = |reading: &SchedReading, victim: u128, culprit: u128| {
        let culprits = &reading.culprits[&vm(victim)].culprits;
        culprits.iter().find(|(who, _)| *who == Culprit::Vm(vm(culprit))).map_or(0, |(_, ns)| *ns)
    };
    let before = charged(&reading, 1, 2);
    assert!(before > 100 * MS && charged(&reading, 2, 1) > 100 * MS, "no contention: {reading:?}");
    scheduler.untrack(vm(2)).unwrap();
    // Its slot is free once its threads' accounts are closed.
    let deadline = Instant::now() + Duration::from_secs(5);
    let idle = Child::start(|_, _| {});
    let slot_before = scheduler.slot_of(vm(1));
    loop {
        scheduler.drain();
        scheduler.track(vm(3), &[idle.tgid()]).unwrap();
        if scheduler.slot_of(vm(3)) == slot_before.map(|slot| slot + 1) {
            break;
        }
        assert!(Instant::now() < deadline, "the slot is not given away");
        scheduler.untrack(vm(3)).unwrap();
    }
    let reading = scheduler.drain();
    assert!(charged(&reading, 1, 3) < before / 10, "the heir is blamed for {} ns", charged(&reading, 1, 3));
    assert!(charged(&reading, 3, 1) < 50 * MS, "the heir has waited {} ns", charged(&reading, 3, 1));
}
