//! The bounds of each means. Pure.
//!
//! | means | least | most |
//! |---|---|---|
//! | CPU quota | the host's floor | the host's ceiling, the VM's vCPUs |
//! | CPU weight | 1 | 10000 |
//! | memory | what the guest uses and the reserve; one step below what it has | what the VM is defined with, what the host has to give |
//! | vCPUs | 1 | what the VM is defined with |
//! | disk, network limit | what a guest needs to answer at all | what QEMU and `tc` can hold |
//!
//! Growing needs no proof. Memory shrinks only on fresh evidence of what the guest uses, and by one step at a time.

use super::Allowed;
use crate::host::inventory::memory::Balloon;
use gnomon_common::wire::{Action, Command, CpuBounds, Means, RefusedCommand, Setting};

/// The scale of `cpu.weight`.
const WEIGHT_MAX: u32 = 10_000;

/// Least traffic of a disk: a guest below it hangs in its own boot and its own logs.
const DISK_BYTES_PER_S_MIN: u64 = 1 << 20;
/// The same in operations: a cheap hard disk's worth.
const DISK_OPERATIONS_PER_S_MIN: u64 = 50;
/// Largest limit that QEMU takes (`THROTTLE_VALUE_MAX`), for either.
const DISK_LIMIT_MAX: u64 = 1_000_000_000_000_000;

/// Least traffic of an interface, 1 Mbit/s: below, connections time out that only say that they are alive.
const NETWORK_BYTES_PER_S_MIN: u64 = 125_000;
/// Largest limit that libvirt takes (32 bits of kilobytes per second).
const NETWORK_BYTES_PER_S_MAX: u64 = 4_000_000_000_000;

/// What is known of what a VM has and could be given, beside CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// vCPUs it is defined with.
    pub vcpus_max: u32,
    /// Its memory.
    pub memory: MemoryResources,
}

/// What is known of a VM's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryResources {
    /// Whether it can be changed.
    pub balloon: Balloon,
    /// What it is defined with: the most that the balloon can give, in bytes.
    pub max_bytes: u64,
    /// What the guest uses of it, in bytes; `None` where nothing fresh tells.
    pub in_use_bytes: Option<u64>,
    /// What the host could give without swapping, in bytes.
    pub host_available_bytes: u64,
}

/// Whether a command's bounds cannot be known yet.
pub(super) fn unknowable(command: &Command, resources: &Resources) -> bool {
    let memory = matches!(command.action, Action::Set(Setting::Memory { .. }));
    memory && resources.memory.balloon == Balloon::Unknown
}

/// Why a target is refused that is out of bounds whatever is in force now.
pub(super) fn out_of_bounds(
    target: Setting,
    vcpus: u32,
    cpu: CpuBounds,
    resources: &Resources,
) -> Option<RefusedCommand> {
    match target {
        Setting::CpuQuota { cores } => quota_out_of_bounds(cores?, vcpus, cpu),
        Setting::CpuWeight { weight } => {
            (weight > WEIGHT_MAX).then_some(above(Setting::CpuWeight { weight: WEIGHT_MAX }))
        }
        Setting::Memory { bytes } => {
            let MemoryResources { balloon, max_bytes, .. } = resources.memory;
            match balloon {
                Balloon::Absent | Balloon::Silent => Some(RefusedCommand::Unsupported { means: Means::Memory }),
                Balloon::Unknown | Balloon::Movable { .. } => {
                    (bytes > max_bytes).then_some(above(Setting::Memory { bytes: max_bytes }))
                }
            }
        }
        Setting::Vcpus { count } => {
            let most = resources.vcpus_max.max(vcpus);
            (count > most).then_some(above(Setting::Vcpus { count: most }))
        }
        Setting::DiskLimit { bytes_per_s, operations_per_s } => {
            let raised = Setting::DiskLimit {
                bytes_per_s: bytes_per_s.map(|rate| rate.max(DISK_BYTES_PER_S_MIN)),
                operations_per_s: operations_per_s.map(|rate| rate.max(DISK_OPERATIONS_PER_S_MIN)),
            };
            let lowered = Setting::DiskLimit {
                bytes_per_s: bytes_per_s.map(|rate| rate.min(DISK_LIMIT_MAX)),
                operations_per_s: operations_per_s.map(|rate| rate.min(DISK_LIMIT_MAX)),
            };
            outside(target, raised, lowered)
        }
        Setting::NetworkLimit { in_bytes_per_s, out_bytes_per_s } => {
            let fit = |rate: fn(u64) -> u64| Setting::NetworkLimit {
                in_bytes_per_s: in_bytes_per_s.map(rate),
                out_bytes_per_s: out_bytes_per_s.map(rate),
            };
            let raised = fit(|rate| rate.max(NETWORK_BYTES_PER_S_MIN));
            let lowered = fit(|rate| rate.min(NETWORK_BYTES_PER_S_MAX));
            outside(target, raised, lowered)
        }
    }
}

fn above(ceiling: Setting) -> RefusedCommand {
    RefusedCommand::AboveCeiling { ceiling }
}

