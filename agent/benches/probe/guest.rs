//! What the scheduler probe costs a guest: how much it computes in a second of CPU, with the probe attached and without it.
//!
//! A real guest, under emulation where there is nothing better, is busy without pause on one CPU and tells on its console once a second what it has
//! computed so far. Slices with the probe and without it lie side by side, and every other pair begins without it, so that a drift of the
//! machine falls on both. A second of QEMU's CPU time is the measure, not one of the clock, because other processes take CPU from it; where the
//! machine is quiet both say the same.

use super::process::ProcessTime;
use super::spread::quantile;
use anyhow::{Context, Result, ensure};
use gnomon_agent::probe::{Scheduler, SchedulerOptions};
use gnomon_common::wire::VmId;
use serde::Serialize;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};
use xtask::lab::{self, Guest, GuestOptions, Lab, Options, Report};

/// The guest's seconds in a slice.
const SLICE_REPORTS: usize = 3;
/// How often its console is looked at: what the looks are late by is an error of both ends of a slice.
const CONSOLE_POLL: Duration = Duration::from_millis(2);
/// A guest that has CPU reports once a second.
const REPORTS_MAX: Duration = Duration::from_secs(30);

/// How much longer the guest takes for the same work, in percent.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    pairs: usize,
    median_percent: f64,
    /// The quartiles.
    lower_percent: f64,
    upper_percent: f64,
}

/// `None` where no lab can be made here, or no pair is wanted.
pub(super) fn measure(pairs: usize, cpu: usize) -> Result<Option<Summary>> {
    if pairs == 0 {
        return Ok(None);
    }
    if let Err(lack) = lab::check_machine() {
        println!("A guest is not measured: {lack:#}.");
        return Ok(None);
    }
    let lab = Lab::up(Options::new("benchprobe", 1))?;
    let mut options = GuestOptions::new("busy", "constant:1".parse()?);
    options.cpus = Some(cpu.to_string());
    let guest = lab.define(&lab.hosts()[0], &options)?;
    lab.boot(std::slice::from_ref(&guest))?;
    let qemu = qemu_pid(&guest)?;
    let mut slowdowns = Vec::new();
    for pair in 0..pairs {
        let with = || -> Result<f64> {
            let mut scheduler = Scheduler::load(SchedulerOptions::default())?;
            scheduler.track(VmId(guest.uuid()), &[qemu])?;
            work_per_cpu_s(&guest, qemu)
        };
        let (with, without) = if pair % 2 == 0 {
            let with = with()?;
            (with, work_per_cpu_s(&guest, qemu)?)
        } else {
            let without = work_per_cpu_s(&guest, qemu)?;
            (with()?, without)
        };
        slowdowns.push((without / with - 1.0) * 100.0);
    }
    let percent = |share| quantile(&slowdowns, share).context("no pair");
    Ok(Some(Summary {
        pairs,
        median_percent: percent(0.5)?,
        lower_percent: percent(0.25)?,
        upper_percent: percent(0.75)?,
    }))
}

/// What the guest computes in a second of its QEMU's CPU time.
fn work_per_cpu_s(guest: &Guest, qemu: u32) -> Result<f64> {
    let seen = guest.reports()?.len();
    let first = report(guest, seen + 1)?;
    let mut time = ProcessTime::watch(qemu)?;
    let last = report(guest, seen + 1 + SLICE_REPORTS)?;
    let run_s = time.run_ns()? as f64 / 1e9;
    ensure!(last.work > first.work && run_s > 0.0, "the guest computes nothing");
    Ok((last.work - first.work) as f64 / run_s)
}

/// The guest's report of this number, as soon as it is there.
fn report(guest: &Guest, number: usize) -> Result<Report> {
    let deadline = Instant::now() + REPORTS_MAX;
    loop {
        if let Some(report) = guest.reports()?.get(number - 1) {
            return Ok(*report);
        }
        ensure!(Instant::now() < deadline, "the guest has not reported for {REPORTS_MAX:?}");
        sleep(CONSOLE_POLL);
    }
}

/// QEMU's process: libvirt puts its main thread into this group.
fn qemu_pid(guest: &Guest) -> Result<u32> {
    let path = guest.cgroup_dir("cpuacct")?.join("emulator/cgroup.procs");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.lines().next().and_then(|pid| pid.parse().ok()).with_context(|| format!("no process in {}", path.display()))
}

impl Summary {
    pub(super) fn line(&self) -> String {
        let Self { pairs, median_percent, lower_percent, upper_percent } = self;
        format!(
            "A guest takes {median_percent:.2} % more CPU for the same work (median of {pairs} pairs; quartiles {lower_percent:.2} and \
             {upper_percent:.2} %)\n"
        )
    }
}
