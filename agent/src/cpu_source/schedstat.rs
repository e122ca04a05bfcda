//! Readings from `/proc/PID/task/TID/schedstat`: nanoseconds run, nanoseconds waited on a run-queue, and times on a CPU.
//!
//! What is lost against eBPF: the histogram of waits, wake-ups and preemptions; what a thread ran and waited between the last
//! reading and its end; a wait in progress (the kernel books it when it ends) and up to a tick of a run in progress. Format:
//! `Documentation/scheduler/sched-stats.rst` in the kernel's sources.

use crate::cost::Costed;
use crate::host::kernel_file::{ReadError, read_value};
use crate::host::process::Proc;
use crate::reading::{SchedCounters, SchedReading};
use crate::sample::{SchedSource, SourceError};
use gnomon_common::abi::sched::THREADS_MAX;
use gnomon_common::wire::VmId;
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

/// Why the kernel's counts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchedstatError {
    /// There is no such file, or it may not be read.
    #[error("reading {path}: {source}; the kernel keeps it if built with CONFIG_SCHED_INFO")]
    Unreadable {
        /// The agent's own.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there and the kernel does not count.
    #[error("{path} says that this thread has never run: the kernel counts only when started with `delayacct`")]
    NotCounting {
        /// The agent's own.
        path: PathBuf,
    },
}

/// The kernel's counts of all threads of tracked VMs.
#[derive(Debug)]
pub struct Schedstat {
    proc: Proc,
    vms: BTreeMap<VmId, Tracked>,
    threads_max: usize,
    unmeasured: u64,
}

#[derive(Debug, Default)]
struct Tracked {
    tgids: Vec<u32>,
    threads: BTreeMap<u32, Seen>,
    sums: SchedCounters,
    /// Threads that found no room at the last reading.
    turned_away: BTreeSet<u32>,
}

/// What of a thread's counts is in the sums already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    run_ns: u64,
    wait_ns: u64,
}

impl Schedstat {
    /// Finds out whether this kernel counts.
    ///
    /// # Errors
    /// If it does not.
    pub fn open() -> Result<Self, SchedstatError> {
        Self::at(Proc::default())
    }

    fn at(proc: Proc) -> Result<Self, SchedstatError> {
        let path = proc.path("self/schedstat");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| SchedstatError::Unreadable { path: path.clone(), source })?;
        // Whoever reads this runs, so a kernel that counts cannot say 0.
        match parse(&text) {
            Some(seen) if seen.run_ns > 0 => {
                Ok(Self { proc, vms: BTreeMap::new(), threads_max: THREADS_MAX, unmeasured: 0 })
            }
            _ => Err(SchedstatError::NotCounting { path }),
        }
    }

    /// How many threads a VM may have: all that are left of the bound by the others.
    fn capacity(&self, vm: VmId) -> usize {
        let others = self.vms.iter().filter(|(other, _)| **other != vm).map(|(_, tracked)| tracked.threads.len());
        self.threads_max.saturating_sub(others.sum())
    }
}

impl Tracked {
    /// Books what the threads of these processes have counted since the last time; returns how many found no room for the first
    /// time. The threads of `new` processes have counted before they were tracked; others that are met for the first time were
    /// born since, and all they have counted is the VM's.
    fn read(&mut self, proc: &Proc, new: &[u32], capacity: usize) -> Result<u64, ReadError> {
        let mut present = Vec::new();
        for &tgid in &self.tgids {
            present.extend(read_process(proc, tgid)?.into_iter().map(|(tid, seen)| (tgid, tid, seen)));
        }
        let known = present.iter().filter(|(_, tid, _)| self.threads.contains_key(tid)).count();
        let mut room = capacity.saturating_sub(known);
        let (mut threads, mut turned_away) = (BTreeMap::new(), BTreeSet::new());
        for (tgid, tid, seen) in present {
            let before = match self.threads.get(&tid) {
                Some(before) if before.run_ns <= seen.run_ns && before.wait_ns <= seen.wait_ns => *before,
                // Less than before: another thread under the same id.
                Some(_) => Seen::default(),
                None if room == 0 => {
                    turned_away.insert(tid);
                    continue;
                }
                None => {
                    room -= 1;
                    let unborn = !new.contains(&tgid) && !self.turned_away.contains(&tid);
                    if unborn { Seen::default() } else { seen }
                }
            };
            self.sums.run_ns += seen.run_ns - before.run_ns;
            self.sums.wait_ns += seen.wait_ns - before.wait_ns;
            threads.insert(tid, seen);
        }
        self.sums.threads = u32::try_from(threads.len()).unwrap_or(u32::MAX);
        self.threads = threads;
        let first_time = turned_away.difference(&self.turned_away).count() as u64;
        self.turned_away = turned_away;
        Ok(first_time)
    }
}

