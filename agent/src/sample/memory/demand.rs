//! What a VM wanted of memory: an interval, as its demand for CPU is. Pure.
//!
//! **Where its guest tells** by its balloon driver, the interval is in the balloon's unit, so that it can be compared with what the balloon leaves.
//! From below, what the guest uses beyond what it could give up ([`InUse`](crate::host::inventory::memory::InUse): the balloon's size less
//! `MemAvailable`; what its kernel keeps for itself is in it). From above, that and what it shows that it lacks. Pressure of the *host's* is no part of it:
//! a guest does not want more because the host took something away.
//!
//! *Lacking* is first what is in swap and moves. How fast it moves tells how much that is only while there is room for it: it is what moves within
//! [`LACK_S`]. In a guest that is full the rate says how fast its disk is, and how often the same pages come by; there it is all that was pushed out and is
//! not back ([`Displaced`]). What lies in swap while nothing moves is no want. Second it is what faults fetch from files, those from swap left out: each
//! fetches at least a page, and no more is lacking than is used.
//!
//! **Where it does not**, the host sees pages that were touched. A guest touches all its memory sooner or later, and what it frees comes back only if it
//! reports free pages. So what is resident or swapped out, QEMU's own included, bounds the want from above, up to what the VM is defined with; but
//! not while the host presses: then what is resident is what was left to it (what is swapped out of shared memory is in no account of the
//! process's), and the interval is open up to the definition. From below it is only what the process had to fetch back. How active the pages are does
//! not help: the kernel's lists age only where memory is short, and what a KVM guest touches leaves no mark in QEMU's own page tables.

use crate::host::process::Footprint;
use gnomon_common::wire::{DemandSource, MemoryDemand};

/// How long a guest is taken to reach for what it lacks, in seconds: a report's window by default.
const LACK_S: f64 = 10.0;

/// The least that a major fault fetches, in bytes: a page of every architecture that KVM runs on.
const PAGE_BYTES: f64 = 4096.0;

/// From this on the host presses: so much of the time some thread of the VM's waited for memory, or reclaimed it for itself.
const STALLED_MIN: f64 = 0.01;

/// Rates between two answers of a guest's driver, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct GuestRates {
    pub(super) major_faults: f64,
    pub(super) swap_in_bytes: f64,
    pub(super) swap_out_bytes: f64,
}

/// By what the host shows that it is short of memory for a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct HostSigns {
    pub(super) major_faults_per_s: f64,
    /// Share of the time that some thread waited for memory, where PSI tells.
    pub(super) waited: Option<f64>,
    /// Threads that reclaimed memory, on average, where the probe tells.
    pub(super) reclaiming: Option<f64>,
}

impl HostSigns {
    fn press(&self) -> bool {
        [self.waited, self.reclaiming].into_iter().flatten().any(|share| share >= STALLED_MIN)
    }
}

/// How much of a guest's memory is in swap, by what its kernel has counted: written less read back. Bytes.
///
/// That is not quite so. A page that was read back and only read from since is dropped again without being written: where such pages come and go the
/// difference falls below what is out, so [`most`](Self::most) stays until there is room for all. What a program had in swap when it ended is never
/// read back: the difference stays above what is out, so of what lies there while nothing moves no more is believed than the guest uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Displaced {
    now: u64,
    most: u64,
}

impl Displaced {
    /// From the first answer of a guest that uses so much.
    pub(super) fn begin(written: u64, read: u64, in_use: u64) -> Self {
        let now = written.saturating_sub(read);
        Self { now, most: now.max(written.min(in_use)) }
    }

    /// Takes in what was written and read since the answer before, by a guest that uses so much and has room for so much.
    pub(super) fn observe(&mut self, written: u64, read: u64, in_use: u64, room: u64) {
        self.now = self.now.saturating_add(written).saturating_sub(read);
        self.most = if room >= self.most { self.now } else { self.most.max(self.now) };
        if (written, read) == (0, 0) {
            (self.now, self.most) = (self.now.min(in_use), self.most.min(in_use));
        }
    }
}

/// What a guest shows that it lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct GuestSigns {
    pub(super) rates: GuestRates,
    pub(super) displaced: Displaced,
    /// What a program could have without swapping, in bytes.
    pub(super) room_bytes: u64,
}

