//! The sampler over a host made of files, driven tick by tick.

mod devices;
mod refused;
mod replayed;
mod script;
mod shedding;

use super::*;
use crate::cost::Budget;
use crate::host::cgroup::{CgroupMounts, DomainCgroup, Membership};
use crate::host::inventory::VmFacts;
use crate::host::inventory::memory::{Balloon, MemoryFacts};
use crate::host::network::VmDevice;
use crate::host::process::QemuProcess;
use crate::reading::{DiskId, ExitCounters, ReclaimCounters, SchedCounters};
use gnomon_common::abi::block::{Direction, DiskAccount};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{ExitReason, ExitShare, VmId, VmState, VmWindow};
use prometheus_client::registry::Registry;
use script::Script;
use std::fs;
use std::path::Path;
use std::time::Instant;
use tempfile::TempDir;

const S: u64 = 1_000_000_000;
const DOMAIN: &str = "machine/qemu-1-web.libvirt-qemu";

/// A host: two CPUs, 8 GiB free, one domain with a quota of 1.5 cores.
struct Bench {
    dir: TempDir,
    script: Script,
    publish: watch::Sender<Arc<Inventory>>,
    reports: mpsc::Receiver<HostReport>,
    sampler: Sampler,
    second: u64,
    registry: Registry,
}

fn web() -> VmId {
    VmId(uuid::Uuid::from_u128(1))
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| None)
    }

    /// Recording to what `tape` makes in the host's directory.
    fn with(tape: impl FnOnce(&Path) -> Option<Tape>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "proc/stat", "cpu  0 0 0 0 0 0 0\ncpu0 0\ncpu1 0\n");
        write(dir.path(), "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n");
        write(dir.path(), "proc/7/status", "Name:\tqemu\nVmRSS:\t 1024 kB\nVmSwap:\t 8 kB\n");
        write(dir.path(), "proc/7/stat", "7 (qemu) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0");
        write(dir.path(), &format!("cg/{DOMAIN}/cpu.max"), "150000 100000\n");
        let script = Script::default();
        let (publish, inventory) = watch::channel(Arc::new(without_vms()));
        let (out, reports) = mpsc::channel(2);
        let (proc, tape) = (Proc::at(dir.path().join("proc")), tape(dir.path()));
        let config = SamplerConfig { proc, tape, ..SamplerConfig::default() };
        let (metrics, mut registry) = (SampleMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        let sources = Sources {
            cpu: Box::new(script.clone()),
            disks: Some(Box::new(script.clone())),
            drops: Some(Box::new(script.clone())),
            queues: Some(Box::new(script.clone())),
            reclaim: Some(Box::new(script.clone())),
            exits: Some(Box::new(script.clone())),
            cost: CostControl::register(Budget::default(), 1_000, &mut registry),
        };
        let sampler = Sampler::new(config, inventory, sources, out, metrics, at(100));
        let mut bench = Self { dir, script, publish, reports, sampler, second: 100, registry };
        bench.set_group(0);
        bench
    }

    fn facts(&self, state: VmState) -> VmFacts {
        let mount = format!("1 1 0:1 / {}/cg rw - cgroup2 cgroup2 rw", self.dir.path().display());
        let membership = Membership::parse(&format!("0::/{DOMAIN}/emulator\n"));
        VmFacts {
            id: web(),
            name: "web".into(),
            state,
            process: Some(QemuProcess { pid: 7, start_ticks: 99, threads: Vec::new(), vhost_pids: Vec::new() }),
            cgroup: DomainCgroup::discover(&CgroupMounts::parse(&mount), &membership),
            vcpus: 2,
            vcpus_max: 2,
            memory_bytes: 1 << 30,
            balloon_bytes: Some(1 << 29),
            memory: MemoryFacts { balloon: Balloon::Movable { bytes: 1 << 29 }, ..MemoryFacts::default() },
            interfaces: Vec::new(),
            disks_unseen: false,
            guest_disks: None,
            terms: None,
            keepsake: None,
            shadow_of: None,
            execution_changes: 0,
        }
    }

    fn publish(&self, vms: Vec<VmFacts>, complete: bool) {
        let inventory = Inventory { vms, complete, taken: Instant::now(), hypervisor: String::new() };
        self.publish.send_replace(Arc::new(inventory));
    }

    /// The domain's group has used half a core and hit its quota in three of ten periods of each second.
    fn set_group(&mut self, seconds: u64) {
        let (usage_us, throttled) = (seconds * 500_000, seconds * 3);
        let text = format!("usage_usec {usage_us}\nnr_periods 0\nnr_throttled {throttled}\nthrottled_usec 1\n");
        write(self.dir.path(), &format!("cg/{DOMAIN}/cpu.stat"), &text);
    }

    /// One second in which the VM ran and waited this much.
    fn second(&mut self, run_cores: f64, wait_cores: f64) -> bool {
        self.second += 1;
        self.set_group(self.second);
        {
            let mut state = self.script.0.lock().unwrap();
            state.now_ns = self.second * S;
            for counters in state.counters.values_mut() {
                counters.run_ns += (run_cores * 1e9) as u64;
                counters.wait_ns += (wait_cores * 1e9) as u64;
            }
        }
        self.sampler.tick(at(self.second))
    }

    fn seconds(&mut self, seconds: u64, run_cores: f64, wait_cores: f64) {
        for _ in 0..seconds {
            self.second(run_cores, wait_cores);
        }
    }

    fn calls(&self) -> Vec<String> {
        self.script.0.lock().unwrap().calls.clone()
    }

    fn metric(&self, line: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
    }
}

