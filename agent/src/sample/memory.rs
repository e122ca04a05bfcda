//! A VM's memory in a window: what its process holds, what its guest says, and what it wanted. Pure.
//!
//! What it wanted is made of all of that in [`demand`]. Host-side pressure (the process's own major faults, PSI, reclaim) is reported beside it: it says
//! that the *host* is short of memory for the VM.

mod demand;

use crate::host::inventory::VmFacts;
use crate::host::inventory::memory::GuestReading;
use crate::host::process::Footprint;
use crate::reading::ReclaimCounters;
use demand::{Displaced, GuestRates, GuestSigns, HostSigns};
use gnomon_common::wire::{GuestMemory, MemoryWindow, ReclaimStalls};
use serde::{Deserialize, Serialize};

/// Cumulative counters of a VM's process and control group at one instant, and what it holds then.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostMemoryReading {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub(crate) taken_ns: u64,
    /// What the process holds.
    pub(crate) footprint: Footprint,
    /// Page faults of the process that needed no I/O.
    pub(crate) minor_faults: u64,
    /// Page faults that needed I/O, of the control group where that counts them, else of the process.
    pub(crate) major_faults: u64,
    /// Time stalled on memory (PSI), in microseconds; `None` where it is not told.
    pub(crate) stalled_us: Option<u64>,
    /// What its threads reclaimed; `None` where it is not told.
    pub(crate) reclaim: Option<ReclaimCounters>,
}

/// A VM's memory between two windows.
#[derive(Clone, Debug, Default)]
pub(super) struct MemorySeries {
    life: Option<(u32, u64)>,
    host: Option<HostMemoryReading>,
    guest: Option<GuestReading>,
    rates: Option<GuestRates>,
    displaced: Displaced,
}

impl MemorySeries {
    /// The window that ends now; readings of another life of the VM are not compared with.
    pub(super) fn close(&mut self, facts: &VmFacts, reading: HostMemoryReading, now_unix_s: u64) -> MemoryWindow {
        let life = facts.process.as_ref().map(|process| (process.pid, process.start_ticks));
        if self.life != life {
            *self = Self { life, ..Self::default() };
        }
        let before = self.host.replace(reading);
        let guest = facts.memory.guest.filter(|guest| guest.is_fresh(now_unix_s));
        if let Some(guest) = guest {
            self.observe_guest(guest);
        }
        let rates = self.rates.filter(|_| guest.is_some());
        let in_use = facts.memory.in_use.filter(|in_use| in_use.is_fresh(now_unix_s));
        let faults_per_s =
            |of: fn(&HostMemoryReading) -> u64| before.map_or(0.0, |before| per_s(&before, &reading, of));
        let host_major_faults_per_s = faults_per_s(|reading| reading.major_faults);
        let pressure = before.and_then(|before| pressure(&before, &reading));
        let reclaim = before.and_then(|before| reclaim(&before, &reading));
        let demand = match in_use {
            Some(in_use) => {
                let room_bytes = guest.map_or(0, |guest| guest.could_give_up_bytes());
                let signs = GuestSigns { rates: rates.unwrap_or_default(), displaced: self.displaced, room_bytes };
                demand::of_guest(in_use.bytes, facts.memory_bytes, &signs)
            }
            None => {
                let signs = HostSigns {
                    major_faults_per_s: host_major_faults_per_s,
                    waited: pressure,
                    reclaiming: reclaim.map(|stalls| stalls.stalled_threads),
                };
                demand::of_process(reading.footprint, facts.memory_bytes, &signs)
            }
        };
        MemoryWindow {
            resident_bytes: reading.footprint.resident_bytes,
            swapped_bytes: reading.footprint.swapped_bytes,
            balloon_bytes: facts.memory.balloon.movable_bytes(),
            guest: guest.zip(rates).map(|(guest, rates)| tell(&guest, &rates)),
            demand: Some(demand),
            host_minor_faults_per_s: faults_per_s(|reading| reading.minor_faults),
            host_major_faults_per_s,
            pressure,
            reclaim,
        }
    }

    /// Rates are those between the last two answers: a window without a new one goes on with them.
    fn observe_guest(&mut self, now: GuestReading) {
        let before = self.guest.replace(now);
        if before.is_some_and(|before| before.updated_unix_s == now.updated_unix_s) {
            return;
        }
        self.rates = before.and_then(|before| rates(&before, &now));
        let room = now.could_give_up_bytes();
        let in_use = now.total_bytes.saturating_sub(room);
        match before.filter(|_| self.rates.is_some()) {
            Some(before) => {
                let (written, read) =
                    (now.swap_out_bytes - before.swap_out_bytes, now.swap_in_bytes - before.swap_in_bytes);
                self.displaced.observe(written, read, in_use, room);
            }
            None => self.displaced = Displaced::begin(now.swap_out_bytes, now.swap_in_bytes, in_use),
        }
    }
}

