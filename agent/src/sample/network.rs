//! Counters of a VM's network devices -> what went through them in a window. Pure.
//!
//! Directions turn around here: what a tap receives is what its VM sent; a macvtap's are its VM's own. A device that is new, and one whose counters went backwards (it was
//! made anew under its old name), begin with the next reading; no interval is made of two lives.

use super::window::Weighted;
use crate::host::network::{DeviceCounters, TrafficCounters, VmDevice};
use gnomon_common::wire::{INTERFACES_MAX, InterfaceWindow, Traffic};
use std::collections::BTreeMap;

/// A VM's interfaces between two windows, by device.
#[derive(Clone, Debug, Default)]
pub(super) struct NetworkSeries(BTreeMap<String, Interface>);

#[derive(Clone, Debug, Default)]
struct Interface {
    before: Option<(u64, DeviceCounters)>,
    received: Flow,
    sent: Flow,
}

/// One direction in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    bytes_per_s: Weighted,
    packets: u64,
    dropped: u64,
}

impl NetworkSeries {
    /// Takes in the counters of those `devices` that are there, as of `taken_ns` (`CLOCK_MONOTONIC`).
    pub(super) fn observe(&mut self, devices: &[VmDevice], counters: &BTreeMap<String, DeviceCounters>, taken_ns: u64) {
        self.0.retain(|name, _| devices.iter().any(|device| device.name == *name));
        for device in devices.iter().take(INTERFACES_MAX) {
            let Some(now) = counters.get(&device.name) else { continue };
            if !self.0.contains_key(&device.name) {
                self.0.insert(device.name.clone(), Interface::default());
            }
            if let Some(interface) = self.0.get_mut(&device.name) {
                interface.observe(*now, taken_ns, device.is_macvtap);
            }
        }
    }

    /// Lets what comes next begin anew: the VM's counters are of another life, or were not looked at meanwhile.
    pub(super) fn interrupt(&mut self) {
        self.0.values_mut().for_each(|interface| interface.before = None);
    }

    /// Ends the window and begins the next; an interface of which no interval was seen is left out.
    pub(super) fn take_window(&mut self) -> Vec<InterfaceWindow> {
        let windows = self.0.iter_mut().filter_map(|(device, interface)| {
            let (received, sent) = (std::mem::take(&mut interface.received), std::mem::take(&mut interface.sent));
            Some(InterfaceWindow {
                device: device.clone(),
                received: received.finish()?,
                sent: sent.finish()?,
                drops: None,
                queue: None,
            })
        });
        windows.collect()
    }
}

impl Interface {
    fn observe(&mut self, now: DeviceCounters, taken_ns: u64, is_macvtap: bool) {
        let Some((before_ns, before)) = self.before.replace((taken_ns, now)) else { return };
        let elapsed_s = taken_ns.saturating_sub(before_ns) as f64 / 1e9;
        let gains = (gain(&before.received, &now.received), gain(&before.sent, &now.sent));
        let (to_vm, from_vm) = if is_macvtap { gains } else { (gains.1, gains.0) };
        if let (Some(to_vm), Some(from_vm)) = (to_vm, from_vm)
            && elapsed_s > 0.0
        {
            self.received.add(to_vm, elapsed_s);
            self.sent.add(from_vm, elapsed_s);
        }
    }
}

impl Flow {
    fn add(&mut self, gain: TrafficCounters, elapsed_s: f64) {
        self.bytes_per_s.add(gain.bytes as f64 / elapsed_s, elapsed_s);
        self.packets = self.packets.saturating_add(gain.packets);
        self.dropped = self.dropped.saturating_add(gain.dropped);
    }

    fn finish(&self) -> Option<Traffic> {
        let seen_s = self.bytes_per_s.weight_s();
        (seen_s > 0.0).then(|| Traffic {
            bytes_per_s: self.bytes_per_s.finish(),
            packets_per_s: self.packets as f64 / seen_s,
            dropped_per_s: self.dropped as f64 / seen_s,
        })
    }
}

