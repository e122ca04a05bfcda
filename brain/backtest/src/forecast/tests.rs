use super::*;

const ROWS: usize = 700;
const ORIGIN: usize = 600;

/// Writes a suite of two tasks and its series, of which `change` may have altered the values by row, runs it, reads the result.
fn backtest(change: impl Fn(usize, f64) -> f64) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let suite = format!(
        r#"{{"suite":"s","step_seconds":900,"season":[96],"horizon":8,"window":400,"kpi_unit":"%","tasks":[["a",{ORIGIN}],["b",{ORIGIN}]]}}"#
    );
    std::fs::write(path("s.json"), suite).unwrap();
    let mut series = "idx,a,b\n".to_owned();
    for row in 0..ROWS {
        let value = (row % 96) as f64 + (row * 31 % 17) as f64;
        series += &format!("{row},{},{}\n", change(row, value), change(row, value * value));
    }
    std::fs::write(path("s.csv"), series).unwrap();
    let [suite, series, out, report] = ["s.json", "s.csv", "out.csv", "report.html"].map(path);
    let arguments = ForecastArguments { suite, series, out, max_tasks: None, report: Some(report) };
    run(&arguments, true).unwrap();
    let report = std::fs::read_to_string(path("report.html")).unwrap();
    assert_eq!(report.matches("<svg").count(), 2, "a picture of each task");
    assert!(report.contains("95 %") && !report.contains("NaN"), "{report}");
    std::fs::read_to_string(path("out.csv")).unwrap()
}

#[test]
fn nothing_at_or_after_the_origin_changes_a_byte() {
    let truth = backtest(|_, value| value);
    assert_eq!(truth.lines().count(), 1 + 2 * 8 * (1 + LEVELS.len()));
    assert_eq!(truth, backtest(|row, value| if row >= ORIGIN { 1e9 - value } else { value }));
    // Were nothing read at all, that would hold as well.
    assert_ne!(truth, backtest(|row, value| if row + 1 == ORIGIN { value + 50.0 } else { value }));
}

#[test]
fn nothing_before_the_window_changes_a_byte() {
    let truth = backtest(|_, value| value);
    assert_eq!(truth, backtest(|row, value| if row < ORIGIN - 400 { -value } else { value }));
}

#[test]
fn a_task_outside_the_series_is_told_by_name() {
    let table = Table { names: vec!["a".to_owned()], columns: vec![vec![1.0; 10]] };
    let suite = Suite { suite: "s".to_owned(), season: vec![], horizon: 1, window: 8, tasks: vec![] };
    let message = |name: &str, origin| window(&suite, &table, &(name.to_owned(), origin)).unwrap_err().to_string();
    assert_eq!(message("b", 8), "the series have no column \"b\"");
    assert_eq!(message("a", 7), "\"a\" has 10 rows: no 8 of them before row 7");
    assert_eq!(message("a", 11), "\"a\" has 10 rows: no 8 of them before row 11");
    assert_eq!(window(&suite, &table, &("a".to_owned(), 10)).unwrap().len(), 8);
}
