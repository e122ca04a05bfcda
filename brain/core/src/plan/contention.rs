//! How much VMs wait for the CPU on a host although their quotas let them run: measured, where rooms and forecasts only assume.
//!
//! A shadow is a witness where no production runs yet. It runs at its production's weight for each vCPU, and only windows in which its
//! own quota did not hold it back count, or it would measure that. A small guest does not wait as a large one does: where shadows and
//! productions are on one host, the ratio of what both tell [calibrates](Calibration) what shadows tell elsewhere.

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

/// Windows with both kinds of witness before the ratio is used, and how far it may go.
const PAIRS_MIN: u32 = 10;
const RATIO_MAX: f64 = 4.0;

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

/// How much more, or less, productions wait than shadows beside them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calibration {
    log_ratio: f64,
    pairs: u32,
}

impl Calibration {
    fn learn(&mut self, production: f64, shadow: f64) {
        let log_ratio = ((production + SMALL) / (shadow + SMALL)).ln();
        let weight = if self.pairs == 0 { 1.0 } else { WEIGHT };
        self.log_ratio += weight * (log_ratio - self.log_ratio);
        self.pairs = self.pairs.saturating_add(1);
    }

    /// The ratio, once enough is known.
    pub(crate) fn ratio(&self) -> Option<f64> {
        (self.pairs >= PAIRS_MIN).then(|| self.log_ratio.exp().clamp(1.0 / RATIO_MAX, RATIO_MAX))
    }

    fn correct(&self, share: f64) -> f64 {
        ((share + SMALL) * self.ratio().unwrap_or(1.0) - SMALL).clamp(0.0, 1.0)
    }
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
    fn a_ratio_is_bounded_and_needs_evidence() {
        let mut calibration = Calibration::default();
        calibration.learn(1.0, 0.0);
        assert_eq!(calibration.ratio(), None);
        (0..20).for_each(|_| calibration.learn(1.0, 0.0));
        assert_eq!(calibration.ratio(), Some(RATIO_MAX));
        assert!(calibration.correct(1.0) <= 1.0 && calibration.correct(0.0) >= 0.0);
    }
}
