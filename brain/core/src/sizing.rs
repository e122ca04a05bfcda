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

use std::collections::VecDeque;
use std::sync::Arc;

use crate::boost::{Bins, Boost, BoostSettings};
use examples::{Examples, Pending};
use outlook::{EXCEEDANCES, Outlook};
pub use promise::Promise;
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
    /// Shrinking must save at least this share of the size…
    pub saving_min: f64,
    /// …and waits for so many steps after the last resize.
    pub dwell_steps: usize,
    /// What a resize costs, as a share of what the fleet's VMs typically want, until the next one: those that gain less in size and risk together
    /// are not done.
    pub resize_cost: f64,
}

/// The place of a VM in a [`Sizer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(usize);

/// What the fleet's past has to teach: a copy, so that preparing it is a job as well.
#[derive(Clone, Debug)]
pub struct Lessons {
    features: Vec<Vec<f32>>,
    targets: Vec<f32>,
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
    typical: f64,
    jobs: Vec<TrainingJob>,
}

impl Lessons {
    /// Prepares the training. Deterministic; tenths of a second.
    pub fn prepare(self) -> Training {
        let bins = Bins::fit(&self.features);
        let typical =
            self.targets.iter().map(|&target| f64::from(target)).sum::<f64>() / self.targets.len().max(1) as f64;
        let (columns, targets) = (Arc::new(bins.columns(&self.features)), Arc::new(self.targets));
        let job = |exceedance| TrainingJob { columns: columns.clone(), targets: targets.clone(), exceedance };
        Training { bins, typical, jobs: EXCEEDANCES.into_iter().map(job).collect() }
    }
}

impl Training {
    /// The jobs, in the order that [`Training::finish`] wants their results. They can run side by side.
    pub fn jobs(&self) -> &[TrainingJob] {
        &self.jobs
    }

    /// Makes a model of what the jobs found.
    pub fn finish(self, quantiles: Vec<Boost>) -> Model {
        Model { bins: self.bins, typical: self.typical, quantiles }
    }

    /// The same, one job after the other.
    pub fn run(self) -> Model {
        let quantiles = self.jobs.iter().map(TrainingJob::run).collect();
        self.finish(quantiles)
    }
}

/// What the fleet's past says of the steps to come.
#[derive(Clone, Debug)]
pub struct Model {
    bins: Bins,
    /// What VMs want at most until a resize can be followed by another, on average.
    typical: f64,
    quantiles: Vec<Boost>,
}

#[derive(Clone, Debug)]
struct Vm {
    track: Track,
    pending: VecDeque<Pending>,
    /// What was decided last, and at which step of its own that changed.
    wanted: Option<(f64, u64)>,
}

/// Sizes a fleet's VMs. They come, go and step at their own time. A VM takes about [`VM_BYTES_MAX`] bytes.
#[derive(Clone, Debug)]
pub struct Sizer {
    policy: SizingPolicy,
    vms: Vec<Option<Vm>>,
    free: Vec<Slot>,
    examples: Examples,
    promise: Promise,
    model: Option<Model>,
}

/// What a resize costs, unless there is a reason to say otherwise: a fifth of what VMs typically want.
pub const RESIZE_COST: f64 = 0.2;

/// Bound of what a VM takes in memory at 5-minute steps: a week of them, and examples in the making.
pub const VM_BYTES_MAX: usize = 12 * 1024;

impl Sizer {
    /// For a fleet without VMs.
    pub fn new(policy: SizingPolicy, seed: u64) -> Self {
        let promise = Promise::new(policy.violation_rate, policy.day_steps);
        let examples = Examples::new(policy.day_steps, seed);
        Self { vms: Vec::new(), free: Vec::new(), examples, promise, model: None, policy }
    }

    /// Promises another rate; what was learnt of the price of the last one is void.
    pub fn promise(&mut self, violation_rate: f64) {
        self.policy.violation_rate = violation_rate;
        self.promise = Promise::new(violation_rate, self.policy.day_steps);
    }

    /// How the promise has been kept so far, to be resumed by another sizer.
    pub fn kept(&self) -> Promise {
        self.promise
    }

    /// Goes on where another sizer was; what was learnt for another promise is void.
    pub fn resume(&mut self, promise: Promise) {
        self.promise.resume(promise);
    }

