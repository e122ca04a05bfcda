//! Readings of the block probe -> a window of one VM's disks. Pure.

use super::interval::{Bounds, Rejection};
use super::window::Weighted;
use crate::cost::Loadable;
use crate::host::process::ProcessIoReading;
use crate::probe::{BlockProbe, ProbeError, ProgramCost};
use crate::reading::{BlockReading, DiskCounters, DiskId};
use gnomon_common::abi::block::{Direction, DiskAccount};
use gnomon_common::wire::{DISKS_MAX, DiskFlow, DiskRest, DiskShare, DiskWindow, LatencyHistogram, ProcessIo, VmId};

impl Loadable for BlockProbe {
    const NAME: &'static str = "block";
    type Reading = BlockReading;

    fn load() -> Result<Self, ProbeError> {
        Self::load()
    }

    fn track(&mut self, vm: VmId, tgids: &[u32], cgroups: &[u64]) -> Result<(), ProbeError> {
        Self::track(self, vm, tgids, cgroups)
    }

    fn untrack(&mut self, vm: VmId) -> Result<(), ProbeError> {
        Self::untrack(self, vm)
    }

    fn drain(&mut self) -> Result<BlockReading, ProbeError> {
        Self::drain(self)
    }

    fn cost(&self) -> Result<Vec<ProgramCost>, ProbeError> {
        Self::cost(self)
    }
}

/// The disks of a VM, or of the rest of the host, between two ticks, and the window in the making.
#[derive(Debug, Default)]
pub(super) struct DiskSeries {
    last: Option<(u64, DiskCounters)>,
    read: Weighted,
    write: Weighted,
    /// What was done in the window so far.
    done: DiskCounters,
}

impl DiskSeries {
    /// Takes in the counters at `taken_ns` of `CLOCK_MONOTONIC`.
    pub(super) fn observe(&mut self, taken_ns: u64, counters: &DiskCounters, bounds: &Bounds) -> Result<(), Rejection> {
        let Some((before_ns, before)) = self.last.replace((taken_ns, counters.clone())) else { return Ok(()) };
        let elapsed_s = bounds.elapsed_s(before_ns, taken_ns)?;
        let none = DiskAccount::default();
        let mut between = Vec::with_capacity(counters.len());
        for (&disk, after) in counters {
            // A disk is not there before it is used first.
            between.push((disk, account_since(after, before.get(&disk).unwrap_or(&none)).ok_or(Rejection::Reset)?));
        }
        let bytes = |of: fn(&DiskAccount) -> &Direction| between.iter().map(|(_, a)| of(a).bytes as f64).sum::<f64>();
        self.read.add(bytes(|account| &account.read) / elapsed_s, elapsed_s);
        self.write.add(bytes(|account| &account.write) / elapsed_s, elapsed_s);
        for (disk, account) in &between {
            let done = self.done.entry(*disk).or_default();
            add(&mut done.read, &account.read);
            add(&mut done.write, &account.write);
        }
        Ok(())
    }

    /// The VM does not run, or is another process now: what was read last is no beginning.
    pub(super) fn interrupt(&mut self) {
        self.last = None;
    }

    /// Ends the window and begins the next; `None` where nothing was measured.
    /// What its process was charged with and what its guest did are other readings, and left out here.
    pub(super) fn take_window(&mut self, name: impl Fn(DiskId) -> String) -> Option<DiskWindow> {
        let ended = Self { last: self.last.take(), ..std::mem::take(self) };
        self.last = ended.last;
        let seen_s = ended.read.weight_s();
        if seen_s <= 0.0 {
            return None;
        }
        let mut all = DiskAccount::default();
        for account in ended.done.values() {
            add(&mut all.read, &account.read);
            add(&mut all.write, &account.write);
        }
        let bytes = |account: &DiskAccount| account.read.bytes.saturating_add(account.write.bytes);
        let mut used: Vec<(DiskId, DiskAccount)> = ended.done.into_iter().filter(|(_, a)| has_ended_any(a)).collect();
        used.sort_by_key(|(disk, account)| (std::cmp::Reverse(bytes(account)), *disk));
        used.truncate(DISKS_MAX);
        let share = |(disk, account): &(DiskId, DiskAccount)| DiskShare {
            name: name(*disk),
            read_bytes_per_s: account.read.bytes as f64 / seen_s,
            write_bytes_per_s: account.write.bytes as f64 / seen_s,
            queue_depth: queue_depth(account, seen_s),
            device_ms: mean_ms(
                account.read.device_ns.saturating_add(account.write.device_ns),
                timed(&account.read).saturating_add(timed(&account.write)),
            ),
            latency: latency(account),
        };
        Some(DiskWindow {
            read: flow(&ended.read, &all.read, seen_s),
            write: flow(&ended.write, &all.write, seen_s),
            queue_depth: queue_depth(&all, seen_s),
            latency: latency(&all),
            process: None,
            disks: used.iter().map(share).collect(),
            guest: Vec::new(),
        })
    }
}

