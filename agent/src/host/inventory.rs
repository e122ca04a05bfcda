//! Which VMs there are, right now: a snapshot that never makes its readers wait.
//!
//! ```text
//! libvirt events ─┐
//! reconcile timer ─┴─> surveyor thread ── publishes ──> watch::Receiver<Arc<Inventory>>
//!                      (may block)                        ^
//!                      watchdog thread ── complete=false ─┤  when the surveyor has been silent for too long
//!                      memory thread ── balloons, guests ─┘  (may block on one QEMU)
//! ```
//! Events only say *when* to look and which VM's execution changed; the truth is always a whole survey, so a lost event
//! costs one reconcile interval and nothing else. While libvirt is down or hangs, the last snapshot stays and is marked
//! incomplete: the VMs go on running, and so does their measurement.

mod answering;
pub mod guest_disks;
pub mod memory;
mod metrics;
mod surveyor;

pub use answering::Daemon;
pub use metrics::InventoryMetrics;

use super::cgroup::DomainCgroup;
use super::network::VmDevice;
use super::process::{Proc, QemuProcess};
use gnomon_common::wire::{VmId, VmState, VmTerms};
use guest_disks::GuestDisksReading;
use memory::MemoryFacts;
use memory::surveyor::{MemoryBook, MemorySurveyor};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use surveyor::{Surveyor, Wake};
use tokio::sync::watch;

/// How often the watchdog looks: a fraction of the shortest sensible deadline.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(250);

/// Lifecycle events waiting for the surveyor. More than a boot storm of a full host; when it overflows, the survey that is
/// due anyway makes up for it, and the loss is counted.
const EVENTS_MAX: usize = 4096;

/// How the inventory is kept.
#[derive(Clone, Debug)]
pub struct InventoryConfig {
    /// libvirt's address.
    pub uri: String,
    /// A survey is made this often even if no event asks for one.
    pub reconcile: Duration,
    /// A survey that takes longer than this makes the snapshot incomplete.
    pub deadline: Duration,
    /// Where libvirt's QEMU driver keeps its pid files.
    pub pid_dir: PathBuf,
    /// The `/proc` of the host.
    pub proc: Proc,
    /// Whether a balloon whose statistics nobody asks for is given a period, on the running domain only.
    pub set_stats_period: bool,
}

impl Default for InventoryConfig {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".into(),
            reconcile: Duration::from_secs(5),
            deadline: Duration::from_secs(5),
            pid_dir: "/run/libvirt/qemu".into(),
            proc: Proc::default(),
            set_stats_period: false,
        }
    }
}

/// All VMs of the host at one instant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inventory {
    /// Every domain libvirt knows, running or not, sorted by id.
    pub vms: Vec<VmFacts>,
    /// Whether that is all of them, as of a moment ago. `false` before the first survey, while libvirt is down or silent, or
    /// when a domain could not be described; then a VM that is missing may still exist.
    pub complete: bool,
    /// When the survey was made. No part of a recording, and nothing that is measured depends on it.
    #[serde(skip, default = "Instant::now")]
    pub taken: Instant,
    /// The hypervisor's version, empty while unknown.
    pub hypervisor: String,
}

impl Inventory {
    fn empty() -> Self {
        Self { vms: Vec::new(), complete: false, taken: Instant::now(), hypervisor: String::new() }
    }

    /// The facts of one VM.
    pub fn vm(&self, id: VmId) -> Option<&VmFacts> {
        self.vms.binary_search_by_key(&id, |facts| facts.id).ok().map(|index| &self.vms[index])
    }
}

