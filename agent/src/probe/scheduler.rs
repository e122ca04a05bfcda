//! The scheduler probe as the sampler sees it.

use super::ledger::Ledger;
use super::load::{Object, Tracing, program, program_error};
use super::roster::{Change, Roster};
use super::table::Table;
use super::{ProbeError, ProgramCost, cost};
use crate::reading::SchedReading;
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Stack};
use aya::programs::Iter;
use aya_log::EbpfLogger;
use gnomon_common::abi::sched::{THREAD_GONE, THREADS_MAX, TgidEntry, VM_SLOTS_MAX};
use gnomon_common::wire::VmId;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::AsFd;

/// Registration before measurement: threads born while the rest is being attached are known from the start.
const PROGRAMS: [Tracing; 4] = [
    ("task_newtask", "task_newtask"),
    ("sched_switch", "sched_switch"),
    ("sched_wakeup", "sched_wakeup"),
    ("sched_wakeup_new", "sched_wakeup_new"),
];

/// The pass over all tasks.
const PASS_PROGRAM: &str = "register_tasks";

/// `BPF_EXIST` of `bpf(2)`: change an element, do not create one.
const BPF_EXIST: u64 = 2;

/// What can be chosen about the probe.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerOptions {
    /// How many threads can be measured at once, all VMs together: at most, and by default, [`THREADS_MAX`]. Each takes 200 bytes.
    pub threads_max: u32,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { threads_max: THREADS_MAX as u32 }
    }
}

/// The scheduler probe, attached while this lives.
///
/// The agent must run in the host's PID namespace: process ids are those of the kernel.
pub struct Scheduler {
    ebpf: Ebpf,
    /// Hands the programs' messages on.
    flush_log: Box<dyn FnMut() + Send>,
    table: Table,
    tgid_slot: HashMap<MapData, u32, PodEntry>,
    free_indexes: Stack<MapData, u32>,
    threads_unmeasured: PerCpuArray<MapData, u64>,
    pass: Array<MapData, u32>,
    pass_number: u32,
    ledger: Ledger,
    roster: Roster,
    /// [`SchedReading::threads_unmeasured`] as of the last drain, and as of the last pass.
    unmeasured: u64,
    unmeasured_at_pass: u64,
}

/// [`TgidEntry`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodEntry(TgidEntry);

// SAFETY: two `u32`, without padding.
unsafe impl aya::Pod for PodEntry {}

impl Scheduler {
    /// Loads and attaches the probe. Messages of the programs go to the `log` logger that is set at this moment.
    ///
    /// # Errors
    /// Says what this host lacks and what can be done about it.
    pub fn load(options: SchedulerOptions) -> Result<Self, ProbeError> {
        let threads_max = options.threads_max.clamp(1, THREADS_MAX as u32);
        let mut object = Object::open(threads_max)?;
        // The maps stay open here: programs refer to them by file descriptor until they are loaded.
        let mut logger = EbpfLogger::init(&mut object.ebpf)
            .map_err(|e| ProbeError::System { what: "opening the programs' log", source: std::io::Error::other(e) })?;
        let tgid_slot = object.take_map("TGID_SLOT")?;
        let mut free_indexes: Stack<MapData, u32> = object.take_map("FREE_INDEXES")?;
        let threads_unmeasured = object.take_map("THREADS_UNMEASURED")?;
        let pass = object.take_map("PASS")?;
        let Some(Map::Array(accounts)) = object.ebpf.map("ACCOUNTS") else {
            return Err(ProbeError::Missing { kind: "map", name: "ACCOUNTS" });
        };
        let table = Table::map(accounts.fd().as_fd(), threads_max)?;
        // The lowest on top: the used part of the table is a prefix, and `drain` stops where it ends.
        for index in (0..threads_max).rev() {
            free_indexes.push(index, 0).map_err(|source| ProbeError::Map { map: "FREE_INDEXES", source })?;
        }
        object.load_task_iterator(PASS_PROGRAM)?;
        object.attach(&PROGRAMS)?;
        Ok(Self {
            ebpf: object.ebpf,
            flush_log: Box::new(move || logger.flush()),
            table,
            tgid_slot,
            free_indexes,
            threads_unmeasured,
            pass,
            pass_number: 0,
            ledger: Ledger::default(),
            roster: Roster::new(),
            unmeasured: 0,
            unmeasured_at_pass: 0,
        })
    }

