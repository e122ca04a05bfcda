//! Readings of the exits probe -> why a VM's vCPUs left their guest in a window.

use super::vm::Life;
use crate::cost::Loadable;
use crate::probe::{ExitProbe, ProbeError, ProgramCost};
use crate::reading::{ExitCounters, ExitReading};
use gnomon_common::wire::{ExitReason, ExitShare, VmId};

impl Loadable for ExitProbe {
    const NAME: &'static str = "exits";
    type Reading = ExitReading;

    fn load() -> Result<Self, ProbeError> {
        Self::load()
    }

    /// Control groups have no part in it: a vCPU is a thread.
    fn track(&mut self, vm: VmId, tgids: &[u32], _cgroups: &[u64]) -> Result<(), ProbeError> {
        Self::track(self, vm, tgids)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        Self::untrack(self, vm)
    }

    fn drain(&mut self) -> Result<ExitReading, ProbeError> {
        Self::drain(self)
    }

    fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        Self::cost(self)
    }
}

/// A VM's exits between two windows.
#[derive(Clone, Debug, Default)]
pub(super) struct ExitSeries {
    /// Of which life they are, when they were read, and the counters then.
    before: Option<(Life, u64, ExitCounters)>,
}

impl ExitSeries {
    /// The window that ends at `taken_ns` of `CLOCK_MONOTONIC`; `None` where the VM does not run or has no counters, or had none of this `life` at its
    /// begin: a vCPU of a paused VM is away from its guest as well, which says nothing about the guest.
    pub(super) fn close(
        &mut self,
        life: Option<Life>,
        now: Option<ExitCounters>,
        taken_ns: u64,
    ) -> Option<Vec<ExitShare>> {
        let before = self.before.take();
        let (life, now) = life.zip(now)?;
        self.before = Some((life, taken_ns, now));
        let (_, before_ns, before) = before.filter(|(of, ..)| *of == life)?;
        let elapsed_s = taken_ns.checked_sub(before_ns).filter(|&elapsed_ns| elapsed_ns > 0)? as f64 / 1e9;
        let share = |reason: ExitReason| {
            let index = reason as usize;
            // Less than before: a thread that was away when it was last read has entered its guest since then, or its number was given to another.
            let exits = now.exits[index].saturating_sub(before.exits[index]);
            let away_ns = now.away_ns[index].saturating_sub(before.away_ns[index]);
            // A time that was read twice may lead out of the window.
            let away_vcpus = (away_ns as f64 / 1e9 / elapsed_s).min(before.vcpus.max(now.vcpus).into());
            ExitShare { reason, exits_per_s: exits as f64 / elapsed_s, away_vcpus }
        };
        let shares = ExitReason::ALL.into_iter().map(share);
        Some(shares.filter(|share| share.exits_per_s > 0.0 || share.away_vcpus > 0.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const LIFE: Option<Life> = Some(Life { pid: 40, start_ticks: 7, execution_changes: 0 });

    fn counters(halts: u64, halted_ns: u64, exceptions: u64) -> Option<ExitCounters> {
        let mut counters = ExitCounters { vcpus: 2, ..ExitCounters::default() };
        counters.exits[ExitReason::Halt as usize] = halts;
        counters.away_ns[ExitReason::Halt as usize] = halted_ns;
        counters.exits[ExitReason::Exception as usize] = exceptions;
        Some(counters)
    }

    #[test]
    fn a_window_tells_what_happened_in_it_and_nothing_else() {
        let mut series = ExitSeries::default();
        assert_eq!(series.close(LIFE, counters(5, S, 3), S), None, "there is nothing to compare with");
        let told = series.close(LIFE, counters(1_005, 4 * S, 3), 11 * S).unwrap();
        assert_eq!(told, [ExitShare { reason: ExitReason::Halt, exits_per_s: 100.0, away_vcpus: 0.3 }]);
        assert_eq!(series.close(LIFE, counters(1_005, 4 * S, 3), 21 * S), Some(Vec::new()), "a guest that spins");
    }

    #[test]
    fn a_reason_is_named_alike_in_a_metric_and_in_json() {
        for reason in ExitReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
    }

    #[test]
    fn another_life_of_the_vm_or_a_source_that_was_gone_is_not_compared_with() {
        let mut series = ExitSeries::default();
        let next = Some(Life { pid: 41, start_ticks: 9, execution_changes: 0 });
        series.close(LIFE, counters(5, S, 0), S);
        assert_eq!(series.close(next, counters(500, 2 * S, 0), 11 * S), None);
        assert_eq!(series.close(next, None, 21 * S), None);
        assert_eq!(series.close(next, counters(900, 3 * S, 0), 31 * S), None);
        assert!(series.close(next, counters(900, 3 * S, 0), 41 * S).is_some());
        assert_eq!(series.close(next, counters(900, 3 * S, 0), 41 * S), None, "a window without length");
    }

    #[test]
    fn a_window_with_a_pause_in_it_is_not_told() {
        let mut series = ExitSeries::default();
        series.close(LIFE, counters(5, S, 0), S);
        let resumed = LIFE.map(|life| Life { execution_changes: 2, ..life });
        assert_eq!(series.close(resumed, counters(5, 10 * S, 0), 11 * S), None);
        assert!(series.close(resumed, counters(5, 20 * S, 0), 21 * S).is_some());
        assert_eq!(series.close(None, counters(5, 30 * S, 0), 31 * S), None, "it is paused");
        assert_eq!(series.close(resumed, counters(5, 40 * S, 0), 41 * S), None, "nothing is compared with a pause");
    }

    #[test]
    fn counters_that_shrink_or_race_give_nothing_absurd() {
        let mut series = ExitSeries::default();
        series.close(LIFE, counters(500, 5 * S, 9), S);
        assert_eq!(series.close(LIFE, counters(400, 4 * S, 9), 2 * S), Some(Vec::new()));
        let told = series.close(LIFE, counters(401, 40 * S, 9), 3 * S).unwrap();
        assert_eq!(told[0].away_vcpus, 2.0, "no more vCPUs can be away than there are");
    }
}
