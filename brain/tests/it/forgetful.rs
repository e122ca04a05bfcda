//! A store with a page cache and a power switch: what is not synced is gone when it crashes.

use crate::uninvited::nobody_joins;
use gnomon_brain::store::{Candidate, Entry, Lead, Pending, Store, StoreError};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{AgentEpoch, CommandId, HostId, Outcome, Sequence, VmId, frame};
use gnomon_core::archive::{BlockKey, Change, SealedBlock};
use gnomon_core::{Audit, CommandRecord, Record, Restored};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What survives.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    pub(crate) reports: BTreeMap<(HostId, AgentEpoch, Sequence), Vec<u8>>,
    pub(crate) commands: BTreeMap<CommandId, CommandRecord>,
    outcomes: BTreeMap<(HostId, CommandId), Outcome>,
    history: BTreeMap<(VmId, BlockKey), SealedBlock>,
    records: Vec<Record>,
    term: u64,
}

/// One power-on: writes go to a cache, a sync copies the cache to the disk, and after the crash nothing does.
pub(crate) struct Forgetful {
    disk: Arc<Mutex<Disk>>,
    /// Commits until the power fails; half of them between the write and the sync.
    fuse: Mutex<Fuse>,
}

struct Fuse {
    commits_left: u32,
    before_sync: bool,
    blown: bool,
}

impl Forgetful {
    pub(crate) fn power_on(disk: Arc<Mutex<Disk>>, commits_left: u32, before_sync: bool) -> Self {
        Self { disk, fuse: Mutex::new(Fuse { commits_left, before_sync, blown: false }) }
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.fuse.lock().unwrap().blown
    }

    async fn write(&self, entries: &[Entry]) -> Result<Vec<bool>, StoreError> {
        // A disk takes its time: acknowledging before this returns is the defect that the test looks for.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let mut fuse = self.fuse.lock().unwrap();
        if fuse.blown {
            return Err(StoreError::Other("there is no power"));
        }
        let mut disk = self.disk.lock().unwrap();
        let mut cache = disk.clone();
        let fresh = entries.iter().map(|entry| cache.take(entry)).collect();
        fuse.commits_left = fuse.commits_left.saturating_sub(1);
        if fuse.commits_left == 0 {
            fuse.blown = true;
            if fuse.before_sync {
                return Err(StoreError::Other("the power failed before the sync"));
            }
            *disk = cache;
            return Err(StoreError::Other("the power failed after the sync, before the answer"));
        }
        *disk = cache;
        Ok(fresh)
    }
}

impl Disk {
    fn take(&mut self, entry: &Entry) -> bool {
        match entry {
            Entry::Report(report) => {
                let key = (report.host.clone(), report.epoch, report.sequence);
                self.reports.insert(key, report.payload.clone()).is_none()
            }
            Entry::Outcome { host, outcome } => {
                self.outcomes.insert((host.clone(), outcome.id), (**outcome).clone()).is_none()
            }
            Entry::Record(record) => {
                match &**record {
                    Record::Command(command) => drop(self.commands.insert(command.command.id, command.clone())),
                    Record::History { vm, change: Change::Persist(block) } => {
                        self.history.insert((*vm, block.key), block.clone());
                    }
                    Record::History { vm, change: Change::Forget(key) } => drop(self.history.remove(&(*vm, *key))),
                    _ => {}
                }
                self.records.push((**record).clone());
                true
            }
        }
    }

    fn restore(&self, sink: &mut (dyn FnMut(Restored) + Send)) -> Vec<(HostId, Outcome)> {
        let mut hosts = BTreeMap::new();
        let mut holds = BTreeMap::new();
        let mut lessons = BTreeMap::new();
        for record in &self.records {
            match record {
                Record::Host { host, facts, .. } => drop(hosts.insert(host.clone(), facts.clone())),
                Record::Scope { scope, hold: Some(hold) } => drop(holds.insert(scope.clone(), *hold)),
                Record::Scope { scope, hold: None } => drop(holds.remove(scope)),
                Record::Lesson { lesson, .. } => {
                    lessons.insert(lesson.subject(), lesson.clone());
                }
                _ => {}
            }
        }
        hosts.into_iter().for_each(|(host, facts)| sink(Restored::Host { host, facts }));
        for (&(vm, _), block) in &self.history {
            sink(Restored::History { vm, block: block.clone() });
        }
        lessons.into_values().for_each(|lesson| sink(Restored::Lesson(lesson)));
        for payload in self.reports.values() {
            sink(Restored::Report(Box::new(frame::decode(payload).unwrap())));
        }
        holds.into_iter().for_each(|(scope, hold)| sink(Restored::Hold { scope, hold }));
        let mut answered = Vec::new();
        for (id, record) in &self.commands {
            if record.outcome.is_none() && !record.unanswered {
                sink(Restored::Command(record.clone()));
                answered.extend(
                    self.outcomes
                        .get(&(record.host.clone(), *id))
                        .map(|outcome| (record.host.clone(), outcome.clone())),
                );
            }
        }
        answered
    }
}

nobody_joins!(Forgetful);

impl Store for Forgetful {
    fn commit<'a>(&'a self, entries: &'a [Entry]) -> Pending<'a, Vec<bool>> {
        Box::pin(self.write(entries))
    }

    fn lead<'a>(&'a self, _candidate: &'a Candidate, at_least: u64) -> Pending<'a, Lead> {
        Box::pin(async move {
            let mut disk = self.disk.lock().unwrap();
            disk.term = disk.term.max(at_least) + 1;
            Ok(Lead::Ours { term: disk.term, ends: false })
        })
    }

    fn acknowledged<'a>(&'a self, host: &'a HostId, epoch: AgentEpoch) -> Pending<'a, Sequence> {
        Box::pin(async move {
            let disk = self.disk.lock().unwrap();
            let of_epoch = disk.reports.keys().filter(|(owner, life, _)| owner == host && *life == epoch);
            Ok(of_epoch.map(|(_, _, sequence)| *sequence).max().unwrap_or_default())
        })
    }

    fn restore<'a>(
        &'a self,
        _reports_since: Timestamp,
        sink: &'a mut (dyn FnMut(Restored) + Send),
    ) -> Pending<'a, Vec<(HostId, Outcome)>> {
        Box::pin(async move { Ok(self.disk.lock().unwrap().restore(sink)) })
    }

    fn audit(&self, _limit: u32) -> Pending<'_, Vec<Audit>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn commands(&self, _limit: u32) -> Pending<'_, Vec<CommandRecord>> {
        Box::pin(async { Ok(self.disk.lock().unwrap().commands.values().cloned().collect()) })
    }

    fn blocks(&self, vm: VmId, keys: Vec<BlockKey>) -> Pending<'_, Vec<SealedBlock>> {
        Box::pin(async move {
            let disk = self.disk.lock().unwrap();
            Ok(keys.into_iter().filter_map(|key| disk.history.get(&(vm, key)).cloned()).collect())
        })
    }

    fn prune(
        &self,
        _reports_before: Timestamp,
        _affairs_before: Timestamp,
        _history_before: Timestamp,
    ) -> Pending<'_, u64> {
        Box::pin(async { Ok(0) })
    }
}
