//! The ledger: what the agent must not forget, in one redb file, every transaction synced before it returns.
//!
//! | table      | key             | value                    | bounded by                                                       |
//! |------------|-----------------|--------------------------|------------------------------------------------------------------|
//! | `meta`     | name            | number                   | three names: schema, agent epoch, highest lease term             |
//! | `fences`   | VM              | last fence obeyed        | cleared when the term rises: lower terms are stale by themselves |
//! | `undo`     | VM              | [`UndoRecord`]           | VMs changed, or stood down for, and not released                 |
//! | `intents`  | command id      | [`Intent`]               | commands under way: one, those left by a crash, those beside it  |
//! | `outcomes` | running number  | outcome                  | [`OUTCOMES_MAX`], oldest first                                   |
//! | `seen`     | command id      | number in `outcomes`     | same                                                             |
//! | `pending`  | running number  | -                        | same: outcomes the brain has not acknowledged                    |
//!
//! Forgetting an old outcome is safe: should its command come again, its fence is no longer the newest and it is refused as stale.
//! The file is locked while it is open, so that the daemon and `gnomon-agent release` never work against each other.

mod record;

pub use record::{Change, Intent, StoodDown, UndoRecord, VmLife, origin};

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, CommandId, Fence, Outcome, OutcomeResult, VmId};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FENCES: TableDefinition<u128, (u64, u64)> = TableDefinition::new("fences");
const UNDO: TableDefinition<u128, &[u8]> = TableDefinition::new("undo");
const INTENTS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("intents");
const OUTCOMES: TableDefinition<u64, &[u8]> = TableDefinition::new("outcomes");
const SEEN: TableDefinition<(u64, u64), u64> = TableDefinition::new("seen");
const PENDING: TableDefinition<u64, ()> = TableDefinition::new("pending");

/// The layout above. A ledger of a newer layout is refused rather than misread.
const SCHEMA: u64 = 1;

/// Outcomes remembered: a busy host gets a few commands a minute, so this is hours of repeats answered word for word.
pub const OUTCOMES_MAX: u64 = 4_096;

/// redb's page cache; the ledger is a few hundred kilobytes.
const CACHE_BYTES: usize = 1 << 20;

/// Why the ledger does not answer.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another process has it open.
    #[error(
        "the ledger {path} is in use: gnomon-agent is running; ask it through the brain (`gnomon release`) or stop it first"
    )]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// It cannot be opened or created.
    #[error("cannot open the ledger {path}: {source}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It was written by a newer release.
    #[error("the ledger {path} has layout {found}, this release knows {SCHEMA}: install the newer release again")]
    Schema {
        /// Which file.
        path: PathBuf,
        /// The layout found.
        found: u64,
    },
    /// Reading or writing failed: disk full, or worse.
    #[error("the ledger's storage failed: {0}")]
    Storage(Box<redb::Error>),
    /// A record does not decode.
    #[error("a record of the ledger is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

// redb has one error type per step of a transaction; callers do the same about all of them.
macro_rules! storage_errors {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for LedgerError {
            fn from(error: redb::$error) -> Self {
                Self::Storage(Box::new(error.into()))
            }
        }
    )*};
}
storage_errors!(TransactionError, TableError, StorageError, CommitError);

/// The open ledger. One owner; every method that writes has synced when it returns.
#[derive(Debug)]
pub struct Ledger {
    db: Database,
}

