//! `Tick`: everything that the sampler reads at one instant.
//!
//! All that is made of it, windows and metrics, follows from the ticks alone ([`super::series`]): a [recording](crate::recording) of them tells
//! again what the agent told. What grows comes last, since a recording keeps what differs from the tick before, byte by byte.

use super::drops::DropReading;
use super::grid::Now;
use super::memory::HostMemoryReading;
use super::queues::QueueReading;
use crate::host::cgroup::CgroupReading;
use crate::host::inventory::Inventory;
use crate::host::network::DeviceCounters;
use crate::host::process::ProcessIoReading;
use crate::reading::{BlockReading, DiskId, ExitReading, SchedReading};
use gnomon_common::wire::{LocalStorage, MigrationProgress, PacerWindow, Setting, VmId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where sampling begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// When.
    pub(crate) now: Now,
    /// Length of a sample interval, in milliseconds.
    pub(crate) sample_ms: u32,
    /// Length of a window, in milliseconds.
    pub(crate) window_ms: u32,
    /// The host.
    pub(crate) host: HostReading,
}

/// What is read of the host once a window; what could not be read is as it was.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HostReading {
    /// CPUs online.
    pub(crate) cpus: Option<u32>,
    /// Memory that could be given away without swapping, in bytes.
    pub(crate) memory_available_bytes: Option<u64>,
}

/// One tick. Instants are nanoseconds of `CLOCK_MONOTONIC`; what could not be read is absent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tick {
    /// When it began.
    pub(crate) now: Now,
    /// Which VMs there are.
    pub(crate) inventory: Arc<Inventory>,
    /// Whether that may be news.
    pub(crate) inventory_changed: bool,
    /// When the host's CPU time was read, and what it was in nanoseconds.
    pub(crate) host_cpu: Option<(u64, u64)>,
    /// Of the VMs that have groups of their own.
    pub(crate) cgroups: BTreeMap<VmId, CgroupReading>,
    /// When network devices were read, and their counters by name.
    pub(crate) network: Option<(u64, BTreeMap<String, DeviceCounters>)>,
    /// The block probe's; nothing in it while the probe is shed, and none at all where there is no probe or it fails.
    pub(crate) disks: Option<Option<BlockReading>>,
    /// The scheduler's.
    pub(crate) sched: Option<SchedReading>,
    /// What is read where a window ends.
    pub(crate) window_end: Option<WindowEnd>,
}

/// What changes rarely, or costs more to read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WindowEnd {
    /// The host.
    pub(crate) host: HostReading,
    /// [`SchedSource::tells_demand`](super::SchedSource::tells_demand) of what the window's scheduler readings come from.
    pub(crate) tells_demand: bool,
    /// The VMs that are told to be stood down for.
    pub(crate) stood_down: BTreeSet<VmId>,
    /// What VMs had before Gnomon's first change. No part of a recording.
    #[serde(skip)]
    pub(crate) baselines: BTreeMap<VmId, Vec<Setting>>,
    /// How far migrations away from here have come.
    pub(crate) migrations: BTreeMap<VmId, MigrationProgress>,
    /// What the pacers in shadows say. No part of a recording, either.
    #[serde(skip)]
    pub(crate) pacers: BTreeMap<VmId, PacerWindow>,
    /// What only this host has of VMs' disks. No part of a recording, either.
    #[serde(skip)]
    pub(crate) storage: BTreeMap<VmId, LocalStorage>,
    /// What the VMs' processes hold, and how they are held up for want of it.
    pub(crate) memory: BTreeMap<VmId, HostMemoryReading>,
    /// What the VMs' processes were charged with.
    pub(crate) process_io: BTreeMap<VmId, ProcessIoReading>,
    /// Why the VMs' vCPUs left their guests.
    pub(crate) exits: ExitReading,
    /// What disks are called.
    pub(crate) disk_names: BTreeMap<DiskId, String>,
    /// The drop probe's; empty while it is shed.
    pub(crate) drops: Option<DropReading>,
    /// What is given up to stay within the budget: names of sources.
    pub(crate) probes_shed: Vec<String>,
    /// The queue probe's.
    pub(crate) queues: Option<QueueReading>,
}
