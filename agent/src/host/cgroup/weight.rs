//! A group's share of CPU time under contention: `cpu.shares` of version 1, `cpu.weight` of version 2, on one scale.
//!
//! The kernel itself defines how they compare: it turns a `cpu.weight` of 100 into what 1024 `cpu.shares` are, proportionally
//! (`cpu_weight_write_u64` in kernel/sched/core.c), so that the defaults of both versions are the same.

use super::super::kernel_file::{ReadError, read_value};
use super::DomainCgroup;

/// `cpu.shares` of a group that nobody has changed.
const SHARES_DEFAULT: u64 = 1_024;
/// `cpu.weight` of a group that nobody has changed.
const WEIGHT_DEFAULT: u64 = 100;
/// The scale of `cpu.weight`.
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;

/// A group's weight in its version's own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuWeight {
    /// `cpu.shares`.
    Shares(u64),
    /// `cpu.weight`.
    Weight(u64),
}

impl CpuWeight {
    /// What stands in a definition of this host, in the numbers of its version of control groups.
    pub fn of_this_host(raw: u64) -> Self {
        let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let is_version_2 = controllers.split_whitespace().any(|controller| controller == "cpu");
        if is_version_2 { Self::Weight(raw) } else { Self::Shares(raw) }
    }

    /// On the scale of `cpu.weight`, whose nearer end it is for shares beyond that.
    pub fn nearest_weight(self) -> u32 {
        let is_small = matches!(self, Self::Shares(raw) | Self::Weight(raw) if raw < SHARES_DEFAULT);
        self.weight().unwrap_or(if is_small { 1 } else { 10_000 })
    }

    /// On the scale of `cpu.weight`; `None` for shares beyond either end of it.
    pub fn weight(self) -> Option<u32> {
        let weight = match self {
            // Rounded, so that a weight that became shares comes back as itself.
            Self::Shares(shares) => {
                shares.checked_mul(WEIGHT_DEFAULT)?.checked_add(SHARES_DEFAULT / 2)? / SHARES_DEFAULT
            }
            Self::Weight(weight) => weight,
        };
        u32::try_from(weight).ok().filter(|_| WEIGHTS.contains(&weight))
    }

    /// The number that stands for a weight in the file of this one's version.
    pub fn raw_for(self, weight: u32) -> u64 {
        match self {
            Self::Shares(_) => (u64::from(weight) * SHARES_DEFAULT + WEIGHT_DEFAULT / 2) / WEIGHT_DEFAULT,
            Self::Weight(_) => weight.into(),
        }
    }
}

impl DomainCgroup {
    /// The weight of the domain's outermost group: that is where it competes with other domains. `None` without the cpu controller.
    pub fn cpu_weight(&self) -> Result<Option<CpuWeight>, ReadError> {
        let Some(dir) = self.bandwidth.first() else { return Ok(None) };
        let read = |file, kind: fn(u64) -> CpuWeight| {
            let value = read_value(&dir.join(file), "a number", |text| text.trim().parse().ok());
            match value.map(kind) {
                Ok(weight) => Ok(Some(weight)),
                Err(error) if error.is_gone() => Ok(None),
                Err(error) => Err(error),
            }
        };
        match read("cpu.weight", CpuWeight::Weight)? {
            Some(weight) => Ok(Some(weight)),
            None => read("cpu.shares", CpuWeight::Shares),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[test]
    fn the_defaults_of_both_versions_are_the_same() {
        assert_eq!(CpuWeight::Shares(1_024).weight(), Some(100));
        assert_eq!(CpuWeight::Weight(100).weight(), Some(100));
        assert_eq!(CpuWeight::Shares(0).raw_for(300), 3_072);
        assert_eq!(CpuWeight::Weight(0).raw_for(300), 300);
    }

    #[test]
    fn shares_beyond_the_scale_have_no_weight() {
        assert_eq!(CpuWeight::Shares(2).weight(), None, "the smallest that the kernel accepts");
        assert_eq!(CpuWeight::Shares(262_144).weight(), None, "the largest");
        assert_eq!(CpuWeight::Shares(u64::MAX).weight(), None);
        assert_eq!(CpuWeight::Weight(0).weight(), None, "cpu.idle");
        let nearest =
            [CpuWeight::Shares(2), CpuWeight::Shares(262_144), CpuWeight::Weight(0), CpuWeight::Shares(2_048)];
        assert_eq!(nearest.map(CpuWeight::nearest_weight), [1, 10_000, 1, 200]);
    }

    #[test]
    fn the_outermost_group_is_read_in_whatever_version() {
        let dir = tempfile::tempdir().unwrap();
        let group = DomainCgroup {
            usage: None,
            bandwidth: vec![Arc::from(dir.path()), Arc::from(dir.path().join("libvirt"))],
            limited_threads: Vec::new(),
            block: Vec::new(),
            unified: None,
        };
        assert_eq!(group.cpu_weight().unwrap(), None);
        std::fs::write(dir.path().join("cpu.shares"), "2048\n").unwrap();
        assert_eq!(group.cpu_weight().unwrap(), Some(CpuWeight::Shares(2_048)));
        std::fs::write(dir.path().join("cpu.weight"), "7\n").unwrap();
        assert_eq!(group.cpu_weight().unwrap(), Some(CpuWeight::Weight(7)));
    }

    proptest! {
        #[test]
        fn a_weight_that_becomes_shares_comes_back_as_itself(weight in 1..=10_000_u32) {
            let shares = CpuWeight::Shares(CpuWeight::Shares(0).raw_for(weight));
            prop_assert_eq!(shares.weight(), Some(weight));
        }

        #[test]
        fn no_shares_have_a_weight_off_the_scale(shares: u64) {
            prop_assert!(CpuWeight::Shares(shares).weight().is_none_or(|weight| (1..=10_000).contains(&weight)));
        }
    }
}
