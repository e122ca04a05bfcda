//! The ladder of CPU readings: each rung measures what the kernel says, the agent finds the best by itself, and says what it lost.
//!
//! One host is taken apart step by step: first its type information goes, then its tracepoints. What is left is compared with the
//! same witnesses each time, and the doctor must see what is gone.

#[path = "doctor/found.rs"]
mod found;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use found::{Found, output};
use gnomon_e2e::{mean, now_ms, observing, qemu_pid, schedstat, skipped, stack_of, wait_for, windows};
use xtask::env::bin_dir;
use xtask::lab::{Guest, GuestOptions, Host};
use xtask::stack::Stack;

/// How long each rung is watched.
const SPAN: Duration = Duration::from_secs(4);

/// What a rung is to tell.
struct Rung {
    name: &'static str,
    /// Between time run and the cgroup's usage, in cores. The kernel's own counts are as coarse as a tick.
    run_tolerance_cores: f64,
    waits: bool,
    events: bool,
}

const TASK_STORAGE: Rung = Rung { name: "task_storage", run_tolerance_cores: 0.015, waits: true, events: true };
const TRACEPOINTS: Rung = Rung { name: "tracepoints", run_tolerance_cores: 0.015, waits: true, events: true };
const SCHEDSTAT: Rung = Rung { name: "schedstat", run_tolerance_cores: 0.025, waits: true, events: false };
const CGROUP: Rung = Rung { name: "cgroup", run_tolerance_cores: 1e-6, waits: false, events: false };

#[test]
fn each_rung_measures_what_the_kernel_says_and_the_best_one_is_found() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let guest = |name: &str, load: &str, cpus: &str| -> Result<GuestOptions> {
        let mut options = GuestOptions::new(name, load.parse()?);
        options.cpus = Some(cpus.to_owned());
        Ok(options)
    };
    // Two that want one CPU, and one that has the other to itself but for the programs under test.
    let guests =
        vec![guest("calm", "constant:0.6", "0")?, guest("a", "constant:1", "1")?, guest("b", "constant:1", "1")?];
    let (mut stack, guests) = stack_of("fallback", guests, observing())?;
    watch(&stack, &guests, &TASK_STORAGE)?;
    let host = stack.lab.hosts()[0].clone();
    let found = Found::on(&host, &[])?;
    found.ensure_complete(true)?;
    found.ensure_all(
        "ok",
        &["BTF", "tracefs", "eBPF, task storage", "eBPF, tracepoints", "schedstat", "CPU wait histogram"],
    )?;
    found.ensure_all("ok", &["libvirt", "VM processes", "CPU usage, throttling", "memory, resident", "cgroups"])?;
    found
        .ensure_all("ok", &["brain", "brain's address", "certificates", "state directory", "spool", "configuration"])?;
    ensure!(found.check("CPU run and wait")?["source"] == "task_storage", "{:?}", found.check("CPU run and wait")?);

    // A kernel without type information: nothing but the files tells.
    on(&host, &["mount", "-t", "tmpfs", "none", "/sys/kernel/btf"])?;
    restart(&mut stack, "auto")?;
    watch(&stack, &guests, &TRACEPOINTS)?;
    ensure!(stack.agent_log("h1")?.contains("CONFIG_DEBUG_INFO_BTF"), "the log does not say why not higher");

    // No tracepoints either: no eBPF.
    on(&host, &["umount", "/sys/kernel/tracing"])?;
    let found = Found::on(&host, &[])?;
    found.ensure_complete(true)?;
    let gone = ["BTF", "tracefs", "eBPF, task storage", "eBPF, tracepoints", "CPU wait histogram"];
    found.ensure_all("unavailable", &gone)?;
    found.ensure_all("degraded", &["CPU run and wait"])?;
    restart(&mut stack, "auto")?;
    watch(&stack, &guests, &SCHEDSTAT)?;

    restart(&mut stack, "cgroup")?;
    watch(&stack, &guests, &CGROUP)?;

    // What is demanded and does not work ends the agent, with the reason.
    stack.stop_agent("h1")?;
    choose(&host, "task_storage")?;
    let refused = agent(&host).args(["run", "--config"]).arg(host.dir().join("agent.toml")).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "ended with {}: {said}", refused.status);
    ensure!(said.contains("task_storage: reading /sys/kernel/btf/vmlinux"), "{said}");
    let found = Found::on(&host, &[])?;
    found.ensure_complete(false)?;
    found.ensure_all("unavailable", &["CPU run and wait"])?;

    stack.kill_brain()?;
    choose(&host, "auto")?;
    let found = Found::on(&host, &[])?;
    found.ensure_complete(false)?;
    let brain = found.check("brain")?;
    ensure!(brain["state"] == "unavailable" && brain["needed"] == true, "{brain:?}");
    ensure!(brain["why"].as_str().is_some_and(|why| why.contains("nobody listens")), "{brain:?}");
    Ok(())
}

