//! What a full lab is for: does the agent hold what it promises on a kernel that is not the developer's?
//!
//! Its kernel is Debian's, 6.1 on Debian 12: cgroup version 2 alone, guests under KVM. Each step compares what Gnomon says with
//! what that kernel itself says.

mod network;
mod squeeze;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FullStack, WINDOW_MS};
use crate::lab::full::{FullLab, Guest, Machine, Options};
use crate::lab::{GuestOptions, Progress};

pub use network::Carried;
pub use squeeze::Squeezed;

/// The guest, and what its program wants of one emulated core.
const GUEST: &str = "g1";
const LOAD: &str = "constant:0.2";
/// What the guest may use at first: more than it wants, so that a brain has something to take back.
const QUOTA_CORES: f64 = 0.9;
/// How long the counters are compared. Windows of two seconds leave an edge of one at each end.
const COMPARED: Duration = Duration::from_secs(24);
/// How far the probe may be off the cgroup's own count over that time: an edge, and a share for the window's own timing.
const TOLERANCE_CORES: f64 = 0.05;
const TOLERANCE_SHARE: f64 = 0.15;
/// The windows are not those between the looks, and a guest's timers do not tick evenly under emulation.
const EXITS_TOLERANCE_SHARE: f64 = 0.25;
/// The guest's disk on its host, and what it wants to write there.
const DISK: &str = "/var/lib/g1.img";
const WRITTEN_BYTES_PER_S: u64 = 512 << 10;
/// Write-back comes in bursts, of which the edges of the time cut one.
const WRITTEN_TOLERANCE_SHARE: f64 = 0.25;
/// A dwell, a shrink interval, and what emulation adds.
const RESIZE_PATIENCE: Duration = Duration::from_secs(120);
/// From a change to its report.
const REPORT_PATIENCE: Duration = Duration::from_secs(60);
const MIGRATION_PATIENCE: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_secs(1);

/// What was seen, for a person.
#[derive(Debug)]
pub struct Findings {
    /// `uname -r` inside.
    pub kernel: String,
    /// Controllers of cgroup version 2 there.
    pub controllers: String,
    /// Whether the kernel has what needs hardware virtualisation: the tracepoint of KVM's exits, and a guest that uses it.
    pub kvm: String,
    /// The guest's CPU time over the same span, in cores: the probe's run time, and the cgroup's count.
    pub ebpf_cores: f64,
    /// The kernel's own count.
    pub cgroup_cores: f64,
    /// Run and wait time, in cores.
    pub demand_high_cores: f64,
    /// Why its vCPU left the guest.
    pub exits: Exits,
    /// What it wrote through the host's cache, and how long it waited for memory.
    pub written: Written,
    /// What went over its network interface.
    pub carried: Carried,
    /// How short of memory it was made.
    pub squeezed: Squeezed,
    /// What the brain commanded and cpu.max then said, in cores.
    pub quota_cores: f64,
    /// What a release brought back, in cores.
    pub released_cores: f64,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}, cgroup v2 with {}", self.kernel, self.controllers)?;
        writeln!(f, "KVM: {}", self.kvm)?;
        writeln!(
            f,
            "CPU of the guest: eBPF says {:.3} to {:.3} cores, the cgroup {:.3}",
            self.ebpf_cores, self.demand_high_cores, self.cgroup_cores
        )?;
        writeln!(
            f,
            "exits of its vCPU a second: eBPF says {:.1}, KVM {:.1}; for a halt {:.1} and {:.1}; vCPUs halted: {:.3} and {:.3}\n{}",
            self.exits.all_per_s,
            self.exits.kvm_all_per_s,
            self.exits.halts_per_s,
            self.exits.kvm_halts_per_s,
            self.exits.halted_vcpus,
            self.exits.kvm_halted_vcpus,
            self.exits.explained
        )?;
        writeln!(
            f,
            "written through the host's cache: the guest wants {WRITTEN_BYTES_PER_S} bytes a second, eBPF says {:.0} of them are the VM's (QEMU itself {:.0}); \
             waited for memory: {:.4} of the time, the kernel says {:.4}",
            self.written.ebpf_bytes_per_s,
            self.written.process_bytes_per_s,
            self.written.pressure,
            self.written.kernel_pressure
        )?;
        writeln!(f, "{}\n{}", self.carried, self.squeezed)?;
        write!(
            f,
            "quota: {QUOTA_CORES} cores became {:.3} in cpu.max by a command of the brain, and {:.3} by a release",
            self.quota_cores, self.released_cores
        )
    }
}

