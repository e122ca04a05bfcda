//! Weeks of a VM's life, window by window.

use std::sync::Arc;
use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{DiskFlow, DiskWindow, InterfaceWindow, MeanMax, MemoryDemand, MemoryWindow, Traffic, VmId};
use uuid::Uuid;

use super::*;
use crate::archive::Change;
use crate::draw::draw;
use crate::history::Interval;
use crate::season::Period;

const WINDOW: Duration = Duration::from_secs(60);
const DAY_MINUTES: u64 = 1440;

/// A Monday.
fn at(minute: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_767_571_200_000 + minute * 60_000)
}

fn noise(minute: u64) -> f64 {
    draw(3, minute) as f64 / u64::MAX as f64
}

/// Two hours of work each day from nine on, and some noise.
fn office(minute: u64) -> f64 {
    let hour = minute % DAY_MINUTES / 60;
    if (9..11).contains(&hour) { 1.5 + 0.2 * noise(minute) } else { 0.2 + 0.1 * noise(minute) }
}

struct Life {
    pattern: Pattern,
    calendar: Arc<Calendar>,
    sightings: Vec<Sighting>,
    stored: Vec<Change>,
}

impl Life {
    fn new() -> Self {
        Self { pattern: Pattern::new(), calendar: Arc::new(Calendar::utc()), sightings: Vec::new(), stored: Vec::new() }
    }

    fn live(&mut self, minutes: std::ops::Range<u64>, demand: impl Fn(u64) -> f64) {
        let until = minutes.end;
        for minute in minutes {
            let cores = demand(minute);
            let mean = Interval { low: cores, high: cores };
            let window = Window { start: at(minute), length: WINDOW, covered: 1.0, mean, peak: cores };
            self.pattern.measure_cpu(&window, cores, false);
            let memory = MemoryWindow { resident_bytes: 1 << 30, ..MemoryWindow::default() };
            self.pattern.measure_memory(&memory, at(minute), WINDOW, false);
            let Some(turn) = self.pattern.turn() else { continue };
            self.sightings.extend(turn.sightings);
            self.stored.extend(self.pattern.due_for_store(7).into_iter().flat_map(|(changes, _)| changes));
            // Only the latest looks count.
            let look = self.pattern.look(VmId(Uuid::nil()), 1, 3, &self.calendar).filter(|_| minute + 120 >= until);
            look.into_iter().for_each(|look| drop(self.pattern.looked(look.run())));
        }
    }

    /// The largest median and 95 % quantile of the hour that begins at `minute`.
    fn said(&self, now: u64, minute: u64) -> (f64, f64) {
        let ahead = self.pattern.ahead(at(now), Duration::from_secs((minute + 60 - now) * 60)).unwrap();
        let of = |place: usize| {
            let steps = ahead
                .quantiles
                .iter()
                .enumerate()
                .filter(|(index, _)| ahead.start + ahead.step * *index as u32 >= at(minute));
            steps.map(|(_, step)| step[place]).fold(0.0, f64::max)
        };
        (of(0), of(2))
    }
}

#[test]
fn a_day_is_found_forecast_and_earns_its_say() {
    let mut life = Life::new();
    life.live(0..8 * DAY_MINUTES, office);
    let periods: Vec<Period> = life.pattern.seasons().iter().map(|season| season.period).collect();
    assert_eq!(periods, [Period::Day]);
    assert!(life.pattern.is_earned(), "{:?}", life.pattern.models());
    let now = 8 * DAY_MINUTES;
    let (quiet, busy) = (life.said(now, now + 5 * 60), life.said(now, now + 9 * 60));
    assert!(quiet.1 < 0.5 && (1.3..1.8).contains(&busy.0), "{quiet:?} {busy:?}");
    // The month's forecast knows the day as well, in hours.
    let far = life.said(now, now + 3 * DAY_MINUTES + 9 * 60);
    assert!((1.2..1.8).contains(&far.0), "{far:?}");
    let month = life.pattern.ahead(at(now), Duration::from_hours(30 * 24)).unwrap();
    // As far as half of the history reaches.
    assert_eq!((month.step, month.quantiles.len() / 24), (Duration::from_hours(1), 3));
    assert!(month.quantiles.iter().all(|step| step.is_sorted() && step[3] < 4.0));
}

