//! The lab itself: what it shows is true, and it leaves nothing behind however it ends.
//!
//! These tests need root, libvirt and QEMU; elsewhere each says what is missing and passes.

#[path = "lab/traces.rs"]
mod traces;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use xtask::lab::{self, BRAIN_ADDRESS, Guest, GuestOptions, HostOptions, Lab, Options};

use traces::Traces;

/// Name of the lab that the test binary is to own, in a second process of itself.
const OWNER: &str = "GNOMON_LAB_OWNER";

/// Says why a test does nothing on this machine.
fn skipped() -> bool {
    let missing = lab::check_machine();
    if let Err(missing) = &missing {
        println!("SKIPPED, no lab on this machine: {missing:#}");
    }
    missing.is_err()
}

#[test]
fn load_in_a_guest_agrees_between_host_guest_and_schedule() -> Result<()> {
    const STEP_S: f64 = 8.0;
    const LEVELS: [f64; 4] = [0.0, 0.3, 0.6, 1.0];
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("truth", 1))?;
    let script = LEVELS.map(|level| format!("{STEP_S}@{level}")).join(",");
    let guest = lab.define(&lab.hosts()[0], &GuestOptions::new("g1", format!("script:{script}").parse()?))?;
    lab.boot(std::slice::from_ref(&guest))?;
    let truth = lab.truth("g1")?;
    for (index, level) in LEVELS.iter().enumerate() {
        // A second after a change and before the next: both views lag a little.
        let (from_s, to_s) = (index as f64 * STEP_S + 1.0, (index + 1) as f64 * STEP_S - 1.0);
        sleep_until(truth.started_at + Duration::from_secs_f64(from_s));
        let before = HostView::of(&guest)?;
        sleep_until(truth.started_at + Duration::from_secs_f64(to_s));
        let after = HostView::of(&guest)?;
        let (run, wait, stolen) = after.since(&before, to_s - from_s);
        ensure!(truth.level_at(SystemTime::now()) == *level, "the schedule is at {level}");

        thread::sleep(Duration::from_millis(500));
        let reports = guest.reports()?;
        let seconds = reports.iter().filter(|report| report.t_s > from_s + 0.9 && report.t_s < to_s + 0.2);
        let busy: Vec<f64> = seconds.map(|report| report.busy).collect();
        ensure!(busy.len() >= 5, "only {} reports between {from_s} and {to_s} s", busy.len());
        let busy = busy.iter().sum::<f64>() / busy.len() as f64;

        println!("level {level}: guest {busy:.3}, host ran {run:.3}, waited {wait:.3}, stolen {stolen:.3}");
        ensure!((busy - level).abs() <= 0.05, "the guest sees {busy:.3} cores of a schedule of {level}");
        // On an idle machine nothing waits and the two are within 5 points. On a busy one the guest counts the time
        // that the host took away as its own, and what the host's own hypervisor took: then run alone is below and the sum is above.
        ensure!(run <= busy + 0.05, "the host gave {run:.3} cores, the guest sees {busy:.3}");
        ensure!(
            run + wait + stolen >= busy - 0.05,
            "the host gave {run:.3} and withheld {wait:.3} cores, {stolen:.3} were stolen from it, the guest sees {busy:.3}"
        );
    }
    // The truth of a later time rests on the guest's clock running as fast as the machine's: a whole run, and the last
    // report is as old as it says. A second passes between two reports, and a busy machine delays one.
    let elapsed_s = SystemTime::now().duration_since(truth.started_at)?.as_secs_f64();
    let last_s = guest.reports()?.last().context("no reports")?.t_s;
    ensure!((-0.05..1.5).contains(&(elapsed_s - last_s)), "the guest is at {last_s} s after {elapsed_s} s");
    lab.down()
}

#[test]
fn a_lab_that_is_dropped_leaves_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("dropped", 1))?;
    let guest = lab.define(&lab.hosts()[0], &GuestOptions::new("g1", "constant:0.2".parse()?))?;
    lab.boot(&[guest])?;
    let mut agent = lab.hosts()[0].command("sh");
    let mut agent = agent.args(["-c", "echo ready; exec sleep 1000"]).stdout(Stdio::piped()).spawn()?;
    agent.stdout.take().context("piped")?.read_exact(&mut [0; 6])?;
    let traces = Traces::of(&lab)?;
    ensure!(traces.present() == 5 + 2, "two anchors, libvirtd, QEMU and the sleep run in two places: {traces:?}");
    drop(lab);
    ensure!(agent.wait()?.code().is_none(), "what runs on a host is killed with it");
    traces.ensure_gone()
}

