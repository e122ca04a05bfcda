//! Migrations: begun like any command, by an intent; ended whenever it is known where the VM is.

use super::{Executor, Known, Now, took_us};
use crate::actuate::migrate::{News, Order};
use crate::command::judge::Migrations;
use crate::command::ledger::{self, Intent, LedgerError, UndoRecord};
use gnomon_common::wire::{Action, Command, Immovable, Migration, Moved, Outcome, OutcomeResult, VmId};
use std::time::Duration;

impl Executor {
    /// What the judge needs to know.
    pub(super) fn migrations(&self, vm: VmId) -> Result<Migrations, LedgerError> {
        let under_way: Vec<Intent> = self.ledger.intents()?.into_iter().filter(Intent::is_migration).collect();
        Ok(Migrations {
            most: self.policy.migrations_most,
            // What is parked takes nothing of the link, and may do so for long.
            under_way: u32::try_from(under_way.iter().filter(|intent| !intent.parked).count()).unwrap_or(u32::MAX),
            of_vm: under_way.iter().any(|intent| intent.command.vm == vm),
        })
    }

    pub(super) fn migrate(
        &mut self,
        command: &Command,
        migration: &Migration,
        received: Now,
        known: Known,
    ) -> Result<(), LedgerError> {
        if migration.to == self.policy.host {
            return self.conclude(command, None, OutcomeResult::Immovable(Immovable::SameHost), false);
        }
        if !crate::config::is_remote(&migration.uri) {
            let why = format!("{:?} is no address of a libvirt daemon", migration.uri);
            return self.conclude(command, None, OutcomeResult::Immovable(Immovable::Unreachable(why)), false);
        }
        if self.policy.dry_run {
            tracing::info!(id = %command.id, vm = %command.vm, to = %migration.to, reason = command.reason, "dry run: would migrate the VM");
            self.ledger.raise_fence(command.vm, command.fence)?;
            return self.conclude(command, None, OutcomeResult::DryRun, false);
        }
        let intent = Intent { life: known.life, ..Intent::new(command.clone(), received.boot, received.wall) };
        self.ledger.begin(&intent, None)?;
        tracing::info!(id = %command.id, vm = %command.vm, name = known.name, to = %migration.to, reason = command.reason, "VM is migrated");
        // A domain has one job at a time: libvirt begins with this one when that has ended.
        self.beside.shadower.give_up_copies(command.vm);
        let order = self.order(&intent, migration, true)?;
        match self.beside.mover.begin(order) {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = format!("no thread to migrate it: {error}");
                self.conclude(command, None, OutcomeResult::Failed { error, retryable: true }, false)
            }
        }
    }

    /// Answers at once: what became of the migration is the answer to the command that began it.
    pub(super) fn abort_migration(&mut self, command: &Command, received: Now) -> Result<(), LedgerError> {
        self.ledger.raise_fence(command.vm, command.fence)?;
        if self.policy.dry_run {
            return self.conclude(command, None, OutcomeResult::DryRun, false);
        }
        // Written down first: a next life of the agent gives it up as well.
        if let Some(intent) = self.migration_of(command.vm)? {
            self.ledger.amend_intent(&Intent { given_up: true, ..intent })?;
        }
        self.beside.mover.abort(command.vm);
        let took_us = took_us(received.boot, (self.clock)().boot);
        let result = OutcomeResult::Applied { before: Vec::new(), after: Vec::new(), took_us };
        self.conclude(command, None, result, false)
    }

    /// Sees to it that a migration of an earlier life of the agent is followed. It is never concluded at once. A dry run changes nothing, and
    /// to find out where a VM is may take letting it run on: that is left to the next life.
    pub(super) fn follow_migration(&mut self, intent: &Intent) -> Result<bool, LedgerError> {
        let Action::Migrate(migration) = &intent.command.action else { return Ok(false) };
        if !self.policy.dry_run && !self.beside.mover.has(intent.command.vm) {
            tracing::info!(id = %intent.command.id, vm = %intent.command.vm, "a migration was under way when the agent stopped: finding out where the VM is");
            let order = self.order(intent, migration, false)?;
            if let Err(error) = self.beside.mover.begin(order) {
                tracing::error!(%error, "no thread to follow a migration");
            }
        }
        Ok(false)
    }

    /// The one of this VM that is under way.
    fn migration_of(&self, vm: VmId) -> Result<Option<Intent>, LedgerError> {
        let of_vm = |intent: &Intent| intent.is_migration() && intent.command.vm == vm;
        Ok(self.ledger.intents()?.into_iter().find(of_vm))
    }

    fn order(&self, intent: &Intent, migration: &Migration, is_new: bool) -> Result<Order, LedgerError> {
        // Of a command from before a reboot the time is over.
        let waited = (self.clock)().boot.since(intent.received).unwrap_or(Duration::MAX);
        let vm = intent.command.vm;
        let recorded = self.recorded(vm, intent.life)?;
        let keepsake = recorded.map(|record| serde_json::to_string(&record)).transpose()?;
        let (migration, copies) = (migration.clone(), intent.copies.clone());
        let (ran_there, given_up) = (intent.ran_there, intent.given_up);
        Ok(Order { vm, migration, keepsake, waited, copies, ran_there, given_up, is_new })
    }

    /// Concludes what has ended. Returns whether there is news in the ledger.
    pub(super) fn take_news(&mut self) -> Result<bool, LedgerError> {
        let all = self.beside.mover.news();
        let acted = !all.is_empty();
        for (vm, news) in all {
            let Some(intent) = self.migration_of(vm)? else { continue };
            match news {
                News::Copies(copies) => {
                    tracing::info!(%vm, files = ?copies.files, made = copies.made, "its disks are copied: made on the target, and removed there if it stays");
                    self.ledger.amend_intent(&Intent { copies: Some(copies), ..intent })?;
                    self.beside.mover.recorded(vm);
                }
                News::RanThere => self.ledger.amend_intent(&Intent { ran_there: true, ..intent })?,
                News::Parked(result) if !intent.parked => self.tell_parked(&intent, result)?,
                News::Parked(_) => {}
                News::Ended(result) => self.end_migration(&intent, result)?,
            }
        }
        let under_way = self.ledger.intents()?.into_iter().filter(Intent::is_migration);
        let (parked, moving): (Vec<Intent>, Vec<Intent>) = under_way.partition(|intent| intent.parked);
        self.metrics.migrations(moving.len(), parked.len());
        Ok(acted)
    }

    pub(super) fn tell_parked(&mut self, intent: &Intent, result: OutcomeResult) -> Result<(), LedgerError> {
        let (command, at) = (&intent.command, (self.clock)().wall);
        let outcome = Outcome { id: command.id, vm: command.vm, at, origin: ledger::origin(command, None), result };
        let forgotten = self.ledger.tell(&outcome, &Intent { parked: true, ..intent.clone() })?;
        self.metrics.outcomes_forgotten.inc_by(forgotten);
        Ok(())
    }

    /// Takes over what other hosts' agents did to VMs that have come here: a release gives back what was there before, wherever that was. Once
    /// for each life: what is then done here counts.
    pub(super) fn adopt(&mut self) -> Result<(), LedgerError> {
        let keepsakes = self.vms.keepsakes();
        self.adopted.retain(|vm, _| keepsakes.iter().any(|(kept, _)| kept == vm));
        for (vm, keepsake) in keepsakes {
            let life = self.vms.find(vm).life;
            if life.is_none() || self.adopted.get(&vm) == life.as_ref() || self.migrations(vm)?.of_vm {
                continue;
            }
            match serde_json::from_str::<UndoRecord>(&keepsake) {
                Ok(record) if record.vm == vm && self.recorded(vm, life)?.is_none() => {
                    tracing::info!(%vm, name = record.name, "it came from another host: what Gnomon set there can be undone here");
                    self.ledger.amend_undo(&UndoRecord { life, ..record })?;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%vm, %error, "what came with it from another host is not understood"),
            }
            self.adopted.extend(life.map(|life| (vm, life)));
            self.beside.mover.forget_keepsake(vm);
        }
        Ok(())
    }

    /// What Gnomon set goes with the VM. Where it is gone from here there is nothing left to undo here.
    fn end_migration(&mut self, intent: &Intent, result: OutcomeResult) -> Result<(), LedgerError> {
        let took_us = took_us(intent.received, (self.clock)().boot);
        let result = match result {
            OutcomeResult::Moved(moved) => {
                self.metrics.migrated(took_us, moved.downtime_us);
                if let Some(copied) = &moved.copied {
                    tracing::info!(vm = %intent.command.vm, left = ?copied.left, "its disks went along: these files stay here, as they were when it left");
                }
                OutcomeResult::Moved(Moved { took_us, ..moved })
            }
            other => other,
        };
        let is_gone = matches!(result, OutcomeResult::Moved(_));
        self.conclude(&intent.command, None, result, is_gone)
    }
}