/// `None` where a counter or the clock went backwards: the guest was booted anew.
fn rates(before: &GuestReading, now: &GuestReading) -> Option<GuestRates> {
    let elapsed_s = now.updated_unix_s.checked_sub(before.updated_unix_s).filter(|&s| s > 0)? as f64;
    let rate = |before: u64, now: u64| now.checked_sub(before).map(|count| count as f64 / elapsed_s);
    Some(GuestRates {
        major_faults: rate(before.major_faults, now.major_faults)?,
        swap_in_bytes: rate(before.swap_in_bytes, now.swap_in_bytes)?,
        swap_out_bytes: rate(before.swap_out_bytes, now.swap_out_bytes)?,
    })
}

fn tell(guest: &GuestReading, rates: &GuestRates) -> GuestMemory {
    GuestMemory {
        total_bytes: guest.total_bytes,
        unused_bytes: guest.unused_bytes,
        usable_bytes: guest.usable_bytes,
        major_faults_per_s: rates.major_faults,
        swap_in_bytes_per_s: rates.swap_in_bytes,
        swap_out_bytes_per_s: rates.swap_out_bytes,
    }
}

fn per_s(before: &HostMemoryReading, now: &HostMemoryReading, count: fn(&HostMemoryReading) -> u64) -> f64 {
    let elapsed_s = now.taken_ns.saturating_sub(before.taken_ns) as f64 / 1e9;
    let counted = count(now).saturating_sub(count(before)) as f64;
    if elapsed_s > 0.0 { counted / elapsed_s } else { 0.0 }
}

fn pressure(before: &HostMemoryReading, now: &HostMemoryReading) -> Option<f64> {
    let elapsed_us = now.taken_ns.checked_sub(before.taken_ns).filter(|&ns| ns > 0)? as f64 / 1e3;
    let stalled_us = now.stalled_us?.checked_sub(before.stalled_us?)? as f64;
    Some((stalled_us / elapsed_us).clamp(0.0, 1.0))
}

