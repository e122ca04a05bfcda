//! Readings of the queue probe -> how long packets for VMs waited at their devices in a window.

use super::by_device::{Counted, DeviceProbe, DeviceSeries};
use crate::probe::{ProbeError, ProgramCost, QueueProbe, Queues};
use gnomon_common::abi::queues::TapQueue;
use gnomon_common::wire::{LatencyHistogram, QueueWindow};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a window's end reads of queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReading {
    /// The devices that are watched from now on, by name with their numbers.
    pub devices: BTreeMap<String, u32>,
    /// What was counted on those watched until now.
    pub counted: Queues,
}

impl DeviceProbe for QueueProbe {
    const NAME: &'static str = "queues";
    type Reading = QueueReading;

    fn load() -> Result<Self, ProbeError> {
        Self::load()
    }

    fn read(&mut self, devices: BTreeMap<String, u32>) -> Result<QueueReading, ProbeError> {
        let counted = self.drain()?;
        self.watch(&devices.values().copied().collect())?;
        Ok(QueueReading { devices, counted })
    }

    fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        Self::cost(self)
    }
}

/// Queues at the devices of VMs from window to window. Pure.
#[derive(Debug, Default)]
pub(super) struct QueueSeries(DeviceSeries<TapQueue>);

impl QueueSeries {
    /// Ends the window at `taken_ns` of `CLOCK_MONOTONIC`: how long packets waited at each device that was watched all through it.
    pub(super) fn close(&mut self, reading: Option<&QueueReading>, taken_ns: u64) -> BTreeMap<String, QueueWindow> {
        let reading = reading.map(|reading| Counted { devices: &reading.devices, counted: &reading.counted });
        self.0.close(reading, taken_ns, |before, now, _| between(before, now))
    }
}

fn between(before: &TapQueue, now: &TapQueue) -> QueueWindow {
    let mut waits = LatencyHistogram::default();
    let mut packets = 0;
    for (bucket, (now, before)) in waits.0.iter_mut().zip(now.waits_log2.iter().zip(&before.waits_log2)) {
        let gain = now.saturating_sub(*before);
        packets += gain;
        *bucket = u32::try_from(gain).unwrap_or(u32::MAX);
    }
    let waited_ms = now.waited_ns.saturating_sub(before.waited_ns) as f64 / 1e6;
    QueueWindow { wait_ms: (packets > 0).then(|| waited_ms / packets as f64), waits }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn reading(ifindex: u32, waits: &[(usize, u64)], waited_ms: u64) -> QueueReading {
        let mut queue = TapQueue { waited_ns: waited_ms * 1_000_000, ..TapQueue::default() };
        waits.iter().for_each(|&(bucket, packets)| queue.waits_log2[bucket] = packets);
        QueueReading { devices: [("vnet0".to_owned(), ifindex)].into(), counted: [(ifindex, queue)].into() }
    }

    #[test]
    fn a_window_tells_what_was_timed_in_it() {
        let mut series = QueueSeries::default();
        assert!(series.close(Some(&reading(4, &[(3, 10)], 5)), S).is_empty(), "nothing to compare with");
        let told = series.close(Some(&reading(4, &[(3, 12), (9, 2)], 15)), 11 * S);
        let window = &told["vnet0"];
        assert_eq!((window.wait_ms, window.waits.0[3], window.waits.0[9]), (Some(2.5), 2, 2));
        let idle = series.close(Some(&reading(4, &[(3, 12), (9, 2)], 15)), 21 * S);
        assert_eq!(idle["vnet0"], QueueWindow::default(), "no packet came, which is known");
    }

    #[test]
    fn a_device_made_anew_and_a_probe_that_was_given_up_give_no_window() {
        let mut series = QueueSeries::default();
        series.close(Some(&reading(4, &[(3, 10)], 5)), S);
        assert!(series.close(Some(&reading(5, &[(3, 20)], 9)), 11 * S).is_empty());
        assert!(series.close(None, 21 * S).is_empty());
        assert!(series.close(Some(&reading(5, &[(3, 1)], 1)), 31 * S).is_empty(), "it began anew meanwhile");
        assert_eq!(series.close(Some(&reading(5, &[(3, 2)], 2)), 41 * S)["vnet0"].wait_ms, Some(1.0));
    }
}
