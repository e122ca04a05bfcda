//! Counters by network device -> what was counted on each in a window. Pure.

use std::collections::BTreeMap;

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
