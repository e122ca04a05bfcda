//! `gnomon backtest forecast`: forecasts from many origins of recorded series.
//!
//! A suite (JSON) names the tasks: a series and an origin each. A task is handed the `window` values before its origin and nothing
//! else, so nothing later can reach its forecast.

mod page;
pub mod score;
mod suite;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use gnomon_core::forecast::engine::{Engine, Expectation, Forecast, LEVELS};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::progress;
use crate::table::{self, Table};
pub use suite::Suite;

/// Arguments of `gnomon backtest forecast`.
#[derive(Debug, Args)]
pub struct ForecastArguments {
    /// Which series to forecast from which origins: JSON with "season" (in steps), "horizon", "window" and "tasks", pairs of a
    /// series' name and the row to forecast first
    #[arg(long)]
    pub suite: PathBuf,
    /// The series: CSV, one row for each step, one column for each series; may end in .gz
    #[arg(long)]
    pub series: PathBuf,
    /// Where the forecasts go: CSV of series_id, origin, step, quantile, value; may end in .gz
    #[arg(long)]
    pub out: PathBuf,
    /// Stop after so many tasks
    #[arg(long)]
    pub max_tasks: Option<usize>,
    /// Write a report with pictures here
    #[arg(long, value_name = "HTML")]
    pub report: Option<PathBuf>,
}

/// What it took and how good it was.
#[derive(Debug, Serialize)]
struct Summary {
    suite: String,
    tasks: usize,
    cpu_ms_mean: f64,
    cpu_ms_max: f64,
    /// Mean over tasks of the skill against seasonal-naive that the fits claim for themselves.
    skill_mean: f64,
    /// Quartiles over tasks of what the fits say a season is worth: the best seasonal model's past error over the best
    /// other's.
    seasonal_gain_quartiles: Option<[f64; 3]>,
    /// Mean weight of each model.
    weights: Vec<(&'static str, f64)>,
}

struct Done {
    forecast: Forecast,
    weights: Vec<(&'static str, f64)>,
    skill: f64,
    seasonal_gain: Option<f64>,
    cpu_ms: f64,
}

/// Runs it.
pub(crate) fn run(arguments: &ForecastArguments, json: bool) -> Result<()> {
    let mut suite = Suite::read(&arguments.suite)?;
    suite.tasks.truncate(arguments.max_tasks.unwrap_or(usize::MAX));
    let table = Table::read(&arguments.series)?;
    let windows = suite.tasks.iter().map(|task| window(&suite, &table, task)).collect::<Result<Vec<_>>>()?;
    let expectation = Expectation { seasons_steps: suite.season.clone(), horizon_steps: suite.horizon };
    let bar = progress::bar(windows.len() as u64, "tasks");
    let done: Vec<Done> = windows
        .par_iter()
        .map(|window| {
            let done = forecast(window, &expectation);
            bar.inc(1);
            done
        })
        .collect();
    bar.finish_and_clear();
    write(&arguments.out, &suite, &done).with_context(|| format!("cannot write {}", arguments.out.display()))?;
    let summary = summarise(&suite, &done);
    if let Some(path) = &arguments.report {
        page::page(&suite, &table, &done, &summary)
            .write(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print(&summary);
    }
    Ok(())
}

/// All that a task may read.
fn window<'a>(suite: &Suite, table: &'a Table, (name, origin): &(String, usize)) -> Result<&'a [f64]> {
    let values = table.column(name).with_context(|| format!("the series have no column {name:?}"))?;
    let first = origin.checked_sub(suite.window);
    first
        .and_then(|first| values.get(first..*origin))
        .with_context(|| format!("{name:?} has {} rows: no {} of them before row {origin}", values.len(), suite.window))
}

fn forecast(window: &[f64], expectation: &Expectation) -> Done {
    let start_ms = thread_cpu_ms();
    let fitted = Engine::fit(window, expectation);
    let forecast = fitted.forecast(expectation.horizon_steps);
    let cpu_ms = thread_cpu_ms() - start_ms;
    let weights = fitted.shares().iter().map(|share| (share.model, share.weight)).collect();
    Done { forecast, weights, skill: fitted.skill(), seasonal_gain: fitted.seasonal_gain(), cpu_ms }
}

/// CPU time of this thread so far.
fn thread_cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn write(path: &Path, suite: &Suite, done: &[Done]) -> Result<()> {
    let mut out = table::create(path)?;
    writeln!(out, "series_id,origin,step,quantile,value")?;
    for ((name, origin), done) in suite.tasks.iter().zip(done) {
        for (place, (point, quantiles)) in done.forecast.point.iter().zip(&done.forecast.quantiles).enumerate() {
            let step = place + 1;
            writeln!(out, "{name},{origin},{step},mean,{point}")?;
            for (level, quantile) in LEVELS.iter().zip(quantiles) {
                writeln!(out, "{name},{origin},{step},{level},{quantile}")?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn summarise(suite: &Suite, done: &[Done]) -> Summary {
    let count = done.len().max(1) as f64;
    let mut weights: Vec<(&'static str, f64)> = Vec::new();
    for (model, weight) in done.iter().flat_map(|done| &done.weights) {
        match weights.iter_mut().find(|(known, _)| known == model) {
            Some((_, sum)) => *sum += weight / count,
            None => weights.push((model, weight / count)),
        }
    }
    weights.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut gains: Vec<f64> = done.iter().filter_map(|done| done.seasonal_gain).collect();
    gains.sort_by(f64::total_cmp);
    let quartiles = [1, 2, 3].map(|quarter| gains.get(gains.len() * quarter / 4).copied());
    Summary {
        suite: suite.suite.clone(),
        tasks: done.len(),
        cpu_ms_mean: done.iter().map(|done| done.cpu_ms).sum::<f64>() / count,
        cpu_ms_max: done.iter().map(|done| done.cpu_ms).fold(0.0, f64::max),
        skill_mean: done.iter().map(|done| done.skill).sum::<f64>() / count,
        seasonal_gain_quartiles: if let [Some(low), Some(middle), Some(high)] = quartiles {
            Some([low, middle, high])
        } else {
            None
        },
        weights,
    }
}

fn print(summary: &Summary) {
    println!(
        "{}: {} tasks, {:.1} ms of CPU each (at most {:.1})",
        summary.suite, summary.tasks, summary.cpu_ms_mean, summary.cpu_ms_max
    );
    println!("Error below seasonal-naive's in the past: {:.0} %", summary.skill_mean * 100.0);
    if let Some([low, middle, high]) = summary.seasonal_gain_quartiles {
        println!(
            "The best seasonal model's error there, of the best other's: {middle:.2} (quartiles {low:.2} to {high:.2})"
        );
    }
    for (model, weight) in &summary.weights {
        println!("  {model:<22} {:5.1} %", weight * 100.0);
    }
}

#[cfg(test)]
mod tests;
