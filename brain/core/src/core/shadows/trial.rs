//! Trying a size with a shadow: begun by an operator, played level by level, concluded and told.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{VmId, VmWindow};

use super::{ACTOR, Core};
use crate::io::Record;
use crate::plan::size::QUOTA_STEP_CORES;
use crate::shadow::trial::{Proposed, Trial};
use crate::shadow::{Shadow, ShadowRefusal, ShadowState};

impl Core {
    /// Whether an operator can have a size tried with the shadow of a VM now.
    pub fn may_try_shadow(&self, vm: VmId, proposed: &Proposed) -> Result<(), ShadowRefusal> {
        self.trial_of(self.now, vm, proposed).map(|_| ())
    }

    fn trial_of(&self, now: Timestamp, vm: VmId, proposed: &Proposed) -> Result<Trial, ShadowRefusal> {
        self.may_change_shadow(vm)?;
        let kept = self.shadows.kept.get(&self.shadows.id_of(vm)).ok_or(ShadowRefusal::None(vm))?;
        let Shadow { id, of, state, size, trial, host, .. } = &kept.shadow;
        if trial.as_ref().is_some_and(Trial::is_open) {
            return Err(ShadowRefusal::Trying(vm));
        }
        let (ShadowState::Pacing, Some(size)) = (*state, size) else {
            return Err(ShadowRefusal::NotPacing { vm, state: *state });
        };
        if !self.makes_shadows() {
            return Err(ShadowRefusal::Off);
        }
        if host.as_ref().is_some_and(|host| self.is_shadow_held(*of, *id, host)) {
            return Err(ShadowRefusal::Held(vm));
        }
        let has_pacer = self.fleet.vms.get(id).and_then(|vm| vm.shadow).is_some_and(|shadow| shadow.pacer.is_some());
        if !has_pacer {
            return Err(ShadowRefusal::NoPacer(vm));
        }
        if !(proposed.cpu_cores.is_finite() && proposed.cpu_cores >= QUOTA_STEP_CORES) {
            return Err(ShadowRefusal::NoSize(proposed.cpu_cores));
        }
        let production = self.fleet.vms.get(of);
        let wanted = production.and_then(|vm| vm.memory).and_then(|memory| memory.guest_demand_bytes());
        let ahead = Duration::from_millis(proposed.ahead_ms);
        let forecast = self.forecast_for(*of, ahead).ok_or(ShadowRefusal::Unforecast(vm))?;
        Trial::new(now, *proposed, (size.cpu_cores, kept.window), &forecast, wanted)
            .ok_or(ShadowRefusal::Unforecast(vm))
    }

    pub(in crate::core) fn try_shadow(&mut self, now: Timestamp, actor: &str, vm: VmId, proposed: Proposed) {
        let trial = match self.trial_of(now, vm, &proposed) {
            Ok(trial) => trial,
            Err(refusal) => {
                return self.audit(now, actor, "refused", format!("vm {vm}"), format!("shadow try: {refusal}"));
            }
        };
        let id = self.shadows.id_of(vm);
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.shadow.trial = Some(trial);
        // What it plays is news, also if an order is on its way.
        kept.ordered = None;
        let (shadow, is_free) = (kept.shadow.clone(), kept.flight.is_none());
        let text =
            format!("shadow {id}: {:.2} cores, the forecast of {} s", proposed.cpu_cores, proposed.ahead_ms / 1000);
        self.audit(now, actor, "shadow_try", format!("vm {}", shadow.of), text);
        self.persist(Record::Shadow(Box::new(shadow)));
        if is_free {
            self.order_pace(now, id);
        }
    }

    /// A window of a shadow that tries a size.
    pub(super) fn see_trial(&mut self, now: Timestamp, id: VmId, window: &VmWindow) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        if let Some(trial) = kept.shadow.trial.as_mut().filter(|trial| trial.is_open()) {
            trial.take(now, window);
        }
    }

    /// Concludes a trial that is over.
    pub(super) fn end_trial(&mut self, now: Timestamp, id: VmId) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let Some(trial) = kept.shadow.trial.as_mut().filter(|trial| trial.is_open() && now >= trial.ends()) else {
            return;
        };
        let verdict = trial.conclude(now);
        let holds = match verdict.holds {
            Some(true) => "it holds",
            Some(false) => "it does not hold",
            None => "it could not be told",
        };
        let text = format!("shadow {id}: {holds}: {}", verdict.why);
        let shadow = kept.shadow.clone();
        self.audit(now, ACTOR, "shadow_tried", format!("vm {}", shadow.of), text);
        self.persist(Record::Shadow(Box::new(shadow)));
    }

    /// Ends a trial before its time, if one is open.
    pub(super) fn interrupt_trial(&mut self, now: Timestamp, id: VmId, why: &str) {
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        let Some(trial) = kept.shadow.trial.as_mut().filter(|trial| trial.is_open()) else { return };
        trial.interrupt(now, why);
        let shadow = kept.shadow.clone();
        let text = format!("shadow {id}: it could not be told: {why}");
        self.audit(now, ACTOR, "shadow_tried", format!("vm {}", shadow.of), text);
        self.persist(Record::Shadow(Box::new(shadow)));
    }

    /// When a shadow that paces is to be told again what to do.
    pub(super) fn next_pace(&self, now: Timestamp, id: VmId) -> Timestamp {
        let next = now + self.pace_every();
        let trial = self.shadows.kept.get(&id).and_then(|kept| kept.shadow.trial.as_ref());
        trial.filter(|trial| trial.is_open()).map_or(next, |trial| next.min(trial.changes(now)))
    }
}
