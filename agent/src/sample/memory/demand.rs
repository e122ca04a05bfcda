//! What a VM wanted of memory: an interval, as its demand for CPU is. Pure.
//!
//! **Where its guest tells** by its balloon driver, the interval is in the balloon's unit, so that it can be compared with what the balloon leaves.
//! From below, what the guest uses beyond what it could give up ([`InUse`](crate::host::inventory::memory::InUse): the balloon's size less
//! `MemAvailable`; what its kernel keeps for itself is in it). From above, that and what it shows that it lacks: what it had to push out to swap or to
//! fetch back within [`LACK_S`]. That is the largest of the flows to swap, from swap, and of major faults (a fault fetches at least a page), since the same
//! page may be seen in all three. Pressure of the *host's* is no part of it: a guest does not want more because the host took something away.
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

/// What a guest wanted that uses so much. What it lacks counts for at most as much as it uses: a guest that thrashes does not want a multiple.
pub(super) fn of_guest(in_use_bytes: u64, rates: &GuestRates) -> MemoryDemand {
    let fetched = rates.swap_in_bytes.max(rates.major_faults * PAGE_BYTES);
    let lacking = rates.swap_out_bytes.max(fetched) * LACK_S;
    let high_bytes = in_use_bytes.saturating_add((lacking.max(0.0) as u64).min(in_use_bytes));
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

    proptest! {
        #[test]
        fn demand_is_between_what_is_used_and_twice_that(
            in_use: u64, major_faults in 0.0..1e12_f64, swap_in_bytes in 0.0..1e15_f64, swap_out_bytes in 0.0..1e15_f64,
        ) {
            let demand = of_guest(in_use, &GuestRates { major_faults, swap_in_bytes, swap_out_bytes });
            prop_assert_eq!(demand.low_bytes, in_use);
            prop_assert!(demand.high_bytes >= in_use && demand.high_bytes <= in_use.saturating_mul(2));
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
