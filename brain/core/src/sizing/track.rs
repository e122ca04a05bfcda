//! What is known of one VM's demand at a step, as features: recent values, rolling means and maxima, the same time on earlier days.

use std::collections::VecDeque;

/// Days that are looked back upon.
const DAYS: usize = 7;
/// Steps ago of the values that are features themselves.
const LAGS: [usize; 7] = [0, 1, 2, 3, 5, 8, 11];
/// Lengths, in steps, over which means and maxima are kept; a day and a week come on top.
const SPANS: [usize; 4] = [6, 12, 36, 144];

/// A VM's recent demand.
#[derive(Clone, Debug)]
pub(super) struct Track {
    day_steps: usize,
    /// Oldest first, at most a week and a window.
    values: VecDeque<f32>,
    /// Steps learnt so far.
    steps: u64,
    windows: Vec<Window>,
}

/// Mean and maximum over the latest `steps` values.
#[derive(Clone, Debug)]
struct Window {
    steps: usize,
    sum: f64,
    squares: f64,
    /// Steps and values of those that no later one reaches, oldest first.
    maxima: VecDeque<(u64, f32)>,
}

impl Track {
    pub(super) fn new(day_steps: usize) -> Self {
        let spans = SPANS.into_iter().chain([day_steps, DAYS * day_steps]);
        let window = |steps| Window { steps, sum: 0.0, squares: 0.0, maxima: VecDeque::new() };
        Self { day_steps, values: VecDeque::new(), steps: 0, windows: spans.map(window).collect() }
    }

    /// Learns the next step; where it was not measured, demand counts as what it was. O(1), amortised.
    pub(super) fn learn(&mut self, value: f32) {
        let value = if value.is_finite() { value.max(0.0) } else { self.values.back().copied().unwrap_or(0.0) };
        for window in &mut self.windows {
            let leaving = self.values.len().checked_sub(window.steps).map(|place| self.values[place]);
            window.learn(self.steps, value, leaving);
        }
        if self.values.len() == (DAYS + 1) * self.day_steps {
            self.values.pop_front();
        }
        self.values.push_back(value);
        self.steps += 1;
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    fn ago(&self, steps: usize) -> f32 {
        self.values.len().checked_sub(steps + 1).map_or(f32::NAN, |place| self.values[place])
    }

    /// The features that say most about the largest demand of the `ahead` steps to come; NaN where history is too short.
    pub(super) fn features(&self, ahead: usize) -> Vec<f32> {
        let mut features: Vec<f32> = LAGS.into_iter().map(|lag| self.ago(lag)).collect();
        for window in &self.windows {
            features.extend([window.mean(self.values.len()), window.max()]);
        }
        features
            .extend([&self.windows[1], &self.windows[SPANS.len()]].map(|window| window.deviation(self.values.len())));
        // The largest demand in the same steps of each earlier day.
        let day = |day: usize| {
            let back = day * self.day_steps;
            (1..=ahead.min(back)).map(|step| self.ago(back - step)).fold(f32::NAN, f32::max)
        };
        let days: Vec<f32> = (1..=DAYS).map(day).collect();
        let mut known: Vec<f32> = days.iter().copied().filter(|value| !value.is_nan()).collect();
        known.sort_by(f32::total_cmp);
        let middle = known.get(known.len() / 2).copied().unwrap_or(f32::NAN);
        let recent = days[..3].iter().copied().fold(f32::NAN, f32::max);
        let yesterday = self.ago(self.day_steps - 1);
        features.extend([days[0], days[1], days[DAYS - 1], middle, recent]);
        features.extend([known.last().copied().unwrap_or(f32::NAN), days[0] - yesterday, days[0] - days[1]]);
        features
    }
}

impl Window {
    fn learn(&mut self, step: u64, value: f32, leaving: Option<f32>) {
        let leaving = f64::from(leaving.unwrap_or(0.0));
        let value64 = f64::from(value);
        self.sum += value64 - leaving;
        self.squares += value64 * value64 - leaving * leaving;
        while self.maxima.back().is_some_and(|(_, smaller)| *smaller <= value) {
            self.maxima.pop_back();
        }
        self.maxima.push_back((step, value));
        while self.maxima.front().is_some_and(|(at, _)| at + self.steps as u64 <= step) {
            self.maxima.pop_front();
        }
    }

    fn count(&self, known: usize) -> f64 {
        known.min(self.steps).max(1) as f64
    }

    fn mean(&self, known: usize) -> f32 {
        (self.sum / self.count(known)) as f32
    }

    fn deviation(&self, known: usize) -> f32 {
        let mean = self.sum / self.count(known);
        (self.squares / self.count(known) - mean * mean).max(0.0).sqrt() as f32
    }

    fn max(&self) -> f32 {
        self.maxima.front().map_or(f32::NAN, |(_, value)| *value)
    }
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
        assert_eq!(features[18], week.iter().copied().fold(0.0, f32::max));
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
    }
}
