//! What actions are taken for: whether it came, whether what was done served it, and what that cost.
//!
//! An expectation is made with the command of an action that rests on more than the moment: a forecast, the fleet's promise, a guest's want of memory
//! that may pass, a host that will be too full. It is awaited from the answer on, and over after its time. What is seen meanwhile follows from the
//! reports alone, so that a restart, which goes through them again, sees the same.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, CommandId, HostId, Setting, VmId};
use serde::{Deserialize, Serialize};

use super::balance::{Claim, Load, Room};
use super::memory::BalloonSizing;
use super::size::QUOTA_STEP_CORES;
use super::{PlannedAction, Reason, Relief, mib};

/// A surge is over so many steps of the forecast after the one that it was expected in.
pub(crate) const SURGE_STEPS: u32 = 3;

/// What came of what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aftermath {
    /// It came, and got all that it wanted.
    Served,
    /// It came, and wanted more than there was.
    Unserved,
    /// It did not come: what was before would have been enough.
    Absent,
}

impl Aftermath {
    /// Its name: a label of metrics and, after what was expected, a verb of the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Unserved => "unserved",
            Self::Absent => "absent",
        }
    }
}

/// What an action is taken for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Expected {
    /// Demand for CPU outgrows the quota at a time that is foreseen.
    Surge {
        /// What is foreseen.
        demand_cores: f64,
        /// The quota before.
        before_cores: f64,
    },
    /// The quota is too small too often for the fleet's promise.
    Promise {
        /// The quota before.
        before_cores: f64,
    },
    /// Demand that is out of the ordinary goes on rising.
    Anomaly {
        /// The quota that the demand would have got without what is given on top.
        ordinary_cores: f64,
        /// Until when something is given on top.
        until: Timestamp,
    },
    /// The guest goes on wanting more memory than it had.
    Memory {
        /// What it wanted.
        demand_bytes: u64,
        /// What its balloon left to it before.
        before_bytes: u64,
    },
    /// With the VM, the host that it leaves would be too full.
    Relief {
        /// That host.
        leaves: HostId,
        /// The host that it goes to.
        goes_to: HostId,
        /// How full the two are to be.
        expected: Relief,
    },
}

impl Expected {
    /// What an action is taken for, where that is more than the moment.
    pub(crate) fn by(action: &PlannedAction) -> Option<Self> {
        match (action.reason, &action.action, action.before) {
            (
                Reason::Anomaly { demand_cores, surplus_cores, until },
                Action::Set(Setting::CpuQuota { cores: Some(cores) }),
                _,
            ) => {
                // Its ceiling may have left less on top than was to be given.
                Some(Self::Anomaly { ordinary_cores: (cores - surplus_cores).max(demand_cores), until })
            }
            (Reason::ForecastSurge { demand_cores, .. }, _, Some(Setting::CpuQuota { cores: Some(before_cores) })) => {
                Some(Self::Surge { demand_cores, before_cores })
            }
            (Reason::Promise { .. }, _, Some(Setting::CpuQuota { cores: Some(before_cores) })) => {
                Some(Self::Promise { before_cores })
            }
            (
                Reason::LiveMemory { demand_bytes } | Reason::GuestStarves { demand_bytes },
                _,
                Some(Setting::Memory { bytes: before_bytes }),
            ) => Some(Self::Memory { demand_bytes, before_bytes }),
            (
                Reason::HostFull { expected, .. } | Reason::HostMemoryFull { expected, .. },
                Action::Migrate(migration),
                _,
            ) => Some(Self::Relief { leaves: action.host.clone(), goes_to: migration.to.clone(), expected }),
            _ => None,
        }
    }

    /// Its name: a label of metrics and, before what came of it, a verb of the audit log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Surge { .. } => "surge",
            Self::Promise { .. } => "promise",
            Self::Anomaly { .. } => "anomaly",
            Self::Memory { .. } => "memory",
            Self::Relief { .. } => "relief",
        }
    }

    /// What would have been enough without it: cores, bytes, or a share of a host's room.
    fn enough(&self) -> f64 {
        match self {
            Self::Surge { before_cores: cores, .. }
            | Self::Promise { before_cores: cores }
            | Self::Anomaly { ordinary_cores: cores, .. } => *cores,
            Self::Memory { before_bytes, .. } => *before_bytes as f64,
            Self::Relief { .. } => 1.0,
        }
    }
}

/// How far an expectation has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectationState {
    /// Its command is not answered.
    Sent,
    /// Its command was carried out.
    Awaited,
    /// It is over.
    Over(Ending),
}

/// How an expectation ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// What was seen of it.
    Seen {
        /// What came of it.
        aftermath: Aftermath,
        /// The most that was wanted: cores, bytes, or a share of the room of the host that was left, as what was expected has it.
        most: f64,
    },
    /// Nobody measured its VM meanwhile: that teaches nothing.
    Unseen,
    /// Its command was not carried out, or nobody knows.
    NotDone,
    /// It belongs to the surge that this earlier command grew the VM for.
    PartOf(CommandId),
}

