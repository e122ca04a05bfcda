//! Giving VMs back what they had before Gnomon's first change, without a brain: `gnomon-agent release`.
//!
//! Works on the closed daemon's ledger only (the ledger's lock sees to that). Commands that a crash left under way are concluded as failed, so
//! that the daemon does not carry them out at its next start and take the release back.

use super::clock::wall_clock;
use super::ledger::{Intent, Ledger, LedgerError, UndoRecord, VmLife};
use super::reconcile;
use crate::actuate::{ActuateError, Actuator};
use gnomon_common::wire::{Outcome, OutcomeResult, Setting};

/// Why a VM was not released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// No undo record matches.
    #[error(
        "{0:?} is neither the name nor the UUID of a VM that Gnomon changed; `gnomon-agent release --all --dry-run` lists them"
    )]
    NotChanged(String),
    /// It is on its way to another host, or it is not known yet on which it is.
    #[error("{0} is being migrated; start gnomon-agent, which finds out where it is, and release it then")]
    Migrating(String),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The limit was not restored; the undo record is kept.
    #[error(transparent)]
    Actuate(#[from] ActuateError),
}

/// What became of one release.
#[derive(Clone, Debug, PartialEq)]
pub enum Released {
    /// The baselines are in force again.
    Restored {
        /// What was in force before, by each means that was changed.
        before: Vec<Setting>,
        /// What is in force now, in the same order.
        after: Vec<Setting>,
    },
    /// The VM is not active here: its changed limits ended with it.
    Gone,
    /// The VM was restarted since: its changed limits ended with the life before, and what it has now is its owner's.
    Restarted,
}

/// The undo records of the VMs named, by name or UUID; of all when `names` is empty.
pub fn select(records: Vec<UndoRecord>, names: &[String]) -> Result<Vec<UndoRecord>, ReleaseError> {
    let is = |record: &UndoRecord, name: &String| record.name == *name || record.vm.to_string() == name.to_lowercase();
    if let Some(unknown) = names.iter().find(|name| !records.iter().any(|record| is(record, name))) {
        return Err(ReleaseError::NotChanged(unknown.clone()));
    }
    let wanted = |record: &UndoRecord| names.is_empty() || names.iter().any(|name| is(record, name));
    Ok(records.into_iter().filter(wanted).collect())
}