impl Ledger {
    /// Opens the ledger, or makes an empty one (and its folder, for root only).
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| LedgerError::Open { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(folder).map_err(|e| failed(e.into()))?;
        }
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => LedgerError::Locked { path: path.to_owned() },
            other => failed(other.into()),
        })?;
        let ledger = Self { db };
        let found = ledger.write(|txn| {
            // Opening a table creates it, so that readers need not care.
            txn.open_table(FENCES)?;
            txn.open_table(UNDO)?;
            txn.open_table(INTENTS)?;
            txn.open_table(OUTCOMES)?;
            txn.open_table(SEEN)?;
            txn.open_table(PENDING)?;
            let mut meta = txn.open_table(META)?;
            let found = meta.get("schema")?.map(|value| value.value());
            if found.is_none() {
                meta.insert("schema", SCHEMA)?;
            }
            Ok(found.unwrap_or(SCHEMA))
        })?;
        if found == SCHEMA { Ok(ledger) } else { Err(LedgerError::Schema { path: path.to_owned(), found }) }
    }

    /// Begins a new life of the agent: raises its epoch above every earlier one and returns it.
    ///
    /// The epoch is the present second since 1970, or the stored one plus one where that is more (two starts in a second, a clock set
    /// back). A count alone would begin again where the ledger is lost, with epochs whose reports the brain already has: it would
    /// acknowledge what was never made. Only a lost ledger together with a clock set back can still repeat an epoch.
    pub fn raise_epoch(&self, now: Timestamp) -> Result<AgentEpoch, LedgerError> {
        self.write(|txn| {
            let mut meta = txn.open_table(META)?;
            let after_stored = meta.get("epoch")?.map_or(0, |value| value.value()) + 1;
            let epoch = after_stored.max(now.unix_ms() / 1_000);
            meta.insert("epoch", epoch)?;
            Ok(AgentEpoch(epoch))
        })
    }

    /// The highest lease term seen on this host, 0 if none.
    pub fn term_highest(&self) -> Result<u64, LedgerError> {
        let meta = self.db.begin_read()?.open_table(META)?;
        Ok(meta.get("term")?.map_or(0, |value| value.value()))
    }

    /// Remembers that a brain of this term spoke.
    pub fn raise_term(&self, term: u64) -> Result<(), LedgerError> {
        if term <= self.term_highest()? {
            return Ok(());
        }
        self.write(|txn| raise_term(txn, term))
    }

    /// The last fence obeyed for a VM in the present term.
    pub fn fence(&self, vm: VmId) -> Result<Option<Fence>, LedgerError> {
        let fences = self.db.begin_read()?.open_table(FENCES)?;
        Ok(fences.get(vm.0.as_u128())?.map(|value| fence(value.value())))
    }

    /// The highest fence of all VMs and of the host.
    pub fn fence_highest(&self) -> Result<Option<Fence>, LedgerError> {
        let fences = self.db.begin_read()?.open_table(FENCES)?;
        let of_host = Some(self.term_highest()?).filter(|term| *term > 0).map(|term| Fence { term, generation: 0 });
        let mut highest = of_host;
        for row in fences.iter()? {
            highest = highest.max(Some(fence(row?.1.value())));
        }
        Ok(highest)
    }

    /// Writes an intent ahead of its actuation, and with it its fence and, before a VM's first change by a means, how to undo it. The
    /// baselines of an undo record of the same life that exists are kept: they are the older ones. What the agent does of its own accord
    /// obeys nobody and raises no fence.
    pub fn begin(&self, intent: &Intent, undo: Option<&UndoRecord>) -> Result<(), LedgerError> {
        let command = &intent.command;
        let bytes = serde_json::to_vec(intent)?;
        self.write(|txn| {
            if !command.id.is_local() {
                raise_fence(txn, command.vm, command.fence)?;
            }
            txn.open_table(INTENTS)?.insert(key(command.id), bytes.as_slice())?;
            change_undo(txn, command.vm, |stored| {
                let mut record = match (stored, undo) {
                    (Some(mut stored), Some(undo)) if !VmLife::ended(stored.life, undo.life) => {
                        stored.extend(undo);
                        Some(stored)
                    }
                    (_, Some(undo)) => Some(undo.clone()),
                    (stored, None) => stored,
                };
                record.iter_mut().for_each(|record| record.note_attempt(intent));
                record
            })
        })
    }

    /// Remembers that a command of this fence was obeyed without anything being changed (a dry run).
    pub fn raise_fence(&self, vm: VmId, fence: Fence) -> Result<(), LedgerError> {
        self.write(|txn| raise_fence(txn, vm, fence))
    }

    /// Writes an outcome, pending until acknowledged, and removes its intent; forgets the VM's undo record if told so, else remembers in it
    /// what was applied. Returns how many unacknowledged outcomes had to be forgotten to stay within [`OUTCOMES_MAX`].
    pub fn conclude(&self, outcome: &Outcome, forget_undo: bool) -> Result<u64, LedgerError> {
        let applied = match &outcome.result {
            OutcomeResult::Applied { after, .. } => after.as_slice(),
            _ => &[],
        };
        self.conclude_with(outcome, |stored| {
            let mut record = stored.filter(|_| !forget_undo);
            record.iter_mut().for_each(|record| applied.iter().for_each(|after| record.note_applied(*after)));
            record
        })
    }

    /// Like [`Self::conclude`], with the VM's undo record replaced by this one.
    pub fn conclude_as(&self, outcome: &Outcome, undo: &UndoRecord) -> Result<u64, LedgerError> {
        self.conclude_with(outcome, |_| Some(undo.clone()))
    }

    /// Tells of an intent that stays under way: what is told is pending, and another outcome of the same command will take its place.
    pub fn tell(&self, outcome: &Outcome, intent: &Intent) -> Result<u64, LedgerError> {
        let (record, bytes) = (serde_json::to_vec(outcome)?, serde_json::to_vec(intent)?);
        self.write(|txn| {
            txn.open_table(INTENTS)?.insert(key(outcome.id), bytes.as_slice())?;
            append(txn, outcome.id, &record)?;
            trim(txn)
        })
    }

    /// Replaces an intent that stays under way.
    pub fn amend_intent(&self, intent: &Intent) -> Result<(), LedgerError> {
        let bytes = serde_json::to_vec(intent)?;
        self.write(|txn| {
            txn.open_table(INTENTS)?.insert(key(intent.command.id), bytes.as_slice())?;
            Ok(())
        })
    }

    fn conclude_with(
        &self,
        outcome: &Outcome,
        undo: impl FnOnce(Option<UndoRecord>) -> Option<UndoRecord>,
    ) -> Result<u64, LedgerError> {
        let record = serde_json::to_vec(outcome)?;
        self.write(|txn| {
            txn.open_table(INTENTS)?.remove(key(outcome.id))?;
            change_undo(txn, outcome.vm, undo)?;
            let told = txn.open_table(SEEN)?.get(key(outcome.id))?.map(|value| value.value());
            if let Some(told) = told {
                txn.open_table(OUTCOMES)?.remove(told)?;
                txn.open_table(PENDING)?.remove(told)?;
            }
            append(txn, outcome.id, &record)?;
            trim(txn)
        })
    }

    /// Replaces a VM's undo record.
    pub fn amend_undo(&self, undo: &UndoRecord) -> Result<(), LedgerError> {
        self.write(|txn| change_undo(txn, undo.vm, |_| Some(undo.clone())))
    }

    /// The recorded outcome of a command that came before, made pending again; `None` for a new command.
    pub fn answer_again(&self, id: CommandId) -> Result<Option<Outcome>, LedgerError> {
        let known = self.db.begin_read()?.open_table(SEEN)?.get(key(id))?.map(|value| value.value());
        let Some(number) = known else { return Ok(None) };
        self.write(|txn| {
            let record = txn.open_table(OUTCOMES)?.remove(number)?.map(|value| value.value().to_vec());
            let Some(record) = record else { return Ok(None) };
            txn.open_table(PENDING)?.remove(number)?;
            append(txn, id, &record)?;
            Ok(Some(serde_json::from_slice(&record)?))
        })
    }

    /// The brain has this outcome. Returns whether it was pending.
    pub fn acknowledge(&self, id: CommandId) -> Result<bool, LedgerError> {
        let known = self.db.begin_read()?.open_table(SEEN)?.get(key(id))?.map(|value| value.value());
        match known {
            Some(number) => self.write(|txn| Ok(txn.open_table(PENDING)?.remove(number)?.is_some())),
            None => Ok(false),
        }
    }

    /// Outcomes the brain has not acknowledged, with their running numbers, oldest first.
    pub fn pending(&self) -> Result<Vec<(u64, Outcome)>, LedgerError> {
        let txn = self.db.begin_read()?;
        let outcomes = txn.open_table(OUTCOMES)?;
        let mut all = Vec::new();
        for row in txn.open_table(PENDING)?.iter()? {
            let number = row?.0.value();
            if let Some(record) = outcomes.get(number)? {
                all.push((number, serde_json::from_slice(record.value())?));
            }
        }
        Ok(all)
    }

    /// Intents whose outcome is not written: left by a crash, or by an outcome that could not be written.
    pub fn intents(&self) -> Result<Vec<Intent>, LedgerError> {
        self.all(INTENTS)
    }

    /// How to undo everything, one record for each VM changed and not released.
    pub fn undo_records(&self) -> Result<Vec<UndoRecord>, LedgerError> {
        self.all(UNDO)
    }

    /// How to undo what was done to one VM.
    pub fn undo(&self, vm: VmId) -> Result<Option<UndoRecord>, LedgerError> {
        let undo = self.db.begin_read()?.open_table(UNDO)?;
        let record = undo.get(vm.0.as_u128())?;
        Ok(record.map(|record| serde_json::from_slice(record.value())).transpose()?)
    }

    /// Forgets how to undo: the baseline was restored, or there is no longer a VM to restore it on.
    pub fn forget_undo(&self, vm: VmId) -> Result<(), LedgerError> {
        self.write(|txn| Ok(txn.open_table(UNDO)?.remove(vm.0.as_u128()).map(drop)?))
    }

    fn all<K: redb::Key, T: DeserializeOwned>(&self, table: TableDefinition<K, &[u8]>) -> Result<Vec<T>, LedgerError> {
        let table = self.db.begin_read()?.open_table(table)?;
        table.iter()?.map(|row| Ok(serde_json::from_slice(row?.1.value())?)).collect()
    }

    fn write<T>(&self, change: impl FnOnce(&WriteTransaction) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let txn = self.db.begin_write()?;
        let value = change(&txn)?; // a transaction dropped here is rolled back
        txn.commit()?; // synced: redb's default durability
        Ok(value)
    }
}

