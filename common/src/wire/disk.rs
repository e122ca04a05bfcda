//! What VMs did with the host's disks in a window.

use super::MeanMax;
use super::report::is_quantity;
use crate::abi::block::LATENCY_BUCKETS;
use serde::{Deserialize, Serialize};
use std::string::String;
use std::vec::Vec;

/// Disks told one by one of a VM in each layer: of the host's those with most bytes, of its own those that its definition has first.
pub const DISKS_MAX: usize = 8;

/// A VM's disks in a window.
///
/// Counted at the host's block devices: below the page cache and QEMU's own, so what a cache answered is not in it, and what was read ahead or
/// written twice (a copy-on-write image's tables, a journal) is. Where one device lies on another (a file on a loop device), each counts.
/// [`Self::guest`] is the layer above the page cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskWindow {
    /// Reads of all disks.
    pub read: DiskFlow,
    /// Writes of all disks.
    pub write: DiskFlow,
    /// Requests under way, queued or at the device: the mean over the window, by Little's law. A request counts when it completes.
    pub queue_depth: f64,
    /// How long reads and writes took at the device.
    pub latency: LatencyHistogram,
    /// What the kernel charged to the VM's process, `None` where it cannot be read. With a page cache between, writes show here when the guest
    /// makes them and above when they reach a disk, if it is then still known whose they are.
    pub process: Option<ProcessIo>,
    /// Disk by disk, those with most bytes first, at most [`DISKS_MAX`]; only disks that were used.
    pub disks: Vec<DiskShare>,
    /// What the guest does on those of its own disks that lie behind the host's page cache, in the order of its definition, at most [`DISKS_MAX`];
    /// empty where it has none (`cache=none`: the layers are one) or QEMU has not been asked twice yet.
    pub guest: Vec<GuestDisk>,
}

impl DiskWindow {
    /// Whether every value can be one: a number, not below zero, and no more disks than are told.
    pub fn is_sane(&self) -> bool {
        let flow = |flow: &DiskFlow| {
            [flow.bytes_per_s.mean, flow.bytes_per_s.max, flow.operations_per_s]
                .into_iter()
                .chain(flow.device_ms)
                .chain(flow.queued_ms)
                .all(is_quantity)
        };
        let share = |share: &DiskShare| {
            [share.read_bytes_per_s, share.write_bytes_per_s, share.queue_depth]
                .into_iter()
                .chain(share.device_ms)
                .all(is_quantity)
        };
        let guest = |disk: &GuestDisk| {
            [disk.read_bytes_per_s, disk.write_bytes_per_s, disk.read_operations_per_s, disk.write_operations_per_s]
                .into_iter()
                .all(is_quantity)
        };
        let process = |io: &ProcessIo| is_quantity(io.read_bytes_per_s) && is_quantity(io.write_bytes_per_s);
        flow(&self.read)
            && flow(&self.write)
            && is_quantity(self.queue_depth)
            && self.process.as_ref().is_none_or(process)
            && self.disks.len() <= DISKS_MAX
            && self.disks.iter().all(share)
            && self.guest.len() <= DISKS_MAX
            && self.guest.iter().all(guest)
    }
}

/// Reads or writes in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskFlow {
    /// Bytes per second.
    pub bytes_per_s: MeanMax,
    /// Requests per second, as the block layer made them: it splits and merges what the guest asks for.
    pub operations_per_s: f64,
    /// Mean time at the device, in milliseconds; `None` where no request was timed.
    pub device_ms: Option<f64>,
    /// Mean time in the host's queue before, in milliseconds.
    pub queued_ms: Option<f64>,
}

/// A VM's part in one disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskShare {
    /// As in `/sys/block`; `MAJOR:MINOR` where it is no longer there.
    pub name: String,
    /// Bytes read per second.
    pub read_bytes_per_s: f64,
    /// Bytes written per second.
    pub write_bytes_per_s: f64,
    /// Requests under way, the mean over the window.
    pub queue_depth: f64,
    /// Mean time of a request at the device, in milliseconds; `None` where none was timed.
    pub device_ms: Option<f64>,
    /// How long its reads and writes took there.
    pub latency: LatencyHistogram,
}

