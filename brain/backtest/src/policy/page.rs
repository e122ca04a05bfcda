//! The report on a replay.

use super::rules::Rules;
use super::score::HEAD;
use super::{OWN, Summary};
use crate::report::{Line, Plot, Report};
use crate::table::Table;

/// VMs that are drawn: those at these shares of the order by how much their demand varies.
const DRAWN: [f64; 3] = [0.95, 0.75, 0.5];
/// Days that are drawn of each, the last ones.
const DAYS_DRAWN: usize = 4;

/// Writes up how it went.
pub(super) fn page(table: &Table, sizes: &[Vec<f32>], rules: &Rules, summary: &Summary) -> Report {
    let mut report = Report::new("What Gnomon would have allocated");
    report.text(&format!(
        "{} VMs, {:.1} days after {} rows of warm-up; {} rows from a decision until it is in force. Sizes are percent of a VM's \
         capacity. Slack is the share of what was given that was not wanted. Compare at equal time with too small a size: whoever gives \
         less is short more often.",
        summary.vms, summary.days, rules.warmup, rules.lag
    ));
    let rows = summary.rows();
    let own: Vec<&str> = rows.iter().map(|row| row[0].as_str()).filter(|name| name.starts_with(OWN)).collect();
    report.section("Beside other rules").table(&HEAD, &rows, &own);
    report.plot(&trade_off(summary), "Down and to the left is better.");
    report.section("Three of the VMs").text("The one of them that varies most comes first.");
    for place in drawn(table) {
        report.plot(&vm(table, sizes, rules, place), &table.names[place]);
    }
    report
}

fn trade_off(summary: &Summary) -> Plot {
    let dots = |name: &str, points: Vec<(f64, f64)>| Line { name: name.to_owned(), points, dots: true };
    let own = summary.curve.iter().map(|tried| (100.0 * tried.score.under_time, 100.0 * tried.score.slack)).collect();
    let peers = summary.peers.iter().map(|peer| {
        let name = peer.name.split(':').next().unwrap_or_default();
        dots(name, vec![(100.0 * peer.under_time, 100.0 * peer.slack)])
    });
    Plot {
        x_label: "time with too small a size, %".to_owned(),
        y_label: "slack, %".to_owned(),
        lines: std::iter::once(dots(OWN, own)).chain(peers).collect(),
        ..Plot::default()
    }
}

fn drawn(table: &Table) -> Vec<usize> {
    let deviation = |column: &Vec<f64>| {
        let known: Vec<f64> = column.iter().copied().filter(|value| value.is_finite()).collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        known.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / known.len().max(1) as f64
    };
    let mut order: Vec<(f64, usize)> = table.columns.iter().map(deviation).zip(0..).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut places: Vec<usize> =
        DRAWN.iter().map(|share| order[(share * (order.len() - 1) as f64).round() as usize].1).collect();
    places.dedup();
    places
}

fn vm(table: &Table, sizes: &[Vec<f32>], rules: &Rules, place: usize) -> Plot {
    let rows = table.rows();
    let from = rows.saturating_sub(DAYS_DRAWN * rules.day).max(rules.warmup);
    let days = |row: usize| row as f64 / rules.day as f64;
    let demand = (from..rows).map(|row| (days(row), table.columns[place][row])).collect();
    let size = (from..rows).map(|row| (days(row), f64::from(sizes[place][row]))).collect();
    let line = |name: &str, points| Line { name: name.to_owned(), points, dots: false };
    Plot {
        x_label: "days".to_owned(),
        y_label: "% of capacity".to_owned(),
        lines: vec![line("demand", demand), line("size", size)],
        ..Plot::default()
    }
}
