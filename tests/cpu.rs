//! What Gnomon says of a VM's CPU is true: against the kernel's counters, the guest's own view, and the schedule.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{mean, now_ms, observing, qemu_pid, schedstat, skipped, stack, stack_of, stolen_cpu, windows};
use serde_json::Value;
use xtask::lab::{Guest, GuestOptions};
use xtask::stack::Stack;

#[test]
fn cpu_from_ebpf_agrees_with_the_cgroup_and_the_guest() -> Result<()> {
    const STEP_S: u64 = 12;
    const LEVELS: [f64; 4] = [0.0, 0.3, 0.6, 1.0];
    if skipped() {
        return Ok(());
    }
    // Ten seconds at first: brain and agent start meanwhile.
    let script = LEVELS.map(|level| format!("{STEP_S}@{level}")).join(",");
    let (stack, guests) = stack("cpu", &[("g1", &format!("script:15@0.1,{script}"))], observing())?;
    let truth = stack.lab.truth("g1")?;
    for (index, level) in LEVELS.iter().enumerate() {
        let from = truth.started_at + Duration::from_secs(15 + STEP_S * index as u64 + 1);
        let from_ms = from.duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let to_ms = from_ms + (STEP_S - 2) * 1000;
        ensure!(now_ms() < from_ms, "the programs took too long to start");
        thread::sleep(Duration::from_millis(from_ms - now_ms()));
        thread::sleep(Duration::from_millis(to_ms - now_ms() + 200));
        let seen = windows(&stack, "g1", from_ms, to_ms)?;
        ensure!(seen.len() >= 7, "only {} windows", seen.len());
        let ebpf = mean(&seen, |window| window.demand_low_cores);
        let high = mean(&seen, |window| window.demand_high_cores);
        let cgroup = mean(&seen, |window| window.usage_cores);
        let (from_s, to_s) =
            (15.0 + (STEP_S * index as u64) as f64 + 1.0, 15.0 + (STEP_S * (index as u64 + 1)) as f64 - 1.0);
        let reports = guests[0].reports()?;
        let own: Vec<f64> = reports
            .iter()
            .filter(|report| report.t_s > from_s + 0.9 && report.t_s < to_s + 0.2)
            .map(|report| report.busy)
            .collect();
        let own = own.iter().sum::<f64>() / own.len() as f64;
        println!("level {level}: eBPF {ebpf:.3}..{high:.3}, cgroup {cgroup:.3}, guest {own:.3}");
        ensure!((ebpf - cgroup).abs() <= 0.01, "eBPF says {ebpf:.4} cores, the cgroup {cgroup:.4}");
        // What the host took away the guest counts as its own: it is within the demand interval, to 5 points.
        ensure!(ebpf <= own + 0.05 && own <= high + 0.05, "the guest says {own:.3}, eBPF {ebpf:.3}..{high:.3}");
    }
    Ok(())
}

/// A guest that always wants the CPU that all of these share.
fn busy(name: &str) -> Result<GuestOptions> {
    let mut options = GuestOptions::new(name, "constant:1".parse()?);
    options.cpus = Some("1".to_owned());
    Ok(options)
}

#[test]
fn two_busy_guests_on_one_cpu_show_the_wait_that_the_kernel_shows() -> Result<()> {
    const SPAN: Duration = Duration::from_secs(20);
    if skipped() {
        return Ok(());
    }
    let (stack, guests) = stack_of("wait", vec![busy("g1")?, busy("g2")?], observing())?;
    let pids = guests.iter().map(qemu_pid).collect::<Result<Vec<_>>>()?;
    // Align with the agents' windows, which begin at full seconds.
    thread::sleep(Duration::from_millis(1000 - now_ms() % 1000));
    let (from_ms, stolen_before) = (now_ms(), stolen_cpu()?);
    let before = pids.iter().map(|pid| schedstat(*pid)).collect::<Result<Vec<_>>>()?;
    thread::sleep(SPAN);
    let (to_ms, stolen_after) = (now_ms(), stolen_cpu()?);
    // Where the host is itself a VM, what its hypervisor takes is waited by the probe's book-keeping, and by the kernel's not.
    let stolen = (stolen_after - stolen_before).as_secs_f64() * 1e3 / (to_ms - from_ms) as f64;
    let after = pids.iter().map(|pid| schedstat(*pid)).collect::<Result<Vec<_>>>()?;
    for (index, guest) in guests.iter().enumerate() {
        let seen = windows(&stack, guest.name(), from_ms - 200, to_ms + 200)?;
        let wait = mean(&seen, |window| Some(window.demand_high_cores? - window.demand_low_cores?));
        let waited_ns: u64 = after[index]
            .iter()
            .map(|(tid, (_, wait))| wait - before[index].get(tid).map_or(0, |(_, wait)| *wait).min(*wait))
            .sum();
        let kernel = waited_ns as f64 / 1e6 / (to_ms - from_ms) as f64;
        println!("{}: eBPF waits {wait:.3} cores, schedstat {kernel:.3}, stolen {stolen:.3}", guest.name());
        ensure!(kernel > 0.3, "no contention: the guests are not on one CPU");
        ensure!(
            (-0.05 * kernel..=0.05 * kernel + stolen).contains(&(wait - kernel)),
            "eBPF waits {wait:.3} cores, schedstat {kernel:.3}, and {stolen:.3} were stolen from the machine"
        );
    }
    Ok(())
}

