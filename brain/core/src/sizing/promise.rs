//! The feedback loop: what a violation costs is corrected until the fleet's violations are as rare as promised.
//!
//! An integral controller in the spirit of adaptive conformal inference (Gibbs and Candès, 2021, eq. 2), on the logarithm of the price of a
//! violation instead of a level, because a price can be spent where it buys most. What has been overspent or saved so far is paid back as well.

use serde::{Deserialize, Serialize};

/// Change of the price's logarithm for a step's violations that are twice the promise, for a day's steps: slow enough not to follow noise.
const INTEGRAL_PER_DAY: f64 = 2.0;
/// Change of the price's logarithm for a balance of one day's violations.
const BALANCE_GAIN: f64 = 0.5;
/// The balance counts up to this many days' violations: an old debt shall not rule for weeks.
const BALANCE_DAYS_MAX: f64 = 7.0;
/// A step counts for at most this many times the promise.
const STEP_MAX: f64 = 20.0;
/// The price of a violation to begin with, times the promised rate: for exponential tails a quantile's price is its scale over its exceedance, and
/// a third of what is typically wanted is a usual scale.
const PRICE_START: f64 = 0.3;
/// Bounds of the price.
const PRICE_BOUNDS: (f64, f64) = (1.5, 1.5e5);

/// The price of a violation, and how the promise has been kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    /// The promised share of time with too small a size.
    rate: f64,
    day_steps: f64,
    log_price: f64,
    balance_days: f64,
}

impl Promise {
    /// `rate`: share of time with too small a size.
    pub(super) fn new(rate: f64, day_steps: usize) -> Self {
        let rate = rate.max(1e-6);
        Self { rate, day_steps: day_steps.max(1) as f64, log_price: (PRICE_START / rate).ln(), balance_days: 0.0 }
    }

    /// What was learnt before, as far as it is sound and of the same promise.
    pub(super) fn resume(&mut self, before: Self) {
        let (low, high) = PRICE_BOUNDS;
        let sound = before.log_price.is_finite() && before.balance_days.is_finite();
        if sound && (before.rate, before.day_steps) == (self.rate, self.day_steps) {
            self.log_price = before.log_price.clamp(low.ln(), high.ln());
            self.balance_days = before.balance_days.clamp(-BALANCE_DAYS_MAX, BALANCE_DAYS_MAX);
        }
    }

    /// Takes in the share of VM time in a step in which a size was too small.
    pub(super) fn learn(&mut self, violated: f64) {
        if !violated.is_finite() {
            return;
        }
        let excess = (violated / self.rate).clamp(0.0, STEP_MAX) - 1.0;
        self.balance_days = (self.balance_days + excess / self.day_steps).clamp(-BALANCE_DAYS_MAX, BALANCE_DAYS_MAX);
        let (low, high) = PRICE_BOUNDS;
        self.log_price = (self.log_price + INTEGRAL_PER_DAY * excess / self.day_steps).clamp(low.ln(), high.ln());
    }

    /// What a violation is worth, as a multiple of what the fleet's VMs typically want: large fleets and small VMs are served alike.
    pub fn price(&self) -> f64 {
        (self.log_price + BALANCE_GAIN * self.balance_days).exp().clamp(PRICE_BOUNDS.0, PRICE_BOUNDS.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_price_rises_while_the_promise_is_broken_and_is_bounded() {
        let mut promise = Promise::new(0.005, 288);
        let before = promise.price();
        (0..288).for_each(|_| promise.learn(0.01));
        assert!(promise.price() > 2.0 * before);
        (0..100_000).for_each(|_| promise.learn(1.0));
        assert!(promise.price() <= PRICE_BOUNDS.1);
        (0..1_000_000).for_each(|_| promise.learn(0.0));
        assert!(promise.price() >= PRICE_BOUNDS.0);
    }

    #[test]
    fn what_was_learnt_is_resumed_for_the_same_promise_only() {
        let mut learnt = Promise::new(0.005, 288);
        (0..288).for_each(|_| learnt.learn(0.01));
        let resumed = |rate, before: Promise| {
            let mut promise = Promise::new(rate, 288);
            promise.resume(before);
            promise
        };
        assert_eq!(resumed(0.005, learnt), learnt);
        assert_eq!(resumed(0.001, learnt), Promise::new(0.001, 288));
        assert_eq!(resumed(0.005, Promise { log_price: f64::NAN, ..learnt }), Promise::new(0.005, 288));
        assert!(resumed(0.005, Promise { log_price: 1e9, ..learnt }).price() <= PRICE_BOUNDS.1);
    }

    #[test]
    fn a_world_whose_violations_fall_with_the_price_gets_what_was_promised() {
        let mut promise = Promise::new(0.005, 288);
        let (mut sum, steps) = (0.0, 288 * 28);
        for _ in 0..steps {
            // Three times as many violations as the model thinks.
            let violated = 3.0 * PRICE_START / promise.price();
            promise.learn(violated);
            sum += violated;
        }
        assert!((sum / f64::from(steps) - 0.005).abs() < 0.0005, "{}", sum / f64::from(steps));
    }
}
