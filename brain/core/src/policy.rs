//! The operator's policy: every number that decides how Gnomon behaves. Read from the `[policy]` part of the brain's configuration.

mod validate;

use gnomon_common::wire::Action;
pub use gnomon_common::wire::Mode;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::calendar::Calendar;
use crate::windows::{Window, Windows};

/// The levels that forecasts come in; [`CpuPolicy::quantile`] is one of them.
pub const QUANTILES: [f64; 4] = [0.5, 0.9, 0.95, 0.99];

/// Longest season that history is kept for, in steps: four of these for each VM are 630 KiB.
pub const SEASON_STEPS_LIMIT: usize = 10_080;

/// Longest horizon, in steps: a week of minutes.
pub const HORIZON_STEPS_LIMIT: usize = 10_080;

/// Most of its memory that a VM may lose in one step: a guest whose working set was misjudged loses little and is seen to starve.
pub const SHRINK_STEP_LIMIT: f64 = 0.05;

/// Most moves in an hour: so many are remembered.
pub const MOVES_LIMIT: usize = 1000;

/// Most resizes in an hour that a budget can allow: some thousands a second are no bound any more.
pub const RESIZES_LIMIT: usize = 10_000_000;

/// Most requests for capacity that are open at once: all of them are looked at whenever the time is.
pub const CAPACITY_OPEN_LIMIT: usize = 100;

/// Longest time that something waits for an operator or a provider, in milliseconds: 30 days.
pub const WAIT_LIMIT_MS: u64 = 30 * 86_400_000;

/// Most windows of each kind: all of them are looked at for each plan.
pub const WINDOWS_LIMIT: usize = 100;

/// Most shadows: all of them are kept at hand.
pub const SHADOWS_LIMIT: usize = 10_000;

/// Most proposals that wait for an operator at once: more than a person would read.
pub const PROPOSALS_LIMIT: usize = 10_000;

/// All settings of the core. Every one has a default; unknown keys are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// What to do with plans, at most: operators and owners can say less of the fleet, a host or a VM.
    pub mode: Mode,
    /// How demand is forecast.
    pub forecast: ForecastPolicy,
    /// How a VM's CPU quota is sized.
    pub cpu: CpuPolicy,
    /// How a VM's memory is sized.
    pub memory: MemoryPolicy,
    /// How often VMs are resized.
    pub resize: ResizePolicy,
    /// When and how VMs are moved to other hosts.
    pub migrate: MigratePolicy,
    /// When and how more capacity is asked for.
    pub capacity: CapacityPolicy,
    /// How proposals wait for an operator in mode `approve`.
    pub approve: ApprovePolicy,
    /// When VMs may be shrunk and moved.
    pub windows: WindowsPolicy,
    /// What a VM is given beyond its demand while that is out of the ordinary.
    pub anomaly: AnomalyPolicy,
    /// Which VMs have shadows, how large these are and what they do.
    pub shadow: ShadowPolicy,
}

/// How demand is forecast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForecastPolicy {
    /// Length of one step of history and forecast, in milliseconds. At least the agents' window.
    pub resolution_ms: u64,
    /// How far ahead to forecast, in steps.
    pub horizon_steps: usize,
    /// Shortest season looked for, in steps.
    pub season_steps_min: usize,
    /// Longest season looked for, in steps. History keeps several of these.
    pub season_steps_max: usize,
    /// Where the VMs' users live, as a name of the IANA database: days, weeks and months begin there, daylight saving included.
    pub time_zone: String,
    /// Days on which nobody works, as `YYYY-MM-DD`: they are forecast as Sundays and teach nothing.
    pub holidays: Vec<String>,
    /// A forecast grows or moves VMs only where its skill, the share of the error of "the same as a season ago" that it avoided, is not below
    /// this. Live demand is provided for all the same. Not set: any forecast whose season has earned its say does.
    pub skill_min: Option<f64>,
}

impl ForecastPolicy {
    /// The calendar that seasons follow.
    pub(crate) fn calendar(&self) -> Result<Calendar, PolicyError> {
        let days = self.holidays.iter().map(|day| {
            day.parse::<Date>().map_err(|_| PolicyError {
                setting: "forecast.holidays",
                problem: format!("{day:?} is no date: write it as \"2026-12-25\""),
            })
        });
        let days: Vec<Date> = days.collect::<Result<_, _>>()?;
        Calendar::new(&self.time_zone, days)
            .map_err(|error| PolicyError { setting: "forecast.time_zone", problem: error.to_string() })
    }
}

