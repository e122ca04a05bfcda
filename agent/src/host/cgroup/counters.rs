//! Reading a group's files: usage, quota, throttling.

use super::super::kernel_file::{ReadError, keyed_u64, read_text, read_value};
use super::DomainCgroup;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// A domain's counters at one instant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CgroupReading {
    /// When it was taken: `CLOCK_MONOTONIC`, in nanoseconds.
    pub taken_ns: u64,
    /// CPU time charged to the domain since its group was made, in nanoseconds.
    pub usage_ns: Option<u64>,
    /// The tightest quota on the whole domain, in cores; `None` is unlimited.
    pub quota_cores: Option<f64>,
    /// Throttling of each group that can have been throttled: the domain's own and those of limited threads.
    pub throttles: Vec<(Arc<Path>, ThrottleCounters)>,
}

impl DomainCgroup {
    /// Reads the domain's counters. A group of a single thread that vanished (vCPU unplugged) is left out.
    pub fn read(&self, taken_ns: u64) -> Result<CgroupReading, ReadError> {
        let usage_ns = self.usage.as_deref().map(cpu_usage_ns).transpose()?;
        let mut quota_cores: Option<f64> = None;
        let mut throttles = Vec::new();
        for (index, dir) in self.bandwidth.iter().chain(&self.limited_threads).enumerate() {
            let is_domain = index < self.bandwidth.len();
            let bandwidth = match Bandwidth::read(dir) {
                Ok(bandwidth) => bandwidth,
                // Version 2 groups without the cpu controller have no such file, and no quota.
                Err(error) if error.is_gone() && (!is_domain || dir.is_dir()) => continue,
                Err(error) => return Err(error),
            };
            if let (true, Some(cores)) = (is_domain, bandwidth.quota_cores()) {
                quota_cores = Some(quota_cores.map_or(cores, |tightest| tightest.min(cores)));
            }
            match ThrottleCounters::read(dir, bandwidth.period_ns) {
                Ok(Some(counters)) => throttles.push((dir.clone(), counters)),
                Ok(None) => {}
                Err(error) if error.is_gone() && !is_domain => {}
                Err(error) => return Err(error),
            }
        }
        Ok(CgroupReading { taken_ns, usage_ns, quota_cores, throttles })
    }
}

/// CPU time charged to a group and its descendants, in nanoseconds: `cpu.stat` of version 2, `cpuacct.usage` of version 1.
pub fn cpu_usage_ns(dir: &Path) -> Result<u64, ReadError> {
    let version_1 = dir.join("cpuacct.usage");
    match read_value(&version_1, "a number of nanoseconds", |text| text.trim().parse().ok()) {
        Err(error) if error.is_gone() => {
            let parse = |text: &str| keyed_u64(text, "usage_usec")?.checked_mul(1000);
            read_value(&dir.join("cpu.stat"), "usage_usec (the cpuacct hierarchy has it on a version 1 host)", parse)
        }
        result => result,
    }
}

/// How much CPU a group may use per period (CFS bandwidth control).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bandwidth {
    /// CPU time per period, in nanoseconds; `None` is unlimited.
    pub quota_ns: Option<u64>,
    /// Length of the period, in nanoseconds.
    pub period_ns: u64,
}

impl Bandwidth {
    /// Reads `cpu.max` (version 2) or `cpu.cfs_quota_us` and `cpu.cfs_period_us` (version 1).
    pub fn read(dir: &Path) -> Result<Self, ReadError> {
        match read_value(&dir.join("cpu.max"), "a quota (or max) and a period", Self::parse_max) {
            Err(error) if error.is_gone() => {}
            result => return result,
        }
        let period = read_text(&dir.join("cpu.cfs_period_us"))?;
        read_value(&dir.join("cpu.cfs_quota_us"), "a quota next to a period in cpu.cfs_period_us", |quota| {
            Self::from_us(quota.trim().parse().ok()?, period.trim().parse().ok()?)
        })
    }

    fn parse_max(text: &str) -> Option<Self> {
        let (quota, period) = text.trim().split_once(' ')?;
        let quota_us = if quota == "max" { -1 } else { quota.parse().ok()? };
        Self::from_us(quota_us, period.parse().ok()?)
    }