/// What is known about one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// Its libvirt UUID.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: VmState,
    /// Its QEMU process, while there is one that can be told for sure.
    pub process: Option<QemuProcess>,
    /// Its control groups, while it has some of its own. No part of a recording, as they hold its name.
    #[serde(skip)]
    pub cgroup: Option<DomainCgroup>,
    /// vCPUs online.
    pub vcpus: u32,
    /// vCPUs it is defined with.
    pub vcpus_max: u32,
    /// Memory it is defined with, in bytes.
    pub memory_bytes: u64,
    /// What the balloon leaves to the guest while it runs, in bytes; all of its memory where there is no balloon.
    pub balloon_bytes: Option<u64>,
    /// What the balloon and the guest tell of its memory.
    pub memory: MemoryFacts,
    /// Host devices of its network interfaces, once its definition was read; interfaces that have none are left out.
    pub interfaces: Vec<VmDevice>,
    /// Whether it has disks and the host's block layer sees none of them, by its definition, once that was read.
    pub disks_unseen: bool,
    /// What its guest has done on those of its disks that lie behind the host's page cache, once QEMU was asked.
    pub guest_disks: Option<GuestDisksReading>,
    /// What its owner and its definition allow, once that was read. No part of a recording: it holds names, and nothing that is measured
    /// depends on it.
    #[serde(skip)]
    pub terms: Option<VmTerms>,
    /// What came with it from another host. No part of a recording, either.
    #[serde(skip)]
    pub keepsake: Option<String>,
    /// Of which VM it is the shadow, if it is one, once its definition was read. No part of a recording, either.
    #[serde(skip)]
    pub shadow_of: Option<VmId>,
    /// How often its execution was seen to start, stop, pause or resume since the agent started. Two readings between which
    /// this changed do not make a sample: part of the time between them the VM did not run.
    pub execution_changes: u64,
}

/// Keeps the inventory's threads; dropping it stops them. A libvirt call in progress is left to end by itself on its thread.
pub struct InventoryHandle {
    wake: mpsc::SyncSender<Wake>,
    watchdog_stop: mpsc::Sender<()>,
    watchdog: Option<JoinHandle<()>>,
    daemon: Daemon,
}

impl InventoryHandle {
    /// libvirt's daemon: who else asks it regularly does so through this, so that it is known what all of it costs.
    pub fn daemon(&self) -> Daemon {
        self.daemon.clone()
    }
}

impl Drop for InventoryHandle {
    fn drop(&mut self) {
        // A full queue is fine: the surveyor wakes and finds that everyone who could read the result is gone.
        let _ = self.wake.try_send(Wake::Stop);
        let _ = self.watchdog_stop.send(());
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
    }
}

/// Starts keeping an inventory. The first snapshot is empty and incomplete; the receiver sees each later one.
pub fn spawn(
    config: InventoryConfig,
    metrics: InventoryMetrics,
) -> std::io::Result<(watch::Receiver<Arc<Inventory>>, InventoryHandle)> {
    let (publish, receiver) = watch::channel(Arc::new(Inventory::empty()));
    let publish = Arc::new(publish);
    let (wake, woken) = mpsc::sync_channel(EVENTS_MAX);
    let (watchdog_stop, stopped) = mpsc::channel();
    let silence_max = config.reconcile + config.deadline;

    let book = MemoryBook::default();
    let (tell_survey, surveyed) = mpsc::channel();
    let daemon = Daemon::new(config.proc.clone(), metrics.clone());
    let memory_surveyor = MemorySurveyor::new(&config, publish.clone(), book.clone(), daemon.clone(), metrics.clone());
    std::thread::Builder::new().name("inventory-memory".into()).spawn(move || memory_surveyor.run(&surveyed))?;

    let surveyor =
        Surveyor::new(config, publish.clone(), wake.clone(), tell_survey, book, daemon.clone(), metrics.clone());
    std::thread::Builder::new().name("inventory".into()).spawn(move || surveyor.run(&woken))?;
    let watch = move || {
        while stopped.recv_timeout(WATCHDOG_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
            if mark_silent(&publish, Instant::now(), silence_max) {
                metrics.deadlines_missed.inc();
                tracing::warn!(
                    silent_s = silence_max.as_secs_f64(),
                    "libvirt does not answer: the inventory is incomplete"
                );
            }
        }
    };
    let watchdog = std::thread::Builder::new().name("inventory-watch".into()).spawn(watch)?;
    Ok((receiver, InventoryHandle { wake, watchdog_stop, watchdog: Some(watchdog), daemon }))
}

/// Marks the snapshot incomplete if it is older than `silence_max`; says whether that was news.
fn mark_silent(publish: &watch::Sender<Arc<Inventory>>, now: Instant, silence_max: Duration) -> bool {
    publish.send_if_modified(|inventory| {
        let silent = now.saturating_duration_since(inventory.taken) > silence_max;
        let news = silent && inventory.complete;
        if news {
            Arc::make_mut(inventory).complete = false;
        }
        news
    })
}

#[cfg(test)]
mod tests;