fn key(id: CommandId) -> (u64, u64) {
    (id.term, id.number)
}

fn fence((term, generation): (u64, u64)) -> Fence {
    Fence { term, generation }
}

/// Raises the host's term; fences of lower terms say nothing more than it does.
fn raise_term(txn: &WriteTransaction, term: u64) -> Result<(), LedgerError> {
    let mut meta = txn.open_table(META)?;
    if term > meta.get("term")?.map_or(0, |value| value.value()) {
        meta.insert("term", term)?;
        txn.open_table(FENCES)?.retain(|_, fence| fence.0 >= term)?;
    }
    Ok(())
}

fn raise_fence(txn: &WriteTransaction, vm: VmId, fence: Fence) -> Result<(), LedgerError> {
    raise_term(txn, fence.term)?;
    txn.open_table(FENCES)?.insert(vm.0.as_u128(), (fence.term, fence.generation))?;
    Ok(())
}

/// Changes, makes or forgets a VM's undo record.
fn change_undo(
    txn: &WriteTransaction,
    vm: VmId,
    change: impl FnOnce(Option<UndoRecord>) -> Option<UndoRecord>,
) -> Result<(), LedgerError> {
    let mut table = txn.open_table(UNDO)?;
    let stored = table.get(vm.0.as_u128())?.map(|record| serde_json::from_slice(record.value())).transpose()?;
    let existed = stored.is_some();
    match change(stored) {
        Some(record) => drop(table.insert(vm.0.as_u128(), serde_json::to_vec(&record)?.as_slice())?),
        None if existed => drop(table.remove(vm.0.as_u128())?),
        None => {}
    }
    Ok(())
}

/// Adds an outcome as the newest one, pending.
fn append(txn: &WriteTransaction, id: CommandId, record: &[u8]) -> Result<(), LedgerError> {
    let mut outcomes = txn.open_table(OUTCOMES)?;
    // Never a number that was used before, even if all outcomes are gone: a session remembers the last one it has sent.
    let mut meta = txn.open_table(META)?;
    let number = meta.get("outcomes")?.map_or(0, |value| value.value()) + 1;
    meta.insert("outcomes", number)?;
    outcomes.insert(number, record)?;
    txn.open_table(SEEN)?.insert(key(id), number)?;
    txn.open_table(PENDING)?.insert(number, ())?;
    Ok(())
}

fn trim(txn: &WriteTransaction) -> Result<u64, LedgerError> {
    let mut outcomes = txn.open_table(OUTCOMES)?;
    let mut forgotten = 0;
    while outcomes.len()? > OUTCOMES_MAX {
        let Some((number, record)) = outcomes.pop_first()? else { break };
        let outcome: Outcome = serde_json::from_slice(record.value())?;
        txn.open_table(SEEN)?.remove(key(outcome.id))?;
        forgotten += u64::from(txn.open_table(PENDING)?.remove(number.value())?.is_some());
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests;
