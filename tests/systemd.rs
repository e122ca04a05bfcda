//! The pacer's unit where it is made for: in a Debian with systemd and udev. One image is a shadow's, where the unit starts by itself and makes the load
//! that is asked for, and a production VM's, where it does not.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gnomon_agent::pacer::{PacerLink, WINDOW_SECONDS};
use gnomon_common::wire::{Load, PacerWindow, Profile, ProfileStep};
use gnomon_e2e::{run, shell, wait_for};
use xtask::lab::{self, Guest, GuestOptions, Host, Lab, Options};

const MIB: u64 = 1 << 20;
const LOAD: Load = Load {
    cpu_cores: 0.2,
    memory_bytes: 32 * MIB,
    disk_read_bytes_per_s: MIB / 4,
    disk_write_bytes_per_s: MIB / 4,
    network_bytes_per_s: MIB / 4,
};
/// How far what is made may be from that, by the pacer's own account.
const TOLERANCE: f64 = 0.05;
/// What a pacer that has nothing to do may cost, in cores.
const IDLE_CORES_MAX: f64 = 0.01;
/// systemd is up in 30 s under emulation on an idle core.
const BOOT_PATIENCE: Duration = Duration::from_secs(150);
/// udev finds the last of the devices within seconds of the boot's end.
const PORT_PATIENCE: Duration = Duration::from_secs(60);
/// From a profile until what it wants has been reached, and what is measured then.
const SETTLE: Duration = Duration::from_secs(5);
const SPAN: Duration = Duration::from_secs(WINDOW_SECONDS as u64);
const TURN: Duration = Duration::from_millis(200);
/// CAP_NET_RAW alone, no way to more, and a filter of system calls: as `/proc/PID/status` has it.
const SANDBOX: [&str; 3] = ["CapEff:\t0000000000002000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"];

fn define(lab: &Lab, host: &Host, name: &str, pacer: bool) -> Result<Guest> {
    let mut options = GuestOptions::new(name, "constant:0".parse()?);
    (options.vcpus_max, options.memory_mib, options.memory_mib_max) = (1, 512, 512);
    (options.debian, options.pacer, options.bridge) = (true, pacer, Some("net0".to_owned()));
    lab.define(host, &options)
}

/// What systemd knows of the unit.
fn show(guest: &Guest, property: &str) -> Result<String> {
    Ok(shell(guest, &format!("systemctl show gnomon-pacer --value --property {property}"))?.trim().to_owned())
}

/// Waits for the end of the boot.
fn await_boot(guest: &Guest) -> Result<()> {
    wait_for("the guest's shell", BOOT_PATIENCE, || Ok(shell(guest, "true").is_ok()))?;
    wait_for("the end of the guest's boot", BOOT_PATIENCE, || {
        let state = shell(guest, "systemctl is-system-running")?;
        ensure!(state.trim() != "degraded", "{}", shell(guest, "systemctl --no-pager --full status --failed")?);
        Ok(state.trim() == "running")
    })
}

/// Turns the link for a while; what the pacer has said of the last seconds of it.
fn listen(link: &mut PacerLink, span: Duration) -> Result<PacerWindow> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        link.turn(Instant::now())?;
        thread::sleep(TURN);
    }
    let latest = link.latest(Instant::now()).context("the pacer says nothing")?;
    ensure!(latest.age < Duration::from_secs(3), "the pacer last spoke {:?} ago", latest.age);
    Ok(latest.window)
}