/// How long reads and writes took.
fn latency(of: &DiskAccount) -> LatencyHistogram {
    let count = |bucket: usize| of.read.device_log2[bucket].saturating_add(of.write.device_log2[bucket]);
    LatencyHistogram(std::array::from_fn(|bucket| u32::try_from(count(bucket)).unwrap_or(u32::MAX)))
}

/// What no VM is known to have done, and how much of what was done is not known well.
#[derive(Debug, Default)]
pub(super) struct RestSeries {
    disks: DiskSeries,
    missed: Option<u64>,
    missed_in_window: u64,
}

impl RestSeries {
    /// Takes in a reading.
    pub(super) fn observe(&mut self, reading: &BlockReading, bounds: &Bounds) -> Result<(), Rejection> {
        let before = self.missed.replace(reading.requests_missed);
        let missed = before.map_or(0, |before| reading.requests_missed.saturating_sub(before));
        self.missed_in_window = self.missed_in_window.saturating_add(missed);
        self.disks.observe(reading.taken_ns, &reading.rest, bounds)
    }

    /// What was read last is no beginning for what is read next.
    pub(super) fn interrupt(&mut self) {
        self.disks.interrupt();
        self.missed = None;
    }

    /// Ends the window and begins the next.
    pub(super) fn take_window(&mut self) -> Option<DiskRest> {
        let missed = std::mem::take(&mut self.missed_in_window);
        let seen_s = self.disks.read.weight_s();
        let window = self.disks.take_window(|_| String::new())?;
        Some(DiskRest {
            read_bytes_per_s: window.read.bytes_per_s.mean,
            write_bytes_per_s: window.write.bytes_per_s.mean,
            read_operations_per_s: window.read.operations_per_s,
            write_operations_per_s: window.write.operations_per_s,
            requests_missed_per_s: missed as f64 / seen_s,
        })
    }
}

/// What a VM's process was charged with, from window to window.
#[derive(Debug, Default)]
pub(super) struct ProcessIoSeries(Option<(ProcessIoReading, u64)>);

impl ProcessIoSeries {
    /// What happened since the last call; `None` at the first one of a process, which `start_ticks` tells from others.
    pub(super) fn close(&mut self, reading: Option<ProcessIoReading>, start_ticks: u64) -> Option<ProcessIo> {
        let after = reading?;
        let (before, _) = self.0.replace((after, start_ticks)).filter(|&(_, ticks)| ticks == start_ticks)?;
        let elapsed_s = after.taken_ns.checked_sub(before.taken_ns).filter(|&ns| ns > 0)? as f64 / 1e9;
        Some(ProcessIo {
            read_bytes_per_s: after.read_bytes.checked_sub(before.read_bytes)? as f64 / elapsed_s,
            write_bytes_per_s: after.write_bytes.checked_sub(before.write_bytes)? as f64 / elapsed_s,
        })
    }
}

fn flow(bytes: &Weighted, of: &Direction, seen_s: f64) -> DiskFlow {
    DiskFlow {
        bytes_per_s: bytes.finish(),
        operations_per_s: of.operations as f64 / seen_s,
        device_ms: mean_ms(of.device_ns, timed(of)),
        queued_ms: mean_ms(of.queued_ns, timed(of)),
    }
}

