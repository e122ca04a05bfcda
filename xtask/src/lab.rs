//! The lab: libvirt hosts on one machine, with real QEMU guests, for tests, the demo and by hand.
//!
//! A host is a set of namespaces (network, mount, UTS, IPC, cgroup) and cgroups with a libvirtd of its own; hosts share a
//! bridge in a further network namespace, where the brain lives too, without an uplink. Guests are emulated (TCG), run
//! Debian's cloud kernel and one program that makes CPU load by a schedule which only the lab knows ([`Lab::truth`]).
//! The lab never changes the machine's own network, mounts or groups, and never signals a process by its pid.
//!
//! A lab lives as long as its owner. Whatever ends the owner, a keeper process kills the lab's cgroups and removes them,
//! and with the last process go namespaces and mounts. `cargo xtask lab up` makes one that stays until `lab down`.

mod cgroup;
mod cli;
mod debian;
pub mod full;
mod guest;
mod host;
mod image;
mod keeper;
mod machine;
mod net;
mod place;
mod state;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use cgroup::{DAEMONS, Hierarchies, Span};
use keeper::Keeper;
use machine::home;
use place::{Namespace, Place};
use state::{HostState, State};

pub use cli::{Args, run};
pub use gnomon_lab_load::{DayRange, Report, Schedule};
pub use guest::{Guest, GuestOptions, Truth};
pub use host::{Host, HostOptions};
pub use machine::check_machine;
pub use net::{BRAIN_ADDRESS, HOSTS_MAX, Published};
pub use state::Process;

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// 1 to 16 lower-case letters and digits; two labs of one name exclude each other.
    pub name: String,
    /// One entry a host.
    pub hosts: Vec<HostOptions>,
    /// The lab outlives this process and stays until [`down`].
    pub persists: bool,
    /// Seed of all drawn workloads; drawn itself where unset.
    pub seed: Option<u64>,
    /// Told of each step.
    pub progress: Progress,
}

impl Options {
    /// `hosts` hosts with the whole machine each, owned by this process.
    pub fn new(name: &str, hosts: usize) -> Self {
        let hosts = vec![HostOptions::default(); hosts];
        Options { name: name.to_owned(), hosts, persists: false, seed: None, progress: Progress::default() }
    }
}

/// A callback that is told, in a few words, what has just been done. Silent by default.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&str) + Send + Sync>);

impl Progress {
    /// Calls `tell` from whichever thread makes the progress.
    pub fn new(tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Progress(Arc::new(tell))
    }

