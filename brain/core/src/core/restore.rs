//! A restart: what the store remembers.

use super::Core;
use crate::fleet::Host;
use crate::io::{Lesson, Restored};
use crate::pattern::Pattern;

impl Core {
    /// Tells a new core what the store remembers; see [`Restored`] for the order. Nothing comes out: what is restored was
    /// persisted before, and plans need fresh evidence.
    pub fn restore(&mut self, restored: Restored) {
        match restored {
            Restored::Host { host, facts } => {
                self.fleet.hosts.insert(host, Host::new(facts));
            }
            Restored::History { vm, block } => {
                let key = block.key;
                if let Err(error) = self.stored.entry(vm).or_insert_with(Pattern::stored).restore(block) {
                    self.notice("history_damaged", format!("VM {vm}: {key:?} was left out: {error}"));
                }
            }
            Restored::Lesson(Lesson::Corrections { vm, corrections }) => {
                self.stored.entry(vm).or_insert_with(Pattern::stored).correct(corrections);
            }
            Restored::Lesson(Lesson::Moves { pace, begun, stranger_at }) => {
                self.restore_moves(pace, begun, stranger_at);
            }
            Restored::Lesson(Lesson::Contention { calibrations, starved }) => {
                self.restore_contention(calibrations, starved);
            }
            Restored::Drain { host, since } => {
                self.moves.draining.insert(host, since);
            }
            Restored::Lesson(Lesson::Promise(promise)) => self.sizes.resume(promise),
            Restored::Expectation(expectation) => self.restore_expectation(*expectation),
            Restored::Report(report) => {
                self.observe(&report, None);
            }
            Restored::Hold { scope, hold } => self.holds.set(scope, hold),
            Restored::Mode { scope, mode } => self.modes.set(scope, mode),
            Restored::Setting { vm, setting } => self.holds.hold_means(vm, setting),
            Restored::Capacity(request) => self.restore_capacity(*request),
            Restored::Proposal(proposal) => self.restore_proposal(*proposal),
            Restored::Shadow(shadow) => self.restore_shadow(*shadow),
            Restored::Tried(record) => {
                self.count_resize(&record);
                self.restore_tried(&record);
            }
            Restored::Command(record) => {
                self.count_resize(&record);
                self.resume_flight(record);
            }
        }
    }
}