/// How a VM's CPU quota is sized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CpuPolicy {
    /// Which forecast quantile to provide for: 0.5, 0.9, 0.95 or 0.99.
    pub quantile: f64,
    /// Multiplies what is provided for (1.1 leaves a tenth to spare).
    pub headroom: f64,
    /// Share of time in which VMs may be too small, all together: once the fleet's past tells how, sizes are chosen for that, in place of
    /// quantile and headroom. 0: never.
    pub violation_rate: f64,
    /// Grow this long before the forecast demand arrives, in milliseconds; what resizes have taken on the VM's host lately is added.
    pub lead_ms: u64,
    /// Smallest quota, in cores; an agent's own floor counts as well.
    pub floor_cores: f64,
    /// Shrink only after the smaller size would have been enough for this long, in milliseconds.
    pub shrink_dwell_ms: u64,
    /// Least time between two shrinks of a VM, in milliseconds. Growth never waits.
    pub shrink_interval_ms: u64,
    /// Changes smaller than this share of the present quota are not worth a resize.
    pub hysteresis: f64,
    /// A command not started within this time is void, in milliseconds: one by any means.
    pub command_ttl_ms: u64,
}

/// How a VM's memory is sized: how much of what it is defined with its balloon leaves to the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryPolicy {
    /// Whether memory is planned at all. There is no forecast of it: its size follows live demand.
    pub manage: bool,
    /// Multiplies what the guest wants (1.2 leaves a fifth to spare). The agent's reserve is kept in any case.
    pub headroom: f64,
    /// No VM is left less than this, in bytes; one that is defined with less keeps all it has.
    pub floor_bytes: u64,
    /// Largest share of the present size that one step takes away, 0..=1; an agent's own limit counts as well.
    pub shrink_step_max: f64,
    /// Shrink only after the smaller size would have been enough for this long, in milliseconds.
    pub shrink_dwell_ms: u64,
    /// Least time between two steps of a VM, in milliseconds. Growth never waits.
    pub shrink_interval_ms: u64,
    /// Changes smaller than this share of the present size are not worth a resize.
    pub hysteresis: f64,
}

/// How often VMs are resized by plans that nobody approved, growth and shrinking by every means together. A quarter of either budget is kept for
/// growth. What operators ask for or approve is never held back, and counts only where they approved it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResizePolicy {
    /// Resizes of one VM in an hour.
    pub vm_per_hour_max: usize,
    /// Resizes in the whole fleet in an hour.
    pub fleet_per_hour_max: usize,
}

impl Default for ResizePolicy {
    fn default() -> Self {
        Self { vm_per_hour_max: 300, fleet_per_hour_max: 100_000 }
    }
}

/// When and how VMs are moved to other hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigratePolicy {
    /// What to do with plans to move VMs; never more than the mode of all plans allows.
    pub mode: Mode,
    /// Share of each host's CPU and memory that is kept free: a host is too full beyond it, and takes no VM in beyond it.
    pub reserve_share: f64,
    /// How far ahead a host must have room, in milliseconds; the time that a move takes is added.
    pub lead_ms: u64,
    /// A host must be too full in so many reports in a row.
    pub rounds: u32,
    /// How much fuller a host must be than its VM's new one would be with it, as a share of the room: less is not worth a move.
    pub gain_min: f64,
    /// VMs on their way at once in the whole fleet. To and from each host it is one.
    pub at_once_max: usize,
    /// Moves begun in an hour.
    pub per_hour_max: usize,
    /// A VM that was moved stays for so long, in milliseconds, unless its host is emptied.
    pub cool_down_ms: u64,
    /// After somebody else has moved a VM, Gnomon moves none for so long, in milliseconds: two balancers would chase each other.
    pub stand_down_ms: u64,
    /// Whether a VM may be sent to another zone than its host's; hosts that name none are one zone together. An operator's word sends it
    /// anywhere.
    pub across_zones: bool,
    /// A move is given up after this, in milliseconds: the VM stays where it is.
    pub timeout_ms: u64,
    /// What a move may take of the link, in bytes per second; not set: what libvirt has as its default.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Whether a guest may be slowed down where it writes to its memory faster than the link carries that away.
    pub auto_converge: bool,
    /// Whether disks that only a VM's host has may be copied along, as far as its agent allows that. Such a move has twice the time longer that they
    /// are expected to take.
    pub copy_storage: bool,
}

/// When and how a provider is asked for more hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CapacityPolicy {
    /// Whether there is a provider to ask: whoever drives the core knows, no file of settings does.
    #[serde(skip)]
    pub has_provider: bool,
    /// Who decides that a request is sent.
    pub approval: Approval,
    /// A host must be too full, without a move that helps, for so long, in milliseconds; and a request that was not sent yet is
    /// withdrawn after its hosts have had room for as long.
    pub full_for_ms: u64,
    /// Requests that are open at once; of one zone it is one.
    pub open_max: usize,
    /// Least time from the end of a request to the next one of the same zone, in milliseconds.
    pub cool_down_ms: u64,
    /// A request that nobody approves or denies expires after this, in milliseconds.
    pub approval_timeout_ms: u64,
    /// One that was accepted expires if no host comes within this, in milliseconds.
    pub arrival_timeout_ms: u64,
    /// How often a provider that cannot be reached is tried.
    pub attempts_max: u32,
}

