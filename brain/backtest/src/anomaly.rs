//! `gnomon backtest anomaly`: what would have been alerted, value by value.

mod corpus;
mod nab;
mod series;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use gnomon_core::anomaly::{Detector, Incident, Verdict};
use rayon::prelude::*;
use serde::Serialize;

use self::series::Series;
use crate::progress;

/// Arguments of `gnomon backtest anomaly`.
#[derive(Debug, Args)]
pub struct AnomalyArguments {
    /// Series to look at: CSV files (.gz too) of timestamp,value
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "nab", requires = "out")]
    pub series: Vec<PathBuf>,
    /// Where timestamp,value,score,alert goes: a file, or a directory when there are several series
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Score against the labels of this copy of the Numenta Anomaly Benchmark instead
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["series", "out"])]
    pub nab: Option<PathBuf>,
}

/// What one series came to.
#[derive(Debug, Serialize)]
struct Summary {
    series: String,
    values: usize,
    incidents: Vec<Incident>,
}

/// Runs it.
pub(crate) fn run(arguments: &AnomalyArguments, json: bool) -> Result<()> {
    if let Some(directory) = &arguments.nab {
        return corpus::run(directory, json);
    }
    let out = arguments.out.as_deref().context("--out is missing")?;
    let several = arguments.series.len() > 1;
    if several {
        std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    }
    let targets = targets(&arguments.series, out, several)?;
    let bar = progress::bar(targets.len() as u64, "series");
    let summaries: Vec<Summary> = targets
        .par_iter()
        .map(|(path, target)| {
            let series = Series::read(path)?;
            let verdicts = replay(&series);
            series::write(target, &series, &verdicts).with_context(|| format!("writing {}", target.display()))?;
            bar.inc(1);
            let incidents = verdicts.into_iter().filter_map(|verdict| verdict.alert).collect();
            Ok(Summary { series: path.display().to_string(), values: series.values.len(), incidents })
        })
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string_pretty(&summaries)?);
    } else {
        print(&summaries);
    }
    Ok(())
}

/// Each series with the file its verdicts go to.
fn targets<'a>(series: &'a [PathBuf], out: &Path, several: bool) -> Result<Vec<(&'a PathBuf, PathBuf)>> {
    let mut targets = Vec::new();
    for path in series {
        let target = if several { out.join(path.file_name().context("a series is a file")?) } else { out.to_owned() };
        ensure!(
            targets.iter().all(|(_, other)| *other != target),
            "two series are called {}: their results would overwrite each other",
            target.display()
        );
        ensure!(target != *path, "{} would overwrite its own series", target.display());
        targets.push((path, target));
    }
    Ok(targets)
}

/// Shows a detector the series, value by value.
fn replay(series: &Series) -> Vec<Verdict> {
    let mut detector = Detector::new();
    series.times_s.iter().zip(&series.values).map(|(&at_s, &value)| detector.push(at_s, value)).collect()
}

/// The summary in words.
fn print(summaries: &[Summary]) {
    for Summary { series, values, incidents } in summaries {
        println!("{series}: {values} values, {} incidents", incidents.len());
        for incident in incidents {
            println!("  {}, since {}: {incident}", instant(incident.at_s), instant(incident.since_s));
        }
    }
}

/// A time for people, in UTC.
fn instant(at_s: i64) -> String {
    jiff::Timestamp::from_second(at_s)
        .map_or_else(|_| at_s.to_string(), |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spiky() -> String {
        let mut text = String::from("timestamp,value\n");
        for row in 0..600 {
            let value = if row == 500 { 90.0 } else { 10.0 + f64::from(row % 7) };
            text += &format!("{},{value}\n", instant(1_400_000_000 + i64::from(row) * 300));
        }
        text
    }

    fn arguments(series: Vec<PathBuf>, out: PathBuf) -> AnomalyArguments {
        AnomalyArguments { series, out: Some(out), nab: None }
    }

    #[test]
    fn a_spike_is_scored_and_alerted_in_its_row() {
        let directory = tempfile::tempdir().unwrap();
        let (input, output) = (directory.path().join("in.csv"), directory.path().join("out.csv"));
        std::fs::write(&input, spiky()).unwrap();
        run(&arguments(vec![input], output.clone()), true).unwrap();
        let text = std::fs::read_to_string(output).unwrap();
        let alerts: Vec<usize> =
            text.lines().enumerate().filter(|(_, line)| line.ends_with(",1")).map(|(row, _)| row).collect();
        assert_eq!(text.lines().next(), Some("timestamp,value,score,alert"));
        assert_eq!(text.lines().count(), 601);
        assert_eq!(alerts, [501]);
    }

    #[test]
    fn what_comes_later_changes_no_earlier_row() {
        let directory = tempfile::tempdir().unwrap();
        let run_on = |name: &str, text: &str| {
            let (input, output) = (directory.path().join(name), directory.path().join(format!("{name}.out")));
            std::fs::write(&input, text).unwrap();
            run(&arguments(vec![input], output.clone()), true).unwrap();
            std::fs::read_to_string(output).unwrap()
        };
        let whole = spiky();
        let prefix: String = whole.split_inclusive('\n').take(502).collect();
        let overwritten = prefix.clone() + "2014-05-15 10:20:00,-1e9\n2014-05-15 10:25:00,\n";
        let expected: String = run_on("whole.csv", &whole).split_inclusive('\n').take(502).collect();
        assert_eq!(run_on("prefix.csv", &prefix), expected);
        assert!(run_on("other.csv", &overwritten).starts_with(&expected));
    }

    #[test]
    fn results_that_would_overwrite_each_other_are_refused() {
        let series = [PathBuf::from("a/x.csv"), PathBuf::from("b/x.csv")];
        assert!(targets(&series, Path::new("out"), true).is_err());
        assert!(targets(&series[..1], Path::new("a/x.csv"), false).is_err());
        assert!(targets(&series[..1], Path::new("out.csv"), false).is_ok());
    }
}
