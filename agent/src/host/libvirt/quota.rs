//! A domain's CPU quota: cores <-> libvirt's `global_period` and `global_quota` (microseconds). Pure.

use virt::domain::{SchedBandwidth, SchedulerInfo};

/// The period used where the domain has none, in microseconds: the kernel's default.
const PERIOD_DEFAULT_US: u64 = 100_000;
/// Shortest period that the kernel and libvirt accept, in microseconds.
const PERIOD_MIN_US: u64 = 1_000;
/// Longest period that the kernel and libvirt accept, in microseconds.
const PERIOD_MAX_US: u64 = 1_000_000;
/// Smallest quota that the kernel and libvirt accept, in microseconds.
const QUOTA_MIN_US: f64 = 1_000.0;
/// A quota of this many cores or more is no limit: larger than any machine, far smaller than the numbers by which libvirt means
/// "unlimited" (2^44 - 1, 2^64 / 1000 and, wrapped into its signed type, -1).
const CORES_UNLIMITED: f64 = 65_536.0;

/// Why a quota cannot be read or set.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum QuotaError {
    /// This hypervisor has no quota for a domain as a whole.
    #[error(
        "this hypervisor driver knows no CPU quota for a whole domain (global_quota): is it QEMU with the cpu cgroup?"
    )]
    Unsupported,
    /// Not a number of cores that the kernel can enforce.
    #[error(
        "a CPU quota of {cores} cores is not within {min_cores}..{CORES_UNLIMITED} cores, which the kernel can enforce"
    )]
    OutOfRange {
        /// What was asked for.
        cores: f64,
        /// The smallest possible with this domain's period.
        min_cores: f64,
    },
}

/// A quota in cores; `None` is unlimited.
pub(super) fn cores(bandwidth: &SchedBandwidth) -> Result<Option<f64>, QuotaError> {
    let quota_us = bandwidth.quota.ok_or(QuotaError::Unsupported)?;
    let cores = quota_us as f64 / period_us(bandwidth) as f64;
    Ok((quota_us > 0 && cores < CORES_UNLIMITED).then_some(cores))
}

/// The parameters that set a quota of `cores` on a domain whose bandwidth is `now`.
pub(super) fn encode(cores: Option<f64>, now: &SchedBandwidth) -> Result<SchedulerInfo, QuotaError> {
    if now.quota.is_none() {
        return Err(QuotaError::Unsupported);
    }
    let period_us = period_us(now);
    let quota_us = match cores {
        None => -1,
        Some(cores) => {
            let quota_us = (cores * period_us as f64).round();
            // Written so that NaN is refused too.
            if !(quota_us >= QUOTA_MIN_US && cores < CORES_UNLIMITED) {
                return Err(QuotaError::OutOfRange { cores, min_cores: QUOTA_MIN_US / period_us as f64 });
            }
            quota_us as i64
        }
    };
    let global_bw = SchedBandwidth { period: Some(period_us), quota: Some(quota_us) };
    Ok(SchedulerInfo { global_bw, ..SchedulerInfo::default() })
}

fn period_us(bandwidth: &SchedBandwidth) -> u64 {
    bandwidth.period.filter(|us| (PERIOD_MIN_US..=PERIOD_MAX_US).contains(us)).unwrap_or(PERIOD_DEFAULT_US)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bandwidth(period: u64, quota: i64) -> SchedBandwidth {
        SchedBandwidth { period: Some(period), quota: Some(quota) }
    }

    #[test]
    fn every_encoding_of_unlimited_is_unlimited() {
        for quota in [-1, 0, (1 << 44) - 1, (u64::MAX / 1000) as i64, i64::MAX, i64::MIN] {
            assert_eq!(cores(&bandwidth(100_000, quota)), Ok(None), "{quota}");
        }
        assert_eq!(cores(&bandwidth(50_000, 75_000)), Ok(Some(1.5)));
    }

    #[test]
    fn a_driver_without_domain_quota_is_told_apart_from_an_unlimited_domain() {
        assert_eq!(cores(&SchedBandwidth::default()), Err(QuotaError::Unsupported));
        assert_eq!(encode(Some(1.0), &SchedBandwidth::default()).unwrap_err(), QuotaError::Unsupported);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_before_it_is_asked() {
        for bad in [0.0, -1.0, 0.009, f64::NAN, f64::INFINITY, 65_536.0] {
            assert!(encode(Some(bad), &bandwidth(100_000, -1)).is_err(), "{bad}");
        }
        assert!(encode(Some(0.01), &bandwidth(100_000, -1)).is_ok());
        assert!(encode(Some(0.01), &bandwidth(50_000, -1)).is_err(), "the minimum depends on the period");
    }

    #[test]
    fn the_owners_period_is_kept_unless_it_is_impossible() {
        assert_eq!(encode(Some(1.0), &bandwidth(20_000, -1)).unwrap().global_bw.period, Some(20_000));
        assert_eq!(encode(Some(1.0), &bandwidth(0, -1)).unwrap().global_bw.period, Some(100_000));
        assert_eq!(encode(None, &bandwidth(20_000, 5)).unwrap().global_bw.quota, Some(-1));
    }

    proptest! {
        #[test]
        fn what_is_set_is_read_back(target in 0.01f64..1000.0, period in 100_000u64..=1_000_000) {
            let change = encode(Some(target), &bandwidth(period, -1)).unwrap();
            let read = cores(&change.global_bw).unwrap().unwrap();
            prop_assert!((read - target).abs() <= 0.5 / period as f64 + 1e-9, "{target} became {read}");
        }

        #[test]
        fn nothing_libvirt_may_say_becomes_an_absurd_quota(period: Option<u64>, quota: Option<i64>) {
            if let Ok(Some(cores)) = cores(&SchedBandwidth { period, quota }) {
                prop_assert!(cores > 0.0 && cores < CORES_UNLIMITED);
            }
        }
    }
}
