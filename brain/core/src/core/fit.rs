//! Ordering fits and taking in what they found.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{VmId, VmWindow};

use super::Core;
use crate::draw::mix;
use crate::forecast::{FIT_STEPS_MIN, Refit, Refitted, fit_interval_steps};
use crate::io::Output;
use crate::job::{Done, FitJob, FitResult, Job};

/// Fits out at a time: each carries a copy of a history, and after a restart every VM wants one.
pub(super) const FITS_OUT_MAX: usize = 64;

/// A fit that has not come back after this was lost, with the worker that ran it.
pub(super) const FIT_PATIENCE: Duration = Duration::from_mins(5);

/// A fit on a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) ticket: u64,
    pub(super) ordered: Timestamp,
}

impl Core {
    /// Orders the fits that are due among the VMs of a report.
    pub(super) fn order_fits(&mut self, now: Timestamp, windows: &[VmWindow]) {
        if self.fits.len() >= FITS_OUT_MAX {
            self.fits.retain(|_, pending| now.since(pending.ordered) < FIT_PATIENCE);
        }
        for window in windows {
            let Some(vm) = self.fleet.vms.get_mut(&window.vm) else { continue };
            let measured = vm.history.measured();
            if measured < FIT_STEPS_MIN || vm.history.next() < vm.fit_due {
                continue;
            }
            let out = self.fits.get(&window.vm).is_some_and(|pending| now.since(pending.ordered) < FIT_PATIENCE);
            if out || self.fits.len() >= FITS_OUT_MAX {
                continue;
            }
            // Neighbours that started together drift apart: three quarters of the interval, and a half by the seed.
            let interval = fit_interval_steps(measured);
            let spread = mix(self.seed ^ window.vm.0.as_u64_pair().1) % (interval / 2).max(1);
            vm.fit_due = vm.history.next() + interval * 3 / 4 + spread;
            self.tickets += 1;
            self.fits.insert(window.vm, Pending { ticket: self.tickets, ordered: now });
            let refit = Refit::new(window.vm, self.tickets, &self.policy.forecast, &vm.history);
            self.outputs.push_back(Output::Fit(Box::new(FitJob(Job::Refit(refit)))));
        }
    }

    pub(super) fn fit_done(&mut self, result: FitResult) {
        match result.0 {
            Done::Refit(refitted) => self.refitted(*refitted),
            Done::Look(looked) => self.looked(*looked),
            Done::Train(learnt) => self.sizes.learnt(learnt),
        }
    }

    fn refitted(&mut self, result: Refitted) {
        // Anything but the latest ticket is about a history that is no more.
        if self.fits.get(&result.vm).is_none_or(|pending| pending.ticket != result.ticket) {
            return;
        }
        self.fits.remove(&result.vm);
        if let Some(vm) = self.fleet.vms.get_mut(&result.vm) {
            vm.forecaster = Some(result.forecaster);
            vm.catch_up();
        }
    }

    /// Drops the fits that are out for a VM: its history was rewritten.
    pub(super) fn cancel_fit(&mut self, vm: VmId) {
        self.fits.remove(&vm);
        self.looks.remove(&vm);
    }
}
