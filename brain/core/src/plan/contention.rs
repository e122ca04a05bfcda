//! How much VMs wait for a host's CPUs and disks although their own limits let them go on: measured, where rooms and forecasts only assume.
//!
//! A shadow is a witness where no production runs yet. It runs at its production's weight for each vCPU, and only windows in which its
//! own quota did not hold it back count, or it would measure that; for disks the same holds of its limits. A small guest does not wait as a large one does: where
//! shadows and productions are on one host, what both tell [calibrates](Calibrations) what shadows tell elsewhere.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CpuWindow, DiskWindow};
use serde::{Deserialize, Serialize};

/// A window in which a quota held a VM back for more than this share tells of the quota.
const THROTTLED_MAX: f64 = 0.01;

/// Less than this much CPU wanted in a window tells nothing, in cores.
const WANTED_MIN_CORES: f64 = 0.005;

/// A VM that was within this share of the limit on one of its disks in any second of a window may have been held back by that.
const LIMIT_NEAR: f64 = 0.9;

/// Fewer requests to disks than this in a window tell nothing, per second.
const REQUESTS_MIN_PER_S: f64 = 1.0;

/// A request to a disk that takes so long counts as half of the time waited, in milliseconds: a guest that works as long between two of them is slowed to
/// half its pace.
const REQUEST_HALF_MS: f64 = 50.0;

/// The least that is left of a guest's time by requests that take long: what they take is told as no more than this allows.
const LEFT_MIN: f64 = 1e-3;

/// Weight of the latest window.
const WEIGHT: f64 = 0.125;

/// What nobody has confirmed for so long is not believed.
const BELIEVED_FOR: Duration = Duration::from_mins(10);

/// So much waiting is no reason to prefer another host: of disks a millisecond.
const TOLERATED: f64 = 0.02;

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

/// What VMs wanted of one thing in a window, and how much of that was waiting, in the same unit.
#[derive(Clone, Copy, Debug, Default)]
struct Wait {
    wanted: f64,
    waited: f64,
}

impl Wait {
    /// The share of what was wanted that was waited, 0..=1; `None` where too little was wanted to tell.
    fn share(&self, wanted_min: f64) -> Option<f64> {
        let share = self.waited / self.wanted;
        (self.wanted >= wanted_min && share.is_finite()).then(|| share.clamp(0.0, 1.0))
    }
}

/// What the VMs of one kind wanted and waited in a window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waits {
    /// In cores.
    cpu: Wait,
    /// In milliseconds for each second.
    disks: Wait,
}

impl Waits {
    /// Counts a VM's CPU in, unless its quota held it back.
    pub(crate) fn add_cpu(&mut self, cpu: &CpuWindow) {
        if cpu.throttled.mean > THROTTLED_MAX {
            return;
        }
        let (low, high) = (cpu.demand_low.mean.max(0.0), cpu.demand_high.mean.max(cpu.demand_low.mean));
        if low.is_finite() && high.is_finite() {
            self.cpu.wanted += high;
            self.cpu.waited += high - low;
        }
    }

    /// Counts a VM's requests to disks in, unless the limit that it has on each of them, if it has one, may have held it back.
    pub(crate) fn add_disks(&mut self, disk: &DiskWindow, limit_bytes_per_s: Option<u64>) {
        let most_bytes_per_s = disk.read.bytes_per_s.max + disk.write.bytes_per_s.max;
        let is_held_back = limit_bytes_per_s.is_some_and(|limit| most_bytes_per_s >= limit as f64 * LIMIT_NEAR);
        if is_held_back || !disk.is_sane() {
            return;
        }
        for flow in [&disk.read, &disk.write] {
            let Some(device_ms) = flow.device_ms else { continue };
            let took_ms = device_ms + flow.queued_ms.unwrap_or(0.0);
            self.disks.wanted += flow.operations_per_s * (took_ms + REQUEST_HALF_MS);
            self.disks.waited += flow.operations_per_s * took_ms;
        }
    }

    fn cpu_share(&self) -> Option<f64> {
        self.cpu.share(WANTED_MIN_CORES)
    }

