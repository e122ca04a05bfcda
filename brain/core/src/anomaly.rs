//! Anomalies of one series, value by value: spikes, values unusual for their hour, level shifts, flat lines and slow leaks.
//!
//! A detector needs no training, no labels and no setting. It follows a few statistics of the series: the value itself, the mean
//! of the last [`WINDOW_VALUES`], the difference from what is usual at that hour of the day, and the log of the
//! spread. Of each it knows the range kept to so far ([`Extremes`]: extremes of blocks, a few weeks of them, in constant memory). The
//! score is how far the statistic leaves that range, in widths of the range: a *record novelty*. It has three virtues. For any exchangeable
//! series, records grow rare as 1/n whatever the distribution is (Chandler, "The distribution and frequency of record values",
//! JRSS B 1952), so a noisy series
//! does not alert more just for being noisy; a cycle, burst or batch job that has been seen
//! is no news; and the score has no upper end to saturate at. A leak leaves a range too slowly for that and is found by a test of
//! trend ([`Trend`]).
//!
//! One incident gives one alert: within [`REST_VALUES`] of a score only one twice as high counts, and an open incident is not told
//! twice. Each value's score depends on that value and those before it, never on later ones. Cost and
//! memory per value do not grow with the series.

mod extremes;
pub mod fleet;
mod season;
mod trend;

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use extremes::Range;
use extremes::{Extremes, Sides};
use season::Season;
use trend::{Rise, Trend};

/// Scores from which an alert is raised: a fifth of all the range there was, outside of it.
pub const ALERT_SCORE: f64 = 0.2;

/// Blocks of values before there is a range of them: half a day of 5 min values.
const LEARNING_VALUE_BLOCKS: u16 = 3;

/// Blocks before there is a range of window statistics, of which neighbours hardly differ: a day of 5 min values.
const LEARNING_WINDOW_BLOCKS: u16 = 6;

/// Blocks before there is a range of the differences from an hour's usual value: half a day of 5 min values, on top of the two days
/// after which an hour has a usual value.
const LEARNING_RESIDUAL_BLOCKS: u16 = 3;

/// Values after a score in which a lower one is taken for the same incident: eight hours of 5 min values.
pub const REST_VALUES: u32 = 96;

/// Times the score of a resting incident that a new score must exceed to be news.
const ESCALATION: f64 = 2.0;

/// Values of the window whose mean and spread are followed: four hours of 5 min values.
const WINDOW_VALUES: usize = 48;

/// Extreme blocks that do not make a value normal: spikes that came twice are still spikes.
const POINT_RANK: usize = 2;

/// A mean of many values that leaves its range says more than one value that does.
const SHIFT_WEIGHT: f64 = 1.5;

/// The difference from the usual at an hour has heavy tails, as what is usual is known by few days.
const CONTEXT_WEIGHT: f64 = 0.3;

/// The least spread, as a share of the largest magnitude there is in the values' range: what is flatter is flat.
const SPREAD_MIN: f64 = 1e-6;

/// Larger magnitudes count as this one, so that no score overflows.
const MAGNITUDE_MAX: f64 = 1e150;

/// What sort of anomaly it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A value outside all that was seen.
    Point,
    /// A value unusual for its hour of the day.
    Contextual,
    /// A mean outside all that was seen.
    LevelShift,
    /// A spread smaller than any that was seen.
    FlatLine,
    /// A mean that keeps rising.
    SlowLeak,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Point => "value never seen",
            Self::Contextual => "value unusual for the hour",
            Self::LevelShift => "level shift",
            Self::FlatLine => "flat line",
            Self::SlowLeak => "slow leak",
        })
    }
}

/// What an alert says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// What sort it is.
    pub kind: Kind,
    /// Since when, in Unix seconds: the oldest value that is part of the evidence.
    pub since_s: i64,
    /// When it was found, in Unix seconds.
    pub at_s: i64,
    /// What was expected, in the values' unit (of a flat line: its spread).
    pub expected: Range,
    /// What came instead: the value, the mean or the spread.
    pub observed: f64,
    /// Its score, at least [`ALERT_SCORE`].
    pub score: f64,
}

impl Incident {
    /// For people, with values written in their unit.
    pub fn in_words(&self, write: impl Fn(f64) -> String) -> String {
        let what = match self.kind {
            Kind::Point | Kind::Contextual => "a value",
            Kind::LevelShift | Kind::SlowLeak => "a mean",
            Kind::FlatLine => "a spread",
        };
        let Self { kind, expected, observed, score, .. } = self;
        let (low, high) = (write(expected.low), write(expected.high));
        format!("{kind}: expected {what} between {low} and {high}, came {} (score {score:.2})", write(*observed))
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.in_words(|value| format!("{value:.4}")))
    }
}

/// What a detector makes of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// At least 0, without an upper end; 0 while an incident with a higher score rests.
    pub score: f64,
    /// The alert, when this value opens an incident.
    pub alert: Option<Incident>,
}

/// One statistic's view of a value.
struct Evidence {
    kind: Kind,
    score: f64,
    expected: Range,
    observed: f64,
    since_s: i64,
}

/// Follows one series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detector {
    window: VecDeque<(i64, f64)>,
    values: Extremes,
    means: Extremes,
    spreads: Extremes,
    residuals: Extremes,
    season: Season,
    trend: Trend,
    /// Score of the incident that rests, and values since it was highest.
    resting_score: f64,
    resting_values: u32,
    /// Values since the last incident reached a new height; `None` before the first.
    open_values: Option<u32>,
}

impl Default for Detector {
    fn default() -> Self {
        Self::new()
    }
}

