//! What the agent does of its own accord: stands in for a brain that is away, and sees to it that what Gnomon set holds.
//!
//! Decided by [`reflex`](super::super::reflex), [`drift`](super::super::drift) (both in [`stand_in`]) and [`reconcile`]; carried out like commands, under ids of the agent's own, and told to
//! the brain as outcomes. Only VMs with an undo record are tended to: what Gnomon never changed is none of its business.

mod stand_in;

use super::{Executor, Now};
use crate::actuate::{ActuateError, same};
use crate::command::clock::BootInstant;
use crate::command::drift::Quiet;
use crate::command::judge::Sighting;
use crate::command::ledger::{Change, Intent, LedgerError, StoodDown, UndoRecord, VmLife};
use crate::command::reconcile::{self, Answer, Reapplied, Standing, Why};
use crate::command::reflex::Wall;
use crate::config::{Away, Reconcile};
use crate::sample::{ChangedVm, ChangedVms, LiveLoad, LiveLoads};
use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, AgentEpoch, Command, CommandId, LocalCause, Means, Mode, Origin, Outcome, OutcomeResult, Setting, VmId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often what Gnomon set is compared with what is in force. A third of the ten seconds within which a difference is to be seen.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// Settings in a look that only libvirt can tell (the CPU quota is known from the last sample): a few milliseconds of its time.
const ASKED_PER_LOOK_MAX: usize = 8;

/// Shortest time between two local acts on a VM: the second one rests on samples that the first one has shown in.
const ACT_INTERVAL: Duration = Duration::from_secs(3);

/// Longest time between two attempts at what fails again and again.
const ACT_INTERVAL_MAX: Duration = Duration::from_secs(300);

/// A local act is decided on the last seconds: one that a crash left under way is not carried out much later.
const LOCAL_TIME_TO_LIVE_MS: u64 = 10_000;

/// What duties there are, and what they rest on.
#[derive(Clone, Debug)]
pub struct Duties {
    /// While there is no brain.
    pub away: Away,
    /// When someone else changes a limit.
    pub reconcile: Reconcile,
    /// CPU that VMs may share out, in cores.
    pub capacity_cores: f64,
    /// This life of the agent: what its acts are numbered within.
    pub epoch: AgentEpoch,
    /// The VMs' last seconds.
    pub live: LiveLoads,
    /// Where the sampler finds what is to be reported of VMs that were changed.
    pub changed: ChangedVms,
}

/// Duties under way.
#[derive(Debug)]
pub(super) struct Tending {
    duties: Duties,
    acts: u32,
    vms: BTreeMap<VmId, Tended>,
    tended: Option<BootInstant>,
    looked: Option<BootInstant>,
    /// Who was asked last for what only libvirt can tell.
    asked: Option<(VmId, Means)>,
    away: bool,
    hindered: bool,
}

/// What is remembered of a VM between two looks. An agent that starts anew gathers it anew.
#[derive(Debug, Default)]
struct Tended {
    quiet: Quiet,
    acted: Option<BootInstant>,
    failures: u32,
    reapplied: Reapplied,
    wall: Option<Wall>,
}

impl Tended {
    /// Whether the last act is long enough ago: its effect is seen, or what failed may work now.
    fn may_act(&self, now: BootInstant, interval: Duration) -> bool {
        let pause = ACT_INTERVAL.saturating_mul(1 << self.failures.min(16)).min(ACT_INTERVAL_MAX);
        let since = self.acted.and_then(|acted| now.since(acted));
        since.is_none_or(|since| since >= interval.max(if self.failures > 0 { pause } else { ACT_INTERVAL }))
    }
}

/// Why a VM was not tended to.
#[derive(Debug, thiserror::Error)]
enum Snag {
    /// Nothing more is done.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// libvirt or the kernel; the next look tries again.
    #[error(transparent)]
    Host(#[from] ActuateError),
}

impl Tending {
    pub(super) fn new(duties: Duties) -> Self {
        Self {
            duties,
            acts: 0,
            vms: BTreeMap::new(),
            tended: None,
            looked: None,
            asked: None,
            away: false,
            hindered: false,
        }
    }

    #[cfg(test)]
    pub(super) fn duties(&mut self) -> &mut Duties {
        &mut self.duties
    }