/// What a guest wanted that uses so much and is defined with so much.
pub(super) fn of_guest(in_use_bytes: u64, defined_bytes: u64, signs: &GuestSigns) -> MemoryDemand {
    let GuestSigns { rates, displaced, room_bytes } = signs;
    let moving = (rates.swap_out_bytes.max(rates.swap_in_bytes) * LACK_S) as u64;
    let from_swap = if moving > *room_bytes { displaced.most } else { moving.min(displaced.most) };
    let from_files = ((rates.major_faults * PAGE_BYTES - rates.swap_in_bytes).max(0.0) * LACK_S) as u64;
    let lacking = from_swap.saturating_add(from_files.min(in_use_bytes));
    let high_bytes = in_use_bytes.saturating_add(lacking).min(defined_bytes).max(in_use_bytes);
    MemoryDemand { low_bytes: in_use_bytes, high_bytes, source: DemandSource::Guest }
}

/// What a VM wanted of whose memory only its process tells, and that is defined with so much.
pub(super) fn of_process(footprint: Footprint, defined_bytes: u64, signs: &HostSigns) -> MemoryDemand {
    let touched = footprint.resident_bytes.saturating_add(footprint.swapped_bytes);
    let high_bytes = if signs.press() { defined_bytes } else { touched.min(defined_bytes) };
    let fetched = (signs.major_faults_per_s * PAGE_BYTES * LACK_S).max(0.0) as u64;
    MemoryDemand { low_bytes: fetched.min(high_bytes), high_bytes, source: DemandSource::Host }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const FOOTPRINT: Footprint = Footprint { resident_bytes: 150 * MIB, swapped_bytes: 50 * MIB };

    fn ends(demand: MemoryDemand) -> (u64, u64) {
        (demand.low_bytes / MIB, demand.high_bytes / MIB)
    }

    #[test]
    fn a_silent_guest_wants_at_most_what_it_touched_and_never_more_than_it_may_have() {
        let calm = HostSigns { waited: Some(0.005), reclaiming: Some(0.0), ..HostSigns::default() };
        assert_eq!(ends(of_process(FOOTPRINT, 512 * MIB, &calm)), (0, 200));
        assert_eq!(ends(of_process(FOOTPRINT, 192 * MIB, &calm)), (0, 192));
    }

    #[test]
    fn under_pressure_what_is_left_to_a_silent_guest_is_no_bound_and_what_it_fetched_back_is() {
        let faults = HostSigns { major_faults_per_s: 256.0, ..HostSigns::default() };
        assert_eq!(ends(of_process(FOOTPRINT, 512 * MIB, &faults)), (10, 200));
        for signs in [
            HostSigns { waited: Some(0.02), ..faults },
            HostSigns { reclaiming: Some(0.5), waited: Some(0.0), ..faults },
        ] {
            assert_eq!(ends(of_process(FOOTPRINT, 512 * MIB, &signs)), (10, 512));
        }
    }

    const IN_USE: u64 = 124 * MIB;

    /// What a guest that is defined with 256 MiB wants of them at most, in MiB, when it reads from swap at this rate and writes as much.
    fn high_mib(displaced: Displaced, room_mib: u64, moves_mib_per_s: u64) -> u64 {
        let flow = (moves_mib_per_s * MIB) as f64;
        let rates = GuestRates { swap_in_bytes: flow, swap_out_bytes: flow, ..GuestRates::default() };
        ends(of_guest(IN_USE, 256 * MIB, &GuestSigns { rates, displaced, room_bytes: room_mib * MIB })).1
    }

    #[test]
    fn a_full_guest_lacks_what_it_pushed_out_however_slow_or_fast_its_disk() {
        let mut displaced = Displaced::begin(0, 0, IN_USE);
        displaced.observe(70 * MIB, 0, IN_USE, 4 * MIB);
        for flow in [1, 50] {
            displaced.observe(flow * MIB, flow * MIB, IN_USE, 4 * MIB);
            assert_eq!(high_mib(displaced, 4, flow), 124 + 70);
        }
        assert_eq!(high_mib(displaced, 4, 0), 124, "what lies there is no want");
        assert_eq!(high_mib(displaced, 40, 1), 124 + 10, "there is room for what moves");
    }

    #[test]
    fn pages_that_are_dropped_without_being_written_are_not_taken_for_pages_that_are_back() {
        let mut displaced = Displaced::begin(0, 0, IN_USE);
        displaced.observe(70 * MIB, 0, IN_USE, 4 * MIB);
        displaced.observe(0, 500 * MIB, IN_USE, 4 * MIB);
        assert_eq!(high_mib(displaced, 4, 50), 124 + 70);
        displaced.observe(0, MIB, IN_USE, 100 * MIB);
        assert_eq!(high_mib(displaced, 100, 1), 124, "there is room for all, and it is back");
    }

    #[test]
    fn what_lies_in_swap_while_nothing_moves_counts_for_no_more_than_what_is_used() {
        let mut displaced = Displaced::begin(1_000 * MIB, 0, IN_USE);
        displaced.observe(0, 0, 30 * MIB, 4 * MIB);
        assert_eq!(high_mib(displaced, 4, 1), 124 + 30);
        assert_eq!(
            high_mib(Displaced::begin(90 * MIB, 5_000 * MIB, IN_USE), 4, 1),
            124 + 90,
            "begun in the midst of it"
        );
    }

    #[test]
    fn what_faults_fetch_from_files_is_lacking_too_and_what_they_fetch_from_swap_is_not_counted_twice() {
        let rates = GuestRates { major_faults: 256.0, ..GuestRates::default() };
        let signs = GuestSigns { rates, ..GuestSigns::default() };
        assert_eq!(ends(of_guest(IN_USE, 256 * MIB, &signs)), (124, 134));
        let rates = GuestRates { swap_in_bytes: MIB as f64, ..rates };
        assert_eq!(ends(of_guest(IN_USE, 256 * MIB, &GuestSigns { rates, ..signs })), (124, 124));
    }

    proptest! {
        #[test]
        fn a_guest_wants_what_it_uses_and_at_most_what_it_has_in_swap_and_as_much_again_from_files(
            in_use in 0..1_u64 << 50, defined: u64, room_bytes: u64, most in 0..1_u64 << 50,
            major_faults in 0.0..1e12_f64, swap_in_bytes in 0.0..1e15_f64, swap_out_bytes in 0.0..1e15_f64,
        ) {
            let rates = GuestRates { major_faults, swap_in_bytes, swap_out_bytes };
            let signs = GuestSigns { rates, displaced: Displaced { now: 0, most }, room_bytes };
            let demand = of_guest(in_use, defined, &signs);
            prop_assert_eq!(demand.low_bytes, in_use);
            prop_assert!(demand.high_bytes >= in_use && demand.high_bytes <= 2 * in_use + most);
            prop_assert!(demand.high_bytes <= defined.max(in_use));
        }

        /// A guest of which the kernel counts what it moves, and no page is dropped without being written.
        #[test]
        fn what_is_out_is_never_underestimated_of_pages_that_are_written_to(
            steps in proptest::collection::vec((0..1_u64 << 30, 0..1_u64 << 30, 0..1_u64 << 30), 0..50), begins in 0..50_usize,
        ) {
            let (mut written, mut read, mut out) = (0, 0, 0_u64);
            let mut displaced = Displaced::default();
            for (at, (out_bytes, back_bytes, room)) in steps.into_iter().enumerate() {
                let back_bytes = back_bytes.min(out + out_bytes);
                out = out + out_bytes - back_bytes;
                (written, read) = (written + out_bytes, read + back_bytes);
                // Nothing that moves is believed for its size alone, however much the guest uses.
                if at <= begins {
                    displaced = Displaced::begin(written, read, 1 << 40);
                } else {
                    displaced.observe(out_bytes, back_bytes, 1 << 40, room);
                }
                prop_assert!(displaced.most >= displaced.now && displaced.now == out);
            }
        }

        #[test]
        fn the_ends_of_a_silent_guests_interval_are_in_order_and_within_the_definition(
            resident_bytes: u64, swapped_bytes: u64, defined: u64, major_faults_per_s: f64, waited: Option<f64>,
        ) {
            let signs = HostSigns { major_faults_per_s, waited, reclaiming: None };
            let demand = of_process(Footprint { resident_bytes, swapped_bytes }, defined, &signs);
            prop_assert!(demand.low_bytes <= demand.high_bytes && demand.high_bytes <= defined);
        }
    }
}
