//! Plans: immutable lists of actions, each with its reason.
//!
//! How a VM's CPU quota is sized, in prose:
//! - **Provide** for the larger of live demand and the forecast quantile from now until a lead time ahead, times a headroom. The lead time is
//!   the policy's and what resizes of the VM's host have taken lately ([`reaction`]). Only a
//!   forecast with a season that has earned its say can ask for more than live demand; one without can only hold back shrinking.
//! - **Keep the promise**: once the fleet has a past to learn from, [`crate::sizing`] says which size is too small for no more than the promised
//!   share of time, and that size takes the place of quantile and headroom; live demand beyond it is provided for all the same.
//! - **Be generous when it is out of the ordinary**: while an incident says that it wants more than it ever did, policy may give something on
//!   top, within a budget and for a while.
//! - **Grow at once**, exempt from dwell: growing needs no proof, and a starved VM cannot show what it wants.
//! - **Shrink slowly**: only when every window of a dwell time would have been content with less, only to the most that any of them
//!   wanted, only so often, and never below live demand. Shrinking needs fresh evidence, so no plan is made without a report.
//! - **Stay within bounds**: the policy's floor, the agent's floor and ceiling, the VM's vCPUs.
//! - **Back off** where commands are refused or fail.
//!
//! Memory is sized beside it, by the same habits and never added up with it: see [`memory`]. A VM gets one command at a time, and
//! growth goes before shrinking, CPU before memory: a memory command delays the quota's growth by one report at most.
//!
//! **Moves** are the last means: a host that is emptied, or that will be too full, sends one VM at a time elsewhere: see [`balance`], and
//! [`guard`] for the rules that keep that safe.
//!
//! [`expectation`] looks back: whether what an action was taken for came, and was served. What stayed away takes nothing back at once: the VM
//! shrinks as after any growth, slowly and never below what it wants.
//!
//! What an operator has set by hand, and what an agent stands down for, is left alone.
//!
//! [`lint`] checks every plan by other means before it leaves.

pub(crate) mod backoff;
pub(crate) mod balance;
pub(crate) mod budget;
pub mod contention;
pub(crate) mod dwell;
pub mod expectation;
pub mod guard;
pub mod haul;
pub(crate) mod lint;
pub(crate) mod memory;
pub(crate) mod pace;
pub(crate) mod reaction;
pub(crate) mod size;

use std::fmt;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, Fence, HostId, LocalCause, Setting, ShadowOrder, VmId};
use serde::{Deserialize, Serialize};

use crate::shadow::ShadowCause;
use haul::Haul;

/// What to do now, all VMs together. Nothing is decided later, when it is carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// When it was made.
    pub at: Timestamp,
    /// Its place among all plans.
    pub fence: Fence,
    /// What to do, sorted by VM.
    pub actions: Vec<PlannedAction>,
}

/// One action of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedAction {
    /// Where.
    pub host: HostId,
    /// Whose VM.
    pub vm: VmId,
    /// What.
    pub action: Action,
    /// The state of the same means before; `None` for a release, and where it is not known. Going back to it is the undo of this one
    /// step.
    pub before: Option<Setting>,
    /// Why.
    pub reason: Reason,
    /// The VM's shadow that leaves its host in the same step, where the VM is sent to another.
    #[serde(default)]
    pub along: Option<Along>,
    /// The operator who approved it, in mode `approve`.
    #[serde(default)]
    pub approved_by: Option<String>,
}

/// A shadow that leaves its host as its production leaves another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Along {
    /// Which.
    pub shadow: VmId,
    /// Which host it leaves.
    pub host: HostId,
    /// Why.
    pub cause: ShadowCause,
}

impl fmt::Display for Along {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            ShadowCause::ProductionComes => write!(f, "its shadow leaves host {} for it", self.host),
            _ => write!(f, "its shadow leaves host {} with it, for a third one: that fills up as well", self.host),
        }
    }
}

/// What a move is expected to bring, as shares of what hosts have for VMs, the fuller of CPU and memory each: above 1 is too full.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Relief {
    /// Of the host that it leaves, with it.
    pub from_before: f64,
    /// Of the host that it leaves, without it.
    pub from_after: f64,
    /// Of the host that it goes to, with it.
    pub to_after: f64,
}

impl fmt::Display for Relief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after, there] = [self.from_before, self.from_after, self.to_after].map(|share| share * 100.0);
        write!(f, "it will be {after:.0} % full in place of {before:.0} %, and the other host {there:.0} %")
    }
}

