//! A report: inventory, allocations, demand.

use std::collections::BTreeSet;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Action, HostId, Report, VmId, VmState, VmWindow};

use super::Core;
use super::balance::fresh_until;
use crate::fleet::{Taught, Vm};
use crate::io::{Output, Record};
use crate::pattern::Pattern;

/// Longer windows are not believed: an agent ships one each few seconds.
const WINDOW_MAX: Duration = Duration::from_hours(1);

/// How far ahead of the brain's clock a host's may be. Beyond that its windows would fill history that is still to come.
const CLOCK_AHEAD_MAX: Duration = Duration::from_mins(5);

impl Core {
    pub(super) fn report(&mut self, now: Timestamp, report: &Report) {
        let end = report.start + window_of(report);
        if Self::is_from_the_future(report, now) {
            let ahead = end.since(now).as_secs();
            let text = format!("host {}: its clock is {ahead} s ahead; the report was left out", report.host);
            return self.notice("report_from_the_future", text);
        }
        if !self.observe(report, Some(now)) {
            return;
        }
        self.turn(now, &report.vms);
        self.tally(now, &report.vms, window_of(report));
        self.order_training();
        self.order_fits(now, &report.vms);
        self.order_looks(now, &report.vms);
        self.restore_baselines_on(now, &report.host);
        self.look_back(now, report, end);
        self.plan(now, report, end);
        if Self::is_fresh(now, end, window_of(report)) && self.is_connected(&report.host) {
            self.look_at_shadows(now, report);
            self.balance(now, &report.host, end, window_of(report));
        }
    }

    /// Whether a report that was received at `received`, on the brain's clock, is of a host whose clock is too far ahead to be
    /// believed. It is stored (so that the agent can forget it), but neither taken in when it comes nor at a restart.
    pub fn is_from_the_future(report: &Report, received: Timestamp) -> bool {
        report.start + window_of(report) > received + CLOCK_AHEAD_MAX
    }

    /// Takes in what a report says. `now` is `None` while a restart replays stored reports: then nothing comes out. Says
    /// whether the report is the host's newest.
    pub(super) fn observe(&mut self, report: &Report, now: Option<Timestamp>) -> bool {
        let before = self.outputs.len();
        let newest = self.take_in(report, now);
        if now.is_none() {
            self.outputs.truncate(before);
        }
        newest
    }

    fn take_in(&mut self, report: &Report, now: Option<Timestamp>) -> bool {
        let length = window_of(report);
        if length.is_zero() || length > WINDOW_MAX {
            let text = format!("host {}: a window of {length:?} was left out", report.host);
            self.notice("report_absurd", text);
            return false;
        }
        let Some(host) = self.fleet.hosts.get_mut(&report.host) else {
            self.notice("report_of_unknown_host", format!("host {} reported without being up", report.host));
            return false;
        };
        // The host's own count tells the order; its clock may have been set.
        let newest = host.latest.is_none_or(|latest| (report.epoch, report.sequence) > latest);
        if newest {
            host.latest = Some((report.epoch, report.sequence));
            host.last_window = Some(report.start);
            host.window = Some(report.host_window.clone().sane());
            host.losses = report.losses;
            let arriving = report.vms.iter().filter(|window| window.state == VmState::Arriving);
            host.arriving = arriving.map(|window| window.vm).collect();
            let runs = |vm: &VmId| report.vms.iter().any(|window| window.vm == *vm && window.state == VmState::Running);
            host.ghosts.retain(|vm| !report.inventory_complete || runs(vm));
        }
        let mut left_out = 0;
        for window in &report.vms {
            if newest {
                self.take_inventory(report, window, now);
            }
            left_out += usize::from(self.teach(report, window, length, newest, now) == Some(Taught::Behind));
        }
        if left_out > 0 {
            let Report { host, sequence, .. } = report;
            let text = format!("host {host}: {left_out} windows of report {} came late and were left out", sequence.0);
            self.notice("window_out_of_order", text);
        }
        if newest && report.inventory_complete {
            self.take_vanished(report, now);
        }
        self.see(report, length);
        newest
    }

