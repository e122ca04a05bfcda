//! A VM's memory, by its balloon.
//!
//! The target is the guest's to reach: its driver takes pages from the guest's kernel and gives them to QEMU, or the other way, within
//! milliseconds or seconds, and stops where the guest has no more to give. Nothing may wait for that (the thread is that of all VMs), so
//! an actuation watches the balloon for [`PATIENCE`] and then reports what it has reached: a target that is not reached yet is no
//! failure, and the next report tells how far it came. A balloon that has not moved at all is one, since a driver that lives
//! begins at once; the target stands then too, and the undo record was written before.

use super::dispatch::NOT_BY_THIS;
use super::{ActuateError, Actuator, same};
use gnomon_common::wire::{Means, Setting, VmId};
use std::time::{Duration, Instant};

/// How long a balloon is watched: a driver moves some hundred MiB in this time, and no command waits long behind another.
pub const PATIENCE: Duration = Duration::from_millis(1_500);

/// Time between two looks, each a round trip to QEMU.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// libvirt's view of balloons.
pub trait BalloonControl: Send {
    /// What the balloon leaves to the guest by QEMU's own account, in bytes.
    fn bytes(&mut self, vm: VmId) -> Result<u64, ActuateError>;
    /// Sets the balloon's target.
    fn set_bytes(&mut self, vm: VmId, bytes: u64) -> Result<(), ActuateError>;
}

/// The actuator.
#[derive(Debug)]
pub struct Balloons<C> {
    control: C,
    patience: Duration,
}

impl<C: BalloonControl> Balloons<C> {
    /// Moves balloons through `control`.
    pub fn new(control: C) -> Self {
        Self { control, patience: PATIENCE }
    }

    fn now(&mut self, vm: VmId) -> Result<Setting, ActuateError> {
        self.control.bytes(vm).map(|bytes| Setting::Memory { bytes })
    }
}

impl<C: BalloonControl> Actuator for Balloons<C> {
    fn in_force(&mut self, vm: VmId, means: Means) -> Result<Setting, ActuateError> {
        match means {
            Means::Memory => self.now(vm),
            means => Err(ActuateError::Unsupported { means, why: NOT_BY_THIS.to_owned() }),
        }
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Result<Setting, ActuateError> {
        let Setting::Memory { bytes } = target else {
            return Err(ActuateError::Unsupported { means: target.means(), why: NOT_BY_THIS.to_owned() });
        };
        let before = self.now(vm)?;
        self.control.set_bytes(vm, bytes)?;
        let deadline = Instant::now() + self.patience;
        loop {
            let now = self.now(vm)?;
            if same(now, target) {
                return Ok(now);
            }
            if Instant::now() >= deadline {
                if now == before {
                    return Err(ActuateError::Unmoved { wanted: target, now, waited: self.patience });
                }
                tracing::info!(%vm, %now, %target, "the balloon is on its way");
                return Ok(now);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const VM: VmId = VmId(Uuid::nil());
    const MIB: u64 = 1 << 20;

    /// A balloon that moves by so much at each look, and not below a bound.
    struct Guest {
        bytes: u64,
        target: u64,
        pace: u64,
        least: u64,
    }

    impl BalloonControl for Guest {
        fn bytes(&mut self, _: VmId) -> Result<u64, ActuateError> {
            let wanted = self.target.max(self.least);
            self.bytes = match self.bytes.abs_diff(wanted).min(self.pace) {
                step if wanted > self.bytes => self.bytes + step,
                step => self.bytes - step,
            };
            Ok(self.bytes)
        }

        fn set_bytes(&mut self, _: VmId, bytes: u64) -> Result<(), ActuateError> {
            self.target = bytes;
            Ok(())
        }
    }

    fn apply(pace_mib: u64, least_mib: u64, target_mib: u64) -> (Result<Setting, ActuateError>, Duration) {
        let guest = Guest { bytes: 128 * MIB, target: 128 * MIB, pace: pace_mib * MIB, least: least_mib * MIB };
        let mut balloons = Balloons { control: guest, patience: Duration::from_millis(120) };
        let began = Instant::now();
        (balloons.apply(VM, memory(target_mib)), began.elapsed())
    }

    fn memory(mib: u64) -> Setting {
        Setting::Memory { bytes: mib * MIB }
    }

    #[test]
    fn a_balloon_that_arrives_is_not_waited_for_any_longer() {
        let (reached, took) = apply(64, 0, 192);
        assert_eq!(reached, Ok(memory(192)));
        assert!(took < Duration::from_millis(100), "took {took:?}");
    }

    #[test]
    fn what_a_slow_or_unwilling_guest_has_reached_by_then_is_in_force() {
        assert!(matches!(apply(4, 0, 192).0, Ok(Setting::Memory { bytes }) if (129 * MIB..192 * MIB).contains(&bytes)));
        assert_eq!(apply(64, 100, 64).0, Ok(memory(100)), "it has no more to give");
    }

    #[test]
    fn a_balloon_that_does_not_move_is_a_retryable_failure() {
        let error = apply(0, 0, 64).0.unwrap_err();
        assert!(matches!(error, ActuateError::Unmoved { now, .. } if now == memory(128)));
        assert!(error.retryable());
    }
}