#[test]
fn a_panic_takes_the_lab_down() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (send, receive) = std::sync::mpsc::channel();
    let ended = thread::spawn(move || {
        let lab = Lab::up(Options::new("panicked", 1)).unwrap();
        send.send(Traces::of(&lab).unwrap()).unwrap();
        panic!("this panic is part of the test");
    });
    ensure!(ended.join().is_err(), "the thread panicked");
    receive.recv()?.ensure_gone()
}

#[test]
fn a_host_that_cannot_start_leaves_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut options = Options::new("unable", 2);
    options.hosts[1] = HostOptions { libvirtd: "/bin/false".into(), ..HostOptions::default() };
    let error = format!("{:#}", Lab::up(options).err().context("the lab came up without a libvirtd")?);
    ensure!(error.contains("h2") && error.contains("libvirtd ended at once"), "{error}");
    Traces::of_name("unable").ensure_gone()
}

#[test]
fn a_domain_that_libvirt_refuses_leaves_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("refused", 1))?;
    let traces = Traces::of(&lab)?;
    let mut options = GuestOptions::new("g1", "constant:0".parse()?);
    options.cpus = Some("no-cpu".into());
    let error = format!("{:#}", lab.define(&lab.hosts()[0], &options).err().context("libvirt took nonsense")?);
    ensure!(error.contains("virsh define") && error.contains("no-cpu"), "{error}");
    ensure!(lab.guests()?.is_empty(), "a guest that was refused is not kept");
    drop(lab);
    traces.ensure_gone()
}

#[test]
fn an_owner_that_is_killed_leaves_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    for (signal, name) in [("KILL", "killed"), ("TERM", "ended")] {
        let mut owner = own(name, false)?;
        let traces = Traces::of(&Lab::attach(name)?)?;
        ensure!(traces.present() > 4, "the lab is up: {traces:?}");
        // Only this child, which is not reaped yet, can have the pid.
        let kill = Command::new("sh").args(["-c", "kill -s $0 $1", signal, &owner.id().to_string()]).status()?;
        ensure!(kill.success(), "kill -s {signal}");
        owner.wait()?;
        traces.wait_until_gone(Duration::from_secs(15))?;
    }
    Ok(())
}

#[test]
fn a_lab_that_persists_stays_until_it_is_taken_down() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut owner = own("persistent", true)?;
    owner.kill()?;
    owner.wait()?;
    let again = Lab::up(Options::new("persistent", 1)).err().context("two labs of one name")?;
    ensure!(again.to_string().contains("lab down"), "{again:#}");

    let lab = Lab::attach("persistent")?;
    let traces = Traces::of(&lab)?;
    ensure!(lab.hosts()[0].virsh(["uri"])?.trim() == "qemu:///system", "libvirt answers");
    drop(lab);
    ensure!(traces.present() > 4, "an attached lab outlives the value: {traces:?}");
    lab::down("persistent")?;
    traces.ensure_gone()?;
    lab::down("persistent").context("down is idempotent")
}

#[test]
fn two_labs_do_not_see_each_other() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (one, two) = (Lab::up(Options::new("one", 1))?, Lab::up(Options::new("two", 1))?);
    let taken = Lab::up(Options::new("one", 1)).err().context("a name was given twice")?;
    ensure!(taken.to_string().contains("owned by another"), "{taken:#}");
    one.define(&one.hosts()[0], &GuestOptions::new("g1", "constant:0".parse()?))?;
    let names = |lab: &Lab| lab.hosts()[0].virsh(["list", "--all", "--name"]);
    ensure!(names(&one)?.trim() == "g1" && names(&two)?.trim().is_empty(), "a guest of one lab is not in the other");
    let (traces_one, traces_two) = (Traces::of(&one)?, Traces::of(&two)?);
    one.down()?;
    traces_one.ensure_gone()?;
    ensure!(traces_two.present() == 3 + 2, "the other lab stays up: {traces_two:?}");
    two.down()?;
    traces_two.ensure_gone()
}

