//! The one place that talks to libvirt.
//!
//! Every call may block for as long as libvirtd likes, so a [`Hypervisor`] belongs to a thread that nothing waits for: the
//! inventory has one, the actuator another. Keep-alive breaks a connection whose peer is gone; a call that libvirtd itself sits
//! on is only noticed by its caller's deadline.

pub mod backup;
mod blueprint;
mod cpu;
mod daemon;
mod devices;
mod dirty_rate;
mod guest_disk;
mod keepsake;
mod limits;
mod memory;
pub mod migration;
pub mod needs;
mod quota;
mod reconnect;
mod remote;
mod shadow;
pub mod storage;
mod terms;
pub mod upload;

pub(crate) use blueprint::CPU_MODES;
#[cfg(test)]
pub(crate) use blueprint::parse as parse_blueprint;
pub use daemon::daemon_pid;
pub use devices::{BalloonDevice, Devices, Interface};
pub use dirty_rate::DIRTY_RATE_PERIOD_MAX_S;
pub use guest_disk::GuestDiskCounters;
pub use limits::{Bandwidth, DiskTune, NETWORK_UNIT_BYTES_PER_S, limited_devices};
pub use memory::MemoryStats;
pub use quota::QuotaError;
pub use reconnect::{Backoff, Reconnecting};
pub use remote::{About, ask_there};
#[cfg(test)]
pub(crate) use shadow::parse as parse_shadow;
pub use shadow::{
    FoundShadow, SHADOW_BRIDGE, SHADOW_FILTER, SHADOW_NAMESPACE, SHADOW_NETWORK, SHADOW_PERIOD_US, SHADOW_SUFFIX,
    ShadowDomain, ShadowLimits, quota_us,
};

use super::libvirt_raw::LifecycleSubscription;
use gnomon_common::wire::{VmId, VmState};
use std::sync::OnceLock;
use std::time::Duration;
use virt::connect::Connect;
use virt::domain::{Domain, DomainState};
use virt::error::{Error, ErrorNumber};
use virt::sys;

/// Interval of keep-alive messages. With [`KEEP_ALIVE_COUNT`] a dead libvirtd is noticed within 20 s.
const KEEP_ALIVE_INTERVAL_S: i32 = 5;
/// Unanswered keep-alive messages after which the connection counts as dead.
const KEEP_ALIVE_COUNT: u32 = 3;

/// Why libvirt did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// libvirt's event loop could not be started: without it neither events nor keep-alive work.
    #[error("cannot start libvirt's event loop: {0}")]
    EventLoop(String),
    /// No connection.
    #[error("cannot connect to libvirt at {uri}: {message} (is libvirtd running, and may this user use its socket?)")]
    Connect {
        /// Where.
        uri: String,
        /// libvirt's words.
        message: String,
    },
    /// The last attempt failed too recently: not tried.
    #[error("not connected to libvirt at {uri}; next attempt in {wait_ms} ms")]
    BackingOff {
        /// Where.
        uri: String,
        /// Until the next attempt, in milliseconds.
        wait_ms: u64,
    },
    /// No such domain on this host.
    #[error("libvirt knows no domain {0}")]
    NoSuchDomain(VmId),
    /// It is here, and does not run.
    #[error("the domain {0} does not run")]
    NotRunning(VmId),
    /// No domain of that name or UUID on this host.
    #[error("libvirt knows no domain {0:?}; `virsh list --all` shows those there are")]
    NoSuchName(String),
    /// QEMU still measures.
    #[error("QEMU has not said how fast memory is written to, {} s after the time that it was to measure", .0.as_secs())]
    DirtyRateLate(Duration),
    /// A call failed.
    #[error("libvirt cannot {what}: {message}")]
    Call {
        /// What was asked for.
        what: &'static str,
        /// libvirt's words.
        message: String,
        /// Whether the same call may succeed later (connection lost, libvirt busy).
        retryable: bool,
    },
    /// The CPU quota asked for cannot be set, or the one that is set cannot be understood.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The domain or its hypervisor lacks what this takes.
    #[error("{0}")]
    Unsupported(String),
}

impl HypervisorError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::EventLoop(_)
            | Self::NoSuchDomain(_)
            | Self::NotRunning(_)
            | Self::NoSuchName(_)
            | Self::Quota(_)
            | Self::Unsupported(_) => false,
            Self::Connect { .. } | Self::BackingOff { .. } | Self::DirtyRateLate(_) => true,
            Self::Call { retryable, .. } => *retryable,
        }
    }

    /// Whether it says that there is no process, and so nothing that a job of it could write to. No other error says anything of jobs: libvirt has
    /// internal ones while it restarts, and while it prepares a job.
    pub fn is_of_no_process(&self) -> bool {
        matches!(self, Self::NoSuchDomain(_) | Self::NotRunning(_))
    }

    fn call(what: &'static str, error: &Error) -> Self {
        use ErrorNumber::*;
        let lacks = [OperationUnsupported, NoSupport, ConfigUnsupported, ArgumentUnsupported];
        if lacks.iter().any(|&code| error.code().is_known_and(|known| known == code)) {
            return Self::Unsupported(format!("libvirt cannot {what}: {}", error.message()));
        }
        let retryable = [Rpc, NoConnect, InvalidConn, SystemError, OperationTimeout, ResourceBusy, NoServer]
            .iter()
            .any(|&code| error.code().is_known_and(|known| known == code));
        Self::Call { what, message: error.message().to_owned(), retryable }
    }
}

