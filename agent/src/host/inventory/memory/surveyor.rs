//! The thread that asks QEMUs for statistics, of memory and of disks behind the host's page cache, and libvirt for each VM's definition, on a
//! libvirt connection of its own.
//!
//! Statistics go through QEMU's monitor, and a QEMU that hangs holds the call up for as long as it likes. That costs the other VMs
//! their statistics, which go stale by their own time, and nothing else: neither the inventory nor sampling waits for this thread.

use super::super::answering::{Answering, Daemon, Showing, Used, now_ns};
use super::super::guest_disks::{ASKED_EVERY_S, GuestDisksReading};
use super::super::{Inventory, InventoryConfig, InventoryMetrics, VmFacts};
use super::{Balloon, MemoryFacts, MemoryWatch};
use crate::host::libvirt::{BalloonDevice, Hypervisor, HypervisorError, Interface, Reconnecting};
use crate::host::network::VmDevice;
use crate::host::process::Proc;
use gnomon_common::wire::{DISKS_MAX, VmId, VmState, VmTerms};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How often it is seen which VMs are due: those that are due within this are asked together.
const INTERVAL: Duration = Duration::from_secs(1);

/// A VM whose look failed is asked again after so long.
const NEXT_LOOK_MIN: Duration = Duration::from_secs(super::NEXT_LOOK_MIN_S);

/// A reading of a VM's definition is used for so long: an interface that is plugged in, or a change of mind of its owner, is known
/// within about a minute.
const DEFINITION_MAX_AGE: Duration = Duration::from_secs(60);

/// How often it is seen what guests do on disks behind the host's page cache.
const GUEST_DISKS_ASKED_EVERY: Duration = Duration::from_secs(ASKED_EVERY_S);

/// The period given to a balloon whose owner has given it none, in seconds: one wake-up of the guest each.
const STATS_PERIOD_S: u32 = 5;

/// What is known of all VMs' memory and interfaces, and of what may be done to them: written by this thread, read at each survey. Held for a copy.
#[derive(Clone, Debug, Default)]
pub(in crate::host::inventory) struct MemoryBook(Arc<Mutex<BTreeMap<VmId, Known>>>);

/// What is known of a VM.
#[derive(Clone, Debug, Default)]
struct Known {
    memory: MemoryFacts,
    interfaces: Vec<VmDevice>,
    disks_unseen: bool,
    guest_disks: Option<GuestDisksReading>,
    terms: Option<VmTerms>,
    keepsake: Option<String>,
    shadow_of: Option<VmId>,
}

impl MemoryBook {
    /// Adds what is known to the facts of VMs.
    pub(in crate::host::inventory) fn annotate(&self, vms: &mut [VmFacts]) {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for facts in vms {
            // A domain that is not active has no memory; what is in the book is of its last life.
            let active = facts.balloon_bytes.is_some();
            let known = book.get(&facts.id).filter(|_| active).cloned().unwrap_or_default();
            (facts.memory, facts.interfaces, facts.disks_unseen) = (known.memory, known.interfaces, known.disks_unseen);
            facts.guest_disks = known.guest_disks;
            (facts.terms, facts.keepsake, facts.shadow_of) = (known.terms, known.keepsake, known.shadow_of);
        }
    }

