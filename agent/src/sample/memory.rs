//! A VM's memory in a window: what its process holds, what its guest says, and what it wanted. Pure.
//!
//! **Demand** is an estimate in the balloon's unit, so that it can be compared with what the balloon leaves: what the guest uses beyond
//! what it could give up ([`InUse`](crate::host::inventory::memory::InUse): the balloon's size less `MemAvailable`; it contains what
//! the guest's kernel keeps for itself), and what it shows that it lacks. It lacks what it had to push out to swap or to fetch back within
//! [`LACK_S`]: the largest of the flows to swap, from swap, and of major faults (a fault fetches at least a page), since the same page may
//! be seen in all three. Without fresh statistics nothing tells what a guest wants, and it is `None`: the resident size is no
//! substitute, because a guest touches all its memory sooner or later and QEMU never hands it back.
//!
//! Host-side pressure (the process's own major faults, PSI) is reported beside it and is no part of it: it says that the *host* took
//! memory from the VM, and a larger balloon would make that worse.

use crate::host::inventory::VmFacts;
use crate::host::inventory::memory::GuestReading;
use crate::host::process::Footprint;
use gnomon_common::wire::{GuestMemory, MemoryWindow};

/// How long a guest is taken to reach for what it lacks, in seconds: a report's window by default.
const LACK_S: f64 = 10.0;

/// The least that a major fault fetches, in bytes: a page of every architecture that KVM runs on.
const PAGE_BYTES: f64 = 4096.0;

/// Cumulative counters of a VM's process and control group at one instant, and what it holds then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HostMemoryReading {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub(super) taken_ns: u64,
    /// What the process holds.
    pub(super) footprint: Footprint,
    /// Page faults of the process that needed I/O.
    pub(super) major_faults: u64,
    /// Time stalled on memory (PSI), in microseconds; `None` where it is not told.
    pub(super) stalled_us: Option<u64>,
}

/// Rates between two answers of a guest's driver, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct GuestRates {
    major_faults: f64,
    swap_in_bytes: f64,
    swap_out_bytes: f64,
}

