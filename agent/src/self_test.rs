//! Each probe, provoked, must count: a program that is loaded and attached may still see nothing of what it is for (another PID namespace, a
//! tracepoint that this kernel never fires), and its silence would pass for idle VMs.
//!
//! Tried at the agent's start and by `gnomon-agent doctor`, on the agent's own process under an id that no VM has; bounded in time. What
//! could not be provoked is not held against the probe.

mod drops;
mod exits;
mod queues;
mod reclaim;

pub use drops::drops;
pub use exits::exits;
pub use queues::queues;
pub use reclaim::{CGROUP_ROOT, reclaim};

use crate::probe::{BlockProbe, ProbeError};
use crate::reading::{BlockReading, DiskCounters, SchedReading};
use crate::sample::{SchedSource, SourceError};
use gnomon_common::wire::VmId;
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// No VM has this id.
const OWN: VmId = VmId(Uuid::nil());

/// How much CPU time the trial uses: the kernel's own counts are as coarse as a tick.
const TRIAL_NS: u64 = 20_000_000;

/// It is used in so many parts. A thread that nobody interrupts shows in no context switch, and a switch that the kernel loses costs one part.
const TRIAL_PARTS: u64 = 4;

/// Between the parts the thread sleeps: it leaves its CPU, and is woken up.
const TRIAL_PAUSE: Duration = Duration::from_millis(1);

/// Longest trial: on a host without CPU to spare it uses less.
const TRIAL_MAX: Duration = Duration::from_millis(200);

/// A trial that got less than this says nothing.
const USED_NS_MIN: u64 = TRIAL_NS / 4;

/// A disk that takes longer than this to write one block says nothing.
const WRITE_MAX: Duration = Duration::from_millis(300);

/// Why a source is not used.
#[derive(Debug, thiserror::Error)]
pub enum Uncounted {
    /// It could not be asked.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It missed time on a CPU.
    #[error("it counted {} of the {} ms that a thread of the agent's ran: is this the host's own PID namespace?", counted_ns / 1_000_000, used_ns / 1_000_000)]
    Run {
        /// What it counted, in nanoseconds.
        counted_ns: u64,
        /// What was used, in nanoseconds.
        used_ns: u64,
    },
    /// It counts wake-ups and missed these.
    #[error("it counted no wake-up of a thread of the agent's that slept {TRIAL_PARTS} times")]
    Wakeups,
    /// It missed a request.
    #[error("it counted none of the requests by which a block was written to {dir}")]
    Requests {
        /// Where.
        dir: String,
    },
    /// It missed a drop.
    #[error("it counted no drop of a packet that the agent sent to a port of nobody's")]
    Drops,
    /// It missed a packet that waited.
    #[error("it timed no packet of a connection of the agent to itself")]
    Queues,
    /// It missed a reclaim.
    #[error("it counted no reclaim that the agent asked for in a control group of its own")]
    Reclaims,
    /// It missed an exit.
    #[error("it counted no exit of a guest that the agent ran")]
    Exits,
}

impl From<ProbeError> for Uncounted {
    fn from(error: ProbeError) -> Self {
        Self::Source(error.into())
    }
}

/// What a trial showed of a probe that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It counted what it was made to see.
    Counted,
    /// The block probe counted the write, but as nobody's: the disk is a stack whose lower half is another task's.
    Unattributed,
    /// There was nothing to count: why.
    NotProvoked(String),
}

impl Trial {
    /// For people, where `what` was to be counted.
    pub fn in_words(&self, what: &str) -> String {
        match self {
            Self::Counted => format!("counted {what}"),
            Self::Unattributed => format!("counted {what}, but not as this process's own"),
            Self::NotProvoked(why) => format!("attached, not provoked: {why}"),
        }
    }
}

