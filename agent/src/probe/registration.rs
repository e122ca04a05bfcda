//! How threads that live already come under measurement; those born later are the kernel programs' business.
//!
//! Both ways make the registered threads agree with the processes that the kernel was told: first that map changes, then they
//! run, so that a thread born in between is seen by one of the two.

use super::ProbeError;
use super::accounting::{Accounting, is_not_found, map_error, now_ns};
use super::load::{program, program_error, take_map};
use crate::host::process::Proc;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::Iter;
use gnomon_common::abi::sched::{ThreadAccount, ThreadRef};
use std::collections::BTreeSet;
use std::io::Read;

/// The program that runs over all tasks.
const PASS_PROGRAM: &str = "register_tasks";

/// `BPF_NOEXIST` of `bpf(2)`: create an element, do not change one.
const BPF_NOEXIST: u64 = 1;

/// How often a walk is repeated although no VM's processes have changed: a thread's birth or end that the tracepoints missed stays
/// unknown for so long. Reading the threads of a hundred VMs takes a few milliseconds.
const WALK_INTERVAL_NS: u64 = 10_000_000_000;

/// One of the two ways.
pub(super) enum Registration {
    /// A program run over all tasks of the kernel.
    Pass(TaskPass),
    /// A walk through `/proc`.
    Walk(ThreadWalk),
}

impl Registration {
    /// Registers and releases threads such that they agree with the processes in the kernel's map.
    pub(super) fn run(&mut self, ebpf: &mut Ebpf, accounting: &mut Accounting) -> Result<(), ProbeError> {
        match self {
            Self::Pass(pass) => pass.run(ebpf, accounting),
            Self::Walk(walk) => walk.run(accounting),
        }
    }

    /// Whether it should run although nothing has changed.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        match self {
            // Its programs miss nothing that another pass would find.
            Self::Pass(_) => false,
            Self::Walk(walk) => now_ns.saturating_sub(walk.walked_ns) >= WALK_INTERVAL_NS,
        }
    }

    /// Threads for which it found no account, each counted once.
    pub(super) fn unmeasured(&self) -> u64 {
        match self {
            Self::Pass(_) => 0,
            Self::Walk(walk) => walk.unmeasured,
        }
    }
}

/// A task iterator: it sees all threads of the host at once, and whether they run.
pub(super) struct TaskPass {
    pass: Array<MapData, u32>,
    number: u32,
}

impl TaskPass {
    /// Takes what it needs out of the object whose iterator is loaded.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, ProbeError> {
        Ok(Self { pass: take_map(ebpf, "PASS")?, number: 0 })
    }

    /// The iterator's name.
    pub(super) const PROGRAM: &'static str = PASS_PROGRAM;

    fn run(&mut self, ebpf: &mut Ebpf, accounting: &mut Accounting) -> Result<(), ProbeError> {
        self.number = self.number.wrapping_add(1);
        self.pass.set(0, self.number, 0).map_err(map_error("PASS"))?;
        let known = accounting.ledger.living();
        let failed = |e| program_error(PASS_PROGRAM, e);
        let program: &mut Iter = program(ebpf, PASS_PROGRAM)?;
        let link = program.attach().map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        let not_run = |source| ProbeError::System { what: "running the registration pass", source };
        let mut tasks = link.into_file().map_err(|e| not_run(std::io::Error::other(e)))?;
        // The program writes nothing: reading to the end is what makes it run.
        tasks.read_to_end(&mut Vec::new()).map_err(not_run)?;
        accounting.close_unmet(&known, |_, account| account.pass == self.number);
        Ok(())
    }
}

/// A walk through the threads of the VMs' processes in `/proc`.
pub(super) struct ThreadWalk {
    proc: Proc,
    threads: HashMap<MapData, u32, PodRef>,
    walked_ns: u64,
    unmeasured: u64,
}

/// [`ThreadRef`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodRef(ThreadRef);

// SAFETY: two `u32`, without padding.
unsafe impl aya::Pod for PodRef {}

impl ThreadWalk {
    /// Takes what it needs out of the object.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, ProbeError> {
        Ok(Self { proc: Proc::default(), threads: take_map(ebpf, "THREADS")?, walked_ns: 0, unmeasured: 0 })
    }

    fn run(&mut self, accounting: &mut Accounting) -> Result<(), ProbeError> {
        // Accounts that are opened from here on, by this walk or by a birth, need not be met by it.
        let known = accounting.ledger.living();
        let mut met = BTreeSet::new();
        for (tgid, entry) in accounting.processes()? {
            // A process that cannot be read has ended: the inventory will say so.
            for tid in self.proc.tids(tgid).unwrap_or_default() {
                match self.register(accounting, tid, entry.slot)? {
                    Some(index) => {
                        met.insert(index);
                    }
                    // Counted when this process was first walked through, or when the thread was born.
                    None if entry.settled != 0 => {}
                    None => self.unmeasured += 1,
                }
            }
        }
        let mut forgotten = Vec::new();
        accounting.close_unmet(&known, |index, account| {
            let is_met = met.contains(&index);
            if !is_met {
                forgotten.push((index, *account));
            }
            is_met
        });
        for (index, account) in forgotten {
            self.forget(index, &account)?;
        }
        self.walked_ns = now_ns();
        Ok(())
    }

    /// The account of a thread, opened if it has none yet; `None` if there is none left.
    fn register(&mut self, accounting: &mut Accounting, tid: u32, slot: u32) -> Result<Option<u32>, ProbeError> {
        match self.threads.get(&tid, 0) {
            Ok(PodRef(known)) if known.slot == slot => return Ok(Some(known.index)),
            // Of a thread that ended unnoticed: the account is closed as one that was not met.
            Ok(_) => self.remove(tid)?,
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(map_error("THREADS")(error)),
        }
        let Some(index) = accounting.open_account(tid, slot)? else { return Ok(None) };
        match self.threads.insert(tid, PodRef(ThreadRef { index, slot }), BPF_NOEXIST) {
            Ok(()) => Ok(Some(index)),
            Err(error) => {
                accounting.put_account_back(index)?;
                // Its birth was seen meanwhile.
                self.threads
                    .get(&tid, 0)
                    .map(|PodRef(known)| Some(known.index))
                    .map_err(|_| map_error("THREADS")(error))
            }
        }
    }

    /// Removes the entry of a closed account, unless the id belongs to another thread by now.
    fn forget(&mut self, index: u32, account: &ThreadAccount) -> Result<(), ProbeError> {
        match self.threads.get(&account.tid, 0) {
            Ok(PodRef(known)) if known.index == index => self.remove(account.tid),
            _ => Ok(()),
        }
    }

    fn remove(&mut self, tid: u32) -> Result<(), ProbeError> {
        match self.threads.remove(&tid) {
            Err(error) if !is_not_found(&error) => Err(map_error("THREADS")(error)),
            _ => Ok(()),
        }
    }
}
