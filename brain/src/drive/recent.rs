//! The latest windows of each VM, for plots: what it wanted and what it had.

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CpuWindow, Report, VmId, VmWindow};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Points kept of each VM while there are few VMs: with 10 s windows four hours, in 45 KiB.
const POINTS_MAX: usize = 1440;
/// Points kept of all VMs that report, 256 MiB: of 100,000 VMs the last 83 each.
const POINTS_TOTAL_MAX: usize = 8 << 20;
/// Points kept of each VM however many there are.
const POINTS_MIN: usize = 16;
/// Rings grow and shrink by so many points: doubling would waste what the bound above saves.
const POINTS_GROWTH: usize = 32;
/// Forgotten VMs are looked for when so many have come since the last look, and as many as there were then.
const SWEEP_VMS_MIN: usize = 1024;

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

/// A point as it is kept: single precision, and no number where something was not measured.
#[derive(Clone, Copy, Debug)]
struct Point {
    start_ms: u64,
    window_ms: u32,
    demand_low: f32,
    demand_high: f32,
    usage: f32,
    throttled: f32,
    limit: f32,
}

/// Rings of points by VM.
#[derive(Debug)]
pub struct Recent {
    points_total_max: usize,
    rings: BTreeMap<VmId, VecDeque<Point>>,
    swept_vms: usize,
}

impl Default for Recent {
    fn default() -> Self {
        Self::new(POINTS_TOTAL_MAX)
    }
}

impl Recent {
    fn new(points_total_max: usize) -> Self {
        Self { points_total_max, rings: BTreeMap::new(), swept_vms: 0 }
    }

    /// Takes the windows of a report. Of two reports with the same start the later one wins; late ones go to their place.
    ///
    /// The rings of VMs that are not `known` any more go, now and then, so that there are as few as the core knows VMs. Those of VMs that
    /// fell silent while there was more room for each stay as they are: all together are at most a few times the bound.
    pub(super) fn take(&mut self, report: &Report, known: impl Fn(VmId) -> bool) {
        if self.rings.len() >= 2 * self.swept_vms + SWEEP_VMS_MIN {
            self.rings.retain(|&vm, _| known(vm));
            self.swept_vms = self.rings.len();
        }
        for window in &report.vms {
            let points_max = (self.points_total_max / self.rings.len().max(1)).clamp(POINTS_MIN, POINTS_MAX);
            let ring = self.rings.entry(window.vm).or_default();
            let point = Point::new(report, window);
            let place = match ring.back() {
                Some(last) if last.start_ms >= point.start_ms => ring.partition_point(|p| p.start_ms < point.start_ms),
                _ => ring.len(),
            };
            match ring.get_mut(place) {
                Some(same) if same.start_ms == point.start_ms => *same = point,
                _ => insert(ring, place, point, points_max),
            }
        }
    }

    /// A VM's points from `since` on, oldest first; `None` if the VM is not known.
    pub fn since(&self, vm: VmId, since: Timestamp) -> Option<Vec<HistoryPoint>> {
        let ring = self.rings.get(&vm)?;
        let from = ring.partition_point(|point| point.start_ms < since.unix_ms());
        Some(ring.range(from..).map(|&point| point.into()).collect())
    }
}

fn insert(ring: &mut VecDeque<Point>, place: usize, point: Point, points_max: usize) {
    // Two at a time: a ring that is too long shrinks while it is fed.
    let surplus = (ring.len() + 1).saturating_sub(points_max).min(2);
    let Some(place) = place.checked_sub(surplus) else {
        return; // Older than what is kept.
    };
    ring.drain(..surplus);
    if ring.capacity() > ring.len() + 2 * POINTS_GROWTH {
        ring.shrink_to(ring.len() + POINTS_GROWTH);
    }
    if ring.len() == ring.capacity() {
        ring.reserve_exact(POINTS_GROWTH);
    }
    ring.insert(place, point);
}

