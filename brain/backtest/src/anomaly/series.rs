//! Files of one series: rows of timestamp,value.

use std::io::Write;
use std::path::{Path, PathBuf};

use gnomon_core::anomaly::Verdict;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use thiserror::Error;

use crate::table::{self, TableError};

/// Why a file could not be used as a series.
#[derive(Debug, Error)]
pub(super) enum SeriesError {
    /// It could not be read.
    #[error(transparent)]
    File(#[from] TableError),
    /// It is no CSV.
    #[error("{}: {source}", path.display())]
    Csv {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: csv::Error,
    },
    /// A row makes no sense.
    #[error("{}, line {line}: {text:?} is no {what}", path.display())]
    Cell {
        /// Which file.
        path: PathBuf,
        /// Where; the header is line 1.
        line: usize,
        /// What stands there.
        text: String,
        /// What should.
        what: &'static str,
    },
}

/// One series, with its times as they were written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) timestamps: Vec<String>,
    pub(super) times_s: Vec<i64>,
    /// NaN where a cell is blank.
    pub(super) values: Vec<f64>,
}

impl Series {
    /// Reads a CSV file (gzipped where its name ends in `.gz`) with a header and the columns timestamp, value.
    pub(super) fn read(path: &Path) -> Result<Self, SeriesError> {
        let csv = |source| SeriesError::Csv { path: path.to_owned(), source };
        let mut reader = csv::Reader::from_reader(table::open(path)?);
        let mut series = Self { timestamps: Vec::new(), times_s: Vec::new(), values: Vec::new() };
        for (row, record) in reader.records().enumerate() {
            let record = record.map_err(csv)?;
            let cell = |text: &str, what| SeriesError::Cell {
                path: path.to_owned(),
                line: row + 2,
                text: text.to_owned(),
                what,
            };
            let timestamp = record.get(0).unwrap_or_default();
            let value = record.get(1).unwrap_or_default().trim();
            series.times_s.push(time_s(timestamp).ok_or_else(|| cell(timestamp, "timestamp"))?);
            series.values.push(match value {
                "" => f64::NAN,
                value => value.parse().map_err(|_| cell(value, "number; a missing value is a blank cell"))?,
            });
            series.timestamps.push(timestamp.to_owned());
        }
        Ok(series)
    }
}

/// Unix seconds of `2014-04-01 00:00:00` (taken for UTC), RFC 3339 or Unix seconds.
pub(super) fn time_s(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at.as_second());
    }
    let civil: DateTime = text.parse().ok()?;
    Some(TimeZone::UTC.to_timestamp(civil).ok()?.as_second())
}

/// Writes timestamp,value,score,alert.
pub(super) fn write(path: &Path, series: &Series, verdicts: &[Verdict]) -> std::io::Result<()> {
    let mut file = table::create(path)?;
    writeln!(file, "timestamp,value,score,alert")?;
    for ((timestamp, value), verdict) in series.timestamps.iter().zip(&series.values).zip(verdicts) {
        let value = if value.is_nan() { String::new() } else { value.to_string() };
        writeln!(file, "{timestamp},{value},{},{}", verdict.score, u8::from(verdict.alert.is_some()))?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_in_three_forms() {
        assert_eq!(time_s("2014-04-01 00:00:00"), Some(1_396_310_400));
        assert_eq!(time_s("2014-04-01 00:00:00.000000"), Some(1_396_310_400));
        assert_eq!(time_s("2014-04-01T02:00:00+02:00"), Some(1_396_310_400));
        assert_eq!(time_s("1396310400"), Some(1_396_310_400));
        assert_eq!(time_s("yesterday"), None);
    }

    #[test]
    fn a_row_that_makes_no_sense_is_told_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.csv");
        std::fs::write(&path, "timestamp,value\n2014-04-01 00:00:00,\n2014-04-01 00:05:00,high\n").unwrap();
        let error = Series::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("line 3: \"high\" is no number; a missing value is a blank cell"), "{error}");
    }
}
