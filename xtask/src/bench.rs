//! `cargo xtask bench`: figures, each beside a peer's from the same run.
//!
//! A benchmark is a bench target of the crate it measures. This module knows their names, installs the peers they compare
//! with, and hands arguments on; what is measured, and how, stands in the bench itself.

use std::fs::File;
use std::path::{PathBuf, absolute};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use crate::env::BIN_DIR;
use crate::process::{cargo, target_dir};
use crate::setup::{self, items::Purpose};

/// Runs a benchmark and prints its table; without a name, lists what there is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which one
    name: Option<Name>,
    /// Write the figures, with their peers and the ratios, to this file
    #[arg(long, value_name = "FILE", requires = "name")]
    json: Option<PathBuf>,
    /// Further arguments of the benchmark, after `--`
    #[arg(last = true, requires = "name")]
    arguments: Vec<String>,
}

/// The benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Cost of the probes per switch, wake-up, request, packet, reclaim and to a guest, beside runqlat, bpftrace and biolatency
    Probe,
    /// CPU and memory of the agent, and what it causes in libvirtd and QEMU, beside two exporters on the same guests
    Agent,
    /// How long VMs wait for CPUs beside others, which the simulator's hosts are fitted to
    Contention,
    /// VMs that one brain takes on two cores, with its CPU, memory, and the time from window to command
    Ingest,
    /// Accuracy and CPU time of forecasts, beside statsforecast's models (-- --data DIR with suites)
    Forecast,
    /// Anomaly detection by the Numenta Anomaly Benchmark (-- --nab DIRECTORY)
    Anomaly,
    /// Planning for 10,000 hosts of 50 VMs: time and memory (-- --hosts N --vms N)
    Plan,
    /// 10,000 drawn worlds: no rule is broken, and every guard that is taken away is missed (-- --seeds N)
    Sim,
    /// Whether shadows help: the same drawn worlds with them, without, and with what they tell shuffled (-- --seeds N)
    Shadow,
    /// Sizing beside rules that an operator would pick (-- --demand CSV --warmup ROWS --out CSV --curve)
    Policy,
}

impl Name {
    /// Bench target and profile.
    fn target(self) -> (&'static str, &'static str) {
        match self {
            // What it measures runs in the kernel, from an eBPF object that is optimised in every profile.
            Self::Probe => ("probe", "dev"),
            Self::Agent => ("agent", "release"),
            Self::Contention => ("contention", "dev"),
            Self::Ingest => ("ingest", "release"),
            Self::Forecast => ("forecast", "release"),
            Self::Plan => ("plan", "release"),
            Self::Sim => ("sim", "release"),
            Self::Shadow => ("shadow", "release"),
            Self::Anomaly | Self::Policy => ("replay", "release"),
        }
    }

    /// What has to be on the machine.
    fn purposes(self) -> &'static [Purpose] {
        match self {
            Self::Probe => &[Purpose::Build, Purpose::Lab, Purpose::Bench],
            // Its peers would be services of this machine if they were installed: it unpacks them.
            Self::Agent | Self::Contention => &[Purpose::Build, Purpose::Lab],
            Self::Ingest | Self::Forecast | Self::Anomaly | Self::Policy | Self::Plan | Self::Sim | Self::Shadow => {
                &[Purpose::Build]
            }
        }
    }
}

/// Carries out `cargo xtask bench`.
///
/// # Errors
/// When a peer is missing and cannot be installed, or when the benchmark fails.
pub fn run(args: &Args) -> Result<()> {
    let Some(name) = args.name else {
        for variant in Name::value_variants() {
            let value = variant.to_possible_value().context("every benchmark has a name")?;
            println!("{:10} {}", value.get_name(), value.get_help().map(ToString::to_string).unwrap_or_default());
        }
        return Ok(());
    };
    setup::ensure(name.purposes())?;
    let (target, profile) = name.target();
    // No package is named anywhere, so that cargo unifies features as it does for the tests and compiles nothing twice.
    if name == Name::Agent {
        let programs = ["build", "--release", "--bin", "gnomon-agent", "--bin", "gnomon-brain", "--bench", target];
        let status = cargo().args(programs).status().context("cannot run cargo")?;
        ensure!(status.success(), "agent and brain cannot be built ({status})");
    }
    let mut command = cargo();
    command.args(["bench", "--profile", profile, "--bench", target, "--"]);
    let backtest = match name {
        Name::Anomaly => Some("anomaly"),
        Name::Policy => Some("policy"),
        _ => None,
    };
    command.args(backtest);
    if name == Name::Agent {
        command.env(BIN_DIR, target_dir().join("release"));
    }
    match &args.json {
        // A backtest prints its summary.
        Some(file) if backtest.is_some() => {
            let file = File::create(file).with_context(|| format!("creating {}", file.display()))?;
            command.arg("--json").stdout(file);
        }
        // cargo runs a bench in its package's directory.
        Some(file) => {
            command.arg("--json").arg(absolute(file).with_context(|| format!("no such place: {}", file.display()))?);
        }
        None => {}
    }
    let status = command.args(&args.arguments).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the benchmark failed ({status}); its messages are above");
    }
    Ok(())
}
