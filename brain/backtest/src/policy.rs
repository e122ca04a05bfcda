//! To be written: `gnomon backtest policy`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// Arguments of `gnomon backtest policy`.
#[derive(Debug, Args)]
pub struct PolicyArguments {
    /// Where the result goes
    #[arg(long)]
    pub out: PathBuf,
}

/// Runs it.
pub(crate) fn run(_arguments: &PolicyArguments, _json: bool) -> Result<()> {
    bail!("backtest policy is being written")
}
