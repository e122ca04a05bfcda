//! How many VMs one brain takes on two cores, everything on.
//!
//! The brain is a real process of the release build with its default policy in mode `auto`: it decodes, syncs to SQLite, keeps history,
//! learns, forecasts, plans, and sends commands. This process is the load: agents over real QUIC with mutual TLS, one for each
//! host, whose windows are spread evenly over the window's length. Both share the same two cores, so the generator's CPU
//! takes from the brain's latency; it is shown, and so is that of everything else on the machine. Nothing is subtracted.
//!
//! Load is raised point by point on the same brain. Hosts that join a point first deliver their past (`--history-hours`) on the backlog
//! stream, as after an outage: so history, fits and forecasts are warm, and what it takes to get there is told as "warm-up". A
//! point is measured once the fits are caught up, or after a while if they cannot be. Latency is counted from the moment a report is handed
//! to QUIC: to its acknowledgement, and, for each VM that begins to surge in it, to the command that grows that VM. What is not answered within
//! two seconds after the measurement counts as lost.
//!
//! `cargo bench --profile release -p gnomon-brain --bench ingest -- [--points VMS,…] [--json FILE]`

mod agent;
mod brain;
mod figures;
mod fleet;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::{AGENTS_PER_SOCKET, Load};
use anyhow::{Context, Result, bail, ensure};
use brain::Brain;
use clap::Parser;
use figures::{Cores, CpuTimes, Seen, Spread, datagrams_dropped, kib_line};
use fleet::Host;
use gnomon_brain::ca::{Ca, Lifetime};
use gnomon_brain::clock;
use gnomon_common::wire::AgentEpoch;
use quinn::Endpoint;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Brain and generator together get so many cores.
const CORES: usize = 2;
/// What has to be met: so many VMs…
const VMS_REQUIRED: usize = 20_000;
/// …with less CPU than this for the brain, in cores…
const BRAIN_CORES_MAX: f64 = 1.5;
/// …and a 99th percentile from window to command below this, in milliseconds.
const COMMAND_P99_MAX_MS: f64 = 500.0;
/// What is aimed at.
const VMS_AIM: usize = 100_000;
/// Beyond the last point load grows by this factor until something gives.
const GROWTH: f64 = 1.5;
/// Hosts that have not delivered their past by then never will.
const WARM_UP_MAX: Duration = Duration::from_secs(300);
/// Fits that may be under way when a point is measured: at any moment some VM is due.
const FITS_IDLE: f64 = 4.0;
/// How long a point waits for the fits to catch up.
const FITS_WAIT_MAX: Duration = Duration::from_secs(20);
/// What is not answered by then is lost.
const GRACE: Duration = Duration::from_secs(2);
/// Below this the next point could drive the machine into swapping.
const MEMORY_SPARE_BYTES: u64 = 2 << 30;

#[derive(Parser)]
#[command(about = "How many VMs one brain takes on two cores", max_term_width = 100)]
struct Options {
    /// VMs at each point, rising
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000, 20_000, 50_000, 100_000])]
    points: Vec<usize>,
    /// VMs on each host
    #[arg(long, default_value_t = 100)]
    vms_per_host: usize,
    /// Length of a window, in seconds
    #[arg(long, default_value_t = 10)]
    window_s: u64,
    /// How long each point is measured, in windows
    #[arg(long, default_value_t = 2)]
    windows: u32,
    /// How much of the past each host delivers first, in hours
    #[arg(long, default_value_t = 6)]
    history_hours: u64,
    /// Share of the VMs that begin to surge in each window
    #[arg(long, default_value_t = 0.01)]
    surge_share: f64,
    /// Begin no further point after this many seconds
    #[arg(long, default_value_t = 240)]
    budget_s: u64,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// The figures of one point.