/// Makes a source of CPU readings count a thread that is born, sleeps and runs for 20 ms.
///
/// # Errors
/// If it does not.
pub fn cpu(source: &mut dyn SchedSource) -> Result<(), Uncounted> {
    source.track(OWN, &[std::process::id()])?;
    let tried = try_cpu(source);
    let untracked = source.untrack(OWN);
    tried.and_then(|()| Ok(untracked?))
}

fn try_cpu(source: &mut dyn SchedSource) -> Result<(), Uncounted> {
    let before = source.drain()?;
    let (told, used) = mpsc::channel();
    let (hold, held) = mpsc::channel::<()>();
    let provoked = thread::Builder::new().name("self-test".into()).spawn(move || {
        let _ = told.send(sleep_and_spin());
        // Lives until it has been read: of a thread that has ended, the kernel's own counts tell nothing.
        let _ = held.recv();
    });
    // Where there is no thread to be had, nothing was used.
    let used_ns = used.recv().unwrap_or(0);
    let after = source.drain();
    drop(hold);
    let _ = provoked.map(thread::JoinHandle::join);
    let after = after?;
    if used_ns < USED_NS_MIN {
        return Ok(());
    }
    let run_ns = |reading: &SchedReading| reading.vms.get(&OWN).map_or(0, |counters| counters.run_ns);
    let counted_ns = run_ns(&after).saturating_sub(run_ns(&before));
    if counted_ns < used_ns / 2 {
        return Err(Uncounted::Run { counted_ns, used_ns });
    }
    let wakeups = |reading: &SchedReading| Some(reading.vms.get(&OWN)?.events?.wakeups);
    match (wakeups(&before), wakeups(&after)) {
        (Some(before), Some(after)) if after <= before => Err(Uncounted::Wakeups),
        _ => Ok(()),
    }
}

/// Returns the CPU time used, in nanoseconds.
fn sleep_and_spin() -> u64 {
    let (began, began_ns) = (Instant::now(), used_ns());
    for part in 1..=TRIAL_PARTS {
        thread::sleep(TRIAL_PAUSE);
        while used_ns() - began_ns < TRIAL_NS * part / TRIAL_PARTS && began.elapsed() < TRIAL_MAX {
            std::hint::spin_loop();
        }
    }
    thread::sleep(TRIAL_PAUSE);
    used_ns() - began_ns
}

/// CPU time of this thread.
fn used_ns() -> u64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

/// Makes the block probe count a block that is written to a file in `dir`, which is removed again.
///
/// # Errors
/// If it does not count it.
pub fn disks(probe: &mut BlockProbe, dir: &Path) -> Result<Trial, Uncounted> {
    probe.track(OWN, &[std::process::id()], &[])?;
    let tried = try_disks(probe, dir);
    let untracked = probe.untrack(OWN);
    tried.and_then(|found| untracked.map(|()| found).map_err(Uncounted::from))
}

fn try_disks(probe: &mut BlockProbe, dir: &Path) -> Result<Trial, Uncounted> {
    if let Err(why) = has_requests(dir) {
        return Ok(Trial::NotProvoked(why));
    }
    let before = probe.drain()?;
    if let Err(error) = write_in_time(dir) {
        return Ok(Trial::NotProvoked(format!("{}: {error}", dir.display())));
    }
    let after = probe.drain()?;
    let own = |reading: &BlockReading| reading.vms.get(&OWN).map_or(0, operations);
    if own(&after) > own(&before) {
        Ok(Trial::Counted)
    } else if operations(&after.rest) > operations(&before.rest) {
        Ok(Trial::Unattributed)
    } else {
        Err(Uncounted::Requests { dir: dir.display().to_string() })
    }
}

fn operations(counters: &DiskCounters) -> u64 {
    counters.values().map(|account| account.read.operations + account.write.operations).sum()
}

/// Whether what is written to `dir` becomes requests of a disk of this host; otherwise why not.
fn has_requests(dir: &Path) -> Result<(), String> {
    let dev = dir.metadata().map_err(|error| format!("{}: {error}", dir.display()))?.dev();
    let disk = format!("/sys/dev/block/{}:{}", libc::major(dev), libc::minor(dev));
    if Path::new(&disk).exists() { Ok(()) } else { Err(format!("{} is on no disk of this host", dir.display())) }
}

