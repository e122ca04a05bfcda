//! The monitors beside each other on real guests.

use super::monitor::{Kind, Monitor, Peers};
use super::process::ProcessTime;
use super::spread::{median, quantile};
use super::{mib, millicores, verdict, watch};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};
use xtask::lab::{self, Guest, GuestOptions, Lab, Options};
use xtask::stack::{AgentSettings, BrainSettings, Mode, Stack, demo_policy};

/// What each guest wants, in cores.
const LOAD: &str = "constant:0.02";
/// The brain's default.
const HEARTBEAT_MS: u64 = 5000;
/// After a start, before it is measured: connections and first looks at all guests are made once.
const SETTLE: Duration = Duration::from_secs(2);
/// After guests have booted: what their systems do once, QEMU's own threads do with them.
const BOOTED: Duration = Duration::from_secs(10);
/// After an end: libvirtd closes what it held for the monitor.
const RECOVER: Duration = Duration::from_millis(500);
/// What may be resident of the agent, in bytes.
const RESIDENT_BYTES_MAX: u64 = 40 << 20;

/// What one monitor cost: CPU in cores, medians of all rounds.
#[derive(Clone, Debug, Serialize)]
struct Row {
    monitor: &'static str,
    own_cores: f64,
    programs_cores: f64,
    /// More than without it.
    libvirtd_cores: f64,
    qemu_cores: f64,
    total_cores: f64,
    total_cores_min: f64,
    total_cores_max: f64,
    resident_bytes: u64,
    programs: Vec<watch::Program>,
}

/// The monitors on so many guests.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    guests: usize,
    /// What libvirtd and QEMU's own threads use without a monitor.
    quiet_libvirtd_cores: f64,
    quiet_qemu_cores: f64,
    rows: Vec<Row>,
    agent_to_exporter: Option<f64>,
    agent_to_collectd: Option<f64>,
}

/// One turn of a monitor.
struct Turn {
    own: watch::Use,
    programs: Vec<watch::Program>,
    libvirtd_cores: f64,
    qemu_cores: f64,
}

impl Turn {
    fn programs_cores(&self) -> f64 {
        watch::cores(&self.programs)
    }

    fn total_cores(&self) -> f64 {
        self.own.cores + self.programs_cores() + self.libvirtd_cores + self.qemu_cores
    }
}

/// The agent after a while.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Aged {
    guests: usize,
    minutes: u64,
    /// CPU, in cores.
    own_cores: f64,
    /// The most that was resident, in bytes.
    resident_bytes: u64,
}

impl Aged {
    fn line(&self) -> String {
        let (own, resident) = (millicores(self.own_cores), mib(self.resident_bytes));
        let (most, met) = (mib(RESIDENT_BYTES_MAX), verdict(self.resident_bytes <= RESIDENT_BYTES_MAX));
        let Self { guests, minutes, .. } = self;
        format!(
            "Of an agent of {minutes} minutes, on {guests}: {own} of its own, {resident} MiB resident: aim of {most} MiB {met}\n"
        )
    }
}

