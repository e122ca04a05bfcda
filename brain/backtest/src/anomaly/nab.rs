//! The score of the Numenta Anomaly Benchmark (Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms", ICMLA 2015).
//!
//! Each labelled window rewards its earliest detection, more the earlier; each detection outside of the windows costs, less when
//! it is just behind one; each window missed costs. One threshold, the best there is, serves all files of the corpus. The sum is
//! scaled so that a detector that says nothing scores 0 and one that meets every window's first row, and nothing else, 100.

use std::ops::RangeInclusive;

/// Part of a file in which nothing is scored.
const PROBATION_SHARE: f64 = 0.15;
/// The rows after which a longer file adds no probation.
const PROBATION_ROWS_MAX: f64 = 5000.0;
/// Window widths behind a window from which on a false positive costs all its weight.
const FAR_BEHIND: f64 = 3.0;

/// What a profile of the benchmark weighs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Profile {
    /// Name by which the benchmark knows it.
    pub(super) name: &'static str,
    /// Reward of a window found at its first row.
    pub(super) true_positive: f64,
    /// Cost of a detection far from any window.
    pub(super) false_positive: f64,
    /// Cost of a window missed.
    pub(super) false_negative: f64,
}

/// The benchmark's three profiles.
pub(super) const PROFILES: [Profile; 3] = [
    Profile { name: "standard", true_positive: 1.0, false_positive: 0.11, false_negative: 1.0 },
    Profile { name: "reward_low_FP_rate", true_positive: 1.0, false_positive: 0.22, false_negative: 1.0 },
    Profile { name: "reward_low_FN_rate", true_positive: 1.0, false_positive: 0.11, false_negative: 2.0 },
];

/// A file as its detector saw it.
#[derive(Clone, Debug)]
pub(super) struct Scored {
    /// Anomaly score of each row.
    pub(super) scores: Vec<f64>,
    /// Labelled windows in rows, ascending and apart.
    pub(super) windows: Vec<RangeInclusive<usize>>,
}

/// How a corpus fared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Score {
    /// 0 for the silent detector, 100 for the perfect one.
    pub(super) normalised: f64,
    /// The scores at or above this count as detections.
    pub(super) threshold: f64,
}

/// A row that counts: its anomaly score, what a detection there is worth, and the window (numbered over the corpus) it is in.
struct Row {
    score: f64,
    worth: f64,
    window: Option<usize>,
}

/// Rows at the start of a file of `rows` that are not scored.
#[must_use]
pub(super) fn probation_rows(rows: usize) -> usize {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 750"
    )]
    let rows = (PROBATION_SHARE * (rows as f64).min(PROBATION_ROWS_MAX)).floor() as usize;
    rows
}

/// The benchmark's sigmoid: near 1 a window's width before its end (-1), 0 at its end, -1 far behind it.
fn scaled_sigmoid(position: f64) -> f64 {
    if position >= FAR_BEHIND { -1.0 } else { 2.0 / (1.0 + (5.0 * position).exp()) - 1.0 }
}

/// What a detection at each row is worth.
#[expect(clippy::cast_precision_loss, reason = "rows of a file are far fewer than 2^52")]
fn worths(rows: usize, windows: &[RangeInclusive<usize>], profile: &Profile) -> Vec<(f64, Option<usize>)> {
    let mut next = 0;
    (0..rows)
        .map(|row| {
            while windows.get(next).is_some_and(|window| *window.end() < row) {
                next += 1;
            }
            match windows.get(next) {
                Some(window) if window.contains(&row) => {
                    let width = (window.end() - window.start() + 1) as f64;
                    let position = -((window.end() - row + 1) as f64) / width;
                    (scaled_sigmoid(position) / scaled_sigmoid(-1.0) * profile.true_positive, Some(next))
                }
                _ => {
                    let position = next.checked_sub(1).map_or(FAR_BEHIND, |last| {
                        (row - windows[last].end()) as f64 / (windows[last].end() - windows[last].start()) as f64
                    });
                    (scaled_sigmoid(position) * profile.false_positive, None)
                }
            }
        })
        .collect()
}

/// The rows of all files that count, and how many windows they reach.
fn countable(files: &[Scored], profile: &Profile) -> (Vec<Row>, usize) {
    let mut rows = Vec::new();
    let mut windows = 0;
    for file in files {
        let probation = probation_rows(file.scores.len());
        let worths = worths(file.scores.len(), &file.windows, profile);
        for (&score, (worth, window)) in file.scores.iter().zip(worths).skip(probation) {
            rows.push(Row { score, worth, window: window.map(|window| windows + window) });
        }
        windows += file.windows.len();
    }
    (rows, windows)
}

/// Scales a sum between the silent detector's and the perfect one's.
#[expect(clippy::cast_precision_loss, reason = "windows are few")]
fn normalise(sum: f64, windows: usize, profile: &Profile) -> f64 {
    let silent = -profile.false_negative * windows as f64;
    let perfect = profile.true_positive * windows as f64;
    if windows == 0 { 0.0 } else { 100.0 * (sum - silent) / (perfect - silent) }
}

