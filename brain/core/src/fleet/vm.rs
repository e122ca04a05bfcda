//! One VM: what was reported of it, what was learnt from that, what is being done to it.

mod outlook;

use std::collections::VecDeque;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{
    Action, Allocation, CommandId, CpuWindow, Culprits, DiskWindow, ExitShare, HostId, INTERFACES_MAX, InterfaceWindow,
    LocalStorage, Means, MemoryWindow, MigrationProgress, OutcomeResult, Setting, ShadowWindow, VmState, VmTerms,
    VmWindow,
};
use thiserror::Error;

use crate::forecast::Forecaster;
use crate::history::{Accepted, History, Interval, Window};
use crate::io::CommandRecord;
use crate::pattern::Pattern;
use crate::plan::backoff::Backoff;
use crate::plan::balance::Travel;
use crate::plan::budget::Tally;
use crate::plan::memory::{BalloonPace, BalloonVerdict};
use crate::plan::pace::{Pace, Verdict};
use crate::plan::size::live_cores;
use crate::policy::Policy;
use crate::sizing::Slot;
use crate::view::RecentAction;

/// Actions remembered for each VM, for `explain`; the store has all of them.
const RECENT_ACTIONS_MAX: usize = 16;

/// More than this many times a VM's vCPUs (and one core for its other threads) cannot be its demand: a counter went mad.
const DEMAND_PER_VCPU_MAX: f64 = 4.0;

/// How long an outcome's read-back outweighs reports of windows that ended before it.
const READ_BACK_PREVAILS: Duration = Duration::from_mins(1);

/// A command on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) record: CommandRecord,
    /// When it is given up.
    pub(crate) deadline: Timestamp,
}

/// Why a window is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub(crate) enum AbsurdWindow {
    #[error("it covers {0} of its time")]
    Covered(f64),
    #[error("its demand ({0}..{1} cores) is no interval")]
    Interval(f64, f64),
    #[error("its demand of {0} cores is impossible with {1} vCPUs")]
    Impossible(f64, u32),
}

/// What a VM's window taught.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Taught {
    /// Nothing: it did not run or was not measured.
    Nothing,
    /// Its demand.
    Demand,
    /// Its demand, after the host's clock was set back.
    ClockSetBack,
    /// It came late and filled a gap in what was known.
    Filled,
    /// It came out of order and was left out.
    Behind,
    /// It was not believed.
    Absurd(AbsurdWindow),
}

