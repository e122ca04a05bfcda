//! What to make of a limit that is not the one Gnomon set, and who gives way. Pure.
//!
//! A limit that went back to its baseline, or to no limit at all, was *undone*: libvirt and systemd do that when they are restarted or
//! reload. Any other limit was *changed*: only a person, or a program for one, can have chosen it. From then on it is what the
//! owner wants the VM to have without Gnomon: the new baseline, which a release gives back. Nothing that Gnomon undoes may
//! overwrite it.
//!
//! By policy either is answered by applying Gnomon's limit again, which whoever insists can end, or by standing down at once. Standing down
//! leaves what was found in force, disowns it (a release will not touch it), and lasts until the VM is released.
//!
//! The balloon is left out: the guest moves it too, and what it does with it is no statement of its owner's.

use super::clock::BootInstant;
use super::ledger::UndoRecord;
use crate::actuate::same;
use crate::config::{OnForeignChange, Reconcile};
use gnomon_common::wire::{CPU_WEIGHT_DEFAULT, Means, Setting};
use std::collections::VecDeque;
use std::time::Duration;

/// What a means is found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As Gnomon set it, or nothing that Gnomon minds.
    Ours,
    /// As Gnomon tried to set it without getting an answer.
    OursLate,
    /// Back where it was, or unlimited.
    Undone,
    /// Chosen by someone else.
    Changed,
}

/// Compares what is in force with what Gnomon set.
pub fn standing(record: &UndoRecord, found: Setting) -> Standing {
    let means = found.means();
    let is = |known: Option<Setting>| known.is_some_and(|known| same(known, found));
    let Some(applied) = record.applied(means).filter(|_| means != Means::Memory) else { return Standing::Ours };
    if same(applied, found) {
        Standing::Ours
    } else if is(record.attempted(means)) {
        Standing::OursLate
    } else if is(record.baseline(means)) || is_no_limit(found) {
        Standing::Undone
    } else {
        Standing::Changed
    }
}

fn is_no_limit(setting: Setting) -> bool {
    match setting {
        Setting::CpuQuota { cores } => cores.is_none(),
        Setting::CpuWeight { weight } => weight == CPU_WEIGHT_DEFAULT,
        Setting::DiskLimit { bytes_per_s, operations_per_s } => bytes_per_s.is_none() && operations_per_s.is_none(),
        Setting::NetworkLimit { in_bytes_per_s, out_bytes_per_s } => {
            in_bytes_per_s.is_none() && out_bytes_per_s.is_none()
        }
        Setting::Memory { .. } | Setting::Vcpus { .. } => false,
    }
}

/// The baseline that a release has to restore where `found` is in force; `None` where there is none, or what is in force was chosen by
/// someone else since.
pub fn to_restore(record: &UndoRecord, found: Setting) -> Option<Setting> {
    record.baseline(found.means()).filter(|_| standing(record, found) != Standing::Changed)
}

/// When a VM's limits were applied again, as far as that decides whether they are once more. At most [`Reconcile::reapply_max`] instants.
#[derive(Clone, Debug, Default)]
pub struct Reapplied(VecDeque<BootInstant>);

impl Reapplied {
    /// Remembers one.
    pub fn note(&mut self, now: BootInstant) {
        self.0.push_back(now);
    }

    /// How many there were within the window.
    fn within(&mut self, window: Duration, now: BootInstant) -> usize {
        self.0.retain(|then| now.since(*then).is_some_and(|ago| ago <= window));
        self.0.len()
    }
}

/// What to do about a limit that is not Gnomon's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Apply Gnomon's again.
    Reapply,
    /// Keep the hands off.
    StandDown(Why),
}

/// Why Gnomon stands down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The policy says so.
    #[error("by policy (reconcile.on_foreign_change) Gnomon stands down")]
    Policy,
    /// Someone has undone or changed it again and again.
    #[error("after {times} re-applications within {window_s} s someone insists, and Gnomon stands down")]
    Insisted {
        /// How often it was applied again.
        times: u32,
        /// In how long a time.
        window_s: u64,
    },
}

