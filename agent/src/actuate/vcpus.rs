//! A VM's number of vCPUs, by hot-plug.
//!
//! Plugging in takes QEMU alone; the guest still has to bring the CPU online. Plugging out takes the guest's consent, which many
//! guests never give, and libvirt waits some seconds for it. So a vCPU may be **irreversible**: a failed unplug is told as
//! [`ActuateError::Irreversible`], and until the VM is restarted no other is tried, because each try would hold all VMs' commands up
//! for those seconds. The undo record stays and says what a restart brings back.

use super::dispatch::NOT_BY_THIS;
use super::{ActuateError, Actuator};
use gnomon_common::wire::{Means, Setting, VmId};
use std::collections::BTreeMap;

/// libvirt's view of vCPUs.
pub trait VcpuControl: Send {
    /// vCPUs plugged in.
    fn online(&mut self, vm: VmId) -> Result<u32, ActuateError>;
    /// Plugs vCPUs in or out.
    fn set_online(&mut self, vm: VmId, count: u32) -> Result<(), ActuateError>;
    /// What tells one life of the VM from the next: its process and when that started.
    fn life(&self, vm: VmId) -> Option<(u32, u64)>;
}

/// The actuator.
#[derive(Debug)]
pub struct Vcpus<C> {
    control: C,
    /// VMs that did not give a vCPU back: in which life, and what was said. One entry a VM at most; those of VMs that are gone go
    /// at the next failure.
    unyielding: BTreeMap<VmId, ((u32, u64), String)>,
}

impl<C: VcpuControl> Vcpus<C> {
    /// Plugs through `control`.
    pub fn new(control: C) -> Self {
        Self { control, unyielding: BTreeMap::new() }
    }

    fn remember(&mut self, vm: VmId, why: &str) {
        let Self { control, unyielding } = self;
        unyielding.retain(|vm, (life, _)| control.life(*vm) == Some(*life));
        if let Some(life) = control.life(vm) {
            unyielding.insert(vm, (life, why.to_owned()));
        }
    }
}

impl<C: VcpuControl> Actuator for Vcpus<C> {
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError> {
        match means {
            Means::Vcpus => self.control.online(vm).map(|count| Setting::Vcpus { count }),
            means => Err(ActuateError::Unsupported { means, why: NOT_BY_THIS.to_owned() }),
        }
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError> {
        let Setting::Vcpus { count } = target else {
            return Err(ActuateError::Unsupported { means: target.means(), why: NOT_BY_THIS.to_owned() });
        };
        let means = Means::Vcpus;
        let before = self.control.online(vm)?;
        if before == count {
            return Ok(target);
        }
        let unplugs = count < before;
        if unplugs
            && let Some((life, why)) = self.unyielding.get(&vm)
            && self.control.life(vm) == Some(*life)
        {
            let now = Setting::Vcpus { count: before };
            return Err(ActuateError::Irreversible { means, now, why: format!("not tried again, it said {why}") });
        }
        let set = self.control.set_online(vm, count);
        let online = self.control.online(vm)?;
        match set {
            _ if online == count => Ok(target),
            // libvirt lost in between says nothing about the guest.
            Err(error @ (ActuateError::NoSuchVm(_) | ActuateError::Unavailable(_)))
                if online == before && !timed_out(&error) =>
            {
                Err(error)
            }
            Err(error) if unplugs => {
                let why = error.to_string();
                self.remember(vm, &why);
                Err(ActuateError::Irreversible { means, now: Setting::Vcpus { count: online }, why })
            }
            Err(error) => Err(error),
            Ok(()) => {
                let now = Setting::Vcpus { count: online };
                Err(ActuateError::ReadBack { wanted: target, libvirt: now, kernel: now })
            }
        }
    }
}

/// libvirt reports a guest that does not answer an unplug as a time-out, which is a retryable failure of its own elsewhere.
fn timed_out(error: &ActuateError) -> bool {
    matches!(error, ActuateError::Unavailable(words) if words.contains("timed out"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const VM: VmId = VmId(Uuid::nil());

    struct Guest {
        online: u32,
        unplug: Result<(), ActuateError>,
        tries: u32,
        pid: u32,
    }

    impl VcpuControl for Guest {
        fn online(&mut self, _: VmId) -> Result<u32, ActuateError> {
            Ok(self.online)
        }

        fn set_online(&mut self, _: VmId, count: u32) -> Result<(), ActuateError> {
            self.tries += 1;
            if count < self.online {
                self.unplug.clone()?;
            }
            self.online = count;
            Ok(())
        }

        fn life(&self, _: VmId) -> Option<(u32, u64)> {
            Some((self.pid, 1))
        }
    }

    fn vcpus(count: u32) -> Setting {
        Setting::Vcpus { count }
    }

    fn guest(unplug: Result<(), ActuateError>) -> Vcpus<Guest> {
        Vcpus::new(Guest { online: 1, unplug, tries: 0, pid: 7 })
    }

    #[test]
    fn vcpus_are_plugged_in_and_out_of_a_guest_that_consents() {
        let mut guest = guest(Ok(()));
        assert_eq!(guest.apply(VM, vcpus(2)), Ok(vcpus(2)));
        assert_eq!(guest.in_force(VM, Means::Vcpus), Ok(vcpus(2)));
        assert_eq!(guest.apply(VM, vcpus(1)), Ok(vcpus(1)));
        assert_eq!(guest.apply(VM, vcpus(1)), Ok(vcpus(1)));
        assert_eq!(guest.control.tries, 2, "what is so already needs no call");
    }

    #[test]
    fn a_guest_that_keeps_its_vcpu_is_irreversible_and_not_asked_twice_in_one_life() {
        let mut guest = guest(Err(ActuateError::Unavailable("vcpu unplug request timed out".to_owned())));
        guest.apply(VM, vcpus(2)).unwrap();
        for tries in [2, 2] {
            let error = guest.apply(VM, vcpus(1)).unwrap_err();
            assert!(matches!(error, ActuateError::Irreversible { now, .. } if now == vcpus(2)), "{error}");
            assert!(!error.retryable() && error.to_string().contains("timed out"));
            assert_eq!(guest.control.tries, tries);
        }
        guest.control.pid = 8;
        assert!(guest.apply(VM, vcpus(1)).is_err());
        assert_eq!(guest.control.tries, 3, "a new life may consent");
    }

    #[test]
    fn a_libvirt_that_is_down_says_nothing_about_the_guest() {
        let mut guest = guest(Err(ActuateError::Unavailable("connection lost".to_owned())));
        guest.apply(VM, vcpus(2)).unwrap();
        assert!(guest.apply(VM, vcpus(1)).unwrap_err().retryable());
        assert!(guest.unyielding.is_empty());
    }
}
