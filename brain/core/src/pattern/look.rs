//! What is looked for in a VM's long history: seasons, the forecast of the day and of the month ahead, and, after a restart, what its
//! detectors would know by now. A pure job.

use std::sync::Arc;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::VmId;

use super::outlook::Outlook;
use super::table::Table;
use super::wall::Wall;
use super::watch::{Sighting, Watch};
use super::{DAY_STEPS, MONTH_HOURS, STEP};
use crate::archive::{Archive, Kpi, Step, Tier};
use crate::calendar::Calendar;
use crate::forecast::engine::{self, Engine, Expectation, LEVELS, Share};
use crate::season::{self, Period, Regular, Season};

/// History, in 5-minute steps, that the forecast of the day is fitted to where no season is longer than a day.
const FIT_STEPS: usize = 8 * DAY_STEPS;

/// The same with a longer season: a week must have been seen twice.
const FIT_STEPS_LONG: usize = 15 * DAY_STEPS;

/// A VM with less history than this, in 5-minute steps, is too young for models.
const YOUNG_STEPS: usize = 2 * DAY_STEPS;

/// History, in hours, that the forecast of the month is fitted to.
const FIT_HOURS: usize = 100 * 24;

/// Fewer hours say nothing about a month.
const FIT_HOURS_MIN: usize = 7 * 24;

/// A look at one VM's long history.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(super) vm: VmId,
    pub(super) ticket: u64,
    pub(super) archive: Archive,
    pub(super) calendar: Arc<Calendar>,
    /// The month's forecast is made anew as well.
    pub(super) month: bool,
    /// Detectors are made anew from history.
    pub(super) watch: bool,
}

/// What a look found.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    pub(crate) vm: VmId,
    pub(crate) ticket: u64,
    pub(super) outlook: Option<Outlook>,
    pub(super) month: Option<Table>,
    pub(super) watch: Option<(Watch, Vec<Sighting>)>,
}

impl Looked {
    /// Whether detectors were made anew.
    pub(crate) fn rewatched(&self) -> bool {
        self.watch.is_some()
    }
}

impl Look {
    /// Does the work. Deterministic.
    pub(crate) fn run(self) -> Looked {
        let Self { vm, ticket, archive, calendar, month, watch } = self;
        let five = Observed::read(&archive, STEP);
        let seasons = five.seasons(&calendar);
        let outlook = five.outlook(&calendar, &seasons);
        let hours = month.then(|| Observed::read(&archive, Tier::Hour1.step()));
        let month = hours.and_then(|hours| hours.month(&calendar, &seasons));
        let watch = watch.then(|| Watch::replay(&archive));
        Looked { vm, ticket, outlook, month, watch }
    }
}

/// Demand for CPU as it was observed, in cores.
struct Observed {
    start: Timestamp,
    step: Duration,
    /// What was wanted at least; NaN where it was not measured.
    values: Vec<f64>,
    /// What may have been wanted at most.
    most: Vec<f64>,
}

impl Observed {
    fn read(archive: &Archive, step: Duration) -> Self {
        let (first, last) = (Timestamp::default(), Timestamp::from_unix_ms(u64::MAX / 4));
        let Ok(known) = archive.read(Kpi::Cpu, first, last, step) else {
            return Self { start: first, step, values: Vec::new(), most: Vec::new() };
        };
        let gaps = known.steps.iter().take_while(|step| step.is_none()).count();
        let of = |step: &Option<Step>| step.map_or(f64::NAN, |step| step.mean);
        let values: Vec<f64> = known.steps[gaps..].iter().map(of).collect();
        let start = known.start + Duration::from_secs(step.as_secs() * gaps as u64);
        let mut most = values.clone();
        let end = start + Duration::from_secs(step.as_secs() * values.len() as u64);
        if let Ok(unknown) = archive.read(Kpi::CpuUnknown, start, end, step) {
            let skipped = unknown.start.since(start).as_millis() / step.as_millis().max(1);
            let later = most.iter_mut().skip(usize::try_from(skipped).unwrap_or(usize::MAX));
            later.zip(unknown.steps).for_each(|(most, unknown)| *most += unknown.map_or(0.0, |unknown| unknown.mean));
        }
        Self { start, step, values, most }
    }

