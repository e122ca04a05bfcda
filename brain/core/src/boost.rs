//! Gradient boosting of regression trees for one quantile (Friedman, 2001, with the pinball loss), on binned features.
//!
//! Trees are grown best-first on the loss' gradient, whose histograms are cheap to keep because features are bytes; each leaf then says the
//! quantile of what is left to explain in it. Deterministic, single-threaded, no entropy: the rows of a tree are drawn by its number.

mod bins;
mod grow;

pub use bins::Bins;

use crate::draw::draw;
use grow::{Node, grow};

/// How a model is trained. The defaults are ordinary ones of the field.
#[derive(Clone, Debug, PartialEq)]
pub struct BoostSettings {
    /// Trees.
    pub rounds: usize,
    /// What share of its leaf's quantile a tree adds.
    pub rate: f32,
    /// Leaves of a tree, at most.
    pub leaves_max: usize,
    /// Rows in a leaf, at least.
    pub leaf_rows_min: usize,
}

impl Default for BoostSettings {
    fn default() -> Self {
        Self { rounds: 100, rate: 0.1, leaves_max: 24, leaf_rows_min: 60 }
    }
}

/// A model of one quantile.
#[derive(Clone, Debug, PartialEq)]
pub struct Boost {
    start: f32,
    trees: Vec<Vec<Node>>,
}

impl Boost {
    /// Fits the `level` quantile (0 to 1) of `targets` to binned features: `columns[feature][row]`. O(rounds × rows × features). Without rows
    /// it says 0.
    pub fn fit(columns: &[Vec<u8>], targets: &[f32], level: f32, settings: &BoostSettings) -> Self {
        let start = quantile(&mut targets.to_vec(), level).unwrap_or(0.0);
        let mut left: Vec<f32> = targets.iter().map(|target| target - start).collect();
        let mut trees = Vec::new();
        for round in 0..settings.rounds {
            let gradients: Vec<f32> = left.iter().map(|&left| if left > 0.0 { level } else { level - 1.0 }).collect();
            // Every other row, other ones each time: faster, and trees that err differently.
            let rows = (0..targets.len() as u32).filter(|&row| draw(round as u64, u64::from(row)) & 1 == 0).collect();
            let leaf = |rows: &[u32]| {
                let mut rest: Vec<f32> = rows.iter().map(|&row| left[row as usize]).collect();
                settings.rate * quantile(&mut rest, level).unwrap_or(0.0)
            };
            let tree = grow(columns, &gradients, rows, settings, leaf);
            for (row, left) in left.iter_mut().enumerate() {
                *left -= walk(&tree, |feature| columns[feature][row]);
            }
            trees.push(tree);
        }
        Self { start, trees }
    }

    /// The quantile for one row of binned features.
    pub fn predict(&self, row: &[u8]) -> f32 {
        self.start + self.trees.iter().map(|tree| walk(tree, |feature| row[feature])).sum::<f32>()
    }
}

fn walk(tree: &[Node], bin: impl Fn(usize) -> u8) -> f32 {
    let mut at = 0;
    loop {
        match tree[at] {
            Node::Leaf { value } => return value,
            Node::Split { feature, threshold, low, high } => {
                at = if bin(feature as usize) <= threshold { low } else { high } as usize;
            }
        }
    }
}

/// The smallest value that at least `level` of the values do not exceed; `None` without values. Reorders them.
fn quantile(values: &mut [f32], level: f32) -> Option<f32> {
    let last = values.len().checked_sub(1)?;
    let place = ((level * values.len() as f32).ceil() as usize).saturating_sub(1).min(last);
    Some(*values.select_nth_unstable_by(place, f32::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn uniform(row: u64) -> f32 {
        (draw(7, row) >> 40) as f32 / (1u64 << 24) as f32
    }

    #[test]
    fn the_quantile_follows_the_feature_that_drives_the_spread() {
        // Uniform noise as wide as the first feature; the second one means nothing.
        let features: Vec<Vec<f32>> = (0..6000).map(|row| vec![(row % 10) as f32, uniform(row)]).collect();
        let targets: Vec<f32> = (0..6000u64).map(|row| (row % 10) as f32 * uniform(row + 10_000)).collect();
        let bins = Bins::fit(&features);
        let columns = bins.columns(&features);
        let model = Boost::fit(&columns, &targets, 0.9, &BoostSettings::default());
        for spread in [2.0, 5.0, 9.0f32] {
            let said = model.predict(&bins.row(&[spread, 0.5]));
            assert!((said - 0.9 * spread).abs() < 0.12 * spread, "{said} for {spread}");
        }
        let below =
            features.iter().zip(&targets).filter(|(row, target)| **target <= model.predict(&bins.row(row))).count();
        assert!((0.88..0.92).contains(&(below as f64 / 6000.0)), "{below} of 6000");
        assert_eq!(model, Boost::fit(&columns, &targets, 0.9, &BoostSettings::default()), "the same again");
    }

    #[test]
    fn without_rows_it_says_nothing_is_wanted() {
        let model = Boost::fit(&[vec![], vec![]], &[], 0.9, &BoostSettings::default());
        assert_eq!(model.predict(&[0, 0]), 0.0);
    }

    proptest! {
        #[test]
        fn whatever_it_learns_it_says_a_number_within_what_it_saw(
            rows in proptest::collection::vec((any::<f32>(), -1e6f32..1e6), 1..200), level in 0.01f32..0.99,
        ) {
            let features: Vec<Vec<f32>> = rows.iter().map(|row| vec![row.0]).collect();
            let targets: Vec<f32> = rows.iter().map(|row| row.1).collect();
            let bins = Bins::fit(&features);
            let settings = BoostSettings { rounds: 10, leaf_rows_min: 2, ..BoostSettings::default() };
            let model = Boost::fit(&bins.columns(&features), &targets, level, &settings);
            let span = |f: fn(f32, f32) -> f32| targets.iter().copied().reduce(f).unwrap();
            let (low, high) = (span(f32::min), span(f32::max));
            for row in &features {
                let said = model.predict(&bins.row(row));
                prop_assert!(said >= low - (high - low) - 1.0 && said <= high + (high - low) + 1.0, "{said} of {low}..{high}");
            }
        }
    }
}
