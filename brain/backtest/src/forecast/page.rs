//! The report on a suite of forecasts.

use gnomon_core::forecast::engine::LEVELS;

use super::{Done, Suite, Summary};
use crate::report::{Band, Line, Plot, Report};
use crate::table::Table;

/// Tasks that are drawn, spread evenly.
const DRAWN: usize = 6;
/// Seasons of the past that are drawn with each.
const SEASONS_DRAWN: usize = 2;

/// How the forecasts compare with what came, over all steps whose truth is in the table.
#[derive(Debug, Default)]
struct Truth {
    steps: usize,
    covered: [usize; LEVELS.len()],
    error: f64,
    error_of_season_ago: f64,
}

/// Writes up how it went. What came after an origin is read here only, when all forecasts are made.
pub(super) fn page(suite: &Suite, table: &Table, done: &[Done], summary: &Summary) -> Report {
    let mut report = Report::new(&format!("Forecasts of {}", suite.suite));
    let truth = truth(suite, table, done);
    report.text(&format!(
        "{} forecasts over {} steps, each from {} steps of its own past; {:.1} ms of CPU each.",
        summary.tasks, suite.horizon, suite.window, summary.cpu_ms_mean
    ));
    if truth.steps > 0 {
        let share = |count: usize| format!("{:.1} %", 100.0 * count as f64 / truth.steps as f64);
        let rows: Vec<Vec<String>> = LEVELS
            .iter()
            .zip(truth.covered)
            .map(|(level, covered)| vec![format!("{:.0} %", 100.0 * level), share(covered)])
            .collect();
        report.section("Were the quantiles right?");
        report.text("Of all steps, so many stayed within each quantile.").table(
            &["quantile", "stayed within"],
            &rows,
            &[],
        );
        if truth.error_of_season_ago > 0.0 {
            let ratio = truth.error / truth.error_of_season_ago;
            report.text(&format!("The middle forecast's error is {ratio:.2} of that of \"as one season ago\"."));
        }
    }
    let models: Vec<Vec<String>> = summary
        .weights
        .iter()
        .map(|(model, weight)| vec![(*model).to_owned(), format!("{:.1} %", 100.0 * weight)])
        .collect();
    report.section("Which models spoke").table(&["model", "weight"], &models, &[]);
    report.section("Some of the forecasts");
    let every = done.len().div_ceil(DRAWN).max(1);
    for ((name, origin), done) in suite.tasks.iter().zip(done).step_by(every) {
        let values = table.column(name).unwrap_or_default();
        report.plot(&plot(suite, values, *origin, done), &format!("{name}, forecast in row {origin}"));
    }
    report
}

fn truth(suite: &Suite, table: &Table, done: &[Done]) -> Truth {
    let mut truth = Truth::default();
    for ((name, origin), done) in suite.tasks.iter().zip(done) {
        let values = table.column(name).unwrap_or_default();
        for (step, (point, quantiles)) in done.forecast.point.iter().zip(&done.forecast.quantiles).enumerate() {
            let Some(value) = values.get(origin + step).filter(|value| value.is_finite()) else { continue };
            truth.steps += 1;
            for (covered, quantile) in truth.covered.iter_mut().zip(quantiles) {
                *covered += usize::from(value <= quantile);
            }
            let season = suite.season.first().copied().unwrap_or(0);
            let ago = (origin + step)
                .checked_sub(season)
                .map(|row| values[row])
                .filter(|ago| season > step && ago.is_finite());
            if let Some(ago) = ago {
                truth.error += (value - point).abs();
                truth.error_of_season_ago += (value - ago).abs();
            }
        }
    }
    truth
}

fn plot(suite: &Suite, values: &[f64], origin: usize, done: &Done) -> Plot {
    let back = (SEASONS_DRAWN * suite.season.first().copied().unwrap_or(suite.horizon)).max(4 * suite.horizon);
    let from = origin.saturating_sub(back.min(suite.window));
    let until = (origin + suite.horizon).min(values.len());
    let steps = |row: usize| row as f64 - origin as f64;
    let line = |name: &str, points| Line { name: name.to_owned(), points, dots: false };
    let middle = done.forecast.point.iter().enumerate().map(|(step, &point)| (step as f64, point)).collect();
    let band = done.forecast.quantiles.iter().enumerate().map(|(step, quantiles)| {
        let (low, high) = (quantiles[0], quantiles[LEVELS.len() - 2]);
        (step as f64, low, high)
    });
    Plot {
        x_label: "steps from the forecast".to_owned(),
        y_label: String::new(),
        bands: vec![Band {
            name: format!("{:.0} % to {:.0} %", 100.0 * LEVELS[0], 100.0 * LEVELS[LEVELS.len() - 2]),
            points: band.collect(),
        }],
        lines: vec![
            line("what came", (from..until).map(|row| (steps(row), values[row])).collect()),
            line("forecast", middle),
        ],
    }
}
