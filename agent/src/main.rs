//! `gnomon-agent`: the daemon of one hypervisor, and what its operator can do without a brain.

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use gnomon_agent::command::VmDirectory;
use gnomon_agent::command::clock::{Clock, wall_clock};
use gnomon_agent::command::directory::InventoryDirectory;
use gnomon_agent::command::ledger::{Ledger, LedgerError, UndoRecord};
use gnomon_agent::command::release::{self, Released};
use gnomon_agent::config::{Config, ConfigError};
use gnomon_agent::daemon::{self, DaemonError};
use gnomon_agent::doctor;
use gnomon_agent::host::libvirt::{DIRTY_RATE_PERIOD_MAX_S, Hypervisor};
use gnomon_agent::join::{self, Done, JoinError};
use gnomon_agent::recording::{self, Progress, Replay, Torn};
use gnomon_agent::uplink::identity::IdentityError;
use gnomon_common::wire::Setting;
use prometheus_client::registry::Registry;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// How long `release` waits for libvirt to tell which VMs there are.
const SURVEY_MAX: Duration = Duration::from_secs(10);

/// Something failed.
const EXIT_FAILED: u8 = 1;
/// Bad usage (clap's own code) or configuration.
const EXIT_USAGE: u8 = 2;
/// Another gnomon-agent holds the ledger.
const EXIT_RUNNING: u8 = 3;

