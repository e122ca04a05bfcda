//! Features as bytes: a bin for each of about equally many values, and one for what is missing.

/// Bins of a feature, that for missing values included.
pub(super) const BINS: usize = 64;

/// The bin of a value that is not known.
const MISSING: u8 = 0;

/// Where the bins of each feature end.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    edges: Vec<Vec<f32>>,
}

impl Bins {
    /// Chooses bins by the quantiles of each feature over `rows` (row by row, all of one length; NaN is missing).
    pub fn fit<R: AsRef<[f32]>>(rows: &[R]) -> Self {
        let features = rows.first().map_or(0, |row| row.as_ref().len());
        let edges = |feature: usize| {
            let mut values: Vec<f32> =
                rows.iter().map(|row| row.as_ref()[feature]).filter(|value| !value.is_nan()).collect();
            values.sort_by(f32::total_cmp);
            let mut edges: Vec<f32> =
                (1..BINS - 1).filter_map(|i| values.get(i * values.len() / (BINS - 1)).copied()).collect();
            edges.dedup();
            edges
        };
        Self { edges: (0..features).map(edges).collect() }
    }

    fn bin(&self, feature: usize, value: f32) -> u8 {
        if value.is_nan() {
            return MISSING;
        }
        1 + self.edges[feature].partition_point(|edge| *edge < value) as u8
    }

    /// The bins of one row.
    pub fn row(&self, row: &[f32]) -> Vec<u8> {
        row.iter().enumerate().map(|(feature, &value)| self.bin(feature, value)).collect()
    }

    /// The bins of many rows, feature by feature.
    pub fn columns<R: AsRef<[f32]>>(&self, rows: &[R]) -> Vec<Vec<u8>> {
        let column = |feature| rows.iter().map(|row| self.bin(feature, row.as_ref()[feature])).collect();
        (0..self.edges.len()).map(column).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_keep_the_order_and_what_is_missing_has_its_own() {
        let rows: Vec<[f32; 2]> = (0..1000).map(|i| [i as f32, if i % 2 == 0 { f32::NAN } else { 1.0 }]).collect();
        let bins = Bins::fit(&rows);
        let column: Vec<u8> = (0..1000).map(|i| bins.row(&[i as f32, 1.0])[0]).collect();
        assert!(column.is_sorted() && column[0] == 1 && column[999] == 63, "{} to {}", column[0], column[999]);
        assert_eq!(bins.row(&[f32::NAN, f32::NAN]), [0, 0]);
        assert_eq!(bins.row(&[f32::INFINITY, f32::NEG_INFINITY]), [63, 1]);
    }
}
