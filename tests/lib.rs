//! What the end-to-end tests share: a whole Gnomon on a lab, and ways to look at a VM from several sides.
//!
//! The tests start the real programs on real libvirt hosts with real guests and compare what Gnomon says with independent
//! witnesses: the kernel's own counters, libvirt, the guest, the brain's database. Nothing here is used by the product.

pub mod ticks;
pub mod usurper;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use xtask::lab::{self, Guest, GuestOptions, Host, Lab, Options, Schedule};
use xtask::stack::{AgentSettings, BrainSettings, Stack};

/// Says why a test does nothing on this machine.
pub fn skipped() -> bool {
    let mut lacks = lab::check_machine().err().map(|missing| format!("{missing:#}"));
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        lacks = lacks.or(Some("no kernel type information (/sys/kernel/btf/vmlinux)".to_owned()));
    }
    if let Some(lack) = &lacks {
        println!("SKIPPED, no lab with eBPF on this machine: {lack}");
    }
    lacks.is_some()
}

/// A window as the brain's API tells it.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Window {
    /// Start, in milliseconds since the epoch.
    pub start_ms: u64,
    /// Mean of the time run, in cores: from eBPF.
    pub demand_low_cores: Option<f64>,
    /// Mean of the time run or runnable, in cores: from eBPF.
    pub demand_high_cores: Option<f64>,
    /// Mean of the time charged to the cgroup, in cores: the kernel's counter.
    pub usage_cores: Option<f64>,
    /// What the VM may use at the window's end, in cores.
    pub limit_cores: f64,
}

/// The mean of a window's value over windows that have it.
pub fn mean(windows: &[Window], value: fn(&Window) -> Option<f64>) -> f64 {
    let values: Vec<f64> = windows.iter().filter_map(value).collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// CPU time that a hypervisor took from this machine since boot, over all CPUs: the eighth value of `cpu` in proc(5)'s
/// `/proc/stat`. Zero on bare metal.
pub fn stolen_cpu() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let ticks: u64 = text.split_whitespace().nth(8).context("/proc/stat tells no stolen time")?.parse()?;
    // USER_HZ is 100 on every architecture that runs KVM.
    Ok(Duration::from_millis(ticks * 10))
}

/// A lab with guests of these schedules on its first host, and a brain with that policy.
pub fn stack(name: &str, guests: &[(&str, &str)], settings: BrainSettings) -> Result<(Stack, Vec<Guest>)> {
    let options = guests.iter().map(|(name, schedule)| Ok(GuestOptions::new(name, schedule.parse::<Schedule>()?)));
    stack_of(name, options.collect::<Result<_>>()?, settings)
}

/// The same with guests of any kind.
pub fn stack_of(name: &str, guests: Vec<GuestOptions>, settings: BrainSettings) -> Result<(Stack, Vec<Guest>)> {
    let lab = Lab::up(Options::new(name, 1))?;
    let host = &lab.hosts()[0];
    let guests = guests.iter().map(|options| lab.define(host, options)).collect::<Result<Vec<_>>>()?;
    lab.boot(&guests)?;
    let stack = Stack::start(lab, settings, &AgentSettings::default())?;
    for guest in &guests {
        wait_for("the brain to hear of a guest", Duration::from_secs(20), || {
            Ok(stack.api().get(&format!("/api/v1/vms/{}", guest.name())).is_ok())
        })?;
    }
    Ok((stack, guests))
}

/// A brain that measures and does nothing.
pub fn observing() -> BrainSettings {
    let mut policy = xtask::stack::demo_policy();
    policy.mode = xtask::stack::Mode::Observe;
    BrainSettings { policy, heartbeat_ms: 500 }
}

/// Changes a host's agent configuration, text for text, and adds sections to it. The agent must not run.
pub fn reconfigure(stack: &Stack, host: &str, changes: &[(&str, &str)], sections: &str) -> Result<()> {
    let path = stack.lab.host(host)?.dir().join("agent.toml");
    let mut text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    for (from, to) in changes {
        ensure!(text.contains(from), "{} has no {from:?}", path.display());
        text = text.replace(from, to);
    }
    fs::write(&path, text + sections).with_context(|| format!("writing {}", path.display()))
}

/// Has a host's agent take part in migrations. It must not run.
pub fn let_migrate(stack: &Stack, host: &Host) -> Result<()> {
    let migration = format!("[migration]\nenabled = true\nuri = \"{}\"\n", host.migration_uri());
    let reserve = ("[guard]\n", "[guard]\nmemory_host_reserve_bytes = 67108864\n");
    reconfigure(stack, host.name(), &[reserve], &migration)
}

/// Has a host's agent take shadows made from files below these paths. It must not run.
pub fn let_shadow(stack: &Stack, host: &Host, image_paths: &[String]) -> Result<()> {
    let shadow = format!("[shadow]\nshadows_max = 4\nimage_paths = {image_paths:?}\n");
    let reserve = ("[guard]\n", "[guard]\nmemory_host_reserve_bytes = 67108864\n");
    reconfigure(stack, host.name(), &[reserve], &shadow)
}

