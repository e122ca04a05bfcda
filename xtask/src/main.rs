//! `cargo xtask`: the command line over the library of the same name.

use std::io::stdout;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use xtask::{bench, demo, ebpf, lab, setup, test};

/// Sets up a machine for Gnomon, shows it at work, tests and measures it.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Begin with `cargo xtask demo`: it installs what is missing, starts real libvirt hosts with real guests, and \
                  shows VMs growing before their surges. `cargo xtask test` runs every check.\n\n\
                  Exit codes: 0 done and all well, 1 something failed or is missing, 2 the command line was not understood."
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Setup(setup::Args),
    Ebpf(ebpf::Args),
    Lab(lab::Args),
    Demo(demo::Args),
    Test(test::Args),
    Bench(bench::Args),
    /// Prints a completion script, for example `cargo xtask completions bash > ~/.local/share/bash-completion/completions/xtask`
    Completions {
        /// The shell to complete in
        shell: Shell,
    },
}

fn main() -> ExitCode {
    match carry_out(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all is well; an error is told by the caller, a `false` was told already.
fn carry_out(task: Task) -> Result<bool> {
    match task {
        Task::Setup(args) => setup::run(&args),
        Task::Ebpf(args) => ebpf::run(&args).map(|()| true),
        Task::Lab(args) => lab::run(args).map(|()| true),
        Task::Demo(args) => demo::run(&args).map(|()| true),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args).map(|()| true),
        Task::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "xtask", &mut stdout());
            Ok(true)
        }
    }
}
