//! The full lab: hosts that are machines of their own, where the light lab's are namespaces.
//!
//! Each is a QEMU process that emulates an AMD machine with virtualisation (SVM) under TCG and boots Debian's own kernel:
//! cgroup version 2 alone, type information, kprobes, /dev/kvm, a libvirtd and KVM guests. It takes no hardware
//! virtualisation and is 15 to 30 times slower than the machine it runs on. Two hosts share a network segment, a pair of
//! connected sockets; the machine outside is 10.0.2.2 for each of them (QEMU's user network), which is how they reach a brain.
//!
//! A host is told what to do by scripts over a virtio port ([`Machine::run`]), so that nothing but bash has to work in there.
//! As the light lab does, it lives as long as its owner: QEMU is in the lab's cgroup and ends with it, however the owner ends.
//! Logs stay under `target/lab/full` until the next run.

mod control;
mod disk;
mod machine;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cgroup::{DAEMONS, Group, Hierarchies, Span};
use super::keeper::Keeper;
use super::place::joined;
use super::state::{self, MACHINES, Process, State};
use super::{Progress, debian, directory, group_name, lock, sweep};
use machine::Settings;

pub use machine::{Guest, Machine, MemoryEvents};

/// A segment is a pair of connected sockets.
const MACHINES_MAX: usize = 2;
/// What is left to the machine that the lab runs on.
const MEMORY_SPARE_BYTES: u64 = 512 << 20;
/// QEMU has bound its end of the segment's socket within milliseconds.
const SEGMENT_POLL: Duration = Duration::from_millis(20);
const SEGMENT_POLLS_MAX: u32 = 500;

/// What a full lab is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// As any lab's.
    pub name: String,
    /// 1 or 2.
    pub machines: usize,
    /// The lab outlives this process and stays until [`super::down`].
    pub persists: bool,
    /// Told of each step.
    pub progress: Progress,
}

impl Options {
    /// A lab that ends with this process.
    pub fn new(name: &str, machines: usize) -> Self {
        Options { name: name.to_owned(), machines, persists: false, progress: Progress::default() }
    }
}

/// A full lab that is up. Dropping it takes it down, unless it persists.
#[derive(Debug)]
pub struct FullLab {
    name: String,
    dir: PathBuf,
    group: Group,
    machines: Vec<Machine>,
    /// There while the lab ends with this process.
    keeper: Option<Keeper>,
    /// Direct children, to be reaped after the keeper has killed them.
    children: Vec<Child>,
    /// Held for as long as this process owns the name.
    _lock: Option<File>,
}

/// Whether a full lab of that many hosts can be made here; the error says what is missing. For tests that skip themselves.
pub fn check_machine(machines: usize) -> Result<()> {
    super::check_machine()?;
    debian::check_machine()?;
    let wanted = machines as u64 * machine::MEMORY_BYTES + MEMORY_SPARE_BYTES;
    let available = memory_available_bytes()?;
    ensure!(
        available >= wanted,
        "{machines} hosts take {} MiB of memory, {} are available",
        wanted >> 20,
        available >> 20
    );
    Ok(())
}

fn memory_available_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no MemAvailable in /proc/meminfo")? << 10)
}