/// What the agent of a host serves to Prometheus, on its host's own loopback address.
pub fn agent_metrics(stack: &Stack, host: &str) -> Result<String> {
    const GET: &str = "exec 3<>/dev/tcp/127.0.0.1/9479; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let output = stack.lab.host(host)?.command("bash").args(["-c", GET]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A brain that acts.
pub fn acting() -> BrainSettings {
    BrainSettings { policy: xtask::stack::demo_policy(), heartbeat_ms: 500 }
}

/// Waits until `done`, or fails naming `what`.
pub fn wait_for(what: &str, patience: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !done()? {
        ensure!(Instant::now() < deadline, "waited {} s in vain for {what}", patience.as_secs());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The windows of a VM that lie within a span of time, once the last of them has arrived.
pub fn windows(stack: &Stack, vm: &str, from_ms: u64, to_ms: u64) -> Result<Vec<Window>> {
    let path = format!("/api/v1/vms/{vm}/history?since_ms={from_ms}");
    let read = || -> Result<Vec<Window>> { Ok(serde_json::from_value(stack.api().get(&path)?)?) };
    wait_for("the last window", Duration::from_secs(15), || {
        Ok(read()?.last().is_some_and(|window| window.start_ms + 1000 > to_ms))
    })?;
    Ok(read()?.into_iter().filter(|window| window.start_ms + 1000 <= to_ms).collect())
}

/// When the windows of a VM began that the brain has by now, from `from_ms` on, in milliseconds since the epoch.
pub fn window_starts(stack: &Stack, vm: &str, from_ms: u64) -> Result<Vec<u64>> {
    let path = format!("/api/v1/vms/{vm}/history?since_ms={from_ms}");
    let windows: Vec<Window> = serde_json::from_value(stack.api().get(&path)?)?;
    Ok(windows.iter().map(|window| window.start_ms).collect())
}

/// Runs a program in a host's namespaces and returns what it prints.
pub fn run(host: &Host, program: &str, arguments: &[&str]) -> Result<String> {
    let output = host.command(program).args(arguments).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a line in the shell of a guest that has one, and returns what it prints.
///
/// A shell that was just ending, because nobody was connected, takes what it is sent with it: one is greeted until it answers.
pub fn shell(guest: &Guest, line: &str) -> Result<String> {
    const READY: &str = "READY\n";
    const DONE: &str = "DONE\n";
    let mut shell = UnixStream::connect(guest.shell_socket()).context("connecting to the guest's shell")?;
    shell.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut said, deadline) = (String::new(), Instant::now() + Duration::from_secs(30));
    let mut greeted = false;
    writeln!(shell, "echo READY")?;
    while !said.ends_with(DONE) {
        ensure!(Instant::now() < deadline, "{line:?} in the guest: {said}");
        let mut bytes = [0; 4096];
        match shell.read(&mut bytes) {
            Ok(0) => bail!("the guest is gone"),
            Ok(count) => said += &String::from_utf8_lossy(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if !greeted {
                    writeln!(shell, "echo READY")?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        if !greeted && said.ends_with(READY) {
            greeted = true;
            writeln!(shell, "{line}; echo DONE")?;
        }
    }
    Ok(said.trim_start_matches(READY).trim_end_matches(DONE).to_owned())
}

/// Defines a guest anew, with its XML changed.
pub fn redefine(guest: &Guest, change: impl FnOnce(String) -> Result<String>) -> Result<()> {
    let host = guest.host();
    let file = host.dir().join(format!("{}-redefined.xml", guest.name()));
    fs::write(&file, change(host.virsh(["dumpxml", "--inactive", guest.name()])?)?)?;
    host.virsh(["define".as_ref(), file.as_os_str()]).map(drop)
}

/// Where windows are missing: pairs of neighbours that do not follow each other.
pub fn holes(starts_ms: &[u64], window_ms: u64) -> Vec<(u64, u64)> {
    let pairs = starts_ms.windows(2).map(|pair| (pair[0], pair[1]));
    // A tenth of a window is a sampling loop's jitter.
    pairs.filter(|(before, after)| after - before > window_ms + window_ms / 10).collect()
}

/// What `/proc/PID/task/TID/schedstat` says of all threads of a process: nanoseconds run and nanoseconds waited, by thread.
pub fn schedstat(pid: u32) -> Result<BTreeMap<u32, (u64, u64)>> {
    let mut threads = BTreeMap::new();
    let tasks = format!("/proc/{pid}/task");
    for entry in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let entry = entry?;
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
        let mut fields = text.split_whitespace().map(str::parse::<u64>);
        if let (Some(Ok(run)), Some(Ok(wait))) = (fields.next(), fields.next()) {
            threads.insert(entry.file_name().to_string_lossy().parse()?, (run, wait));
        }
    }
    Ok(threads)
}

/// QEMU's process of a guest: the one in the guest's cgroup that is named so.
pub fn qemu_pid(guest: &Guest) -> Result<u32> {
    let emulator = guest.cgroup_dir("cpu")?.join("emulator/cgroup.procs");
    let text = fs::read_to_string(&emulator).with_context(|| format!("reading {}", emulator.display()))?;
    let first = text.lines().next().with_context(|| format!("{} is empty", emulator.display()))?;
    Ok(first.parse()?)
}

/// The quota that libvirt tells of a guest, in cores; `None` is unlimited.
pub fn libvirt_quota_cores(guest: &Guest) -> Result<Option<f64>> {
    let text = guest.host().virsh(["schedinfo", guest.name()])?;
    let field = |name: &str| -> Result<i64> {
        let line = text.lines().find(|line| line.trim_start().starts_with(name));
        let value = line.and_then(|line| line.split(':').nth(1)).with_context(|| format!("no {name} in {text}"))?;
        // Unlimited is told as a huge unsigned number by some versions.
        Ok(value.trim().parse().unwrap_or(-1))
    };
    let (quota_us, period_us) = (field("global_quota")?, field("global_period")?);
    Ok((quota_us > 0 && quota_us < 1_000_000_000_000).then(|| quota_us as f64 / period_us as f64))
}
