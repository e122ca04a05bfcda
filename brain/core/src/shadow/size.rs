//! How large a shadow is: a share of what its production may be given at most, with floors below which no guest lives.

use gnomon_common::wire::{Blueprint, CPU_WEIGHT_DEFAULT, ShadowSize};

use crate::policy::ShadowPolicy;

/// Memory is given in whole mebibytes.
const MIB: u64 = 1 << 20;

/// The size of a shadow of a production that may be given `most_cores` (`None`: all its vCPUs), with at least `memory_floor_bytes`.
///
/// A shadow keeps its size for as long as it has its place, so its production's quota of the moment, which is planned anew all day, is no measure: one
/// made by night would be held back by day.
///
/// Its weight is, for each vCPU, that of a production of the default weight, so that it waits for a CPU as that would: under contention control groups
/// share by weight, whatever they have of vCPUs. A production's own weight is not told.
pub(crate) fn size(
    blueprint: &Blueprint,
    most_cores: Option<f64>,
    memory_floor_bytes: u64,
    policy: &ShadowPolicy,
) -> ShadowSize {
    let limit = |bytes_per_s: u64| (bytes_per_s > 0).then_some(bytes_per_s);
    let vcpus = blueprint.vcpus.max(1);
    let production_cores = most_cores.unwrap_or(f64::from(vcpus)).min(f64::from(vcpus));
    let cpu_cores = (production_cores * policy.cpu_share).max(policy.cpu_floor_cores).min(f64::from(vcpus));
    let shadow_vcpus = (cpu_cores.ceil() as u32).clamp(1, vcpus);
    let share_bytes = (blueprint.memory_bytes as f64 * policy.memory_share) as u64;
    let memory_bytes = share_bytes.max(memory_floor_bytes).max(policy.memory_floor_bytes).min(blueprint.memory_bytes);
    ShadowSize {
        cpu_cores,
        vcpus: shadow_vcpus,
        cpu_weight: (CPU_WEIGHT_DEFAULT * shadow_vcpus).div_ceil(vcpus).max(1),
        memory_bytes: memory_bytes.div_ceil(MIB) * MIB,
        disk_bytes_per_s: limit(policy.disk_bytes_per_s_max),
        network_bytes_per_s: limit(policy.network_bytes_per_s_max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::Boot;

    fn blueprint(vcpus: u32, memory_bytes: u64) -> Blueprint {
        Blueprint {
            name: "web".to_owned(),
            kvm: true,
            arch: "x86_64".to_owned(),
            machine: "q35".to_owned(),
            cpu_model: None,
            boot: Boot::Bios,
            vcpus,
            memory_bytes,
            disks: Vec::new(),
            interfaces: Vec::new(),
        }
    }

    #[test]
    fn a_shadow_is_a_share_of_what_its_production_may_be_given() {
        let policy = ShadowPolicy::default();
        let all = size(&blueprint(16, 32 << 30), None, 0, &policy);
        assert!((all.cpu_cores - 16.0 * policy.cpu_share).abs() < 1e-9);
        assert_eq!((all.vcpus, all.cpu_weight), (2, 13));
        assert_eq!(all.memory_bytes, (32 << 30) / 10 / MIB * MIB + MIB, "a tenth, rounded up");
        let held = size(&blueprint(16, 32 << 30), Some(4.0), 0, &policy);
        assert!((held.cpu_cores - 0.4).abs() < 1e-9 && held.vcpus == 1);
        assert_eq!(held.disk_bytes_per_s, Some(policy.disk_bytes_per_s_max));
        let free = ShadowPolicy { network_bytes_per_s_max: 0, ..policy };
        assert_eq!(size(&blueprint(16, 32 << 30), None, 0, &free).network_bytes_per_s, None);
    }

    #[test]
    fn floors_are_kept_and_no_shadow_is_larger_than_its_production() {
        let policy = ShadowPolicy::default();
        let small = size(&blueprint(1, 200 << 20), None, 0, &policy);
        assert!(small.cpu_cores >= policy.cpu_floor_cores);
        assert_eq!(small.memory_bytes, policy.memory_floor_bytes.min(200 << 20));
        let tried = size(&blueprint(1, 200 << 20), None, 180 << 20, &policy);
        assert_eq!(tried.memory_bytes, 180 << 20);
        assert_eq!(size(&blueprint(1, 200 << 20), None, 1 << 30, &policy).memory_bytes, 200 << 20);
        assert!(size(&blueprint(1, 200 << 20), None, 0, &policy).cpu_weight >= 1);
    }
}
