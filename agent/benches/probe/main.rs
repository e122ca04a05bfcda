//! What the probes cost, beside an empty program and beside what others offer for the same job.
//!
//! *Switches*: two threads on one CPU pass a byte to and fro ([`switches`]); peers are libbpf-tools' `runqlat` and bpftrace's `@[tid] = count()`.
//! *Requests*: a process reads from a disk past the page cache ([`requests`]); the peer is libbpf-tools' `biolatency`. *Packets* and
//! *reclaims*: a process sends some to itself and some to nobody, and reads more than it may have in memory ([`events`]); the peers are bpftrace programs
//! that do the same. *Guest*: a real guest computes with the scheduler
//! probe and without it ([`guest`]). *Drain*: one of as many VMs as a large host has ([`drain`]).
//!
//! All candidates take turns, `--rounds` times over, and medians are compared, so that a drift of the machine falls on all alike. In-kernel
//! time is the kernel's own count (BPF run-time statistics, which contain two clock readings per run: an empty program does not cost 0). The
//! slowdown is CPU time per operation without statistics, attached against detached just after.
//!
//! Run as root: `cargo bench --profile dev -p gnomon-agent --bench probe -- [--rounds N] [--pairs N] [--json FILE]`. The profile makes no
//! difference to what runs in the kernel, and `dev` is the one whose eBPF object is built already.

mod attached;
mod drain;
mod events;
mod guest;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/programs.rs"]
mod programs;
mod requests;
#[path = "../common/spread.rs"]
mod spread;
mod switches;
mod workload;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gnomon_agent::probe::Tracefs;
use serde::Serialize;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;
use std::{env, fs};

use attached::Attached;
use programs::Cost;
use workload::Workload;

/// Before each measurement: caches and branch predictors get used to the candidate.
const WARM_UP: Duration = Duration::from_millis(50);
/// How long each quantity is measured per round: some 50,000 switches.
const SLICE: Duration = Duration::from_millis(300);

#[derive(Parser)]
#[command(about = "What the probes cost")]
struct Options {
    /// How often the candidates take turns.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How often a guest computes with the probe and without it; 0 starts none.
    #[arg(long, default_value_t = 9)]
    pairs: usize,
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
    /// Be the workload of packets.
    #[arg(long, hide = true)]
    echoes: bool,
    /// Be the workload of packets that are dropped.
    #[arg(long, hide = true)]
    datagrams_to_nobody: bool,
    /// Be the workload that reads this file in a control group.
    #[arg(long, hide = true, requires = "group")]
    reclaim: Option<PathBuf>,
    /// That control group's directory.
    #[arg(long, hide = true)]
    group: Option<PathBuf>,
    /// Be the workload that reads this file.
    #[arg(long, hide = true)]
    read: Option<PathBuf>,
    /// Be a process of so many threads that sleep, once it has written a block.
    #[arg(long, hide = true)]
    sleepers: Option<usize>,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Summary {
    kernel: String,
    rounds: usize,
    switches: switches::Summary,
    /// None where there is no disk.
    requests: Option<requests::Summary>,
    queues: Option<events::Summary>,
    drops: Option<events::Summary>,
    /// None where there are no control groups for memory.
    reclaims: Option<events::Summary>,
    /// None where no guest can be started, or none was wanted.
    guest: Option<guest::Summary>,
    drain: drain::Summary,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let cpus = workload::allowed_cpus()?;
    let last = cpus[cpus.len() - 1];
    if options.ping_pong {
        return workload::ping_pong(last, || Ok(()));
    }
    if options.ping_pong_apart {
        return workload::ping_pong_apart(last);
    }
    if options.pong {
        return workload::pong(last);
    }
    if options.echoes {
        return events::echoes(last);
    }
    if options.datagrams_to_nobody {
        return events::datagrams_to_nobody(last);
    }
    if let Some((file, group)) = options.reclaim.zip(options.group) {
        return events::reclaim(last, &file, &group);
    }
    if let Some(file) = options.read {
        return requests::read(&file, last);
    }
    if let Some(threads) = options.sleepers {
        return drain::sleepers(threads);
    }
    enter_tracefs();
    ensure!(cpus.len() > 1, "needs two CPUs: one for the workload, one for the observer");
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    // First, and on all CPUs: a guest needs more than one to boot.
    let guest = guest::measure(options.pairs, last)?;
    workload::pin(cpus[0])?;
    let switches = switches::measure(options.rounds)?;
    let requests = requests::measure(options.rounds)?;
    let queues = events::measure(events::Job::Queues, options.rounds)?;
    let drops = events::measure(events::Job::Drops, options.rounds)?;
    let reclaims = events::measure(events::Job::Reclaims, options.rounds)?;
    let drain = drain::measure()?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let summary = Summary { kernel, rounds: options.rounds, switches, requests, queues, drops, reclaims, guest, drain };
    println!("Kernel {}, medians of {} rounds", summary.kernel, summary.rounds);
    print!("{}", summary.switches.table());
    if let Some(requests) = &summary.requests {
        print!("\n{}", requests.table());
    }
    for events in [&summary.queues, &summary.drops, &summary.reclaims].into_iter().flatten() {
        print!("\n{}", events.table());
    }
    if let Some(guest) = &summary.guest {
        print!("\n{}", guest.line());
    }
    print!("{}", summary.drain.line());
    if let Some(path) = options.json {
        fs::write(&path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Becomes the same program where tracefs is mounted, if it is not here: bpftrace needs it. That mount is nobody else's, and goes with it. Where
/// it cannot be had those peers are left out.
fn enter_tracefs() {
    const ENTERED: &str = "GNOMON_BENCH_HAS_ENTERED_TRACEFS";
    const SCRIPT: &str = "mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\" \"$@\"";
    if Tracefs::find().is_err()
        && env::var_os(ENTERED).is_none()
        && let Ok(program) = env::current_exe()
    {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", SCRIPT]).arg(program).args(env::args_os().skip(1)).env(ENTERED, "1");
        eprintln!("tracefs is not mounted here, and cannot be for this benchmark alone: {}", unshare.exec());
    }
}

/// What one round says of one candidate.
struct Measured {
    /// The programs' counters at the begin and at the end of a slice of time.
    programs: [Vec<Cost>; 2],
    /// CPU time of an operation of the workload, and by how much more that is than without the candidate, in microseconds.
    attached_us: f64,
    slowdown_us: f64,
}

fn measure(attached: Attached, workload: &mut Workload) -> Result<Measured> {
    let mut programs = [Vec::new(), Vec::new()];
    if !matches!(attached, Attached::Nothing) {
        let stats = gnomon_agent::probe::StatsEnabled::new()?;
        sleep(WARM_UP);
        let before = attached.cost()?;
        sleep(SLICE);
        programs = [before, attached.cost()?];
        drop(stats);
    }
    sleep(WARM_UP);
    let attached_us = workload.us_per_op()?;
    drop(attached);
    sleep(WARM_UP);
    let slowdown_us = attached_us - workload.us_per_op()?;
    Ok(Measured { programs, attached_us, slowdown_us })
}

impl Measured {
    /// What the programs that `which` selects did meanwhile: how often they ran, and for how long, in nanoseconds.
    fn spent(&self, which: impl Fn(&str) -> bool) -> (u64, u64) {
        let [before, after] = self.programs.each_ref().map(|costs| {
            let selected = costs.iter().filter(|cost| which(&cost.program));
            selected.fold((0, 0), |(runs, run_ns), cost| (runs + cost.runs, run_ns + cost.run_ns))
        });
        (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1))
    }
}

/// A figure in a table.
fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}
