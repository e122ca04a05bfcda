//! `gnomon backtest`: what Gnomon would have said and done, on demand that was recorded.
//!
//! Recorded series come in as CSV files; forecasts, anomaly scores or allocations go out as CSV files, with a summary for people or
//! (`--json`) for scripts. Everything is computed by `gnomon-core`, on all CPUs. This crate
//! reads and writes files and never talks to a brain or a host. Nothing that is later than a forecast's origin can reach it: each
//! task is given its own past and nothing else.

mod anomaly;
mod forecast;
mod policy;
mod progress;
mod report;
mod table;

use clap::{Args, Subcommand};

pub use anomaly::AnomalyArguments;
pub use forecast::{ForecastArguments, Suite, score};
pub use policy::PolicyArguments;
pub use table::TableError;

/// What to replay.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Which part of Gnomon to try
    #[command(subcommand)]
    pub command: Command,
}

/// The parts of Gnomon that can be tried on recorded demand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Forecast from many origins; writes quantiles for each step
    Forecast(ForecastArguments),
    /// Look for anomalies in one series, value by value; writes scores and alerts
    Anomaly(AnomalyArguments),
    /// Size VMs step by step; writes what each would have been given
    Policy(PolicyArguments),
}

/// Does what the arguments say; with `json`, the summary on standard output is JSON.
///
/// # Errors
///
/// When an input cannot be read or makes no sense (the message says where), or an output cannot be written.
pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<()> {
    match &arguments.command {
        Command::Forecast(arguments) => forecast::run(arguments, json),
        Command::Anomaly(arguments) => anomaly::run(arguments, json),
        Command::Policy(arguments) => policy::run(arguments, json),
    }
}