/// What it cost to carry a command out, as its agent tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// From receipt to the end, in microseconds.
    pub took_us: u64,
    /// How long the VM stood still, in microseconds, where it was moved and that is known.
    pub downtime_us: Option<u64>,
    /// What went over the link, in bytes, where it was moved and that is known.
    pub sent_bytes: Option<u64>,
}

/// What an action was taken for, until it is known what came of that. The store keeps it under the command's id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// The command; of a surge for which a VM grew several times, the first.
    pub command: CommandId,
    /// Of which VM.
    pub vm: VmId,
    /// What is expected.
    pub of: Expected,
    /// From when on, on the clock of the VM's host; `None` until the command is carried out, where it is from then on.
    pub from: Option<Timestamp>,
    /// For how long it is looked for, in milliseconds.
    pub lasts_ms: u64,
    /// How far it has come.
    pub state: ExpectationState,
    /// What it cost, once the command was carried out.
    pub cost: Option<Cost>,
    /// What was seen so far. Not kept: it follows from the reports.
    #[serde(skip)]
    sight: Sight,
}

/// What was seen of what is expected, in its own unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sight {
    /// The most that was wanted.
    most: Option<f64>,
    /// The most that would have been needed for it, headroom included.
    needed: f64,
    is_short: bool,
    /// What a VM that was moved takes where it is.
    claim: Option<Claim>,
}

impl Sight {
    fn take(&mut self, wanted: f64, needed: f64, is_short: bool) {
        self.most = Some(self.most.map_or(wanted, |most| most.max(wanted)));
        self.needed = self.needed.max(needed);
        self.is_short |= is_short;
    }
}

impl Expectation {
    /// What an action is taken for, as its command is made. `lasts` tells for how long that is looked for.
    pub(crate) fn new(
        command: CommandId,
        action: &PlannedAction,
        lasts: impl FnOnce(&Expected) -> Duration,
    ) -> Option<Self> {
        let of = Expected::by(action)?;
        let lasts_ms = u64::try_from(lasts(&of).as_millis()).unwrap_or(u64::MAX);
        let from = match action.reason {
            Reason::ForecastSurge { at, .. } => Some(at),
            _ => None,
        };
        let (vm, state, sight) = (action.vm, ExpectationState::Sent, Sight::default());
        Some(Self { command, vm, of, from, lasts_ms, state, cost: None, sight })
    }

    /// Its command was carried out; windows that begin `from` then on were not begun before that.
    pub(crate) fn carried_out(&mut self, from: Timestamp, cost: Cost) {
        self.from.get_or_insert(from);
        self.cost = Some(cost);
        self.state = ExpectationState::Awaited;
    }

    /// Whether it is awaited.
    pub(crate) fn is_awaited(&self) -> bool {
        self.state == ExpectationState::Awaited
    }

    /// Whether it has come to its end.
    pub fn is_over(&self) -> bool {
        matches!(self.state, ExpectationState::Over(_))
    }

    /// Whether both are about the demand for CPU that was foreseen.
    pub(crate) fn is_same_surge(&self, other: &Self) -> bool {
        matches!((&self.of, &other.of), (Expected::Surge { .. }, Expected::Surge { .. }))
    }

    /// One more command was needed for the same surge.
    pub(crate) fn widen(&mut self, more: &Self) {
        let (until, until_more) = (self.until(), more.until());
        if let (Expected::Surge { demand_cores, .. }, Expected::Surge { demand_cores: more_cores, .. }) =
            (&mut self.of, &more.of)
        {
            *demand_cores = demand_cores.max(*more_cores);
        }
        if let (Some(from), Some(until)) = (self.from, until.max(until_more)) {
            self.lasts_ms = until.unix_ms().saturating_sub(from.unix_ms());
        }
    }

    fn until(&self) -> Option<Timestamp> {
        self.from.map(|from| from + Duration::from_millis(self.lasts_ms))
    }

    /// Whether a window that ended at `end` is one of those that it is looked for in.
    fn covers(&self, end: Timestamp) -> bool {
        self.is_awaited() && self.from.is_some_and(|from| end > from) && self.until().is_some_and(|until| end <= until)
    }

    /// A window ended in which the VM wanted, and was allowed, so many cores.
    pub(crate) fn see_cpu(&mut self, end: Timestamp, wanted_cores: f64, limit_cores: f64, headroom: f64) {
        let needed_cores = match self.of {
            Expected::Surge { .. } => wanted_cores * headroom,
            Expected::Promise { .. } | Expected::Anomaly { .. } => wanted_cores,
            Expected::Memory { .. } | Expected::Relief { .. } => return,
        };
        if self.covers(end) {
            self.sight.take(wanted_cores, needed_cores, wanted_cores > limit_cores + QUOTA_STEP_CORES / 2.0);
        }
    }

