//! Gives any actuator a deadline.
//!
//! libvirt's calls have none, and a QEMU that hangs makes them block for as long as it likes. The inner actuator works on its own thread; a
//! call that does not return in time is left there and answered [`ActuateError::Deadline`]. Until it returns, every further call is
//! answered [`ActuateError::Stuck`] at once: a late change must never overtake a newer one.

use super::{ActuateError, Actuator};
use gnomon_common::wire::{Means, Setting, VmId};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

/// How long libvirt may take for one change: it does so in milliseconds, unless it waits for a job on the same domain.
pub const ACTUATION_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Call {
    InForce(VmId, Means),
    Apply(VmId, Setting),
}

type Answer = Result<Setting, ActuateError>;

/// An actuator that answers within its limit. At most one call is ever under way, so neither channel can grow.
#[derive(Debug)]
pub struct WithDeadline {
    calls: Sender<Call>,
    answers: Receiver<Answer>,
    limit: Duration,
    outstanding: bool,
}

impl WithDeadline {
    /// Moves `inner` to a thread of its own. The thread ends with this value, or after its last call has returned.
    pub fn new(mut inner: impl Actuator + 'static, limit: Duration) -> std::io::Result<Self> {
        let (calls, to_do) = channel();
        let (done, answers) = channel();
        std::thread::Builder::new().name("gnomon-actuate".to_owned()).spawn(move || {
            for call in to_do {
                let answer = match call {
                    Call::InForce(vm, means) => inner.in_force(vm, means),
                    Call::Apply(vm, target) => inner.apply(vm, target),
                };
                if done.send(answer).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { calls, answers, limit, outstanding: false })
    }

    fn call(&mut self, call: Call) -> Answer {
        let gone = || ActuateError::Unavailable("the actuation thread has ended; restart the agent".to_owned());
        if self.outstanding {
            // The caller has had its answer, a failure; this late one only tells that libvirt is back.
            match self.answers.try_recv() {
                Ok(_late) => self.outstanding = false,
                Err(TryRecvError::Empty) => return Err(ActuateError::Stuck),
                Err(TryRecvError::Disconnected) => return Err(gone()),
            }
        }
        self.calls.send(call).map_err(|_| gone())?;
        match self.answers.recv_timeout(self.limit) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.outstanding = true;
                Err(ActuateError::Deadline(self.limit))
            }
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

impl Actuator for WithDeadline {
    fn in_force(&mut self, vm: VmId, means: Means) -> Answer {
        self.call(Call::InForce(vm, means))
    }

    fn apply(&mut self, vm: VmId, target: Setting) -> Answer {
        self.call(Call::Apply(vm, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use uuid::Uuid;

    /// Returns from `apply` when told to.
    struct Gated(Receiver<()>);

    impl Actuator for Gated {
        fn in_force(&mut self, _: VmId, _: Means) -> Answer {
            Ok(quota(2.0))
        }

        fn apply(&mut self, _: VmId, target: Setting) -> Answer {
            self.0.recv().unwrap();
            Ok(target)
        }
    }

    fn quota(cores: f64) -> Setting {
        Setting::CpuQuota { cores: Some(cores) }
    }

    #[test]
    fn a_call_that_hangs_blocks_neither_the_caller_nor_lets_a_newer_one_overtake() {
        let vm = VmId(Uuid::from_u128(1));
        let (open, gate) = channel();
        let mut actuator = WithDeadline::new(Gated(gate), Duration::from_millis(30)).unwrap();
        assert_eq!(actuator.in_force(vm, Means::CpuQuota), Ok(quota(2.0)));
        assert_eq!(actuator.apply(vm, quota(1.0)), Err(ActuateError::Deadline(Duration::from_millis(30))));
        assert_eq!(actuator.in_force(vm, Means::CpuQuota), Err(ActuateError::Stuck));
        open.send(()).unwrap();
        let patience = Instant::now() + Duration::from_secs(5);
        while actuator.in_force(vm, Means::CpuQuota) == Err(ActuateError::Stuck) {
            assert!(Instant::now() < patience, "still stuck after the call returned");
            std::thread::sleep(Duration::from_millis(1));
        }
        open.send(()).unwrap();
        assert_eq!(actuator.apply(vm, quota(3.0)), Ok(quota(3.0)), "the late answer was not mistaken for this one");
    }

    #[test]
    fn an_actuator_that_panicked_is_reported() {
        let (open, gate) = channel::<()>();
        drop(open);
        let mut actuator = WithDeadline::new(Gated(gate), Duration::from_secs(5)).unwrap();
        let vm = VmId(Uuid::from_u128(1));
        assert!(matches!(actuator.apply(vm, quota(1.0)), Err(ActuateError::Unavailable(_))));
    }
}
