//! `cargo xtask lab`: a lab that stays between commands.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;

use super::state::State;
use super::{GuestOptions, HostOptions, Lab, Options, Process, Progress, Schedule, directory, down};

/// Arguments of `cargo xtask lab`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab
    #[arg(long, global = true, default_value = "lab")]
    name: String,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Bring libvirt hosts up; they stay until `down`
    Up {
        /// Number of hosts
        #[arg(long, default_value_t = 3)]
        hosts: usize,
        /// Ceiling for all guests of a host together, in cores [default: none]
        #[arg(long)]
        capacity_cores: Option<f64>,
        /// CPUs of each host, such as 0-1 [default: all]
        #[arg(long)]
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
    },
    /// Take the lab down, whoever made it
    Down,
    /// Say what is up
    Status {
        /// As one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Run a shell or a command on a host, or in the network of the `brain`
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
    match args.command {
        Task::Up { hosts, capacity_cores, cpus } => {
            let mut options = Options::new(name, hosts);
            options.hosts.fill(HostOptions { cpus, capacity_cores, ..HostOptions::default() });
            options.persists = true;
            options.progress = printed();
            Lab::up(options).map(|_| ())
        }
        Task::Boot { host, guest, load, vcpus, quota_cores } => {
            let mut lab = Lab::attach(name)?;
            lab.progress = printed();
            let mut options = GuestOptions::new(&guest, load);
            (options.vcpus, options.vcpus_max, options.quota_cores) = (vcpus, vcpus + 1, quota_cores);
            let guest = lab.define(lab.host(&host)?, &options)?;
            lab.boot(&[guest])
        }
        Task::Down => down(name),
        Task::Status { json } => status(name, json),
        Task::Shell { host, command } => shell(&Lab::attach(name)?, &host, command),
    }
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