#[derive(Clone, Debug, Serialize)]
struct Point {
    vms: usize,
    hosts: usize,
    /// From the first new host's connection to the last one's delivered past.
    warm_up_s: f64,
    measured_s: f64,
    cores: Cores,
    brain_resident_bytes: u64,
    brain_resident_bytes_per_vm: f64,
    reports: u64,
    report_bytes_per_vm: f64,
    store_bytes_per_s: f64,
    fits_waiting: f64,
    acknowledged: Option<Spread>,
    commanded: Option<Spread>,
    commands_per_s: f64,
    /// By full receive buffers, of all sockets here: QUIC sends them again.
    datagrams_dropped: u64,
    reports_lost: u64,
    surges_without_command: u64,
    /// How late the generator sent its reports.
    sent_late: Option<Spread>,
    /// What was not met.
    violations: Vec<String>,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Summary {
    kernel: String,
    cores: usize,
    window_s: u64,
    vms_per_host: usize,
    history_hours: u64,
    surge_share: f64,
    disk_sync: Option<Spread>,
    points: Vec<Point>,
    /// The most VMs at which everything was met, up to the first point at which something was not.
    vms_met: usize,
    /// Why it is not more.
    ended: String,
    required: bool,
    aim: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(!options.points.is_empty() && options.points.is_sorted(), "--points must rise");
    ensure!(options.vms_per_host > 0 && options.window_s > 0 && options.windows > 0, "0 measures nothing");
    pin_to_cores()?;
    // On the disk that builds go to: a store in memory would sync nothing.
    let dir = tempfile::Builder::new().prefix("ingest-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(CORES).enable_all().build()?;
    let summary = runtime.block_on(measure(&options, dir.path()))?;
    runtime.shutdown_background();
    println!("{}", verdict(&summary));
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Restricts this process, and so the brain, to the first [`CORES`] of the cores that it may use.
fn pin_to_cores() -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let mut first = CpuSet::new();
    let cores = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).take(CORES).map(|cpu| first.set(cpu)).count();
    ensure!(cores == CORES, "needs {CORES} cores, has {cores}");
    Ok(sched_setaffinity(None, &first)?)
}

async fn measure(options: &Options, dir: &Path) -> Result<Summary> {
    let begun = Instant::now();
    let disk_sync = disk_sync(dir)?;
    let vms_most = options.points.last().copied().unwrap_or(0).max(VMS_AIM) * 8;
    let brain = Brain::start(&dir.join("brain"), vms_most.div_ceil(options.vms_per_host))?;
    let window = Duration::from_secs(options.window_s);
    let load = Load::new(brain.agents, window, Duration::from_secs(options.history_hours * 3600), options.surge_share);
    let epoch = AgentEpoch(clock::now().unix_ms() / 1000);
    let ca = brain.ca()?;
    let mut fleet =
        Fleet { options, brain, ca, epoch, load: Arc::new(load), agents: JoinSet::new(), sockets: Vec::new() };
    println!("{}", header());
    let (mut points, mut vms_met) = (Vec::<Point>::new(), 0);
    let mut planned = options.points.iter().copied();
    let ended = loop {
        let last = points.last().map_or(0, |point| point.vms);
        let vms = match planned.next() {
            Some(vms) => vms,
            None => (last as f64 * GROWTH) as usize,
        };
        if let Some(first_bad) = points.iter().find(|point| !point.violations.is_empty())
            && vms > options.points.last().copied().unwrap_or(0)
        {
            break format!("what was measured at {} VMs: {}", first_bad.vms, first_bad.violations.join(", "));
        }
        if begun.elapsed() > Duration::from_secs(options.budget_s) {
            break format!("time: more than {last} VMs were not tried (--budget-s)");
        }
        if let Some(lack) = memory_lack(points.last(), vms)? {
            break format!("memory: more than {last} VMs were not tried, {lack}");
        }
        match fleet.point(vms).await {
            Ok(point) => {
                println!("{}", row(&point));
                if point.violations.is_empty() && points.iter().all(|point| point.violations.is_empty()) {
                    vms_met = point.vms;
                }
                points.push(point);
            }
            // An overloaded brain loses agents: that is an answer, too.
            Err(error) if !points.is_empty() => break format!("what happened on the way to {vms} VMs: {error:#}"),
            Err(error) => return Err(error),
        }
    };
    Ok(Summary {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cores: CORES,
        window_s: options.window_s,
        vms_per_host: options.vms_per_host,
        history_hours: options.history_hours,
        surge_share: options.surge_share,
        disk_sync,
        required: vms_met >= VMS_REQUIRED,
        aim: vms_met >= VMS_AIM,
        points,
        vms_met,
        ended,
    })
}

/// The brain and the agents on it.
struct Fleet<'a> {
    options: &'a Options,
    brain: Brain,
    ca: Ca,
    epoch: AgentEpoch,
    load: Arc<Load>,
    agents: JoinSet<Result<()>>,
    sockets: Vec<Endpoint>,
}

