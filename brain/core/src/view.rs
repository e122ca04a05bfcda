//! What the API shows of the core: plain values, copied out.

use crate::anomaly::Incident;
use crate::archive::Kpi;
use crate::io::{Hold, Scope};
use crate::plan::PlannedAction;
use crate::plan::contention::Witness;
use crate::policy::Mode;
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Allocation, CommandId, CpuWindow, DiskWindow, ExitShare, HostFacts, HostId, HostWindow, InterfaceWindow, Losses,
    MemoryWindow, MigrationProgress, OutcomeResult, Setting, ShadowWindow, VmId, VmState,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is done with plans: of all that are said the most cautious.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ModeView {
    /// What.
    pub mode: Mode,
    /// By whose word; of several that say the same by the widest one's.
    pub by: ModeSource,
}

/// Who says what is done with plans. `Display` tells a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ModeSource {
    /// `policy.mode`.
    #[default]
    Policy,
    /// An operator, of the whole fleet.
    Fleet,
    /// An operator, of the host.
    Host,
    /// An operator, of the VM.
    Vm,
    /// The VM's owner, in its metadata.
    Owner,
}

impl fmt::Display for ModeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy.mode",
            Self::Fleet => "an operator about the fleet",
            Self::Host => "an operator about its host",
            Self::Vm => "an operator about it",
            Self::Owner => "its owner",
        })
    }
}

/// What operators let be done with plans within a scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopedMode {
    /// Where.
    pub scope: Scope,
    /// What.
    pub mode: Mode,
}

/// A host as the brain knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// Name.
    pub host: HostId,
    /// What it is.
    pub facts: HostFacts,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Start of its latest window.
    pub last_window: Option<Timestamp>,
    /// Its load in the latest window.
    pub window: Option<HostWindow>,
    /// VMs on it.
    pub vms: usize,
    /// Sum of its VMs' CPU limits, in cores.
    pub allocated_cores: f64,
    /// An operator's hold on the host.
    pub hold: Option<Hold>,
    /// What is done with plans for VMs on it, at most.
    #[serde(default)]
    pub mode: ModeView,
    /// What its agent lost.
    pub losses: Losses,
    /// What its VMs will want together; `None` until it reports.
    #[serde(default)]
    pub outlook: Option<HostOutlook>,
    /// Since when it is being emptied; `None` when it is not.
    #[serde(default)]
    pub draining_since: Option<Timestamp>,
    /// Why none of its VMs goes although it is emptied, or will be too full; `None` where that is not so.
    #[serde(default)]
    pub stuck: Option<StuckView>,
    /// How much VMs wait for its CPUs; `None` where none has told lately.
    #[serde(default)]
    pub contention: Option<ContentionView>,
    /// How long VMs wait for its disks; `None` where none has told lately.
    #[serde(default)]
    pub disk_wait: Option<DiskWaitView>,
}

/// Why none of a host's VMs goes. `Display` tells a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckView {
    /// When it was found.
    pub at: Timestamp,
    /// One by one, up to twenty.
    pub vms: Vec<StaysView>,
    /// So many more do not go either.
    pub others: usize,
}

/// Why a VM does not leave its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaysView {
    /// Which.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for StuckView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, StaysView { name, why, .. }) in self.vms.iter().enumerate() {
            let separator = if place > 0 { "; " } else { "" };
            write!(f, "{separator}{name}: {why}")?;
        }
        if self.others > 0 { write!(f, "; and {} more", self.others) } else { Ok(()) }
    }
}

/// How much VMs wait for a host's CPUs although their quotas let them run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContentionView {
    /// Share of the CPU time that they wanted for which they waited, 0..=1.
    pub share: f64,
    /// By whose word.
    pub witness: Witness,
}

/// How long VMs wait for a host's disks although their limits let them read and write.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskWaitView {
    /// What a request takes, queued and at the device, in milliseconds.
    pub request_ms: f64,
    /// By whose word.
    pub witness: Witness,
}

/// What a host's VMs will want within the time that a move takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostOutlook {
    /// What they will hardly exceed together, in cores.
    pub demand_cores: f64,
    /// What the host has for them, its reserve left out, in cores.
    pub room_cores: f64,
    /// The memory that they have together, in bytes.
    pub memory_bytes: u64,
    /// What the host has for them, its reserve left out, in bytes.
    pub room_bytes: u64,
    /// What they are going to give back of it before any of them is moved, in bytes.
    #[serde(default)]
    pub gives_back_bytes: u64,
    /// Reports in a row in which that was more than there is room for.
    pub full_rounds: u32,
    /// It is more than there is room for only by forecasts with less skill than policy asks for: nothing is done about it.
    #[serde(default)]
    pub is_doubted: bool,
}

