//! `gnomon backtest anomaly --nab`: the detector on a copy of the Numenta Anomaly Benchmark, file by file and in all.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::Serialize;

use super::nab::{self, PROFILES, Scored};
use super::replay;
use super::series::{Series, time_s};
use crate::progress;

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

/// One file of the benchmark as the detector saw it.
struct Replayed {
    group: String,
    days: f64,
    /// By score.
    scored: Scored,
    /// By alert at the default threshold: 1 where one was raised.
    alerted: Scored,
}

/// How a group of files fared.
#[derive(Debug, Serialize)]
struct Row {
    files: String,
    windows: usize,
    /// Windows in which there is an alert at the default threshold.
    windows_alerted: usize,
    /// Standard profile, at the whole corpus' best threshold.
    standard: f64,
    /// Standard profile, at the group's own best threshold.
    standard_own_threshold: f64,
    /// Standard profile, the alerts of the default threshold.
    standard_default: f64,
    /// Alerts outside of all windows, per series and day, probation left out.
    false_alerts_per_day: f64,
}

/// The whole.
#[derive(Debug, Serialize)]
struct Summary {
    threshold: f64,
    profiles: BTreeMap<&'static str, f64>,
    rows: Vec<Row>,
}

/// Scores the detector on the benchmark in that directory.
pub(super) fn run(directory: &Path, json: bool) -> Result<()> {
    let labels = directory.join("labels/combined_windows.json");
    let text = std::fs::read_to_string(&labels).with_context(|| format!("reading {}", labels.display()))?;
    let labels: BTreeMap<String, Vec<[String; 2]>> =
        serde_json::from_str(&text).with_context(|| format!("reading {}", labels.display()))?;
    let bar = progress::bar(labels.len() as u64, "files");
    let replayed: Vec<Replayed> = labels
        .par_iter()
        .map(|(name, windows)| {
            let replayed =
                replay_file(directory, name, windows).with_context(|| format!("file {name} of the benchmark"));
            bar.inc(1);
            replayed
        })
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    let summary = summarise(&replayed);
    if json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print(&summary);
    }
    Ok(())
}

/// Replays one file, plain or gzipped.
fn replay_file(directory: &Path, name: &str, windows: &[[String; 2]]) -> Result<Replayed> {
    let plain = directory.join("data").join(name);
    let path = if plain.exists() { plain } else { PathBuf::from(format!("{}.gz", plain.display())) };
    let series = Series::read(&path)?;
    let windows: Vec<_> = windows.iter().map(|window| rows(&series, window)).collect::<Result<_>>()?;
    let verdicts = replay(&series);
    let scores = verdicts.iter().map(|verdict| verdict.score).collect();
    let alerts = verdicts.iter().map(|verdict| f64::from(u8::from(verdict.alert.is_some()))).collect();
    let probation = nab::probation_rows(series.values.len());
    let scored_s = series.times_s.last().zip(series.times_s.get(probation)).map_or(0, |(last, first)| last - first);
    Ok(Replayed {
        group: name.split('/').next().unwrap_or(name).to_owned(),
        #[expect(clippy::cast_precision_loss, reason = "seconds between two rows")]
        days: scored_s as f64 / DAY_S,
        scored: Scored { scores, windows: windows.clone() },
        alerted: Scored { scores: alerts, windows },
    })
}

/// A labelled window in rows.
fn rows(series: &Series, window: &[String; 2]) -> Result<RangeInclusive<usize>> {
    let row = |text: &String| {
        let at_s = time_s(text).with_context(|| format!("{text:?} is no timestamp"))?;
        series.times_s.iter().position(|&known| known == at_s).with_context(|| format!("no row at {text}"))
    };
    let (first, last) = (row(&window[0])?, row(&window[1])?);
    ensure!(first < last, "window {} to {} is empty", window[0], window[1]);
    Ok(first..=last)
}

/// Scores by profile and by group.
fn summarise(replayed: &[Replayed]) -> Summary {
    let scored: Vec<Scored> = replayed.iter().map(|file| file.scored.clone()).collect();
    let threshold = nab::best(&scored, &PROFILES[0]).threshold;
    let mut groups: BTreeMap<&str, Vec<&Replayed>> = BTreeMap::new();
    for (place, file) in replayed.iter().enumerate() {
        groups.entry(&file.group).or_default().push(file);
        groups.entry(if place % 2 == 0 { "(every other file)" } else { "(the other half)" }).or_default().push(file);
    }
    let all = replayed.iter().collect::<Vec<_>>();
    let mut rows: Vec<Row> = groups.iter().map(|(name, files)| fared(name, files, threshold)).collect();
    rows.push(fared("all", &all, threshold));
    let profiles = PROFILES.iter().map(|profile| (profile.name, nab::best(&scored, profile).normalised)).collect();
    Summary { threshold, profiles, rows }
}

/// How these files fared.
fn fared(name: &str, files: &[&Replayed], threshold: f64) -> Row {
    let scored: Vec<Scored> = files.iter().map(|file| file.scored.clone()).collect();
    let alerted: Vec<Scored> = files.iter().map(|file| file.alerted.clone()).collect();
    let days: f64 = files.iter().map(|file| file.days).sum();
    let false_alerts: u32 = alerted.iter().map(false_alerts).sum();
    Row {
        files: name.to_owned(),
        windows: scored.iter().map(|file| file.windows.len()).sum(),
        windows_alerted: alerted.iter().map(windows_alerted).sum(),
        standard: nab::at(&scored, &PROFILES[0], threshold),
        standard_own_threshold: nab::best(&scored, &PROFILES[0]).normalised,
        standard_default: nab::at(&alerted, &PROFILES[0], 1.0),
        false_alerts_per_day: if days > 0.0 { f64::from(false_alerts) / days } else { 0.0 },
    }
}

/// Alerts after probation and outside of all windows.
fn false_alerts(file: &Scored) -> u32 {
    let probation = nab::probation_rows(file.scores.len());
    let outside = |row: &usize| file.windows.iter().all(|window| !window.contains(row));
    (probation..file.scores.len()).filter(outside).map(|row| u32::from(file.scores[row] > 0.0)).sum()
}

/// Windows with an alert after probation.
fn windows_alerted(file: &Scored) -> usize {
    let probation = nab::probation_rows(file.scores.len());
    let alerted =
        |window: &&RangeInclusive<usize>| (*window).clone().any(|row| row >= probation && file.scores[row] > 0.0);
    file.windows.iter().filter(alerted).count()
}

/// The summary in words.
fn print(summary: &Summary) {
    for (profile, score) in &summary.profiles {
        println!("{profile}: {score:.1}");
    }
    println!("best threshold (standard): {:.4}; default: {}", summary.threshold, gnomon_core::anomaly::ALERT_SCORE);
    println!();
    println!(
        "{:24} {:>7} {:>8} {:>13} {:>11} {:>18} {:>20}",
        "files", "windows", "standard", "own threshold", "by default", "windows by default", "false alerts per day"
    );
    for row in &summary.rows {
        println!(
            "{:24} {:>7} {:>8.1} {:>13.1} {:>11.1} {:>18} {:>20.3}",
            row.files,
            row.windows,
            row.standard,
            row.standard_own_threshold,
            row.standard_default,
            row.windows_alerted,
            row.false_alerts_per_day
        );
    }
}
