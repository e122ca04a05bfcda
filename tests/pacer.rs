//! What a pacer makes in a real guest is what was asked for: by its own measure, and by its host's.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gnomon_agent::pacer::{PacerLink, WINDOW_SECONDS};
use gnomon_common::wire::{Load, PacerWindow, Profile, ProfileStep};
use gnomon_e2e::{qemu_pid, run, schedstat, shell, skipped, wait_for};
use xtask::lab::{Guest, GuestOptions, Lab, Options};

const MIB: u64 = 1 << 20;
/// From a profile until what it wants has been reached, and what is measured then: as long as a window's means.
const SETTLE: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(WINDOW_SECONDS as u64);
const TURN: Duration = Duration::from_millis(200);
/// How far what is made may be from what is wanted.
const TOLERANCE: f64 = 0.05;
/// The same by the host's measure of CPU time, which is an interval: QEMU's threads ran for the lower end, and ran or waited for a CPU for the upper one.
/// An emulated guest sees no stolen time: what a vCPU waits in the middle of its work the guest takes for its own time, what it waits after a sleep it does
/// not. On a quiet machine the ends are near each other. Room is left above for what no thread of the guest is charged with: clocks, interrupts, the way
/// of a vCPU into sleep and back.
const EMULATED_CPU_TOLERANCE: f64 = 0.1;
const EMULATED_CPU_CORES: f64 = 0.04;
/// Bursts need not begin with a span.
const BURST_TOLERANCE: f64 = 0.15;
/// What a pacer that has nothing to do may cost, in cores.
const IDLE_CORES_MAX: f64 = 0.01;

/// What is measured of a load.
#[derive(Clone, Copy)]
struct Kpi {
    name: &'static str,
    of: fn(&Load) -> f64,
    /// How far the host's measure may be, as a share and on top of it.
    tolerance: f64,
    slack: f64,
}

const CPU: Kpi =
    Kpi { name: "CPU, cores", of: |load| load.cpu_cores, tolerance: EMULATED_CPU_TOLERANCE, slack: EMULATED_CPU_CORES };
const MEMORY: Kpi = Kpi { name: "memory, MiB", of: |load| mib(load.memory_bytes), tolerance: TOLERANCE, slack: 0.0 };
const READ: Kpi =
    Kpi { name: "disk read, MiB/s", of: |load| mib(load.disk_read_bytes_per_s), tolerance: TOLERANCE, slack: 0.0 };
const WRITE: Kpi =
    Kpi { name: "disk written, MiB/s", of: |load| mib(load.disk_write_bytes_per_s), tolerance: TOLERANCE, slack: 0.0 };
const NETWORK: Kpi =
    Kpi { name: "network, MiB/s", of: |load| mib(load.network_bytes_per_s), tolerance: TOLERANCE, slack: 0.0 };

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

/// Each level's KPI, load and burst.
fn levels() -> Vec<(Kpi, Load, f64)> {
    let idle = Load::default();
    let mut levels = Vec::new();
    levels.extend([0.2, 0.5, 0.9].map(|cpu_cores| (CPU, Load { cpu_cores, ..idle }, 1.0)));
    levels.extend([32, 64, 96].map(|mib| (MEMORY, Load { memory_bytes: mib * MIB, ..idle }, 1.0)));
    let rates = [MIB / 4, MIB, 2 * MIB];
    // Reads first, of the little that a reader writes for itself.
    levels.extend(rates.map(|rate| (READ, Load { disk_read_bytes_per_s: rate, ..idle }, 1.0)));
    levels.extend(rates.map(|rate| (WRITE, Load { disk_write_bytes_per_s: rate, ..idle }, 1.0)));
    levels.extend(rates.map(|rate| (NETWORK, Load { network_bytes_per_s: rate, ..idle }, 1.0)));
    let name = "network in bursts of 5, MiB/s";
    levels.push((
        Kpi { name, tolerance: BURST_TOLERANCE, ..NETWORK },
        Load { network_bytes_per_s: MIB / 2, ..idle },
        5.0,
    ));
    levels
}

