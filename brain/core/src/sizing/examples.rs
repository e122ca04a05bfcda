//! What happened after what was known: the examples that the fleet's model is trained on.

use std::collections::VecDeque;

use super::track::Track;
use crate::draw::draw;

/// One step in so many is an example: neighbours tell the same.
const EVERY: u64 = 4;
/// Examples kept; a new one takes the place of any, so that old times fade.
const KEPT_MAX: usize = 60_000;
/// Fewer examples train nothing.
const KEPT_MIN: usize = 500;
/// Days that the kept examples are spread over where the fleet makes more of them than can be kept.
const DAYS: u64 = 7;
/// Examples in the making of one VM; no more are begun.
const PENDING_MAX: usize = 8;

/// An example whose target is not complete.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    features: Vec<f32>,
    most: f32,
    steps_left: usize,
}

impl Pending {
    /// Bytes that it holds beside itself.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.features.capacity() * size_of::<f32>()
    }
}

/// The examples that are complete.
#[derive(Clone, Debug)]
pub(super) struct Examples {
    seed: u64,
    day_steps: u64,
    features: Vec<Vec<f32>>,
    targets: Vec<f32>,
    /// Examples that were drawn so far, and those that were completed.
    drawn: u64,
    completed: u64,
}

impl Examples {
    pub(super) fn new(day_steps: usize, seed: u64) -> Self {
        Self { seed, day_steps: day_steps as u64, features: Vec::new(), targets: Vec::new(), drawn: 0, completed: 0 }
    }

    /// Takes in a VM's step, which `track` has learnt already, in a fleet of `vms`; an example's target is the largest demand of the next
    /// `ahead` steps. `number` tells the VM from others.
    pub(super) fn learn(
        &mut self,
        pending: &mut VecDeque<Pending>,
        (number, vms): (usize, usize),
        demand: f32,
        ahead: usize,
        track: &Track,
    ) {
        for pending in pending.iter_mut() {
            if demand.is_finite() {
                pending.most = pending.most.max(demand.max(0.0));
            }
            pending.steps_left -= 1;
        }
        while pending.front().is_some_and(|oldest| oldest.steps_left == 0) {
            if let Some(done) = pending.pop_front() {
                self.keep(done);
            }
        }
        let drawn = draw(self.seed ^ ((number as u64) << 20), track.steps()).is_multiple_of(EVERY);
        if drawn && track.suffices() && ahead > 0 && pending.len() < PENDING_MAX && self.wants(vms) {
            pending.push_back(Pending { features: track.features(ahead), most: f32::NAN, steps_left: ahead });
        }
    }

    /// Whether the next example that was drawn is to be kept: of a large fleet all are for the first minutes, and ever fewer later, so that
    /// those kept are spread evenly over the time so far or, when that is longer, fade with [`DAYS`].
    fn wants(&mut self, vms: usize) -> bool {
        self.drawn += 1;
        let of_days = DAYS * self.day_steps * vms as u64 / EVERY;
        let among = self.drawn.min(of_days).max(KEPT_MAX as u64);
        draw(!self.seed, self.drawn) % among < KEPT_MAX as u64
    }

    fn keep(&mut self, example: Pending) {
        if example.most.is_nan() {
            return;
        }
        self.completed += 1;
        if self.targets.len() < KEPT_MAX {
            self.features.push(example.features);
            self.targets.push(example.most);
        } else {
            let place = (draw(self.seed, self.completed) % KEPT_MAX as u64) as usize;
            self.features[place] = example.features;
            self.targets[place] = example.most;
        }
    }

    /// Features and targets, if there are enough.
    pub(super) fn kept(&self) -> Option<(&[Vec<f32>], &[f32])> {
        (self.targets.len() >= KEPT_MIN).then_some((&self.features, &self.targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_fleets_examples_are_spread_over_the_time_so_far() {
        let mut examples = Examples::new(288, 1);
        let per_step = 20_000;
        let kept: Vec<usize> =
            (0..40).map(|_| (0..per_step).filter(|_| examples.wants(4 * per_step)).count()).collect();
        assert_eq!(kept[..3], [per_step; 3]);
        // Of the twentieth step, three twentieths; of the fortieth, three fortieths.
        assert!((2800..3200).contains(&kept[19]) && (1400..1600).contains(&kept[39]), "{kept:?}");
    }
}
