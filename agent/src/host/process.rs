//! Processes of the host: which one is a VM's QEMU, what its threads are for, how much memory it holds.

mod qemu;
mod thread;

pub use qemu::{ProcessScan, QemuProcess};
pub use thread::{ThreadRole, VmThread};

use super::kernel_file::{ReadError, keyed_u64, read, read_text, read_value};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A `/proc`: the host's own, or a directory that looks like one (in tests).
#[derive(Clone, Debug)]
pub struct Proc {
    root: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Self::at("/proc")
    }
}

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcStat {
    /// The command name, at most 15 bytes for a user thread.
    pub comm: String,
    /// The parent's process id; 2 (`kthreadd`) for kernel threads.
    pub parent: u32,
    /// Page faults of all its threads that needed no I/O, since it started.
    pub minor_faults: u64,
    /// Page faults of all its threads that needed I/O, since it started.
    pub major_faults: u64,
    /// When it started, in clock ticks since boot: with the pid, an identity that pid re-use cannot forge.
    pub start_ticks: u64,
}

/// What a process was charged with since it began, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIoReading {
    /// When it was read: `CLOCK_MONOTONIC`, in nanoseconds.
    pub taken_ns: u64,
    /// Fetched from a device.
    pub read_bytes: u64,
    /// Sent to a device, or made dirty in the page cache.
    pub write_bytes: u64,
}

/// The process id of `kthreadd`, the parent of all kernel threads.
const KTHREADD: u32 = 2;

/// Where a process's memory is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// In memory (`VmRSS`). Shared pages count for each process that maps them.
    pub resident_bytes: u64,
    /// Swapped out (`VmSwap`).
    pub swapped_bytes: u64,
}

impl Proc {
    /// The `/proc` mounted at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Path of `name` below this `/proc`.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// `/proc/PID/stat`.
    pub fn stat(&self, pid: u32) -> Result<ProcStat, ReadError> {
        read_value(&self.path(format!("{pid}/stat")), "a command name and at least 20 fields behind it", parse_stat)
    }

    /// Where a process's memory is.
    pub fn footprint(&self, pid: u32) -> Result<Footprint, ReadError> {
        let bytes = |text: &str, key: &str| keyed_u64(text, key)?.checked_mul(1024);
        read_value(&self.path(format!("{pid}/status")), "VmRSS", |text| {
            // A kernel without swap has no such line.
            let swapped_bytes = bytes(text, "VmSwap").unwrap_or(0);
            Some(Footprint { resident_bytes: bytes(text, "VmRSS")?, swapped_bytes })
        })
    }

    /// What a process was charged with by now (`/proc/PID/io`), threads that have ended included. Root's, or one's own, to read.
    pub fn io(&self, pid: u32, taken_ns: u64) -> Result<ProcessIoReading, ReadError> {
        read_value(&self.path(format!("{pid}/io")), "read_bytes and write_bytes", |text| {
            let (read_bytes, write_bytes) = (keyed_u64(text, "read_bytes")?, keyed_u64(text, "write_bytes")?);
            Some(ProcessIoReading { taken_ns, read_bytes, write_bytes })
        })
    }

    /// CPU time that a thread has used, in nanoseconds, where the kernel keeps `schedstat`.
    pub fn thread_run_ns(&self, pid: u32, tid: u32) -> Result<u64, ReadError> {
        let run_ns = |text: &str| text.split_ascii_whitespace().next()?.parse().ok();
        read_value(&self.path(format!("{pid}/task/{tid}/schedstat")), "a number", run_ns)
    }

    /// The same for all threads that a process has now.
    pub fn run_ns(&self, pid: u32) -> Result<u64, ReadError> {
        let mut sum_ns: u64 = 0;
        for tid in self.tids(pid)? {
            match self.thread_run_ns(pid, tid) {
                Err(error) if error.is_gone() => {}
                run_ns => sum_ns = sum_ns.saturating_add(run_ns?),
            }
        }
        Ok(sum_ns)
    }

