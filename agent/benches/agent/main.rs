//! What the agent costs a hypervisor, beside two exporters of libvirt's figures on the same guests at the same interval.
//!
//! *Real guests* ([`guests`]): a lab host with a libvirtd of its own and 1, 5 and 10 real guests. The agent, Debian's `prometheus-libvirt-exporter` scraped once a
//! second and collectd's virt plugin take turns at an interval of one second, with nothing before, between and after. What counts is CPU time: of the monitor itself, of the
//! eBPF programs that it has loaded, and what it causes: libvirtd and QEMU's own threads (those that execute vCPUs left out) by how much more they use than in the
//! turns of nothing before and after. The agent sends what it measures to a brain; collectd sends to a socket that nobody reads; the exporter answers.
//!
//! *Registered process groups* ([`registered`]): what a machine cannot carry as guests. Processes of four threads that wake ten times a second stand for VMs; the sampler
//! measures them as it does QEMUs, with all probes. No libvirt is asked, no control group read and nothing sent.
//!
//! Run as root by `cargo xtask bench agent`, which builds the agent and the brain that the lab starts.

mod guests;
mod monitor;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/programs.rs"]
mod programs;
mod registered;
#[path = "../common/spread.rs"]
mod spread;
mod watch;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "What the agent costs, beside libvirt exporters")]
struct Options {
    /// Numbers of real guests, ascending; none leaves them out.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = [1, 5, 10])]
    guests: Vec<usize>,
    /// Numbers of registered process groups; none leaves them out.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = [50, 100, 200])]
    groups: Vec<usize>,
    /// How often the monitors take turns, and how often process groups are measured.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// How long a turn is measured, in seconds, besides the time that a monitor is given to settle.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How long the agent alone then runs on the most guests, in minutes; 0 leaves it out.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Also write the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Be the sampler of the processes that are named on standard input.
    #[arg(long, hide = true)]
    sampler: bool,
    /// Be a process that stands for a VM.
    #[arg(long, hide = true)]
    stand_in: bool,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Summary {
    kernel: String,
    rounds: usize,
    seconds: u64,
    guests: Vec<guests::Figures>,
    /// None where it was left out, or there is no lab.
    aged: Option<guests::Aged>,
    registered: Vec<registered::Figures>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.sampler {
        return registered::sample();
    }
    if options.stand_in {
        return registered::stand_in();
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds must be at least 1");
    ensure!(options.guests.is_sorted() && !options.guests.contains(&0), "--guests ascend from 1");
    let turn = Duration::from_secs(options.seconds);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    println!("Kernel {kernel}, medians of {} rounds of {turn:?}; CPU in thousandths of a core", options.rounds);
    let (guests, aged) = guests::measure(&options.guests, options.rounds, turn, options.minutes)?;
    let mut registered = Vec::new();
    for (index, &groups) in options.groups.iter().enumerate() {
        let figures = registered::measure(groups, options.rounds, turn)?;
        if index == 0 {
            print!("\nRegistered process groups, no libvirt\n{}", registered::header());
        }
        print!("{}", figures.row());
        registered.push(figures);
    }
    let summary = Summary { kernel, rounds: options.rounds, seconds: options.seconds, guests, aged, registered };
    if let Some(path) = options.json {
        fs::write(&path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// CPU in thousandths of a core, as the tables tell it.
fn millicores(cores: f64) -> String {
    format!("{:.2}", cores * 1e3)
}

/// Memory in MiB, as the tables tell it.
fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// An aim that was met or missed.
fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}
