//! Readings (cumulative) -> samples (one interval, physical units) -> windows (what is reported).
//!
//! One thread ticks once per sample interval. It drains the scheduler probe, reads each running VM's control group, and turns
//! two consecutive readings of a source into a [`interval`] sample, by pure functions that refuse the absurd; samples are
//! collected in a [`window`] that is closed on the [`grid`] and handed over as a [`HostReport`]. The thread reads the last
//! [`crate::host::inventory::Inventory`] and never waits for libvirt, for the brain or for a consumer.
//!
//! What is *not there* (no probe, no control group, a VM that is paused) is `None`, never zero and never an error; what is
//! *wrong* (a counter that went backwards, a clock that stepped) is counted and thrown away.

mod by_device;
pub mod culprits;
mod disk;
mod drops;
mod exits;
pub mod grid;
mod guest_disks;
pub mod interval;
mod live;
mod memory;
mod metrics;
mod network;
mod queues;
mod reclaim;
mod sampler;
mod series;
mod source;
mod tick;
mod vm;
pub mod window;

pub use by_device::{DeviceProbe, DeviceReadings, DeviceSource, DeviceStandby};
pub use drops::DropReading;
pub use live::{ChangedVm, ChangedVms, LiveLoad, LiveLoads, MigrationBook};
pub use metrics::SampleMetrics;
pub use queues::QueueReading;
pub use sampler::{SamplerConfig, SamplerError, SamplerHandle, Sources, spawn};
pub(crate) use series::HostSeries;
pub use source::{SchedSource, SourceError, VmReadings, VmSource};
pub(crate) use tick::{Start, Tick};

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{HostWindow, Losses, VmWindow};
use serde::Serialize;

/// A host's window before the uplink stamps host, epoch and sequence on it. The fields are those of
/// [`gnomon_common::wire::Report`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostReport {
    /// When the window began, on the host's wall clock.
    pub start: Timestamp,
    /// How long it is, in milliseconds.
    pub window_ms: u32,
    /// The host itself.
    pub host_window: HostWindow,
    /// Every VM of the inventory at the window's end, sorted by id.
    pub vms: Vec<VmWindow>,
    /// Whether the inventory was complete at the window's end.
    pub inventory_complete: bool,
    /// What was lost since the agent started. `reports_dropped` counts only what the sampler could not hand over; the uplink
    /// adds what it drops itself.
    pub losses: Losses,
}
