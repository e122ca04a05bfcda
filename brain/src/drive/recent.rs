//! The latest windows of each VM, for plots: what it wanted and what it had.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{Report, VmId, VmWindow};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Points kept per VM: with 10 s windows four hours, in some 130 KiB.
const POINTS_MAX: usize = 1440;
/// VMs kept: the one that was silent for the longest makes room.
const VMS_MAX: usize = 16_384;

/// One window of one VM. CPU in cores; absent where it was not measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HistoryPoint {
    /// Start of the window, in milliseconds since the epoch.
    pub start_ms: u64,
    /// Its length, in milliseconds.
    pub window_ms: u32,
    /// Lower end of mean demand (time run), in cores.
    pub demand_low_cores: Option<f64>,
    /// Upper end of mean demand (time run or runnable), in cores.
    pub demand_high_cores: Option<f64>,
    /// Time charged to its cgroup, in cores.
    pub usage_cores: Option<f64>,
    /// Share of the window in which its quota held it back, 0 to 1.
    pub throttled: Option<f64>,
    /// What it may use at the window's end: the smaller of quota and vCPUs, in cores.
    pub limit_cores: f64,
}

/// Rings of [`HistoryPoint`]s by VM.
#[derive(Debug, Default)]
pub struct Recent(BTreeMap<VmId, VecDeque<HistoryPoint>>);

impl Recent {
    /// Takes the windows of a report. Of two reports with the same start the later one wins; one that comes late, from a spool, goes to
    /// its place. O(points) for those, O(1) for what is newest.
    pub(super) fn take(&mut self, report: &Report) {
        for window in &report.vms {
            if !self.0.contains_key(&window.vm) && self.0.len() >= VMS_MAX {
                self.make_room();
            }
            let points = self.0.entry(window.vm).or_default();
            let point = point(report, window);
            let place = match points.back() {
                Some(last) if last.start_ms >= point.start_ms => {
                    points.partition_point(|p| p.start_ms < point.start_ms)
                }
                _ => points.len(),
            };
            match points.get_mut(place) {
                Some(same) if same.start_ms == point.start_ms => *same = point,
                _ => points.insert(place, point),
            }
            if points.len() > POINTS_MAX {
                points.pop_front();
            }
        }
    }

    /// A VM's points from `since` on, oldest first; `None` if the VM is not known.
    pub fn since(&self, vm: VmId, since: Timestamp) -> Option<Vec<HistoryPoint>> {
        let points = self.0.get(&vm)?;
        let from = points.partition_point(|point| point.start_ms < since.unix_ms());
        Some(points.range(from..).copied().collect())
    }

    fn make_room(&mut self) {
        let last_seen = |points: &VecDeque<HistoryPoint>| points.back().map_or(0, |point| point.start_ms);
        if let Some(vm) = self.0.iter().min_by_key(|(_, points)| last_seen(points)).map(|(vm, _)| *vm) {
            self.0.remove(&vm);
        }
    }
}

fn point(report: &Report, window: &VmWindow) -> HistoryPoint {
    HistoryPoint {
        start_ms: report.start.unix_ms(),
        window_ms: report.window_ms,
        demand_low_cores: window.cpu.map(|cpu| cpu.demand_low.mean),
        demand_high_cores: window.cpu.map(|cpu| cpu.demand_high.mean),
        usage_cores: window.cpu.map(|cpu| cpu.usage.mean),
        throttled: window.cpu.map(|cpu| cpu.throttled.mean),
        limit_cores: window.allocation.cpu_limit_cores(),
    }
}

/// A report of one VM.
#[cfg(test)]
pub(super) fn report(start_ms: u64, sequence: u64, vm: VmId) -> Report {
    use gnomon_common::wire::{AgentEpoch, Allocation, HostId, HostWindow, Losses, Sequence, VmState};
    let allocation = Allocation { quota_cores: Some(1.5), vcpus: 2, vcpus_max: 2, memory_bytes: 1 << 30 };
    let window = VmWindow {
        vm,
        name: "a".into(),
        state: VmState::Running,
        cpu: None,
        memory: None,
        allocation,
        stood_down: false,
    };
    Report {
        host: HostId::new("h").unwrap(),
        epoch: AgentEpoch(1),
        sequence: Sequence(sequence),
        start: Timestamp::from_unix_ms(start_ms),
        window_ms: 1000,
        host_window: HostWindow::default(),
        vms: vec![window],
        inventory_complete: true,
        losses: Losses::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_ring_is_bounded_ordered_and_cut_at_since() {
        let vm = VmId(Uuid::from_u128(1));
        let mut recent = Recent::default();
        for i in 0..POINTS_MAX as u64 + 10 {
            recent.take(&report(i * 1000, 1, vm));
        }
        // Repeated windows change nothing but the one they repeat, and those older than all that are kept nothing at all.
        recent.take(&report(5000, 1, vm));
        recent.take(&report((POINTS_MAX as u64 + 9) * 1000, 1, vm));
        let all = recent.since(vm, Timestamp::default()).unwrap();
        assert_eq!(all.len(), POINTS_MAX);
        assert!(all.is_sorted_by(|a, b| a.start_ms < b.start_ms));
        assert_eq!(all[0].limit_cores, 1.5);
        assert_eq!(recent.since(vm, Timestamp::from_unix_ms((POINTS_MAX as u64 + 8) * 1000)).unwrap().len(), 2);
        assert_eq!(recent.since(VmId(Uuid::from_u128(2)), Timestamp::default()), None);
    }

    #[test]
    fn windows_that_come_late_go_to_their_place() {
        let vm = VmId(Uuid::from_u128(1));
        let mut recent = Recent::default();
        for second in [1, 2, 6, 3, 7, 4, 5, 4] {
            recent.take(&report(second * 1000, 1, vm));
        }
        let starts: Vec<u64> =
            recent.since(vm, Timestamp::default()).unwrap().iter().map(|point| point.start_ms).collect();
        assert_eq!(starts, [1000, 2000, 3000, 4000, 5000, 6000, 7000]);
    }
}
