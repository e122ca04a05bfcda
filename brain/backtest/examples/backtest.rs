//! `gnomon backtest` without the rest of `gnomon`: quick to build while working on forecasts.

use clap::Parser;

#[derive(Parser)]
struct Cli {
    /// Print the summary as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    arguments: gnomon_backtest::Arguments,
}

fn main() -> anyhow::Result<()> {
    let Cli { json, arguments } = Cli::parse();
    gnomon_backtest::run(&arguments, json)
}
