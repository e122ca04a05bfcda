//! What the scheduler probe costs, beside an empty program and beside libbpf-tools' `runqlat`.
//!
//! Two threads on one CPU pass a byte to and fro through pipes: the worst case, where nearly all that happens is switches and
//! wake-ups. All candidates take turns, `--rounds` times over, and medians are compared, so that a drift of the machine
//! falls on all alike. In-kernel time is the kernel's own count (BPF run-time statistics, which contain two clock readings per
//! run: an empty program does not cost 0). The slowdown is CPU time per round trip without statistics, attached against detached
//! just after; a round trip is two switches and two wake-ups. One candidate has the second thread in a process of its own that is no
//! VM's: its switches charge what the VM waited to a host task.
//!
//! At the end one drain is timed, in wall time, of as many VMs with as many threads as a large host has: sleeping processes.
//!
//! Run as root: `cargo bench --profile dev -p gnomon-agent --bench probe -- [--rounds N] [--json FILE]`. The profile makes no
//! difference to what runs in the kernel, and `dev` is the one whose eBPF object is built already.

mod drain;

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use clap::Parser;
use gnomon_agent::probe::{Baseline, Mechanism, ProgramCost, Scheduler, SchedulerOptions, StatsEnabled, Tracefs};
use gnomon_common::wire::VmId;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;
use std::fs;
use std::io::{Read, Write, pipe};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Before each measurement: caches and branch predictors get used to the candidate.
const WARM_UP: Duration = Duration::from_millis(50);
/// How long each quantity is measured per round: some 50,000 switches.
const SLICE: Duration = Duration::from_millis(300);
/// How long `runqlat` gets to load its programs before it counts as failed.
const RUNQLAT_START_MAX: Duration = Duration::from_secs(10);
/// `runqlat` in libbpf-tools' Debian package, which is not on every user's PATH.
const RUNQLAT: &str = "/usr/sbin/runqlat";
/// A thread of no VM may cost this much of an empty program.
const NO_VM_RATIO_MAX: f64 = 1.25;
/// A VM's thread may cost this much of `runqlat`.
const VM_RATIO_MAX: f64 = 0.4;

#[derive(Parser)]
#[command(about = "What the scheduler probe costs")]
struct Options {
    /// How often the candidates take turns.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Also write the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Be the workload.
    #[arg(long, hide = true)]
    ping_pong: bool,
    /// Be the workload of two processes.
    #[arg(long, hide = true)]
    ping_pong_apart: bool,
    /// Be the second process of that.
    #[arg(long, hide = true)]
    pong: bool,
    /// Be a process of so many threads that sleep.
    #[arg(long, hide = true)]
    sleepers: Option<usize>,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is attached while the workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    Nothing,
    Empty,
    NoVm,
    Vm,
    VmAndHost,
    ClassicNoVm,
    ClassicVm,
    Runqlat,
    RunqlatPerProcess,
}

impl Candidate {
    const ALL: [Self; 9] = [
        Self::Nothing,
        Self::Empty,
        Self::NoVm,
        Self::Vm,
        Self::VmAndHost,
        Self::ClassicNoVm,
        Self::ClassicVm,
        Self::Runqlat,
        Self::RunqlatPerProcess,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Empty => "empty program",
            Self::NoVm => "probe, threads of no VM",
            Self::Vm => "probe, threads of a VM",
            Self::VmAndHost => "probe, VM and host task",
            Self::ClassicNoVm => "classic, threads of no VM",
            Self::ClassicVm => "classic, threads of a VM",
            Self::Runqlat => "runqlat",
            Self::RunqlatPerProcess => "runqlat -P",
        }
    }
}