    fn disks_share(&self) -> Option<f64> {
        self.disks.share(REQUESTS_MIN_PER_S * REQUEST_HALF_MS)
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

/// What the witnesses of both kinds have told of one thing of a host.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    productions: Told,
    shadows: Told,
}

impl Heard {
    /// Says whether both kinds have told, so that something was learnt about shadows.
    fn learn(
        &mut self,
        now: Timestamp,
        production: Option<f64>,
        shadow: Option<f64>,
        calibration: &mut Calibration,
    ) -> bool {
        self.productions.learn(now, production);
        self.shadows.learn(now, shadow);
        let both = production.zip(shadow);
        both.inspect(|&(production, shadow)| calibration.learn(production, shadow)).is_some()
    }

    fn share(&self, now: Timestamp, calibration: &Calibration) -> Option<(f64, Witness)> {
        let production = self.productions.at(now).map(|share| (share, Witness::Production));
        production.or_else(|| self.shadows.at(now).map(|share| (calibration.correct(share), Witness::Shadow)))
    }
}

/// What is known of one host.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Contention {
    cpu: Heard,
    disks: Heard,
}

impl Contention {
    /// Takes in a window of a host, and what both kinds of witness together teach about shadows. Says whether they taught anything.
    pub(crate) fn learn(
        &mut self,
        now: Timestamp,
        productions: Waits,
        shadows: Waits,
        calibrations: &mut Calibrations,
    ) -> bool {
        let cpu = self.cpu.learn(now, productions.cpu_share(), shadows.cpu_share(), &mut calibrations.cpu);
        self.disks.learn(now, productions.disks_share(), shadows.disks_share(), &mut calibrations.disks) || cpu
    }

    /// The share of the CPU time that they want for which VMs wait there, 0..=1, and by whose word; `None` where nobody has told lately.
    pub(crate) fn share(&self, now: Timestamp, calibrations: &Calibrations) -> Option<(f64, Witness)> {
        self.cpu.share(now, &calibrations.cpu)
    }

    /// What a request to disks takes there, queued and at the device, in milliseconds, and by whose word; `None` where nobody has told lately.
    pub(crate) fn request_ms(&self, now: Timestamp, calibrations: &Calibrations) -> Option<(f64, Witness)> {
        let told = self.disks.share(now, &calibrations.disks);
        told.map(|(share, by)| (REQUEST_HALF_MS * share / (1.0 - share).max(LEFT_MIN), by))
    }

    /// How much waiting speaks against a host, as shares of time, for its CPUs and its disks, added up: what is tolerated of either does not. Nothing does
    /// where nobody has told.
    pub(crate) fn against(&self, now: Timestamp, calibrations: &Calibrations) -> f64 {
        let told = [self.cpu.share(now, &calibrations.cpu), self.disks.share(now, &calibrations.disks)];
        told.into_iter().flatten().map(|(share, _)| (share - TOLERATED).max(0.0)).sum()
    }
}

/// What shadows' words are worth, of CPUs and of disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibrations {
    cpu: Calibration,
    disks: Calibration,
}

