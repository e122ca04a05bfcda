//! CPU time of a process, to the nanosecond.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;

/// CPU time of a process since it is watched. A thread that ends takes what it used since the last look with it, so one looks often.
pub(crate) struct ProcessTime {
    pid: u32,
    /// By thread: what it had used when it was first and last seen, in nanoseconds.
    threads: BTreeMap<u32, (u64, u64)>,
}

impl ProcessTime {
    /// Watches a process from now on.
    pub(crate) fn watch(pid: u32) -> Result<Self> {
        let threads = threads(pid)?.into_iter().map(|(tid, run_ns)| (tid, (run_ns, run_ns))).collect();
        Ok(Self { pid, threads })
    }

    /// What all its threads have used since, in nanoseconds.
    pub(crate) fn run_ns(&mut self) -> Result<u64> {
        for (tid, run_ns) in threads(self.pid)? {
            // All that a thread used which was born meanwhile is since.
            self.threads.entry(tid).or_insert((0, run_ns)).1 = run_ns;
        }
        Ok(self.threads.values().map(|(first, last)| last.saturating_sub(*first)).sum())
    }
}

/// The threads of a process, and what each has used.
fn threads(pid: u32) -> Result<BTreeMap<u32, u64>> {
    let tasks = format!("/proc/{pid}/task");
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(&tasks).with_context(|| format!("process {pid} has ended"))? {
        let entry = entry?;
        // It may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
        let run_ns = text.split(' ').next().and_then(|word| word.parse().ok()).context("empty schedstat")?;
        threads.insert(entry.file_name().to_string_lossy().parse()?, run_ns);
    }
    ensure!(!threads.is_empty(), "process {pid} has ended");
    Ok(threads)
}