/// A guest's exits, per second: as the brain's API tells them, and by KVM's own count.
#[derive(Debug)]
pub struct Exits {
    /// The probe's.
    pub all_per_s: f64,
    /// KVM's.
    pub kvm_all_per_s: f64,
    /// The probe's, for a halt.
    pub halts_per_s: f64,
    /// KVM's, for a halt.
    pub kvm_halts_per_s: f64,
    /// vCPUs that had nothing to do, on average, by the probe.
    pub halted_vcpus: f64,
    /// By KVM.
    pub kvm_halted_vcpus: f64,
    /// What `gnomon explain` says of it.
    pub explained: String,
}

/// What a guest wrote through the host's cache, and its group's pressure on memory.
#[derive(Debug)]
pub struct Written {
    /// What eBPF told to be the VM's, in bytes per second.
    pub ebpf_bytes_per_s: f64,
    /// What QEMU's process caused, by `/proc/PID/io`, in bytes per second.
    pub process_bytes_per_s: f64,
    /// Share of the time that some thread of the VM waited for memory, as reported.
    pub pressure: f64,
    /// The same by the kernel's own total.
    pub kernel_pressure: f64,
}

/// A window as the brain's API tells it.
#[derive(Debug, Deserialize)]
struct Window {
    start_ms: u64,
    window_ms: u64,
    demand_low_cores: Option<f64>,
    demand_high_cores: Option<f64>,
    limit_cores: f64,
}

/// `cargo xtask lab --full`: up, check, down.
pub fn check_and_print(name: &str, progress: Progress) -> Result<()> {
    let mut options = Options::new(name, 1);
    options.progress = progress;
    let lab = FullLab::up(&options)?;
    let logs = lab.logs();
    let findings = check(lab).with_context(|| format!("logs are in {}", logs.display()))?;
    println!("{findings}");
    Ok(())
}

/// Boots a KVM guest on the lab's first host, starts a brain and an agent, and checks that the agent measures and obeys. Takes
/// the lab down.
pub fn check(lab: FullLab) -> Result<Findings> {
    boot_for_checks(&lab.machines()[0])?;
    let stack = FullStack::start(lab)?;
    let host = &stack.lab.machines()[0];
    let guest = Guest::of(GUEST, host);
    let findings = checked(&stack, host, &guest)
        .with_context(|| format!("the agent's log ends:\n{}", stack.agent_log(host).unwrap_or_default()))?;
    Ok(findings)
}

fn boot(host: &Machine) -> Result<()> {
    host.boot(&options()?).map(|_| ())
}

/// As [`boot`], with a disk whose writes go through the host's cache (it is a thread of the kernel's that brings them to the device), an interface whose
/// packets are carried by another, and a working set, on a host that can swap.
fn boot_for_checks(host: &Machine) -> Result<()> {
    network::prepare(host)?;
    squeeze::prepare(host)?;
    host.run(&format!(
        "head -c 8M /dev/zero > {DISK}; sync
        # The kernel charges a file's write-back to the group that wrote to it first since it has known the file.
        echo 3 > /proc/sys/vm/drop_caches
        echo 100 > /proc/sys/vm/dirty_writeback_centisecs; echo 100 > /proc/sys/vm/dirty_expire_centisecs"
    ))?;
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback'/>\
         <source file='{DISK}'/><target dev='vda' bus='virtio'/></disk></devices>"
    );
    let words = format!("gnomon.disk={WRITTEN_BYTES_PER_S} gnomon.memory=1@{} gnomon.load=", squeeze::WORKING_SET_MIB);
    let changed = |xml: String| {
        let xml = network::with_worker(&xml.replace("</devices>", &disk));
        xml.replace("gnomon.load=", &words)
    };
    let mut options = options()?;
    options.memory_mib = options.memory_mib_max;
    options.bridge = Some(network::BRIDGE.to_owned());
    host.boot_changed(&options, changed).map(|_| ())
}

