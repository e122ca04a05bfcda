//! A limit that holds for each of a VM's devices of one kind alike: what disks and network interfaces have in common.
//!
//! A [`Setting`] has one limit for all of them, so that is all that can be brought back: devices that their owner has limited differently
//! are left alone. For the same reason a change is made to all devices or to none: when one fails, it and those before it are set back
//! (a limit that failed may be half in force: libvirt leaves behind what `tc` had done until then).

use super::dispatch::NOT_BY_THIS;
use super::{ActuateError, Actuator, same};
use gnomon_common::wire::{Means, Setting, VmId};
use std::ffi::{CStr, CString};
use std::marker::PhantomData;

/// A limit on a device of one kind.
pub trait Limit: Copy + Send {
    /// By which means it is set.
    const MEANS: Means;
    /// What such devices are called, for people.
    const DEVICES: &'static str;

    /// The limit that a setting wants, if it is one of this kind.
    fn wanted(setting: Setting) -> Option<Self>;
    /// The limit as a setting.
    fn setting(self) -> Setting;
}

/// Whoever limits devices of one kind.
pub trait DeviceControl<L: Limit>: Send {
    /// The names of a VM's devices of this kind.
    fn devices(&mut self, vm: VmId) -> Result<Vec<CString>, ActuateError>;
    /// What is in force on one.
    fn limit(&mut self, vm: VmId, device: &CStr) -> Result<L, ActuateError>;
    /// Changes it.
    fn set_limit(&mut self, vm: VmId, device: &CStr, limit: L) -> Result<(), ActuateError>;
}

/// The actuator.
#[derive(Debug)]
pub struct EachDevice<L, C> {
    control: C,
    kind: PhantomData<fn() -> L>,
}

impl<L: Limit, C: DeviceControl<L>> EachDevice<L, C> {
    /// Limits through `control`.
    pub fn new(control: C) -> Self {
        Self { control, kind: PhantomData }
    }

    /// A VM's devices with what is in force on each; at least one.
    fn all(&mut self, vm: VmId) -> Result<Vec<(CString, L)>, ActuateError> {
        let devices = self.control.devices(vm)?;
        if devices.is_empty() {
            return Err(unsupported::<L>(format!("it has no {}", L::DEVICES)));
        }
        devices.into_iter().map(|device| self.control.limit(vm, &device).map(|limit| (device, limit))).collect()
    }

    /// What is in force on every device.
    fn common(&mut self, vm: VmId) -> Result<(Vec<(CString, L)>, Setting), ActuateError> {
        let all = self.all(vm)?;
        let (first, limit) = &all[0];
        let one = limit.setting();
        if let Some((other, limit)) = all.iter().find(|(_, limit)| !same(limit.setting(), one)) {
            let (first, other) = (first.to_string_lossy(), other.to_string_lossy());
            let why = format!("{first} is limited to {one} and {other} to {}: make them alike first", limit.setting());
            return Err(unsupported::<L>(why));
        }
        Ok((all, one))
    }
}

fn unsupported<L: Limit>(why: String) -> ActuateError {
    ActuateError::Unsupported { means: L::MEANS, why }
}

