//! Sizing the fleet for a promise: what [`crate::sizing`] learns from every VM, day by day, and how well the promise was kept.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{VmId, VmWindow};

use super::Core;
use crate::archive::Tier;
use crate::io::{Lesson, Output, Record};
use crate::job::{FitJob, Job};
use crate::pattern::Closed;
use crate::plan::size::{Bounds, QUOTA_STEP_CORES, live_cores};
use crate::policy::Mode;
use crate::sizing::{Lessons, Model, Promise, RESIZE_COST, Sizer, SizingPolicy, Slot};

const DAY_STEPS: u64 = 288;

/// The first training waits for so many days, so that one has been seen and another one compared with it.
const TRAINING_DAYS_MIN: u64 = 2;

/// What a violation is worth is kept in the store so often: every hour.
const PERSIST_STEPS: u64 = 12;

/// A size is held for so many steps at least once it is taken, in which it is to keep the promise.
const DWELL_STEPS: usize = 6;

/// The same as a time.
pub(super) const PROMISE_DWELL: Duration = Duration::from_millis(DWELL_STEPS as u64 * Tier::Minutes5.step_ms());

/// Demand is told to the sizer in hundredths of a core: the steps of a quota.
const UNITS_PER_CORE: f64 = 1.0 / QUOTA_STEP_CORES;

/// A training of the fleet's model.
#[derive(Clone, Debug)]
pub(crate) struct Lecture {
    ticket: u64,
    lessons: Lessons,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Learnt {
    ticket: u64,
    model: Model,
}

impl Lecture {
    pub(crate) fn run(self) -> Learnt {
        Learnt { ticket: self.ticket, model: self.lessons.prepare().run() }
    }
}

/// The sizer, and what it waits for.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    sizer: Sizer,
    /// The training that is out.
    ticket: Option<u64>,
    /// The 5-minute step of the brain's clock that the next training waits for.
    training_due: Option<u64>,
    /// The most steps that were known of any VM before the first report.
    remembered: u64,
    /// The step that is being tallied: VM time in it, and for how much of that a VM was too small.
    step: u64,
    watched: Duration,
    violated: Duration,
}

impl Sizes {
    pub(super) fn new(violation_rate: f64, seed: u64) -> Self {
        let policy = SizingPolicy {
            violation_rate,
            lag_steps: 1,
            day_steps: DAY_STEPS as usize,
            quantum: 1.0,
            saving_min: 0.1,
            dwell_steps: DWELL_STEPS,
            resize_cost: RESIZE_COST,
        };
        Self {
            sizer: Sizer::new(policy, seed),
            ticket: None,
            training_due: None,
            remembered: 0,
            step: 0,
            watched: Duration::ZERO,
            violated: Duration::ZERO,
        }
    }

    /// Gives a place to a VM whose past is known.
    pub(super) fn remember(&mut self, past: &[Closed]) -> Slot {
        let slot = self.sizer.enter();
        past.iter().for_each(|&step| self.sizer.learn(slot, units(step)));
        self.remembered = self.remembered.max(past.iter().flatten().count() as u64);
        slot
    }

    /// Goes on with what a violation was worth before a restart.
    pub(super) fn resume(&mut self, promise: Promise) {
        self.sizer.resume(promise);
    }

    /// Frees the place of a VM that is forgotten.
    pub(super) fn leave(&mut self, slot: Slot) {
        self.sizer.leave(slot);
    }

    /// Sizes by what came of a training, unless another one was ordered since.
    pub(super) fn learnt(&mut self, learnt: Learnt) {
        if self.ticket == Some(learnt.ticket) {
            self.ticket = None;
            self.sizer.take(learnt.model);
        }
    }
}

impl Core {
    /// Tells the sizer of steps that a VM has closed, and asks which size keeps the promise.
    pub(super) fn resize_by_promise(&mut self, id: VmId, steps: &[Closed]) {
        let Some(vm) = self.fleet.vms.get_mut(&id) else { return };
        let sizer = &mut self.sizes.sizer;
        let slot = *vm.slot.get_or_insert_with(|| sizer.enter());
        steps.iter().for_each(|&step| sizer.learn(slot, units(step)));
        vm.promised_cores = None;
        let Some(host) = vm.host.as_ref().and_then(|host| self.fleet.hosts.get(host)) else { return };
        let bounds = Bounds::new(&self.policy.cpu, &host.facts.cpu_bounds, vm.allocation.vcpus);
        let Some(bounds) = bounds.filter(|_| self.policy.cpu.violation_rate > 0.0) else { return };
        let in_force = vm.allocation.cpu_limit_cores() * UNITS_PER_CORE;
        let size = sizer.decide(slot, bounds.ceiling * UNITS_PER_CORE, Some(in_force));
        vm.promised_cores = size.map(|units| units / UNITS_PER_CORE);
    }

    /// Counts in which part of their time VMs that are sized for the promise were too small.
    pub(super) fn tally(&mut self, now: Timestamp, windows: &[VmWindow], length: Duration) {
        let sizes = &mut self.sizes;
        let step = now.unix_ms() / Tier::Minutes5.step_ms();
        if step != sizes.step {
            sizes.step = step;
            let (watched, violated) = (std::mem::take(&mut sizes.watched), std::mem::take(&mut sizes.violated));
            if !watched.is_zero() {
                sizes.sizer.keep(violated.as_secs_f64() / watched.as_secs_f64());
                if step.is_multiple_of(PERSIST_STEPS) {
                    let lesson = Lesson::Promise(sizes.sizer.kept());
                    self.outputs.push_back(Output::Persist(Record::Lesson { lesson, at: now }));
                }
            }
        }
        for window in windows {
            // Where nothing is carried out, what was too small is nobody's lesson.
            if self.mode_of(window.vm) != Mode::Auto {
                continue;
            }
            let vm = self.fleet.vms.get(&window.vm).filter(|vm| vm.promised_cores.is_some() && !vm.stood_down);
            let Some((vm, cpu)) = vm.and_then(|vm| Some((vm, vm.cpu?))) else { continue };
            self.sizes.watched += length;
            if live_cores(&cpu, &vm.allocation) > vm.allocation.cpu_limit_cores() + QUOTA_STEP_CORES / 2.0 {
                self.sizes.violated += length;
            }
        }
    }

    /// Orders the day's training.
    pub(super) fn order_training(&mut self) {
        let sizes = &mut self.sizes;
        // After a restart, what is remembered is waited for no longer.
        let first = (TRAINING_DAYS_MIN * DAY_STEPS).saturating_sub(sizes.remembered);
        let due = *sizes.training_due.get_or_insert(sizes.step + first);
        if sizes.step < due || self.policy.cpu.violation_rate <= 0.0 {
            return;
        }
        sizes.training_due = Some(sizes.step + DAY_STEPS);
        let Some(lessons) = sizes.sizer.lessons() else { return };
        self.tickets += 1;
        sizes.ticket = Some(self.tickets);
        let lecture = Lecture { ticket: self.tickets, lessons };
        self.outputs.push_back(Output::Fit(Box::new(FitJob(Job::Train(lecture)))));
    }

    /// The promise is another one.
    pub(super) fn promise_anew(&mut self) {
        self.sizes.sizer.promise(self.policy.cpu.violation_rate);
        self.fleet.vms.values_mut().for_each(|vm| vm.promised_cores = None);
    }
}

/// A step's largest demand as the sizer takes it.
fn units(step: Closed) -> f32 {
    step.map_or(f32::NAN, |step| (step.max * UNITS_PER_CORE) as f32)
}
