//! The daemon: every part started in its order, watched, and stopped in the opposite one.
//!
//! Order: what can refuse for a reason that a person has to mend comes first (certificates, ledger, probe), what others need before those
//! (inventory, sampler, executor), the connection to the brain last. Stopping leaves every limit as it is: a brain or an agent that restarts must
//! not make VMs jump.

use crate::actuate::Actuator;
use crate::actuate::deadline::{ACTUATION_MAX, WithDeadline};
use crate::actuate::dirty_rate::LibvirtMeter;
use crate::actuate::dispatch::ByMeans;
use crate::actuate::migrate::{LibvirtMover, MoverConfig};
use crate::actuate::shadow::{CopiesKept, LibvirtShadower, ShadowerConfig};
use crate::command;
use crate::command::clock::Clock;
use crate::command::directory::InventoryDirectory;
use crate::command::executor::{self, Beside, Duties, Executor, Policy};
use crate::command::ledger::{Ledger, LedgerError};
use crate::config::{Config, Listen};
use crate::cost::{CostControl, Standby};
use crate::cpu_source::{self, Footing, SignalMetrics, SourceUnavailable};
use crate::host::inventory::{self, Inventory, InventoryConfig, InventoryMetrics};
use crate::host::machine::Machine;
use crate::host::numa::Numa;
use crate::host::process::Proc;
use crate::host::storage::StorageBook;
use crate::pacer::Pacers;
use crate::probe::{self, BlockProbe, DropProbe, ExitProbe, MemoryProbe, QueueProbe};
use crate::reading::{BlockReading, ExitReading, ReclaimReading};
use crate::sample::{
    self, ChangedVms, DeviceReadings, DeviceStandby, DropReading, HostReport, LiveLoads, MigrationBook, QueueReading,
    SampleMetrics, SamplerConfig, SamplerHandle, Sources, VmReadings,
};
use crate::self_test::{self, Trial, Uncounted};
use crate::telemetry::{self, SelfTestMetrics};
use crate::uplink::identity::IdentityError;
use crate::uplink::{self, Spool, SpoolConfig, Uplink};
use gnomon_common::wire::{AgentEpoch, CpuSource, HostFacts, VmState};
use prometheus_client::registry::Registry;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

/// Windows between sampler and uplink: the uplink takes them at once, so more than one means that it is starved of CPU.
const REPORTS_WAITING_MAX: usize = 16;

/// How long the first connection waits for a first look at the VMs, so that its hello can tell the hypervisor's version.
const FIRST_SURVEY_MAX: Duration = Duration::from_secs(5);

/// Windows that may be missing before `/healthz` says that sampling has stopped.
const WINDOWS_MISSED_MAX: u32 = 3;

/// How often the daemon looks whether its threads still run.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a command under way may take to finish when the agent stops: its own deadline and a little.
const FINISH_MAX: Duration = ACTUATION_MAX.saturating_add(Duration::from_secs(2));

