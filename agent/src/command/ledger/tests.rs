use super::*;
use crate::command::clock::BootInstant;
use gnomon_common::wire::{Action, Command, Origin, OutcomeResult, RefusedCommand, Setting};
use uuid::Uuid;

fn quota(cores: Option<f64>) -> Setting {
    Setting::CpuQuota { cores }
}

fn intent(vm: u128, term: u64, number: u64) -> Intent {
    let command = Command {
        id: CommandId { term, number },
        vm: VmId(Uuid::from_u128(vm)),
        action: Action::Set(quota(Some(1.1))),
        fence: Fence { term, generation: number },
        time_to_live_ms: 1_000,
        reason: "grow".to_owned(),
    };
    let received = BootInstant { boot: Uuid::from_u128(1), us: 5 };
    let received_at = Timestamp::from_unix_ms(9);
    let changes = vec![Change { before: quota(None), target: quota(Some(1.1)) }];
    Intent { changes, ..Intent::new(command, received, received_at) }
}

fn undo(vm: u128, baseline_cores: Option<f64>) -> UndoRecord {
    let at = Timestamp::from_unix_ms(1);
    let vm_id = VmId(Uuid::from_u128(vm));
    let mut record = UndoRecord::new(vm_id, format!("vm{vm}"), None, vec![quota(baseline_cores)], at);
    record.attempted = vec![quota(Some(1.1))]; // by the intent that it is written with
    record
}

fn outcome(intent: &Intent) -> Outcome {
    let result = OutcomeResult::Applied { before: vec![quota(None)], after: vec![quota(Some(1.1))], took_us: 7 };
    let (id, vm) = (intent.command.id, intent.command.vm);
    Outcome { id, vm, at: Timestamp::from_unix_ms(10), origin: Origin::Command, result }
}

/// What a process killed now would leave behind: the bytes the kernel has, without any closing of the open ledger.
fn after_kill(path: &Path, copy: &str) -> Ledger {
    let copy = path.with_file_name(copy);
    std::fs::copy(path, &copy).unwrap();
    Ledger::open(&copy).unwrap()
}

fn fresh() -> (tempfile::TempDir, PathBuf, Ledger) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/commands.redb");
    let ledger = Ledger::open(&path).unwrap();
    (folder, path, ledger)
}

#[test]
fn every_write_survives_a_kill_right_after_it() {
    let (_folder, path, ledger) = fresh();
    let now = Timestamp::from_unix_ms(1_700_000_000_999);
    assert_eq!(ledger.raise_epoch(now).unwrap(), AgentEpoch(1_700_000_000));
    assert_eq!(after_kill(&path, "1").raise_epoch(now).unwrap(), AgentEpoch(1_700_000_001));

    let first = intent(7, 3, 1);
    ledger.begin(&first, Some(&undo(7, Some(2.0)))).unwrap();
    let reopened = after_kill(&path, "2");
    assert_eq!(reopened.intents().unwrap(), std::slice::from_ref(&first));
    assert_eq!(reopened.undo(first.command.vm).unwrap(), Some(undo(7, Some(2.0))));
    assert_eq!(reopened.fence(first.command.vm).unwrap(), Some(first.command.fence));
    assert_eq!(reopened.pending().unwrap(), []);

    ledger.conclude(&outcome(&first), false).unwrap();
    let reopened = after_kill(&path, "3");
    assert_eq!(reopened.intents().unwrap(), []);
    assert_eq!(reopened.pending().unwrap(), [(1, outcome(&first))]);

    assert!(ledger.acknowledge(first.command.id).unwrap());
    assert_eq!(after_kill(&path, "4").pending().unwrap(), []);
}

#[test]
fn a_lost_ledger_gets_an_epoch_that_was_never_used() {
    let second = |s: u64| Timestamp::from_unix_ms(s * 1_000);
    let (_folder, _path, lost) = fresh();
    let last = (0..3).map(|start| lost.raise_epoch(second(1_700_000_000 + start)).unwrap()).max().unwrap();
    let (_folder, _path, empty) = fresh();
    assert!(empty.raise_epoch(second(1_700_000_060)).unwrap() > last);
}

#[test]
fn epochs_rise_even_when_the_clock_is_set_back() {
    let (_folder, _path, ledger) = fresh();
    let before = ledger.raise_epoch(Timestamp::from_unix_ms(1_700_000_000_000)).unwrap();
    assert_eq!(ledger.raise_epoch(Timestamp::from_unix_ms(0)).unwrap(), AgentEpoch(before.0 + 1));
}

#[test]
fn a_second_opener_is_told_that_the_daemon_runs() {
    let (_folder, path, _ledger) = fresh();
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
}

#[test]
fn the_state_folder_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path, _ledger) = fresh();
    let mode = path.parent().unwrap().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn an_undo_record_keeps_the_first_baseline() {
    let (_folder, _path, ledger) = fresh();
    ledger.begin(&intent(7, 3, 1), Some(&undo(7, Some(2.0)))).unwrap();
    ledger.begin(&intent(7, 3, 2), Some(&undo(7, Some(1.1)))).unwrap();
    assert_eq!(ledger.undo_records().unwrap(), [undo(7, Some(2.0))]);
}