fn options() -> Result<GuestOptions> {
    let mut options = GuestOptions::new(GUEST, LOAD.parse()?);
    (options.kvm, options.quota_cores) = (true, Some(QUOTA_CORES));
    Ok(options)
}

fn checked(stack: &FullStack, host: &Machine, guest: &Guest<'_>) -> Result<Findings> {
    let kernel = host.run("uname -r")?.trim().to_owned();
    let controllers = host.run("cat /sys/fs/cgroup/cgroup.controllers")?.trim().to_owned();
    let only_v2 = host.run("grep -c ' - cgroup ' /proc/self/mountinfo || true")?;
    ensure!(only_v2.trim() == "0", "there are mounts of cgroup version 1 on {}", host.name());
    let kvm = kvm(host)?;
    ensure_probes_counted(host)?;
    await_vm(stack, host)?;
    let source = stack.api().get(&format!("/api/v1/hosts/{}", host.name()))?["facts"]["cpu_source"].clone();
    ensure!(source == "task_storage", "the best source of CPU readings does not work on {kernel}: {source}");
    let (ebpf_cores, demand_high_cores, cgroup_cores) = compare(stack, guest)?;
    let exits = compare_exits(stack, guest)?;
    let written = compare_written(stack, guest)?;
    let carried = network::compare(stack, host)?;
    let quota_cores = await_resize(stack, guest)?;
    stack.api().post("/api/v1/release", &json!({ "scope": { "vm": GUEST } }))?;
    let released = || Ok(guest.quota_cores()?.filter(|cores| (cores - QUOTA_CORES).abs() < 0.002));
    let released_cores = wait_for("the release to bring cpu.max back", REPORT_PATIENCE, released)?;
    let squeezed = squeeze::squeeze(stack, guest)?;
    Ok(Findings {
        kernel,
        controllers,
        kvm,
        ebpf_cores,
        cgroup_cores,
        demand_high_cores,
        exits,
        written,
        carried,
        squeezed,
        quota_cores,
        released_cores,
    })
}

/// The guest runs by the host's /dev/kvm, and the kernel can tell of its exits.
fn kvm(host: &Machine) -> Result<String> {
    let in_use = host.run("ls -l /proc/*/fd 2> /dev/null | grep -c 'anon_inode:kvm-vcpu' || true")?;
    ensure!(in_use.trim() != "0", "no process of {} has a vCPU of /dev/kvm", host.name());
    let exits = host.run(
        "trace=/sys/kernel/tracing/instances/check; mkdir $trace
        echo 1 > $trace/events/kvm/kvm_exit/enable; sleep 1; echo 0 > $trace/events/kvm/kvm_exit/enable
        grep -c kvm_exit: $trace/trace || true; rmdir $trace",
    )?;
    ensure!(exits.trim() != "0", "the tracepoint kvm:kvm_exit does not fire on {}", host.name());
    Ok(format!("{} vCPUs, {} exits in a second by the tracepoint kvm:kvm_exit", in_use.trim(), exits.trim()))
}

/// On this kernel all that the agent provokes at its start can be.
fn ensure_probes_counted(host: &Machine) -> Result<()> {
    let counted = host.run("sed -n 's/.*the probe counts probe=\"\\([a-z]*\\)\".*/\\1/p' /var/log/gnomon-agent.log")?;
    for probe in ["drops", "queues", "block", "memory", "exits"] {
        ensure!(counted.lines().any(|told| told == probe), "the probe {probe} did not count, but {counted:?}");
    }
    Ok(())
}

