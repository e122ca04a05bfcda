//! eBPF programs in the running kernel: load, attach, drain.
//!
//! [`Scheduler`] measures how long the threads of VMs ran and waited for a CPU, and for whom, by one of two sets of programs ([`Mechanism`]): which
//! of them this kernel and these rights allow is found out by loading them. The kernel writes the counts into an array that
//! is mapped here read-only, so a drain is a plain memory read. This module never decides which processes are a VM's (it is told
//! by [`Scheduler::track`]) and never computes a rate. Data enters from the kernel's shared memory and leaves as
//! [`SchedReading`](crate::reading::SchedReading), diagnostics of the programs leave through `log`.
//!
//! [`BlockProbe`] counts what VMs read and write on the host's disks; it is a probe and an object of its own, and leaves as
//! [`BlockReading`](crate::reading::BlockReading). [`MemoryProbe`], likewise, times how long VMs are held up for want of memory,
//! [`DropProbe`] counts what is dropped on their network devices, and why, [`QueueProbe`] times how long packets wait there for them, and
//! [`ExitProbe`] counts why their vCPUs leave their guests.
//!
//! All user-space code that is unsafe because of eBPF lives here, and what else is needed to see the probes count (`halting_guest.rs`).
#![allow(unsafe_code)]

mod accounting;
mod baseline;
mod block;
#[cfg(test)]
mod block_tests;
mod btf;
mod classic;
mod columns;
mod cost;
mod culprits;
mod drops;
#[cfg(test)]
mod drops_tests;
mod exits;
#[cfg(test)]
mod exits_tests;
mod halting_guest;
#[cfg(test)]
mod kernel_tests;
mod keys;
mod ledger;
mod load;
mod mapping;
mod memory;
#[cfg(test)]
mod memory_tests;
mod net_device;
mod queues;
#[cfg(test)]
mod queues_tests;
mod registration;
mod roster;
mod scheduler;
mod table;
#[cfg(test)]
mod test_taps;
mod tracefs;

pub use baseline::Baseline;
pub use block::BlockProbe;
pub use btf::BtfError;
pub use cost::{ProgramCost, StatsEnabled};
pub use drops::{DropProbe, Drops};
pub use exits::ExitProbe;
pub use halting_guest::halt_a_guest;
pub use load::give_back_memory;
pub use memory::MemoryProbe;
pub use queues::{QueueProbe, Queues};
pub use scheduler::{Mechanism, Scheduler, SchedulerOptions};
pub use tracefs::{Tracefs, TracefsError};

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::{BtfError as AyaBtfError, EbpfError};
use std::io;

/// Whether this kernel has, and this process may make, the kind of map that the programs' log needs.
///
/// # Errors
/// If that cannot be found out: mostly for lack of rights.
pub fn has_ring_buffer() -> Result<bool, ProbeError> {
    match aya::sys::is_map_supported(aya::maps::MapType::RingBuf) {
        Ok(has) => Ok(has),
        Err(error) if error.io_error.kind() == io::ErrorKind::PermissionDenied => {
            Err(ProbeError::NotPermitted { what: "making eBPF maps" })
        }
        Err(error) => Err(ProbeError::System { what: "making an eBPF ring buffer", source: error.io_error }),
    }
}

/// Why a probe does not work.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel publishes no type information.
    #[error("reading {path}: {source}; its programs need a kernel built with CONFIG_DEBUG_INFO_BTF=y")]
    NoBtf {
        /// Where it was looked for.
        path: &'static str,
        /// Why it could not be read.
        source: io::Error,
    },
    /// The kernel's type information is not as expected.
    #[error("type information in {path}: {source}; this kernel is not supported by the probe, please report it")]
    Btf {
        /// Where it came from.
        path: &'static str,
        /// What is wrong with it.
        source: BtfError,
    },
    /// The kernel's type information lacks what aya needs.
    #[error("type information for {what}: {source}; this kernel is not supported by the probe, please report it")]
    AttachPoint {
        /// The tracepoint or iterator.
        what: &'static str,
        /// What is missing.
        source: AyaBtfError,
    },
    /// What the classic tracepoints need is not there.
    #[error("classic tracepoints: {0}")]
    Tracefs(#[from] TracefsError),
    /// The process may not load eBPF programs.
    #[error(
        "{what} is not permitted: run the agent as root or with CAP_BPF and CAP_PERFMON (and CAP_SYS_RESOURCE before \
         kernel 5.11), and check that no kernel lockdown or seccomp filter forbids bpf(2)"
    )]
    NotPermitted {
        /// What was attempted.
        what: &'static str,
    },
    /// The kernel's verifier does not accept a program.
    #[error(
        "the kernel refuses program {program} ({source}); please report it with `uname -r` and this log:\n{log_end}"
    )]
    Refused {
        /// The program's name.
        program: &'static str,
        /// What the system call returned.
        source: io::Error,
        /// The last lines of the verifier's log: what it stumbled over.
        log_end: String,
    },
    /// The object or one of its maps could not be set up.
    #[error("setting up the probe's object: {0}; too little locked memory (RLIMIT_MEMLOCK) is the usual cause")]
    Object(#[source] Box<EbpfError>),
    /// The object does not hold what this agent expects: it was built from other sources.
    #[error("the probe's object has no {kind} {name}: rebuild the agent")]
    Missing {
        /// "program" or "map".
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A loaded program could not be attached or run.
    #[error("attaching program {program}: {source}")]
    Attach {
        /// The program's name.
        program: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A map operation failed.
    #[error("map {map} of the probe: {source}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// As many VMs are tracked as there can be.
    #[error("{max} VMs are tracked already, which is the limit of one host")]
    NoSlot {
        /// The limit.
        max: usize,
    },
}

/// A probe that this host lets one load: for tests, which pass over one that it does not, but not over one that the verifier refuses.
#[cfg(test)]
pub(crate) fn loaded<P>(probe: Result<P, ProbeError>) -> Option<P> {
    match probe {
        Ok(probe) => Some(probe),
        Err(error @ ProbeError::Refused { .. }) => panic!("{error}"),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}
