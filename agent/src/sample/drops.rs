//! Readings of the drop probe -> why packets were dropped on each device in a window.

use super::by_device::{Counted, DeviceSeries};
use super::source::SourceError;
use crate::cost::Costed;
use crate::probe::{DropProbe, Drops, ProbeError, ProgramCost};
use gnomon_common::wire::{DROP_REASONS_MAX, Dropped};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A source of drops by device and reason: the eBPF probe, or a script in a test.
pub trait DropSource {
    /// Counts on the devices of these numbers from now on, from zero on those that are new, and on no others.
    fn watch(&mut self, ifindexes: &BTreeSet<u32>) -> Result<(), SourceError>;

    /// What was dropped on them so far.
    fn drain(&mut self) -> Result<Drops, SourceError>;

    /// Drops that were not counted for want of room, since it was loaded.
    fn missed(&self) -> Result<u64, SourceError>;

    /// What a reason is called.
    fn reason(&self, reason: u32) -> String;

    /// What each of its programs has cost.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError>;
}

impl DropSource for DropProbe {
    fn watch(&mut self, ifindexes: &BTreeSet<u32>) -> Result<(), SourceError> {
        Ok(Self::watch(self, ifindexes)?)
    }

    fn drain(&mut self) -> Result<Drops, SourceError> {
        Ok(Self::drain(self)?)
    }

    fn missed(&self) -> Result<u64, SourceError> {
        Ok(Self::missed(self)?)
    }

    fn reason(&self, reason: u32) -> String {
        Self::reason(self, reason)
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.cost()
    }
}

/// What a window's end reads of drops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DropReading {
    /// The devices that are watched from now on, by name with their numbers.
    pub(crate) devices: BTreeMap<String, u32>,
    /// What was counted on those watched until now.
    pub(crate) counted: Drops,
    /// What the reasons in there are called.
    pub(crate) reasons: BTreeMap<u32, String>,
    /// Drops that were not counted for want of room; `None` while nothing counts.
    pub(crate) missed: Option<u64>,
}

/// A source of drops, or its place while it is given up.
pub struct DropStandby(Option<Box<dyn DropSource + Send>>);

impl DropStandby {
    /// Nothing is watched yet.
    pub fn new(source: impl DropSource + Send + 'static) -> Self {
        Self(Some(Box::new(source)))
    }

    /// Reads what was counted, and watches these devices in the next window. Nothing is in it while the source is given up.
    pub(super) fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<DropReading, SourceError> {
        let Some(source) = &mut self.0 else { return Ok(DropReading::default()) };
        let counted = source.drain()?;
        source.watch(&devices.values().copied().collect())?;
        let reasons: BTreeSet<u32> = counted.values().flat_map(BTreeMap::keys).copied().collect();
        let reasons = reasons.into_iter().map(|reason| (reason, source.reason(reason))).collect();
        Ok(DropReading { devices, counted, reasons, missed: Some(source.missed()?) })
    }
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

impl Costed for DropStandby {
    fn name(&self) -> &'static str {
        "drops"
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.0.as_ref().map_or(Ok(Vec::new()), |source| source.programs())
    }

    fn can_shed(&self) -> bool {
        self.0.is_some()
    }

    fn shed(&mut self) -> Result<(), SourceError> {
        self.0 = None;
        Ok(())
    }