/// A VM as the brain knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmView {
    /// Id.
    pub vm: VmId,
    /// Name.
    pub name: String,
    /// What it is besides, where it is a shadow.
    #[serde(default)]
    pub shadow: Option<ShadowWindow>,
    /// Where it is.
    pub host: HostId,
    /// State.
    pub state: VmState,
    /// CPU in the latest window.
    pub cpu: Option<CpuWindow>,
    /// Who had the CPU while it waited for one in the latest window; `None` where its host does not tell.
    #[serde(default)]
    pub waited: Option<WaitView>,
    /// Memory in the latest window.
    pub memory: Option<MemoryWindow>,
    /// Its network interfaces in the latest window.
    pub interfaces: Vec<InterfaceWindow>,
    /// Disks in the latest window.
    pub disk: Option<DiskWindow>,
    /// Why its vCPUs left their guest in the latest window, by reason; `None` without KVM, or where its host does not tell.
    #[serde(default)]
    pub exits: Option<Vec<ExitShare>>,
    /// What it may use.
    pub allocation: Allocation,
    /// Start of its latest window.
    pub last_window: Option<Timestamp>,
    /// The season its forecast rests on, in milliseconds, if one was found.
    pub season_ms: Option<u64>,
    /// An operator's hold on it, of any scope.
    pub hold: Option<Hold>,
    /// What is done with plans for it.
    #[serde(default)]
    pub mode: ModeView,
    /// What operators set by hand: those means are left alone until it is resumed or released.
    pub held: Vec<Setting>,
    /// What it had before Gnomon's first change, one for each means that was changed, as its agent told last: what a release gives back.
    pub baselines: Vec<Setting>,
    /// Its host's agent keeps its hands off it, because someone else changed its limits.
    pub stood_down: bool,
    /// A command on its way.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub in_flight: Option<CommandId>,
    /// How far its migration has come, while there is one.
    #[serde(default)]
    pub migration: Option<MigrationProgress>,
    /// What its guest writes to its memory, in bytes per second, as was measured when its host was too full or emptied; `None` where that was not
    /// lately.
    #[serde(default)]
    pub dirty_bytes_per_s: Option<u64>,
}

/// What a VM waited in a window, by who had the CPU meanwhile, each in mean cores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WaitView {
    /// Its own quota was used up; `None` where the host's kernel does not tell.
    pub own_quota_cores: Option<f64>,
    /// Other threads of its own ran.
    pub own_cores: f64,
    /// Who else ran, largest first; at most [`CULPRITS_MAX`](gnomon_common::wire::CULPRITS_MAX).
    pub culprits: Vec<CulpritView>,
    /// All others.
    pub others_cores: f64,
}

/// One that had the CPU while a VM waited for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CulpritView {
    /// The VM; `None` for a task of the host.
    pub vm: Option<VmId>,
    /// The VM's name (its id, if that is all that is known of it), or the task's command.
    pub name: String,
    /// While the other waited for so many cores.
    pub cores: f64,
}

/// Forecast demand of one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Made from history up to here.
    pub made: Timestamp,
    /// Length of one step, in milliseconds; step `i` covers `made + i * resolution ..`.
    pub resolution_ms: u64,
    /// The season it rests on, in milliseconds, if one was found.
    pub season_ms: Option<u64>,
    /// Which model made it, for people.
    pub model: String,
    /// Mean absolute error over that of the naive forecast: with a season, of forecasts a quarter of it ahead over "the same as a
    /// season ago"; without, of one-step forecasts over "the same as the last step". Below 1 is skill.
    pub relative_error: Option<f64>,
    /// The quantiles, step by step.
    pub steps: Vec<Quantiles>,
    /// The models that it combines; empty where one speaks alone.
    #[serde(default)]
    pub models: Vec<ModelShare>,
    /// Share of the error of "the same as a season ago" that the models together avoided in the past; `None` where one speaks alone.
    #[serde(default)]
    pub skill: Option<f64>,
}

/// A model's part in a forecast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelShare {
    /// The model.
    pub model: String,
    /// Its weight, 0..=1; those of all models sum to 1.
    pub weight: f64,
    /// Its mean absolute error in the past, in cores; `None` while there is none to be told.
    pub error_cores: Option<f64>,
}

/// Something out of the ordinary: one incident of one VM, or those of many VMs at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Since when: the oldest value that is part of the evidence.
    pub since: Timestamp,
    /// When it was found.
    pub found: Timestamp,
    /// So many VMs at once have one that the cause is hardly in any of them.
    pub fleet_wide: bool,
    /// Which VMs, and what of each; more than one only if it is fleet-wide.
    pub members: Vec<AlertMember>,
}

/// A VM's part in an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertMember {
    /// Which VM.
    pub vm: VmId,
    /// Its name; empty for one that is forgotten.
    pub name: String,
    /// Where it is; `None` once it has vanished.
    pub host: Option<HostId>,
    /// What is out of the ordinary.
    pub kpi: Kpi,
    /// How: what was expected and what came, in the KPI's unit.
    pub incident: Incident,
}

/// CPU demand at four levels, in cores; never crossing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
}

/// One step of a VM's demand history, in cores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryStep {
    /// When it began.
    pub start: Timestamp,
    /// The VM ran for this, on average.
    pub low: f64,
    /// The VM ran or was runnable for this, on average.
    pub high: f64,
    /// Largest sample of the time it ran.
    pub peak: f64,
}

/// Why a VM has the size it has: what `gnomon explain` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The VM.
    pub vm: VmView,
    /// The size that the planner wants now, in cores, and why; `None` while it has too little history.
    pub wanted_cores: Option<f64>,
    /// The memory that the planner wants now, in bytes; `None` where memory is not managed, or nothing tells what it wants.
    pub wanted_bytes: Option<u64>,
    /// In words: what it looked at and what it concluded, one line each.
    pub lines: Vec<String>,
    /// The latest actions, newest first.
    pub recent: Vec<RecentAction>,
}

/// An action of the recent past: Gnomon's, an operator's, or the agent's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecentAction {
    /// When it was planned.
    pub at: Timestamp,
    /// The command's id, or that of the agent's own act; `None` if it was only recommended.
    pub id: Option<CommandId>,
    /// What.
    pub action: PlannedAction,
    /// What became of it.
    pub result: Option<OutcomeResult>,
    /// What the agent says of its own act; of what was done for more than the moment, what came of that.
    pub remark: Option<String>,
}

impl Quantiles {
    /// The quantile for a level: the lowest one of the four that is not below it.
    pub fn at(&self, level: f64) -> f64 {
        match level {
            level if level <= 0.5 => self.p50,
            level if level <= 0.9 => self.p90,
            level if level <= 0.95 => self.p95,
            _ => self.p99,
        }
    }
}
