//! One VM's readings: what was read last, and the window being made of the differences. Pure.

use super::culprits::WaitAccumulator;
use super::interval::{self, Bounds, CgroupSample, Rejection, SchedSample, WaitSample};
use super::window::CpuAccumulator;
use crate::host::cgroup::CgroupReading;
use crate::host::inventory::VmFacts;
use crate::reading::{SchedCounters, WaitCauses};
use gnomon_common::wire::VmState;

/// A VM between two ticks.
#[derive(Debug, Default)]
pub(super) struct VmSeries {
    life: Option<Life>,
    sched: Option<(u64, SchedCounters)>,
    causes: Option<WaitCauses>,
    cgroup: Option<CgroupReading>,
    window: CpuAccumulator,
    waits: WaitAccumulator,
}

/// Two readings make a sample only within one life: same process, and no pause in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    pub(super) execution_changes: u64,
}

impl Life {
    /// The VM's present life; `None` while it does not run, and then it wants nothing.
    pub(super) fn of(facts: &VmFacts) -> Option<Self> {
        let process = facts.process.as_ref()?;
        (facts.state == VmState::Running).then_some(Self {
            pid: process.pid,
            start_ticks: process.start_ticks,
            execution_changes: facts.execution_changes,
        })
    }
}

/// What a tick made of a VM's readings; `None` where there is no pair of readings yet, or no source.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) sched: Option<Result<SchedSample, Rejection>>,
    pub(super) waits: Option<WaitSample>,
    pub(super) cgroup: Option<Result<CgroupSample, Rejection>>,
}

impl VmSeries {
    /// Takes this tick's readings of the VM. `causes` are of the same instant as `sched`.
    pub(super) fn observe(
        &mut self,
        facts: &VmFacts,
        sched: Option<(u64, SchedCounters)>,
        causes: Option<WaitCauses>,
        cgroup: Option<CgroupReading>,
        bounds: &Bounds,
    ) -> Observed {
        let life = Life::of(facts);
        if life.is_none() || life != self.life {
            // What lies between the last reading and this one is part run, part pause, or two processes.
            (self.sched, self.causes, self.cgroup) = (None, None, None);
        }
        self.life = life;
        if life.is_none() {
            return Observed::default();
        }
        let mut observed = Observed::default();
        // No thread left, or none that the probe could measure: libvirt may not have noticed yet, but it is not an idle VM.
        let sched = match sched {
            Some((_, counters)) if counters.threads == 0 => {
                self.interrupt_sched();
                None
            }
            // A drain that failed is bridged: the next interval is a longer one.
            sched => sched,
        };
        if let Some(after) = sched {
            observed.sched = self.sched.as_ref().map(|(t, c)| interval::sched((*t, c), (after.0, &after.1), bounds));
            self.sched = Some(after);
            let before = std::mem::replace(&mut self.causes, causes);
            // Believed where what was waited in all is.
            if let (Some(Ok(sample)), Some(before), Some(after)) = (&observed.sched, &before, &self.causes) {
                observed.waits = Some(interval::waits(before, after, sample.elapsed_s));
            }
        }
        if let Some(after) = cgroup {
            observed.cgroup = self.cgroup.as_ref().map(|before| interval::cgroup(before, &after, bounds));
            self.cgroup = Some(after);
        }
        if let Some(Ok(sample)) = &observed.sched {
            self.window.add_sched(sample);
        }
        if let Some(sample) = &observed.waits {
            self.waits.add(sample);
        }
        if let Some(Ok(sample)) = &observed.cgroup {
            self.window.add_cgroup(sample);
        }
        observed
    }

    /// The scheduler's counters begin anew: what was read last is no beginning.
    pub(super) fn interrupt_sched(&mut self) {
        (self.sched, self.causes) = (None, None);
    }

    /// Ends the window and begins the next.
    pub(super) fn take_window(&mut self) -> CpuAccumulator {
        std::mem::take(&mut self.window)
    }

