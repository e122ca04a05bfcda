//! What Gnomon costs is shown, and not more or less than the kernel says.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gnomon_e2e::{observing, skipped, stack};
use xtask::lab::Host;

#[test]
fn the_cost_of_the_agent_and_of_its_questions_is_within_what_the_processes_used() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (stack, guests) = stack("cost", &[("g1", "constant:0.3"), ("g2", "constant:0.1")], observing())?;
    let host = guests[0].host();
    let daemon = libvirtd(host)?;
    // A mean of a minute is shown at its end: the one that ends within what is watched began at most a minute before.
    let shown = |name: &str| metric(host, &format!("gnomon_agent_polling_cores{{process=\"{name}\"}}"));
    let deadline = Instant::now() + Duration::from_secs(90);
    while shown("libvirtd")?.is_none() || shown("qemu")?.is_none() {
        ensure!(Instant::now() < deadline, "no cost of polling after 90 s:\n{}", stack.agent_log("h1")?);
        thread::sleep(Duration::from_secs(1));
    }
    let (began, daemon_before) = (Instant::now(), cpu_s(daemon)?);
    let agent_before = metric(host, "process_cpu_seconds_total")?.context("no CPU time of the agent")?;
    thread::sleep(Duration::from_secs(64));
    let elapsed_s = began.elapsed().as_secs_f64();
    let daemon_cores = (cpu_s(daemon)? - daemon_before) / elapsed_s;
    let agent = metric(host, "process_cpu_seconds_total")?.context("no CPU time of the agent")?;
    let agent_cores = (agent - agent_before) / elapsed_s;

    let (polled, qemu) = (shown("libvirtd")?.unwrap_or_default(), shown("qemu")?.unwrap_or_default());
    let part = |part: &str| metric(host, &format!("gnomon_agent_cost_cores{{part=\"{part}\"}}"));
    let (told, programs) = (part("agent")?.context("no cost of the agent")?, part("programs")?);
    println!(
        "libvirtd used {daemon_cores:.5} cores, {polled:.5} of them to answer; the QEMUs {qemu:.5}; the agent used {agent_cores:.5}, \
         told {told:.5}; its programs {programs:?}"
    );
    ensure!(polled > 0.0 && polled <= 1.1 * daemon_cores + 0.0005, "{polled} of {daemon_cores} cores");
    ensure!((0.0..0.1).contains(&qemu), "{qemu} cores of the QEMUs' main threads");
    ensure!((0.4..2.5).contains(&(told / agent_cores)), "{told} told, {agent_cores} used");
    ensure!(programs.is_some_and(|cores| cores > 0.0), "{programs:?}");
    let counted = |probe: &str| metric(host, &format!("gnomon_agent_probe_self_test{{probe=\"{probe}\"}}"));
    ensure!(counted("task_storage")? == Some(1.0), "the scheduler probe did not count:\n{}", stack.agent_log("h1")?);
    for probe in ["drops", "queues"] {
        ensure!(counted(probe)? == Some(1.0), "the {probe} probe did not count:\n{}", stack.agent_log("h1")?);
    }
    // What these want cannot be provoked everywhere: a disk below the agent's state, memory in control groups of version 2, KVM.
    for probe in ["block", "memory"] {
        ensure!(counted(probe)? != Some(0.0), "the {probe} probe did not count:\n{}", stack.agent_log("h1")?);
    }
    Ok(())
}

fn metric(host: &Host, name: &str) -> Result<Option<f64>> {
    let output = host.command("curl").args(["-s", "http://127.0.0.1:9479/metrics"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()))
}

/// The libvirtd that shares the host's mounts.
fn libvirtd(host: &Host) -> Result<u32> {
    let output = host.command("readlink").arg("/proc/self/ns/mnt").output()?;
    let namespace = String::from_utf8(output.stdout)?;
    let is_it = |pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mounts = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap_or_default();
        comm.trim() == "libvirtd" && mounts.as_os_str() == namespace.trim()
    };
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(is_it).context("the host has no libvirtd")
}

/// CPU time that a process has used, in seconds: the sum of the 14th and 15th value of proc(5)'s `/proc/PID/stat`.
fn cpu_s(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("no command")?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}