/// What happened to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifecycleEvent {
    /// Which.
    pub vm: VmId,
    /// What.
    pub kind: LifecycleKind,
}

/// What can happen to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleKind {
    /// It was defined, redefined or renamed.
    Defined,
    /// Its definition was removed or renamed.
    Undefined,
    /// It began to exist as a process: booted, restored or migrated to here.
    Started,
    /// Its vCPUs stopped: by someone, by an I/O error, for a migration, or because the guest sleeps.
    Suspended,
    /// Its vCPUs run again.
    Resumed,
    /// It shuts down or its process has ended.
    Stopped,
    /// The guest crashed.
    Crashed,
    /// Something newer than this list.
    Other,
}

impl LifecycleKind {
    /// Whether the vCPUs may have stopped or started, so that what was measured around it is a mixture.
    pub fn changes_execution(self) -> bool {
        !matches!(self, Self::Defined | Self::Undefined)
    }
}

/// What libvirt says about a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainFacts {
    /// Its UUID.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: VmState,
    /// vCPUs online.
    pub vcpus: u32,
    /// vCPUs it is defined with, plugged in or not.
    pub vcpus_max: u32,
    /// Memory it is defined with, in bytes.
    pub memory_bytes: u64,
    /// What the balloon leaves to the guest, in bytes, while it is active. Without a balloon device: all of its memory.
    pub balloon_bytes: Option<u64>,
}

/// All domains of a host.
#[derive(Debug, Default)]
pub struct Domains {
    /// Those that could be described, in libvirt's order.
    pub described: Vec<DomainFacts>,
    /// Those that exist and could not be described now (their process was just ending, say), and why.
    pub unreadable: Vec<(VmId, HypervisorError)>,
}

/// A connection to libvirt.
pub struct Hypervisor {
    connect: Connect,
    /// Held, not read: events come as long as it lives. It has its own reference to the connection.
    _lifecycle: Option<LifecycleSubscription>,
}

impl Hypervisor {
    /// Connects to `uri` (`qemu:///system`). Blocks.
    pub fn open(uri: &str) -> Result<Self, HypervisorError> {
        run_event_loop()?;
        let connect = Connect::open(Some(uri))
            .map_err(|e| HypervisorError::Connect { uri: uri.to_owned(), message: e.message().to_owned() })?;
        // Drivers that live inside this process (test:///) have no connection to keep alive and say so.
        if let Err(error) = connect.set_keep_alive(KEEP_ALIVE_INTERVAL_S, KEEP_ALIVE_COUNT) {
            tracing::debug!(uri, %error, "libvirt connection without keep-alive");
        }
        Ok(Self { connect, _lifecycle: None })
    }

    /// Calls `listener` for each lifecycle event of any domain, on libvirt's event thread: it must neither block nor panic.
    /// One listener per connection; a second call replaces the first.
    pub fn on_lifecycle(
        &mut self,
        listener: impl Fn(LifecycleEvent) + Send + Sync + 'static,
    ) -> Result<(), HypervisorError> {
        self._lifecycle = None;
        let subscription = LifecycleSubscription::new(&self.connect, listener)
            .map_err(|e| HypervisorError::call("subscribe to lifecycle events", &e))?;
        self._lifecycle = Some(subscription);
        Ok(())
    }

    /// Whether the connection is still usable. Does not block.
    pub fn is_alive(&self) -> bool {
        self.connect.is_alive().unwrap_or(false)
    }

    /// The hypervisor's and libvirt's versions, for people: `QEMU 7.2.22, libvirt 9.0.0`.
    pub fn version(&self) -> Result<String, HypervisorError> {
        let call = |e| HypervisorError::call("tell its version", &e);
        let dotted = |v: u32| format!("{}.{}.{}", v / 1_000_000, v / 1000 % 1000, v % 1000);
        let driver = self.connect.driver_type().map_err(call)?;
        let hypervisor = dotted(self.connect.hyp_version().map_err(call)?);
        let libvirt = dotted(self.connect.lib_version().map_err(call)?);
        Ok(format!("{driver} {hypervisor}, libvirt {libvirt}"))
    }

