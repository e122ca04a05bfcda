//! How large VMs should be: the fleet's own history says how likely each size is to be too small, and a price on that chooses.
//!
//! One model for the whole fleet says, for each VM, how the largest demand is distributed until a resize that is decided now can be followed by
//! the next one. A size then costs itself and the price of a violation times its probability; the cheapest is wanted. So violations are spent
//! where avoiding them would cost most, and the price is corrected online until they are as rare as promised ([`promise`]). Growth is immediate;
//! shrinking waits for a dwell, and neither is done for less than a resize costs. Everything here is pure: training is a job that runs anywhere.

mod examples;
mod outlook;
mod promise;
#[cfg(test)]
mod tests;
mod track;

use std::sync::Arc;

use crate::boost::{Bins, Boost, BoostSettings};
use examples::Examples;
use outlook::{EXCEEDANCES, Outlook};
use promise::Promise;
use track::Track;

/// A VM is never sized so that it is likelier than this to be too small, whatever that saves.
const EXCEEDANCE_MAX: f64 = 0.3;

/// What sizes there are and what is promised.
#[derive(Clone, Debug, PartialEq)]
pub struct SizingPolicy {
    /// Share of time in which a VM of the fleet may be too small.
    pub violation_rate: f64,
    /// Steps from a decision until it is in force; at least 1.
    pub lag_steps: usize,
    /// Steps in a day.
    pub day_steps: usize,
    /// Sizes are multiples of this.
    pub quantum: f64,
    /// The largest size.
    pub size_max: f64,
    /// Shrinking must save at least this share of the size…
    pub saving_min: f64,
    /// …and waits for so many steps after the last resize.
    pub dwell_steps: usize,
    /// What a resize costs, in units of size until the next one: resizes that gain less in size and risk together are not done.
    pub resize_cost: f64,
}

/// Training of one quantile: a pure job.
#[derive(Clone, Debug)]
pub struct TrainingJob {
    columns: Arc<Vec<Vec<u8>>>,
    targets: Arc<Vec<f32>>,
    exceedance: f64,
}

impl TrainingJob {
    /// Does the work. Deterministic; a second or so for the 60,000 examples that are kept.
    pub fn run(&self) -> Boost {
        Boost::fit(&self.columns, &self.targets, (1.0 - self.exceedance) as f32, &BoostSettings::default())
    }
}

/// What has to be trained together: one job for each quantile.
#[derive(Clone, Debug)]
pub struct Training {
    bins: Bins,
    /// In the order that [`Sizer::trained`] wants the results.
    pub jobs: Vec<TrainingJob>,
}

#[derive(Clone, Debug)]
struct Model {
    bins: Bins,
    quantiles: Vec<Boost>,
}

#[derive(Clone, Debug)]
struct Vm {
    track: Track,
    /// What was decided last, and at which step that changed.
    wanted: Option<(f64, u64)>,
}

/// Sizes a fleet's VMs, step by step.
#[derive(Clone, Debug)]
pub struct Sizer {
    policy: SizingPolicy,
    vms: Vec<Vm>,
    examples: Examples,
    promise: Promise,
    model: Option<Model>,
    steps: u64,
}

impl Sizer {
    /// For a fleet of `vms`.
    pub fn new(policy: SizingPolicy, vms: usize, seed: u64) -> Self {
        let vm = Vm { track: Track::new(policy.day_steps), wanted: None };
        let promise = Promise::new(policy.violation_rate, policy.day_steps);
        Self { vms: vec![vm; vms], examples: Examples::new(vms, seed), promise, model: None, steps: 0, policy }
    }

    /// Steps that a decision must last: until it is in force, and until it may be undone.
    fn ahead(&self) -> usize {
        self.policy.dwell_steps + self.policy.lag_steps.max(1) - 1
    }

    /// Learns a step: each VM's demand (NaN where it was not measured) and, once sizes are in force, the share of VMs whose size was too small.
    pub fn observe(&mut self, demand: &[f32], violated: Option<f64>) {
        let ahead = self.ahead();
        for (number, (vm, &demand)) in self.vms.iter_mut().zip(demand).enumerate() {
            vm.track.learn(demand);
            self.examples.learn(number, demand, ahead, &vm.track);
        }
        if let Some(violated) = violated {
            self.promise.learn(violated);
        }
        self.steps += 1;
    }

    /// The training that all examples kept by now allow; `None` where there are too few.
    pub fn training(&self) -> Option<Training> {
        let (rows, targets) = self.examples.kept()?;
        let bins = Bins::fit(rows);
        let (columns, targets) = (Arc::new(bins.columns(rows)), Arc::new(targets.to_vec()));
        let job = |exceedance| TrainingJob { columns: columns.clone(), targets: targets.clone(), exceedance };
        Some(Training { bins, jobs: EXCEEDANCES.into_iter().map(job).collect() })
    }

    /// Takes in what the jobs of a training found, in their order.
    pub fn trained(&mut self, training: Training, quantiles: Vec<Boost>) {
        if quantiles.len() == EXCEEDANCES.len() {
            self.model = Some(Model { bins: training.bins, quantiles });
        }
    }

    /// How large a VM should be from now on; `None` before the first training. The decision counts as carried out.
    pub fn decide(&mut self, vm: usize) -> Option<f64> {
        let outlook = self.outlook(vm)?;
        let (wanted, cost) = self.cheapest(&outlook);
        let Some((size, since)) = self.vms[vm].wanted else {
            self.vms[vm].wanted = Some((wanted, self.steps));
            return Some(wanted);
        };
        let worth_it = self.cost(&outlook, size) - cost >= self.policy.resize_cost;
        let dwelt = self.steps >= since + self.policy.dwell_steps as u64;
        let shrinks = dwelt && wanted <= size * (1.0 - self.policy.saving_min);
        if worth_it && (wanted > size || shrinks) {
            self.vms[vm].wanted = Some((wanted, self.steps));
            return Some(wanted);
        }
        Some(size)
    }

    fn outlook(&self, vm: usize) -> Option<Outlook> {
        let model = self.model.as_ref()?;
        let row = model.bins.row(&self.vms[vm].track.features(self.ahead()));
        let mut demand = [0.0; EXCEEDANCES.len()];
        for (demand, quantile) in demand.iter_mut().zip(&model.quantiles) {
            *demand = f64::from(quantile.predict(&row));
        }
        Some(Outlook::new(demand))
    }

    /// What a size costs until the next decision that may shrink it: itself and its risk; infinite where the risk is never taken.
    fn cost(&self, outlook: &Outlook, size: f64) -> f64 {
        let exceedance = outlook.exceedance(size);
        if exceedance <= EXCEEDANCE_MAX { size + self.promise.price() * exceedance } else { f64::INFINITY }
    }

    /// The size that costs least, and its cost.
    fn cheapest(&self, outlook: &Outlook) -> (f64, f64) {
        let SizingPolicy { quantum, size_max, .. } = self.policy;
        let sizes = (1..=(size_max / quantum).floor().max(1.0) as usize).map(|count| count as f64 * quantum);
        let costs = sizes.map(|size| (size, self.cost(outlook, size)));
        // Where even the largest is too risky, it is still the best there is: it is reached at whatever cost.
        let least = costs.filter(|(_, cost)| cost.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1));
        least.unwrap_or((size_max, 0.0))
    }
}
