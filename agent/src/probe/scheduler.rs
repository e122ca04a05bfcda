//! The scheduler probe as the sampler sees it, whichever programs it runs on.

use super::accounting::{Accounting, now_ns};
use super::culprits::Waits;
use super::load::{Object, Tracing};
use super::registration::{Registration, TaskPass, ThreadWalk};
use super::roster::{Change, Roster};
use super::{ProbeError, ProgramCost, classic, cost};
use crate::reading::SchedReading;
use aya::Ebpf;
use aya_log::EbpfLogger;
use gnomon_common::abi::sched::{THREADS_MAX, VM_SLOTS_MAX};
use gnomon_common::wire::VmId;

/// Registration before measurement: threads born while the rest is being attached are known from the start.
const PROGRAMS: [Tracing; 4] = [
    ("task_newtask", "task_newtask"),
    ("sched_switch", "sched_switch"),
    ("sched_wakeup", "sched_wakeup"),
    ("sched_wakeup_new", "sched_wakeup_new"),
];

/// Which programs measure. Both count the same, but who ran while a VM waited is told by the first alone; it costs a third to a half as much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// BTF tracepoints and task storage.
    TaskStorage,
    /// Classic tracepoints and a hash table of thread ids.
    Tracepoints,
}

/// What can be chosen about the probe.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerOptions {
    /// Which programs measure.
    pub mechanism: Mechanism,
    /// How many threads can be measured at once, all VMs together: at most, and by default, [`THREADS_MAX`]. Each takes 200 bytes.
    pub threads_max: u32,
    /// Whether a thread is held back by its quota is asked of its group although it could be asked itself: what kernels before 6.18
    /// leave as the only way. With [`Mechanism::TaskStorage`].
    pub throttled_by_group: bool,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { mechanism: Mechanism::TaskStorage, threads_max: THREADS_MAX as u32, throttled_by_group: false }
    }
}

/// The scheduler probe, attached while this lives.
///
/// The agent must run in the host's PID namespace: process ids are those of the kernel.
pub struct Scheduler {
    ebpf: Ebpf,
    /// Hands the programs' messages on.
    flush_log: Box<dyn FnMut() + Send>,
    accounting: Accounting,
    /// Who ran while VMs waited, which only task storage tells.
    waits: Option<Waits>,
    registration: Registration,
    roster: Roster,
    programs: &'static [&'static str],
    /// [`SchedReading::threads_unmeasured`] as of the last drain.
    unmeasured: u64,
    /// Threads have found no account, and no registration since has left one free.
    starved: bool,
}

/// The names of [`PROGRAMS`].
const TASK_STORAGE_NAMES: [&str; 4] = [PROGRAMS[0].0, PROGRAMS[1].0, PROGRAMS[2].0, PROGRAMS[3].0];

impl Scheduler {
    /// Loads and attaches the probe. Messages of the programs go to the `log` logger that is set at this moment.
    ///
    /// # Errors
    /// Says what this host lacks and what can be done about it.
    pub fn load(options: SchedulerOptions) -> Result<Self, ProbeError> {
        let threads_max = options.threads_max.clamp(1, THREADS_MAX as u32);
        match options.mechanism {
            Mechanism::TaskStorage => {
                let mut object = Object::open(threads_max, options.throttled_by_group)?;
                // The maps stay open here: programs refer to them by file descriptor until they are loaded.
                let flush_log = open_log(&mut object.ebpf)?;
                let accounting = Accounting::of(&mut object.ebpf, threads_max)?;
                let waits = Waits::of(&mut object.ebpf, object.throttling.is_some())?;
                let registration = Registration::Pass(TaskPass::of(&mut object.ebpf)?);
                object.load_task_iterator(TaskPass::PROGRAM)?;
                object.attach(&PROGRAMS)?;
                Ok(Self::new(object.ebpf, flush_log, accounting, Some(waits), registration, &TASK_STORAGE_NAMES))
            }
            Mechanism::Tracepoints => {
                let mut ebpf = classic::open(threads_max)?;
                let flush_log = open_log(&mut ebpf)?;
                let accounting = Accounting::of(&mut ebpf, threads_max)?;
                let registration = Registration::Walk(ThreadWalk::of(&mut ebpf)?);
                classic::attach(&mut ebpf)?;
                Ok(Self::new(ebpf, flush_log, accounting, None, registration, &classic::PROGRAM_NAMES))
            }
        }
    }