/// The counts of a process's threads. One that has ended has none; one that cannot be read for another reason makes the reading
/// fail: taken for ended, it would later be taken for new.
fn read_process(proc: &Proc, tgid: u32) -> Result<Vec<(u32, Seen)>, ReadError> {
    let tids = match proc.tids(tgid) {
        Err(error) if error.is_gone() => return Ok(Vec::new()),
        tids => tids?,
    };
    let mut threads = Vec::with_capacity(tids.len());
    for tid in tids {
        match read_value(&proc.path(format!("{tgid}/task/{tid}/schedstat")), "two numbers", parse) {
            Err(error) if error.is_gone() => {}
            seen => threads.push((tid, seen?)),
        }
    }
    Ok(threads)
}

fn parse(text: &str) -> Option<Seen> {
    let mut fields = text.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    Some(Seen { run_ns: fields.next()??, wait_ns: fields.next()?? })
}

impl Costed for Schedstat {
    fn name(&self) -> &'static str {
        "schedstat"
    }
}

impl SchedSource for Schedstat {
    fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), SourceError> {
        let capacity = self.capacity(vm);
        let mut tracked = self.vms.remove(&vm).unwrap_or_default();
        let new: Vec<u32> = tgids.iter().copied().filter(|tgid| !tracked.tgids.contains(tgid)).collect();
        // The last counts of processes no longer named stay with the VM.
        let read = tracked.read(&self.proc, &[], capacity).and_then(|before| {
            tracked.tgids = tgids.to_vec();
            Ok(before + tracked.read(&self.proc, &new, capacity)?)
        });
        // Kept also after a failure: what was counted stays, and the same call is made again.
        self.vms.insert(vm, tracked);
        self.unmeasured += read?;
        Ok(())
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), SourceError> {
        self.vms.remove(&vm);
        Ok(())
    }

    fn drain(&mut self) -> Result<SchedReading, SourceError> {
        let taken = clock_gettime(ClockId::Monotonic);
        let total: usize = self.vms.values().map(|tracked| tracked.threads.len()).sum();
        let mut room = self.threads_max.saturating_sub(total);
        for tracked in self.vms.values_mut() {
            let capacity = room + tracked.threads.len();
            self.unmeasured += tracked.read(&self.proc, &[], capacity)?;
            room = capacity.saturating_sub(tracked.threads.len());
        }
        Ok(SchedReading {
            taken_ns: taken.tv_sec as u64 * 1_000_000_000 + taken.tv_nsec as u64,
            vms: self.vms.iter().map(|(&vm, tracked)| (vm, tracked.sums)).collect(),
            culprits: BTreeMap::new(),
            threads_unmeasured: self.unmeasured,
            turn: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use tempfile::TempDir;

    const VM: VmId = VmId(uuid::Uuid::nil());

    /// A `/proc` of files.
    struct Files(TempDir);

    impl Files {
        fn new(own: &str) -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            fs::create_dir(files.0.path().join("self")).unwrap();
            fs::write(files.0.path().join("self/schedstat"), own).unwrap();
            files
        }

        fn thread(&self, pid: u32, tid: u32, run_ns: u64, wait_ns: u64) {
            let task = self.0.path().join(format!("{pid}/task/{tid}"));
            fs::create_dir_all(&task).unwrap();
            fs::write(task.join("schedstat"), format!("{run_ns} {wait_ns} 9\n")).unwrap();
        }

        fn end(&self, pid: u32, tid: u32) {
            fs::remove_dir_all(self.0.path().join(format!("{pid}/task/{tid}"))).unwrap();
        }

        fn open(&self) -> Result<Schedstat, SchedstatError> {
            Schedstat::at(Proc::at(self.0.path()))
        }
    }

    fn sums(source: &mut Schedstat) -> (u64, u64, u32) {
        let counters = source.drain().unwrap().vms[&VM];
        assert_eq!(counters.events, None, "the kernel's counts tell nothing of events");
        (counters.run_ns, counters.wait_ns, counters.threads)
    }

    #[test]
    fn a_kernel_that_does_not_count_is_found_out() {
        assert!(matches!(Files::new("0 0 0\n").open(), Err(SchedstatError::NotCounting { .. })));
        assert!(matches!(Files::new("what\n").open(), Err(SchedstatError::NotCounting { .. })));
        let files = Files::new("5 0 1\n");
        files.open().unwrap();
        fs::remove_file(files.0.path().join("self/schedstat")).unwrap();
        assert!(matches!(files.open(), Err(SchedstatError::Unreadable { .. })));
    }

    #[test]
    fn counting_begins_with_tracking_and_threads_born_later_count_whole() {
        let files = Files::new("5 0 1\n");
        files.thread(7, 7, 1_000, 100);
        let mut source = files.open().unwrap();
        source.track(VM, &[7]).unwrap();
        assert_eq!(sums(&mut source), (0, 0, 1));
        files.thread(7, 7, 1_500, 130);
        files.thread(7, 8, 40, 4);
        assert_eq!(sums(&mut source), (540, 34, 2));
        files.end(7, 8);
        assert_eq!(sums(&mut source), (540, 34, 1), "what an ended thread has counted stays");
        files.thread(7, 8, 10, 1);
        assert_eq!(sums(&mut source), (550, 35, 2));
        files.thread(7, 8, 6, 1);
        assert_eq!(sums(&mut source), (556, 36, 2), "another thread under the same id");
    }

    #[test]
    fn a_process_no_longer_named_leaves_its_counts_and_a_new_one_starts_from_its_own() {
        let files = Files::new("5 0 1\n");
        files.thread(7, 7, 1_000, 0);
        files.thread(9, 9, 5_000, 0);
        let mut source = files.open().unwrap();
        source.track(VM, &[7]).unwrap();
        files.thread(7, 7, 1_300, 0);
        source.track(VM, &[9]).unwrap();
        files.thread(7, 7, 9_999, 0);
        files.thread(9, 9, 5_010, 0);
        assert_eq!(sums(&mut source), (310, 0, 1));
        source.untrack(VM).unwrap();
        assert!(source.drain().unwrap().vms.is_empty());
    }

    #[test]
    fn threads_beyond_the_bound_are_counted_once_each() {
        let files = Files::new("5 0 1\n");
        (10..14).for_each(|tid| files.thread(10, tid, 1_000, 0));
        let mut source = Schedstat { threads_max: 3, ..files.open().unwrap() };
        source.track(VM, &[10]).unwrap();
        for _ in 0..3 {
            let reading = source.drain().unwrap();
            assert_eq!((reading.vms[&VM].threads, reading.threads_unmeasured), (3, 1));
        }
        files.end(10, 10);
        let reading = source.drain().unwrap();
        assert_eq!((reading.vms[&VM].threads, reading.threads_unmeasured), (3, 1), "there is room again");
        assert_eq!(reading.vms[&VM].run_ns, 0, "what it ran before it was measured is not known to be the VM's");
    }

    #[test]
    fn a_file_that_cannot_be_read_fails_the_reading_and_not_the_books() {
        let files = Files::new("5 0 1\n");
        files.thread(7, 7, 1_000, 0);
        let mut source = files.open().unwrap();
        source.track(VM, &[7]).unwrap();
        let file = files.0.path().join("7/task/7/schedstat");
        fs::write(&file, "what\n").unwrap();
        assert!(source.drain().is_err());
        files.thread(7, 7, 1_020, 0);
        assert_eq!(sums(&mut source), (20, 0, 1));
    }

    #[test]
    fn this_kernels_counts_of_this_process_grow() {
        let Ok(mut source) = Schedstat::open() else {
            println!("skipped: this kernel keeps no schedstat");
            return;
        };
        source.track(VM, &[std::process::id()]).unwrap();
        let used_ms = || {
            let used = clock_gettime(ClockId::ThreadCPUTime);
            used.tv_sec * 1_000 + used.tv_nsec / 1_000_000
        };
        let start_ms = used_ms();
        while used_ms() < start_ms + 100 {
            std::hint::spin_loop();
        }
        let (run_ns, _, threads) = sums(&mut source);
        assert!(run_ns > 50_000_000 && threads >= 1, "{run_ns} ns of {threads} threads");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9 a-z\\n-]{0,60}") {
            let _ = parse(&text);
        }
    }
}
