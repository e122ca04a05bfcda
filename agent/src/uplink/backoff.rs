//! When to try again: exponential back-off with full jitter, so that the agents of a whole fleet do not return to a restarted brain in step.
//! Pure: randomness comes in as a number.

use std::time::Duration;

/// Upper end of the first pause. A brain that restarts is back within a second or two.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// Upper end of every pause: a brain that was away for an hour has its fleet back within half a minute.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A session that lasted this long ends a series of failures. One that ends sooner is a failure itself, or a brain that welcomes and then
/// closes would be tried without pause.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The length of a series of failures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure: `uniform` (0..1) of a bound that doubles from [`PAUSE_FIRST`] to [`PAUSE_MAX`].
    pub(super) fn pause(&mut self, uniform: f64) -> Duration {
        let bound = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(uniform.clamp(0.0, 1.0))
    }

    /// A failure that a person has to mend: the bound is [`PAUSE_MAX`] from now on.
    pub(super) fn give_time(&mut self) {
        self.failures = u32::MAX;
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bound_doubles_up_to_its_maximum_and_starts_again_after_a_success() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..8).map(|_| backoff.pause(1.0).as_millis()).collect();
        assert_eq!(bounds, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.pause(1.0), PAUSE_FIRST);
        backoff.give_time();
        assert_eq!(backoff.pause(1.0), PAUSE_MAX);
    }

    proptest! {
        #[test]
        fn no_pause_is_ever_longer_than_the_maximum(failures in any::<u32>(), uniform in any::<f64>()) {
            prop_assume!(!uniform.is_nan());
            let pause = Backoff { failures }.pause(uniform);
            prop_assert!(pause <= PAUSE_MAX);
        }
    }
}