    fn new(
        ebpf: Ebpf,
        flush_log: Box<dyn FnMut() + Send>,
        accounting: Accounting,
        waits: Option<Waits>,
        registration: Registration,
        programs: &'static [&'static str],
    ) -> Self {
        Self {
            ebpf,
            flush_log,
            accounting,
            waits,
            registration,
            roster: Roster::new(),
            programs,
            unmeasured: 0,
            starved: false,
        }
    }

    /// Measures all threads of these processes, present and future, as those of `vm`: the QEMU process and, on kernels that
    /// have them, its vhost kernel threads. To be called again whenever they may have changed; the same ones again cost nothing. What
    /// processes no longer named have counted stays with the VM.
    ///
    /// # Errors
    /// If there is no slot left or the kernel refuses; then nothing has changed, and the same call can be made again.
    pub fn track(&mut self, vm: VmId, tgids: &[u32]) -> Result<(), ProbeError> {
        let change = self.roster.plan(vm, tgids).ok_or(ProbeError::NoSlot { max: VM_SLOTS_MAX })?;
        let known = self.roster.contains(vm);
        if change.is_nothing() && known {
            return Ok(());
        }
        if let Some(waits) = self.waits.as_ref().filter(|_| !known) {
            waits.clear(change.slot);
        }
        if let Err(error) = self.apply(&change) {
            // So that no process is left registered under a slot that another VM may get. What of it fails fails on the way
            // to an error that is reported anyway.
            let _ = self.accounting.remove_processes(&change.added);
            let _ = self.register();
            return Err(error);
        }
        self.roster.commit(vm, &change);
        Ok(())
    }

    fn apply(&mut self, change: &Change) -> Result<(), ProbeError> {
        for &tgid in &change.added {
            self.accounting.add_process(tgid, change.slot)?;
        }
        self.accounting.remove_processes(&change.removed)?;
        self.register()?;
        for &tgid in &change.added {
            self.accounting.settle_process(tgid, change.slot)?;
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
        self.accounting.remove_processes(&tgids)?;
        self.register()
    }

    fn register(&mut self) -> Result<(), ProbeError> {
        self.registration.run(&mut self.ebpf, &mut self.accounting)?;
        // Whoever still wanted an account would have taken this one.
        self.starved = self.starved && !self.accounting.has_free_account()?;
        Ok(())
    }

    /// The counters of all tracked VMs, in one pass over the shared memory. To be called at least every few hours, or 32-bit counts wrap
    /// around unseen.
    pub fn drain(&mut self) -> SchedReading {
        (self.flush_log)();
        let taken_ns = now_ns();
        let recycled = self.accounting.drain(taken_ns);
        self.roster.free_slots(|slot| self.accounting.ledger.forget(slot));
        if let Some(in_kernel) = self.accounting.unmeasured() {
            let unmeasured = in_kernel + self.registration.unmeasured();
            self.starved |= unmeasured > self.unmeasured;
            self.unmeasured = unmeasured;
        }
        // There is room again for threads that found the table full.
        if (recycled && self.starved || self.registration.is_due(taken_ns))
            && let Err(error) = self.register()
        {
            tracing::warn!(%error, "threads may stay unmeasured");
        }
        let slots: Vec<_> = self.roster.slots().collect();
        let culprits = self.waits.as_mut().map(|waits| waits.read(&slots, taken_ns)).unwrap_or_default();
        let vms = slots.into_iter().map(|(vm, slot)| (vm, self.accounting.ledger.counters(slot))).collect();
        SchedReading { taken_ns, vms, culprits, threads_unmeasured: self.unmeasured, turn: 0 }
    }

    /// The slot of a tracked VM.
    #[cfg(test)]
    pub(super) fn slot_of(&self, vm: VmId) -> Option<u32> {
        self.roster.slots().find(|(known, _)| *known == vm).map(|(_, slot)| slot)
    }

    /// What the attached programs have cost since they were loaded. All zero while nobody holds a
    /// [`StatsEnabled`](super::StatsEnabled).
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        cost::of_programs(&self.ebpf, self.programs)
    }
}

fn open_log(ebpf: &mut Ebpf) -> Result<Box<dyn FnMut() + Send>, ProbeError> {
    let mut logger = EbpfLogger::init(ebpf)
        .map_err(|e| ProbeError::System { what: "opening the programs' log", source: std::io::Error::other(e) })?;
    Ok(Box::new(move || logger.flush()))
}