fn without_vms() -> Inventory {
    Inventory { vms: Vec::new(), complete: true, taken: Instant::now(), hypervisor: String::new() }
}

fn tap(name: &str) -> VmDevice {
    VmDevice { name: name.to_owned(), is_macvtap: false }
}

fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The monotonic and the wall clock agree: second 100 is the beginning of a window.
fn at(second: u64) -> Now {
    Now { monotonic_ns: second * S, wall: Timestamp::from_unix_ms(second * 1000) }
}

fn only(report: &HostReport) -> &VmWindow {
    assert_eq!(report.vms.len(), 1);
    &report.vms[0]
}

#[test]
fn ten_seconds_of_a_starved_vm_become_one_report() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    for second in 1..=10 {
        bench.second(0.5, 0.25);
        assert_eq!(bench.reports.is_empty(), second < 10, "after {second} s");
    }
    let report = bench.reports.try_recv().unwrap();
    assert_eq!((report.start.unix_ms(), report.window_ms, report.inventory_complete), (100_000, 10_000, true));
    assert_eq!(report.host_window.memory_available_bytes, 8 << 30);
    assert_eq!(report.losses.threads_unmeasured, 3);
    let vm = only(&report);
    let cpu = vm.cpu.unwrap();
    assert_eq!((cpu.demand_low.mean, cpu.demand_high.mean), (0.5, 0.75));
    assert_eq!(cpu.covered, 0.9, "the first reading has nothing to be compared with");
    assert!((cpu.usage.mean - 0.5).abs() < 0.01 && (cpu.throttled.mean - 0.3).abs() < 0.01, "{cpu:?}");
    assert_eq!((vm.allocation.quota_cores, vm.allocation.vcpus), (Some(1.5), 2));
    let memory = vm.memory.unwrap();
    assert_eq!((memory.resident_bytes, memory.swapped_bytes, memory.balloon_bytes), (1 << 20, 8 << 10, Some(1 << 29)));

    bench.seconds(10, 1.0, 0.0);
    let next = bench.reports.try_recv().unwrap();
    assert_eq!((next.start.unix_ms(), only(&next).cpu.unwrap().covered), (110_000, 1.0));
    let label = format!("{{vm=\"{}\",name=\"web\"}}", web());
    assert_eq!(bench.metric(&format!("gnomon_agent_vm_demand_low_cores{label}")), Some(1.0));
    assert_eq!(bench.metric(&format!("gnomon_agent_vm_quota_cores{label}")), Some(1.5));
}

#[test]
fn disks_are_told_beside_what_the_process_was_charged_with_and_are_absent_where_nothing_tells() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    let mut windows = Vec::new();
    for second in 1..=20_u64 {
        let done = Direction { operations: second * 100, bytes: second << 20, ..Direction::default() };
        if let Some(disks) = bench.script.0.lock().unwrap().disks.get_mut(&web()) {
            disks.insert(DiskId { major: 0, minor: 99 }, DiskAccount { write: done, ..DiskAccount::default() });
        }
        let charged = second << 21;
        write(bench.dir.path(), "proc/7/io", &format!("read_bytes: 0\nwrite_bytes: {charged}\n"));
        bench.second(0.5, 0.0);
        windows.extend(bench.reports.try_recv());
    }
    let disk = only(&windows[1]).disk.clone().unwrap();
    assert_eq!((disk.write.bytes_per_s.mean, disk.write.operations_per_s), (f64::from(1 << 20), 100.0));
    assert_eq!(disk.process.map(|process| process.write_bytes_per_s), Some(f64::from(1 << 21)));
    assert_eq!(disk.disks[0].name, "0:99", "no such disk here");
    let rest = windows[1].host_window.disk_rest.unwrap();
    assert_eq!((rest.write_bytes_per_s, rest.requests_missed_per_s), (f64::from(1 << 20), 1.0));
    let label = format!("{{vm=\"{}\",name=\"web\"}}", web());
    assert_eq!(bench.metric(&format!("gnomon_agent_vm_disk_operations_per_second{label}")), Some(100.0));

    bench.script.0.lock().unwrap().broken = true;
    bench.seconds(10, 0.5, 0.0);
    let silent = bench.reports.try_recv().unwrap();
    assert_eq!((only(&silent).disk.is_none(), silent.host_window.disk_rest), (true, None));
    assert_eq!(bench.metric("gnomon_agent_block_probe_failures_total"), Some(10.0));
}

