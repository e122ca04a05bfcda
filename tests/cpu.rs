//! What Gnomon says of a VM's CPU is true: against the kernel's counters, the guest's own view, and the schedule.

use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{mean, now_ms, observing, qemu_pid, schedstat, skipped, stack, stack_of, stolen_cpu, windows};
use xtask::lab::GuestOptions;

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
        let stolen_before = stolen_cpu()?;
        thread::sleep(Duration::from_millis(to_ms - now_ms() + 200));
        let stolen = (stolen_cpu()? - stolen_before).as_secs_f64() / (STEP_S - 2) as f64;
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
        println!("level {level}: eBPF {ebpf:.3}..{high:.3}, cgroup {cgroup:.3}, guest {own:.3}, stolen {stolen:.3}");
        // Where the host is itself a VM, the kernel charges its tasks no time that was stolen from it (`rq_clock_task`), while
        // the probe's clock runs on: the two may differ by what was stolen in all, in that direction only.
        let over = ebpf - cgroup;
        ensure!(
            (-0.01..=0.01 + stolen).contains(&over),
            "eBPF says {ebpf:.4} cores, the cgroup {cgroup:.4}, and {stolen:.4} were stolen from the machine"
        );
        // What the host took away the guest counts as its own: it is within the demand interval, to 5 points.
        ensure!(ebpf <= own + 0.05 && own <= high + 0.05, "the guest says {own:.3}, eBPF {ebpf:.3}..{high:.3}");
    }
    Ok(())
}

#[test]
fn two_busy_guests_on_one_cpu_show_the_wait_that_the_kernel_shows() -> Result<()> {
    const SPAN: Duration = Duration::from_secs(20);
    if skipped() {
        return Ok(());
    }
    let guest = |name: &str| -> Result<GuestOptions> {
        let mut options = GuestOptions::new(name, "constant:1".parse()?);
        options.cpus = Some("1".to_owned());
        Ok(options)
    };
    let (stack, guests) = stack_of("wait", vec![guest("g1")?, guest("g2")?], observing())?;
    let pids = guests.iter().map(qemu_pid).collect::<Result<Vec<_>>>()?;
    // Align with the agents' windows, which begin at full seconds.
    thread::sleep(Duration::from_millis(1000 - now_ms() % 1000));
    let from_ms = now_ms();
    let before = pids.iter().map(|pid| schedstat(*pid)).collect::<Result<Vec<_>>>()?;
    thread::sleep(SPAN);
    let to_ms = now_ms();
    let after = pids.iter().map(|pid| schedstat(*pid)).collect::<Result<Vec<_>>>()?;
    for (index, guest) in guests.iter().enumerate() {
        let seen = windows(&stack, guest.name(), from_ms - 200, to_ms + 200)?;
        let wait = mean(&seen, |window| Some(window.demand_high_cores? - window.demand_low_cores?));
        let waited_ns: u64 = after[index]
            .iter()
            .map(|(tid, (_, wait))| wait - before[index].get(tid).map_or(0, |(_, wait)| *wait).min(*wait))
            .sum();
        let kernel = waited_ns as f64 / 1e6 / (to_ms - from_ms) as f64;
        println!("{}: eBPF waits {wait:.3} cores, schedstat {kernel:.3}", guest.name());
        ensure!(kernel > 0.3, "no contention: the guests are not on one CPU");
        ensure!((wait - kernel).abs() <= 0.05 * kernel, "eBPF waits {wait:.3} cores, schedstat {kernel:.3}");
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

#[test]
fn a_host_counts_its_own_load_and_not_the_machines() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (stack, _guests) = stack("own", &[("g1", "constant:0.1")], observing())?;
    // A core's worth of work outside the lab.
    let end = std::time::Instant::now() + Duration::from_secs(8);
    while std::time::Instant::now() < end {
        std::hint::spin_loop();
    }
    let used = stack.api().get("/api/v1/hosts/h1")?["window"]["cpu_cores"]["mean"].as_f64().context("no window")?;
    println!("h1 uses {used:.3} cores beside a core's worth of work outside");
    ensure!((0.05..0.6).contains(&used), "h1 says it uses {used:.3} cores");
    Ok(())
}
