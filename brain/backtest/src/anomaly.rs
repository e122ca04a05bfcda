//! To be written: `gnomon backtest anomaly`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// Arguments of `gnomon backtest anomaly`.
#[derive(Debug, Args)]
pub struct AnomalyArguments {
    /// Where the result goes
    #[arg(long)]
    pub out: PathBuf,
}

/// Runs it.
pub(crate) fn run(_arguments: &AnomalyArguments, _json: bool) -> Result<()> {
    bail!("backtest anomaly is being written")
}
