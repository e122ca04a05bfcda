//! Readings of the drop probe -> why packets were dropped on each device in a window.

use super::by_device::{Counted, DeviceProbe, DeviceSeries};
use crate::probe::{DropProbe, Drops, ProbeError, ProgramCost};
use gnomon_common::wire::{DROP_REASONS_MAX, Dropped};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

impl DeviceProbe for DropProbe {
    const NAME: &'static str = "drops";
    type Reading = DropReading;

    fn load() -> Result<Self, ProbeError> {
        Self::load()
    }

    fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<DropReading, ProbeError> {
        let counted = self.drain()?;
        self.watch(&devices.values().copied().collect())?;
        let reasons: BTreeSet<u32> = counted.values().flat_map(BTreeMap::keys).copied().collect();
        let reasons = reasons.into_iter().map(|reason| (reason, self.reason(reason))).collect();
        Ok(DropReading { devices, counted, reasons, missed: Some(self.missed()?) })
    }

    fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        Self::cost(self)
    }
}

/// What a window's end reads of drops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReading {
    /// The devices that are watched from now on, by name with their numbers.
    pub devices: BTreeMap<String, u32>,
    /// What was counted on those watched until now.
    pub counted: Drops,
    /// What the reasons in there are called.
    pub reasons: BTreeMap<u32, String>,
    /// Drops that were not counted for want of room; `None` while nothing counts.
    pub missed: Option<u64>,
}

/// Drops on the devices of VMs from window to window. Pure.
#[derive(Debug, Default)]
pub(super) struct DropSeries(DeviceSeries<BTreeMap<u32, u64>>);

impl DropSeries {
    /// Ends the window at `taken_ns` of `CLOCK_MONOTONIC`: what was dropped on each device that was watched all through it.
    pub(super) fn close(&mut self, reading: Option<&DropReading>, taken_ns: u64) -> BTreeMap<String, Vec<Dropped>> {
        let Some(reading) = reading else { return self.0.close(None, taken_ns, |_, _, _| Vec::new()) };
        let counted = Counted { devices: &reading.devices, counted: &reading.counted };
        self.0
            .close(Some(counted), taken_ns, |before, now, elapsed_s| between(&reading.reasons, before, now, elapsed_s))
    }
}

fn between(
    reasons: &BTreeMap<u32, String>,
    before: &BTreeMap<u32, u64>,
    now: &BTreeMap<u32, u64>,
    elapsed_s: f64,
) -> Vec<Dropped> {
    let gain = |(reason, now): (&u32, &u64)| (now.saturating_sub(*before.get(reason).unwrap_or(&0)), *reason);
    let mut gains: Vec<(u64, u32)> = now.iter().map(gain).filter(|(packets, _)| *packets > 0).collect();
    gains.sort_by_key(|&(packets, reason)| (Reverse(packets), reason));
    let told = gains.into_iter().take(DROP_REASONS_MAX);
    told.map(|(packets, reason)| Dropped {
        reason: reasons.get(&reason).cloned().unwrap_or_else(|| reason.to_string()),
        packets_per_s: packets as f64 / elapsed_s,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// What was counted so far on the devices that are watched, and what is made of it.
    #[derive(Default)]
    struct Bench {
        counted: Drops,
        series: DropSeries,
    }

    impl Bench {
        fn drop_on(&mut self, ifindex: u32, reason: u32, packets: u64) {
            *self.counted.entry(ifindex).or_default().entry(reason).or_default() += packets;
        }

        fn close(&mut self, devices: &[(&str, u32)], taken_ns: u64) -> BTreeMap<String, Vec<Dropped>> {
            let devices: BTreeMap<String, u32> =
                devices.iter().map(|&(name, ifindex)| (name.to_owned(), ifindex)).collect();
            let reasons = (0..20).map(|reason| (reason, format!("reason {reason}"))).collect();
            let reading = DropReading { devices, counted: self.counted.clone(), reasons, missed: Some(7) };
            self.series.close(Some(&reading), taken_ns)
        }
    }

    #[test]
    fn a_windows_drops_are_those_since_the_last_with_most_first() {
        let mut bench = Bench::default();
        let vnet = [("vnet0", 4), ("vnet1", 5)];
        assert!(bench.close(&vnet, S).is_empty());
        bench.drop_on(4, 2, 30);
        bench.drop_on(4, 7, 50);
        let told = bench.close(&vnet, 11 * S);
        let drop = |reason: &str, packets_per_s| Dropped { reason: reason.to_owned(), packets_per_s };
        assert_eq!(told["vnet0"], [drop("reason 7", 5.0), drop("reason 2", 3.0)]);
        assert_eq!(told["vnet1"], [], "nothing was dropped, which is known");
        bench.drop_on(4, 2, 10);
        assert_eq!(bench.close(&vnet, 21 * S)["vnet0"], [drop("reason 2", 1.0)]);
    }

    #[test]
    fn a_device_made_anew_or_a_reading_that_failed_gives_no_window() {
        let mut bench = Bench::default();
        bench.close(&[("vnet0", 4)], S);
        bench.drop_on(4, 2, 30);
        assert!(bench.close(&[("vnet0", 9)], 11 * S).is_empty());
        assert!(bench.series.close(None, 21 * S).is_empty());
        bench.drop_on(9, 2, 30);
        assert!(bench.close(&[("vnet0", 9)], 31 * S).is_empty());
        assert_eq!(bench.close(&[("vnet0", 9)], 41 * S)["vnet0"], []);
    }

    #[test]
    fn only_so_many_reasons_are_told() {
        let mut bench = Bench::default();
        bench.close(&[("vnet0", 4)], S);
        (0..20).for_each(|reason| bench.drop_on(4, reason, 100 + u64::from(reason)));
        let told = bench.close(&[("vnet0", 4)], 2 * S);
        assert_eq!((told["vnet0"].len(), told["vnet0"][0].packets_per_s), (DROP_REASONS_MAX, 119.0));
    }
}