/// A VM's memory between two windows.
#[derive(Clone, Debug, Default)]
pub(super) struct MemorySeries {
    life: Option<(u32, u64)>,
    host: Option<HostMemoryReading>,
    guest: Option<GuestReading>,
    rates: Option<GuestRates>,
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
        MemoryWindow {
            resident_bytes: reading.footprint.resident_bytes,
            swapped_bytes: reading.footprint.swapped_bytes,
            balloon_bytes: facts.memory.balloon.movable_bytes(),
            guest: guest.zip(rates).map(|(guest, rates)| tell(&guest, &rates)),
            demand_bytes: in_use.map(|in_use| demand_bytes(in_use.bytes, &rates.unwrap_or_default())),
            host_major_faults_per_s: before.map_or(0.0, |before| host_major_faults_per_s(&before, &reading)),
            pressure: before.and_then(|before| pressure(&before, &reading)),
        }
    }

    /// Rates are those between the last two answers: a window without a new one goes on with them.
    fn observe_guest(&mut self, now: GuestReading) {
        let before = self.guest.replace(now);
        if let Some(before) = before.filter(|before| before.updated_unix_s != now.updated_unix_s) {
            self.rates = rates(&before, &now);
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

/// What a guest wanted, in bytes. What it lacks counts for at most as much as it uses: a guest that thrashes does not want a multiple.
fn demand_bytes(in_use_bytes: u64, rates: &GuestRates) -> u64 {
    let fetched = rates.swap_in_bytes.max(rates.major_faults * PAGE_BYTES);
    let lacking = rates.swap_out_bytes.max(fetched) * LACK_S;
    in_use_bytes.saturating_add((lacking.max(0.0) as u64).min(in_use_bytes))
}

fn host_major_faults_per_s(before: &HostMemoryReading, now: &HostMemoryReading) -> f64 {
    let elapsed_s = now.taken_ns.saturating_sub(before.taken_ns) as f64 / 1e9;
    let faults = now.major_faults.saturating_sub(before.major_faults) as f64;
    if elapsed_s > 0.0 { faults / elapsed_s } else { 0.0 }
}

fn pressure(before: &HostMemoryReading, now: &HostMemoryReading) -> Option<f64> {
    let elapsed_us = now.taken_ns.checked_sub(before.taken_ns).filter(|&ns| ns > 0)? as f64 / 1e3;
    let stalled_us = now.stalled_us?.checked_sub(before.stalled_us?)? as f64;
    Some((stalled_us / elapsed_us).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::memory::{Balloon, InUse, MemoryFacts};
    use crate::host::process::QemuProcess;
    use gnomon_common::wire::{VmId, VmState};
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
            execution_changes: 0,
        }
    }

    fn reading(second: u64, major_faults: u64, stalled_us: Option<u64>) -> HostMemoryReading {
        let footprint = Footprint { resident_bytes: 150 * MIB, swapped_bytes: 5 * MIB };
        HostMemoryReading { taken_ns: second * S, footprint, major_faults, stalled_us }
    }

    #[test]
    fn a_calm_guest_wants_what_it_uses() {
        let mut series = MemorySeries::default();
        let first = series.close(&facts(7, Some(guest(100, 5))), reading(100, 0, Some(0)), 100);
        assert_eq!((first.guest, first.pressure), (None, None), "there are no rates yet");
        assert_eq!(first.demand_bytes, Some(68 * MIB));
        let second = series.close(&facts(7, Some(guest(110, 5))), reading(110, 30, Some(2_500_000)), 110);
        assert_eq!(second.demand_bytes, Some(68 * MIB));
        assert_eq!((second.host_major_faults_per_s, second.pressure), (3.0, Some(0.25)));
        assert_eq!(second.guest.unwrap().usable_bytes, Some(60 * MIB));
    }

    #[test]
    fn a_guest_that_swaps_wants_what_it_had_to_push_out_as_well() {
        let mut series = MemorySeries::default();
        series.close(&facts(7, Some(guest(100, 0))), reading(100, 0, None), 100);
        let swapping = series.close(&facts(7, Some(guest(110, 30))), reading(110, 0, None), 110);
        assert_eq!(swapping.guest.unwrap().swap_out_bytes_per_s, 3.0 * MIB as f64);
        assert_eq!(swapping.demand_bytes, Some(98 * MIB));
        // No new answer in this window: the last rates stand.
        let between = series.close(&facts(7, Some(guest(110, 30))), reading(112, 0, None), 112);
        assert_eq!(between.demand_bytes, Some(98 * MIB));
    }

    #[test]
    fn stale_statistics_are_none_and_so_is_what_rests_on_them() {
        let mut series = MemorySeries::default();
        series.close(&facts(7, Some(guest(100, 0))), reading(100, 0, None), 100);
        series.close(&facts(7, Some(guest(110, 0))), reading(110, 0, None), 110);
        let stale = series.close(&facts(7, Some(guest(110, 0))), reading(130, 0, None), 130);
        assert_eq!((stale.guest, stale.demand_bytes), (None, None));
        assert_eq!(stale.balloon_bytes, Some(128 * MIB));
    }

    #[test]
    fn a_guest_without_a_driver_has_neither_balloon_nor_demand() {
        let mut facts = facts(7, None);
        facts.memory.balloon = Balloon::Silent;
        let window = MemorySeries::default().close(&facts, reading(100, 0, None), 100);
        assert_eq!((window.balloon_bytes, window.guest, window.demand_bytes), (None, None, None));
        assert_eq!((window.resident_bytes, window.swapped_bytes), (150 * MIB, 5 * MIB));
    }

    #[test]
    fn a_rebooted_guest_and_a_restarted_vm_are_not_compared_with_their_past() {
        let mut series = MemorySeries::default();
        series.close(&facts(7, Some(guest(100, 500))), reading(100, 900, Some(9)), 100);
        let rebooted = series.close(&facts(7, Some(guest(110, 0))), reading(110, 900, Some(9)), 110);
        assert_eq!((rebooted.guest, rebooted.demand_bytes), (None, Some(68 * MIB)));
        let restarted = series.close(&facts(8, Some(guest(120, 0))), reading(120, 1, Some(0)), 120);
        assert_eq!((restarted.host_major_faults_per_s, restarted.pressure), (0.0, None));
    }

    proptest! {
        #[test]
        fn demand_is_between_what_is_used_and_twice_that(
            in_use: u64, major_faults in 0.0..1e12_f64, swap_in_bytes in 0.0..1e15_f64, swap_out_bytes in 0.0..1e15_f64,
        ) {
            let demand = demand_bytes(in_use, &GuestRates { major_faults, swap_in_bytes, swap_out_bytes });
            prop_assert!(demand >= in_use && demand <= in_use.saturating_mul(2));
        }

        #[test]
        fn no_two_readings_make_an_absurd_window(
            t0: u64, t1: u64, f0: u64, f1: u64, s0: Option<u64>, s1: Option<u64>,
        ) {
            let reading = |taken_ns, major_faults, stalled_us| {
                HostMemoryReading { taken_ns, footprint: Footprint::default(), major_faults, stalled_us }
            };
            let (before, now) = (reading(t0, f0, s0), reading(t1, f1, s1));
            prop_assert!(host_major_faults_per_s(&before, &now).is_finite());
            prop_assert!(pressure(&before, &now).is_none_or(|share| (0.0..=1.0).contains(&share)));
        }
    }
}