/// Why a resize is planned. `Display` tells a person.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    /// Demand is forecast to outgrow the quota within the lead time, although it does not yet.
    ForecastSurge {
        /// When the demand is expected.
        at: Timestamp,
        /// The forecast quantile it rests on, in cores.
        demand_cores: f64,
    },
    /// Demand outgrows the quota now.
    LiveDemand {
        /// What is wanted now, in cores.
        demand_cores: f64,
    },
    /// A larger size keeps the promise made for the fleet, by what its own past says of the steps to come.
    Promise {
        /// Share of time in which VMs may be too small.
        violation_rate: f64,
    },
    /// Demand is out of the ordinary, and policy gives something on top of it for a while.
    Anomaly {
        /// What is wanted now, in cores.
        demand_cores: f64,
        /// What is given on top of that and its headroom, in cores.
        surplus_cores: f64,
        /// Until when.
        until: Timestamp,
    },
    /// Neither live nor forecast demand has needed the quota for the dwell time.
    Slack {
        /// The most that was wanted or is forecast, in cores.
        demand_cores: f64,
    },
    /// The guest wants more memory now.
    LiveMemory {
        /// What it wants, in bytes.
        demand_bytes: u64,
    },
    /// The guest swaps, or faults for want of memory: what it wants cannot be seen.
    GuestStarves {
        /// What it seems to want, in bytes.
        demand_bytes: u64,
    },
    /// The guest has not needed its memory for the dwell time.
    MemorySlack {
        /// The most that was wanted, in bytes.
        demand_bytes: u64,
    },
    /// Its host's VMs will want more CPU than the host has for them, before a move would be done.
    HostFull {
        /// What they will hardly exceed together, in cores.
        demand_cores: f64,
        /// What the host has for VMs, its reserve left out, in cores.
        room_cores: f64,
        /// What is expected of the move.
        expected: Relief,
        /// What has to travel, where that was measured.
        #[serde(default)]
        haul: Option<Haul>,
    },
    /// Its host's VMs have more memory than the host has for them.
    HostMemoryFull {
        /// What they have, in bytes.
        bytes: u64,
        /// What the host has for VMs, its reserve left out, in bytes.
        room_bytes: u64,
        /// What they are going to give back of it, in bytes: that is not enough.
        #[serde(default)]
        gives_back_bytes: u64,
        /// What is expected of the move beside that.
        expected: Relief,
        /// What has to travel, where that was measured.
        #[serde(default)]
        haul: Option<Haul>,
    },
    /// Its host is being emptied.
    Drained {
        /// What has to travel, where that was measured.
        #[serde(default)]
        haul: Option<Haul>,
    },
    /// Its host is too full or being emptied: what moving it would take is to be known.
    Weighed,
    /// It is about a shadow.
    Shadow {
        /// Of which production VM.
        of: VmId,
        /// Why.
        cause: ShadowCause,
    },
    /// An operator asked for it.
    Operator,
    /// The host's agent did it of its own accord.
    Local {
        /// Which of its duties.
        cause: LocalCause,
    },
}

impl PlannedAction {
    /// What it does, for a person: `CPU quota 0.22 cores -> 0.88 cores`.
    pub fn summary(&self) -> String {
        match &self.action {
            Action::Set(target) => match self.before {
                Some(before) => format!("{} {before} -> {target}", target.means()),
                None => format!("{} -> {target}", target.means()),
            },
            Action::Release => "restore the baseline".to_owned(),
            Action::Migrate(migration) => format!("migrate from host {} {migration}", self.host),
            Action::AbortMigration => "give up its migration".to_owned(),
            Action::Describe => "tell what a shadow of it is made from".to_owned(),
            Action::Image(imaging) => imaging.to_string(),
            Action::DirtyRate { period_s } => format!("measure for {period_s} s how fast it writes to its memory"),
            Action::Shadow(order) => order.to_string(),
        }
    }

    /// Why it is done, for a person, and what is done along with it.
    pub fn why(&self, now: Timestamp) -> String {
        let reason = self.reason.in_words(now);
        match &self.along {
            Some(along) => format!("{reason}; {along}"),
            None => reason,
        }
    }

