//! Surges that VMs were grown for: whether they came, and whether what was given served them.

use std::fmt;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CommandId, Setting};

use super::size::QUOTA_STEP_CORES;
use super::{PlannedAction, Reason};

/// A surge is over so many steps of the forecast after the one that it was expected in.
const STEPS_LATE: u32 = 2;

/// What came of a surge that was foreseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftermath {
    /// It came, and the VM got all that it wanted.
    Served,
    /// It came, and the VM wanted more than it was allowed.
    Unserved,
    /// It did not come: the size before would have been enough.
    Absent,
}

impl Aftermath {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Served, Self::Unserved, Self::Absent];

    /// Its name: a verb of the audit log, a label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Served => "surge_served",
            Self::Unserved => "surge_unserved",
            Self::Absent => "surge_absent",
        }
    }
}

/// A surge that a VM was grown for, until it is over. Cores are of the whole VM.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Surge {
    /// The command that grew the VM for it; where several did, the first.
    pub(crate) command: CommandId,
    expected_cores: f64,
    /// The quota before.
    before_cores: f64,
    from: Timestamp,
    until: Timestamp,
    peak_cores: Option<f64>,
    is_starved: bool,
}

/// What was seen of a surge that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) aftermath: Aftermath,
    peak_cores: f64,
    expected_cores: f64,
}

impl Surge {
    /// The surge that an action was planned for, if it was for one. `step` tells that of the forecast.
    pub(crate) fn of(command: CommandId, action: &PlannedAction, step: impl FnOnce() -> Duration) -> Option<Self> {
        let (Reason::ForecastSurge { at, demand_cores }, Some(Setting::CpuQuota { cores: Some(before_cores) })) =
            (action.reason, action.before)
        else {
            return None;
        };
        let (expected_cores, until) = (demand_cores, at + step() * (1 + STEPS_LATE));
        Some(Self { command, expected_cores, before_cores, from: at, until, peak_cores: None, is_starved: false })
    }

    /// One more command was needed for it.
    pub(crate) fn widen(&mut self, more: &Self) {
        self.expected_cores = self.expected_cores.max(more.expected_cores);
        self.until = self.until.max(more.until);
    }

    /// A window ended in which the VM wanted, and was allowed, so many cores.
    pub(crate) fn see(&mut self, end: Timestamp, wanted_cores: f64, limit_cores: f64) {
        if end > self.from && end <= self.until {
            self.peak_cores = Some(self.peak_cores.map_or(wanted_cores, |peak| peak.max(wanted_cores)));
            self.is_starved |= wanted_cores > limit_cores + QUOTA_STEP_CORES / 2.0;
        }
    }

    /// Whether it is over, whatever was seen of it.
    pub(crate) fn is_over(&self, end: Timestamp) -> bool {
        end >= self.until
    }

    /// What was seen of it; `None` where nothing was. It came if the size before, with `headroom`, would have been too small.
    pub(crate) fn seen(&self, headroom: f64) -> Option<Seen> {
        let (peak_cores, expected_cores) = (self.peak_cores?, self.expected_cores);
        let aftermath = match (peak_cores * headroom > self.before_cores, self.is_starved) {
            (false, _) => Aftermath::Absent,
            (true, true) => Aftermath::Unserved,
            (true, false) => Aftermath::Served,
        };
        Some(Seen { aftermath, peak_cores, expected_cores })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { aftermath, peak_cores, expected_cores } = self;
        let what = match aftermath {
            Aftermath::Served => "it came and was served",
            Aftermath::Unserved => "it came, and the VM wanted more than it was allowed",
            Aftermath::Absent => "it did not come",
        };
        write!(f, "{what}: at most {peak_cores:.2} cores were wanted, {expected_cores:.2} were foreseen")
    }
}

#[cfg(test)]
mod tests {
    use gnomon_common::wire::{Action, HostId, VmId};
    use uuid::Uuid;

    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_700_000_000_000 + second * 1000)
    }

    fn action(reason: Reason) -> PlannedAction {
        let quota = |cores| Setting::CpuQuota { cores: Some(cores) };
        let host = HostId::new("a").unwrap();
        let vm = VmId(Uuid::from_u128(1));
        PlannedAction {
            host,
            vm,
            action: Action::Set(quota(0.9)),
            before: Some(quota(0.3)),
            reason,
            along: None,
            approved_by: None,
        }
    }

    /// Foreseen for second 100, to be over at second 130.
    fn surge() -> Surge {
        let reason = Reason::ForecastSurge { at: at(100), demand_cores: 0.8 };
        Surge::of(CommandId { term: 1, number: 7 }, &action(reason), || STEP).unwrap()
    }

    fn aftermath(windows: &[(u64, f64, f64)]) -> Option<Aftermath> {
        let mut surge = surge();
        windows.iter().for_each(|&(second, wanted, limit)| surge.see(at(second), wanted, limit));
        surge.seen(1.1).map(|seen| seen.aftermath)
    }

    #[test]
    fn a_surge_is_judged_by_what_was_wanted_while_it_was_expected() {
        assert_eq!(aftermath(&[(110, 0.8, 0.9), (120, 0.7, 0.9)]), Some(Aftermath::Served));
        assert_eq!(aftermath(&[(110, 0.95, 0.9), (120, 0.7, 0.9)]), Some(Aftermath::Unserved));
        assert_eq!(aftermath(&[(110, 0.2, 0.9), (130, 0.25, 0.9)]), Some(Aftermath::Absent));
        assert_eq!(
            aftermath(&[(110, 0.28, 0.9)]),
            Some(Aftermath::Served),
            "with a headroom, 0.3 was too small for it"
        );
        assert_eq!(aftermath(&[(100, 0.8, 0.9), (131, 0.8, 0.9)]), None, "before it and after it is not in it");
        assert_eq!(aftermath(&[]), None);
    }

    #[test]
    fn a_second_step_up_belongs_to_the_same_surge() {
        let mut first = surge();
        let reason = Reason::ForecastSurge { at: at(110), demand_cores: 1.2 };
        first.widen(&Surge::of(CommandId { term: 1, number: 8 }, &action(reason), || STEP).unwrap());
        assert!(!first.is_over(at(139)) && first.is_over(at(140)));
        first.see(at(135), 1.1, 1.3);
        let seen = first.seen(1.0).unwrap();
        assert_eq!(seen.to_string(), "it came and was served: at most 1.10 cores were wanted, 1.20 were foreseen");
        assert_eq!(first.command.number, 7);
    }

    #[test]
    fn only_what_was_planned_for_a_surge_awaits_one() {
        let live = action(Reason::LiveDemand { demand_cores: 0.8 });
        assert_eq!(Surge::of(CommandId { term: 1, number: 1 }, &live, || STEP), None);
        let unlimited = PlannedAction {
            before: Some(Setting::CpuQuota { cores: None }),
            ..action(Reason::ForecastSurge { at: at(100), demand_cores: 0.8 })
        };
        assert_eq!(Surge::of(CommandId { term: 1, number: 1 }, &unlimited, || STEP), None);
    }
}