impl Point {
    fn new(report: &Report, window: &VmWindow) -> Self {
        let cpu = |value: fn(&CpuWindow) -> f64| window.cpu.as_ref().map_or(f32::NAN, |cpu| value(cpu) as f32);
        Self {
            start_ms: report.start.unix_ms(),
            window_ms: report.window_ms,
            demand_low: cpu(|cpu| cpu.demand_low.mean),
            demand_high: cpu(|cpu| cpu.demand_high.mean),
            usage: cpu(|cpu| cpu.usage.mean),
            throttled: cpu(|cpu| cpu.throttled.mean),
            limit: window.allocation.cpu_limit_cores() as f32,
        }
    }
}

impl From<Point> for HistoryPoint {
    fn from(point: Point) -> Self {
        // To a millionth: what single precision adds beyond that is noise.
        let rounded = |value: f32| (f64::from(value) * 1e6).round() / 1e6;
        let known = |value: f32| value.is_finite().then(|| rounded(value));
        Self {
            start_ms: point.start_ms,
            window_ms: point.window_ms,
            demand_low_cores: known(point.demand_low),
            demand_high_cores: known(point.demand_high),
            usage_cores: known(point.usage),
            throttled: known(point.throttled),
            limit_cores: rounded(point.limit),
        }
    }
}

/// A report of one VM.
#[cfg(test)]
pub(super) fn report(start_ms: u64, sequence: u64, vm: VmId) -> Report {
    use gnomon_common::wire::{AgentEpoch, Allocation, HostId, HostWindow, Losses, Sequence, VmState, VmTerms};
    let allocation = Allocation { quota_cores: Some(1.5), vcpus: 2, vcpus_max: 2, memory_bytes: 1 << 30 };
    let window = VmWindow {
        vm,
        name: "a".into(),
        state: VmState::Running,
        cpu: None,
        memory: None,
        interfaces: Vec::new(),
        disk: None,
        allocation,
        baselines: Vec::new(),
        stood_down: false,
        terms: VmTerms::default(),
        storage: None,
        migration: None,
        shadow: None,
        culprits: None,
        exits: None,
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
            recent.take(&report(i * 1000, 1, vm), |_| true);
        }
        // Repeated windows change nothing but the one they repeat, and those older than all that are kept nothing at all.
        recent.take(&report(5000, 1, vm), |_| true);
        recent.take(&report((POINTS_MAX as u64 + 9) * 1000, 1, vm), |_| true);
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
            recent.take(&report(second * 1000, 1, vm), |_| true);
        }
        let starts: Vec<u64> =
            recent.since(vm, Timestamp::default()).unwrap().iter().map(|point| point.start_ms).collect();
        assert_eq!(starts, [1000, 2000, 3000, 4000, 5000, 6000, 7000]);
    }

    #[test]
    fn many_vms_share_the_room_and_those_that_the_core_forgot_make_some() {
        let vm = |number: usize| VmId(Uuid::from_u128(number as u128));
        let (total_max, vms) = (120_000, SWEEP_VMS_MIN + 476);
        let mut recent = Recent::new(total_max);
        // Room for 80 points each; the first VM was there before the others, and had more.
        for start in 0..POINTS_MAX as u64 {
            recent.take(&report(start, 1, vm(0)), |_| true);
        }
        for start in 1..1000 {
            let mut report = report(start * 10_000, 1, vm(0));
            report.vms = (0..vms).map(|number| VmWindow { vm: vm(number), ..report.vms[0].clone() }).collect();
            recent.take(&report, |_| true);
        }
        let kept: Vec<_> = recent.rings.values().map(VecDeque::len).collect();
        assert_eq!(kept.iter().sum::<usize>(), total_max + (kept[0] - total_max / vms));
        assert!(kept[0] < POINTS_MAX / 2 && kept[1..].iter().all(|&kept| kept == total_max / vms), "{kept:?}");
        assert!(recent.rings.values().all(|ring| ring.capacity() <= ring.len() + 2 * POINTS_GROWTH));

        recent.swept_vms = 0;
        recent.take(&report(1_000_000, 1, vm(1)), |known| known == vm(1));
        assert_eq!((recent.rings.len(), recent.since(vm(2), Timestamp::default())), (1, None));
    }
}