/// Measures and prints, number by number, and then the agent alone for so many minutes. Nothing where no lab can be made.
pub(super) fn measure(
    numbers: &[usize],
    rounds: usize,
    turn: Duration,
    minutes: u64,
) -> Result<(Vec<Figures>, Option<Aged>)> {
    let Some(most) = numbers.last() else { return Ok((Vec::new(), None)) };
    if let Err(lack) = lab::check_machine() {
        println!("Real guests are not measured: {lack:#}.");
        return Ok((Vec::new(), None));
    }
    let peers = Peers::fetch();
    let lab = Lab::up(Options::new("benchagent", 1))?;
    let host = lab.hosts()[0].clone();
    let load = LOAD.parse()?;
    let define = |number: usize| lab.define(&host, &GuestOptions::new(&format!("g{number}"), Clone::clone(&load)));
    let guests: Vec<Guest> = (1..=*most).map(define).collect::<Result<_>>()?;
    let mut policy = demo_policy();
    policy.mode = Mode::Observe;
    let brain = BrainSettings { policy, heartbeat_ms: HEARTBEAT_MS };
    let mut stack = Stack::start(lab, brain, &AgentSettings::default())?;
    stack.stop_agent(host.name())?;
    let mut all = Vec::new();
    let mut booted = 0;
    for &number in numbers {
        stack.lab.boot(&guests[booted..number])?;
        booted = number;
        sleep(BOOTED);
        let figures = Host { libvirtd: libvirtd(&stack.lab)?, guests: &guests[..number], turn }
            .turns(&mut stack, &peers, rounds)?;
        print!("\n{}", figures.table());
        all.push(figures);
    }
    let mut aged = None;
    if minutes > 0
        && let Some(agent) = Monitor::start(Kind::Agent, &peers, &mut stack)?
    {
        let used = watch::process(agent.pid()?, Duration::from_secs(60 * minutes), || agent.each_second())?;
        agent.stop()?;
        let now = Aged { guests: *most, minutes, own_cores: used.cores, resident_bytes: used.resident_bytes };
        print!("{}", now.line());
        aged = Some(now);
    }
    Ok((all, aged))
}

/// The libvirtd of the lab's only host.
fn libvirtd(lab: &Lab) -> Result<u32> {
    let is_it = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "libvirtd");
    lab.processes()?.iter().map(|process| process.pid).find(is_it).context("the host has no libvirtd")
}

/// What is watched beside the monitor.
struct Host<'a> {
    libvirtd: u32,
    guests: &'a [Guest],
    turn: Duration,
}

impl Host<'_> {
    fn turns(&self, stack: &mut Stack, peers: &Peers, rounds: usize) -> Result<Figures> {
        let mut turns: [Vec<Turn>; Kind::ALL.len()] = Default::default();
        let mut quiet = vec![self.quiet()?];
        for _ in 0..rounds {
            for (kind, turns) in Kind::ALL.into_iter().zip(&mut turns) {
                let Some(mut turn) = self.take(kind, stack, peers).with_context(|| kind.title())? else { continue };
                let before = quiet[quiet.len() - 1];
                let after = self.quiet()?;
                turn.libvirtd_cores -= (before.0 + after.0) / 2.0;
                turn.qemu_cores -= (before.1 + after.1) / 2.0;
                quiet.push(after);
                turns.push(turn);
            }
        }
        let of_quiet = |value: fn(&(f64, f64)) -> f64| median(&quiet.iter().map(value).collect::<Vec<_>>());
        let rows: Vec<Row> = Kind::ALL.into_iter().zip(&turns).filter_map(|(kind, turns)| row(kind, turns)).collect();
        let total = |kind: Kind| rows.iter().find(|row| row.monitor == kind.title()).map(|row| row.total_cores);
        let ratio = |theirs: Kind| Some(total(Kind::Agent)? / total(theirs)?);
        Ok(Figures {
            guests: self.guests.len(),
            quiet_libvirtd_cores: of_quiet(|quiet| quiet.0).context("no turn")?,
            quiet_qemu_cores: of_quiet(|quiet| quiet.1).context("no turn")?,
            agent_to_exporter: ratio(Kind::Exporter),
            agent_to_collectd: ratio(Kind::Collectd),
            rows,
        })
    }

    /// What libvirtd and QEMU's own threads use without a monitor, in cores.
    fn quiet(&self) -> Result<(f64, f64)> {
        sleep(RECOVER);
        self.others(|| {
            sleep(self.turn);
            Ok(())
        })
        .map(|((), libvirtd, qemu)| (libvirtd, qemu))
    }

    fn take(&self, kind: Kind, stack: &mut Stack, peers: &Peers) -> Result<Option<Turn>> {
        let Some(monitor) = Monitor::start(kind, peers, stack)? else { return Ok(None) };
        let pid = monitor.pid()?;
        watch::process(pid, SETTLE, || monitor.each_second())?;
        let ((own, libvirtd_cores, qemu_cores), programs) =
            (self.others(|| watch::process(pid, self.turn, || monitor.each_second()))?, watch::programs(pid)?);
        monitor.stop()?;
        Ok(Some(Turn { own, programs, libvirtd_cores, qemu_cores }))
    }

    /// Does `work`, and tells what libvirtd and QEMU's own threads used meanwhile, in cores.
    fn others<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, f64, f64)> {
        let qemu_s = || self.guests.iter().map(Guest::emulator_time_s).sum::<Result<f64>>();
        let (began, mut libvirtd, before_s) = (Instant::now(), ProcessTime::watch(self.libvirtd)?, qemu_s()?);
        let done = work()?;
        let (elapsed_s, libvirtd_ns, after_s) = (began.elapsed().as_secs_f64(), libvirtd.run_ns()?, qemu_s()?);
        Ok((done, libvirtd_ns as f64 / 1e9 / elapsed_s, (after_s - before_s) / elapsed_s))
    }
}

