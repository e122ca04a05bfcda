//! How long a VM waits for a CPU beside others, by how much they want: what the simulator's model of contention is fitted to.
//!
//! One lab host whose guests share all CPUs of the machine: a *production* that wants 0.2 and 0.6 of a core in turns, a *shadow* of it (its
//! quota a tenth of a core, half of which it wants), and others that want more from step to step, up to twice what there is. For each step the kernel's
//! `schedstat` says how long the vCPUs of both ran and waited. A wait for run is fitted as `a * u^b`, where `u` is what the others want as a share of all
//! CPUs, by least squares of the logarithms. Steps in which the shadow's quota held it back for more than a hundredth are left out, as they are in the brain.
//!
//! Run as root by `cargo xtask bench contention`, on a machine that does nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;
use xtask::lab::{self, Guest, GuestOptions, Lab, Options, Truth};

#[derive(Parser)]
#[command(about = "How long VMs wait for CPUs beside others, and the simulator's fit to it")]
struct Arguments {
    /// Also write the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Guests beside the two that are watched.
const OTHERS: usize = 4;
/// What each of the others wants, step by step, in cores.
const LEVELS: [f64; 10] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0];
/// What the production wants in each half of a step, in cores.
const PRODUCTION: [f64; 2] = [0.2, 0.6];
const SHADOW: f64 = 0.05;
const SHADOW_QUOTA: f64 = 0.1;
/// While guests settle.
const LEAD_S: u64 = 15;
/// Half a step, and what of it is left out at both of its ends.
const HALF_S: u64 = 12;
const EDGE: Duration = Duration::from_millis(1500);
/// A half of a step in which a quota held the shadow back for more than this tells of the quota.
const THROTTLED_MAX: f64 = 0.01;

/// What one guest's vCPUs ran and waited since they were born, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Schedstat {
    run_ns: u64,
    wait_ns: u64,
}

/// One half of a step.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// What the others want, as a share of all CPUs.
    others: f64,
    production_wants_cores: f64,
    production_run_cores: f64,
    production_wait_cores: f64,
    shadow_run_cores: f64,
    shadow_wait_cores: f64,
    /// Share of the time in which its quota held the shadow back.
    shadow_throttled: f64,
}

/// `wait / run = a * u^b`.
#[derive(Clone, Copy, Debug, Serialize)]
struct Fit {
    a: f64,
    b: f64,
    /// Standard deviation of what is left, of the ratio's natural logarithm.
    residual: f64,
    points: usize,
}

#[derive(Debug, Serialize)]
struct Figures {
    cpus: usize,
    rows: Vec<Row>,
    production: Option<Fit>,
    shadow: Option<Fit>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    lab::check_machine()?;
    let cpus = thread::available_parallelism().context("no CPUs")?.get();
    let lab = Lab::up(Options::new("benchwait", 1))?;
    let host = lab.hosts()[0].clone();
    let others = script(LEVELS.map(|level| (2 * HALF_S, level)));
    let production = LEVELS.map(|_| format!("{HALF_S}@{},{HALF_S}@{}", PRODUCTION[0], PRODUCTION[1])).join(",");
    let mut options = vec![
        GuestOptions::new("production", format!("script:{LEAD_S}@0.1,{production}").parse()?),
        GuestOptions::new("shadow", format!("constant:{SHADOW}").parse()?),
    ];
    options[1].quota_cores = Some(SHADOW_QUOTA);
    for number in 1..=OTHERS {
        options.push(GuestOptions::new(&format!("other{number}"), others.parse()?));
    }
    let guests = options.iter().map(|options| lab.define(&host, options)).collect::<Result<Vec<_>>>()?;
    // The shadow takes its time to boot, and the production's schedule is the one that is followed.
    let (first, others) = guests.split_first().context("no guests")?;
    let (shadow, others) = others.split_first().context("no guests")?;
    for turn in [std::slice::from_ref(shadow), others, std::slice::from_ref(first)] {
        lab.boot(turn)?;
    }
    let truths = guests.iter().map(|guest| lab.truth(guest.name())).collect::<Result<Vec<_>>>()?;
    let rows = watch(&guests, &truths, cpus)?;
    let figures = Figures {
        cpus,
        production: fit(rows.iter().map(|row| (row.others, row.production_wait_cores / row.production_run_cores))),
        shadow: fit(rows
            .iter()
            .filter(|row| row.shadow_throttled <= THROTTLED_MAX)
            .map(|row| (row.others, row.shadow_wait_cores / row.shadow_run_cores))),
        rows,
    };
    print!("{}", figures.table());
    if let Some(path) = arguments.json {
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        serde_json::to_writer_pretty(file, &figures)?;
    }
    lab.down()
}

fn script(steps: [(u64, f64); LEVELS.len()]) -> String {
    let steps = steps.map(|(length_s, level)| format!("{length_s}@{level}")).join(",");
    format!("script:{LEAD_S}@0.1,{steps}")
}