#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) name: String,
    /// Where it is; `None` once it has vanished.
    pub(crate) host: Option<HostId>,
    pub(crate) vanished: Option<Timestamp>,
    /// Where it was when it vanished.
    pub(crate) left: Option<HostId>,
    pub(crate) state: VmState,
    pub(crate) allocation: Allocation,
    /// When a command's result was read back (on the agent's clock) and when that was heard of (on the brain's).
    read_back: Option<(Timestamp, Timestamp)>,
    /// Demand in the latest window; `None` where that was not measured, not believed, or out of order.
    pub(crate) cpu: Option<CpuWindow>,
    /// Who had the CPU while it waited, in the same window as `cpu`.
    pub(crate) culprits: Option<Culprits>,
    /// Memory in the latest window, as far as it was measured.
    pub(crate) memory: Option<MemoryWindow>,
    /// Its network interfaces in the latest window.
    pub(crate) interfaces: Vec<InterfaceWindow>,
    /// Disks in the latest window, as far as they were measured.
    pub(crate) disk: Option<DiskWindow>,
    /// Why its vCPUs left their guest in the latest window, where that was seen.
    pub(crate) exits: Option<Vec<ExitShare>>,
    /// What it had before Gnomon's first change, one for each means that was changed.
    pub(crate) baselines: Vec<Setting>,
    /// Its host's agent keeps its hands off it.
    pub(crate) stood_down: bool,
    /// What its owner and its definition allow.
    pub(crate) terms: VmTerms,
    /// What it is besides, where it is a shadow.
    pub(crate) shadow: Option<ShadowWindow>,
    /// What only its host has of its disks, as far as that tells.
    pub(crate) storage: Option<LocalStorage>,
    /// How far its migration has come, as its host told last.
    pub(crate) migration: Option<MigrationProgress>,
    /// It stands still between two hosts, and its move is still in flight.
    pub(crate) is_parked: bool,
    /// When it was moved, and may be again.
    pub(crate) travel: Travel,
    pub(crate) last_window: Option<Timestamp>,
    pub(crate) window_end: Timestamp,
    pub(crate) history: History,
    pub(crate) forecaster: Option<Forecaster>,
    /// Index of the step from which the next fit is due.
    pub(crate) fit_due: u64,
    /// Its long run.
    pub(crate) pattern: Pattern,
    /// Its place among those that are sized together.
    pub(crate) slot: Option<Slot>,
    /// The size that keeps the fleet's promise, in cores.
    pub(crate) promised_cores: Option<f64>,
    /// When an incident was found last that says that it wants more CPU than it ever did.
    pub(crate) incident_at: Option<Timestamp>,
    pub(crate) pace: Pace,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) balloon_pace: BalloonPace,
    pub(crate) balloon_verdict: Option<BalloonVerdict>,
    /// Last targets that were recommended without being sent: cores, bytes.
    pub(crate) recommended: Option<f64>,
    pub(crate) recommended_bytes: Option<u64>,
    /// How often the planner resized it lately.
    pub(crate) resizes: Tally,
    pub(crate) flight: Option<Flight>,
    /// The last command that stayed unanswered: its answer may still come.
    pub(crate) given_up: Option<CommandRecord>,
    /// The command to give up its move, until that is answered: the move itself is in flight meanwhile.
    pub(crate) abort: Option<CommandRecord>,
    /// Its baseline was restored under the present release.
    pub(crate) restored: bool,
    pub(crate) recent: VecDeque<RecentAction>,
}

impl Vm {
    pub(crate) fn new(window: &VmWindow, policy: &Policy, pattern: Pattern) -> Self {
        Self {
            name: window.name.clone(),
            host: None,
            vanished: None,
            left: None,
            state: window.state,
            allocation: Allocation::default(),
            read_back: None,
            cpu: None,
            culprits: None,
            memory: None,
            interfaces: Vec::new(),
            disk: None,
            exits: None,
            baselines: Vec::new(),
            stood_down: false,
            terms: VmTerms::default(),
            shadow: window.shadow,
            storage: None,
            migration: None,
            is_parked: false,
            travel: Travel::default(),
            last_window: None,
            window_end: Timestamp::default(),
            history: History::new(policy.forecast.resolution_ms, policy.forecast.season_steps_max),
            forecaster: None,
            fit_due: 0,
            pattern,
            slot: None,
            promised_cores: None,
            incident_at: None,
            pace: Pace::default(),
            verdict: None,
            balloon_pace: BalloonPace::default(),
            balloon_verdict: None,
            recommended: None,
            recommended_bytes: None,
            resizes: Tally::default(),
            flight: None,
            given_up: None,
            abort: None,
            restored: false,
            recent: VecDeque::new(),
        }
    }

    /// Forgets what was learnt at another resolution.
    pub(crate) fn forget_history(&mut self, policy: &Policy) {
        self.history = History::new(policy.forecast.resolution_ms, policy.forecast.season_steps_max);
        self.forecaster = None;
        self.fit_due = 0;
    }