    fn tell(&self, what: fmt::Arguments<'_>) {
        (self.0)(&what.to_string());
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new(|_| {})
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// A lab that is up. Dropping it takes it down, unless it persists.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    net: Place,
    hosts: Vec<Host>,
    state: Mutex<State>,
    progress: Progress,
    /// There while the lab ends with this process.
    keeper: Option<Keeper>,
    /// Direct children, to be reaped after the keeper has killed them.
    children: Vec<Child>,
    /// Held for as long as this process owns the name.
    _lock: Option<File>,
}

impl Lab {
    /// Brings a lab up: 0.7 s for three hosts once libvirt's probe of QEMU is cached, 10 s before. A lab of the same name
    /// that somebody left behind is taken down first; one that is in use is an error. After an error nothing is left.
    pub fn up(options: Options) -> Result<Lab> {
        check_machine()?;
        state::check_name(&options.name)?;
        ensure!((1..=HOSTS_MAX).contains(&options.hosts.len()), "a lab has 1 to {HOSTS_MAX} hosts");
        let lock = lock(&options.name)?;
        sweep(&options.name)?;

        let dir = directory(&options.name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let hierarchies = Hierarchies::of_this_process()?;
        hierarchies.prepare()?;
        let state = new_state(&options, hierarchies.clone())?;
        let keeper = Keeper::start(&dir, &state.group_patterns())?;
        let net = net_place(&state.name, &hierarchies);
        let mut lab = Lab {
            net,
            hosts: Vec::new(),
            state: Mutex::new(state),
            progress: options.progress.clone(),
            keeper: Some(keeper),
            children: Vec::new(),
            _lock: Some(lock),
            dir,
        };
        // From here on, every way out drops `lab` and with it all that has been made.
        lab.save()?;
        lab.connect(&hierarchies)?;
        lab.raise(&options)?;
        if options.persists
            && let Some(keeper) = lab.keeper.take()
        {
            keeper.release()?;
        }
        Ok(lab)
    }

    /// The lab of this name that is up already, for a second process. It stays up when the value is dropped.
    pub fn attach(name: &str) -> Result<Lab> {
        state::check_name(name)?;
        let dir = directory(name);
        let state = State::read(&dir)?.with_context(|| format!("no lab {name}; `cargo xtask lab up --name {name}`"))?;
        ensure!(state.machines == 0, "lab {name} is a full one");
        let net = net_place(name, &state.hierarchies);
        net.anchor_pid()?;
        let hosts = hosts(&state, &dir);
        let progress = Progress::default();
        let (keeper, children, lock) = (None, Vec::new(), None);
        Ok(Lab { dir, net, hosts, state: Mutex::new(state), progress, keeper, children, _lock: lock })
    }

    fn connect(&mut self, hierarchies: &Hierarchies) -> Result<()> {
        let group = hierarchies.group(&group_name(&self.name(), "net"), Span::Unified);
        group.create(&[DAEMONS], None, None)?;
        let anchor = self.net.anchor(&group, net::BRIDGE, &[], &self.dir.join("net.log"));
        self.children.push(anchor.context("making the lab's network")?);
        Ok(())
    }

    fn raise(&mut self, options: &Options) -> Result<()> {
        let state = self.state().clone();
        let hosts = hosts(&state, &self.dir);
        let capabilities = home().join("capabilities");
        let names: String = hosts.iter().map(|host| format!("{} {}\n", host.address(), host.name())).collect();
        let names = format!("127.0.0.1 localhost\n{BRAIN_ADDRESS} brain\n{names}");
        let up = |index: usize| -> (Vec<Child>, Result<()>) {
            let (host, host_state, wanted) = (&hosts[index], &state.hosts[index], &options.hosts[index]);
            let mut children = Vec::new();
            let up = host.up(host_state, &wanted.libvirtd, &names, &capabilities, &self.net, &mut children);
            if up.is_ok() {
                options.progress.tell(format_args!("{} is up", host.name()));
            }
            (children, up.with_context(|| format!("bringing up {}", host.name())))
        };
        // Where libvirt's probe of QEMU is not cached, the first host makes it for all.
        let first = if capabilities.exists() { 0 } else { 1 };
        let mut ends: Vec<_> = (0..first).map(up).collect();
        let up = &up;
        thread::scope(|scope| {
            let rest: Vec<_> = (first..hosts.len()).map(|index| scope.spawn(move || up(index))).collect();
            ends.extend(rest.into_iter().map(|thread| match thread.join() {
                Ok(end) => end,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
        });
        let mut result = Ok(());
        for (children, up) in ends {
            self.children.extend(children);
            result = result.and(up);
        }
        self.hosts = hosts;
        result
    }

    /// Takes the lab down and waits until nothing of it is left. Dropping the lab does the same, but can only print errors.
    pub fn down(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let Some(keeper) = self.keeper.take() else { return Ok(()) };
        keeper.finish()?;
        for child in &mut self.children {
            child.wait()?;
        }
        Ok(())
    }

    /// Name of the lab.
    pub fn name(&self) -> String {
        self.state().name.clone()
    }

    /// Seed of the drawn workloads: with it, a run can be repeated.
    pub fn seed(&self) -> u64 {
        self.state().seed
    }

    /// All hosts, `h1` first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let known = || self.hosts.iter().map(Host::name).collect::<Vec<_>>().join(", ");
        self.hosts
            .iter()
            .find(|host| host.name() == name)
            .with_context(|| format!("no host {name}: there are {}", known()))
    }

    /// The ceiling for all guests of a host together, in cores, if it has one.
    pub fn capacity_cores(&self, host: &Host) -> Option<f64> {
        self.state().hosts.iter().find(|state| state.name == host.name()).and_then(|state| state.capacity_cores)
    }

    /// A directory of the lab's own. Gone after the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every process of the lab at this moment.
    pub fn processes(&self) -> Result<Vec<Process>> {
        self.state().processes()
    }

    /// A program in the network of the brain, with [`BRAIN_ADDRESS`]; mounts and the rest are those of the machine.
    pub fn brain_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.net.command(program);
        command.process_group(0);
        command
    }

    /// Runs `work` in the network of the brain, on a thread of its own. Sockets opened there stay there.
    pub fn in_brain_net<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        net::inside(&self.net.net()?, work)
    }

    /// Makes a TCP port of the brain reachable on this process's loopback address.
    pub fn publish(&self, port: u16) -> Result<Published> {
        Published::open(self.net.net()?, SocketAddr::from((BRAIN_ADDRESS, port)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A state is replaced as a whole or not at all, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) -> Result<()> {
        self.state().write(&self.dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("lab {}: {error:#}; `cargo xtask lab down --name {0}` tries again", self.name());
        }
    }
}

/// Takes the lab of this name down, whoever made it. No such lab is fine.
pub fn down(name: &str) -> Result<()> {
    state::check_name(name)?;
    let dir = directory(name);
    // A state that cannot be read is no reason to leave the groups behind.
    let patterns = match State::read(&dir) {
        Ok(Some(state)) => state.group_patterns(),
        _ => Hierarchies::of_this_process()?.patterns(&group_name(name, "*")),
    };
    keeper::down(&dir, &patterns)
}

/// Whether a guest that boots Debian ([`GuestOptions::debian`]) can be made here; the error says what is missing. For tests that skip themselves.
pub fn check_machine_for_debian() -> Result<()> {
    check_machine()?;
    debian::check_machine()
}

/// Where the files of a Debian package are, fetched at the first time. They are not installed: what the package would run as a service of this machine
/// runs nowhere but where it is started.
pub fn unpacked(package: &str) -> Result<PathBuf> {
    let dir = home().join("unpacked").join(package);
    if !dir.exists() {
        let parent = dir.parent().context("no such package")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        image::unpack(package, &dir)?;
    }
    Ok(dir)
}

fn directory(name: &str) -> PathBuf {
    home().join("run").join(name)
}

fn group_name(lab: &str, place: &str) -> String {
    format!("gnomon-{lab}-{place}")
}

fn net_place(name: &str, hierarchies: &Hierarchies) -> Place {
    Place::new(&hierarchies.group(&group_name(name, "net"), Span::Unified), DAEMONS, &[Namespace::Net])
}

fn hosts(state: &State, dir: &Path) -> Vec<Host> {
    let host = |(index, host): (usize, &HostState)| {
        let group = state.hierarchies.group(&group_name(&state.name, &host.name), Span::Host);
        Host::new(&host.name, net::host_address(index), &dir.join(&host.name), group)
    };
    state.hosts.iter().enumerate().map(host).collect()
}

fn new_state(options: &Options, hierarchies: Hierarchies) -> Result<State> {
    let host = |(index, wanted): (usize, &HostOptions)| HostState {
        name: format!("h{}", index + 1),
        uuid: Uuid::new_v4(),
        cpus: wanted.cpus.clone(),
        capacity_cores: wanted.capacity_cores,
    };
    Ok(State {
        name: options.name.clone(),
        owner: Process::with_pid(std::process::id()).context("reading this process's start time")?,
        persists: options.persists,
        hierarchies,
        seed: options.seed.unwrap_or_else(rand::random),
        hosts: options.hosts.iter().enumerate().map(host).collect(),
        guests: Vec::new(),
        machines: 0,
    })
}

/// One process at a time may make or own a lab of this name.
fn lock(name: &str) -> Result<File> {
    let dir = home().join("lock");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let path = dir.join(name);
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.map_err(|_| anyhow::anyhow!("lab {name} is owned by another process; choose another name"))?;
    Ok(file)
}

/// Takes down what a dead owner left. The lock is held, so a lab that is there is a persistent one or a leftover.
fn sweep(name: &str) -> Result<()> {
    if let Ok(Some(state)) = State::read(&directory(name))
        && state.persists
        && !state.processes()?.is_empty()
    {
        bail!("lab {name} is up; `cargo xtask lab down --name {name}` first, or choose another name");
    }
    down(name)
}
