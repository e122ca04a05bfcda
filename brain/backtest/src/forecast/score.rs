//! The scores: MASE (Hyndman and Koehler, 2006) and the pinball loss of a quantile (Koenker and Bassett, 1978), both scaled by the mean
//! absolute seasonal difference of the task's window, and how often the quantile was enough.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Suite;
use crate::table::{Table, open};

/// A scale is at least this share of the window's standard deviation, so that windows that repeat themselves to the digit do not own the mean.
const SCALE_DEVIATIONS_MIN: f64 = 0.1;

/// How one task went.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskScore {
    /// Its series.
    pub series: String,
    /// Mean absolute error of the point forecast, scaled.
    pub mase: f64,
    /// Mean pinball loss of the 95 % quantile, scaled alike.
    pub scaled_pinball_95: f64,
    /// Share of steps that it covered.
    pub coverage_95: f64,
}

/// Scores forecasts (CSV: `series_id,origin,step,quantile,value`) of every task of a suite. Point forecasts are those of the quantile `mean`; negative ones
/// count as zero, as no KPI is.
///
/// # Errors
/// When a file cannot be read, or a forecast, a window or what came is missing.
pub fn score(suite: &Suite, series: &Path, forecasts: &Path) -> Result<Vec<TaskScore>> {
    let table = Table::read(series)?;
    let season = *suite.season.first().context("the suite has no season to scale errors by")?;
    ensure!((1..suite.window).contains(&season), "a window of {} holds no season of {season}", suite.window);
    let mut said: BTreeMap<(String, usize), [Vec<f64>; 2]> = BTreeMap::new();
    for record in csv::Reader::from_reader(open(forecasts)?).deserialize() {
        let (name, origin, step, quantile, value): (String, usize, usize, String, f64) = record?;
        let which = match quantile.as_str() {
            "mean" => 0,
            other if other.parse() == Ok(0.95) => 1,
            _ => continue,
        };
        ensure!((1..=suite.horizon).contains(&step), "step {step} of {name} at {origin} is beyond the horizon");
        let unknown = || [vec![f64::NAN; suite.horizon], vec![f64::NAN; suite.horizon]];
        said.entry((name, origin)).or_insert_with(unknown)[which][step - 1] = value.max(0.0);
    }
    let of_task = |(name, origin): &(String, usize)| {
        let values = table.column(name).with_context(|| format!("no series {name}"))?;
        let task = said.get(&(name.clone(), *origin)).with_context(|| format!("no forecast of {name} at {origin}"))?;
        ensure!(task.iter().flatten().all(|value| value.is_finite()), "an incomplete forecast of {name} at {origin}");
        let past = origin.checked_sub(suite.window).and_then(|first| values.get(first..*origin));
        let future = values.get(*origin..origin + suite.horizon);
        let (past, future) = past.zip(future).with_context(|| format!("rows of {name} around {origin} are missing"))?;
        Ok(score_task(name, past, future, season, task))
    };
    suite.tasks.iter().map(of_task).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_what_a_person_works_out() {
        // Seasonal differences of 2 and a standard deviation below 20: the scale is 2.
        let past = [1.0, 5.0, 3.0, 7.0];
        let said = [vec![4.0, 9.0], vec![6.0, 8.0]];
        let score = score_task("a", &past, &[5.0, 10.0], 2, &said);
        assert_eq!((score.mase, score.coverage_95), (0.5, 0.5));
        // 1 too high, weighing 0.05; 2 too low, weighing 0.95.
        assert!((score.scaled_pinball_95 - (0.05 + 1.9) / 2.0 / 2.0).abs() < 1e-12, "{score:?}");
    }

    #[test]
    fn a_window_that_repeats_itself_is_scaled_by_its_spread() {
        let score = score_task("a", &[0.0, 2.0, 0.0, 2.0], &[1.0], 2, &[vec![0.0], vec![1.0]]);
        assert!((score.mase - 10.0).abs() < 1e-9, "{score:?}");
    }

    #[test]
    fn a_forecast_that_is_missing_is_told_with_its_task() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("s.csv"), "idx,a\n0,1\n1,2\n2,3\n3,4\n").unwrap();
        let tasks = vec![("a".to_owned(), 3)];
        let suite = Suite { suite: "s".to_owned(), season: vec![1], horizon: 1, window: 3, tasks };
        let with = |lines: &str| {
            std::fs::write(path("f.csv"), format!("series_id,origin,step,quantile,value\n{lines}")).unwrap();
            score(&suite, &path("s.csv"), &path("f.csv"))
        };
        assert_eq!(with("a,3,1,mean,4\na,3,1,0.95,5\na,3,1,0.5,4\n").unwrap()[0].mase, 0.0);
        assert!(with("a,3,1,mean,4\n").unwrap_err().to_string().contains("incomplete forecast of a at 3"));
        assert!(with("a,2,1,mean,4\n").unwrap_err().to_string().contains("no forecast of a at 3"));
        assert!(with("a,3,2,mean,4\n").unwrap_err().to_string().contains("beyond the horizon"));
    }
}
