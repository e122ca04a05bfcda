//! Trying a size: a shadow plays what its production is forecast to want, as it would feel at another size.
//!
//! What counts is the ratio. A shadow whose quota is `q` feels a load of `load * q / proposed` as its production would feel `load` at the proposed size.
//! So nothing is resized: the shadow plays the forecast's highest median, then its highest 95 % and 99 % quantile, each for six windows, and its pacer tells how
//! much of it was made. A window that the host spoilt, not the quota, tells nothing of the size. Memory is judged by what the production wants now, not
//! played: in a guest of a tenth of the size its own kernel would be most of what is measured.

use std::time::Duration;

use gnomon_common::time::Timestamp;
use gnomon_common::wire::{CpuWindow, PacerWindow, VmWindow};
use serde::{Deserialize, Serialize};

use super::response::served;
use crate::view::{Forecast, Quantiles};

/// How long each level is played at least, and in windows of its host.
const LEVEL: Duration = Duration::from_secs(20);
const LEVEL_WINDOWS: u32 = 6;
/// What of it is left out at its begin, while the profile arrives and the pacer follows it; and how much longer the last one is played, so that its windows
/// arrive: a quarter.
const SETTLES: u32 = 4;

/// A window in which this share of what the pacer wanted was made held.
const SERVED_MIN: f64 = 0.95;
/// A window that did not hold although the quota held it back for no more than this is the host's doing.
const THROTTLED_MIN: f64 = 0.01;
/// The pacer plays this level where what it wants differs by no more than this share.
const SAME: f64 = 0.02;
/// Fewer windows of a level tell nothing.
const WINDOWS_MIN: u32 = 3;
/// A level holds where this share of its windows does.
const HELD_MIN: f64 = 0.9;
/// What of the proposed memory the production's demand has to leave.
const MEMORY_SPARE: f64 = 0.05;

/// By so many of its steps a forecast may end before the time that is asked about.
const STEPS_LATE: u64 = 2;

/// More than this many times its quota a shadow is not told to play: it cannot make it, and that is told as well by less.
const QUOTAS_MAX: f64 = 10.0;

/// A size that holds is one that holds for this quantile.
pub const HOLDS_AT: f64 = 0.95;

/// What an operator proposes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposed {
    /// CPU that the production would have, in cores.
    pub cpu_cores: f64,
    /// Memory that it would have, in bytes; `None` does not ask about it.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// The load that is forecast for so long from now on, in milliseconds.
    pub ahead_ms: u64,
}

/// One level of the load, and how it went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// The forecast's quantile, 0..1.
    pub quantile: f64,
    /// Its highest value within the time that is tried, in the production's cores.
    pub cpu_cores: f64,
    /// What the shadow plays for it, in its own cores.
    pub plays_cores: f64,
    /// Windows that told something of the size.
    pub windows: u32,
    /// Those of them that held.
    pub held: u32,
    /// Windows in which its host, not its size, withheld CPU: they are not counted.
    pub spoilt: u32,
    /// What of the load was made, 0..=1, and how much of the time the quota held it back: means of the counted windows.
    pub served: f64,
    /// See [`Level::served`].
    pub throttled: f64,
}

impl Level {
    fn new(quantile: f64, cpu_cores: f64, plays_cores: f64) -> Self {
        Self { quantile, cpu_cores, plays_cores, windows: 0, held: 0, spoilt: 0, served: 0.0, throttled: 0.0 }
    }

    fn take(&mut self, pacer: &PacerWindow, cpu: &CpuWindow) {
        let (wanted, throttled) = (pacer.wanted.cpu_cores, cpu.throttled.mean);
        if (wanted - self.plays_cores).abs() > SAME * self.plays_cores {
            return;
        }
        let served = served(pacer, cpu).unwrap_or(1.0);
        let holds = served >= SERVED_MIN;
        if !holds && throttled < THROTTLED_MIN {
            self.spoilt += 1;
            return;
        }
        let toward = |mean: f64, value: f64| mean + (value - mean) / f64::from(self.windows + 1);
        (self.served, self.throttled) = (toward(self.served, served), toward(self.throttled, throttled));
        self.windows += 1;
        self.held += u32::from(holds);
    }