    /// A window ended in which its guest wanted, and had, so much memory.
    pub(crate) fn see_memory(&mut self, end: Timestamp, sizing: &BalloonSizing, headroom: f64) {
        if matches!(self.of, Expected::Memory { .. }) && self.covers(end) {
            let is_short = sizing.starved || sizing.least().min(sizing.ceiling) > sizing.balloon;
            self.sight.take(sizing.demand as f64, sizing.enough(headroom) as f64, is_short);
        }
    }

    /// A window of the host that the VM went to ended in which the VM took this much, and all together, it included, that.
    pub(crate) fn see_target(&mut self, end: Timestamp, claim: Claim, all: &Load, room: &Room) {
        self.sight.claim = Some(claim);
        if self.covers(end) {
            self.sight.is_short |= !room.holds(all);
        }
    }

    /// A window of the host that the VM left ended in which those that are there took this much together.
    pub(crate) fn see_source(&mut self, end: Timestamp, left: &Load, room: &Room) {
        // Before the other host tells of the VM, nobody knows how it would have been with it.
        if let Some(claim) = self.sight.claim.filter(|_| self.covers(end)) {
            let with_it = room.share(&left.plus(claim));
            self.sight.take(with_it, with_it, !room.holds(left));
        }
    }

    /// Whether its time is over, whatever was seen.
    pub(crate) fn is_due(&self, end: Timestamp) -> bool {
        self.is_awaited() && self.until().is_some_and(|until| end >= until)
    }

    /// What was seen of it. It came if what was before, with the headroom that is kept, would have been too small.
    pub(crate) fn ending(&self) -> Ending {
        let Some(most) = self.sight.most else { return Ending::Unseen };
        let aftermath = match (self.sight.needed > self.of.enough(), self.sight.is_short) {
            (false, _) => Aftermath::Absent,
            (true, true) => Aftermath::Unserved,
            (true, false) => Aftermath::Served,
        };
        Ending::Seen { aftermath, most }
    }

    /// What came of it, and its verb in the audit log; `None` before its end, and where that says nothing.
    pub fn verdict(&self) -> Option<(Aftermath, String)> {
        match self.state {
            ExpectationState::Over(Ending::Seen { aftermath, .. }) => {
                Some((aftermath, format!("{}_{}", self.of.name(), aftermath.name())))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (aftermath, most) = match self.state {
            ExpectationState::Sent => return f.write_str("its command is not answered"),
            ExpectationState::Awaited => return f.write_str("it is awaited"),
            ExpectationState::Over(Ending::Unseen) => return f.write_str("nobody measured what came of it"),
            ExpectationState::Over(Ending::NotDone) => return f.write_str("it was not done"),
            ExpectationState::Over(Ending::PartOf(first)) => return write!(f, "it was one with {first}"),
            ExpectationState::Over(Ending::Seen { aftermath, most }) => (aftermath, most),
        };
        f.write_str(match (aftermath, &self.of) {
            (Aftermath::Served, _) => "it came and was served",
            (Aftermath::Unserved, Expected::Relief { .. }) => "it came, and one of the two hosts was too full",
            (Aftermath::Unserved, _) => "it came, and the VM wanted more than it was allowed",
            (Aftermath::Absent, _) => "it did not come",
        })?;
        match &self.of {
            Expected::Surge { demand_cores, .. } => {
                write!(f, ": at most {most:.2} cores were wanted, {demand_cores:.2} were foreseen")
            }
            Expected::Promise { before_cores } => {
                write!(f, ": at most {most:.2} cores were wanted, {before_cores:.2} were allowed before")
            }
            Expected::Anomaly { ordinary_cores, .. } => {
                write!(
                    f,
                    ": at most {most:.2} cores were wanted, {ordinary_cores:.2} were there without what was on top"
                )
            }
            Expected::Memory { before_bytes, .. } => {
                write!(f, ": at most {} were wanted, it had {} before", mib(most as u64), mib(*before_bytes))
            }
            Expected::Relief { leaves, expected, .. } => {
                let [most, foreseen] = [most, expected.from_before].map(|share| share * 100.0);
                write!(f, ": with it host {leaves} would have been {most:.0} % full, {foreseen:.0} % were foreseen")?;
                let Some(Cost { took_us, downtime_us, sent_bytes }) = self.cost else { return Ok(()) };
                write!(f, "; the move took {:.1} s", took_us as f64 / 1e6)?;
                if let Some(us) = downtime_us {
                    write!(f, ", {:.3} s of it at a stand", us as f64 / 1e6)?;
                }
                sent_bytes.map_or(Ok(()), |bytes| write!(f, ", and {} went over the link", mib(bytes)))
            }
        }
    }
}
