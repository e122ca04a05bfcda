//! A forecast as a small plot of characters.

use super::table::duration;
use gnomon_core::view::{Forecast, Quantiles};
use std::fmt::Write as _;

/// Rows of the plot.
const ROWS: usize = 10;
/// Most columns: with the labels on both sides it fits a terminal of 80.
const COLUMNS_MAX: usize = 64;
/// Fillings of a cell, in eighths.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Between median and 95th percentile.
const BAND: char = '░';

/// Draws median (solid) and 95th percentile (shaded) over the horizon; a dashed line where `limit_cores` is. Several
/// steps share a column where there are more than fit: the column shows the largest.
pub fn plot(forecast: &Forecast, limit_cores: Option<f64>) -> String {
    let steps = &forecast.steps;
    if steps.is_empty() {
        return String::new();
    }
    let per_column = steps.len().div_ceil(COLUMNS_MAX);
    let columns: Vec<Quantiles> = steps.chunks(per_column).map(largest).collect();
    let top = columns.iter().map(|column| column.p95).chain(limit_cores).fold(0.0, f64::max).max(0.01) * 1.05;
    let row_cores = top / ROWS as f64;
    let limit_row = limit_cores.map(|cores| (cores / row_cores) as usize);

    let mut text = String::new();
    for row in (0..ROWS).rev() {
        let floor = row as f64 * row_cores;
        let _ = write!(text, "{:>6.2} │", floor + row_cores / 2.0);
        for column in &columns {
            let cell = cell(column, floor, row_cores);
            text.push(if cell == ' ' && limit_row == Some(row) { '┄' } else { cell });
        }
        if limit_row == Some(row) {
            text.push_str(" limit");
        }
        text.push('\n');
    }
    let end = duration(forecast.resolution_ms.saturating_mul(steps.len() as u64));
    let _ = writeln!(text, " cores └{}", "─".repeat(columns.len()));
    let gap = columns.len().saturating_sub(end.chars().count() + 4);
    let _ = writeln!(text, "        now{:gap$} +{end}", "");
    let _ = writeln!(text, "        █ median   {BAND} up to the 95th percentile");
    text
}

fn largest(steps: &[Quantiles]) -> Quantiles {
    steps.iter().fold(Quantiles::default(), |most, step| Quantiles {
        p50: most.p50.max(step.p50),
        p90: most.p90.max(step.p90),
        p95: most.p95.max(step.p95),
        p99: most.p99.max(step.p99),
    })
}

fn cell(column: &Quantiles, floor: f64, height: f64) -> char {
    let eighths = ((column.p50 - floor) / height * 8.0).round().clamp(0.0, 8.0) as usize;
    match EIGHTHS[eighths] {
        ' ' if column.p95 > floor + height / 2.0 => BAND,
        filling => filling,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::time::Timestamp;

    fn forecast(steps: Vec<Quantiles>) -> Forecast {
        Forecast {
            made: Timestamp::default(),
            resolution_ms: 1000,
            season_ms: None,
            model: "test".into(),
            relative_error: None,
            models: Vec::new(),
            skill: None,
            steps,
        }
    }

    #[test]
    fn a_surge_stands_out_and_the_plot_fits_a_terminal() {
        let step = |p50: f64| Quantiles { p50, p90: p50 * 1.2, p95: p50 * 1.5, p99: p50 * 2.0 };
        let steps = (0..200).map(|i| step(if (100..150).contains(&i) { 0.8 } else { 0.1 })).collect();
        let text = plot(&forecast(steps), Some(0.5));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        let bars = |line: &str| line.chars().filter(|c| *c == '█').count();
        // 50 of 200 steps, four to a column.
        assert!((12..=13).contains(&bars(lines[5])), "{text}");
        let filled = |line: &str| line.chars().filter(|c| EIGHTHS[1..].contains(c)).count();
        assert_eq!(filled(lines[ROWS - 1]), 50, "{text}");
        assert!(text.contains("limit"), "{text}");
        assert!(text.contains("+200 s"), "{text}");
    }

    #[test]
    fn nothing_and_nothing_wanted_are_no_reason_to_panic() {
        assert_eq!(plot(&forecast(Vec::new()), None), "");
        assert!(plot(&forecast(vec![Quantiles::default()]), None).contains("now"));
    }
}