    /// Whether it holds; `None` where too little was seen.
    pub fn holds(&self) -> Option<bool> {
        let share = f64::from(self.held) / f64::from(self.windows.max(1));
        (self.windows >= WINDOWS_MIN).then_some(share >= HELD_MIN)
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// When.
    pub at: Timestamp,
    /// Whether the load would hold at that size; `None` where that could not be told.
    pub holds: Option<bool>,
    /// The highest quantile of the forecast up to which every level held: with that probability demand stays within what was shown to hold, if the forecast
    /// is right. `None` where not even the median held.
    pub confidence: Option<f64>,
    /// For a person.
    pub why: String,
}

/// A size that is tried, or was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The size, and the load.
    pub proposed: Proposed,
    /// Since when.
    pub begun: Timestamp,
    /// How long each level is played, in milliseconds.
    pub level_ms: u64,
    /// History up to here is what the forecast rests on.
    pub forecast_made: Timestamp,
    /// Which model made it.
    pub model: String,
    /// Its skill against "the same as a season ago", where it is known.
    pub skill: Option<f64>,
    /// What the production wants of memory now, in bytes, by its guest's word; `None` where it does not say.
    pub memory_wanted_bytes: Option<u64>,
    /// What is played, the lowest first.
    pub levels: Vec<Level>,
    /// What came out; `None` while it is tried.
    pub verdict: Option<Verdict>,
}

impl Trial {
    /// A trial from now on, of a shadow that may use so much CPU and tells of itself so often. `None` where the forecast does not reach as far.
    pub(crate) fn new(
        now: Timestamp,
        proposed: Proposed,
        (shadow_cores, window): (f64, Duration),
        forecast: &Forecast,
        memory_wanted_bytes: Option<u64>,
    ) -> Option<Self> {
        let until = now + Duration::from_millis(proposed.ahead_ms);
        let begin_of = |index: u64| forecast.made + Duration::from_millis(index * forecast.resolution_ms);
        let within =
            || forecast.steps.iter().zip(0..).filter(|(_, index)| begin_of(*index) < until).map(|(step, _)| step);
        // It was made a moment ago: its last step may end as much earlier.
        let reaches = begin_of(forecast.steps.len() as u64 + STEPS_LATE) >= until;
        let most = |of: fn(&Quantiles) -> f64| within().map(of).fold(0.0, f64::max);
        let scale = shadow_cores / proposed.cpu_cores;
        let levels = [(0.5, most(|step| step.p50)), (0.95, most(|step| step.p95)), (0.99, most(|step| step.p99))];
        reaches.then(|| Self {
            proposed,
            begun: now,
            level_ms: LEVEL.max(window * LEVEL_WINDOWS).as_millis() as u64,
            forecast_made: forecast.made,
            model: forecast.model.clone(),
            skill: forecast.skill,
            memory_wanted_bytes,
            levels: levels
                .map(|(quantile, cores)| Level::new(quantile, cores, (cores * scale).min(shadow_cores * QUOTAS_MAX)))
                .to_vec(),
            verdict: None,
        })
    }

    fn level(&self) -> Duration {
        Duration::from_millis(self.level_ms)
    }

    /// Whether it goes on.
    pub fn is_open(&self) -> bool {
        self.verdict.is_none()
    }

    /// The level that is played now; `None` before and after.
    pub(crate) fn playing(&self, now: Timestamp) -> Option<usize> {
        let last = self.levels.len().saturating_sub(1);
        let index = (now.since(self.begun).as_millis() / u128::from(self.level_ms.max(1))) as usize;
        (self.is_open() && now < self.ends()).then_some(index.min(last))
    }

    /// When it is over.
    pub(crate) fn ends(&self) -> Timestamp {
        self.begun + self.level() * self.levels.len() as u32 + self.level() / SETTLES
    }

    /// When something else is to be played, or it is over.
    pub(crate) fn changes(&self, now: Timestamp) -> Timestamp {
        match self.playing(now) {
            Some(index) if index + 1 < self.levels.len() => self.begun + self.level() * (index as u32 + 1),
            _ => self.ends(),
        }
    }