impl Detector {
    /// A detector that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            window: VecDeque::with_capacity(WINDOW_VALUES),
            values: Extremes::new(LEARNING_VALUE_BLOCKS, POINT_RANK),
            means: Extremes::new(LEARNING_WINDOW_BLOCKS, 0),
            spreads: Extremes::new(LEARNING_WINDOW_BLOCKS, 0),
            residuals: Extremes::new(LEARNING_RESIDUAL_BLOCKS, 0),
            season: Season::new(),
            trend: Trend::default(),
            resting_score: 0.0,
            resting_values: 0,
            open_values: None,
        }
    }

    /// Scores the next value. `at_s` is its time in Unix seconds, not before the last one's; what is not finite is a gap: it
    /// scores 0 and teaches nothing.
    pub fn push(&mut self, at_s: i64, value: f64) -> Verdict {
        if !value.is_finite() {
            return Verdict { score: 0.0, alert: None };
        }
        let value = value.clamp(-MAGNITUDE_MAX, MAGNITUDE_MAX);
        let strongest = self.evidence(at_s, value);
        let raw = strongest.as_ref().map_or(0.0, |evidence| evidence.score);
        let score = self.damp(raw);
        let opens = self.opens(score);
        let alert = strongest.filter(|_| opens).map(|evidence| Incident {
            kind: evidence.kind,
            since_s: evidence.since_s,
            at_s,
            expected: evidence.expected,
            observed: evidence.observed,
            score: evidence.score,
        });
        if alert.as_ref().is_some_and(|alert| alert.kind == Kind::SlowLeak) {
            // A leak that has been told must rise over a whole window again before it is told again.
            self.trend = Trend::default();
        }
        Verdict { score, alert }
    }

    /// The strongest evidence there is, after taking the value in.
    fn evidence(&mut self, at_s: i64, value: f64) -> Option<Evidence> {
        let mut strongest: Option<Evidence> = None;
        let mut offer = |evidence: Evidence| {
            if evidence.score > strongest.as_ref().map_or(0.0, |strongest| strongest.score) {
                strongest = Some(evidence);
            }
        };

        if let Some(expected) = self.values.range() {
            let score = expected.excess(value, Sides::Both);
            offer(Evidence { kind: Kind::Point, score, expected, observed: value, since_s: at_s });
        }
        self.values.add(value);

        if let Some(usual) = self.season.add(at_s, value) {
            let residual = value - usual;
            if let Some(range) = self.residuals.range() {
                let score = CONTEXT_WEIGHT * range.excess(residual, Sides::Both);
                let expected = Range { low: usual + range.low, high: usual + range.high };
                offer(Evidence { kind: Kind::Contextual, score, expected, observed: value, since_s: at_s });
            }
            self.residuals.add(residual);
        }

        if self.window.len() == WINDOW_VALUES {
            self.window.pop_front();
        }
        self.window.push_back((at_s, value));
        if self.window.len() == WINDOW_VALUES {
            let since_s = self.window[0].0;
            let (mean, spread) = self.mean_and_spread();
            if let Some(expected) = self.means.range() {
                let score = SHIFT_WEIGHT * expected.excess(mean, Sides::Both);
                offer(Evidence { kind: Kind::LevelShift, score, expected, observed: mean, since_s });
            }
            self.means.add(mean);
            if let Some(range) = self.spreads.range() {
                let score = range.excess(spread.ln(), Sides::Below);
                let expected = Range { low: range.low.exp(), high: range.high.exp() };
                offer(Evidence { kind: Kind::FlatLine, score, expected, observed: spread, since_s });
            }
            self.spreads.add(spread.ln());
        }

        if let Some(rise) = self.trend.add(at_s, value) {
            let Rise { score, since_s, expected, observed } = rise;
            offer(Evidence { kind: Kind::SlowLeak, score, expected, observed, since_s });
        }
        strongest
    }

    /// Bytes in memory beside itself, by estimate: the window, the hours, the blocks, and both ends of two epochs of four ranges.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.window.capacity() * size_of::<(i64, f64)>() + 4096
    }

    /// Mean of the window and mean absolute deviation from it, the latter never 0.
    fn mean_and_spread(&self) -> (f64, f64) {
        #[expect(clippy::cast_precision_loss, reason = "the window is short")]
        let count = self.window.len() as f64;
        let mean: f64 = self.window.iter().map(|&(_, value)| value / count).sum();
        let spread: f64 = self.window.iter().map(|&(_, value)| (value - mean).abs() / count).sum();
        let magnitude = self.values.range().map_or(0.0, |range| range.low.abs().max(range.high.abs()));
        (mean, spread.max(SPREAD_MIN * magnitude).max(f64::MIN_POSITIVE))
    }

    /// The score that goes out: 0 within [`REST_VALUES`] of one that it does not exceed [`ESCALATION`] times.
    fn damp(&mut self, raw: f64) -> f64 {
        self.resting_values = self.resting_values.saturating_add(1);
        if self.resting_values > REST_VALUES {
            self.resting_score = 0.0;
        }
        if raw <= ESCALATION * self.resting_score {
            return 0.0;
        }
        self.resting_score = raw;
        self.resting_values = 0;
        raw
    }

    /// Whether this score opens an incident; one that is open closes [`REST_VALUES`] after its last new height.
    fn opens(&mut self, score: f64) -> bool {
        let was_open = self.open_values.is_some_and(|values| values < REST_VALUES);
        if score >= ALERT_SCORE {
            self.open_values = Some(0);
            return !was_open;
        }
        self.open_values = self.open_values.map(|values| values.saturating_add(1));
        false
    }
}

#[cfg(test)]
mod tests;
