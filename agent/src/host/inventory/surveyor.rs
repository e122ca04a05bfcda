//! The thread that asks libvirt and `/proc`. It may block on libvirt; nothing waits for it.

use super::answering::Daemon;
use super::memory::MemoryFacts;
use super::memory::surveyor::MemoryBook;
use super::{Inventory, InventoryConfig, InventoryMetrics, VmFacts};
use crate::host::cgroup::{CgroupMounts, DomainCgroup, Membership};
use crate::host::libvirt::{DomainFacts, Domains, HypervisorError, LifecycleEvent, Reconnecting, daemon_pid};
use crate::host::process::{Proc, ProcessScan, QemuProcess};
use gnomon_common::wire::VmId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Shortest time between two surveys: a storm of events (a host that starts all its VMs) must not become a storm of surveys.
const SURVEY_SPACING: Duration = Duration::from_millis(100);

/// What wakes the surveyor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wake {
    /// libvirt reported something.
    Event(LifecycleEvent),
    /// The agent stops.
    Stop,
}

pub(super) struct Surveyor {
    config: InventoryConfig,
    publish: Arc<watch::Sender<Arc<Inventory>>>,
    wake: SyncSender<Wake>,
    /// Who asks for memory statistics: as long as this thread runs.
    surveyed: Sender<()>,
    book: MemoryBook,
    daemon: Daemon,
    metrics: InventoryMetrics,
    execution_changes: BTreeMap<VmId, u64>,
    hypervisor: String,
}

impl Surveyor {
    pub(super) fn new(
        config: InventoryConfig,
        publish: Arc<watch::Sender<Arc<Inventory>>>,
        wake: SyncSender<Wake>,
        surveyed: Sender<()>,
        book: MemoryBook,
        daemon: Daemon,
        metrics: InventoryMetrics,
    ) -> Self {
        let (execution_changes, hypervisor) = (BTreeMap::new(), String::new());
        Self { config, publish, wake, surveyed, book, daemon, metrics, execution_changes, hypervisor }
    }

    /// Surveys until it is told to stop, or nobody reads any more.
    pub(super) fn run(mut self, woken: &Receiver<Wake>) {
        let mut link = Reconnecting::new(self.config.uri.clone());
        while !self.publish.is_closed() {
            let pause = match self.ask(&mut link) {
                Ok(domains) => {
                    self.metrics.connected(link.opened());
                    self.survey(domains);
                    self.config.reconcile
                }
                Err(error) => {
                    self.failed(&error);
                    // A connection may have broken in the middle of a call: the next attempt opens a new one.
                    link.pause().min(self.config.reconcile).max(SURVEY_SPACING)
                }
            };
            if !self.wait(woken, pause) {
                return;
            }
        }
    }

    /// Waits for `pause` or the next event; `false` means stop.
    fn wait(&mut self, woken: &Receiver<Wake>, pause: Duration) -> bool {
        let first = match woken.recv_timeout(pause) {
            Ok(wake) => wake,
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        // What else happens in the next moment is covered by the same survey.
        std::thread::sleep(SURVEY_SPACING);
        std::iter::once(first).chain(woken.try_iter()).all(|wake| match wake {
            Wake::Stop => false,
            Wake::Event(event) => {
                if event.kind.changes_execution() {
                    *self.execution_changes.entry(event.vm).or_default() += 1;
                }
                tracing::debug!(vm = %event.vm, kind = ?event.kind, "lifecycle event");
                true
            }
        })
    }

    /// Asks libvirt. Blocks.
    fn ask(&mut self, link: &mut Reconnecting) -> Result<Domains, HypervisorError> {
        let (wake, dropped) = (self.wake.clone(), self.metrics.events_dropped.clone());
        let mut version = None;
        let hypervisor = link.get_with(|hypervisor| {
            hypervisor.on_lifecycle(move |event| {
                if wake.try_send(Wake::Event(event)).is_err() {
                    dropped.inc();
                }
            })?;
            version = Some(hypervisor.version()?);
            Ok(())
        })?;
        if let Some(version) = version {
            tracing::info!(uri = self.config.uri, version, "connected to libvirt");
            self.hypervisor = version;
            self.daemon.is(daemon_pid(&self.config.uri, &self.config.proc));
        }
        self.daemon.ask(|| hypervisor.domains())
    }

    fn survey(&mut self, domains: Domains) {
        for (vm, error) in &domains.unreadable {
            tracing::debug!(%vm, %error, "domain not described: keeping what was known");
        }
        let before = self.publish.borrow().clone();
        let vms = self.locate(domains.described);
        self.execution_changes.retain(|vm, _| vms.iter().any(|facts| facts.id == *vm));
        self.metrics.surveyed(&vms);
        let mut inventory = Inventory {
            complete: domains.unreadable.is_empty(),
            taken: Instant::now(),
            hypervisor: self.hypervisor.clone(),
            vms,
        };
        // Such a domain exists; its last known facts are truer than its absence.
        inventory.vms.extend(domains.unreadable.iter().filter_map(|(vm, _)| before.vm(*vm).cloned()));
        inventory.vms.sort_by_key(|facts| facts.id);
        self.book.annotate(&mut inventory.vms);
        self.publish.send_replace(Arc::new(inventory));
        // If it has ended there is nobody to tell.
        let _ = self.surveyed.send(());
    }

    fn failed(&self, error: &HypervisorError) {
        if !matches!(error, HypervisorError::BackingOff { .. }) {
            self.metrics.survey_failed();
            tracing::warn!(%error, "no survey of the domains: the inventory is incomplete");
        }
        self.publish.send_if_modified(|inventory| {
            let news = inventory.complete;
            if news {
                Arc::make_mut(inventory).complete = false;
            }
            news
        });
    }

    /// Adds to libvirt's facts what only `/proc` knows.
    fn locate(&self, domains: Vec<DomainFacts>) -> Vec<VmFacts> {
        let proc = &self.config.proc;
        let mounts = CgroupMounts::read(&proc.path("self/mountinfo")).unwrap_or_default();
        let mut scan = ProcessScan::new(proc, &self.config.pid_dir);
        let locate = |facts: DomainFacts| {
            // An active domain has a balloon size; others have no process to look for.
            let active = facts.balloon_bytes.is_some();
            let process = active.then(|| scan.find(facts.vm, &facts.name)).and_then(|found| match found {
                Ok(process) => process,
                Err(error) => {
                    tracing::warn!(vm = %facts.vm, %error, "QEMU process cannot be read");
                    None
                }
            });
            VmFacts {
                id: facts.vm,
                state: facts.state,
                cgroup: process.as_ref().and_then(|process| domain_cgroup(proc, &mounts, process)),
                process,
                vcpus: facts.vcpus,
                vcpus_max: facts.vcpus_max,
                memory_bytes: facts.memory_bytes,
                balloon_bytes: facts.balloon_bytes,
                memory: MemoryFacts::default(),
                interfaces: Vec::new(),
                disks_unseen: false,
                guest_disks: None,
                terms: None,
                keepsake: None,
                shadow_of: None,
                execution_changes: self.execution_changes.get(&facts.vm).copied().unwrap_or(0),
                name: facts.name,
            }
        };
        domains.into_iter().map(locate).collect()
    }
}

fn domain_cgroup(proc: &Proc, mounts: &CgroupMounts, process: &QemuProcess) -> Option<DomainCgroup> {
    let membership = Membership::read(&proc.path(format!("{}/cgroup", process.pid))).ok()?;
    DomainCgroup::discover(mounts, &membership)
}
