//! What an operator would pick instead: rules of sizing, approximated from how they are published, on the same demand.
//!
//! Each rule says what it wants before every row from the rows before it; [`carry_out`] brings that into force with the same lag, steps of size
//! and dead band for all. They are written for comparison, not as those projects' code.

use super::rules::Rules;

/// A rule's name and what it wants before each row.
pub(super) struct Peer {
    pub(super) name: &'static str,
    want: fn(&[f64], &Rules) -> Vec<f64>,
}

/// The rules compared with.
pub(super) const PEERS: [Peer; 5] = [
    Peer { name: "static: 1.15 x peak of the warm-up", want: static_peak },
    Peer { name: "threshold: above 80 % x1.5, below 30 % x0.7", want: threshold },
    Peer { name: "target tracking: 60 % of the last 3 rows' peak", want: target_tracking },
    Peer { name: "VPA-like: decaying 95th percentile x1.15", want: vpa_like },
    Peer { name: "Autopilot-like: decaying 98th percentile x1.1", want: autopilot_like },
];

impl Peer {
    /// What would be in force in each row.
    pub(super) fn sizes(&self, demand: &[f64], rules: &Rules) -> Vec<f32> {
        let mut last = 0.0;
        // What was not measured counts as what was last.
        let filled: Vec<f64> = demand
            .iter()
            .map(|&value| {
                last = if value.is_finite() { value } else { last };
                last
            })
            .collect();
        carry_out(&(self.want)(&filled, rules), rules)
    }
}

/// Applies lag, quantum and dead band to what is wanted.
fn carry_out(wanted: &[f64], rules: &Rules) -> Vec<f32> {
    let round = |wanted: f64| rules.round(wanted);
    let mut size = round(wanted.first().copied().unwrap_or(0.0));
    let mut resized: Option<usize> = None;
    (0..wanted.len())
        .map(|row| {
            if let Some(decided) = (row + 1).checked_sub(rules.lag) {
                let wanted = round(wanted[decided]);
                let dwelt = resized.is_none_or(|at| row - at >= rules.dwell);
                if wanted > size || (wanted <= size * (1.0 - rules.saving_min) && dwelt) {
                    (size, resized) = (wanted, Some(row));
                }
            }
            size as f32
        })
        .collect()
}

fn peak(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn static_peak(demand: &[f64], rules: &Rules) -> Vec<f64> {
    vec![1.15 * peak(&demand[..rules.warmup]); demand.len()]
}

/// A cloud's step scaler on the last value.
fn threshold(demand: &[f64], rules: &Rules) -> Vec<f64> {
    let mut size = rules.round(1.15 * peak(&demand[..rules.warmup]));
    let mut resized = 0;
    let mut wanted = vec![size];
    for (row, &value) in demand.iter().enumerate().take(demand.len() - 1) {
        let next = if value > 0.8 * size {
            (1.5 * size).max(value / 0.8)
        } else if value < 0.3 * size && row + 1 >= resized + rules.dwell {
            (0.7 * size).max(value / 0.8)
        } else {
            size
        };
        let next = rules.round(next);
        if next != size {
            (size, resized) = (next, row + 1);
        }
        wanted.push(size);
    }
    wanted
}

fn target_tracking(demand: &[f64], rules: &Rules) -> Vec<f64> {
    let want = |row: usize| peak(&demand[row.saturating_sub(3)..row]) / 0.6;
    (0..demand.len()).map(|row| if row == 0 { rules.quantum } else { want(row) }).collect()
}

/// Kubernetes' vertical autoscaler: a histogram whose samples halve their weight in a day, weighted by load.
fn vpa_like(demand: &[f64], rules: &Rules) -> Vec<f64> {
    decaying(demand, rules.day as f64, 0.95, 1.15, |value| value.max(0.1))
}

/// Autopilot's moving window (Rzadca and others, 2020), with its half-life of twelve hours.
fn autopilot_like(demand: &[f64], rules: &Rules) -> Vec<f64> {
    decaying(demand, rules.day as f64 / 2.0, 0.98, 1.1, |_| 1.0)
}

fn decaying(demand: &[f64], half_life: f64, level: f64, margin: f64, weight: fn(f64) -> f64) -> Vec<f64> {
    let keep = 0.5f64.powf(1.0 / half_life);
    let mut histogram = [0.0; 121];
    let mut wanted = Vec::with_capacity(demand.len());
    for &value in demand {
        let total: f64 = histogram.iter().sum();
        let mut below = 0.0;
        let bucket = histogram.iter().position(|weight| {
            below += weight;
            below >= level * total
        });
        wanted.push(margin * bucket.unwrap_or(0).max(1) as f64);
        histogram.iter_mut().for_each(|weight| *weight *= keep);
        histogram[(value.ceil().max(0.0) as usize).min(120)] += weight(value);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules { warmup: 10, lag: 2, day: 24, quantum: 5.0, size_max: 120.0, saving_min: 0.1, dwell: 6 }
    }

    #[test]
    fn growth_comes_after_the_lag_and_shrinking_after_the_dwell() {
        let wanted = [10.0, 10.0, 50.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
        let sizes = carry_out(&wanted, &rules());
        assert_eq!(sizes, [10.0, 10.0, 10.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0, 10.0, 10.0]);
    }

    #[test]
    fn no_rule_knows_the_row_it_sizes_for() {
        let demand: Vec<f64> = (0..60).map(|row| f64::from(row * 37 % 83)).collect();
        let mut other = demand.clone();
        other[40..].iter_mut().for_each(|value| *value = 90.0 - *value);
        for peer in &PEERS {
            let (a, b) = (peer.sizes(&demand, &rules()), peer.sizes(&other, &rules()));
            assert_eq!(a[..42], b[..42], "{}", peer.name);
            assert!(a.iter().all(|size| (5.0..=120.0).contains(size)), "{}", peer.name);
        }
    }
}