/// Applies the policy.
pub fn answer(policy: &Reconcile, reapplied: &mut Reapplied, now: BootInstant) -> Answer {
    let Reconcile { on_foreign_change, reapply_max: times, reapply_window_s: window_s } = *policy;
    match on_foreign_change {
        OnForeignChange::StandDown => Answer::StandDown(Why::Policy),
        OnForeignChange::Reapply if reapplied.within(Duration::from_secs(window_s), now) >= times as usize => {
            Answer::StandDown(Why::Insisted { times, window_s })
        }
        OnForeignChange::Reapply => Answer::Reapply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::time::Timestamp;
    use gnomon_common::wire::VmId;
    use uuid::Uuid;

    fn quota(cores: Option<f64>) -> Setting {
        Setting::CpuQuota { cores }
    }

    /// Baseline 2 cores, 0.5 set, then 0.7 tried.
    fn record() -> UndoRecord {
        let vm = VmId(Uuid::nil());
        let mut record =
            UndoRecord::new(vm, "web".to_owned(), None, vec![quota(Some(2.0))], Timestamp::from_unix_ms(1));
        record.applied = vec![quota(Some(0.5))];
        record.attempted = vec![quota(Some(0.7))];
        record
    }

    #[test]
    fn what_was_undone_is_told_from_what_was_chosen() {
        let found = |cores| standing(&record(), quota(cores));
        assert_eq!(found(Some(0.5)), Standing::Ours);
        assert_eq!(found(Some(0.500_01)), Standing::Ours, "rounding");
        assert_eq!(found(Some(0.7)), Standing::OursLate);
        assert_eq!([found(Some(2.0)), found(None)], [Standing::Undone; 2]);
        assert_eq!(found(Some(1.0)), Standing::Changed);
    }

    #[test]
    fn means_that_gnomon_does_not_hold_and_the_balloon_are_nobodys_business() {
        assert_eq!(standing(&record(), Setting::CpuWeight { weight: 7 }), Standing::Ours);
        let mut record = record();
        record.baselines.push(Setting::Memory { bytes: 9 });
        record.applied.push(Setting::Memory { bytes: 5 });
        assert_eq!(standing(&record, Setting::Memory { bytes: 7 }), Standing::Ours);
        assert_eq!(to_restore(&record, Setting::Memory { bytes: 7 }), Some(Setting::Memory { bytes: 9 }));
    }

    #[test]
    fn a_release_restores_what_was_undone_and_never_what_someone_chose() {
        for cores in [Some(0.5), Some(0.7), Some(2.0), None] {
            assert_eq!(to_restore(&record(), quota(cores)), Some(quota(Some(2.0))), "{cores:?}");
        }
        assert_eq!(to_restore(&record(), quota(Some(1.0))), None);
    }

    #[test]
    fn who_insists_is_given_way_to_and_who_does_not_is_not() {
        let policy = Reconcile { reapply_max: 2, reapply_window_s: 10, ..Reconcile::default() };
        let at = |s: u64| BootInstant { boot: Uuid::nil(), us: s * 1_000_000 };
        let mut reapplied = Reapplied::default();
        for now in [0, 5, 11, 16] {
            assert_eq!(answer(&policy, &mut reapplied, at(now)), Answer::Reapply, "{now} s");
            reapplied.note(at(now));
        }
        let insisted = Why::Insisted { times: 2, window_s: 10 };
        assert_eq!(answer(&policy, &mut reapplied, at(20)), Answer::StandDown(insisted));
        assert!(reapplied.0.len() <= 2);
    }

    #[test]
    fn a_policy_of_standing_down_does_so_at_once() {
        let policy = Reconcile { on_foreign_change: OnForeignChange::StandDown, ..Reconcile::default() };
        let now = BootInstant { boot: Uuid::nil(), us: 0 };
        assert_eq!(answer(&policy, &mut Reapplied::default(), now), Answer::StandDown(Why::Policy));
    }
}
