//! To be written: `gnomon backtest forecast`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// Arguments of `gnomon backtest forecast`.
#[derive(Debug, Args)]
pub struct ForecastArguments {
    /// Where the result goes
    #[arg(long)]
    pub out: PathBuf,
}

/// Runs it.
pub(crate) fn run(_arguments: &ForecastArguments, _json: bool) -> Result<()> {
    bail!("backtest forecast is being written")
}