/// What a guest does on one of its disks, by QEMU's own count of the guest's requests: what the host's page cache answers and puts off is in it.
///
/// QEMU is asked every ten seconds: rates are means over the time between its last two answers, whichever windows that was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct GuestDisk {
    /// Its target in the VM's definition (`vda`).
    pub target: String,
    /// Bytes read per second.
    pub read_bytes_per_s: f64,
    /// Bytes written per second.
    pub write_bytes_per_s: f64,
    /// Reads per second, as the guest asked for them.
    pub read_operations_per_s: f64,
    /// Writes per second, as the guest asked for them.
    pub write_operations_per_s: f64,
}

/// Bytes per second that a process is charged with (`read_bytes` and `write_bytes` of `/proc/PID/io`): reads when they go to a device, writes
/// when they go to a device or make a page of the cache dirty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ProcessIo {
    /// Read.
    pub read_bytes_per_s: f64,
    /// Written.
    pub write_bytes_per_s: f64,
}

/// What no VM is known to have read and written on the host's disks: the host's own, and write-back whose origin is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskRest {
    /// Bytes read per second.
    pub read_bytes_per_s: f64,
    /// Bytes written per second.
    pub write_bytes_per_s: f64,
    /// Reads per second.
    pub read_operations_per_s: f64,
    /// Writes per second.
    pub write_operations_per_s: f64,
    /// Requests per second of which it is not known whose they were or how long they took: the probe had no room, or came too late.
    pub requests_missed_per_s: f64,
}

/// Requests by time at the device, or packets by time in a queue: bucket `b` counts `2^b ..= 2^(b+1)-1` µs (of 1,024 ns), the first also all shorter, the last all longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LatencyHistogram(pub [u32; LATENCY_BUCKETS]);

impl LatencyHistogram {
    /// Adds what another counts.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count = count.saturating_add(more));
    }

    /// The upper end, in milliseconds, of the bucket in which the `level` quantile (0..=1) lies; `None` where nothing was counted.
    pub fn quantile_ms(&self, level: f64) -> Option<f64> {
        let total: u64 = self.0.iter().copied().map(u64::from).sum();
        let rank = (level.clamp(0.0, 1.0) * total as f64).ceil().max(1.0);
        let mut below = 0;
        let bucket = self.0.iter().position(|&count| {
            below += u64::from(count);
            below as f64 >= rank
        })?;
        Some((2048_u64 << bucket) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quantile_is_the_upper_end_of_its_bucket() {
        let mut histogram = LatencyHistogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        (histogram.0[0], histogram.0[9]) = (98, 2);
        assert_eq!(histogram.quantile_ms(0.5), Some(0.002048));
        assert_eq!(histogram.quantile_ms(0.98), Some(0.002048));
        assert_eq!(histogram.quantile_ms(0.99), Some(1.048576));
        histogram.0[LATENCY_BUCKETS - 1] = 1_000;
        assert_eq!(histogram.quantile_ms(0.99), Some((1u64 << 34) as f64 / 1e6));
    }

    #[test]
    fn what_is_no_quantity_is_not_sane() {
        let mut window = DiskWindow { disks: std::vec![DiskShare::default(); DISKS_MAX], ..DiskWindow::default() };
        assert!(window.is_sane());
        window.disks[3].device_ms = Some(f64::NAN);
        assert!(!window.is_sane());
        assert!(
            !DiskWindow { disks: std::vec![DiskShare::default(); DISKS_MAX + 1], ..DiskWindow::default() }.is_sane()
        );
        assert!(!DiskWindow { queue_depth: -1.0, ..DiskWindow::default() }.is_sane());
        let of_guest = |read_operations_per_s, disks| {
            let disk = GuestDisk { read_operations_per_s, ..GuestDisk::default() };
            DiskWindow { guest: std::vec![disk; disks], ..DiskWindow::default() }.is_sane()
        };
        assert!(of_guest(1.0, DISKS_MAX) && !of_guest(-1.0, 1) && !of_guest(1.0, DISKS_MAX + 1));
    }

    proptest! {
        #[test]
        fn quantiles_are_numbers_and_rise_with_their_level(counts: [u32; LATENCY_BUCKETS], low in -1.0..2.0f64, high in -1.0..2.0f64) {
            let histogram = LatencyHistogram(counts);
            let (low, high) = (histogram.quantile_ms(low.min(high)), histogram.quantile_ms(low.max(high)));
            prop_assert!(low <= high && high.is_none_or(f64::is_finite));
        }
    }
}
