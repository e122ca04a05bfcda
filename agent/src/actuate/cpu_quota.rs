//! A VM's CPU quota, through libvirt, confirmed by libvirt and by the kernel.
//!
//! libvirt is told, because a quota written to the cgroup behind its back would be undone at its next change; the cgroup is read, because
//! only the kernel enforces anything. The change is made to the running domain, not to its definition.

use super::dispatch::NOT_BY_THIS;
use super::{ActuateError, Actuator, same_limit};
use gnomon_common::wire::{Means, Setting, VmId};

/// libvirt's view: it can be changed.
pub trait QuotaControl: Send {
    /// The domain's quota, in cores; `None` is unlimited.
    fn quota(&mut self, vm: VmId) -> Result<Option<f64>, ActuateError>;
    /// Changes it.
    fn set_quota(&mut self, vm: VmId, cores: Option<f64>) -> Result<(), ActuateError>;
}

/// The kernel's view: it can only be read.
pub trait QuotaWitness: Send {
    /// The quota of the domain's cgroup, in cores; `None` is unlimited.
    fn quota(&mut self, vm: VmId) -> Result<Option<f64>, ActuateError>;
}

/// The actuator.
#[derive(Debug)]
pub struct CpuQuota<C, W> {
    control: C,
    witness: W,
}

impl<C: QuotaControl, W: QuotaWitness> CpuQuota<C, W> {
    /// Puts both views together.
    pub fn new(control: C, witness: W) -> Self {
        Self { control, witness }
    }
}

impl<C: QuotaControl, W: QuotaWitness> Actuator for CpuQuota<C, W> {
    /// What the kernel enforces. Where libvirt says otherwise someone wrote to the cgroup, and that is what a release has to bring back.
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError> {
        only_quota(means)?;
        let libvirt = self.control.quota(vm)?;
        let cgroup = self.witness.quota(vm)?;
        if !same_limit(libvirt, cgroup) {
            let (libvirt, cgroup) = (quota(libvirt), quota(cgroup));
            tracing::warn!(%vm, %libvirt, %cgroup, "libvirt and the cgroup disagree about a VM's CPU quota");
        }
        Ok(quota(cgroup))
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError> {
        let Setting::CpuQuota { cores } = target else {
            return only_quota(target.means()).map(|()| target);
        };
        self.control.set_quota(vm, cores)?;
        let libvirt = self.control.quota(vm)?;
        let cgroup = self.witness.quota(vm)?;
        if same_limit(libvirt, cores) && same_limit(cgroup, cores) {
            Ok(quota(cgroup))
        } else {
            Err(ActuateError::ReadBack { wanted: target, libvirt: quota(libvirt), kernel: quota(cgroup) })
        }
    }
}

fn quota(cores: Option<f64>) -> Setting {
    Setting::CpuQuota { cores }
}

fn only_quota(means: Means) -> Result<(), ActuateError> {
    match means {
        Means::CpuQuota => Ok(()),
        means => Err(ActuateError::Unsupported { means, why: NOT_BY_THIS.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use uuid::Uuid;

    /// A libvirt whose changes reach the kernel after rounding to whole microseconds of 100 ms, or not at all.
    #[derive(Clone)]
    struct Host {
        libvirt: Arc<Mutex<Option<f64>>>,
        cgroup: Arc<Mutex<Option<f64>>>,
        reaches_kernel: bool,
    }

    impl QuotaControl for Host {
        fn quota(&mut self, _: VmId) -> Result<Option<f64>, ActuateError> {
            Ok(*self.libvirt.lock().unwrap())
        }

        fn set_quota(&mut self, _: VmId, cores: Option<f64>) -> Result<(), ActuateError> {
            let rounded = cores.map(|cores| (cores * 1e5).round() / 1e5);
            *self.libvirt.lock().unwrap() = rounded;
            if self.reaches_kernel {
                *self.cgroup.lock().unwrap() = rounded;
            }
            Ok(())
        }
    }

    impl QuotaWitness for Host {
        fn quota(&mut self, _: VmId) -> Result<Option<f64>, ActuateError> {
            Ok(*self.cgroup.lock().unwrap())
        }
    }

    fn actuator(libvirt: Option<f64>, cgroup: Option<f64>, reaches_kernel: bool) -> CpuQuota<Host, Host> {
        let host =
            Host { libvirt: Arc::new(Mutex::new(libvirt)), cgroup: Arc::new(Mutex::new(cgroup)), reaches_kernel };
        CpuQuota::new(host.clone(), host)
    }

    const VM: VmId = VmId(Uuid::nil());

    #[test]
    fn a_change_is_confirmed_by_the_kernel_within_rounding() {
        let mut actuator = actuator(None, None, true);
        assert_eq!(actuator.in_force(VM, Means::CpuQuota), Ok(quota(None)));
        assert_eq!(actuator.apply(VM, quota(Some(1.0 / 3.0))), Ok(quota(Some(0.33333))));
        assert_eq!(actuator.apply(VM, quota(None)), Ok(quota(None)));
    }

    #[test]
    fn a_change_that_does_not_reach_the_kernel_is_a_retryable_failure() {
        let error = actuator(Some(2.0), Some(2.0), false).apply(VM, quota(Some(1.0))).unwrap_err();
        let (one, two) = (quota(Some(1.0)), quota(Some(2.0)));
        assert_eq!(error, ActuateError::ReadBack { wanted: one, libvirt: one, kernel: two });
        assert!(error.retryable());
        assert_eq!(error.to_string(), "wanted 1.00 cores, but libvirt says 1.00 cores and the kernel 2.00 cores");
    }

    #[test]
    fn what_the_kernel_enforces_is_in_force_whatever_libvirt_believes() {
        assert_eq!(actuator(None, Some(2.0), true).in_force(VM, Means::CpuQuota), Ok(quota(Some(2.0))));
    }
}