/// `raised` and `lowered` are the target within its floors and its ceilings.
fn outside(target: Setting, raised: Setting, lowered: Setting) -> Option<RefusedCommand> {
    if raised != target {
        Some(RefusedCommand::BelowFloor { floor: raised })
    } else {
        (lowered != target).then_some(above(lowered))
    }
}

fn quota_out_of_bounds(cores: f64, vcpus: u32, bounds: CpuBounds) -> Option<RefusedCommand> {
    let ceiling_cores = bounds.ceiling_cores.min(f64::from(vcpus));
    // A VM with fewer vCPUs than the floor can use no more than its vCPUs.
    let floor_cores = bounds.floor_cores.min(ceiling_cores);
    if cores < floor_cores {
        Some(RefusedCommand::BelowFloor { floor: Setting::CpuQuota { cores: Some(floor_cores) } })
    } else {
        (cores > ceiling_cores).then_some(above(Setting::CpuQuota { cores: Some(ceiling_cores) }))
    }
}

/// Why a target is refused because of what is in force now, as it was read just before the change: memory that would not be there, or
/// that the guest needs.
///
/// The inventory's size of a balloon is seconds old, and a step is measured from where it starts. What the guest uses may be seconds old:
/// it is part of the evidence how old that may be.
pub fn against_what_is_in_force(
    before: Setting,
    target: Setting,
    resources: &Resources,
    allowed: &Allowed,
) -> Option<RefusedCommand> {
    let (Setting::Memory { bytes: now }, Setting::Memory { bytes: wanted }) = (before, target) else { return None };
    let memory = |bytes| Setting::Memory { bytes };
    let MemoryResources { max_bytes, in_use_bytes, host_available_bytes, .. } = resources.memory;
    if wanted >= now {
        let room = host_available_bytes.saturating_sub(allowed.host_reserve_bytes);
        let ceiling = now.saturating_add(room).min(max_bytes).max(now);
        return (wanted > ceiling).then_some(above(memory(ceiling)));
    }
    // Where nothing tells, all of it may be in use.
    let in_use = in_use_bytes.unwrap_or(now);
    let least_for_use = in_use.saturating_add(allowed.memory.reserve_bytes).min(now);
    let least_in_a_step = now - share(now, allowed.memory.shrink_step_max);
    if wanted < least_for_use {
        Some(RefusedCommand::BelowLiveUse { least: memory(least_for_use) })
    } else {
        (wanted < least_in_a_step).then_some(RefusedCommand::StepTooLarge { least: memory(least_in_a_step) })
    }
}

