//! Where the demo's seconds come from: real VMs, or the simulator where those are impossible.

use super::record::{Kind, Row};
use gnomon_core::view::HostView;

/// One second of the fleet.
#[derive(Clone, Debug, Default)]
pub(super) struct Second {
    /// The hosts.
    pub(super) hosts: Vec<HostLine>,
    /// The guests, always in the same order as [`World::guests`].
    pub(super) guests: Vec<GuestSecond>,
}

/// A host, for the table.
#[derive(Clone, Debug, Default)]
pub(super) struct HostLine {
    /// Its name.
    pub(super) name: String,
    /// Whether its agent is connected.
    pub(super) connected: bool,
    /// What it has, in cores.
    pub(super) capacity_cores: f64,
    /// What it uses, in cores.
    pub(super) used_cores: f64,
    /// What its VMs may use together, in cores.
    pub(super) allocated_cores: f64,
    /// VMs on it.
    pub(super) vms: usize,
}

impl HostLine {
    /// From what the brain knows of it.
    pub(super) fn of(view: &HostView) -> Self {
        Self {
            name: view.host.to_string(),
            connected: view.connected,
            capacity_cores: view.facts.capacity_cores,
            used_cores: view.window.as_ref().map_or(0.0, |window| window.cpu_cores.mean),
            allocated_cores: view.allocated_cores,
            vms: view.vms,
        }
    }
}

/// A guest in one second.
#[derive(Clone, Debug, Default)]
pub(super) struct GuestSecond {
    /// What is recorded, oldest first: mostly one row, none while nothing came, several after a delay.
    pub(super) rows: Vec<Row>,
    /// The forecast from now on, second by second: median and 95 % quantile, in cores.
    pub(super) ahead: Vec<(f64, f64)>,
    /// The reason of the latest resize, in words.
    pub(super) reason: String,
}

/// A guest that takes part.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    /// Its name.
    pub(super) name: String,
    /// Its host.
    pub(super) host: String,
    /// Its kind of day.
    pub(super) kind: Kind,
    /// The length of its day, in seconds, if it has one.
    pub(super) period_s: Option<f64>,
}

/// A fleet that lives second by second.
pub(super) trait World {
    /// What it is, for the title: "real KVM/QEMU guests" or "simulated fleet".
    fn title(&self) -> &'static str;
    /// Who takes part.
    fn guests(&self) -> Vec<Guest>;
    /// Waits for the next second and tells what it brought.
    fn next_second(&mut self) -> anyhow::Result<Second>;
}
