//! `[guard]`: limits that no command can override.

use super::CPU_FLOOR_CORES_MIN;
use crate::command::judge::{Allowed, MeansSet};
use gnomon_common::wire::{CpuBounds, Means, MemoryBounds};
use serde::Deserialize;

/// Largest share of a VM's memory that a step may take away: what a guest can give up without noticing.
const MEMORY_SHRINK_STEP_MAX: f64 = 0.05;

/// Least memory left to a guest above what it uses: less is gone with its next file.
const MEMORY_RESERVE_BYTES_MIN: u64 = 16 << 20;

/// `[guard]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// By what means commands may change VMs.
    pub means: Vec<Means>,
    /// No VM gets less CPU than this, in cores.
    pub cpu_floor_cores: f64,
    /// No VM gets more CPU than this, in cores; the number of its vCPUs bounds it as well.
    pub cpu_ceiling_cores: f64,
    /// What is left to a guest above what it uses when its memory shrinks, in bytes.
    pub memory_reserve_bytes: u64,
    /// Largest share of a VM's memory that one step takes away.
    pub memory_shrink_step: f64,
    /// What stays available on the host when a VM's memory grows, in bytes.
    pub memory_host_reserve_bytes: u64,
}

impl Default for Guard {
    fn default() -> Self {
        let MemoryBounds { reserve_bytes, shrink_step_max } = MemoryBounds::default();
        Self {
            means: Means::ALL.into_iter().filter(|means| *means != Means::Vcpus).collect(),
            cpu_floor_cores: 0.1,
            cpu_ceiling_cores: 64.0,
            memory_reserve_bytes: reserve_bytes,
            memory_shrink_step: shrink_step_max,
            memory_host_reserve_bytes: 1 << 30,
        }
    }
}

impl Guard {
    /// The bounds of CPU as the brain hears them.
    pub fn cpu_bounds(&self) -> CpuBounds {
        CpuBounds { floor_cores: self.cpu_floor_cores, ceiling_cores: self.cpu_ceiling_cores }
    }

    /// The bounds of memory as the brain hears them.
    pub fn memory_bounds(&self) -> MemoryBounds {
        MemoryBounds { reserve_bytes: self.memory_reserve_bytes, shrink_step_max: self.memory_shrink_step }
    }

    /// The means, sorted, each once.
    pub fn means(&self) -> Vec<Means> {
        let allowed = self.allowed().means;
        Means::ALL.into_iter().filter(|means| allowed.contains(*means)).collect()
    }

    /// What commands are judged by, beside the bounds of CPU.
    pub fn allowed(&self) -> Allowed {
        Allowed {
            means: self.means.iter().copied().collect::<MeansSet>(),
            memory: self.memory_bounds(),
            host_reserve_bytes: self.memory_host_reserve_bytes,
        }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let (floor, ceiling) = (self.cpu_floor_cores, self.cpu_ceiling_cores);
        if !(floor.is_finite() && floor >= CPU_FLOOR_CORES_MIN) {
            let why = "the smallest quota the kernel accepts";
            return Err(("guard.cpu_floor_cores", format!("{floor} is below {CPU_FLOOR_CORES_MIN}, {why}")));
        }
        if !(ceiling.is_finite() && ceiling >= floor) {
            return Err(("guard.cpu_ceiling_cores", format!("{ceiling} is below guard.cpu_floor_cores ({floor})")));
        }
        let step = self.memory_shrink_step;
        if !(step > 0.0 && step <= MEMORY_SHRINK_STEP_MAX) {
            let why = format!("{step} is not a share above 0 and up to {MEMORY_SHRINK_STEP_MAX}");
            return Err(("guard.memory_shrink_step", why));
        }
        let reserve = self.memory_reserve_bytes;
        if reserve < MEMORY_RESERVE_BYTES_MIN {
            let why = format!("{reserve} is below {MEMORY_RESERVE_BYTES_MIN}: a guest needs some room");
            return Err(("guard.memory_reserve_bytes", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_plugged_only_where_the_operator_says_so() {
        assert!(!Guard::default().means().contains(&Means::Vcpus));
        let guard = Guard { means: vec![Means::Vcpus, Means::CpuQuota, Means::Vcpus], ..Guard::default() };
        assert_eq!(guard.means(), [Means::CpuQuota, Means::Vcpus]);
        assert!(guard.allowed().means.contains(Means::Vcpus) && !guard.allowed().means.contains(Means::Memory));
    }

    #[test]
    fn a_step_or_a_reserve_that_could_hurt_a_guest_is_refused() {
        for step in [0.0, -0.1, 0.06, f64::NAN] {
            let refused = Guard { memory_shrink_step: step, ..Guard::default() }.check().unwrap_err();
            assert_eq!(refused.0, "guard.memory_shrink_step");
        }
        let refused = Guard { memory_reserve_bytes: 1, ..Guard::default() }.check().unwrap_err();
        assert_eq!(refused.0, "guard.memory_reserve_bytes");
    }
}
