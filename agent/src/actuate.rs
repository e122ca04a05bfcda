//! Carries out what was judged good: one file per means, put together by [`dispatch`].
//!
//! An actuator is given absolute targets, reads back what it did, and reports a failure together with whether the same target may be
//! reached later. It judges nothing and remembers nothing: that is [`crate::command`]'s part. All calls block. What is set is read
//! back from who enforces it, not from who was told:
//!
//! | means | told | read back from |
//! |---|---|---|
//! | CPU quota, CPU weight | libvirt | the domain's control group |
//! | memory | libvirt (the balloon's target) | QEMU: what the balloon has reached within [`memory::PATIENCE`] |
//! | vCPUs | libvirt | libvirt's count, which it takes from QEMU |
//! | disk limit | libvirt, each disk | QEMU's own throttle settings |
//! | network limit | libvirt, each interface | libvirt, which has run `tc` and believes its result |
//!
//! All of these changes are made to the running domain, never to its definition, so that they end with its life. [`migrate`] moves a VM to
//! another host, and [`shadow`] makes small copies of other hosts' VMs, which are no means of sizing. [`dirty_rate`] changes nothing: it measures what a move would take.

pub mod cpu_quota;
pub mod cpu_weight;
pub mod deadline;
pub mod dirty_rate;
pub mod disk_limit;
pub mod dispatch;
pub mod each_device;
pub mod host;
pub mod memory;
pub mod migrate;
pub mod network_limit;
pub mod shadow;
pub mod vcpus;

use crate::host::libvirt::{HypervisorError, NETWORK_UNIT_BYTES_PER_S, QuotaError};
use gnomon_common::wire::{Means, Setting, VmId};
use std::time::Duration;

/// Changes VMs, by one means or several.
pub trait Actuator: Send {
    /// The state that a means is in now.
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError>;

    /// Brings the target's means to that state and returns what was read back, which [is the same](same) within rounding; of
    /// memory, where a balloon moves over seconds, what it has reached by now.
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
    /// The guest does not give back what it was given: nothing but a restart of the VM undoes it.
    #[error(
        "the {means} of this VM cannot be taken back ({now} are in force): {why}; irreversible until it is restarted"
    )]
    Irreversible {
        /// Which means.
        means: Means,
        /// What is in force, and stays so.
        now: Setting,
        /// What the guest or libvirt said.
        why: String,
    },
    /// The guest's balloon driver has not begun to move.
    #[error("the guest's balloon has not moved within {} s: {now} instead of {wanted}; its target stands", .waited.as_secs_f64())]
    Unmoved {
        /// What was set.
        wanted: Setting,
        /// What is in force.
        now: Setting,
        /// How long it was waited for.
        waited: Duration,
    },
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
    /// What a failure of libvirt's means for a means.
    fn of_libvirt(means: Means, error: HypervisorError) -> Self {
        match error {
            HypervisorError::NoSuchDomain(vm) => Self::NoSuchVm(vm),
            HypervisorError::Unsupported(why) => Self::Unsupported { means, why },
            HypervisorError::Quota(error @ QuotaError::Unsupported) => {
                Self::Unsupported { means, why: error.to_string() }
            }
            error if error.is_retryable() => Self::Unavailable(error.to_string()),
            error => Self::Rejected(error.to_string()),
        }
    }

    /// Whether the same target may be reached later.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::NoSuchVm(_) | Self::Rejected(_) | Self::Unsupported { .. } | Self::Irreversible { .. })
    }
}

/// Two limits closer than this are the same: quotas are whole microseconds of a period, and the shortest period the kernel accepts is
/// 1 ms, so that rounding moves a limit by up to 5e-4 cores.
pub const ROUNDING_CORES: f64 = 6e-4;

/// Two balloon sizes closer than this are the same, in bytes: a driver takes and gives pages by the mebibyte (256 at a time), and a
/// guest with huge pages rounds further.
pub const ROUNDING_BYTES: u64 = 2 << 20;

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
        (Setting::Memory { bytes: a }, Setting::Memory { bytes: b }) => a.abs_diff(b) < ROUNDING_BYTES,
        (
            Setting::NetworkLimit { in_bytes_per_s: in_a, out_bytes_per_s: out_a },
            Setting::NetworkLimit { in_bytes_per_s: in_b, out_bytes_per_s: out_b },
        ) => same_rate(in_a, in_b) && same_rate(out_a, out_b),
        (a, b) => a == b,
    }
}

/// Rates are set in whole units of libvirt's.
fn same_rate(a: Option<u64>, b: Option<u64>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.abs_diff(b) < NETWORK_UNIT_BYTES_PER_S,
        _ => false,
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

    #[test]
    fn states_are_the_same_within_what_their_means_rounds_to() {
        let memory = |bytes| Setting::Memory { bytes };
        assert!(same(memory(128 << 20), memory((128 << 20) + 4096)));
        assert!(!same(memory(128 << 20), memory(131 << 20)));
        let network = |rate| Setting::NetworkLimit { in_bytes_per_s: rate, out_bytes_per_s: None };
        assert!(same(network(Some(1_000_400)), network(Some(1_000_000))));
        assert!(!same(network(Some(1_000)), network(None)));
        assert!(!same(Setting::Vcpus { count: 1 }, Setting::Vcpus { count: 2 }));
        assert!(!same(Setting::Vcpus { count: 100 }, Setting::CpuWeight { weight: 100 }));
    }

    #[test]
    fn what_the_guest_does_not_give_back_is_not_tried_again() {
        let now = Setting::Vcpus { count: 2 };
        let error = ActuateError::Irreversible { means: Means::Vcpus, now, why: "timed out".into() };
        assert!(!error.retryable());
        assert_eq!(
            error.to_string(),
            "the vCPUs of this VM cannot be taken back (2 vCPUs are in force): timed out; irreversible until it is restarted"
        );
    }
}