/// One candidate's medians.
#[derive(Clone, Debug, Serialize)]
struct Row {
    candidate: &'static str,
    switch_ns: Option<f64>,
    wakeup_ns: Option<f64>,
    attached_cpu_us_per_op: f64,
    slowdown_cpu_us_per_op: f64,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Summary {
    kernel: String,
    rounds: usize,
    rows: Vec<Row>,
    no_vm_to_empty: [Option<f64>; 2],
    vm_to_runqlat: [Option<f64>; 2],
    vm_to_runqlat_per_process: [Option<f64>; 2],
    drain_ms: f64,
    drain_ms_max: f64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let cpus = allowed_cpus()?;
    if options.ping_pong {
        return ping_pong(cpus[cpus.len() - 1]);
    }
    if options.ping_pong_apart {
        return ping_pong_apart(cpus[cpus.len() - 1]);
    }
    if options.pong {
        return pong(cpus[cpus.len() - 1]);
    }
    if let Some(threads) = options.sleepers {
        return drain::sleepers(threads);
    }
    ensure!(cpus.len() > 1, "needs two CPUs: one for the workload, one for the observer");
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    pin(cpus[0])?;
    let together = Workload::start("--ping-pong")?;
    let mut samples = vec![Samples::default(); Candidate::ALL.len()];
    for round in 1..=options.rounds {
        for (candidate, samples) in Candidate::ALL.into_iter().zip(&mut samples) {
            let in_round = || format!("{} in round {round}", candidate.title());
            if candidate != Candidate::VmAndHost {
                measure(candidate, &together, samples).with_context(in_round)?;
                continue;
            }
            // One workload at a time has the CPU.
            together.set_running(false)?;
            Workload::start("--ping-pong-apart")
                .and_then(|apart| measure(candidate, &apart, samples))
                .with_context(in_round)?;
            together.set_running(true)?;
        }
    }
    drop(together);
    let summary = summarise(&samples, options.rounds, drain::drain_ms()?);
    print!("{}", table(&summary));
    if let Some(path) = options.json {
        fs::write(&path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// What the rounds yielded for one candidate.
#[derive(Clone, Debug, Default)]
struct Samples {
    switch_ns: Vec<f64>,
    wakeup_ns: Vec<f64>,
    attached_us: Vec<f64>,
    slowdown_us: Vec<f64>,
}

fn measure(candidate: Candidate, workload: &Workload, samples: &mut Samples) -> Result<()> {
    let Some(attached) = Attached::new(candidate, workload)? else {
        return Ok(());
    };
    if candidate != Candidate::Nothing {
        let stats = StatsEnabled::new()?;
        sleep(WARM_UP);
        let before = attached.cost()?;
        sleep(SLICE);
        let after = attached.cost()?;
        drop(stats);
        samples.switch_ns.extend(ns_per_run(&before, &after, "switch"));
        samples.wakeup_ns.extend(ns_per_run(&before, &after, "wakeup"));
    }
    sleep(WARM_UP);
    let with_us = workload.us_per_op()?;
    drop(attached);
    sleep(WARM_UP);
    let without_us = workload.us_per_op()?;
    samples.attached_us.push(with_us);
    samples.slowdown_us.push(with_us - without_us);
    Ok(())
}

/// In-kernel time per run of the program for an event, between two looks.
fn ns_per_run(before: &[Cost], after: &[Cost], event: &str) -> Option<f64> {
    let of =
        |costs: &[Cost]| costs.iter().find(|cost| cost.program.ends_with(event)).map(|cost| (cost.runs, cost.run_ns));
    let ((runs_before, ns_before), (runs, ns)) = (of(before)?, of(after)?);
    (runs > runs_before).then(|| (ns - ns_before) as f64 / (runs - runs_before) as f64)
}

/// A program's counters, of whichever candidate.
struct Cost {
    program: String,
    runs: u64,
    run_ns: u64,
}

impl From<ProgramCost> for Cost {
    fn from(cost: ProgramCost) -> Self {
        Self { program: cost.program.to_owned(), runs: cost.runs, run_ns: cost.run_ns }
    }
}

/// A candidate's programs, attached while this lives.
enum Attached {
    Nothing,
    Empty(Baseline),
    Probe(Box<Scheduler>),
    Runqlat(Runqlat),
}

impl Attached {
    /// `None` if the candidate is not installed (a runqlat), or what it needs is not mounted (tracefs).
    fn new(candidate: Candidate, workload: &Workload) -> Result<Option<Self>> {
        let mechanism = match candidate {
            Candidate::ClassicNoVm | Candidate::ClassicVm => Mechanism::Tracepoints,
            _ => Mechanism::TaskStorage,
        };
        let probe = || Scheduler::load(SchedulerOptions { mechanism, ..SchedulerOptions::default() }).map(Box::new);
        Ok(Some(match candidate {
            Candidate::Nothing => Self::Nothing,
            Candidate::Empty => Self::Empty(Baseline::load()?),
            Candidate::ClassicNoVm | Candidate::ClassicVm if Tracefs::find().is_err() => return Ok(None),
            Candidate::NoVm | Candidate::ClassicNoVm => Self::Probe(probe()?),
            Candidate::Vm | Candidate::VmAndHost | Candidate::ClassicVm => {
                let mut scheduler = probe()?;
                scheduler.track(VmId(Uuid::from_u128(1)), &[workload.child.id()])?;
                if candidate == Candidate::VmAndHost {
                    // The other process's command gets its column.
                    sleep(WARM_UP);
                    scheduler.drain();
                }
                Self::Probe(scheduler)
            }
            Candidate::Runqlat | Candidate::RunqlatPerProcess => {
                let arguments: &[&str] = if candidate == Candidate::Runqlat { &[] } else { &["-P"] };
                match Runqlat::start(arguments)? {
                    Some(runqlat) => Self::Runqlat(runqlat),
                    None => return Ok(None),
                }
            }
        }))
    }

    fn cost(&self) -> Result<Vec<Cost>> {
        Ok(match self {
            Self::Nothing => Vec::new(),
            Self::Empty(baseline) => baseline.cost()?.into_iter().map(Cost::from).collect(),
            Self::Probe(scheduler) => scheduler.cost()?.into_iter().map(Cost::from).collect(),
            Self::Runqlat(runqlat) => runqlat.cost()?,
        })
    }
}

/// A running `runqlat`.
struct Runqlat(Child);

impl Runqlat {
    fn start(arguments: &[&str]) -> Result<Option<Self>> {
        if !fs::exists(RUNQLAT)? {
            return Ok(None);
        }
        // One report, long after the measurement.
        let child = Command::new(RUNQLAT).args(arguments).args(["600", "1"]).stdout(Stdio::null()).spawn()?;
        let runqlat = Self(child);
        let deadline = Instant::now() + RUNQLAT_START_MAX;
        while runqlat.cost()?.len() < 3 {
            ensure!(Instant::now() < deadline, "{RUNQLAT} has not loaded its programs in {RUNQLAT_START_MAX:?}");
            sleep(WARM_UP);
        }
        // It attaches them after it has loaded the last one.
        sleep(4 * WARM_UP);
        Ok(Some(runqlat))
    }

    /// Of the programs that its file descriptors refer to.
    fn cost(&self) -> Result<Vec<Cost>> {
        let mut costs = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.0.id()))? {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            if let (Some(id), Some(runs), Some(run_ns)) = (field("prog_id:"), field("run_cnt:"), field("run_time_ns:"))
            {
                let program = loaded_programs().flatten().find(|program| u64::from(program.id()) == id);
                let program = program.and_then(|program| program.name_as_str().map(str::to_owned)).unwrap_or_default();
                costs.push(Cost { program, runs, run_ns });
            }
        }
        Ok(costs)
    }
}

impl Drop for Runqlat {
    fn drop(&mut self) {
        // Our own child; if it has ended already there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The workload, in a process of its own so that it can be a VM.
struct Workload {
    child: Child,
}

impl Workload {
    fn start(which: &str) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?).arg(which).spawn()?;
        let workload = Self { child };
        sleep(SLICE);
        ensure!(workload.ops()? > 1_000, "the workload does not run");
        Ok(workload)
    }

    fn set_running(&self, running: bool) -> Result<()> {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = Pid::from_child(&self.child);
        Ok(kill_process(pid, if running { Signal::CONT } else { Signal::STOP })?)
    }

    /// Round trips so far: its first thread sleeps once in each.
    fn ops(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(switches.context("no voluntary_ctxt_switches in /proc/PID/status")?.trim().parse()?)
    }

    /// CPU time of a round trip: unlike wall time, it does not depend on what else the CPU has to do.
    fn us_per_op(&self) -> Result<f64> {
        let (ops, run_ns) = (self.ops()?, self.run_ns()?);
        sleep(SLICE);
        let (ops, run_ns) = (self.ops()? - ops, self.run_ns()? - run_ns);
        ensure!(ops > 0, "the workload has stopped");
        Ok(run_ns as f64 / 1e3 / ops as f64)
    }

    /// CPU time of both threads so far.
    fn run_ns(&self) -> Result<u64> {
        let mut run_ns = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            run_ns += stat.split(' ').next().context("empty schedstat")?.parse::<u64>()?;
        }
        Ok(run_ns)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Our own child; it never ends by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ping_pong(cpu: usize) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    pin(cpu)?;
    let ((mut ping_reader, mut ping), (mut pong_reader, mut pong)) = (pipe()?, pipe()?);
    thread::spawn(move || -> std::io::Result<()> {
        let mut byte = [0];
        loop {
            ping_reader.read_exact(&mut byte)?;
            pong.write_all(&byte)?;
        }
    });
    let mut byte = [0];
    loop {
        ping.write_all(&byte)?;
        pong_reader.read_exact(&mut byte)?;
    }
}

/// As [`ping_pong`], with a process of its own for the second thread.
fn ping_pong_apart(cpu: usize) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    pin(cpu)?;
    let mut other =
        Command::new(std::env::current_exe()?).arg("--pong").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut ping, mut pong_reader) = other.stdin.take().zip(other.stdout.take()).context("no pipes")?;
    let mut byte = [0];
    loop {
        ping.write_all(&byte)?;
        pong_reader.read_exact(&mut byte)?;
    }
}