    /// From the kernel's microseconds; a negative quota is unlimited, a period of zero impossible.
    fn from_us(quota_us: i64, period_us: u64) -> Option<Self> {
        let quota_ns = match u64::try_from(quota_us) {
            Ok(quota_us) => Some(quota_us.checked_mul(1000)?),
            Err(_) => None,
        };
        let period_ns = period_us.checked_mul(1000).filter(|&period_ns| period_ns > 0)?;
        Some(Self { quota_ns, period_ns })
    }

    /// The quota in cores; `None` is unlimited.
    pub fn quota_cores(self) -> Option<f64> {
        self.quota_ns.map(|quota_ns| quota_ns as f64 / self.period_ns as f64)
    }
}

/// A group's throttling since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleCounters {
    /// Bandwidth periods in which the group's quota ran out (`nr_throttled`).
    pub throttled_periods: u64,
    /// Length of a period now, in nanoseconds.
    pub period_ns: u64,
}

impl ThrottleCounters {
    /// Reads `cpu.stat` of either version; `None` where it has no bandwidth counters (the root group, or no cpu controller).
    fn read(dir: &Path, period_ns: u64) -> Result<Option<Self>, ReadError> {
        let periods = keyed_u64(&read_text(&dir.join("cpu.stat"))?, "nr_throttled");
        Ok(periods.map(|throttled_periods| Self { throttled_periods, period_ns }))
    }

    /// The share of `elapsed_ns` that lies in periods whose quota ran out, 0..=1 (see the module's text). `None` when the counter
    /// went backwards: the group was made anew.
    pub fn share_since(self, before: Self, elapsed_ns: u64) -> Option<f64> {
        let periods = self.throttled_periods.checked_sub(before.throttled_periods)?;
        // The length may have been changed in between; the longer one keeps this an upper bound.
        let periods_ns = periods as f64 * self.period_ns.max(before.period_ns) as f64;
        (elapsed_ns > 0).then(|| (periods_ns / elapsed_ns as f64).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counters(throttled_periods: u64) -> ThrottleCounters {
        ThrottleCounters { throttled_periods, period_ns: 100_000_000 }
    }

    #[test]
    fn a_quota_that_runs_out_in_four_of_ten_periods_throttles_four_tenths_of_the_time() {
        assert_eq!(counters(7).share_since(counters(3), 1_000_000_000), Some(0.4));
        assert_eq!(counters(3).share_since(counters(3), 1_000_000_000), Some(0.0));
        // A second may contain the ends of eleven periods.
        assert_eq!(counters(11).share_since(counters(0), 1_000_000_000), Some(1.0));
        assert_eq!(counters(2).share_since(counters(3), 1_000_000_000), None);
    }

    #[test]
    fn quotas_of_both_versions_are_the_same_cores() {
        assert_eq!(Bandwidth::parse_max("150000 100000\n").unwrap().quota_cores(), Some(1.5));
        assert_eq!(Bandwidth::parse_max("max 100000").unwrap().quota_cores(), None);
        assert_eq!(Bandwidth::from_us(25_000, 50_000).unwrap().quota_cores(), Some(0.5));
        assert_eq!(Bandwidth::from_us(-1, 50_000).unwrap().quota_cores(), None);
        for bad in ["", "max", "max max", "1 0", "1.5 100000", "100000"] {
            assert_eq!(Bandwidth::parse_max(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_cpu_max_panic(text in "\\PC{0,40}") {
            let _ = Bandwidth::parse_max(&text);
        }

        #[test]
        fn the_share_is_between_zero_and_one(p0: u64, p1: u64, period_ns: u64, elapsed_ns: u64) {
            let before = ThrottleCounters { throttled_periods: p0, period_ns };
            let after = ThrottleCounters { throttled_periods: p1, period_ns };
            let share = after.share_since(before, elapsed_ns);
            prop_assert!(share.is_none_or(|share| (0.0..=1.0).contains(&share)));
            prop_assert_eq!(share.is_none(), p1 < p0 || elapsed_ns == 0);
        }
    }
}
