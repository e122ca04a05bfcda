//! How long one drain takes on a large host.

use super::spread::median;
use anyhow::{Context, Result, ensure};
use gnomon_agent::probe::{BlockProbe, MemoryProbe, Scheduler, SchedulerOptions};
use gnomon_common::wire::VmId;
use serde::Serialize;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The VMs of a large host, and the threads of each.
const DRAINED: (usize, usize) = (200, 4);
/// How often they are drained.
const DRAINS: usize = 101;
/// A drain of them, by all probes that are read each second, may take this long, in milliseconds.
const DRAIN_MS_MAX: f64 = 5.0;

/// What a drain takes, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Summary {
    scheduler_ms: f64,
    block_ms: f64,
    /// Read once a window.
    memory_ms: f64,
    /// Scheduler and block, one after the other: what each second takes.
    each_second_ms: f64,
    each_second_ms_max: f64,
    /// VMs that the block probe tells of: none where temporary files are on no disk.
    vms_with_disks: usize,
}

/// Is a process of so many threads that sleep. First, once it is told to, it writes a block to a disk.
pub(super) fn sleepers(threads: usize) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    for _ in 1..threads {
        thread::spawn(|| sleep(Duration::MAX));
    }
    println!();
    std::io::stdin().read_exact(&mut [0])?;
    let mut file = tempfile::tempfile()?;
    file.write_all(&[1; 4096])?;
    file.sync_all()?;
    println!();
    sleep(Duration::MAX);
    Ok(())
}

/// Our own children, none of which ends by itself.
struct Sleepers(Vec<Child>);

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Wall time of drains of [`DRAINED`].
pub(super) fn measure() -> Result<Summary> {
    let (vms, threads) = DRAINED;
    let mut sleepers = Sleepers(Vec::new());
    for _ in 0..vms {
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["--sleepers", &threads.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        sleepers.0.push(child.spawn()?);
    }
    let mut scheduler = Scheduler::load(SchedulerOptions::default())?;
    let (mut block, mut memory) = (BlockProbe::load()?, MemoryProbe::load()?);
    for (number, child) in sleepers.0.iter_mut().enumerate() {
        let (vm, tgids) = (VmId(Uuid::from_u128(number as u128)), [child.id()]);
        await_line(child)?;
        scheduler.track(vm, &tgids)?;
        block.track(vm, &tgids, &[])?;
        memory.track(vm, &tgids)?;
        child.stdin.as_mut().context("no pipe")?.write_all(&[1])?;
        await_line(child)?;
    }
    let mut times_ms = [const { Vec::new() }; 3];
    let mut vms_with_disks = 0;
    for _ in 0..DRAINS {
        let reading = timed(&mut times_ms[0], || Ok(scheduler.drain()))?;
        let drained: usize = reading.vms.values().map(|counters| counters.threads as usize).sum();
        ensure!(drained == vms * threads, "{drained} threads are measured, not {}", vms * threads);
        let reading = timed(&mut times_ms[1], || Ok(block.drain()?))?;
        vms_with_disks = reading.vms.values().filter(|disks| !disks.is_empty()).count();
        let reading = timed(&mut times_ms[2], || Ok(memory.drain()?))?;
        ensure!(reading.len() == vms, "{} VMs' memory is told, not {vms}", reading.len());
    }
    let each_second_ms: Vec<f64> = times_ms[0].iter().zip(&times_ms[1]).map(|(cpu, disks)| cpu + disks).collect();
    let [scheduler_ms, block_ms, memory_ms] = times_ms.map(|times| median(&times).unwrap_or(f64::NAN));
    Ok(Summary {
        scheduler_ms,
        block_ms,
        memory_ms,
        each_second_ms: median(&each_second_ms).unwrap_or(f64::NAN),
        each_second_ms_max: each_second_ms.into_iter().fold(0.0, f64::max),
        vms_with_disks,
    })
}

fn await_line(child: &mut Child) -> Result<()> {
    Ok(child.stdout.as_mut().context("no pipe")?.read_exact(&mut [0])?)
}

fn timed<T>(times_ms: &mut Vec<f64>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let done = work()?;
    times_ms.push(began.elapsed().as_secs_f64() * 1e3);
    Ok(done)
}

impl Summary {
    /// What it took, in words.
    pub(super) fn line(&self) -> String {
        let (vms, threads) = DRAINED;
        let verdict = if self.each_second_ms <= DRAIN_MS_MAX { "met" } else { "missed" };
        format!(
            "A drain of {vms} VMs with {threads} threads each, {} of them with a disk, takes {:.2} ms: {:.2} of the scheduler's probe and \
             {:.2} of the block probe; the longest of {DRAINS} took {:.2} ms: aim of {DRAIN_MS_MAX} ms {verdict}. Once a window the \
             memory probe takes {:.2} ms\n",
            self.vms_with_disks,
            self.each_second_ms,
            self.scheduler_ms,
            self.block_ms,
            self.each_second_ms_max,
            self.memory_ms,
        )
    }
}