    /// What is expected of it, for a person.
    pub fn effect(&self) -> String {
        match (&self.action, &self.reason) {
            (Action::Set(Setting::CpuQuota { cores: Some(cores) }), _) => format!("it can use up to {cores:.2} cores"),
            (Action::Set(Setting::Memory { bytes }), _) => format!("its guest has {}", mib(*bytes)),
            (Action::Migrate(_), Reason::HostFull { expected, .. } | Reason::HostMemoryFull { expected, .. }) => {
                expected.to_string()
            }
            (Action::Migrate(migration), _) => format!("it runs on host {}", migration.to),
            (Action::Shadow(ShadowOrder::Copy(_) | ShadowOrder::Start), Reason::Shadow { of, .. }) => {
                format!("VM {of} has a shadow on host {}", self.host)
            }
            (Action::Image(_), _) => "its shadow has copies of its disks to stand on".to_owned(),
            (Action::Shadow(ShadowOrder::Retire), _) => format!("nothing is left of it on host {}", self.host),
            _ => self.summary(),
        }
    }
}

impl Reason {
    /// Whether it is one to take something away.
    pub(crate) fn is_slack(&self) -> bool {
        matches!(self, Self::Slack { .. } | Self::MemorySlack { .. })
    }

    /// Whether it keeps to maintenance windows: it takes something away, or moves a VM that nobody asked to move.
    pub(crate) fn keeps_to_windows(&self) -> bool {
        self.is_slack() || matches!(self, Self::HostFull { .. } | Self::HostMemoryFull { .. })
    }

    /// For a person, with the time left until a forecast surge.
    pub fn in_words(&self, now: Timestamp) -> String {
        match self {
            Self::ForecastSurge { at, .. } if *at > now => format!("{self}, in {:.1} s", at.since(now).as_secs_f64()),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForecastSurge { demand_cores, .. } => {
                write!(f, "forecast demand of {demand_cores:.2} cores outgrows the quota")
            }
            Self::LiveDemand { demand_cores } => write!(f, "live demand of {demand_cores:.2} cores outgrows the quota"),
            Self::Promise { violation_rate } => {
                write!(f, "larger, VMs like it are too small for {:.2} % of the time at most", violation_rate * 100.0)
            }
            Self::Anomaly { demand_cores, surplus_cores, until } => write!(
                f,
                "live demand of {demand_cores:.2} cores is out of the ordinary: {surplus_cores:.2} cores are given on top until {until}"
            ),
            Self::Slack { demand_cores } => {
                write!(f, "at most {demand_cores:.2} cores were wanted or forecast during the dwell time")
            }
            Self::LiveMemory { demand_bytes } => write!(f, "live demand of {} outgrows its memory", mib(*demand_bytes)),
            Self::GuestStarves { demand_bytes } => {
                write!(
                    f,
                    "the guest swaps or faults for want of memory, with a demand of {} in sight",
                    mib(*demand_bytes)
                )
            }
            Self::MemorySlack { demand_bytes } => {
                write!(f, "at most {} were wanted during the dwell time", mib(*demand_bytes))
            }
            Self::HostFull { demand_cores, room_cores, expected, haul } => {
                write!(
                    f,
                    "its host's VMs will want {demand_cores:.2} cores together, more than the {room_cores:.2} that it has for them; {expected}"
                )?;
                travels(f, haul.as_ref())
            }
            Self::HostMemoryFull { bytes, room_bytes, gives_back_bytes, expected, haul } => {
                write!(f, "its host's VMs have {} together, more than its {} for them", mib(*bytes), mib(*room_bytes))?;
                if *gives_back_bytes > 0 {
                    write!(f, ", and the {} that they are going to give back are not enough", mib(*gives_back_bytes))?;
                }
                write!(f, "; {expected}")?;
                travels(f, haul.as_ref())
            }
            Self::Drained { haul } => {
                f.write_str("its host is being emptied")?;
                travels(f, haul.as_ref())
            }
            Self::Weighed => f.write_str("what it would take to move it decides which VM leaves its host"),
            Self::Shadow { cause, .. } => cause.fmt(f),
            Self::Operator => f.write_str("an operator asked for it"),
            Self::Local { cause } => write!(f, "the host's agent did it of its own accord ({})", local_cause(*cause)),
        }
    }
}

fn travels(f: &mut fmt::Formatter<'_>, haul: Option<&Haul>) -> fmt::Result {
    haul.map_or(Ok(()), |haul| write!(f, "; {haul}"))
}

/// The name of one of an agent's duties: a verb of the audit log, a label of metrics.
pub fn local_cause(cause: LocalCause) -> &'static str {
    match cause {
        LocalCause::Reflex => "reflex",
        LocalCause::Drift => "drift",
        LocalCause::Reapply => "reapply",
        LocalCause::StandDown => "stand_down",
    }
}

/// Memory for a person.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
