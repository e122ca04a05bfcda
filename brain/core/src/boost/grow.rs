//! Growing one tree, best leaf first.

use super::BoostSettings;
use super::bins::BINS;

/// A node of a tree; children are places in the same vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Node {
    /// What the tree adds here.
    Leaf { value: f32 },
    /// Where to go on: `low` for bins up to `threshold`.
    Split { feature: u16, threshold: u8, low: u32, high: u32 },
}

/// Sums of gradients and numbers of rows, by feature and bin.
type Histogram = Vec<[(f32, u32); BINS]>;

/// A leaf that may still be split.
struct Open {
    node: usize,
    rows: Vec<u32>,
    histogram: Histogram,
    best: Option<Cut>,
}

#[derive(Clone, Copy)]
struct Cut {
    gain: f32,
    feature: usize,
    threshold: u8,
}

/// Grows a tree on `rows`; `leaf` says what a leaf with these rows adds.
pub(super) fn grow(
    columns: &[Vec<u8>],
    gradients: &[f32],
    rows: Vec<u32>,
    settings: &BoostSettings,
    leaf: impl Fn(&[u32]) -> f32,
) -> Vec<Node> {
    let mut nodes = vec![Node::Leaf { value: 0.0 }];
    let histogram = histogram_of(columns, gradients, &rows);
    let best = best_cut(&histogram, settings.leaf_rows_min);
    let mut open = vec![Open { node: 0, rows, histogram, best }];
    while open.len() < settings.leaves_max {
        let gain = |open: &Open| open.best.map_or(f32::NEG_INFINITY, |cut| cut.gain);
        let Some(place) = (0..open.len()).max_by(|&a, &b| gain(&open[a]).total_cmp(&gain(&open[b]))) else { break };
        let Some(cut) = open[place].best else { break };
        let Open { node, rows, histogram: mut of_both, .. } = open.swap_remove(place);
        let column = &columns[cut.feature];
        let (low, high): (Vec<u32>, Vec<u32>) = rows.iter().partition(|&&row| column[row as usize] <= cut.threshold);
        // The larger child's histogram is what the smaller one's leaves of its parent's.
        let low_is_smaller = low.len() <= high.len();
        let of_smaller = histogram_of(columns, gradients, if low_is_smaller { &low } else { &high });
        subtract(&mut of_both, &of_smaller);
        let (of_low, of_high) = if low_is_smaller { (of_smaller, of_both) } else { (of_both, of_smaller) };
        nodes[node] = Node::Split {
            feature: cut.feature as u16,
            threshold: cut.threshold,
            low: nodes.len() as u32,
            high: nodes.len() as u32 + 1,
        };
        for (rows, histogram) in [(low, of_low), (high, of_high)] {
            let best = best_cut(&histogram, settings.leaf_rows_min);
            open.push(Open { node: nodes.len(), rows, histogram, best });
            nodes.push(Node::Leaf { value: 0.0 });
        }
    }
    for Open { node, rows, .. } in open {
        nodes[node] = Node::Leaf { value: leaf(&rows) };
    }
    nodes
}

fn histogram_of(columns: &[Vec<u8>], gradients: &[f32], rows: &[u32]) -> Histogram {
    let of_feature = |column: &Vec<u8>| {
        let mut bins = [(0.0, 0); BINS];
        for &row in rows {
            let bin = &mut bins[usize::from(column[row as usize]) % BINS];
            bin.0 += gradients[row as usize];
            bin.1 += 1;
        }
        bins
    };
    columns.iter().map(of_feature).collect()
}

fn subtract(from: &mut Histogram, what: &Histogram) {
    for (from, what) in from.iter_mut().flatten().zip(what.iter().flatten()) {
        from.0 -= what.0;
        from.1 -= what.1;
    }
}

/// The cut that lowers the gradients' squares most; `None` where none lowers them.
fn best_cut(histogram: &Histogram, leaf_rows_min: usize) -> Option<Cut> {
    let rows_min = leaf_rows_min.max(1) as u32;
    let mut best: Option<Cut> = None;
    for (feature, bins) in histogram.iter().enumerate() {
        let (sum, rows) = bins.iter().fold((0.0, 0), |(sum, rows), bin| (sum + bin.0, rows + bin.1));
        if rows < 2 * rows_min {
            return None;
        }
        let whole = sum * sum / rows as f32;
        let (mut low_sum, mut low_rows) = (0.0, 0);
        for (threshold, bin) in bins.iter().enumerate().take(BINS - 1) {
            low_sum += bin.0;
            low_rows += bin.1;
            let high_rows = rows - low_rows;
            if bin.1 == 0 || low_rows < rows_min || high_rows < rows_min {
                continue;
            }
            let high_sum = sum - low_sum;
            let gain = low_sum * low_sum / low_rows as f32 + high_sum * high_sum / high_rows as f32 - whole;
            if gain > best.map_or(1e-6, |cut| cut.gain) {
                best = Some(Cut { gain, feature, threshold: threshold as u8 });
            }
        }
    }
    best
}
