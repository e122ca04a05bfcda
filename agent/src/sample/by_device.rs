//! Probes that count on network devices, and what is made of their counters: what was counted on each device in a window.

use super::source::SourceError;
use crate::cost::Costed;
use crate::probe::{ProbeError, ProgramCost};
use std::collections::BTreeMap;

/// A probe that counts on network devices: an object of eBPF programs of its own, attached while this lives; or a script in a test.
pub trait DeviceProbe: Sized {
    /// In the log and the metrics.
    const NAME: &'static str;
    /// What it hands over.
    type Reading;

    /// Loads and attaches it.
    ///
    /// # Errors
    /// Says what this host lacks.
    fn load() -> Result<Self, ProbeError>;

    /// What was counted on the devices that were watched until now. From now on these are, by name with their numbers: from zero on those that are
    /// new, and no others.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<Self::Reading, ProbeError>;

    /// What each of its programs has cost.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError>;
}

/// A source that counts by network device and can be given up.
pub trait DeviceSource<R>: Costed {
    /// As [`DeviceProbe::read`]; `None` while the source is shed.
    fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<Option<R>, SourceError>;
}

/// One of them, whatever it is.
pub type DeviceReadings<R> = Box<dyn DeviceSource<R> + Send>;

/// A probe, or its place while it is given up.
pub struct DeviceStandby<P>(Option<P>);

impl<P: DeviceProbe> DeviceStandby<P> {
    /// Nothing is watched yet.
    pub fn of(probe: P) -> Self {
        Self(Some(probe))
    }
}

impl<P: DeviceProbe> DeviceSource<P::Reading> for DeviceStandby<P> {
    fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<Option<P::Reading>, SourceError> {
        Ok(self.0.as_mut().map(|probe| probe.read(devices)).transpose()?)
    }
}

impl<P: DeviceProbe> Costed for DeviceStandby<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn programs(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        self.0.as_ref().map_or(Ok(Vec::new()), P::cost)
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
        self.0 = Some(P::load()?);
        Ok(())
    }
}

/// What a probe's reading says of network devices.
pub(super) struct Counted<'a, C> {
    /// Those watched from now on, by name with their numbers.
    pub(super) devices: &'a BTreeMap<String, u32>,
    /// What was counted on those watched until now, by number.
    pub(super) counted: &'a BTreeMap<u32, C>,
}

/// What a probe has counted on network devices, from window to window.
#[derive(Debug)]
pub(super) struct DeviceSeries<C> {
    /// When the last window ended.
    closed_ns: Option<u64>,
    /// By name, the watched devices' numbers and what was counted on each by then.
    watched: BTreeMap<String, (u32, C)>,
}

impl<C> Default for DeviceSeries<C> {
    fn default() -> Self {
        Self { closed_ns: None, watched: BTreeMap::new() }
    }
}

impl<C: Clone + Default> DeviceSeries<C> {
    /// Ends the window at `taken_ns` of `CLOCK_MONOTONIC`: what `between` makes of the counters at its begin and its end, and of its length in
    /// seconds. A device that was not watched since the window began, or was made anew, is left out; all are without a reading, and in the
    /// window after that.
    pub(super) fn close<W>(
        &mut self,
        reading: Option<Counted<'_, C>>,
        taken_ns: u64,
        between: impl Fn(&C, &C, f64) -> W,
    ) -> BTreeMap<String, W> {
        let before = std::mem::take(&mut self.watched);
        let elapsed_s = self.closed_ns.take().map_or(0.0, |closed_ns| taken_ns.saturating_sub(closed_ns) as f64 / 1e9);
        let Some(Counted { devices, counted }) = reading else { return BTreeMap::new() };
        let mut windows = BTreeMap::new();
        for (device, &ifindex) in devices {
            let known = before.get(device).filter(|(known, _)| *known == ifindex);
            let now = counted.get(&ifindex).cloned().unwrap_or_default();
            if let Some((_, before)) = known
                && elapsed_s > 0.0
            {
                windows.insert(device.clone(), between(before, &now, elapsed_s));
            }
            self.watched.insert(device.clone(), (ifindex, now));
        }
        self.closed_ns = Some(taken_ns);
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    /// Has read so often since it was loaded, and can do so thrice.
    struct Script(u32);

    impl DeviceProbe for Script {
        const NAME: &'static str = "script";
        type Reading = (u32, BTreeMap<String, u32>);

        fn load() -> Result<Self, ProbeError> {
            Ok(Self(0))
        }

        fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<Self::Reading, ProbeError> {
            if self.0 == 3 {
                return Err(ProbeError::NoBtf { path: "nowhere", source: ErrorKind::NotFound.into() });
            }
            self.0 += 1;
            Ok((self.0, devices))
        }

        fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
            Ok(vec![ProgramCost { program: "script", runs: 1, run_ns: 1 }])
        }
    }

    #[test]
    fn what_is_given_up_tells_nothing_and_begins_anew_when_it_is_taken_up_again() {
        let mut standby = DeviceStandby::of(Script(2));
        let devices = BTreeMap::from([("vnet0".to_owned(), 4)]);
        assert_eq!(standby.read(devices.clone()).unwrap(), Some((3, devices.clone())));
        assert!(standby.read(devices.clone()).is_err(), "which is not the same as being given up");
        assert!(standby.can_shed() && standby.programs().unwrap().len() == 1);
        standby.shed().unwrap();
        assert!(!standby.can_shed() && standby.programs().unwrap().is_empty());
        assert_eq!(standby.read(devices.clone()).unwrap(), None);
        standby.restore().unwrap();
        assert_eq!(standby.read(devices.clone()).unwrap(), Some((1, devices)));
    }
}
