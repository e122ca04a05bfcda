//! Shadows: small copies of production VMs on other hosts, and how far each has come.
//!
//! ```text
//!            described, a host has room       made            started          runs
//!  wanted ──────────────────────────▶ placed ──────▶ copied ─────────▶ booting ────▶ pacing
//!    ▲  │ no host has room                │ failed too often │ failed too often  │     │ its host fills up,
//!    │  ▼                                 ▼                  ▼  did not come up  ▼     ▼ or production came there
//!    └─ parked ◀──────────────────────── moving ◀─────────────────────────────────────┘
//!        later                             │ gone from there
//!                                          └──▶ wanted
//!  between wanted and placed, where a disk has no base: imaging, until it is copied
//!  from pacing: resizing, when its production or policy changed, and back to pacing; to moving where it has to be made anew for that
//!  from anywhere: not wanted any more, or production is gone ──▶ retiring ──▶ retired
//! ```
//!
//! Each step is one order to one host, which says what is to be; it is repeated until it is answered. A shadow is nowhere made before it
//! is known to be gone from where it was. [`size`] says how large a shadow is, [`fidelity`] what it is to do.

pub(crate) mod fidelity;
pub mod response;
pub mod size;
pub mod trial;

use std::fmt;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Blueprint, HostId, Load, PacerWindow, ShadowSize, VmId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How far a shadow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShadowState {
    /// It is to be: what it is made from is asked for, and a place is looked for.
    Wanted,
    /// Its production's disks are being copied for it.
    Imaging,
    /// It has a place, where it is being made.
    Placed,
    /// It is defined there, and being started.
    Copied,
    /// It was started.
    Booting,
    /// It runs, and lives ahead of its production.
    Pacing,
    /// It runs, and is being given another size.
    Resizing,
    /// It has to leave its host, and is being taken away there.
    Moving,
    /// No host has room for it, or it cannot be made; it is tried again later.
    Parked,
    /// It is being taken away for good.
    Retiring,
    /// It is gone.
    Retired,
}

impl ShadowState {
    /// All of them, in the order in which a shadow may come to them.
    pub const ALL: [Self; 11] = [
        Self::Wanted,
        Self::Imaging,
        Self::Placed,
        Self::Copied,
        Self::Booting,
        Self::Pacing,
        Self::Resizing,
        Self::Moving,
        Self::Parked,
        Self::Retiring,
        Self::Retired,
    ];

    /// Its name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Imaging => "imaging",
            Self::Placed => "placed",
            Self::Copied => "copied",
            Self::Booting => "booting",
            Self::Pacing => "pacing",
            Self::Resizing => "resizing",
            Self::Moving => "moving",
            Self::Parked => "parked",
            Self::Retiring => "retiring",
            Self::Retired => "retired",
        }
    }

    /// Whether something of it may be on its host.
    pub fn is_placed(self) -> bool {
        self.is_coming() || matches!(self, Self::Moving | Self::Retiring)
    }

    /// Whether it is on its way to running, or runs.
    pub fn is_coming(self) -> bool {
        matches!(self, Self::Placed | Self::Copied) || self.is_up()
    }

    /// Whether its guest runs, as far as is known.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Booting | Self::Pacing | Self::Resizing)
    }
}