    fn vm(&mut self, vm: VmId) -> &mut Tended {
        self.vms.entry(vm).or_default()
    }

    fn next_id(&mut self) -> CommandId {
        self.acts = self.acts.saturating_add(1);
        CommandId::local(self.duties.epoch, self.acts)
    }

    /// Says when the brain goes and comes.
    fn note_away(&mut self, away_for: Option<Duration>) {
        let Away { reflex, drift, .. } = self.duties.away;
        match (std::mem::replace(&mut self.away, away_for.is_some()), away_for) {
            (false, Some(away_for)) => {
                let away_s = away_for.as_secs();
                tracing::warn!(away_s, reflex, drift, "the brain is away: what is set is held");
            }
            (true, None) => tracing::info!("the brain is back: its commands rule again"),
            _ => {}
        }
    }

    /// Whose settings libvirt is asked for in this look: all that Gnomon holds in turn.
    fn next_to_ask(&mut self, records: &[&UndoRecord]) -> BTreeSet<(VmId, Means)> {
        let only_libvirt = |means: &Means| !matches!(means, Means::CpuQuota | Means::Memory);
        let held = |record: &&UndoRecord| {
            let vm = record.vm;
            record
                .applied
                .iter()
                .map(Setting::means)
                .filter(only_libvirt)
                .map(move |means| (vm, means))
                .collect::<Vec<_>>()
        };
        let mut all: Vec<_> = records.iter().flat_map(held).collect();
        all.sort_unstable();
        let next = all.partition_point(|one| Some(*one) <= self.asked);
        all.rotate_left(next);
        all.truncate(ASKED_PER_LOOK_MAX);
        self.asked = all.last().copied();
        all.into_iter().collect()
    }
}

/// One round over all VMs.
struct Round {
    now: BootInstant,
    elapsed: Duration,
    away_for: Option<Duration>,
    /// Whether this round compares what is set with what is in force.
    looks: bool,
    look_at: BTreeSet<(VmId, Means)>,
    live: BTreeMap<VmId, LiveLoad>,
    /// All limits of the host together, in cores.
    limits_cores: f64,
}

impl Executor {
    /// Does what is to be done now. Returns whether there is news in the ledger.
    pub(super) fn tend(&mut self) -> Result<bool, LedgerError> {
        let Some(mut tending) = self.tending.take() else { return Ok(false) };
        let done = self.tend_to_all(&mut tending);
        self.tending = Some(tending);
        done
    }

    fn tend_to_all(&mut self, tending: &mut Tending) -> Result<bool, LedgerError> {
        let now = (self.clock)().boot;
        let away_for = self.presence.away_for(now).filter(|away| *away >= tending.duties.away.after());
        tending.note_away(away_for);
        self.metrics.brain_away.set(away_for.is_some().into());

        let records = self.ledger.undo_records()?;
        tending.duties.changed.publish(records.iter().map(|record| (record.vm, self.told(record))).collect());
        let (stood_down, held): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.stood_down.is_some());
        self.metrics.stood_down_vms.set(i64::try_from(stood_down.len()).unwrap_or(i64::MAX));
        tending.vms.retain(|vm, _| held.iter().any(|record| record.vm == *vm));

        // What a crash or a hanging libvirt left under way is resolved first. To copy disks takes hours, and changes nothing that is tended to.
        let mut intents = self.ledger.intents()?;
        intents.retain(|intent| !matches!(intent.command.action, Action::Image(_)));
        let under_way: BTreeSet<VmId> = intents.iter().map(|intent| intent.command.vm).collect();
        let looks = tending.looked.and_then(|looked| now.since(looked)).is_none_or(|since| since >= LOOK_INTERVAL);
        if looks {
            tending.looked = Some(now);
        }
        let live = tending.duties.live.all();
        let mut round = Round {
            now,
            elapsed: tending.tended.replace(now).and_then(|then| now.since(then)).unwrap_or_default(),
            away_for,
            looks,
            look_at: if looks { tending.next_to_ask(&held) } else { BTreeSet::new() },
            limits_cores: live.values().map(LiveLoad::limit_cores).sum(),
            live,
        };
        let mut acted = false;
        for record in held.into_iter().filter(|record| !under_way.contains(&record.vm)) {
            // Its owner lets nothing be carried out since: what it has it keeps until it is released.
            if self.vms.terms(record.vm).is_none_or(|terms| terms.mode_max() < Mode::Approve) {
                continue;
            }
            match self.tend_to(tending, record, &mut round) {
                Ok(did) => {
                    acted |= did;
                    tending.hindered = false;
                }
                Err(Snag::Ledger(error)) => return Err(error),
                Err(Snag::Host(error)) => {
                    if !std::mem::replace(&mut tending.hindered, true) {
                        tracing::warn!(vm = %record.vm, name = record.name, %error, "cannot see to a VM now; trying again");
                    }
                    // A libvirt that does not answer for one VM does not for the next, and commands wait.
                    if matches!(error, ActuateError::Deadline(_) | ActuateError::Stuck | ActuateError::Unavailable(_)) {
                        break;
                    }
                }
            }
        }
        Ok(acted)
    }