impl FullLab {
    /// Brings a full lab up, with a libvirt that answers on every host: about a minute; one more and 85 MB of Debian packages
    /// the first time. After an error nothing is left but logs, whose ends are in the error.
    pub fn up(options: &Options) -> Result<FullLab> {
        ensure!((1..=MACHINES_MAX).contains(&options.machines), "a full lab has 1 or {MACHINES_MAX} hosts");
        check_machine(options.machines)?;
        state::check_name(&options.name)?;
        let lock = lock(&options.name)?;
        sweep(&options.name)?;

        let boot = disk::made(&options.progress)?;
        let dir = directory(&options.name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let hierarchies = Hierarchies::of_this_process()?;
        let state = State {
            name: options.name.clone(),
            owner: Process::with_pid(std::process::id()).context("reading this process's start time")?,
            persists: options.persists,
            hierarchies: hierarchies.clone(),
            seed: 0,
            hosts: Vec::new(),
            guests: Vec::new(),
            machines: options.machines,
        };
        let keeper = Keeper::start(&dir, &state.group_patterns())?;
        let group = group(&options.name, &hierarchies);
        let mut lab = FullLab {
            name: options.name.clone(),
            dir,
            group,
            machines: Vec::new(),
            keeper: Some(keeper),
            children: Vec::new(),
            _lock: Some(lock),
        };
        // From here on, every way out drops `lab` and with it all that has been made.
        state.write(&lab.dir)?;
        lab.group.create(&[DAEMONS], None, None)?;
        let (programs, guest) = disk::pack_programs(&lab.dir, &options.progress)?;
        let logs = lab.logs();
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        for index in 0..options.machines {
            let machine = Machine::new(index, &lab.dir, &logs);
            let settings = Settings { boot: &boot, programs: &programs, alone: options.machines == 1 };
            let child = machine.start(lab.command("qemu-system-x86_64"), &settings)?;
            lab.children.push(child);
            lab.await_segment(options.machines)?;
            options.progress.tell(format_args!("{} boots", machine.name()));
            lab.machines.push(machine);
        }
        for machine in &lab.machines {
            machine.prepare(&guest)?;
            options.progress.tell(format_args!("{} is up: {}", machine.name(), machine.run("uname -r")?.trim()));
        }
        if options.persists
            && let Some(keeper) = lab.keeper.take()
        {
            keeper.release()?;
        }
        Ok(lab)
    }

    /// The full lab of this name that is up already, for a second process. It stays up when the value is dropped.
    pub fn attach(name: &str) -> Result<FullLab> {
        state::check_name(name)?;
        let dir = directory(name);
        let state = State::read(&dir)?.filter(|state| state.machines > 0);
        let state = state.with_context(|| format!("no full lab {name}; `cargo xtask lab up --full --name {name}`"))?;
        let mut lab = FullLab {
            name: name.to_owned(),
            group: group(name, &state.hierarchies),
            machines: Vec::new(),
            keeper: None,
            children: Vec::new(),
            _lock: None,
            dir,
        };
        let logs = lab.logs();
        lab.machines = (0..state.machines).map(|index| Machine::new(index, &lab.dir, &logs)).collect();
        Ok(lab)
    }

    /// The second host connects to the first one's end of the segment when it starts.
    fn await_segment(&self, machines: usize) -> Result<()> {
        let socket = self.dir.join(machine::SEGMENT);
        let mut polls = 0;
        while machines > 1 && !socket.exists() {
            polls += 1;
            ensure!(polls < SEGMENT_POLLS_MAX, "QEMU does not start:\n{}", self.logs_of("qemu"));
            thread::sleep(SEGMENT_POLL);
        }
        Ok(())
    }

    fn logs_of(&self, kind: &str) -> String {
        super::place::tail(&self.logs().join(format!("h1.{kind}.log")))
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

    /// All hosts, `h1` first.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The host of this name.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|machine| machine.name() == name).with_context(|| format!("no host {name}"))
    }

    /// A directory of the lab's own. Gone after the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where logs of the latest lab of this name are, also after its end.
    pub fn logs(&self) -> PathBuf {
        disk::cache().join("logs").join(&self.name)
    }

    /// A program on the machine outside that ends with the lab: QEMU, and the brain.
    pub fn command(&self, program: &str) -> Command {
        joined(&[&self.group.unified().join(DAEMONS)], program)
    }
}

impl Drop for FullLab {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("lab {}: {error:#}; `cargo xtask lab down --name {0}` tries again", self.name);
        }
    }
}

fn group(name: &str, hierarchies: &Hierarchies) -> Group {
    hierarchies.group(&group_name(name, MACHINES), Span::Unified)
}