impl<L: Limit, C: DeviceControl<L>> Actuator for EachDevice<L, C> {
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError> {
        if means != L::MEANS {
            return Err(ActuateError::Unsupported { means, why: NOT_BY_THIS.to_owned() });
        }
        self.common(vm).map(|(_, setting)| setting)
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError> {
        let Some(wanted) = L::wanted(target) else {
            return Err(ActuateError::Unsupported { means: target.means(), why: NOT_BY_THIS.to_owned() });
        };
        let (before, _) = self.common(vm)?;
        for (index, (device, _)) in before.iter().enumerate() {
            let Err(error) = self.control.set_limit(vm, device, wanted) else { continue };
            for (device, limit) in &before[..=index] {
                if let Err(error) = self.control.set_limit(vm, device, *limit) {
                    tracing::warn!(%vm, device = %device.to_string_lossy(), %error, "a device could not be set back: its limit may be half in force");
                }
            }
            return Err(error);
        }
        let (_, now) = self.common(vm)?;
        if same(now, target) {
            Ok(now)
        } else {
            Err(ActuateError::ReadBack { wanted: target, libvirt: now, kernel: now })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::libvirt::DiskTune;
    use std::collections::BTreeMap;
    use uuid::Uuid;

    const VM: VmId = VmId(Uuid::nil());

    #[derive(Default)]
    struct Disks {
        tunes: BTreeMap<CString, DiskTune>,
        /// This one refuses.
        broken: Option<CString>,
        /// Takes every change and makes none.
        deaf: bool,
    }

    impl DeviceControl<DiskTune> for Disks {
        fn devices(&mut self, _: VmId) -> Result<Vec<CString>, ActuateError> {
            Ok(self.tunes.keys().cloned().collect())
        }

        fn limit(&mut self, _: VmId, device: &CStr) -> Result<DiskTune, ActuateError> {
            Ok(self.tunes[device])
        }

        fn set_limit(&mut self, _: VmId, device: &CStr, limit: DiskTune) -> Result<(), ActuateError> {
            if self.broken.as_deref() == Some(device) && limit != DiskTune::default() {
                self.tunes.insert(device.to_owned(), DiskTune { operations_per_s: Some(1), ..limit });
                return Err(ActuateError::Unavailable("busy".to_owned()));
            }
            if !self.deaf {
                self.tunes.insert(device.to_owned(), limit);
            }
            Ok(())
        }
    }

    fn tune(bytes_per_s: Option<u64>) -> DiskTune {
        DiskTune { bytes_per_s, operations_per_s: None }
    }

    fn disks(tunes: &[(&CStr, Option<u64>)]) -> EachDevice<DiskTune, Disks> {
        let tunes = tunes.iter().map(|(disk, limit)| ((*disk).to_owned(), tune(*limit))).collect();
        EachDevice::new(Disks { tunes, ..Disks::default() })
    }

    #[test]
    fn all_disks_get_the_limit_and_lose_it_again() {
        let mut actuator = disks(&[(c"vda", None), (c"vdb", None)]);
        let before = actuator.in_force(VM, Means::DiskLimit).unwrap();
        let limit = tune(Some(7 << 20)).setting();
        assert_eq!(actuator.apply(VM, limit), Ok(limit));
        assert!(actuator.control.tunes.values().all(|tune| tune.bytes_per_s == Some(7 << 20)));
        assert_eq!(actuator.apply(VM, before), Ok(before));
        assert!(actuator.control.tunes.values().all(|tune| *tune == DiskTune::default()));
    }

    /// What fails has taken effect in part: only setting it back clears that.
    #[test]
    fn a_disk_that_refuses_leaves_all_as_they_were() {
        let mut actuator = disks(&[(c"vda", None), (c"vdb", None)]);
        actuator.control.broken = Some(c"vdb".to_owned());
        assert!(actuator.apply(VM, tune(Some(1 << 20)).setting()).unwrap_err().retryable());
        assert!(actuator.control.tunes.values().all(|tune| *tune == DiskTune::default()));
    }

    #[test]
    fn disks_that_differ_and_a_vm_without_disks_are_left_alone() {
        let mut actuator = disks(&[(c"vda", Some(5)), (c"vdb", None)]);
        let error = actuator.in_force(VM, Means::DiskLimit).unwrap_err();
        assert!(error.to_string().contains("vda is limited to disk 5 bytes/s"), "{error}");
        assert!(disks(&[]).apply(VM, tune(None).setting()).unwrap_err().to_string().contains("no disk"));
    }

    #[test]
    fn a_limit_that_is_not_taken_is_seen() {
        let mut actuator = disks(&[(c"vda", None)]);
        actuator.control.deaf = true;
        assert!(matches!(actuator.apply(VM, tune(Some(9)).setting()), Err(ActuateError::ReadBack { .. })));
    }
}