    /// Learns from a window; `newest` if its host has told of no later one. Of what a restart `restores` a part may be known from stored history: it
    /// fills what is not. O(1), amortised, but for gaps.
    pub(crate) fn teach(
        &mut self,
        window: &VmWindow,
        start: Timestamp,
        length: Duration,
        newest: bool,
        restores: bool,
    ) -> Taught {
        if window.shadow.is_some() {
            // What it does is what it was told to do: that teaches nothing, and is not forecast.
            if newest {
                self.cpu = believed_cpu(window, start, length);
                self.memory = window.memory;
            }
            return Taught::Nothing;
        }
        let late = !newest || restores;
        if let Some(memory) = window.memory.as_ref().filter(|_| window.state == VmState::Running) {
            self.pattern.measure_memory(memory, start, length, late);
        }
        if window.state == VmState::Running {
            let sane = window.interfaces.iter().filter(|interface| interface.is_sane());
            self.pattern.measure_network(sane, start, length, late);
        }
        if let Some(disk) = window.disk.as_ref().filter(|disk| window.state == VmState::Running && disk.is_sane()) {
            self.pattern.measure_disk(disk, start, length, late);
        }
        // A paused or shut-off VM wants nothing now, which says nothing about what it wants when it runs.
        let Some(cpu) = window.cpu.filter(|_| window.state == VmState::Running) else { return Taught::Nothing };
        let live = live_cores(&cpu, &window.allocation);
        let culprits = window.culprits.as_ref();
        let window = match believe(&cpu, window.allocation.vcpus, start, length) {
            Ok(window) => window,
            Err(absurd) => return Taught::Absurd(absurd),
        };
        self.pattern.measure_cpu(&window, live.clamp(window.mean.low, window.mean.high), late);
        let accepted = if newest { self.history.add(&window) } else { self.history.fill(&window) };
        match accepted {
            Accepted::Behind => return Taught::Behind,
            // Known at the next fit: what was learnt step by step is not unlearnt. It is no evidence for now.
            Accepted::Filled => return Taught::Filled,
            Accepted::ClockSetBack => {
                self.forecaster = None;
                self.fit_due = 0;
            }
            Accepted::InOrder => self.catch_up(),
        }
        if newest {
            self.cpu = Some(cpu);
            self.culprits = culprits.filter(|culprits| culprits.is_sane()).cloned();
        }
        if accepted == Accepted::ClockSetBack { Taught::ClockSetBack } else { Taught::Demand }
    }

    /// Teaches the forecast the steps that were closed since it was made.
    pub(crate) fn catch_up(&mut self) {
        let Some(forecaster) = &mut self.forecaster else { return };
        if forecaster.next() < self.history.first() || forecaster.next() > self.history.next() {
            // Longer away than history reaches: what it knew is of another time.
            self.forecaster = None;
            self.fit_due = 0;
            return;
        }
        self.history.since(forecaster.next()).for_each(|(_, step)| forecaster.learn(step));
    }

    /// The forecast, once it can tell quantiles.
    pub(crate) fn ready(&self) -> Option<&Forecaster> {
        self.forecaster.as_ref().filter(|forecaster| forecaster.is_ready())
    }

    /// Takes what a VM has from a report whose window ended at `end`; says whether its allocation, or what it had before, changed.
    pub(crate) fn report_allocation(&mut self, window: &VmWindow, end: Timestamp, now: Option<Timestamp>) -> bool {
        let superseded = self
            .read_back
            .zip(now)
            .is_some_and(|((at, heard), now)| end < at && now >= heard && now.since(heard) < READ_BACK_PREVAILS);
        let mut allocation = believed_allocation(&window.allocation);
        let mut memory = window.memory.filter(|_| window.state == VmState::Running);
        if superseded {
            allocation =
                Allocation { quota_cores: self.allocation.quota_cores, vcpus: self.allocation.vcpus, ..allocation };
            let known = self.memory.and_then(|memory| memory.balloon_bytes);
            memory = memory.map(|memory| MemoryWindow { balloon_bytes: known.or(memory.balloon_bytes), ..memory });
        }
        let mut changed = false;
        if !superseded {
            self.stood_down = window.stood_down;
            let baselines = believed_baselines(&window.baselines);
            changed = std::mem::replace(&mut self.baselines, baselines.clone()) != baselines;
        }
        self.terms = window.terms.clone();
        self.storage = window.storage;
        self.migration = window.migration;
        self.shadow = window.shadow;
        self.memory = memory;
        let believed = window.interfaces.iter().filter(|interface| interface.is_sane()).take(INTERFACES_MAX);
        self.interfaces = believed.cloned().collect();
        self.disk = window.disk.clone().filter(DiskWindow::is_sane);
        self.exits = window.exits.clone().filter(|shares| ExitShare::are_sane(shares));
        std::mem::replace(&mut self.allocation, allocation) != allocation || changed
    }