#[test]
fn an_undo_record_of_an_earlier_life_is_replaced_and_one_that_may_be_of_this_life_is_not() {
    let life = |pid| Some(VmLife { boot: Uuid::from_u128(1), pid, start_ticks: 9 });
    for (earlier, now, replaced) in
        [(life(1), life(2), true), (life(1), life(1), false), (None, life(2), false), (life(1), None, false)]
    {
        let (_folder, _path, ledger) = fresh();
        let (old, new) =
            (UndoRecord { life: earlier, ..undo(7, Some(2.0)) }, UndoRecord { life: now, ..undo(7, None) });
        ledger.begin(&intent(7, 3, 1), Some(&old)).unwrap();
        ledger.begin(&intent(7, 3, 2), Some(&new)).unwrap();
        assert_eq!(ledger.undo_records().unwrap(), [if replaced { new } else { old }]);
    }
}

#[test]
fn a_release_forgets_the_undo_record_with_its_outcome_and_not_before() {
    let (_folder, _path, ledger) = fresh();
    let release = intent(7, 3, 1);
    ledger.begin(&release, Some(&undo(7, None))).unwrap();
    assert_eq!(ledger.undo_records().unwrap().len(), 1);
    ledger.conclude(&outcome(&release), true).unwrap();
    assert_eq!(ledger.undo_records().unwrap(), []);
}

#[test]
fn a_higher_term_clears_the_fences_it_outranks() {
    let (_folder, _path, ledger) = fresh();
    assert_eq!(ledger.fence_highest().unwrap(), None);
    ledger.begin(&intent(7, 3, 4), None).unwrap();
    ledger.begin(&intent(8, 3, 6), None).unwrap();
    assert_eq!(ledger.fence_highest().unwrap(), Some(Fence { term: 3, generation: 6 }));
    ledger.raise_term(2).unwrap();
    assert_eq!(ledger.term_highest().unwrap(), 3);
    ledger.raise_term(4).unwrap();
    assert_eq!(ledger.fence(VmId(Uuid::from_u128(7))).unwrap(), None);
    assert_eq!(ledger.fence_highest().unwrap(), Some(Fence { term: 4, generation: 0 }));
}

#[test]
fn a_repeated_command_makes_its_acknowledged_outcome_pending_again() {
    let (_folder, _path, ledger) = fresh();
    let first = intent(7, 3, 1);
    assert_eq!(ledger.answer_again(first.command.id).unwrap(), None);
    ledger.conclude(&outcome(&first), false).unwrap();
    ledger.acknowledge(first.command.id).unwrap();
    assert_eq!(ledger.answer_again(first.command.id).unwrap(), Some(outcome(&first)));
    assert_eq!(ledger.pending().unwrap(), [(2, outcome(&first))], "a new number, so that a session sends it again");
}

#[test]
fn acknowledging_twice_or_the_unknown_changes_nothing() {
    let (_folder, _path, ledger) = fresh();
    let first = intent(7, 3, 1);
    ledger.conclude(&outcome(&first), false).unwrap();
    assert!(ledger.acknowledge(first.command.id).unwrap());
    assert!(!ledger.acknowledge(first.command.id).unwrap());
    assert!(!ledger.acknowledge(CommandId { term: 9, number: 9 }).unwrap());
}

#[test]
fn outcomes_are_bounded_oldest_first_and_the_unacknowledged_ones_lost_are_counted() {
    let (_folder, _path, ledger) = fresh();
    // Fills the table in one transaction; one synced transaction each would take minutes on a slow disk.
    let record = serde_json::to_vec(&Outcome {
        result: OutcomeResult::Refused(RefusedCommand::UnknownVm),
        ..outcome(&intent(7, 1, 1))
    })
    .unwrap();
    ledger
        .write(|txn| (1..=OUTCOMES_MAX).try_for_each(|number| append(txn, CommandId { term: 1, number }, &record)))
        .unwrap();
    let lost = ledger.conclude(&outcome(&intent(7, 2, 1)), false).unwrap();
    assert_eq!(lost, 1);
    let pending = ledger.pending().unwrap();
    assert_eq!(pending.len() as u64, OUTCOMES_MAX);
    assert_eq!(pending[0].0, 2, "the oldest went");
    assert_eq!(pending.last().unwrap().1.id, CommandId { term: 2, number: 1 });
    assert_eq!(ledger.answer_again(CommandId { term: 1, number: 1 }).unwrap(), None);
}

#[test]
fn a_ledger_of_a_newer_layout_is_refused() {
    let (_folder, path, ledger) = fresh();
    ledger.write(|txn| Ok(txn.open_table(META)?.insert("schema", SCHEMA + 1).map(drop)?)).unwrap();
    drop(ledger);
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, LedgerError::Schema { found, .. } if found == SCHEMA + 1), "{error}");
}
