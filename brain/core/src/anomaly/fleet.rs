//! Incidents that many series of a fleet have at once are one incident: a failed switch, a busy storage, a wave of users.

use std::collections::BTreeSet;

use super::Incident;

/// Seconds after a fleet's first incident in which others belong to it: three reports of 5 min, so that a cause reaches them all.
pub(crate) const TOGETHER_S: i64 = 900;

/// Share of the fleet's series that make an incident one of the fleet.
const FLEET_SHARE: f64 = 0.1;

/// The fewest series that do: two neighbours with an incident each may be chance in a small fleet.
const SERIES_MIN: usize = 3;

/// Incidents of a fleet, folded.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding<S> {
    /// One series has it alone.
    One {
        /// Which.
        series: S,
        /// What it is.
        incident: Incident,
    },
    /// Many series have one within [`TOGETHER_S`].
    Fleet {
        /// Since when, in Unix seconds: the earliest of them.
        since_s: i64,
        /// When the first was found, in Unix seconds.
        at_s: i64,
        /// Each series with its incidents.
        members: Vec<(S, Incident)>,
    },
}

/// Folds the incidents of a fleet of `series` into findings, in the order of their times and series. The incidents may come in any
/// order; the same incidents give the same findings.
#[must_use]
pub fn fold<S: Clone + Ord>(incidents: &[(S, Incident)], series: usize) -> Vec<Finding<S>> {
    let mut sorted = incidents.to_vec();
    sorted
        .sort_by(|(one, first), (other, second)| (first.at_s, one, first.kind).cmp(&(second.at_s, other, second.kind)));
    let mut findings = Vec::new();
    let mut rest = sorted.as_slice();
    while let Some((_, first)) = rest.first() {
        let (at_s, end_s) = (first.at_s, first.at_s.saturating_add(TOGETHER_S));
        let together = rest.partition_point(|(_, incident)| incident.at_s <= end_s);
        let members = &rest[..together];
        let distinct: BTreeSet<&S> = members.iter().map(|(series, _)| series).collect();
        let taken = if is_fleet_wide(distinct.len(), series) {
            let since_s = members.iter().map(|(_, incident)| incident.since_s).fold(at_s, i64::min);
            findings.push(Finding::Fleet { since_s, at_s, members: members.to_vec() });
            together
        } else {
            let (series, incident) = rest[0].clone();
            findings.push(Finding::One { series, incident });
            1
        };
        rest = &rest[taken..];
    }
    findings
}

/// Whether so many of so many series are the fleet.
#[expect(clippy::cast_precision_loss, reason = "series of a fleet are far fewer than 2^52")]
pub(crate) fn is_fleet_wide(affected: usize, series: usize) -> bool {
    affected >= SERIES_MIN && affected as f64 >= FLEET_SHARE * series as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anomaly::{Kind, Range};

    fn incident(at_s: i64) -> Incident {
        let expected = Range { low: 0.0, high: 1.0 };
        Incident { kind: Kind::Point, since_s: at_s - 10, at_s, expected, observed: 2.0, score: 1.0 }
    }

    #[test]
    fn incidents_of_many_at_once_are_one() {
        let mut incidents: Vec<(u32, Incident)> =
            (0..10).map(|series| (series, incident(1000 + i64::from(series)))).collect();
        incidents.push((3, incident(9000)));
        let findings = fold(&incidents, 50);
        assert_eq!(findings.len(), 2);
        assert!(matches!(&findings[0], Finding::Fleet { since_s: 990, at_s: 1000, members } if members.len() == 10));
        assert!(matches!(&findings[1], Finding::One { series: 3, .. }));
        incidents.reverse();
        assert_eq!(fold(&incidents, 50), findings);
    }

    #[test]
    fn a_few_of_a_large_fleet_and_a_restless_one_stay_apart() {
        let few: Vec<(u32, Incident)> = (0..4).map(|series| (series, incident(1000))).collect();
        assert_eq!(fold(&few, 50).len(), 4);
        let restless: Vec<(u32, Incident)> = (0..6).map(|minute| (7, incident(1000 + minute * 60))).collect();
        assert_eq!(fold(&restless, 5).len(), 6);
    }

    #[test]
    fn a_train_of_incidents_is_cut_by_its_first() {
        let train: Vec<(u32, Incident)> =
            (0..8).map(|series| (series, incident(1000 + i64::from(series) * 300))).collect();
        let sizes: Vec<usize> = fold(&train, 8)
            .iter()
            .map(|finding| if let Finding::Fleet { members, .. } = finding { members.len() } else { 1 })
            .collect();
        assert_eq!(sizes, [4, 4]);
    }
}