#[test]
fn a_vm_is_tracked_once_followed_through_a_restart_and_forgotten() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.second(0.0, 0.0);
    bench.publish(vec![bench.facts(VmState::Paused)], true);
    bench.second(0.0, 0.0);
    assert_eq!(bench.calls(), ["track [7]"]);

    let mut restarted = bench.facts(VmState::Running);
    restarted.process.as_mut().unwrap().start_ticks = 100;
    restarted.process.as_mut().unwrap().vhost_pids = vec![9];
    bench.publish(vec![restarted], true);
    bench.second(0.0, 0.0);
    assert_eq!(bench.calls()[1..], ["untrack", "track [7, 9]"]);

    bench.publish(Vec::new(), true);
    bench.second(0.0, 0.0);
    assert_eq!(bench.calls()[3..], ["untrack"]);
}

#[test]
fn a_probe_that_fails_is_asked_again_and_demand_stays_unknown_meanwhile() {
    let mut bench = Bench::new();
    bench.script.0.lock().unwrap().broken = true;
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(10, 1.0, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).cpu, None);
    assert_eq!(bench.metric("gnomon_agent_probe_drain_failures_total"), Some(10.0));
    assert_eq!(bench.metric("gnomon_agent_probe_track_failures_total"), Some(1.0));
    bench.script.0.lock().unwrap().broken = false;
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(10, 1.0, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).cpu.unwrap().demand_low.mean, 1.0);
}

#[test]
fn a_counter_that_goes_backwards_is_counted_and_does_not_reach_the_report() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(5, 1.0, 0.0);
    bench.script.0.lock().unwrap().counters.insert(web(), SchedCounters { threads: 3, ..SchedCounters::default() });
    bench.seconds(5, 1.0, 0.0);
    let report = bench.reports.try_recv().unwrap();
    let cpu = only(&report).cpu.unwrap();
    assert_eq!((cpu.demand_low.max, cpu.covered, report.losses.samples_absurd), (1.0, 0.8, 1));
    assert_eq!(bench.metric("gnomon_agent_samples_absurd_total{reason=\"reset\"}"), Some(1.0));
}

/// As when a probe is given up for its cost, or taken up again.
#[test]
fn a_source_that_takes_over_leaves_a_gap_and_no_absurd_sample() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(5, 1.0, 0.0);
    {
        // It has counted more than the one before it: a difference would look like a sample.
        let mut state = bench.script.0.lock().unwrap();
        state.turn += 1;
        state.counters.values_mut().for_each(|counters| counters.run_ns += S / 2);
    }
    bench.seconds(5, 1.0, 0.0);
    let report = bench.reports.try_recv().unwrap();
    let cpu = only(&report).cpu.unwrap();
    assert_eq!((cpu.demand_low.max, cpu.covered, report.losses.samples_absurd), (1.0, 0.8, 0));
}

#[test]
fn disks_whose_probe_is_given_up_are_absent_and_begin_anew_when_it_is_back() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    let mut windows = Vec::new();
    for second in 1..=50_u64 {
        {
            let mut state = bench.script.0.lock().unwrap();
            state.shed = (11..=25).contains(&second);
            // Back, it counts something else: a difference to what came before would look like a sample.
            let operations = if second <= 25 { second - 1 } else { 5_000 + second };
            let done = Direction { operations, bytes: operations << 20, ..Direction::default() };
            if let Some(disks) = state.disks.get_mut(&web()) {
                disks.insert(DiskId { major: 0, minor: 99 }, DiskAccount { write: done, ..DiskAccount::default() });
            }
        }
        bench.second(0.5, 0.0);
        windows.extend(bench.reports.try_recv());
    }
    let rates: Vec<Option<f64>> =
        windows.iter().map(|window| only(window).disk.as_ref().map(|disk| disk.write.operations_per_s)).collect();
    assert_eq!(rates, [Some(1.0), None, Some(1.0), Some(1.0), Some(1.0)]);
    let rest: Vec<bool> = windows.iter().map(|window| window.host_window.disk_rest.is_some()).collect();
    assert_eq!(rest, [true, false, true, true, true]);
    assert_eq!(windows[4].losses.samples_absurd, 0);
}