/// How proposals wait for an operator in mode `approve`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApprovePolicy {
    /// A proposal that nobody approves or denies expires after this, in milliseconds.
    pub timeout_ms: u64,
    /// What was denied is not proposed again for so long, in milliseconds.
    pub cool_down_ms: u64,
    /// Proposals that wait at once in the whole fleet; of one VM and means it is one.
    pub open_max: usize,
}

impl Default for ApprovePolicy {
    fn default() -> Self {
        Self { timeout_ms: 3_600_000, cool_down_ms: 3_600_000, open_max: 1000 }
    }
}

/// When plans may shrink and move VMs, by the clock of [`ForecastPolicy::time_zone`]; [`Window`](crate::windows::Window) says how one is
/// written. Growth, a host that is emptied and what an operator asks for keep to none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WindowsPolicy {
    /// Only then; empty: at any time.
    pub allow: Vec<String>,
    /// Not then, whatever `allow` says.
    pub freeze: Vec<String>,
}

impl WindowsPolicy {
    /// The windows, read.
    pub(crate) fn windows(&self) -> Result<Windows, PolicyError> {
        let read = |setting, texts: &[String]| {
            let windows = texts.iter().map(|text| text.parse::<Window>()).collect::<Result<Vec<_>, _>>();
            let windows = windows.map_err(|error| PolicyError { setting, problem: error.to_string() })?;
            if windows.len() > WINDOWS_LIMIT {
                let problem = format!("{} windows are more than {WINDOWS_LIMIT}", windows.len());
                return Err(PolicyError { setting, problem });
            }
            Ok(windows)
        };
        Ok(Windows { allow: read("windows.allow", &self.allow)?, freeze: read("windows.freeze", &self.freeze)? })
    }
}

/// What a VM is given beyond its live demand while an incident says that it wants more CPU than it ever did: nobody knows then how much more
/// it will want.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnomalyPolicy {
    /// So much of its live demand with headroom is given on top; 0: nothing.
    pub surplus_share: f64,
    /// What all VMs of a host may be given on top, together, in cores.
    pub host_cores_max: f64,
    /// What all VMs of the fleet may be given on top, together, in cores.
    pub fleet_cores_max: f64,
    /// For so long after the incident was found, in milliseconds.
    pub lasts_ms: u64,
}

impl Default for AnomalyPolicy {
    fn default() -> Self {
        Self { surplus_share: 0.0, host_cores_max: 1.0, fleet_cores_max: 4.0, lasts_ms: 1_800_000 }
    }
}

/// Which VMs have shadows, how large these are and what they do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShadowPolicy {
    /// Shadows are made, moved and paced where this and the mode of all plans are `auto`; in any other mode they are left alone.
    pub mode: Mode,
    /// Whether VMs whose metadata do not say have one: `shadow="yes"` and `shadow="no"` there go first.
    pub every_vm: bool,
    /// Shadows in the whole fleet.
    pub fleet_max: usize,
    /// Share of the CPU that its production may be given at most that a shadow may use, and of the production's demand that it replays.
    pub cpu_share: f64,
    /// The same of memory and its working set.
    pub memory_share: f64,
    /// Share of the production's disk traffic that it replays, and of its limits that it may reach; where a production has no limits, of its highest second.
    pub disk_share: f64,
    /// The same of network traffic.
    pub network_share: f64,
    /// No shadow may use less CPU, in cores.
    pub cpu_floor_cores: f64,
    /// No shadow has less memory, in bytes. One that does not come up with it gets twice as much, up to what its production has.
    pub memory_floor_bytes: u64,
    /// No shadow may read and write less of each disk, in bytes per second: its guest has to boot.
    pub disk_floor_bytes_per_s: u64,
    /// No shadow may send or receive less by each network interface, in bytes per second.
    pub network_floor_bytes_per_s: u64,
    /// And none may read and write more of each disk, in bytes per second; 0 sets no limit at all.
    pub disk_bytes_per_s_max: u64,
    /// Nor send or receive more by each network interface, in bytes per second; 0 sets no limit at all, for hosts whose kernel has no queue
    /// disciplines to set one with.
    pub network_bytes_per_s_max: u64,
    /// How much of the production's load is replayed, 0..=1: 0 idles, 0.25 CPU, 0.5 and memory, 0.75 and disk, 1 and network.
    pub fidelity: f64,
    /// A shadow lives this much ahead of its production's forecast, in milliseconds.
    pub lead_ms: u64,
    /// It is told what to do so often, in milliseconds; what it was told holds for three times as long.
    pub pace_ms: u64,
    /// One that does not run after this, in milliseconds, is taken away and tried with more memory.
    pub boot_timeout_ms: u64,
    /// One that had to leave its host twice within this, in milliseconds, is parked; and one that is parked is tried again after it.
    pub cool_down_ms: u64,
    /// Whether disks that have no base are copied for shadows, of VMs whose metadata do not say: `copy_disks="yes"` and `copy_disks="no"` there go
    /// first. Their host has to be configured for it, too.
    pub copy_disks: bool,
    /// A VM's disks are read at most so fast while they are copied, all together, in bytes per second; 0 sets no limit.
    pub copy_bytes_per_s_max: u64,
    /// A copy that is not there after this, in milliseconds, is given up; one that cannot be is not begun with.
    pub copy_timeout_ms: u64,
}