/// A share of bytes, rounded down; of a share that is none, nothing.
fn share(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share.clamp(0.0, 1.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::MemoryBounds;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const CPU: CpuBounds = CpuBounds { floor_cores: 0.25, ceiling_cores: 4.0 };

    fn allowed() -> Allowed {
        let memory = MemoryBounds { reserve_bytes: 64 * MIB, shrink_step_max: 0.05 };
        Allowed { memory, host_reserve_bytes: 1 << 30, ..Allowed::default() }
    }

    /// 1000 MiB of at most 2000, of which 500 are in use; the host has 1 GiB and 100 MiB to give.
    fn resources() -> Resources {
        let memory = MemoryResources {
            balloon: Balloon::Movable { bytes: 1000 * MIB },
            max_bytes: 2000 * MIB,
            in_use_bytes: Some(500 * MIB),
            host_available_bytes: (1 << 30) + 100 * MIB,
        };
        Resources { vcpus_max: 4, memory }
    }

    fn memory(mib: u64) -> Setting {
        Setting::Memory { bytes: mib * MIB }
    }

    fn step(now_mib: u64, wanted_mib: u64, resources: &Resources) -> Option<RefusedCommand> {
        against_what_is_in_force(memory(now_mib), memory(wanted_mib), resources, &allowed())
    }

    fn with_use(in_use_mib: Option<u64>) -> Resources {
        let memory = MemoryResources { in_use_bytes: in_use_mib.map(|mib| mib * MIB), ..resources().memory };
        Resources { memory, ..resources() }
    }

    #[test]
    fn memory_shrinks_by_a_step_and_no_further() {
        assert_eq!(step(1000, 950, &resources()), None);
        assert_eq!(step(1000, 949, &resources()), Some(RefusedCommand::StepTooLarge { least: memory(950) }));
    }

    #[test]
    fn memory_never_shrinks_below_what_is_used_and_the_reserve() {
        let refused = Some(RefusedCommand::BelowLiveUse { least: memory(964) });
        assert_eq!(step(1000, 963, &with_use(Some(900))), refused);
        assert_eq!(step(1000, 964, &with_use(Some(900))), None);
        // It lacks the reserve already: it stays as it is.
        assert_eq!(step(1000, 999, &with_use(Some(990))), Some(RefusedCommand::BelowLiveUse { least: memory(1000) }));
    }

    #[test]
    fn nothing_shrinks_blindly_and_growing_needs_no_proof() {
        assert_eq!(step(1000, 999, &with_use(None)), Some(RefusedCommand::BelowLiveUse { least: memory(1000) }));
        assert_eq!(step(1000, 1100, &with_use(None)), None);
        assert_eq!(step(1000, 1000, &with_use(None)), None);
    }

    #[test]
    fn a_host_gives_no_memory_that_it_needs_itself() {
        assert_eq!(step(1000, 1101, &resources()), Some(above(memory(1100))));
        let mut poor = resources();
        poor.memory.host_available_bytes = 5;
        assert_eq!(step(1000, 1001, &poor), Some(above(memory(1000))));
    }

    #[test]
    fn each_means_has_its_ceiling_by_definition() {
        let judged = |target| out_of_bounds(target, 2, CPU, &resources());
        assert_eq!(judged(memory(2001)), Some(above(memory(2000))));
        assert_eq!(judged(Setting::Vcpus { count: 4 }), None);
        assert_eq!(judged(Setting::Vcpus { count: 5 }), Some(above(Setting::Vcpus { count: 4 })));
        assert_eq!(judged(Setting::CpuWeight { weight: 10_000 }), None);
        assert_eq!(judged(Setting::CpuWeight { weight: 10_001 }), Some(above(Setting::CpuWeight { weight: 10_000 })));
    }

    #[test]
    fn a_balloon_that_is_absent_or_silent_is_no_means_and_one_not_looked_at_yet_cannot_be_judged() {
        let with = |balloon| {
            let memory = MemoryResources { balloon, ..resources().memory };
            out_of_bounds(self::memory(1000), 2, CPU, &Resources { memory, ..resources() })
        };
        let unsupported = Some(RefusedCommand::Unsupported { means: Means::Memory });
        assert_eq!([with(Balloon::Absent), with(Balloon::Silent)], [unsupported; 2]);
        assert_eq!(with(Balloon::Unknown), None);
    }

    #[test]
    fn limits_on_traffic_have_floors_that_a_guest_can_live_with() {
        let disk = |bytes_per_s, operations_per_s| Setting::DiskLimit { bytes_per_s, operations_per_s };
        let network = |rate| Setting::NetworkLimit { in_bytes_per_s: rate, out_bytes_per_s: None };
        let judged = |target| out_of_bounds(target, 2, CPU, &resources());
        assert_eq!(judged(disk(None, None)), None);
        assert_eq!(judged(disk(Some(MIB), Some(50))), None);
        let floor = disk(Some(MIB), Some(60));
        assert_eq!(judged(disk(Some(9), Some(60))), Some(RefusedCommand::BelowFloor { floor }));
        assert_eq!(judged(disk(Some(u64::MAX), None)), Some(above(disk(Some(DISK_LIMIT_MAX), None))));
        assert_eq!(judged(network(Some(125_000))), None);
        let floor = network(Some(125_000));
        assert_eq!(judged(network(Some(1_000))), Some(RefusedCommand::BelowFloor { floor }));
        assert_eq!(judged(network(Some(u64::MAX))), Some(above(network(Some(NETWORK_BYTES_PER_S_MAX)))));
    }

    proptest! {
        #[test]
        fn whatever_memory_is_granted_leaves_guest_and_host_what_they_need(
            now in 1..1_u64 << 40, wanted in 1..1_u64 << 40, in_use: Option<u64>, host_available_bytes in 0..1_u64 << 40,
            max_bytes in 1..1_u64 << 40,
        ) {
            let balloon = Balloon::Movable { bytes: now };
            let memory = MemoryResources { balloon, max_bytes, in_use_bytes: in_use, host_available_bytes };
            let (resources, allowed) = (Resources { memory, ..resources() }, allowed());
            let (before, target) = (Setting::Memory { bytes: now }, Setting::Memory { bytes: wanted });
            if against_what_is_in_force(before, target, &resources, &allowed).is_none() {
                if wanted > now {
                    prop_assert!(wanted - now + allowed.host_reserve_bytes <= host_available_bytes && wanted <= max_bytes);
                } else if wanted < now {
                    prop_assert!(wanted >= in_use.unwrap().saturating_add(allowed.memory.reserve_bytes));
                    prop_assert!(wanted as f64 >= now as f64 * 0.95 - 1.0);
                }
            }
        }

        #[test]
        fn what_is_refused_names_a_state_that_would_be_granted(
            now in 100..4_000_u64, wanted in 1..4_000_u64, in_use in proptest::option::of(0..4_000_u64),
        ) {
            let resources = with_use(in_use);
            let bytes = |setting| if let Setting::Memory { bytes } = setting { bytes } else { 0 };
            let granted = |wanted| against_what_is_in_force(memory(now), wanted, &resources, &allowed());
            match granted(memory(wanted)) {
                Some(RefusedCommand::StepTooLarge { least } | RefusedCommand::AboveCeiling { ceiling: least }) => {
                    prop_assert_eq!(granted(least), None);
                }
                // The use may still be a step further away.
                Some(RefusedCommand::BelowLiveUse { least }) => {
                    let further = granted(least);
                    prop_assert!(further.is_none() || matches!(further, Some(RefusedCommand::StepTooLarge { .. })), "{}", bytes(least));
                }
                other => prop_assert_eq!(other, None),
            }
        }
    }
}