/// `None` where a counter went backwards: the VM was tracked anew.
fn reclaim(before: &HostMemoryReading, now: &HostMemoryReading) -> Option<ReclaimStalls> {
    let elapsed_ns = now.taken_ns.checked_sub(before.taken_ns).filter(|&ns| ns > 0)? as f64;
    let (before, now) = (before.reclaim?, now.reclaim?);
    Some(ReclaimStalls {
        reclaims_per_s: now.reclaims.checked_sub(before.reclaims)? as f64 * 1e9 / elapsed_ns,
        stalled_threads: now.stalled_ns.checked_sub(before.stalled_ns)? as f64 / elapsed_ns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::memory::{Balloon, InUse, MemoryFacts};
    use crate::host::process::QemuProcess;
    use gnomon_common::wire::{DemandSource, MemoryDemand, VmId, VmState};
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;
    const MIB: u64 = 1 << 20;

    fn guest(updated_unix_s: u64, swap_out_mib: u64) -> GuestReading {
        GuestReading {
            updated_unix_s,
            stale_after_s: 15,
            total_bytes: 100 * MIB,
            usable_bytes: Some(60 * MIB),
            major_faults: 10,
            swap_out_bytes: swap_out_mib * MIB,
            ..GuestReading::default()
        }
    }

    fn facts(pid: u32, guest: Option<GuestReading>) -> VmFacts {
        let in_use =
            guest.map(|guest| InUse { updated_unix_s: guest.updated_unix_s, stale_after_s: 15, bytes: 68 * MIB });
        VmFacts {
            id: VmId(uuid::Uuid::nil()),
            name: "web".into(),
            state: VmState::Running,
            process: Some(QemuProcess { pid, start_ticks: 1, threads: Vec::new(), vhost_pids: Vec::new() }),
            cgroup: None,
            vcpus: 1,
            vcpus_max: 1,
            memory_bytes: 192 * MIB,
            balloon_bytes: Some(128 * MIB),
            memory: MemoryFacts { balloon: Balloon::Movable { bytes: 128 * MIB }, guest, in_use },
            interfaces: Vec::new(),
            disks_unseen: false,
            guest_disks: None,
            terms: None,
            keepsake: None,
            shadow_of: None,
            execution_changes: 0,
        }
    }

    fn reading(second: u64, major_faults: u64, stalled_us: Option<u64>) -> HostMemoryReading {
        let footprint = Footprint { resident_bytes: 150 * MIB, swapped_bytes: 5 * MIB };
        let minor_faults = second * 1_000;
        HostMemoryReading { taken_ns: second * S, footprint, minor_faults, major_faults, stalled_us, reclaim: None }
    }

    #[test]
    fn a_calm_guest_wants_what_it_uses() {
        let mut series = MemorySeries::default();
        let first = series.close(&facts(7, Some(guest(100, 5))), reading(100, 0, Some(0)), 100);
        assert_eq!((first.guest, first.pressure), (None, None), "there are no rates yet");
        assert_eq!(first.guest_demand_bytes(), Some(68 * MIB));
        let second = series.close(&facts(7, Some(guest(110, 5))), reading(110, 30, Some(2_500_000)), 110);
        assert_eq!(second.guest_demand_bytes(), Some(68 * MIB));
        assert_eq!((second.host_major_faults_per_s, second.pressure), (3.0, Some(0.25)));
        assert_eq!((first.host_minor_faults_per_s, second.host_minor_faults_per_s), (0.0, 1_000.0));
        assert_eq!(second.guest.unwrap().usable_bytes, Some(60 * MIB));
    }

    #[test]
    fn a_guest_that_swaps_wants_what_it_had_to_push_out_as_well() {
        let mut series = MemorySeries::default();
        series.close(&facts(7, Some(guest(100, 0))), reading(100, 0, None), 100);
        let swapping = series.close(&facts(7, Some(guest(110, 30))), reading(110, 0, None), 110);
        assert_eq!(swapping.guest.unwrap().swap_out_bytes_per_s, 3.0 * MIB as f64);
        assert_eq!(swapping.guest_demand_bytes(), Some(98 * MIB));
        // No new answer in this window: the last rates stand.
        let between = series.close(&facts(7, Some(guest(110, 30))), reading(112, 0, None), 112);
        assert_eq!(between.guest_demand_bytes(), Some(98 * MIB));
    }

    #[test]
    fn stale_statistics_are_none_and_so_is_what_rests_on_them() {
        let mut series = MemorySeries::default();
        series.close(&facts(7, Some(guest(100, 0))), reading(100, 0, None), 100);
        series.close(&facts(7, Some(guest(110, 0))), reading(110, 0, None), 110);
        let stale = series.close(&facts(7, Some(guest(110, 0))), reading(130, 0, None), 130);
        assert_eq!((stale.guest, stale.guest_demand_bytes()), (None, None));
        assert_eq!(stale.balloon_bytes, Some(128 * MIB));
    }

    #[test]
    fn a_guest_without_a_driver_has_no_balloon_and_wants_at_most_what_it_touched() {
        let mut facts = facts(7, None);
        facts.memory.balloon = Balloon::Silent;
        let window = MemorySeries::default().close(&facts, reading(100, 0, None), 100);
        assert_eq!((window.balloon_bytes, window.guest), (None, None));
        let touched = MemoryDemand { low_bytes: 0, high_bytes: 155 * MIB, source: DemandSource::Host };
        assert_eq!(window.demand, Some(touched), "all that it ever touched");
        assert_eq!((window.resident_bytes, window.swapped_bytes), (150 * MIB, 5 * MIB));
    }

    #[test]
    fn a_rebooted_guest_and_a_restarted_vm_are_not_compared_with_their_past() {
        let mut series = MemorySeries::default();
        series.close(&facts(7, Some(guest(100, 500))), reading(100, 900, Some(9)), 100);
        let rebooted = series.close(&facts(7, Some(guest(110, 0))), reading(110, 900, Some(9)), 110);
        assert_eq!((rebooted.guest, rebooted.guest_demand_bytes()), (None, Some(68 * MIB)));
        let restarted = series.close(&facts(8, Some(guest(120, 0))), reading(120, 1, Some(0)), 120);
        assert_eq!((restarted.host_major_faults_per_s, restarted.pressure), (0.0, None));
    }

    #[test]
    fn time_in_reclaim_is_told_per_second_and_opens_the_demand_of_a_silent_guest() {
        let (mut series, facts) = (MemorySeries::default(), facts(7, None));
        let reclaimed = |second, reclaims, stalled_ns| HostMemoryReading {
            reclaim: Some(ReclaimCounters { reclaims, stalled_ns }),
            ..reading(second, 0, None)
        };
        assert_eq!(series.close(&facts, reclaimed(100, 5, S), 100).reclaim, None);
        let window = series.close(&facts, reclaimed(110, 25, 6 * S), 110);
        assert_eq!(window.reclaim, Some(ReclaimStalls { reclaims_per_s: 2.0, stalled_threads: 0.5 }));
        assert_eq!(window.demand.unwrap().high_bytes, 192 * MIB, "what it is defined with");
        let anew = series.close(&facts, reclaimed(120, 0, 0), 120);
        assert_eq!((anew.reclaim, anew.demand.unwrap().high_bytes), (None, 155 * MIB));
        assert_eq!(series.close(&facts, reading(130, 0, None), 130).reclaim, None, "the probe is gone");
    }

    proptest! {
        #[test]
        fn no_two_readings_make_an_absurd_window(
            t0: u64, t1: u64, f0: u64, f1: u64, s0: Option<u64>, s1: Option<u64>,
        ) {
            let reading = |taken_ns, major_faults, stalled_us: Option<u64>| {
                let reclaim = stalled_us.map(|stalled_ns| ReclaimCounters { reclaims: major_faults, stalled_ns });
                let footprint = Footprint::default();
                HostMemoryReading { taken_ns, footprint, minor_faults: 0, major_faults, stalled_us, reclaim }
            };
            let (before, now) = (reading(t0, f0, s0), reading(t1, f1, s1));
            prop_assert!(per_s(&before, &now, |reading| reading.major_faults).is_finite());
            prop_assert!(pressure(&before, &now).is_none_or(|share| (0.0..=1.0).contains(&share)));
            let stalls = reclaim(&before, &now);
            prop_assert!(stalls.is_none_or(|stalls| stalls.stalled_threads >= 0.0 && stalls.stalled_threads.is_finite()));
        }
    }
}