#[test]
fn a_brain_is_reached_from_hosts_and_from_outside() -> Result<()> {
    const PORT: u16 = 4000;
    if skipped() {
        return Ok(());
    }
    let lab = Lab::up(Options::new("reached", 1))?;
    let address = SocketAddr::from((BRAIN_ADDRESS, PORT));
    ensure!(TcpListener::bind(address).is_err(), "the address is not one of the caller's own network");
    let listener = lab.in_brain_net(|| TcpListener::bind(address))??;
    let server = thread::spawn(move || -> Result<()> {
        for _ in 0..2 {
            let (mut stream, peer) = listener.accept()?;
            writeln!(stream, "{}", peer.ip())?;
        }
        Ok(())
    });
    let host = &lab.hosts()[0];
    let port = PORT.to_string();
    let seen = host.command("busybox").args(["nc", "brain", &port]).stdin(Stdio::null()).output()?;
    ensure!(seen.stdout == b"10.77.0.1\n", "the brain is seen from a host, by name: {seen:?}");

    let published = lab.publish(PORT)?;
    ensure!(published.address().ip().is_loopback(), "published on the loopback address");
    let mut seen = String::new();
    TcpStream::connect(published.address())?.read_to_string(&mut seen)?;
    ensure!(seen == "10.77.0.254\n", "a published port leads to the brain: {seen:?}");
    let door = published.address();
    drop(published);
    ensure!(TcpStream::connect(door).is_err(), "a door that is dropped is closed");
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    lab.down()
}

#[test]
fn a_capacity_holds_all_guests_of_a_host_together() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut options = Options::new("capacity", 1);
    options.hosts[0].capacity_cores = Some(1.0);
    let lab = Lab::up(options)?;
    let host = &lab.hosts()[0];
    let guests: Result<Vec<Guest>> =
        ["g1", "g2"].iter().map(|name| lab.define(host, &GuestOptions::new(name, "constant:1".parse()?))).collect();
    let guests = guests?;
    lab.boot(&guests)?;
    let used_s = || guests.iter().map(Guest::cpu_time_s).sum::<Result<f64>>();
    let before_s = used_s()?;
    thread::sleep(Duration::from_secs(4));
    let cores = (used_s()? - before_s) / 4.0;
    ensure!((0.5..=1.05).contains(&cores), "two guests that want a core each share {cores:.3} of 1");
    lab.down()
}

/// Not a test of its own: the process whose end the tests above watch.
#[test]
#[ignore = "run by other tests, as a process of its own"]
fn owner() -> Result<()> {
    let Ok(name) = std::env::var(OWNER) else { return Ok(()) };
    let (name, kind) = name.split_once(' ').context("NAME KIND")?;
    let _lab = Lab::up(Options { persists: kind == "persists", ..Options::new(name, 1) })?;
    println!("\nowner is up");
    // Until the test that started this closes its end, or kills.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A second process of this test binary that owns a lab.
fn own(name: &str, persists: bool) -> Result<Child> {
    let kind = if persists { "persists" } else { "ends" };
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "owner", "--ignored", "--nocapture"])
        .env(OWNER, format!("{name} {kind}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = BufReader::new(child.stdout.take().context("piped")?);
    for line in stdout.lines() {
        if line? == "owner is up" {
            return Ok(child);
        }
    }
    anyhow::bail!("the owner ended early: {}", child.wait()?)
}

/// CPU time that the host gave to a guest and that it made its threads wait, in seconds since they started. Where the host is a virtual
/// machine itself, its own hypervisor takes time as well: the kernel counts that as nobody's run time (`steal` in proc(5), /proc/stat), and
/// to a guest it looks like its own.
struct HostView {
    run_s: f64,
    wait_s: f64,
    stolen_s: f64,
}

impl HostView {
    fn of(guest: &Guest) -> Result<Self> {
        let mut wait_ns = 0;
        for tid in guest.threads()? {
            // Run time, run-queue wait, slices: what the scheduler itself keeps of each thread.
            let Ok(text) = std::fs::read_to_string(format!("/proc/{tid}/schedstat")) else { continue };
            wait_ns += text.split(' ').nth(1).context("a schedstat without a wait")?.parse::<u64>()?;
        }
        Ok(HostView { run_s: guest.cpu_time_s()?, wait_s: wait_ns as f64 / 1e9, stolen_s: Self::stolen_s()? })
    }

    /// What the machine's hypervisor took from all of its CPUs since it booted.
    fn stolen_s() -> Result<f64> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let ticks =
            text.lines().next().and_then(|all| all.split_whitespace().nth(8)).context("no steal in /proc/stat")?;
        // USER_HZ is 100 on every architecture that Linux still runs on.
        Ok(ticks.parse::<u64>()? as f64 / 100.0)
    }

    /// Run, wait and what was stolen, in cores. A thread that ended takes its wait along, so the difference may fall short, never below 0.
    fn since(&self, before: &HostView, dt_s: f64) -> (f64, f64, f64) {
        let wait = ((self.wait_s - before.wait_s) / dt_s).max(0.0);
        ((self.run_s - before.run_s) / dt_s, wait, (self.stolen_s - before.stolen_s) / dt_s)
    }
}

fn sleep_until(time: SystemTime) {
    thread::sleep(time.duration_since(SystemTime::now()).unwrap_or_default());
}