    /// All domains, running or not. Blocks: one round trip, and one per domain (none of which needs QEMU's monitor, so that
    /// a hung QEMU cannot hold it up).
    pub fn domains(&self) -> Result<Domains, HypervisorError> {
        let mut domains = Domains::default();
        let handles = self.connect.list_all_domains(0).map_err(|e| HypervisorError::call("list the domains", &e))?;
        for handle in handles {
            match describe(&handle) {
                Ok(facts) => domains.described.push(facts),
                Err(error) if is_no_domain(&error) => {} // Undefined since the list was made.
                Err(error) if !self.is_alive() => return Err(HypervisorError::call("describe a domain", &error)),
                Err(error) => {
                    if let Ok(uuid) = handle.uuid() {
                        let error = HypervisorError::call("describe a domain", &error);
                        domains.unreadable.push((VmId(uuid), error));
                    }
                }
            }
        }
        Ok(domains)
    }

    /// The CPU quota of a running domain as a whole, in cores; `None` is unlimited. Blocks.
    pub fn cpu_quota(&self, vm: VmId) -> Result<Option<f64>, HypervisorError> {
        let domain = self.domain(vm)?;
        Ok(quota::cores(&global_bandwidth(&domain)?)?)
    }

    /// Sets the CPU quota of a running domain as a whole (vCPU, iothread and emulator threads together), in cores; `None` is
    /// unlimited. The domain's bandwidth period is kept where it is a legal one. The persistent definition is not touched:
    /// a restart of the domain brings back what its owner defined. Blocks.
    pub fn set_cpu_quota(&self, vm: VmId, cores: Option<f64>) -> Result<(), HypervisorError> {
        let domain = self.domain(vm)?;
        let change = quota::encode(cores, &global_bandwidth(&domain)?)?;
        domain
            .set_scheduler_parameters_flags(&change, sys::VIR_DOMAIN_AFFECT_LIVE)
            .map_err(|e| HypervisorError::call("set the CPU quota", &e))
    }

    fn domain(&self, vm: VmId) -> Result<Domain, HypervisorError> {
        self.connect.lookup_domain_by_uuid(vm.0).map_err(|error| {
            if is_no_domain(&error) {
                HypervisorError::NoSuchDomain(vm)
            } else {
                HypervisorError::call("look a domain up", &error)
            }
        })
    }
}

fn global_bandwidth(domain: &Domain) -> Result<virt::domain::SchedBandwidth, HypervisorError> {
    domain
        .scheduler_parameters_flags(sys::VIR_DOMAIN_AFFECT_LIVE)
        .map(|parameters| parameters.global_bw)
        .map_err(|e| HypervisorError::call("read the CPU quota", &e))
}

fn describe(domain: &Domain) -> Result<DomainFacts, Error> {
    let info = domain.info()?;
    let kib = |kib: u64| kib.saturating_mul(1024);
    let state = match info.state.known() {
        // "Blocked" is a running domain that waits for a resource.
        Some(DomainState::Running | DomainState::Blocked) => VmState::Running,
        Some(DomainState::Paused) if migration::is_arriving(domain) => VmState::Arriving,
        Some(DomainState::Paused) => VmState::Paused,
        Some(DomainState::Shutoff) => VmState::ShutOff,
        Some(DomainState::Crashed) => VmState::Crashed,
        Some(DomainState::NoState | DomainState::Shutdown | DomainState::PMSuspended) | None => VmState::Other,
    };
    // The id is as old as the list; the state is newer.
    let active = domain.id().is_some() && state != VmState::ShutOff;
    // Of a domain that has just ended, or of a driver without hot-plug, it is what it has.
    let vcpus_max = if active {
        domain.vcpus_flags(sys::VIR_DOMAIN_VCPU_LIVE | sys::VIR_DOMAIN_VCPU_MAXIMUM).unwrap_or(info.nr_virt_cpu)
    } else {
        info.nr_virt_cpu
    };
    Ok(DomainFacts {
        vm: VmId(domain.uuid()?),
        name: domain.name()?,
        state,
        vcpus: info.nr_virt_cpu,
        vcpus_max: vcpus_max.max(info.nr_virt_cpu),
        memory_bytes: kib(info.max_mem),
        balloon_bytes: active.then(|| kib(info.memory)),
    })
}

fn is_no_domain(error: &Error) -> bool {
    error.code().is_known_and(|code| code == ErrorNumber::NoDomain)
}

/// Registers libvirt's event loop, once per process and before any connection is opened, and runs it on a thread of its own.
fn run_event_loop() -> Result<(), HypervisorError> {
    static LOOP: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        // libvirt prints every error on stderr unless told not to; ours are returned.
        virt::error::clear_error_callback();
        virt::event::event_register_default_impl().map_err(|e| e.message().to_owned())?;
        let run = || {
            loop {
                if let Err(error) = virt::event::event_run_default_impl() {
                    tracing::warn!(%error, "libvirt's event loop stumbled");
                    // A loop that fails at once must not take a CPU from the guests.
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        };
        std::thread::Builder::new().name("libvirt-events".into()).spawn(run).map_err(|e| e.to_string())?;
        Ok(())
    };
    LOOP.get_or_init(start).clone().map_err(HypervisorError::EventLoop)
}

#[cfg(test)]
mod tests;
