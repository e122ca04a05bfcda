//! Wide CSV files of numbers, plain or gzipped: one row for each instant, one column for each series.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use thiserror::Error;

/// Why a file could not be used as a table.
#[derive(Debug, Error)]
pub enum TableError {
    /// It could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no CSV.
    #[error("{}: {source}", path.display())]
    Csv {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: csv::Error,
    },
    /// A cell is neither a number nor blank.
    #[error("{}, line {line}: {text:?} in column {column:?} is no number; a missing value is a blank cell", path.display())]
    Number {
        /// Which file.
        path: PathBuf,
        /// Where; the header is line 1.
        line: usize,
        /// In which column.
        column: String,
        /// What stands there.
        text: String,
    },
}

/// Named series of equal length.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    /// Name of each column but the first, which numbers or dates the rows.
    pub(crate) names: Vec<String>,
    /// One vector for each name; NaN where a cell is blank.
    pub(crate) columns: Vec<Vec<f64>>,
}

impl Table {
    /// Reads a wide CSV file whose first column is left out.
    pub(crate) fn read(path: &Path) -> Result<Self, TableError> {
        let csv = |source| TableError::Csv { path: path.to_owned(), source };
        let mut reader = csv::Reader::from_reader(open(path)?);
        let names: Vec<String> = reader.headers().map_err(csv)?.iter().skip(1).map(str::to_owned).collect();
        let mut columns = vec![Vec::new(); names.len()];
        for (row, record) in reader.records().enumerate() {
            let record = record.map_err(csv)?;
            for ((cell, column), name) in record.iter().skip(1).zip(&mut columns).zip(&names) {
                column.push(number(cell).ok_or_else(|| TableError::Number {
                    path: path.to_owned(),
                    line: row + 2,
                    column: name.clone(),
                    text: cell.to_owned(),
                })?);
            }
        }
        Ok(Self { names, columns })
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    /// The series of that name.
    pub(crate) fn column(&self, name: &str) -> Option<&[f64]> {
        let place = self.names.iter().position(|known| known == name)?;
        Some(&self.columns[place])
    }
}

/// A cell's number; NaN for a blank one, `None` for what is neither: `inf` is no demand.
fn number(cell: &str) -> Option<f64> {
    let cell = cell.trim();
    if cell.is_empty() {
        return Some(f64::NAN);
    }
    cell.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Opens a file to be read, gunzipping where its name ends in `.gz`.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>, TableError> {
    let file = File::open(path).map_err(|source| TableError::Read { path: path.to_owned(), source })?;
    let file = BufReader::new(file);
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    Ok(if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

/// Creates a file to be written, gzipping where its name ends in `.gz`.
pub(crate) fn create(path: &Path) -> std::io::Result<Box<dyn Write>> {
    let file = BufWriter::new(File::create(path)?);
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    Ok(if zipped { Box::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast())) } else { Box::new(file) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Table, TableError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.csv.gz");
        let mut file = create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        drop(file);
        Table::read(&path)
    }

    #[test]
    fn a_blank_cell_is_a_gap() {
        let table = read("idx,a,b\n0,1.5,\n1,2,3e2\n").unwrap();
        assert_eq!(table.names, ["a", "b"]);
        assert_eq!(table.column("a").unwrap(), [1.5, 2.0]);
        assert!(table.column("b").unwrap()[0].is_nan());
        assert_eq!(table.column("c"), None);
    }

    #[test]
    fn what_is_no_number_is_told_with_its_place() {
        let error = read("idx,a\n0,1\n1,two\n").unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("line 3: \"two\" in column \"a\" is no number; a missing value is a blank cell")
        );
        assert!(read("idx,a\n0,inf\n").unwrap_err().to_string().contains("\"inf\" in column"));
        assert!(read("idx,a\n0,1,2\n").unwrap_err().to_string().contains("t.csv.gz"));
    }
}