/// A shadow and what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shadow {
    /// Its own identity, which it keeps wherever it goes.
    pub id: VmId,
    /// Of which production VM.
    pub of: VmId,
    /// The production's name when the shadow was first wanted.
    pub name: String,
    /// How far it has come.
    pub state: ShadowState,
    /// Since when it is there.
    pub since: Timestamp,
    /// What brought it there, in words for a person.
    pub detail: String,
    /// Where it is, or is being made or taken away.
    pub host: Option<HostId>,
    /// What it is made from; asked for anew whenever it is made.
    pub blueprint: Option<Blueprint>,
    /// How large it is.
    pub size: Option<ShadowSize>,
    /// Memory that it was made with, in bytes: while it runs it has no more than that. 0 is what `size` has.
    #[serde(default)]
    pub defined_bytes: u64,
    /// What it is being resized to; its `size` where that failed and is undone.
    #[serde(default)]
    pub resizes_to: Option<ShadowSize>,
    /// It is not resized before this: it could not be.
    #[serde(default)]
    pub resizes_from: Timestamp,
    /// What its production did at most.
    #[serde(default)]
    pub peaks: size::Peaks,
    /// How much of the production's load it replays, 0..=1; `None` leaves that to policy.
    pub fidelity: Option<f64>,
    /// The least memory with which it comes up, as far as was tried, in bytes; 0 where it came up with the first size, or with none.
    pub memory_floor_bytes: u64,
    /// Orders in a row that came to nothing.
    pub failures: u32,
    /// How often its guest has ended by itself since it last ran for long.
    #[serde(default)]
    pub ends: u32,
    /// When it was first wanted: of several shadows of one production, the last one's operator has the word.
    #[serde(default)]
    pub wanted: Timestamp,
    /// When it last had to leave a host.
    pub moved: Option<Timestamp>,
    /// Once it is gone from its host it is parked, and not made elsewhere at once.
    pub parks: bool,
    /// An operator asked for it.
    pub asked_for: bool,
    /// An operator retired it: its production gets no other until an operator wants one.
    pub kept_off: bool,
    /// What it got of its present host, by load.
    #[serde(default)]
    pub response: response::Response,
    /// The latest size that was tried with it, or is.
    #[serde(default)]
    pub trial: Option<trial::Trial>,
    /// Hosts that it is not made on before this.
    pub avoids: Vec<(HostId, Timestamp)>,
    /// Copies of its production's disks, from the order to make them until they are known to be gone.
    #[serde(default)]
    pub copies: Option<CopiesMade>,
    /// Copies of them in a row that came to nothing, or were sent to a host on which it did not come to run: it is parked twice as long after each.
    #[serde(default)]
    pub copy_failures: u32,
}

/// Copies of disks that a shadow stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiesMade {
    /// The host that has them, and deletes them when the shadow ends.
    pub on: HostId,
    /// The host that they are sent to, or were: from then on it is the one that has them. `None` where all hosts see them.
    #[serde(default)]
    pub to: Option<HostId>,
    /// They are not what was made, or not of all disks: they are deleted and made anew.
    pub is_spoilt: bool,
}

impl Shadow {
    /// Memory that it is defined with where it is, in bytes.
    pub fn defined_bytes(&self) -> u64 {
        self.defined_bytes.max(self.size.map_or(0, |size| size.memory_bytes))
    }
}

impl CopiesMade {
    /// Whether only one host can use them, which they were sent to.
    pub fn is_sent(&self) -> bool {
        self.to.as_ref() == Some(&self.on)
    }
}

/// Why an order about a shadow is given. `Display` tells a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShadowCause {
    /// Policy, its owner or an operator wants it.
    Wanted,
    /// It lives ahead of its production.
    Paces,
    /// Its production, or its share of that, has another size for good.
    Resized,
    /// Its host fills up.
    HostFull,
    /// Its host does not give it the load that is coming.
    Starved,
    /// Its host is being emptied.
    Drained,
    /// Its production came to its host.
    Together,
    /// Its production is on its way to its host.
    ProductionComes,
    /// Its host fills up, and so does its production's, which is sent elsewhere.
    BothFull,
    /// It could not be made there, or did not come up.
    Failed,
    /// A host that has it, or copies for it, has been away for too long.
    HostLost,
    /// Neither policy nor its owner wants it.
    Unwanted,
    /// Its production is gone.
    ProductionGone,
    /// An operator retired it.
    Operator,
    /// No shadow is known that should be there.
    Stray,
    /// Its production's disks may not be copied, or the copies are of no use.
    CopiesGo,
}

impl fmt::Display for ShadowCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wanted => "its production is to have a shadow",
            Self::Paces => "it lives ahead of its production",
            Self::Resized => "its production, or its share of that, has another size",
            Self::HostFull => "its host fills up, and shadows leave first",
            Self::Starved => "its host does not give it the load that is coming, for no fault of its size",
            Self::Drained => "its host is being emptied",
            Self::Together => "its production is on the same host",
            Self::ProductionComes => "its production is on its way to the same host",
            Self::BothFull => "its host fills up, and so does its production's: both leave",
            Self::Failed => "it could not be made there, or did not come up",
            Self::HostLost => "a host that has it, or copies of its production's disks, has been away for too long",
            Self::Unwanted => "its production is to have no shadow",
            Self::ProductionGone => "its production is gone",
            Self::Operator => "an operator retired it",
            Self::Stray => "no shadow is known that should be there",
            Self::CopiesGo => "the copies of its production's disks have to go",
        })
    }
}