#[test]
fn a_full_queue_neither_stops_sampling_nor_goes_uncounted_and_a_closed_one_ends_it() {
    let mut bench = Bench::new();
    (0..40).for_each(|_| assert!(bench.second(0.0, 0.0)));
    assert_eq!(bench.metric("gnomon_agent_reports_unsent_total"), Some(2.0));
    while bench.reports.try_recv().is_ok() {}
    bench.seconds(10, 0.0, 0.0);
    assert_eq!(bench.reports.try_recv().unwrap().losses.reports_dropped, 2);
    bench.reports.close();
    assert!((0..10).map(|_| bench.second(0.0, 0.0)).any(|connected| !connected));
}

#[test]
fn late_ticks_are_counted_and_a_clock_that_was_set_lays_a_new_grid() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.second(1.0, 0.0);
    bench.second += 2;
    bench.second(1.0, 0.0);
    assert_eq!(bench.metric("gnomon_agent_samples_skipped_total"), Some(2.0));
    // Someone sets the clock one hour and 3.4 s ahead.
    let set = Now { wall: Timestamp::from_unix_ms(3_600_000 + 3_400 + 105_000), ..at(105) };
    bench.script.0.lock().unwrap().now_ns = 105 * S;
    bench.sampler.tick(set);
    assert_eq!(bench.metric("gnomon_agent_clock_steps_total"), Some(1.0));
    assert!(bench.reports.try_recv().is_err(), "the torn window is not reported");
    let later = Now { wall: Timestamp::from_unix_ms(3_710_000), monotonic_ns: 106 * S + S * 6 / 10 };
    bench.sampler.tick(later);
    assert_eq!(bench.reports.try_recv().unwrap().start.unix_ms(), 3_700_000);
}

#[test]
fn an_incomplete_inventory_is_said_so_and_its_vms_are_still_measured() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(3, 1.0, 0.0);
    bench.publish(vec![bench.facts(VmState::Running)], false);
    bench.seconds(7, 1.0, 0.0);
    let report = bench.reports.try_recv().unwrap();
    assert!(!report.inventory_complete);
    assert_eq!(only(&report).cpu.unwrap().covered, 0.9);
}

#[test]
fn exits_are_told_from_the_second_window_on_and_shown_until_the_probe_is_given_up() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(10, 0.5, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).exits, None);
    let mut counters = ExitCounters { vcpus: 1, ..ExitCounters::default() };
    (counters.exits[ExitReason::Halt as usize], counters.away_ns[ExitReason::Halt as usize]) = (40, 5 * S);
    bench.script.0.lock().unwrap().exits.insert(web(), counters);
    bench.seconds(10, 0.5, 0.0);
    let told = only(&bench.reports.try_recv().unwrap()).exits.clone().unwrap();
    assert_eq!(told, [ExitShare { reason: ExitReason::Halt, exits_per_s: 4.0, away_vcpus: 0.5 }]);
    let shown = |bench: &Bench, reason: &str| {
        bench.metric(&format!("gnomon_agent_vm_away_vcpus{{vm=\"{}\",name=\"web\",reason=\"{reason}\"}}", web()))
    };
    assert_eq!((shown(&bench, "halt"), shown(&bench, "io")), (Some(0.5), Some(0.0)));
    bench.script.0.lock().unwrap().shed = true;
    bench.seconds(10, 0.5, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).exits, None);
    assert_eq!(shown(&bench, "halt"), None, "the last value must not stand as if it were current");
}

#[test]
fn time_in_reclaim_is_told_from_the_second_window_on_and_not_where_the_probe_fails() {
    let mut bench = Bench::new();
    bench.publish(vec![bench.facts(VmState::Running)], true);
    bench.seconds(10, 1.0, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).memory.unwrap().reclaim, None);
    let counters = ReclaimCounters { reclaims: 40, stalled_ns: 5 * S };
    bench.script.0.lock().unwrap().reclaim.insert(web(), counters);
    bench.seconds(10, 1.0, 0.0);
    let stalls = only(&bench.reports.try_recv().unwrap()).memory.unwrap().reclaim.unwrap();
    assert_eq!((stalls.reclaims_per_s, stalls.stalled_threads), (4.0, 0.5));
    bench.script.0.lock().unwrap().broken = true;
    bench.seconds(10, 1.0, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).memory.unwrap().reclaim, None);
    assert_eq!(bench.metric("gnomon_agent_memory_probe_failures_total"), Some(1.0));
}