    /// Takes settings that were read back after a change, made at `at` and heard of now; says whether its allocation changed.
    pub(crate) fn read_back(&mut self, settings: &[Setting], at: Timestamp, now: Timestamp) -> bool {
        self.read_back = Some((at, now));
        let before = self.allocation;
        for setting in settings {
            match *setting {
                Setting::CpuQuota { cores } => self.allocation.quota_cores = cores,
                Setting::Vcpus { count } => self.allocation.vcpus = count,
                Setting::Memory { bytes } => {
                    if let Some(memory) = &mut self.memory {
                        memory.balloon_bytes = Some(bytes);
                    }
                }
                // Reported by nobody, and planned by nothing.
                Setting::CpuWeight { .. } | Setting::DiskLimit { .. } | Setting::NetworkLimit { .. } => {}
            }
        }
        before != self.allocation
    }

    /// What a means is known to be in.
    pub(crate) fn in_force(&self, target: Setting) -> Option<Setting> {
        match target {
            Setting::CpuQuota { .. } => Some(Setting::CpuQuota { cores: self.allocation.quota_cores }),
            Setting::Vcpus { .. } => Some(Setting::Vcpus { count: self.allocation.vcpus }),
            Setting::Memory { .. } => Some(Setting::Memory { bytes: self.memory?.balloon_bytes? }),
            Setting::CpuWeight { .. } | Setting::DiskLimit { .. } | Setting::NetworkLimit { .. } => None,
        }
    }

    /// The memory that it has, in bytes: its balloon where there is one, else what it is defined with.
    pub(crate) fn has_bytes(&self) -> u64 {
        self.memory.and_then(|memory| memory.balloon_bytes).unwrap_or(self.allocation.memory_bytes)
    }

    /// The pauses after commands of this kind that were not carried out.
    pub(crate) fn backoff(&mut self, action: &Action) -> &mut Backoff {
        match action {
            Action::Set(Setting::Memory { .. }) => &mut self.balloon_pace.backoff,
            Action::Set(_) | Action::Release | Action::Describe | Action::Image(_) | Action::Shadow(_) => {
                &mut self.pace.backoff
            }
            Action::Migrate(_) | Action::AbortMigration | Action::DirtyRate { .. } => &mut self.travel.backoff,
        }
    }

    pub(crate) fn remember(&mut self, action: RecentAction) {
        self.recent.truncate(RECENT_ACTIONS_MAX - 1);
        self.recent.push_front(action);
    }

    /// Notes a result with the action it belongs to.
    pub(crate) fn note_result(&mut self, id: CommandId, result: &OutcomeResult) {
        if let Some(action) = self.recent.iter_mut().find(|action| action.id == Some(id)) {
            action.result = Some(result.clone());
        }
    }
}

/// What a window tells of its VM's CPU, if that is believed.
pub(crate) fn believed_cpu(window: &VmWindow, start: Timestamp, length: Duration) -> Option<CpuWindow> {
    window.cpu.filter(|cpu| believe(cpu, window.allocation.vcpus, start, length).is_ok())
}

/// What a VM has as it was reported. No number and no CPU at all are no quotas: it is unknown, which is planned for as unlimited.
pub(crate) fn believed_allocation(reported: &Allocation) -> Allocation {
    let quota_cores = reported.quota_cores.filter(|quota| quota.is_finite() && *quota > 0.0);
    Allocation { quota_cores, ..*reported }
}

