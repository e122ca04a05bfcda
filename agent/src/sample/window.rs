//! Samples -> one window: time-weighted means, maxima, a histogram of waits. Pure.

use super::interval::{CgroupSample, SchedSample};
use gnomon_common::abi::sched::WAIT_BUCKETS;
use gnomon_common::wire::{CpuWindow, MeanMax, WaitHistogram};

/// A time-weighted mean and a maximum in the making.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weighted {
    sum: f64,
    weight_s: f64,
    max: f64,
}

impl Weighted {
    /// Adds a value that held for `weight_s` seconds.
    pub fn add(&mut self, value: f64, weight_s: f64) {
        self.sum += value * weight_s;
        self.weight_s += weight_s;
        self.max = self.max.max(value);
    }

    /// How many seconds were added.
    pub fn weight_s(&self) -> f64 {
        self.weight_s
    }

    /// The result; zeros where nothing was added.
    pub fn finish(&self) -> MeanMax {
        // Rounding may lift a mean of equal values above their maximum by the last bit.
        let mean = if self.weight_s > 0.0 { (self.sum / self.weight_s).min(self.max) } else { 0.0 };
        MeanMax { mean, max: self.max }
    }
}

/// One VM's CPU window in the making.
#[derive(Clone, Debug, Default)]
pub struct CpuAccumulator {
    demand_low: Weighted,
    demand_high: Weighted,
    usage: Weighted,
    throttled: Weighted,
    wakeups: u64,
    preemptions: u64,
    waits: [u64; WAIT_BUCKETS],
}

impl CpuAccumulator {
    /// Adds what the scheduler saw.
    pub fn add_sched(&mut self, sample: &SchedSample) {
        self.demand_low.add(sample.run_cores, sample.elapsed_s);
        // Not plus throttled: time that a quota holds a thread back is wait already.
        self.demand_high.add(sample.run_cores + sample.wait_cores, sample.elapsed_s);
        self.wakeups = self.wakeups.saturating_add(sample.wakeups);
        self.preemptions = self.preemptions.saturating_add(sample.preemptions);
        for (total, count) in self.waits.iter_mut().zip(sample.waits) {
            *total = total.saturating_add(count);
        }
    }

    /// Adds what the control group counted.
    pub fn add_cgroup(&mut self, sample: &CgroupSample) {
        if let Some(cores) = sample.usage_cores {
            self.usage.add(cores, sample.elapsed_s);
        }
        self.throttled.add(sample.throttled, sample.elapsed_s);
    }

    /// The window of `window_s` seconds; `None` unless the scheduler was seen at least once: without it demand is unknown, and
    /// a zero would be taken for idleness.
    pub fn finish(&self, window_s: f64) -> Option<CpuWindow> {
        let seen_s = self.demand_low.weight_s();
        (seen_s > 0.0).then(|| CpuWindow {
            covered: (seen_s / window_s).min(1.0),
            demand_low: self.demand_low.finish(),
            demand_high: self.demand_high.finish(),
            usage: self.usage.finish(),
            throttled: self.throttled.finish(),
            wakeups_per_s: self.wakeups as f64 / seen_s,
            preemptions_per_s: self.preemptions as f64 / seen_s,
            wait: WaitHistogram(self.waits.map(|count| u32::try_from(count).unwrap_or(u32::MAX))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(elapsed_s: f64, run_cores: f64, wait_cores: f64) -> SchedSample {
        let mut waits = [0; WAIT_BUCKETS];
        waits[12] = 2;
        SchedSample { elapsed_s, run_cores, wait_cores, wakeups: 6, preemptions: 3, waits }
    }

    #[test]
    fn means_are_weighted_by_time_and_maxima_are_not() {
        let mut window = CpuAccumulator::default();
        window.add_sched(&sample(1.0, 1.0, 0.0));
        window.add_sched(&sample(3.0, 0.2, 0.4));
        window.add_cgroup(&CgroupSample { elapsed_s: 1.0, usage_cores: Some(0.5), throttled: 0.25 });
        let cpu = window.finish(10.0).unwrap();
        assert_eq!(cpu.covered, 0.4);
        assert!((cpu.demand_low.mean - 0.4).abs() < 1e-12 && cpu.demand_low.max == 1.0);
        assert!((cpu.demand_high.mean - 0.7).abs() < 1e-12 && cpu.demand_high.max == 1.0);
        assert_eq!(cpu.usage, MeanMax { mean: 0.5, max: 0.5 });
        assert_eq!(cpu.throttled, MeanMax { mean: 0.25, max: 0.25 });
        assert_eq!((cpu.wakeups_per_s, cpu.preemptions_per_s, cpu.wait.0[12]), (3.0, 1.5, 4));
    }

    #[test]
    fn without_the_scheduler_there_is_no_window_rather_than_an_idle_one() {
        let mut window = CpuAccumulator::default();
        window.add_cgroup(&CgroupSample { elapsed_s: 1.0, usage_cores: Some(0.5), throttled: 0.0 });
        assert_eq!(window.finish(10.0), None);
    }

    proptest! {
        #[test]
        fn any_samples_give_a_finite_window_in_order(
            samples in proptest::collection::vec((1e-3..5.0f64, 0.0..100.0f64, 0.0..1000.0f64, 0.0..=1.0f64), 1..40),
        ) {
            let mut window = CpuAccumulator::default();
            for (elapsed_s, run, wait, throttled) in samples {
                window.add_sched(&sample(elapsed_s, run, wait));
                window.add_cgroup(&CgroupSample { elapsed_s, usage_cores: Some(run), throttled });
            }
            let cpu = window.finish(10.0).unwrap();
            prop_assert!(cpu.covered > 0.0 && cpu.covered <= 1.0);
            for value in [cpu.demand_low, cpu.demand_high, cpu.usage, cpu.throttled] {
                prop_assert!(value.mean.is_finite() && value.mean >= 0.0 && value.mean <= value.max);
            }
            prop_assert!(cpu.demand_low.mean <= cpu.demand_high.mean * (1.0 + 1e-12));
            prop_assert!(cpu.throttled.max <= 1.0);
        }
    }
}