    /// Takes a window of the shadow in.
    pub(crate) fn take(&mut self, now: Timestamp, window: &VmWindow) {
        let Some(index) = self.playing(now) else { return };
        let pacer = window.shadow.and_then(|shadow| shadow.pacer);
        let settled = now.since(self.begun + self.level() * index as u32) >= self.level() / SETTLES;
        if let (true, Some(pacer), Some(cpu)) = (settled, pacer, &window.cpu) {
            self.levels[index].take(&pacer, cpu);
        }
    }

    /// Ends it before its time.
    pub(crate) fn interrupt(&mut self, now: Timestamp, why: &str) {
        self.verdict = Some(Verdict { at: now, holds: None, confidence: None, why: why.to_owned() });
    }

    /// Ends it, and says what came out.
    pub(crate) fn conclude(&mut self, now: Timestamp) -> &Verdict {
        let confidence =
            self.levels.iter().take_while(|level| level.holds() == Some(true)).map(|level| level.quantile).last();
        let cpu = self.levels.iter().find(|level| level.quantile >= HOLDS_AT).and_then(Level::holds);
        let fails = self.levels.iter().find(|level| level.holds() == Some(false) && level.quantile <= HOLDS_AT);
        let memory = self.memory_holds();
        let cores = self.proposed.cpu_cores;
        let (holds, why) = match (fails, cpu, memory) {
            (Some(level), ..) => (
                Some(false),
                format!(
                    "of {:.2} cores, its {} within that time, {:.0} % would be served at {cores:.2}",
                    level.cpu_cores,
                    quantile_in_words(level.quantile),
                    level.served * 100.0
                ),
            ),
            (None, _, Some(false)) => (Some(false), "its guest wants more memory now than that".to_owned()),
            (None, Some(true), Some(true) | None) if memory.is_some() || self.proposed.memory_bytes.is_none() => (
                Some(true),
                format!("{cores:.2} cores serve all that is wanted up to its {}", quantile_in_words(HOLDS_AT)),
            ),
            (None, Some(true), _) => (None, "CPU holds, but its guest does not say what memory it wants".to_owned()),
            (None, ..) => (None, self.why_untold()),
        };
        self.verdict.insert(Verdict { at: now, holds, confidence, why })
    }

    fn memory_holds(&self) -> Option<bool> {
        let (proposed, wanted) = (self.proposed.memory_bytes?, self.memory_wanted_bytes?);
        Some(wanted as f64 <= proposed as f64 * (1.0 - MEMORY_SPARE))
    }

    fn why_untold(&self) -> String {
        let spoilt: u32 = self.levels.iter().map(|level| level.spoilt).sum();
        match spoilt {
            0 => "its pacer told of too few windows".to_owned(),
            spoilt => format!("its host had not enough CPU for it in {spoilt} windows, whatever its size"),
        }
    }
}