    /// The arguments a process was started with.
    pub fn arguments(&self, pid: u32) -> Result<Vec<String>, ReadError> {
        let bytes = read(&self.path(format!("{pid}/cmdline")))?;
        Ok(bytes.split(|&b| b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect())
    }

    /// Every process id, in no particular order.
    pub fn pids(&self) -> Result<Vec<u32>, ReadError> {
        numbered_entries(&self.root)
    }

    /// Every thread id of a process, its leader's included, ascending.
    pub fn tids(&self, pid: u32) -> Result<Vec<u32>, ReadError> {
        let mut tids = numbered_entries(&self.path(format!("{pid}/task")))?;
        tids.sort_unstable();
        Ok(tids)
    }

    /// A thread's command name.
    pub fn thread_name(&self, pid: u32, tid: u32) -> Result<String, ReadError> {
        read_text(&self.path(format!("{pid}/task/{tid}/comm"))).map(|name| name.trim_end_matches('\n').to_owned())
    }

    /// The thread of a QEMU that reads its monitor's questions, where it has one with such a name.
    pub fn monitor_tid(&self, pid: u32) -> Option<u32> {
        let is_it = |&tid: &u32| self.thread_name(pid, tid).is_ok_and(|name| name == thread::MONITOR);
        self.tids(pid).ok()?.into_iter().find(is_it)
    }

    /// Whether this kernel runs vhost workers as kernel threads of their own (until 6.4) rather than as threads of QEMU.
    ///
    /// A distribution may have backported the change, so "yes" only means that one has to look.
    pub fn may_have_vhost_kthreads(&self) -> bool {
        let release = read_text(&self.path("sys/kernel/osrelease")).unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (6, 4)
    }

    /// The vhost workers that are kernel threads: their process id, and the thread id of the owner in their name.
    pub fn vhost_kthreads(&self) -> Result<Vec<(u32, u32)>, ReadError> {
        let workers = self.pids()?.into_iter().filter_map(|pid| {
            let stat = self.stat(pid).ok()?;
            let owner = thread::vhost_owner(&stat.comm)?;
            (stat.parent == KTHREADD).then_some((pid, owner))
        });
        Ok(workers.collect())
    }
}

/// Entries of a directory whose names are numbers.
fn numbered_entries(path: &Path) -> Result<Vec<u32>, ReadError> {
    let entries = std::fs::read_dir(path).map_err(|source| ReadError::from_io(path, source))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Parses `PID (COMM) STATE PPID ...`. COMM may contain blanks and parentheses, so it ends at the last closing one.
fn parse_stat(text: &str) -> Option<ProcStat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (_, comm) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    // proc(5): parent is field 4, minflt field 10, majflt field 12, starttime field 22.
    let minor_faults = fields.nth(5)?.parse().ok()?;
    let major_faults = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(9)?.parse().ok()?;
    Some(ProcStat { comm: comm.to_owned(), parent, minor_faults, major_faults, start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_command_name_may_hold_blanks_and_parentheses() {
        let text = "42 (CPU 0/KVM) (x) S 7 1 1 0 -1 4194560 1 0 77 0 3 4 0 0 20 0 5 0 9876 1 2 3";
        let expected =
            ProcStat { comm: "CPU 0/KVM) (x".into(), parent: 7, minor_faults: 1, major_faults: 77, start_ticks: 9876 };
        assert_eq!(parse_stat(text), Some(expected));
    }

    #[test]
    fn this_very_process_is_read_right() {
        let proc = Proc::default();
        let me = std::process::id();
        assert_eq!(proc.stat(me).unwrap().parent, std::os::unix::process::parent_id());
        assert!(proc.stat(me).unwrap().start_ticks > 0);
        assert!(proc.tids(me).unwrap().contains(&me));
        assert!(proc.footprint(me).unwrap().resident_bytes > 100 << 10);
        let (before, data) = (proc.io(me, 1).unwrap(), vec![1; 1 << 20]);
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        std::fs::write(file.path(), data).unwrap();
        file.as_file().sync_all().unwrap();
        let after = proc.io(me, 2).unwrap();
        assert!(after.write_bytes >= before.write_bytes + (1 << 20), "{before:?} {after:?}");
        assert_eq!(proc.arguments(me).unwrap()[0], std::env::args().next().unwrap());
    }

    #[test]
    fn a_process_that_does_not_exist_is_gone() {
        assert!(Proc::default().stat(u32::MAX).unwrap_err().is_gone());
    }

    #[test]
    fn old_kernels_are_searched_for_vhost_threads_and_new_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("sys/kernel");
        std::fs::create_dir_all(&release).unwrap();
        for (text, old) in [("6.1.0-28-amd64\n", true), ("6.4.0\n", false), ("6.12-rc1\n", false), ("7.0.1\n", false)] {
            std::fs::write(release.join("osrelease"), text).unwrap();
            assert_eq!(Proc::at(dir.path()).may_have_vhost_kthreads(), old, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_stat_line_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = parse_stat(&text);
        }

        #[test]
        fn any_command_name_is_given_back(
            comm in "[ -~]{0,15}", parent in 0u32.., minor_faults: u64, major_faults: u64, start_ticks: u64,
        ) {
            let text = format!("1 ({comm}) S {parent} 1 1 0 -1 0 {minor_faults} 0 {major_faults} 0 0 0 0 0 20 0 1 0 {start_ticks} 0 0");
            prop_assert_eq!(parse_stat(&text), Some(ProcStat { comm, parent, minor_faults, major_faults, start_ticks }));
        }
    }
}
