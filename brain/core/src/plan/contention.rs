//! How much VMs wait for the CPU on a host although their quotas let them run: measured, where rooms and forecasts only assume.
//!
//! A shadow is a witness where no production runs yet. It runs at its production's weight for each vCPU, and only windows in which its
//! own quota did not hold it back count, or it would measure that. A small guest does not wait as a large one does: where shadows and
//! productions are on one host, what both tell [calibrates](Calibration) what shadows tell elsewhere.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::CpuWindow;
use serde::{Deserialize, Serialize};

/// A window in which a quota held a VM back for more than this share tells of the quota.
const THROTTLED_MAX: f64 = 0.01;

/// Less than this much CPU wanted in a window tells nothing, in cores.
const WANTED_MIN_CORES: f64 = 0.005;

/// Weight of the latest window.
const WEIGHT: f64 = 0.125;

/// What nobody has confirmed for so long is not believed.
const BELIEVED_FOR: Duration = Duration::from_mins(10);

/// So much waiting is no reason to prefer another host.
pub(crate) const TOLERATED: f64 = 0.02;

/// Keeps ratios of two small shares near 1.
const SMALL: f64 = 0.01;

/// Windows with both kinds of witness before a shadow's word is corrected, and by what factor its odds may be at most.
const PAIRS_MIN: u32 = 10;
const RATIO_MAX: f64 = 16.0;

/// What each pair costs those before it.
const FORGETS: f64 = 1.0 / 1000.0;

/// How strongly a slope of 1 is believed, as a variance of logits; and the steepest one that is.
const SLOPE_PRIOR: f64 = 0.05;
const SLOPE_MAX: f64 = 4.0;

/// By whose word a host's contention is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// Production VMs that are there.
    Production,
    /// Shadows alone.
    Shadow,
}

/// What the VMs of one kind wanted and waited in a window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    wanted_cores: f64,
    waited_cores: f64,
}

impl Waits {
    /// Counts a VM in, unless its quota held it back.
    pub(crate) fn add(&mut self, cpu: &CpuWindow) {
        if cpu.throttled.mean > THROTTLED_MAX {
            return;
        }
        let (low, high) = (cpu.demand_low.mean.max(0.0), cpu.demand_high.mean.max(cpu.demand_low.mean));
        if low.is_finite() && high.is_finite() {
            self.wanted_cores += high;
            self.waited_cores += high - low;
        }
    }

    /// The share of what was wanted that was waited, 0..=1.
    fn share(&self) -> Option<f64> {
        (self.wanted_cores >= WANTED_MIN_CORES).then(|| (self.waited_cores / self.wanted_cores).clamp(0.0, 1.0))
    }
}

/// What the witnesses of one kind have told of a host lately.
#[derive(Clone, Copy, Debug, Default)]
struct Told(Option<(f64, Timestamp)>);

impl Told {
    fn learn(&mut self, now: Timestamp, share: Option<f64>) {
        let Some(share) = share else { return };
        let before = self.at(now).unwrap_or(share);
        self.0 = Some((before + WEIGHT * (share - before), now));
    }

    fn at(&self, now: Timestamp) -> Option<f64> {
        self.0.filter(|(_, at)| now.since(*at) < BELIEVED_FOR).map(|(share, _)| share)
    }
}

/// What is known of one host.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Contention {
    productions: Told,
    shadows: Told,
}

impl Contention {
    /// Takes in a window of a host, and what both kinds of witness together teach about shadows.
    pub(crate) fn learn(&mut self, now: Timestamp, productions: Waits, shadows: Waits, calibration: &mut Calibration) {
        let both = (productions.share(), shadows.share());
        self.productions.learn(now, both.0);
        self.shadows.learn(now, both.1);
        if let (Some(production), Some(shadow)) = both {
            calibration.learn(production, shadow);
        }
    }

    /// The share of the CPU time that they want for which VMs wait there, 0..=1, and by whose word; `None` where nobody has told lately.
    pub(crate) fn share(&self, now: Timestamp, calibration: &Calibration) -> Option<(f64, Witness)> {
        let production = self.productions.at(now).map(|share| (share, Witness::Production));
        production.or_else(|| self.shadows.at(now).map(|share| (calibration.correct(share), Witness::Shadow)))
    }
}

/// How productions wait where shadows wait so much: a small guest that wakes up for a moment waits otherwise than a large one, and the less crowded
/// the host, the more so. A line through the logarithms of both odds of waiting (Berkson's logit), by least squares in which what is long past counts
/// less, and which takes the shadow's word as it is where nothing was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calibration {
    /// Weighted number of pairs, and means of the logits and of their products.
    weight: f64,
    shadow: f64,
    production: f64,
    shadow_square: f64,
    product: f64,
    pairs: u32,
}