fn pong(cpu: usize) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    pin(cpu)?;
    // Without the standard library's buffers.
    let (mut ping_reader, mut pong) = (fs::File::open("/dev/stdin")?, fs::File::create("/dev/stdout")?);
    let mut byte = [0];
    // Until the first process is ended.
    while ping_reader.read(&mut byte)? == 1 {
        pong.write_all(&byte)?;
    }
    Ok(())
}

fn allowed_cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

fn pin(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}

fn summarise(samples: &[Samples], rounds: usize, [drain_ms, drain_ms_max]: [f64; 2]) -> Summary {
    let rows: Vec<Row> = Candidate::ALL
        .iter()
        .zip(samples)
        .filter(|(_, samples)| !samples.attached_us.is_empty())
        .map(|(candidate, samples)| Row {
            candidate: candidate.title(),
            switch_ns: median(&samples.switch_ns),
            wakeup_ns: median(&samples.wakeup_ns),
            attached_cpu_us_per_op: median(&samples.attached_us).unwrap_or(f64::NAN),
            slowdown_cpu_us_per_op: median(&samples.slowdown_us).unwrap_or(f64::NAN),
        })
        .collect();
    let cost = |candidate: Candidate| {
        let row = rows.iter().find(|row| row.candidate == candidate.title());
        row.map_or([None; 2], |row| [row.switch_ns, row.wakeup_ns])
    };
    let ratio = |ours: Candidate, theirs: Candidate| {
        let (ours, theirs) = (cost(ours), cost(theirs));
        [0, 1].map(|event| Some(ours[event]? / theirs[event]?))
    };
    Summary {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        rounds,
        no_vm_to_empty: ratio(Candidate::NoVm, Candidate::Empty),
        vm_to_runqlat: ratio(Candidate::Vm, Candidate::Runqlat),
        vm_to_runqlat_per_process: ratio(Candidate::Vm, Candidate::RunqlatPerProcess),
        drain_ms,
        drain_ms_max,
        rows,
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn table(summary: &Summary) -> String {
    let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let mut text = format!("Kernel {}, medians of {} rounds\n", summary.kernel, summary.rounds);
    let line = |cells: [&str; 5]| {
        let [name, switch, wakeup, attached, slowdown] = cells;
        format!("{name:<26} {switch:>10} {wakeup:>10} {attached:>12} {slowdown:>12}\n")
    };
    text += &line(["", "switch ns", "wakeup ns", "CPU us/op", "slowdown us"]);
    for row in &summary.rows {
        let attached = number(Some(row.attached_cpu_us_per_op), 3);
        let slowdown = number(Some(row.slowdown_cpu_us_per_op), 3);
        text += &line([row.candidate, &number(row.switch_ns, 0), &number(row.wakeup_ns, 0), &attached, &slowdown]);
    }
    let ratios = [
        ("no VM / empty", summary.no_vm_to_empty, NO_VM_RATIO_MAX),
        ("VM / runqlat", summary.vm_to_runqlat, VM_RATIO_MAX),
        ("VM / runqlat -P", summary.vm_to_runqlat_per_process, VM_RATIO_MAX),
    ];
    for (name, ratio, aim) in ratios {
        let met = ratio.iter().flatten().all(|&ratio| ratio <= aim);
        let verdict = match ratio {
            [None, None] => "not measured".to_owned(),
            _ if met => format!("aim of {aim} met"),
            _ => format!("aim of {aim} missed"),
        };
        text += &line([name, &number(ratio[0], 2), &number(ratio[1], 2), &verdict, ""]);
    }
    text += &drain::line(summary.drain_ms, summary.drain_ms_max);
    text
}
