//! How long one drain takes on a large host.

use super::spread::median;
use anyhow::{Context, Result, ensure};
use gnomon_agent::probe::{Scheduler, SchedulerOptions};
use gnomon_common::wire::VmId;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The VMs of a large host, and the threads of each.
const DRAINED: (usize, usize) = (200, 4);
/// How often they are drained.
const DRAINS: usize = 101;
/// A drain of them may take this long, in milliseconds.
const DRAIN_MS_MAX: f64 = 5.0;

/// Is a process of so many threads that sleep.
pub(super) fn sleepers(threads: usize) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    for _ in 1..threads {
        thread::spawn(|| sleep(Duration::MAX));
    }
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

/// Wall time of a drain of [`DRAINED`], in milliseconds: median and longest.
pub(super) fn drain_ms() -> Result<[f64; 2]> {
    let (vms, threads) = DRAINED;
    let mut sleepers = Sleepers(Vec::new());
    for _ in 0..vms {
        let mut child = Command::new(std::env::current_exe()?);
        let child = child.args(["--sleepers", &threads.to_string()]).stdout(Stdio::piped()).spawn()?;
        sleepers.0.push(child);
    }
    let mut scheduler = Scheduler::load(SchedulerOptions::default())?;
    for (number, child) in sleepers.0.iter_mut().enumerate() {
        child.stdout.as_mut().context("no pipe")?.read_exact(&mut [0])?;
        scheduler.track(VmId(Uuid::from_u128(number as u128)), &[child.id()])?;
    }
    let mut times_ms = Vec::new();
    for _ in 0..DRAINS {
        let began = Instant::now();
        let reading = scheduler.drain();
        times_ms.push(began.elapsed().as_secs_f64() * 1e3);
        let drained: usize = reading.vms.values().map(|counters| counters.threads as usize).sum();
        ensure!(drained == vms * threads, "{drained} threads are measured, not {}", vms * threads);
    }
    Ok([median(&times_ms).unwrap_or(f64::NAN), times_ms.iter().copied().fold(0.0, f64::max)])
}

/// What it took, in words.
pub(super) fn line(median_ms: f64, longest_ms: f64) -> String {
    let (vms, threads) = DRAINED;
    let verdict = if median_ms <= DRAIN_MS_MAX { "met" } else { "missed" };
    format!(
        "A drain of {vms} VMs with {threads} threads each takes {median_ms:.2} ms, the longest of {DRAINS} took {longest_ms:.2} ms: \
         aim of {DRAIN_MS_MAX} ms {verdict}\n"
    )
}