    /// A place for a VM.
    pub fn enter(&mut self) -> Slot {
        let vm = Vm { track: Track::new(self.policy.day_steps), pending: VecDeque::new(), wanted: None };
        if let Some(slot) = self.free.pop() {
            self.vms[slot.0] = Some(vm);
            return slot;
        }
        self.vms.push(Some(vm));
        Slot(self.vms.len() - 1)
    }

    /// Frees a VM's place; what it taught stays.
    pub fn leave(&mut self, slot: Slot) {
        if self.vms.get_mut(slot.0).is_some_and(|vm| vm.take().is_some()) {
            self.free.push(slot);
        }
    }

    /// Steps that a decision must last: until it is in force, and until it may be undone.
    fn ahead(&self) -> usize {
        self.policy.dwell_steps + self.policy.lag_steps.max(1) - 1
    }

    /// Learns a VM's next step: its largest demand, NaN where it was not measured. O(1), amortised, but for examples, which look at a week.
    pub fn learn(&mut self, slot: Slot, demand: f32) {
        let (ahead, vms) = (self.ahead(), self.vms.len() - self.free.len());
        let Some(vm) = self.vms.get_mut(slot.0).and_then(Option::as_mut) else { return };
        vm.track.learn(demand);
        self.examples.learn(&mut vm.pending, (slot.0, vms), demand, ahead, &vm.track);
    }

    /// Learns, once for each step of the fleet, for which share of their time VMs were too small.
    pub fn keep(&mut self, violated: f64) {
        self.promise.learn(violated);
    }

    /// What there is to be learnt by now; `None` where it is too little.
    pub fn lessons(&self) -> Option<Lessons> {
        let (features, targets) = self.examples.kept()?;
        Some(Lessons { features: features.to_vec(), targets: targets.to_vec() })
    }

    /// Sizes by this model from now on. One with other quantiles than it was trained for is left out.
    pub fn take(&mut self, model: Model) {
        if model.quantiles.len() == EXCEEDANCES.len() {
            self.model = Some(model);
        }
    }

    /// How large a VM should be from now on, at most `size_max`; `None` before there is a model, and for a VM of which too little is known. The
    /// decision counts as carried out, unless something else is told to be `in_force`.
    pub fn decide(&mut self, slot: Slot, size_max: f64, in_force: Option<f64>) -> Option<f64> {
        let ahead = self.ahead();
        let vm = self.vms.get(slot.0)?.as_ref().filter(|vm| vm.track.suffices())?;
        let model = self.model.as_ref()?;
        let (outlook, step) = (model.outlook(&vm.track.features(ahead)), vm.track.steps());
        let price = self.promise.price() * model.typical;
        let cost = |size: f64| {
            let exceedance = outlook.exceedance(size);
            if exceedance <= EXCEEDANCE_MAX { size + price * exceedance } else { f64::INFINITY }
        };
        let quantum = self.policy.quantum;
        let largest = (size_max / quantum).floor().max(1.0);
        let counts = outlook.turns(price, EXCEEDANCE_MAX).map(|turn| (turn / quantum).floor());
        let sizes = counts.flat_map(|count| [count, count + 1.0]).map(|count| count.clamp(1.0, largest) * quantum);
        let finite = sizes.map(|size| (size, cost(size))).filter(|(_, cost)| cost.is_finite());
        // Where even the largest is too risky, it is still the best there is: it is reached at whatever cost.
        let (wanted, least) = finite.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((largest * quantum, 0.0));
        let decided = vm.wanted.unwrap_or((wanted, step));
        let size = in_force.unwrap_or(decided.0);
        let worth_it = cost(size) - least >= self.policy.resize_cost * model.typical;
        let dwelt = step >= decided.1 + self.policy.dwell_steps as u64;
        let shrinks = dwelt && wanted <= size * (1.0 - self.policy.saving_min);
        let now = if vm.wanted.is_none() || worth_it && (wanted > size || shrinks) { (wanted, step) } else { decided };
        if let Some(vm) = self.vms.get_mut(slot.0).and_then(Option::as_mut) {
            vm.wanted = Some(now);
        }
        Some(now.0)
    }
}

impl Model {
    fn outlook(&self, features: &[f32]) -> Outlook {
        let row = self.bins.row(features);
        let mut demand = [0.0; EXCEEDANCES.len()];
        for (demand, quantile) in demand.iter_mut().zip(&self.quantiles) {
            *demand = f64::from(quantile.predict(&row));
        }
        Outlook::new(demand)
    }
}