#[test]
fn the_demand_interval_of_a_throttled_guest_contains_its_load() -> Result<()> {
    const LOAD: f64 = 0.6;
    const QUOTA: f64 = 0.3;
    if skipped() {
        return Ok(());
    }
    let mut options = GuestOptions::new("g1", format!("constant:{LOAD}").parse()?);
    options.quota_cores = Some(QUOTA);
    let (stack, _guests) = stack_of("quota", vec![options], observing())?;
    let from_ms = now_ms();
    thread::sleep(Duration::from_secs(12));
    let seen = windows(&stack, "g1", from_ms, now_ms())?;
    let low = mean(&seen, |window| window.demand_low_cores);
    let high = mean(&seen, |window| window.demand_high_cores);
    let limit = seen.last().context("no window")?.limit_cores;
    println!("load {LOAD}, quota {QUOTA}: demand {low:.3}..{high:.3}, limit {limit}");
    ensure!((limit - QUOTA).abs() < 0.01, "the limit is told as {limit}");
    ensure!((low - QUOTA).abs() < 0.05, "a throttled guest runs {low:.3} of {QUOTA} cores");
    ensure!(low <= LOAD && LOAD <= high, "{LOAD} is not within {low:.3}..{high:.3}");
    Ok(())
}

/// What a VM waited by the brain's word, in mean cores over some windows.
#[derive(Debug, Default)]
struct Waited {
    windows: u32,
    all: f64,
    own_quota: f64,
    own: f64,
    vms: BTreeMap<String, f64>,
    tasks: BTreeMap<String, f64>,
    others: f64,
}