    fn replace(&self, known: BTreeMap<VmId, Known>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

/// A VM between two looks.
#[derive(Debug, Default)]
struct Watched {
    /// Its QEMU process: in another life, all is new.
    life: Option<(u32, u64)>,
    /// QEMU's thread that reads questions, where it has one.
    monitor: Option<u32>,
    /// Its balloon by its definition, once that was read.
    device: Option<Option<BalloonDevice>>,
    interfaces: Vec<VmDevice>,
    disks_unseen: bool,
    /// Targets of the disks that QEMU is asked about.
    disks_cached: Vec<String>,
    guest_disks: Option<GuestDisksReading>,
    terms: Option<VmTerms>,
    keepsake: Option<String>,
    shadow_of: Option<VmId>,
    /// When the definition was read.
    defined: Option<Instant>,
    /// When to look at its memory again; at once if not yet known.
    due: Option<Instant>,
    /// When to look at its disks again, if there are any to look at; likewise.
    disks_due: Option<Instant>,
    watch: MemoryWatch,
    /// What it costs its QEMU to be asked for statistics.
    answering: Answering,
}

pub(in crate::host::inventory) struct MemorySurveyor {
    link: Reconnecting,
    /// Whether a balloon without a statistics period is given one.
    set_stats_period: bool,
    publish: Arc<watch::Sender<Arc<Inventory>>>,
    book: MemoryBook,
    daemon: Daemon,
    proc: Proc,
    metrics: InventoryMetrics,
    watched: BTreeMap<VmId, Watched>,
    showing: Showing,
}

impl MemorySurveyor {
    pub(in crate::host::inventory) fn new(
        config: &InventoryConfig,
        publish: Arc<watch::Sender<Arc<Inventory>>>,
        book: MemoryBook,
        daemon: Daemon,
        metrics: InventoryMetrics,
    ) -> Self {
        Self {
            link: Reconnecting::new(config.uri.clone()),
            set_stats_period: config.set_stats_period,
            publish,
            book,
            daemon,
            proc: config.proc.clone(),
            metrics,
            watched: BTreeMap::new(),
            showing: Showing::default(),
        }
    }

    /// Asks until whoever tells of surveys is gone, or nobody reads any more.
    pub(in crate::host::inventory) fn run(mut self, surveyed: &Receiver<()>) {
        while self.wait(surveyed) && !self.publish.is_closed() {
            let inventory = Arc::clone(&self.publish.borrow());
            let before = self.watched.len();
            self.watched.retain(|id, _| inventory.vm(*id).is_some_and(is_here));
            if self.watched.len() < before {
                self.tell();
            }
            self.show_cost();
            if !self.is_anyone_due(&inventory) {
                continue;
            }
            // One question: what the daemon does between two VMs is still because of it.
            let looked = self.daemon.clone().ask(|| self.look(&inventory));
            match looked {
                Ok(()) => self.tell(),
                Err(HypervisorError::BackingOff { .. }) => {}
                Err(error) => {
                    self.metrics.memory_failures.inc();
                    tracing::warn!(%error, "no memory statistics of any VM");
                }
            }
        }
    }

    /// Waits until it is time to see who is due, or a survey has found a VM that is new: before its definition is read, no command for it is
    /// obeyed. `false` means stop.
    fn wait(&self, surveyed: &Receiver<()>) -> bool {
        let next = Instant::now() + INTERVAL;
        loop {
            match surveyed.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
                Ok(()) => {}
            }
            let newcomer = |facts: &VmFacts| is_here(facts) && !self.watched.contains_key(&facts.id);
            if self.publish.borrow().vms.iter().any(newcomer) {
                return true;
            }
        }
    }

    /// Whether a VM is new, lives anew, or has likely something new to say.
    fn is_anyone_due(&self, inventory: &Inventory) -> bool {
        let now = Instant::now();
        inventory
            .vms
            .iter()
            .filter(|facts| is_here(facts))
            .any(|facts| self.watched.get(&facts.id).is_none_or(|watched| watched.is_due(life(facts), now)))
    }

    /// Asks those that are due.
    fn look(&mut self, inventory: &Inventory) -> Result<(), HypervisorError> {
        let hypervisor = self.link.get()?;
        let now = Instant::now();
        for facts in inventory.vms.iter().filter(|facts| is_here(facts)) {
            let watched = self.watched.entry(facts.id).or_default();
            if !watched.is_due(life(facts), now) {
                continue;
            }
            if watched.life != life(facts) {
                *watched = Watched::of_life(life(facts), &self.proc);
            }
            let before = watched.watch.facts.balloon;
            match watched.look(hypervisor, facts.id, self.set_stats_period, &self.proc) {
                Ok(now) if before.name() != now.name() => {
                    tracing::info!(vm = %facts.id, name = facts.name, balloon = now.name(), "the VM's balloon");
                }
                Ok(_) => {}
                // It has just ended, or its driver has no statistics: what was known goes stale by itself.
                Err(HypervisorError::NoSuchDomain(_) | HypervisorError::Unsupported(_)) => {}
                Err(error) => {
                    self.metrics.memory_failures.inc();
                    tracing::debug!(vm = %facts.id, %error, "no statistics of the VM, or not all");
                }
            }
        }
        Ok(())
    }

    fn show_cost(&mut self) {
        if let Some(elapsed_s) = self.showing.due_s() {
            let caused_s: f64 = self.watched.values_mut().map(|watched| watched.answering.take_caused_s()).sum();
            self.metrics.answering("qemu", Some(caused_s / elapsed_s));
        }
    }

    fn tell(&mut self) {
        self.metrics.balloons(self.watched.values().map(|watched| watched.watch.facts.balloon));
        let known = |watched: &Watched| Known {
            memory: watched.watch.facts,
            interfaces: watched.interfaces.clone(),
            disks_unseen: watched.disks_unseen,
            guest_disks: watched.guest_disks.clone(),
            terms: watched.terms.clone(),
            keepsake: watched.keepsake.clone(),
            shadow_of: watched.shadow_of,
        };
        // The book first: a survey that ends in between must not bring the old facts back.
        self.book.replace(self.watched.iter().map(|(id, watched)| (*id, known(watched))).collect());
        self.publish.send_modify(|inventory| self.book.annotate(&mut Arc::make_mut(inventory).vms));
    }
}

/// Whether a VM answers questions. One that is being received does not until it is here: each would wait for half a minute.
fn is_here(facts: &VmFacts) -> bool {
    facts.balloon_bytes.is_some() && facts.state != VmState::Arriving
}

/// Which QEMU process a VM is, by its pid and start.
fn life(facts: &VmFacts) -> Option<(u32, u64)> {
    facts.process.as_ref().map(|process| (process.pid, process.start_ticks))
}

/// Whether something is due; what has no time yet is.
fn is_past(due: Option<Instant>, now: Instant) -> bool {
    due.is_none_or(|due| now >= due)
}

impl Watched {
    fn of_life(life: Option<(u32, u64)>, proc: &Proc) -> Self {
        Self { life, monitor: life.and_then(|(pid, _)| proc.monitor_tid(pid)), ..Self::default() }
    }

