//! What operators want of shadows.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::VmId;

use super::Core;
use crate::io::Record;
use crate::shadow::{ShadowCause, ShadowRefusal, ShadowState};

impl Core {
    /// Whether an operator can have a shadow made of a VM now.
    pub fn may_make_shadow(&self, vm: VmId) -> Result<(), ShadowRefusal> {
        let entry = self.fleet.vms.get(&vm).filter(|entry| entry.host.is_some()).ok_or(ShadowRefusal::UnknownVm(vm))?;
        if entry.shadow.is_some() {
            return Err(ShadowRefusal::OfShadow(vm));
        }
        if let Some(kept) = self.shadows.of.get(&vm).and_then(|id| self.shadows.kept.get(id)) {
            return Err(ShadowRefusal::There { vm, state: kept.shadow.state });
        }
        if !self.makes_shadows() {
            return Err(ShadowRefusal::Off);
        }
        let count = self.shadows.of.len();
        if count >= self.policy.shadow.fleet_max { Err(ShadowRefusal::FleetFull(count)) } else { Ok(()) }
    }

    /// Whether an operator can change or retire the shadow of a VM now.
    pub fn may_change_shadow(&self, vm: VmId) -> Result<(), ShadowRefusal> {
        let id = self.shadows.id_of(vm);
        match self.shadows.kept.get(&id).map(|kept| kept.shadow.state) {
            None => Err(ShadowRefusal::None(vm)),
            Some(ShadowState::Retiring) => Err(ShadowRefusal::Retiring(vm)),
            Some(_) => Ok(()),
        }
    }

    /// Whether an operator can have the shadow of a VM taken away now.
    pub fn may_retire_shadow(&self, vm: VmId) -> Result<(), ShadowRefusal> {
        self.may_change_shadow(vm)?;
        let id = self.shadows.id_of(vm);
        let Some(shadow) = self.shadows.kept.get(&id).map(|kept| &kept.shadow) else { return Ok(()) };
        let is_held = shadow.host.as_ref().is_some_and(|host| self.is_shadow_held(shadow.of, id, host));
        match (self.makes_shadows(), is_held) {
            (false, _) => Err(ShadowRefusal::Off),
            (true, true) => Err(ShadowRefusal::Held(vm)),
            (true, false) => Ok(()),
        }
    }

    pub(in crate::core) fn make_shadow(&mut self, now: Timestamp, actor: &str, vm: VmId) {
        if let Err(refusal) = self.may_make_shadow(vm) {
            return self.audit(now, actor, "refused", format!("vm {vm}"), format!("shadow make: {refusal}"));
        }
        self.shadows.asked_for.insert(vm);
        self.shadows.kept_off.remove(&vm);
        let name = self.fleet.vms.get(&vm).map_or_else(String::new, |entry| entry.name.clone());
        self.want_shadow(now, vm, &name, actor);
    }

    pub(in crate::core) fn set_fidelity(&mut self, now: Timestamp, actor: &str, vm: VmId, fidelity: Option<f64>) {
        if let Err(refusal) = self.may_change_shadow(vm) {
            return self.audit(now, actor, "refused", format!("vm {vm}"), format!("shadow fidelity: {refusal}"));
        }
        let id = self.shadows.id_of(vm);
        let fidelity = fidelity.filter(|fidelity| fidelity.is_finite()).map(|fidelity| fidelity.clamp(0.0, 1.0));
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.shadow.fidelity = fidelity;
        // The next profile is news.
        kept.ordered = None;
        let (shadow, is_free) = (kept.shadow.clone(), kept.flight.is_none());
        let told = fidelity.map_or_else(|| "policy's".to_owned(), |fidelity| format!("{fidelity:.2}"));
        self.audit(now, actor, "shadow_fidelity", format!("vm {}", shadow.of), format!("shadow {id}: {told}"));
        let is_pacing = shadow.state == ShadowState::Pacing;
        self.persist(Record::Shadow(Box::new(shadow)));
        if is_pacing && is_free {
            self.order_pace(now, id);
        }
    }

    pub(in crate::core) fn retire_shadow(&mut self, now: Timestamp, actor: &str, vm: VmId) {
        if let Err(refusal) = self.may_retire_shadow(vm) {
            return self.audit(now, actor, "refused", format!("vm {vm}"), format!("shadow retire: {refusal}"));
        }
        let id = self.shadows.id_of(vm);
        let Some(kept) = self.shadows.kept.get_mut(&id) else { return };
        kept.shadow.kept_off = true;
        let of = kept.shadow.of;
        self.shadows.kept_off.insert(of);
        self.shadows.asked_for.remove(&of);
        self.audit(now, actor, "shadow_retire", format!("vm {of}"), format!("shadow {id}; it gets no other"));
        self.end_shadow(now, id, ShadowCause::Operator);
    }
}
