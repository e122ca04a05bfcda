//! The thread that asks for memory statistics and for each VM's definition, on a libvirt connection of its own.
//!
//! Statistics go through QEMU's monitor, and a QEMU that hangs holds the call up for as long as it likes. That costs the other VMs
//! their statistics, which go stale by their own time, and nothing else: neither the inventory nor sampling waits for this thread.

use super::super::answering::{Answering, Daemon, Showing, Used};
use super::super::{Inventory, InventoryConfig, InventoryMetrics, VmFacts};
use super::{Balloon, MemoryFacts, MemoryWatch};
use crate::host::libvirt::{BalloonDevice, Hypervisor, HypervisorError, Reconnecting};
use crate::host::process::Proc;
use gnomon_common::wire::{VmId, VmState, VmTerms};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How often every VM is asked: well within the time in which its statistics stay fresh, at a millisecond a VM.
const INTERVAL: Duration = Duration::from_secs(2);

/// How often it is seen whether there is a new one.
const NEWCOMERS_INTERVAL: Duration = Duration::from_millis(100);

/// So many looks use the same reading of a VM's definition: an interface that is plugged in, or a change of mind of
/// its owner, is known within a minute.
const LOOKS_PER_DEFINITION: u32 = 30;

/// The period given to a balloon whose owner has given it none, in seconds: one wake-up of the guest each.
const STATS_PERIOD_S: u32 = 5;

/// What is known of all VMs' memory and interfaces, and of what may be done to them: written by this thread, read at each survey. Held for a copy.
#[derive(Clone, Debug, Default)]
pub(in crate::host::inventory) struct MemoryBook(Arc<Mutex<BTreeMap<VmId, Known>>>);

/// What is known of a VM.
#[derive(Clone, Debug, Default)]
struct Known {
    memory: MemoryFacts,
    interfaces: Vec<String>,
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
            (facts.memory, facts.interfaces) = (known.memory, known.interfaces);
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
    /// Its balloon by its definition, once that was read.
    device: Option<Option<BalloonDevice>>,
    interfaces: Vec<String>,
    terms: Option<VmTerms>,
    keepsake: Option<String>,
    shadow_of: Option<VmId>,
    /// Looks since the definition was read.
    looks: u32,
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

    /// Asks until the sender of `stopped` is gone, or nobody reads any more.
    pub(in crate::host::inventory) fn run(mut self, stopped: &Receiver<()>) {
        while self.wait(stopped) && !self.publish.is_closed() {
            let inventory = Arc::clone(&self.publish.borrow());
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

    /// Waits until the next look is due, which of a VM that is new is soon: before its definition is read, no command for it is obeyed.
    /// `false` means stop.
    fn wait(&self, stopped: &Receiver<()>) -> bool {
        let due = Instant::now() + INTERVAL;
        loop {
            if stopped.recv_timeout(NEWCOMERS_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                return false;
            }
            let newcomer = |facts: &VmFacts| is_here(facts) && !self.watched.contains_key(&facts.id);
            if Instant::now() >= due || self.publish.borrow().vms.iter().any(newcomer) {
                return true;
            }
        }
    }

    fn look(&mut self, inventory: &Inventory) -> Result<(), HypervisorError> {
        let hypervisor = self.link.get()?;
        let active = |id: VmId| inventory.vm(id).is_some_and(is_here);
        self.watched.retain(|id, _| active(*id));
        for facts in inventory.vms.iter().filter(|facts| active(facts.id)) {
            let life = facts.process.as_ref().map(|process| (process.pid, process.start_ticks));
            let watched = self.watched.entry(facts.id).or_default();
            if watched.life != life {
                *watched = Watched { life, ..Watched::default() };
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
                    tracing::debug!(vm = %facts.id, %error, "no memory statistics");
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self) {
        if let Some(elapsed_s) = self.showing.due_s() {
            let caused_s: f64 = self.watched.values_mut().map(|watched| watched.answering.take_caused_s()).sum();
            self.metrics.answering("qemu", Some(caused_s / elapsed_s));
        }
        self.metrics.balloons(self.watched.values().map(|watched| watched.watch.facts.balloon));
        let known = |watched: &Watched| Known {
            memory: watched.watch.facts,
            interfaces: watched.interfaces.clone(),
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

impl Watched {
    fn look(
        &mut self,
        hypervisor: &Hypervisor,
        vm: VmId,
        set_period: bool,
        proc: &Proc,
    ) -> Result<Balloon, HypervisorError> {
        self.looks += 1;
        let device = match self.device.filter(|_| self.looks < LOOKS_PER_DEFINITION) {
            Some(device) => device,
            None => {
                self.looks = 0;
                let devices = hypervisor.devices(vm)?;
                let names = devices.interfaces.into_iter().filter_map(|interface| interface.device?.into_string().ok());
                self.interfaces = names.collect();
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
                self.device = Some(device);
                device
            }
        };
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (stats, period_s) = match device {
            Some(device) => {
                let used = || Used::by_main_thread(proc, self.life?.0);
                let before = used();
                let stats = hypervisor.memory_stats(vm)?;
                if let (Some(before), Some(after)) = (before, used()) {
                    self.answering.answered(before, after);
                }
                (stats, device.stats_period_s)
            }
            // Without the device there is nothing to ask.
            None => Default::default(),
        };
        Ok(self.watch.observe(&stats, period_s, now_unix_s).balloon)
    }
}
