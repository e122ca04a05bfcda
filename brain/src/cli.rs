//! The `gnomon` command: a client of the API, for people and (with `--json`) for scripts.

mod capacity;
mod client;
mod commands;
mod failure;
mod modes;
mod moves;
mod plot;
mod proposals;
mod quantity;
mod set;
mod shadow;
mod table;

pub use client::{Client, TOKEN_FILE_DEFAULT, URL_DEFAULT};
pub use failure::Failure;
pub use plot::plot;

use crate::api::{LIMIT_DEFAULT, ScopeBody};
use capacity::CapacityCommand;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use modes::ModeArguments;
use moves::{AbortArguments, DrainArguments, MigrateArguments};
use proposals::ProposalsCommand;
use set::SetArguments;
use shadow::ShadowCommand;
use std::path::PathBuf;
use std::time::Duration;

/// Looks into a running brain, sets limits by hand, and tells it to leave things alone.
///
/// Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 brain not reached, 4 not authorised.
#[derive(Debug, Parser)]
#[command(name = "gnomon", version, max_term_width = 100)]
pub struct Arguments {
    /// Where the brain's API listens
    #[arg(long, global = true, env = "GNOMON_URL", default_value = URL_DEFAULT)]
    pub url: String,
    /// File with a token: the brain's own api.token_file, or one with the token alone
    #[arg(long, global = true, env = "GNOMON_TOKEN_FILE", default_value = TOKEN_FILE_DEFAULT)]
    pub token_file: PathBuf,
    /// Print the API's JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What `gnomon` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How the brain is
    Status,
    /// Hosts: capacity, load, what is allocated
    Hosts,
    /// VMs: where they are, what they want, what they have
    Vms,
    /// What a VM will want
    Forecast {
        /// UUID, or name
        vm: String,
        /// How far ahead, like 6h, 1d or 30d; by default as far as the policy's horizon
        #[arg(long, value_parser = quantity::duration)]
        ahead: Option<Duration>,
    },
    /// What was out of the ordinary in the last seven days, latest first
    Alerts,
    /// Why a VM has the size it has
    Explain {
        /// UUID, or name
        vm: String,
    },
    /// Set a limit of a VM now; Gnomon leaves that limit alone until the VM is resumed or released
    Set(SetArguments),
    /// Move a running VM to another host now
    Migrate(MigrateArguments),
    /// Give up the move of a VM that is under way: it stays where it is
    Abort(AbortArguments),
    /// Empty a host: its VMs go elsewhere one after the other, and none comes until `undrain`
    Drain(DrainArguments),
    /// A host may have VMs again; what has left stays where it went
    Undrain {
        /// Name
        host: String,
    },
    /// What the provider is asked for where hosts are too full and no move helps
    #[command(subcommand)]
    Capacity(CapacityCommand),
    /// What Gnomon would do and asks about, where the mode is `approve`
    #[command(subcommand)]
    Proposals(ProposalsCommand),
    /// Small copies of production VMs on other hosts, which try the predicted load first
    #[command(subcommand)]
    Shadow(ShadowCommand),
    /// What is done with plans, for the fleet, a host or a VM: the most cautious of those that apply counts
    Mode(ModeArguments),
    /// Plan nothing until resumed; observing and forecasting go on
    Pause(ScopeArguments),
    /// Take VMs up again after a pause, a release, a limit set by hand, or one that someone else changed
    Resume(ScopeArguments),
    /// Give VMs back what they had before Gnomon's first change, and stand down until resumed
    Release(ReleaseArguments),
    /// Who did what, newest first
    Audit {
        /// At most this many lines
        #[arg(long, default_value_t = LIMIT_DEFAULT)]
        limit: u32,
    },
    /// Replay recorded demand: what Gnomon would have forecast, alerted about and allocated (needs no brain)
    Backtest(gnomon_backtest::Arguments),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Where a request applies.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ScopeArguments {
    /// One VM, by UUID or name
    #[arg(long)]
    pub vm: Option<String>,
    /// Every VM on a host, also those that come later
    #[arg(long)]
    pub host: Option<String>,
    /// Everything
    #[arg(long)]
    pub fleet: bool,
}

/// What to release, and how sure one is.
#[derive(Debug, Args)]
pub struct ReleaseArguments {
    /// One VM, by UUID or name
    #[arg(required_unless_present_any = ["host", "fleet"], conflicts_with_all = ["host", "fleet"])]
    pub vm: Option<String>,
    /// Every VM on a host
    #[arg(long, conflicts_with = "fleet")]
    pub host: Option<String>,
    /// Everything
    #[arg(long)]
    pub fleet: bool,
    /// Only show what would be restored
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

fn scope(vm: Option<String>, host: Option<String>) -> ScopeBody {
    match (vm, host) {
        (Some(vm), _) => ScopeBody::Vm(vm),
        (None, Some(host)) => ScopeBody::Host(host),
        (None, None) => ScopeBody::Fleet,
    }
}

/// Does what the arguments say; output goes to standard output.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { url, token_file, json, command } = arguments;
    if let Command::Completions { shell } = command {
        clap_complete::generate(shell, &mut Arguments::command(), "gnomon", &mut std::io::stdout());
        return Ok(());
    }
    if let Command::Backtest(arguments) = &command {
        return gnomon_backtest::run(arguments, json).map_err(|error| Failure::Refused(format!("{error:#}")));
    }
    let client = Client::new(url, &token_file)?;
    match command {
        Command::Status => commands::status(&client, json),
        Command::Hosts => commands::hosts(&client, json),
        Command::Vms => commands::vms(&client, json),
        Command::Forecast { vm, ahead } => commands::forecast(&client, json, &vm, ahead),
        Command::Alerts => commands::alerts(&client, json),
        Command::Explain { vm } => commands::explain(&client, json, &vm),
        Command::Set(arguments) => set::set(&client, json, &arguments),
        Command::Migrate(arguments) => moves::migrate(&client, json, &arguments),
        Command::Abort(arguments) => moves::abort(&client, json, &arguments),
        Command::Drain(arguments) => moves::drain(&client, json, &arguments),
        Command::Undrain { host } => moves::undrain(&client, json, &host),
        Command::Capacity(command) => capacity::run(&client, json, &command),
        Command::Proposals(command) => proposals::run(&client, json, &command),
        Command::Shadow(command) => shadow::run(&client, json, &command),
        Command::Mode(arguments) => modes::mode(&client, json, arguments),
        Command::Pause(ScopeArguments { vm, host, .. }) => commands::operate(&client, json, "pause", scope(vm, host)),
        Command::Resume(ScopeArguments { vm, host, .. }) => commands::operate(&client, json, "resume", scope(vm, host)),
        Command::Release(ReleaseArguments { vm, host, dry_run, yes, .. }) => {
            commands::release(&client, json, scope(vm, host), dry_run, yes)
        }
        Command::Audit { limit } => commands::audit(&client, json, limit),
        Command::Backtest(_) | Command::Completions { .. } => Ok(()),
    }
}
