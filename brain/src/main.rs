//! `gnomon-brain`: the controller's daemon, and the certificate authority beside it.

mod admissions;
mod backup;
mod certificates;
mod take_over;

use admissions::{HostCommand, TokenCommand};
use anyhow::{Context, Result};
use certificates::CaCommand;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use gnomon_brain::config::{Config, EXAMPLE};
use gnomon_brain::service::Service;
use gnomon_brain::store::SqlStore;
use gnomon_brain::{api, ca, secret, telemetry};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use take_over::TakeOver;
use tokio::signal::unix::{SignalKind, signal};

/// Forecasts what virtual machines will want and sizes them before they want it.
///
/// First time: `gnomon-brain init --dir /etc/gnomon`, then `gnomon-brain run --config /etc/gnomon/brain.toml`, and for
/// each host `gnomon-brain token create --host NAME` here and `gnomon-agent join BRAIN TOKEN` there. GNOMON_LOG chooses
/// what is logged.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the brain until SIGTERM or SIGINT; SIGHUP rereads the policy
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Only check the configuration
        #[arg(long)]
        check_config: bool,
    },
    /// Make a directory with everything a brain needs: CA, certificate, token, configuration
    Init {
        /// Where; created if needed
        #[arg(long)]
        dir: PathBuf,
        /// DNS names and IP addresses under which agents reach this brain, beside the name gnomon-brain
        #[arg(long = "address", value_name = "ADDRESS")]
        addresses: Vec<String>,
    },
    /// Let hosts join: tokens for `gnomon-agent join`
    #[command(subcommand)]
    Token(TokenCommand),
    /// Shut hosts out, and show who has joined
    #[command(subcommand)]
    Host(HostCommand),
    /// Issue certificates by hand (hosts without a network to the brain, a brain without the CA's key), and show them
    #[command(subcommand)]
    Ca(CaCommand),
    /// Copy the store (SQLite) into a new file, also while a brain runs on it
    Backup {
        /// The file; one that is there is not overwritten
        file: PathBuf,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Put a back-up in the store's place, with a higher lease term; what was there is kept beside it
    Restore {
        /// What `backup` wrote
        file: PathBuf,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Have this configuration's brain lead, whoever leads now, in a term above all that were used
    ///
    /// Several brains on PostgreSQL: the leader's lease ends at once. It writes nothing and sends nothing new from then on, and its process
    /// ends. The brain of this configuration leads next, if it runs; else, or where it is the one that led, whichever asks first.
    ///
    /// One brain on SQLite, stopped: a database that was restored or copied gets a term above those of the brain that used the other copy.
    /// Agents obey the higher term.
    TakeOver(TakeOver),
    /// Check a configuration and say what is wrong with it
    CheckConfig {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration
    #[arg(long, short, default_value = "/etc/gnomon/brain.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run { config, check_config: false } => run(&config.config),
        Command::Run { config, check_config: true } | Command::CheckConfig { config } => check(&config.config),
        Command::Init { dir, addresses } => init(&dir, &addresses),
        Command::Token(command) => command.run(),
        Command::Host(command) => command.run(),
        Command::Ca(command) => command.run(),
        Command::Backup { file, config } => backup::back_up(&file, &config),
        Command::Restore { file, config } => backup::restore(&file, &config),
        Command::TakeOver(arguments) => arguments.run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "gnomon-brain", &mut std::io::stdout());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gnomon-brain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(path: &Path) -> Result<()> {
    telemetry::start_logging();
    let config = Config::load(path)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let store = Arc::new(SqlStore::open(&config.store.location()).await?);
    let mut service = Service::start(config, store).await?;
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            error = service.failed() => {
                tracing::error!(%error, "the brain cannot go on");
                break Err(error.into());
            }
            _ = hangup.recv() => match Config::load(path) {
                Ok(config) => {
                    tracing::info!("the policy was reread");
                    service.set_policy(config.policy);
                }
                Err(error) => tracing::error!(%error, "the configuration is wrong now; the policy stays as it was"),
            },
        }
    };
    tracing::info!("stopping; limits on VMs stay as they are");
    service.stop().await;
    ended
}

fn check(path: &Path) -> Result<()> {
    Config::load(path)?;
    println!("{}: good", path.display());
    Ok(())
}

fn init(dir: &Path, addresses: &[String]) -> Result<()> {
    let authority = ca::Ca::init(dir)?;
    authority.issue_brain(ca::BRAIN_NAME, addresses, ca::Lifetime::BY_HAND)?.write(dir, "brain")?;
    api::Tokens::init(&dir.join("tokens"))?;
    let config = dir.join("brain.toml");
    secret::write_new_public(&config, EXAMPLE)?;
    Config::load(&config).context("the configuration just written")?;
    println!("made a CA, the brain's certificate, an API token and a configuration in {}", dir.display());
    println!("next:  gnomon-brain run --config {}", config.display());
    println!("then:  gnomon-brain token create --host NAME --config {}   for each host", config.display());
    println!("and:   GNOMON_TOKEN_FILE={} gnomon status", dir.join("tokens").display());
    Ok(())
}