/// Follows the production's schedule, half by half.
fn watch(guests: &[Guest], truths: &[Truth], cpus: usize) -> Result<Vec<Row>> {
    let [production, shadow] = [&guests[0], &guests[1]];
    let mut rows = Vec::new();
    for half in 0..2 * LEVELS.len() as u64 {
        let from = truths[0].started_at + Duration::from_secs(LEAD_S + half * HALF_S) + EDGE;
        let to = from + Duration::from_secs(HALF_S) - 2 * EDGE;
        sleep_until(from)?;
        let read = || Ok::<_, anyhow::Error>((schedstat(production)?, schedstat(shadow)?, throttled_s(shadow)?));
        let (before, began) = (read()?, SystemTime::now());
        sleep_until(to)?;
        let (after, elapsed_s) = (read()?, began.elapsed()?.as_secs_f64());
        let cores = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1e9 / elapsed_s;
        let middle = began + Duration::from_secs_f64(elapsed_s / 2.0);
        let wanted: f64 = truths[2..].iter().map(|truth| truth.level_at(middle)).sum();
        let row = Row {
            others: wanted / cpus as f64,
            production_wants_cores: truths[0].level_at(middle),
            production_run_cores: cores(before.0.run_ns, after.0.run_ns),
            production_wait_cores: cores(before.0.wait_ns, after.0.wait_ns),
            shadow_run_cores: cores(before.1.run_ns, after.1.run_ns),
            shadow_wait_cores: cores(before.1.wait_ns, after.1.wait_ns),
            shadow_throttled: (after.2 - before.2) / elapsed_s,
        };
        eprintln!("half {} of {}: the others want {:.2} of all", half + 1, 2 * LEVELS.len(), row.others);
        rows.push(row);
    }
    Ok(rows)
}

fn sleep_until(time: SystemTime) -> Result<()> {
    let left = time.duration_since(SystemTime::now());
    thread::sleep(left.ok().context("the machine is too busy: a step was missed")?);
    Ok(())
}

/// What the threads that execute a guest's vCPUs ran and waited.
fn schedstat(guest: &Guest) -> Result<Schedstat> {
    let mut sum = Schedstat::default();
    let mut found = 0;
    for tid in guest.threads()? {
        let name = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
        if !name.starts_with("CPU ") {
            continue;
        }
        let text = fs::read_to_string(format!("/proc/{tid}/schedstat"))?;
        let mut words = text.split_whitespace().map(str::parse::<u64>);
        let mut next = || words.next().context("empty schedstat")?.context("a schedstat that is no number");
        sum.run_ns += next()?;
        sum.wait_ns += next()?;
        found += 1;
    }
    ensure!(found > 0, "{} has no vCPU", guest.name());
    Ok(sum)
}

/// For how long a guest's quota has held it back, in seconds.
fn throttled_s(guest: &Guest) -> Result<f64> {
    let file = guest.cgroup_dir("cpu")?.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let stat: BTreeMap<&str, f64> =
        text.lines().filter_map(|line| line.split_once(' ')).filter_map(|(k, v)| Some((k, v.parse().ok()?))).collect();
    let version_1 = stat.get("throttled_time").map(|ns| ns / 1e9);
    let version_2 = stat.get("throttled_usec").map(|us| us / 1e6);
    version_1.or(version_2).with_context(|| format!("{} tells no throttled time", file.display()))
}

/// Least squares of `ln(ratio) = ln a + b ln u`.
fn fit(points: impl Iterator<Item = (f64, f64)>) -> Option<Fit> {
    let points: Vec<(f64, f64)> =
        points.filter(|(u, ratio)| *u > 0.0 && *ratio > 0.0).map(|(u, ratio)| (u.ln(), ratio.ln())).collect();
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let b = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>()
        / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
    let ln_a = y - b * x;
    let left: f64 = points.iter().map(|point| (point.1 - ln_a - b * point.0).powi(2)).sum();
    let residual = (left / (count - 2.0)).sqrt();
    (points.len() > 2).then_some(Fit { a: ln_a.exp(), b, residual, points: points.len() })
}

impl Figures {
    fn table(&self) -> String {
        let mut text = format!(
            "{} CPUs; production and shadow: cores run, cores waited, wait / run\n{:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9}\n",
            self.cpus, "others", "wants", "run", "waited", "ratio", "run", "waited", "ratio", "throttled"
        );
        for row in &self.rows {
            text += &format!(
                "{:>8.2} {:>6.2} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>9.4}\n",
                row.others,
                row.production_wants_cores,
                row.production_run_cores,
                row.production_wait_cores,
                row.production_wait_cores / row.production_run_cores,
                row.shadow_run_cores,
                row.shadow_wait_cores,
                row.shadow_wait_cores / row.shadow_run_cores,
                row.shadow_throttled,
            );
        }
        for (who, fit) in [("production", self.production), ("shadow", self.shadow)] {
            text += &match fit {
                Some(Fit { a, b, residual, points }) => {
                    format!(
                        "{who}: wait / run = {a:.4} * u^{b:.3}, a factor of {:.2} either way ({points} points)\n",
                        residual.exp()
                    )
                }
                None => format!("{who}: too few points\n"),
            };
        }
        text
    }
}
