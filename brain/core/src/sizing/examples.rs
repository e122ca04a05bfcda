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
/// History, in steps, that a VM must have before it makes examples.
const STEPS_MIN: u64 = 12;

#[derive(Clone, Debug)]
struct Pending {
    features: Vec<f32>,
    most: f32,
    steps_left: usize,
}

/// Examples in the making, for each VM, and those that are complete.
#[derive(Clone, Debug)]
pub(super) struct Examples {
    seed: u64,
    pending: Vec<VecDeque<Pending>>,
    features: Vec<Vec<f32>>,
    targets: Vec<f32>,
    completed: u64,
}

impl Examples {
    pub(super) fn new(vms: usize, seed: u64) -> Self {
        let pending = vec![VecDeque::new(); vms];
        Self { seed, pending, features: Vec::new(), targets: Vec::new(), completed: 0 }
    }

    /// Takes in a VM's step, which `track` has learnt already; an example's target is the largest demand of the next `ahead` steps.
    pub(super) fn learn(&mut self, vm: usize, demand: f32, ahead: usize, track: &Track) {
        for pending in &mut self.pending[vm] {
            if demand.is_finite() {
                pending.most = pending.most.max(demand);
            }
            pending.steps_left -= 1;
        }
        while self.pending[vm].front().is_some_and(|oldest| oldest.steps_left == 0) {
            if let Some(done) = self.pending[vm].pop_front() {
                self.keep(done);
            }
        }
        let drawn = draw(self.seed ^ ((vm as u64) << 20), track.steps()).is_multiple_of(EVERY);
        if drawn && track.steps() >= STEPS_MIN && ahead > 0 {
            let features = track.features(ahead);
            self.pending[vm].push_back(Pending { features, most: f32::NAN, steps_left: ahead });
        }
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
