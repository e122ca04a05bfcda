//! Samples -> one window: time-weighted means, maxima, a histogram of waits. Pure.

use super::interval::{CgroupSample, SchedSample};
use crate::reading::SchedEvents;
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
    events: SchedEvents,
    /// Seconds in which events were counted.
    events_s: f64,
}

impl CpuAccumulator {
    /// Adds what the scheduler saw.
    pub fn add_sched(&mut self, sample: &SchedSample) {
        self.demand_low.add(sample.run_cores, sample.elapsed_s);
        // Not plus throttled: time that a quota holds a thread back is wait already.
        self.demand_high.add(sample.run_cores + sample.wait_cores, sample.elapsed_s);
        let Some(events) = &sample.events else { return };
        self.events_s += sample.elapsed_s;
        self.events.wakeups = self.events.wakeups.saturating_add(events.wakeups);
        self.events.preemptions = self.events.preemptions.saturating_add(events.preemptions);
        for (total, count) in self.events.wait_log2.iter_mut().zip(events.wait_log2) {
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
        let counted = self.events_s > 0.0;
        let per_s = |count: u64| counted.then(|| count as f64 / self.events_s);
        (seen_s > 0.0).then(|| CpuWindow {
            covered: (seen_s / window_s).min(1.0),
            demand_low: self.demand_low.finish(),
            demand_high: self.demand_high.finish(),
            usage: self.usage.finish(),
            throttled: self.throttled.finish(),
            wakeups_per_s: per_s(self.events.wakeups),
            preemptions_per_s: per_s(self.events.preemptions),
            wait: counted
                .then(|| WaitHistogram(self.events.wait_log2.map(|count| u32::try_from(count).unwrap_or(u32::MAX)))),
        })
    }

    /// The window where nothing tells what the VM waited: it wanted at least what its control group was charged with, and may have
    /// wanted all its vCPUs. `None` unless the group was read.
    pub fn finish_from_usage(&self, window_s: f64, vcpus: u32) -> Option<CpuWindow> {
        let seen_s = self.usage.weight_s();
        let usage = self.usage.finish();
        let at_most = |used: f64| used.max(vcpus.into());
        (seen_s > 0.0).then(|| CpuWindow {
            covered: (seen_s / window_s).min(1.0),
            demand_low: usage,
            demand_high: MeanMax { mean: at_most(usage.mean), max: at_most(usage.max) },
            usage,
            throttled: self.throttled.finish(),
            wakeups_per_s: None,
            preemptions_per_s: None,
            wait: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(elapsed_s: f64, run_cores: f64, wait_cores: f64) -> SchedSample {
        let mut events = SchedEvents { wakeups: 6, preemptions: 3, ..SchedEvents::default() };
        events.wait_log2[12] = 2;
        SchedSample { elapsed_s, run_cores, wait_cores, events: Some(events) }
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
        assert_eq!((cpu.wakeups_per_s, cpu.preemptions_per_s), (Some(3.0), Some(1.5)));
        assert_eq!(cpu.wait.unwrap().0[12], 4);
    }

    #[test]
    fn what_the_source_does_not_count_is_absent_and_not_zero() {
        let mut window = CpuAccumulator::default();
        window.add_sched(&SchedSample { events: None, ..sample(1.0, 0.5, 0.1) });
        let cpu = window.finish(10.0).unwrap();
        assert_eq!((cpu.wakeups_per_s, cpu.preemptions_per_s, cpu.wait), (None, None, None));
        assert_eq!(cpu.demand_high.mean, 0.6);
    }

    #[test]
    fn from_usage_alone_demand_is_open_up_to_the_vcpus() {
        let mut window = CpuAccumulator::default();
        assert_eq!(window.finish_from_usage(10.0, 2), None);
        window.add_cgroup(&CgroupSample { elapsed_s: 5.0, usage_cores: Some(0.5), throttled: 0.25 });
        let cpu = window.finish_from_usage(10.0, 2).unwrap();
        assert_eq!((cpu.covered, cpu.demand_low.mean, cpu.demand_high.mean), (0.5, 0.5, 2.0));
        assert_eq!((cpu.throttled.mean, cpu.wait), (0.25, None));
        window.add_cgroup(&CgroupSample { elapsed_s: 5.0, usage_cores: Some(4.5), throttled: 0.0 });
        let cpu = window.finish_from_usage(10.0, 2).unwrap();
        assert_eq!(
            (cpu.demand_low.mean, cpu.demand_high.mean),
            (2.5, 2.5),
            "other threads may use more than the vCPUs"
        );
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
