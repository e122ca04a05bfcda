//! Carries out what was judged good: one file per means.
//!
//! An actuator is given absolute targets, reads back what it did, and reports a failure together with whether the same target may be
//! reached later. It judges nothing and remembers nothing: that is [`crate::command`]'s part. All calls block.

pub mod cpu_quota;
pub mod deadline;

use gnomon_common::wire::{Means, Setting, VmId};
use std::time::Duration;

/// Changes VMs, by one means or several.
pub trait Actuator: Send {
    /// The state that a means is in now.
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError>;

    /// Brings the target's means to that state and returns what was read back, which [is the same](same) within rounding.
    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError>;
}

/// Why a limit was not read or not changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ActuateError {
    /// The VM is not active on this host.
    #[error("VM {0} is not active on this host")]
    NoSuchVm(VmId),
    /// The VM, its hypervisor or this agent has no such means.
    #[error("the {means} of this VM cannot be changed: {why}")]
    Unsupported {
        /// Which means.
        means: Means,
        /// What is missing, for a person.
        why: String,
    },
    /// libvirt refuses, now and later.
    #[error("libvirt refused: {0}")]
    Rejected(String),
    /// libvirt is not there or busy.
    #[error("libvirt cannot do this now: {0}")]
    Unavailable(String),
    /// The VM's cgroup cannot be read, so that nothing can be confirmed.
    #[error("the VM's cgroup does not tell its quota: {0}")]
    Unwitnessed(String),
    /// What was read back is not what was set: someone else changes the same limit, or it did not reach the kernel.
    #[error("wanted {wanted}, but libvirt says {libvirt} and the kernel {kernel}")]
    ReadBack {
        /// What was set.
        wanted: Setting,
        /// What libvirt says.
        libvirt: Setting,
        /// What is in force by an independent look: the cgroup, the balloon.
        kernel: Setting,
    },
    /// No answer in time. The call goes on and may still take effect.
    #[error("no answer from libvirt within {} s; the change may still happen", .0.as_secs_f64())]
    Deadline(Duration),
    /// An earlier call that ran past its deadline has not returned yet.
    #[error("libvirt has not answered an earlier call yet")]
    Stuck,
}

impl ActuateError {
    /// Whether the same target may be reached later.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::NoSuchVm(_) | Self::Rejected(_) | Self::Unsupported { .. })
    }
}

/// Two limits closer than this are the same: quotas are whole microseconds of a period, and the shortest period the kernel accepts is
/// 1 ms, so that rounding moves a limit by up to 5e-4 cores.
pub const ROUNDING_CORES: f64 = 6e-4;

/// Whether two limits are the same within rounding.
pub fn same_limit(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => (a - b).abs() <= ROUNDING_CORES,
        _ => false,
    }
}

/// Whether two states of a means are the same within rounding; those of different means never are.
pub fn same(a: Setting, b: Setting) -> bool {
    match (a, b) {
        (Setting::CpuQuota { cores: a }, Setting::CpuQuota { cores: b }) => same_limit(a, b),
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_compared_within_one_microsecond_of_a_period() {
        assert!(same_limit(None, None));
        assert!(same_limit(Some(1.0 / 3.0), Some(0.33333)));
        assert!(!same_limit(Some(1.0), Some(1.001)));
        assert!(!same_limit(None, Some(4.0)));
    }
}