/// What the host has counted of a guest.
#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Instant,
    /// Of QEMU's threads: run, and run or waited for a CPU.
    cpu_s: (f64, f64),
    usable_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
    received_bytes: u64,
}

impl Counted {
    fn now(guest: &Guest, tap: &str) -> Result<Self> {
        let host = guest.host();
        let disk = host.virsh(["domblkstat", guest.name(), "vda"])?;
        let devices = run(host, "cat", &["/proc/net/dev"])?;
        let line = devices.lines().find_map(|line| line.trim_start().strip_prefix(tap)?.strip_prefix(':'));
        let received = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(Counted {
            at: Instant::now(),
            cpu_s: cpu_s(guest)?,
            usable_bytes: usable(guest)?,
            read_bytes: number(&disk, "rd_bytes")?,
            written_bytes: number(&disk, "wr_bytes")?,
            received_bytes: received.with_context(|| format!("no {tap} in {devices}"))?,
        })
    }

    /// Means since `before`; CPU and memory are what is more than of the idle guest, which used `idle_cores` and had `usable_bytes` to give.
    fn since(&self, before: &Counted, idle_cores: f64, usable_bytes: u64) -> Load {
        let passed_s = (self.at - before.at).as_secs_f64();
        let rate = |now: u64, before: u64| ((now - before) as f64 / passed_s) as u64;
        Load {
            cpu_cores: (self.cpu_s.1 - before.cpu_s.1) / passed_s - idle_cores,
            memory_bytes: usable_bytes.saturating_sub(self.usable_bytes),
            disk_read_bytes_per_s: rate(self.read_bytes, before.read_bytes),
            disk_write_bytes_per_s: rate(self.written_bytes, before.written_bytes),
            network_bytes_per_s: rate(self.received_bytes, before.received_bytes),
        }
    }
}

fn cpu_s(guest: &Guest) -> Result<(f64, f64)> {
    let threads = schedstat(qemu_pid(guest)?)?;
    let (run_ns, waited_ns) = threads.values().fold((0, 0), |(run, waited), of| (run + of.0, waited + of.1));
    Ok((run_ns as f64 / 1e9, (run_ns + waited_ns) as f64 / 1e9))
}

/// For how much CPU QEMU's threads ran.
fn run_cores(before: &Counted, after: &Counted) -> f64 {
    (after.cpu_s.0 - before.cpu_s.0) / (after.at - before.at).as_secs_f64()
}

/// What the guest's balloon driver says could still be had, in bytes.
fn usable(guest: &Guest) -> Result<u64> {
    Ok(number(&guest.host().virsh(["dommemstat", guest.name()])?, "usable")? * 1024)
}

fn number(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.split_once(name)?.1.trim().parse().ok());
    value.with_context(|| format!("no {name} in {text}"))
}

/// A guest with a pacer, and the agent's link to it.
struct Driver {
    guest: Guest,
    tap: String,
    link: PacerLink,
}

impl Driver {
    fn pace(&mut self, load: Load, network_burst: f64, valid: Duration) -> Result<()> {
        let steps = vec![ProfileStep { after_ms: 0, load, network_burst }];
        Ok(self.link.pace(&Profile { valid_ms: valid.as_millis() as u64, steps }, Instant::now())?)
    }

    fn turn_for(&mut self, span: Duration) -> Result<()> {
        let end = Instant::now() + span;
        while Instant::now() < end {
            self.link.turn(Instant::now())?;
            thread::sleep(TURN);
        }
        Ok(())
    }

    /// Lets it settle, then measures for a span.
    fn measure(&mut self) -> Result<(PacerWindow, Counted, Counted)> {
        self.turn_for(SETTLE)?;
        let before = Counted::now(&self.guest, &self.tap)?;
        self.turn_for(SPAN)?;
        let after = Counted::now(&self.guest, &self.tap)?;
        let latest = self.link.latest(Instant::now()).context("the pacer says nothing")?;
        ensure!(latest.age < Duration::from_secs(3), "the pacer last spoke {:?} ago", latest.age);
        Ok((latest.window, before, after))
    }