/// The corpus' score at the threshold that serves it best.
#[must_use]
pub(super) fn best(files: &[Scored], profile: &Profile) -> Score {
    let (mut rows, windows) = countable(files, profile);
    rows.sort_by(|one, other| other.score.total_cmp(&one.score));
    let mut found = vec![-profile.false_negative; windows];
    let mut sum: f64 = found.iter().sum();
    let mut best = Score { normalised: normalise(sum, windows, profile), threshold: f64::INFINITY };
    for (place, row) in rows.iter().enumerate() {
        match row.window {
            Some(window) if row.worth > found[window] => {
                sum += row.worth - found[window];
                found[window] = row.worth;
            }
            Some(_) => {}
            None => sum += row.worth,
        }
        let last_of_its_score = rows.get(place + 1).is_none_or(|next| next.score < row.score);
        let normalised = normalise(sum, windows, profile);
        if last_of_its_score && normalised > best.normalised {
            best = Score { normalised, threshold: row.score };
        }
    }
    best
}

/// The corpus' score at a given threshold.
#[must_use]
pub(super) fn at(files: &[Scored], profile: &Profile, threshold: f64) -> f64 {
    let (rows, windows) = countable(files, profile);
    let mut found = vec![-profile.false_negative; windows];
    let mut false_positives = 0.0;
    for row in rows.iter().filter(|row| row.score >= threshold) {
        match row.window {
            Some(window) => found[window] = found[window].max(row.worth),
            None => false_positives += row.worth,
        }
    }
    normalise(found.iter().sum::<f64>() + false_positives, windows, profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD: Profile = PROFILES[0];

    fn file(rows: usize, windows: &[RangeInclusive<usize>], detections: &[usize]) -> Scored {
        let mut scores = vec![0.0; rows];
        for &row in detections {
            scores[row] = 1.0;
        }
        Scored { scores, windows: windows.to_vec() }
    }

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    #[test]
    fn silence_scores_nothing_and_perfection_a_hundred() {
        let windows = [300..=399, 600..=699];
        for profile in PROFILES {
            assert!(near(at(&[file(1000, &windows, &[])], &profile, 1.0), 0.0));
            assert!(near(at(&[file(1000, &windows, &[300, 600])], &profile, 1.0), 100.0));
            assert!(near(best(&[file(1000, &windows, &[300, 600])], &profile).normalised, 100.0));
        }
    }

    #[test]
    fn a_late_detection_is_worth_less_and_only_the_first_counts() {
        let windows = [300..=399];
        let middle = (2.0 / (1.0 + (-2.5_f64).exp()) - 1.0) / (2.0 / (1.0 + (-5.0_f64).exp()) - 1.0);
        let expected = 100.0 * (middle + 1.0) / 2.0;
        assert!(near(at(&[file(1000, &windows, &[350])], &STANDARD, 1.0), expected));
        assert!(near(at(&[file(1000, &windows, &[350, 360, 399])], &STANDARD, 1.0), expected));
    }

    #[test]
    fn a_false_positive_costs_its_weight_and_less_just_behind_a_window() {
        let windows = [300..=399];
        let cost = |row| 100.0 - at(&[file(1000, &windows, &[300, row])], &STANDARD, 1.0);
        assert!(near(cost(200), 5.5));
        assert!(near(cost(900), 5.5));
        let behind = 100.0 * 0.11 / 2.0 * (1.0 - 2.0 / (1.0 + (5.0 * 10.0 / 99.0_f64).exp()));
        assert!(near(cost(409), behind));
    }

    #[test]
    fn nothing_counts_during_probation() {
        assert!(near(at(&[file(1000, &[300..=399], &[10, 149, 300])], &STANDARD, 1.0), 100.0));
        assert!(at(&[file(1000, &[300..=399], &[150, 300])], &STANDARD, 1.0) < 100.0);
        assert_eq!(probation_rows(4032), 604);
        assert_eq!(probation_rows(22_695), 750);
    }

    #[test]
    fn the_best_threshold_serves_all_files_and_takes_ties_together() {
        let mut noisy = file(1000, &[300..=399], &[300]);
        noisy.scores[300] = 0.5;
        noisy.scores[200] = 0.4;
        let clean = file(1000, &[500..=599], &[500]);
        let score = best(&[noisy.clone(), clean.clone()], &STANDARD);
        assert!(near(score.normalised, 100.0) && near(score.threshold, 0.5));
        noisy.scores[200] = 0.5;
        let tied = best(&[noisy.clone(), clean.clone()], &STANDARD);
        assert!(near(tied.normalised, 100.0 - 5.5 / 2.0));
        assert!(near(at(&[noisy, clean], &STANDARD, tied.threshold), tied.normalised));
    }
}