    /// Whether there is something to ask of this life of a VM at `now`.
    fn is_due(&self, life: Option<(u32, u64)>, now: Instant) -> bool {
        self.life != life || is_past(self.due, now) || self.are_disks_due(now)
    }

    fn are_disks_due(&self, now: Instant) -> bool {
        !self.disks_cached.is_empty() && is_past(self.disks_due, now)
    }

    /// Asks what is due.
    fn look(
        &mut self,
        hypervisor: &Hypervisor,
        vm: VmId,
        set_period: bool,
        proc: &Proc,
    ) -> Result<Balloon, HypervisorError> {
        let now = Instant::now();
        if is_past(self.due, now) {
            self.look_at_memory(hypervisor, vm, set_period, proc)?;
        }
        if self.are_disks_due(now) {
            self.disks_due = Some(now + GUEST_DISKS_ASKED_EVERY);
            self.guest_disks = Some(self.look_at_disks(hypervisor, vm, proc)?);
        }
        Ok(self.watch.facts.balloon)
    }

    fn look_at_disks(
        &mut self,
        hypervisor: &Hypervisor,
        vm: VmId,
        proc: &Proc,
    ) -> Result<GuestDisksReading, HypervisorError> {
        let targets = self.disks_cached.clone();
        let disks = self.asked(proc, || {
            let counters = |target: String| hypervisor.guest_disk(vm, &target).map(|counters| (target, counters));
            targets.into_iter().map(counters).collect::<Result<Vec<_>, HypervisorError>>()
        })?;
        let start_ticks = self.life.map_or(0, |(_, start_ticks)| start_ticks);
        Ok(GuestDisksReading { start_ticks, taken_ns: now_ns(), disks })
    }

    /// Asks its QEMU something, and books what that costs it.
    fn asked<T>(&mut self, proc: &Proc, question: impl FnOnce() -> T) -> T {
        let (life, monitor) = (self.life, self.monitor);
        let used = || Used::by_monitor(proc, life?.0, monitor);
        let before = used();
        let answer = question();
        if let (Some(before), Some(after)) = (before, used()) {
            self.answering.answered(before, after);
        }
        answer
    }

    fn look_at_memory(
        &mut self,
        hypervisor: &Hypervisor,
        vm: VmId,
        set_period: bool,
        proc: &Proc,
    ) -> Result<(), HypervisorError> {
        let began = Instant::now();
        // Also where this fails: a VM that does not answer is not asked more often for it.
        self.due = Some(began + NEXT_LOOK_MIN);
        let device = match self.device.filter(|_| self.defined.is_some_and(|at| began < at + DEFINITION_MAX_AGE)) {
            Some(device) => device,
            None => self.read_definition(hypervisor, vm, set_period)?,
        };
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (stats, period_s) = match device {
            Some(device) => (self.asked(proc, || hypervisor.memory_stats(vm))?, device.stats_period_s),
            // Without the device there is nothing to ask.
            None => Default::default(),
        };
        self.watch.observe(&stats, period_s, now_unix_s);
        let next_look = Duration::from_secs(self.watch.next_look_s(period_s, now_unix_s));
        self.due = Some(began + next_look);
        Ok(())
    }

    /// What the VM's definition says, its balloon's device above all.
    fn read_definition(
        &mut self,
        hypervisor: &Hypervisor,
        vm: VmId,
        set_period: bool,
    ) -> Result<Option<BalloonDevice>, HypervisorError> {
        let devices = hypervisor.devices(vm)?;
        self.interfaces = devices.interfaces.iter().filter_map(Interface::on_host).collect();
        (self.disks_unseen, self.disks_cached) = (devices.disks_unseen, devices.disks_cached);
        self.disks_cached.truncate(DISKS_MAX);
        if self.disks_cached.is_empty() {
            self.guest_disks = None;
        }
        (self.terms, self.keepsake) = (Some(devices.terms), devices.keepsake);
        self.shadow_of = devices.shadow_of;
        let mut device = devices.balloon;
        if let Some(BalloonDevice { stats_period_s: period @ 0 }) = &mut device
            && set_period
        {
            hypervisor.set_memory_stats_period(vm, STATS_PERIOD_S)?;
            *period = STATS_PERIOD_S;
            tracing::info!(%vm, period_s = STATS_PERIOD_S, "the VM's balloon is asked for statistics from now on");
        }
        (self.device, self.defined) = (Some(device), Some(Instant::now()));
        Ok(device)
    }
}