impl Default for ShadowPolicy {
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            every_vm: false,
            fleet_max: 100,
            cpu_share: 0.1,
            memory_share: 0.1,
            disk_share: 0.1,
            network_share: 0.1,
            cpu_floor_cores: 0.05,
            memory_floor_bytes: 128 << 20,
            disk_floor_bytes_per_s: 8 << 20,
            network_floor_bytes_per_s: 1 << 20,
            disk_bytes_per_s_max: 256 << 20,
            network_bytes_per_s_max: 256 << 20,
            fidelity: 0.5,
            lead_ms: 600_000,
            pace_ms: 60_000,
            boot_timeout_ms: 300_000,
            cool_down_ms: 600_000,
            copy_disks: false,
            copy_bytes_per_s_max: 50 << 20,
            copy_timeout_ms: 7_200_000,
        }
    }
}

/// Who decides that capacity is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// An operator, request by request.
    #[default]
    Required,
    /// Nobody: what is wanted is asked for at once.
    Automatic,
}

impl Default for CapacityPolicy {
    fn default() -> Self {
        Self {
            has_provider: false,
            approval: Approval::Required,
            full_for_ms: 900_000,
            open_max: 3,
            cool_down_ms: 3_600_000,
            approval_timeout_ms: 86_400_000,
            arrival_timeout_ms: 86_400_000,
            attempts_max: 10,
        }
    }
}

impl Default for MigratePolicy {
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            reserve_share: 0.1,
            lead_ms: 300_000,
            rounds: 3,
            gain_min: 0.1,
            at_once_max: 2,
            per_hour_max: 20,
            cool_down_ms: 3_600_000,
            stand_down_ms: 1_800_000,
            across_zones: false,
            timeout_ms: 600_000,
            bandwidth_bytes_per_s: None,
            auto_converge: false,
            copy_storage: false,
        }
    }
}

impl Default for ForecastPolicy {
    fn default() -> Self {
        // One-minute steps, an hour ahead, seasons from an hour to a quarter of a day: longer ones are found in the long history.
        Self {
            resolution_ms: 60_000,
            horizon_steps: 60,
            season_steps_min: 60,
            season_steps_max: 360,
            time_zone: "UTC".to_owned(),
            holidays: Vec::new(),
            skill_min: None,
        }
    }
}

impl Default for CpuPolicy {
    fn default() -> Self {
        Self {
            quantile: 0.95,
            headroom: 1.1,
            violation_rate: 0.005,
            lead_ms: 120_000,
            floor_cores: 0.1,
            shrink_dwell_ms: 300_000,
            shrink_interval_ms: 300_000,
            hysteresis: 0.05,
            command_ttl_ms: 30_000,
        }
    }
}

impl Default for MemoryPolicy {
    fn default() -> Self {
        Self {
            manage: false,
            headroom: 1.2,
            floor_bytes: 256 << 20,
            shrink_step_max: SHRINK_STEP_LIMIT,
            shrink_dwell_ms: 600_000,
            shrink_interval_ms: 60_000,
            hysteresis: 0.05,
        }
    }
}

/// Why a policy makes no sense. `setting` is the key below `[policy]`.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("policy.{setting}: {problem}")]
pub struct PolicyError {
    /// Which key, as in the configuration: `cpu.quantile`.
    pub setting: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Policy {
    /// What is done with a plan's action.
    pub fn mode_for(&self, action: &Action) -> Mode {
        match action {
            Action::Migrate(_) | Action::AbortMigration | Action::DirtyRate { .. } => self.migrate_mode(),
            Action::Set(_) | Action::Release | Action::Describe | Action::Image(_) | Action::Shadow(_) => self.mode,
        }
    }

    /// What is done with plans to move VMs: what their own mode says, as far as the mode of all plans allows.
    pub fn migrate_mode(&self) -> Mode {
        self.mode.min(self.migrate.mode)
    }
}