impl Fleet<'_> {
    /// Raises load to so many VMs and measures.
    async fn point(&mut self, vms: usize) -> Result<Point> {
        let warm_up_s = self.grow(vms.div_ceil(self.options.vms_per_host)).await?;
        let window = self.load.window;
        // Every host has sent a live window before the first one counts.
        sleep(window).await;
        let patience = Instant::now() + FITS_WAIT_MAX;
        while self.fits_waiting()? > FITS_IDLE && Instant::now() < patience {
            sleep(Duration::from_millis(500)).await;
        }
        let pid = self.brain.pid();
        let (store_before, dropped_before) = (self.brain.store_bytes(), datagrams_dropped()?);
        let before = CpuTimes::read(pid)?;
        self.load.collector.begin();
        let started = Instant::now();
        tokio::select! {
            () = sleep(window * self.options.windows) => {}
            ended = self.agents.join_next() => bail!(failure(ended)),
        }
        self.load.collector.end();
        let measured_s = started.elapsed().as_secs_f64();
        let cores = CpuTimes::read(pid)?.since(&before);
        let store_bytes_per_s = self.brain.store_bytes().saturating_sub(store_before) as f64 / measured_s;
        sleep(GRACE).await;
        self.brain.check()?;
        let seen = self.load.collector.seen();
        let hosts = self.agents.len();
        let vms = hosts * self.options.vms_per_host;
        let resident = kib_line(&format!("/proc/{pid}/status"), "VmRSS")?;
        let mut point = Point {
            vms,
            hosts,
            warm_up_s,
            measured_s,
            cores,
            brain_resident_bytes: resident,
            brain_resident_bytes_per_vm: resident as f64 / vms as f64,
            reports: seen.reports,
            report_bytes_per_vm: seen.report_bytes as f64
                / (seen.reports.max(1) as f64 * self.options.vms_per_host as f64),
            store_bytes_per_s,
            fits_waiting: self.fits_waiting()?,
            commands_per_s: (seen.commanded_s.len() as u64 + seen.other_commands) as f64 / measured_s,
            datagrams_dropped: datagrams_dropped()?.saturating_sub(dropped_before),
            reports_lost: seen.reports - seen.acknowledged_s.len() as u64,
            surges_without_command: seen.surges - seen.commanded_s.len() as u64,
            acknowledged: Spread::of(seen.acknowledged_s.clone()),
            commanded: Spread::of(seen.commanded_s.clone()),
            sent_late: Spread::of(seen.sent_late_s.clone()),
            violations: Vec::new(),
        };
        point.violations = violations(&point, &seen);
        Ok(point)
    }

    /// Lets hosts join until there are so many; returns how long it took until the last one's past was taken, in seconds.
    async fn grow(&mut self, hosts: usize) -> Result<f64> {
        let started = Instant::now();
        let (ready, mut all_ready) = mpsc::channel(1);
        while self.agents.len() < hosts {
            let number = self.agents.len();
            if number.is_multiple_of(AGENTS_PER_SOCKET) {
                self.sockets.push(agent::socket()?);
            }
            let socket = self.sockets[number / AGENTS_PER_SOCKET].clone();
            let host = Host::new(number, self.options.vms_per_host, self.epoch);
            let identity = self.ca.issue_agent(&host.id, Lifetime::days(1))?;
            // The golden ratio's multiples spread evenly however many there are.
            let phase = self.load.window.mul_f64((number as f64 * 0.618_033_988_749_895).fract());
            self.agents.spawn(agent::run(socket, identity, host, phase, self.load.clone(), ready.clone()));
        }
        drop(ready);
        tokio::select! {
            // Each agent drops its end when it is ready.
            ended = timeout(WARM_UP_MAX, all_ready.recv()) => {
                ensure!(ended.is_ok(), "the past was not taken within {WARM_UP_MAX:?}");
            }
            ended = self.agents.join_next() => bail!(failure(ended)),
        }
        Ok(started.elapsed().as_secs_f64())
    }

    fn fits_waiting(&self) -> Result<f64> {
        self.brain.metric("gnomon_brain_fits_waiting")
    }
}

fn failure(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.into(),
        Some(Ok(Ok(()))) | None => anyhow::anyhow!("an agent ended without a word"),
    }
}

/// What was not met at a point.
fn violations(point: &Point, seen: &Seen) -> Vec<String> {
    let mut violations = Vec::new();
    if point.cores.brain >= BRAIN_CORES_MAX {
        violations.push(format!("the brain used {:.2} cores", point.cores.brain));
    }
    match point.commanded {
        Some(commanded) if commanded.p99_ms < COMMAND_P99_MAX_MS => {}
        Some(commanded) => violations.push(format!("p99 from window to command was {:.0} ms", commanded.p99_ms)),
        None => violations.push("no surge was answered".to_owned()),
    }
    if point.reports_lost > 0 {
        violations.push(format!("{} of {} reports were not acknowledged", point.reports_lost, seen.reports));
    }
    if point.surges_without_command > 0 {
        violations.push(format!("{} of {} surges got no command", point.surges_without_command, seen.surges));
    }
    violations
}