/// Restores one VM's baseline, if its present life is still the one that was changed, and forgets its undo record.
pub fn restore(
    ledger: &Ledger,
    actuator: &mut dyn Actuator,
    record: &UndoRecord,
    life: Option<VmLife>,
) -> Result<Released, ReleaseError> {
    let intents: Vec<_> = ledger.intents()?.into_iter().filter(|intent| intent.command.vm == record.vm).collect();
    if intents.iter().any(Intent::is_migration) {
        return Err(ReleaseError::Migrating(record.name.clone()));
    }
    for intent in intents {
        let error = "the VM was released by the host's operator".to_owned();
        let result = OutcomeResult::Failed { error, retryable: false };
        let (id, vm, at) = (intent.command.id, record.vm, wall_clock());
        ledger.conclude(&Outcome { id, vm, at, origin: intent.origin(), result }, false)?;
    }
    let found = record.baselines.iter().map(|baseline| actuator.in_force(record.vm, baseline.means()));
    let released = match found.collect::<Result<Vec<_>, _>>() {
        Ok(_) if VmLife::ended(record.life, life) => Released::Restarted,
        Ok(found) => {
            // What its owner has set since stays.
            let to_restore = found.iter().filter_map(|now| Some((*now, reconcile::to_restore(record, *now)?)));
            let (before, targets): (Vec<_>, Vec<_>) = to_restore.unzip();
            let after = targets.into_iter().map(|target| actuator.apply(record.vm, target));
            Released::Restored { before, after: after.collect::<Result<_, _>>()? }
        }
        Err(ActuateError::NoSuchVm(_)) => Released::Gone,
        Err(error) => return Err(error.into()),
    };
    ledger.forget_undo(record.vm)?;
    Ok(released)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::clock::Clock;
    use crate::command::ledger::Change;
    use gnomon_common::time::Timestamp;
    use gnomon_common::wire::{Action, Command, CommandId, Fence, Means, VmId};
    use uuid::Uuid;

    struct OneVm(Result<Setting, ActuateError>);

    impl Actuator for OneVm {
        fn in_force(&mut self, _: VmId, _: Means) -> Result<Setting, ActuateError> {
            self.0.clone()
        }

        fn apply(&mut self, _: VmId, target: Setting) -> Result<Setting, ActuateError> {
            self.0 = self.0.clone().map(|_| target);
            self.0.clone()
        }
    }

    fn quota(cores: f64) -> Setting {
        Setting::CpuQuota { cores: Some(cores) }
    }

    fn life(pid: u32) -> Option<VmLife> {
        Some(VmLife { boot: Uuid::from_u128(1), pid, start_ticks: 5 })
    }

    fn record(vm: u128, name: &str) -> UndoRecord {
        let vm = VmId(Uuid::from_u128(vm));
        let mut record = UndoRecord::new(vm, name.to_owned(), life(1), vec![quota(2.0)], Timestamp::from_unix_ms(1));
        record.attempted = vec![quota(1.0)];
        record
    }

    fn ledger_with(record: &UndoRecord) -> (tempfile::TempDir, Ledger) {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("commands.redb")).unwrap();
        let command = Command {
            id: CommandId { term: 1, number: 1 },
            vm: record.vm,
            action: Action::Set(quota(1.0)),
            fence: Fence { term: 1, generation: 1 },
            time_to_live_ms: 60_000,
            reason: String::new(),
        };
        let now = Clock::new().unwrap().now();
        let intent = Intent {
            changes: vec![Change { before: quota(2.0), target: quota(1.0) }],
            life: record.life,
            ..Intent::new(command, now.boot, now.wall)
        };
        ledger.begin(&intent, Some(record)).unwrap();
        (folder, ledger)
    }

    #[test]
    fn vms_are_selected_by_name_or_uuid_and_the_unknown_are_named() {
        let records = vec![record(1, "web"), record(2, "db")];
        let by =
            |names: &[&str]| select(records.clone(), &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(by(&[]).unwrap(), records);
        assert_eq!(by(&["db"]).unwrap(), records[1..]);
        assert_eq!(by(&["00000000-0000-0000-0000-000000000001"]).unwrap(), records[..1]);
        assert!(matches!(by(&["web", "mail"]), Err(ReleaseError::NotChanged(name)) if name == "mail"));
    }

    #[test]
    fn a_release_restores_the_baseline_and_takes_commands_under_way_back() {
        let record = record(1, "web");
        let (_folder, ledger) = ledger_with(&record);
        let mut vm = OneVm(Ok(quota(1.0)));
        let released = restore(&ledger, &mut vm, &record, life(1)).unwrap();
        assert_eq!(released, Released::Restored { before: vec![quota(1.0)], after: vec![quota(2.0)] });
        assert_eq!(ledger.undo_records().unwrap(), []);
        assert_eq!(ledger.intents().unwrap(), []);
        assert!(matches!(&ledger.pending().unwrap()[..], [(_, Outcome { result: OutcomeResult::Failed { .. }, .. })]));
    }

    #[test]
    fn a_vm_that_is_gone_has_nothing_to_restore() {
        let record = record(1, "web");
        let (_folder, ledger) = ledger_with(&record);
        let released = restore(&ledger, &mut OneVm(Err(ActuateError::NoSuchVm(record.vm))), &record, None).unwrap();
        assert_eq!(released, Released::Gone);
        assert_eq!(ledger.undo_records().unwrap(), []);
    }

    #[test]
    fn a_vm_that_was_restarted_keeps_what_its_owner_defined() {
        let record = record(1, "web");
        let (_folder, ledger) = ledger_with(&record);
        let mut vm = OneVm(Ok(quota(3.0)));
        assert_eq!(restore(&ledger, &mut vm, &record, life(2)).unwrap(), Released::Restarted);
        assert_eq!(vm.0, Ok(quota(3.0)));
        assert_eq!(ledger.undo_records().unwrap(), []);
    }

    #[test]
    fn a_failed_release_keeps_the_undo_record() {
        let record = record(1, "web");
        let (_folder, ledger) = ledger_with(&record);
        let error = ActuateError::Unavailable("down".to_owned());
        assert!(restore(&ledger, &mut OneVm(Err(error)), &record, life(1)).is_err());
        assert_eq!(ledger.undo_records().unwrap(), [record]);
    }
}