fn row(kind: Kind, turns: &[Turn]) -> Option<Row> {
    let values = |value: &dyn Fn(&Turn) -> f64| turns.iter().map(value).collect::<Vec<_>>();
    let totals = values(&Turn::total_cores);
    Some(Row {
        monitor: kind.title(),
        own_cores: median(&values(&|turn| turn.own.cores))?,
        programs_cores: median(&values(&Turn::programs_cores))?,
        libvirtd_cores: median(&values(&|turn| turn.libvirtd_cores))?,
        qemu_cores: median(&values(&|turn| turn.qemu_cores))?,
        total_cores: median(&totals)?,
        total_cores_min: quantile(&totals, 0.0)?,
        total_cores_max: quantile(&totals, 1.0)?,
        resident_bytes: turns.iter().map(|turn| turn.own.resident_bytes).max()?,
        programs: turns.last()?.programs.clone(),
    })
}

impl Figures {
    fn table(&self) -> String {
        let line = |cells: [&str; 8]| {
            let [name, own, programs, libvirtd, qemu, total, range, resident] = cells;
            format!("{name:<28} {own:>7} {programs:>8} {libvirtd:>8} {qemu:>7} {total:>7} {range:>15} {resident:>8}\n")
        };
        let title = format!("{} real {}", self.guests, if self.guests == 1 { "guest" } else { "guests" });
        let mut text = line([&title, "own", "programs", "libvirtd", "QEMUs", "total", "from .. to", "RSS MiB"]);
        for row in &self.rows {
            text += &line([
                row.monitor,
                &millicores(row.own_cores),
                &millicores(row.programs_cores),
                &millicores(row.libvirtd_cores),
                &millicores(row.qemu_cores),
                &millicores(row.total_cores),
                &format!("{} .. {}", millicores(row.total_cores_min), millicores(row.total_cores_max)),
                &mib(row.resident_bytes),
            ]);
        }
        let (libvirtd, qemu) = (millicores(self.quiet_libvirtd_cores), millicores(self.quiet_qemu_cores));
        text += &line(["(they use without a monitor)", "", "", &libvirtd, &qemu, "", "", ""]);
        let ratios = [("exporter", self.agent_to_exporter), ("collectd", self.agent_to_collectd)];
        for (peer, ratio) in ratios {
            if let Some(ratio) = ratio {
                text += &format!("agent / {peer}: {ratio:.2}: aim of less than 1 {}\n", verdict(ratio < 1.0));
            }
        }
        if let Some(agent) = self.rows.iter().find(|row| row.monitor == Kind::Agent.title()) {
            let (resident, most) = (mib(agent.resident_bytes), mib(RESIDENT_BYTES_MAX));
            let met = verdict(agent.resident_bytes <= RESIDENT_BYTES_MAX);
            text += &format!("{resident} MiB of the agent are resident: aim of {most} MiB {met}\n");
        }
        text
    }
}
