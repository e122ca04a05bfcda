//! The sampler on more VMs than a machine can carry as guests: processes that stand for them.

use super::spread::median;
use super::{mib, millicores, verdict, watch};
use anyhow::{Context, Result};
use gnomon_agent::cost::{Budget, CostControl, Standby};
use gnomon_agent::host::inventory::memory::MemoryFacts;
use gnomon_agent::host::inventory::{Inventory, VmFacts};
use gnomon_agent::host::process::{Proc, ProcStat, QemuProcess, ThreadRole, VmThread};
use gnomon_agent::probe::{
    self, BlockProbe, DropProbe, ExitProbe, MemoryProbe, QueueProbe, Scheduler, SchedulerOptions,
};
use gnomon_agent::reading::ExitReading;
use gnomon_agent::sample::{self, DeviceStandby, SampleMetrics, SamplerConfig, Sources, VmReadings};
use gnomon_common::wire::{VmId, VmState};
use prometheus_client::registry::Registry;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;
use std::io::{BufRead, BufReader, Read, Write, stdin};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as channel};
use uuid::Uuid;

/// Threads of a process that stands for a VM.
const THREADS: usize = 4;
/// How often each of them wakes.
const PAUSE: Duration = Duration::from_millis(100);
/// The sampler's first ticks make what later ones use.
const SETTLE: Duration = Duration::from_secs(2);
/// Interval of samples and of windows, as for real guests.
const SAMPLE_MS: u32 = 1000;
/// For so many there is an aim, in cores.
const AIM: (usize, f64) = (50, 0.01);

/// What so many process groups cost: CPU in cores, medians of all rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    groups: usize,
    sampler_cores: f64,
    programs_cores: f64,
    total_cores: f64,
    resident_bytes: u64,
    programs: Vec<watch::Program>,
}

/// Is a process that stands for a VM: its threads wake and sleep.
pub(super) fn stand_in() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    for _ in 1..THREADS {
        thread::spawn(|| {
            loop {
                sleep(PAUSE);
            }
        });
    }
    println!();
    loop {
        sleep(PAUSE);
    }
}

/// Is the sampler of the processes whose ids are on standard input, one a line, until that ends.
pub(super) fn sample() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let proc = Proc::default();
    let mut vms = Vec::new();
    for (number, pid) in BufReader::new(stdin()).lines().enumerate() {
        let pid = pid?.parse()?;
        let ProcStat { start_ticks, .. } = proc.stat(pid)?;
        let role = |tid: &u32| if *tid == pid { ThreadRole::Emulator } else { ThreadRole::Vcpu(0) };
        let threads = proc.tids(pid)?.into_iter().map(|tid| VmThread { tid, role: role(&tid) }).collect();
        vms.push(VmFacts {
            id: VmId(Uuid::from_u128(number as u128)),
            name: format!("group-{number}"),
            state: VmState::Running,
            process: Some(QemuProcess { pid, start_ticks, threads, vhost_pids: Vec::new() }),
            cgroup: None,
            vcpus: 1,
            vcpus_max: 1,
            memory_bytes: 1 << 30,
            balloon_bytes: None,
            memory: MemoryFacts::default(),
            interfaces: Vec::new(),
            disks_unseen: false,
            guest_disks: None,
            terms: None,
            keepsake: None,
            shadow_of: None,
            execution_changes: 0,
        });
    }
    let inventory = Inventory { vms, complete: true, taken: Instant::now(), hypervisor: String::new() };
    let (_publish, inventory) = channel::channel(Arc::new(inventory));
    let mut registry = Registry::default();
    let sources = Sources {
        cpu: Box::new(Scheduler::load(SchedulerOptions::default())?),
        disks: Some(Box::new(Standby::of(BlockProbe::load()?))),
        drops: Some(Box::new(DeviceStandby::of(DropProbe::load()?))),
        queues: Some(Box::new(DeviceStandby::of(QueueProbe::load()?))),
        reclaim: Some(Box::new(Standby::of(MemoryProbe::load()?))),
        exits: ExitProbe::load().ok().map(|probe| Box::new(Standby::of(probe)) as VmReadings<ExitReading>),
        // Nothing is to be given up while it is measured.
        cost: CostControl::register(Budget { budget_cores: 1.0, ..Budget::default() }, SAMPLE_MS, &mut registry),
    };
    probe::give_back_memory();
    let config = SamplerConfig { sample_ms: SAMPLE_MS, window_ms: SAMPLE_MS, ..SamplerConfig::default() };
    let (report, mut reports) = mpsc::channel(1);
    let _sampler = sample::spawn(config, inventory, sources, report, SampleMetrics::default())?;
    println!();
    while reports.blocking_recv().is_some() {}
    Ok(())
}

/// Our own children, none of which ends by itself.
#[derive(Default)]
struct Children(Vec<Child>);

impl Children {
    /// Starts this program anew, as something else.
    fn start(&mut self, what: &str) -> Result<&mut Child> {
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.arg(what).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        self.0.push(child);
        self.0.last_mut().context("no child")
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until a child says that it is ready.
fn ready(child: &mut Child) -> Result<()> {
    Ok(child.stdout.as_mut().context("no pipe")?.read_exact(&mut [0])?)
}

/// Measures the sampler on so many process groups.
pub(super) fn measure(groups: usize, rounds: usize, turn: Duration) -> Result<Figures> {
    let mut children = Children::default();
    let mut pids = String::new();
    for _ in 0..groups {
        let child = children.start("--stand-in")?;
        ready(child)?;
        pids += &format!("{}\n", child.id());
    }
    let sampler = children.start("--sampler")?;
    sampler.stdin.take().context("no pipe")?.write_all(pids.as_bytes())?;
    ready(sampler).context("the sampler does not start")?;
    let pid = sampler.id();
    sleep(SETTLE);
    let (mut own, mut programs, mut totals, mut resident_bytes, mut last) = (vec![], vec![], vec![], 0, vec![]);
    for _ in 0..rounds {
        let used = watch::process(pid, turn, || Ok(()))?;
        last = watch::programs(pid)?;
        let cores = watch::cores(&last);
        own.push(used.cores);
        programs.push(cores);
        totals.push(used.cores + cores);
        resident_bytes = resident_bytes.max(used.resident_bytes);
    }
    let median = |samples: &[f64]| median(samples).context("no round");
    Ok(Figures {
        groups,
        sampler_cores: median(&own)?,
        programs_cores: median(&programs)?,
        total_cores: median(&totals)?,
        resident_bytes,
        programs: last,
    })
}

pub(super) fn header() -> String {
    line(["groups", "sampler", "programs", "total", "RSS MiB", ""])
}

fn line(cells: [&str; 6]) -> String {
    let [groups, sampler, programs, total, resident, verdict] = cells;
    format!("{groups:<28} {sampler:>7} {programs:>8} {total:>8} {resident:>8}  {verdict}\n")
}

impl Figures {
    pub(super) fn row(&self) -> String {
        let (groups, cores) = AIM;
        let met = verdict(self.total_cores <= cores);
        let verdict = if self.groups == groups { format!("aim of {} {met}", millicores(cores)) } else { String::new() };
        line([
            &self.groups.to_string(),
            &millicores(self.sampler_cores),
            &millicores(self.programs_cores),
            &millicores(self.total_cores),
            &mib(self.resident_bytes),
            &verdict,
        ])
    }
}
