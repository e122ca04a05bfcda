//! The benchmarks that are backtests as they are: `policy` beside the rules an operator would pick, `anomaly` by the Numenta Anomaly Benchmark.
//!
//! `cargo xtask bench policy -- --demand D.csv --warmup ROWS --lag ROWS`, `cargo xtask bench anomaly -- --nab DIRECTORY`. Peers and the whole trade-off
//! are computed in the same run.

use std::ffi::OsString;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
struct Options {
    /// Print the figures as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    arguments: gnomon_backtest::Arguments,
}

fn main() -> Result<()> {
    // Given by cargo.
    let arguments: Vec<OsString> = std::env::args_os().filter(|argument| argument != "--bench").collect();
    if arguments.len() < 3 {
        println!("skipped: no recorded data was named");
        return Ok(());
    }
    let Options { json, arguments } = Options::parse_from(arguments);
    gnomon_backtest::run(&arguments, json)
}
