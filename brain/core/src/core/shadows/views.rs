//! Shadows copied out for the API.

use gnomon_common::wire::VmId;

use super::{Core, Kept};
use crate::plan::contention::Witness;
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

    /// Where a production's shadow is and what it tells; of a shadow, of which VM it is one.
    pub(in crate::core) fn shadow_in_words(&self, vm: VmId) -> Option<String> {
        let kept = self.shadows.kept.get(&self.shadows.id_of(vm))?;
        let Shadow { of, state, host, size, detail, .. } = &kept.shadow;
        if *of != vm {
            return Some(format!("It is the shadow of VM {of}."));
        }
        let place = host.as_ref().map_or_else(String::new, |host| format!(" on host {host}"));
        let size = size.map_or_else(String::new, |size| format!(", with {size}"));
        let told = self.told_by_shadow(kept).map_or_else(String::new, |told| format!(" {told}"));
        Some(format!("Its shadow is {}{place}{size}: {detail}.{told}", state.name()))
    }

    /// What a shadow tells of its host.
    fn told_by_shadow(&self, kept: &Kept) -> Option<String> {
        let view = self.shadow_view(kept);
        let (used, waited) = (view.cpu_cores?, view.waited_cores?);
        let host = kept.shadow.host.as_ref().and_then(|host| self.fleet.hosts.get(host))?;
        let by = |by: Witness| if by == Witness::Shadow { "shadows'" } else { "productions'" };
        let calibrations = &self.shadows.calibrations;
        let share = host.contention.share(self.now, calibrations).map_or_else(String::new, |(share, witness)| {
            format!("; VMs there wait for {:.1} % of the CPU that they want, by {} word", share * 100.0, by(witness))
        });
        let disks =
            host.contention.request_ms(self.now, calibrations).map_or_else(String::new, |(took_ms, witness)| {
                format!("; a request to disks takes {took_ms:.1} ms there, by {} word", by(witness))
            });
        let throttled = view.throttled.filter(|throttled| *throttled > 0.0);
        let quota = throttled.map_or_else(String::new, |throttled| {
            format!(", and was held back by its quota for {:.0} % of the time", throttled * 100.0)
        });
        Some(format!("In its latest window it ran for {used:.3} cores, waited for {waited:.3}{quota}{share}{disks}."))
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