#[test]
fn a_vm_whose_process_was_replaced_has_no_memory_in_the_report() {
    let mut bench = Bench::new();
    let mut facts = bench.facts(VmState::Running);
    facts.process.as_mut().unwrap().start_ticks = 1;
    bench.publish(vec![facts], true);
    bench.seconds(10, 1.0, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).memory, None);
}

#[test]
fn intervals_that_do_not_fit_are_refused_with_the_rule() {
    for (sample_ms, window_ms, good) in [
        (1000, 10_000, true),
        (100, 1000, true),
        (50, 1000, false),
        (1000, 900, false),
        (300, 1000, false),
        (0, 1000, false),
    ] {
        let checked = SamplerConfig { sample_ms, window_ms, ..SamplerConfig::default() }.check();
        assert_eq!(checked.is_ok(), good, "{sample_ms} {window_ms}");
    }
}

#[test]
fn the_thread_reports_by_itself_and_stops_when_it_is_dropped() {
    let inventory = Inventory { vms: Vec::new(), complete: true, taken: Instant::now(), hypervisor: String::new() };
    let (_publish, receiver) = watch::channel(Arc::new(inventory));
    let (out, mut reports) = mpsc::channel(4);
    let config = SamplerConfig { sample_ms: 100, window_ms: 1000, ..SamplerConfig::default() };
    let cost = CostControl::register(Budget::default(), 1_000, &mut Registry::default());
    let sources = Sources {
        cpu: Box::new(Script::default()),
        disks: None,
        drops: None,
        queues: None,
        reclaim: None,
        exits: None,
        cost,
    };
    let handle = spawn(config, receiver, sources, out, SampleMetrics::default()).unwrap();
    let first = reports.blocking_recv().unwrap();
    let second = reports.blocking_recv().unwrap();
    assert_eq!(first.start.unix_ms() % 1000, 0);
    assert_eq!(second.start.since(first.start), Duration::from_secs(1));
    assert!(second.host_window.cpu_cores.max > 0.0, "this very test uses CPU");
    assert!(handle.is_running());
    drop(handle);
    assert!(reports.blocking_recv().is_none_or(|_| reports.blocking_recv().is_none()));
}

#[test]
fn traffic_of_a_running_vms_interfaces_is_reported_and_that_of_a_paused_one_is_not() {
    let mut bench = Bench::new();
    let facts = |bench: &Bench, state| VmFacts { interfaces: vec![tap("vnet7")], ..bench.facts(state) };
    let count = |bench: &Bench, second: u64| {
        let (received, sent) = (second * 5_000, second * 2_000);
        let table = format!(
            "Inter-| Receive | Transmit\n face |bytes\n vnet7: {received} {second} 0 0 0 0 0 0 {sent} 9 0 {second} 0 0 0 0\n"
        );
        write(bench.dir.path(), "proc/net/dev", &table);
    };
    bench.publish(vec![facts(&bench, VmState::Running)], true);
    for second in 1..=10 {
        count(&bench, second);
        bench.second(0.5, 0.0);
    }
    let report = bench.reports.try_recv().unwrap();
    let [interface] = only(&report).interfaces.as_slice() else { panic!("{report:?}") };
    let close = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.01;
    assert_eq!(interface.device, "vnet7");
    assert!(
        close(interface.sent.bytes_per_s.mean, 5_000.0) && close(interface.sent.packets_per_s, 1.0),
        "{interface:?}"
    );
    assert!(close(interface.received.bytes_per_s.mean, 2_000.0) && close(interface.received.dropped_per_s, 1.0));
    let label = format!("gnomon_agent_vm_network_bytes_per_second{{vm=\"{}\",name=\"web\",direction=\"sent\"}}", web());
    assert!(close(bench.metric(&label).unwrap(), 5_000.0));

    bench.publish(vec![facts(&bench, VmState::Paused)], true);
    bench.seconds(10, 0.0, 0.0);
    assert_eq!(only(&bench.reports.try_recv().unwrap()).interfaces, []);
    assert_eq!(bench.metric(&label), None, "its last value must not stand");
}
