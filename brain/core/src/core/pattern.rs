//! The long run: history kept, looks ordered, anomalies told.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{VmId, VmWindow};

use super::Core;
use super::fit::{FIT_PATIENCE, FITS_OUT_MAX, Pending};
use super::incidents::News;
use crate::archive::Kpi;
use crate::draw::mix;
use crate::io::{Lesson, Output, Record};
use crate::job::{FitJob, Job};
use crate::pattern::{Looked, Sighting};
use crate::plan::mib;

/// Stored histories of VMs that have not come back are kept in memory up to so many: their hosts may only be late.
const UNCLAIMED_MAX: usize = 1000;

impl Core {
    /// Looks at the 5-minute steps that a report has closed.
    pub(super) fn turn(&mut self, now: Timestamp, windows: &[VmWindow]) {
        for window in windows {
            let id = window.vm;
            let Some(vm) = self.fleet.vms.get_mut(&id) else { continue };
            let Some(turn) = vm.pattern.turn() else { continue };
            if let Some((changes, corrections)) = vm.pattern.due_for_store(spread(self.seed, id)) {
                let lesson = Lesson::Corrections { vm: id, corrections };
                let history = changes.into_iter().map(|change| Record::History { vm: id, change });
                let records = history.chain([Record::Lesson { lesson, at: now }]);
                self.outputs.extend(records.map(Output::Persist));
            }
            self.resize_by_promise(id, &turn.steps);
            for sighting in turn.sightings {
                self.tell(now, id, sighting);
            }
        }
    }

    fn tell(&mut self, now: Timestamp, id: VmId, sighting: Sighting) {
        let (kpi, incident) = &sighting;
        let name = self.fleet.vms.get(&id).map_or("", |vm| vm.name.as_str());
        let write = |value: f64| match kpi {
            Kpi::Memory => mib(value.max(0.0) as u64),
            _ => format!("{value:.2}"),
        };
        let text = format!("VM {name} ({id}), {kpi}: {}", incident.in_words(write));
        let late = now.unix_ms() / 1000 > incident.at_s.unsigned_abs().saturating_add(LATE_S);
        let vms = self.fleet.vms.len();
        if !late {
            self.note_incident(now, id, *kpi, incident);
        }
        match self.incidents.add(id, sighting, vms) {
            // The backlog of an outage tells of the past: it is listed, and wakes nobody.
            News::One | News::Fleet { .. } if late => {}
            News::One => self.notice("anomaly", text),
            News::Fleet { vms } => {
                self.notice("anomaly_fleet", format!("{vms} VMs at once have anomalies; the latest: {text}"));
            }
            News::Known => {}
        }
    }

    /// Orders the looks that are due among the VMs of a report.
    pub(super) fn order_looks(&mut self, now: Timestamp, windows: &[VmWindow]) {
        if self.looks.len() >= FITS_OUT_MAX {
            self.looks.retain(|_, pending| now.since(pending.ordered) < FIT_PATIENCE);
        }
        for window in windows {
            let id = window.vm;
            let out = self.looks.get(&id).is_some_and(|pending| now.since(pending.ordered) < FIT_PATIENCE);
            if out || self.looks.len() >= FITS_OUT_MAX {
                continue;
            }
            let Some(vm) = self.fleet.vms.get_mut(&id) else { continue };
            let ticket = self.tickets + 1;
            let Some(look) = vm.pattern.look(id, ticket, spread(self.seed, id), &self.calendar) else { continue };
            self.tickets = ticket;
            self.looks.insert(id, Pending { ticket, ordered: now });
            self.outputs.push_back(Output::Fit(Box::new(FitJob(Job::Look(Box::new(look))))));
        }
    }

    pub(super) fn looked(&mut self, looked: Looked) {
        let (id, ticket) = (looked.vm, looked.ticket);
        // Anything but the latest ticket is about a history, or a calendar, that is no more.
        if self.looks.get(&id).is_none_or(|pending| pending.ticket != ticket) {
            return;
        }
        self.looks.remove(&id);
        let now = self.now;
        if let Some(vm) = self.fleet.vms.get_mut(&id) {
            let rewatched = looked.rewatched();
            let sightings = vm.pattern.looked(looked);
            if rewatched {
                self.incidents.replace(now, id, sightings);
            }
        }
    }

    /// Lets go of histories whose VMs did not come back, but for those that were there last.
    pub(super) fn bound_stored(&mut self) {
        let surplus = self.stored.len().saturating_sub(UNCLAIMED_MAX);
        if surplus == 0 {
            return;
        }
        let mut by_age: Vec<_> = self.stored.iter().map(|(&id, pattern)| (pattern.ended(), id)).collect();
        by_age.sort_unstable();
        by_age[..surplus].iter().for_each(|(_, id)| drop(self.stored.remove(id)));
    }
}

/// What was found longer ago than this is told to nobody.
const LATE_S: u64 = 1800;

/// Neighbours that started together drift apart.
fn spread(seed: u64, vm: VmId) -> u64 {
    mix(seed ^ vm.0.as_u64_pair().1)
}