    /// What reports say of a VM that was changed. What it had before its domain was restarted is none of its life now.
    fn told(&self, record: &UndoRecord) -> ChangedVm {
        let ended = VmLife::ended(record.life, self.vms.find(record.vm).life);
        let baselines = if ended { Vec::new() } else { record.baselines.clone() };
        ChangedVm { baselines, stood_down: record.stood_down.is_some() }
    }

    fn tend_to(&mut self, tending: &mut Tending, record: &UndoRecord, round: &mut Round) -> Result<bool, Snag> {
        let live = round.live.get(&record.vm).copied();
        let applied = record.applied(Means::CpuQuota);
        let held = live.zip(applied).filter(|(live, applied)| same(quota(live.quota_cores), *applied));
        if round.looks {
            let mut to_look: Vec<Means> = record.applied.iter().map(Setting::means).collect();
            to_look.retain(|means| match means {
                // The sampler has looked already.
                Means::CpuQuota => live.is_some() && held.is_none(),
                means => round.look_at.contains(&(record.vm, *means)),
            });
            for means in to_look {
                if self.is_in_its_life(record) && self.look(tending, record, means, round.now)? {
                    return Ok(true);
                }
            }
        }
        match (round.away_for, held) {
            (Some(away_for), Some((live, _))) => self.stand_in(tending, record, &live, away_for, round),
            _ => {
                tending.vm(record.vm).quiet = Quiet::default();
                Ok(false)
            }
        }
    }

    /// Whether the VM runs and its process is the one that the record is of: of no other does it say anything.
    fn is_in_its_life(&self, record: &UndoRecord) -> bool {
        let known = self.vms.find(record.vm);
        matches!(known.sighting, Sighting::Active { .. }) && known.life.is_some() && known.life == record.life
    }

    /// Compares one means with what Gnomon set, and answers a difference.
    fn look(
        &mut self,
        tending: &mut Tending,
        record: &UndoRecord,
        means: Means,
        now: BootInstant,
    ) -> Result<bool, Snag> {
        let found = self.actuator.in_force(record.vm, means)?;
        let Some(target) = record.applied(means) else { return Ok(false) };
        match reconcile::standing(record, found) {
            Standing::Ours => return Ok(false),
            Standing::OursLate => {
                let mut record = record.clone();
                record.note_applied(found);
                self.ledger.amend_undo(&record)?;
                return Ok(false);
            }
            Standing::Undone | Standing::Changed => {}
        }
        if !tending.vm(record.vm).may_act(now, Duration::ZERO) {
            return Ok(false);
        }
        let reason = match self.answer_foreign(tending, record, found)? {
            Some(reason) => reason,
            None => return Ok(true),
        };
        let applied = self.act(tending, record, Change { before: found, target }, LocalCause::Reapply, reason)?;
        if applied {
            self.note_reapplied(tending, record.vm, now);
        }
        Ok(true)
    }