fn await_vm(stack: &FullStack, host: &Machine) -> Result<()> {
    wait_for("the brain to hear of the guest, measured by eBPF", REPORT_PATIENCE, || {
        let Ok(vm) = stack.api().get(&format!("/api/v1/vms/{GUEST}")) else { return Ok(None) };
        let measured = windows(stack, 0)?.iter().any(|window| window.demand_low_cores.is_some());
        Ok((vm["host"] == host.name() && measured).then_some(()))
    })
}

/// Mean of the windows between two looks at cpu.stat, and the difference of these: low and high demand, and the kernel's count.
fn compare(stack: &FullStack, guest: &Guest<'_>) -> Result<(f64, f64, f64)> {
    let (before_s, from_ms) = guest.cpu_time()?;
    thread::sleep(COMPARED);
    let (after_s, to_ms) = guest.cpu_time()?;
    let cgroup_cores = (after_s - before_s) / ((to_ms - from_ms) as f64 / 1000.0);
    let seen = wait_for("the windows of the comparison", REPORT_PATIENCE, || {
        let windows = windows(stack, from_ms)?;
        let last_ms = windows.last().map_or(0, |window| window.start_ms + window.window_ms);
        Ok((last_ms >= to_ms).then_some(windows))
    })?;
    let within: Vec<&Window> = seen.iter().filter(|window| window.start_ms + window.window_ms <= to_ms).collect();
    let mean = |value: fn(&Window) -> Option<f64>| {
        let values: Vec<f64> = within.iter().filter_map(|window| value(window)).collect();
        ensure!(values.len() >= 5, "only {} of {} windows have a value from eBPF", values.len(), within.len());
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    };
    let (low, high) = (mean(|window| window.demand_low_cores)?, mean(|window| window.demand_high_cores)?);
    ensure!(cgroup_cores > 0.02, "the guest used {cgroup_cores:.3} cores: it does not run");
    let tolerance = TOLERANCE_CORES + TOLERANCE_SHARE * cgroup_cores;
    ensure!(
        (low - cgroup_cores).abs() <= tolerance,
        "eBPF says {low:.3} cores, cpu.stat {cgroup_cores:.3}; {tolerance:.3} apart would be well"
    );
    ensure!(high >= low, "demand is {low:.3} to {high:.3} cores");
    Ok((low, high, cgroup_cores))
}

/// What the kernel's thread brings to the disk is the VM's, by its control group; and the pressure on memory is that of its group.
fn compare_written(stack: &FullStack, guest: &Guest<'_>) -> Result<Written> {
    let before_s = guest.memory_stalled_s()?;
    let (views, elapsed_s) = latest_windows(stack, COMPARED)?;
    let kernel_pressure = (guest.memory_stalled_s()? - before_s) / elapsed_s;
    let written = Written {
        ebpf_bytes_per_s: mean(&views, "/disk/write/bytes_per_s/mean")?,
        process_bytes_per_s: mean(&views, "/disk/process/write_bytes_per_s")?,
        pressure: mean(&views, "/memory/pressure")?,
        kernel_pressure,
    };
    let wanted = WRITTEN_BYTES_PER_S as f64;
    ensure!(
        (written.ebpf_bytes_per_s - wanted).abs() <= WRITTEN_TOLERANCE_SHARE * wanted,
        "the guest writes {wanted} bytes a second, {written:?}"
    );
    ensure!((written.pressure - kernel_pressure).abs() <= 0.05, "pressure on memory: {written:?}");
    Ok(written)
}

