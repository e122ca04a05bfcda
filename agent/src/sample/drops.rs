//! Readings of the drop probe -> why packets were dropped on each device in a window. Pure, but for the source itself, and for loading it again
//! after it was given up.

use super::source::SourceError;
use crate::cost::Costed;
use crate::probe::{DropProbe, Drops, ProbeError, ProgramCost};
use gnomon_common::wire::{DROP_REASONS_MAX, Dropped};
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

/// Watches the devices of VMs from window to window.
pub struct DropSeries {
    /// `None` while it is given up.
    source: Option<Box<dyn DropSource + Send>>,
    /// When the last window ended.
    closed_ns: Option<u64>,
    /// By name, the watched devices' numbers and what was counted on each by then.
    watched: BTreeMap<String, (u32, BTreeMap<u32, u64>)>,
}

impl DropSeries {
    /// Nothing is watched yet.
    pub fn new(source: impl DropSource + Send + 'static) -> Self {
        Self { source: Some(Box::new(source)), closed_ns: None, watched: BTreeMap::new() }
    }

    /// Drops that were not counted for want of room; `None` while the source is given up.
    pub(super) fn missed(&self) -> Result<Option<u64>, SourceError> {
        self.source.as_ref().map(|source| source.missed()).transpose()
    }

    /// Ends the window at `taken_ns` of `CLOCK_MONOTONIC`: what was dropped on each device in it. A device that was not watched since the
    /// window began, or was made anew, is left out. In the next window these `devices` are watched, by name with their numbers.
    pub(super) fn close(
        &mut self,
        devices: BTreeMap<String, u32>,
        taken_ns: u64,
    ) -> Result<BTreeMap<String, Vec<Dropped>>, SourceError> {
        let before = std::mem::take(&mut self.watched);
        let elapsed_s = self.closed_ns.take().map_or(0.0, |closed_ns| taken_ns.saturating_sub(closed_ns) as f64 / 1e9);
        let Some(source) = &mut self.source else { return Ok(BTreeMap::new()) };
        let mut counted = source.drain()?;
        source.watch(&devices.values().copied().collect())?;
        let mut windows = BTreeMap::new();
        for (device, ifindex) in devices {
            let known = before.get(&device).filter(|(known, _)| *known == ifindex);
            let now = counted.remove(&ifindex).unwrap_or_default();
            if let Some((_, before)) = known
                && elapsed_s > 0.0
            {
                windows.insert(device.clone(), between(source.as_ref(), before, &now, elapsed_s));
            }
            self.watched.insert(device, (ifindex, now));
        }
        self.closed_ns = Some(taken_ns);
        Ok(windows)
    }
}

fn between(
    source: &dyn DropSource,
    before: &BTreeMap<u32, u64>,
    now: &BTreeMap<u32, u64>,
    elapsed_s: f64,
) -> Vec<Dropped> {
    let gain = |(reason, now): (&u32, &u64)| (now.saturating_sub(*before.get(reason).unwrap_or(&0)), *reason);
    let mut gains: Vec<(u64, u32)> = now.iter().map(gain).filter(|(packets, _)| *packets > 0).collect();
    gains.sort_by_key(|&(packets, reason)| (Reverse(packets), reason));
    let told = gains.into_iter().take(DROP_REASONS_MAX);
    told.map(|(packets, reason)| Dropped { reason: source.reason(reason), packets_per_s: packets as f64 / elapsed_s })
        .collect()
}

impl Costed for DropSeries {
    fn name(&self) -> &'static str {
        "drops"
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.source.as_ref().map_or(Ok(Vec::new()), |source| source.programs())
    }

    fn can_shed(&self) -> bool {
        self.source.is_some()
    }

    fn shed(&mut self) -> Result<(), SourceError> {
        self.source = None;
        Ok(())
    }

    fn restore(&mut self) -> Result<(), SourceError> {
        // From its next window on: what is watched is told to it at each window's end.
        self.source = Some(Box::new(DropProbe::load()?));
        self.closed_ns = None;
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

    fn devices(devices: &[(&str, u32)]) -> BTreeMap<String, u32> {
        devices.iter().map(|&(name, ifindex)| (name.to_owned(), ifindex)).collect()
    }

    #[test]
    fn a_windows_drops_are_those_since_the_last_with_most_first() {
        let script = Script::default();
        let mut series = DropSeries::new(script.clone());
        let vnet = devices(&[("vnet0", 4), ("vnet1", 5)]);
        assert!(series.close(vnet.clone(), S).unwrap().is_empty());
        script.drop_on(4, 2, 30);
        script.drop_on(4, 7, 50);
        let told = series.close(vnet.clone(), 11 * S).unwrap();
        let drop = |reason: &str, packets_per_s| Dropped { reason: reason.to_owned(), packets_per_s };
        assert_eq!(told["vnet0"], [drop("reason 7", 5.0), drop("reason 2", 3.0)]);
        assert_eq!(told["vnet1"], [], "nothing was dropped, which is known");
        script.drop_on(4, 2, 10);
        assert_eq!(series.close(vnet, 21 * S).unwrap()["vnet0"], [drop("reason 2", 1.0)]);
    }

    #[test]
    fn a_device_made_anew_or_a_reading_that_failed_gives_no_window() {
        let script = Script::default();
        let mut series = DropSeries::new(script.clone());
        series.close(devices(&[("vnet0", 4)]), S).unwrap();
        script.drop_on(4, 2, 30);
        assert!(series.close(devices(&[("vnet0", 9)]), 11 * S).unwrap().is_empty());
        script.0.lock().unwrap().2 = true;
        assert!(series.close(devices(&[("vnet0", 9)]), 21 * S).is_err());
        script.0.lock().unwrap().2 = false;
        script.drop_on(9, 2, 30);
        assert!(series.close(devices(&[("vnet0", 9)]), 31 * S).unwrap().is_empty());
        assert_eq!(series.close(devices(&[("vnet0", 9)]), 41 * S).unwrap()["vnet0"], []);
    }

    #[test]
    fn what_is_given_up_tells_nothing() {
        let mut series = DropSeries::new(Script::default());
        let vnet = devices(&[("vnet0", 4)]);
        series.close(vnet.clone(), S).unwrap();
        assert!(series.can_shed());
        assert_eq!(series.missed().unwrap(), Some(7));
        series.shed().unwrap();
        assert!(!series.can_shed() && series.close(vnet.clone(), 11 * S).unwrap().is_empty());
        assert!(series.close(vnet, 21 * S).unwrap().is_empty());
        assert_eq!(series.missed().unwrap(), None);
    }

    #[test]
    fn only_so_many_reasons_are_told() {
        let script = Script::default();
        let mut series = DropSeries::new(script.clone());
        series.close(devices(&[("vnet0", 4)]), S).unwrap();
        (0..20).for_each(|reason| script.drop_on(4, reason, 100 + u64::from(reason)));
        let told = series.close(devices(&[("vnet0", 4)]), 2 * S).unwrap();
        assert_eq!((told["vnet0"].len(), told["vnet0"][0].packets_per_s), (DROP_REASONS_MAX, 119.0));
    }
}