/// What was counted between two readings; `None` if any count went backwards.
fn gain(before: &TrafficCounters, now: &TrafficCounters) -> Option<TrafficCounters> {
    Some(TrafficCounters {
        bytes: now.bytes.checked_sub(before.bytes)?,
        packets: now.packets.checked_sub(before.packets)?,
        dropped: now.dropped.checked_sub(before.dropped)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::MeanMax;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn counters(received: u64, sent: u64) -> BTreeMap<String, DeviceCounters> {
        let traffic = |bytes| TrafficCounters { bytes, packets: bytes / 100, dropped: bytes / 1000 };
        [("vnet0".to_owned(), DeviceCounters { received: traffic(received), sent: traffic(sent) })].into()
    }

    fn tap(name: impl Into<String>) -> VmDevice {
        VmDevice { name: name.into(), is_macvtap: false }
    }

    fn vnet0() -> [VmDevice; 1] {
        [tap("vnet0")]
    }

    #[test]
    fn what_the_tap_receives_the_vm_sent() {
        let mut series = NetworkSeries::default();
        for (second, received, sent) in [(1, 5_000, 0), (2, 6_000, 0), (4, 12_000, 8_000)] {
            series.observe(&vnet0(), &counters(received, sent), second * S);
        }
        let windows = series.take_window();
        let [window] = windows.as_slice() else { panic!("{windows:?}") };
        let close = |value: f64, expected: f64| (value - expected).abs() < 1e-9 * expected.max(1.0);
        let MeanMax { mean, max } = window.sent.bytes_per_s;
        assert!(close(mean, 7_000.0 / 3.0) && close(max, 3_000.0), "{window:?}");
        let Traffic { bytes_per_s, packets_per_s, dropped_per_s } = window.received;
        assert!(close(bytes_per_s.mean, 8_000.0 / 3.0) && close(bytes_per_s.max, 4_000.0), "{window:?}");
        assert!(close(packets_per_s, 80.0 / 3.0) && close(dropped_per_s, 8.0 / 3.0), "{window:?}");
        assert_eq!(series.take_window(), [], "a window without readings tells nothing");
    }

    #[test]
    fn what_a_macvtap_receives_the_vm_received() {
        let mut series = NetworkSeries::default();
        let macvtap = [VmDevice { is_macvtap: true, ..tap("vnet0") }];
        series.observe(&macvtap, &counters(5_000, 0), S);
        series.observe(&macvtap, &counters(6_000, 300), 2 * S);
        let windows = series.take_window();
        let [window] = windows.as_slice() else { panic!("{windows:?}") };
        assert_eq!((window.received.bytes_per_s.mean, window.sent.bytes_per_s.mean), (1_000.0, 300.0));
        assert_eq!((window.received.dropped_per_s, window.sent.packets_per_s), (1.0, 3.0));
    }

    #[test]
    fn a_device_made_anew_and_a_break_give_no_interval() {
        let mut series = NetworkSeries::default();
        series.observe(&vnet0(), &counters(9_000, 9_000), S);
        series.observe(&vnet0(), &counters(100, 100), 2 * S);
        assert_eq!(series.take_window(), []);
        series.interrupt();
        series.observe(&vnet0(), &counters(700, 100), 9 * S);
        assert_eq!(series.take_window(), []);
        series.observe(&vnet0(), &counters(1_700, 100), 10 * S);
        assert_eq!(series.take_window()[0].sent.bytes_per_s.mean, 1_000.0);
    }

    #[test]
    fn an_interface_that_was_unplugged_is_forgotten_and_only_so_many_are_told_of() {
        let mut series = NetworkSeries::default();
        series.observe(&vnet0(), &counters(0, 0), S);
        series.observe(&[], &counters(9, 9), 2 * S);
        series.observe(&vnet0(), &counters(900, 900), 3 * S);
        assert_eq!(series.take_window(), []);
        let many: Vec<_> = (0..INTERFACES_MAX + 5).map(|number| tap(format!("vnet{number}"))).collect();
        let all = many.iter().map(|device| (device.name.clone(), DeviceCounters::default())).collect();
        (4..6).for_each(|second| series.observe(&many, &all, second * S));
        assert_eq!(series.take_window().len(), INTERFACES_MAX);
    }

    proptest! {
        #[test]
        fn any_readings_give_finite_windows(readings in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..20)) {
            let mut series = NetworkSeries::default();
            for (taken_ns, received, sent) in readings {
                series.observe(&vnet0(), &counters(received, sent), taken_ns);
            }
            for window in series.take_window() {
                for traffic in [window.received, window.sent] {
                    let MeanMax { mean, max } = traffic.bytes_per_s;
                    prop_assert!(mean.is_finite() && (0.0..=max).contains(&mean));
                    prop_assert!(traffic.packets_per_s.is_finite() && traffic.dropped_per_s.is_finite());
                }
            }
        }
    }
}
