//! `gnomon`: the operator's command line.

use clap::Parser;
use gnomon_brain::cli::{Arguments, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("gnomon: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