    /// CPU time of all of the pacer's threads by the guest's scheduler, in seconds.
    fn pacer_cpu_s(&self) -> Result<f64> {
        let text = shell(&self.guest, "cat /proc/$(pidof gnomon-pacer)/task/*/schedstat")?;
        let times = text.lines().map(|line| line.split(' ').next().unwrap_or_default().parse::<f64>());
        Ok(times.sum::<Result<f64, _>>().with_context(|| text.clone())? / 1e9)
    }
}

#[test]
fn a_guest_is_made_to_want_what_its_profile_says() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("pacer", 1))?;
    let host = lab.hosts()[0].clone();
    run(&host, "ip", &["link", "add", "net0", "type", "bridge", "forward_delay", "0"])?;
    run(&host, "ip", &["link", "set", "net0", "up"])?;
    let mut options = GuestOptions::new("g1", "constant:0".parse()?);
    (options.vcpus, options.memory_mib, options.memory_mib_max) = (2, 256, 256);
    (options.pacer, options.bridge) = (true, Some("net0".to_owned()));
    let guest = lab.define(&host, &options)?;
    lab.boot(std::slice::from_ref(&guest))?;
    let list = host.virsh(["domiflist", "g1"])?;
    let tap = list.split_whitespace().find(|word| word.starts_with("vnet")).context("no tap")?.to_owned();
    let link = PacerLink::new(&guest.pacer_socket());
    let mut driver = Driver { guest, tap, link };
    let console = driver.guest.console_path();
    followed(&mut driver).with_context(|| std::fs::read_to_string(console).unwrap_or_default())
}

fn followed(driver: &mut Driver) -> Result<()> {
    wait_for("the pacer's first word", Duration::from_secs(30), || {
        driver.link.turn(Instant::now())?;
        Ok(driver.link.latest(Instant::now()).is_some())
    })?;
    // The guest's kernel is still busy with its start.
    driver.turn_for(Duration::from_secs(5))?;

    let (began, used_s) = (Instant::now(), driver.pacer_cpu_s()?);
    let (window, before, after) = driver.measure()?;
    let by_scheduler = (driver.pacer_cpu_s()? - used_s) / began.elapsed().as_secs_f64();
    let idle = after.since(&before, 0.0, 0);
    let (idle_cores, usable_bytes) = (idle.cpu_cores, after.usable_bytes);
    let idle_run_cores = run_cores(&before, &after);
    println!(
        "idle: the pacer uses {:.4} cores by its own measure, {by_scheduler:.4} by the guest's scheduler, the whole guest {idle_cores:.3} on the host",
        window.made.cpu_cores
    );
    ensure!(window.made.cpu_cores < IDLE_CORES_MAX && by_scheduler < IDLE_CORES_MAX, "an idle pacer is not idle");
    ensure!(window.wanted == Load::default() && window.made.memory_bytes == 0, "{window:?}");

    expiry(driver)?;
    garbage(driver)?;
    let (mut table, mut wrong) = (String::new(), Vec::new());
    writeln!(table, "\n| | wanted | made, by the pacer | by the host |\n|---|---|---|---|")?;
    for (Kpi { name, of, tolerance, slack }, load, burst) in levels() {
        driver.pace(load, burst, Duration::from_secs(60))?;
        let (window, before, after) = driver.measure()?;
        let host = after.since(&before, idle_cores, usable_bytes);
        let (target, made, by_host) = (of(&load), of(&window.made), of(&host));
        let least = if load.cpu_cores > 0.0 { run_cores(&before, &after) - idle_run_cores } else { by_host };
        let ends = if least == by_host { String::new() } else { format!("{least:.3} to ") };
        let row = format!("{name} | {target} | {made:.3} | {ends}{by_host:.3}");
        println!("{row}");
        writeln!(table, "| {row} |")?;
        let wanted = of(&window.wanted);
        let near = |value: f64, target: f64, tolerance: f64| (value / target - 1.0).abs() <= tolerance;
        let wanted_tolerance = if burst > 1.0 { BURST_TOLERANCE } else { TOLERANCE };
        let on_host = least <= target * (1.0 + tolerance) + slack && by_host >= target * (1.0 - tolerance);
        if !(near(wanted, target, wanted_tolerance) && near(made, wanted, TOLERANCE) && on_host) {
            wrong.push(format!("{row}; the pacer says that it wants {wanted:.3}"));
        }
    }
    println!("{table}");
    end(driver, idle_cores, usable_bytes)?;
    ensure!(wrong.is_empty(), "too far from what was wanted: {wrong:#?}");
    Ok(())
}