impl Calibration {
    fn learn(&mut self, production: f64, shadow: f64) {
        let (x, y) = (logit(shadow), logit(production));
        self.weight = self.weight * (1.0 - FORGETS) + 1.0;
        let toward = |mean: f64, value: f64| mean + (value - mean) / self.weight;
        (self.shadow, self.production) = (toward(self.shadow, x), toward(self.production, y));
        (self.shadow_square, self.product) = (toward(self.shadow_square, x * x), toward(self.product, x * y));
        self.pairs = self.pairs.saturating_add(1);
    }

    /// What productions would wait where shadows wait so much, as a share of what they want.
    fn correct(&self, share: f64) -> f64 {
        if self.pairs < PAIRS_MIN {
            return share;
        }
        let variance = (self.shadow_square - self.shadow * self.shadow).max(0.0);
        let covariance = self.product - self.shadow * self.production;
        // Where shadows always told the same the slope is 1.
        let slope = ((covariance + SLOPE_PRIOR) / (variance + SLOPE_PRIOR)).clamp(0.0, SLOPE_MAX);
        let x = logit(share);
        let y = self.production + slope * (x - self.shadow);
        let odds = y.clamp(x - RATIO_MAX.ln(), x + RATIO_MAX.ln()).exp();
        ((odds * (1.0 + SMALL) - SMALL) / (1.0 + odds)).clamp(0.0, 1.0)
    }
}

/// The logarithm of the odds of waiting.
fn logit(share: f64) -> f64 {
    ((share + SMALL) / (1.0 - share + SMALL)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::MeanMax;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(second * 1000)
    }

    fn waits(ran: f64, waited: f64, throttled: f64) -> Waits {
        let same = |value| MeanMax { mean: value, max: value };
        let mut waits = Waits::default();
        waits.add(&CpuWindow {
            demand_low: same(ran),
            demand_high: same(ran + waited),
            throttled: same(throttled),
            ..CpuWindow::default()
        });
        waits
    }

    #[test]
    fn a_shadow_tells_of_its_host_until_it_falls_silent_and_never_of_its_own_quota() {
        let (mut host, mut calibration) = (Contention::default(), Calibration::default());
        host.learn(at(0), Waits::default(), waits(0.05, 0.05, 0.5), &mut calibration);
        assert_eq!(host.share(at(0), &calibration), None, "its quota held it back");
        host.learn(at(10), Waits::default(), waits(0.06, 0.04, 0.0), &mut calibration);
        let (share, by) = host.share(at(10), &calibration).unwrap();
        assert!((share - 0.4).abs() < 1e-9 && by == Witness::Shadow);
        assert!(host.share(at(1000), &calibration).is_none(), "that was long ago");
        host.learn(at(20), Waits::default(), waits(0.001, 0.003, 0.0), &mut calibration);
        assert!((host.share(at(20), &calibration).unwrap().0 - 0.4).abs() < 1e-9, "one that idles tells nothing");
    }

    #[test]
    fn productions_go_first_and_calibrate_what_shadows_tell_elsewhere() {
        let (mut both, mut alone, mut calibration) =
            (Contention::default(), Contention::default(), Calibration::default());
        for second in 0..20 {
            both.learn(at(second), waits(0.8, 0.2, 0.0), waits(0.09, 0.01, 0.0), &mut calibration);
        }
        alone.learn(at(20), Waits::default(), waits(0.09, 0.01, 0.0), &mut calibration);
        assert_eq!(both.share(at(20), &calibration).unwrap().1, Witness::Production);
        let (share, by) = alone.share(at(20), &calibration).unwrap();
        assert!((share - 0.2).abs() < 1e-6 && by == Witness::Shadow, "{share}");
    }

    #[test]
    fn a_correction_is_bounded_and_needs_evidence() {
        let mut calibration = Calibration::default();
        calibration.learn(1.0, 0.0);
        assert_eq!(calibration.correct(0.3), 0.3);
        (0..20).for_each(|_| calibration.learn(1.0, 0.0));
        // Odds of 0.01 to 1.01 become sixteen times as much, though productions waited all the time.
        let corrected = calibration.correct(0.0);
        assert!((logit(corrected) - logit(0.0) - RATIO_MAX.ln()).abs() < 1e-9, "{corrected}");
        assert!([0.0, 0.5, 1.0].into_iter().all(|share| (0.0..=1.0).contains(&calibration.correct(share))));
    }

    #[test]
    fn shadows_that_wait_on_calm_hosts_already_are_understood() {
        // As in a laboratory: 0.56 u^1.5 beside 1.13 u^0.73 seconds waited for each run.
        let share = |ratio: f64| ratio / (1.0 + ratio);
        let production = |u: f64| share(0.56 * u.powf(1.5));
        let shadow = |u: f64| share(1.13 * u.powf(0.73));
        let mut calibration = Calibration::default();
        (0..100).for_each(|step| {
            let u = 0.1 + f64::from(step % 10) / 10.0;
            calibration.learn(production(u), shadow(u));
        });
        for u in [0.1, 0.3, 0.6, 1.0] {
            let (told, truth) = (calibration.correct(shadow(u)), production(u));
            assert!((told - truth).abs() < 0.04, "{u}: {told} for {truth}, where the shadow said {}", shadow(u));
        }
    }
}
