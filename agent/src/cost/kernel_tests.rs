//! Probes given up and taken up again on the running kernel. Each test says so and passes where it may not load eBPF programs, or where there
//! is no disk below the directory of temporary files.

use super::{Budget, CostControl, Costed, Standby};
use crate::cpu_source::{Choice, Footing, Host, SignalMetrics, climb};
use crate::probe::BlockProbe;
use crate::reading::BlockReading;
use crate::sample::SchedSource;
use gnomon_common::wire::{CpuSource, VmId};
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const VM: VmId = VmId(uuid::Uuid::from_u128(1));

/// No core is busy: nothing is allowed. With many, everything is.
const TINY: Budget = Budget { budget_cores: 0.0, budget_per_busy_core: 0.001 };

/// A control that measures at every other sample.
struct Bench {
    control: CostControl,
    registry: Registry,
    host_ns: u64,
}

impl Bench {
    fn new() -> Self {
        let mut registry = Registry::default();
        let control = CostControl::register(TINY, 30_000, &mut registry);
        Self { control, registry, host_ns: 0 }
    }

    /// So many measurements, during each of which `work` is done.
    fn measure(&mut self, measurements: u32, busy: bool, source: &mut dyn Costed, mut work: impl FnMut()) {
        for _ in 0..measurements {
            self.control.tick(&mut [source], self.host_ns);
            work();
            self.host_ns += if busy { u64::MAX / 1_000 } else { 0 };
            self.control.tick(&mut [source], self.host_ns);
        }
    }

    fn metric(&self, line: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
    }
}

/// The kernel's numbers of the programs that this process holds.
fn programs_held() -> BTreeSet<u32> {
    let entries =
        fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    entries
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok()))
        .collect()
}

/// How many of these programs the kernel still has; it frees them a little later than they are let go.
fn await_freed(programs: &BTreeSet<u32>) -> usize {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let loaded: BTreeSet<u32> =
            aya::programs::loaded_programs().filter_map(|program| program.ok().map(|p| p.id())).collect();
        let left = loaded.intersection(programs).count();
        if left == 0 || Instant::now() > deadline {
            return left;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn write(dir: &TempDir) {
    let mut file = File::create(dir.path().join("a")).unwrap();
    for _ in 0..4 {
        file.write_all(&[7; 4096]).unwrap();
        file.sync_all().unwrap();
    }
}

fn written(reading: &BlockReading) -> u64 {
    reading.vms[&VM].values().map(|account| account.write.bytes).sum()
}

#[test]
fn a_tiny_budget_sheds_the_block_probe_and_a_large_one_brings_it_back_with_its_vms() {
    let dir = tempfile::tempdir().unwrap();
    let dev = dir.path().metadata().unwrap().dev();
    if !Path::new(&format!("/sys/dev/block/{}:{}", libc::major(dev), libc::minor(dev))).exists() {
        return println!("skipped: {} is on no disk", dir.path().display());
    }
    let held_before = programs_held();
    let mut disks = match BlockProbe::load() {
        Ok(probe) => Standby::of(probe),
        Err(error) => return println!("skipped: {error}"),
    };
    let programs: BTreeSet<u32> = programs_held().difference(&held_before).copied().collect();
    assert_eq!(programs.len(), 3);
    disks.track(VM, &[std::process::id()], &[]).unwrap();
    let mut bench = Bench::new();

    // The first measurement has nothing to compare with; three are over.
    bench.measure(3, false, &mut disks, || write(&dir));
    assert!(written(&disks.drain().unwrap().unwrap()) >= 12 * 4096);
    assert_eq!(bench.metric("gnomon_agent_probe_shed{probe=\"block\"}"), Some(0.0));
    let cost = bench.metric("gnomon_agent_probe_busy_cores{program=\"request_issued\"}");
    assert!(cost.is_some_and(|cores| cores > 0.0), "{cost:?} cores for what was written");
    bench.measure(1, false, &mut disks, || write(&dir));
    assert!(disks.drain().unwrap().is_none(), "it is given up, and that is not zero");
    assert_eq!(bench.metric("gnomon_agent_probe_shed{probe=\"block\"}"), Some(1.0));
    let since = bench.metric("gnomon_agent_probe_shed_timestamp_seconds{probe=\"block\"}");
    assert!(since.is_some_and(|unix_s| unix_s > 1.7e9), "given up at {since:?}");
    assert_eq!(bench.metric("gnomon_agent_probe_busy_cores{program=\"request_issued\"}"), None);
    assert_eq!(await_freed(&programs), 0, "programs are still in the kernel");

    bench.measure(20, false, &mut disks, || ());
    assert!(disks.drain().unwrap().is_none(), "nothing changes while it is over the budget");
    bench.measure(9, true, &mut disks, || ());
    assert!(disks.drain().unwrap().is_none(), "it is not calm for long enough");
    bench.measure(1, true, &mut disks, || ());
    assert_eq!(written(&disks.drain().unwrap().unwrap()), 0, "its counters begin anew");
    assert_eq!(bench.metric("gnomon_agent_probe_shed{probe=\"block\"}"), Some(0.0));
    assert_eq!(bench.metric("gnomon_agent_probe_shed_timestamp_seconds{probe=\"block\"}"), None);
    write(&dir);
    assert!(written(&disks.drain().unwrap().unwrap()) >= 4 * 4096, "its VMs are tracked again");
}

#[test]
fn a_tiny_budget_steps_down_to_schedstat_and_a_large_one_up_again() {
    let held_before = programs_held();
    let climbed = climb(Choice::Auto, &Host).unwrap();
    if climbed.rung != CpuSource::TaskStorage {
        return println!("skipped: the best source here is {}", climbed.rung);
    }
    let programs: BTreeSet<u32> = programs_held().difference(&held_before).copied().collect();
    let signals = SignalMetrics::register(&mut Registry::default());
    let mut cpu = Footing::new(Host, climbed, Choice::Auto, signals);
    cpu.track(VM, &[std::process::id()]).unwrap();
    let mut bench = Bench::new();
    let used_ms = || {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        used.tv_sec * 1_000 + used.tv_nsec / 1_000_000
    };
    let spin = || {
        let end_ms = used_ms() + 20;
        while used_ms() < end_ms {
            std::hint::spin_loop();
        }
        thread::sleep(Duration::from_millis(1));
    };
    let run_ns = |cpu: &mut Footing<Host>, events: bool| {
        let before = cpu.drain().unwrap().vms[&VM];
        spin();
        let after = cpu.drain().unwrap().vms[&VM];
        assert_eq!(after.events.is_some(), events);
        after.run_ns - before.run_ns
    };
    assert!(run_ns(&mut cpu, true) > 10_000_000);
    bench.measure(4, false, &mut cpu, || thread::sleep(Duration::from_millis(5)));
    assert_eq!(*cpu.rung().borrow(), CpuSource::Schedstat);
    assert_eq!(await_freed(&programs), 0, "programs are still in the kernel");
    assert!(run_ns(&mut cpu, false) > 10_000_000, "the kernel's own counts go on");
    bench.measure(10, true, &mut cpu, || ());
    assert_eq!(*cpu.rung().borrow(), CpuSource::TaskStorage);
    assert!(run_ns(&mut cpu, true) > 10_000_000);
    assert_eq!(bench.metric("gnomon_agent_probe_shed{probe=\"scheduler\"}"), Some(0.0));
}