/// The mean of what windows tell at `path`, each of them.
fn mean(views: &[Value], path: &str) -> Result<f64> {
    let values: Vec<f64> = views.iter().filter_map(|view| view.pointer(path)?.as_f64()).collect();
    ensure!(values.len() == views.len(), "{path} is told in {} of {} windows", values.len(), views.len());
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// Views of the guest with the latest windows, each once, over a while, and how long that was.
fn latest_windows(stack: &FullStack, span: Duration) -> Result<(Vec<Value>, f64)> {
    let began = Instant::now();
    let (mut views, mut last) = (Vec::new(), Value::Null);
    while began.elapsed() < span {
        thread::sleep(POLL / 2);
        let view = stack.api().get(&format!("/api/v1/vms/{GUEST}"))?;
        let this = view["last_window"].clone();
        if this != last && !last.is_null() {
            views.push(view);
        }
        last = this;
    }
    let elapsed_s = began.elapsed().as_secs_f64();
    // The window that is there when one begins to look is not counted, and one may be late.
    let least = (span.as_millis() / u128::from(WINDOW_MS)).saturating_sub(2).clamp(1, 5) as usize;
    ensure!(views.len() >= least, "only {} windows in {elapsed_s:.0} s", views.len());
    Ok((views, elapsed_s))
}

/// Mean of the latest windows, seen one by one, between two looks at KVM's statistics; these count from the guest's start and cost nothing.
fn compare_exits(stack: &FullStack, guest: &Guest<'_>) -> Result<Exits> {
    wait_for("exits in a window", REPORT_PATIENCE, || {
        let view = stack.api().get(&format!("/api/v1/vms/{GUEST}"))?;
        Ok(view["exits"].as_array().is_some_and(|shares| !shares.is_empty()).then_some(()))
    })?;
    let before = guest.kvm_counts()?;
    let (views, elapsed_s) = latest_windows(stack, COMPARED)?;
    let after = guest.kvm_counts()?;
    let mean = |field: &str, wanted: &dyn Fn(&Value) -> bool| {
        let shares = views.iter().filter_map(|view| view["exits"].as_array()).flatten();
        let values = shares.filter(|share| wanted(&share["reason"])).filter_map(|share| share[field].as_f64());
        values.sum::<f64>() / views.len() as f64
    };
    let is_halt = |reason: &Value| reason == "halt";
    let explanation = stack.api().get(&format!("/api/v1/vms/{GUEST}/explain"))?;
    let lines = explanation["lines"].as_array().context("no explanation")?.iter().filter_map(Value::as_str);
    let explained = lines.filter(|line| line.starts_with("Its vCPUs left")).collect::<String>();
    let exits = Exits {
        all_per_s: mean("exits_per_s", &|_| true),
        kvm_all_per_s: (after.exits - before.exits) as f64 / elapsed_s,
        halts_per_s: mean("exits_per_s", &is_halt),
        kvm_halts_per_s: (after.halts - before.halts) as f64 / elapsed_s,
        halted_vcpus: mean("away_vcpus", &is_halt),
        kvm_halted_vcpus: (after.halted_s - before.halted_s) / elapsed_s,
        explained,
    };
    for (said, counted, what) in
        [(exits.all_per_s, exits.kvm_all_per_s, "exits"), (exits.halts_per_s, exits.kvm_halts_per_s, "halts")]
    {
        ensure!(counted > 5.0, "KVM counts {counted:.1} {what} a second: the guest does not run");
        ensure!(
            (said - counted).abs() <= EXITS_TOLERANCE_SHARE * counted,
            "eBPF says {said:.1} {what} a second, KVM {counted:.1}"
        );
    }
    // From a halt's exit to the next entry there is more than the halt, and under emulation that takes its time.
    let tolerance = 0.1 + EXITS_TOLERANCE_SHARE * exits.kvm_halted_vcpus;
    ensure!(
        exits.halted_vcpus > 0.0 && (exits.halted_vcpus - exits.kvm_halted_vcpus).abs() <= tolerance,
        "eBPF says that {:.3} vCPUs are halted, KVM {:.3}",
        exits.halted_vcpus,
        exits.kvm_halted_vcpus
    );
    ensure!(!exits.explained.is_empty(), "explain does not tell of exits: {explanation}");
    Ok(exits)
}

/// A command of the brain is in cpu.max, is what the agent read back, and is what its next windows say.
fn await_resize(stack: &FullStack, guest: &Guest<'_>) -> Result<f64> {
    let changed = || Ok(guest.quota_cores()?.filter(|cores| (cores - QUOTA_CORES).abs() > 0.002));
    wait_for("a command of the brain to be in cpu.max", RESIZE_PATIENCE, changed)?;
    // Lest the next one come between the looks.
    stack.api().post("/api/v1/pause", &json!({ "scope": { "vm": GUEST } }))?;
    wait_for("cpu.max, the command's outcome and the windows to agree", REPORT_PATIENCE, || {
        let Some(cores) = guest.quota_cores()? else { return Ok(None) };
        let commands = stack.api().get("/api/v1/commands")?;
        let read_back = commands.as_array().context("no list of commands")?.iter().filter_map(quota_read_back);
        let said = windows(stack, 0)?.last().map_or(f64::NAN, |window| window.limit_cores);
        let agreed = read_back.into_iter().next().is_some_and(|after| (after - cores).abs() < 0.002)
            && (said - cores).abs() < 0.002;
        Ok(agreed.then_some(cores))
    })
}

/// The quota that an agent read back after it had carried a command out, in cores.
fn quota_read_back(command: &Value) -> Option<f64> {
    let after = command["outcome"]["result"]["applied"]["after"].as_array()?;
    after.iter().find_map(|setting| setting["cpu_quota"]["cores"].as_f64())
}

fn windows(stack: &FullStack, since_ms: u64) -> Result<Vec<Window>> {
    let path = format!("/api/v1/vms/{GUEST}/history?since_ms={since_ms}");
    Ok(serde_json::from_value(stack.api().get(&path)?)?)
}

/// What a live migration looked like.
#[derive(Debug)]
pub struct Moved {
    /// What virsh was waiting for, in seconds.
    pub took_s: f64,
    /// The target's own count after it, in cores.
    pub cgroup_cores: f64,
    /// What the target's agent measures after it, in cores.
    pub ebpf_cores: f64,
}

/// Boots a KVM guest on the first of two hosts, migrates it live to the second, and checks that both agents follow: the target
/// measures and reports it, the source no longer does, and its history goes on. Takes the lab down.
pub fn check_migration(lab: FullLab) -> Result<Moved> {
    boot(&lab.machines()[0])?;
    let stack = FullStack::start(lab)?;
    let moved = migrated(&stack);
    moved.with_context(|| {
        let logs = stack.lab.machines().iter().map(|host| stack.agent_log(host).unwrap_or_default());
        format!("the agents' logs end:\n{}", logs.collect::<Vec<_>>().join("\n"))
    })
}

fn migrated(stack: &FullStack) -> Result<Moved> {
    let (source, target) = (stack.lab.machine("h1")?, stack.lab.machine("h2")?);
    await_vm(stack, source)?;
    let before = windows(stack, 0)?.len();
    let uri = format!("qemu+tcp://{}/system", target.address());
    let started = Instant::now();
    let script = format!(
        "virsh --quiet --connect qemu:///system migrate --live --p2p --persistent --undefinesource {GUEST} {uri}"
    );
    source.run_within(&script, MIGRATION_PATIENCE).context("migrating")?;
    let took_s = started.elapsed().as_secs_f64();
    await_vm_on(stack, "h2")?;
    let guest = Guest::of(GUEST, target);
    let (ebpf_cores, _, cgroup_cores) = compare(stack, &guest)?;
    let after = windows(stack, 0)?.len();
    ensure!(after > before, "the history of {GUEST} does not go on: {before} windows before, {after} after");
    let source_vms = stack.api().get("/api/v1/hosts/h1")?["vms"].clone();
    ensure!(source_vms == json!(0), "the source still reports {source_vms} VMs");
    Ok(Moved { took_s, cgroup_cores, ebpf_cores })
}

fn await_vm_on(stack: &FullStack, host: &str) -> Result<()> {
    wait_for("the brain to see the guest on its new host", REPORT_PATIENCE, || {
        Ok((stack.api().get(&format!("/api/v1/vms/{GUEST}"))?["host"] == host).then_some(()))
    })
}

/// Waits until there is something, or fails naming `what`.
fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "waited {} s in vain for {what}", patience.as_secs());
        thread::sleep(POLL);
    }
}
