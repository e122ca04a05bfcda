//! What is known of a VM in the long run, and what follows from it: the day and the month ahead, and what is out of the ordinary.
//!
//! Data enters window by window ([`Pattern::measure_cpu`] and its like) into the [`archive`](crate::archive). That is the only state, but for the corrections of quantiles: all else follows from it. Whenever a 5-minute step closes ([`Pattern::turn`]), detectors look at it,
//! the forecast made of it is scored, and its quantiles are corrected; all of that is O(1). Once an hour a [`Look`] is due: a pure job that
//! searches weeks of history for seasons and fits the forecast engine anew. A restart gives back the archive and the corrections, and the
//! first look makes the rest.
//!
//! A VM's pattern follows its UUID, wherever it runs.

mod calibration;
mod look;
mod outlook;
mod table;
#[cfg(test)]
mod tests;
mod wall;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{DiskWindow, InterfaceWindow, MeanMax, MemoryWindow, VmId};

use crate::archive::{Accepted, Archive, BlockError, Change, Kpi, Measurement, SealedBlock, Tier};
use crate::calendar::Calendar;
use crate::forecast::engine::{LEVELS, Share};
use crate::history::Window;
use crate::season::Season;
pub use calibration::Corrections;
pub(crate) use look::{Look, Looked};
use outlook::Outlook;
use table::Table;
pub(crate) use watch::Sighting;
use watch::Watch;

/// What a turn is: a closed step of this length.
pub(crate) const STEP: Duration = Tier::Minutes5.step();

/// Steps of the forecast of the day.
const DAY_STEPS: usize = 288;

/// Steps of the forecast of the month.
const MONTH_HOURS: usize = 30 * 24;

/// The first look waits for so much history, in steps: a quarter of a day.
const HISTORY_STEPS_MIN: u64 = 72;

/// Steps from a look to the next: an hour, spread over its neighbours by the seed.
const LOOK_STEPS: u64 = 10;
const LOOK_STEPS_SPREAD: u64 = 5;

/// The month's forecast is made anew when it is older than this.
const MONTH_AGE_MAX: Duration = Duration::from_hours(12);

/// Blocks of history go to the store so often, in steps. What a crash loses of it is in the stored reports.
const STORE_STEPS: u64 = 12;

/// Up to so many steps ahead, quantiles are corrected by what came of steps that near.
const NEAR_STEPS: usize = 24;

/// Quantiles further ahead are corrected by what came of steps so far ahead.
const FAR_STEPS: usize = 144;

/// What is not known of demand counts from this share of it on…
const UNKNOWN_SHARE_MIN: f64 = 0.1;

/// …and from so many cores.
const UNKNOWN_CORES_MIN: f64 = 0.02;

/// A step that was closed: demand for CPU, in cores; `None` where it was not measured.
pub(crate) type Closed = Option<crate::archive::Step>;

/// What became of a VM's steps since the last turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Demand for CPU in each step that was closed, oldest first.
    pub(crate) steps: Vec<Closed>,
    /// Anomalies that were seen.
    pub(crate) sightings: Vec<Sighting>,
}

/// Quantiles of steps to come.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    /// When the first step begins.
    pub(crate) start: Timestamp,
    /// Length of a step.
    pub(crate) step: Duration,
    /// Quantiles at [`LEVELS`] of mean demand, in cores, step by step.
    pub(crate) quantiles: Vec<[f64; LEVELS.len()]>,
}

/// The long run of one VM.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    archive: Archive,
    /// Its guest tells what it uses: what the host sees of its memory is not mixed in.
    guest_tells: bool,
    /// The step that the next turn begins with; `None` before the first.
    turned: Option<u64>,
    /// `None` from a restart until the first look.
    watch: Option<Watch>,
    outlook: Option<Outlook>,
    month: Option<Table>,
    corrections: Corrections,
    /// Steps whose far forecast waits to be scored, oldest first.
    pending: VecDeque<(u64, [f64; LEVELS.len()])>,
    look_due: u64,
    store_due: u64,
}