    /// Measures all threads of these processes, present and future, as those of `vm`: the QEMU process and, on kernels that
    /// have them, its vhost kernel threads. To be called again whenever they may have changed; the same ones again cost nothing. What
    /// processes no longer named have counted stays with the VM.
    ///
    /// # Errors
    /// If there is no slot left or the kernel refuses; then nothing has changed, and the same call can be made again.
    pub fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), ProbeError> {
        let change = self.roster.plan(vm, tgids).ok_or(ProbeError::NoSlot { max: VM_SLOTS_MAX })?;
        if change.is_nothing() && self.roster.contains(vm) {
            return Ok(());
        }
        if let Err(error) = self.apply(&change) {
            // So that no process is left registered under a slot that another VM may get. What of it fails fails on the way
            // to an error that is reported anyway.
            let _ = self.remove_tgids(&change.added);
            let _ = self.register();
            return Err(error);
        }
        self.roster.commit(vm, &change);
        Ok(())
    }

    fn apply(&mut self, change: &Change) -> Result<(), ProbeError> {
        let map_error = |source| ProbeError::Map { map: "TGID_SLOT", source };
        let entry = TgidEntry { slot: change.slot, settled: 0 };
        for tgid in &change.added {
            self.tgid_slot.insert(tgid, PodEntry(entry), 0).map_err(map_error)?;
        }
        self.remove_tgids(&change.removed)?;
        self.register()?;
        for tgid in &change.added {
            // The kernel drops the entry when it sees the id used by another process: it must not come back then.
            match self.tgid_slot.insert(tgid, PodEntry(TgidEntry { settled: 1, ..entry }), BPF_EXIST) {
                Err(error) if !is_not_found(&error) => return Err(map_error(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Stops measuring a VM and forgets its counters. Unknown VMs are none.
    ///
    /// # Errors
    /// If the kernel refuses; the VM is forgotten all the same.
    pub fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        if !self.roster.contains(vm) {
            return Ok(());
        }
        let tgids = self.roster.remove(vm);
        self.remove_tgids(&tgids)?;
        self.register()
    }

    fn remove_tgids(&mut self, tgids: &BTreeSet<u32>) -> Result<(), ProbeError> {
        for tgid in tgids {
            match self.tgid_slot.remove(tgid) {
                Err(source) if !is_not_found(&source) => return Err(ProbeError::Map { map: "TGID_SLOT", source }),
                _ => {}
            }
        }
        Ok(())
    }

    /// One pass over all tasks of the host: registers and releases threads such that they agree with `TGID_SLOT`.
    fn register(&mut self) -> Result<(), ProbeError> {
        self.pass_number = self.pass_number.wrapping_add(1);
        self.pass.set(0, self.pass_number, 0).map_err(|source| ProbeError::Map { map: "PASS", source })?;
        self.unmeasured_at_pass = self.unmeasured;
        let known = self.ledger.living();
        let failed = |e| program_error(PASS_PROGRAM, e);
        let program: &mut Iter = program(&mut self.ebpf, PASS_PROGRAM)?;
        let link = program.attach().map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        let not_run = |source| ProbeError::System { what: "running the registration pass", source };
        let mut tasks = link.into_file().map_err(|e| not_run(std::io::Error::other(e)))?;
        // The program writes nothing: reading to the end is what makes it run.
        tasks.read_to_end(&mut Vec::new()).map_err(not_run)?;
        self.close_unmet(&known);
        Ok(())
    }

    /// Closes accounts whose threads the pass has not met: they ended, but the mark of that was lost (kernels before 6.2 can refuse a
    /// look-up of task storage). Without this their indexes would leak, and their last stretch would go on for ever.
    fn close_unmet(&mut self, known: &[(u32, u32)]) {
        let now_ns = now_ns();
        for &(index, generation) in known {
            if let Some(mut account) = self.table.copy(index)
                && account.generation == generation
                && account.pass != self.pass_number
            {
                account.state = THREAD_GONE;
                self.ledger.observe(index, &account, now_ns);
            }
        }
    }

    /// The counters of all tracked VMs, in one pass over the shared memory. To be called at least every few hours, or 32-bit counts wrap
    /// around unseen. An account that is being written is left for the next drain: its counts come then.
    pub fn drain(&mut self) -> SchedReading {
        (self.flush_log)();
        let taken_ns = now_ns();
        let mut recycled = false;
        for index in 0..self.table.len() {
            let Some(account) = self.table.copy(index) else { continue };
            if account.generation == 0 {
                break;
            }
            if self.ledger.observe(index, &account, taken_ns) {
                recycled = true;
                if let Err(error) = self.free_indexes.push(index, 0) {
                    tracing::error!(index, %error, "an account cannot be given back to the kernel; it stays unused");
                }
            }
        }
        self.roster.free_slots(|slot| self.ledger.forget(slot));
        match self.threads_unmeasured.get(&0, 0) {
            Ok(per_cpu) => self.unmeasured = per_cpu.iter().sum(),
            Err(error) => tracing::warn!(%error, "the count of unmeasured threads cannot be read"),
        }
        if recycled && self.unmeasured > self.unmeasured_at_pass {
            // There is room again for threads that found the table full.
            if let Err(error) = self.register() {
                tracing::warn!(%error, "threads that found the table full stay unmeasured");
            }
        }
        let vms = self.roster.slots().map(|(vm, slot)| (vm, self.ledger.counters(slot))).collect();
        SchedReading { taken_ns, vms, threads_unmeasured: self.unmeasured }
    }

    /// What the attached programs have cost since they were loaded. All zero while nobody holds a
    /// [`StatsEnabled`](super::StatsEnabled).
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        cost::of_programs(&self.ebpf, &PROGRAMS.map(|(name, _)| name))
    }
}

/// The clock of the accounts: `bpf_ktime_get_ns` is `CLOCK_MONOTONIC`.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn is_not_found(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(e) => e.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}