/// Why the daemon does not start, or has ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Certificates or key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The ledger; [`LedgerError::Locked`] if another agent runs.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The source of CPU readings that `probe.source` demands.
    #[error(transparent)]
    CpuSource(#[from] SourceUnavailable),
    /// The sampler's intervals or its thread.
    #[error("sampling cannot start: {0}")]
    Sampler(Box<dyn std::error::Error + Send + Sync>),
    /// The metrics' address.
    #[error("cannot serve metrics on {address} (metrics.listen): {source}")]
    Metrics {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The operating system did not give a thread, a signal or a fact.
    #[error("the operating system refuses {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A part of the agent has ended, which none does by itself.
    #[error("{0} has ended unexpectedly; the log above says why, please report it")]
    Ended(&'static str),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::System { what, source }
}

/// Starts keeping an inventory for this configuration. With `set_stats_period`, balloons whose statistics nobody asks for are given a
/// period.
pub fn inventory(
    config: &Config,
    set_stats_period: bool,
    registry: &mut Registry,
) -> std::io::Result<(watch::Receiver<Arc<Inventory>>, inventory::InventoryHandle)> {
    let metrics = InventoryMetrics::default();
    metrics.register(registry);
    let uri = config.host.libvirt_uri.clone();
    inventory::spawn(InventoryConfig { uri, set_stats_period, ..InventoryConfig::default() }, metrics)
}

/// The actuator for this configuration: libvirt, confirmed by the kernel, within a deadline.
pub fn actuator(config: &Config, inventory: watch::Receiver<Arc<Inventory>>) -> std::io::Result<impl Actuator + use<>> {
    WithDeadline::new(ByMeans::of_host(&config.host.libvirt_uri, inventory), ACTUATION_MAX)
}

/// Runs until SIGTERM or SIGINT, or until a part fails.
pub async fn run(config: Config, dry_run: bool) -> Result<(), DaemonError> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(system("to handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("to handle SIGINT"))?;
    let mut registry = Registry::default();
    telemetry::register_process(&mut registry);

    // Read anew for each connection; what is wrong with it now is told at once.
    let identity = config.identity();
    identity.load()?;
    let clock = Clock::new().map_err(system("the boot's id"))?;
    let ledger = Ledger::open(&config.ledger_path())?;
    let epoch = ledger.raise_epoch(clock.now().wall)?;
    tracing::info!(host = %config.host.name, epoch = epoch.0, version = env!("CARGO_PKG_VERSION"), dry_run, "gnomon-agent starts");
    let (sources, cpu_source) = sources(&config, &mut registry)?;

    let (mut inventory, inventory_handle) =
        inventory(&config, !dry_run, &mut registry).map_err(system("the inventory's threads"))?;
    let (report, reports) = mpsc::channel(REPORTS_WAITING_MAX);
    let duties = duties(&config, epoch);
    let book = MigrationBook::default();
    let pacers = Pacers::default();
    pacers.start(inventory.clone(), config.shadow.directory.clone()).map_err(system("the thread of pacers"))?;
    let storage = StorageBook::default();
    if config.migration.copies() {
        let (uri, shared_paths) = (config.host.libvirt_uri.clone(), config.migration.shared_paths.clone());
        let daemon = inventory_handle.daemon();
        storage
            .start(uri, daemon, shared_paths, inventory.clone())
            .map_err(system("the thread that measures disks"))?;
    }
    let sampler = sampler(&config, &inventory, sources, (&duties, &book, &pacers, &storage), report, &mut registry)?;
    let command_metrics = command::Metrics::register(&mut registry);
    let actuator = actuator(&config, inventory.clone()).map_err(system("the actuation thread"))?;
    let policy = Policy {
        host: config.host.name.clone(),
        migrations_most: if config.migration.enabled { config.migration.most_at_once } else { 0 },
        shadows_max: config.shadow.shadows_max,
        copies: config.shadow.copies_directory.is_some(),
        bounds: config.guard.cpu_bounds(),
        allowed: config.guard.allowed(),
        dry_run,
    };
    let mut shadower = Box::new(shadower(&config, duties.capacity_cores, &pacers));
    let copies = shadower.copies_kept().map_err(system("the thread of shadows"))?;
    let mover = Box::new(LibvirtMover::new(MoverConfig {
        uri: config.host.libvirt_uri.clone(),
        reserve_bytes: config.guard.memory_host_reserve_bytes,
        shared_paths: config.migration.shared_paths.clone(),
        copy_bytes_max: config.migration.copy_bytes_max,
        book,
    }));
    let meter = Box::new(LibvirtMeter::new(config.host.libvirt_uri.clone()));
    let directory = Box::new(InventoryDirectory::new(inventory.clone(), clock));
    let (actuator, beside, metrics) = (Box::new(actuator), Beside { mover, shadower, meter }, command_metrics.clone());
    let executor = Executor::new(ledger, actuator, beside, directory, policy, clock, metrics).with_duties(duties);

    let uplink_metrics = uplink::Metrics::register(&mut registry);
    let facts = facts(&config, dry_run, cpu_source, inventory.clone(), copies);
    if let Listen::At(address) = config.metrics.listen {
        let metrics = uplink_metrics.clone();
        let silence_max = Duration::from_millis(config.sample.window_ms.into()) * WINDOWS_MISSED_MAX;
        let healthy = Box::new(move || metrics.since_last_report() <= silence_max);
        let served = telemetry::serve(address, registry, healthy, stop.clone()).await;
        tokio::spawn(served.map_err(|source| DaemonError::Metrics { address, source })?);
    }
    // A libvirt that is down must not keep the agent from telling the brain so.
    let _ = timeout(FIRST_SURVEY_MAX, inventory.wait_for(|inventory| is_known(inventory))).await;
    // After the survey: what a crash left under way is resolved at once only for VMs that are known.
    let (commands, executor) = executor::spawn(executor).map_err(system("the command thread"))?;
    let spool =
        SpoolConfig { dir: config.spool_path(), bounds: config.spool.bounds(), host: config.host.name.clone(), epoch };
    let spool = Arc::new(Spool::start(spool, uplink_metrics.clone()).map_err(system("the spool's thread"))?);
    let uplink = Uplink {
        addresses: config.brain.address.0,
        server_name: config.brain.server_name,
        identity,
        host: config.host.name,
        epoch,
        facts,
        commands,
        clock,
        metrics: uplink_metrics,
        command_metrics,
        spool,
    };
    let seed = RandomState::new().hash_one(epoch.0); // std's own per-process random keys
    let mut uplink = tokio::spawn(uplink.run(reports, seed, stop.clone()));

    let mut watch = interval(WATCH_INTERVAL);
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = &mut uplink => return Err(DaemonError::Ended("the uplink")),
            _ = watch.tick() => {
                if !sampler.is_running() {
                    break Err(DaemonError::Ended("the sampling thread"));
                }
                if executor.is_finished() {
                    break Err(DaemonError::Ended("the command thread"));
                }
            }
        }
    };
    tracing::info!("gnomon-agent stops; the limits it has set stay as they are");
    stop.cancel();
    finish(uplink, executor).await;
    ended
}

/// Everything that works on this host, and what CPU readings come from, now and later.
pub(crate) fn sources(
    config: &Config,
    registry: &mut Registry,
) -> Result<(Sources, watch::Receiver<CpuSource>), DaemonError> {
    let self_tests = SelfTestMetrics::register(registry);
    let cpu = cpu_source(config, &self_tests, registry)?;
    let rung = cpu.rung();
    let sources = Sources {
        cpu: Box::new(cpu),
        disks: disks(config, &self_tests),
        drops: drops(&self_tests),
        queues: queues(&self_tests),
        reclaim: reclaim(&self_tests),
        exits: exits(&self_tests),
        cost: CostControl::register(config.cost, config.sample.sample_ms, registry),
    };
    probe::give_back_memory();
    Ok((sources, rung))
}

/// Climbs to the best source of CPU readings, and says where the agent stands and why not higher.
fn cpu_source(
    config: &Config,
    self_tests: &SelfTestMetrics,
    registry: &mut Registry,
) -> Result<Footing<cpu_source::Host>, DaemonError> {
    let choice = config.probe.source;
    let climb = cpu_source::climb(choice, &cpu_source::Host)?;
    for fall in &climb.falls {
        self_tests.show(fall.rung.name(), false);
        tracing::warn!(source = %fall.rung, why = fall.why, "a better source of CPU readings does not work here");
    }
    let rung = climb.rung;
    if rung != CpuSource::Cgroup {
        self_tests.show(rung.name(), true);
    }
    tracing::info!(
        source = %rung,
        waiting = rung.tells_waiting(),
        events = rung.counts_events(),
        "CPU readings; `gnomon-agent doctor` says what would give more"
    );
    Ok(Footing::new(cpu_source::Host, climb, choice, SignalMetrics::register(registry)))
}

/// What the agent does of its own accord. The capacity is that of its start: CPUs plugged in later are the brain's to share out.
fn duties(config: &Config, epoch: AgentEpoch) -> Duties {
    let machine = Machine::new(Proc::default(), config.host.cgroup_root.clone());
    let online = || machine.cpus().map_or_else(|_| num_cpus(), f64::from);
    Duties {
        away: config.away,
        reconcile: config.reconcile,
        capacity_cores: config.host.capacity_cores.unwrap_or_else(online),
        epoch,
        live: LiveLoads::default(),
        changed: ChangedVms::default(),
    }
}

/// What sees to shadows, and by what bounds.
fn shadower(config: &Config, capacity_cores: f64, pacers: &Pacers) -> LibvirtShadower {
    let config = ShadowerConfig {
        host: config.host.name.clone(),
        uri: config.host.libvirt_uri.clone(),
        shadow: config.shadow.clone(),
        capacity_cores,
        memory_bytes: memory_bytes(),
        reserve_bytes: config.guard.memory_host_reserve_bytes,
        machine: Machine::new(Proc::default(), config.host.cgroup_root.clone()),
    };
    LibvirtShadower::new(config, Some(Box::new(pacers.clone())))
}

/// All of the host's memory.
fn memory_bytes() -> u64 {
    let memory = rustix::system::sysinfo();
    memory.totalram.saturating_mul(memory.mem_unit.into())
}

fn sampler(
    config: &Config,
    inventory: &watch::Receiver<Arc<Inventory>>,
    sources: Sources,
    (duties, book, pacers, storage): (&Duties, &MigrationBook, &Pacers, &StorageBook),
    report: mpsc::Sender<HostReport>,
    registry: &mut Registry,
) -> Result<SamplerHandle, DaemonError> {
    let metrics = SampleMetrics::default();
    metrics.register(registry);
    let config = SamplerConfig {
        sample_ms: config.sample.sample_ms,
        window_ms: config.sample.window_ms,
        cgroup_root: config.host.cgroup_root.clone(),
        live: duties.live.clone(),
        changed: duties.changed.clone(),
        migrations: book.clone(),
        pacers: pacers.clone(),
        storage: storage.clone(),
        ..SamplerConfig::default()
    };
    sample::spawn(config, inventory.clone(), sources, report, metrics)
        .map_err(|error| DaemonError::Sampler(error.into()))
}

/// A probe that works, tried out: without it, `absent` is what is not told.
fn tried<P>(
    probe: &'static str,
    absent: &'static str,
    self_tests: &SelfTestMetrics,
    attempt: impl FnOnce() -> Result<(P, Trial), Uncounted>,
) -> Option<P> {
    match attempt() {
        Ok((loaded, trial)) => {
            if let Trial::NotProvoked(why) = trial {
                tracing::info!(probe, why, "the probe is attached; that it counts could not be tried");
            } else {
                self_tests.show(probe, true);
                tracing::info!(probe, "the probe counts");
            }
            Some(loaded)
        }
        Err(error) => {
            self_tests.show(probe, false);
            tracing::warn!(probe, %error, "{absent} not measured");
            None
        }
    }
}

/// The drop probe, where it works.
fn drops(self_tests: &SelfTestMetrics) -> Option<DeviceReadings<DropReading>> {
    let probe = tried("drops", "why packets are dropped is", self_tests, || {
        let mut probe = DropProbe::load()?;
        let trial = self_test::drops(&mut probe)?;
        Ok((probe, trial))
    });
    Some(Box::new(DeviceStandby::of(probe?)))
}

/// The queue probe, where it works.
fn queues(self_tests: &SelfTestMetrics) -> Option<DeviceReadings<QueueReading>> {
    let probe = tried("queues", "how long packets wait for VMs is", self_tests, || {
        let mut probe = QueueProbe::load()?;
        let trial = self_test::queues(&mut probe)?;
        Ok((probe, trial))
    });
    Some(Box::new(DeviceStandby::of(probe?)))
}

/// The block probe, where it works.
fn disks(config: &Config, self_tests: &SelfTestMetrics) -> Option<VmReadings<BlockReading>> {
    let probe = tried("block", "disks are", self_tests, || {
        let mut probe = BlockProbe::load()?;
        let trial = self_test::disks(&mut probe, &config.state_dir)?;
        Ok((probe, trial))
    });
    Some(Box::new(Standby::of(probe?)))
}

/// The memory probe, where it works: without it, how VMs are held up for want of memory is not told.
fn reclaim(self_tests: &SelfTestMetrics) -> Option<VmReadings<ReclaimReading>> {
    let probe = tried("memory", "time in reclaim is", self_tests, || {
        let mut probe = MemoryProbe::load()?;
        let trial = self_test::reclaim(&mut probe, Path::new(self_test::CGROUP_ROOT))?;
        Ok((probe, trial))
    });
    Some(Box::new(Standby::of(probe?)))
}

/// The exits probe, where KVM is: without it, why vCPUs leave their guests is not told.
fn exits(self_tests: &SelfTestMetrics) -> Option<VmReadings<ExitReading>> {
    let probe = tried("exits", "why vCPUs leave their guests is", self_tests, || {
        let mut probe = ExitProbe::load()?;
        let trial = self_test::exits(&mut probe)?;
        Ok((probe, trial))
    });
    Some(Box::new(Standby::of(probe?)))
}

/// What the hello tells about this host, asked for at every connection because libvirt may be restarted and CPUs plugged meanwhile.
fn facts(
    config: &Config,
    dry_run: bool,
    cpu_source: watch::Receiver<CpuSource>,
    inventory: watch::Receiver<Arc<Inventory>>,
    copies: CopiesKept,
) -> Box<dyn Fn() -> HostFacts + Send + Sync> {
    let declared_cores = config.host.capacity_cores;
    let (cpu_bounds, memory_bounds) = (config.guard.cpu_bounds(), config.guard.memory_bounds());
    let means = config.guard.means();
    let (migration, zone, labels) = (config.migration.facts(), config.host.zone.clone(), config.host.labels.clone());
    let shadows = config.shadow.facts(&config.migration.uri);
    let machine = Machine::new(Proc::default(), config.host.cgroup_root.clone());
    let numa = Numa::default();
    Box::new(move || {
        let online = || machine.cpus().map_or_else(|_| num_cpus(), f64::from);
        HostFacts {
            capacity_cores: declared_cores.unwrap_or_else(online),
            memory_bytes: memory_bytes(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            hypervisor: inventory.borrow().hypervisor.clone(),
            cpu_bounds,
            memory_bounds,
            means: means.clone(),
            migration: migration.clone(),
            zone: zone.clone(),
            numa: numa.nodes().unwrap_or_else(|error| {
                tracing::warn!(%error, "the host's NUMA nodes are not told");
                Vec::new()
            }),
            labels: labels.clone(),
            shadows: shadows.clone(),
            copies: copies.told(),
            dry_run,
            cpu_source: *cpu_source.borrow(),
        }
    })
}

/// Whether all VMs are known, and of those that run what their owners allow: no command for them is obeyed before.
fn is_known(inventory: &Inventory) -> bool {
    let running = inventory.vms.iter().filter(|facts| facts.state == VmState::Running);
    inventory.complete && running.map(|facts| &facts.terms).all(Option::is_some)
}

/// What this process may use: the fall-back where `/proc/stat` cannot be read.
fn num_cpus() -> f64 {
    thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64)
}

/// Waits for the close to leave and for the command under way to be concluded; a kill here would lose neither, only time.
async fn finish(uplink: JoinHandle<()>, executor: thread::JoinHandle<()>) {
    // The uplink holds the only way to the executor: when it ends, the executor does.
    let finished = timeout(FINISH_MAX, async {
        let _ = uplink.await;
        let _ = tokio::task::spawn_blocking(move || executor.join()).await;
    });
    if finished.await.is_err() {
        tracing::warn!("a command is still under way; the next start will find out what became of it");
    }
}
