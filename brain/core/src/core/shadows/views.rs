//! Shadows copied out for the API.

use gnomon_common::wire::VmId;

use super::{Core, Kept};
use crate::shadow::{Shadow, ShadowState, ShadowView};

impl Core {
    /// Every shadow that is not retired, by its production's name.
    pub fn shadows(&self) -> Vec<ShadowView> {
        let mut views: Vec<ShadowView> = self.shadows.kept.values().map(|kept| self.shadow_view(kept)).collect();
        views.sort_by(|one, other| (&one.shadow.name, one.shadow.id).cmp(&(&other.shadow.name, other.shadow.id)));
        views
    }

    /// The shadow of a production, or the shadow with this identity.
    pub fn shadow(&self, vm: VmId) -> Option<ShadowView> {
        let id = self.shadows.id_of(vm);
        self.shadows.kept.get(&id).map(|kept| self.shadow_view(kept))
    }

    /// The VM with this id or name, on a host or as far as its shadow is known.
    pub fn find_shadowed(&self, id_or_name: &str) -> Option<VmId> {
        let by_id = id_or_name.parse::<VmId>().ok().filter(|id| self.shadow(*id).is_some());
        let mut named =
            self.shadows.kept.values().filter(|kept| kept.shadow.name == id_or_name).map(|kept| kept.shadow.of);
        let by_name = || named.next().filter(|first| named.all(|other| other == *first));
        self.find_vm(id_or_name).or(by_id).or_else(by_name)
    }

    /// How many shadows of [`Core::shadows`] are in each state.
    pub fn shadow_states(&self) -> impl Iterator<Item = (ShadowState, usize)> {
        let states: Vec<ShadowState> = self.shadows.kept.values().map(|kept| kept.shadow.state).collect();
        let count = move |state: ShadowState| states.iter().filter(|other| **other == state).count();
        ShadowState::ALL
            .into_iter()
            .filter(|state| *state != ShadowState::Retired)
            .map(move |state| (state, count(state)))
    }

    fn shadow_view(&self, kept: &Kept) -> ShadowView {
        let vm = self.fleet.vms.get(&kept.shadow.id).filter(|vm| vm.host.is_some());
        let cpu = vm.and_then(|vm| vm.cpu);
        ShadowView {
            shadow: Shadow { blueprint: None, ..kept.shadow.clone() },
            fidelity_now: self.fidelity_of(&kept.shadow),
            ordered: kept.ordered,
            pacer: vm.and_then(|vm| vm.shadow).and_then(|shadow| shadow.pacer),
            cpu_cores: cpu.map(|cpu| cpu.usage.mean),
            waited_cores: cpu.map(|cpu| (cpu.demand_high.mean - cpu.demand_low.mean).max(0.0)),
            throttled: cpu.map(|cpu| cpu.throttled.mean),
        }
    }
}
