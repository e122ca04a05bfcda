//! What is known of one VM's demand at a step, as features: recent values, rolling means and maxima, the same time on earlier days.
//!
//! All of it is read off one ring of values when it is wanted: sums that are kept up would never forget an absurd value's rounding, and
//! maxima that are kept up would cost a VM that ramps down more than its history does.

use std::collections::VecDeque;

/// Days that are looked back upon.
const DAYS: usize = 7;
/// Steps ago of the values that are features themselves.
const LAGS: [usize; 7] = [0, 1, 2, 3, 5, 8, 11];
/// Lengths, in steps, over which means and maxima are features; a day and a week come on top.
const SPANS: [usize; 4] = [6, 12, 36, 144];
/// Measured steps that a VM must have before anything is said about it.
const MEASURED_MIN: u64 = 12;
/// What is larger is no demand but a mistake, and counts as this.
const DEMAND_MAX: f32 = 1e9;
/// Values of a scan that are added and compared side by side.
const LANES: usize = 8;

/// A VM's recent demand: at most a week of values, 4 bytes each (8 KiB of five-minute steps).
#[derive(Clone, Debug)]
pub(super) struct Track {
    day_steps: usize,
    /// Oldest first.
    values: VecDeque<f32>,
    /// Steps learnt so far, and those of them that were measured.
    steps: u64,
    measured: u64,
}

/// Sum and largest of some values.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sum: f32,
    max: f32,
}

impl Track {
    pub(super) fn new(day_steps: usize) -> Self {
        Self { day_steps, values: VecDeque::new(), steps: 0, measured: 0 }
    }

    /// Learns the next step; where it was not measured, demand counts as what it was. O(1), amortised.
    pub(super) fn learn(&mut self, value: f32) {
        self.steps += 1;
        self.measured += u64::from(value.is_finite());
        let last = self.values.back().copied().unwrap_or(0.0);
        let value = if value.is_finite() { value.clamp(0.0, DEMAND_MAX) } else { last };
        if self.values.len() == DAYS * self.day_steps {
            self.values.pop_front();
        } else if self.values.len() == self.values.capacity() {
            // By the day, not by doubling: a full ring is no larger than it must be.
            self.values.reserve_exact(self.day_steps);
        }
        self.values.push_back(value);
    }

    /// Steps learnt so far: the VM's own clock.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether enough was measured to say something.
    pub(super) fn suffices(&self) -> bool {
        self.measured >= MEASURED_MIN
    }

    fn ago(&self, steps: usize) -> f32 {
        self.values.len().checked_sub(steps + 1).map_or(f32::NAN, |place| self.values[place])
    }

    /// The latest values, at most `steps` of them, in two parts.
    fn latest(&self, steps: usize) -> [&[f32]; 2] {
        let (old, new) = self.values.as_slices();
        let of_old = steps.saturating_sub(new.len()).min(old.len());
        [&old[old.len() - of_old..], &new[new.len() - steps.min(new.len())..]]
    }

    fn tally(&self, steps: usize) -> Tally {
        let [old, new] = self.latest(steps).map(tally);
        Tally { sum: old.sum + new.sum, max: old.max.max(new.max) }
    }

    /// Mean over the latest values, at most `steps` of them.
    fn mean(&self, steps: usize) -> f32 {
        self.tally(steps).sum / self.values.len().clamp(1, steps) as f32
    }

    fn deviation(&self, steps: usize) -> f32 {
        let mean = self.mean(steps);
        let squares: f32 = self.latest(steps).into_iter().flatten().map(|value| (value - mean) * (value - mean)).sum();
        (squares / self.values.len().clamp(1, steps) as f32).sqrt()
    }

    /// The features that say most about the largest demand of the `ahead` steps to come; NaN where history is too short.
    pub(super) fn features(&self, ahead: usize) -> Vec<f32> {
        let mut features: Vec<f32> = LAGS.into_iter().map(|lag| self.ago(lag)).collect();
        for span in SPANS.into_iter().chain([self.day_steps, DAYS * self.day_steps]) {
            let Tally { sum, max } = self.tally(span);
            features.extend([sum / self.values.len().clamp(1, span) as f32, max]);
        }
        features.extend([SPANS[1], self.day_steps].map(|span| self.deviation(span)));
        // The largest demand in the same steps of each earlier day.
        let day = |day: usize| {
            let back = day * self.day_steps;
            (1..=ahead.min(back)).map(|step| self.ago(back - step)).fold(f32::NAN, f32::max)
        };
        let days: [f32; DAYS] = std::array::from_fn(|before| day(before + 1));
        let mut known = days;
        known.sort_by(f32::total_cmp);
        let known = &known[..known.partition_point(|value| !value.is_nan())];
        let middle = known.get(known.len() / 2).copied().unwrap_or(f32::NAN);
        let recent = days[..3].iter().copied().fold(f32::NAN, f32::max);
        let yesterday = self.ago(self.day_steps - 1);
        features.extend([days[0], days[1], days[DAYS - 1], middle, recent]);
        features.extend([known.last().copied().unwrap_or(f32::NAN), days[0] - yesterday, days[0] - days[1]]);
        features
    }

    /// Bytes that it holds beside itself.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.values.capacity() * size_of::<f32>()
    }
}

/// Of values that are numbers and not negative. In lanes, so that the compiler may take several at a time.
fn tally(values: &[f32]) -> Tally {
    let mut lanes = [Tally::default(); LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            lane.sum += value;
            lane.max = if value > lane.max { value } else { lane.max };
        }
    }
    let rest = rest.iter().map(|&value| Tally { sum: value, max: value });
    lanes.into_iter().chain(rest).fold(Tally::default(), |a, b| Tally { sum: a.sum + b.sum, max: a.max.max(b.max) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolling_features_are_what_the_values_say() {
        let values: Vec<f32> = (0..500).map(|i| ((i * 7919) % 101) as f32).collect();
        let mut track = Track::new(24);
        values.iter().for_each(|&value| track.learn(value));
        let features = track.features(6);
        assert_eq!(features[..2], [values[499], values[498]]);
        let last = &values[494..];
        assert_eq!(features[7], last.iter().sum::<f32>() / 6.0);
        assert_eq!(features[8], last.iter().copied().fold(0.0, f32::max));
        let week = &values[500 - 7 * 24..];
        assert_eq!(features[17], week.iter().sum::<f32>() / 168.0);
        assert_eq!(features[18], week.iter().copied().fold(0.0, f32::max));
        let day = &values[500 - 24..];
        let mean = day.iter().sum::<f32>() / 24.0;
        let variance = day.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 24.0;
        assert!((features[20] - variance.sqrt()).abs() < 1e-3, "{} {}", features[20], variance.sqrt());
        // The next six steps of yesterday.
        assert_eq!(features[21], values[476..482].iter().copied().fold(0.0, f32::max));
    }

    #[test]
    fn a_young_vm_has_missing_features_and_no_nonsense() {
        let mut track = Track::new(288);
        track.learn(f32::NAN);
        track.learn(3.0);
        let features = track.features(6);
        assert_eq!(features[..3].iter().map(|value| value.is_nan()).collect::<Vec<_>>(), [false, false, true]);
        assert!(features[21].is_nan());
        assert_eq!(features[8], 3.0);
        assert!(!track.suffices(), "one measured step is not enough");
    }

    #[test]
    fn an_absurd_value_is_forgotten_with_its_week() {
        let mut track = Track::new(24);
        track.learn(f32::MAX);
        (0..7 * 24).for_each(|_| track.learn(2.0));
        assert_eq!((track.mean(7 * 24), track.deviation(24)), (2.0, 0.0));
    }
}
