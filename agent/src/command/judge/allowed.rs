//! What a host's configuration allows commands to do, beside the bounds of CPU.

use gnomon_common::wire::{Means, MemoryBounds};

/// What is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowed {
    /// By what means VMs may be changed.
    pub means: MeansSet,
    /// Bounds of a VM's memory.
    pub memory: MemoryBounds,
    /// Memory that stays available on the host when a VM's grows, in bytes.
    pub host_reserve_bytes: u64,
}

/// A set of means. By default the CPU quota alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MeansSet([bool; Means::ALL.len()]);

impl Default for MeansSet {
    fn default() -> Self {
        [Means::CpuQuota].into_iter().collect()
    }
}

impl MeansSet {
    /// Whether a means is in it.
    pub fn contains(&self, means: Means) -> bool {
        Means::ALL.into_iter().zip(self.0).any(|(each, present)| each == means && present)
    }
}

impl FromIterator<Means> for MeansSet {
    fn from_iter<T: IntoIterator<Item = Means>>(means: T) -> Self {
        let mut set = [false; Means::ALL.len()];
        for means in means {
            for (each, present) in Means::ALL.into_iter().zip(&mut set) {
                *present |= each == means;
            }
        }
        Self(set)
    }
}

impl std::fmt::Debug for MeansSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(Means::ALL.into_iter().filter(|means| self.contains(*means))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_contains_what_was_put_in_and_nothing_else(bits in 0..64_u32) {
            let inside = |means: &Means| bits >> Means::ALL.iter().position(|each| each == means).unwrap() & 1 == 1;
            let set: MeansSet = Means::ALL.into_iter().filter(inside).collect();
            for means in Means::ALL {
                prop_assert_eq!(set.contains(means), inside(&means));
            }
        }
    }
}