fn quantile_in_words(quantile: f64) -> String {
    if quantile <= 0.5 { "median".to_owned() } else { format!("{:.0} % quantile", quantile * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::tests::window;

    const WINDOW: Duration = Duration::from_secs(10);
    const START: Timestamp = Timestamp::from_unix_ms(1_000_000_000_000);

    fn forecast() -> Forecast {
        let step = |p50: f64| Quantiles { p50, p90: p50 * 1.1, p95: p50 * 1.2, p99: p50 * 1.4 };
        Forecast {
            made: START,
            resolution_ms: 10_000,
            season_ms: None,
            model: "test".to_owned(),
            relative_error: None,
            // What comes after the time that is asked about does not count.
            steps: [0.2, 1.0, 0.4, 0.3, 9.0].map(step).to_vec(),
            models: Vec::new(),
            skill: Some(0.3),
        }
    }

    fn proposed(cpu_cores: f64) -> Proposed {
        Proposed { cpu_cores, memory_bytes: None, ahead_ms: 40_000 }
    }

    /// Plays a trial to its end with a shadow of 0.1 cores that can make so much, on a host that withholds nothing or the rest.
    fn played(mut trial: Trial, most: f64, throttled: f64) -> Trial {
        for second in (0..).step_by(10) {
            let now = START + Duration::from_secs(second);
            let Some(index) = trial.playing(now) else { break };
            let wanted = trial.levels[index].plays_cores;
            let is_short = wanted > most;
            trial.take(now, &window(wanted, wanted.min(most), if is_short { throttled } else { 0.0 }));
        }
        let end = trial.ends();
        trial.conclude(end);
        trial
    }

    #[test]
    fn a_level_is_the_highest_within_the_time_to_the_scale_of_the_shadow() {
        let trial = Trial::new(START, proposed(2.0), (0.1, WINDOW), &forecast(), None).unwrap();
        let levels: Vec<_> = trial.levels.iter().map(|level| (level.quantile, level.cpu_cores)).collect();
        assert_eq!(levels, [(0.5, 1.0), (0.95, 1.2), (0.99, 1.4)]);
        assert!((trial.levels[0].plays_cores - 0.05).abs() < 1e-12);
        assert_eq!(
            Trial::new(START, Proposed { ahead_ms: 80_000, ..proposed(2.0) }, (0.1, WINDOW), &forecast(), None),
            None
        );
    }

    #[test]
    fn a_size_holds_up_to_the_quantile_that_it_serves() {
        for (cores, holds, confidence) in [
            (2.0, Some(true), Some(0.99)),
            (1.3, Some(true), Some(0.95)),
            (1.1, Some(false), Some(0.5)),
            (0.8, Some(false), None),
        ] {
            let trial = played(Trial::new(START, proposed(cores), (0.1, WINDOW), &forecast(), None).unwrap(), 0.1, 0.3);
            let verdict = trial.verdict.unwrap();
            assert_eq!((verdict.holds, verdict.confidence), (holds, confidence), "{cores}: {verdict:?}");
        }
    }

    #[test]
    fn a_forecast_of_a_moment_ago_reaches_as_far_as_one_of_now() {
        let now = START + Duration::from_secs(15);
        let proposed = Proposed { ahead_ms: 50_000, ..proposed(2.0) };
        assert!(Trial::new(now, proposed, (0.1, WINDOW), &forecast(), None).is_some());
    }

    #[test]
    fn what_its_host_withholds_tells_nothing_of_the_size() {
        let trial = played(Trial::new(START, proposed(2.0), (0.1, WINDOW), &forecast(), None).unwrap(), 0.02, 0.0);
        let verdict = trial.verdict.unwrap();
        assert_eq!((verdict.holds, verdict.confidence), (None, None));
        assert!(verdict.why.contains("its host"), "{}", verdict.why);
    }

    #[test]
    fn a_guest_that_takes_the_time_in_which_it_is_held_back_for_its_own_does_not_hold() {
        let mut trial = Trial::new(START, proposed(0.4), (0.1, WINDOW), &forecast(), None).unwrap();
        for second in (20..60).step_by(10) {
            let mut window = window(0.25, 0.25, 0.6);
            window.cpu.as_mut().unwrap().demand_low.mean = 0.1;
            trial.take(START + Duration::from_secs(second), &window);
        }
        assert_eq!(trial.levels[0].holds(), Some(false), "{trial:?}");
        assert!((trial.levels[0].served - 0.4).abs() < 1e-9);
    }

    #[test]
    fn memory_holds_where_the_guest_wants_less_and_is_not_known_where_it_does_not_say() {
        let of = |memory_bytes, wanted| {
            let proposed = Proposed { memory_bytes: Some(memory_bytes), ..proposed(2.0) };
            played(Trial::new(START, proposed, (0.1, WINDOW), &forecast(), wanted).unwrap(), 0.1, 0.3)
                .verdict
                .unwrap()
                .holds
        };
        assert_eq!(of(100, Some(95)), Some(true));
        assert_eq!(of(100, Some(96)), Some(false));
        assert_eq!(of(100, None), None);
    }

    #[test]
    fn windows_of_another_load_and_of_before_it_settled_do_not_count() {
        let mut trial = Trial::new(START, proposed(2.0), (0.1, WINDOW), &forecast(), None).unwrap();
        trial.take(START + Duration::from_secs(14), &window(0.05, 0.05, 0.0));
        trial.take(START + Duration::from_secs(20), &window(0.04, 0.04, 0.0));
        assert_eq!(trial.levels[0].windows, 0);
        trial.take(START + Duration::from_secs(20), &window(0.05, 0.05, 0.0));
        assert_eq!(trial.levels[0].windows, 1);
        assert_eq!(trial.changes(START + Duration::from_secs(20)), START + trial.level());
    }
}