/// Compares what the brain heard in a while with the kernel's own counters.
fn watch(stack: &Stack, guests: &[Guest], rung: &Rung) -> Result<()> {
    wait_for(&format!("the brain to hear of {}", rung.name), Duration::from_secs(10), || {
        Ok(stack.api().get("/api/v1/hosts/h1")?["facts"]["cpu_source"] == rung.name)
    })?;
    // The first window after a start, and an alignment with the windows, which begin at full seconds.
    thread::sleep(Duration::from_millis(2000 - now_ms() % 1000));
    let pids = guests.iter().map(qemu_pid).collect::<Result<Vec<_>>>()?;
    let look = || pids.iter().map(|pid| schedstat(*pid)).collect::<Result<Vec<_>>>();
    let (from_ms, before) = (now_ms(), look()?);
    thread::sleep(SPAN);
    let (to_ms, after) = (now_ms(), look()?);
    for (index, guest) in guests.iter().enumerate() {
        let seen = windows(stack, guest.name(), from_ms - 200, to_ms + 200)?;
        ensure!(seen.len() >= 3, "only {} windows of {}", seen.len(), guest.name());
        let low = mean(&seen, |window| window.demand_low_cores);
        let high = mean(&seen, |window| window.demand_high_cores);
        let usage = mean(&seen, |window| window.usage_cores);
        let waited_ns: u64 = after[index]
            .iter()
            .map(|(tid, (_, wait))| wait - before[index].get(tid).map_or(0, |(_, wait)| *wait).min(*wait))
            .sum();
        let waited = waited_ns as f64 / 1e6 / (to_ms - from_ms) as f64;
        println!("{}: {}: {low:.3}..{high:.3}, cgroup {usage:.3}, waited {waited:.3}", rung.name, guest.name());
        ensure!(usage > 0.1, "{} does not run: {usage:.3} cores", guest.name());
        ensure!(
            (low - usage).abs() <= rung.run_tolerance_cores,
            "{}: ran {low:.4}, the cgroup says {usage:.4}",
            rung.name
        );
        if !rung.waits {
            ensure!(high >= 1.0, "{}: demand must be open up to the vCPU, not end at {high:.3}", rung.name);
        } else if guest.name() != "calm" {
            ensure!(waited > 0.3, "no contention: the guests are not on one CPU");
            let apart = (high - low - waited).abs();
            ensure!(apart <= 0.1 * waited, "{}: waited {:.3}, schedstat {waited:.3}", rung.name, high - low);
        }
        let cpu = stack.api().get(&format!("/api/v1/vms/{}", guest.name()))?["cpu"].clone();
        for count in ["wakeups_per_s", "preemptions_per_s", "wait"] {
            ensure!(cpu[count].is_null() != rung.events, "{}: {count} is {}", rung.name, cpu[count]);
        }
    }
    let metrics = output(guests[0].host().command("curl").args(["-s", "http://127.0.0.1:9479/metrics"]))?;
    let signal = |signal: &str, told: bool| {
        let (name, value) = (rung.name, u8::from(told));
        let line = format!("gnomon_agent_signal_available{{signal=\"{signal}\",source=\"{name}\"}} {value}");
        ensure!(metrics.lines().any(|found| found == line), "no {line} among the metrics");
        Ok(())
    };
    signal("cpu_wait", rung.waits)?;
    signal("cpu_wait_histogram", rung.events)
}

/// Starts the agent anew with another choice of source.
fn restart(stack: &mut Stack, source: &str) -> Result<()> {
    stack.stop_agent("h1")?;
    choose(&stack.lab.hosts()[0], source)?;
    stack.start_agent("h1")
}

fn choose(host: &Host, source: &str) -> Result<()> {
    let path = host.dir().join("agent.toml");
    let text = fs::read_to_string(&path)?;
    let (rest, _) = text.split_once("[probe]").unwrap_or((&text, ""));
    fs::write(&path, format!("{}\n[probe]\nsource = {source:?}\n", rest.trim_end()))?;
    Ok(())
}

fn agent(host: &Host) -> Command {
    host.command(bin_dir().join("gnomon-agent"))
}

fn on(host: &Host, command: &[&str]) -> Result<()> {
    output(host.command(command[0]).args(&command[1..])).map(drop)
}