impl Waited {
    /// Follows what is told of some VMs for a while.
    fn follow(stack: &Stack, vms: &[&str], span: Duration) -> Result<Vec<Self>> {
        let mut sums: Vec<Self> = vms.iter().map(|_| Self::default()).collect();
        let mut latest = vec![Value::Null; vms.len()];
        let end = Instant::now() + span;
        while Instant::now() < end {
            for ((vm, sum), latest) in vms.iter().zip(&mut sums).zip(&mut latest) {
                let view = stack.api().get(&format!("/api/v1/vms/{vm}"))?;
                // Nothing is told of a VM's first window, in which its counters have nothing to be compared with.
                let is_told = !view["cpu"].is_null() && !view["waited"].is_null();
                if view["last_window"] != *latest && is_told {
                    *latest = view["last_window"].clone();
                    sum.add(&view)?;
                }
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(sums.into_iter().map(Self::mean).collect())
    }

    fn add(&mut self, view: &Value) -> Result<()> {
        let cores = |value: &Value| value.as_f64().with_context(|| format!("no number in {view}"));
        let waited = &view["waited"];
        self.windows += 1;
        self.all += cores(&view["cpu"]["demand_high"]["mean"])? - cores(&view["cpu"]["demand_low"]["mean"])?;
        self.own_quota += cores(&waited["own_quota_cores"])?;
        self.own += cores(&waited["own_cores"])?;
        self.others += cores(&waited["others_cores"])?;
        for culprit in waited["culprits"].as_array().context("no culprits")? {
            let kind = if culprit["vm"].is_null() { &mut self.tasks } else { &mut self.vms };
            let name = culprit["name"].as_str().context("no name")?;
            *kind.entry(name.to_owned()).or_default() += cores(&culprit["cores"])?;
        }
        Ok(())
    }

    fn mean(mut self) -> Self {
        let windows = f64::from(self.windows.max(1));
        let parts = [&mut self.all, &mut self.own_quota, &mut self.own, &mut self.others];
        let named = self.vms.values_mut().chain(self.tasks.values_mut());
        parts.into_iter().chain(named).for_each(|sum| *sum /= windows);
        self
    }
}

/// How long the thread that is a guest's only CPU ran and waited by the kernel's count, in nanoseconds.
fn virtual_cpu(guest: &Guest) -> Result<(u64, u64)> {
    let pid = qemu_pid(guest)?;
    let mut threads = schedstat(pid)?.into_iter();
    let is_virtual_cpu = |tid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"));
        name.is_ok_and(|name| name.starts_with("CPU 0/"))
    };
    let found = threads.find(|(tid, _)| is_virtual_cpu(*tid)).context("no thread of QEMU is a virtual CPU")?;
    Ok(found.1)
}

#[test]
fn of_two_busy_guests_on_one_cpu_each_is_the_others_culprit() -> Result<()> {
    const SPAN: Duration = Duration::from_secs(15);
    if skipped() {
        return Ok(());
    }
    let (stack, guests) = stack_of("culprits", vec![busy("g1")?, busy("g2")?], observing())?;
    let virtual_cpus = || guests.iter().map(virtual_cpu).collect::<Result<Vec<_>>>();
    let (began, before, stolen_before) = (Instant::now(), virtual_cpus()?, stolen_cpu()?);
    let waited = Waited::follow(&stack, &["g1", "g2"], SPAN)?;
    let (after, stolen) = (virtual_cpus()?, stolen_cpu()? - stolen_before);
    let cores = |from: u64, to: u64| Duration::from_nanos(to - from).as_secs_f64() / began.elapsed().as_secs_f64();
    // Both always want the CPU: for the rest it was neither's (this machine's, or its own host's), and both waited.
    let strangers = 1.0 - before.iter().zip(&after).map(|(before, after)| cores(before.0, after.0)).sum::<f64>();
    for (index, (waited, other)) in waited.iter().zip(["g2", "g1"]).enumerate() {
        // QEMU's other threads are on other CPUs, and wait there for nobody.
        let kernel = cores(before[index].1, after[index].1);
        let (charged, expected) = (waited.vms.get(other).copied().unwrap_or(0.0), kernel - strangers.max(0.0));
        println!(
            "{charged:.3} cores charged to {other}, waited {kernel:.3} by schedstat, {strangers:.3} were strangers'"
        );
        println!("{stolen:.3?} stolen from this machine; {waited:.3?}");
        ensure!(waited.windows >= 10, "only {} windows", waited.windows);
        ensure!(expected > 0.2, "no contention: the guests are not on one CPU, or someone else has it");
        ensure!(charged >= 0.9 * expected, "{charged:.3} of {expected:.3} cores are charged to {other}");
        ensure!(charged <= 1.1 * kernel, "{charged:.3} cores are charged to {other}, of {kernel:.3} waited");
        ensure!(waited.vms.len() == 1 && waited.own_quota < 0.01, "{waited:?}");
    }
    let explained = stack.api().get("/api/v1/vms/g1/explain")?["lines"].to_string();
    ensure!(explained.contains("for the VM g2"), "{explained}");
    Ok(())
}

#[test]
fn a_guest_that_its_own_quota_holds_back_blames_no_other_guest() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut options = GuestOptions::new("g1", "constant:0.9".parse()?);
    options.quota_cores = Some(0.3);
    let (stack, guests) = stack_of("ownquota", vec![options], observing())?;
    let (began, before, stolen_before) = (Instant::now(), virtual_cpu(&guests[0])?, stolen_cpu()?);
    let waited = Waited::follow(&stack, &["g1"], Duration::from_secs(12))?;
    let (after, stolen) = (virtual_cpu(&guests[0])?, stolen_cpu()? - stolen_before);
    // QEMU's other threads have hardly anything to do: what they wait is for a CPU to wake up.
    let kernel = Duration::from_nanos(after.1 - before.1).as_secs_f64() / began.elapsed().as_secs_f64();
    let waited = waited.first().context("nothing was followed")?;
    println!("{waited:.3?}, {kernel:.3} by schedstat; {stolen:.3?} stolen from this machine");
    ensure!(waited.windows >= 8 && kernel > 0.3, "it was hardly held back: {waited:?}");
    ensure!(waited.vms.is_empty(), "there is no other guest: {:?}", waited.vms);
    // Whoever else is busy on this machine is named rightly; the rest is the quota's.
    let tasks = waited.others + waited.tasks.values().sum::<f64>();
    ensure!(waited.own_quota >= 0.95 * (kernel - waited.own - tasks), "{:.3} cores for its quota", waited.own_quota);
    ensure!(waited.own_quota <= 1.1 * waited.all, "{:.3} cores for its quota", waited.own_quota);
    ensure!(waited.own_quota > tasks, "host tasks are blamed for what its quota did");
    Ok(())
}

#[test]
fn a_host_counts_its_own_load_and_not_the_machines() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (stack, _guests) = stack("own", &[("g1", "constant:0.1")], observing())?;
    // A core's worth of work outside the lab.
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    let used = stack.api().get("/api/v1/hosts/h1")?["window"]["cpu_cores"]["mean"].as_f64().context("no window")?;
    println!("h1 uses {used:.3} cores beside a core's worth of work outside");
    ensure!((0.05..0.6).contains(&used), "h1 says it uses {used:.3} cores");
    Ok(())
}