/// What a VM had before Gnomon's first change as it was reported, bounded by the means that there are. A quota of no number is none that could be
/// given back.
fn believed_baselines(reported: &[Setting]) -> Vec<Setting> {
    let is_sane = |setting: &&Setting| match setting {
        Setting::CpuQuota { cores } => cores.is_none_or(|cores| cores.is_finite() && cores > 0.0),
        _ => true,
    };
    reported.iter().filter(is_sane).take(Means::ALL.len()).copied().collect()
}

/// Checks a window and bounds its demand by the VM's vCPUs: emulator threads may add to what it ran, but not to what a quota
/// on its vCPUs could give.
fn believe(cpu: &CpuWindow, vcpus: u32, start: Timestamp, length: Duration) -> Result<Window, AbsurdWindow> {
    let (low, high, peak) = (cpu.demand_low.mean, cpu.demand_high.mean, cpu.demand_low.max);
    if !(cpu.covered > 0.0 && cpu.covered <= 1.001) {
        return Err(AbsurdWindow::Covered(cpu.covered));
    }
    // The ends come from different sums: a hair's breadth of disorder is rounding.
    if !(low >= 0.0 && low <= high + 1e-3 && peak >= 0.0 && high.is_finite() && peak.is_finite()) {
        return Err(AbsurdWindow::Interval(low, high));
    }
    let bound = f64::from(vcpus);
    if vcpus == 0 || low > DEMAND_PER_VCPU_MAX * (bound + 1.0) {
        return Err(AbsurdWindow::Impossible(low, vcpus));
    }
    let mean = Interval { low: low.min(bound), high: high.max(low).min(bound) };
    Ok(Window { start, length, covered: cpu.covered.min(1.0), mean, peak: peak.min(bound) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::wire::MeanMax;
    use proptest::prelude::*;

    fn cpu(covered: f64, low: f64, high: f64) -> CpuWindow {
        let same = |value| MeanMax { mean: value, max: value };
        CpuWindow { covered, demand_low: same(low), demand_high: same(high), ..CpuWindow::default() }
    }

    fn verdict(cpu: &CpuWindow, vcpus: u32) -> Result<Window, AbsurdWindow> {
        believe(cpu, vcpus, Timestamp::default(), Duration::from_secs(10))
    }

    #[test]
    fn absurd_windows_are_not_believed() {
        assert!(matches!(verdict(&cpu(0.0, 0.1, 0.1), 1), Err(AbsurdWindow::Covered(_))));
        assert!(matches!(verdict(&cpu(f64::NAN, 0.1, 0.1), 1), Err(AbsurdWindow::Covered(_))));
        assert!(matches!(verdict(&cpu(1.0, 0.5, 0.1), 1), Err(AbsurdWindow::Interval(..))));
        assert!(matches!(verdict(&cpu(1.0, f64::NAN, 0.1), 1), Err(AbsurdWindow::Interval(..))));
        assert!(matches!(verdict(&cpu(1.0, 0.1, f64::INFINITY), 1), Err(AbsurdWindow::Interval(..))));
        assert!(matches!(verdict(&cpu(1.0, 1e9, 1e9), 1), Err(AbsurdWindow::Impossible(..))));
        assert!(matches!(verdict(&cpu(1.0, 0.1, 0.1), 0), Err(AbsurdWindow::Impossible(..))));
    }

    proptest! {
        #[test]
        fn a_believed_window_is_an_interval_within_the_vcpus(
            covered: f64, low: f64, high: f64, vcpus: u32, ordinary in 0.0..3.0f64, waited in 0.0..3.0f64,
        ) {
            for cpu in [cpu(covered, low, high), cpu(0.9, ordinary, ordinary + waited)] {
                if let Ok(window) = verdict(&cpu, vcpus) {
                    prop_assert!(0.0 <= window.mean.low && window.mean.low <= window.mean.high);
                    prop_assert!(window.mean.high <= f64::from(vcpus));
                }
            }
        }
    }
}