    /// The same for who ran while the VM waited.
    pub(super) fn take_waits(&mut self) -> WaitAccumulator {
        std::mem::take(&mut self.waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::memory::MemoryFacts;
    use crate::host::process::QemuProcess;
    use gnomon_common::wire::VmId;

    const S: u64 = 1_000_000_000;
    const BOUNDS: Bounds = Bounds { cpus: 4, sample_ns: S };

    fn facts(state: VmState, pid: u32, execution_changes: u64) -> VmFacts {
        VmFacts {
            id: VmId(uuid::Uuid::nil()),
            name: "web".into(),
            state,
            process: Some(QemuProcess { pid, start_ticks: 1, threads: Vec::new(), vhost_pids: Vec::new() }),
            cgroup: None,
            vcpus: 2,
            vcpus_max: 2,
            memory_bytes: 0,
            balloon_bytes: None,
            memory: MemoryFacts::default(),
            interfaces: Vec::new(),
            disks_unseen: false,
            guest_disks: None,
            terms: None,
            keepsake: None,
            shadow_of: None,
            execution_changes,
        }
    }

    /// Readings of a VM that always uses one core.
    fn one_core(series: &mut VmSeries, facts: &VmFacts, second: u64) -> Observed {
        let counters = SchedCounters { run_ns: second * S, threads: 2, ..SchedCounters::default() };
        let causes = WaitCauses { own_ns: second * S / 4, ..WaitCauses::default() };
        let cgroup = CgroupReading {
            taken_ns: second * S,
            usage_ns: Some(second * S),
            quota_cores: None,
            throttles: Vec::new(),
        };
        series.observe(facts, Some((second * S, counters)), Some(causes), Some(cgroup), &BOUNDS)
    }

    #[test]
    fn the_first_reading_is_no_sample_and_the_second_is() {
        let (mut series, facts) = (VmSeries::default(), facts(VmState::Running, 7, 0));
        assert!(one_core(&mut series, &facts, 1).sched.is_none());
        assert_eq!(one_core(&mut series, &facts, 2).sched.unwrap().unwrap().run_cores, 1.0);
    }

    #[test]
    fn what_it_waited_for_before_a_pause_is_not_told_after_it() {
        let (mut series, running) = (VmSeries::default(), facts(VmState::Running, 7, 0));
        one_core(&mut series, &running, 1);
        assert_eq!(one_core(&mut series, &running, 2).waits.unwrap().own_s, 0.25);
        assert_eq!(series.take_waits().finish().unwrap().own_cores, 0.25);
        assert!(one_core(&mut series, &facts(VmState::Running, 7, 2), 3).waits.is_none());
        assert_eq!(series.take_waits().finish(), None);
    }

    #[test]
    fn a_paused_vm_gives_no_window_and_the_pause_does_not_dilute_its_neighbours() {
        let mut series = VmSeries::default();
        let running = facts(VmState::Running, 7, 0);
        one_core(&mut series, &running, 1);
        one_core(&mut series, &running, 2);
        assert!(one_core(&mut series, &facts(VmState::Paused, 7, 1), 3).sched.is_none());
        let before = series.take_window().finish(10.0).unwrap();
        assert_eq!((before.covered, before.demand_low.mean), (0.1, 1.0));
        one_core(&mut series, &facts(VmState::Paused, 7, 1), 4);
        assert_eq!(series.take_window().finish(10.0), None);
        let resumed = facts(VmState::Running, 7, 2);
        assert!(one_core(&mut series, &resumed, 5).sched.is_none(), "the interval contains part of the pause");
        assert!(one_core(&mut series, &resumed, 6).sched.is_some());
    }

    #[test]
    fn a_pause_too_short_to_be_seen_in_the_state_still_breaks_the_sample() {
        let mut series = VmSeries::default();
        one_core(&mut series, &facts(VmState::Running, 7, 0), 1);
        assert!(one_core(&mut series, &facts(VmState::Running, 7, 2), 2).sched.is_none());
    }

    #[test]
    fn a_restarted_vm_is_not_compared_with_its_former_process() {
        let mut series = VmSeries::default();
        one_core(&mut series, &facts(VmState::Running, 7, 0), 1);
        let observed = one_core(&mut series, &facts(VmState::Running, 8, 0), 2);
        assert!(observed.sched.is_none() && observed.cgroup.is_none());
    }

    #[test]
    fn a_vm_whose_threads_are_gone_is_unknown_rather_than_idle() {
        let (mut series, facts) = (VmSeries::default(), facts(VmState::Running, 7, 0));
        one_core(&mut series, &facts, 1);
        let ended = SchedCounters { run_ns: S, threads: 0, ..SchedCounters::default() };
        assert!(series.observe(&facts, Some((2 * S, ended)), None, None, &BOUNDS).sched.is_none());
        assert_eq!(series.take_window().finish(10.0), None);
    }

    #[test]
    fn after_a_reset_the_next_interval_is_good_again() {
        let (mut series, facts) = (VmSeries::default(), facts(VmState::Running, 7, 0));
        one_core(&mut series, &facts, 5);
        let reset = SchedCounters { run_ns: 0, threads: 2, ..SchedCounters::default() };
        let observed = series.observe(&facts, Some((6 * S, reset)), None, None, &BOUNDS);
        assert_eq!(observed.sched, Some(Err(Rejection::Reset)));
        let later = SchedCounters { run_ns: S / 2, threads: 2, ..SchedCounters::default() };
        let observed = series.observe(&facts, Some((7 * S, later)), None, None, &BOUNDS);
        assert_eq!(observed.sched.unwrap().unwrap().run_cores, 0.5);
    }
}