#[test]
fn noise_is_given_no_season_and_earns_nothing() {
    let mut life = Life::new();
    life.live(0..8 * DAY_MINUTES, |minute| 0.2 + 0.5 * noise(minute));
    assert_eq!(life.pattern.seasons(), []);
    assert!(!life.pattern.is_earned());
    let (median, high) = life.said(8 * DAY_MINUTES, 8 * DAY_MINUTES + 60);
    assert!((0.3..0.6).contains(&median) && (median..0.8).contains(&high));
}

#[test]
fn a_young_vm_is_forecast_by_its_own_quantiles() {
    let mut life = Life::new();
    life.live(0..DAY_MINUTES, |minute| 0.2 + 0.5 * noise(minute));
    let ahead = life.pattern.ahead(at(DAY_MINUTES), Duration::from_hours(3)).unwrap();
    let [median, .., high] = ahead.quantiles[20];
    assert!((0.4..0.5).contains(&median) && (0.52..0.7).contains(&high), "{median} {high}");
    assert_eq!(life.pattern.models().unwrap().0[0].model, "own quantiles");
    assert!(!life.pattern.is_earned());
}

#[test]
fn a_value_never_seen_is_told_once() {
    let mut life = Life::new();
    life.live(0..6 * DAY_MINUTES, office);
    life.live(6 * DAY_MINUTES..6 * DAY_MINUTES + 120, |_| 6.0);
    assert_eq!(life.sightings.len(), 1, "{:?}", life.sightings);
    let (kpi, incident) = &life.sightings[0];
    assert_eq!(*kpi, Kpi::Cpu);
    assert!(incident.observed > 3.0 && incident.expected.high < 2.5, "{incident}");
}

#[test]
fn a_restart_gives_back_what_was_stored_and_the_first_look_the_rest() {
    let mut life = Life::new();
    life.live(0..8 * DAY_MINUTES, office);
    life.stored.extend(life.pattern.archive.changes());
    let mut pattern = Pattern::stored();
    let mut blocks = std::collections::BTreeMap::new();
    for change in life.stored.drain(..) {
        match change {
            Change::Persist(block) => drop(blocks.insert(block.key, block)),
            Change::Forget(key) => drop(blocks.remove(&key)),
        }
    }
    blocks.into_values().for_each(|block| pattern.restore(block).unwrap());
    pattern.correct(life.pattern.corrections);
    let mut restored = Life { pattern, ..Life::new() };
    // The same reports once more, as a restart replays them: they change nothing.
    for minute in 8 * DAY_MINUTES - 60..8 * DAY_MINUTES {
        let cores = office(minute);
        let mean = Interval { low: cores, high: cores };
        let window = Window { start: at(minute), length: WINDOW, covered: 1.0, mean, peak: cores };
        restored.pattern.measure_cpu(&window, cores, true);
    }
    let until = 8 * DAY_MINUTES + 70;
    life.live(8 * DAY_MINUTES..until, office);
    restored.live(8 * DAY_MINUTES..until, office);
    assert!(restored.pattern.is_earned());
    let (one, other) = (life.said(until, until + 9 * 60), restored.said(until, until + 9 * 60));
    assert!((one.0 - other.0).abs() < 0.02 && (one.1 - other.1).abs() < 0.1, "{one:?} {other:?}");
    restored.live(until..until + 60, |_| 6.0);
    assert_eq!(restored.sightings.len(), 1, "its detectors know the past");
}

#[test]
fn a_clock_set_back_starts_what_was_derived_anew() {
    let mut life = Life::new();
    life.live(0..4 * DAY_MINUTES, office);
    life.live(3 * DAY_MINUTES..3 * DAY_MINUTES + 20, office);
    let day = &life.pattern.outlook.as_ref().unwrap().day;
    assert!(day.start() <= at(3 * DAY_MINUTES + 20));
    assert!(life.pattern.watch.is_some());
}

