//! What the probe's programs cost, by the kernel's own count.

use super::ProbeError;
use aya::Ebpf;
use aya::sys::{Stats, enable_stats};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What one program has cost since it was loaded. Stays at 0 while nobody holds a [`StatsEnabled`] (or has set
/// `kernel.bpf_stats_enabled`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    /// The program's name.
    pub program: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// How long it ran, all CPUs together, in nanoseconds. Includes the two clock readings of the measurement: about 50 ns per run
    /// for a program that does nothing.
    pub run_ns: u64,
}

/// While this lives, the kernel measures every BPF program of the host, which costs each run about 20 ns.
#[derive(Debug)]
pub struct StatsEnabled(#[expect(dead_code, reason = "held, not used: closing it ends the measurement")] OwnedFd);

impl StatsEnabled {
    /// Starts measuring.
    ///
    /// # Errors
    /// Where the kernel is older than 5.8, or the process lacks CAP_SYS_ADMIN.
    pub fn new() -> Result<Self, ProbeError> {
        enable_stats(Stats::RunTime)
            .map(Self)
            .map_err(|e| ProbeError::System { what: "turning on BPF run-time statistics", source: e.io_error })
    }
}

/// The cost of the named programs, those not loaded left out.
pub(super) fn of_programs(ebpf: &Ebpf, programs: &[&'static str]) -> Result<Vec<ProgramCost>, ProbeError> {
    let loaded = programs.iter().filter_map(|&name| Some((name, ebpf.program(name)?.fd().ok()?)));
    loaded.map(|(name, fd)| of_fd(name, fd.as_fd())).collect()
}

/// aya's program information has no run counters; the kernel also shows them beside the file descriptor.
fn of_fd(program: &'static str, fd: BorrowedFd<'_>) -> Result<ProgramCost, ProbeError> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map_err(|source| {
        ProbeError::System { what: "reading a BPF program's statistics in /proc/self/fdinfo", source }
    })?;
    Ok(ProgramCost { program, runs: field(&text, "run_cnt:"), run_ns: field(&text, "run_time_ns:") })
}

fn field(text: &str, name: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}