    fn take_inventory(&mut self, report: &Report, window: &VmWindow, now: Option<Timestamp>) {
        let end = report.start + window_of(report);
        let id = window.vm;
        let (stored, sizes) = (&mut self.stored, &mut self.sizes);
        let vm = self.fleet.vms.entry(id).or_insert_with(|| {
            let Some(pattern) = stored.remove(&id) else { return Vm::new(window, &self.policy, Pattern::new()) };
            let slot = sizes.remember(&pattern.remembered());
            let mut vm = Vm::new(window, &self.policy, pattern);
            vm.slot = Some(slot);
            vm
        });
        let here = vm.host.as_ref() == Some(&report.host);
        let is_ghost = self.fleet.hosts.get(&report.host).is_some_and(|host| host.ghosts.contains(&id))
            && end <= fresh_until(vm.window_end, window_of(report));
        if !here && (is_ghost || !moves_here(vm, window, end)) {
            let is_expected =
                vm.flight.as_ref().is_some_and(|flight| matches!(flight.record.command.action, Action::Migrate(_)));
            if vm.state == VmState::Running && window.state == VmState::Running && !is_expected {
                self.notice("vm_on_two_hosts", format!("VM {id} is reported running by host {} as well", report.host));
            }
            return;
        }
        // A shadow that was made elsewhere has not been moved.
        if let (false, VmState::Running, Some(now), None) = (here, window.state, now, window.shadow) {
            self.note_move(now, id, &report.host);
        }
        if let (VmState::Running, Some(now)) = (window.state, now) {
            self.unpark(now, id, &report.host);
        }
        let Some(vm) = self.fleet.vms.get_mut(&id) else { return };
        let changed = !here || vm.name != window.name || vm.state != window.state;
        if vm.name != window.name {
            vm.name.clone_from(&window.name);
        }
        vm.state = window.state;
        vm.last_window = Some(report.start);
        vm.window_end = end;
        // Set again if this window teaches what the VM wants. What an earlier one told is no evidence for now: windows that
        // are not believed would else keep an old, small demand alive until the VM shrinks to it.
        (vm.cpu, vm.culprits) = (None, None);
        let stood_down = vm.stood_down;
        if vm.report_allocation(window, end, now) {
            let (allocation, baselines) = (vm.allocation, vm.baselines.clone());
            self.outputs.push_back(Output::Persist(Record::Allocation { vm: id, allocation, baselines, at: end }));
        }
        let stands_down = vm.stood_down;
        if !here {
            self.fleet.place(id, &report.host);
        }
        if stands_down != stood_down {
            let (verb, detail) = if stands_down {
                ("stand_down", "its agent keeps its hands off: someone else changed its limits")
            } else {
                ("stand_down_ended", "its agent acts again")
            };
            self.audit(end, report.host.as_str(), verb, format!("vm {id}"), detail.to_owned());
        }
        if changed {
            let (name, host) = (window.name.clone(), Some(report.host.clone()));
            self.persist(Record::Vm { vm: id, name, host, state: window.state, at: end });
        }
    }

    /// Teaches a VM its window. A late one counts wherever the VM is by now: it tells of the time before.
    fn teach(
        &mut self,
        report: &Report,
        window: &VmWindow,
        length: Duration,
        newest: bool,
        now: Option<Timestamp>,
    ) -> Option<Taught> {
        let vm = self.fleet.vms.get_mut(&window.vm).filter(|vm| !newest || vm.host.as_ref() == Some(&report.host))?;
        let taught = vm.teach(window, report.start, length, newest, now.is_none());
        match taught {
            Taught::Nothing | Taught::Demand | Taught::Filled | Taught::Behind => {}
            Taught::ClockSetBack => {
                self.cancel_fit(window.vm);
                if let Some(now) = now {
                    self.look_away(now, window.vm);
                }
                let text = format!("VM {}: its host's clock was set back; later history was forgotten", window.vm);
                self.notice("host_clock_set_back", text);
            }
            Taught::Absurd(why) => {
                self.notice("window_absurd", format!("VM {}: a window was left out, {why}", window.vm));
            }
        }
        Some(taught)
    }

    fn take_vanished(&mut self, report: &Report, now: Option<Timestamp>) {
        let reported: BTreeSet<VmId> = report.vms.iter().map(|window| window.vm).collect();
        let Some(host) = self.fleet.hosts.get(&report.host) else { return };
        let end = report.start + window_of(report);
        // One that has just come here is not in a window of the time before.
        let is_due = |id: &VmId| self.fleet.vms.get(id).is_none_or(|vm| vm.window_end < end);
        let vanished: Vec<VmId> = host.vms.difference(&reported).copied().filter(is_due).collect();
        for id in vanished {
            if let Some(slot) = self.fleet.vanish(id, end).and_then(|forgotten| forgotten.slot) {
                self.sizes.leave(slot);
            }
            self.withdraw_all_of(id);
            self.surpluses.end(id);
            // A restart goes through reports of a time before anything was expected.
            if let Some(now) = now {
                self.look_away(now, id);
            }
            if let Some(vm) = self.fleet.vms.get(&id) {
                let (name, state) = (vm.name.clone(), vm.state);
                self.persist(Record::Vm { vm: id, name, host: None, state, at: end });
            }
        }
    }

    /// Whether a report's evidence is recent enough to act on: spooled reports of an hour ago say nothing about now.
    pub(super) fn is_fresh(now: Timestamp, end: Timestamp, length: Duration) -> bool {
        now.since(end) <= length * WINDOWS_LATE_MAX + DELAY_MAX
    }

    pub(super) fn is_connected(&self, host: &HostId) -> bool {
        self.fleet.hosts.get(host).is_some_and(|host| host.connected)
    }
}

/// A report may be so many windows late…
const WINDOWS_LATE_MAX: u32 = 2;

/// …and this much for its way, clocks that differ and a store that syncs.
const DELAY_MAX: Duration = Duration::from_secs(5);

fn window_of(report: &Report) -> Duration {
    Duration::from_millis(u64::from(report.window_ms))
}

/// Whether a VM that belongs elsewhere, or nowhere, is on this host now. During a migration both hosts know it; the one where it
/// runs has it, and a report of the time before the move does not take it back.
fn moves_here(vm: &Vm, window: &VmWindow, end: Timestamp) -> bool {
    match vm.host {
        None => true,
        Some(_) if window.state != VmState::Running => false,
        Some(_) => vm.state != VmState::Running || end > vm.window_end,
    }
}