    /// Decides about a limit that someone else undid or changed. `Some`: Gnomon's may be applied again, for this reason. `None`: Gnomon has
    /// stood down.
    fn answer_foreign(
        &mut self,
        tending: &mut Tending,
        record: &UndoRecord,
        found: Setting,
    ) -> Result<Option<String>, LedgerError> {
        let Now { wall, boot } = (self.clock)();
        let policy = tending.duties.reconcile;
        let set = record.applied(found.means()).map_or_else(|| "nothing".to_owned(), |set| set.to_string());
        let did = match reconcile::standing(record, found) {
            Standing::Changed => "changed",
            _ => "undid",
        };
        let what = format!("someone {did} what Gnomon had set: {found} instead of {set}");
        match reconcile::answer(&policy, &mut tending.vm(record.vm).reapplied, boot) {
            Answer::Reapply => {
                if reconcile::standing(record, found) == Standing::Changed {
                    let mut record = record.clone();
                    record.rebase(found);
                    self.ledger.amend_undo(&record)?;
                }
                Ok(Some(what))
            }
            Answer::StandDown(why) => {
                let reason = format!("{what}; {why}");
                self.stand_down(tending, record, found, why, &reason, wall)?;
                Ok(None)
            }
        }
    }

    fn stand_down(
        &mut self,
        tending: &mut Tending,
        record: &UndoRecord,
        found: Setting,
        why: Why,
        reason: &str,
        at: Timestamp,
    ) -> Result<(), LedgerError> {
        let ours = record.applied(found.means());
        let mut record = record.clone();
        record.disown(found.means());
        record.stood_down = Some(StoodDown { at, found, reason: reason.to_owned() });
        let origin = Origin::Local { cause: LocalCause::StandDown, reason: reason.to_owned() };
        let before = ours.into_iter().collect();
        let result = OutcomeResult::Applied { before, after: vec![found], took_us: 0 };
        let outcome = Outcome { id: tending.next_id(), vm: record.vm, at, origin, result };
        let forgotten = self.ledger.conclude_as(&outcome, &record)?;
        self.metrics.outcomes_forgotten.inc_by(forgotten);
        self.metrics.count_concluded(Some(LocalCause::StandDown), crate::command::metrics::APPLIED);
        self.metrics.count_foreign_change(LocalCause::StandDown);
        tracing::warn!(
            vm = %record.vm, name = record.name, %found, %why, reason,
            "Gnomon keeps its hands off this VM until it is released"
        );
        Ok(())
    }

    /// A command is about to set this means: if someone else has changed it meanwhile that is answered first. Returns whether Gnomon has
    /// stood down over it.
    pub(super) fn stands_down_over(&mut self, record: &UndoRecord, found: Setting) -> Result<bool, LedgerError> {
        if !matches!(reconcile::standing(record, found), Standing::Undone | Standing::Changed) {
            return Ok(false);
        }
        let Some(mut tending) = self.tending.take() else { return Ok(false) };
        let answered = self.answer_foreign(&mut tending, record, found);
        if matches!(answered, Ok(Some(_))) {
            self.note_reapplied(&mut tending, record.vm, (self.clock)().boot);
        }
        self.tending = Some(tending);
        Ok(answered?.is_none())
    }

    fn note_reapplied(&mut self, tending: &mut Tending, vm: VmId, now: BootInstant) {
        tending.vm(vm).reapplied.note(now);
        self.metrics.count_foreign_change(LocalCause::Reapply);
    }

    /// Changes one means of a VM as if a command had said so. Returns whether it was applied.
    fn act(
        &mut self,
        tending: &mut Tending,
        record: &UndoRecord,
        change: Change,
        cause: LocalCause,
        reason: String,
    ) -> Result<bool, LedgerError> {
        let now = (self.clock)();
        let command = Command {
            id: tending.next_id(),
            vm: record.vm,
            action: Action::Set(change.target),
            // It obeys nobody: the brain's next command is as new as it would have been.
            fence: self.ledger.fence(record.vm)?.unwrap_or_default(),
            time_to_live_ms: LOCAL_TIME_TO_LIVE_MS,
            reason,
        };
        let intent = Intent {
            changes: vec![change],
            life: record.life,
            cause: Some(cause),
            ..Intent::new(command, now.boot, now.wall)
        };
        self.ledger.begin(&intent, None)?;
        let applied = self.apply(&intent)?;
        let tended = tending.vm(record.vm);
        tended.acted = Some(now.boot);
        tended.failures = if applied { 0 } else { tended.failures.saturating_add(1) };
        Ok(applied)
    }
}

fn quota(cores: Option<f64>) -> Setting {
    Setting::CpuQuota { cores }
}
