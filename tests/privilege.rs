//! The agent without root: an ordinary user with the two capabilities that the systemd unit gives, in the group of libvirt's socket.

#[path = "doctor/found.rs"]
mod found;

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use found::{Found, output};
use gnomon_e2e::{mean, now_ms, observing, skipped, stack, wait_for, windows};

/// A user and a group that nobody else has: Debian gives ids from 60000 to 64999 only on request.
const USER: &str = "61999";

#[test]
fn an_ordinary_user_with_two_capabilities_measures_and_acts_and_without_them_still_measures() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (mut stack, guests) = stack("privilege", &[("g1", "constant:0.6")], observing())?;
    stack.stop_agent("h1")?;
    let host = stack.lab.hosts()[0].clone();
    // What the unit's user, StateDirectory= and SupplementaryGroups=libvirt are. libvirt's client looks up its user and group.
    let accounts = format!(
        "echo gnomon-agent:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin >> /etc/passwd\n\
         echo gnomon-agent:x:{USER}: >> /etc/group"
    );
    output(host.command("sh").args(["-c", &accounts]))?;
    let (state, files) = (host.dir().join("agent-state"), host.dir().join("agent"));
    output(host.command("chown").args(["-R", &format!("{USER}:{USER}")]).args([&state, &files]))?;
    output(host.command("chgrp").args([USER, "/run/libvirt/libvirt-sock", "/run/libvirt/libvirt-sock-ro"]))?;
    output(host.command("chmod").args(["770", "/run/libvirt/libvirt-sock"]))?;

    let user = format!("--reuid={USER}");
    let group = format!("--regid={USER}");
    let with = |capabilities: &str| -> Vec<String> {
        let sets = ["--inh-caps", "--ambient-caps", "--bounding-set"].map(|set| format!("{set}={capabilities}"));
        ["setpriv", &user, &group, "--clear-groups", "--no-new-privs"]
            .map(str::to_owned)
            .into_iter()
            .chain(sets)
            .collect()
    };
    let unit = with("-all,+bpf,+perfmon");
    stack.wrap_agents(unit.iter().map(String::as_str));
    stack.start_agent("h1")?;
    let facts = stack.api().get("/api/v1/hosts/h1")?["facts"].clone();
    ensure!(facts["cpu_source"] == "task_storage", "it stands on {}", facts["cpu_source"]);
    measures(&stack, "with CAP_BPF and CAP_PERFMON", 0.02)?;
    let found = Found::on(&host, &unit)?;
    found.ensure_complete(true)?;
    found.ensure_all("ok", &["capabilities", "BTF", "eBPF, task storage", "eBPF ring buffer", "CPU run and wait"])?;
    found.ensure_all(
        "ok",
        &["libvirt", "VM processes", "CPU usage, throttling", "memory, resident", "state directory"],
    )?;
    // tracefs is root's alone.
    found.ensure_all("unavailable", &["tracefs", "eBPF, tracepoints"])?;
    Found::on(&host, &with("-all,+bpf,+perfmon,+dac_read_search"))?
        .ensure_all("ok", &["tracefs", "eBPF, tracepoints"])?;
    // It may also change a VM: libvirt does that, and the group may ask libvirt.
    let set = ["virsh", "-c", "qemu:///system", "schedinfo", "g1", "--set", "global_quota=80000"];
    output(host.command(&unit[0]).args(&unit[1..]).args(set))?;
    ensure!(guests[0].cpu_quota_cores()? == Some(0.8), "the quota did not land");

    stack.stop_agent("h1")?;
    let nothing = with("-all");
    stack.wrap_agents(nothing.iter().map(String::as_str));
    stack.start_agent("h1")?;
    wait_for("the brain to hear of the other rung", Duration::from_secs(10), || {
        Ok(stack.api().get("/api/v1/hosts/h1")?["facts"]["cpu_source"] == "schedstat")
    })?;
    measures(&stack, "without any capability", 0.03)?;
    ensure!(stack.agent_log("h1")?.contains("CAP_BPF and CAP_PERFMON"), "the log does not say what is missing");
    let found = Found::on(&host, &nothing)?;
    found.ensure_complete(true)?;
    found.ensure_all("degraded", &["capabilities", "CPU run and wait"])?;
    let capabilities = found.check("capabilities")?;
    let how = capabilities["enable"].as_str().unwrap_or_default();
    ensure!(how.contains("CAP_BPF") && how.contains("root"), "it does not say what root would add: {capabilities:#}");
    Ok(())
}

/// What the brain hears agrees with the cgroup.
fn measures(stack: &xtask::stack::Stack, how: &str, tolerance_cores: f64) -> Result<()> {
    thread::sleep(Duration::from_millis(2000 - now_ms() % 1000));
    let from_ms = now_ms();
    thread::sleep(Duration::from_secs(4));
    let seen = windows(stack, "g1", from_ms - 200, now_ms() + 200)
        .with_context(|| format!("{how}; the agent's log:\n{}", stack.agent_log("h1").unwrap_or_default()))?;
    ensure!(seen.len() >= 3, "only {} windows", seen.len());
    let low = mean(&seen, |window| window.demand_low_cores);
    let usage = mean(&seen, |window| window.usage_cores);
    println!("{how}: ran {low:.3}, cgroup {usage:.3}");
    ensure!(usage > 0.1 && (low - usage).abs() <= tolerance_cores, "{how}: ran {low:.4}, the cgroup says {usage:.4}");
    Ok(())
}