#[test]
fn systemd_starts_the_pacer_where_there_is_a_port_and_only_there() -> Result<()> {
    if let Err(missing) = lab::check_machine_for_debian() {
        println!("SKIPPED, no Debian guest on this machine: {missing:#}");
        return Ok(());
    }
    let lab = Lab::up(Options::new("systemd", 1))?;
    let host = lab.hosts()[0].clone();
    run(&host, "ip", &["link", "add", "net0", "type", "bridge", "forward_delay", "0"])?;
    run(&host, "ip", &["link", "set", "net0", "up"])?;
    let (shadow, production) = (define(&lab, &host, "shadow", true)?, define(&lab, &host, "production", false)?);
    shadow.start()?;
    production.start()?;
    for (guest, check) in [(&production, unpaced as fn(&Guest) -> Result<()>), (&shadow, paced)] {
        let console = || fs::read_to_string(guest.console_path()).unwrap_or_default();
        let checked = await_boot(guest).and_then(|()| check(guest));
        checked.with_context(|| format!("{}:\n{}", guest.name(), console()))?;
        guest.destroy()?;
    }
    Ok(())
}

/// A production VM has the unit and the program, and nothing of it runs.
fn unpaced(guest: &Guest) -> Result<()> {
    ensure!(shell(guest, "systemctl is-enabled gnomon-pacer")?.trim() == "enabled");
    // Whoever starts it by hand has it skipped: no failure, and no process.
    for by_hand in ["true", "systemctl start gnomon-pacer"] {
        let show = "systemctl show gnomon-pacer --property ActiveState --property ConditionResult";
        let said = shell(guest, &format!("{by_hand} && {show}; grep -l gnomon-pacer /proc/[0-9]*/comm 2> /dev/null"))?;
        let skipped = said.contains("ActiveState=inactive") && said.contains("ConditionResult=no");
        ensure!(skipped && !said.contains("/comm"), "after {by_hand:?}: {said}");
    }
    Ok(())
}

/// A shadow's pacer runs within its sandbox, costs next to nothing, and makes what it is asked for.
fn paced(guest: &Guest) -> Result<()> {
    let of_what = "grep PRETTY_NAME /etc/os-release; uname -r; systemctl --version | head -n 1; systemd-analyze time";
    println!("{}", shell(guest, of_what)?);
    let journal = || shell(guest, "journalctl --no-pager --output cat --unit gnomon-pacer");
    // The boot need not wait for the port.
    let started = wait_for("the unit to start", PORT_PATIENCE, || Ok(show(guest, "ActiveState")? == "active"));
    started.with_context(|| journal().unwrap_or_default())?;
    let status = shell(guest, &format!("cat /proc/{}/status", show(guest, "MainPID")?))?;
    let missing = SANDBOX.iter().find(|line| !status.contains(*line));
    ensure!(missing.is_none(), "no {missing:?} in {status}");

    let mut link = PacerLink::new(&guest.pacer_socket());
    wait_for("the pacer's first word", Duration::from_secs(20), || {
        link.turn(Instant::now())?;
        Ok(link.latest(Instant::now()).is_some())
    })?;
    let idle = listen(&mut link, SPAN)?;
    println!("idle: the pacer uses {:.4} cores", idle.made.cpu_cores);
    ensure!(idle.wanted == Load::default() && idle.made.cpu_cores < IDLE_CORES_MAX, "{idle:?}");

    let steps = vec![ProfileStep { after_ms: 0, load: LOAD, network_burst: 1.0 }];
    link.pace(&Profile { valid_ms: 120_000, steps }, Instant::now())?;
    let made = listen(&mut link, SETTLE + SPAN)?.made;
    println!("wanted {LOAD:?}, made {made:?}");
    let shares = [
        made.cpu_cores / LOAD.cpu_cores,
        made.memory_bytes as f64 / LOAD.memory_bytes as f64,
        made.disk_read_bytes_per_s as f64 / LOAD.disk_read_bytes_per_s as f64,
        made.disk_write_bytes_per_s as f64 / LOAD.disk_write_bytes_per_s as f64,
        made.network_bytes_per_s as f64 / LOAD.network_bytes_per_s as f64,
    ];
    ensure!(shares.iter().all(|share| (share - 1.0).abs() <= TOLERANCE), "{shares:?} of {LOAD:?}: {}", journal()?);
    let restarts = show(guest, "NRestarts")?;
    ensure!(restarts == "0", "it has been restarted {restarts} times: {}", journal()?);
    Ok(())
}