    fn restore(&mut self) -> Result<(), SourceError> {
        // From its next window on: what is watched is told to it at each window's end.
        self.0 = Some(Box::new(DropProbe::load()?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const S: u64 = 1_000_000_000;

    /// What was counted so far, and whether it can be read.
    #[derive(Clone, Default)]
    struct Script(Arc<Mutex<(Drops, BTreeSet<u32>, bool)>>);

    impl Script {
        fn drop_on(&self, ifindex: u32, reason: u32, packets: u64) {
            let mut script = self.0.lock().unwrap();
            if script.1.contains(&ifindex) {
                *script.0.entry(ifindex).or_default().entry(reason).or_default() += packets;
            }
        }
    }

    impl DropSource for Script {
        fn watch(&mut self, ifindexes: &BTreeSet<u32>) -> Result<(), SourceError> {
            let mut script = self.0.lock().unwrap();
            script.0.retain(|ifindex, _| ifindexes.contains(ifindex));
            script.1.clone_from(ifindexes);
            Ok(())
        }

        fn drain(&mut self) -> Result<Drops, SourceError> {
            let script = self.0.lock().unwrap();
            if script.2 { Err("it is gone".into()) } else { Ok(script.0.clone()) }
        }

        fn missed(&self) -> Result<u64, SourceError> {
            Ok(7)
        }

        fn reason(&self, reason: u32) -> String {
            format!("reason {reason}")
        }

        fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
            Ok(Vec::new())
        }
    }

    /// A source and what is made of it.
    struct Bench {
        script: Script,
        source: DropStandby,
        series: DropSeries,
    }

    impl Bench {
        fn new() -> Self {
            let script = Script::default();
            Self { source: DropStandby::new(script.clone()), script, series: DropSeries::default() }
        }

        fn close(&mut self, devices: &[(&str, u32)], taken_ns: u64) -> BTreeMap<String, Vec<Dropped>> {
            let devices = devices.iter().map(|&(name, ifindex)| (name.to_owned(), ifindex)).collect();
            self.series.close(self.source.read(devices).ok().as_ref(), taken_ns)
        }

        fn missed(&mut self) -> Option<u64> {
            self.source.read(BTreeMap::new()).unwrap().missed
        }
    }

    #[test]
    fn a_windows_drops_are_those_since_the_last_with_most_first() {
        let mut bench = Bench::new();
        let vnet = [("vnet0", 4), ("vnet1", 5)];
        assert!(bench.close(&vnet, S).is_empty());
        bench.script.drop_on(4, 2, 30);
        bench.script.drop_on(4, 7, 50);
        let told = bench.close(&vnet, 11 * S);
        let drop = |reason: &str, packets_per_s| Dropped { reason: reason.to_owned(), packets_per_s };
        assert_eq!(told["vnet0"], [drop("reason 7", 5.0), drop("reason 2", 3.0)]);
        assert_eq!(told["vnet1"], [], "nothing was dropped, which is known");
        bench.script.drop_on(4, 2, 10);
        assert_eq!(bench.close(&vnet, 21 * S)["vnet0"], [drop("reason 2", 1.0)]);
    }

    #[test]
    fn a_device_made_anew_or_a_reading_that_failed_gives_no_window() {
        let mut bench = Bench::new();
        bench.close(&[("vnet0", 4)], S);
        bench.script.drop_on(4, 2, 30);
        assert!(bench.close(&[("vnet0", 9)], 11 * S).is_empty());
        bench.script.0.lock().unwrap().2 = true;
        assert!(bench.source.read(BTreeMap::new()).is_err());
        assert!(bench.close(&[("vnet0", 9)], 21 * S).is_empty());
        bench.script.0.lock().unwrap().2 = false;
        bench.script.drop_on(9, 2, 30);
        assert!(bench.close(&[("vnet0", 9)], 31 * S).is_empty());
        assert_eq!(bench.close(&[("vnet0", 9)], 41 * S)["vnet0"], []);
    }

    #[test]
    fn what_is_given_up_tells_nothing() {
        let mut bench = Bench::new();
        bench.close(&[("vnet0", 4)], S);
        assert!(bench.source.can_shed());
        assert_eq!(bench.missed(), Some(7));
        bench.source.shed().unwrap();
        assert!(!bench.source.can_shed() && bench.close(&[("vnet0", 4)], 11 * S).is_empty());
        assert!(bench.close(&[("vnet0", 4)], 21 * S).is_empty());
        assert_eq!(bench.missed(), None);
    }

    #[test]
    fn only_so_many_reasons_are_told() {
        let mut bench = Bench::new();
        bench.close(&[("vnet0", 4)], S);
        (0..20).for_each(|reason| bench.script.drop_on(4, reason, 100 + u64::from(reason)));
        let told = bench.close(&[("vnet0", 4)], 2 * S);
        assert_eq!((told["vnet0"].len(), told["vnet0"][0].packets_per_s), (DROP_REASONS_MAX, 119.0));
    }
}