fn timed(of: &Direction) -> u64 {
    of.device_log2.iter().copied().fold(0, u64::saturating_add)
}

fn mean_ms(sum_ns: u64, requests: u64) -> Option<f64> {
    (requests > 0).then(|| sum_ns as f64 / requests as f64 / 1e6)
}

/// Little's law: the mean number under way is the rate of arrivals times the mean stay, and so the sum of all stays over the time.
fn queue_depth(of: &DiskAccount, seen_s: f64) -> f64 {
    let stays_ns = [&of.read, &of.write].iter().map(|way| (way.device_ns as f64) + (way.queued_ns as f64)).sum::<f64>();
    stays_ns / 1e9 / seen_s
}

fn has_ended_any(account: &DiskAccount) -> bool {
    account.read.operations > 0 || account.write.operations > 0
}

fn account_since(after: &DiskAccount, before: &DiskAccount) -> Option<DiskAccount> {
    Some(DiskAccount { read: since(&after.read, &before.read)?, write: since(&after.write, &before.write)? })
}

fn since(after: &Direction, before: &Direction) -> Option<Direction> {
    let mut between = Direction {
        operations: after.operations.checked_sub(before.operations)?,
        bytes: after.bytes.checked_sub(before.bytes)?,
        device_ns: after.device_ns.checked_sub(before.device_ns)?,
        queued_ns: after.queued_ns.checked_sub(before.queued_ns)?,
        ..Direction::default()
    };
    for (slot, (after, before)) in between.device_log2.iter_mut().zip(after.device_log2.iter().zip(&before.device_log2))
    {
        *slot = after.checked_sub(*before)?;
    }
    Some(between)
}

