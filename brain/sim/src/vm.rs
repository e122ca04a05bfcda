//! A VM of this world.

use gnomon_common::wire::{
    Allocation, CommandId, CpuWindow, MeanMax, MigrationProgress, Setting, VmId, VmState, VmTerms, VmWindow,
};

use crate::guest::Guest;
use crate::memory::SimMemory;
use crate::scenario::VmSpec;

/// A VM on a host.
#[derive(Clone, Debug)]
pub(crate) struct SimVm {
    pub(crate) id: VmId,
    pub(crate) name: String,
    pub(crate) allocation: Allocation,
    pub(crate) guest: Guest,
    pub(crate) memory: Option<SimMemory>,
    pub(crate) terms: VmTerms,
    /// The command that it is on its way by.
    pub(crate) leaving: Option<CommandId>,
    /// It stands still: another host has taken it over, or may have.
    pub(crate) stands: bool,
    /// The latest second.
    pub(crate) demand_cores: f64,
    pub(crate) ran_cores: f64,
    /// Seconds that it waits for each second of run, because of what others use.
    pub(crate) wait_for_run: f64,
    /// By what factor it waits longer in this window than others do in such a crowd.
    pub(crate) luck: f64,
    pub(crate) samples: Vec<Sample>,
}

/// What was measured of it in a second, in cores, and the share of its vCPUs' time for which its quota held it back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) throttled: f64,
}

impl SimVm {
    pub(crate) fn new(spec: &VmSpec, id: VmId, guest: Guest) -> Self {
        let allocation = Allocation {
            quota_cores: spec.quota_cores,
            vcpus: spec.vcpus,
            vcpus_max: spec.vcpus,
            memory_bytes: spec.memory.as_ref().map_or(spec.memory_mib, |memory| memory.max_mib) << 20,
        };
        let memory = spec.memory.clone().map(|spec| SimMemory {
            balloon_bytes: spec.balloon_mib << 20,
            demand_bytes: spec.want_bytes(0.0),
            spec,
        });
        let (name, samples) = (spec.name.clone(), Vec::new());
        let (terms, leaving) = (spec.terms.clone(), None);
        Self {
            id,
            name,
            allocation,
            guest,
            memory,
            terms,
            leaving,
            stands: false,
            demand_cores: 0.0,
            ran_cores: 0.0,
            wait_for_run: 0.0,
            luck: 1.0,
            samples,
        }
    }

    /// The memory that it has, in bytes.
    pub(crate) fn has_bytes(&self) -> u64 {
        self.memory.as_ref().map_or(self.allocation.memory_bytes, |memory| memory.balloon_bytes)
    }

    /// The state of the target's means.
    pub(crate) fn in_force(&self, target: Setting) -> Setting {
        match target {
            Setting::CpuQuota { .. } => Setting::CpuQuota { cores: self.allocation.quota_cores },
            Setting::Memory { bytes } => {
                Setting::Memory { bytes: self.memory.as_ref().map_or(bytes, |memory| memory.balloon_bytes) }
            }
            other => other,
        }
    }

    pub(crate) fn set(&mut self, target: Setting) {
        match (target, &mut self.memory) {
            (Setting::CpuQuota { cores }, _) => self.allocation.quota_cores = cores,
            (Setting::Memory { bytes }, Some(memory)) => memory.balloon_bytes = bytes,
            _ => {}
        }
    }

    /// What its guest wanted in the latest second and what its balloon leaves to it, in bytes.
    pub(crate) fn memory_bytes(&self) -> Option<(u64, u64)> {
        self.memory.as_ref().map(|memory| (memory.demand_bytes, memory.balloon_bytes))
    }

    /// The same VM as a copy of it on another host.
    pub(crate) fn copied(&self) -> Self {
        Self { leaving: None, stands: false, samples: Vec::new(), ..self.clone() }
    }

    /// What its host tells of it over a window of so many seconds, which empties it.
    pub(crate) fn window(&mut self, seconds: f64) -> VmWindow {
        let samples = std::mem::take(&mut self.samples);
        let state = if self.stands { VmState::Paused } else { VmState::Running };
        VmWindow {
            cpu: cpu_window(&samples, seconds).filter(|_| !self.stands),
            memory: self.memory.as_ref().map(SimMemory::window),
            migration: self.leaving.map(|_| MigrationProgress::default()),
            ..self.mere_window(state)
        }
    }

    /// What a host tells of a copy of it that does not run.
    pub(crate) fn mere_window(&self, state: VmState) -> VmWindow {
        VmWindow {
            vm: self.id,
            name: self.name.clone(),
            state,
            cpu: None,
            culprits: None,
            memory: None,
            interfaces: Vec::new(),
            disk: None,
            exits: None,
            allocation: if state == VmState::Arriving { Allocation::default() } else { self.allocation },
            baselines: Vec::new(),
            stood_down: false,
            terms: if state == VmState::Arriving { VmTerms::default() } else { self.terms.clone() },
            storage: None,
            migration: None,
            shadow: None,
        }
    }
}

fn cpu_window(samples: &[Sample], seconds: f64) -> Option<CpuWindow> {
    let count = samples.len() as f64;
    let mean_max = |value: fn(&Sample) -> f64| MeanMax {
        mean: samples.iter().map(value).sum::<f64>() / count,
        max: samples.iter().map(value).fold(0.0, f64::max),
    };
    (!samples.is_empty()).then(|| CpuWindow {
        covered: (count / seconds).min(1.0),
        demand_low: mean_max(|sample| sample.low),
        demand_high: mean_max(|sample| sample.high),
        usage: mean_max(|sample| sample.low),
        throttled: mean_max(|sample| sample.throttled),
        ..CpuWindow::default()
    })
}