/// On a thread of its own: a disk that hangs must not hold up the start.
fn write_in_time(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".self-test-{}", std::process::id()));
    let (done, written) = mpsc::channel();
    let write = move || {
        let result = File::create(&path).and_then(|mut file| {
            file.write_all(&[0; 4096])?;
            file.sync_all()
        });
        // Also what could not be written whole is not left behind.
        let removed = std::fs::remove_file(&path);
        let _ = done.send(result.and(removed));
    };
    thread::Builder::new().name("self-test".into()).spawn(write)?;
    written.recv_timeout(WRITE_MAX).unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Costed;
    use crate::cpu_source::{Host, RungError, Rungs};
    use crate::reading::{SchedCounters, SchedEvents};
    use gnomon_common::wire::CpuSource;

    /// Counts this much at each reading, whatever happens.
    struct Blind {
        run_ns: u64,
        wakeups: u64,
        readings: u64,
    }

    impl Costed for Blind {
        fn name(&self) -> &'static str {
            "blind"
        }
    }

    impl SchedSource for Blind {
        fn track(&mut self, _vm: VmId, _tgids: &[u32]) -> Result<(), SourceError> {
            Ok(())
        }

        fn untrack(&mut self, _vm: VmId) -> Result<(), SourceError> {
            Ok(())
        }

        fn drain(&mut self) -> Result<SchedReading, SourceError> {
            self.readings += 1;
            let events = SchedEvents { wakeups: self.wakeups * self.readings, ..SchedEvents::default() };
            let run_ns = self.run_ns * self.readings;
            let counters = SchedCounters { run_ns, events: Some(events), ..SchedCounters::default() };
            Ok(SchedReading { vms: [(OWN, counters)].into(), ..SchedReading::default() })
        }
    }

    #[test]
    fn a_source_that_misses_time_or_wakeups_is_found_out() {
        let mut source = Blind { run_ns: TRIAL_NS, wakeups: 1, readings: 0 };
        cpu(&mut source).unwrap();
        source.wakeups = 0;
        assert!(matches!(cpu(&mut source), Err(Uncounted::Wakeups)));
        source.run_ns = 1_000;
        let error = cpu(&mut source).unwrap_err();
        assert!(error.to_string().starts_with("it counted 0 of the "), "{error}");
    }

    #[test]
    fn the_probes_of_this_kernel_count_and_in_time() {
        for rung in [CpuSource::TaskStorage, CpuSource::Tracepoints, CpuSource::Schedstat] {
            let mut source = match Host.stand(rung) {
                Ok(source) => source,
                Err(error @ RungError::Uncounted(_)) => panic!("{rung}: {error}"),
                Err(error) => {
                    println!("skipped {rung}: {error}");
                    continue;
                }
            };
            let began = Instant::now();
            cpu(&mut source).unwrap();
            println!("{rung}: {:?}", began.elapsed());
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            assert!(source.drain().unwrap().vms.is_empty(), "the agent is no VM");
        }
    }

    #[test]
    fn the_block_probe_counts_a_block_and_leaves_nothing_behind() {
        let mut probe = match BlockProbe::load() {
            Ok(probe) => probe,
            Err(error) => return println!("skipped: {error}"),
        };
        let dir = tempfile::tempdir().unwrap();
        let found = disks(&mut probe, dir.path()).unwrap();
        match has_requests(dir.path()) {
            Ok(()) => assert_eq!(found, Trial::Counted),
            Err(why) => assert_eq!(found, Trial::NotProvoked(why)),
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(probe.drain().unwrap().vms.is_empty());
        let nowhere = disks(&mut probe, &dir.path().join("none")).unwrap();
        assert!(matches!(nowhere, Trial::NotProvoked(_)), "{nowhere:?}");
    }
}
