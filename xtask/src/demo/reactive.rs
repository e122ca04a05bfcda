//! The policy most people run today, on the same recorded workload: size to the recent maximum plus headroom.
//!
//! It is given every advantage: it sees the true demand, also what a quota would have hidden, and of several look-back
//! windows the one that does best is taken. It has the same reaction lag as Gnomon's own live path, and its headroom is
//! set so that its slack equals Gnomon's: then only the seconds under-provisioned differ.

use super::record::Row;
use super::verdict::{Service, service};

/// Look-back windows tried, in seconds.
const WINDOWS_S: [usize; 5] = [2, 5, 10, 20, 40];
/// Headroom searched: from none to fifty-fold.
const HEADROOM_MAX: f64 = 50.0;
/// Halvings of that range: finer than a thousandth of a core.
const BISECTIONS: usize = 40;

/// Slack this close to the target is the same slack.
const SLACK_TOLERANCE: f64 = 0.02;

/// The best reactive policy at a given slack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reactive {
    /// Its look-back window, in seconds.
    pub(super) window_s: usize,
    /// Its headroom factor.
    pub(super) headroom: f64,
    /// How it served the workload.
    pub(super) service: Service,
}

/// The allocation that the policy would have had each second.
fn allocations(rows: &[Row], window_s: usize, lag_s: usize, headroom: f64, floor: f64, ceiling: f64) -> Vec<f64> {
    (0..rows.len())
        .map(|now| {
            let end = now.saturating_sub(lag_s);
            let seen = &rows[end.saturating_sub(window_s)..=end];
            let wanted = seen.iter().map(|row| row.wanted).fold(0.0, f64::max);
            (wanted * headroom).clamp(floor, ceiling)
        })
        .collect()
}

/// The reactive policy whose slack is that of `target` and that violates least (`None` if no headroom brings that slack), over `rows` at one per second.
///
/// `lag_s` is the time from demand to changed limit; `floor` and `ceiling` are in cores, the same that bound Gnomon.
pub(super) fn at_equal_slack(
    rows: &[Row],
    target: &Service,
    lag_s: usize,
    floor: f64,
    ceiling: f64,
) -> Option<Reactive> {
    let run = |window_s: usize, headroom: f64| {
        let allocated = allocations(rows, window_s, lag_s, headroom, floor, ceiling);
        service(rows.iter().zip(&allocated).map(|(row, allocation)| (row.wanted, *allocation)))
    };
    let tuned = |window_s: usize| {
        // Slack grows with headroom: bisect.
        let (mut low, mut high) = (0.0, HEADROOM_MAX);
        for _ in 0..BISECTIONS {
            let middle = (low + high) / 2.0;
            if run(window_s, middle).slack < target.slack { low = middle } else { high = middle }
        }
        Reactive { window_s, headroom: high, service: run(window_s, high) }
    };
    if rows.is_empty() {
        return None;
    }
    let comparable = |reactive: &Reactive| (reactive.service.slack - target.slack).abs() <= SLACK_TOLERANCE;
    WINDOWS_S
        .into_iter()
        .map(tuned)
        .filter(comparable)
        .min_by_key(|reactive| (reactive.service.violated_s, reactive.service.resizes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(at: usize) -> f64 {
        if at % 60 < 15 { 0.8 } else { 0.1 }
    }

    #[test]
    fn a_reactive_policy_is_late_by_its_lag_at_every_surge() {
        let rows: Vec<Row> = (0..300).map(|at| Row { at_s: at as f64, wanted: square(at), ..Row::default() }).collect();
        let target = Service { slack: 0.3, ..Service::default() };
        let best = at_equal_slack(&rows, &target, 2, 0.05, 1.0).unwrap();
        assert!((best.service.slack - 0.3).abs() < 0.02, "slack was {}", best.service.slack);
        // Four full surges begin inside the recording; each is missed for the two seconds of lag.
        assert_eq!(best.service.violated_s, 8);
    }

    #[test]
    fn an_empty_recording_has_no_reactive_run() {
        assert_eq!(at_equal_slack(&[], &Service::default(), 2, 0.05, 1.0), None);
    }
}