impl Pattern {
    /// Of a VM of which nothing is known.
    pub(crate) fn new() -> Self {
        Self { watch: Some(Watch::new()), ..Self::stored() }
    }

    /// Of a VM of which something is stored, to be given back.
    pub(crate) fn stored() -> Self {
        Self {
            archive: Archive::default(),
            guest_tells: false,
            turned: None,
            watch: None,
            outlook: None,
            month: None,
            corrections: Corrections::default(),
            pending: VecDeque::new(),
            look_due: 0,
            store_due: 0,
        }
    }

    /// Takes a stored block of its history back; see [`Archive::restore`].
    pub(crate) fn restore(&mut self, block: SealedBlock) -> Result<(), BlockError> {
        self.archive.restore(block)
    }

    /// Takes stored corrections back.
    pub(crate) fn correct(&mut self, corrections: Corrections) {
        let Corrections { near, far } = corrections;
        self.corrections = Corrections { near: near.bounded(), far: far.bounded() };
    }

    /// Takes in what a VM wanted of CPU in a window: at least `live_cores`, at most what the window says. `late` windows fill gaps.
    pub(crate) fn measure_cpu(&mut self, window: &Window, live_cores: f64, late: bool) {
        let unknown = window.mean.high - live_cores;
        let is_unknown = unknown > UNKNOWN_CORES_MIN && unknown > UNKNOWN_SHARE_MIN * live_cores;
        let unknown = if is_unknown { unknown } else { 0.0 };
        let Window { start, length, covered, .. } = *window;
        let of = |cores: f64| Measurement { start, length, covered, mean: cores, max: cores };
        self.measure(Kpi::Cpu, &of(live_cores), late);
        if is_unknown || self.archive.span(Kpi::CpuUnknown, Tier::Minutes5).is_some() {
            self.measure(Kpi::CpuUnknown, &of(unknown), late);
        }
    }

    /// Takes in what a VM used of memory: what its guest tells, else what the host sees, be it swapped out by now.
    pub(crate) fn measure_memory(&mut self, memory: &MemoryWindow, start: Timestamp, length: Duration, late: bool) {
        let told = memory.guest_demand_bytes();
        self.guest_tells |= told.is_some();
        let touched = memory.resident_bytes.saturating_add(memory.swapped_bytes);
        let bytes = if self.guest_tells { told } else { Some(touched) };
        let Some(bytes) = bytes.map(|bytes| bytes as f64) else { return };
        self.measure(Kpi::Memory, &Measurement { start, length, covered: 1.0, mean: bytes, max: bytes }, late);
    }

