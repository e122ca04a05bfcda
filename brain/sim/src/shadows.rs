//! Shadows of this world: what a host's agent does with orders about them, and what its windows tell of them.

use gnomon_common::wire::{
    Action, Allocation, Base, Blueprint, Boot, CPU_WEIGHT_DEFAULT, Command, CpuWindow, DiskBlueprint, Load, MeanMax,
    OutcomeResult, PacerWindow, RefusedCommand, ShadowDone, ShadowOrder, ShadowSize, ShadowWindow, Unshadowable, VmId,
    VmState, VmTerms, VmWindow,
};

use crate::agent::Agent;
use crate::vm::SimVm;

/// A shadow on a host. It does what it is told, at once.
#[derive(Clone, Debug)]
pub(crate) struct SimShadow {
    pub(crate) of: VmId,
    name: String,
    size: ShadowSize,
    pub(crate) runs: bool,
    load: Load,
}

impl SimShadow {
    /// What it runs now, in cores.
    pub(crate) fn runs_cores(&self) -> f64 {
        if self.runs { self.load.cpu_cores.min(self.size.cpu_cores) } else { 0.0 }
    }
}

impl Agent {
    /// Carries out what is asked about shadows; whether it may was judged before.
    pub(crate) fn order(&mut self, command: &Command, took_us: u64) -> OutcomeResult {
        let Action::Shadow(order) = &command.action else {
            let described = self.vms.iter().find(|vm| vm.id == command.vm).map(|vm| Box::new(blueprint(vm)));
            return described.map_or(OutcomeResult::Refused(RefusedCommand::UnknownVm), OutcomeResult::Described);
        };
        let most = self.facts.shadows.as_ref().map_or(0, |shadows| shadows.shadows_max as usize);
        let is_full = self.shadows.len() >= most && !self.shadows.contains_key(&command.vm);
        let there = self.shadows.get_mut(&command.vm);
        match (order, there) {
            (ShadowOrder::Copy(_), None) if is_full => {
                OutcomeResult::Unshadowable(Unshadowable::NoRoom(format!("it takes {most} shadows")))
            }
            (ShadowOrder::Copy(spec), _) => {
                let (name, load) = (format!("{}.shadow", spec.blueprint.name), Load::default());
                let made = SimShadow { of: spec.of, name, size: spec.size, runs: false, load };
                self.shadows.entry(command.vm).or_insert(made);
                OutcomeResult::Shadow(ShadowDone::Copied { took_us, copied_bytes: 0 })
            }
            (ShadowOrder::Start, Some(shadow)) => {
                shadow.runs = true;
                OutcomeResult::Shadow(ShadowDone::Started { took_us })
            }
            (ShadowOrder::Pace(profile), Some(shadow)) => {
                shadow.load = profile.steps.first().map_or(Load::default(), |step| step.load);
                OutcomeResult::Shadow(ShadowDone::Paced)
            }
            (ShadowOrder::Resize(size), Some(shadow)) => {
                shadow.size = *size;
                OutcomeResult::Shadow(ShadowDone::Resized { took_us })
            }
            (ShadowOrder::Retire, _) => {
                self.shadows.remove(&command.vm);
                OutcomeResult::Shadow(ShadowDone::Retired)
            }
            (ShadowOrder::Start | ShadowOrder::Pace(_) | ShadowOrder::Resize(_), None) => {
                OutcomeResult::Unshadowable(Unshadowable::NoShadow)
            }
        }
    }

    /// What a window tells of its shadows, each of which waited so long for each second of run.
    pub(crate) fn shadow_windows(&self, waits: &[f64]) -> impl Iterator<Item = VmWindow> {
        self.shadows.iter().zip(waits).map(|((&vm, shadow), wait_for_run)| {
            let cores = shadow.runs_cores();
            let same = |cores| MeanMax { mean: cores, max: cores };
            let (low, high) = (same(cores), same(cores * (1.0 + wait_for_run)));
            let cpu =
                CpuWindow { covered: 1.0, demand_low: low, demand_high: high, usage: low, ..CpuWindow::default() };
            let pacer = PacerWindow { wanted: shadow.load, made: shadow.load };
            VmWindow {
                vm,
                name: shadow.name.clone(),
                state: if shadow.runs { VmState::Running } else { VmState::ShutOff },
                cpu: shadow.runs.then_some(cpu),
                culprits: None,
                memory: None,
                interfaces: Vec::new(),
                disk: None,
                exits: None,
                allocation: Allocation {
                    quota_cores: Some(shadow.size.cpu_cores),
                    vcpus: shadow.size.vcpus,
                    vcpus_max: shadow.size.vcpus,
                    memory_bytes: shadow.size.memory_bytes,
                },
                baselines: Vec::new(),
                stood_down: false,
                terms: VmTerms { bound: Some("it is a shadow".to_owned()), ..VmTerms::default() },
                storage: None,
                migration: None,
                shadow: Some(ShadowWindow { of: shadow.of, pacer: shadow.runs.then_some(pacer) }),
            }
        })
    }
}

fn blueprint(vm: &SimVm) -> Blueprint {
    let base = Base::Image { path: "/images/base.qcow2".to_owned(), format: "qcow2".to_owned() };
    Blueprint {
        name: vm.name.clone(),
        kvm: true,
        arch: "x86_64".to_owned(),
        machine: "q35".to_owned(),
        cpu_model: None,
        boot: Boot::Bios,
        vcpus: vm.allocation.vcpus,
        memory_bytes: vm.has_bytes(),
        cpu_weight: CPU_WEIGHT_DEFAULT,
        disk_bytes_per_s_max: None,
        network_bytes_per_s_max: None,
        disks: vec![DiskBlueprint { device: "vda".to_owned(), bus: "virtio".to_owned(), size_bytes: 1 << 33, base }],
        interfaces: vec!["virtio".to_owned()],
    }
}