#[test]
fn waiting_beyond_the_quota_is_told_to_the_forecast_as_unknown() {
    let mut pattern = Pattern::new();
    for minute in 0..30 {
        let held_back = (10..20).contains(&minute);
        let mean = Interval { low: 0.5, high: if held_back { 1.5 } else { 0.51 } };
        let window = Window { start: at(minute), length: WINDOW, covered: 1.0, mean, peak: 0.5 };
        pattern.measure_cpu(&window, 0.5, false);
    }
    let unknown = pattern.archive.read(Kpi::CpuUnknown, at(0), at(30), STEP).unwrap();
    let means: Vec<f64> = unknown.steps.iter().flatten().map(|step| step.mean).collect();
    // From when it first waited so long.
    assert_eq!(means, [1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn a_vm_that_its_quota_starves_every_day_is_forecast_more_than_it_got() {
    let starved = |knows: bool| {
        let mut life = Life::new();
        for minute in 0..8 * DAY_MINUTES {
            let wanted = office(minute);
            // It is held to half a core, and for a quarter of an hour each day it is not.
            let free = minute % DAY_MINUTES / 15 == 9 * 4 + 1;
            let got = if free { wanted } else { wanted.min(0.5) };
            let mean = Interval { low: got, high: if knows { wanted } else { got } };
            let window = Window { start: at(minute), length: WINDOW, covered: 1.0, mean, peak: got };
            life.pattern.measure_cpu(&window, got, false);
            life.pattern.turn();
        }
        life.pattern.look_due = 0;
        let look = life.pattern.look(VmId(Uuid::nil()), 1, 3, &life.calendar).unwrap();
        life.pattern.looked(look.run());
        life.said(8 * DAY_MINUTES, 8 * DAY_MINUTES + 10 * 60)
    };
    let (told, untold) = (starved(true), starved(false));
    assert!(told.1 > 1.3 * untold.1, "{told:?} {untold:?}");
}

#[test]
fn a_vm_whose_guest_tells_what_it_uses_is_not_measured_from_outside() {
    let mut pattern = Pattern::new();
    let told = |bytes: Option<u64>| MemoryWindow {
        resident_bytes: 4 << 30,
        demand: bytes.map(MemoryDemand::known),
        ..MemoryWindow::default()
    };
    for minute in 0..20 {
        let bytes = if minute == 12 { None } else { Some(1 << 30) };
        pattern.measure_memory(&told(bytes), at(minute), WINDOW, false);
    }
    let steps = pattern.archive.read(Kpi::Memory, at(0), at(20), STEP).unwrap().steps;
    assert!(steps.iter().all(|step| step.unwrap().max < 1.1e9), "{steps:?}");
}

#[test]
fn a_vm_of_400_days_is_bounded() {
    let (mut pattern, mut stored) = (Pattern::new(), std::collections::BTreeMap::new());
    let days = 401;
    for minute in (0..days * DAY_MINUTES).step_by(5) {
        let cores = office(minute);
        let mean = Interval { low: cores, high: if minute % 7 == 0 { 1.5 * cores } else { cores } };
        let window = Window { start: at(minute), length: STEP, covered: 1.0, mean, peak: cores };
        pattern.measure_cpu(&window, cores, false);
        let memory = MemoryWindow { resident_bytes: (1 << 30) + (minute << 12), ..MemoryWindow::default() };
        pattern.measure_memory(&memory, at(minute), STEP, false);
        let rate = |shift: u64| MeanMax { mean: 1e6 * noise(minute + shift), max: 2e6 * noise(minute + shift) };
        let traffic = |shift| Traffic { bytes_per_s: rate(shift), ..Traffic::default() };
        let interface = InterfaceWindow { received: traffic(1), sent: traffic(2), ..InterfaceWindow::default() };
        pattern.measure_network(std::iter::once(&interface), at(minute), STEP, false);
        let way = |shift| DiskFlow {
            bytes_per_s: rate(shift),
            operations_per_s: rate(shift).mean / 4096.0,
            ..DiskFlow::default()
        };
        let disk = DiskWindow { read: way(3), write: way(4), ..DiskWindow::default() };
        pattern.measure_disk(&disk, at(minute), STEP, false);
        pattern.turn();
        for change in pattern.due_for_store(7).into_iter().flat_map(|(changes, _)| changes) {
            match change {
                Change::Persist(block) => stored.insert(block.key, block.bytes.len()),
                Change::Forget(key) => stored.remove(&key),
            };
        }
    }
    let look = pattern.look(VmId(Uuid::nil()), 1, 3, &Arc::new(Calendar::utc())).unwrap();
    pattern.looked(look.run());
    assert!(pattern.outlook.is_some() && pattern.month.is_some());
    // With what is learnt step by step and for sizing, 128 KiB: the near history has 17, the sizer's part 12.
    let bytes = pattern.memory_bytes();
    assert!(bytes <= (128 - 17 - 12) * 1024, "{bytes}");
    // All there is of it, in memory and in the store, is in the store.
    let bytes: usize = stored.values().sum();
    assert!((128 * 1024..512 * 1024).contains(&bytes), "{bytes}");
}
