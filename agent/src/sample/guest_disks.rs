//! QEMU's counts of what a guest does on its disks -> rates. Pure.

use crate::host::inventory::VmFacts;
use crate::host::inventory::guest_disks::{ASKED_EVERY_S, GuestDisksReading};
use crate::host::libvirt::GuestDiskCounters;
use gnomon_common::wire::GuestDisk;

/// Older answers say nothing about now, in nanoseconds: three are missing.
const STALE_AFTER_NS: u64 = 3 * ASKED_EVERY_S * 1_000_000_000;

/// A guest's disks from answer to answer. QEMU is asked by a clock of its own, so a window tells what is known at its end.
#[derive(Debug, Default)]
pub(super) struct GuestDiskSeries {
    last: Option<GuestDisksReading>,
    told: Vec<GuestDisk>,
}

impl GuestDiskSeries {
    /// What the guest does by the last two answers of its present QEMU, at `now_ns` of `CLOCK_MONOTONIC`; empty where there are not two, or
    /// they are stale.
    pub(super) fn close(&mut self, facts: &VmFacts, now_ns: u64) -> Vec<GuestDisk> {
        let of_its_process = |reading: &&GuestDisksReading| {
            facts.process.as_ref().is_some_and(|process| process.start_ticks == reading.start_ticks)
        };
        let Some(reading) = facts.guest_disks.as_ref().filter(of_its_process) else {
            *self = Self::default();
            return Vec::new();
        };
        if self.last.as_ref() != Some(reading) {
            let before = self.last.replace(reading.clone());
            self.told = before.and_then(|before| between(&before, reading)).unwrap_or_default();
        }
        let is_fresh = now_ns.saturating_sub(reading.taken_ns) <= STALE_AFTER_NS;
        if is_fresh { self.told.clone() } else { Vec::new() }
    }
}

/// Disks that both readings of one process have, but for those whose counters began anew.
fn between(before: &GuestDisksReading, after: &GuestDisksReading) -> Option<Vec<GuestDisk>> {
    let is_pair = before.start_ticks == after.start_ticks && before.taken_ns < after.taken_ns;
    let elapsed_s = is_pair.then(|| (after.taken_ns - before.taken_ns) as f64 / 1e9)?;
    let rates = |(target, now): &(String, GuestDiskCounters)| {
        let (_, then) = before.disks.iter().find(|(before, _)| before == target)?;
        let per_s = |after: u64, before: u64| Some(after.checked_sub(before)? as f64 / elapsed_s);
        Some(GuestDisk {
            target: target.clone(),
            read_bytes_per_s: per_s(now.read_bytes, then.read_bytes)?,
            write_bytes_per_s: per_s(now.written_bytes, then.written_bytes)?,
            read_operations_per_s: per_s(now.reads, then.reads)?,
            write_operations_per_s: per_s(now.writes, then.writes)?,
        })
    };
    Some(after.disks.iter().filter_map(rates).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::memory::MemoryFacts;
    use crate::host::process::QemuProcess;
    use gnomon_common::wire::{VmId, VmState};

    const S: u64 = 1_000_000_000;

    /// A VM whose process began at `start_ticks`, asked at `second`.
    fn facts(start_ticks: u64, guest_disks: Option<GuestDisksReading>) -> VmFacts {
        VmFacts {
            id: VmId(uuid::Uuid::nil()),
            name: "web".into(),
            state: VmState::Running,
            process: Some(QemuProcess { pid: 7, start_ticks, threads: Vec::new(), vhost_pids: Vec::new() }),
            cgroup: None,
            vcpus: 1,
            vcpus_max: 1,
            memory_bytes: 0,
            balloon_bytes: None,
            memory: MemoryFacts::default(),
            interfaces: Vec::new(),
            disks_unseen: false,
            guest_disks,
            terms: None,
            keepsake: None,
            shadow_of: None,
            execution_changes: 0,
        }
    }

    /// Each disk has written so many times 4 KiB and read as often 512 bytes.
    fn reading(second: u64, disks: &[(&str, u64)]) -> Option<GuestDisksReading> {
        let counters = |&(target, count): &(&str, u64)| {
            let done =
                GuestDiskCounters { reads: count, read_bytes: 512 * count, writes: count, written_bytes: 4096 * count };
            (target.to_owned(), done)
        };
        Some(GuestDisksReading { start_ticks: 9, taken_ns: second * S, disks: disks.iter().map(counters).collect() })
    }

    fn told(series: &mut GuestDiskSeries, now_s: u64, reading: Option<GuestDisksReading>) -> Vec<(String, f64)> {
        let told = series.close(&facts(9, reading), now_s * S);
        for disk in &told {
            let (per_s, bytes) = (disk.write_operations_per_s, [disk.read_bytes_per_s, disk.write_bytes_per_s]);
            assert_eq!((disk.read_operations_per_s, bytes), (per_s, [512.0 * per_s, 4096.0 * per_s]));
        }
        told.into_iter().map(|disk| (disk.target, disk.write_operations_per_s)).collect()
    }

    #[test]
    fn rates_are_between_two_answers_and_stand_until_the_next_one_or_until_they_are_stale() {
        let mut series = GuestDiskSeries::default();
        assert_eq!(told(&mut series, 1, reading(0, &[("vda", 5)])), []);
        let second = reading(10, &[("vda", 105)]);
        assert_eq!(told(&mut series, 11, second.clone()), [("vda".to_owned(), 10.0)]);
        assert_eq!(told(&mut series, 21, second.clone()), [("vda".to_owned(), 10.0)], "a window without a new answer");
        assert_eq!(told(&mut series, 41, second), []);
        assert_eq!(told(&mut series, 61, reading(60, &[("vda", 155)])), [("vda".to_owned(), 1.0)]);
    }

    #[test]
    fn disks_that_are_new_or_began_anew_are_left_out() {
        let mut series = GuestDiskSeries::default();
        told(&mut series, 0, reading(0, &[("vda", 50), ("vdb", 0)]));
        let next = reading(10, &[("vda", 3), ("vdb", 10), ("vdc", 7)]);
        assert_eq!(told(&mut series, 10, next), [("vdb".to_owned(), 1.0)]);
    }

    #[test]
    fn what_another_process_was_asked_is_not_the_vms() {
        let mut series = GuestDiskSeries::default();
        told(&mut series, 0, reading(0, &[("vda", 0)]));
        assert_eq!(series.close(&facts(10, reading(10, &[("vda", 10)])), 10 * S), []);
        assert_eq!(told(&mut series, 20, reading(20, &[("vda", 20)])), [], "nothing before it counts any more");
        let next_life = GuestDisksReading { start_ticks: 10, ..reading(30, &[("vda", 30)]).unwrap() };
        assert_eq!(series.close(&facts(10, Some(next_life)), 30 * S), [], "it has counted from zero");
        assert_eq!(told(&mut series, 40, None), []);
    }
}
