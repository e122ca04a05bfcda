//! One process over a span of time: CPU, memory, and what its eBPF programs ran.

use super::process::ProcessTime;
use super::programs;
use anyhow::{Context, Result};
use gnomon_agent::probe::StatsEnabled;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long eBPF programs are timed, after the process itself was measured: the timing costs, too.
const TIMED: Duration = Duration::from_secs(1);

/// What a process used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    /// CPU, in cores.
    pub(super) cores: f64,
    /// The most that was resident, in bytes.
    pub(super) resident_bytes: u64,
}

/// Watches a process for `turn`, and does `each_second`.
pub(super) fn process(pid: u32, turn: Duration, mut each_second: impl FnMut() -> Result<()>) -> Result<Use> {
    let (began, mut time) = (Instant::now(), ProcessTime::watch(pid)?);
    let (mut run_ns, mut resident_bytes) = (0, 0);
    for second in 1..=turn.as_secs() {
        each_second()?;
        sleep(Duration::from_secs(second).saturating_sub(began.elapsed()));
        run_ns = time.run_ns()?;
        resident_bytes = resident_bytes.max(resident(pid)?);
    }
    Ok(Use { cores: run_ns as f64 / 1e9 / began.elapsed().as_secs_f64(), resident_bytes })
}

/// What is resident of a process, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} has ended"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no VmRSS")? * 1024)
}

/// What one eBPF program did.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Program {
    program: String,
    runs_per_s: f64,
    /// The kernel's own timing, some 20 to 50 ns a run, is part of it.
    cores: f64,
}

/// What programs ran together, in cores.
pub(super) fn cores(programs: &[Program]) -> f64 {
    // A sum of none would be -0.
    programs.iter().fold(0.0, |sum, program| sum + program.cores)
}

/// What the eBPF programs of a process ran, if it has some.
pub(super) fn programs(pid: u32) -> Result<Vec<Program>> {
    if programs::of_process(pid)?.is_empty() {
        return Ok(Vec::new());
    }
    let stats = StatsEnabled::new()?;
    let (began, before) = (Instant::now(), programs::of_process(pid)?);
    sleep(TIMED);
    let (elapsed_s, after) = (began.elapsed().as_secs_f64(), programs::of_process(pid)?);
    drop(stats);
    let mut spent: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (before, after) in before.iter().zip(&after).filter(|(before, after)| before.program == after.program) {
        let (runs, run_ns) = spent.entry(after.program.clone()).or_default();
        *runs += after.runs.saturating_sub(before.runs);
        *run_ns += after.run_ns.saturating_sub(before.run_ns);
    }
    let program = |(program, (runs, run_ns)): (String, (u64, u64))| Program {
        program,
        runs_per_s: runs as f64 / elapsed_s,
        cores: run_ns as f64 / 1e9 / elapsed_s,
    };
    Ok(spent.into_iter().map(program).collect())
}
