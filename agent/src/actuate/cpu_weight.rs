//! A VM's share of CPU time while there is not enough for all, through libvirt, confirmed by the kernel.
//!
//! One scale for both versions of control groups, that of version 2's `cpu.weight`; libvirt takes the number of whatever version the
//! host has ([`CpuWeight`] converts).

use super::dispatch::NOT_BY_THIS;
use super::{ActuateError, Actuator};
use crate::host::cgroup::CpuWeight;
use gnomon_common::wire::{Means, Setting, VmId};

/// libvirt's view: it can be changed.
pub trait WeightControl: Send {
    /// The domain's `cpu_shares`, in the numbers of the host's version of control groups.
    fn shares(&mut self, vm: VmId) -> Result<u64, ActuateError>;
    /// Changes them.
    fn set_shares(&mut self, vm: VmId, shares: u64) -> Result<(), ActuateError>;
}

/// The kernel's view: it can only be read.
pub trait WeightWitness: Send {
    /// The weight of the domain's control group.
    fn weight(&mut self, vm: VmId) -> Result<CpuWeight, ActuateError>;
}

/// The actuator.
#[derive(Debug)]
pub struct CpuWeights<C, W> {
    control: C,
    witness: W,
}

impl<C: WeightControl, W: WeightWitness> CpuWeights<C, W> {
    /// Puts both views together.
    pub fn new(control: C, witness: W) -> Self {
        Self { control, witness }
    }
}

impl<C: WeightControl, W: WeightWitness> Actuator for CpuWeights<C, W> {
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError> {
        if means != Means::CpuWeight {
            return Err(ActuateError::Unsupported { means, why: NOT_BY_THIS.to_owned() });
        }
        on_the_scale(self.witness.weight(vm)?)
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError> {
        let Setting::CpuWeight { weight } = target else {
            return Err(ActuateError::Unsupported { means: target.means(), why: NOT_BY_THIS.to_owned() });
        };
        let before = self.witness.weight(vm)?;
        let raw = before.raw_for(weight);
        self.control.set_shares(vm, raw)?;
        let (told, kernel) = (self.control.shares(vm)?, on_the_scale(self.witness.weight(vm)?)?);
        if told == raw && kernel == target {
            return Ok(kernel);
        }
        let libvirt = match before {
            CpuWeight::Shares(_) => CpuWeight::Shares(told),
            CpuWeight::Weight(_) => CpuWeight::Weight(told),
        };
        Err(ActuateError::ReadBack { wanted: target, libvirt: on_the_scale(libvirt)?, kernel })
    }
}

/// Shares that no weight stands for could not be brought back, so they are left alone.
fn on_the_scale(weight: CpuWeight) -> Result<Setting, ActuateError> {
    let off = || format!("its owner gave it {weight:?}, which lies beyond the scale of 1 to 10000");
    let weight = weight.weight().ok_or_else(|| ActuateError::Unsupported { means: Means::CpuWeight, why: off() })?;
    Ok(Setting::CpuWeight { weight })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use uuid::Uuid;

    const VM: VmId = VmId(Uuid::nil());

    /// A host of version 1 or 2 whose libvirt writes through to the kernel, or does not.
    #[derive(Clone)]
    struct Host {
        kernel: Arc<Mutex<CpuWeight>>,
        writes_through: bool,
    }

    impl WeightControl for Host {
        fn shares(&mut self, _: VmId) -> Result<u64, ActuateError> {
            let (CpuWeight::Shares(raw) | CpuWeight::Weight(raw)) = *self.kernel.lock().unwrap();
            Ok(raw)
        }

        fn set_shares(&mut self, _: VmId, shares: u64) -> Result<(), ActuateError> {
            if self.writes_through {
                let (CpuWeight::Shares(raw) | CpuWeight::Weight(raw)) = &mut *self.kernel.lock().unwrap();
                *raw = shares;
            }
            Ok(())
        }
    }

    impl WeightWitness for Host {
        fn weight(&mut self, _: VmId) -> Result<CpuWeight, ActuateError> {
            Ok(*self.kernel.lock().unwrap())
        }
    }

    fn actuator(kernel: CpuWeight, writes_through: bool) -> CpuWeights<Host, Host> {
        let host = Host { kernel: Arc::new(Mutex::new(kernel)), writes_through };
        CpuWeights::new(host.clone(), host)
    }

    fn weight(weight: u32) -> Setting {
        Setting::CpuWeight { weight }
    }

    #[test]
    fn a_weight_is_written_in_the_numbers_of_the_hosts_version() {
        for (kernel, raw) in
            [(CpuWeight::Shares(1_024), CpuWeight::Shares(3_072)), (CpuWeight::Weight(100), CpuWeight::Weight(300))]
        {
            let mut actuator = actuator(kernel, true);
            assert_eq!(actuator.in_force(VM, Means::CpuWeight), Ok(weight(100)));
            assert_eq!(actuator.apply(VM, weight(300)), Ok(weight(300)));
            assert_eq!(actuator.witness.weight(VM), Ok(raw));
            assert_eq!(actuator.apply(VM, weight(100)), Ok(weight(100)));
            assert_eq!(actuator.witness.weight(VM), Ok(kernel));
        }
    }

    #[test]
    fn a_weight_that_does_not_reach_the_kernel_is_a_retryable_failure() {
        let error = actuator(CpuWeight::Weight(100), false).apply(VM, weight(300)).unwrap_err();
        assert!(matches!(error, ActuateError::ReadBack { kernel, .. } if kernel == weight(100)));
        assert!(error.retryable());
    }

    #[test]
    fn shares_that_could_not_be_brought_back_are_not_touched() {
        let error = actuator(CpuWeight::Shares(262_144), true).in_force(VM, Means::CpuWeight).unwrap_err();
        assert!(matches!(error, ActuateError::Unsupported { means: Means::CpuWeight, .. }));
    }
}