/// A shadow as people and programs are shown it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShadowView {
    /// The shadow, its blueprint left out.
    #[serde(flatten)]
    pub shadow: Shadow,
    /// How much of the production's load it replays, 0..=1.
    pub fidelity_now: f64,
    /// What it was last told to do.
    pub ordered: Option<Load>,
    /// What its pacer said last.
    pub pacer: Option<PacerWindow>,
    /// CPU that it used in its latest window, in cores.
    pub cpu_cores: Option<f64>,
    /// What it waited for a CPU in the same window, in cores: `None` where that is not measured.
    pub waited_cores: Option<f64>,
    /// How much of the window its own quota held it back, 0..=1: only windows without that tell of the host.
    pub throttled: Option<f64>,
}

/// Why an operator cannot do that to a shadow.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ShadowRefusal {
    /// There is no such VM.
    #[error("there is no VM {0}; see gnomon vms")]
    UnknownVm(VmId),
    /// It has no shadow.
    #[error("VM {0} has no shadow; see gnomon shadow list")]
    None(VmId),
    /// It is a shadow itself.
    #[error("VM {0} is a shadow itself")]
    OfShadow(VmId),
    /// It has one.
    #[error("VM {vm} has a shadow: it is {}", .state.name())]
    There {
        /// Which VM.
        vm: VmId,
        /// How far its shadow is.
        state: ShadowState,
    },
    /// It is on its way out.
    #[error("the shadow of VM {0} is being retired")]
    Retiring(VmId),
    /// It is held.
    #[error("VM {0}, its shadow or its host is paused or released: nothing is done until it is resumed")]
    Held(VmId),
    /// A trial is under way.
    #[error("the shadow of VM {0} tries a size already: gnomon shadow show tells how far it is")]
    Trying(VmId),
    /// It does not run, so nothing can be tried.
    #[error("the shadow of VM {vm} does not pace yet: it is {}", .state.name())]
    NotPacing {
        /// Which VM.
        vm: VmId,
        /// How far its shadow is.
        state: ShadowState,
    },
    /// Nothing in its guest can make a load.
    #[error("no pacer answers in the shadow of VM {0}: it measures its host alone (see docs/pacer.md)")]
    NoPacer(VmId),
    /// It is not known what it will want.
    #[error(
        "VM {0} has no forecast that reaches as far: try a shorter time, or wait for more history (gnomon forecast)"
    )]
    Unforecast(VmId),
    /// That is no size.
    #[error("{0} cores are no size")]
    NoSize(f64),
    /// There are as many as policy allows.
    #[error("there are {0} shadows, as many as policy.shadow.fleet_max allows")]
    FleetFull(usize),
    /// Policy makes none.
    #[error("shadows are not made: policy.mode and policy.shadow.mode have to be \"auto\"")]
    Off,
}

#[cfg(test)]
pub(crate) mod tests {
    use gnomon_common::wire::{
        Allocation, CpuWindow, Load, MeanMax, PacerWindow, ShadowWindow, VmId, VmState, VmTerms, VmWindow,
    };

    /// A window of a shadow whose pacer wanted and made so much CPU, in cores, and that was throttled for this share of the time.
    pub(crate) fn window(wanted: f64, made: f64, throttled: f64) -> VmWindow {
        let load = |cpu_cores| Load { cpu_cores, ..Load::default() };
        let same = |mean| MeanMax { mean, max: mean };
        let cpu = CpuWindow {
            demand_low: same(made),
            demand_high: same(wanted),
            throttled: same(throttled),
            ..CpuWindow::default()
        };
        VmWindow {
            vm: VmId::made_of(1, 1),
            name: "production.shadow".to_owned(),
            state: VmState::Running,
            cpu: Some(cpu),
            culprits: None,
            memory: None,
            interfaces: Vec::new(),
            disk: None,
            exits: None,
            allocation: Allocation::default(),
            baselines: Vec::new(),
            stood_down: false,
            terms: VmTerms::default(),
            storage: None,
            migration: None,
            shadow: Some(ShadowWindow {
                of: VmId::made_of(1, 2),
                pacer: Some(PacerWindow { wanted: load(wanted), made: load(made) }),
            }),
        }
    }
}
