//! What keeps the probes busy: processes of their own, so that they can be VMs.

use super::SLICE;
use super::process::ProcessTime;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write, pipe};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Fewer operations than this within so long are no workload.
const OPS_MIN: u64 = 100;
const START_MAX: Duration = Duration::from_secs(5);

/// A workload whose first thread sleeps once in each operation.
pub(super) struct Workload {
    child: Child,
}

impl Workload {
    pub(super) fn start(arguments: &[&OsStr]) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?).args(arguments).spawn()?;
        let workload = Self { child };
        let started = Instant::now();
        // A busy machine takes its time to begin.
        while workload.ops()? <= OPS_MIN {
            ensure!(started.elapsed() < START_MAX, "the workload does not run");
            sleep(SLICE);
        }
        Ok(workload)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn set_running(&self, running: bool) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), if running { Signal::CONT } else { Signal::STOP })?)
    }

    fn ops(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(switches.context("no voluntary_ctxt_switches in /proc/PID/status")?.trim().parse()?)
    }

    /// CPU time of an operation, in microseconds: unlike wall time, it does not depend on what else the CPU has to do.
    pub(super) fn us_per_op(&mut self) -> Result<f64> {
        let (before, mut time) = (self.ops()?, ProcessTime::watch(self.pid())?);
        let started = Instant::now();
        loop {
            sleep(SLICE);
            let (ops, run_ns) = (self.ops()? - before, time.run_ns()?);
            if ops > 0 {
                return Ok(run_ns as f64 / 1e3 / ops as f64);
            }
            // A machine whose own hypervisor runs others may stand still for longer than a slice.
            if let Some(status) = self.child.try_wait()? {
                bail!("the workload has ended: {status}");
            }
            ensure!(started.elapsed() < START_MAX, "the workload has stood still for {START_MAX:?}");
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Our own child; it never ends by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is a workload from now on: it ends with its parent and stays on its CPU.
pub(super) fn settle(cpu: usize) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    pin(cpu)
}

/// Two threads that pass a byte to and fro; one of them does something else each time.
pub(super) fn ping_pong(cpu: usize, mut also: impl FnMut() -> Result<()>) -> Result<()> {
    settle(cpu)?;
    let ((mut ping_reader, mut ping), (mut pong_reader, mut pong)) = (pipe()?, pipe()?);
    thread::spawn(move || -> std::io::Result<()> {
        let mut byte = [0];
        loop {
            ping_reader.read_exact(&mut byte)?;
            pong.write_all(&byte)?;
        }
    });
    let mut byte = [0];
    loop {
        also()?;
        ping.write_all(&byte)?;
        pong_reader.read_exact(&mut byte)?;
    }
}

/// As [`ping_pong`], with a process of its own for the second thread.
pub(super) fn ping_pong_apart(cpu: usize) -> Result<()> {
    settle(cpu)?;
    let mut other =
        Command::new(std::env::current_exe()?).arg("--pong").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut ping, mut pong_reader) = other.stdin.take().zip(other.stdout.take()).context("no pipes")?;
    let mut byte = [0];
    loop {
        ping.write_all(&byte)?;
        pong_reader.read_exact(&mut byte)?;
    }
}

/// The second process of that.
pub(super) fn pong(cpu: usize) -> Result<()> {
    settle(cpu)?;
    // Without the standard library's buffers.
    let (mut ping_reader, mut pong) = (fs::File::open("/dev/stdin")?, fs::File::create("/dev/stdout")?);
    let mut byte = [0];
    // Until the first process is ended.
    while ping_reader.read(&mut byte)? == 1 {
        pong.write_all(&byte)?;
    }
    Ok(())
}

/// The CPUs that this process may use.
pub(super) fn allowed_cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect())
}

/// Stays on a CPU.
pub(super) fn pin(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}