/// A profile that has ended leaves no load.
fn expiry(driver: &mut Driver) -> Result<()> {
    driver.pace(Load { cpu_cores: 0.3, memory_bytes: 32 * MIB, ..Load::default() }, 1.0, Duration::from_secs(5))?;
    driver.turn_for(Duration::from_secs(4))?;
    let made = driver.link.latest(Instant::now()).context("the pacer says nothing")?.window.made;
    ensure!(made.memory_bytes > MIB && made.cpu_cores > 0.01, "it has not begun: {made:?}");
    driver.turn_for(SETTLE + SPAN + Duration::from_secs(2))?;
    let made = driver.link.latest(Instant::now()).context("the pacer says nothing")?.window.made;
    println!("after its profile: {made:?}");
    ensure!(made.memory_bytes == 0 && made.cpu_cores < IDLE_CORES_MAX, "its profile has ended: {made:?}");
    Ok(())
}

/// What is no profile is refused, counted, and changes nothing.
fn garbage(driver: &mut Driver) -> Result<()> {
    driver.pace(Load { cpu_cores: 0.3, ..Load::default() }, 1.0, Duration::from_secs(120))?;
    driver.turn_for(Duration::from_secs(2))?;
    let socket = driver.guest.pacer_socket();
    // QEMU takes one connection at a time.
    driver.link = PacerLink::new(&socket);
    let mut port = UnixStream::connect(&socket)?;
    port.set_read_timeout(Some(Duration::from_secs(1)))?;
    port.write_all(b"GET / HTTP/1.1\n\xff\xfe\ngnomon-pacer/2 profile valid_ms=1\n")?;
    let (mut said, mut bytes) = (String::new(), [0; 4096]);
    wait_for("three refusals, and a status that counts them", Duration::from_secs(20), || {
        match port.read(&mut bytes) {
            Ok(count) => said += &String::from_utf8_lossy(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(said.contains("error refused=3 ") && said.contains("status refused=3 "))
    })?;
    drop(port);
    driver.turn_for(SPAN)?;
    let made = driver.link.latest(Instant::now()).context("the pacer says nothing")?.window.made;
    ensure!((made.cpu_cores / 0.3 - 1.0).abs() < TOLERANCE, "garbage has changed its profile: {made:?}");
    Ok(())
}

/// A pacer that is ended takes its load with it.
fn end(driver: &mut Driver, idle_cores: f64, usable_bytes: u64) -> Result<()> {
    driver.pace(Load { cpu_cores: 0.5, memory_bytes: 96 * MIB, ..Load::default() }, 1.0, Duration::from_secs(120))?;
    driver.turn_for(SETTLE)?;
    ensure!(usable_bytes - usable(&driver.guest)? > 80 * MIB, "it holds no memory");
    let left = shell(&driver.guest, "kill -TERM $(pidof gnomon-pacer); sleep 1; pidof gnomon-pacer")?;
    ensure!(left.is_empty(), "it still runs: {left}");
    thread::sleep(SETTLE);
    let before = Counted::now(&driver.guest, &driver.tap)?;
    thread::sleep(SETTLE);
    let after = Counted::now(&driver.guest, &driver.tap)?;
    let rest = after.since(&before, idle_cores, usable_bytes);
    println!("after SIGTERM: {rest:?}");
    ensure!(rest.memory_bytes < 4 * MIB && rest.cpu_cores < 0.1, "it has left a load behind: {rest:?}");
    Ok(())
}