/// Whether the machine's memory does not suffice for the next point, judged by the last one.
fn memory_lack(last: Option<&Point>, vms: usize) -> Result<Option<String>> {
    let Some(last) = last else { return Ok(None) };
    let more = vms.saturating_sub(last.vms) as f64 * last.brain_resident_bytes_per_vm;
    let available = kib_line("/proc/meminfo", "MemAvailable")?;
    let lacks = more as u64 + MEMORY_SPARE_BYTES > available;
    Ok(lacks
        .then(|| format!("{} more would take {}, and {} is free", vms - last.vms, gib(more), gib(available as f64))))
}

/// How long this disk takes to sync a page.
fn disk_sync(dir: &Path) -> Result<Option<Spread>> {
    use std::io::Write;
    let mut file = fs::File::create(dir.join("sync"))?;
    let mut once = || -> Result<f64> {
        file.write_all(&[1; 4096])?;
        let started = Instant::now();
        file.sync_data()?;
        Ok(started.elapsed().as_secs_f64())
    };
    Ok(Spread::of((0..50).map(|_| once()).collect::<Result<_>>()?))
}

fn header() -> String {
    format!(
        "{:>8} {:>6} {:>8} {:>7} {:>7} {:>7} {:>9} {:>9} {:>15} {:>15} {:>8} {:>6}",
        "VMs",
        "hosts",
        "warm-up",
        "brain",
        "gener.",
        "others",
        "RSS",
        "KiB/VM",
        "ack p50/p99 ms",
        "cmd p50/p99 ms",
        "cmd/s",
        "lost"
    )
}

fn row(point: &Point) -> String {
    let pair = |spread: Option<Spread>| spread.map_or("-".to_owned(), |s| format!("{:.1} / {:.1}", s.p50_ms, s.p99_ms));
    let Cores { brain, generator, others } = point.cores;
    let mut text = format!(
        "{:>8} {:>6} {:>6.1} s {:>7.3} {:>7.3} {:>7.3} {:>9} {:>9.1} {:>15} {:>15} {:>8.1} {:>6}",
        point.vms,
        point.hosts,
        point.warm_up_s,
        brain,
        generator,
        others,
        gib(point.brain_resident_bytes as f64),
        point.brain_resident_bytes_per_vm / 1024.0,
        pair(point.acknowledged),
        pair(point.commanded),
        point.commands_per_s,
        point.reports_lost + point.surges_without_command,
    );
    if let Some(late) = point.sent_late.filter(|late| late.p99_ms > 100.0) {
        text += &format!("\n         the generator was late: p99 {:.0} ms", late.p99_ms);
    }
    if point.datagrams_dropped > 0 {
        text += &format!("\n         {} datagrams found a full receive buffer", point.datagrams_dropped);
    }
    if point.fits_waiting > FITS_IDLE {
        text += &format!("\n         fits had not caught up: {} wait", point.fits_waiting);
    }
    for violation in &point.violations {
        text += &format!("\n         NOT MET: {violation}");
    }
    text
}

fn verdict(summary: &Summary) -> String {
    let met = |met: bool| if met { "met" } else { "MISSED" };
    let sync = summary.disk_sync.map_or(f64::NAN, |sync| sync.p50_ms);
    let bytes = summary.points.last().map_or(0.0, |point| point.report_bytes_per_vm);
    format!(
        "\nCores: of {CORES} shared by brain and generator; \"others\" is what else ran on the machine. Disk: {sync:.2} ms to sync a page.\n\
         A VM's window takes {bytes:.0} bytes on the wire and in the store.\n\
         Everything was met up to {} VMs; it ends here because of {}\n\
         {VMS_REQUIRED} VMs with less than {BRAIN_CORES_MAX} cores and p99 below {COMMAND_P99_MAX_MS} ms: {}. Aim of {VMS_AIM} VMs: {}.",
        summary.vms_met,
        summary.ended,
        met(summary.required),
        met(summary.aim),
    )
}

fn gib(bytes: f64) -> String {
    format!("{:.2} GiB", bytes / f64::from(1 << 30))
}
