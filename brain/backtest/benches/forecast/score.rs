//! The scores: MASE (Hyndman and Koehler, 2006) and the pinball loss of a quantile (Koenker and Bassett, 1978), both scaled by the mean
//! absolute seasonal difference of the task's window, and how often the quantile was enough.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::MultiGzDecoder;
use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// A scale is at least this share of the window's standard deviation, so that windows that repeat themselves to the digit do not own the mean.
const SCALE_DEVIATIONS_MIN: f64 = 0.1;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;

/// What is to be forecast.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Suite {
    pub(crate) suite: String,
    pub(crate) step_seconds: u64,
    pub(crate) season: Vec<usize>,
    pub(crate) horizon: usize,
    pub(crate) window: usize,
    #[serde(default)]
    pub(crate) kpi_unit: String,
    pub(crate) tasks: Vec<(String, usize)>,
}

impl Suite {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        serde_json::from_reader(file).with_context(|| format!("{} is no suite", path.display()))
    }

    /// At most so many tasks, spread evenly.
    pub(crate) fn thinned(mut self, tasks_max: usize) -> Self {
        let count = self.tasks.len();
        if count > tasks_max && tasks_max > 0 {
            self.tasks = (0..tasks_max).map(|i| self.tasks[i * count / tasks_max].clone()).collect();
        }
        self
    }
}

/// How one task went.
#[derive(Clone, Debug)]
pub(crate) struct TaskScore {
    pub(crate) series: String,
    pub(crate) mase: f64,
    pub(crate) scaled_pinball_95: f64,
    pub(crate) coverage_95: f64,
}

/// Means over tasks.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Total {
    pub(crate) mase: f64,
    pub(crate) scaled_pinball_95: f64,
    pub(crate) coverage_95: f64,
}

impl Total {
    pub(crate) fn of(scores: &[TaskScore]) -> Self {
        let mean = |of: fn(&TaskScore) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
        Self {
            mase: mean(|score| score.mase),
            scaled_pinball_95: mean(|score| score.scaled_pinball_95),
            coverage_95: mean(|score| score.coverage_95),
        }
    }
}

fn text(path: &Path) -> Result<csv::Reader<Box<dyn Read>>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    Ok(csv::Reader::from_reader(if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) }))
}

/// Scores forecasts (`series_id,origin,step,quantile,value`) of every task of a suite; a missing one is an error.
pub(crate) fn score(suite: &Suite, series: &Path, forecasts: &Path) -> Result<Vec<TaskScore>> {
    let mut reader = text(series)?;
    let names: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
    let mut columns: BTreeMap<&str, Vec<f64>> = names.iter().map(|name| (name.as_str(), Vec::new())).collect();
    for record in reader.records() {
        let record = record?;
        for (name, cell) in names.iter().zip(&record) {
            columns.entry(name).or_default().push(cell.parse().unwrap_or(f64::NAN));
        }
    }
    let mut points: BTreeMap<(String, usize), [Vec<f64>; 2]> = BTreeMap::new();
    for record in text(forecasts)?.deserialize() {
        let (name, origin, step, quantile, value): (String, usize, usize, String, f64) = record?;
        let which = match quantile.as_str() {
            "mean" => 0,
            other if other.parse() == Ok(0.95) => 1,
            _ => continue,
        };
        ensure!((1..=suite.horizon).contains(&step), "step {step} of {name} at {origin}");
        let unknown = || [vec![f64::NAN; suite.horizon], vec![f64::NAN; suite.horizon]];
        points.entry((name, origin)).or_insert_with(unknown)[which][step - 1] = value.max(0.0);
    }
    suite
        .tasks
        .iter()
        .map(|(name, origin)| {
            let values = columns.get(name.as_str()).with_context(|| format!("no series {name}"))?;
            let task =
                points.get(&(name.clone(), *origin)).with_context(|| format!("no forecast of {name} at {origin}"))?;
            ensure!(
                task.iter().flatten().all(|value| value.is_finite()),
                "an incomplete forecast of {name} at {origin}"
            );
            let (past, future) = (&values[origin - suite.window..*origin], &values[*origin..origin + suite.horizon]);
            Ok(score_task(name, past, future, suite.season[0], task))
        })
        .collect()
}

fn score_task(name: &str, past: &[f64], future: &[f64], season: usize, [point, quantile]: &[Vec<f64>; 2]) -> TaskScore {
    let differences = past.iter().zip(&past[season..]).map(|(before, after)| (after - before).abs());
    let naive = differences.sum::<f64>() / (past.len() - season) as f64;
    let mean = past.iter().sum::<f64>() / past.len() as f64;
    let deviation = (past.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / past.len() as f64).sqrt();
    let scale = naive.max(SCALE_DEVIATIONS_MIN * deviation).max(f64::MIN_POSITIVE);
    let steps = future.len() as f64;
    let error: f64 = future.iter().zip(point).map(|(value, point)| (value - point).abs()).sum();
    let pinball = |value: f64, quantile: f64| (0.95 * (value - quantile)).max(-0.05 * (value - quantile));
    let loss: f64 = future.iter().zip(quantile).map(|(&value, &quantile)| pinball(value, quantile)).sum();
    let covered = future.iter().zip(quantile).filter(|(value, quantile)| **value <= **quantile + 1e-9).count();
    TaskScore {
        series: name.to_owned(),
        mase: error / steps / scale,
        scaled_pinball_95: loss / steps / scale,
        coverage_95: covered as f64 / steps,
    }
}

/// The 95 % interval of the mean difference between two forecasters' scores of the same tasks. Series are drawn, not tasks: tasks of one
/// series are alike.
pub(crate) fn difference(a: &[TaskScore], b: &[TaskScore], of: fn(&TaskScore) -> f64) -> (f64, f64) {
    let mut by_series: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (a, b) in a.iter().zip(b) {
        by_series.entry(&a.series).or_default().push(of(a) - of(b));
    }
    let groups: Vec<Vec<f64>> = by_series.into_values().collect();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..groups.len()).flat_map(|_| &groups[random.random_range(0..groups.len())]);
            let (sum, count) = drawn.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
            sum / count
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLES * 25 / 1000], means[RESAMPLES * 975 / 1000])
}