    /// Takes in what went through all of a VM's interfaces; nothing where none was measured.
    pub(crate) fn measure_network<'a>(
        &mut self,
        interfaces: impl Iterator<Item = &'a InterfaceWindow>,
        start: Timestamp,
        length: Duration,
        late: bool,
    ) {
        let mut sums = None;
        for interface in interfaces {
            let (received, sent) = sums.get_or_insert((MeanMax::default(), MeanMax::default()));
            for (sum, traffic) in [(received, &interface.received), (sent, &interface.sent)] {
                sum.mean += traffic.bytes_per_s.mean;
                // Of the sum's largest sample an upper bound: the interfaces' largest need not be at the same time.
                sum.max += traffic.bytes_per_s.max;
            }
        }
        let Some((received, sent)) = sums else { return };
        for (kpi, MeanMax { mean, max }) in [(Kpi::NetworkIn, received), (Kpi::NetworkOut, sent)] {
            self.measure(kpi, &Measurement { start, length, covered: 1.0, mean, max }, late);
        }
    }

    /// Takes in what a VM did on disks.
    pub(crate) fn measure_disk(&mut self, disk: &DiskWindow, start: Timestamp, length: Duration, late: bool) {
        let same = |value| MeanMax { mean: value, max: value };
        for (kpi, MeanMax { mean, max }) in [
            (Kpi::DiskReadBytes, disk.read.bytes_per_s),
            (Kpi::DiskWriteBytes, disk.write.bytes_per_s),
            (Kpi::DiskReads, same(disk.read.operations_per_s)),
            (Kpi::DiskWrites, same(disk.write.operations_per_s)),
        ] {
            self.measure(kpi, &Measurement { start, length, covered: 1.0, mean, max }, late);
        }
    }

    fn measure(&mut self, kpi: Kpi, measurement: &Measurement, late: bool) {
        let accepted = if late { self.archive.fill(kpi, measurement) } else { self.archive.add(kpi, measurement) };
        if accepted == Accepted::ClockSetBack {
            // What was forecast and watched is of a time that has not come.
            let (archive, corrections) = (std::mem::take(&mut self.archive), self.corrections);
            *self = Self { archive, corrections, ..Self::stored() };
        }
    }

    /// Looks at the steps that were closed since the last turn; `None` where there are none.
    pub(crate) fn turn(&mut self) -> Option<Turn> {
        let (_, open) = self.archive.span(Kpi::Cpu, Tier::Minutes5)?;
        let from = *self.turned.get_or_insert(open);
        if from >= open {
            return None;
        }
        self.turned = Some(open);
        let steps = self
            .archive
            .read(Kpi::Cpu, starts(from), starts(open), STEP)
            .map_or_else(|_| Vec::new(), |read| read.steps);
        for (index, step) in (open - steps.len() as u64..).zip(&steps) {
            self.score(index, step.map(|step| step.mean));
        }
        let sightings = self.watch.as_mut().map_or_else(Vec::new, |watch| watch.look(&self.archive));
        Some(Turn { steps, sightings })
    }

    /// Corrects quantiles by what came.
    fn score(&mut self, index: u64, came: Option<f64>) {
        let said = self.outlook.as_ref().and_then(|outlook| {
            let step = outlook.day.step_at(starts(index)).filter(|&step| step < NEAR_STEPS)?;
            outlook.day.quantiles(step)
        });
        if let Some((said, came)) = said.zip(came) {
            self.corrections.near.learn(said, came);
        }
        while let Some(&(pending, said)) = self.pending.front().filter(|(pending, _)| *pending <= index) {
            self.pending.pop_front();
            if let Some(came) = came.filter(|_| pending == index) {
                self.corrections.far.learn(said, came);
            }
        }
    }

    /// The look that is due by now, if any.
    pub(crate) fn look(&mut self, vm: VmId, ticket: u64, spread: u64, calendar: &Arc<Calendar>) -> Option<Look> {
        let (_, open) = self.archive.span(Kpi::Cpu, Tier::Minutes5)?;
        if open < self.look_due || open - self.archive.measured_since(Kpi::Cpu, Tier::Minutes5)? < HISTORY_STEPS_MIN {
            return None;
        }
        self.look_due = open + LOOK_STEPS + spread % LOOK_STEPS_SPREAD;
        let made = self.month.as_ref().map(Table::start);
        let month = made.is_none_or(|made| starts(open).since(made) >= MONTH_AGE_MAX);
        let (archive, calendar) = (self.archive.clone(), calendar.clone());
        Some(Look { vm, ticket, archive, calendar, month, watch: self.watch.is_none() })
    }

    /// Makes the next look due at once: the calendar is another one.
    pub(crate) fn look_anew(&mut self) {
        (self.look_due, self.month) = (0, None);
    }

    /// Takes in what a look found; returns incidents of the past, if its detectors were made anew.
    pub(crate) fn looked(&mut self, looked: Looked) -> Vec<Sighting> {
        let Looked { outlook, month, watch, .. } = looked;
        if let Some(outlook) = outlook {
            let far = outlook.day.starts(FAR_STEPS).unix_ms() / Tier::Minutes5.step_ms();
            self.pending.extend(outlook.day.quantiles(FAR_STEPS).map(|said| (far, said)));
            self.outlook = Some(outlook);
        }
        self.month = month.or(self.month.take());
        let Some((mut watch, mut sightings)) = watch.filter(|_| self.watch.is_none()) else { return Vec::new() };
        sightings.extend(watch.look(&self.archive));
        self.watch = Some(watch);
        // What the store gave back of these was wanted for this at most.
        Kpi::ALL.into_iter().for_each(|kpi| self.archive.release(kpi));
        sightings
    }

    /// What the store is to keep or to forget of its history, and its corrections, if that is due by now.
    pub(crate) fn due_for_store(&mut self, spread: u64) -> Option<(Vec<Change>, Corrections)> {
        let (_, open) = self.archive.span(Kpi::Cpu, Tier::Minutes5)?;
        if open < self.store_due {
            return None;
        }
        let is_first = self.store_due == 0;
        self.store_due = open + if is_first { 1 + spread % STORE_STEPS } else { STORE_STEPS };
        (!is_first).then(|| (self.archive.changes(), self.corrections))
    }

    /// Mean demand for CPU from `from` on for as long as `ahead`, corrected: in steps of 5 minutes for up to a day, else of an hour; less
    /// far where history is too short for that. `None` while no look has found anything.
    pub(crate) fn ahead(&self, from: Timestamp, ahead: Duration) -> Option<Ahead> {
        let day = &self.outlook.as_ref()?.day;
        let table = if from + ahead <= day.end() { day } else { self.month.as_ref().unwrap_or(day) };
        let first = table.step_at(from)?;
        let last = table.step_at(from + ahead).unwrap_or(table.len() - 1);
        let quantiles = (first..=last).filter_map(|step| {
            let is_near = table.starts(step).since(day.start()) < STEP * NEAR_STEPS as u32;
            let calibration = if is_near { &self.corrections.near } else { &self.corrections.far };
            Some(calibration.correct(table.quantiles(step)?))
        });
        Some(Ahead { start: table.starts(first), step: table.step(), quantiles: quantiles.collect() })
    }

    /// The largest demand in each 5-minute step of the last week, in cores, as far as it is known.
    pub(crate) fn remembered(&self) -> Vec<Closed> {
        let Some((_, open)) = self.archive.span(Kpi::Cpu, Tier::Minutes5) else { return Vec::new() };
        let from = open.saturating_sub(7 * DAY_STEPS as u64);
        self.archive.read(Kpi::Cpu, starts(from), starts(open), STEP).map_or_else(|_| Vec::new(), |read| read.steps)
    }

    /// The 5-minute step that its history ends before.
    pub(crate) fn ended(&self) -> Option<u64> {
        self.archive.span(Kpi::Cpu, Tier::Minutes5).map(|(_, open)| open)
    }

    /// Its history.
    pub(crate) fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Whether the forecast rests on a season that forecasts clearly better than "no change".
    pub(crate) fn is_earned(&self) -> bool {
        self.outlook.as_ref().is_some_and(Outlook::is_earned)
    }

    /// Seasons that were found; none before the first look.
    pub(crate) fn seasons(&self) -> &[Season] {
        self.outlook.as_ref().map_or(&[], |outlook| &outlook.seasons)
    }

    /// The models of the forecast, and the share of the seasonal-naive forecast's error that they avoid together.
    pub(crate) fn models(&self) -> Option<(&[Share], f64)> {
        self.outlook.as_ref().map(|outlook| (&*outlook.shares, outlook.skill))
    }

    /// Bytes in memory.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        let tables = self.outlook.iter().map(|outlook| &outlook.day).chain(&self.month);
        let tables = tables.map(Table::memory_bytes).sum::<usize>();
        let watch = self.watch.as_ref().map_or(0, Watch::memory_bytes);
        size_of::<Self>() + self.archive.memory_bytes() + tables + watch
    }
}

fn starts(step: u64) -> Timestamp {
    Timestamp::from_unix_ms(step.saturating_mul(Tier::Minutes5.step_ms()))
}
