//! `cargo xtask lab`: a lab that stays between commands.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use serde_json::json;

use super::full::{self, FullLab};
use super::state::State;
use super::{GuestOptions, HostOptions, Lab, Options, Process, Progress, Schedule, directory, down};

/// Hosts of a light lab, where the command line does not say: as many as the demo has.
const HOSTS: usize = 3;
/// How long a command may run on a host of a full lab.
const SHELL_PATIENCE: Duration = Duration::from_secs(3600);

/// Libvirt hosts on this machine, for trying things out.
///
/// The light lab's hosts are namespaces with a libvirtd each, up in a second; they share this machine's kernel. A full lab's
/// (`--full`) are emulated machines with Debian's own kernel, cgroup v2 and /dev/kvm, up in a minute or two and slow.
///
/// `cargo xtask lab --full` alone brings a full lab up, checks the agent in there, and takes it down.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    /// Hosts that are emulated machines of their own; alone, it checks the agent on one
    #[arg(long, global = true)]
    full: bool,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Bring libvirt hosts up; they stay until `down`
    Up {
        /// Number of hosts [default: 3, of a full lab 1]
        #[arg(long)]
        hosts: Option<usize>,
        /// Ceiling for all guests of a host together, in cores [default: none]
        #[arg(long, conflicts_with = "full")]
        capacity_cores: Option<f64>,
        /// CPUs of each host, such as 0-1 [default: all]
        #[arg(long, conflicts_with = "full")]
        cpus: Option<String>,
    },
    /// Boot a guest on a host
    Boot {
        /// Host, such as h1
        host: String,
        /// Name of the guest
        guest: String,
        /// Its CPU demand, such as constant:0.5 or script:30@0.2,10@0.9
        #[arg(long, default_value = "constant:0")]
        load: Schedule,
        /// vCPUs at boot; one more can be plugged in
        #[arg(long, default_value_t = 1)]
        vcpus: u32,
        /// Ceiling of its CPU use, in cores [default: none]
        #[arg(long)]
        quota_cores: Option<f64>,
        /// Run it by /dev/kvm instead of emulating it
        #[arg(long)]
        kvm: bool,
        /// Give it a shadow's pacer, with its port (GUEST.pacer in the host's directory) and a scratch disk
        #[arg(long)]
        pacer: bool,
    },
    /// Take the lab down, whoever made it
    Down,
    /// Say what is up
    Status {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Run a shell or a command on a host, or in the network of the `brain`; in a full lab a command only
    Shell {
        /// h1, h2, … or brain
        host: String,
        /// Command and its arguments [default: bash]
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

/// Runs `cargo xtask lab`.
pub fn run(args: Args) -> Result<()> {
    let name = &args.name;
    let Some(command) = args.command else {
        ensure!(
            args.full,
            "`cargo xtask lab` wants to know what to do: up, boot, status, shell, down, or --full to check one"
        );
        return crate::stack::full::check_and_print(name, printed());
    };
    if args.full || is_full(name) {
        return run_full(name, command);
    }
    match command {
        Task::Up { hosts, capacity_cores, cpus } => {
            let mut options = Options::new(name, hosts.unwrap_or(HOSTS));
            options.hosts.fill(HostOptions { cpus, capacity_cores, ..HostOptions::default() });
            options.persists = true;
            options.progress = printed();
            Lab::up(options).map(|_| ())
        }
        Task::Boot { host, guest, load, vcpus, quota_cores, kvm, pacer } => {
            let mut lab = Lab::attach(name)?;
            lab.progress = printed();
            let mut options = GuestOptions::new(&guest, load);
            (options.vcpus, options.vcpus_max) = (vcpus, vcpus + 1);
            (options.quota_cores, options.kvm, options.pacer) = (quota_cores, kvm, pacer);
            let guest = lab.define(lab.host(&host)?, &options)?;
            lab.boot(&[guest])
        }
        Task::Down => down(name),
        Task::Status { json } => status(name, json),
        Task::Shell { host, command } => shell(&Lab::attach(name)?, &host, command),
    }
}

/// Whether the lab of this name that is up is a full one; then nobody has to say so again.
fn is_full(name: &str) -> bool {
    State::read(&directory(name)).is_ok_and(|state| state.is_some_and(|state| state.machines > 0))
}

fn run_full(name: &str, command: Task) -> Result<()> {
    match command {
        Task::Up { hosts, .. } => {
            let mut options = full::Options::new(name, hosts.unwrap_or(1));
            (options.persists, options.progress) = (true, printed());
            let lab = FullLab::up(&options)?;
            eprintln!(
                "logs: {}; a command on a host: cargo xtask lab shell h1 --name {name} -- virsh list",
                lab.logs().display()
            );
        }
        Task::Boot { host, guest, load, vcpus, quota_cores, .. } => {
            let mut options = GuestOptions::new(&guest, load);
            (options.vcpus, options.vcpus_max, options.quota_cores) = (vcpus, vcpus + 1, quota_cores);
            options.kvm = true;
            FullLab::attach(name)?.machine(&host)?.boot(&options)?;
        }
        Task::Down => down(name)?,
        Task::Status { json } => full_status(name, json)?,
        Task::Shell { host, command } => {
            let words: Option<Vec<&str>> = command.iter().map(|word| word.to_str()).collect();
            let Some(words) = words.filter(|words| !words.is_empty()) else {
                bail!("there is no terminal on a host of a full lab: give a command after --, such as -- virsh list");
            };
            print!("{}", FullLab::attach(name)?.machine(&host)?.run_within(&words.join(" "), SHELL_PATIENCE)?);
        }
    }
    Ok(())
}

fn full_status(name: &str, as_json: bool) -> Result<()> {
    if !is_full(name) {
        return status(name, as_json);
    }
    let lab = FullLab::attach(name)?;
    let mut hosts = Vec::new();
    for machine in lab.machines() {
        let running = machine.virsh("list --name");
        let error = running.as_ref().err().map(|error| format!("{error:#}"));
        let running: Option<Vec<String>> =
            running.map(|names| names.split_whitespace().map(str::to_owned).collect()).ok();
        hosts.push(json!({ "name": machine.name(), "running": running, "error": error }));
    }
    if as_json {
        println!("{:#}", json!({ "name": name, "up": true, "full": true, "logs": lab.logs(), "hosts": hosts }));
        return Ok(());
    }
    println!("{name}: {} emulated machines", hosts.len());
    for host in hosts {
        println!("  {} guests: {} {}", host["name"], host["running"], host["error"].as_str().unwrap_or_default());
    }
    Ok(())
}

fn printed() -> Progress {
    Progress::new(|what| eprintln!("{what}"))
}

/// Becomes the command.
fn shell(lab: &Lab, host: &str, command: Vec<OsString>) -> Result<()> {
    let mut words = command.into_iter();
    let program = words.next().unwrap_or_else(|| "bash".into());
    let mut command = match host {
        "brain" => lab.net.command(&program),
        _ => lab.host(host)?.interactive(&program),
    };
    Err(command.args(words).exec()).with_context(|| format!("starting {}", program.display()))
}

fn status(name: &str, as_json: bool) -> Result<()> {
    let Some(state) = State::read(&directory(name))? else {
        if as_json {
            println!("{}", json!({ "name": name, "up": false }));
        } else {
            println!("{name}: down");
        }
        return Ok(());
    };
    let lab = Lab::attach(name)?;
    let mut hosts = Vec::new();
    for (host, made) in lab.hosts().iter().zip(&state.hosts) {
        let running = host.virsh(["list", "--name"]);
        hosts.push(json!({
            "name": host.name(),
            "address": host.address(),
            "uuid": made.uuid,
            "cpus": made.cpus,
            "capacity_cores": made.capacity_cores,
            "dir": host.dir(),
            "cgroups": host.group().dirs().collect::<Vec<_>>(),
            "anchor": host.anchor_pid().ok().and_then(Process::with_pid),
            "error": running.as_ref().err().map(|error| format!("{error:#}")),
            "running": running.map(|names| names.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).ok(),
        }));
    }
    let processes = lab.processes()?;
    if as_json {
        let owner = json!({ "pid": state.owner.pid, "alive": state.owner.is_alive(), "persists": state.persists });
        println!("{:#}", json!({ "name": name, "up": true, "owner": owner, "hosts": hosts, "processes": processes }));
        return Ok(());
    }
    println!("{name}: {} hosts, {} processes", hosts.len(), processes.len());
    for host in hosts {
        let text = |key: &str| host[key].as_str().unwrap_or_default().to_owned();
        let guests = host["running"].as_array().map(|names| names.iter().filter_map(|name| name.as_str()).collect());
        let guests: Vec<&str> = guests.unwrap_or_default();
        println!("  {} {} guests: [{}] {}", text("name"), text("address"), guests.join(" "), text("error"));
    }
    Ok(())
}