    fn seasons(&self, calendar: &Calendar) -> Vec<Season> {
        let step_s = u32::try_from(self.step.as_secs()).unwrap_or(u32::MAX);
        season::find(&Regular { start: self.start, step_s, values: &self.values }, calendar)
    }

    /// The latest `steps` on the clock on the wall: at least, at most.
    fn latest<'a>(&self, steps: usize, calendar: &'a Calendar) -> Option<(Wall<'a>, Wall<'a>)> {
        let skipped = self.values.len().saturating_sub(steps);
        let start = self.start + Duration::from_secs(self.step.as_secs() * skipped as u64);
        let wall = |values: &[f64]| Wall::new(start, self.step, &values[skipped..], calendar);
        Some((wall(&self.values)?, wall(&self.most)?))
    }

    fn end(&self) -> Timestamp {
        self.start + Duration::from_secs(self.step.as_secs() * self.values.len() as u64)
    }

    /// The day ahead of a VM that is too young for models: on two days or less of history they know neither the day nor their own errors, and a
    /// VM's own quantiles, the same all day, do better (docs/accuracy.md).
    fn young(&self) -> Option<Outlook> {
        let mut known: Vec<f64> = self.values.iter().copied().filter(|value| value.is_finite()).collect();
        known.sort_unstable_by(f64::total_cmp);
        let last = known.len().checked_sub(1)?;
        let of =
            LEVELS.map(|level| known[((level * (known.len() + 1) as f64).ceil() as usize).saturating_sub(1).min(last)]);
        Some(Outlook {
            day: Table::new(self.end(), self.step, std::iter::repeat_n(of, DAY_STEPS)),
            seasons: Vec::new(),
            shares: vec![Share { model: "own quantiles", weight: 1.0, error: f64::NAN }],
            skill: 0.0,
            seasonal_gain: None,
        })
    }

    fn outlook(&self, calendar: &Calendar, seasons: &[Season]) -> Option<Outlook> {
        if self.values.len() < YOUNG_STEPS {
            return self.young();
        }
        let lengths = lengths(seasons, self.step);
        let steps = if lengths.iter().any(|&steps| steps > DAY_STEPS) { FIT_STEPS_LONG } else { FIT_STEPS };
        let (wall, most) = self.latest(steps, calendar)?;
        let ahead = wall.ahead(DAY_STEPS);
        let horizon_steps = ahead.iter().copied().max()?;
        let observed = engine::Observed { values: &wall.values, most: Some(&most.values) };
        let fitted = Engine::fit_observed(&observed, &Expectation { seasons_steps: lengths, horizon_steps });
        let forecast = fitted.forecast(horizon_steps);
        let rows = ahead.iter().map_while(|&ahead| forecast.quantiles.get(ahead - 1).copied());
        Some(Outlook {
            day: Table::new(self.end(), self.step, rows),
            seasons: seasons.to_vec(),
            shares: fitted.shares().to_vec(),
            skill: fitted.skill(),
            seasonal_gain: fitted.seasonal_gain(),
        })
    }

    fn month(&self, calendar: &Calendar, seasons: &[Season]) -> Option<Table> {
        let (wall, most) = self.latest(FIT_HOURS, calendar).filter(|(wall, _)| wall.values.len() >= FIT_HOURS_MIN)?;
        // Half of the history judges the forecast: further ahead than that, nothing is known of its errors.
        let ahead = wall.ahead(MONTH_HOURS.min(wall.values.len() / 2));
        let horizon_steps = ahead.iter().copied().max()?;
        let expectation = Expectation { seasons_steps: lengths(seasons, self.step), horizon_steps };
        let observed = engine::Observed { values: &wall.values, most: Some(&most.values) };
        let forecast = Engine::fit_observed(&observed, &expectation).forecast(horizon_steps);
        let rows = ahead.iter().map_while(|&ahead| forecast.quantiles.get(ahead - 1).copied());
        Some(Table::new(self.end(), self.step, rows))
    }
}

/// Lengths in steps, shortest first, of the seasons that have at least a few steps.
fn lengths(seasons: &[Season], step: Duration) -> Vec<usize> {
    let steps = |season: &Season| (season.length().as_secs_f64() / step.as_secs_f64()).round() as usize;
    // Months differ in length: they are no number of steps.
    let even = seasons.iter().filter(|season| season.period != Period::Month);
    let mut lengths: Vec<usize> = even.map(steps).filter(|&steps| steps >= 4).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}