#[derive(Parser)]
#[command(
    name = "gnomon-agent",
    version,
    about = "Measures what every VM of this host wants and applies what the brain decides",
    after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 another gnomon-agent is running.\n\
                  Logs go to stderr; GNOMON_LOG=debug (or gnomon_agent::uplink=trace, ...) shows more.\n\n\
                  To begin:                           gnomon-agent join BRAIN:PORT TOKEN\n\
                  What works here, and why not:       gnomon-agent doctor\n\
                  A first look that changes nothing:  gnomon-agent run --dry-run\n\
                  Something looks wrong:              gnomon-agent record FILE, and replay FILE to see it again\n\
                  Undo everything, daemon stopped:    gnomon-agent release --all"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The agent's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/gnomon/agent.toml")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon (as root, or with CAP_BPF, CAP_PERFMON and access to libvirt)
    ///
    /// Measures, reports to the brain and carries its commands out until SIGTERM or SIGINT. Limits it has set stay as they are when it stops.
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Judge, log and answer commands, but change nothing
        #[arg(long)]
        dry_run: bool,
        /// Check the configuration and stop: the same as `check-config`
        #[arg(long)]
        check_config: bool,
    },
    /// Join a brain: make this host's key, get its certificate and, where there is no configuration yet, write one
    ///
    /// The token comes from `gnomon-brain token create --host NAME` on the brain and is good for one host, once. It also tells which brain
    /// to believe. The certificate renews itself while the agent runs; join again, with a new token, if the brain has shut this host out
    /// or the agent was off until the certificate ended. A running agent uses the new files at its next connection.
    ///
    /// As root, the files go to whoever owns the directory they are in.
    Join {
        /// The brain's HOST:PORT (UDP)
        brain: String,
        /// The token, or - to read it from standard input, where `ps` does not show it
        token: String,
        #[command(flatten)]
        file: ConfigFile,
        /// Where a new configuration puts the agent's state, this host's key and certificate among it
        #[arg(long, value_name = "DIR", default_value = "/var/lib/gnomon-agent")]
        state_dir: PathBuf,
    },
    /// Try every signal on this host: what works, what does not and why, and what would enable it
    ///
    /// Loads programs and has them count something (a block written to the state directory, a datagram to itself, an empty control group, a guest
    /// of one page: all gone again), reads counters, asks libvirt and the running agent, greets the brain; changes nothing. Works without
    /// root, too, and shows what root would add. Ends with 1 when something is missing that the agent needs.
    Doctor {
        #[command(flatten)]
        file: ConfigFile,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Keep what the agent reads of this host in a file, for a report of something that looks wrong
    ///
    /// Measures beside the running daemon, with probes of its own and at the configuration's pace, as root; sets nothing on any VM. Ends after
    /// --for, or at Ctrl-C; even if it is killed, the file is good up to then.
    ///
    /// In the file: counters, sizes, states and instants of VMs and host (CPU, memory, disks, network), UUIDs of VMs, process ids, names of
    /// host disks (sda) and targets of VMs' (vda), versions. Nothing of what is within a guest, and no path. Names of VMs, of their network devices and of commands on
    /// the host become labels (vm1, net1, task1).
    Record {
        /// A new file
        recording: PathBuf,
        /// For how long: 30s, 5m, 1h
        #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = length)]
        length: Duration,
        /// Keep the names of VMs, network devices and commands
        #[arg(long)]
        names: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Make the windows of a recording again: what the agent would have reported
    ///
    /// Needs neither root nor libvirt nor the host that was recorded.
    Replay {
        /// What `record` wrote
        recording: PathBuf,
        /// A line of JSON for each window
        #[arg(long)]
        json: bool,
    },
    /// Check the configuration and the certificates it names
    CheckConfig {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Give VMs back the limits they had before Gnomon's first change
    ///
    /// Needs the daemon to be stopped; while it runs, use `gnomon release`. Shows what will be restored and asks before it does so.
    Release {
        #[command(flatten)]
        file: ConfigFile,
        /// VMs by name or UUID
        #[arg(value_name = "VM", required_unless_present = "all", conflicts_with = "all")]
        vms: Vec<String>,
        /// Every VM that Gnomon changed
        #[arg(long)]
        all: bool,
        /// Only show what would be restored
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Measure how fast a VM writes to its memory: what a live migration has to send again
    ///
    /// QEMU samples the guest's pages at the begin and the end of the time; a page counts once, however often it is written to. The VM goes on meanwhile. A link that
    /// is not faster than this will not end a live migration.
    DirtyRate {
        #[command(flatten)]
        file: ConfigFile,
        /// The VM, by name or UUID
        vm: String,
        /// How long to measure, in seconds
        #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(DIRTY_RATE_PERIOD_MAX_S)))]
        seconds: u8,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Print a shell's completions: gnomon-agent completions bash > /etc/bash_completion.d/gnomon-agent
    Completions {
        /// Which shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // What the doctor finds is its output: the log would only say it again.
    log_to_stderr(match command {
        Command::Doctor { .. } => "off",
        Command::Record { .. } | Command::Replay { .. } => "warn",
        _ => "info",
    });
    match execute(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "gnomon-agent: {}", explain(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run { file, check_config: true, .. } | Command::CheckConfig { file } => check(&file),
        Command::Run { file, dry_run, .. } => {
            let config = Config::load(&file.config)?;
            Ok(runtime()?.block_on(daemon::run(config, dry_run))?)
        }
        Command::Join { brain, token, file, state_dir } => {
            let token = join::token(&token)?;
            let done = runtime()?.block_on(join::join(&brain, &token, &file.config, &state_dir))?;
            say_joined(&done, &file)
        }
        Command::Record { recording, length, names, file } => record(&recording, length, names, &file),
        Command::Replay { recording, json } => replay(&recording, json),
        Command::Doctor { file, json } => runtime()?.block_on(doctor(&file, json)),
        Command::Release { file, vms, dry_run, yes, .. } => {
            runtime()?.block_on(release(&Config::load(&file.config)?, &vms, dry_run, yes))
        }
        Command::DirtyRate { file, vm, seconds, json } => dirty_rate(&Config::load(&file.config)?, &vm, seconds, json),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "gnomon-agent", &mut script);
            std::io::stdout().write_all(&script).context("writing to stdout")
        }
    }
}

fn check(file: &ConfigFile) -> Result<()> {
    let config = Config::load(&file.config)?;
    config.identity().load()?;
    say(&format!("{} is good", file.config.display()))
}

fn say_joined(done: &Done, file: &ConfigFile) -> Result<()> {
    let Done { files, identity, config_written, to_set } = done;
    let ends_in_h = identity.valid_to.since(wall_clock()).as_secs() / 3600;
    say(&format!("joined; {} is good for {ends_in_h} hours and renews itself", files.certificate.display()))?;
    let config = file.config.display();
    match (config_written, to_set) {
        (true, _) => say(&format!("wrote {config}"))?,
        (false, Some(setting)) => say(&format!("{config} is as it was and names another brain; set: {setting}"))?,
        (false, None) => {}
    }
    say(&format!("next:  gnomon-agent run --config {config}   (or: systemctl enable --now gnomon-agent)"))
}

/// Tries everything and says what was found; fails if something needed is missing.
async fn doctor(file: &ConfigFile, json: bool) -> Result<()> {
    let diagnosis = doctor::examine(Config::load(&file.config)).await;
    let mut out = std::io::stdout();
    let text = if json {
        serde_json::to_string_pretty(&diagnosis).context("writing JSON")? + "\n"
    } else {
        diagnosis.table(out.is_terminal() && std::env::var_os("NO_COLOR").is_none())
    };
    out.write_all(text.as_bytes()).context("writing to stdout")?;
    if !diagnosis.complete {
        bail!("missing: {}", diagnosis.missing().join(", "));
    }
    Ok(())
}

/// A time: `30s`, `5m`, `1h`.
fn length(text: &str) -> Result<Duration, String> {
    let length = text.parse::<jiff::SignedDuration>().ok().and_then(|length| Duration::try_from(length).ok());
    length.filter(|length| !length.is_zero()).ok_or_else(|| "expected a time like 30s, 5m or 1h".to_owned())
}

/// Records, and says on stderr how far it is.
fn record(recording: &Path, length: Duration, names: bool, file: &ConfigFile) -> Result<()> {
    let config = Config::load(&file.config)?;
    let in_words = |Progress { ticks, vms, bytes }| format!("{ticks} readings, {vms} VMs, {} KiB", bytes / 1024);
    let mut err = std::io::stderr();
    let shows = err.is_terminal();
    let tell = |progress| {
        if shows {
            let _ = write!(std::io::stderr(), "\r{} (Ctrl-C ends it) ", in_words(progress));
        }
    };
    let progress = runtime()?.block_on(recording::record(&config, recording, length, names, tell))?;
    let (begin, file) = (if shows { "\r" } else { "" }, recording.display());
    writeln!(err, "{begin}{}; to look at it:  gnomon-agent replay {file}", in_words(progress))
        .context("writing to stderr")
}

/// Tells the windows of a recording, and on stderr if its end is missing.
fn replay(recording: &Path, json: bool) -> Result<()> {
    let named = || recording.display().to_string();
    let mut replay = Replay::new(std::fs::read(recording).with_context(named)?).with_context(named)?;
    if !json {
        say(recording::HEADINGS)?;
    }
    for report in &mut replay {
        let report = report.with_context(named)?;
        let line =
            if json { serde_json::to_string(&report).context("writing JSON")? } else { recording::rows(&report) };
        say(line.trim_end())?;
    }
    if let Some(Torn { offset, bytes }) = replay.torn() {
        let _ = writeln!(
            std::io::stderr(),
            "{}: cut short at byte {offset} ({bytes} bytes of a reading that is not whole): all before that was told",
            named()
        );
    }
    Ok(())
}

fn dirty_rate(config: &Config, vm: &str, seconds: u8, json: bool) -> Result<()> {
    let hypervisor = Hypervisor::open(&config.host.libvirt_uri)?;
    let id = hypervisor.find(vm)?;
    let bytes_per_s = hypervisor.dirty_bytes_per_s(id, seconds)?;
    if json {
        let value = serde_json::json!({ "vm": id, "period_s": seconds, "dirty_bytes_per_s": bytes_per_s });
        return say(&value.to_string());
    }
    say(&format!("{vm} writes to {:.0} MiB of its memory each second", bytes_per_s / f64::from(1u32 << 20)))
}

/// Restores the baselines of the VMs named, or of all.
async fn release(config: &Config, vms: &[String], dry_run: bool, yes: bool) -> Result<()> {
    let ledger = Ledger::open(&config.ledger_path())?;
    let records = release::select(ledger.undo_records()?, vms)?;
    if records.is_empty() {
        return say("Gnomon has changed no VM on this host: nothing to release");
    }
    for UndoRecord { vm, name, baselines, .. } in &records {
        say(&format!("{name} ({vm}): back to {}", in_words(baselines)))?;
    }
    if dry_run || !(yes || confirmed()?) {
        return say("nothing was changed");
    }
    let (mut inventory, _threads) = daemon::inventory(config, false, &mut Registry::default())?;
    let mut actuator = daemon::actuator(config, inventory.clone())?;
    let survey = tokio::time::timeout(SURVEY_MAX, inventory.wait_for(|inventory| inventory.complete));
    if survey.await.is_err() {
        bail!("libvirt ({}) does not answer: nothing was changed", config.host.libvirt_uri);
    }
    let directory = InventoryDirectory::new(inventory, Clock::new().context("reading the boot's id")?);
    let mut failed = 0;
    for record in &records {
        match release::restore(&ledger, &mut actuator, record, directory.find(record.vm).life) {
            Ok(Released::Restored { before, after }) => {
                say(&format!("{}: was {}, is {}", record.name, in_words(&before), in_words(&after)))?;
            }
            Ok(Released::Gone) => say(&format!("{}: not running here, its limits ended with it", record.name))?,
            Ok(Released::Restarted) => say(&format!("{}: restarted since, its limits ended with that", record.name))?,
            Err(error) => {
                failed += 1;
                say(&format!("{}: {error}", record.name))?;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} VMs were not released; their undo records are kept", records.len());
    }
    Ok(())
}

fn in_words(settings: &[Setting]) -> String {
    if settings.is_empty() {
        return "what its owner has set".to_owned(); // Gnomon stood down for it, or the owner was the last to set something
    }
    settings.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody to ask: use --yes to release, or --dry-run to look");
    }
    write!(std::io::stderr(), "Release them? [y/N] ")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("writing to stdout")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    // Two workers: the agent shares its host with the guests it measures.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("starting the asynchronous runtime")
}

fn log_to_stderr(default: &str) {
    let filter = EnvFilter::try_from_env("GNOMON_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}

/// An error with its causes, without those that its own words already contain.
fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        _ if said.contains(&cause) => said,
        _ => format!("{said}: {cause}"),
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let locked = |error: &LedgerError| matches!(error, LedgerError::Locked { .. });
    if error.downcast_ref().is_some_and(locked)
        || matches!(error.downcast_ref(), Some(DaemonError::Ledger(error)) if locked(error))
    {
        EXIT_RUNNING
    } else if error.is::<ConfigError>()
        || matches!(error.downcast_ref(), Some(JoinError::Token(_) | JoinError::Config(_)))
        || error.is::<IdentityError>()
        || matches!(error.downcast_ref(), Some(DaemonError::Identity(_)))
    {
        EXIT_USAGE
    } else {
        EXIT_FAILED
    }
}
