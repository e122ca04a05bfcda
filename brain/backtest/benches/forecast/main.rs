//! Accuracy and CPU time of `gnomon backtest forecast`, beside statsforecast's models on the same tasks in the same run.
//!
//! `cargo xtask bench forecast -- --data DIR`: DIR has suites, each a `NAME.json` and a `NAME.series.csv.gz` as `gnomon backtest forecast --help`
//! describes them. The peers run in a Python environment that is made below `target/`. For each suite the table tells MASE, the scaled pinball
//! loss and the coverage of the 95 % quantile, and CPU seconds a task; Gnomon's are told as ratios to the best peer's as well, with a
//! confidence interval of the difference (bootstrap over series).

mod compare;
mod peers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use compare::{Total, difference};
use gnomon_backtest::Suite;
use gnomon_backtest::score::{TaskScore, score};

/// Accuracy of forecasts beside statsforecast's
#[derive(Debug, Parser)]
struct Options {
    /// Directory with the suites
    #[arg(long)]
    data: Option<PathBuf>,
    /// Only these suites, by name
    #[arg(long, value_delimiter = ',')]
    suites: Vec<String>,
    /// At most this many tasks of each suite, spread evenly
    #[arg(long, default_value_t = 60)]
    max_tasks: usize,
    /// Peers to run
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "SeasonalNaive,TodQuantile,EwmaConformal,Theta,MSTL_ETS,AutoARIMA"
    )]
    peers: Vec<String>,
    /// Write the figures here as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the table here as Markdown
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Parser)]
struct Backtest {
    #[command(flatten)]
    arguments: gnomon_backtest::Arguments,
}

/// One forecaster on one suite.
#[derive(Debug, Serialize)]
struct Row {
    suite: String,
    forecaster: String,
    tasks: usize,
    total: Total,
    cpu_s_per_task: f64,
    #[serde(skip)]
    scores: Vec<TaskScore>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let Some(data) = &options.data else {
        println!("skipped: no --data DIR with forecasting suites was given");
        return Ok(());
    };
    let mut suites: Vec<PathBuf> = fs::read_dir(data)
        .with_context(|| format!("reading {}", data.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter(|path| {
            options.suites.is_empty()
                || options.suites.iter().any(|name| path.file_stem().is_some_and(|stem| *stem == **name))
        })
        .collect();
    suites.sort();
    ensure!(!suites.is_empty(), "no suite (NAME.json) in {}", data.display());
    let python = peers::environment()?;
    let scratch = tempfile::tempdir()?;
    let mut rows = Vec::new();
    let mut text = String::new();
    for path in &suites {
        let suite = Suite::read(path)?.thinned(options.max_tasks);
        let series = path.with_extension("series.csv.gz");
        let thinned = scratch.path().join(format!("{}.json", suite.suite));
        fs::write(&thinned, serde_json::to_string(&suite)?)?;
        let mut of_suite = vec![ours(&suite, &thinned, &series, scratch.path())?];
        for peer in &options.peers {
            eprintln!("{}: {peer}", suite.suite);
            let (forecasts, cpu_s_per_task) = peers::run(&python, peer, &thinned, &series, scratch.path())?;
            of_suite.push(row(&suite, &series, peer, &forecasts, cpu_s_per_task)?);
        }
        let table = table(&suite.suite, &of_suite);
        print!("{table}");
        text += &table;
        rows.extend(of_suite);
    }
    if let Some(path) = &options.markdown {
        fs::write(
            path,
            format!(
                "# Forecast accuracy\n\nMade by `cargo xtask bench forecast`; lower is better, coverage should be 0.95.\n{text}"
            ),
        )?;
    }
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

/// Runs Gnomon on a suite.
fn ours(suite: &Suite, suite_path: &Path, series: &Path, scratch: &Path) -> Result<Row> {
    let out = scratch.join("gnomon.csv.gz");
    let paths = [suite_path, series, &out].map(|path| path.to_string_lossy().into_owned());
    let arguments = ["gnomon", "forecast", "--suite", &paths[0], "--series", &paths[1], "--out", &paths[2]];
    let backtest = Backtest::try_parse_from(arguments)?;
    let before = cpu_time();
    gnomon_backtest::run(&backtest.arguments, true)?;
    let cpu_s = (cpu_time() - before).as_secs_f64();
    row(suite, series, "Gnomon", &out, cpu_s / suite.tasks.len() as f64)
}

fn row(suite: &Suite, series: &Path, forecaster: &str, forecasts: &Path, cpu_s_per_task: f64) -> Result<Row> {
    let scores = score(suite, series, forecasts).with_context(|| format!("{forecaster} on {}", suite.suite))?;
    let total = Total::of(&scores);
    Ok(Row {
        suite: suite.suite.clone(),
        forecaster: forecaster.to_owned(),
        tasks: scores.len(),
        total,
        cpu_s_per_task,
        scores,
    })
}

/// CPU time of this process, all threads.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn table(suite: &str, rows: &[Row]) -> String {
    let mut text = format!(
        "\n## {suite}, {} tasks\n\n| forecaster | MASE | sPL.95 | coverage .95 | CPU s/task |\n|---|---|---|---|---|\n",
        rows[0].tasks
    );
    for row in rows {
        let Total { mase, scaled_pinball_95, coverage_95 } = row.total;
        text += &format!(
            "| {} | {mase:.3} | {scaled_pinball_95:.4} | {coverage_95:.3} | {:.4} |\n",
            row.forecaster, row.cpu_s_per_task
        );
    }
    let ours = &rows[0];
    for (metric, of) in [
        ("MASE", (|score: &TaskScore| score.mase) as fn(&TaskScore) -> f64),
        ("sPL.95", |score: &TaskScore| score.scaled_pinball_95),
    ] {
        let mean = |row: &Row| row.scores.iter().map(of).sum::<f64>() / row.scores.len() as f64;
        let Some(best) = rows[1..].iter().min_by(|a, b| mean(a).total_cmp(&mean(b))) else { continue };
        let (low, high) = difference(&ours.scores, &best.scores, of);
        text += &format!(
            "\n{metric}: {:.3} of the best peer's ({}); 95 % interval of the difference {low:+.4} to {high:+.4}.\n",
            mean(ours) / mean(best),
            best.forecaster
        );
    }
    text
}