/// How productions wait where shadows wait so much: a small guest that wakes up for a moment waits otherwise than a large one, and the less crowded
/// the host, the more so. A line through the logarithms of both odds of waiting (Berkson's logit), by least squares in which what is long past counts
/// less, and which takes the shadow's word as it is where nothing was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Calibration {
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
    use gnomon_common::wire::{DiskFlow, MeanMax};

    fn at(second: u64) -> Timestamp {
        Timestamp::from_unix_ms(second * 1000)
    }

    fn waits(ran: f64, waited: f64, throttled: f64) -> Waits {
        let same = |value| MeanMax { mean: value, max: value };
        let mut waits = Waits::default();
        waits.add_cpu(&CpuWindow {
            demand_low: same(ran),
            demand_high: same(ran + waited),
            throttled: same(throttled),
            ..CpuWindow::default()
        });
        waits
    }

    #[test]
    fn a_shadow_tells_of_its_host_until_it_falls_silent_and_never_of_its_own_quota() {
        let (mut host, mut calibration) = (Contention::default(), Calibrations::default());
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
            (Contention::default(), Contention::default(), Calibrations::default());
        for second in 0..20 {
            assert!(both.learn(at(second), waits(0.8, 0.2, 0.0), waits(0.09, 0.01, 0.0), &mut calibration));
        }
        alone.learn(at(20), Waits::default(), waits(0.09, 0.01, 0.0), &mut calibration);
        assert_eq!(both.share(at(20), &calibration).unwrap().1, Witness::Production);
        let (share, by) = alone.share(at(20), &calibration).unwrap();
        assert!((share - 0.2).abs() < 1e-6 && by == Witness::Shadow, "{share}");
    }

    /// Requests that take so long, up to so many bytes a second, under a limit.
    fn requests(took_ms: f64, bytes_per_s: f64, limit_bytes_per_s: Option<u64>) -> Waits {
        let (device_ms, queued_ms) = (Some(took_ms * 0.75), Some(took_ms * 0.25));
        let bytes_per_s = MeanMax { mean: bytes_per_s / 2.0, max: bytes_per_s };
        let flow = DiskFlow { bytes_per_s, operations_per_s: 20.0, device_ms, queued_ms };
        let mut waits = Waits::default();
        waits.add_disks(&DiskWindow { write: flow, ..DiskWindow::default() }, limit_bytes_per_s);
        waits
    }

    #[test]
    fn what_requests_take_speaks_against_a_host_unless_a_limit_may_have_held_them_back() {
        let (mut slow, mut quick, mut calibrations) =
            (Contention::default(), Contention::default(), Calibrations::default());
        slow.learn(at(0), requests(50.0, 1e6, None), Waits::default(), &mut calibrations);
        quick.learn(at(0), requests(1.0, 1e6, None), Waits::default(), &mut calibrations);
        let (took_ms, by) = slow.request_ms(at(0), &calibrations).unwrap();
        assert!((took_ms - 50.0).abs() < 1e-9 && by == Witness::Production, "{took_ms}");
        assert!((slow.against(at(0), &calibrations) - (0.5 - TOLERATED)).abs() < 1e-9);
        assert_eq!(quick.against(at(0), &calibrations), 0.0, "tolerated");
        assert_eq!(slow.share(at(0), &calibrations), None, "disks say nothing of CPUs");
        assert!(slow.request_ms(at(600), &calibrations).is_none(), "that was long ago");

        let mut held = Contention::default();
        held.learn(at(0), Waits::default(), requests(50.0, 0.95e6, Some(1_000_000)), &mut calibrations);
        assert_eq!(held.request_ms(at(0), &calibrations), None);
        held.learn(at(0), Waits::default(), requests(50.0, 0.85e6, Some(1_000_000)), &mut calibrations);
        assert_eq!(held.request_ms(at(0), &calibrations).unwrap().1, Witness::Shadow);
        // Both speak against it.
        held.learn(at(0), waits(0.8, 0.2, 0.0), Waits::default(), &mut calibrations);
        assert!((held.against(at(0), &calibrations) - (0.7 - 2.0 * TOLERATED)).abs() < 1e-9);
    }

    #[test]
    fn what_shadows_tell_of_disks_is_calibrated_apart_from_what_they_tell_of_cpus() {
        let (mut both, mut alone, mut calibrations) =
            (Contention::default(), Contention::default(), Calibrations::default());
        for second in 0..20 {
            both.learn(at(second), requests(40.0, 1e6, None), requests(10.0, 1e5, None), &mut calibrations);
        }
        alone.learn(at(20), Waits::default(), requests(10.0, 1e5, None), &mut calibrations);
        alone.learn(at(20), Waits::default(), waits(0.09, 0.01, 0.0), &mut calibrations);
        let (took_ms, by) = alone.request_ms(at(20), &calibrations).unwrap();
        assert!((took_ms - 40.0).abs() < 1e-6 && by == Witness::Shadow, "{took_ms}");
        assert!((alone.share(at(20), &calibrations).unwrap().0 - 0.1).abs() < 1e-9);
    }

    #[test]
    fn requests_without_end_are_told_as_a_number() {
        let (mut host, mut calibrations) = (Contention::default(), Calibrations::default());
        host.learn(at(0), requests(1e300, 0.0, None), Waits::default(), &mut calibrations);
        assert!(host.request_ms(at(0), &calibrations).unwrap().0.is_finite());
        host.learn(at(0), requests(f64::MAX, 0.0, None), Waits::default(), &mut calibrations);
        assert!(host.against(at(0), &calibrations).is_finite());
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