fn add(sum: &mut Direction, of: &Direction) {
    sum.operations = sum.operations.saturating_add(of.operations);
    sum.bytes = sum.bytes.saturating_add(of.bytes);
    sum.device_ns = sum.device_ns.saturating_add(of.device_ns);
    sum.queued_ns = sum.queued_ns.saturating_add(of.queued_ns);
    for (sum, count) in sum.device_log2.iter_mut().zip(&of.device_log2) {
        *sum = sum.saturating_add(*count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;
    const BOUNDS: Bounds = Bounds { cpus: 4, sample_ns: S };
    const VDA: DiskId = DiskId { major: 254, minor: 0 };
    const VDB: DiskId = DiskId { major: 254, minor: 16 };

    /// So many writes of 4 KiB, each 2 ms at the device and 1 ms before it.
    fn writes(operations: u64) -> DiskAccount {
        let done = Direction {
            operations,
            bytes: operations * 4096,
            device_ns: operations * 2_000_000,
            queued_ns: operations * 1_000_000,
            ..Direction::default()
        };
        let mut account = DiskAccount { write: done, ..DiskAccount::default() };
        account.write.device_log2[10] = operations;
        account
    }

    fn name(disk: DiskId) -> String {
        format!("vd{}", disk.minor)
    }

    #[test]
    fn rates_latencies_and_depth_are_of_what_happened_in_the_window() {
        let mut series = DiskSeries::default();
        assert_eq!(series.take_window(name), None);
        series.observe(S, &[(VDA, writes(1_000))].into(), &BOUNDS).unwrap();
        assert_eq!(series.take_window(name), None, "one reading is none");
        series.observe(2 * S, &[(VDA, writes(1_100)), (VDB, writes(300))].into(), &BOUNDS).unwrap();
        series.observe(4 * S, &[(VDA, writes(1_100)), (VDB, writes(300))].into(), &BOUNDS).unwrap();
        let window = series.take_window(name).unwrap();
        assert_eq!((window.write.bytes_per_s.max, window.read), (400.0 * 4096.0, DiskFlow::default()));
        assert!((window.write.bytes_per_s.mean - 400.0 * 4096.0 / 3.0).abs() < 1e-6);
        assert!((window.write.operations_per_s - 400.0 / 3.0).abs() < 1e-9);
        assert_eq!((window.write.device_ms, window.write.queued_ms), (Some(2.0), Some(1.0)));
        assert!((window.queue_depth - 400.0 * 0.003 / 3.0).abs() < 1e-9);
        assert_eq!(window.latency.0[10], 400);
        let disks: Vec<_> = window.disks.iter().map(|disk| (disk.name.as_str(), disk.latency.0[10])).collect();
        assert_eq!(disks, [("vd16", 300), ("vd0", 100)], "the busiest first");
        series.observe(5 * S, &[(VDA, writes(1_100)), (VDB, writes(300))].into(), &BOUNDS).unwrap();
        let idle = series.take_window(name).unwrap();
        assert_eq!(idle, DiskWindow::default(), "an idle VM is measured, as zero");
    }

    #[test]
    fn counters_that_begin_anew_and_readings_far_apart_are_refused_and_then_bridged() {
        let mut series = DiskSeries::default();
        series.observe(S, &[(VDA, writes(9))].into(), &BOUNDS).unwrap();
        assert_eq!(series.observe(2 * S, &[(VDA, writes(3))].into(), &BOUNDS), Err(Rejection::Reset));
        assert_eq!(series.observe(60 * S, &[(VDA, writes(4))].into(), &BOUNDS), Err(Rejection::TooLong));
        series.observe(61 * S, &[(VDA, writes(5))].into(), &BOUNDS).unwrap();
        assert_eq!(series.take_window(name).unwrap().write.operations_per_s, 1.0);
        series.interrupt();
        series.observe(62 * S, &[(VDA, writes(100))].into(), &BOUNDS).unwrap();
        assert_eq!(series.take_window(name), None);
    }

    #[test]
    fn the_rest_tells_what_was_missed_since_the_last_window() {
        let mut rest = RestSeries::default();
        let reading = |second, operations, requests_missed| BlockReading {
            taken_ns: second * S,
            rest: [(VDA, writes(operations))].into(),
            requests_missed,
            ..BlockReading::default()
        };
        rest.observe(&reading(1, 0, 7), &BOUNDS).unwrap();
        rest.observe(&reading(2, 10, 9), &BOUNDS).unwrap();
        let expected = DiskRest {
            write_bytes_per_s: 40_960.0,
            write_operations_per_s: 10.0,
            requests_missed_per_s: 2.0,
            ..DiskRest::default()
        };
        assert_eq!(rest.take_window(), Some(expected));
        assert_eq!(rest.take_window(), None);
    }

    #[test]
    fn a_process_is_compared_with_itself_only() {
        let mut series = ProcessIoSeries::default();
        let reading =
            |second, bytes| Some(ProcessIoReading { taken_ns: second * S, read_bytes: bytes, write_bytes: 2 * bytes });
        assert_eq!(series.close(reading(1, 50), 7), None);
        let told = ProcessIo { read_bytes_per_s: 10.0, write_bytes_per_s: 20.0 };
        assert_eq!(series.close(reading(11, 150), 7), Some(told));
        assert_eq!(series.close(None, 7), None);
        assert_eq!(series.close(reading(31, 350), 7), Some(told));
        assert_eq!(series.close(reading(41, 500), 8), None, "another process");
    }

    proptest! {
        #[test]
        fn no_counters_make_a_window_that_is_no_number(readings in prop::collection::vec((1u64..4 * S, any::<[u32; 4]>()), 1..20)) {
            let (mut series, mut taken_ns) = (DiskSeries::default(), 0);
            for (step_ns, [operations, bytes, device, queued]) in readings {
                taken_ns += step_ns;
                let done = Direction {
                    operations: operations.into(),
                    bytes: u64::from(bytes) << 20,
                    device_ns: u64::from(device) << 20,
                    queued_ns: u64::from(queued) << 20,
                    ..Direction::default()
                };
                let mut account = DiskAccount { read: done, ..DiskAccount::default() };
                account.read.device_log2[3] = operations.into();
                let _ = series.observe(taken_ns, &[(VDA, account)].into(), &BOUNDS);
                if let Some(window) = series.take_window(name) {
                    let values = [window.queue_depth, window.read.bytes_per_s.mean, window.read.operations_per_s];
                    prop_assert!(values.iter().all(|value| value.is_finite() && *value >= 0.0));
                    prop_assert!(window.read.device_ms.is_none_or(f64::is_finite));
                }
            }
        }
    }
}
